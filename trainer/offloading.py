"""A frozen model whose blocks wait in main memory and come to the device one after the other.

A *conveyor* hands each block's weights over when the block is about to run and takes them back when it has run; on a GPU the next
block's come meanwhile, on a stream of their own, from pinned memory. With gradient checkpointing every block runs again on the way
back, last block first, and is brought again for it: nothing is ever written back, since nothing of it learns.

The device's copies are new tensors, never the waiting ones moved: what autograd has kept of a block stays what it was until its
gradient is through. Knows nothing of adapters, families or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Bring = Callable[[Tensor], Tensor]
"""Main memory -> device. May return before the copy is there."""


@dataclass(slots=True)
class Block:
    """One block's frozen tensors, as they wait."""

    module: nn.Module
    waiting: list[tuple[dict[str, Any], str, Tensor]]
    """Where each is looked up (a module's parameters or buffers), its name, and the tensor in main memory."""
    coming: list[Tensor] = field(default_factory=list)
    arrival: Any = None
    """What to wait for before they are used."""


@dataclass(slots=True)
class Conveyor:
    """Blocks in the order in which they run."""

    blocks: list[Block]
    bring: Bring
    stream: Any = None
    """What the copies run on beside the arithmetic, where there is such a thing."""
    here: set[int] = field(default_factory=set)
    """Blocks whose weights are on the device for use."""
    _hooks: list[Any] = field(default_factory=list)
    _last: int = -1

    @classmethod
    def along(cls, model: nn.Module, share: float, device: torch.device, bring: Bring | None = None) -> Conveyor:
        """Take this share of a model's repeated blocks, spread evenly over its length, off the device."""
        found = repeated_blocks(model)
        count = round(share * len(found))
        chosen = [block for i, block in enumerate(found) if (i + 1) * count // len(found) > i * count // len(found)] if found else []
        on_gpu = device.type == "cuda"
        usual = partial(Tensor.to, device=device, non_blocking=True) if on_gpu else Tensor.clone
        conveyor = cls([Block(one, _frozen(one, pinned=on_gpu)) for one in chosen], bring or usual)
        conveyor.stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        for number, block in enumerate(conveyor.blocks):
            conveyor._put_away(block)
            before = block.module.register_forward_pre_hook(partial(conveyor._before, number))
            after = block.module.register_forward_hook(partial(conveyor._after, number), always_call=True)
            conveyor._hooks += [before, after]
        return conveyor

    def place_rest(self, model: nn.Module, device: torch.device) -> None:
        """Bring to the device what is not on the conveyor."""
        for block in self.blocks:
            for holder, name, _ in block.waiting:
                holder[name] = None
        try:
            model.to(device)
        finally:
            for block in self.blocks:
                self._put_away(block)

    def dismantle(self) -> None:
        """Leave the model whole, in main memory as far as it was on the conveyor."""
        for hook in self._hooks:
            hook.remove()
        for block in self.blocks:
            self._put_away(block)
            block.coming, block.arrival = [], None
        self._hooks.clear()
        self.here.clear()

    def _before(self, number: int, _module: nn.Module, _inputs: Any) -> None:
        block = self.blocks[number]
        self._fetch(block)
        if block.arrival is not None:
            torch.cuda.current_stream().wait_event(block.arrival)
        for (holder, name, _), tensor in zip(block.waiting, block.coming, strict=True):
            holder[name] = nn.Parameter(tensor, requires_grad=False) if isinstance(holder.get(name), nn.Parameter) else tensor
            if self.stream is not None:
                tensor.record_stream(torch.cuda.current_stream())
        block.coming, block.arrival = [], None
        self.here.add(number)
        onward = number + (-1 if number < self._last else 1)  # on the way back the blocks run in the other order
        if self.stream is not None and 0 <= onward < len(self.blocks) and onward not in self.here:
            self._fetch(self.blocks[onward])
        self._last = number

    def _after(self, number: int, *_: Any) -> None:
        self._put_away(self.blocks[number])
        self.here.discard(number)

    def _fetch(self, block: Block) -> None:
        if block.coming:
            return
        if self.stream is None:
            block.coming = [self.bring(tensor) for _, _, tensor in block.waiting]
            return
        with torch.cuda.stream(self.stream):
            block.coming = [self.bring(tensor) for _, _, tensor in block.waiting]
            block.arrival = self.stream.record_event()

    def _put_away(self, block: Block) -> None:
        for holder, name, tensor in block.waiting:
            holder[name] = tensor


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks that a model is mostly made of, in the order in which they stand, as diffusers names their classes."""
    names: Sequence[str] = getattr(model, "_repeated_blocks", None) or getattr(model, "_no_split_modules", None) or ()
    return [module for module in model.modules() if type(module).__name__ in names]


def _frozen(module: nn.Module, *, pinned: bool) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Every frozen tensor below a module, in main memory."""
    found = []
    for one in module.modules():
        for holder in (one._parameters, one._buffers):  # noqa: SLF001  # new tensors are looked up there, old ones stay whole
            for name, tensor in holder.items():
                if tensor is not None and not tensor.requires_grad:
                    kept = tensor.to("cpu")
                    waiting = kept.pin_memory() if pinned else kept
                    found.append(
                        (holder, name, nn.Parameter(waiting, requires_grad=False) if isinstance(tensor, nn.Parameter) else waiting)
                    )
    return found
