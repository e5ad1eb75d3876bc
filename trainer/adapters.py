"""LoRA on chosen layers of a frozen model, for one job or for several in one pass.

A `Bank` gives every target layer a new `forward`: the base's own, plus up @ down @ x times alpha / rank
(Hu et al. 2021, arXiv 2106.09685). The layer keeps its name and its place, so that files, pipelines and
gradient checkpointing see the model they know.

One job's weights are an `Adapter`: per part of the model ONE flat fp32 vector that holds every matrix, each
starting at a multiple of 256. So the optimizer, the clipping and the cast to the compute dtype are a few
kernels instead of hundreds, and the 8-bit optimizer's blocks of 256 never span two matrices.

Several adapters share a pass by stacking: A [n, r, in], B [n, out, r], the batch's rows in n equal groups, two
batched products whatever n is. Smaller ranks are padded with zeros for the pass only: the padded rows add
nothing and learn nothing, and the stored weights are those of the job alone.

Knows nothing of families, optimizers or files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

from . import streams

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
    """A 1x1 convolution: a linear layer over channels, stored with 4-d shape."""
    idle: bool = False
    """Nothing of it reaches the answer, and no gradient comes back; it is there because other programs' files have it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each matrix lies in a part's flat vector."""

    targets: tuple[Target, ...]
    rank: int
    sizes: tuple[int, ...]
    """Lengths of A, gap, B, gap for each target in turn."""

    @property
    def total(self) -> int:
        return sum(self.sizes)


def layout(targets: Sequence[Target], rank: int) -> Layout:
    """Lay out targets in the order of their names."""
    ordered = tuple(sorted(targets, key=lambda t: t.name))
    sizes: list[int] = []
    for target in ordered:
        for length in (rank * target.fan_in, rank * target.fan_out):
            sizes += [length, -length % ALIGNMENT]
    return Layout(ordered, rank, tuple(sizes))


def find_targets(part: str, model: nn.Module, wanted: Sequence[str], pattern_inside: type[nn.Module] | None = None) -> list[Target]:
    """Linear layers and 1x1 convolutions whose path ends in one of `wanted` (all, if empty), inside modules of a type."""
    roots = [name for name, module in model.named_modules() if pattern_inside is None or isinstance(module, pattern_inside)]
    found: dict[str, Target] = {}
    for name, module in model.named_modules():
        inside = any(root == "" or name.startswith(root + ".") for root in roots)
        if not inside or (wanted and not any(name == w or name.endswith("." + w) for w in wanted)):
            continue
        if isinstance(module, nn.Linear):
            found[name] = Target(part, name, module.in_features, module.out_features)
        elif isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1 and module.stride == (1, 1):
            found[name] = Target(part, name, module.in_channels, module.out_channels, conv=True)
    return [found[name] for name in sorted(found)]


@dataclass(slots=True)
class Adapter:
    """One job's weights: a flat fp32 parameter per trained part."""

    rank: int
    scale: float
    layouts: dict[str, Layout]
    flat: dict[str, nn.Parameter]
    places: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """Part and larger rank -> where each value lies at that rank."""
    mean: dict[str, Tensor] = field(default_factory=dict)
    """Running mean of the weights, where the job wants one."""

    @classmethod
    def create(cls, targets: Sequence[Target], rank: int, scale: float, seed: int, device: torch.device) -> Adapter:
        """Fresh weights: A as kaiming_uniform(a=sqrt 5), that is uniform within 1/sqrt(fan_in), from the job's own stream; B zero."""
        layouts = {part: layout([t for t in targets if t.part == part], rank) for part in sorted({t.part for t in targets})}
        flat = {}
        for part, lay in layouts.items():
            values = torch.zeros(lay.total)
            pieces = _split(values, lay.sizes)
            generator = streams.generator(seed, f"init.{part}")
            for index, target in enumerate(lay.targets):
                bound = 1.0 / math.sqrt(target.fan_in)
                pieces[4 * index].uniform_(-bound, bound, generator=generator)
            flat[part] = nn.Parameter(values.to(device))
        return cls(rank, scale, layouts, flat)

    def follow(self, decay: float, step: int) -> None:
        """Let the running mean follow after update `step` (from 0): slower and slower up to `decay`, as diffusers' EMAModel does."""
        share = 1.0 - min(decay, (1 + step) / (10 + step)) if step > 0 else 1.0
        for part, flat in self.flat.items():
            if part not in self.mean:
                self.mean[part] = torch.zeros_like(flat, requires_grad=False)
            self.mean[part].lerp_(flat.detach(), share)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are their running mean, if there is one."""
        kept = {part: flat.data for part, flat in self.flat.items()}
        try:
            for part, mean in self.mean.items():
                self.flat[part].data = mean
            yield
        finally:
            for part, flat in self.flat.items():
                flat.data = kept[part]

    def matrices(self, part: str) -> Iterator[tuple[Target, Tensor, Tensor]]:
        """Each target with its A [r, in] and B [out, r], as views."""
        lay = self.layouts[part]
        pieces = _split(self.flat[part].detach(), lay.sizes)
        for index, target in enumerate(lay.targets):
            yield target, pieces[4 * index].view(self.rank, target.fan_in), pieces[4 * index + 2].view(target.fan_out, self.rank)

    def gradients(self, part: str) -> Iterator[tuple[Target, Tensor, Tensor]]:
        """Like `matrices`, of the gradient."""
        lay, grad = self.layouts[part], self.flat[part].grad
        pieces = _split(torch.zeros_like(self.flat[part]) if grad is None else grad, lay.sizes)
        for index, target in enumerate(lay.targets):
            yield target, pieces[4 * index].view(self.rank, target.fan_in), pieces[4 * index + 2].view(target.fan_out, self.rank)

    def count(self) -> int:
        """Number of trained weights, gaps not counted."""
        return sum(self.rank * (t.fan_in + t.fan_out) for lay in self.layouts.values() for t in lay.targets)


Pair = tuple[Tensor, Tensor]
"""A and B as the layer uses them: 2-d for one adapter, 3-d for several."""


@dataclass(slots=True)
class Bank:
    """The adapted layers of one base, and which adapters the next pass uses."""

    targets: dict[str, list[Target]] = field(default_factory=dict)
    _live: dict[tuple[str, str], Pair] = field(default_factory=dict)
    _scales: tuple[float, ...] = ()
    _scale_column: Tensor | None = None
    _layers: list[nn.Module] = field(default_factory=list)

    def attach(self, part: str, model: nn.Module, targets: Sequence[Target]) -> None:
        """Give the target layers of one part their new forward."""
        self.targets[part] = list(targets)
        modules = dict(model.named_modules())
        for target in targets:
            layer = modules[target.name]
            # The layer keeps its class and its name; only this instance's forward changes (as kohya does it).
            layer.forward = self._forward_of((part, target.name), layer, conv=target.conv)
            self._layers.append(layer)

    def detach(self) -> None:
        """Leave the model as it was."""
        for layer in self._layers:
            del layer.forward
        self._layers.clear()
        self.targets.clear()

    @contextmanager
    def use(self, adapters: Sequence[Adapter], dtype: torch.dtype) -> Iterator[None]:
        """Inside, every pass carries these adapters, its rows in as many equal groups, in this order. None: the base alone."""
        assert not self._live, "a bank is used by one pass at a time"
        try:
            if adapters:
                self._prepare(adapters, dtype)
            yield
        finally:
            self._live.clear()
            self._scales, self._scale_column = (), None

    def _prepare(self, adapters: Sequence[Adapter], dtype: torch.dtype) -> None:
        self._scales = tuple(a.scale for a in adapters)
        rank = max(a.rank for a in adapters)
        if len(adapters) > 1:
            first = next(iter(adapters[0].flat.values()))
            self._scale_column = torch.tensor(self._scales, device=first.device, dtype=dtype).view(-1, 1, 1)
        for part in adapters[0].layouts:
            lay = next(a.layouts[part] for a in adapters if a.rank == rank)
            lead = () if len(adapters) == 1 else (len(adapters),)
            if len(adapters) == 1:
                stacked = adapters[0].flat[part].to(dtype)
            else:
                stacked = torch.stack([_padded(a, part, lay).to(dtype) for a in adapters])
            pieces = _split(stacked, lay.sizes)
            for index, target in enumerate(lay.targets):
                down = pieces[4 * index].view(*lead, rank, target.fan_in)
                up = pieces[4 * index + 2].view(*lead, target.fan_out, rank)
                self._live[part, target.name] = (down, up)

    def _forward_of(self, key: tuple[str, str], layer: nn.Module, *, conv: bool) -> _Forward:
        return _Forward(self, key, layer.forward, conv=conv)

    def delta(self, key: tuple[str, str], x: Tensor, base: Tensor, *, conv: bool) -> Tensor:
        """The base's output plus the adapters'."""
        pair = self._live.get(key)
        if pair is None:
            return base
        down, up = pair
        if len(self._scales) == 1:
            scale = self._scales[0]
            if conv:
                low = F.conv2d(x, down[:, :, None, None])  # [b, r, h, w]
                return torch.add(base, F.conv2d(low, up[:, :, None, None]), alpha=scale)
            return torch.add(base, F.linear(F.linear(x, down), up), alpha=scale)  # [b, ..., out]
        return base + self._grouped(x, down, up, conv=conv)

    def _grouped(self, x: Tensor, down: Tensor, up: Tensor, *, conv: bool) -> Tensor:
        groups, _, fan_in = down.shape
        cells = x.flatten(2).transpose(1, 2) if conv else x  # [n*b, ..., in]
        rows = cells.reshape(groups, -1, *cells.shape[1:])  # [n, b, ..., in]
        lead = rows.shape[:-1]
        low = torch.bmm(rows.reshape(groups, -1, fan_in), down.transpose(1, 2))  # [n, b*t, r]
        assert self._scale_column is not None
        high = torch.bmm(low, up.transpose(1, 2)) * self._scale_column  # [n, b*t, out]
        high = high.view(*lead, -1).flatten(0, 1)  # [n*b, ..., out]
        return high.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:]) if conv else high


class _Forward:
    """A layer's forward with the bank's share added."""

    __slots__ = ("bank", "base", "conv", "key")

    def __init__(self, bank: Bank, key: tuple[str, str], base: object, *, conv: bool) -> None:
        self.bank, self.key, self.base, self.conv = bank, key, base, conv

    def __call__(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        assert callable(self.base)
        out: Tensor = self.base(x, *args, **kwargs)
        return self.bank.delta(self.key, x, out, conv=self.conv)


def _split(values: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Views of consecutive lengths; their gradients come back in one concatenation."""
    return torch.split_with_sizes(values, sizes, dim=-1)


