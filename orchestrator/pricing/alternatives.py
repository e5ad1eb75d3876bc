"""What else could be done, side by side: slower and cheaper, faster and dearer, steadier, interruptible, one's own, hosted. PURE."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal

from orchestrator.budget import show_usd
from orchestrator.plan import Candidate, Plan, is_own

from .hosted import HOSTED, Hosted
from .work import Load

ALIKE = 1.05
"""Of two runs that differ by less nobody would choose one for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another candidate, and what it would be chosen for."""

    what: str
    """One word."""
    candidate: Candidate
    words: str


def alternatives(plan: Plan) -> list[Alternative]:
    """At most one candidate of each kind, only where it is another machine than the first and really better at what it is named for."""
    best = plan.best
    found: list[Alternative] = []
    for what, one in _kinds(plan):
        if one is not None and one is not best and all(one is not other.candidate for other in found):
            found.append(Alternative(what=what, candidate=one, words=_against(one, best)))
    return found


def _kinds(plan: Plan) -> Iterable[tuple[str, Candidate | None]]:
    best, rented = plan.best, [one for one in plan.candidates if not is_own(one.offer)]
    quicker = [one for one in rented if one.estimate.mean_s * ALIKE < best.estimate.mean_s]
    cheaper = [one for one in rented if float(one.expected_usd) * ALIKE < float(best.expected_usd)]
    steadier = [one for one in rented if one.trouble + 0.01 < best.trouble]
    yield "your own", min((one for one in plan.candidates if is_own(one.offer)), key=lambda c: c.rank, default=None)
    yield "cheaper", min(cheaper, key=lambda c: c.rank, default=None)
    yield "faster", min(quicker, key=lambda c: c.rank_by_time, default=None)
    yield "steadier", min(steadier, key=lambda c: c.rank_by_trouble, default=None)
    yield "interruptible", min((one for one in rented if one.offer.interruptible), key=lambda c: c.rank, default=None)
    yield "uninterrupted", min((one for one in rented if not one.offer.interruptible), key=lambda c: c.rank, default=None)


def _against(one: Candidate, best: Candidate) -> str:
    minutes = round((one.estimate.mean_s - best.estimate.mean_s) / 60)
    usd = one.expected_usd - best.expected_usd
    time = f"{abs(minutes)} minutes {'more' if minutes > 0 else 'less'}" if minutes else "as long"
    money = f"{show_usd(abs(usd))} {'more' if usd > 0 else 'less'}" if abs(usd) >= Decimal("0.0001") else "as much"
    losses = f", taken away {one.waste.losses:.1f} times on the average" if one.offer.interruptible else ""
    return f"{money}, {time}{losses}"


def hosted_for(load: Load) -> list[Hosted]:
    """What services on the web ask for as many LoRAs of these families; empty where one family of the queue has no price in the table."""
    families = {work.family for work in load.jobs}
    if len(families) != 1:
        return []
    family, steps, jobs = next(iter(families)), sum(work.steps for work in load.jobs), len(load.jobs)
    return [replace(one, usd=_usd(one, steps, jobs)) for one in HOSTED if family in one.families]


def _usd(one: Hosted, steps: int, jobs: int) -> tuple[Decimal, Decimal]:
    if one.usd_per_step:
        flat = (one.usd_per_step * steps).quantize(Decimal("0.01"))
        return flat, flat
    return one.usd[0] * jobs, one.usd[1] * jobs
