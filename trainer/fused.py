"""Adapter files for models whose original layers hold several of diffusers': query, key and value in one.

Each of them has matrices of its own: stacked, they are one adapter of the sum of their ranks, B in blocks on the
diagonal. Its alpha grows with the rank, so that each keeps its strength: the same alpha would leave a third of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import names
from .adapters import Adapter
from .errors import IntegrityError


def to_kohya(adapter: Adapter, dtype: torch.dtype, family: str) -> dict[str, Tensor]:
    """The adapter under kohya's names, fused where the original is."""
    groups: dict[str, list[Member]] = {}
    if odd := next((slot for lay in adapter.layouts.values() for slot in lay.slots if not slot.method.plain), None):
        what = "a DoRA" if odd.method.dora else f"a {odd.method.name}"
        raise IntegrityError("LRY-FILE-ADAPTER", f"{what} of separate layers is none of fused ones.", "Write it under diffusers' names.")
    for part in adapter.layouts:
        for slot, down, up in adapter.weights(part):
            name, rows = names.kohya_place(family, part, slot.target.name)
            shares = tuple(names.SHARES.get(row.rsplit(".", 1)[-1], 1) for row in rows)
            index = rows.index(slot.target.name) if len(rows) > 1 else 0
            turned = names.is_swapped(slot.target.name, slot.target.fan_in, slot.target.fan_out, family)
            groups.setdefault(name, []).append(Member(index, shares, slot.scale, down, _turned(up) if turned else up))
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

    index: int
    """Which of them it is in the original."""
    shares: tuple[int, ...]
    """How the original layer's rows are divided; this layer has the share at `index`."""
    scale: float
    down: Tensor  # [r, in]
    up: Tensor  # [out, r]


def _turned(up: Tensor) -> Tensor:
    return torch.cat(up.chunk(2)[::-1])


def _diagonal(members: list[Member], scale: float) -> Tensor:
    """Each B in its rows and its columns; rows of layers that have no adapter stay zero. A layer of another scale has the rest in its B."""
    first = members[0]
    unit = len(first.up) // first.shares[first.index]
    whole = first.up.new_zeros(unit * sum(first.shares), sum(len(member.down) for member in members))
    column = 0
    for member in members:
        up, row = member.up, unit * sum(member.shares[: member.index])
        whole[row : row + len(up), column : column + up.shape[1]] = up if member.scale == scale else up * (member.scale / scale)
        column += up.shape[1]
    return whole
