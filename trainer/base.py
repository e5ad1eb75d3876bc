"""What a base model is, told from its files without loading it.

Torch-free. Reads JSON and the headers of safetensors files by a strict reader of its own; never a weight,
never a pickle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import header
from .errors import BaseModelError
from .header import Header, Malformed

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")

PIPELINES = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "ZImagePipeline": "zimage",
    "StableDiffusionInpaintPipeline": "an inpainting model",
    "StableDiffusionXLInpaintPipeline": "an SDXL inpainting model",
}

_FOLDERS = {
    "sd15": ("unet", "vae", "text_encoder", "tokenizer"),  # and sd2, which is told from it by its UNet
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    "sd3": (
        "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3",
    ),  # and sd35
    "flux": ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    "zimage": ("transformer", "vae", "text_encoder", "tokenizer"),
}  # fmt: skip
"""What a whole folder of a family holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base model and what is known of it."""

    kind: Literal["folder", "checkpoint", "hub"]
    location: str
    """Absolute path, or the hub id."""
    family: str | None
    """A family's name, or words for what it is instead; None for a hub id, which nobody has looked at yet."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]


def inspect_base(base: str, root: Path) -> Base:
    """Say what `base` names: a folder or file below `root` (or absolute), or a hub id."""
    path = root / base
    if path.is_dir():
        return Base(kind="folder", location=str(path.resolve()), family=_family_of_folder(path))
    if path.is_file():
        if path.suffix.lower() in {".ckpt", ".pt", ".pth", ".bin"}:
            raise BaseModelError(
                "LRY-BASE-PICKLE", f"{base} is a pickle, which can run code when opened.", "Take the .safetensors of the same model."
            )
        return Base(kind="checkpoint", location=str(path.resolve()), family=family_of_keys(read_header(path)))
    if _HUB_ID.match(base) and not base.endswith((".safetensors", ".ckpt")):
        return Base(kind="hub", location=base, family=None)
    raise BaseModelError(
        "LRY-BASE-MISSING",
        f"the base {base} is not there.",
        "Give a diffusers folder, one .safetensors checkpoint, or a hub id like owner/name.",
    )


def expect_family(base: Base, family: str) -> None:
    """Refuse a base of another family, in words."""
    if base.family is None or base.family == family:
        return
    name = Path(base.location).name
    raise BaseModelError(
        "LRY-BASE-FAMILY",
        f"{name} is {_article(base.family)}, not {family}.",
        f"Set `family` to what the base is, or give a base of family {family}.",
    )


def _article(family: str) -> str:
    return family if " " in family else f"of family {family}"


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, dtypes and shapes in a safetensors file. Strict: whatever does not add up is refused."""
    return {name: TensorInfo(entry.dtype, entry.shape) for name, entry in header_of(path).tensors.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """What the file says about itself; nothing, if it says nothing."""
    return dict(header_of(path).metadata)


def header_of(path: Path) -> Header:
    """All that the file says before its first tensor."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = header.length(file.read(8), size)
            return header.parse(file.read(length), size - 8 - length)
    except Malformed as error:
        raise _broken(path, str(error)) from error


def _broken(path: Path, fact: str) -> BaseModelError:
    return BaseModelError("LRY-BASE-BROKEN", f"{path.name} {fact}.", "Fetch it again and compare its SHA-256 with the publisher's.")


