"""PURE. Flow matching: noise levels, mixtures, loss weights; draws come in as arguments.

Torch only. Notation of Esser et al. 2024 (arXiv 2403.03206): x_t = (1 - t) x_0 + t noise with t, here sigma, from
0 (picture) to 1 (noise); the model answers the velocity, noise - x_0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .objective import HuberSchedule

LEAST = 1e-3
"""The smallest noise level that is trained: below it some weights grow without limit."""


def mix(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """x_t on the straight line between picture and noise."""
    sigma = sigmas.to(latents.dtype).view(-1, *([1] * (latents.dim() - 1)))  # [b, 1, 1, 1]
    return (1.0 - sigma) * latents + sigma * noise  # [b, c, h, w]


def velocity(latents: Tensor, noise: Tensor) -> Tensor:
    """Where the line leads, the same at every level."""
    return noise - latents  # [b, c, h, w]


def logit_normal(normal: Tensor, mean: float, std: float) -> Tensor:
    """Levels of a normal draw (arXiv 2403.03206, section 3.1)."""
    return torch.sigmoid(mean + std * normal)


def mode(uniform: Tensor, scale: float) -> Tensor:
    """Levels of a uniform draw, denser in the middle for scales above 0 (arXiv 2403.03206, section 3.1)."""
    return 1.0 - uniform - scale * (torch.cos(math.pi / 2 * uniform).square() - 1.0 + uniform)


def shifted(sigmas: Tensor, shift: float) -> Tensor:
    """Levels moved towards noise, as pictures of more pixels need (arXiv 2403.03206, section 5.3.2)."""
    return shift * sigmas / (1.0 + (shift - 1.0) * sigmas)


def resolution_shift(tokens: int, low: tuple[int, float], high: tuple[int, float]) -> float:
    """FLUX's shift: its logarithm grows evenly with the picture's tokens, through two points."""
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return math.exp(low[1] + slope * (tokens - low[0]))


def sigma_sqrt_weight(sigmas: Tensor) -> Tensor:
    """1 / sigma squared."""
    return sigmas.clamp(min=LEAST).square().reciprocal()  # [b]


def cosmap_weight(sigmas: Tensor) -> Tensor:
    """The cosine schedule's density over levels (arXiv 2403.03206, section 3.1)."""
    return 2.0 / (math.pi * (1.0 - 2.0 * sigmas + 2.0 * sigmas.square()))  # [b]


def huber_threshold(sigmas: Tensor, c: float, schedule: HuberSchedule) -> Tensor:
    """As `objective.huber_threshold`: 1 without noise, `c` where there is nothing else. Signal to noise is (1/sigma - 1) squared."""
    if schedule == "constant":
        return torch.full_like(sigmas, c)  # [b]
    if schedule == "exponential":
        return torch.exp(sigmas * math.log(c))  # [b]
    return (1.0 - c) * (1.0 - sigmas).square() + c  # [b]
