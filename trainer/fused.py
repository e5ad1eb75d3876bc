"""Adapter files for models whose original layers hold several of diffusers': query, key and value in one.

Each of them has matrices of its own: stacked, they are one adapter of the sum of their ranks, B in blocks on the
diagonal. Its alpha grows with the rank, so that each keeps its strength: the same alpha would leave a third of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapters import Adapter
from .errors import IntegrityError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer lies in the original model."""

    name: str
    """kohya's name of the original layer."""
    index: int = 0
    shares: tuple[int, ...] = (1,)
    """How the original layer's rows are divided; this layer has the share at `index`."""
    swapped: bool = False
    """Whether the two halves of the rows are in the other order there."""


PlaceOf = Callable[[str, str], Place]
"""Part and module path -> place. A family's map."""


def to_kohya(adapter: Adapter, dtype: torch.dtype, place_of: PlaceOf) -> dict[str, Tensor]:
    """The adapter under kohya's names, fused where the original is."""
    groups: dict[str, list[Member]] = {}
    if odd := next((slot for lay in adapter.layouts.values() for slot in lay.slots if not slot.method.plain), None):
        what = "a DoRA" if odd.method.dora else f"a {odd.method.name}"
        raise IntegrityError("LRY-FILE-ADAPTER", f"{what} of separate layers is none of fused ones.", "Write it under diffusers' names.")
    for part in adapter.layouts:
        for slot, down, up in adapter.weights(part):
            place = place_of(part, slot.target.name)
            groups.setdefault(place.name, []).append(Member(place, slot.scale, down, up))
    tensors: dict[str, Tensor] = {}
    for name, members in groups.items():
        rank = sum(len(member.down) for member in members)
        alpha = torch.tensor(members[0].scale * rank, dtype=dtype)
        tensors[f"{name}.lora_down.weight"] = torch.cat([member.down for member in members]).to("cpu", dtype, copy=True)
        tensors[f"{name}.lora_up.weight"] = _diagonal(members, float(alpha) / rank).to("cpu", dtype, copy=True)
        tensors[f"{name}.alpha"] = alpha
    return tensors


@dataclass(frozen=True, slots=True)
class Member:
    """One of the layers that are fused."""

    place: Place
    scale: float
    down: Tensor  # [r, in]
    up: Tensor  # [out, r]


def _diagonal(members: list[Member], scale: float) -> Tensor:
    """Each B in its rows and its columns; rows of layers that have no adapter stay zero. A layer of another scale has the rest in its B."""
    first = members[0]
    unit = len(first.up) // first.place.shares[first.place.index]
    whole = first.up.new_zeros(unit * sum(first.place.shares), sum(len(member.down) for member in members))
    column = 0
    for member in members:
        halves = member.up.chunk(2)
        up = torch.cat([halves[1], halves[0]]) if member.place.swapped else member.up
        row = unit * sum(member.place.shares[: member.place.index])
        whole[row : row + len(up), column : column + up.shape[1]] = up if member.scale == scale else up * (member.scale / scale)
        column += up.shape[1]
    return whole
