"""In which order the jobs of a session are trained, and how many share a pass. PURE.

The base is loaded once if all jobs on it stand together. When the cap bites, the queue is cut from its end: so what takes longest stands
there, and the fewest jobs are lost for the time that is missing (W. E. Smith, 1956: the shortest processing time first). Jobs that are
alike keep the order of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .gpus import Gpu
from .needs import JobShape, memory, usable_bytes

WIDEST = 16
"""Jobs in one pass at most, as the trainer has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A job of the queue."""

    name: str
    resident: tuple[str, ...]
    """What jobs on one loaded base agree in."""
    seconds: float
    """What it takes, against the others; the unit does not matter."""
    size: tuple[int, ...] = ()
    """Of its pictures: jobs that agree in it share most passes."""


def queue(entries: Sequence[Entry]) -> list[str]:
    """Names in the order of training: by base, the base whose jobs take least on the average first; on each the shortest first.

    Jobs of equal length stand by size, so that those who share passes begin and end together.
    """
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.resident, []).append(entry)

    def average(group: list[Entry]) -> float:
        return sum(entry.seconds for entry in group) / len(group)

    ordered = sorted(groups.values(), key=average)  # stable: the first in the file goes first
    return [entry.name for group in ordered for entry in sorted(group, key=lambda one: (one.seconds, one.size))]


def company(shapes: Sequence[JobShape], card: Gpu, *, widest: int = WIDEST) -> int:
    """Jobs that may share a pass on a card, so that any of these fit; at least one, since a job alone was planned for."""
    most = min(widest, max(1, len(shapes)))
    for jobs in range(most, 1, -1):
        largest = max(memory(replace(shape, jobs=jobs)).total for shape in shapes)
        if largest <= usable_bytes(card):
            return jobs
    return 1
