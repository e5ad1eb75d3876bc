"""Where the matrices of an adapter lie in memory, and which layers of a model can have one.

One job's weights of one part are flat vectors that hold every matrix, each starting at a multiple of 256: one vector for all that
learn at one rate, which is one a part unless the job says otherwise. Knows nothing of passes, families, optimizers or files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .targets import Slot, Target

ALIGNMENT = 256
"""bitsandbytes quantises optimizer states in blocks of 256 values."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each matrix of a part lies."""

    slots: tuple[Slot, ...]
    groups: tuple[tuple[str, ...], ...]
    """For each slot the vectors of its matrices."""
    sizes: Mapping[str, tuple[int, ...]]
    """Vector -> lengths of matrix, gap, matrix, gap..., in the order of the slots."""
    rates: Mapping[str, float]
    """Vector -> its learning rate over its part's."""
    address: str
    """Layouts that agree in this adapt the same layers."""

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(slot.target for slot in self.slots)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(slot.rank for slot in self.slots)

    def totals(self) -> dict[str, int]:
        """Vector -> its length."""
        return {group: sum(sizes) for group, sizes in self.sizes.items()}

    def values(self, vectors: Mapping[str, Tensor]) -> Iterator[tuple[Slot, tuple[Tensor, ...]]]:
        """Each slot with its matrices [..., rows, columns], as views; their gradients come back in one concatenation a vector."""
        cut = {group: iter(torch.split_with_sizes(vectors[group], sizes, dim=-1)[::2]) for group, sizes in self.sizes.items()}
        for slot, groups in zip(self.slots, self.groups, strict=True):
            values = [next(cut[group]) for group in groups]
            shaped = (value.view(*value.shape[:-1], piece.rows, piece.columns) for piece, value in zip(slot.pieces, values, strict=True))
            yield slot, tuple(shaped)

    def pieces(self, vectors: Mapping[str, Tensor]) -> Iterator[tuple[Slot, Tensor, Tensor]]:
        """Of plain LoRA: each slot with its A [..., r, width] and B [..., out, r]."""
        return ((slot, down, up) for slot, (down, up) in self.values(vectors))


def layout(part: str, slots: Sequence[Slot], up_rate: float = 1.0) -> Layout:
    """Lay out slots in the order of their names. `up_rate`: the learning rate of what starts at zero, LoRA's B, over the rest's (LoRA+)."""
    ordered = tuple(sorted(slots, key=lambda slot: slot.target.name))
    sizes: dict[str, list[int]] = {}
    rates: dict[str, float] = {}
    groups: list[tuple[str, ...]] = []
    for slot in ordered:
        found = []
        for number, piece in enumerate(slot.pieces):
            rate = slot.rate * up_rate if number == slot.method.last(slot.pieces) else slot.rate
            group = part if rate == 1.0 else f"{part}*{rate:g}"
            rates[group] = rate
            sizes.setdefault(group, []).extend((piece.count, -piece.count % ALIGNMENT))
            found.append(group)
        groups.append(tuple(found))
    address = hashlib.sha256("/".join(slot.target.name for slot in ordered).encode()).hexdigest()[:16]
    return Layout(ordered, tuple(groups), {group: tuple(lengths) for group, lengths in sizes.items()}, rates, address)


def find_targets(
    part: str,
    model: nn.Module,
    wanted: Sequence[str],
    pattern_inside: type[nn.Module] | tuple[type[nn.Module], ...] | None = None,
    *,
    wide: bool = False,
) -> list[Target]:
    """Linear layers and 1x1 convolutions whose path ends in one of `wanted` (all, if empty), inside modules of a type.

    `wide`: larger convolutions as well.
    """
    roots = [name for name, module in model.named_modules() if pattern_inside is None or isinstance(module, pattern_inside)]
    found: dict[str, Target] = {}
    for name, module in model.named_modules():
        inside = any(root == "" or name.startswith(root + ".") for root in roots)
        if not inside or (wanted and not any(name == w or name.endswith("." + w) for w in wanted)):
            continue
        if isinstance(module, nn.Linear):
            found[name] = Target(part, name, module.in_features, module.out_features)
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            kernel = (module.kernel_size[0], module.kernel_size[1])
            if wide if kernel != (1, 1) else module.stride == (1, 1):
                found[name] = Target(part, name, module.in_channels, module.out_channels, conv=True, kernel=kernel)
    return [found[name] for name in sorted(found)]
