"""A plan as a person reads it: the ranked offers, the phases of the best, what else could be done, and what it may cost at worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from orchestrator import console
from orchestrator.budget import GIB, show_usd
from orchestrator.plan import Candidate, Plan, worst_usd
from orchestrator.pricing.advice import advised, in_words
from orchestrator.pricing.alternatives import alternatives, hosted_for
from orchestrator.pricing.reasons import why_first
from orchestrator.view import duration, size

if TYPE_CHECKING:
    from orchestrator.learning.calibration import Calibration
    from orchestrator.whatif import Variant

SHOWN = 6
MEMORY_WORDS = {
    "weights": "weights", "activations": "activations", "adapter": "adapter", "optimizer": "optimizer", "gradients": "gradients",
    "transient": "passing", "context": "CUDA", "fragmentation": "fragments",
}  # fmt: skip


def show_plan(ranked: Plan, *, data: bool, full: bool = False, max_hours: float | None = None) -> None:
    """The ranked offers, the phases of the best, and what was left out. `full`: also what else could be done."""
    say = console.out if data else console.talk
    console.show(_table(ranked), data=data)
    for line in [*_best(ranked), *too_slow(ranked, max_hours), *(_else(ranked) if full else [])]:
        say(console.plain(line))
    if ranked.left_out:
        say("left out: " + ", ".join(f"{count} {reason}" for reason, count in ranked.left_out.items()))
    worst = show_usd(worst_usd(ranked.best, ranked.disk_gib))
    say(f"where everything takes long: {worst} on this machine; the cap is {show_usd(ranked.cap_usd)}")


def _best(ranked: Plan) -> list[str]:
    best, made = ranked.best, ranked.best.estimate
    seconds = made.seconds
    phases = ", ".join(f"{name} {duration(r.p50)}" for name, r in made.phases.items() if r.p50 >= 0.5)
    lines = [why_first(ranked), f"estimated: about {duration(seconds.p50)} ({duration(seconds.p10)} to {duration(seconds.p90)}): {phases}"]
    money = ", ".join(f"{name} {show_usd(usd)}" for name, usd in made.meters.items() if usd)
    if money:
        p10, p90 = show_usd(made.usd["p10"]), show_usd(made.usd["p90"])
        lines.append(f"money: {show_usd(best.expected_usd)} on the average ({p10} to {p90}): {money}")
    parts = ", ".join(
        f"{words} {getattr(made.memory, part) / GIB:.1f}" for part, words in MEMORY_WORDS.items() if getattr(made.memory, part) >= GIB / 20
    )
    lines.append(f"peak VRAM about {made.vram_bytes / GIB:.1f} GiB ({parts}); a step waits for {made.bound or 'nothing'} most")
    if made.settings:
        lines.append(f"settings for {best.offer.gpu_name}: {', '.join(made.settings)}")
    lines += _larger(ranked)
    lines.append(f"{ranked.disk_gib} GiB of disk, {size(ranked.load.upload_bytes)} to upload")
    return lines


def too_slow(ranked: Plan, max_hours: float | None) -> list[str]:
    """How likely the run's own time limit is to last, where that is in doubt, and who would be quicker."""
    if max_hours is None or ranked.best.estimate.seconds.p90 <= max_hours * 3600:
        return []
    chance = ranked.best.estimate.seconds.share_below(max_hours * 3600)
    quickest = min(ranked.candidates, key=lambda one: one.rank_by_time)
    other = "" if quickest is ranked.best else f"; {quickest.offer.gpu_name} takes {duration(quickest.estimate.seconds.p50)}: --prefer fast"
    return [f"max_hours = {max_hours:g} ends it early: {chance:.0%} of such runs are done by then{other}"]


def _larger(ranked: Plan) -> list[str]:
    """What the next card up would give, where the plan had to set something for this one."""
    best = ranked.best
    if not best.estimate.settings:
        return []
    here = best.estimate.settings
    larger = [one for one in ranked.candidates if one.offer.vram_gib > best.offer.vram_gib and one.estimate.settings != here]
    if not larger:
        return []
    up = min(larger, key=lambda one: (one.offer.vram_gib, *one.rank))
    there = ", ".join(up.estimate.settings) or "as the file says"
    took, cost = duration(up.estimate.mean_s), show_usd(up.expected_usd)
    return [f"the next card up, {up.offer.gpu_name}: {there}; {took} and {cost} on the average"]


