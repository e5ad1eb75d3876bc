"""What a model family takes: work, memory, bytes. A table for the estimate; every figure is an estimate unless it says measured.

PURE. FLOPs are counted by torch's FlopCounterMode on the real UNets for LoRA training; memory is the weights in
bf16 and what the backward pass keeps; seconds of the host are what published trainers need at batch 1 on any fast card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One family at its usual size in pixels; other sizes cost in proportion to their area."""

    side: int
    """Side of the square that the figures are for."""
    tflop_per_sample: float
    """Forward and backward, without gradient checkpointing."""
    checkpointing_factor: float = 1.35
    """Gradient checkpointing computes the forward pass twice."""
    host_s_per_step: float
    """The host cannot launch a step's kernels faster."""
    weights_gib: float
    """Denoiser in bf16, and the VAE."""
    encoders_gib: float
    """Text encoders in bf16; they stay on the card only while they are trained."""
    activations_gib: float
    """Kept for the backward pass, of one sample."""
    checkpointed_gib: float
    """The same with gradient checkpointing."""
    denoiser_bytes: float
    """Weights of the real one in fp16; a smaller base is cheaper in proportion."""
    hub_bytes: float
    """What a machine downloads for a base from a hub."""
    reading_gib: float = 0.0
    """Needed while captions are read, the largest encoder on the card and the denoiser not yet."""
    adapter_params_per_rank: int
    """All linear layers, and 1x1 convolutions, of the transformer blocks."""


COSTS: Mapping[str, Cost] = {
    "sd15": Cost(
        side=512,
        tflop_per_sample=1.72,  # 2.32 with checkpointing
        host_s_per_step=0.18,
        weights_gib=1.9,
        encoders_gib=0.25,
        activations_gib=0.80,
        checkpointed_gib=0.15,
        denoiser_bytes=1.72e9,
        hub_bytes=4.3e9,
        adapter_params_per_rank=423_936,
    ),
    "sd2": Cost(
        side=512,
        tflop_per_sample=1.72,  # its forward pass was counted within one per cent of SD1.5's
        host_s_per_step=0.18,
        weights_gib=1.9,
        encoders_gib=0.65,
        activations_gib=0.80,
        checkpointed_gib=0.15,
        denoiser_bytes=1.73e9,
        hub_bytes=5.2e9,
        adapter_params_per_rank=432_128,
    ),
    "sdxl": Cost(
        side=1024,
        tflop_per_sample=14.19,  # 19.34 with checkpointing
        host_s_per_step=0.60,
        weights_gib=5.1,
        encoders_gib=1.55,
        activations_gib=6.2,  # so that batch 1 at rank 16 comes to the 13 GiB that were published
        checkpointed_gib=0.60,
        denoiser_bytes=5.14e9,
        hub_bytes=13.9e9,
        adapter_params_per_rank=2_659_840,
    ),
    # Flow models: FLOPs of a forward pass counted as above, times 2.2; activations worked out from the layers' widths.
    "sd3": Cost(
        side=1024,
        tflop_per_sample=19.0,
        checkpointing_factor=1.45,
        host_s_per_step=0.30,
        weights_gib=4.2,
        encoders_gib=1.55,
        activations_gib=5.1,
        checkpointed_gib=0.60,
        denoiser_bytes=4.06e9,
        hub_bytes=15.5e9,
        reading_gib=9.2,
        adapter_params_per_rank=1_818_624,
    ),
    "sd35": Cost(  # Large; Medium is 0.28 of it
        side=1024,
        tflop_per_sample=66.5,
        checkpointing_factor=1.45,
        host_s_per_step=0.45,
        weights_gib=15.4,
        encoders_gib=1.55,
        activations_gib=12.7,
        checkpointed_gib=1.2,
        denoiser_bytes=16.11e9,
        hub_bytes=27.9e9,
        reading_gib=9.2,
        adapter_params_per_rank=4_581_888,
    ),
    "flux": Cost(
        side=1024,
        tflop_per_sample=163.6,
        checkpointing_factor=1.45,
        host_s_per_step=0.55,
        weights_gib=22.5,
        encoders_gib=0.25,
        activations_gib=20.5,
        checkpointed_gib=2.0,
        denoiser_bytes=23.8e9,
        hub_bytes=33.7e9,
        reading_gib=9.2,
        adapter_params_per_rank=5_369_856,
    ),
    "zimage": Cost(
        side=1024,
        tflop_per_sample=134.0,
        checkpointing_factor=1.45,
        host_s_per_step=0.40,
        weights_gib=11.8,
        encoders_gib=0.0,
        activations_gib=16.8,
        checkpointed_gib=1.6,
        denoiser_bytes=12.31e9,
        hub_bytes=33.0e9,
        reading_gib=7.8,
        adapter_params_per_rank=2_980_352,
    ),
}


def cost_of(family: str) -> Cost:
    """The figures of a family; the dearest one's for a family that has none yet."""
    return COSTS.get(family) or max(COSTS.values(), key=lambda cost: cost.tflop_per_sample)
