"""Dropout between and around an adapter's matrices, every draw by its address. Knows nothing of layers or passes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import streams


@dataclass(frozen=True, slots=True)
class Drop:
    """What of one job's adapter is left out in one pass, drawn by address: gradient checkpointing draws the same again."""

    element: float
    """Share of the values between A and B."""
    rank: float
    """Share of each sample's ranks."""
    module: float
    """Share of the layers."""
    seed: int
    counters: tuple[int, ...]
    """Step and first row of the pass."""

    def mask(self, index: int, shape: tuple[int, int, int], like: Tensor) -> Tensor:
        """What the values [b, cells, r] of a layer are multiplied by. Kept values grow, as kohya has it; kept layers do not."""
        dice = torch.Generator(like.device).manual_seed(streams.key(self.seed, "drop", *self.counters, index))

        def kept(share: float, *size: int) -> Tensor:
            return (torch.rand(size, generator=dice, device=like.device) >= share).to(like.dtype)

        mask = kept(self.module, 1, 1, 1).expand(shape)
        if self.element > 0:
            mask = mask * kept(self.element, *shape) / (1.0 - self.element)
        if self.rank > 0:
            mask = mask * kept(self.rank, shape[0], 1, shape[2]) / (1.0 - self.rank)
        return mask

    def whole(self, index: int, like: Tensor) -> Tensor:
        """Whether a layer takes part, 1 or 0, as `mask` draws it too."""
        return replace(self, element=0.0, rank=0.0).mask(index, (1, 1, 1), like).view(())
