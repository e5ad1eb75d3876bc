"""How fast the jobs of a session get on, and which of them still finish in the time that is left. PURE.

Jobs that train together share their passes. What a pass costs has a part that is there whoever rides (the host prepares it) and a part
that grows with every rider (the card computes it). Which of the two it is shows when somebody leaves and the others get faster, or do not;
until then all of it is taken for the second kind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

MEASURED_STEPS, MEASURED_S = 20, 5.0
"""A pace is believed when it was measured over so many steps and so many seconds, in the company that is there now."""
NEAR = 1.05
"""A queue that overruns its time by less may yet fit: waiting costs little, and shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is left of one job."""

    name: str
    steps: int
    """Still to be taken."""
    step_s: float | None
    """Seconds a step, in the company of now; None: it has not begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """Jobs that train together at this moment."""

    size: int
    fixed_share: float = 0.0
    """Of a pass's time, what does not depend on how many ride: 0 to 1."""

    def slowness(self, riders: int) -> float:
        """Seconds a pass with so many riders, where one with all of the company takes one."""
        return self.fixed_share + (1.0 - self.fixed_share) * riders / self.size


def seconds_left(works: Collection[Work], company: Company) -> float:
    """Until the last step of all these jobs: those under way together, the fewer the faster; then the rest, one by one."""
    begun = sorted(work.steps * work.step_s for work in works if work.step_s is not None)
    total = passed = 0.0
    for ended, until in enumerate(begun):
        total += (until - passed) * company.slowness(len(begun) - ended)
        passed = until
    paces = [work.step_s for work in works if work.step_s is not None]
    usual = sum(paces) / len(paces) * company.slowness(1) if paces else 0.0
    return total + usual * sum(work.steps for work in works if work.step_s is None)


def left_out(works: Sequence[Work], company: Company, left_s: float) -> tuple[str, ...]:
    """The jobs at the end without which the others finish within `left_s`; none when all do, and none when not even the first does.

    In the last case leaving somebody out is of no use to anybody: all go on to the deadline, and are taken up together.
    """
    if seconds_left(works, company) <= left_s * NEAR:
        return ()
    for kept in range(len(works) - 1, 0, -1):
        if any(work.step_s is not None for work in works[:kept]) and seconds_left(works[:kept], company) <= left_s:
            return tuple(work.name for work in works[kept:])
    return ()


@dataclass(slots=True)
class Stopwatch:
    """Measures every job's pace anew whenever the company changes, samples and saves included.

    The longest gap between two words of a job is left out: a host that stood still for once says nothing about what is to come.
    """

    fixed_share: float = 0.0
    _running: frozenset[str] = frozenset()
    _first: dict[str, tuple[float, int]] = field(default_factory=dict)
    _last: dict[str, tuple[float, int]] = field(default_factory=dict)
    _longest: dict[str, tuple[float, int]] = field(default_factory=dict)
    """The longest gap of each: seconds, and the steps that were taken in it."""
    _before: Mapping[str, float] = field(default_factory=dict)
    """Paces in the company before this one."""

    def see(self, running: Collection[str], told: Mapping[str, tuple[float, int]]) -> None:
        """Take a look: who runs, and of whom it was told when which step was taken."""
        if self._running != frozenset(running):
            self._before = self.paces() or self._before
            self._running, self._first, self._last, self._longest = frozenset(running), {}, {}, {}
        for name in self._running & told.keys():
            if name not in self._last or told[name][1] < self._last[name][1]:  # a job that was taken up goes back a little
                self._first[name] = self._last[name] = told[name]
                self._longest[name] = (0.0, 0)
            gap = (told[name][0] - self._last[name][0], told[name][1] - self._last[name][1])
            self._longest[name] = max(self._longest[name], gap)
            self._last[name] = told[name]

    def paces(self) -> dict[str, float]:
        """Seconds a step of every job that runs; empty until all are measured."""
        found = {}
        for name in sorted(self._running):
            first, last, gap = (seen.get(name, (0.0, 0)) for seen in (self._first, self._last, self._longest))
            seconds, steps = last[0] - first[0] - gap[0], last[1] - first[1] - gap[1]
            if steps < MEASURED_STEPS or seconds < MEASURED_S:
                return {}
            found[name] = seconds / steps
        return found

    def company(self) -> Company:
        """Those who run, with what has been learnt of their passes. Call it with paces at hand."""
        paces = self.paces()
        stayed = paces.keys() & self._before.keys()
        if stayed and len(paces) < len(self._before):
            ratio = sum(paces[name] / self._before[name] for name in stayed) / len(stayed)
            share = len(paces) / len(self._before)
            fixed = min(max((ratio - share) / (1.0 - share), 0.0), 1.0)
            self.fixed_share = fixed / (fixed + (1.0 - fixed) * share)  # of the smaller pass it is the greater part
        return Company(size=max(len(paces), 1), fixed_share=self.fixed_share)
