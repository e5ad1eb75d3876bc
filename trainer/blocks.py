"""PURE. The blocks of a UNet as sd-scripts numbers them for block_dims and block_lr_weight, told from a layer's name in its files.

SD1 and SD2: 12 down, the middle, 12 up, counted in resnets, attentions and resizes, though not every number has layers. SDXL: what
embeds time and size, 9 in, 3 middle, 9 out, and the last layer, as the original model counts them.
"""

from __future__ import annotations

import re

DOWN_MIDDLE_UP = 25
SDXL = 23
COUNTS = (DOWN_MIDDLE_UP, SDXL)

_MIDDLE = 12
_SD = re.compile(r"^lora_unet_(up|down)_blocks_(\d+)_(resnets|attentions|upsamplers|downsamplers)_(\d+)_")
_SDXL = re.compile(r"^lora_unet_(input_blocks|middle_block|output_blocks)_(\d+)_")
_SDXL_STARTS = {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}
_SDXL_OUTSIDE = {"lora_unet_time_embed_": 0, "lora_unet_label_emb_": 0, "lora_unet_out_": SDXL - 1}


def number_of(key: str, count: int) -> int | None:
    """The number of the block that a layer belongs to, by kohya's name of the layer; None where it belongs to none."""
    if count == SDXL:
        if found := _SDXL.match(key):
            return _SDXL_STARTS[found[1]] + int(found[2])
        return next((number for start, number in _SDXL_OUTSIDE.items() if key.startswith(start)), None)
    if key.startswith("lora_unet_mid_block_"):
        return _MIDDLE
    if found := _SD.match(key):
        place = 3 * int(found[2]) + (2 if "samplers" in found[3] else int(found[4]))
        return (1 if found[1] == "down" else _MIDDLE + 1) + place
    return None
