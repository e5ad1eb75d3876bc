"""The steps of a drill: what each was, how it went, how long it took. Those that were watched, and those that the book knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from orchestrator.clock import Clock
from orchestrator.errors import LorryError
from orchestrator.ledger import Attempt
from orchestrator.lifecycle import Signal
from orchestrator.machines.inspection import in_words
from orchestrator.trip import Trip
from providers.errors import ProviderError

from .doctor import Health


@dataclass(slots=True, kw_only=True)
class Step:
    """One thing that a drill looks at."""

    name: str = ""
    health: Health = Health.OK
    said: str = ""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The words of drill.json."""
        return {"step": self.name, "health": str(self.health), "said": self.said, "seconds": round(self.seconds, 1)}


@dataclass(slots=True)
class Seen:
    """The steps so far."""

    clock: Clock
    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time a step; what is raised in it is its end, and goes on."""
        step, begun_s = Step(name=name), self.clock.monotonic_s()
        self.steps.append(step)
        try:
            yield step
        except (LorryError, ProviderError) as err:
            step.health, step.said = Health.TROUBLE, str(err)
            raise
        finally:
            step.seconds = self.clock.monotonic_s() - begun_s

    def note(self, name: str, said: str, *, seconds: float = 0.0, health: Health = Health.OK) -> None:
        """A step that was timed elsewhere."""
        self.steps.append(Step(name=name, said=said, seconds=seconds, health=health))


def in_order(trip: Trip, watched: list[Step]) -> list[Step]:
    """What the book knows of each attempt, with what was watched at its place in the last one: before that one is gone."""
    steps = watched[:1]
    attempts = trip.book().attempts
    for number, attempt in attempts.items():
        steps += _until_given_back(trip, attempt)
        steps += watched[1:] if number == max(attempts) else []
        if gone := _between(trip, number, Signal.GIVE_UP, Signal.GONE):
            steps.append(replace(gone, name="seen to be gone", said="described as gone, and in no listing, twice"))
    return steps


def _until_given_back(trip: Trip, attempt: Attempt) -> Iterator[Step]:
    """Renting, booting, and what the machine showed of itself; why it was given back, where it was no good."""
    if rented_ := _between(trip, attempt.number, Signal.INTENT, Signal.LAUNCHED):
        yield replace(rented_, name="rent", said=_words(attempt))
    if booted := _between(trip, attempt.number, Signal.LAUNCHED, Signal.REACHABLE):
        yield replace(booted, name="boot", said="until it let this computer log in")
    if inspected := _between(trip, attempt.number, Signal.REACHABLE, "inspected"):
        data = _last(trip, attempt.number, "inspected")
        guard_words = "" if trip.provider(attempt.provider).self_destroy is None else "its guard has proved itself; "
        yield replace(inspected, name="guard, hardware", said=guard_words + in_words(data))
    if unfit := _last(trip, attempt.number, "unfit"):
        yield Step(name="no good", said=str(unfit["why"]), health=Health.WARNING)


def _last(trip: Trip, number: int, kind: str) -> Mapping[str, Any]:
    """What the last entry of this kind says of an attempt; nothing when there is none."""
    return next((entry.data for entry in reversed(trip.ledger.entries) if (entry.kind, entry.attempt) == (kind, number)), {})


def _between(trip: Trip, number: int, begin: str, end: str) -> Step | None:
    """A step from one entry of an attempt to another; None when there are not both."""
    at: dict[str, datetime] = {}
    for entry in trip.ledger.entries:
        if entry.attempt == number:
            at.setdefault(entry.kind, entry.at)
    return Step(seconds=(at[end] - at[begin]).total_seconds()) if begin in at and end in at else None


def _words(attempt: Attempt) -> str:
    return f"{attempt.gpu}, ${attempt.usd_per_hour:.3f}/h, {attempt.instance_id}, labelled {attempt.label}"
