"""What a job takes over from LoRA files that are there: weights to start from, and a change to make to the base first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import lora, names
from .adapters import Adapter
from .convert import truncated
from .errors import IntegrityError
from .lora import Key, Layer, Lora


def fill(adapter: Adapter, path: Path, family: str) -> str:
    """Let an adapter begin as a LoRA file of any format; says what did not fit as it was.

    Of a larger rank the largest singular values are kept; a smaller one gets fresh rows that add nothing yet. The job's own alpha counts:
    B is divided by it, so that the first step starts from the file's strength.
    """
    source = _read(path, family)
    found = {_plain(key): layer for key, layer in source.layers.items()}
    fresh, squares, kept = 0, 0.0, 0.0
    for part in adapter.layouts:
        for slot, down, up in adapter.weights(part):
            layer = found.pop(_plain((part, slot.target.name)), None)
            if layer is None:
                fresh += 1
                continue
            if lora.flat(layer.down).shape[1] != slot.target.width or len(layer.up) != slot.target.fan_out:
                raise _misfit(path, slot.target.name)
            small, values = truncated(layer, slot.rank)
            squares, kept = squares + float(values.sum()), kept + float(values[: slot.rank].sum())
            down[: small.rank] = _tensor(small.down, down)
            up[:, : small.rank] = _tensor(small.up, up) * (small.scale / slot.scale)
    if not squares and fresh:
        raise _misfit(path, "any of the job's layers")
    told = [f"starts from {path.name} (rank {', '.join(map(str, source.ranks))})"]
    told += [f"{100 * kept / squares:.2f} % of its change fits the job's ranks"] if kept < squares * (1 - 1e-9) else []
    told += [f"{fresh} layers are not in it and start fresh"] if fresh else []
    told += [f"{len(found)} of its layers are not trained here and are left out"] if found else []
    return "; ".join(told) + "."


def merge(parts: Mapping[str, Any], path: Path, weight: float, family: str) -> None:
    """Add a LoRA to a base's own weights, times a weight."""
    for (part, name), layer in _read(path, family).layers.items():
        module = _module(parts.get(part), name)
        if module is None or module.weight.numel() != len(layer.up) * lora.flat(layer.down).shape[1]:
            raise _misfit(path, f"{part}.{name}")
        with torch.no_grad():
            module.weight += _change(layer, weight).view_as(module.weight).to(module.weight.dtype)


def _change(layer: Layer, weight: float) -> Tensor:
    return torch.from_numpy(layer.product()) * weight


def _module(root: Any, name: str) -> Any:
    """The layer of this name, with every transformers."""
    for path in (name, name.removeprefix("text_model.")):
        try:
            return root.get_submodule(path) if isinstance(root, nn.Module) else None
        except AttributeError:
            continue
    return None


def _read(path: Path, family: str) -> Lora:
    source = lora.read(path)
    if source.family != names.FILES_OF.get(family, family):
        raise IntegrityError(
            "LRY-FILE-ADAPTER", f"{path.name} is a LoRA for {source.family}, not for {family}.", "Give one of this family."
        )
    return source


def _plain(key: Key) -> Key:
    return key[0], key[1].removeprefix("text_model.")


def _tensor(array: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(array.reshape(len(array), -1).copy()).to(like)


def _misfit(path: Path, name: str) -> IntegrityError:
    return IntegrityError("LRY-FILE-ADAPTER", f"{path.name} does not fit this base at {name}.", "Give a LoRA that was made for it.")
