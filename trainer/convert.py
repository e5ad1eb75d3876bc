"""What can be done to LoRA files besides changing their format: another rank, several in one; and who can load one. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from . import names
from .errors import IntegrityError
from .lora import Key, Layer, Lora, flat
from .methods import LORA, Method, caveat
from .tensorfile import Array


def resized(lora: Lora, rank: int) -> tuple[Lora, float]:
    """Every layer at this rank at most, by its largest singular values; and the share of the squared change that is kept."""
    layers, kept, whole = {}, 0.0, 0.0
    for key, layer in lora.layers.items():
        layers[key], squares = truncated(layer, rank)
        kept, whole = kept + float(squares[:rank].sum()), whole + float(squares.sum())
    told = dict(lora.metadata)
    if "ss_network_dim" in told and max(lora.ranks) > rank:
        told["ss_network_dim"] = str(rank)
    return replace(lora, layers=layers, metadata=told), kept / whole if whole else 1.0


def truncated(layer: Layer, rank: int) -> tuple[Layer, Array]:
    """Its layer, alpha / rank as it was, and the squares of all singular values.

    Two thin QRs make it the decomposition of a small matrix.
    """
    left, upper = np.linalg.qr(flat(layer.up).astype(np.float64))
    right, lower = np.linalg.qr(flat(layer.down).astype(np.float64).T)
    u, values, v = np.linalg.svd(upper @ lower.T)
    if layer.rank <= rank:
        return layer, values**2 * layer.scale**2
    root = np.sqrt(values[:rank])
    up, down = left @ u[:, :rank] * root, (right @ v[:rank].T * root).T
    shape_up, shape_down = (len(up), rank, *layer.up.shape[2:]), (rank, *layer.down.shape[1:])
    return Layer(
        down.reshape(shape_down).astype(np.float32), up.reshape(shape_up).astype(np.float32), layer.scale * rank
    ), values**2 * layer.scale**2


def merged(parts: Sequence[tuple[Lora, float]]) -> Lora:
    """The sum of several, each by its weight. Exact: the ranks add up."""
    first = parts[0][0]
    if odd := next((lora for lora, _ in parts if lora.family != first.family), None):
        raise IntegrityError("LRY-FILE-ADAPTER", f"one LoRA is for {first.family}, another for {odd.family}.", "Merge those of one model.")
    found: dict[Key, list[tuple[Layer, float]]] = {}
    for lora, weight in parts:
        for key, layer in lora.layers.items():
            found.setdefault(key, []).append((layer, weight))
    return replace(first, layers={key: _sum(members) for key, members in found.items()})


def _sum(members: Sequence[tuple[Layer, float]]) -> Layer:
    if len({(layer.down.shape[1:], len(layer.up)) for layer, _ in members}) > 1:
        raise IntegrityError("LRY-FILE-ADAPTER", "the LoRAs' layers are of different sizes.", "Merge those of one model.")
    rank = sum(layer.rank for layer, _ in members)
    scale = members[0][0].scale
    ups = [layer.up * np.float32(weight * layer.scale / scale) for layer, weight in members]
    return Layer(np.concatenate([layer.down for layer, _ in members]), np.concatenate(ups, axis=1), scale * rank)


# --- who can load it -------------------------------------------------------------------------------

Loads = Literal["yes", "partly", "no", "unknown"]

PROGRAMS = ("A1111", "Forge", "ComfyUI", "diffusers")


@dataclass(frozen=True, slots=True)
class Reader:
    """Whether a program can load a file."""

    program: str
    loads: Loads
    why: str = ""


_NO_KEYS = "it finds none of the layers' names"
_OLD = "it knows Stable Diffusion 1, 2 and XL only"
_UNTRIED = "not seen"
_READERS: dict[tuple[str, str], tuple[tuple[Loads, str], ...]] = {
    ("kohya", "unet"): (("yes", ""),) * 4,
    ("kohya", "sd3"): (("no", _OLD), ("yes", ""), ("yes", ""), ("no", "it warns, and applies no layer")),
    ("kohya", "flux"): (("no", _OLD), ("yes", ""), ("yes", ""), ("yes", "")),
    ("kohya", "zimage"): (("no", _OLD), ("unknown", _UNTRIED), ("unknown", _UNTRIED), ("unknown", _UNTRIED)),
    ("diffusers", "unet"): (("no", _NO_KEYS), ("no", _NO_KEYS), ("no", _NO_KEYS), ("yes", "")),
    ("diffusers", "sd3"): (("no", _OLD), ("no", _NO_KEYS), ("yes", ""), ("yes", "")),
    ("diffusers", "flux"): (("no", _OLD), ("yes", ""), ("yes", ""), ("yes", "")),
    ("diffusers", "zimage"): (("no", _OLD), ("unknown", _UNTRIED), ("yes", ""), ("yes", "")),
    ("comfyui", "unet"): (("no", _NO_KEYS), ("unknown", _UNTRIED), ("yes", ""), ("no", _NO_KEYS)),
    ("comfyui", "sd3"): (("no", _OLD), ("unknown", _UNTRIED), ("yes", ""), ("unknown", _UNTRIED)),
    ("comfyui", "flux"): (("no", _OLD), ("unknown", _UNTRIED), ("yes", ""), ("unknown", _UNTRIED)),
    ("comfyui", "zimage"): (("no", _OLD), ("unknown", _UNTRIED), ("yes", ""), ("yes", "")),
}
"""Format and family -> `PROGRAMS` in turn: what their loaders do with the names, read from their code or seen."""


def readers(form: str, family: str, *, one_alpha: bool = True) -> list[Reader]:
    """Who can load a file with such names. `one_alpha`: whether all layers have the same."""
    found = [Reader(program, *told) for program, told in zip(PROGRAMS, _READERS[form, _kind(family)], strict=True)]
    if form == "kohya" and _kind(family) == "unet" and not one_alpha:
        found[-1] = Reader(
            "diffusers", "partly", "its alphas differ, which gives some layers a wrong strength there; converted, they do not"
        )
    return found


def _kind(family: str) -> str:
    return "unet" if family in names.UNETS else names.FILES_OF.get(family, family)


def loads_in(form: str, family: str, method: Method = LORA) -> list[str]:
    """What to know of the file that a training of this family writes."""
    return [caveat(method, family)] if not method.plain else [words(readers(form, family))]


def words(found: Sequence[Reader]) -> str:
    """`loads in A1111, Forge, ComfyUI, diffusers`, and where not."""
    good = ", ".join(reader.program for reader in found if reader.loads == "yes")
    bad = "; ".join(f"{reader.program}: {reader.loads}, {reader.why}" for reader in found if reader.loads != "yes")
    return f"loads in {good or 'no program that is known here'}" + (f" ({bad})" if bad else "")
