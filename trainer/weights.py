"""A whole model's weights, layer by layer, out of a checkpoint or a diffusers folder, without loading it: numpy, no torch.

Layers are named as diffusers names them. Of a checkpoint in the original layout one tensor may be several layers: query, key and value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import names, tensorfile
from .base import Base, TensorInfo, header_of, inspect_base
from .errors import BaseModelError
from .lora import Key
from .tensorfile import Array


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer's weight lies in a file."""

    file: Path
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Bytes from the file's start."""
    index: int = 0
    """Which of the layers of one tensor it is."""
    shares: tuple[int, ...] = (1,)
    """How the tensor's rows are divided among them."""
    swapped: bool = False
    """Whether the halves of its rows are the other way round."""

    @property
    def rows(self) -> slice:
        """Its rows in the tensor."""
        unit = self.shape[0] // sum(self.shares)
        start = unit * sum(self.shares[: self.index])
        return slice(start, start + unit * self.shares[self.index])

    def read(self) -> Array:
        """The layer's weight in fp32, as diffusers has it."""
        return self.turned(self.tensor_itself()[self.rows])

    def tensor_itself(self) -> Array:
        """The whole tensor."""
        with self.file.open("rb") as file:
            file.seek(self.offset)
            data = file.read(int(np.prod(self.shape)) * tensorfile.BYTES[self.dtype])
        return tensorfile.decoded(self.file, data, self.dtype).reshape(self.shape)

    def turned(self, weight: Array) -> Array:
        """From the file's order of rows to diffusers', or back."""
        return np.concatenate(np.split(weight, 2)[::-1]) if self.swapped else weight


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's layers and where they lie."""

    base: Base
    family: str
    layers: Mapping[Key, Place]
    files: tuple[Path, ...]


def look_into(model: str, root: Path) -> Weights:
    """A checkpoint's or folder's layers, from the headers alone."""
    base = inspect_base(model, root)
    if base.kind == "hub":
        raise BaseModelError("LRY-BASE-MISSING", f"{model} is not on this computer.", "Give a checkpoint or a diffusers folder.")
    family = names.FILES_OF.get(base.family or "", base.family or "")
    if family not in names.FAMILIES:
        raise BaseModelError("LRY-BASE-FAMILY", f"{model} is {base.family}, whose layers are not known here.", "Give another model.")
    path, files = Path(base.location), []
    layers: dict[Key, Place] = {}
    for file, part in _files(path):
        files.append(file)
        for name, place in _tensors(file):
            layers |= dict(_spots(name, place, part, family))
    return Weights(base, family, layers, tuple(files))


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    """Files of weights, each with the component that it belongs to; empty for a checkpoint."""
    if path.is_file():
        yield path, ""
        return
    for folder in sorted(child for child in path.iterdir() if re.match(r"(unet|transformer|text_encoder)", child.name) and child.is_dir()):
        found = sorted(folder.glob("*.safetensors"))
        whole = [file for file in found if ".fp16." not in file.name] or found
        yield from ((file, folder.name) for file in whole)


def _tensors(file: Path) -> Iterator[tuple[str, Place]]:
    header = header_of(file)
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        offsets = json.loads(opened.read(length))
    for name, entry in header.tensors.items():
        info = TensorInfo(entry.dtype, entry.shape)
        if info.dtype in tensorfile.BYTES and len(info.shape) in {2, 4}:
            yield name, Place(file, name, info.dtype, info.shape, 8 + length + offsets[name]["data_offsets"][0])


_OPEN_CLIP = {
    "attn.in_proj_weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out_proj.weight": ("self_attn.out_proj",),
    "mlp.c_fc.weight": ("mlp.fc1",),
    "mlp.c_proj.weight": ("mlp.fc2",),
}
_ENCODERS = {
    r"cond_stage_model\.transformer\.": "text_encoder",
    r"conditioner\.embedders\.0\.transformer\.": "text_encoder",
}
_OPEN_ENCODERS = {
    r"cond_stage_model\.model\.transformer\.resblocks\.": "text_encoder",
    r"conditioner\.embedders\.1\.model\.transformer\.resblocks\.": "text_encoder_2",
}


def _spots(tensor: str, place: Place, part: str, family: str) -> Iterator[tuple[Key, Place]]:
    """The layers of one tensor."""
    spot = names.Spot(part, (tensor.removesuffix(".weight"),)) if part else _spot(tensor, family)
    if spot is None or not tensor.endswith("weight"):
        return
    shares = tuple(names.SHARES.get(module.rsplit(".", 1)[-1], 1) for module in spot.modules) if len(spot.modules) > 1 else (1,)
    for index, module in enumerate(spot.modules):
        rows = place.shape[0] * shares[index] // sum(shares)
        swapped = not part and names.is_swapped(module, place.shape[1], rows, family)
        found = Place(place.file, tensor, place.dtype, place.shape, place.offset, index, shares, swapped)
        yield (spot.part, names.with_text_model(spot.part, module)), found


def _spot(tensor: str, family: str) -> names.Spot | None:
    """What a tensor of an original checkpoint is."""
    for start, part in _OPEN_ENCODERS.items():
        if found := re.match(rf"{start}(\d+)\.(.+)", tensor):
            inner = _OPEN_CLIP.get(found[2], ())
            modules = tuple(f"text_model.encoder.layers.{found[1]}.{name}" for name in inner)
            return names.Spot(part, modules) if modules else None
    for start, part in _ENCODERS.items():
        if found := re.match(rf"{start}(.+)\.weight", tensor):
            return names.Spot(part, (found[1],))
    if tensor.startswith("text_encoders."):
        return names.spot_of(tensor.removesuffix(".weight"), "comfyui", family)
    return names.of_original(tensor.removeprefix("model.").removeprefix("diffusion_model.").removesuffix(".weight"), family)
