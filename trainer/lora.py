"""A LoRA file as what it does to each layer, whatever its format: read and written. Torch-free.

The change of a layer's weight is up @ down * alpha / rank. Layers are named as diffusers names them; one that holds query, key and
value in the file is three here, each with its own strength. Reads files as data: a header that is checked, and numbers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import names, plain, tensorfile
from .base import read_metadata
from .errors import BaseModelError, IntegrityError
from .files import Written
from .tensorfile import Array


@dataclass(frozen=True, slots=True)
class Layer:
    """What is added to one layer's weight."""

    down: Array
    """[r, in], of a convolution [r, in, h, w]."""
    up: Array
    """[out, r], of a convolution [out, r, 1, 1]."""
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def product(self) -> Array:
        """The change [out, in * h * w] in fp64."""
        change: Array = flat(self.up).astype(np.float64) @ flat(self.down).astype(np.float64) * self.scale
        return change

    def with_alpha(self, alpha: float) -> Layer:
        """The same change, told by another alpha."""
        return self if alpha == self.alpha else Layer(self.down, self.up * np.float32(self.alpha / alpha), alpha)


Key = tuple[str, str]
"""Part and module path, in diffusers' words."""


@dataclass(frozen=True, slots=True)
class Lora:
    """A whole file."""

    family: str
    form: str
    """`kohya`, `diffusers` or `comfyui`: whose names it has."""
    dtype: str
    layers: Mapping[Key, Layer]
    metadata: Mapping[str, str]

    @property
    def ranks(self) -> list[int]:
        return sorted({layer.rank for layer in self.layers.values()})


# --- reading ---------------------------------------------------------------------------------------

_ENDINGS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
    **{f".{name}": name for name in plain.PIECES},
    ".dora_scale": "dora",
    ".lora_magnitude_vector": "magnitude",
}
_OTHERS = {
    r"\.hada_": "a LoHa in Tucker form",
    r"\.lokr_": "a LoKr in Tucker form",
    r"\.oft_": "OFT",
    r"\.lora_mid\.": "a LoCon in Tucker form",
    r"\.(diff|diff_b)$": "whole weights beside a LoRA",
}
"""Pattern of a key -> the method that made it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file's layers as they are written in it."""

    family: str
    form: str
    layers: Mapping[str, Mapping[str, Array]]
    """Name in the file -> its matrices by what they are."""
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]


def read(path: Path) -> Lora:
    """Read a LoRA of any format that is known; says in words what is wrong with it. A LoHa or LoKr is the LoRA that does the same."""
    stored = read_stored(path)
    form, family, metadata = stored.form, stored.family, stored.metadata
    layers: dict[Key, Layer] = {}
    alphas = _peft_alphas(metadata) if form == "diffusers" else {}
    for name, found in stored.layers.items():
        spot = names.spot_of(name, form, family)
        if spot is None:
            raise IntegrityError("LRY-FILE-ADAPTER", f"{path.name} has a layer that {family} has not: {name}.", "Nothing was written.")
        layer = _layer(path, name, plain.as_lora(path, name, found, names.kernel_of(spot.modules[0], family)), alphas)
        layers |= {(spot.part, module): piece for module, piece in _split(layer, spot.modules, form, family)}
    common = Counter(dtype for name, dtype in stored.dtypes.items() if not name.endswith(".alpha")).most_common(1)[0][0]
    lora = Lora(family, form, common if common in tensorfile.DTYPES.values() else "F32", layers, metadata)
    return _unfolded(lora)


