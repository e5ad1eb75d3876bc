"""Why the first of a plan is the first, in words. PURE."""

from __future__ import annotations

from orchestrator.budget import show_usd
from orchestrator.plan import Candidate, Plan, is_own


def why_first(plan: Plan) -> str:
    """A sentence for the person who wonders why not the cheapest hour."""
    best, *others = plan.candidates
    if is_own(best.offer):
        return "first because it is yours and costs nothing"
    cost = f"{show_usd(best.expected_usd)} for the whole run, {show_usd(best.waste.usd)} of it for what may go wrong"
    if not others:
        return f"the only one that fits and can be paid: {cost} expected"
    cheapest = min(plan.candidates, key=lambda one: (one.offer.prices.usd_per_hour(plan.disk_gib), *one.rank))
    if cheapest is best:
        return f"first because it is expected to cost least, {cost}, and its hour is the cheapest too"
    return f"first because it is expected to cost least, {cost}; the cheapest hour, {_in_words(cheapest, plan, best)}"


def _in_words(other: Candidate, plan: Plan, best: Candidate) -> str:
    """Another candidate against the best: what makes its run dearer."""
    offer, rate = other.offer, other.offer.prices.usd_per_hour(plan.disk_gib)
    times = other.estimate.seconds.p50 / best.estimate.seconds.p50
    slower = f"takes {times:.1f} times as long" if times >= 1.05 else ""
    wasted = f"is expected to waste {show_usd(other.waste.usd)}" if other.waste.usd > best.waste.usd else ""
    moved = "has dearer traffic" if not slower and not wasted else ""
    reasons = " and ".join(word for word in (slower, wasted, moved) if word)
    return f"{offer.gpu_name} at {offer.provider} for ${rate:.3f}, {reasons}: {show_usd(other.expected_usd)}"
