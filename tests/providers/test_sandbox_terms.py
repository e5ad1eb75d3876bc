"""How marketplaces rent, in memory and with time by hand: bids, lost hosts, other prices, stops; the meter is what a second sum says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sandbox_market import ACCOUNT, OTHER, FakeMachines, World

from providers.sandbox.cards import CUDA, VARIABLE, Card
from providers.sandbox.happenings import Happening, happen
from providers.sandbox.limits import Limits
from providers.sandbox.machines import Boot, Seen
from providers.sandbox.market import EXPIRED_KEPT
from providers.sandbox.rentals import MarketError, Out, Terms

OFFER = "2004"
MARKET = Terms(gpu_from_running=True)


class Machines(FakeMachines):
    """Machines that can boot again, fall silent and let more keys in."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen: set[str] = set()
        self.keys: set[tuple[str, str]] = set()

    def start(self, machine_id: str, boot: Boot) -> None:
        self.folders.discard(machine_id)
        super().start(machine_id, boot)

    def freeze(self, machine_id: str, *, frozen: bool) -> None:
        (self.frozen.add if frozen else self.frozen.discard)(machine_id)

    def authorize(self, machine_id: str, ssh_public_key: str) -> None:
        self.keys.add((machine_id, ssh_public_key))


@pytest.fixture
def world() -> World:
    return World(machines=Machines())


@dataclass
class Sum:
    """The second sum: what ought to be charged, second by second."""

    gpu: Fraction
    disk: Fraction
    total: Fraction = Fraction(0)

    def pass_(self, seconds: int, *, running: bool, offline: bool) -> None:
        hours = Fraction(seconds, 3600)
        self.total += hours * ((self.gpu if running and not offline else 0) + (0 if offline else self.disk))


ACTIONS = st.lists(st.tuples(st.sampled_from(["stop", "start", "lose", "find", "price"]), st.integers(0, 5000)), max_size=12)


@given(actions=ACTIONS)
@settings(max_examples=60, deadline=None)
def test_whatever_happens_to_a_machine_its_meter_is_what_a_second_sum_says(actions: list[tuple[str, int]]) -> None:
    world = World(machines=Machines())
    market = world.market
    me = ACCOUNT.name, market.create(ACCOUNT, OFFER, world.spec()).id
    prices = market.show(*me).rental.offer.prices
    expected = Sum(Fraction(prices.gpu_usd_per_hour), Fraction(prices.disk_usd_per_gib_hour) * 10)
    running, offline = True, False
    for number, (action, seconds) in enumerate(actions):
        if action == "stop" and not offline:
            market.stop(*me)
            running = False
        elif action == "start" and not offline:
            market.restart(*me)
            running = True
        elif action in ("lose", "find"):
            offline = action == "lose"
            market.lose_host(*me, lost=offline)
        elif action == "price":
            market.reprice(*me, Decimal(number + 1) / 10)
            expected.gpu = Fraction(number + 1, 10)
        world.seconds += seconds
        expected.pass_(seconds, running=running, offline=offline)
        market.tick()
    (machine,) = market.bill().machines
    assert abs(Fraction(machine.total_usd) - expected.total) < Fraction(1, 10**15)


def test_a_gpu_that_is_billed_from_running_on_costs_nothing_while_it_loads(world: World) -> None:
    rental = world.market.create(ACCOUNT, OFFER, world.spec(), terms=MARKET)
    world.seconds = Fraction(5)  # created 2 s, loading 3 s
    world.market.tick()
    assert world.market.bill().machines[0].gpu_usd == 0 < world.market.bill().machines[0].disk_usd
    world.seconds = Fraction(3605)
    assert world.market.bill().machines[0].gpu_usd == rental.offer.prices.gpu_usd_per_hour


def test_a_bid_runs_while_it_is_the_highest_and_pays_what_it_bid(world: World) -> None:
    market = world.market
    floor = market.floor_usd_per_hour(OFFER)
    me = "one", market.create(ACCOUNT, OFFER, world.spec(), terms=Terms(bid_usd_per_hour=floor)).id
    assert market.show(*me).rental.offer.prices.gpu_usd_per_hour == floor
    happen(market, Happening(what="outbid", machine=me[1]))
    assert (market.show(*me).status, market.show(*me).rental.out) == ("exited", Out.BID)
    market.reprice(*me, floor * 2)
    assert market.show(*me).rental.out is None
    happen(market, Happening(what="floor", offer=OFFER, usd_per_hour=floor * 3))
    assert market.show(*me).rental.out is Out.BID
    happen(market, Happening(what="floor", offer=OFFER, usd_per_hour=floor))
    assert market.show(*me).rental.out is None, "by itself"


def test_a_stop_that_was_asked_for_is_not_undone_by_a_falling_price(world: World) -> None:
    me = "one", world.market.create(ACCOUNT, OFFER, world.spec(), terms=Terms(bid_usd_per_hour=Decimal(5))).id
    world.market.stop(*me)
    happen(world.market, Happening(what="floor", offer=OFFER, usd_per_hour=Decimal("0.01")))
    assert world.market.show(*me).status == "exited"


def test_a_bid_below_the_floor_is_a_stopped_machine_that_never_booted(world: World) -> None:
    rental = world.market.create(ACCOUNT, OFFER, world.spec(), terms=Terms(bid_usd_per_hour=Decimal("0.001")))
    assert rental.out is Out.BID
    assert world.machines.folders == set()
    world.seconds = Fraction(3600)
    assert world.market.bill().machines[0].gpu_usd == 0 < world.market.bill().machines[0].disk_usd
    world.market.destroy("one", rental.id)
    assert world.market.bill().live == ()


