"""What the layers of a model are called in the three file formats, and which of them are one there. Torch-free; knows names only.

A layer is named by diffusers' part and module path. kohya's files have the part as a prefix and underscores for dots; ComfyUI's have the
original model's own names. For SDXL kohya uses the original's names too; the transformers of SD3 and FLUX hold query, key and value in
one matrix there, and some more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

# --- UNets -----------------------------------------------------------------------------------------

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
NUMBERS = 3
"""Numbers that a block of the original takes: two layers, and one for the resize."""


def original_name(module: str) -> str:
    """A diffusers module path in the original's names, where every layer and every resize of a block has a number of its own."""
    if module in OUTSIDE:
        return OUTSIDE[module]
    place, *rest = module.split(".")
    block, kind, index = (0, rest[0], int(rest[1])) if place == "mid_block" else (int(rest[0]), rest[1], int(rest[2]))
    inner = rest[2:] if place == "mid_block" else rest[3:]
    if kind == "resnets":
        inner = [RESNET[inner[0]], *inner[1:]]
    if place == "mid_block":
        return ".".join(["middle_block", str(2 * index if kind == "resnets" else 1), *inner])
    if kind == "downsamplers":
        return f"input_blocks.{NUMBERS * (block + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{NUMBERS * block + 2}.2.conv"  # after the resnet and the attention
    number = NUMBERS * block + index + (1 if place == "down_blocks" else 0)
    return ".".join(["input_blocks" if place == "down_blocks" else "output_blocks", str(number), str(int(kind == "attentions")), *inner])


def module_name(original: str) -> str:
    """`original_name` the other way."""
    if original in _OUTSIDE_BACK:
        return _OUTSIDE_BACK[original]
    place, number, *rest = original.split(".")
    if place == "middle_block":
        kind, index = ("attentions", 0) if number == "1" else ("resnets", int(number) // 2)
        return ".".join(["mid_block", kind, str(index), *_inner(kind, rest)])
    down = place == "input_blocks"
    if rest[1:] in (["op"], ["conv"]):
        block, kind = int(number) // NUMBERS - down, "downsamplers" if down else "upsamplers"
        return f"{'down' if down else 'up'}_blocks.{block}.{kind}.0.conv"
    block, index = divmod(int(number) - down, NUMBERS)
    kind = "attentions" if rest[0] == "1" else "resnets"
    return ".".join(["down_blocks" if down else "up_blocks", str(block), kind, str(index), *_inner(kind, rest[1:])])


def _inner(kind: str, rest: list[str]) -> list[str]:
    return rest if kind == "attentions" else [_RESNET_BACK[".".join(rest)]]


_OUTSIDE_BACK = {original: module for module, original in OUTSIDE.items()}
_RESNET_BACK = {original: module for module, original in RESNET.items()}

# --- transformers ----------------------------------------------------------------------------------

Rows = tuple[str, ...]
"""The layers that are one in the original, in the order of its rows."""

SD3: Mapping[str, Rows] = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}
FLUX_DOUBLE: Mapping[str, Rows] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
FLUX_SINGLE: Mapping[str, Rows] = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_ZIMAGE_OWN = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
ZIMAGE: Mapping[str, Rows] = {
    **{name: (name,) for name in (*_ZIMAGE_OWN, "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0")},
    "attention.qkv": _ZIMAGE_OWN[:3],
    "attention.out": _ZIMAGE_OWN[3:],
}
"""Programs write diffusers' names in every format, which come first; the original's are read too."""
BLOCKS: Mapping[str, Mapping[tuple[str, str], Mapping[str, Rows]]] = {
    "sd3": {("transformer_blocks", "joint_blocks"): SD3},
    "flux": {("transformer_blocks", "double_blocks"): FLUX_DOUBLE, ("single_transformer_blocks", "single_blocks"): FLUX_SINGLE},
    "zimage": {(blocks, blocks): ZIMAGE for blocks in ("layers", "noise_refiner", "context_refiner")},
}
"""Family -> diffusers' and the original's list of blocks -> layers of the original -> diffusers' layers."""
SHARES = {"proj_mlp": 4}
"""Rows of a layer over those of its neighbours in one matrix, where it is not 1."""
SWAPPED = "norm1_context.linear"
"""In SD3's last block, where it has two sizes of rows and not six, the original has them the other way round."""

