"""Looking at a machine before anything of the user's goes there: what its cards are, by CUDA's own word, its disk, and the line to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import templates
from orchestrator import commands
from orchestrator.errors import MachineFailed
from orchestrator.lifecycle import Phase
from orchestrator.plan import is_own
from orchestrator.shell import Shell
from orchestrator.trip import Trip
from providers.base import Offer

from .inspection import Line, Told, cuda_of, hardware_wrong, line_wrong, read

if TYPE_CHECKING:
    from .reaching import Machine

PATIENCE_S = 90.0
"""The inspector ends itself after 60 s; the rest is for a Python that is slow to start."""
PIECES = (64 * 1024, 512 * 1024, 4 * 1024 * 1024)
"""Bytes sent, and fetched, to see how fast the line is: the next only when the one before told too little."""
ENOUGH_S = 1.0
"""A piece that takes so long tells enough. The next one, eight times as large, took eight seconds at most."""
SILENCE_S = 30.0
FASTEST_BYTES_S = 1e10
"""On loopback a piece takes no time that could be measured."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Unfit(MachineFailed):
    """The machine is not the one that was offered."""

    code = "LRY-UNFIT"

    def __init__(self, words: str, *, slow: bool = False) -> None:
        super().__init__(words)
        self.slow = slow
        """Whether it is the right machine, with a line that is too slow."""


def inspected(trip: Trip, machine: Machine, offer: Offer) -> None:
    """See that the machine is what was paid for; once, before anything is sent to it. Raises `Unfit` when it is not."""
    attempt = trip.book().attempts[machine.number]
    seen = any(entry.kind == "inspected" and entry.attempt == machine.number for entry in trip.ledger.entries)
    if seen or attempt.shipped or attempt.phase is not Phase.SHIPPING:
        return
    trip.enter("inspection", f"{offer.gpu_name} at {offer.provider}")
    told = _told(trip, machine.shell)
    near, cuda = machine.shell.endpoint.host in LOOPBACK, 0 if is_own(offer) else cuda_of(trip.order.image)
    if words := hardware_wrong(told, offer, trip.order.load, cuda=cuda, near=near):
        raise Unfit(words)
    line, now = _measured(trip, machine), trip.clock.now()
    last = trip.tools.memory.last_line(now)
    trip.tools.memory.learn(line, now)
    if words := line_wrong(line, offer, trip.order.load, last=last):
        raise Unfit(words, slow=True)
    trip.ledger.record("inspected", attempt=machine.number, **told.model_dump(mode="json"), **line.model_dump())
    trip.say(f"inspected: {told.words}; {line.words}")


def _told(trip: Trip, shell: Shell) -> Told:
    script = templates.text("inspector.py").encode()
    done = shell.run(commands.inspect(trip.order.root), stdin=script, timeout_s=PATIENCE_S)
    told = read(done.stdout)
    if told is None:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise Unfit(f"it does not tell what it is: exit {done.returncode}{f', {words[-1][:200]}' if words else ''}")
    return told


def _measured(trip: Trip, machine: Machine) -> Line:
    """How fast the line is, by pieces that grow until one takes long enough. Its bytes are on the bill as all others are."""
    shell, sent, fetched = machine.shell, 0, machine.shell.downloaded

    def swallow(count: int) -> None:
        nonlocal sent
        sent += count
        shell.check(commands.swallow(), stdin=bytes(count), timeout_s=SILENCE_S)

    def pour(count: int) -> None:
        got = len(shell.check(commands.pour(count), timeout_s=SILENCE_S))
        if got != count:
            raise Unfit(f"asked for {count} bytes, it sent {got}")

    try:
        there_and_back_s = _seconds(trip, lambda: shell.check(commands.nothing()))
        return Line(up_bytes_s=_rate(trip, swallow, there_and_back_s), down_bytes_s=_rate(trip, pour, there_and_back_s))
    finally:
        trip.ledger.record("moved", attempt=machine.number, uploaded=sent, downloaded=shell.downloaded - fetched)


def _rate(trip: Trip, move: Callable[[int], None], there_and_back_s: float) -> float:
    rate = FASTEST_BYTES_S
    for count in PIECES:
        trip.check_boot()
        took_s = _seconds(trip, lambda count=count: move(count))  # type: ignore[misc]
        moving_s = max(took_s - there_and_back_s, took_s / 4)
        rate = min(count / moving_s, FASTEST_BYTES_S) if moving_s > 0 else FASTEST_BYTES_S
        if took_s > ENOUGH_S:
            break
    return rate


def _seconds(trip: Trip, act: Callable[[], object]) -> float:
    begun = trip.clock.monotonic_s()
    act()
    return trip.clock.monotonic_s() - begun