def _padded(adapter: Adapter, part: str, wide: Layout) -> Tensor:
    """The flat vector as it would lie at a larger rank, zeros in the new places. One gather, not one copy a layer."""
    own = adapter.layouts[part]
    flat = adapter.flat[part]
    if own.rank == wide.rank:
        return flat
    key = (part, wide.rank)
    if key not in adapter.places:
        adapter.places[key] = _places(own, wide).to(flat.device)
    return torch.cat([flat, flat.new_zeros(1)])[adapter.places[key]]


def _places(own: Layout, wide: Layout) -> Tensor:
    """For every place of the wide layout its place in the narrow one, or the zero at its end."""
    places = torch.full((wide.total,), own.total)
    to, start = 0, 0
    for index, target in enumerate(own.targets):
        r, wide_r = own.rank, wide.rank
        down = torch.arange(r * target.fan_in) + start
        places[to : to + r * target.fan_in] = down
        start += sum(own.sizes[4 * index : 4 * index + 2])
        to += sum(wide.sizes[4 * index : 4 * index + 2])
        up = (torch.arange(target.fan_out * r) + start).view(target.fan_out, r)
        places[to : to + target.fan_out * wide_r].view(target.fan_out, wide_r)[:, :r] = up
        start += sum(own.sizes[4 * index + 2 : 4 * index + 4])
        to += sum(wide.sizes[4 * index + 2 : 4 * index + 4])
    return places
