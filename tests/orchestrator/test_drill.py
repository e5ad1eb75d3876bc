"""What a drill believes: only the cloud's word that the machine is gone, with nothing done by this computer meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from fakes import FakeClock, FakeCloud, FakeShell, Plot, SilentView, an_order, down, offer, spec

from orchestrator.errors import Interrupted, MachineFailed, OverBudget
from orchestrator.home import RunFolder
from orchestrator.lease import Lease
from orchestrator.machines import guard
from orchestrator.machines.reaching import Machine
from orchestrator.plan import make_plan
from orchestrator.progress import Progress
from orchestrator.run import go_on
from orchestrator.safety.interrupts import Interrupts
from orchestrator.setup import drill
from orchestrator.setup.steps import Step, in_order
from orchestrator.shell import Shell
from orchestrator.trip import Tools, Trip
from providers.base import InstanceStatus, Offer, Prices, Requirements

BEAT = f"{guard.FOLDER}/guard.json"


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(FakeClock())


@pytest.fixture
def trip(tmp_path: Path, cloud: FakeCloud) -> Trip:
    folder = RunFolder(tmp_path / "drill-fake-1")
    folder.path.mkdir()
    order = an_order(folder, jobs=(), load=drill.LOAD, cap_usd=Decimal("0.25"))
    ledger = folder.ledger(cloud.clock)
    ledger.record("opened", cap_usd=order.cap_usd, run=order.run)
    tools = Tools(clock=cloud.clock, view=SilentView(), interrupts=Interrupts(), provider=lambda _: cloud)
    return Trip(order=order, folder=folder, ledger=ledger, tools=tools, progress=Progress([]), candidates=tuple)


@pytest.fixture
def machine(trip: Trip, cloud: FakeCloud) -> Machine:
    """One with a guard that has beaten seven times under our third lease."""
    shell = FakeShell("lorry/x")
    shell.files[BEAT] = json.dumps({"beat": 7, "proven": True, "left": 900.0, "why": "", "serial": 3}).encode()
    lease = Lease.take(cloud, offer(), spec(), ledger=trip.ledger, clock=cloud.clock)
    return Machine(lease=lease, shell=_as_shell(shell), proven=True)


def _as_shell(shell: FakeShell) -> Shell:
    return shell  # type: ignore[return-value]


def ends_itself(cloud: FakeCloud, after_s: float) -> Callable[[float], None]:
    """As a guard's call does: not ours."""

    def look(_: float) -> None:
        if cloud.clock.passed_s >= after_s:
            for meter in cloud.billing():
                meter.until_s = cloud.clock.passed_s

    return look


def test_the_guard_is_told_of_its_end_and_then_only_looked_at(trip: Trip, cloud: FakeCloud, machine: Machine) -> None:
    cloud.clock.on_sleep = ends_itself(cloud, 40)
    words = drill._ended_by_guard(trip, machine)
    written = json.loads(machine.shell.files[f"{guard.FOLDER}/lease.json"])  # type: ignore[attr-defined]
    assert (written["serial"], written["left_s"]) == (4, drill.LEFT_S)
    assert words == "gone 25 s after its time was over, by the guard alone (running → gone)"
    assert "terminate" not in cloud.calls


def test_a_guard_that_does_nothing_is_found_out_in_bounded_time(trip: Trip, cloud: FakeCloud, machine: Machine) -> None:
    with pytest.raises(MachineFailed, match="the guard did not end the machine in 240 s") as caught:
        drill._ended_by_guard(trip, machine)
    assert cloud.clock.passed_s <= drill.LEFT_S + drill.GUARD_S + drill.LOOK_S
    assert "do not leave machines of this cloud alone" in caught.value.hint
    assert "terminate" not in cloud.calls, "the one who holds the lease ends it"


def test_a_machine_that_only_stopped_is_not_gone(trip: Trip, cloud: FakeCloud, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk bills on."""
    alive = cloud.describe
    monkeypatch.setattr(cloud, "describe", lambda instance_id: replace(alive(instance_id), status=InstanceStatus.STOPPED))
    with pytest.raises(MachineFailed, match="stopped"):
        drill._ended_by_guard(trip, machine)


def test_a_cloud_that_is_silent_for_a_while_is_asked_again(trip: Trip, cloud: FakeCloud, machine: Machine) -> None:
    cloud.clock.on_sleep = ends_itself(cloud, 20)
    cloud.plot = Plot(fail_call=lambda name, count: down() if name == "describe" and count % 2 else None)
    assert "by the guard alone" in drill._ended_by_guard(trip, machine)


def test_a_request_to_stop_ends_the_watching(trip: Trip, cloud: FakeCloud, machine: Machine) -> None:
    trip.folder.want_stop()
    with pytest.raises(Interrupted):
        drill._ended_by_guard(trip, machine)


def test_a_guard_that_tells_nothing_any_more_is_trouble(trip: Trip, machine: Machine) -> None:
    del machine.shell.files[BEAT]  # type: ignore[attr-defined]
    with pytest.raises(MachineFailed, match="tells nothing"):
        drill._ended_by_guard(trip, machine)


def test_a_drill_that_is_taken_up_is_only_given_back(trip: Trip, cloud: FakeCloud, machine: Machine) -> None:
    """By a keeper or by `lorry attach`: there is nothing to train and nobody to watch."""
    assert len(cloud.billing()) == 1
    receipt = go_on(trip)
    assert (receipt["exit_code"], cloud.billing(), cloud.creates) == (130, [], 1)
    assert "the drill was cut off" in receipt["message"]


def test_the_steps_stand_in_the_order_in_which_they_happened(trip: Trip, cloud: FakeCloud, machine: Machine) -> None:
    """A machine that was no good first, then the one that was watched; the account before, its end after."""
    cloud.clock.sleep(3)
    trip.ledger.record("unfit", attempt=1, fault="boot", why="it did not boot: stuck")
    machine.lease.release("it did not boot: stuck")
    second = Lease.take(cloud, offer("o2"), spec("lorry-test-a2"), ledger=trip.ledger, clock=cloud.clock)
    cloud.clock.sleep(5)
    trip.ledger.record("reachable", attempt=2, host_key="SHA256:x")
    cloud.clock.sleep(7)
    second.release("the work is done")
    watched = [Step(name="account"), Step(name="host key"), Step(name=drill.ENDS)]
    rows = in_order(trip, watched)
    assert [row.name for row in rows] == [
        "account", "rent", "no good", "seen to be gone", "rent", "boot", "host key", drill.ENDS, "seen to be gone"
    ]  # fmt: skip
    assert next(row.seconds for row in rows if row.name == "boot") == 5


def test_the_cheapest_is_taken_and_a_cap_that_does_not_cover_the_worst_case_is_refused() -> None:
    def at(usd: str, name: str) -> Offer:
        return offer(name, prices=Prices(gpu_usd_per_hour=Decimal(usd)), disk_gib=100)

    wanted = Requirements(disk_gib=drill.DISK_GIB)
    ranked = make_plan(drill.LOAD, [at("0.40", "dear"), at("0.05", "cheap"), at("0.20", "middle")], wanted, cap_usd=Decimal("0.25"))
    assert [candidate.offer.id for candidate in ranked.candidates[:2]] == ["cheap", "middle"]
    words = " ".join(drill.offer_in_words("fake", ranked))
    assert "$0.050 an hour" in words
    assert "the cap is $0.25" in words
    with pytest.raises(OverBudget):
        make_plan(drill.LOAD, [at("0.40", "dear")], wanted, cap_usd=Decimal("0.02"))
