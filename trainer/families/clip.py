"""CLIP text encoders: captions cut into pieces of 75 tokens, read by layers, joined again.

As sd-scripts cuts and joins them (`train_util.py get_input_ids`, `get_hidden_states`), so that long captions mean
the same there, here and in the programs that draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trainer.adapters import Target, find_targets
from trainer.protocol import TrainingOptions

LENGTH = 75
"""CLIP reads 77 tokens, two of which mark start and end."""
LARGE: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
"""CLIP ViT-L/14's text encoder."""
BIG: Mapping[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
"""OpenCLIP ViT-bigG/14's."""
TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def pieces(options: TrainingOptions) -> int:
    """How many stretches of 75 tokens a caption is read in."""
    return options.max_token_length // LENGTH


def capacity(options: TrainingOptions) -> int:
    """Tokens of a caption that are read."""
    return pieces(options) * LENGTH


def token_count(tokenizer: Any, text: str) -> int:
    """Tokens without the two marks."""
    return len(tokenizer(text, truncation=False, verbose=False).input_ids) - 2


def tokens(tokenizer: Any, text: str, count: int) -> Tensor:
    """Token ids [n, 77] of a text in n pieces, each between marks of its own."""
    whole = count * LENGTH + 2
    ids: Tensor = tokenizer(text, padding="max_length", max_length=whole, truncation=True, return_tensors="pt").input_ids[0]
    inner = ids[1:-1].view(count, LENGTH)
    cut = torch.cat([ids[:1].expand(count, 1), inner, ids[-1:].expand(count, 1)], dim=1)
    if count > 1 and tokenizer.pad_token_id != tokenizer.eos_token_id:
        end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
        full = (cut[:, -2] != end) & (cut[:, -2] != padding)
        cut[full, -1] = end  # a piece that is full ends with the end mark
        cut[cut[:, 1] == padding, 1] = end  # one that is empty begins with it
    return cut


def read(encoder: Any, ids: Tensor, *, skip: int = 1, normed: bool = True) -> tuple[Tensor, Tensor | None]:
    """States [b, 75n+2, width] and, where the encoder projects, the first piece's summary [b, width], of ids [b, n, 77].

    `skip`: which layer from the end is read, 1 for the last; `normed`: after the encoder's last norm, or as the layer gives it.
    """
    batch, count = ids.shape[:2]
    out = encoder(ids.flatten(0, 1), output_hidden_states=skip > 1)
    states = out.last_hidden_state if skip == 1 else out.hidden_states[-skip]
    if skip > 1 and normed:
        states = getattr(encoder, "text_model", encoder).final_layer_norm(states)
    summary = getattr(out, "text_embeds", None)
    return joined(states.unflatten(0, (batch, count))), None if summary is None else summary.unflatten(0, (batch, count))[:, 0]


def joined(states: Tensor) -> Tensor:
    """Pieces [b, n, 77, width] as one sequence [b, 75n+2, width]: the first start mark, every piece's inside, the last end mark."""
    return torch.cat([states[:, 0, :1], states[:, :, 1:-1].flatten(1, 2), states[:, -1, -1:]], dim=1)


def targets(part: str, encoder: Any, *, skip: int = 1) -> list[Target]:
    """The six linear layers of every block; idle where the layer that is read comes before them."""
    read_from = encoder.config.num_hidden_layers - (skip - 1)
    silent = tuple(f"encoder.layers.{layer}." for layer in range(read_from, encoder.config.num_hidden_layers))
    found = find_targets(part, encoder, TARGETS)
    return [replace(target, idle=any(layer in target.name for layer in silent)) for target in found]
