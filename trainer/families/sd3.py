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

from trainer import export, fused
from trainer.adapters import Adapter, Target
from trainer.contract import Condition, Drawing
from trainer.export import Origin
from trainer.families import clip, flow
from trainer.families.model import Family, Model
from trainer.fused import Place
from trainer.protocol import TrainingOptions

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
PREFIXES = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
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


# --- names -----------------------------------------------------------------------------------------

FUSED = {"to_q": 0, "to_k": 1, "to_v": 2, "add_q_proj": 0, "add_k_proj": 1, "add_v_proj": 2}
ORIGINAL = {
    "attn.to_out.0": "x_block_attn_proj",
    "attn.to_add_out": "context_block_attn_proj",
    "attn2.to_out.0": "x_block_attn2_proj",
    "ff.net.0.proj": "x_block_mlp_fc1",
    "ff.net.2": "x_block_mlp_fc2",
    "ff_context.net.0.proj": "context_block_mlp_fc1",
    "ff_context.net.2": "context_block_mlp_fc2",
    "norm1.linear": "x_block_adaLN_modulation_1",
    "norm1_context.linear": "context_block_adaLN_modulation_1",
}


def place_of(part: str, module: str, last: int = -1) -> Place:
    """The place in the original, where a block's query, key and value are one. The `last` block's scale and shift of words are swapped."""
    if part != "transformer":
        return Place(clip.key_of(PREFIXES[part], module))
    _, block, inner = module.split(".", 2)
    prefix = f"lora_unet_joint_blocks_{block}_"
    if inner in ORIGINAL:
        return Place(prefix + ORIGINAL[inner], swapped=inner == "norm1_context.linear" and int(block) == last)
    attention, name = inner.split(".")
    side = "context_block" if name.startswith("add_") else "x_block"
    return Place(f"{prefix}{side}_{attention}_qkv", FUSED[name], (1, 1, 1))


def key_of(part: str, module: str) -> str:
    """kohya's name; query, key and value share one."""
    return place_of(part, module).name


def to_kohya(adapter: Adapter, dtype: torch.dtype) -> dict[str, Tensor]:
    """Under kohya's names, which are the original's."""
    lay = adapter.layouts.get("transformer")
    last = max((int(slot.target.name.split(".")[1]) for slot in lay.slots), default=-1) if lay else -1
    return fused.to_kohya(adapter, dtype, partial(place_of, last=last))


# --- words -----------------------------------------------------------------------------------------


def t5_length(options: TrainingOptions) -> int:
    """Tokens that T5 reads; CLIP reads its 77 whatever there is."""
    return options.t5_length or T5_LENGTH


def capacity(options: TrainingOptions) -> int:
    """Tokens of a caption that are read by somebody."""
    return t5_length(options) - 1


def token_count(model: Model, text: str) -> int:
    """T5's tokens without the end mark."""
    return flow.t5_token_count(model.parts["tokenizer_3"], text)


def tokens(model: Model, text: str, options: TrainingOptions) -> dict[str, Tensor]:
    """Ids [1, 77] for each CLIP, [length] for T5."""
    ids = {part: clip.tokens(model.parts[name], text, 1) for part, name in TOKENIZERS.items()}
    return {**ids, "text_encoder_3": flow.t5_tokens(model.parts["tokenizer_3"], text, t5_length(options))}


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
    formats={"diffusers": export.to_peft, "kohya": to_kohya},
    unused=(*flow.UNUSED, "guidance_embedding"),
    multiple=16,
    guidance=4.5,
    sampler="Euler",
    process=flow.process_of,
    targets=targets,
    key_of=key_of,
    capacity=capacity,
    token_count=token_count,
    tokens=tokens,
    encode=encode,
    predict=predict,
    sample=sample,
    origin=origin,
)
