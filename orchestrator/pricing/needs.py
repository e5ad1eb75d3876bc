"""What a training asks of a card: memory by its parts, the time of a step, and the fastest setting that fits. PURE.

The nouns are in `shapes.py`, memory in `footprint.py`, time in `roofline.py`; both from what `trainer.tracing` has found (`traced.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from .footprint import GIB, adapter_params, memory, reading_bytes
from .gpus import Gpu
from .roofline import step_time
from .shapes import (
    UNCORRECTED,
    Bound,
    Bucket,
    Change,
    Correction,
    Fit,
    Freedom,
    JobShape,
    Memory,
    Precision,
    StepTime,
    Weights,
)

__all__ = [
    "GIB", "UNCORRECTED", "Bound", "Bucket", "Change", "Correction", "Fit", "Freedom", "JobShape", "Memory", "Precision", "StepTime",
    "Weights", "adapter_params", "changes", "fit", "memory", "next_card", "reading_bytes", "step_time", "usable_bytes",
]  # fmt: skip


def usable_bytes(card: Gpu) -> int:
    """What a process can have of a card's memory: drivers and error correction keep the rest."""
    return int(card.vram_gib * 0.97 * GIB)


def fit(
    shape: JobShape, card: Gpu, *, may: Collection[Freedom] = ("checkpointing", "micro"), correction: Correction = UNCORRECTED
) -> Fit | None:
    """The fastest setting that fits the card, as it was asked for if that fits; None when none does.

    A checkpointed job is not made dearer by this: without checkpointing it is tried as well, since only time and memory differ.
    """
    found: list[tuple[float, int, Fit]] = []
    for number, (changed, other) in enumerate(_settings(shape, may)):
        needs = memory(other)
        if needs.total <= usable_bytes(card):
            step = step_time(other, card, correction)
            found.append((step.p50, number, Fit(shape=other, changed=changed, memory=needs, step=step)))
    return min(found, key=lambda one: one[:2])[2] if found else None


def next_card(shape: JobShape, card: Gpu, cards: Collection[Gpu], *, may: Collection[Freedom] = ("checkpointing", "micro")) -> Gpu | None:
    """The smallest larger card on which the job would be quicker for its memory: where `fit` would change less."""
    here = fit(shape, card, may=may)
    for size in sorted({one.vram_gib for one in cards if one.vram_gib > card.vram_gib}):
        other = replace(card, vram_gib=size)
        there = fit(shape, other, may=may)
        if there is not None and (here is None or there.step.p50 < 0.97 * here.step.p50):
            return other
    return None


def _settings(shape: JobShape, may: Collection[Freedom]) -> Iterator[tuple[tuple[str, ...], JobShape]]:
    """Every setting that is allowed, the one that was asked for first."""
    bases: list[Weights] = [shape.base]
    if shape.base == "full":
        bases += [kind for kind in ("fp8", "int8", "nf4") if kind in may]
    micros = [None, *(shape.batch // part for part in (2, 4, 8) if shape.batch % part == 0)] if "micro" in may else [shape.micro]
    offloads = (
        [shape.offload, *(share for share in (0.25, 0.5, 0.75, 1.0) if share > shape.offload)] if "offload" in may else [shape.offload]
    )
    for base in bases:
        for offload in offloads:
            for micro in micros:
                for checkpointing in (shape.checkpointing, *((not shape.checkpointing,) if "checkpointing" in may else ())):
                    other = replace(shape, base=base, offload=offload, micro=micro, checkpointing=checkpointing)
                    yield _words(shape, other), other


def _words(asked: JobShape, other: JobShape) -> tuple[str, ...]:
    words = []
    if other.checkpointing != asked.checkpointing:
        words.append("gradient checkpointing" if other.checkpointing else "no gradient checkpointing")
    if other.rows != asked.rows:
        words.append(f"{other.rows} of {other.batch} pictures at a time")
    if other.base != asked.base:
        words.append(f"the base in {other.base}")
    if other.offload != asked.offload:
        words.append(f"{other.offload:.0%} of the base in main memory")
    return tuple(words)


def changes(shape: JobShape, card: Gpu, correction: Correction = UNCORRECTED) -> tuple[Change, ...]:
    """What could be done to need less memory or time, one thing at a time, with the effect of each."""
    others = {
        "gradient_checkpointing = true": replace(shape, checkpointing=True),
        "gradient_checkpointing = false": replace(shape, checkpointing=False),
        "batch_size = 1": replace(shape, batch=1, micro=None),
        "the base in int8": replace(shape, base="int8"),
        "the base in nf4": replace(shape, base="nf4"),
        f"rank = {max(1, shape.rank // 2)}": replace(
            shape, rank=max(1, shape.rank // 2), adapter_params=None if shape.adapter_params is None else shape.adapter_params // 2
        ),
        "resolution x 3/4": replace(shape, buckets=tuple(_smaller(bucket) for bucket in shape.buckets)),
    }
    return tuple(
        Change(words=words, shape=other, memory=memory(other), step=step_time(other, card, correction))
        for words, other in others.items()
        if other != shape
    )


def _smaller(bucket: Bucket) -> Bucket:
    return replace(bucket, width=bucket.width * 3 // 4 // 16 * 16, height=bucket.height * 3 // 4 // 16 * 16)