def read_stored(path: Path) -> Stored:
    """A file's layers, grouped, and whose they are."""
    if path.suffix.lower() != ".safetensors":
        raise IntegrityError("LRY-FILE-ADAPTER", f"{path.name} is no .safetensors file.", "Other kinds can hold code, and are not opened.")
    try:
        arrays, dtypes = tensorfile.read(path)
        metadata = read_metadata(path)
    except FileNotFoundError:
        raise IntegrityError("LRY-FILE-ADAPTER", f"{path} is not there.", "Check the path.") from None
    except (BaseModelError, OSError) as error:
        raise IntegrityError("LRY-FILE-ADAPTER", f"{path.name} cannot be read as safetensors: {error}", "Fetch it again.") from error
    stored = _grouped(path, arrays)
    form = names.form_of(stored)
    family = form and _family(stored, form, metadata)
    if form is None or family is None:
        odd = next(iter(stored), "nothing")
        raise IntegrityError("LRY-FILE-ADAPTER", f"{path.name} has layers of no model that is known here: {odd}.", "Nothing was written.")
    return Stored(family, form, stored, dtypes, metadata)


def _grouped(path: Path, arrays: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    stored: dict[str, dict[str, Array]] = {}
    for key, array in arrays.items():
        ending = next((end for end in _ENDINGS if key.endswith(end)), None)
        if ending is None:
            method = next((method for mark, method in _OTHERS.items() if re.search(mark, key)), None)
            what = f"{method} ({key})" if method else f"{key}, which no LoRA has"
            raise IntegrityError("LRY-FILE-ADAPTER", f"{path.name} holds {what}.", "Only LoRA, LoCon, LoHa and LoKr are converted.")
        stored.setdefault(key.removesuffix(ending), {})[_ENDINGS[ending]] = array
    return stored


def _layer(path: Path, name: str, found: Mapping[str, Array], alphas: Mapping[str, float]) -> Layer:
    down, up = found.get("down"), found.get("up")
    if down is None or up is None or down.ndim not in (2, 4) or up.ndim != down.ndim or up.shape[1] != len(down) or not len(down):
        raise IntegrityError("LRY-FILE-ADAPTER", f"{path.name} has no fitting pair of matrices for {name}.", "It is damaged.")
    if down.ndim == 4 and up.shape[2:] != (1, 1):
        raise IntegrityError("LRY-FILE-ADAPTER", f"{path.name} has a second convolution larger than 1x1 in {name}.", "It is no LoCon.")
    alpha = float(found["alpha"]) if "alpha" in found else next((a for end, a in alphas.items() if name.endswith(end)), 1.0) * len(down)
    if not np.isfinite(alpha) or not np.isfinite(down).all() or not np.isfinite(up).all():
        raise IntegrityError(
            "LRY-FILE-ADAPTER", f"{path.name} has numbers that are not finite in {name}.", "The training that made it broke."
        )
    return Layer(down, up, alpha)


def _peft_alphas(metadata: Mapping[str, str]) -> dict[str, float]:
    """Ends of layers' names -> alpha over rank, where a file made with PEFT tells it beside its weights; special layers first."""
    try:
        told = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return {}
    scales: dict[str, float] = {}
    for part in {key.split(".")[0] for key in told}:
        rank, alpha = told.get(f"{part}.r"), told.get(f"{part}.lora_alpha")
        if not rank or alpha is None:
            continue
        ranks, alphas = told.get(f"{part}.rank_pattern") or {}, told.get(f"{part}.alpha_pattern") or {}
        for end in {**ranks, **alphas}:
            scales[f".{end}"] = alphas.get(end, alpha) / _root(told, part, ranks.get(end, rank))
        scales[""] = alpha / _root(told, part, rank)
    return scales


def _root(told: Mapping[str, object], part: str, rank: int) -> float:
    return float(rank**0.5) if told.get(f"{part}.use_rslora") else float(rank)


_FAMILY_OF_WIDTH = {768: "sd15", 1024: "sd2", 2048: "sdxl"}
"""Words' width at a UNet's cross-attention."""


def _family(stored: Mapping[str, Mapping[str, Array]], form: str, metadata: Mapping[str, str]) -> str | None:
    every = " ".join(stored)
    if re.search(r"(noise|context)_refiner|(unet_|diffusion_model\.|transformer\.)layers[._]\d", every):
        return "zimage"
    if re.search(r"single_(transformer_)?blocks|double_blocks", every):
        return "flux"
    if "joint_blocks" in every:
        return "sd3"
    widths = {found["down"].shape[1] for name, found in stored.items() if "down" in found and found["down"].ndim > 1 and "to_q" in name}
    if form == "diffusers" and any(name.startswith("transformer.transformer_blocks.") for name in stored):
        return "flux" if widths == {3072} else "sd3"
    words = {_inputs(found) for name, found in stored.items() if re.search(r"attn2[._]to_[kv]$", name)}
    for width in words:
        if width in _FAMILY_OF_WIDTH:
            return _FAMILY_OF_WIDTH[width]
    if "lora_te2" in every or "text_encoder_2." in every or "clip_g" in every or "lora_unet_input_blocks" in every:
        return "sdxl"
    told = metadata.get("ss_base_model_version", "") + metadata.get("modelspec.architecture", "")
    for mark, family in {"sdxl": "sdxl", "xl-v1": "sdxl", "sd_v2": "sd2", "diffusion-v2": "sd2", "clip_h": "sd2"}.items():
        if mark in told + every:
            return family
    return (
        "sd15"
        if re.search(r"lora_unet|lora_te|unet\.|diffusion_model\.|text_encoder", every) and "transformer.layers" not in every
        else None
    )


def _inputs(found: Mapping[str, Array]) -> int:
    """Of a linear layer; 0 where it cannot be told."""
    for name in ("down", "hada_w1_b"):
        if name in found:
            return found[name].shape[1] if found[name].ndim > 1 else 0
    small, large = (next((found[name] for name in (f"lokr_w{n}", f"lokr_w{n}_b") if name in found), None) for n in (1, 2))
    return 0 if small is None or large is None else small.shape[1] * large.shape[1]


# --- one matrix for several layers -----------------------------------------------------------------


def _split(layer: Layer, modules: Sequence[str], form: str, family: str) -> Iterator[tuple[str, Layer]]:
    """The layers that a file's layer is made of, in diffusers' order of rows."""
    if len(modules) == 1:
        yield modules[0], _swapped(layer, modules[0], family) if form != "diffusers" else layer
        return
    shares = [names.SHARES.get(module.rsplit(".", 1)[-1], 1) for module in modules]
    unit = len(layer.up) // sum(shares)
    starts = np.cumsum([0, *shares]) * unit
    pieces = [layer.up[starts[i] : starts[i + 1]] for i in range(len(modules))]
    used = [np.flatnonzero(piece.any(axis=0)) for piece in pieces]
    apart = sum(len(columns) for columns in used) == len(set(np.concatenate(used).tolist())) and any(len(columns) for columns in used)
    for module, piece, columns in zip(modules, pieces, used, strict=True):
        if not apart:
            yield module, Layer(layer.down, piece, layer.alpha)
        elif len(columns):  # each had matrices of its own; one without any had no adapter
            yield module, Layer(layer.down[columns], piece[:, columns], layer.scale * len(columns))


def _fused(members: Sequence[tuple[str, Layer]], rows: Sequence[str]) -> Layer:
    """Several layers as one: what they share once, else B in blocks on the diagonal. alpha grows with the rank: each keeps its strength."""
    shares = {module: names.SHARES.get(module.rsplit(".", 1)[-1], 1) for module in rows}
    first = members[0][1]
    unit = len(first.up) // shares[members[0][0]]
    shared = len(members) == len(rows) and all(
        layer.alpha == first.alpha and np.array_equal(layer.down, first.down) for _, layer in members
    )
    if shared:
        return Layer(first.down, np.concatenate([layer.up for _, layer in members]), first.alpha)
    rank = sum(layer.rank for _, layer in members)
    up = np.zeros((unit * sum(shares.values()), rank), np.float32)
    row, column, found = 0, 0, dict(members)
    for module in rows:
        height = unit * shares[module]
        if module in found:
            layer = found[module].with_alpha(first.scale * found[module].rank)
            up[row : row + height, column : column + layer.rank] = layer.up
            column += layer.rank
        row += height
    return Layer(np.concatenate([found[module].down for module in rows if module in found]), up, first.scale * rank)


def _swapped(layer: Layer, module: str, family: str) -> Layer:
    """The last block of SD3 has scale and shift of the words the other way round in the original; told by its number of rows."""
    if not names.is_swapped(module, layer.down.shape[1], len(layer.up), family):
        return layer
    return replace(layer, up=np.concatenate(np.split(layer.up, 2)[::-1]))


# --- writing ---------------------------------------------------------------------------------------

ALPHA = "lorry_alpha"
"""Metadata of files that have no room for it: one alpha of all layers, so that the way back gives the same file."""


def write(path: Path, lora: Lora, form: str, dtype: str | None = None) -> Written:
    """Write a LoRA in a format; its strength is the same in every one."""
    arrays, metadata = tensors(lora, form, dtype or lora.dtype)
    return tensorfile.write(path, arrays, dtype or lora.dtype, metadata)


def tensors(lora: Lora, form: str, dtype: str) -> tuple[dict[str, Array], dict[str, str]]:
    """A file's tensors and metadata in a format."""
    stored: dict[str, Layer] = {}
    for (part, module), layer in lora.layers.items():
        name, rows = names.name_of(part, module, form, lora.family)
        if name in stored:
            continue
        members = [(row, lora.layers[part, row]) for row in rows if (part, row) in lora.layers]
        whole = _swapped(layer, module, lora.family) if form != "diffusers" else layer
        stored[name] = _fused(members, rows) if len(rows) > 1 else whole
    metadata = {
        key: value for key, value in lora.metadata.items() if not key.startswith("sshs_") and key not in (ALPHA, "lora_adapter_metadata")
    }
    alphas = Counter(layer.alpha for layer in stored.values())
    if form == "diffusers":
        if len(alphas) == 1 and any(layer.alpha != layer.rank for layer in stored.values()):
            metadata[ALPHA] = repr(next(iter(alphas)))
        return {key: array for name, layer in stored.items() for key, array in _peft(name, layer.with_alpha(layer.rank)).items()}, metadata
    # diffusers misreads alphas that differ in a UNet's file (see `export.to_kohya`); a type that cannot hold an alpha has the nearest.
    common = alphas.most_common(1)[0][0] if form == "kohya" and lora.family in names.UNETS else None
    told = {name: layer.with_alpha(_held(common or layer.alpha, dtype)) for name, layer in stored.items()}
    arrays: dict[str, Array] = {}
    for name, layer in told.items():
        pair = _peft(name, layer) if form == "comfyui" else {f"{name}.lora_down.weight": layer.down, f"{name}.lora_up.weight": layer.up}
        arrays |= {**pair, f"{name}.alpha": np.asarray(layer.alpha, np.float32)}
    return arrays, metadata


def _held(alpha: float, dtype: str) -> float:
    return float(tensorfile.rounded(np.asarray(alpha, np.float32), dtype))


def _peft(name: str, layer: Layer) -> dict[str, Array]:
    return {f"{name}.lora_A.weight": layer.down, f"{name}.lora_B.weight": layer.up}


def _unfolded(lora: Lora) -> Lora:
    """With the alpha that the metadata remember."""
    try:
        alpha = float(lora.metadata.get(ALPHA, ""))
    except ValueError:
        return lora
    if lora.form != "diffusers" or not np.isfinite(alpha) or alpha <= 0:
        return lora
    return replace(lora, layers={key: layer.with_alpha(alpha) for key, layer in lora.layers.items()})


def flat(array: Array) -> Array:
    """[n, everything else]; of B, [out, r, 1, 1] is [out, r]."""
    return array.reshape(len(array), -1)
