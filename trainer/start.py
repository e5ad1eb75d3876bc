"""What a job takes over from LoRA files that are there: weights to start from, and a change to make to the base first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import changes, lora, names
from .adapters import Adapter
from .base import read_header
from .convert import truncated
from .errors import IntegrityError
from .lora import Key, Layer, Lora
from .targets import Slot


def fill(adapter: Adapter, path: Path, family: str) -> str:
    """Let an adapter begin as a LoRA file of any format; says what did not fit as it was.

    Of a larger rank the largest singular values are kept; a smaller one gets fresh rows that add nothing yet. The job's own alpha counts:
    B is divided by it, so that the first step starts from the file's strength. LoHa and LoKr begin with files of their own making alone.
    """
    methods = {slot.method for lay in adapter.layouts.values() for slot in lay.slots}
    if any(method.name != "lora" or (method.dora and _has_lengths(path)) for method in methods):
        return _fill_exactly(adapter, path, family)
    source = _read(path, family)
    found = {_plain(key): layer for key, layer in source.layers.items()}
    fresh, squares, kept = 0, 0.0, 0.0
    for part in adapter.layouts:
        for slot, values in adapter.values(part):
            down, up = values[:2]
            layer = found.pop(_plain((part, slot.target.name)), None)
            if layer is None:
                fresh += 1
                continue
            if lora.flat(layer.down).shape[1] != slot.target.width or len(layer.up) != slot.target.fan_out:
                raise _misfit(path, slot.target.name)
            small, singular = truncated(layer, slot.rank)
            squares, kept = squares + float(singular.sum()), kept + float(singular[: slot.rank].sum())
            down[: small.rank] = _tensor(small.down, down)
            up[:, : small.rank] = _tensor(small.up, up) * (small.scale / slot.scale)
    if not squares and fresh:
        raise _misfit(path, "any of the job's layers")
    adapter.measure()
    told = [f"starts from {path.name} (rank {', '.join(map(str, source.ranks))})"]
    told += [f"{100 * kept / squares:.2f} % of its change fits the job's ranks"] if kept < squares * (1 - 1e-9) else []
    told += [f"{fresh} layers are not in it and start fresh"] if fresh else []
    told += [f"{len(found)} of its layers are not trained here and are left out"] if found else []
    return "; ".join(told) + "."


def _fill_exactly(adapter: Adapter, path: Path, family: str) -> str:
    """From a file with the same matrices in every layer."""
    stored = lora.read_stored(path)
    if stored.family != names.FILES_OF.get(family, family):
        raise _foreign(path, stored.family, family)
    found: dict[Key, Mapping[str, Any]] = {}
    for name, matrices in stored.layers.items():
        spot = names.spot_of(name, stored.form, stored.family)
        if spot is not None and len(spot.modules) == 1:
            found[_plain((spot.part, spot.modules[0]))] = matrices
    fresh = 0
    for part in adapter.layouts:
        for slot, values in adapter.values(part):
            matrices = found.get(_plain((part, slot.target.name)), {})
            if not matrices:
                fresh += 1
                continue
            _fill_slot(adapter, path, slot, values, matrices)
    if fresh == sum(len(lay.slots) for lay in adapter.layouts.values()):
        raise _misfit(path, "any of the job's layers")
    return f"starts from {path.name}" + (f"; {fresh} layers are not in it and start fresh." if fresh else ".")


def _fill_slot(adapter: Adapter, path: Path, slot: Slot, values: tuple[Tensor, ...], matrices: Mapping[str, Any]) -> None:
    """One layer: its matrices as they are, what its alpha says put into the one that starts at zero."""
    alpha = float(matrices["alpha"]) if "alpha" in matrices else float(slot.rank)
    for number, (piece, value) in enumerate(zip(slot.pieces, values, strict=True)):
        if piece.name == "dora_scale":
            continue
        array = matrices.get({"lora_down.weight": "down", "lora_up.weight": "up"}.get(piece.name, piece.name))
        if array is None or array.size != value.numel():
            hint = "Set adapter, rank and the lokr_ keys to what it was made with."
            raise IntegrityError("LRY-FILE-ADAPTER", f"{path.name} has other matrices than this job in {slot.target.name}.", hint)
        rest = alpha / slot.rank / slot.scale if slot.scaled and number == slot.method.last(slot.pieces) else 1.0
        value.copy_(torch.from_numpy(array.copy()).reshape(value.shape) * rest)
    if slot.method.dora:
        length = 1.0 / changes.share(slot, values, adapter.layer_of(slot))  # of each output's changed weight
        values[-1][:, 0] = length
        if "magnitude" in matrices:
            values[-1][:, 0] = torch.from_numpy(matrices["magnitude"].reshape(-1).copy()).to(length)
        elif "dora" in matrices:
            told = torch.from_numpy(matrices["dora"].reshape(-1).copy()).to(length)
            values[-1][:, 0] = told * length / changes.lengths(changes.dense_weight(adapter.layer_of(slot))).to(length.device)


def _has_lengths(path: Path) -> bool:
    """Whether a file is a DoRA."""
    return any(key.endswith((".dora_scale", ".lora_magnitude_vector")) for key in read_header(path))


def through_file(adapter: Adapter, path: Path, family: str) -> Adapter:
    """The adapter as its own file says it, read afresh. Raises where the file says something else."""
    slots = [slot for lay in adapter.layouts.values() for slot in lay.slots]
    again = Adapter.of(slots, 0, next(iter(adapter.flat.values())).device, base=adapter.base)
    _fill_exactly(again, path, family)
    for part in adapter.layouts:
        for (slot, ours), (_, theirs) in zip(adapter.values(part), again.values(part), strict=True):
            for piece, one, other in zip(slot.pieces, ours, theirs, strict=True):
                if not torch.allclose(one, other, rtol=COARSE, atol=COARSE * float(one.abs().max()) + LEAST):
                    fact = f"{path.name} does not say what was trained: {piece.name} of {part}.{slot.target.name} differs."
                    raise IntegrityError("LRY-FILE-ADAPTER", fact, "This is a mistake of ours, please report it; the checkpoints are good.")
    return again


COARSE = 2.0**-6
"""What a number and its nearest in bf16, and a product of two such, may differ by."""
LEAST = 2.0**-22
"""Below this half precision has steps larger than that."""


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
        raise _foreign(path, source.family, family)
    return source


def _foreign(path: Path, theirs: str, family: str) -> IntegrityError:
    return IntegrityError("LRY-FILE-ADAPTER", f"{path.name} is a LoRA for {theirs}, not for {family}.", "Give one of this family.")


def _plain(key: Key) -> Key:
    return key[0], key[1].removeprefix("text_model.")


def _tensor(array: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(array.reshape(len(array), -1).copy()).to(like)


def _misfit(path: Path, name: str) -> IntegrityError:
    return IntegrityError("LRY-FILE-ADAPTER", f"{path.name} does not fit this base at {name}.", "Give a LoRA that was made for it.")
