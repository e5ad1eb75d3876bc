"""How long each part of a training took, from what the machine told of it. PURE.

The supervisor does one thing at a time, jobs that train together included, so each moment between two of its words belongs to one phase:
that of the last word. What a stranger's machine tells is bounded by what this computer saw of the session.
"""

from __future__ import annotations

from collections.abc import Iterable

from trainer.protocol import AnyEvent, Ended, Phase, Started, Step

PHASES = {"loading": "base model", "caching": "caching", "training": "steps", "sampling": "samples", "saving": "saves"}
"""The trainer's words -> the estimate's."""
LEAST_STEPS = 50
"""A training that was cut off earlier says too little of its pace."""


def seconds_by_phase(events: Iterable[AnyEvent], session_s: float) -> dict[str, float]:
    """Seconds of every phase of the session."""
    took: dict[str, float] = {}
    now, what = 0.0, "base model"
    stepped: set[str] = set()
    for event in events:
        at = min(max(event.at_s, now), session_s)
        took[what] = took.get(what, 0.0) + at - now
        now = at
        if isinstance(event, Phase):
            what = "compile" if event.phase == "training" and event.job not in stepped else PHASES[event.phase]
        elif isinstance(event, Started):
            what = "compile"
        elif isinstance(event, Step):
            what = "steps"
            stepped.add(event.job)
    return took


def steps_taken(events: Iterable[AnyEvent]) -> int:
    """Steps of all jobs that this machine took."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for event in events:
        if isinstance(event, Started):
            first.setdefault(event.job, event.step)
        elif isinstance(event, Step | Ended):
            last[event.job] = max(last.get(event.job, 0), event.step)
    return sum(max(0, step - first.get(job, 0)) for job, step in last.items())


def completed(took: dict[str, float], *, taken: int, planned: int, done: bool) -> dict[str, float]:
    """What the whole training would have taken: one that a cap or a person ended is carried on at its pace, so that slow ones count too."""
    if done:
        return took
    early: dict[str, float] = {name: took[name] for name in ("base model", "caching", "compile") if name in took and taken > 0}
    if taken >= LEAST_STEPS and took.get("steps", 0.0) > 0:
        early["steps"] = took["steps"] * max(planned, taken) / taken
    return early
