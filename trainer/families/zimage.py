"""Z-Image: one stream of tokens, a language model (Qwen3) for the words, straight flow.

Alibaba 2025. The transformer counts levels from noise to picture and answers the velocity turned around. It takes as
many words as a caption has, so the padding is cut off before it sees them. Train on Base: Turbo is distilled.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainer import export, names
from trainer.adapters import Adapter, Target
from trainer.contract import Condition, Drawing
from trainer.export import Origin
from trainer.families import flow
from trainer.families.model import Family, Model
from trainer.protocol import TrainingOptions

LENGTH = 512
FRAME = 8
"""Tokens that the chat template puts around a caption."""
PENULTIMATE = -2
BLOCKS = ("noise_refiner", "context_refiner", "layers")
TARGETS = {
    "kohya": (),  # every linear layer of the blocks: 270
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
}


def targets(model: Model, part: str, preset: str) -> list[Target]:
    """The blocks' layers."""
    return flow.targets(model.parts[part], BLOCKS, TARGETS[preset])


def to_comfy(adapter: Adapter, dtype: torch.dtype) -> dict[str, Tensor]:
    """As ComfyUI's native files: diffusers' names under another prefix."""
    return {key.replace("transformer.", "diffusion_model.", 1): value for key, value in export.to_peft(adapter, dtype).items()}


# --- words -----------------------------------------------------------------------------------------


def token_count(model: Model, text: str) -> int:
    """Tokens of the caption itself."""
    return len(model.parts["tokenizer"](text, truncation=False, verbose=False).input_ids)


def tokens(model: Model, text: str, options: TrainingOptions) -> dict[str, Tensor]:
    """Ids [length] of the caption as a user's message, padded at the end."""
    tokenizer = model.parts["tokenizer"]
    message = [{"role": "user", "content": text}]
    framed = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    read = tokenizer(framed, padding="max_length", max_length=flow.t5_length(options, LENGTH), truncation=True, return_tensors="pt")
    return {"text_encoder": read.input_ids[0]}


def encode(model: Model, part: str, ids: Tensor) -> Condition:
    """States of the last layer but one, and which of them are words."""
    worded = ids != model.parts["tokenizer"].pad_token_id  # [b, length]
    states = model.parts[part](input_ids=ids, attention_mask=worded, output_hidden_states=True).hidden_states[PENULTIMATE]
    return {"text": states.to(model.dtype), "worded": worded}  # [b, length, width]


def words(condition: Condition, dtype: torch.dtype) -> list[Tensor]:
    """Each row's words [n, width], without padding."""
    return [text[worded] for text, worded in zip(condition["text"].to(dtype), condition["worded"], strict=True)]


# --- pictures --------------------------------------------------------------------------------------


def predict(model: Model, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    """The transformer's velocity; pictures go in as films of one frame."""
    films = list(noisy[:, :, None].unbind(0))
    answers = model.parts["transformer"](films, 1.0 - timesteps, words(condition, model.dtype), return_dict=False)[0]
    return -torch.stack(answers)[:, :, 0]  # [b, 16, h, w]


def sample(model: Model, condition: Condition, negative: Condition, drawing: Drawing) -> Tensor:
    """By Euler with classifier-free guidance, which is off at 0 here."""
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline(flow.sampler(model), model.parts["vae"], None, None, model.parts["transformer"])
    return flow.sample(
        pipeline,
        drawing,
        guidance_scale=drawing.guidance,
        prompt_embeds=words(condition, model.dtype),
        negative_prompt_embeds=words(negative, model.dtype),
    )


def origin(_model: Model) -> Origin:
    """Words by which SD.Next knows it; modelspec has none yet."""
    return Origin("zimage", "z-image/lora", "https://github.com/Tongyi-MAI/Z-Image", "")


REAL: Mapping[str, Any] = {
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "qk_norm": True,
    "cap_feat_dim": 2560,
    "t_scale": 1000.0,
}
QWEN3_4B: Mapping[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}

FAMILY = Family(
    parts=("transformer",),
    encoders=("text_encoder",),
    components={
        "transformer": "diffusers.ZImageTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.Qwen3Model",
        "tokenizer": "transformers.AutoTokenizer",
        "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    },
    pipeline="ZImagePipeline",
    real={
        "transformer": REAL,
        "vae": {**flow.VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder": QWEN3_4B,
        "tokenizer": {},
        "scheduler": {"num_train_timesteps": 1000, "shift": 3.0},
    },
    held={"vae": flow.NOWHERE, "text_encoder": flow.NOWHERE},
    formats={"diffusers": export.to_peft, "comfyui": to_comfy},
    unused=(*flow.UNUSED, "guidance_embedding", "t5_padding", "blank_caption", "text_encoder_lr", "text_encoder_2_lr"),
    multiple=16,
    guidance=4.0,
    sampler="Euler",
    process=flow.process_of,
    targets=targets,
    key_of=partial(names.kohya_name, "zimage"),
    capacity=partial(flow.t5_capacity, usual=LENGTH, marks=FRAME),
    token_count=token_count,
    tokens=tokens,
    encode=encode,
    predict=predict,
    sample=sample,
    origin=origin,
)
