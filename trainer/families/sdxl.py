"""Stable Diffusion XL: a larger UNet told the picture's size and crop, CLIP-L and OpenCLIP-bigG read at their last layer but one.

Podell et al. 2023 (arXiv 2307.01952). Pony, Illustrious and their kin are this with other weights; NoobAI's later
ones answer v with zero terminal signal-to-noise.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from trainer import export, names
from trainer.adapters import Target
from trainer.contract import Condition, Drawing, View
from trainer.export import Origin
from trainer.families import clip, diffusion
from trainer.families.model import Family, Model
from trainer.protocol import TrainingOptions

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
PENULTIMATE = 2


def targets(model: Model, part: str, preset: str) -> list[Target]:
    """722 layers of the UNet, 72 and 192 of the text encoders.

    CLIP-L's last layer is in every file of other programs though nothing is read from it.
    """
    module = model.parts[part]
    if part == "unet":
        return diffusion.targets(module, preset)
    return clip.targets(part, module, skip=PENULTIMATE if part == "text_encoder" else 1)  # bigG's last layer makes the summary


def token_count(model: Model, text: str) -> int:
    """Tokens without the two marks; both tokenizers have one vocabulary."""
    return clip.token_count(model.parts["tokenizer"], text)


def tokens(model: Model, text: str, options: TrainingOptions) -> dict[str, Tensor]:
    """Ids [n, 77] for each encoder; they differ in what they pad with."""
    return {part: clip.tokens(model.parts[name], text, clip.pieces(options)) for part, name in TOKENIZERS.items()}


def encode(model: Model, part: str, ids: Tensor) -> Condition:
    """States of the last layer but one; of bigG its summary of the first piece as well."""
    states, summary = clip.read(model.parts[part], ids, skip=PENULTIMATE, normed=False)
    if summary is None:
        return {"text": states.to(model.dtype)}  # [b, 75n+2, 768]
    return {"text_2": states.to(model.dtype), "pooled": summary.to(model.dtype)}  # [b, 75n+2, 1280], [b, 1280]


def describe(view: View) -> Condition:
    """Sizes and crop as diffusers and sd-scripts order them: the picture's height and width, top and left, the bucket's height and width.

    The crop is the true one, as in diffusers; sd-scripts works out another from the ratios alone. In fp32, since bf16 has no 1023.
    """
    left, top = view.crop
    ids = (view.size[1], view.size[0], top, left, view.fit.bucket[1], view.fit.bucket[0])
    return {"time_ids": torch.tensor(ids, dtype=torch.float32)}  # [6]


def predict(model: Model, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    """The UNet's answer."""
    words = torch.cat([condition["text"], condition["text_2"]], dim=-1).to(model.dtype)  # [b, 75n+2, 2048]
    told = {"text_embeds": condition["pooled"].to(model.dtype), "time_ids": condition["time_ids"]}
    answer: Tensor = model.parts["unet"](noisy, timesteps, words, added_cond_kwargs=told, return_dict=False)[0]  # [b, 4, h, w]
    return answer


def sample(model: Model, condition: Condition, negative: Condition, drawing: Drawing) -> Tensor:
    """By DDIM with classifier-free guidance, as a whole picture of its own size."""
    from diffusers import StableDiffusionXLPipeline

    scheduler = diffusion.sampler(model)
    pipeline = StableDiffusionXLPipeline(model.parts["vae"], None, None, None, None, model.parts["unet"], scheduler, add_watermarker=False)
    return diffusion.sample(
        pipeline,
        drawing,
        prompt_embeds=torch.cat([condition["text"], condition["text_2"]], dim=-1),
        pooled_prompt_embeds=condition["pooled"],
        negative_prompt_embeds=torch.cat([negative["text"], negative["text_2"]], dim=-1),
        negative_pooled_prompt_embeds=negative["pooled"],
    )


def origin(model: Model) -> Origin:
    """sd-scripts' and modelspec's words."""
    implementation = "https://github.com/Stability-AI/generative-models"
    return diffusion.origin(model, "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", implementation)


FAMILY = Family(
    parts=("unet", "text_encoder", "text_encoder_2"),
    encoders=("text_encoder", "text_encoder_2"),
    components={
        "unet": "diffusers.UNet2DConditionModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
        "text_encoder_2": "transformers.CLIPTextModelWithProjection",
        "tokenizer": "transformers.CLIPTokenizer",
        "tokenizer_2": "transformers.CLIPTokenizer",
        "scheduler": "diffusers.DDPMScheduler",
    },
    pipeline="StableDiffusionXLPipeline",
    real={
        "unet": {
            "sample_size": 128,
            "block_out_channels": [320, 640, 1280],
            "layers_per_block": 2,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {**diffusion.VAE, "sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": clip.LARGE,
        "text_encoder_2": clip.BIG,
        "tokenizer": {},
        "tokenizer_2": {"pad_token": "!"},
        "scheduler": diffusion.SCHEDULER,
    },
    unused=(*diffusion.UNUSED, "clip_skip"),
    formats={"kohya": partial(export.to_kohya, key_of=partial(names.kohya_name, "sdxl")), "diffusers": export.to_peft},
    process=diffusion.process_of,
    targets=targets,
    convolutions=diffusion.convolutions,
    key_of=partial(names.kohya_name, "sdxl"),
    capacity=clip.capacity,
    token_count=token_count,
    tokens=tokens,
    encode=encode,
    describe=describe,
    predict=predict,
    sample=sample,
    origin=origin,
)