def test_credit_that_is_used_up_stops_only_what_was_rented_on_credit(world: World) -> None:
    market = world.market
    prepaid = market.create(OTHER, OFFER, world.spec(), terms=Terms(prepaid=True)).id
    free = market.create(OTHER, "2005", world.spec()).id
    world.seconds = Fraction(10**6)
    market.tick()
    assert (market.show("two", prepaid).rental.out, market.show("two", free).rental.out) == (Out.CREDIT, None)


def test_a_contract_ends_and_its_disk_is_kept_for_a_while(world: World) -> None:
    market = world.market
    me = "one", market.create(ACCOUNT, OFFER, world.spec(), terms=Terms(ends_at=world.now() + timedelta(hours=1))).id
    world.seconds = Fraction(3600)
    assert market.show(*me).rental.out is Out.EXPIRED
    world.seconds += int(EXPIRED_KEPT.total_seconds())
    with pytest.raises(MarketError, match="no instance"):
        market.show(*me)
    assert market.bill().live == ()


def test_a_lost_host_is_silent_and_a_later_key_gets_in_when_it_runs(world: World) -> None:
    machines = world.machines
    assert isinstance(machines, Machines)
    me = "one", world.market.create(ACCOUNT, OFFER, world.spec()).id
    world.market.update(*me, ssh_keys=("ssh-rsa B",))
    world.market.tick()
    assert not machines.keys, "it does not run yet"
    world.seconds = Fraction(10)
    world.market.tick()
    assert machines.keys == {(me[1], "ssh-rsa B")}
    happen(world.market, Happening(what="offline", machine=me[1]))
    assert (world.market.show(*me).status, machines.frozen) == ("offline", {me[1]})
    machines.living[me[1]] = Seen(alive=False)
    world.market.tick()
    happen(world.market, Happening(what="online", machine=me[1]))
    assert machines.frozen == set()


def test_a_happening_that_lacks_something_changes_nothing(world: World) -> None:
    for wrong in (Happening(what="price", machine="77"), Happening(what="offer_price", offer=OFFER), Happening(what="offline")):
        with pytest.raises(MarketError):
            happen(world.market, wrong)
    me = world.market.create(ACCOUNT, OFFER, world.spec()).id
    with pytest.raises(MarketError, match="not interruptible"):
        happen(world.market, Happening(what="outbid", machine=me))


def test_the_next_machine_can_be_told_to_boot_for_ever_before_it_is_rented(world: World) -> None:
    happen(world.market, Happening(what="stuck"))
    first = world.market.create(ACCOUNT, OFFER, world.spec())
    assert first.stuck
    world.market.destroy(ACCOUNT.name, first.id)
    assert not world.market.create(ACCOUNT, OFFER, world.spec()).stuck


def test_limits_count_by_endpoint_and_customer() -> None:
    now = 0.0
    limits = Limits(monotonic_s=lambda: now)
    assert [limits.wait_s("a", "me", 5) for _ in range(2)] == [0, 0], "off"
    limits.scale = 1
    assert limits.wait_s("a", "you", 5) == 0
    now = 2.0
    assert (limits.wait_s("a", "you", 5), limits.wait_s("b", "you", 5)) == (3, 0)
    now = 5.0
    assert limits.wait_s("a", "you", 5) == 0


def card_of(world: World, offer: str) -> dict[str, object]:
    """What a machine rented now tells of its card."""
    rental = world.market.create(ACCOUNT, offer, world.spec())
    machines = world.market.machines
    assert isinstance(machines, Machines)
    told: dict[str, object] = json.loads(machines.env[rental.id][VARIABLE])
    world.market.destroy(ACCOUNT.name, rental.id)
    return told


def test_a_machine_tells_the_card_that_was_offered_unless_somebody_has_swapped_it(world: World) -> None:
    market = world.market
    offer = market.offer(OFFER)
    assert offer is not None
    honest = {"cards": [{"name": offer.gpu_name, "vram_bytes": int(offer.vram_gib * 2**30)}], "cuda": CUDA}
    assert card_of(world, OFFER) == honest
    small = Card(name="NVIDIA GeForce GTX 1650", vram_gib=4.0)
    swapped = {"cards": [{"name": small.name, "vram_bytes": 4 * 2**30}], "cuda": CUDA}
    happen(market, Happening(what="card", card=small))
    assert card_of(world, OFFER) == swapped
    assert card_of(world, OFFER) == honest, "without an offer only the next machine"
    happen(market, Happening(what="card", offer=OFFER, card=small))
    assert card_of(world, "2002") != swapped
    assert [card_of(world, OFFER), card_of(world, OFFER)] == [swapped, swapped]
    with pytest.raises(MarketError, match="needs a card"):
        happen(market, Happening(what="card"))


def test_a_slow_line_is_of_the_offer_or_of_the_next_machine(world: World) -> None:
    market = world.market
    happen(market, Happening(what="line", scale=5000.0))
    assert [market.create(ACCOUNT, offer, world.spec()).bytes_per_s for offer in ("2001", "2002")] == [5000.0, 0.0]
    happen(market, Happening(what="line", offer=OFFER, scale=7000.0))
    assert [market.create(ACCOUNT, offer, world.spec()).bytes_per_s for offer in ("2003", OFFER)] == [0.0, 7000.0]
