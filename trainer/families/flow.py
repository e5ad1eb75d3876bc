"""Flow matching with a transformer: the process, its layers, T5, the sampler. Shared by the SD3, FLUX and Z-Image files.

Lipman et al. 2023 (arXiv 2210.02747), Liu et al. 2023 (arXiv 2209.03003); levels and shift of Esser et al. 2024 (arXiv 2403.03206).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainer import flow, objective
from trainer.adapters import Target, find_targets
from trainer.contract import Drawing, Foundation
from trainer.errors import BaseModelError
from trainer.families import diffusion
from trainer.families.model import Model
from trainer.protocol import TrainingOptions

VAE: Mapping[str, Any] = {
    **diffusion.VAE,
    "latent_channels": 16,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""Of sixteen channels; scale and shift are each family's own."""
T5: Mapping[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
"""T5 v1.1 XXL's encoder."""
NOWHERE = ""
"""The key of a part that is read from no checkpoint: it lies beside it."""
CPU = torch.device("cpu")
PATCH = 2
"""Latents a side that make one token, in all of these families."""
UNUSED = ("min_snr_gamma", "debiased_estimation", "prediction", "zero_terminal_snr", "clip_skip", "max_token_length")
"""Options of noise curves and of UNets."""
T5_OPTIONS = ("t5_length", "t5_padding", "blank_caption")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The straight way from picture to noise; timesteps are its levels, from 0 to 1."""

    device: torch.device = CPU
    shift: float = 1.0
    by_resolution: bool = False
    """Whether the shift follows from the picture's size."""
    low: tuple[int, float] = (256, 0.5)
    """Tokens of a picture, and the logarithm of the shift there."""
    high: tuple[int, float] = (4096, 1.15)

    def draw_timestep(self, options: TrainingOptions, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """A level, by the distribution that is asked for, shifted."""
        match options.timestep_sampling:
            case "uniform":
                level = torch.rand((), generator=generator)
            case "mode":
                level = flow.mode(torch.rand((), generator=generator), options.mode_scale)
            case "logit_normal":
                level = flow.logit_normal(torch.randn((), generator=generator), options.logit_mean, options.logit_std)
            case "sigmoid":
                level = flow.logit_normal(torch.randn((), generator=generator), 0.0, options.logit_std)
        return flow.shifted(level, self.shift_of(options, shape)).clamp(flow.LEAST, 1.0)

    def shift_of(self, options: TrainingOptions, shape: tuple[int, ...]) -> float:
        """What the user says wins over the base; a number over the size, unless the size is asked for."""
        by_resolution = options.flow_shift is None and self.by_resolution if options.resolution_shift is None else options.resolution_shift
        if by_resolution:
            return flow.resolution_shift(shape[-2] * shape[-1] // PATCH**2, self.low, self.high)
        return self.shift if options.flow_shift is None else options.flow_shift

    def spread_timesteps(self, count: int, _shape: tuple[int, ...]) -> Tensor:
        """So many levels, evenly from little noise to much [count]."""
        return (torch.arange(count, device=self.device) + 0.5) / count

    def corrupt(self, latents: Tensor, noise: Tensor, timesteps: Tensor, disturbance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The mixture, and the velocity."""
        noisy = flow.mix(latents, noise if disturbance is None else noise + disturbance, timesteps)
        return noisy, flow.velocity(latents, noise)

    def distances(
        self, predicted: Tensor, wanted: Tensor, timesteps: Tensor, options: TrainingOptions, mask: Tensor | None = None
    ) -> Tensor:
        """Each sample's loss before its weight [b]. The clean picture is x_t - sigma velocity: its error is sigma times the velocity's."""
        predicted, wanted = predicted.float(), wanted.float()
        if options.loss_space == "x0":
            sigma = timesteps.view(-1, 1, 1, 1)
            predicted, wanted = sigma * predicted, sigma * wanted
        mild = options.loss_type in ("huber", "smooth_l1")
        threshold = flow.huber_threshold(timesteps, options.huber_c, options.huber_schedule) if mild else None
        return objective.per_sample_loss(predicted, wanted, options.loss_type, threshold, mask)

    def weigh(self, timesteps: Tensor, options: TrainingOptions) -> Tensor | None:
        """Each sample's loss weight [b], or None for 1."""
        if options.flow_weighting == "none":
            return None
        return (flow.sigma_sqrt_weight if options.flow_weighting == "sigma_sqrt" else flow.cosmap_weight)(timesteps)


def process_of(parts: Mapping[str, Any], _foundation: Foundation, device: torch.device) -> Flow:
    """The process of a base, from its scheduler's configuration."""
    config = parts["scheduler"].config
    if config.get("invert_sigmas") or config.get("prediction_type", "flow_prediction") != "flow_prediction":
        raise BaseModelError("LRY-BASE-LOAD", "the base is no flow model: its scheduler says so.", "Check scheduler/scheduler_config.json.")
    return Flow(
        device=device,
        shift=float(config.get("shift") or 1.0),
        by_resolution=bool(config.get("use_dynamic_shifting")),
        low=(int(config.get("base_image_seq_len") or 256), float(config.get("base_shift") or 0.5)),
        high=(int(config.get("max_image_seq_len") or 4096), float(config.get("max_shift") or 1.15)),
    )


def targets(transformer: Any, blocks: tuple[str, ...], wanted: tuple[str, ...], idle: tuple[str, ...] = ()) -> list[Target]:
    """Linear layers whose path ends in one of `wanted` (all, if empty) in these lists of blocks."""
    found = [target for target in find_targets("transformer", transformer, wanted) if target.name.split(".")[0] in blocks]
    return [replace(target, idle=target.name in idle) for target in found]


def pack(latents: Tensor) -> Tensor:
    """Squares of 2 by 2 as tokens: [b, c, h, w] to [b, h/2 w/2, 4c]."""
    batch, channels, height, width = latents.shape
    squares = latents.view(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // PATCH**2, channels * PATCH**2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens as latents again: [b, h/2 w/2, 4c] to [b, c, h, w]."""
    squares = tokens.view(len(tokens), height // PATCH, width // PATCH, -1, PATCH, PATCH)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)


# --- T5 --------------------------------------------------------------------------------------------


def t5_length(options: TrainingOptions, usual: int) -> int:
    """Tokens that T5, or what is in its place, reads; CLIP reads its 77 whatever there is."""
    return options.t5_length or usual


def t5_capacity(options: TrainingOptions, *, usual: int, marks: int = 1) -> int:
    """Tokens of a caption that are read by somebody, without the marks around it."""
    return t5_length(options, usual) - marks


def t5_tokens(tokenizer: Any, text: str, length: int) -> Tensor:
    """Token ids [length]: the text, the end mark, padding."""
    ids: Tensor = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids[0]
    return ids


def t5_token_count(tokenizer: Any, text: str) -> int:
    """Tokens without the end mark."""
    return len(tokenizer(text, truncation=False, verbose=False).input_ids) - 1


def t5_read(encoder: Any, ids: Tensor, *, padding_id: int, foundation: Foundation) -> Tensor:
    """States [b, length, width]. Padding is read with the text, as the models were trained: no mask."""
    states: Tensor = encoder(ids)[0]
    if foundation.zero_padding:
        states = states * (ids != padding_id)[..., None]
    return states * ~blank(ids, encoder.config.eos_token_id)[:, None, None] if foundation.blank_zeros else states


def blank(ids: Tensor, end: int, at: int = 0) -> Tensor:
    """Which rows [b] hold no text: their end mark is where the text would begin."""
    return ids[:, at] == end


# --- drawing ---------------------------------------------------------------------------------------


def sample(pipeline: Any, drawing: Drawing, **told: Any) -> Tensor:
    """Latents drawn by a pipeline around the live modules, as the pipeline holds them."""
    pipeline.set_progress_bar_config(disable=True)
    latents: Tensor = pipeline(
        **told,
        width=drawing.size[0],
        height=drawing.size[1],
        num_inference_steps=drawing.steps,
        generator=torch.Generator().manual_seed(drawing.seed),
        output_type="latent",
    ).images
    return latents


def sampler(model: Model) -> Any:
    """Euler over the base's own levels."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler.from_config(model.parts["scheduler"].config)
