"""What the loop asks of a model, and the words that both sides use.

A *condition* is what a model is told besides the noisy latents: named tensors of one sample, stacked in a batch.
A *process* says how pictures and noise are mixed and what the model is to answer: diffusion with discrete
timesteps, or flow matching with continuous ones. Noise and timesteps come in as arguments. Latents are always
[c, h, w] here; a family that packs them into tokens does so inside its own prediction.

Knows nothing of families, files or jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from .adapters import Bank
from .base import Base
from .buckets import Fit, Size
from .protocol import TrainingOptions
from .replay import Passes

Condition = dict[str, Tensor]
"""Names -> tensors. `ids.<part>` are token ids that the text encoder of that name has still to read; the rest goes to the model."""

IDS = "ids."


@dataclass(frozen=True, slots=True, kw_only=True)
class Foundation:
    """A base as a job wants it. Jobs that agree in all of this share one loaded model."""

    family: str
    base: Base
    dtype: torch.dtype
    revision: str | None = None
    prediction: Literal["epsilon", "v"] | None = None
    """What the base answers, where the user says so; else as the base itself says."""
    zero_terminal_snr: bool | None = None
    clip_skip: int = 1
    """Which layer of a CLIP text encoder is read, counted from its end."""
    zero_padding: bool = False
    """Whether what T5 says of padding is set to zero."""
    blank_zeros: bool = False
    """Whether an empty caption is zeros instead of what the encoders make of it."""
    guidance: float = 1.0
    """What a model with a guidance embedding is told while it is trained."""
    base_precision: str = "full"
    """How the denoiser's linear layers are stored."""
    encoder_precision: str = "full"
    """How those of large text encoders are."""
    merged: tuple[Path, float] | None = None
    """A LoRA that is added to the base first, and its weight."""


@dataclass(frozen=True, slots=True)
class View:
    """How a picture is seen: some models are told."""

    size: Size
    """Width, height of the picture itself."""
    fit: Fit
    mirrored: bool = False

    @property
    def crop(self) -> Size:
        """Pixels cut off at the left and at the top of the resized picture, as it is seen."""
        left, top = self.fit.crop
        return (self.fit.resized[0] - self.fit.bucket[0] - left if self.mirrored else left), top


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How to draw one sample picture."""

    size: Size
    seed: int
    guidance: float
    steps: int


class Process(Protocol):
    """How noise and pictures are mixed, what the model should answer, and what an answer is worth."""

    def draw_timestep(self, options: TrainingOptions, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """One sample's timestep, 0-d, for latents of this shape [c, h, w]."""

    def spread_timesteps(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """So many timesteps, evenly from little noise to much [count]."""

    def corrupt(self, latents: Tensor, noise: Tensor, timesteps: Tensor, disturbance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The noisy latents, and what the model should answer. A disturbance is noise that the answer need not know of."""

    def distances(
        self, predicted: Tensor, wanted: Tensor, timesteps: Tensor, options: TrainingOptions, mask: Tensor | None = None
    ) -> Tensor:
        """Each sample's loss before its weight [b]; with a mask [b, 1, h, w] each place counts so much."""

    def weigh(self, timesteps: Tensor, options: TrainingOptions) -> Tensor | None:
        """Each sample's loss weight [b], or None for 1."""


class Denoiser(Protocol):
    """A model that can be trained on."""

    bank: Bank
    passes: Passes
    device: torch.device
    dtype: torch.dtype
    process: Process

    def embed(self, condition: Condition) -> Condition:
        """A batch's condition with every `ids.<part>` replaced by what that encoder makes of it."""

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The model's answer, of the latents' shape."""
