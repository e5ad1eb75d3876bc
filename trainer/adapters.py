"""Adapters on chosen layers of a frozen model, for one job or for several in one pass.

A `Bank` gives every target layer a new `forward`: the base's own, plus up @ down @ x times alpha / rank
(LoRA; for the other methods see `methods.py`). The layer keeps its name and its place, so that files, pipelines and
gradient checkpointing see the model they know.

One job's weights are an `Adapter`: per part of the model ONE flat fp32 vector that holds every matrix (several, where layers learn
at several rates). So the optimizer, the clipping and the cast to the compute dtype are a few kernels instead of hundreds, and the
8-bit optimizer's blocks of 256 never span two matrices.

Several LoRAs share a pass by stacking: A [n, r, in], B [n, out, r], the batch's rows in n equal groups, two
batched products whatever n is. Smaller ranks are padded with zeros for the pass only: the padded rows add
nothing and learn nothing, and the stored weights are those of the job alone. Where one of them is of another method,
each answers for its own rows; the base still answers for all at once.

Knows nothing of families, optimizers or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

from . import changes, streams
from .changes import convolved
from .drops import Drop
from .layout import ALIGNMENT, Layout, find_targets, layout
from .targets import Slot, Target

__all__ = ["ALIGNMENT", "Adapter", "Bank", "Drop", "Layout", "Slot", "Target", "find_targets"]


@dataclass(slots=True)
class Adapter:
    """One job's weights: a flat fp32 parameter per trained part."""

    layouts: dict[str, Layout]
    """Part -> where its matrices lie."""
    flat: dict[str, nn.Parameter]
    """Vectors by the names that the layouts give them: the part's own, unless layers of it learn at other rates."""
    places: dict[tuple[str, tuple[int, ...]], Tensor] = field(default_factory=dict)
    """Part and larger ranks -> where each value lies at those ranks."""
    mean: dict[str, Tensor] = field(default_factory=dict)
    """Running mean of the weights, where the job wants one."""
    outcome: Callable[[], dict[str, Tensor]] | None = None
    """The weights that the optimizer would give now, where those it trains on are others (schedule-free rules)."""
    base: Mapping[str, Any] | None = None
    """The model's parts, where there is DoRA, which measures their weights."""

    @classmethod
    def create(cls, targets: Sequence[Target], rank: int, scale: float, seed: int, device: torch.device) -> Adapter:
        """Fresh weights, every layer at one rank and scale."""
        return cls.of([Slot(target, rank, scale) for target in targets], seed, device)

    @classmethod
    def of(
        cls, slots: Sequence[Slot], seed: int, device: torch.device, *, up_rate: float = 1.0, base: Mapping[str, Any] | None = None
    ) -> Adapter:
        """Fresh weights from the job's own stream; of LoRA A as kaiming_uniform(a=sqrt 5), that is uniform within 1/sqrt(fan_in), B zero.

        `base`: the model's parts, where DoRA's lengths begin as those of the base's weights.
        """
        parts = sorted({slot.target.part for slot in slots})
        layouts = {part: layout(part, [slot for slot in slots if slot.target.part == part], up_rate) for part in parts}
        flat: dict[str, nn.Parameter] = {}
        for part, lay in layouts.items():
            vectors = {group: torch.zeros(total) for group, total in lay.totals().items()}
            generator = streams.generator(seed, f"init.{part}")
            for slot, values in lay.values(vectors):
                _start(slot, values, generator)
            flat |= {group: nn.Parameter(values.to(device)) for group, values in vectors.items()}
        made = cls(layouts, flat, base=base if any(slot.method.dora for slot in slots) else None)
        made.measure()
        return made

    def measure(self) -> None:
        """Let DoRA's lengths be those of the weights as they are changed now: a layer then answers as without it."""
        for part in self.layouts:
            for slot, values in self.values(part):
                if slot.method.dora:
                    values[-1][:, 0] = 1.0 / changes.share(slot, values, self.layer_of(slot))

    def layer_of(self, slot: Slot) -> Any:
        """The base's layer that a slot changes."""
        assert self.base is not None, "only DoRA asks for it"
        return self.base[slot.target.part].get_submodule(slot.target.name)

    @property
    def scale(self) -> float:
        """The scale of all layers, where they have one."""
        (scale,) = {slot.scale for lay in self.layouts.values() for slot in lay.slots}
        return scale

    @property
    def rank(self) -> int:
        """The rank of all layers, where they have one."""
        (rank,) = {rank for lay in self.layouts.values() for rank in lay.ranks}
        return rank

    def rescale(self, scales: Mapping[tuple[str, str], float]) -> None:
        """Give layers, by part and name, other scales."""
        for part, lay in self.layouts.items():
            slots = tuple(replace(slot, scale=scales[part, slot.target.name]) for slot in lay.slots)
            self.layouts[part] = replace(lay, slots=slots)

    def rates(self, of_part: Mapping[str, float]) -> dict[str, float]:
        """Vector -> learning rate, from the rates of the parts."""
        return {group: of_part[part] * rate for part, lay in self.layouts.items() for group, rate in lay.rates.items()}

    def follow(self, decay: float, step: int) -> None:
        """Let the running mean follow after update `step` (from 0): slower and slower up to `decay`, as diffusers' EMAModel does."""
        share = 1.0 - min(decay, (1 + step) / (10 + step)) if step > 0 else 1.0
        for part, flat in self.flat.items():
            if part not in self.mean:
                self.mean[part] = torch.zeros_like(flat, requires_grad=False)
            self.mean[part].lerp_(flat.detach(), share)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are those to use: their running mean, or what the optimizer would give, if there is either."""
        kept = {part: flat.data for part, flat in self.flat.items()}
        means = self.mean or (self.outcome() if self.outcome else {})
        try:
            for part, mean in means.items():
                self.flat[part].data = mean
            yield
        finally:
            for part, flat in self.flat.items():
                flat.data = kept[part]

    def values(self, part: str, *, gradient: bool = False) -> Iterator[tuple[Slot, tuple[Tensor, ...]]]:
        """Each layer with its matrices, as views; or with their gradients."""
        flats = {group: (_gradient(flat) if gradient else flat.detach()) for group, flat in self.flat.items()}
        return self.layouts[part].values(flats)

    def weights(self, part: str) -> Iterator[tuple[Slot, Tensor, Tensor]]:
        """Of plain LoRA: each layer with its A [r, width] and B [out, r], as views."""
        return ((slot, down, up) for slot, (down, up) in self.values(part))

    def matrices(self, part: str) -> Iterator[tuple[Target, Tensor, Tensor]]:
        """Of plain LoRA: each target with its A [r, width] and B [out, r], as views."""
        return ((slot.target, down, up) for slot, down, up in self.weights(part))

    def gradients(self, part: str) -> Iterator[tuple[Target, Tensor, Tensor]]:
        """Like `matrices`, of the gradient."""
        return ((slot.target, down, up) for slot, (down, up) in self.values(part, gradient=True))

    def pieces(self, vector: str, *, gradient: bool = False) -> Iterator[Tensor]:
        """The matrices that lie in a vector, as views; or their gradients."""
        flats = {group: flat.grad if gradient and flat.grad is not None else flat.detach() for group, flat in self.flat.items()}
        for lay in self.layouts.values():
            for (_, values), groups in zip(lay.values(flats) if vector in lay.sizes else (), lay.groups, strict=False):
                yield from (piece for piece, group in zip(values, groups, strict=True) if group == vector)

    def count(self) -> int:
        """Number of trained weights, gaps not counted."""
        return sum(slot.count for lay in self.layouts.values() for slot in lay.slots)


@dataclass(frozen=True, slots=True)
class _Stack:
    """Several LoRAs of one layer, padded to the largest rank."""

    down: Tensor  # [n, r, width]
    up: Tensor  # [n, out, r]
    column: Tensor  # [n, 1, 1]
    """Their scales."""


@dataclass(frozen=True, slots=True)
class _Live:
    """What a layer adds in the pass under way: as a stack, or each adapter by its own matrices."""

    index: int
    slots: tuple[Slot, ...]
    """Each adapter's."""
    values: tuple[tuple[Tensor, ...], ...] = ()
    """Each adapter's, unless they are stacked."""
    stack: _Stack | None = None


