"""What is measured on a GPU, and how: a family at its real size, some steps of the trainer's own loop, seconds and memory.

Weights are random and so are pictures and captions: they cost what real ones cost, and nothing has to be fetched.
"""

from __future__ import annotations

import gc
import importlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests import tiny
from trainer import families, loop, optimizers, parts, replay
from trainer.adapters import Adapter
from trainer.base import Base, inspect_base
from trainer.buckets import Plan
from trainer.contract import Condition, Foundation
from trainer.families import plugin
from trainer.families.model import Model
from trainer.protocol import JobSpec

CONDITIONS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "sd15": {"text": (77, 768)},
    "sd2": {"text": (77, 1024)},
    "sdxl": {"text": (77, 768), "text_2": (77, 1280), "pooled": (1280,), "time_ids": (6,)},
    "sd3": {"text": (77, 768), "pooled": (768,), "text_2": (77, 1280), "pooled_2": (1280,), "text_3": (154, 4096)},
    "sd35": {"text": (77, 768), "pooled": (768,), "text_2": (77, 1280), "pooled_2": (1280,), "text_3": (154, 4096)},
    "flux": {"text": (512, 4096), "pooled": (768,)},
    "zimage": {"text": (128, 2560), "worded": (128,)},
}
"""What one caption is to each family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of measurements."""

    family: str
    side: int
    batch: int = 1
    rank: int = 16
    optimizer: str = "AdamW"
    base_precision: str = "full"
    speed: str = "eager"
    checkpointing: bool = False
    offload: float = 0.0

    @property
    def name(self) -> str:
        """In a few words."""
        more = [self.optimizer, self.base_precision, self.speed]
        more += ["checkpointing"] if self.checkpointing else []
        more += [f"offload {self.offload:g}"] if self.offload else []
        return f"{self.family} {self.side} b{self.batch} {' '.join(more)}"


SIDES = {"sd15": 512, "sd2": 768, "sdxl": 1024, "sd3": 1024, "sd35": 1024, "flux": 1024, "zimage": 1024}
LARGE = ("sd35", "flux", "zimage")
"""Trained with gradient checkpointing on most cards."""


def cases(family: str) -> list[Case]:
    """A family's: plain, recorded, compiled, with smaller states, on a smaller base, out of the way, and four pictures at a time."""
    plain = Case(family=family, side=SIDES[family], checkpointing=family in LARGE)
    stored = [replace(plain, base_precision=storage, checkpointing=True) for storage in ("fp8", "int8", "nf4")]
    taped = replace(plain, speed="graphs")
    more = [replace(taped, optimizer="AdamW8bit"), replace(plain, speed="compile"), replace(taped, batch=4, checkpointing=family != "sd15")]
    return [plain, taped, *more, replace(plain, checkpointing=True, offload=1.0), *stored, replace(stored[-1], speed="graphs")]


@dataclass(slots=True)
class Bench:
    """A base that is loaded for measuring."""

    model: Model
    condition: Condition
    """One caption's."""
    channels: int
    compressed: int = 8
    """Pixels a side that make one latent."""


def real(case: Case, device: torch.device) -> Bench:
    """A family at its real size; the VAE and the encoders are left out, for what they say is random."""
    family, before = plugin(case.family), torch.get_default_dtype()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    part = family.parts[0]
    library, _, kind = family.components[part].rpartition(".")
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(dtype)
        with device:
            denoiser = getattr(importlib.import_module(library), kind).from_config(dict(family.real[part]))
    finally:
        torch.set_default_dtype(before)
    made: dict[str, Any] = {name: nn.Linear(1, 1) for name in ("vae", *family.encoders)}
    made |= {part: denoiser, "scheduler": SimpleNamespace(config=dict(family.real["scheduler"]))}
    base = Base(kind="hub", location=f"random/{case.family}", family=case.family)
    prediction = "epsilon" if case.family == "sd2" else None
    foundation = Foundation(family=case.family, base=base, dtype=dtype, base_precision=case.base_precision, prediction=prediction)
    model = Model(family, made, family.process(made, foundation, device), device, foundation)
    return Bench(
        model, {name: _said(name, shape) for name, shape in CONDITIONS[case.family].items()}, family.real["vae"]["latent_channels"]
    )


