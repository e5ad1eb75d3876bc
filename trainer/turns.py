"""PURE. Which jobs share the next pass.

A pass carries jobs whose next batches have one shape. The largest such group goes first, since a pass costs
nearly the same whoever rides; but a job that was passed over `PATIENCE` times goes next, with whoever fits it.
So a job whose shapes nobody shares still gets its turn, and the choice depends on nothing but the arguments:
the same jobs at the same places are chosen again after a resume.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

PATIENCE = 3
"""Passes that a job lets others go first. Small: an odd shape costs little more than it would alone."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job whose next batch is drawn."""

    kind: Hashable
    """Jobs that agree in this can share a pass."""
    waited: int = 0
    """Passes since it last took part."""


def choose(waiting: Sequence[Waiting], width: int) -> list[int]:
    """Places of the jobs that share the next pass, at most `width`, in the order of the jobs."""
    assert waiting
    assert width >= 1
    longest = max(range(len(waiting)), key=lambda i: (waiting[i].waited, -i))
    groups: dict[Hashable, list[int]] = {}
    for i, one in enumerate(waiting):
        groups.setdefault(one.kind, []).append(i)
    if waiting[longest].waited >= max(PATIENCE, 1):
        group = groups[waiting[longest].kind]
    else:
        group = max(groups.values(), key=lambda g: (min(len(g), width), max(waiting[i].waited for i in g), -g[0]))
    first = sorted(group, key=lambda i: (-waiting[i].waited, i))[:width]
    return sorted(first)
