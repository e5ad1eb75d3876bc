"""What past runs teach about the next: how far a phase is off the shipped figures, and how much it varies. PURE.

What was seen over what was said, as a logarithm, is taken to be normal. Its mean is looked for from the broad to the narrow (every run
of this kind, then the card, then the very host), and each level begins with what the level above it says, as if that had been seen
in `PRIOR_RUNS` runs: one run moves the estimate a little, ten move it almost all the way. What is left over is the spread, which
begins with the shipped one in the same way. Nothing is forgotten and nothing is believed blindly: a single odd run is cut at `ODDEST`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import exp, log, sqrt

from orchestrator.pricing.estimate import Taught, untaught
from orchestrator.pricing.quantiles import Range
from orchestrator.pricing.work import Load
from providers.base import Offer

from .records import Record

PRIOR_RUNS = 4.0
PRIOR_SPREADS = 6.0
"""A spread is known later than a mean: after so many runs half of it is what was seen."""
ODDEST = 20.0
"""A phase that took more than so many times what was said, or less than that part of it, counts as this."""
TOY = 0.3
"""A base that is smaller than this share of its family's real one is a toy."""
Z90 = 1.2815515655446004
NARROWEST, WIDEST = 0.05, 1.3
"""Of the logarithm: a P90 between 7 % and five times above the middle."""

_HOST = ("provider", "host")
_CARD = (("size",), ("size", "family"), ("size", "family", "card"), ("size", "family", "card", "provider", "host"))
LEVELS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "boot": (("provider",), ("provider", "image"), (*_HOST, "image")),
    "upload": (("provider",), _HOST),
    "set-up": (("provider",), ("provider", "image"), (*_HOST, "image")),
    "base model": (("provider", "size"), (*_HOST, "size")),
    "caching": _CARD,
    "compile": _CARD,
    "steps": _CARD,
    "samples": _CARD,
    "saves": _CARD,
    "pull": (("provider",), _HOST),
    "destroy": (("provider",),),
}
"""Phase -> what it depends on, from the broad to the narrow."""

Place = tuple[str, ...]


@dataclass(slots=True)
class _Seen:
    """Logarithms of seen over said, at one place of one phase."""

    count: int = 0
    total: float = 0.0

    def take(self, value: float) -> None:
        self.count, self.total = self.count + 1, self.total + value


@dataclass(slots=True)
class _Spread:
    """How far one phase varies around what its mean says, in shipped spreads."""

    runs: int = 0
    squares: float = 0.0

    @property
    def factor(self) -> float:
        return sqrt((PRIOR_SPREADS + self.squares) / (PRIOR_SPREADS + self.runs))


@dataclass(slots=True)
class Lessons:
    """All that the records teach."""

    _means: dict[tuple[str, Place], _Seen] = field(default_factory=dict)
    _spreads: dict[tuple[str, Place], _Spread] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Lessons:
        """Learn from every record, the means first: a spread is around them."""
        known, lessons = list(records), cls()
        for record in known:
            for phase, (value, _) in _seen(record).items():
                for place in _places(phase, facts_of(record)):
                    lessons._means.setdefault((phase, place), _Seen()).take(value)
        for record in known:
            for phase, (value, shipped) in _seen(record).items():
                facts = facts_of(record)
                mean, count = lessons._mean(phase, facts)
                alone = (count + PRIOR_RUNS) / (count + PRIOR_RUNS - 1)  # as far from what the others alone would have said
                spread = lessons._spreads.setdefault((phase, _places(phase, facts)[0]), _Spread())
                spread.runs += 1
                spread.squares += min((alone * (value - mean) / _shipped_spread(shipped, value - mean)) ** 2, 9.0)
        return lessons

    def about(self, image: str) -> Taught:
        """The phases of a run with this image by what was learnt; those of which nothing was stay as they are."""

        def taught(shipped: Mapping[str, Range], offer: Offer, load: Load) -> Mapping[str, Range]:
            facts = facts_of_plan(offer, load, image)
            return {phase: self._moved(phase, one, facts) for phase, one in shipped.items()}

        return taught if self._means else untaught

    def _moved(self, phase: str, shipped: Range, facts: Mapping[str, str]) -> Range:
        mean, runs = self._mean(phase, facts)
        spread = self._spreads.get((phase, _places(phase, facts)[0]))
        if not runs or spread is None or shipped.p50 <= 0:
            return shipped
        wider = spread.factor * sqrt(1 + 1 / (PRIOR_RUNS + runs))
        low, high = (min(max(wider * _shipped_spread(shipped, sign), NARROWEST), WIDEST) for sign in (-1.0, 1.0))
        middle = shipped.p50 * exp(mean)
        return Range(middle * exp(-Z90 * low), middle, middle * exp(Z90 * high))

    def _mean(self, phase: str, facts: Mapping[str, str]) -> tuple[float, int]:
        """The logarithm to move by, and how many runs speak for it at the narrowest level of which something is known."""
        mean, runs = 0.0, 0
        for place in _places(phase, facts):
            seen = self._means.get((phase, place))
            if seen is None:
                break
            runs = seen.count
            mean = (seen.total + PRIOR_RUNS * mean) / (seen.count + PRIOR_RUNS)
        return mean, runs


def facts_of(record: Record) -> dict[str, str]:
    """What a record may teach about."""
    return {
        "provider": record.provider,
        "host": record.host,
        "card": record.card,
        "image": record.image,
        "family": record.family,
        "size": "toy" if record.toy else "real",
    }


def facts_of_plan(offer: Offer, load: Load, image: str) -> dict[str, str]:
    """The same of a run that is planned."""
    return {
        "provider": offer.provider,
        "host": offer.machine_id,
        "card": offer.gpu_name,
        "image": image,
        "family": families_of(load),
        "size": "toy" if load.base_scale < TOY else "real",
    }


def families_of(load: Load) -> str:
    """Of all jobs, each once."""
    return "+".join(dict.fromkeys(work.family for work in load.jobs))


def _places(phase: str, facts: Mapping[str, str]) -> list[Place]:
    return [tuple(facts[name] for name in level) for level in LEVELS[phase]]


def _seen(record: Record) -> dict[str, tuple[float, Range]]:
    """Phase -> logarithm of what was seen over what the shipped figures said."""
    found = {}
    for phase, said in record.ranges(shipped=True).items():
        took = record.took[phase]
        if phase in LEVELS and said.p50 > 0 and took > 0:
            found[phase] = (min(max(log(took / said.p50), -log(ODDEST)), log(ODDEST)), said)
    return found


def _shipped_spread(one: Range, side: float) -> float:
    low = log(one.p50 / max(one.p10, one.p50 / ODDEST)) / Z90
    high = log(max(one.p90, one.p50) / one.p50) / Z90
    return max(high if side > 0 else low, NARROWEST)
