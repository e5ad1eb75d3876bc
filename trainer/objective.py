"""PURE. Noise schedules, targets and loss weights; noise and timesteps come in as arguments.

Torch only. Knows nothing of models, files or randomness, so that every line can be checked by hand.
Notation of Ho et al. 2020 (arXiv 2006.11239): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor

Prediction = Literal["epsilon", "v"]
LossType = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]


def scaled_linear_betas(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> Tensor:
    """Stable Diffusion's betas: linear in their square roots (Rombach et al. 2022, LDM `make_beta_schedule`)."""
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2  # [T]


def linear_betas(start: float, end: float, steps: int) -> Tensor:
    """Ho et al. 2020, section 4."""
    return torch.linspace(start, end, steps, dtype=torch.float32)  # [T]


def alphas_cumprod(betas: Tensor) -> Tensor:
    """abar_t, the share of signal left at t."""
    return torch.cumprod(1.0 - betas, dim=0)  # [T]


def with_zero_terminal_snr(abar: Tensor) -> Tensor:
    """The curve stretched so that its last step holds no signal (Lin et al. 2023, arXiv 2305.08891, algorithm 1)."""
    root = abar.sqrt()
    first, last = root[0], root[-1]
    return ((root - last) * first / (first - last)).square()  # [T]


def add_noise(latents: Tensor, noise: Tensor, abar: Tensor, timesteps: Tensor) -> Tensor:
    """x_t by equation 4 of Ho et al. 2020."""
    signal, share = _at(abar, timesteps, latents)
    return signal * latents + share * noise  # [b, c, h, w]


def target(latents: Tensor, noise: Tensor, abar: Tensor, timesteps: Tensor, prediction: Prediction) -> Tensor:
    """What the model should say: the noise, or v of Salimans & Ho 2022 (arXiv 2202.00512, appendix D)."""
    if prediction == "epsilon":
        return noise
    signal, share = _at(abar, timesteps, latents)
    return signal * noise - share * latents  # [b, c, h, w]


def offset_noise(noise: Tensor, shift: Tensor, strength: float) -> Tensor:
    """A constant per sample and channel on top of the noise (Guttenberg 2023, "Diffusion with Offset Noise")."""
    return noise + strength * shift  # [b, c, h, w] + [b, c, 1, 1]


def snr(abar: Tensor, timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio abar / (1 - abar)."""
    at = abar[timesteps]
    return at / (1.0 - at)  # [b]


def min_snr_weight(abar: Tensor, timesteps: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Hang et al. 2023 (arXiv 2303.09556, section 3.4): min(snr, gamma) / snr for epsilon, / (snr + 1) for v."""
    ratio = snr(abar, timesteps)
    if prediction == "epsilon":
        return (gamma / ratio).clamp(max=1.0)  # [b]; 1 also where there is no signal
    return ratio.clamp(max=gamma) / (ratio + 1.0)  # [b]


def debiased_weight(abar: Tensor, timesteps: Tensor, prediction: Prediction) -> Tensor:
    """Yu et al. 2023 (arXiv 2310.08442) as sd-scripts has it: 1 / sqrt(snr), for v 1 / (snr + 1), snr at most 1000."""
    ratio = snr(abar, timesteps).clamp(max=1000.0)
    return ratio.rsqrt() if prediction == "epsilon" else 1.0 / (ratio + 1.0)  # [b]


def huber_threshold(abar: Tensor, timesteps: Tensor, c: float, schedule: HuberSchedule) -> Tensor:
    """sd-scripts' thresholds: near 1 where there is little noise, `c` where there is most; the same everywhere if constant."""
    if schedule == "constant":
        return torch.full(timesteps.shape, c, device=timesteps.device)  # [b]
    if schedule == "exponential":
        return torch.exp(timesteps.float() * (math.log(c) / len(abar)))  # [b]
    at = abar[timesteps]
    return (1.0 - c) / (1.0 + ((1.0 - at) / at).sqrt()).square() + c  # [b]


def multires_noise(noise: Tensor, coarser: Sequence[Tensor], discount: float) -> Tensor:
    """Pyramid noise (Whitaker 2023, "Multi-Resolution Noise"): the i-th coarser noise counts discount^i; of unit deviation again."""
    size = noise.shape[-2:]
    for i, one in enumerate(coarser):
        noise = noise + F.interpolate(one[None], size=size, mode="bilinear")[0] * discount**i  # [c, h, w]
    return noise / noise.std()


def coarser_sizes(size: tuple[int, int], ratios: Sequence[float]) -> list[tuple[int, int]]:
    """Height and width of each coarser noise; the last is where a side has become 1."""
    sizes: list[tuple[int, int]] = []
    for i, ratio in enumerate(ratios):
        sizes.append((max(1, int(size[0] / ratio**i)), max(1, int(size[1] / ratio**i))))
        if 1 in sizes[-1]:
            break
    return sizes


def per_sample_loss(
    predicted: Tensor, wanted: Tensor, kind: LossType = "l2", threshold: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Mean distance of each sample, in fp32: squared, absolute, or one of sd-scripts' two pseudo-Huber forms.

    With a mask [b, 1, h, w] each place counts so much. The mean is still over all places, as in sd-scripts: a small mask makes a
    small loss and leaves the rate per pixel as it was.
    """
    difference = predicted.float() - wanted.float()
    if kind == "l2":
        distance = difference.square()  # [b, c, h, w]
    elif kind == "l1":
        distance = difference.abs()
    else:
        assert threshold is not None
        c = threshold.view(-1, 1, 1, 1)
        rest = (difference.square() + c.square()).sqrt() - c
        distance = 2.0 * (c * rest if kind == "huber" else rest)
    return (distance if mask is None else distance * mask).mean(dim=(1, 2, 3))  # [b]


def mask_at(mask: Tensor, size: tuple[int, int], least: float) -> Tensor:
    """A mask of pixels [1, H, W], 0 to 1, as weights of latents [1, h, w]: the mean over the pixels that each covers, at least `least`."""
    return F.interpolate(mask[None], size=size, mode="area")[0].clamp(min=least)


def _at(abar: Tensor, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    at = abar[timesteps].to(like.dtype).view(-1, *([1] * (like.dim() - 1)))  # [b, 1, 1, 1]
    return at.sqrt(), (1.0 - at).sqrt()
