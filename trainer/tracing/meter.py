"""Counts what runs inside it: every kernel with its arithmetic and its bytes, and the bytes that are alive over time.

Works on tensors without values (torch's FakeTensorMode) as on real ones. Which kernel a GPU takes for an operation is not known here:
one operation counts as one kernel, views and allocations as none.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

Kind = Literal["product", "convolution", "attention", "movement"]
"""Classes of kernels that reach different shares of what a card can do. The last only reads and writes."""

BLOCK_BYTES = 512
"""torch's allocator on a GPU hands out multiples of it."""

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "_int_mm")
CONVOLUTIONS = ("convolution", "convolution_backward", "_convolution")
ATTENTION = "_scaled_dot_product"
NOTHING_DONE = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh", "detach")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch."""

    name: str
    kind: Kind
    flops: int
    bytes: int


@dataclass(slots=True)
class Reading:
    """What a meter has seen."""

    kernels: list[Kernel] = field(default_factory=list)
    live: int = 0
    """Bytes alive now that were made inside."""
    peak: int = 0
    kept: int = 0
    """Alive when the backward pass began: what the forward pass keeps for it."""


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Inside, everything is counted. Tensors that were there before count as read, not as alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reading = Reading()
        self._known: set[int] = set()
        self._backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reading = self.reading
        if not self._backward and torch._C._current_graph_task_id() != -1:  # noqa: SLF001  # its only sign
            self._backward, reading.kept = True, reading.live
        out = func(*args, **(kwargs or {}))
        given, made = list(_tensors((args, kwargs))), list(_tensors(out))
        self._look(made)
        if _runs(func, given, made):
            reading.kernels.append(_kernel(func, args, kwargs or {}, out, [*given, *made]))
        return out

    def _look(self, made: Sequence[Tensor]) -> None:
        for tensor in made:
            storage = tensor.untyped_storage()
            key = storage._cdata  # noqa: SLF001  # the storage's own identity, whatever wraps it
            if key in self._known or not storage.nbytes():
                continue
            self._known.add(key)
            size = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
            self.reading.live += size
            self.reading.peak = max(self.reading.peak, self.reading.live)
            weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.reading.live -= size

    def know(self, tensors: Sequence[Tensor]) -> None:
        """These were there before: they are not counted when an operation hands them out again."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}  # noqa: SLF001


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))


def _runs(func: Any, given: Sequence[Tensor], made: Sequence[Tensor]) -> bool:
    """Whether anything is launched: not for a view, not for room."""
    if not made or func._schema.name.removeprefix("aten::") in NOTHING_DONE:  # noqa: SLF001
        return False
    if func._schema.is_mutable:  # noqa: SLF001
        return True
    places = {tensor.untyped_storage()._cdata for tensor in given}  # noqa: SLF001
    return any(tensor.untyped_storage()._cdata not in places for tensor in made)  # noqa: SLF001


def _kernel(func: Any, args: Any, kwargs: Any, out: Any, tensors: Sequence[Tensor]) -> Kernel:
    name = func._schema.name.removeprefix("aten::")  # noqa: SLF001
    moved = sum(_bytes(tensor) for tensor in tensors)
    if name.startswith(ATTENTION):
        return Kernel(name, "attention", _attention_flops(name, args), moved)
    packet = func.overloadpacket
    flops = int(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0
    kind: Kind = "product" if name in PRODUCTS else "convolution" if name in CONVOLUTIONS else "movement"
    return Kernel(name, kind, flops, moved)


def _bytes(tensor: Tensor) -> int:
    """What is read or written of it; an expanded tensor is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _attention_flops(name: str, args: Any) -> int:
    """Two products forward; five backward, since what was not kept is computed again (Dao et al. 2022, arXiv 2205.14135)."""
    backward = "backward" in name
    query, key, value = args[1:4] if backward else args[0:3]
    rows = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]  # [b, heads, tokens, width]
    with_keys, with_values = int(2 * rows * query.shape[3]), int(2 * rows * value.shape[3])
    return 3 * with_keys + 2 * with_values if backward else with_keys + with_values
