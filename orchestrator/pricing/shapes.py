"""The nouns of memory and time: a job's shape, its memory by parts, the time of a step, what is known of a machine. PURE."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

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
    recorded: bool = True
    """Whether passes are recorded and replayed, which spares the host the launching."""
    samples: bool = False
    """Whether pictures are drawn meanwhile."""
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
    """Where a step has several passes and they wait from one to the next; else they come when activations have gone."""
    transient: int
    """What comes and goes within a pass, at its highest."""
    context: int
    """CUDA itself and its libraries' workspaces."""
    fragmentation: int
    """Held by the allocator and used by nobody."""
    aside: int = 0
    """The most that is needed at another time: while pictures are encoded, captions read, samples drawn."""

    @property
    def total(self) -> int:
        """The peak."""
        return max(self.aside, sum(int(getattr(self, part.name)) for part in fields(self) if part.name != "aside"))


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
