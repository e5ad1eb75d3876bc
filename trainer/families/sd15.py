"""Stable Diffusion 1.x: UNet over VAE latents, one CLIP text encoder, epsilon prediction (or v, where the base says so).

Rombach et al. 2022 (arXiv 2112.10752). Loads diffusers' and transformers' own classes from a folder, a hub
id or one checkpoint file. Knows nothing of jobs, files of ours, or the loop.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from trainer import objective
from trainer.adapters import Adapter, Bank, Target, find_targets
from trainer.base import Base
from trainer.errors import BaseModelError
from trainer.export import Origin
from trainer.protocol import TrainingOptions

MAX_TOKENS = 75
"""CLIP reads 77 tokens, two of which mark start and end."""

TARGETS = {
    "kohya": (),  # every linear layer and 1x1 convolution inside Transformer2DModel: 192 at real size
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),  # as the diffusers examples: 128
}
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(slots=True)
class Model:
    """A loaded base with its bank of adapters."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    device: torch.device
    dtype: torch.dtype
    name: str
    bank: Bank = field(default_factory=Bank)
    abar: Tensor = field(init=False)
    prediction: objective.Prediction = field(init=False)
    _identities: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.abar, self.prediction = schedule_of(self.scheduler.config)
        self.abar = self.abar.to(self.device)
        for part in ("vae", "text_encoder", "unet"):  # now, before anything is cast
            self._identities[part] = _hash_of(getattr(self, part), sample=part == "unet")
        for module in (self.unet, self.vae, self.text_encoder):
            module.requires_grad_(requires_grad=False).eval()
        self.unet.to(self.device, self.dtype)
        if self.device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)

    # --- what the loop asks -------------------------------------------------------------------------

    def draw_timestep(self, generator: torch.Generator) -> Tensor:
        return torch.randint(0, len(self.abar), (), generator=generator)

    def spread_timesteps(self, count: int) -> Tensor:
        return ((torch.arange(count) + 0.5) / count * len(self.abar)).long().to(self.device)  # [count]

    def corrupt(self, latents: Tensor, noise: Tensor, timesteps: Tensor, disturbance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        noisy = objective.add_noise(latents, noise if disturbance is None else noise + disturbance, self.abar, timesteps)
        return noisy.to(self.dtype), objective.target(latents, noise, self.abar, timesteps, self.prediction)

    def distances(self, predicted: Tensor, wanted: Tensor, timesteps: Tensor, options: TrainingOptions) -> Tensor:
        kind = options.loss_type
        mild = kind in ("huber", "smooth_l1")
        threshold = objective.huber_threshold(self.abar, timesteps, options.huber_c, options.huber_schedule) if mild else None
        return objective.per_sample_loss(predicted, wanted, kind, threshold)

    def weigh(self, timesteps: Tensor, options: TrainingOptions) -> Tensor | None:
        weight = None
        if options.min_snr_gamma is not None:
            weight = objective.min_snr_weight(self.abar, timesteps, options.min_snr_gamma, self.prediction)
        if options.debiased_estimation:
            more = objective.debiased_weight(self.abar, timesteps, self.prediction)
            weight = more if weight is None else weight * more
        return weight

    def embed(self, condition: Tensor) -> Tensor:
        if condition.is_floating_point():
            return condition.to(self.dtype)
        if condition.dim() == 2:
            return self.text_encoder(condition)[0].to(self.dtype)  # type: ignore[no-any-return]  # [b, 77, width]
        states = self.text_encoder(condition.flatten(0, 1))[0]  # [b*n, 77, width]
        return joined(states.unflatten(0, condition.shape[:2])).to(self.dtype)  # [b, 75n+2, width]

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, context, return_dict=False)[0]  # type: ignore[no-any-return]  # [b, 4, h, w]

    # --- what a job asks before and after -----------------------------------------------------------

    def targets(self, parts: Sequence[str], preset: str = "kohya") -> list[Target]:
        """The layers that get an adapter, for the parts that are trained."""
        from diffusers import Transformer2DModel

        found: list[Target] = []
        if "unet" in parts:
            found += find_targets("unet", self.unet, TARGETS[preset], Transformer2DModel)
        if "text_encoder" in parts:
            found += find_targets("text_encoder", self.text_encoder, TEXT_TARGETS)
        return found

    def prepare(self, targets: Sequence[Target], *, checkpointing: bool) -> None:
        """Attach the bank, and put on the device what trains."""
        self.bank.detach()
        for part in sorted({t.part for t in targets}):
            self.bank.attach(part, getattr(self, part), [t for t in targets if t.part == part])
        if any(t.part == "text_encoder" for t in targets):
            self.text_encoder.to(self.device, self.dtype)
        for module in (self.unet, self.text_encoder):
            _checkpointing(module, on=checkpointing)

    def latent_address(self) -> str:
        """What a latent depends on besides the picture."""
        return self._identities["vae"] + str(self.vae.config.scaling_factor)

    def text_address(self) -> str:
        """What an embedding depends on besides the token ids."""
        return self._identities["text_encoder"] + str(self.dtype)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Latents [c, h/8, w/8] of pixels [3, h, w] in -1..1, scaled to unit variance. Always in fp32: fp16 VAEs overflow."""
        self.vae.to(self.device)  # in fp32 since it was loaded
        with torch.no_grad():
            mean = self.vae.encode(pixels[None].to(self.device)).latent_dist.mode()[0]
        return mean * self.vae.config.scaling_factor  # type: ignore[no-any-return]

    def tokens(self, text: str, pieces: int = 1) -> Tensor:
        """Token ids [77]; or [n, 77] in pieces of 75, each between marks of its own, as sd-scripts cuts them."""
        length = self.text_encoder.config.max_position_embeddings
        whole = pieces * (length - 2) + 2
        ids: Tensor = self.tokenizer(text, padding="max_length", max_length=whole, truncation=True, return_tensors="pt").input_ids[0]
        if pieces == 1:
            return ids
        inner = ids[1:-1].view(pieces, length - 2)
        return torch.cat([ids[:1].expand(pieces, 1), inner, ids[-1:].expand(pieces, 1)], dim=1)

    def token_count(self, text: str) -> int:
        """Tokens without the two marks; beyond `MAX_TOKENS` times the pieces the rest is cut."""
        return len(self.tokenizer(text, truncation=False, verbose=False).input_ids) - 2

    def encode_text(self, text: str, pieces: int = 1) -> Tensor:
        """Embedding [77, width], or [75n+2, width], by the base's text encoder (with the adapter in use, if any)."""
        self.text_encoder.to(self.device, self.dtype)
        with torch.no_grad():
            return self.embed(self.tokens(text, pieces)[None].to(self.device))[0]

    def release_encoders(self, *, keep_text: bool) -> None:
        """Take the encoders off the device; they wait in main memory for the next job."""
        self.vae.to("cpu")
        if not keep_text:
            self.text_encoder.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def draw(
        self, embedding: Tensor, negative: Tensor, *, size: tuple[int, int], seed: int, guidance: float, steps: int, adapter: Adapter | None
    ) -> Any:
        """One picture by DDIM, through diffusers' own pipeline around the live modules. A PIL image."""
        from diffusers import DDIMScheduler, StableDiffusionPipeline
        from diffusers.image_processor import VaeImageProcessor

        # clip_sample and set_alpha_to_one as SD1.5's own configuration has them; other bases often leave them out.
        scheduler = DDIMScheduler.from_config(self.scheduler.config, clip_sample=False, set_alpha_to_one=False)
        pipeline = StableDiffusionPipeline(self.vae, None, None, self.unet, scheduler, None, None, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        conditions = [t[None].to(self.device, self.dtype) for t in (embedding, negative)]
        with torch.no_grad(), self.bank.use([adapter] if adapter else [], self.dtype):
            latents = pipeline(
                prompt_embeds=conditions[0],
                negative_prompt_embeds=conditions[1],
                width=size[0],
                height=size[1],
                guidance_scale=guidance,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
            ).images
            self.vae.to(self.device)  # in fp32 since it was loaded
            pixels = self.vae.decode(latents.float() / self.vae.config.scaling_factor, return_dict=False)[0]
        return VaeImageProcessor().postprocess(pixels.cpu(), output_type="pil")[0]

    def origin(self) -> Origin:
        """What the adapter's metadata says."""
        v = self.prediction == "v"
        return Origin("sd_v1_v" if v else "sd_v1", "stable-diffusion-v1/lora", "diffusers", "v" if v else "epsilon")

    def fingerprint(self) -> str:
        """Tells this base from another: whole hashes of the encoders, a sample of every tensor of the UNet."""
        return hashlib.sha256("/".join(self._identities.values()).encode()).hexdigest()


def joined(states: Tensor) -> Tensor:
    """Pieces [b, n, 77, width] as one sequence [b, 75n+2, width]: the first start mark, every piece's inside, the last end mark."""
    return torch.cat([states[:, 0, :1], states[:, :, 1:-1].flatten(1, 2), states[:, -1, -1:]], dim=1)


def key_of(part: str, module: str) -> str:
    """Name of a layer in kohya's files. transformers 5 has no `text_model` in its module paths, transformers 4 has; the file always has."""
    if part == "unet":
        return "lora_unet_" + module.replace(".", "_")
    return "lora_te_text_model_" + module.removeprefix("text_model.").replace(".", "_")


def schedule_of(config: Any) -> tuple[Tensor, objective.Prediction]:
    """The curve abar and what the base predicts, from its scheduler's configuration."""
    make = {"scaled_linear": objective.scaled_linear_betas, "linear": objective.linear_betas}.get(config["beta_schedule"])
    prediction: dict[str, objective.Prediction] = {"epsilon": "epsilon", "v_prediction": "v"}
    kind = prediction.get(config.get("prediction_type") or "epsilon")
    if make is None or kind is None or config.get("rescale_betas_zero_snr"):
        fact = f"has a noise schedule that is not known here ({config['beta_schedule']}, {config.get('prediction_type')})"
        raise BaseModelError("LRY-BASE-LOAD", f"the base {fact}.", "Check its scheduler/scheduler_config.json.")
    return objective.alphas_cumprod(make(config["beta_start"], config["beta_end"], config["num_train_timesteps"])), kind


def load(base: Base, revision: str | None, device: torch.device, dtype: torch.dtype) -> Model:
    """Load the base. Safetensors only: nothing that is unpickled."""
    _quiet()
    try:
        if base.kind == "checkpoint":
            parts = _from_checkpoint(Path(base.location), dtype)
        else:
            parts = _from_folder(base.location, revision if base.kind == "hub" else None, dtype)
        known, wanted = len(parts["tokenizer"]), parts["text_encoder"].config.vocab_size
        if known < wanted // 2:  # transformers makes an empty tokenizer where the vocabulary is missing, and says nothing
            raise ValueError(f"its tokenizer knows {known} tokens, its text encoder {wanted}")
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        hint = "Check the id and the network." if base.kind == "hub" else "Fetch the model again, or check that it is complete."
        raise BaseModelError("LRY-BASE-LOAD", f"the base {base.location} cannot be loaded: {reason}", hint) from error
    return Model(**parts, device=device, dtype=dtype, name=Path(base.location).name)


def _from_folder(where: str, revision: str | None, dtype: torch.dtype) -> dict[str, Any]:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    common = {"revision": revision}
    weights = {**common, "use_safetensors": True, "torch_dtype": torch.float32}
    variant = {part: {"variant": v} if (v := _variant(where, part)) else {} for part in ("unet", "vae", "text_encoder")}
    return {
        "unet": UNet2DConditionModel.from_pretrained(where, subfolder="unet", **{**weights, "torch_dtype": dtype}, **variant["unet"]),
        "vae": AutoencoderKL.from_pretrained(where, subfolder="vae", **weights, **variant["vae"]),
        "text_encoder": CLIPTextModel.from_pretrained(where, subfolder="text_encoder", **weights, **variant["text_encoder"]),
        "tokenizer": CLIPTokenizer.from_pretrained(where, subfolder="tokenizer", **common),
        "scheduler": DDPMScheduler.from_pretrained(where, subfolder="scheduler", **common),
    }


def _variant(where: str, part: str) -> str:
    """`fp16` where a folder holds the half-size files alone."""
    folder = Path(where) / part
    names = [p.name for p in folder.glob("*.safetensors")] if folder.is_dir() else []
    return "fp16" if names and all(".fp16." in name for name in names) else ""


def _from_checkpoint(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Through diffusers' own conversion. A folder `<name>.config` beside the file gives configurations and tokenizer without a network."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    config = path.with_suffix(".config")
    local = {"config": str(config), "local_files_only": True} if config.is_dir() else {}
    pipeline = StableDiffusionPipeline.from_single_file(str(path), torch_dtype=torch.float32, safety_checker=None, **local)
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder", "tokenizer")}
    parts["unet"].to(dtype)
    return {**parts, "scheduler": DDPMScheduler.from_config(pipeline.scheduler.config)}


def _quiet() -> None:
    """Libraries' progress bars and advice would stand between a user's lines."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _checkpointing(module: Any, *, on: bool) -> None:
    """The switch of diffusers (`enable_...`) or of transformers (`..._enable`, lately under a new name).

    transformers looks at `training` too, which changes nothing else here: these encoders have no dropout.
    """
    if hasattr(module, "enable_gradient_checkpointing"):
        switch = module.enable_gradient_checkpointing if on else module.disable_gradient_checkpointing
        switch()
        return
    prefix = "activation" if hasattr(module, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(module, f"{prefix}_checkpointing_enable")(**{f"{prefix}_checkpointing_kwargs": {"use_reentrant": False}})
    else:
        getattr(module, f"{prefix}_checkpointing_disable")()
    module.train(on)


def _hash_of(module: nn.Module, *, sample: bool) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().reshape(-1)
        if sample and values.numel() > 256:
            values = values[:: values.numel() // 256]
        sha.update(f"{name} {tuple(tensor.shape)}\n".encode())
        sha.update(values.float().cpu().numpy().tobytes())
    return sha.hexdigest()