# --- formats ---------------------------------------------------------------------------------------

FORMATS = ("kohya", "diffusers", "comfyui")
UNETS = ("sd15", "sd2", "sdxl")
FAMILIES = (*UNETS, *BLOCKS)

FILES_OF: Mapping[str, str] = {"sd35": "sd3"}
"""Families that the trainer tells apart, and whose files are another's."""

KOHYA_ENCODERS: Mapping[str, Mapping[str, str]] = {
    "sd15": {"text_encoder": "lora_te"},
    "sd2": {"text_encoder": "lora_te"},
    "sdxl": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "sd3": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "text_encoder_3": "lora_te3"},
    "flux": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te3"},
    "zimage": {},
}
COMFYUI_ENCODERS: Mapping[str, Mapping[str, str]] = {
    "sd15": {"text_encoder": "clip_l"},
    "sd2": {"text_encoder": "clip_h"},
    "sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "sd3": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
    "flux": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
    "zimage": {},
}

_COMPOUNDS = {
    "down_blocks", "up_blocks", "mid_block", "input_blocks", "output_blocks", "middle_block", "transformer_blocks",
    "single_transformer_blocks", "joint_blocks", "double_blocks", "single_blocks", "x_block", "context_block", "img_attn",
    "img_mlp", "img_mod", "txt_attn", "txt_mlp", "txt_mod", "adaLN_modulation", "proj_in", "proj_out", "to_q", "to_k", "to_v",
    "to_out", "to_add_out", "add_q_proj", "add_k_proj", "add_v_proj", "proj_mlp", "ff_context", "norm1_context", "time_emb_proj",
    "conv_shortcut", "in_layers", "out_layers", "emb_layers", "skip_connection", "time_embed", "label_emb", "time_embedding",
    "add_embedding", "linear_1", "linear_2", "conv_in", "conv_out", "text_model", "self_attn", "q_proj", "k_proj", "v_proj",
    "out_proj", "wi_0", "wi_1", "noise_refiner", "context_refiner", "feed_forward",
}  # fmt: skip
"""Words of module paths that have an underscore of their own."""
_WORDS = re.compile("(?:" + "|".join(sorted(_COMPOUNDS, key=len, reverse=True)) + r"|[^_]+)(?=_|$)")


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a layer of a file lies, in diffusers' words."""

    part: str
    modules: Rows
    """More than one where the file's layer is several of diffusers'."""


@cache
def dotted(name: str) -> str:
    """kohya's name with its dots again."""
    return ".".join(_WORDS.findall(name))


def denoiser_of(family: str) -> str:
    """diffusers' name of the part that answers."""
    return "unet" if family in UNETS else "transformer"


def spot_of(name: str, form: str, family: str) -> Spot | None:
    """Where a layer of this name lies; None for a name that the format has not."""
    if form == "diffusers":
        part, _, module = name.partition(".")
        known = part == denoiser_of(family) or part in KOHYA_ENCODERS[family]
        return Spot(part, (with_text_model(part, module),)) if known and module else None
    if form == "comfyui":
        for part, clip in COMFYUI_ENCODERS[family].items():
            if name.startswith(start := f"text_encoders.{clip}.transformer."):
                return Spot(part, (name.removeprefix(start),))
        return of_original(name.removeprefix("diffusion_model."), family) if name.startswith("diffusion_model.") else None
    if name.startswith("lora_unet_"):
        path = dotted(name.removeprefix("lora_unet_"))
        blocks_of_diffusers = family in UNETS and path.startswith(("down_blocks.", "up_blocks.", "mid_block.", "conv_", "time_embedding."))
        return Spot("unet", (path,)) if blocks_of_diffusers else of_original(path, family)
    for part, prefix in KOHYA_ENCODERS[family].items():
        if re.match(rf"{prefix}{'1?' if prefix == 'lora_te' else ''}_", name):
            return Spot(part, (with_text_model(part, dotted(name.split("_", 2)[2])),))
    return None


