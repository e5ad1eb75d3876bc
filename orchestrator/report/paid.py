"""What paid time went into: the share that was spent in training steps, and each job's time and money.

A machine's session is one process after another, so what it does between two events is what the first of them says. Steps of jobs that
share their passes are shared alike. Time in which nothing was done for any job (boot, set-up, the way out) is carried by all jobs that
got something from that machine, in proportion to what they got: so the jobs' dollars add up to the meter's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from orchestrator.home import RunFolder
from orchestrator.lease import usage_of
from orchestrator.ledger import Attempt
from orchestrator.watch import pieces
from trainer.protocol import AnyEvent, Ended, Evaluated, EventReader, Phase, Started, Step

STEPS = "training"
"""The activity that a machine is rented for. The others: loading, caching, measuring, sampling, saving."""
LONGEST_S = 1e7
"""No session tells a later time; a machine that does is not believed."""


@dataclass(slots=True)
class Worked:
    """What one machine's session went into, as its events tell."""

    seconds: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    """(Job, activity) -> seconds."""
    _running: list[str] = field(default_factory=list)
    _doing: tuple[str, str] = ("", "")
    _at_s: float | None = None

    @property
    def steps_s(self) -> float:
        """Seconds in training steps of any job."""
        return sum(seconds for (_, activity), seconds in self.seconds.items() if activity == STEPS)

    def of(self, job: str) -> dict[str, float]:
        """Seconds of one job by activity."""
        return {activity: seconds for (name, activity), seconds in self.seconds.items() if name == job and seconds}

    def take(self, event: AnyEvent) -> None:
        """Fold one event in."""
        if not 0 <= event.at_s <= LONGEST_S:
            return
        passed = max(0.0, event.at_s - self._at_s) if self._at_s is not None else 0.0
        self._at_s = max(event.at_s, self._at_s or 0.0)
        job, activity = self._doing
        if isinstance(event, Evaluated):
            self.seconds[event.job, "measuring"] += passed
        elif activity == STEPS:
            riders = self._running or [job]
            for name in riders:
                self.seconds[name, STEPS] += passed / len(riders)
        elif activity:
            self.seconds[job, activity] += passed
        self._follow(event)

    def _follow(self, event: AnyEvent) -> None:
        """What is done from this event on."""
        match event:
            case Phase():
                self._doing = (event.job, event.phase)
            case Step():
                self._doing = (event.job, STEPS)
            case Started():
                self._doing = (event.job, "measuring")  # before the first step lie the first samples and the held-out loss
            case Ended():
                self._running = [name for name in self._running if name != event.job]
                self._doing = (event.job, STEPS) if self._running else ("", "")
                return
            case _:
                return
        if isinstance(event, Started | Step) and event.job not in self._running:
            self._running.append(event.job)


def worked(events: Iterable[AnyEvent]) -> Worked:
    """The sum of a session's events."""
    found = Worked()
    for event in events:
        found.take(event)
    return found


def told_by(folder: RunFolder, number: int) -> Worked:
    """What the attempt's events at home add up to."""
    file, reader, found = folder.path / f"events-{number}.jsonl", EventReader(), Worked()
    if file.exists():
        for piece in pieces(file):
            for event in reader.feed(piece):
                found.take(event)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Rental:
    """One machine: what was paid for, and what was done."""

    seconds: float
    usd: Decimal
    worked: Worked

    @property
    def steps_s(self) -> float:
        """Seconds in training steps; no machine is believed that tells of more than was paid."""
        return min(self.worked.steps_s, self.seconds)


def rentals(folder: RunFolder, attempts: Iterable[Attempt], now: datetime) -> list[Rental]:
    """Every machine of a run that was paid for."""
    found = []
    for attempt in attempts:
        if attempt.instance_ids:
            usage = usage_of(attempt)
            seconds = max(0.0, ((usage.ended_at or now) - usage.started_at).total_seconds())
            found.append(Rental(seconds=seconds, usd=usage.usd(now), worked=told_by(folder, attempt.number)))
    return found


def paid(machines: Sequence[Rental]) -> dict[str, Any]:
    """The receipt's line: billed seconds, how many of them were training steps, and the share."""
    whole, steps = sum(one.seconds for one in machines), sum(one.steps_s for one in machines)
    return {"seconds": round(whole, 1), "in_steps_s": round(steps, 1), "share": round(steps / whole, 4) if whole else None}


def by_job(machines: Sequence[Rental], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each job's own seconds on the machines, and its dollars, overheads and all."""
    own = dict.fromkeys(names, 0.0)
    usd = dict.fromkeys(names, Decimal(0))
    for one in machines:
        here = {name: sum(one.worked.of(name).values()) for name in names}
        total = sum(here.values())
        shares: Mapping[str, float] = {n: s / total for n, s in here.items()} if total else dict.fromkeys(names, 1 / max(1, len(names)))
        for name in names:
            own[name] += here[name]
            usd[name] += one.usd * Decimal(str(shares[name]))
    return {name: {"seconds": round(own[name], 1), "usd": float(round(usd[name], 6))} for name in names}


def in_words(line: Mapping[str, Any]) -> str:
    """For the receipt; empty where nothing was paid for."""
    from orchestrator.view import duration

    if not line["seconds"]:
        return ""
    return f"{duration(line['seconds'])} paid, {line['share']:.0%} of it in training steps"
