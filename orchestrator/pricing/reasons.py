"""Why the first of a plan is the first, in words. PURE."""

from __future__ import annotations

from orchestrator.budget import show_usd
from orchestrator.plan import Candidate, Plan, is_own


def why_first(plan: Plan) -> str:
    """A sentence for the person who wonders why not the cheapest hour."""
    best, *others = plan.candidates
    if plan.prefer == "fast" and others:
        return f"first because it is expected to be done soonest, in {_minutes(best)}; {_dearer(plan, best)}"
    if plan.prefer == "safe" and others:
        return f"first because the least is expected to go wrong: {_trouble(best)}; {_dearer(plan, best)}"
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
    times = other.estimate.mean_s / best.estimate.mean_s
    slower = f"takes {times:.1f} times as long" if times >= 1.05 else ""
    wasted = f"is expected to waste {show_usd(other.waste.usd)}" if other.waste.usd > best.waste.usd else ""
    moved = "has dearer traffic" if not slower and not wasted else ""
    reasons = " and ".join(word for word in (slower, wasted, moved) if word)
    return f"{offer.gpu_name} at {offer.provider} for ${rate:.3f}, {reasons}: {show_usd(other.expected_usd)}"


def _dearer(plan: Plan, best: Candidate) -> str:
    """What the preference costs."""
    cheapest = min(plan.candidates, key=lambda one: one.rank)
    if cheapest is best:
        return f"it is the cheapest too, {show_usd(best.expected_usd)} for the whole run"
    where = f"{cheapest.offer.gpu_name} at {cheapest.offer.provider}"
    return (
        f"{show_usd(best.expected_usd)} for the whole run, {show_usd(best.expected_usd - cheapest.expected_usd)} more than on {where}"
        f" in {_minutes(cheapest)}"
    )


def _minutes(one: Candidate) -> str:
    return f"{max(1, round(one.estimate.mean_s / 60))} minutes"


def _trouble(one: Candidate) -> str:
    return f"{100 * one.waste.boots:.0f} of 100 boots, {one.waste.losses:.2f} losses of the machine"
