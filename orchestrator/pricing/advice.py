"""Too big, too dear, too slow: what could be changed about a queue, each with what it does to memory, time and money. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from orchestrator.budget import GIB, show_usd
from providers.base import Offer

from .estimate import Estimate
from .gpus import gpu
from .needs import Change, changes, memory, step_time, usable_bytes
from .work import Load, reading_total, shape_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change, made to every job that it can be made to."""

    words: str
    """As it is written into the file, where it can be."""
    vram_bytes: int
    """The queue's peak with it."""
    saved_bytes: int
    """Of the peak; below 0 where it needs more."""
    seconds: float
    """Of the steps, more than without it; below 0 where it is quicker."""
    usd: Decimal
    """What these seconds cost."""
    fits: bool
    """Whether the card then has room for the queue."""


AS_WRITTEN = {f"the base in {kind}": f'base_precision = "{kind}"' for kind in ("fp8", "int8", "nf4")}
"""What a change is called -> what is written into the file."""


def advised(load: Load, offer: Offer) -> list[Advice]:
    """What helps most with memory first; of what saves the same the quicker."""
    card = replace(gpu(offer.gpu_name), vram_gib=offer.vram_gib)
    shapes = [shape_of(work, load.base_scale) for work in load.jobs]
    now = [(memory(shape), step_time(shape, card)) for shape in shapes]
    peak = _peak(load, [used.total for used, _ in now], now[0][0].context)
    by_words: dict[str, dict[int, Change]] = {}
    for place, shape in enumerate(shapes):
        for one in changes(shape, card):
            by_words.setdefault(AS_WRITTEN.get(one.words, one.words), {})[place] = one
    found = []
    for words, changed in by_words.items():
        then = _peak(load, [changed[n].memory.total if n in changed else used.total for n, (used, _) in enumerate(now)], now[0][0].context)
        seconds = sum((one.step.p50 - now[n][1].p50) * load.jobs[n].steps for n, one in changed.items())
        usd = offer.prices.gpu_usd_per_hour * Decimal(str(seconds)) / 3600
        fits = then <= usable_bytes(card)
        found.append(Advice(words=words, vram_bytes=then, saved_bytes=peak - then, seconds=seconds, usd=usd, fits=fits))
    return sorted(found, key=lambda one: (not one.fits, -one.saved_bytes, one.seconds))


def _peak(load: Load, totals: Sequence[int], context: int) -> int:
    return max(*totals, *(reading_total(work.family, context, load.base_scale) for work in load.jobs))


def in_words(one: Advice) -> str:
    """A line: what to write, and what it does."""
    memory_ = f"{abs(one.saved_bytes) / GIB:.1f} GiB {'less' if one.saved_bytes >= 0 else 'more'} ({one.vram_bytes / GIB:.1f})"
    minutes = round(one.seconds / 60)
    time = f"{abs(minutes)} minutes {'more' if minutes > 0 else 'less'}" if minutes else "as long"
    money = f"{show_usd(abs(one.usd))} {'more' if one.usd > 0 else 'less'}" if minutes else "as much"
    return f"{one.words}: {memory_}, {time}, {money}"


def steps_that_fit(made: Estimate, load: Load, left_usd: Decimal) -> float:
    """The share of the steps at which the P90 bill is within `left_usd`, in whole hundredths; 0 where no training is."""
    if not load.jobs or made.usd["p90"] <= left_usd:
        return 1.0 if load.jobs else 0.0
    low, high = 0, 100
    while high - low > 1:
        middle = (low + high) // 2
        shorter = made.phases["steps"].times(middle / 100)
        if replace(made, phases={**made.phases, "steps": shorter}).usd["p90"] <= left_usd:
            low = middle
        else:
            high = middle
    return low / 100
