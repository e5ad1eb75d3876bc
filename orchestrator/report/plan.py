"""A plan as a person reads it: the ranked offers, the phases of the best, what was left out and what it may cost at worst."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from orchestrator import console
from orchestrator.budget import show_usd
from orchestrator.plan import Candidate, Plan, worst_usd
from orchestrator.pricing.reasons import why_first
from orchestrator.view import duration, size

SHOWN = 6


def show_plan(ranked: Plan, *, data: bool) -> None:
    """The ranked offers, the phases of the best, and what was left out."""
    console.show(_table(ranked), data=data)
    best, say = ranked.best, console.out if data else console.talk
    say(console.plain(why_first(ranked)))
    seconds = best.estimate.seconds
    phases = ", ".join(f"{name} {duration(r.p50)}" for name, r in best.estimate.phases.items())
    say(
        f"simple estimate, not yet calibrated: about {duration(seconds.p50)} ({duration(seconds.p10)} to {duration(seconds.p90)}): {phases}"
    )
    say(
        f"peak VRAM about {best.estimate.vram_bytes / 1024**3:.1f} GiB, {ranked.disk_gib} GiB of disk, "
        f"{size(ranked.load.upload_bytes)} to upload"
    )
    if ranked.left_out:
        say("left out: " + ", ".join(f"{count} {reason}" for reason, count in ranked.left_out.items()))
    say(f"where everything takes long: {show_usd(worst_usd(best, ranked.disk_gib))} on this machine; the cap is {show_usd(ranked.cap_usd)}")


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
