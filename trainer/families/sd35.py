"""Stable Diffusion 3.5, Medium and Large: as 3, with normed queries and keys, which keep its training stable for longer.

Which of the two a base is says its own configuration, or a checkpoint's keys. Medium attends to the picture twice in
its first blocks, and has room for larger pictures.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from trainer.families import sd3

MEDIUM: Mapping[str, Any] = {**sd3.MEDIUM, "pos_embed_max_size": 384, "dual_attention_layers": [*range(13)], "qk_norm": "rms_norm"}
LARGE: Mapping[str, Any] = {
    **sd3.MEDIUM,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}


def of_file(keys: Collection[str]) -> Mapping[str, Mapping[str, Any]]:
    """What a checkpoint's keys say of its transformer."""
    return {"transformer": MEDIUM if any(".x_block.attn2." in key for key in keys) else LARGE}


FAMILY = replace(sd3.FAMILY, real={**sd3.FAMILY.real, "transformer": LARGE}, of_file=of_file)
