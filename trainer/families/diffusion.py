"""Discrete-time diffusion with a UNet: the process, its layers, the sampler. Shared by the Stable Diffusion 1, 2 and XL files.

Rombach et al. 2022 (arXiv 2112.10752); v-prediction of Salimans & Ho 2022 (arXiv 2202.00512), zero terminal
signal-to-noise of Lin et al. 2023 (arXiv 2305.08891).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import objective
from trainer.adapters import Target, find_targets
from trainer.contract import Drawing, Foundation
from trainer.errors import BaseModelError
from trainer.export import Origin
from trainer.families.model import Model
from trainer.protocol import TrainingOptions

TARGETS = {
    "kohya": (),  # every linear layer and 1x1 convolution inside Transformer2DModel: 192 at SD1's real size, 722 at SDXL's
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),  # as the diffusers examples
}

UNUSED = (
    "timestep_sampling", "logit_mean", "logit_std", "mode_scale", "flow_shift", "resolution_shift", "loss_space", "flow_weighting",
    "t5_length", "t5_padding", "blank_caption", "guidance_embedding",
)  # fmt: skip
"""Options of flow models."""

UNET: Mapping[str, Any] = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""Stable Diffusion 1's."""
VAE: Mapping[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
SCHEDULER: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
UNSAID = "unsaid"
"""Of a scheduler whose file does not say what the model answers."""


@dataclass(frozen=True, slots=True)
class Diffusion:
    """Noise by a curve of so many steps; the answer is the noise, or v."""

    abar: Tensor
    """The share of signal left at each timestep [T]."""
    prediction: objective.Prediction

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last timestep is noise alone."""
        return float(self.abar[-1]) == 0.0

    def draw_timestep(self, _options: TrainingOptions, _shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """One of the timesteps, each as likely as the others."""
        return torch.randint(0, len(self.abar), (), generator=generator)

    def spread_timesteps(self, count: int, _shape: tuple[int, ...]) -> Tensor:
        """So many timesteps, evenly from little noise to much [count]."""
        return ((torch.arange(count) + 0.5) / count * len(self.abar)).long().to(self.abar.device)

    def corrupt(self, latents: Tensor, noise: Tensor, timesteps: Tensor, disturbance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The noisy latents, and what the model should answer."""
        noisy = objective.add_noise(latents, noise if disturbance is None else noise + disturbance, self.abar, timesteps)
        return noisy, objective.target(latents, noise, self.abar, timesteps, self.prediction)

    def distances(
        self, predicted: Tensor, wanted: Tensor, timesteps: Tensor, options: TrainingOptions, mask: Tensor | None = None
    ) -> Tensor:
        """Each sample's loss before its weight [b]."""
        kind = options.loss_type
        mild = kind in ("huber", "smooth_l1")
        threshold = objective.huber_threshold(self.abar, timesteps, options.huber_c, options.huber_schedule) if mild else None
        return objective.per_sample_loss(predicted, wanted, kind, threshold, mask)

    def weigh(self, timesteps: Tensor, options: TrainingOptions) -> Tensor | None:
        """Each sample's loss weight [b], or None for 1."""
        weight = None
        if options.min_snr_gamma is not None:
            weight = objective.min_snr_weight(self.abar, timesteps, options.min_snr_gamma, self.prediction)
        if options.debiased_estimation:
            more = objective.debiased_weight(self.abar, timesteps, self.prediction)
            weight = more if weight is None else weight * more
        return weight


def process_of(parts: Mapping[str, Any], foundation: Foundation, device: torch.device) -> Diffusion:
    """The process of a base, from its scheduler's configuration; what the user says wins."""
    config = parts["scheduler"].config
    make = {"scaled_linear": objective.scaled_linear_betas, "linear": objective.linear_betas}.get(config["beta_schedule"])
    names: dict[str, objective.Prediction] = {"epsilon": "epsilon", "v_prediction": "v"}
    prediction = foundation.prediction or names.get(config.get("prediction_type") or "epsilon")
    if prediction is None and config["prediction_type"] == UNSAID:
        message = f"nothing in {Path(foundation.base.location).name} says whether it answers the noise or v."
        raise BaseModelError("LRY-BASE-LOAD", message, 'Set prediction = "v" for a 768 model, "epsilon" for a 512 model.')
    if make is None or prediction is None:
        fact = f"has a noise schedule that is not known here ({config['beta_schedule']}, {config.get('prediction_type')})"
        raise BaseModelError("LRY-BASE-LOAD", f"the base {fact}.", "Check its scheduler/scheduler_config.json.")
    abar = objective.alphas_cumprod(make(config["beta_start"], config["beta_end"], config["num_train_timesteps"]))
    zero = foundation.zero_terminal_snr
    if zero if zero is not None else config.get("rescale_betas_zero_snr"):
        abar = objective.with_zero_terminal_snr(abar)
    return Diffusion(abar.to(device), prediction)


def targets(unet: Any, preset: str) -> list[Target]:
    """The UNet's layers that get an adapter."""
    from diffusers import Transformer2DModel

    return find_targets("unet", unet, TARGETS[preset], Transformer2DModel)


def convolutions(model: Model) -> list[Target]:
    """The layers that a LoCon adds to the UNet's, as kohya's conv_dim does: all of its residual and resizing blocks."""
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    return find_targets("unet", model.parts["unet"], (), (ResnetBlock2D, Downsample2D, Upsample2D), wide=True)


def process(model: Model) -> Diffusion:
    """A model's process, which `process_of` has made."""
    assert isinstance(model.process, Diffusion)
    return model.process


def origin(model: Model, version: str, architecture: str, implementation: str = "diffusers", *, v2: bool = False) -> Origin:
    """The metadata's words, with what the process says."""
    own = process(model)
    return Origin(version, architecture, implementation, own.prediction, v2, own.zero_terminal_snr)


def sampler(model: Model) -> Any:
    """DDIM over the curve that was trained on."""
    from diffusers import DDIMScheduler

    zero = process(model).zero_terminal_snr
    return DDIMScheduler.from_config(
        model.parts["scheduler"].config,
        clip_sample=False,  # this and the next as SD1.5's own configuration has them; other bases often leave them out
        set_alpha_to_one=False,
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[process(model).prediction],
        rescale_betas_zero_snr=zero,
        # A curve that ends in noise alone must be walked from its very end (Lin et al. 2023, section 3.3).
        **({"timestep_spacing": "trailing"} if zero else {}),
    )


def sample(pipeline: Any, drawing: Drawing, **conditions: Tensor) -> Tensor:
    """Latents [1, 4, h, w] drawn by a pipeline around the live modules."""
    pipeline.set_progress_bar_config(disable=True)
    latents: Tensor = pipeline(
        **conditions,
        width=drawing.size[0],
        height=drawing.size[1],
        guidance_scale=drawing.guidance,
        num_inference_steps=drawing.steps,
        generator=torch.Generator().manual_seed(drawing.seed),
        output_type="latent",
    ).images
    return latents