def _said(name: str, shape: tuple[int, ...]) -> Tensor:
    if name == "worded":
        return torch.ones(shape, dtype=torch.bool)
    if name == "time_ids":
        return torch.tensor([1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0])
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def small(case: Case, device: torch.device) -> Bench:
    """The same of a tiny model, so that the script is proven where there is no GPU."""
    with tempfile.TemporaryDirectory() as folder:
        getattr(tiny, case.family)(Path(folder) / "base")
        base = inspect_base("base", Path(folder))
        model: Model = families.load(
            Foundation(family=case.family, base=base, dtype=torch.float32, base_precision=case.base_precision), device
        )
    condition = model.encode_text("a photo of dog", _job(case))
    condition |= {name: _said(name, (6,)) for name in ("time_ids",) if case.family == "sdxl"}
    return Bench(model, condition, model.parts["vae"].config.latent_channels)


def _job(case: Case) -> JobSpec:
    return JobSpec(
        name="measured",
        family=case.family,
        base="none",
        dataset="none",
        output="none",
        steps=100_000,
        batch_size=case.batch,
        rank=case.rank,
        optimizer=case.optimizer,
        max_bucket=1024,
        resolution=case.side,
        min_bucket=64,
        gradient_checkpointing=case.checkpointing,
        seed=1,
    )


def lane_on(bench: Bench, case: Case, *, speed: str) -> loop.Lane:
    """A job over eight random pictures of one size, ready for its first step."""
    model, job = bench.model, _job(case)
    rates = parts.rates_of(job)
    targets = model.targets(list(rates))
    model.prepare(targets, checkpointing=case.checkpointing, offload=case.offload, speed=speed)
    if speed == "graphs" and model.device.type == "cpu":
        model.passes.capture = lambda work: work  # stands for a recording, which a CPU cannot make
    shape = (bench.channels, case.side // bench.compressed, case.side // bench.compressed)
    pictures = torch.randn(8, *shape, generator=torch.Generator().manual_seed(2))
    data = loop.Data(
        shapes=[shape] * 8,
        repeats=[1] * 8,
        latents=lambda index, _way: pictures[index],
        condition=lambda _caption: bench.condition,
        captions=[("",)] * 8,
    )
    per_epoch = 8 // case.batch
    plan = Plan(images=8, batches_per_epoch=per_epoch, steps_per_epoch=per_epoch, steps=job.steps or 0, epochs=100_000 // per_epoch)
    adapter = Adapter.create(targets, job.rank, job.scale, job.seed, model.device)
    optimizer, _ = optimizers.create(job, adapter)
    return loop.Lane(job, plan, data, adapter, optimizer, rates, optimizers.LossScale(enabled=False))


WARM = replay.WARM + 3
"""Steps before the clock runs: kernels are chosen, a recording made and tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a case came to."""

    losses: list[float]
    s_per_step: float
    peak_gib: float | None
    notes: list[str]
    recorded: bool


def measure(bench: Bench, case: Case, steps: int) -> Measured:
    """Take so many steps by the clock, after those that warm it up."""
    model = bench.model
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    lane = lane_on(bench, case, speed=case.speed)
    losses = [_stepped(model, lane) for _ in range(WARM)]
    began = _now(on_gpu)
    losses += [_stepped(model, lane) for _ in range(steps)]
    seconds = (_now(on_gpu) - began) / steps
    peak = torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None
    recorded = any(one.believed for one in model.passes._made.values())
    measured = Measured(losses=losses, s_per_step=seconds, peak_gib=peak, notes=list(lane.warnings), recorded=recorded)
    model.prepare([], checkpointing=False)
    return measured


def _stepped(model: Model, lane: loop.Lane) -> float:
    (one,) = loop.step(model, [lane])
    if one.error is not None:
        raise one.error
    return one.loss


def _now(on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()
