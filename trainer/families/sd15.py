"""Stable Diffusion 1.x: UNet over VAE latents, one CLIP text encoder, epsilon prediction (or v, where the base says so).

Rombach et al. 2022 (arXiv 2112.10752).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from trainer import export, names
from trainer.adapters import Target
from trainer.contract import Condition, Drawing
from trainer.export import Origin
from trainer.families import clip, diffusion
from trainer.families.model import Family, Model
from trainer.protocol import TrainingOptions


def targets(model: Model, part: str, preset: str) -> list[Target]:
    """192 layers of the UNet, 72 of the text encoder."""
    module = model.parts[part]
    if part == "unet":
        return diffusion.targets(module, preset)
    return clip.targets(part, module, skip=model.foundation.clip_skip)


def token_count(model: Model, text: str) -> int:
    """Tokens without the two marks."""
    return clip.token_count(model.parts["tokenizer"], text)


def tokens(model: Model, text: str, options: TrainingOptions) -> dict[str, Tensor]:
    """Ids [n, 77]."""
    return {"text_encoder": clip.tokens(model.parts["tokenizer"], text, clip.pieces(options))}


def encode(model: Model, part: str, ids: Tensor) -> Condition:
    """The last layer's states, or an earlier one's, normed."""
    states, _ = clip.read(model.parts[part], ids, skip=model.foundation.clip_skip)
    return {"text": states.to(model.dtype)}  # [b, 75n+2, width]


def predict(model: Model, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    """The UNet's answer."""
    answer: Tensor = model.parts["unet"](noisy, timesteps, condition["text"].to(model.dtype), return_dict=False)[0]  # [b, 4, h, w]
    return answer


def sample(model: Model, condition: Condition, negative: Condition, drawing: Drawing) -> Tensor:
    """By DDIM with classifier-free guidance."""
    from diffusers import StableDiffusionPipeline

    scheduler = diffusion.sampler(model)
    pipeline = StableDiffusionPipeline(
        model.parts["vae"], None, None, model.parts["unet"], scheduler, None, None, requires_safety_checker=False
    )
    return diffusion.sample(pipeline, drawing, prompt_embeds=condition["text"], negative_prompt_embeds=negative["text"])


def origin(model: Model) -> Origin:
    """sd-scripts' and modelspec's words."""
    v = diffusion.process(model).prediction == "v"
    return diffusion.origin(model, "sd_v1_v" if v else "sd_v1", "stable-diffusion-v1/lora")


FAMILY = Family(
    parts=("unet", "text_encoder"),
    encoders=("text_encoder",),
    components={
        "unet": "diffusers.UNet2DConditionModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
        "tokenizer": "transformers.CLIPTokenizer",
        "scheduler": "diffusers.DDPMScheduler",
    },
    pipeline="StableDiffusionPipeline",
    real={
        "unet": diffusion.UNET,
        "vae": diffusion.VAE,
        "text_encoder": clip.LARGE,
        "tokenizer": {},
        "scheduler": diffusion.SCHEDULER,
    },
    unused=diffusion.UNUSED,
    formats={"kohya": partial(export.to_kohya, key_of=partial(names.kohya_name, "sd15")), "diffusers": export.to_peft},
    process=diffusion.process_of,
    targets=targets,
    convolutions=diffusion.convolutions,
    key_of=partial(names.kohya_name, "sd15"),
    capacity=clip.capacity,
    token_count=token_count,
    tokens=tokens,
    encode=encode,
    predict=predict,
    sample=sample,
    origin=origin,
)