def family_of_keys(header: Mapping[str, TensorInfo]) -> str:
    """The family of a single-file checkpoint, or words for what it is."""
    keys = header.keys()
    if any(k.endswith((".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".hada_w1_a", ".lokr_w1")) for k in keys):
        raise BaseModelError(
            "LRY-BASE-NOT-A-MODEL", "the base file is a LoRA.", "A LoRA is trained on a full model: give that model's checkpoint."
        )
    if transformer := _family_of_transformer(keys):
        return transformer
    unet = "model.diffusion_model."
    if f"{unet}input_blocks.0.0.weight" not in keys:
        if any(k.startswith(("encoder.down", "first_stage_model.")) for k in keys):
            raise BaseModelError("LRY-BASE-NOT-A-MODEL", "the base file is a VAE alone.", "Give the full checkpoint.")
        raise BaseModelError(
            "LRY-BASE-UNKNOWN",
            "the base file is no Stable Diffusion checkpoint that is known here.",
            "Give a checkpoint in the original layout, or a diffusers folder.",
        )
    if header[f"{unet}input_blocks.0.0.weight"].shape[1:2] == (9,):
        return "an inpainting model"
    if f"{unet}label_emb.0.0.weight" in keys:
        return _sdxl(keys)
    return _sd1_or_sd2(header)


def _family_of_transformer(keys: Collection[str]) -> str | None:
    """The family of a flow model, whose files may hold the transformer alone."""
    if any(k.endswith("double_blocks.0.img_attn.qkv.weight") for k in keys):
        return "flux"
    if any("joint_blocks.0." in k for k in keys):
        return "sd35" if any(k.endswith("joint_blocks.0.x_block.attn.ln_q.weight") for k in keys) else "sd3"
    if any("context_refiner.0.attention." in k for k in keys) and any(k.endswith("cap_pad_token") for k in keys):
        return "zimage"
    return None


def _sdxl(keys: Collection[str]) -> str:
    if any(k.startswith("conditioner.embedders.0.model.") for k in keys):
        return "an SDXL refiner"
    if not any(k.startswith("conditioner.embedders.0.transformer.") for k in keys):
        raise BaseModelError(
            "LRY-BASE-NOT-A-MODEL", "the base file has a UNet but no text encoder.", "Give the full checkpoint, not a pruned UNet."
        )
    return "sdxl"


def _sd1_or_sd2(header: Mapping[str, TensorInfo]) -> str:
    if any(k.startswith("cond_stage_model.model.") for k in header):
        return "sd2"
    if any(k.startswith("cond_stage_model.transformer.") for k in header):
        return "sd15"
    raise BaseModelError(
        "LRY-BASE-NOT-A-MODEL", "the base file has a UNet but no text encoder.", "Give the full checkpoint, not a pruned UNet."
    )


def _family_of_folder(folder: Path) -> str:
    index = _json(folder / "model_index.json", folder)
    pipeline = str(index.get("_class_name"))
    family = PIPELINES.get(pipeline)
    if family is None:
        return f"a {pipeline}"
    if family not in _FOLDERS:
        return family
    for part in _FOLDERS[family]:
        if not (folder / part).is_dir():
            raise BaseModelError("LRY-BASE-MISSING", f"the base {folder.name} has no folder {part}/.", "Fetch the whole model.")
    for part in [part for part in _FOLDERS[family] if not part.startswith("tokenizer")]:
        weights = sorted((folder / part).glob("*.safetensors"))
        if not weights:
            raise _without_safetensors(folder, part)
        for path in weights:
            read_header(path)  # a download that was cut short is seen here, before anything is rented
    if family == "sd3":
        return "sd35" if _json(folder / "transformer" / "config.json", folder).get("qk_norm") else "sd3"
    if family != "sd15":
        return family
    config = _json(folder / "unet" / "config.json", folder)
    if config.get("in_channels") == 9:
        return "an inpainting model"
    later = config.get("cross_attention_dim") == 1024 or config.get("use_linear_projection")  # OpenCLIP-H is 1024 wide
    return "sd2" if later else "sd15"


def _without_safetensors(folder: Path, part: str) -> BaseModelError:
    if any((folder / part).glob("*.bin")):
        return BaseModelError(
            "LRY-BASE-PICKLE",
            f"{folder.name}/{part} has pickled weights only, which can run code.",
            "Take the .safetensors of the same model.",
        )
    return BaseModelError("LRY-BASE-MISSING", f"{folder.name}/{part} has no weights.", "Fetch the whole model.")


def _json(path: Path, folder: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BaseModelError(
            "LRY-BASE-UNKNOWN",
            f"{folder.name} is no diffusers folder: {path.relative_to(folder)} is not there.",
            "Give the folder that holds model_index.json, or a .safetensors file.",
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaseModelError(
            "LRY-BASE-BROKEN", f"{path.relative_to(folder)} of {folder.name} is no JSON.", "Fetch the model again."
        ) from error
    if not isinstance(value, dict):
        raise BaseModelError("LRY-BASE-BROKEN", f"{path.relative_to(folder)} of {folder.name} is no table.", "Fetch the model again.")
    return value
