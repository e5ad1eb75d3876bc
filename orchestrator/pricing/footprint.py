"""Peak of a job's memory on a card, by its parts, from traced forms. PURE.

    peak = weights + what the forward pass keeps + adapter, optimizer and waiting gradients + the highest of what comes and goes
         + CUDA's own + what the allocator holds in vain

What is kept and what comes and goes are forms of `data/`; weights and states are counted; the last two are constants, the same for all
cards and families, and the only figures here that no trace gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from .shapes import JobShape, Memory
from .traced import MEGAPIXEL, Pass, Traced, traced, value

GIB = 1024**3
CONTEXT_BYTES = int(0.45 * GIB)
"""CUDA's context, loaded kernels, workspaces of matrix products and convolutions; 0.3 to 0.5 GiB are published."""
FRAGMENTATION = 0.05
"""Share of what is kept and of what comes and goes."""
WEIGHT_BYTES: Mapping[str, float] = {"fp8": 1.0, "int8": 1.0, "nf4": 0.5625}
"""Of a linear layer's weight when it is stored so, scales counted in (`trainer/quantised.py`)."""
STATE_BYTES: Mapping[str, float] = {
    "AdamW8bit": 2.03, "PagedAdamW8bit": 2.03, "Lion8bit": 1.02, "PagedLion8bit": 1.02, "Lion": 4.0, "PagedLion": 4.0, "SGD": 4.0,
    "AdamWBF16": 4.0, "Adafactor": 0.1, "Prodigy": 16.0,
}  # fmt: skip
"""Of an optimizer for each trained weight, where it is not 8: two states in fp32."""
ENDING_BYTES = 10.0
"""For each trained weight when the backward pass ends and what was kept has gone: pieces of the gradient and their whole in the pass's
precision, the gradient in fp32, the weights in the pass's precision."""
BLOCKS = 28
"""A model's repeated blocks, about: one that waits elsewhere comes to the card while it is used, and the next meanwhile."""
LARGE_SHARE = (0.2, 0.4)
"""Of the family's real size: SD3.5 Medium is 0.28 of Large."""
TEXT_RANK = 16.0
"""At which the training of text encoders was traced."""


def base_of(shape: JobShape) -> tuple[Traced, float]:
    """The traced base that a job's is like, and its size over that one's."""
    if shape.family == "sd35" and (shape.variant == "medium" or LARGE_SHARE[0] <= shape.scale <= LARGE_SHARE[1]):
        medium = traced("sd35", "medium")
        return medium, 1.0 if shape.variant else shape.scale * traced("sd35").denoiser / medium.denoiser
    return traced(shape.family, shape.variant), shape.scale


def adapter_params(shape: JobShape) -> int:
    """Trained weights of one job."""
    if shape.adapter_params is not None:
        return shape.adapter_params
    base, scale = base_of(shape)
    at_rank_1 = base.adapter[shape.layers] + (base.adapter["text"] if shape.trains_text else 0)
    return int((shape.rank * at_rank_1 + (shape.conv_rank or 0) * base.adapter["convolutions"]) * scale)


def way_of(shape: JobShape, base: Traced) -> Pass:
    """Which of the traced passes the job takes; blocks that wait in main memory are computed twice."""
    return base.checkpointed if shape.checkpointing or shape.offload > 0 else base.plain


