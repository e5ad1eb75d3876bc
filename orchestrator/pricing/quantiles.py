"""Ranges, and what comes of adding them up. PURE: nothing is drawn, so that the same plan is the same plan tomorrow.

A range is what a person says of a phase: one in ten takes less than P10, half less than P50, nine in ten less than P90. Between these it
is log-normal, with a spread of its own on either side of the middle. Phases are taken for independent of each other; the sum of their
P90s would then be passed far more seldom than once in ten, so sums are made over `SCENARIOS` courses that a run can take. These are the
points of a rank-1 lattice: in every stream each course stands on another rung of an even ladder, and any two streams are as good as
unrelated. How near that comes to random draws is in tests/orchestrator/test_quantiles.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, fsum, log
from statistics import NormalDist

SCENARIOS = 251
_GENERATOR = 177
"""Of all Korobov generators for 251 points the one whose quantiles were nearest to random draws, in the worst of six sums."""
_NORMAL = NormalDist()
_Z90 = _NORMAL.inv_cdf(0.9)
_LEAST = 1e-3
"""A P10 that is 0 counts as this share of the middle: logarithms know no 0."""


@dataclass(frozen=True, slots=True)
class Range:
    """P10, P50 and P90 of one quantity, none below 0."""

    p10: float
    p50: float
    p90: float

    @property
    def mean(self) -> float:
        """What it comes to on the average: above the middle where the long side is the upper one."""
        return self.p50 * _mean_factor(*self._spreads) if self.p50 > 0 else 0.0

    def spread(self, low: float, high: float) -> Range:
        """The same middle with other ends, as shares of it."""
        return Range(self.p50 * low, self.p50, self.p50 * high)

    def times(self, factor: float) -> Range:
        """So many of it, all alike: one that takes long means that all do."""
        return Range(self.p10 * factor, self.p50 * factor, self.p90 * factor)

    def share_below(self, value: float) -> float:
        """How likely it is to come to less."""
        if self.p50 <= 0 or value <= 0:
            return 0.0 if value <= self.p50 else 1.0
        low, high = self._spreads
        z = log(value / self.p50)
        spread = high if z > 0 else low
        return _NORMAL.cdf(z / spread) if spread else float(z >= 0)

    def scenarios(self, stream: int) -> tuple[float, ...]:
        """What it comes to in each course that a run can take. `stream`: its own, so that it has nothing to do with the others."""
        if self.p50 <= 0:
            return _NOTHING
        factors = _factors(stream, *self._spreads)
        return tuple([self.p50 * factor for factor in factors])

    @property
    def _spreads(self) -> tuple[float, float]:
        """Standard deviation of the logarithm below and above the middle; rounded, so that alike ones are worked out once."""
        low, high = max(self.p10, self.p50 * _LEAST), max(self.p90, self.p50)
        return round(log(self.p50 / low) / _Z90, 4), round(log(high / self.p50) / _Z90, 4)


_NOTHING = (0.0,) * SCENARIOS


def certain(value: float) -> Range:
    """A range that is one value."""
    return Range(value, value, value)


def added(columns: Iterable[Sequence[float]]) -> list[float]:
    """Course by course, what several quantities come to together."""
    return [sum(row) for row in zip(*columns, strict=True)]


def range_of(scenarios: Sequence[float]) -> Range:
    """P10, P50 and P90 of what was worked out course by course."""
    ordered = sorted(scenarios)
    return Range(*(_at(ordered, share) for share in (0.1, 0.5, 0.9)))


def total(ranges: Iterable[Range]) -> Range:
    """All of them, one after the other."""
    columns = [one.scenarios(stream) for stream, one in enumerate(ranges) if one.p50 > 0]
    return range_of(added(columns)) if columns else certain(0.0)


def times_it_happens(expected: float, stream: int) -> tuple[int, ...]:
    """How often something happens in each course, where so many times are expected and none makes another likelier (Poisson)."""
    chance = below = exp(-expected)
    counts, count = [], 0
    for rung in sorted(_rungs(stream)):
        while rung > below and count < _MOST_TIMES:
            count += 1
            chance *= expected / count
            below += chance
        counts.append(count)
    place = {rung: counts[at] for at, rung in enumerate(sorted(_rungs(stream)))}
    return tuple([place[rung] for rung in _rungs(stream)])


_MOST_TIMES = 200
"""A sum of chances may stop short of 1 by rounding."""


def _at(ordered: Sequence[float], share: float) -> float:
    place = min(max(share * len(ordered) - 0.5, 0.0), len(ordered) - 1.0)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@lru_cache(maxsize=256)
def _rungs(stream: int) -> tuple[float, ...]:
    step = pow(_GENERATOR, stream, SCENARIOS)
    return tuple([(course * step % SCENARIOS + 0.5) / SCENARIOS for course in range(SCENARIOS)])


@lru_cache(maxsize=4096)
def _factors(stream: int, low: float, high: float) -> tuple[float, ...]:
    normal = [_NORMAL.inv_cdf(rung) for rung in _rungs(stream)]
    return tuple([exp(z * (high if z > 0 else low)) for z in normal])


@lru_cache(maxsize=4096)
def _mean_factor(low: float, high: float) -> float:
    """By hand: the two halves of the log-normal, each cut at the middle."""
    return fsum((exp(high * high / 2) * _NORMAL.cdf(high), exp(low * low / 2) * _NORMAL.cdf(-low)))
