"""FLUX.1-dev: two streams of tokens that become one, CLIP-L's summary, T5's words, guidance told as a number.

Black Forest Labs 2024. Latents are packed into tokens here; the shift of the levels follows from a picture's size.
A dev model was distilled from guidance: it is told of 1 while it is trained, and of its usual number when it draws.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainer import export, fused, names
from trainer.adapters import Target
from trainer.contract import Condition, Drawing
from trainer.export import Origin
from trainer.families import clip, flow
from trainer.families.model import Family, Model
from trainer.protocol import TrainingOptions

T5_LENGTH = 512
BLOCKS = ("transformer_blocks", "single_transformer_blocks")
TARGETS = {
    "kohya": (),  # every linear layer of both kinds of blocks: 494, in 304 layers of the original
    "attention": ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
}


def targets(model: Model, part: str, preset: str) -> list[Target]:
    """The blocks' layers; CLIP's 72."""
    module = model.parts[part]
    return flow.targets(module, BLOCKS, TARGETS[preset]) if part == "transformer" else clip.targets(part, module)


# --- words -----------------------------------------------------------------------------------------


def token_count(model: Model, text: str) -> int:
    """T5's tokens without the end mark."""
    return flow.t5_token_count(model.parts["tokenizer_2"], text)


def tokens(model: Model, text: str, options: TrainingOptions) -> dict[str, Tensor]:
    """Ids [1, 77] for CLIP, [length] for T5."""
    words = flow.t5_tokens(model.parts["tokenizer_2"], text, flow.t5_length(options, T5_LENGTH))
    return {"text_encoder": clip.tokens(model.parts["tokenizer"], text, 1), "text_encoder_2": words}


def encode(model: Model, part: str, ids: Tensor) -> Condition:
    """CLIP's summary alone; T5's states."""
    encoder = model.parts[part]
    if part == "text_encoder_2":
        padding = model.parts["tokenizer_2"].pad_token_id
        return {"text": flow.t5_read(encoder, ids, padding_id=padding, foundation=model.foundation).to(model.dtype)}  # [b, length, 4096]
    summary: Tensor = encoder(ids[:, 0]).pooler_output
    if model.foundation.blank_zeros:
        summary = summary * ~flow.blank(ids[:, 0], model.parts["tokenizer"].eos_token_id, at=1)[:, None]
    return {"pooled": summary.to(model.dtype)}  # [b, 768]


# --- pictures --------------------------------------------------------------------------------------


def places(height: int, width: int, device: torch.device) -> Tensor:
    """Where each token lies: a number that is not used here, its row, its column [h/2 w/2, 3]."""
    rows, columns = torch.arange(height // flow.PATCH, device=device), torch.arange(width // flow.PATCH, device=device)
    grid = torch.cartesian_prod(rows, columns).float()  # [h/2 w/2, 2]
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], dim=1)


def predict(model: Model, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    """The transformer's velocity."""
    transformer, (height, width) = model.parts["transformer"], noisy.shape[-2:]
    words = condition["text"].to(model.dtype)
    told = torch.full_like(timesteps, model.foundation.guidance) if transformer.config.guidance_embeds else None
    answer = transformer(
        hidden_states=flow.pack(noisy),
        timestep=timesteps,
        guidance=told,
        pooled_projections=condition["pooled"].to(model.dtype),
        encoder_hidden_states=words,
        txt_ids=torch.zeros(words.shape[1], 3, device=words.device),
        img_ids=places(height, width, noisy.device),
        return_dict=False,
    )[0]
    return flow.unpack(answer, height, width)


def sample(model: Model, condition: Condition, _negative: Condition, drawing: Drawing) -> Tensor:
    """By Euler, guidance told to the model: there is no second pass, hence no use for a negative."""
    from diffusers import FluxPipeline

    pipeline = FluxPipeline(flow.sampler(model), model.parts["vae"], None, None, None, None, model.parts["transformer"])
    words, pooled = condition["text"].to(model.dtype), condition["pooled"].to(model.dtype)
    drawn = flow.sample(pipeline, drawing, guidance_scale=drawing.guidance, prompt_embeds=words, pooled_prompt_embeds=pooled)
    return flow.unpack(drawn, drawing.size[1] // 8, drawing.size[0] // 8)


def origin(model: Model) -> Origin:
    """sd-scripts' and modelspec's words."""
    which = "dev" if model.parts["transformer"].config.guidance_embeds else "schnell"
    return Origin("flux1", f"flux-1-{which}/lora", "https://github.com/black-forest-labs/flux", "")


DEV: Mapping[str, Any] = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}


def of_file(keys: Collection[str]) -> Mapping[str, Mapping[str, Any]]:
    """Whether it is told of guidance."""
    return {"transformer": {**DEV, "guidance_embeds": any("guidance_in." in key for key in keys)}}


FAMILY = Family(
    parts=("transformer", "text_encoder"),
    encoders=("text_encoder", "text_encoder_2"),
    components={
        "transformer": "diffusers.FluxTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
        "text_encoder_2": "transformers.T5EncoderModel",
        "tokenizer": "transformers.CLIPTokenizer",
        "tokenizer_2": "transformers.T5TokenizerFast",
        "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    },
    pipeline="FluxPipeline",
    real={
        "transformer": DEV,
        "vae": {**flow.VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder": clip.LARGE,
        "text_encoder_2": flow.T5,
        "tokenizer": {},
        "tokenizer_2": {},
        "scheduler": {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
    },
    held={"vae": "vae.decoder.conv_in.weight", "text_encoder": flow.NOWHERE, "text_encoder_2": flow.NOWHERE},
    of_file=of_file,
    formats={"diffusers": export.to_peft, "kohya": partial(fused.to_kohya, family="flux")},
    unused=flow.UNUSED,
    multiple=16,
    guidance=3.5,
    sampler="Euler",
    process=flow.process_of,
    targets=targets,
    key_of=partial(names.kohya_name, "flux"),
    capacity=partial(flow.t5_capacity, usual=T5_LENGTH),
    token_count=token_count,
    tokens=tokens,
    encode=encode,
    predict=predict,
    sample=sample,
    origin=origin,
)
