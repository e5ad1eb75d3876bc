"""What one adapter adds to a layer's answer, by each method of `methods.py`. Knows nothing of passes, banks or files.

The arithmetic is peft's and LyCORIS' own: a file gives the same answer there and here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor

from .targets import Slot, Target


def product(slot: Slot, values: tuple[Tensor, ...]) -> Tensor:
    """The change of the layer's weight [out, width], before its scale."""
    named = {piece.name: value for piece, value in zip(slot.pieces, values, strict=True)}
    if slot.method.name == "lora":
        return named["lora_up.weight"] @ named["lora_down.weight"]
    if slot.method.name == "loha":
        thin = [named[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b")]
        made: Tensor = _Hadamard.apply(*thin)  # type: ignore[no-untyped-call]  # as torch has it
        return made
    return torch.kron(*_kronecker(named))


def answer(slot: Slot, values: tuple[Tensor, ...], layer: Any, x: Tensor) -> Tensor:
    """What the change answers to x, before its scale; of any method but LoRA, which has room for dropout between its matrices."""
    target = slot.target
    if slot.method.name == "lokr":
        named = {piece.name: value for piece, value in zip(slot.pieces, values, strict=True)}
        small, large = _kronecker(named)
        return _conv_kronecker(small, large, target, layer, x) if target.conv else _linear_kronecker(small, large, x)
    change = product(slot, values)
    if not target.conv:
        return F.linear(x, change)
    return convolved(x, change.view(target.fan_out, target.fan_in, *target.kernel), layer)


def convolved(x: Tensor, kernels: Tensor, layer: Any, groups: int = 1) -> Tensor:
    """A convolution with the layer's own stride and padding."""
    return F.conv2d(x, kernels, None, layer.stride, layer.padding, layer.dilation, groups)


class _Hadamard(torch.autograd.Function):
    """(a1 b1) * (a2 b2), keeping the thin matrices alone for the way back."""

    @staticmethod
    def forward(ctx: Any, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
        ctx.save_for_backward(a1, b1, a2, b2)
        return (a1 @ b1) * (a2 @ b2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        a1, b1, a2, b2 = ctx.saved_tensors
        first, second = grad * (a2 @ b2), grad * (a1 @ b1)
        return first @ b1.T, a1.T @ first, second @ b2.T, a2.T @ second


def _kronecker(named: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The two factors, whole."""
    small = named["lokr_w1"] if "lokr_w1" in named else named["lokr_w1_a"] @ named["lokr_w1_b"]
    return small, named["lokr_w2"] if "lokr_w2" in named else named["lokr_w2_a"] @ named["lokr_w2_b"]


def _linear_kronecker(small: Tensor, large: Tensor, x: Tensor) -> Tensor:
    """(small x large) x without the product: inputs as a table, large along its rows, small along its columns."""
    table = x.reshape(*x.shape[:-1], small.shape[1], large.shape[1])  # [..., few in, many in]
    return (small @ F.linear(table, large)).flatten(-2)  # [..., out]


def _conv_kronecker(small: Tensor, large: Tensor, target: Target, layer: Any, x: Tensor) -> Tensor:
    """The same over pictures: large convolves each of the few groups of channels, small mixes the groups."""
    few = small.shape[1]
    channels = target.fan_in // few
    kernels = large.view(len(large), channels, *target.kernel)
    made = convolved(x.reshape(len(x) * few, channels, *x.shape[2:]), kernels, layer)  # [b * few in, many out, h, w]
    mixed = small @ made.reshape(len(x), few, -1)  # [b, few out, many out * h * w]
    return mixed.reshape(len(x), target.fan_out, *made.shape[2:])


# --- DoRA ------------------------------------------------------------------------------------------


def dense_weight(layer: Any) -> Tensor:
    """A layer's own weight [out, width]; a quantised one unpacks it."""
    weight: Tensor = layer.weight
    return weight.detach().flatten(1)


def lengths(weight: Tensor) -> Tensor:
    """Of each output [out], in fp32: the root of a sum of squares is no place for half precision."""
    found: Tensor = torch.linalg.vector_norm(weight.float(), dim=1)
    return found


@torch.no_grad()
def share(slot: Slot, values: tuple[Tensor, ...], layer: Any) -> Tensor:
    """One over the length of each output's changed weight [out]. No gradient goes through it, as in section 4.3 of DoRA's paper."""
    change = product(slot, values) * slot.scale
    return 1.0 / lengths(dense_weight(layer).to(change.device, change.dtype) + change)


def magnified(slot: Slot, values: tuple[Tensor, ...], layer: Any, base: Tensor, gain: Tensor) -> Tensor:
    """What DoRA adds to the base's answer: the changed layer, its outputs stretched to their trained lengths, less the base."""
    stretch = (values[-1][:, 0] * share(slot, values, layer)).to(gain.dtype)  # [out]
    shape = (-1, *[1] * (base.ndim - 2)) if slot.target.conv else (-1,)
    stretch = stretch.view(shape)
    bare = base if layer.bias is None else base - layer.bias.to(base.dtype).view(shape)
    return (stretch - 1) * bare + stretch * gain
