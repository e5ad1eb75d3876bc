"""What a training asks of a card: memory by its parts, the time of a step, and the fastest setting that fits.

PURE. The nouns here are the contract between what is known of models and cards and whoever plans with it; the figures come from
`families.py` and `gpus.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

from .families import cost_of
from .gpus import Gpu

GIB = 1024**3
Precision = Literal["no", "bf16", "fp16"]
Weights = Literal["full", "fp8", "int8", "nf4"]
"""How the frozen base lies on the card; `full` is in the job's own precision."""
Bound = Literal["compute", "bandwidth", "host"]
"""What a step waits for most."""
Freedom = Literal["checkpointing", "micro", "fp8", "int8", "nf4", "offload"]
"""What `fit` may change. The first two leave the result as it is, to rounding; the others change the base's precision or its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One size of pictures, and how many of an epoch's samples have it."""

    width: int
    height: int
    count: int = 1

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True, slots=True, kw_only=True)
class JobShape:
    """A job as memory and time see it."""

    family: str
    variant: str = ""
    """Which of a family's sizes, as "medium" of sd35; empty is its largest."""
    buckets: tuple[Bucket, ...]
    batch: int = 1
    micro: int | None = None
    """Rows in one pass, where a batch is cut into several; None: all of them."""
    accumulation: int = 1
    rank: int = 16
    layers: Literal["kohya", "attention"] = "kohya"
    conv_rank: int | None = None
    trains_text: bool = False
    adapter_params: int | None = None
    """Trained weights, where it is known better than from rank and layers."""
    precision: Precision = "bf16"
    optimizer: str = "AdamW8bit"
    ema: bool = False
    checkpointing: bool = False
    base: Weights = "full"
    offload: float = 0.0
    """Share of the denoiser's weights that waits in main memory."""
    jobs: int = 1
    """Jobs of this shape that share one pass on one base."""
    samples: bool = False
    """Whether pictures are drawn meanwhile."""
    text_tokens: int | None = None
    """Tokens that are told to the model; None is the family's usual."""
    scale: float = 1.0
    """Size of the base over its family's real one: less than 1 for a toy."""

    def __post_init__(self) -> None:
        if not self.buckets or self.batch < 1 or self.jobs < 1 or self.rank < 1 or not 0 <= self.offload <= 1 or self.scale <= 0:
            raise ValueError(f"no such job: {self}")

    @property
    def rows(self) -> int:
        """Pictures of each job in one pass."""
        return min(self.micro or self.batch, self.batch)

    @property
    def passes(self) -> int:
        """Forward passes of one optimizer step."""
        return -(-self.batch // self.rows) * self.accumulation

    @property
    def largest(self) -> Bucket:
        """The bucket that memory must do for."""
        return max(self.buckets, key=lambda bucket: bucket.pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak of a job's memory on the card by what it is for, in bytes."""

    weights: int
    """The frozen base, and text encoders where they are trained."""
    activations: int
    """Kept from the forward for the backward pass."""
    adapter: int
    """Trained weights in fp32, and their copy in the precision of the pass."""
    optimizer: int
    gradients: int
    transient: int
    """What comes and goes within a pass, at its highest."""
    context: int
    """CUDA itself and its libraries' workspaces."""
    fragmentation: int
    """Held by the allocator and used by nobody."""

    @property
    def total(self) -> int:
        """The peak."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What is known of one card and host beyond the tables: factors upon what was predicted, 1 where nothing is."""

    compute: float = 1.0
    """Time of matrix products and convolutions."""
    bandwidth: float = 1.0
    """Time of everything that only moves bytes."""
    host: float = 1.0
    """Time to launch a kernel."""
    step: float = 1.0
    """Whole steps: what measured ones took over what was predicted with the other three."""
    low: float = 0.8
    """P10 over P50."""
    high: float = 1.35
    """P90 over P50."""


UNCORRECTED = Correction()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step of every job in the pass, all buckets weighed."""

    p10: float
    p50: float
    p90: float
    bound: Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A setting that fits a card."""

    shape: JobShape
    changed: tuple[str, ...]
    """What was changed to make it fit, in words; empty where it fits as it was asked for."""
    memory: Memory
    step: StepTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that could be done about a job, with what it does."""

    words: str
    shape: JobShape
    memory: Memory
    step: StepTime


def memory(shape: JobShape) -> Memory:
    """Peak of the job's memory, whatever the card."""
    cost = cost_of(shape.family)
    saved = cost.checkpointed_gib if shape.checkpointing else cost.activations_gib
    params = adapter_params(shape)
    return Memory(
        weights=int((cost.weights_gib + (cost.encoders_gib if shape.trains_text else 0)) * max(shape.scale, 0.02) * GIB),
        activations=int(saved * shape.largest.pixels / cost.side**2 * shape.rows * shape.jobs * max(shape.scale, 0.02) * GIB),
        adapter=4 * params * shape.jobs,
        optimizer=8 * params * shape.jobs,
        gradients=4 * params * shape.jobs,
        transient=0,
        context=int(0.9 * GIB),
        fragmentation=0,
    )


def reading_bytes(family: str) -> int:
    """What is needed before the denoiser comes: the largest text encoder while captions are read."""
    return int(cost_of(family).reading_gib * GIB)


def adapter_params(shape: JobShape) -> int:
    """Trained weights of one job."""
    if shape.adapter_params is not None:
        return shape.adapter_params
    return int(shape.rank * cost_of(shape.family).adapter_params_per_rank * shape.scale)


def step_time(shape: JobShape, card: Gpu, correction: Correction = UNCORRECTED) -> StepTime:
    """Time of one optimizer step on a card."""
    cost = cost_of(shape.family)
    samples = sum(bucket.count for bucket in shape.buckets)
    pixels = sum(bucket.pixels * bucket.count for bucket in shape.buckets) / samples
    tflop = cost.tflop_per_sample * pixels / cost.side**2 * shape.rows * shape.jobs * shape.scale
    tflop *= cost.checkpointing_factor if shape.checkpointing else 1.0
    on_card = tflop / (0.2 * card.peak_tflops) * correction.compute
    on_host = cost.host_s_per_step * correction.host
    middle = max(on_card, on_host) * shape.passes * correction.step
    bound: Bound = "compute" if on_card > on_host else "host"
    return StepTime(p10=middle * correction.low, p50=middle, p90=middle * correction.high, bound=bound)


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
