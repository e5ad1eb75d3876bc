"""Stable Diffusion 3: a transformer for pictures and words together, CLIP-L, CLIP-G and T5, straight flow.

Esser et al. 2024 (arXiv 2403.03206). 3.5 (`sd35`) is this with normed queries and keys; Medium of 3.5 attends twice
in its first blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor

from trainer import export, fused, names
from trainer.adapters import Target
from trainer.contract import Condition, Drawing
from trainer.export import Origin
from trainer.families import clip, flow
from trainer.families.model import Family, Model
from trainer.protocol import TrainingOptions

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
T5_LENGTH = 154
TARGETS = {
    "kohya": (),  # every linear layer of the blocks
    "attention": ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
}
PENULTIMATE = 2


def targets(model: Model, part: str, preset: str) -> list[Target]:
    """The blocks' layers. What the last block makes of the words goes nowhere, so their queries there are idle."""
    module = model.parts[part]
    if part != "transformer":
        return clip.targets(part, module)
    last = module.config.num_layers - 1
    return flow.targets(module, ("transformer_blocks",), TARGETS[preset], (f"transformer_blocks.{last}.attn.add_q_proj",))


# --- words -----------------------------------------------------------------------------------------


def token_count(model: Model, text: str) -> int:
    """T5's tokens without the end mark."""
    return flow.t5_token_count(model.parts["tokenizer_3"], text)


def tokens(model: Model, text: str, options: TrainingOptions) -> dict[str, Tensor]:
    """Ids [1, 77] for each CLIP, [length] for T5."""
    ids = {part: clip.tokens(model.parts[name], text, 1) for part, name in TOKENIZERS.items()}
    return {**ids, "text_encoder_3": flow.t5_tokens(model.parts["tokenizer_3"], text, flow.t5_length(options, T5_LENGTH))}


def encode(model: Model, part: str, ids: Tensor) -> Condition:
    """States of the CLIPs' last layer but one and their summaries; T5's states."""
    encoder = model.parts[part]
    if part == "text_encoder_3":
        padding = model.parts["tokenizer_3"].pad_token_id
        return {"text_3": flow.t5_read(encoder, ids, padding_id=padding, foundation=model.foundation).to(model.dtype)}
    states, summary = clip.read(encoder, ids, skip=PENULTIMATE, normed=False)
    assert summary is not None
    if model.foundation.blank_zeros:
        worded = ~flow.blank(ids[:, 0], model.parts[TOKENIZERS[part]].eos_token_id, at=1)
        states, summary = states * worded[:, None, None], summary * worded[:, None]
    end = part.removeprefix("text_encoder")
    return {f"text{end}": states.to(model.dtype), f"pooled{end}": summary.to(model.dtype)}  # [b, 77, width], [b, width]


def joined(condition: Condition, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both CLIPs side by side, made as wide as T5, then T5 [b, 77 + length, 4096]; the summaries side by side [b, 2048]."""
    both = torch.cat([condition["text"], condition["text_2"]], dim=-1)
    wide = condition["text_3"]
    words = torch.cat([F.pad(both, (0, wide.shape[-1] - both.shape[-1])), wide], dim=1)
    return words.to(dtype), torch.cat([condition["pooled"], condition["pooled_2"]], dim=-1).to(dtype)


# --- pictures --------------------------------------------------------------------------------------


def predict(model: Model, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    """The transformer's velocity; it counts levels from 0 to 1000."""
    words, pooled = joined(condition, model.dtype)
    answer: Tensor = model.parts["transformer"](noisy, words, pooled, timesteps * 1000, return_dict=False)[0]  # [b, 16, h, w]
    return answer


SKIPPED = (7, 8, 9)
"""Blocks that skip-layer guidance leaves out for 3.5 Medium, with its makers' scale and span, which are diffusers' defaults."""


def sample(model: Model, condition: Condition, negative: Condition, drawing: Drawing) -> Tensor:
    """By Euler with classifier-free guidance; 3.5 Medium with skip-layer guidance as well."""
    from diffusers import StableDiffusion3Pipeline

    transformer = model.parts["transformer"]
    pipeline = StableDiffusion3Pipeline(transformer, flow.sampler(model), model.parts["vae"], *[None] * 6)
    skips = variant(transformer.config) == "5-medium" and transformer.config.num_layers > max(SKIPPED)
    (words, pooled), (others, others_pooled) = (joined(one, model.dtype) for one in (condition, negative))
    return flow.sample(
        pipeline,
        drawing,
        guidance_scale=drawing.guidance,
        prompt_embeds=words,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=others,
        negative_pooled_prompt_embeds=others_pooled,
        skip_guidance_layers=list(SKIPPED) if skips else None,
    )


def variant(config: Any) -> str:
    """Which of the three a transformer is, in the words of the metadata."""
    if not config.qk_norm:
        return "medium"
    return "5-medium" if config.dual_attention_layers else "5-large"


def origin(model: Model) -> Origin:
    """modelspec's words. sd-scripts writes the bare variant as version, which nobody recognises as SD3."""
    which = variant(model.parts["transformer"].config)
    return Origin(f"sd3_{which}".replace("sd3_5-", "sd35_"), f"stable-diffusion-3-{which}/lora", "diffusers", "")


# --- the real size ---------------------------------------------------------------------------------

MEDIUM: Mapping[str, Any] = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}

FAMILY = Family(
    parts=("transformer", "text_encoder", "text_encoder_2"),
    encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
    components={
        "transformer": "diffusers.SD3Transformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModelWithProjection",
        "text_encoder_2": "transformers.CLIPTextModelWithProjection",
        "text_encoder_3": "transformers.T5EncoderModel",
        "tokenizer": "transformers.CLIPTokenizer",
        "tokenizer_2": "transformers.CLIPTokenizer",
        "tokenizer_3": "transformers.T5TokenizerFast",
        "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    },
    pipeline="StableDiffusion3Pipeline",
    real={
        "transformer": MEDIUM,
        "vae": {**flow.VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        "text_encoder": clip.LARGE,
        "text_encoder_2": clip.BIG,
        "text_encoder_3": flow.T5,
        "tokenizer": {},
        "tokenizer_2": {"pad_token": "!"},
        "tokenizer_3": {},
        "scheduler": {"num_train_timesteps": 1000, "shift": 3.0},
    },
    held={
        "vae": "first_stage_model.decoder.conv_in.weight",
        "text_encoder": "text_encoders.clip_l.transformer.text_model.embeddings.position_embedding.weight",
        "text_encoder_2": "text_encoders.clip_g.transformer.text_model.embeddings.position_embedding.weight",
        "text_encoder_3": "text_encoders.t5xxl.transformer.shared.weight",
    },
    formats={"diffusers": export.to_peft, "kohya": partial(fused.to_kohya, family="sd3")},
    unused=(*flow.UNUSED, "guidance_embedding"),
    multiple=16,
    guidance=4.5,
    sampler="Euler",
    process=flow.process_of,
    targets=targets,
    key_of=partial(names.kohya_name, "sd3"),
    capacity=partial(flow.t5_capacity, usual=T5_LENGTH),
    token_count=token_count,
    tokens=tokens,
    encode=encode,
    predict=predict,
    sample=sample,
    origin=origin,
)