def memory(shape: JobShape) -> Memory:
    """The peak, whatever the card."""
    base, scale = base_of(shape)
    wide = 2.0 if shape.precision == "no" else 1.0  # forms are of two bytes a number
    kept, passing = (int(scale * wide * one) for one in _in_pass(shape, base))
    params = adapter_params(shape) * shape.jobs
    resting = _resting_bytes(shape, base)
    weights = int(scale * (_denoiser_bytes(shape, base) + resting))
    transient = max(passing + int(scale * _unpacked_bytes(shape, base)), int(params * ENDING_BYTES) - kept)
    parts: dict[Literal["weights", "activations", "adapter", "optimizer", "gradients", "transient", "context", "fragmentation"], int] = {
        "weights": weights,
        "activations": kept,
        "adapter": int(params * (8 if shape.ema else 4)),
        "optimizer": int(params * STATE_BYTES.get(shape.optimizer, 8.0)),
        "gradients": 4 * params if shape.passes > 1 else 0,
        "transient": transient,
        "context": CONTEXT_BYTES,
        "fragmentation": int(FRAGMENTATION * (kept + transient)),
    }
    there = weights + parts["adapter"] + parts["optimizer"]
    return Memory(**parts, aside=max(reading_bytes(shape), _drawing_bytes(shape, base, scale, there)))


def _in_pass(shape: JobShape, base: Traced) -> tuple[float, float]:
    """Bytes kept by the forward pass, and bytes beyond them at the highest, of the largest bucket."""
    way, rows, megapixels = way_of(shape, base), shape.rows * shape.jobs, shape.largest.pixels / MEGAPIXEL
    rank = (adapter_params(shape) / (base.adapter["kohya"] * shape.scale)) if shape.adapter_params is not None else float(shape.rank)
    kept = value(way.kept, rows, megapixels, rank) + way.kept[4] * rank * (shape.jobs - 1)  # each job's weights in the pass's precision
    passing = value(way.peak, rows, megapixels, TEXT_RANK) - value(way.kept, rows, megapixels, TEXT_RANK)
    if shape.layers == "attention":
        kept *= base.attention["kept"]
    if shape.trains_text and base.text is not None:
        kept += base.text["kept"] * rows
    return max(kept, 0.0), max(passing, 0.0)


def _denoiser_bytes(shape: JobShape, base: Traced) -> float:
    """What of the denoiser lies on the card."""
    whole = 4.0 if shape.precision == "no" else 2.0
    packed = WEIGHT_BYTES.get(shape.base, whole)
    all_of_it = base.linear * packed + (base.denoiser - base.linear) * whole
    in_use = min(1.0, 2 / BLOCKS) if shape.offload else 0.0
    return all_of_it * (1 - shape.offload + shape.offload * in_use)


def _resting_bytes(shape: JobShape, base: Traced) -> float:
    """Encoders, where they are trained."""
    if not shape.trains_text:
        return 0.0
    trained = [size for part, size in base.encoders.items() if size < 1e9]  # T5 and its like are never trained
    return sum(trained) * (4.0 if shape.precision == "no" else 2.0)


def _unpacked_bytes(shape: JobShape, base: Traced) -> float:
    """A packed layer is made whole while it is used: about a sixth of a block's weights at once."""
    return 0.0 if shape.base == "full" else 4.0 * base.linear / BLOCKS / 6


def reading_bytes(shape: JobShape | str) -> int:
    """Before the denoiser comes: all text encoders, and the autoencoder in fp32 with a picture."""
    known = traced(shape) if isinstance(shape, str) else base_of(shape)[0]
    scale, megapixels = (1.0, 1.0) if isinstance(shape, str) else (min(1.0, base_of(shape)[1]), shape.largest.pixels / MEGAPIXEL)
    encoders = 2.0 * sum(known.encoders.values())
    return int(scale * (max(encoders, _at(known.vae["encode_peak"], megapixels)) + 4.0 * known.autoencoder)) + CONTEXT_BYTES


def _drawing_bytes(shape: JobShape, base: Traced, scale: float, there: int) -> int:
    """While a picture is decoded: all that waits, and the autoencoder in fp32."""
    if not shape.samples:
        return 0
    return there + int(scale * (4.0 * base.autoencoder + _at(base.vae["decode_peak"], shape.largest.pixels / MEGAPIXEL))) + CONTEXT_BYTES


def _at(form: tuple[float, ...], megapixels: float) -> float:
    return form[0] + form[1] * megapixels + form[2] * megapixels**2
