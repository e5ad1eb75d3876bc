"""From the work and the offers on the market to what will happen, and what it will cost.

PURE. What a run takes on one offer is `pricing/estimate.py`; here stands which offers fit, in which order they are tried, and whether the
cap covers them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from heapq import nsmallest
from math import isfinite
from typing import Literal

from providers.base import Offer, Prices, Requirements

from .budget import GIB, WAY_OUT_S, rounded_up, time_usd
from .errors import NoOffer, OverBudget
from .pricing.advice import advised, in_words, steps_that_fit
from .pricing.estimate import Estimate, Estimator, Taught, estimate, untaught
from .pricing.phases import BEFORE_TRAINING
from .pricing.quantiles import Range, certain
from .pricing.risk import Waste
from .pricing.work import Load, Work, step_seconds, vram_bytes

__all__ = [
    "BEFORE_TRAINING", "GIB", "MIB", "Candidate", "Estimate", "Load", "Plan", "Prefer", "Range", "Work", "candidate", "certain", "disk_gib",
    "estimate", "is_own", "make_plan", "makes_sense", "step_seconds", "vram_bytes", "why_not", "worst_usd",
]  # fmt: skip

FAILED_US = "failed us lately"
MIB = 1024**2
MOST = 1e6
"""GiB or megabits a second; nothing on any market comes near."""
DEAREST_USD = Decimal(10_000)
"""Per hour or GiB. An offer beyond it is a mistake or a trap; 0 is a machine of one's own."""

