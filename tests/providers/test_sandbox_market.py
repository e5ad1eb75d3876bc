"""The market's rules and the meter, in memory, with a clock of their own: whatever happens, the bill is what a second sum says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from pydantic import TypeAdapter

from providers.base import LaunchSpec
from providers.sandbox.billing import fold
from providers.sandbox.catalogue import catalogue
from providers.sandbox.machines import Boot, Seen
from providers.sandbox.market import Market
from providers.sandbox.rentals import AccountRecord, BootTimes, MarketError, State

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
ACCOUNT = AccountRecord(name="one", key="key-one")
OTHER = AccountRecord(name="two", key="key-two", credit_usd=Decimal("0.5"))


class FakeMachines:
    user = "me"

    def __init__(self) -> None:
        self.living: dict[str, Seen] = {}
        self.folders: set[str] = set()
        self.env: dict[str, dict[str, str]] = {}

    def start(self, machine_id: str, boot: Boot) -> None:
        assert machine_id not in self.folders, "an id was used twice"
        self.folders.add(machine_id)
        self.living[machine_id] = Seen(alive=True, port=1)
        self.env[machine_id] = dict(boot.env)

    def look(self, machine_id: str) -> Seen:
        return self.living.get(machine_id, Seen(alive=False))

    def end(self, machine_id: str, mark: str) -> Seen:
        seen = self.look(machine_id)
        ended = Seen(alive=False, up_bytes=seen.up_bytes, down_bytes=seen.down_bytes)
        if machine_id in self.living:
            self.living[machine_id] = ended
        return ended

    def wipe(self, machine_id: str) -> None:
        assert not self.look(machine_id).alive, "wiped while it ran"
        self.folders.discard(machine_id)
        self.living.pop(machine_id, None)

    def boot_log(self, machine_id: str) -> str:
        return "one line\nthe last line"


@dataclass
class World:
    """A market with everything around it, and time by hand."""

    seconds: Fraction = Fraction(0)
    machines: FakeMachines = field(default_factory=FakeMachines)
    events: list[str] = field(default_factory=list)
    saved: bytes = b""

    def __post_init__(self) -> None:
        self.market = self.open(State(accounts=[ACCOUNT, OTHER]))

    def open(self, state: State) -> Market:
        return Market(
            state,
            catalogue(),
            self.machines,
            now=self.now,
            bill=lambda event: self.events.append(json.dumps(event)),
            events=lambda: [json.loads(event) for event in self.events],
            save=self.save,
            boot=BootTimes(created_s=2, loading_s=3),
        )

    def save(self, state: State) -> None:
        self.saved = TypeAdapter(State).dump_json(state)

    def now(self) -> datetime:
        return EPOCH + timedelta(microseconds=int(self.seconds * 1_000_000))

    def spec(self, **fields: object) -> LaunchSpec:
        values = {"label": "lorry", "image": "i", "disk_gib": 10, "ssh_public_key": "ssh-ed25519 AAAA"} | fields
        return LaunchSpec(**values)  # type: ignore[arg-type]


@dataclass
class Expected:
    """What one machine must cost, by the second sum."""

    offer_id: str
    account: str
    disk_gib: int
    created: Fraction
    gpu_off: Fraction | None = None
    ended: Fraction | None = None
    up: int = 0
    down: int = 0

    def usd(self, now: Fraction) -> Fraction:
        prices = next(offer.prices for offer in catalogue() if offer.id == self.offer_id)
        end = self.ended if self.ended is not None else now
        gpu_end = self.gpu_off if self.gpu_off is not None else end
        hourly, disk, up, down = (
            Fraction(price)
            for price in (prices.gpu_usd_per_hour, prices.disk_usd_per_gib_hour, prices.upload_usd_per_gib, prices.download_usd_per_gib)
        )
        hours = ((gpu_end - self.created) * hourly + (end - self.created) * disk * self.disk_gib) / 3600
        return hours + (self.up * up + self.down * down) / 2**30


class MarketLife(RuleBasedStateMachine):
    """Renting, dying, destroying and restarting in every order."""

    rented = Bundle("rented")

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.expected: dict[str, Expected] = {}

    @property
    def held(self) -> dict[str, Expected]:
        return {id_: machine for id_, machine in self.expected.items() if machine.ended is None}

    @rule(target=rented, offer=st.sampled_from(catalogue()), disk_gib=st.integers(1, 180), account=st.sampled_from([ACCOUNT, OTHER]))
    def create(self, offer, disk_gib, account):
        world = self.world
        broke = sum(m.usd(world.seconds) for m in self.expected.values() if m.account == account.name) >= account.credit_usd
        taken = offer.id in {machine.offer_id for machine in self.held.values()}
        if taken or broke:
            with pytest.raises(MarketError) as caught:
                world.market.create(account, offer.id, world.spec(disk_gib=disk_gib))
            assert caught.value.code == ("offer_taken" if taken else "no_credit")
            return ""
        rental = world.market.create(account, offer.id, world.spec(disk_gib=disk_gib))
        self.expected[rental.id] = Expected(offer.id, account.name, disk_gib, world.seconds)
        return rental.id

    @rule(seconds=st.one_of(st.integers(0, 10**7).map(lambda n: Fraction(n, 1000)), st.integers(0, 10**6).map(Fraction)))
    def wait(self, seconds):
        self.world.seconds += seconds

    @rule(id_=rented, up=st.integers(0, 2**40), down=st.integers(0, 2**40))
    def move_bytes(self, id_, up, down):
        seen = self.world.machines.look(id_)
        if seen.alive:
            self.world.machines.living[id_] = Seen(alive=True, port=1, up_bytes=seen.up_bytes + up, down_bytes=seen.down_bytes + down)
            self.expected[id_].up += up
            self.expected[id_].down += down

    @rule(id_=rented)
    def die(self, id_):
        if self.world.machines.look(id_).alive:
            self.world.machines.end(id_, "")
            self.world.market.tick()
            self.expected[id_].gpu_off = self.world.seconds
            assert self.world.market.show(self.expected[id_].account, id_).status == "exited"

    @rule(id_=consumes(rented))
    def destroy(self, id_):
        if id_ in self.held:
            self.world.market.destroy(self.expected[id_].account, id_)
            self.expected[id_].ended = self.world.seconds
        with pytest.raises(MarketError, match="no instance"):
            self.world.market.destroy(ACCOUNT.name, id_)

    @rule(id_=rented)
    def touch_as_somebody_else(self, id_):
        if id_ in self.held:
            stranger = {"one": "two", "two": "one"}[self.expected[id_].account]
            for verb in (self.world.market.show, self.world.market.destroy):
                with pytest.raises(MarketError, match="no instance"):
                    verb(stranger, id_)

    @rule()
    def restart(self):
        if self.world.saved:
            self.world.market = self.world.open(TypeAdapter(State).validate_json(self.world.saved))

    @invariant()
    def the_bill_is_what_the_second_sum_says(self):
        bill = self.world.market.bill()
        assert {machine.id for machine in bill.machines} == set(self.expected)
        for machine in bill.machines:
            assert abs(Fraction(machine.total_usd) - self.expected[machine.id].usd(self.world.seconds)) < Fraction(1, 10**15)
        assert set(bill.live) == set(self.held)

    @invariant()
    def what_is_rented_is_listed_and_not_for_rent(self):
        market = self.world.market
        listed = {view.rental.id for account in (ACCOUNT, OTHER) for view in market.rentals(account)}
        assert listed == set(self.held) == self.world.machines.folders
        assert {o.id for o in market.offers()} == {o.id for o in catalogue()} - {m.offer_id for m in self.held.values()}

    @invariant()
    def the_balance_is_the_credit_less_the_bill(self):
        for account in (ACCOUNT, OTHER):
            spent = sum(m.usd(self.world.seconds) for m in self.expected.values() if m.account == account.name)
            assert abs(Fraction(self.world.market.balance_usd(account)) - Fraction(account.credit_usd) + spent) < Fraction(1, 10**15)


TestMarketLife = MarketLife.TestCase
TestMarketLife.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_machine_is_created_then_loading_then_running() -> None:
    world = World()
    id_ = world.market.create(ACCOUNT, "2004", world.spec()).id
    seen = []
    for second in range(7):
        world.seconds = Fraction(second)
        seen.append(world.market.show("one", id_).status)
    assert seen == ["created"] * 2 + ["loading"] * 3 + ["running"] * 2


def test_a_machine_without_a_port_is_never_running() -> None:
    world = World()
    id_ = world.market.create(ACCOUNT, "2004", world.spec()).id
    world.machines.living[id_] = Seen(alive=True, port=None)
    world.seconds = Fraction(3600)
    assert world.market.show("one", id_).status == "loading"


def test_a_dead_machine_says_its_last_words_and_bills_its_disk_on() -> None:
    world = World()
    id_ = world.market.create(ACCOUNT, "2004", world.spec()).id
    world.machines.end(id_, "")
    assert world.market.show("one", id_).status_text.endswith("the last line")
    world.seconds = Fraction(3600)
    bill = world.market.bill().machines[0]
    assert bill.gpu_usd == 0
    assert bill.disk_usd == 10 * bill.prices.disk_usd_per_gib_hour > 0


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"disk_gib": 0}, "invalid_request"),
        ({"disk_gib": 10**9}, "invalid_request"),
        ({"env": {"A B": "1"}}, "invalid_request"),
        ({"env": {"A": "1\0"}}, "invalid_request"),
        ({"env": {"": "1"}}, "invalid_request"),
        ({"label": "x" * 257}, "invalid_request"),
        ({"ssh_public_key": "ssh-rsa A\nrestrict"}, "invalid_request"),
        ({"ssh_public_key": 'command="x" ssh-rsa A'}, "invalid_request"),
    ],
)
def test_a_create_that_makes_no_sense_rents_nothing(fields: dict[str, object], code: str) -> None:
    world = World()
    with pytest.raises(MarketError) as caught:
        world.market.create(ACCOUNT, "2004", world.spec(**fields))
    assert caught.value.code == code
    assert not world.events
    assert not world.machines.folders


def test_the_customers_environment_wins_over_the_markets() -> None:
    world = World()
    id_ = world.market.create(ACCOUNT, "2004", world.spec(env={"SANDBOX_URL": "mine"}), env={"SANDBOX_URL": "theirs"}).id
    assert world.machines.env[id_]["SANDBOX_URL"] == "mine"
    assert world.machines.env[id_]["SANDBOX_INSTANCE_ID"] == id_


def test_a_server_killed_inside_a_create_leaves_a_machine_that_is_billed() -> None:
    """The rental was saved, the bill's first line was not."""
    world = World()
    world.market.create(ACCOUNT, "2004", world.spec())
    world.events.clear()
    world.open(TypeAdapter(State).validate_json(world.saved))
    assert len(fold([json.loads(event) for event in world.events], world.now()).live) == 1


def test_a_server_killed_inside_a_destroy_leaves_nothing_behind() -> None:
    """The bill says ended, the folder and the rental are still there."""
    world = World()
    world.market.create(ACCOUNT, "2004", world.spec())
    before = world.saved
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.machines, "wipe", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            world.market.destroy("one", "10001")
    lines = len(world.events)
    market = world.open(TypeAdapter(State).validate_json(before))
    assert market.state.rentals == []
    assert not world.machines.folders
    assert len(world.events) == lines


def test_a_bill_of_an_unknown_kind_is_not_read_as_money() -> None:
    with pytest.raises(ValueError, match="unknown event"):
        fold([{"event": "gift", "at": EPOCH.isoformat(), "machine": "1"}], EPOCH)
