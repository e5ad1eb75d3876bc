"""Time of a step on a card, from traced kernels and the card's table. PURE.

    on the card = sum over classes of kernels of max(arithmetic / (share x peak), bytes / (share x bandwidth), launches x floor)
    on the host = launches x what one launch takes there; next to nothing where passes are recorded and replayed
    step        = the larger of the two, smoothly, x passes + the update

The shares of a card's peak are what well-made training reaches on it (Williams et al. 2009 for the roof; the shares are fitted once to
published trainings, see `docs/estimates.md`). A class of kernels whose roof is the card's bandwidth gains nothing from more arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping

from .footprint import adapter_params, base_of, way_of
from .gpus import Gpu
from .shapes import UNCORRECTED, Bound, Bucket, Correction, JobShape, StepTime
from .traced import MEGAPIXEL, Traced, value

SHARES: Mapping[str, float] = {"product": 0.62, "convolution": 0.50, "attention": 0.42, "movement": 0.0}
"""Of a card's peak that kernels of a class reach when they are not waiting for memory."""
BANDWIDTH_SHARE = 0.75
LARGE_CARD_TFLOPS, LARGE_CARD_SHARE = 500.0, 0.72
"""The fastest cards are harder to keep busy: batch 1 gives their many cores too little."""
FLOOR_S = 3e-6
"""No kernel takes less."""
EAGER_S = 46e-6
"""ASSUMED for a usual host: launching one kernel from Python, forward and backward averaged; 20 to 70 microseconds are published."""
RECORDED_S = 1.2e-6
"""ASSUMED: the same within a recording."""
EAGER_UPDATE_LAUNCHES = 40
"""Clipping and the optimizer, which are never recorded: a job's weights are a few long vectors."""
SMOOTH = 4
"""Two ways of being slow add up a little where they are equal: by 19 %."""
UNPACKED_BYTES: Mapping[str, float] = {"fp8": 7.0, "int8": 3.0, "nf4": 2.5}
"""Moved for each packed weight whenever it is unpacked: read packed, written whole, what lies between."""
HOST_LINK_BYTES_S = 12e9
"""ASSUMED: from main memory to the card."""
UPDATE_BYTES = 28.0
"""Moved for each trained weight by clipping, optimizer, cast and gradient."""
WIDE_SHARE = 0.25
"""Of the peak in bf16 that fp32 reaches (TF32 is not asked for)."""


def step_time(shape: JobShape, card: Gpu, correction: Correction = UNCORRECTED) -> StepTime:
    """Seconds of one optimizer step of every job in the pass, all buckets weighed."""
    base, scale = base_of(shape)
    samples = sum(bucket.count for bucket in shape.buckets)
    totals = {"compute": 0.0, "bandwidth": 0.0}
    for bucket in shape.buckets:
        for waits_for, seconds in _pass_s(shape, bucket, base, card, correction).items():
            totals[waits_for] += scale * seconds * bucket.count / samples * shape.passes
    totals["bandwidth"] += adapter_params(shape) * shape.jobs * UPDATE_BYTES / _bandwidth(card) * correction.bandwidth
    moving = totals["compute"] + totals["bandwidth"]
    waiting = host_s(shape, base) * correction.host
    middle = (moving**SMOOTH + waiting**SMOOTH) ** (1 / SMOOTH) * correction.step
    bound: Bound = "host" if waiting > moving else "compute" if totals["compute"] > totals["bandwidth"] else "bandwidth"
    return StepTime(p10=middle * correction.low, p50=middle, p90=middle * correction.high, bound=bound)


def launches(shape: JobShape, base: Traced) -> float:
    """Kernels of one pass."""
    count = float(way_of(shape, base).launches)
    if shape.layers == "attention":
        count *= base.attention["kernels"]
    if shape.jobs > 1:
        count *= base.joint["kernels"]
    if shape.trains_text and base.text is not None:
        count += base.text["kernels"]
    return count


def host_s(shape: JobShape, base: Traced, eager_s: float = EAGER_S) -> float:
    """What the host needs to launch a step."""
    each = RECORDED_S if shape.recorded and shape.offload == 0 else eager_s
    return (launches(shape, base) * each) * shape.passes + EAGER_UPDATE_LAUNCHES * shape.jobs * eager_s


def _pass_s(shape: JobShape, bucket: Bucket, base: Traced, card: Gpu, correction: Correction) -> Mapping[str, float]:
    """One pass of one bucket on the card, by what each class of kernels waits for."""
    rows, megapixels = shape.rows * shape.jobs, bucket.pixels / MEGAPIXEL
    found = {"compute": 0.0, "bandwidth": 0.0}
    wide = shape.precision == "no"
    for kernels in way_of(shape, base).kernels:
        reached = SHARES[kernels.kind] * reach(card) * (WIDE_SHARE if wide else 1.0)
        work = value(kernels.flops, rows, megapixels, shape.rank)
        moved = value(kernels.bytes, rows, megapixels, shape.rank) * (2 if wide else 1)
        computing = work / reached * correction.compute if work else 0.0
        moving = max(moved / _bandwidth(card) * correction.bandwidth, kernels.count * FLOOR_S)
        found["compute" if computing > moving else "bandwidth"] += max(computing, moving)
    if shape.layers == "attention":
        found["bandwidth"] *= base.attention["bytes"]
        found["compute"] *= base.attention["flops"]
    if shape.trains_text and base.text is not None:
        found["compute"] += base.text["flops"] * rows / (SHARES["product"] * reach(card)) * correction.compute
    times = 3 if shape.checkpointing or shape.offload else 2
    if shape.base != "full":
        found["bandwidth"] += times * base.linear * UNPACKED_BYTES[shape.base] / _bandwidth(card) * correction.bandwidth
    if shape.offload:
        brought = shape.offload * base.denoiser * 2.0 * 2 / HOST_LINK_BYTES_S
        found["bandwidth"] += max(0.0, brought - found["compute"] - found["bandwidth"])  # copies run beside the arithmetic
    return found


def reach(card: Gpu) -> float:
    """Operations a second that are in reach before a class's own share."""
    reach = LARGE_CARD_SHARE if card.peak_tflops >= LARGE_CARD_TFLOPS else 1.0
    return card.peak_tflops * 1e12 * reach


def _bandwidth(card: Gpu) -> float:
    return card.bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE
