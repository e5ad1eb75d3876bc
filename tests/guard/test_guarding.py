"""The client's side: a machine is trusted with work only when its guard was seen alive, able, and with our lease."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import T0, FakeClock

from orchestrator.errors import MachineFailed
from orchestrator.lifecycle import Phase
from orchestrator.machines.guarding import PROOF_S, guarded, renew
from providers.sandbox.provider import Sandbox


class Shell:
    """A machine whose guard reads its lease, beats and proves itself, or does not."""

    def __init__(self, *, beats: bool = True, proven: bool = True, hears: bool = True) -> None:
        self.beats, self.proven, self.hears = beats, proven, hears
        self.count, self.lease, self.age_s = 0, {"serial": None, "left_s": 0.0}, 0.0

    def check(self, argv: list[str], *, stdin: bytes = b"") -> bytes:
        if stdin:
            self.lease = json.loads(stdin)
        return b""

    def read(self, path: str, *, most: int) -> bytes | None:
        if not self.beats:
            return None
        self.count += 1
        serial = self.lease["serial"] if self.hears else None
        beat = {"beat": self.count, "proven": self.proven, "left": self.lease["left_s"], "why": "", "serial": serial}
        beat |= {"started": 5000.0, "now": 5000.0 + self.age_s}
        return json.dumps(beat).encode()


def on(shell: Shell, *, phase: Phase = Phase.SHIPPING, unguarded: bool = False, cloud: object = Sandbox) -> tuple[Any, Any]:
    said: list[str] = []
    caught_up: list[float] = []
    clock = FakeClock()
    entries: list[Any] = []

    def record(kind: str, attempt: int, **data: Any) -> None:
        entries.append(SimpleNamespace(kind=kind, attempt=attempt, at=clock.now(), data=data))

    trip = SimpleNamespace(
        clock=clock, said=said, say=said.append, pulse=lambda _: None, check_urgent=lambda: None, lifetime_s=lambda _: 1000.0,
        order=SimpleNamespace(root="lorry/x", unguarded=unguarded),
        book=lambda: SimpleNamespace(attempts={1: SimpleNamespace(phase=phase, intended_at=T0)}),
        ledger=SimpleNamespace(now=clock.now, caught_up=caught_up, catch_up=caught_up.append, entries=entries, record=record),
    )  # fmt: skip
    return trip, SimpleNamespace(lease=SimpleNamespace(provider=cloud), shell=shell, number=1)


def test_a_guard_that_beats_with_our_lease_and_its_proof_is_trusted_and_told_of_the_cap():
    trip, machine = on(shell := Shell())
    guarded(trip, machine)
    assert shell.lease == {"serial": 1, "left_s": 1300.0, "status": "~/lorry/x/status.json"}
    assert "2026-01-01 00:21 UTC" in trip.said[0]
    guarded(trip, machine)
    assert shell.lease["serial"] == 2  # taken up by another client: heard anew


@pytest.mark.parametrize("shell", [Shell(beats=False), Shell(proven=False), Shell(hears=False)], ids=["dead", "powerless", "deaf"])
def test_any_other_is_refused_before_work_is_given_to_it(shell: Shell):
    trip, machine = on(shell)
    with pytest.raises(MachineFailed, match="guard"):
        guarded(trip, machine)
    assert trip.clock.passed_s == pytest.approx(PROOF_S, abs=2)


@pytest.mark.parametrize(
    "options", [{"unguarded": True}, {"phase": Phase.TRAINING}, {"cloud": SimpleNamespace(name="other", self_destroy=None)}]
)
def test_where_it_was_asked_for_or_work_goes_on_or_the_cloud_has_none_it_is_only_said(options: dict[str, Any]):
    trip, machine = on(Shell(beats=False), **options)
    guarded(trip, machine)
    assert "lorry reap" in trip.said[0]


def test_a_guard_hears_anew_how_long_the_cap_lasts_and_one_that_is_not_there_is_left_alone():
    trip, machine = on(shell := Shell())
    guarded(trip, machine)
    trip.lifetime_s = lambda _: 400.0  # a dearer hour
    renew(trip, machine)
    assert shell.lease == {"serial": 2, "left_s": 700.0, "status": "~/lorry/x/status.json"}
    trip, machine = on(silent := Shell(beats=False))
    renew(trip, machine)
    assert silent.lease["serial"] is None


@pytest.mark.parametrize(("age_s", "counted"), [(0.0, []), (4.0, []), (3600.0, [3600.0])])
def test_a_clock_that_was_set_back_while_no_lorry_ran_is_put_right_by_the_machines_age(age_s: float, counted: list[float]):
    """Else an hour that was paid would not be on the meter, and the guard would be told of an hour too much."""
    shell = Shell()
    shell.age_s = age_s
    trip, machine = on(shell)
    guarded(trip, machine)
    assert trip.ledger.caught_up == counted
    assert any("set back" in line for line in trip.said) == bool(counted)


def test_a_clock_that_was_set_on_before_hides_no_time_that_is_lost_when_it_is_set_back():
    """An hour that never was is counted, and stays; the minute after it is counted too."""
    trip, machine = on(shell := Shell())
    trip.clock.passed_s, shell.age_s = 3700.0, 100.0
    guarded(trip, machine)
    shell.age_s = 160.0 + trip.clock.passed_s - 3700.0
    guarded(trip, machine)
    assert trip.ledger.caught_up == [pytest.approx(60.0)]