Prefer = Literal["cheap", "fast", "safe"]
"""What is to be least: the expected bill, the expected time, or the chance that something goes wrong."""
Rank = tuple[Decimal | float, Decimal | float, float, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An offer with what the run would cost on it."""

    offer: Offer
    estimate: Estimate

    @property
    def waste(self) -> Waste:
        """What this machine is expected to waste."""
        return self.estimate.waste

    @property
    def expected_usd(self) -> Decimal:
        """The whole run on the average, with what this machine is expected to waste."""
        return self.estimate.expected_usd

    @property
    def trouble(self) -> float:
        """How often a boot or the machine itself is expected to fail, in hundredths: finer nobody knows it."""
        return round(self.waste.boots + self.waste.losses, 2)

    @property
    def rank(self) -> Rank:
        """Cheapest first; of two that cost the same the quicker, then the steadier. No two offers are equal, so the order is one."""
        return self.expected_usd, self.estimate.mean_s, -self.offer.reliability, self.offer.provider, self.offer.id

    @property
    def rank_by_time(self) -> Rank:
        """Quickest first, in whole minutes; of two that take the same the cheaper."""
        minutes = float(round(self.estimate.mean_s / 60))
        return minutes, self.expected_usd, -self.offer.reliability, self.offer.provider, self.offer.id

    @property
    def rank_by_trouble(self) -> Rank:
        """The one that fails most seldom first; of two that are as steady the cheaper."""
        return self.trouble, self.expected_usd, self.estimate.mean_s, self.offer.provider, self.offer.id


RANKS: Mapping[Prefer, Callable[[Candidate], Rank]] = {
    "cheap": lambda one: one.rank,
    "fast": lambda one: one.rank_by_time,
    "safe": lambda one: one.rank_by_trouble,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be tried, best first."""

    candidates: tuple[Candidate, ...]
    cap_usd: Decimal
    load: Load
    disk_gib: int
    seen: int
    """Offers looked at."""
    left_out: Mapping[str, int]
    """Reason -> number of offers that were left out for it."""
    avoided: tuple[Offer, ...] = ()
    """Those that would fit, and whose machine has failed us lately."""
    prefer: Prefer = "cheap"

    @property
    def best(self) -> Candidate:
        """The first to be tried."""
        return self.candidates[0]


def disk_gib(load: Load, wanted: int | None) -> int:
    """Disk to rent: what is shipped and downloaded, twice what comes home, and the environment."""
    need = (load.upload_bytes + load.hub_bytes + 2 * load.download_bytes) / GIB + 20
    return max(wanted or 0, int(need) + 1)


def candidate(load: Load, offer: Offer, disk: int, taught: Taught = untaught) -> Candidate:
    """An offer with what the run would cost on it, the load as it stands."""
    return Candidate(offer=offer, estimate=estimate(load, offer, disk, taught))


TOO_SMALL = "too little VRAM"
LOOSEN = "loosen [machine] in the file: gpus, max_usd_per_hour, min_reliability, regions"


def is_own(offer: Offer) -> bool:
    """Whether the machine is one of the user's: nobody is paid for it, and no image is run on it."""
    return offer.prices.gpu_usd_per_hour == 0


def why_not(offer: Offer, wanted: Requirements) -> str:
    """The reason to leave `offer` out, whatever is to be trained; empty for none. Clouds may ignore the filters they were given."""
    checks = {
        "numbers that make no sense": not makes_sense(offer),
        TOO_SMALL: offer.vram_gib < wanted.min_vram_gib,
        "another GPU": bool(wanted.gpus) and offer.gpu_name not in wanted.gpus,
        "too little disk": offer.disk_gib < wanted.disk_gib,
        "dearer than max_usd_per_hour": wanted.max_usd_per_hour is not None
        and offer.prices.usd_per_hour(wanted.disk_gib) > wanted.max_usd_per_hour,
        "not reliable enough": offer.reliability < wanted.min_reliability,
        "not verified": wanted.verified_only and not offer.verified,
        "not in a data centre": wanted.secure_only and not offer.secure,
        "another region": bool(wanted.regions) and offer.region not in wanted.regions,
        "interruptible": offer.interruptible and not wanted.interruptible,
    }
    return next((reason for reason, is_so in checks.items() if is_so), "")


def makes_sense(offer: Offer) -> bool:
    """Whether every number of an offer can be true. NaN compares with nothing, so it would pass every filter and spoil the order."""
    sizes = (offer.vram_gib, offer.disk_gib, offer.down_mbit_s, offer.up_mbit_s)
    dearest = max(getattr(offer.prices, name) for name in Prices.__dataclass_fields__)
    return (
        all(isfinite(size) and 0 <= size <= MOST for size in sizes)
        and offer.vram_gib > 0
        and offer.gpu_count >= 1
        and 0 <= offer.reliability <= 1
        and dearest <= DEAREST_USD
    )


def make_plan(
    load: Load,
    offers: Iterable[Offer],
    wanted: Requirements,
    *,
    cap_usd: Decimal,
    avoid: Collection[tuple[str, str]] = (),
    spent_usd: Decimal = Decimal(0),
    prefer: Prefer = "cheap",
    taught: Taught = untaught,
) -> Plan:
    """Rank the offers that fit by what the whole run is expected to cost on them, or as `prefer` says.

    `avoid`: machines that failed us, by provider and machine id. `spent_usd`: what earlier machines of the run have cost; the cap
    covers it too.

    Raises `NoOffer` when none fits and `OverBudget` when none can be paid.
    """
    left_out: Counter[str] = Counter()
    fitting: list[Candidate] = []
    avoided: list[Offer] = []
    largest: Offer | None = None
    """Of the cards that are too small."""
    estimator = Estimator(load, taught)
    for offer in offers:
        if reason := why_not(offer, wanted):
            left_out[reason] += 1
        elif (made := estimator.on(offer, wanted.disk_gib)) is None:
            left_out[TOO_SMALL] += 1
            largest = offer if largest is None or offer.vram_gib > largest.vram_gib else largest
        elif (offer.provider, offer.machine_id) in avoid:
            left_out[FAILED_US] += 1
            avoided.append(offer)
        else:
            fitting.append(Candidate(offer=offer, estimate=made))
    seen = len(fitting) + left_out.total()
    if not fitting:
        raise _nothing_fits(seen, left_out, load, largest)
    fitting.sort(key=RANKS[prefer])
    payable = [one for one in fitting if _is_paid(one, wanted.disk_gib, cap_usd - spent_usd)]
    if not payable:
        raise _too_dear(fitting, cap_usd, wanted.disk_gib, spent_usd, load)
    return Plan(
        candidates=tuple(payable),
        cap_usd=cap_usd,
        load=load,
        disk_gib=wanted.disk_gib,
        seen=seen,
        left_out=left_out,
        avoided=tuple(avoided),
        prefer=prefer,
    )


def worst_usd(candidate: Candidate, disk: int) -> Decimal:
    """What the cap must cover: the P90 bill and the way out."""
    return candidate.estimate.usd["p90"] + time_usd(candidate.offer.prices, disk, WAY_OUT_S)


def _is_paid(candidate: Candidate, disk: int, left_usd: Decimal) -> bool:
    """Whether the cap covers the run; with plenty left, or far too little, nobody needs to know the P90."""
    left_usd -= time_usd(candidate.offer.prices, disk, WAY_OUT_S)
    made = candidate.estimate
    return made.least_usd <= left_usd and (made.most_usd <= left_usd or made.usd["p90"] <= left_usd)


def _nothing_fits(seen: int, left_out: Counter[str], load: Load, largest: Offer | None) -> NoOffer:
    again = "; lorry offers --forget all tries those again that failed" if left_out[FAILED_US] else ""
    if not seen:
        return NoOffer("no machine is for rent now", hint=f"{LOOSEN}{again}")
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
    if largest is None or left_out[TOO_SMALL] < seen / 2:
        return NoOffer(f"none of {seen} offers fits: {reasons}", hint=f"{LOOSEN}{again}")
    needs = f"the jobs need {vram_bytes(load) / GIB:.1f} GiB, the largest card of these has {largest.vram_gib:.0f} (estimated)"
    ways = [one for one in advised(load, largest) if one.fits] or advised(load, largest)
    smaller = f"{in_words(ways[0])}; or " if ways else ""
    return NoOffer(f"none of {seen} offers fits: {reasons}; {needs}", hint=f"{smaller}a larger card: [machine] gpus, providers{again}")


def _too_dear(fitting: Sequence[Candidate], cap_usd: Decimal, disk: int, spent_usd: Decimal, load: Load) -> OverBudget:
    near = nsmallest(NEAR, fitting, key=lambda c: c.estimate.least_usd)
    nearest = min(near, key=lambda c: worst_usd(c, disk))
    needed = rounded_up(spent_usd + worst_usd(nearest, disk))
    share = steps_that_fit(nearest.estimate, load, cap_usd - spent_usd - time_usd(nearest.offer.prices, disk, WAY_OUT_S))
    fewer = f"lower steps to {share:.0%} of what they are" if share >= SENSIBLE else "lower steps, which alone would hardly do"
    return OverBudget(
        f"{len(fitting)} offers fit, none finishes surely within ${cap_usd}:"
        f" the nearest, {nearest.offer.gpu_name}, may need ${needed} (estimated)"
        + (f", of which ${rounded_up(spent_usd)} is spent" if spent_usd else ""),
        hint=f"set budget.max_usd to {needed} or more, or {fewer}",
    )


NEAR = 100
"""Among so many of the cheapest is the one with the lowest P90."""
SENSIBLE = 0.1
"""A training cut to less of its steps is another training."""