def _else(ranked: Plan) -> list[str]:
    lines = [
        f"{one.what}: {one.candidate.offer.gpu_name} at {one.candidate.offer.provider}, {show_usd(one.candidate.expected_usd)}: {one.words}"
        for one in alternatives(ranked)
    ]
    for price in hosted_for(ranked.load):
        low, high = (show_usd(usd) for usd in price.usd)
        asks = low if low == high else f"{low} to {high}"
        lines.append(f"hosted: {price.service} asks {asks} ({price.what}; {price.dated}, {price.source})")
    helpful = [one for one in advised(ranked.load, ranked.best.offer) if one.saved_bytes > GIB / 20 or one.seconds < -60]
    lines += [f"could be changed: {in_words(one)}" for one in helpful[:4]]
    return lines


def _table(ranked: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("GPU", "$/h", "run P50", "P90", "expected", "time"):
        table.add_column(name, justify="left" if name == "GPU" else "right")
    table.add_column("where")
    for place, candidate in enumerate(ranked.candidates[:SHOWN], start=1):
        words = _row(candidate, ranked.disk_gib)
        table.add_row(str(place), *(Text(console.plain(word, most=60)) for word in words))  # a market's text is no markup of ours
    return table


def _row(candidate: Candidate, disk_gib: int) -> tuple[str, ...]:
    offer, usd = candidate.offer, candidate.estimate.usd
    return (
        offer.gpu_name,
        f"{offer.prices.usd_per_hour(disk_gib):.3f}",
        f"${usd['p50']:.3f}",
        f"${usd['p90']:.3f}",
        f"${candidate.expected_usd:.3f}",
        duration(candidate.estimate.seconds.p50),
        f"{offer.provider} {offer.region}",
    )


# --- side by side -------------------------------------------------------------------------------------


def variant_document(one: Variant) -> dict[str, Any]:
    """One column of `lorry plan --what-if --json`."""
    if one.plan is None:
        return {"name": one.name, "why_not": one.why_not}
    best = one.plan.best
    return {
        "name": one.name,
        "gpu": best.offer.gpu_name,
        "provider": best.offer.provider,
        "settings": list(best.estimate.settings),
        "peak_vram_bytes": best.estimate.vram_bytes,
        "seconds": {name: getattr(best.estimate.seconds, name) for name in ("p10", "p50", "p90")},
        "usd": {name: float(usd) for name, usd in best.estimate.usd.items()},
        "expected_usd": float(best.expected_usd),
    }


def show_variants(variants: Sequence[Variant]) -> None:
    """The plans side by side, and why there is none."""
    table = Table(box=None, pad_edge=False)
    for name in ("what if", "first", "VRAM", "time", "(P10 to P90)", "expected", "P90"):
        table.add_column(name, justify="left" if name in {"what if", "first"} else "right")
    for one in (one for one in variants if one.plan is not None):
        assert one.plan is not None
        best = one.plan.best
        made, seconds = best.estimate, best.estimate.seconds
        words = (
            one.name, f"{best.offer.gpu_name} at {best.offer.provider}", f"{made.vram_bytes / GIB:.1f} GiB", duration(seconds.p50),
            f"({duration(seconds.p10)} to {duration(seconds.p90)})", show_usd(best.expected_usd), show_usd(made.usd["p90"]),
        )  # fmt: skip
        table.add_row(*(Text(console.plain(word, most=60)) for word in words))
    console.show(table, data=True)
    for one in variants:
        if one.plan is None:
            console.out(console.plain(f"{one.name}: {one.why_not}"))
        elif one.plan.best.estimate.settings:
            console.out(console.plain(f"{one.name}: settings {', '.join(one.plan.best.estimate.settings)}"))


def show_calibration(rows: Sequence[Calibration]) -> None:
    """How right the estimates were, phase by phase."""
    if not rows:
        console.out("no run of this computer has been measured yet: the shipped figures stand, from published ones")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("", "machines", "in P10-P90", "median error", "took / said", "shipped: in P10-P90", "median error"):
        table.add_column(name, justify="left" if not name else "right")
    for row in rows:
        shipped = ("", "") if not row.shipped_runs else (f"{row.shipped_within / row.shipped_runs:.0%}", f"{row.shipped_error:.0%}")
        table.add_row(row.name, str(row.runs), f"{row.within / row.runs:.0%}", f"{row.error:.0%}", f"{row.bias:.2f}", *shipped)
    console.show(table, data=True)
    console.out("80 % within P10-P90 is what these names promise; less means too sure, more too careful")
