"""The client's side of the guard: gives it its lease, sees that it lives and can do what it is there for, refuses a machine without one."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import templates
from orchestrator import commands
from orchestrator.budget import WAY_OUT_S
from orchestrator.errors import MachineFailed
from orchestrator.lifecycle import Phase
from orchestrator.trip import Trip
from orchestrator.view import duration
from providers.base import Provider

from . import guard

if TYPE_CHECKING:
    from .reaching import Machine

PROOF_S = 60.0
"""A guard beats every few seconds and asks its cloud once; twice that is slow, this is dead."""
LOOK_S = 0.5
MOST_AGE_S = 10 * 365 * 86400.0
"""No machine of any cloud has been up for longer: one that says so is not believed."""
LOST_S = 5.0
"""Clocks run a little differently. The machine is younger than its order, so that an honest age is behind ours by its boot."""


class GuardUnproven(MachineFailed):
    """The machine's guard was not seen to work."""

    code = "LRY-GUARD"


def text(provider: Provider, most_s: float) -> str:
    """What a machine runs in its first second; empty at clouds whose machines cannot end themselves."""
    call = provider.self_destroy
    return guard.onstart(templates.text("guard.py"), call, most_s=most_s) if call is not None else ""


def guarded(trip: Trip, machine: Machine) -> None:
    """Claim the machine from its guard for as long as the cap lasts, and see the guard prove itself.

    Raises `GuardUnproven` when it does not, before anything is sent there; where training goes on already, that is only said.
    """
    lease = machine.lease
    if lease.provider.self_destroy is None:
        trip.say(
            f"machines of {lease.provider.name} have no guard of their own: should this computer be lost, only lorry reap ends this one"
        )
        return
    first = _beat(machine)
    if first is not None:
        count_lost_time(trip, machine, first.age_s, read_now=True)
    left_s = trip.lifetime_s(lease) + WAY_OUT_S
    serial = (first.serial or 0) + 1 if first is not None else 1
    document = guard.lease(serial, left_s, f"~/{trip.order.root}/status.json")
    machine.shell.check(commands.make_folders(guard.FOLDER, [""]))
    machine.shell.check(commands.write(f"{guard.FOLDER}/lease.json"), stdin=document)
    until = trip.clock.monotonic_s() + PROOF_S
    while not (guard.is_proven(first, now := _beat(machine)) and now is not None and now.serial == serial):
        if trip.clock.monotonic_s() > until:
            _refuse(trip, machine)
            return
        trip.check_urgent()
        trip.pulse("waiting for the machine's own guard")
        trip.clock.sleep(LOOK_S)
        first = first or now
    ends = trip.clock.now() + timedelta(seconds=now.left)
    trip.say(f"guard armed and proven: whatever happens here, the machine ends itself by {ends:%Y-%m-%d %H:%M} UTC")


def count_lost_time(trip: Trip, machine: Machine, age_s: float, *, read_now: bool = False) -> None:
    """The machine is so old by a clock that counts since boot. Where ours says less it was set back while no lorry ran, and catches up.

    An age that was `read_now` is kept, and the next is compared with it: a clock set on by an hour would hide one that is set back after
    it. One from a status may be old.
    """
    if not 0 <= age_s <= MOST_AGE_S:
        return
    ledger, number = trip.ledger, machine.number
    known = [entry for entry in ledger.entries if entry.kind == "age" and entry.attempt == number]
    counted_from = known[-1].at if known else trip.book().attempts[number].intended_at
    lost_s = age_s - (float(known[-1].data["age_s"]) if known else 0.0) - (ledger.now() - counted_from).total_seconds()
    if lost_s > LOST_S:
        ledger.catch_up(lost_s)
        trip.say(f"this computer's clock was set back: the machine is {duration(lost_s)} older than it says, and that is counted")
    if read_now and (not known or abs(lost_s) > LOST_S):
        ledger.record("age", attempt=number, age_s=round(age_s, 1))
    machine.lease.knows_age = True


def renew(trip: Trip, machine: Machine) -> None:
    """Tell a living guard how long the cap lasts now: the price has changed, or what was sent has used some of it."""
    if machine.lease.provider.self_destroy is None or (told := _beat(machine)) is None:
        return
    document = guard.lease((told.serial or 0) + 1, trip.lifetime_s(machine.lease) + WAY_OUT_S, f"~/{trip.order.root}/status.json")
    machine.shell.check(commands.write(f"{guard.FOLDER}/lease.json"), stdin=document)


def beats(machine: Machine) -> int | None:
    """How often the guard has beaten; None where there is none, and never was."""
    if machine.lease.provider.self_destroy is None:
        return None
    told = _beat(machine)
    return told.beat if told is not None else -1


def _refuse(trip: Trip, machine: Machine) -> None:
    words = "the machine's own guard does not prove that it can end the machine"
    if trip.order.unguarded or trip.book().attempts[machine.number].phase in {Phase.TRAINING, Phase.PULLING}:
        trip.say(f"{words}: should this computer be lost, only lorry reap ends it")
        return
    raise GuardUnproven(words, hint="run again for another machine, or with --unguarded: then this computer must stay on")


def _beat(machine: Machine) -> guard.Beat | None:
    return guard.beat(machine.shell.read(f"{guard.FOLDER}/guard.json", most=65536))
