"""How large a model family's real base is, in bytes: what a download and an adapter of it weigh. PURE.

What a step of it takes is in `data/`, traced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One family."""

    denoiser_bytes: float
    """Weights of the real one in fp16; a smaller base is cheaper in proportion."""
    hub_bytes: float
    """What a machine downloads for a base from a hub."""
    adapter_params_per_rank: int
    """All linear layers, and 1x1 convolutions, of the transformer blocks."""


COSTS: Mapping[str, Cost] = {
    "sd15": Cost(denoiser_bytes=1.72e9, hub_bytes=4.3e9, adapter_params_per_rank=423_936),
    "sd2": Cost(denoiser_bytes=1.73e9, hub_bytes=5.2e9, adapter_params_per_rank=432_128),
    "sdxl": Cost(denoiser_bytes=5.14e9, hub_bytes=13.9e9, adapter_params_per_rank=2_659_840),
    "sd3": Cost(denoiser_bytes=4.06e9, hub_bytes=15.5e9, adapter_params_per_rank=1_818_624),
    "sd35": Cost(denoiser_bytes=16.11e9, hub_bytes=27.9e9, adapter_params_per_rank=4_581_888),  # Large; Medium is 0.28 of it
    "flux": Cost(denoiser_bytes=23.8e9, hub_bytes=33.7e9, adapter_params_per_rank=5_369_856),
    "zimage": Cost(denoiser_bytes=12.31e9, hub_bytes=33.0e9, adapter_params_per_rank=2_980_352),
}


def cost_of(family: str) -> Cost:
    """The figures of a family; the largest one's for a family that has none yet."""
    return COSTS.get(family) or max(COSTS.values(), key=lambda cost: cost.denoiser_bytes)
