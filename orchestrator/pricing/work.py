"""What there is to do, as an estimate sees it: one job, and the whole queue with what has to be there for it. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .gpus import gpu
from .needs import Bucket, Freedom, JobShape, Memory, memory, reading_bytes, step_time

SMALLEST_SCALE = 1e-6
"""Of a base, against its family's real one; a toy may weigh next to nothing, but not nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One job as the estimate sees it."""

    name: str
    family: str = "sd15"
    steps: int
    images: int
    batch_size: int
    gradient_accumulation: int
    resolution: int
    rank: int
    gradient_checkpointing: bool
    trains_text: bool = False
    saves: int
    samples: int
    dataset_bytes: int
    optimizer: str = "AdamW8bit"
    mixed_precision: str = "bf16"
    layers: str = "kohya"
    conv_rank: int | None = None
    ema: bool = False
    base_precision: str = "full"
    offload: float = 0.0
    """Share of the base that waits in main memory."""
    recorded: bool = True
    """Whether its passes can be recorded and replayed on a card."""
    buckets: tuple[Bucket, ...] = ()
    """Sizes of pictures and how many there are of each; none are known: all are squares of `resolution`."""
    may: tuple[Freedom, ...] = ()
    """What a plan may change of it, so that it fits a card or is done sooner."""

    @property
    def samples_trained(self) -> int:
        """Pictures that go through the model."""
        return self.steps * self.batch_size * self.gradient_accumulation


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The whole queue and what has to be there for it."""

    jobs: tuple[Work, ...]
    upload_bytes: int
    """Datasets, trainer and bases that lie on this computer."""
    hub_bytes: float
    """Bases that the machine fetches by itself."""
    base_scale: float
    """Size of the base against its family's real one: 1 for that, less for a toy."""
    download_bytes: int
    """Adapters, checkpoints and samples that come home."""


def shape_of(work: Work, scale: float) -> JobShape:
    """The job as memory and time see it."""
    assert work.mixed_precision in {"no", "bf16", "fp16"}, work.mixed_precision
    assert work.base_precision in {"full", "fp8", "int8", "nf4"}, work.base_precision
    return JobShape(
        family=work.family,
        buckets=work.buckets or (Bucket(width=work.resolution, height=work.resolution),),
        batch=work.batch_size,
        accumulation=work.gradient_accumulation,
        rank=work.rank,
        layers="attention" if work.layers == "attention" else "kohya",
        conv_rank=work.conv_rank,
        trains_text=work.trains_text,
        precision=work.mixed_precision,  # type: ignore[arg-type]  # one of them, as was just seen; so is the base's
        optimizer=work.optimizer,
        ema=work.ema,
        checkpointing=work.gradient_checkpointing,
        base=work.base_precision,  # type: ignore[arg-type]
        offload=work.offload,
        recorded=work.recorded,
        samples=work.samples > 0,
        scale=max(scale, SMALLEST_SCALE),
    )


def memory_of(load: Load) -> Memory:
    """Peak of the job that needs most, by its parts."""
    return max((needs_of(shape_of(work, load.base_scale)) for work in load.jobs), key=lambda one: one.total)


@lru_cache(maxsize=1024)
def needs_of(shape: JobShape) -> Memory:
    """`memory`, worked out once for each shape: a market has thousands of offers and a dozen cards."""
    return memory(shape)


def vram_bytes(load: Load) -> int:
    """Predicted peak of the queue on a card, in bytes: while it trains, or before, while captions are read."""
    training = memory_of(load)
    return max(training.total, *(reading_total(work.family, training.context, load.base_scale) for work in load.jobs))


def reading_total(family: str, context: int, scale: float) -> int:
    """What is needed while captions are read, CUDA's own `context` included."""
    return int(reading_bytes(family) * min(1.0, scale)) + context


def step_seconds(work: Work, gpu_name: str, base_scale: float) -> float:
    """Seconds of one optimizer step."""
    return step_time(shape_of(work, base_scale), gpu(gpu_name)).p50