@dataclass(slots=True)
class Bank:
    """The adapted layers of one base, and which adapters the next pass uses."""

    targets: dict[str, list[Target]] = field(default_factory=dict)
    _live: dict[tuple[str, str], _Live] = field(default_factory=dict)
    _drops: tuple[Drop | None, ...] = ()
    _layers: list[nn.Module] = field(default_factory=list)

    def attach(self, part: str, model: nn.Module, targets: Sequence[Target]) -> None:
        """Give the target layers of one part their new forward."""
        self.targets[part] = list(targets)
        modules = dict(model.named_modules())
        for target in targets:
            layer = modules[target.name]
            # The layer keeps its class and its name; only this instance's forward changes (as kohya does it).
            layer.forward = _Forward(self, target, layer)
            self._layers.append(layer)

    def detach(self) -> None:
        """Leave the model as it was."""
        for layer in self._layers:
            del layer.forward
        self._layers.clear()
        self.targets.clear()

    @contextmanager
    def use(self, adapters: Sequence[Adapter], dtype: torch.dtype, drops: Sequence[Drop | None] = ()) -> Iterator[None]:
        """Inside, every pass carries these adapters, its rows in as many equal groups, in this order. None: the base alone."""
        assert not self._live, "a bank is used by one pass at a time"
        try:
            if adapters:
                self._prepare(adapters, dtype)
            self._drops = tuple(drops) if any(drops) else ()
            yield
        finally:
            self._live.clear()
            self._drops = ()

    def _prepare(self, adapters: Sequence[Adapter], dtype: torch.dtype) -> None:
        for part in adapters[0].layouts:
            lays = [adapter.layouts[part] for adapter in adapters]
            plain = all(slot.method.plain for lay in lays for slot in lay.slots)
            made = _stacked(part, adapters, dtype) if plain and len(adapters) > 1 else _side_by_side(part, adapters, dtype)
            self._live |= {(part, live.slots[0].target.name): live for live in made}

    def delta(self, target: Target, layer: Any, x: Tensor, base: Tensor) -> Tensor:
        """The base's output plus the adapters'."""
        live = self._live.get((target.part, target.name))
        if live is None:
            return base
        if live.stack is not None:
            return base + self._grouped(live, live.stack, target, layer, x)
        many = len(live.slots)
        if many == 1:
            return self._alone(live, 0, layer, x, base)
        return torch.cat([self._alone(live, n, layer, *rows) for n, rows in enumerate(zip(x.chunk(many), base.chunk(many), strict=True))])

    def _alone(self, live: _Live, number: int, layer: Any, x: Tensor, base: Tensor) -> Tensor:
        """One adapter's rows: the base's output changed."""
        slot, values = live.slots[number], live.values[number]
        drop = self._drops[number] if self._drops else None
        gain = _low_rank(slot, values, layer, x, drop, live.index) if slot.method.name == "lora" else changes.answer(slot, values, layer, x)
        if slot.method.plain:
            return torch.add(base, gain, alpha=slot.scale)
        gain = gain * slot.scale
        gain = changes.magnified(slot, values, layer, base, gain) if slot.method.dora else gain
        return base + (gain if drop is None else gain * drop.whole(live.index, gain))

    def _grouped(self, live: _Live, stack: _Stack, target: Target, layer: Any, x: Tensor) -> Tensor:
        groups, rank, _ = stack.down.shape
        each = len(x) // groups
        if target.wide:
            beside = x.view(groups, each, *x.shape[1:]).transpose(0, 1).flatten(1, 2)  # [b, n*c, h, w]
            kernels = stack.down.reshape(groups * rank, target.fan_in, *target.kernel)
            low = convolved(beside, kernels, layer, groups=groups)  # [b, n*r, h, w]
            place = low.shape[2:]
            low = low.view(each, groups, rank, -1).permute(1, 0, 3, 2).reshape(groups, -1, rank)  # [n, b*h*w, r]
        else:
            cells = x.flatten(2).transpose(1, 2) if target.conv else x  # [n*b, ..., in]
            place = x.shape[2:] if target.conv else cells.shape[1:-1]
            low = torch.bmm(cells.reshape(groups, -1, cells.shape[-1]), stack.down.transpose(1, 2))  # [n, b*t, r]
        if self._drops:
            low = low * self._mask(live, each, low.shape[1] // each, low).view_as(low)
        high = torch.bmm(low, stack.up.transpose(1, 2)) * stack.column  # [n, b*t, out]
        high = high.view(len(x), -1, high.shape[-1])
        return high.transpose(1, 2).reshape(len(x), -1, *place) if target.conv else high.view(len(x), *place, -1)

    def _mask(self, live: _Live, rows: int, cells: int, like: Tensor) -> Tensor:
        """For the values between A and B, [n*b, cells, r]: each adapter's own, whoever else is in the pass."""
        rank = like.shape[-1]
        masks = []
        for drop, slot in zip(self._drops, live.slots, strict=True):
            mask = like.new_ones(rows, cells, slot.rank) if drop is None else drop.mask(live.index, (rows, cells, slot.rank), like)
            masks.append(F.pad(mask, (0, rank - slot.rank)))
        return torch.cat(masks)


def _side_by_side(part: str, adapters: Sequence[Adapter], dtype: torch.dtype) -> Iterator[_Live]:
    """Each layer with every adapter's own matrices."""
    cast = [
        adapter.layouts[part].values({group: adapter.flat[group].to(dtype) for group in adapter.layouts[part].sizes})
        for adapter in adapters
    ]
    for index, members in enumerate(zip(*cast, strict=True)):
        yield _Live(index, tuple(slot for slot, _ in members), tuple(values for _, values in members))


@lru_cache(maxsize=64)
def _columns(table: tuple[tuple[float, ...], ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Scales by adapter and layer as [layers, n, 1, 1]. Sent to the device once: to send them stops the host, and a recording of a pass."""
    return torch.tensor(table, device=device, dtype=dtype).T[:, :, None, None]


def _stacked(part: str, adapters: Sequence[Adapter], dtype: torch.dtype) -> Iterator[_Live]:
    """Each layer with the adapters' matrices in one tensor."""
    lays = [adapter.layouts[part] for adapter in adapters]
    wide = _widest(part, lays)
    pieces = wide.pieces({part: torch.stack([_padded(adapter, part, wide).to(dtype) for adapter in adapters])})
    table = [[slot.scale for slot in lay.slots] for lay in lays]
    device = next(iter(adapters[0].flat.values())).device
    columns = _columns(tuple(map(tuple, table)), device, dtype)
    for index, (_, down, up) in enumerate(pieces):
        yield _Live(index, tuple(lay.slots[index] for lay in lays), stack=_Stack(down, up, columns[index]))


def _low_rank(slot: Slot, values: tuple[Tensor, ...], layer: Any, x: Tensor, drop: Drop | None, index: int) -> Tensor:
    """up @ down @ x, with what is left out between them."""
    (down, up), target = values[:2], slot.target
    if not target.conv:
        low = F.linear(x, down)  # [b, ..., r]
        if drop:
            cells = low.reshape(len(x), -1, low.shape[-1])
            low = (cells * drop.mask(index, (len(x), cells.shape[1], slot.rank), low)).view_as(low)
        return F.linear(low, up)  # [b, ..., out]
    low = convolved(x, down.view(target.shapes(slot.rank)[0]), layer)  # [b, r, h, w]
    if drop:
        mask = drop.mask(index, (len(x), low.shape[2] * low.shape[3], slot.rank), low)  # [b, h*w, r]
        low = low * mask.transpose(1, 2).reshape(low.shape)
    return F.conv2d(low, up[:, :, None, None])  # [b, out, h, w]


class _Forward:
    """A layer's forward with the bank's share added."""

    __slots__ = ("bank", "base", "layer", "target")

    def __init__(self, bank: Bank, target: Target, layer: Any) -> None:
        self.bank, self.target, self.layer, self.base = bank, target, layer, layer.forward

    def __call__(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        out: Tensor = self.base(x, *args, **kwargs)
        return self.bank.delta(self.target, self.layer, x, out)


def _start(slot: Slot, values: Sequence[Tensor], generator: torch.Generator) -> None:
    for piece, value in zip(slot.pieces, values, strict=True):
        if piece.uniform:
            value.uniform_(-piece.uniform, piece.uniform, generator=generator)
        elif piece.normal:
            value.normal_(0.0, piece.normal, generator=generator)


def _gradient(flat: nn.Parameter) -> Tensor:
    return torch.zeros_like(flat) if flat.grad is None else flat.grad


def _widest(part: str, lays: Sequence[Layout]) -> Layout:
    """A layout in one vector that has room for each of these."""
    ranks = [max(column) for column in zip(*(lay.ranks for lay in lays), strict=True)]
    return layout(part, [replace(slot, rank=rank, rate=1.0) for slot, rank in zip(lays[0].slots, ranks, strict=True)])


def _padded(adapter: Adapter, part: str, wide: Layout) -> Tensor:
    """The vector as it would lie in a wider layout, zeros in the new places. One gather, not one copy a layer."""
    own = adapter.layouts[part]
    if own.sizes == wide.sizes:
        return adapter.flat[part]
    key = (part, wide.ranks)
    flats = [adapter.flat[group] for group in own.sizes]
    if key not in adapter.places:
        adapter.places[key] = _places(own, wide, part).to(flats[0].device)
    return torch.cat([*flats, flats[0].new_zeros(1)])[adapter.places[key]]


def _places(own: Layout, wide: Layout, part: str) -> Tensor:
    """For every place of the wide layout its place in the narrow one's vectors, one after the other, or the zero at their end."""
    numbers, start = {}, 0
    for group, total in own.totals().items():
        numbers[group] = torch.arange(start, start + total)
        start += total
    places = torch.full((wide.totals()[part],), start)
    pairs = zip(own.pieces(numbers), wide.pieces({part: places}), strict=True)
    for (slot, down, up), (_, to_down, to_up) in pairs:
        to_down[: slot.rank] = down
        to_up[:, : slot.rank] = up
    return places
