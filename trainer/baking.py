"""Between whole models and LoRAs: a LoRA added to a model's own weights, and what a tuned model has learnt over its base as a LoRA.

numpy, no torch, and one layer in memory at a time.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import names, tensorfile
from .errors import IntegrityError
from .lora import Key, Layer, Lora
from .tensorfile import Array
from .weights import Place, Weights

# --- a LoRA into a model ---------------------------------------------------------------------------


def bake(model: Weights, lora: Lora, weight: float, out: Path) -> None:
    """Write the model with a LoRA added to it, every tensor in the type that it had; into a file, or a folder for a folder."""
    if lora.family != model.family:
        raise IntegrityError("LRY-FILE-ADAPTER", f"the LoRA is for {lora.family}, the model is {model.family}.", "Take those of one model.")
    left = {_key(key): layer for key, layer in lora.layers.items()}
    if missing := next((key for key in left if key not in model.layers), None):
        raise IntegrityError("LRY-FILE-ADAPTER", f"the model has no layer {'.'.join(missing)}.", "Give the LoRA's own base.")
    changed: dict[tuple[Path, str], list[tuple[Place, Layer]]] = {}
    for key, layer in left.items():
        place = model.layers[key]
        change = layer.product()
        if change.size != (place.rows.stop - place.rows.start) * int(np.prod(place.shape[1:])):
            raise IntegrityError("LRY-FILE-ADAPTER", f"the LoRA does not fit the model at {'.'.join(key)}.", "Give its own base.")
        changed.setdefault((place.file, place.tensor), []).append((place, layer))
    root = Path(model.base.location)
    if root.is_file():
        _rewritten(root, out, changed, weight)
        return
    shutil.copytree(root, out, ignore=lambda _, found: [name for name in found if name.endswith((".bin", ".ckpt", ".pt"))])
    for file in {file for file, _ in changed}:
        _rewritten(file, out / file.relative_to(root), changed, weight)


def _rewritten(file: Path, out: Path, changed: Mapping[tuple[Path, str], list[tuple[Place, Layer]]], weight: float) -> None:
    """The same file with some tensors changed, header and all else to the byte."""
    partial = out.with_name(f"{out.name}.part")
    shutil.copyfile(file, partial)
    with partial.open("r+b") as opened:
        for (of, _), members in changed.items():
            if of != file:
                continue
            place = members[0][0]
            tensor = place.tensor_itself().copy()
            for member, layer in members:
                own = tensor[member.rows]
                own += member.turned(weight * layer.product()).reshape(own.shape).astype(own.dtype)
            opened.seek(place.offset)
            opened.write(tensorfile.encoded(tensor, place.dtype))
    partial.replace(out)


def _key(key: Key) -> Key:
    return key[0], names.with_text_model(*key)


# --- a LoRA out of two models ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Extract:
    """What a tuned model has learnt over its base."""

    lora: Lora
    kept: float
    """Share of the squared change of its layers that the rank keeps."""
    beside: int
    """Layers that changed too and that no LoRA of this kind has: convolutions, norms, embeddings."""


def extract(tuned: Weights, base: Weights, rank: int) -> Extract:
    """The change of every layer that a LoRA adapts, by its largest singular values; alpha is the rank."""
    if tuned.family != base.family:
        raise IntegrityError("LRY-FILE-ADAPTER", f"one model is {tuned.family}, the other {base.family}.", "Take a model and its own base.")
    layers: dict[Key, Layer] = {}
    kept, whole, beside = 0.0, 0.0, 0
    for key, place in tuned.layers.items():
        other = base.layers.get(key)
        if other is None:
            continue
        change = _difference(key, place, other)
        if change is None:
            continue
        if not adaptable(*key, tuned.family):
            beside += 1
            continue
        layers[key], squares = thin(change, rank)
        kept, whole = kept + squares, whole + float(np.square(change, dtype=np.float64).sum())
    if not layers:
        raise IntegrityError("LRY-FILE-ADAPTER", "the two models agree in every layer that a LoRA adapts.", "Give the tuned model first.")
    said = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(float(rank))}
    form = "kohya" if tuned.family in names.UNETS else "diffusers"
    return Extract(Lora(tuned.family, form, "F16", layers, {**said, **_told(tuned.family)}), kept / whole, beside)


def _difference(key: Key, tuned: Place, base: Place) -> Array | None:
    """The change of a layer's weight; None where there is none."""
    one, other = tuned.read(), base.read()
    if one.size != other.size or len(one) != len(other):
        raise IntegrityError("LRY-FILE-ADAPTER", f"the models' layers {'.'.join(key)} are of different sizes.", "Take those of one kind.")
    if other.ndim == 2 and one.ndim == 4:
        other = other.reshape(one.shape)
    if tuned.dtype != base.dtype:  # the coarser of the two cannot tell more
        coarser = max((tuned.dtype, base.dtype), key=("F64", "F32", "F16", "BF16").index)
        one, other = tensorfile.rounded(one, coarser), tensorfile.rounded(other, coarser)
    change = one - other.reshape(one.shape)
    return change if change.any() else None


def _told(family: str) -> dict[str, str]:
    """What tells programs the family."""
    versions = {"sd15": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "flux": "flux1", "zimage": "zimage"}
    return {"ss_base_model_version": versions[family], "ss_v2": str(family == "sd2")} if family in versions else {}


_ENCODER = re.compile(r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])$")


def adaptable(part: str, module: str, family: str) -> bool:
    """Whether LoRAs of today adapt a layer: the transformers' linear layers and 1x1 convolutions."""
    if part.startswith("text_encoder"):
        return bool(_ENCODER.search(module))
    if family in names.UNETS:
        return ".attentions." in module
    try:
        names.name_of(part, module, "kohya", family)
    except (KeyError, ValueError):
        return False
    return True


MORE = 8
"""Columns beyond the rank, and"""
ROUNDS = 6
"""times through the matrix, with which Halko et al. (2011, arXiv 0909.4061) come as near to the largest singular values as is of use."""


def thin(change: Array, rank: int) -> tuple[Layer, float]:
    """A change as a layer of this rank, and the sum of the squared singular values that are in it."""
    matrix = change.reshape(len(change), -1).astype(np.float64)
    rank = min(rank, *matrix.shape)
    u, values, v = _largest(matrix, rank)
    root = np.sqrt(values)
    up, down = (u * root).astype(np.float32), (root[:, None] * v).astype(np.float32)
    if change.ndim == 4:
        up, down = up[:, :, None, None], down.reshape(rank, *change.shape[1:])
    return Layer(down, up, float(rank)), float((values**2).sum())


def _largest(matrix: Array, rank: int) -> tuple[Array, Array, Array]:
    """The largest singular values with their vectors; of a large matrix nearly, and always the same."""
    if 4 * (rank + MORE) >= min(matrix.shape):
        u, values, v = np.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], values[:rank], v[:rank]
    sketch = np.random.default_rng(0).standard_normal((matrix.shape[1], rank + MORE))
    basis, _ = np.linalg.qr(matrix @ sketch)
    for _ in range(ROUNDS):
        basis, _ = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])
    u, values, v = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ u)[:, :rank], values[:rank], v[:rank]
