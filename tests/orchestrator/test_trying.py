"""Trying machines has bounds in number, money and time, whoever tries; what they failed at is told with its price, and remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fakes import PRICES, FakeClock, FakeCloud, FakeShell, Meter, SilentView, an_order, offer

from orchestrator import outside, rent
from orchestrator.budget import GIB
from orchestrator.errors import IntegrityError, MachineFailed, MayStillBill, NoOffer
from orchestrator.home import RunFolder
from orchestrator.lifecycle import Signal
from orchestrator.machines import reaching
from orchestrator.machines.guarding import GuardUnproven
from orchestrator.machines.memory import FORGOTTEN_AFTER, POOL_FORGOTTEN_AFTER, Fault
from orchestrator.machines.trying import CREATES, TRIES, WASTED_S, WASTED_SHARE
from orchestrator.market import market as market_for
from orchestrator.plan import make_plan, worst_usd
from orchestrator.progress import Progress
from orchestrator.rent import OwnMachineUnfit, rented
from orchestrator.run import go_on
from orchestrator.safety.interrupts import Interrupts
from orchestrator.shell import Completed, LinkDown
from orchestrator.trip import Tools, Trip
from providers.base import Instance, InstanceStatus, Offer, Prices, Requirements, SSHEndpoint
from providers.errors import NoCapacity


class Machine(FakeShell):
    """A machine that lets us in and tells what it is."""

    def __init__(self, cloud: Cloud, endpoint: SSHEndpoint) -> None:
        super().__init__("")
        self.cloud, self.endpoint = cloud, endpoint
        self.on_command = self._answer
        cloud.machines.append(self)

    def _answer(self, argv: list[str]) -> bytes:
        if argv[0] == "head":
            return bytes(int(argv[2]))
        return b"@lorry " + json.dumps(self.cloud.answers()).encode() if "inspect" in argv else b""

    def run(self, argv: Any, *, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed:
        self.commands.append(list(argv))
        self.cloud.clock.sleep(len(stdin) / self.cloud.bytes_per_s)
        return Completed(0, self._answer(list(argv)), b"")

    def check(self, argv: Any, *, stdin: bytes = b"", timeout_s: float = 60.0) -> bytes:
        return self.run(argv, stdin=stdin).stdout

    def probe(self) -> bool:
        return True

    def connect(self) -> str:
        return "SHA256:x"

    def forget_host(self) -> None:
        """No pins here."""


def card(name: str = "NVIDIA GeForce RTX 4090", gib: float = 23.6) -> dict[str, Any]:
    """What an honest machine tells."""
    size = int(gib * GIB)
    cards = [{"name": name, "vram_bytes": size, "free_bytes": size}]
    rest = {"cuda": 13000, "driver": "580", "trouble": "", "disk_free_bytes": 90 * GIB, "disk_trouble": "", "practice": False}
    return {"cards": cards} | rest


RIGHT, WRONG = card(), card("NVIDIA GeForce RTX 3060", 11.8)


class Cloud(FakeCloud):
    """Offers enough; what its machines are is in `told`, how long they boot in `boots_s`."""

    def __init__(self, offers: list[Offer]) -> None:
        super().__init__(FakeClock(), offers=offers)
        self.told: dict[str, Any] = RIGHT
        self.answers: Callable[[], dict[str, Any]] = lambda: self.told
        self.bytes_per_s = 1e12
        self.machines: list[Machine] = []
        self.ssh: SSHEndpoint | None = SSHEndpoint(host="203.0.113.7", port=22, user="root")
        self.boots_s: dict[str, float] = {}
        self.deaf: set[str] = set()
        """Instances that no terminate ends."""

    def terminate(self, instance_id: str) -> None:
        if instance_id not in self.deaf:
            super().terminate(instance_id)

    def _instance(self, meter: Meter) -> Instance:
        up = self.clock.passed_s >= meter.from_s + self.boots_s.get(meter.instance_id, 0.0)
        status = InstanceStatus.RUNNING if up else InstanceStatus.PENDING
        return replace(super()._instance(meter), prices=self.market[0].prices, status=status)


@dataclass
class Desk:
    """A run before a cloud, and everything that a test looks at."""

    cloud: Cloud
    folder: RunFolder
    tools: Tools
    order: dict[str, object] = field(default_factory=dict)

    def trip(self) -> Trip:
        """As any process would make it."""
        order = an_order(self.folder, **self.order)
        ledger = self.folder.ledger(self.cloud.clock)
        if not ledger.entries:
            ledger.record("opened", cap_usd=order.cap_usd, run=order.run)
        plan = make_plan(order.load, self.cloud.market, order.requirements, cap_usd=order.cap_usd)
        return Trip(
            order=order, folder=self.folder, ledger=ledger, tools=self.tools, progress=Progress(order.job_names),
            candidates=lambda: plan.candidates,
        )  # fmt: skip

    def give_up(self, match: str) -> str:
        """Nothing comes of it: what the user reads."""
        with pytest.raises(NoOffer, match=match) as caught, rented(self.trip()):
            pytest.fail("there is no machine to hold")
        assert self.cloud.billing() == []
        assert not self.trip().book().open_attempts
        return str(caught.value)

    @property
    def said(self) -> str:
        assert isinstance(self.tools.view, SilentView)
        return "\n".join(self.tools.view.said)

    def bad(self) -> dict[str, Fault]:
        return {one.machine_id: one.fault for one in self.tools.memory.bad(self.cloud.clock.now()).values()}


def sell(count: int, **fields: object) -> list[Offer]:
    return [offer(f"o{number:02}", machine_id=f"m{number:02}", **fields) for number in range(count)]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Desk]:
    def make(offers: list[Offer], **order: object) -> Desk:
        cloud = Cloud(offers)
        monkeypatch.setattr(reaching, "Shell", lambda endpoint, *_: Machine(cloud, endpoint))
        monkeypatch.setattr(reaching, "stranger", lambda *_: "")
        tools = Tools(clock=cloud.clock, view=SilentView(), interrupts=Interrupts(), provider=lambda _: cloud)  # type: ignore[arg-type,return-value]
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir()
        return Desk(cloud, folder, tools, order)

    return make


def test_the_right_machine_is_kept_and_what_it_told_is_in_the_book(desk):
    at = desk(sell(2))
    with rented(trip := at.trip()) as machine:
        assert machine.proven
    (entry,) = (e for e in trip.ledger.entries if e.kind == "inspected")
    assert (entry.attempt, entry.data["cards"][0]["name"]) == (1, "NVIDIA GeForce RTX 4090")
    assert at.cloud.creates == 1
    assert at.bad() == {}


def test_a_machine_that_was_inspected_is_not_inspected_by_the_next_process(desk):
    at = desk(sell(1))
    killed = rented(at.trip())
    killed.__enter__()
    with rented(at.trip()):
        pass
    first, second = at.cloud.machines
    assert any("inspect" in argv for argv in first.commands)
    assert not any("inspect" in argv for argv in second.commands)


def test_every_machine_that_was_tried_is_told_with_its_price_and_why(desk):
    at = desk(sell(2), unguarded=True)
    at.cloud.told = WRONG
    words = at.give_up("no machine could be had")
    assert words.count("offered RTX 4090 24 GiB, the machine has RTX 3060 12 GiB") == 2
    assert words.count("RTX 4090 at fake ($0.0") == 2
    assert at.bad() == {"m00": Fault.HARDWARE, "m01": Fault.HARDWARE}
    trip = at.trip()
    with pytest.raises(NoOffer, match="2 failed us lately"):
        market_for(trip.order, at.tools, load=trip.order.load, spent_usd=Decimal(0))
    at.cloud.clock.sleep(FORGOTTEN_AFTER[Fault.HARDWARE].total_seconds())
    assert market_for(trip.order, at.tools, load=trip.order.load, spent_usd=Decimal(0)).candidates


def test_five_machines_are_enough_also_when_another_process_has_tried_some_of_them(desk):
    at = desk(sell(12))
    at.cloud.told = WRONG
    at.give_up(f"{TRIES} machines were tried, and none became useful")
    assert at.cloud.creates == TRIES
    at.give_up(f"{TRIES} machines were tried")
    assert at.cloud.creates == TRIES, "a process that takes the run up tries no more"
    at.trip().ledger.record("resumed")
    at.give_up(f"{TRIES} machines were tried")
    assert at.cloud.creates == 2 * TRIES, "the user has said go again"


def lose_one(trip: Trip) -> None:
    """One that trains, and goes away."""
    with rented(trip) as machine:
        trip.ledger.record(Signal.STARTED, attempt=machine.number)
        raise MachineFailed("it does not answer")


def test_a_machine_that_became_useful_begins_the_count_anew(desk):
    at = desk(sell(3))
    at.cloud.told = WRONG
    at.give_up("no machine could be had")
    at.cloud.market, at.cloud.told = sell(20)[3:], RIGHT
    with pytest.raises(MachineFailed):
        lose_one(at.trip())
    at.cloud.told = WRONG
    at.give_up(f"{TRIES} machines were tried")
    assert at.cloud.creates == 3 + 1 + TRIES


def test_machines_that_cost_a_quarter_of_the_cap_for_nothing_are_enough(desk):
    dear = replace(PRICES, gpu_usd_per_hour=Decimal("0.50"))
    at = desk(sell(12, prices=dear), cap_usd=Decimal("0.50"))
    at.cloud.ssh = None  # they boot for ever
    words = at.give_up(f"machines that never became useful have cost .*, more than {WASTED_SHARE:.0%} of the cap")
    assert at.cloud.creates == 2, words
    assert words.count("it did not boot") == 2


def test_an_hour_of_trying_is_enough(desk):
    at = desk(sell(12), boot_timeout_s=0.4 * WASTED_S)
    at.cloud.ssh = None
    at.give_up("machines were tried for 7. minutes")
    assert at.cloud.creates == 3


def test_offers_that_have_gone_cost_nothing_and_are_not_counted_as_machines(desk):
    at = desk(sell(12))
    taken = iter([NoCapacity("somebody else has it")] * 8)
    at.cloud.plot.fail_call = lambda method, _: next(taken, None) if method == "launch" else None
    with rented(at.trip()):
        pass
    assert at.cloud.creates == 9
    assert set(at.bad().values()) == {Fault.REFUSED}
    at.cloud.clock.sleep(FORGOTTEN_AFTER[Fault.REFUSED].total_seconds())
    assert at.bad() == {}


def test_a_market_on_which_everything_is_gone_is_left_alone(desk):
    at = desk(sell(40))
    at.cloud.plot.fail_call = lambda method, _: NoCapacity("gone") if method == "launch" else None
    at.give_up(f"{CREATES} machines were tried")
    assert at.cloud.creates == CREATES


def test_a_machine_for_which_what_is_left_does_not_suffice_is_passed_over(desk):
    at = desk(sell(1) + sell(3, prices=replace(PRICES, gpu_usd_per_hour=Decimal("0.79")))[1:])
    trip = at.trip()
    at.order["cap_usd"] = max(worst_usd(c, 40) for c in trip.candidates())
    at.cloud.told = WRONG
    at.give_up("no machine could be had")
    assert "passed over" in at.said
    assert at.cloud.creates == 1


def test_a_slow_line_is_remembered_for_a_day_and_the_second_one_in_a_row_is_our_own(desk):
    at = desk(sell(4))
    at.cloud.bytes_per_s = 2000.0
    with rented(at.trip()):
        pass
    assert at.cloud.creates == 2
    assert at.bad() == {"m00": Fault.SLOW}
    assert "its line is slow" in at.said


def never_boots(at: Desk, _: pytest.MonkeyPatch) -> None:
    at.cloud.ssh = None


def costs_more(at: Desk, patch: pytest.MonkeyPatch) -> None:
    plain = at.cloud.describe
    dear = replace(PRICES, gpu_usd_per_hour=Decimal("0.79"))
    patch.setattr(at.cloud, "describe", lambda id_: replace(plain(id_), prices=dear))


def has_no_guard(_: Desk, patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise GuardUnproven("the machine's own guard does not prove that it can end the machine")

    patch.setattr(rent, "guarded", refuse)


def hangs_up(_: Desk, patch: pytest.MonkeyPatch) -> None:
    def cut(*_: object) -> None:
        raise LinkDown("the machine does not answer")

    patch.setattr(rent, "inspected", cut)


def is_somebody_elses(_: Desk, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reaching, "stranger", lambda *_: "another machine answers at this address")


def test_a_stranger_among_the_machines_that_failed_makes_it_a_security_stop(desk, monkeypatch: pytest.MonkeyPatch):
    """The next one is tried; when there is none, the exit code says what was met on the way."""
    at = desk(sell(2))
    is_somebody_elses(at, monkeypatch)
    with pytest.raises(IntegrityError, match="another machine answers at this address") as caught, rented(at.trip()):
        pytest.fail("there is no machine to hold")
    assert caught.value.exit_code == 12
    assert at.cloud.creates == 2
    assert at.cloud.billing() == []
    assert at.bad() == {"m00": Fault.STRANGER, "m01": Fault.STRANGER}


@pytest.mark.parametrize(
    ("trouble", "fault", "words"),
    [
        (never_boots, Fault.BOOT, "it did not boot"),
        (costs_more, Fault.DEARER, "an hour, \\$0.408 was offered"),
        (has_no_guard, Fault.GUARD, "guard does not prove"),
        (hangs_up, Fault.BOOT, "does not answer"),
    ],
)
def test_each_way_to_fail_is_told_and_remembered_for_its_time(
    desk, monkeypatch: pytest.MonkeyPatch, trouble: Callable[..., None], fault: Fault, words: str
):
    at = desk(sell(2))
    trouble(at, monkeypatch)
    at.give_up(words)
    assert at.bad() == {"m00": fault, "m01": fault}
    at.cloud.clock.sleep(FORGOTTEN_AFTER[fault].total_seconds())
    assert at.bad() == {}


def test_of_a_pool_one_bad_machine_says_little_of_the_next(desk):
    at = desk(sell(1, pooled=True))
    at.cloud.told = WRONG
    at.give_up("no machine")
    assert at.bad() == {"m00": Fault.HARDWARE}
    at.cloud.clock.sleep(POOL_FORGOTTEN_AFTER.total_seconds())
    assert at.bad() == {}


def test_a_machine_of_ones_own_that_is_wrong_ends_the_run_in_words_and_is_not_remembered(desk):
    at = desk(sell(3, prices=Prices(gpu_usd_per_hour=Decimal(0))))
    at.cloud.told = RIGHT | {"cards": [], "trouble": "cuInit answered 999, unknown error"}
    with pytest.raises(OwnMachineUnfit, match="RTX 4090 at o00: CUDA does not work there: cuInit answered 999"), rented(at.trip()):
        pytest.fail("there is no machine to hold")
    assert at.cloud.creates == 1
    assert at.bad() == {}


def test_a_machine_of_ones_own_that_is_switched_off_is_not_held_against_it(desk):
    at = desk(sell(1, prices=Prices(gpu_usd_per_hour=Decimal(0))))
    at.cloud.ssh = None
    at.give_up("no machine could be had")
    assert at.bad() == {}


@pytest.mark.parametrize(("interruptible", "remembered"), [(False, {"m00": Fault.LOST}), (True, {})])
def test_a_machine_that_is_lost_while_it_trains_is_remembered_unless_anybody_could_outbid_it(desk, interruptible: bool, remembered: object):
    at = desk(sell(1, interruptible=interruptible), requirements=Requirements(disk_gib=40, interruptible=True))
    with pytest.raises(MachineFailed):
        lose_one(at.trip())
    assert at.bad() == remembered


# --- two at a time ---------------------------------------------------------------------------------


def test_of_two_machines_the_one_that_is_ready_first_is_kept_and_the_other_goes_at_once(desk):
    at = desk(sell(4), start_two=True)
    at.cloud.boots_s = {"i-0": 500.0, "i-1": 30.0}
    with rented(at.trip()) as machine:
        assert machine.lease.instance_ids == ["i-1"]
        assert [meter.instance_id for meter in at.cloud.billing()] == ["i-1"]
        assert at.cloud.clock.passed_s < 60
    assert at.cloud.billing() == []
    assert at.cloud.creates == 2
    assert at.trip().book().attempts[1].told == "the other of two was ready first"
    assert at.bad() == {}, "who was only second has done nothing wrong"


def test_when_the_first_of_two_is_wrong_the_second_has_booted_meanwhile(desk):
    at = desk(sell(4), start_two=True)
    at.cloud.boots_s = {"i-0": 5.0, "i-1": 100.0}
    tells = iter([WRONG, RIGHT])
    at.cloud.answers = lambda: next(tells)
    with rented(at.trip()) as machine:
        assert machine.lease.instance_ids == ["i-1"]
        assert at.cloud.clock.passed_s < 130
    assert at.cloud.creates == 2
    assert at.bad() == {"m00": Fault.HARDWARE}


def test_the_second_of_two_goes_too_when_the_first_cannot_be_seen_to_go(desk):
    """Exit 10 for the stubborn one; the other does not bill on for it."""
    at = desk(sell(4), start_two=True)
    at.cloud.boots_s = {"i-0": 5.0, "i-1": 1e6}
    at.cloud.told = WRONG
    at.cloud.deaf = {"i-0"}
    with pytest.raises(MayStillBill), rented(at.trip()):
        pytest.fail("there is no machine to hold")
    assert [meter.instance_id for meter in at.cloud.billing()] == ["i-0"]


def test_two_that_never_boot_are_waited_for_once_and_not_one_after_the_other(desk):
    at = desk(sell(2), start_two=True)
    at.cloud.ssh = None
    at.give_up("no machine could be had")
    assert at.cloud.clock.passed_s < 1.2 * at.trip().order.boot_timeout_s


@pytest.mark.parametrize("moment", range(4, 60, 5))
def test_whatever_ends_it_while_two_boot_both_are_given_back(desk, moment: int):
    at = desk(sell(4), start_two=True)
    at.cloud.boots_s = {"i-0": 1e6, "i-1": 1e6}

    def stop(_: float) -> None:
        if at.cloud.clock.passed_s >= moment:
            at.cloud.clock.on_sleep = lambda _: None
            raise KeyboardInterrupt

    at.cloud.clock.on_sleep = stop
    with pytest.raises(KeyboardInterrupt), rented(at.trip()):
        pytest.fail("there is no machine to hold")
    assert at.cloud.creates == 2
    assert at.cloud.billing() == []
    assert not at.trip().book().open_attempts


def killed_with_two(at: Desk) -> None:
    """A client began two machines, and was killed."""
    trip = at.trip()
    for candidate in trip.candidates()[:2]:
        assert rent._take(trip, candidate) is not None
    assert len(at.cloud.billing()) == 2


def test_a_process_that_takes_up_two_machines_keeps_one(desk):
    at = desk(sell(4), start_two=True)
    killed_with_two(at)
    with rented(at.trip()):
        assert len(at.cloud.billing()) == 1
    assert at.cloud.billing() == []
    assert at.cloud.creates == 2


def test_of_two_machines_that_are_taken_up_the_one_that_trains_is_kept(desk):
    at = desk(sell(4), start_two=True)
    killed_with_two(at)
    for kind in (Signal.REACHABLE, Signal.STARTED):
        at.trip().ledger.record(kind, attempt=1)
    with rented(at.trip()) as machine:
        assert machine.number == 1
        assert [meter.instance_id for meter in at.cloud.billing()] == ["i-0"]


def test_lorry_down_ends_both(desk):
    at = desk(sell(4), start_two=True)
    killed_with_two(at)
    receipt = outside.down(at.folder, at.tools)
    assert at.cloud.billing() == []
    assert [machine["destroyed_verified"] for machine in receipt["machines"]] == [True, True]


def test_a_run_that_was_ended_with_two_machines_is_not_gone_on_with(desk):
    """Ctrl-C, and killed when the one was gone and the other not."""
    at = desk(sell(4), start_two=True)
    killed_with_two(at)
    trip = at.trip()
    ended = {"exit_code": 130, "message": "interrupted", "hint": ""}
    rent.give_back(trip, rent.adopted(trip, trip.book().attempts[2]), "interrupted", ended)
    assert len(at.cloud.billing()) == 1
    assert go_on(at.trip())["exit_code"] == 130
    assert at.cloud.billing() == []
    assert at.cloud.creates == 2


def test_while_two_are_open_each_counts_on_what_both_leave_of_the_cap(desk):
    at = desk(sell(2), start_two=True)
    trip = at.trip()
    first, second = (rent._take(trip, candidate) for candidate in trip.candidates())
    both = trip.lifetime_s(first)
    second.release("enough")
    assert both + 300 == pytest.approx((trip.lifetime_s(first) + 300) / 2, rel=0.01)
    first.release("enough")
