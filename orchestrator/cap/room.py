"""Whether more jobs fit into what the cap leaves of a machine that trains. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from orchestrator.plan import Estimate, Load, step_seconds

SLOWEST, QUICKEST = 5.0, 0.2
"""A measured pace that is further from the predicted one was measured over something else."""
BESIDE = ("boot", "set-up", "base model", "upload", "destroy")
"""Phases of an estimate that a machine which trains already has behind it, does beside its training, or has room for in any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a machine has left to do, what is to come on top, and how long it may still train."""

    rest_s: float
    more_s: float
    left_s: float

    @property
    def fits(self) -> bool:
        """Whether everything ends in time."""
        return self.rest_s + self.more_s <= self.left_s

    @property
    def short_s(self) -> float:
        """For so long it would go on beyond the end."""
        return max(0.0, self.rest_s + self.more_s - self.left_s)


def pace(load: Load, gpu: str, measured: dict[str, float]) -> float:
    """Measured seconds a step over predicted ones; 1 while nothing is measured."""
    works = {work.name: work for work in load.jobs}
    ratios = [seconds / step_seconds(works[name], gpu, load.base_scale) for name, seconds in measured.items() if name in works and seconds]
    return min(max(median(ratios), QUICKEST), SLOWEST) if ratios else 1.0


def room(rest: Estimate, more: Estimate, *, pace: float, begun: bool, left_s: float) -> Room:
    """What is left and what would come, on the careful side: as if they took their turns. `begun`: the pace is measured."""
    return Room(rest_s=_seconds(rest, pace, begun=begun), more_s=_seconds(more, pace, begun=begun), left_s=left_s)


def _seconds(estimate: Estimate, pace: float, *, begun: bool) -> float:
    """Of the phases that are still to come; training by its measured pace, else by the careful end of the prediction."""
    total = 0.0
    for name, phase in estimate.phases.items():
        if name == "training" and begun:
            total += phase.p50 * pace
        elif name not in BESIDE:
            total += phase.p90
    return total