def with_text_model(part: str, module: str) -> str:
    """Files made with transformers 5 leave `text_model` out of CLIP's paths."""
    return f"text_model.{module}" if part.startswith("text_encoder") and module.startswith("encoder.layers.") else module


def of_original(path: str, family: str) -> Spot | None:
    """Where a layer of the original's denoiser lies; None for one that no LoRA has."""
    if family in UNETS:
        try:
            return Spot("unet", (module_name(path),))
        except (ValueError, KeyError, IndexError):
            return None
    for (ours, theirs), table in BLOCKS[family].items():
        found = re.fullmatch(rf"{theirs}\.(\d+)\.(.+)", path)
        if found and found[2] in table:
            return Spot("transformer", tuple(f"{ours}.{found[1]}.{inner}" for inner in table[found[2]]))
    return None


def name_of(part: str, module: str, form: str, family: str) -> tuple[str, Rows]:
    """A layer's name in a format, and all the layers that have this name there."""
    encoder = part.startswith("text_encoder")
    if form == "diffusers":
        return f"{part}.{module}", (module,)
    if form == "comfyui":
        if encoder:
            return f"text_encoders.{COMFYUI_ENCODERS[family][part]}.transformer.{module}", (module,)
        original, rows = _to_original(module, family)
        return f"diffusion_model.{original}", rows
    if encoder:
        return f"{KOHYA_ENCODERS[family][part]}_{module.replace('.', '_')}", (module,)
    original, rows = (module, (module,)) if family in ("sd15", "sd2") else _to_original(module, family)
    return "lora_unet_" + original.replace(".", "_"), rows


def kohya_place(family: str, part: str, module: str) -> tuple[str, Rows]:
    """kohya's name of a layer that the trainer adapts, whatever the installed transformers calls it, and the layers that share it."""
    return name_of(part, with_text_model(part, module), "kohya", FILES_OF.get(family, family))


def kohya_name(family: str, part: str, module: str) -> str:
    """The name alone."""
    return kohya_place(family, part, module)[0]


def is_swapped(module: str, fan_in: int, rows: int, family: str) -> bool:
    """Whether the halves of a layer's rows are the other way round in the original: scale and shift of the words in SD3's last block."""
    return FILES_OF.get(family, family) == "sd3" and module.endswith(SWAPPED) and rows == 2 * fan_in


def kernel_of(module: str, family: str) -> tuple[int, int] | None:
    """The kernel of a UNet's convolution, told by its name; None for linear layers."""
    last = module.rsplit(".", 1)[-1]
    if family not in UNETS:
        return None
    if last in ("conv", "conv1", "conv2", "conv_in", "conv_out"):
        return 3, 3
    return (1, 1) if last == "conv_shortcut" or (family == "sd15" and last in ("proj_in", "proj_out")) else None


def _to_original(module: str, family: str) -> tuple[str, Rows]:
    if family in UNETS:
        name = original_name(module)
        bare = family != "sdxl" and name == "output_blocks.2.2.conv"  # no attention comes before it in SD1's first block upwards
        return "output_blocks.2.1.conv" if bare else name, (module,)
    blocks, number, inner = module.split(".", 2)
    for (ours, theirs), table in BLOCKS[family].items():
        for original, rows in table.items() if ours == blocks else ():
            if inner in rows:
                return f"{theirs}.{number}.{original}", tuple(f"{ours}.{number}.{row}" for row in rows)
    raise KeyError(module)


def form_of(names: Iterable[str]) -> str | None:
    """The format of a file, from its layers' names; None where they agree in none."""
    starts: dict[str, str | tuple[str, ...]] = {
        "kohya": "lora_",
        "comfyui": ("diffusion_model.", "text_encoders."),
        "diffusers": ("unet.", "transformer.", "text_encoder.", "text_encoder_"),
    }
    every = list(names)
    fitting = [form for form, start in starts.items() if every and all(name.startswith(start) for name in every)]
    return fitting[0] if len(fitting) == 1 else None
