"""Which layers get an adapter, at which rank, and where its matrices lie in memory.

One job's weights of one part are flat vectors that hold every matrix, each starting at a multiple of 256: one vector for all that
learn at one rate, which is one a part unless the job says otherwise. Knows nothing of passes, families, optimizers or files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGNMENT = 256
"""bitsandbytes quantises optimizer states in blocks of 256 values."""


@dataclass(frozen=True, slots=True)
class Target:
    """A layer that gets an adapter."""

    part: str
    """`unet` or `text_encoder`."""
    name: str
    """Module path inside the part."""
    fan_in: int
    fan_out: int
    conv: bool = False
    """A convolution over `fan_in` channels, stored with 4-d shape; at kernel 1x1 a linear layer over channels."""
    idle: bool = False
    """Nothing of it reaches the answer, and no gradient comes back; it is there because other programs' files have it."""
    kernel: tuple[int, int] = (1, 1)

    @property
    def width(self) -> int:
        """Values in a row of A."""
        return self.fan_in * self.kernel[0] * self.kernel[1]

    @property
    def wide(self) -> bool:
        """Whether it is a convolution that looks at more than one pixel."""
        return self.kernel != (1, 1)

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of A and of B in a file: of a convolution, A has its kernel and B is 1x1."""
        if not self.conv:
            return (rank, self.fan_in), (self.fan_out, rank)
        return (rank, self.fan_in, *self.kernel), (self.fan_out, rank, 1, 1)


@dataclass(frozen=True, slots=True)
class Slot:
    """A target with what one job's adapter has there."""

    target: Target
    rank: int
    scale: float
    """What B @ A is multiplied by: alpha / rank, or alpha / sqrt(rank)."""
    rate: float = 1.0
    """Its learning rate over its part's."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each matrix of a part lies."""

    slots: tuple[Slot, ...]
    groups: tuple[tuple[str, str], ...]
    """For each slot the vectors of its A and its B."""
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

    def pieces(self, vectors: Mapping[str, Tensor]) -> Iterator[tuple[Slot, Tensor, Tensor]]:
        """Each slot with its A [..., r, width] and B [..., out, r], as views; their gradients come back in one concatenation a vector."""
        cut = {group: iter(torch.split_with_sizes(vectors[group], sizes, dim=-1)[::2]) for group, sizes in self.sizes.items()}
        for slot, (of_down, of_up) in zip(self.slots, self.groups, strict=True):
            down, up = next(cut[of_down]), next(cut[of_up])
            lead = down.shape[:-1]
            yield slot, down.view(*lead, slot.rank, slot.target.width), up.view(*lead, slot.target.fan_out, slot.rank)


def layout(part: str, slots: Sequence[Slot], up_rate: float = 1.0) -> Layout:
    """Lay out slots in the order of their names. `up_rate`: the learning rate of B over that of A (LoRA+)."""
    ordered = tuple(sorted(slots, key=lambda slot: slot.target.name))
    sizes: dict[str, list[int]] = {}
    rates: dict[str, float] = {}
    groups: list[tuple[str, str]] = []
    for slot in ordered:
        pair = []
        for length, rate in ((slot.rank * slot.target.width, slot.rate), (slot.rank * slot.target.fan_out, slot.rate * up_rate)):
            group = part if rate == 1.0 else f"{part}*{rate:g}"
            rates[group] = rate
            sizes.setdefault(group, []).extend((length, -length % ALIGNMENT))
            pair.append(group)
        groups.append((pair[0], pair[1]))
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
