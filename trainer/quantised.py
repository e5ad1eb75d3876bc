"""A frozen model's linear layers with their weights in fewer bits, made whole again for each use.

Three ways of storing. `fp8` and `int8`: a byte a weight and a scale a row; plain arithmetic of torch, on every device.
`nf4`: half a byte a weight and a scale for every 64 (Dettmers et al. 2023, arXiv 2305.14314, section 3), laid out as
bitsandbytes lays it out: its kernel unpacks it on a GPU, a table does on a CPU, to the same numbers.

Only storage shrinks: a layer's weight is unpacked to the compute dtype, used and let go, in the forward pass and again in the
backward pass, which keeps the packed form alone. So this saves memory, and costs time. Gradients reach what is before the layer,
adapters above all, exactly as through the unpacked weight; the weight itself never learns.

Knows nothing of adapters, families or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

Packed = tuple[Tensor, Tensor]
"""The weights as bytes, and what they are scaled by."""

BLOCK = 64
"""Weights of nf4 that share a scale; bitsandbytes' own choice."""

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The sixteen quantiles of a normal distribution that nf4 tells apart (arXiv 2305.14314, appendix E)."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A way of storing a matrix."""

    pack: Callable[[Tensor], Packed]
    """A matrix [out, in] in fp32 -> bytes and scales."""
    unpack: Callable[[Tensor, Tensor, torch.Size, torch.dtype], Tensor]
    """Bytes, scales, shape, dtype -> the matrix, as nearly as it was kept."""
    bits: float
    """Of a weight, scales counted in."""


def _scaled_rows(matrix: Tensor, top: float) -> tuple[Tensor, Tensor]:
    """Rows that span -top to top, and the scales that bring them back [out, 1]."""
    scales = matrix.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / top
    return matrix / scales, scales


def _pack_fp8(matrix: Tensor) -> Packed:
    rows, scales = _scaled_rows(matrix, torch.finfo(torch.float8_e4m3fn).max)
    return rows.to(torch.float8_e4m3fn).view(torch.uint8), scales


def _unpack_fp8(packed: Tensor, scales: Tensor, _shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return (packed.view(torch.float8_e4m3fn).float() * scales).to(dtype)


def _pack_int8(matrix: Tensor) -> Packed:
    rows, scales = _scaled_rows(matrix, 127.0)
    return rows.round().to(torch.int8).view(torch.uint8), scales


def _unpack_int8(packed: Tensor, scales: Tensor, _shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return (packed.view(torch.int8) * scales).to(dtype)


def _pack_nf4(matrix: Tensor) -> Packed:
    values = F.pad(matrix.reshape(-1), (0, -matrix.numel() % BLOCK)).view(-1, BLOCK)
    scales = values.abs().amax(dim=1)  # [blocks]
    levels = torch.tensor(NF4, device=matrix.device)
    unit = values / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).view(-1, 2)  # the nearest level
    return (codes[:, 0] << 4) | codes[:, 1], scales


def _unpack_nf4(packed: Tensor, scales: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if packed.is_cuda:
        return _unpack_nf4_by_kernel(packed, scales, shape, dtype)
    codes = torch.stack([packed >> 4, packed & 15], dim=1).int()  # [n, 2]
    values = torch.tensor(NF4, device=packed.device)[codes].view(-1, BLOCK) * scales[:, None]
    return values.view(-1)[: shape.numel()].view(shape).to(dtype)


def _unpack_nf4_by_kernel(packed: Tensor, scales: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    import bitsandbytes  # noqa: F401  # it tells torch of its kernels

    whole: Tensor = torch.ops.bitsandbytes.dequantize_4bit(packed[:, None], scales, BLOCK, "nf4", shape, dtype)
    return whole


STORAGES: Mapping[str, Storage] = {
    "fp8": Storage(_pack_fp8, _unpack_fp8, 8.0),
    "int8": Storage(_pack_int8, _unpack_int8, 8.0),
    "nf4": Storage(_pack_nf4, _unpack_nf4, 4.5),
}
"""By the names that a job says, the most exact first."""


class QuantisedLinear(nn.Linear):
    """A linear layer whose weight is kept packed. Its `weight` is made anew whenever it is read, and cannot be set."""

    storage: str
    packed: Tensor
    scales: Tensor
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, layer: nn.Linear, storage: str, device: torch.device) -> QuantisedLinear:
        """Turn a layer into this, in place: who holds it holds it still. Packed on `device`, kept where it was."""
        weight = layer.weight.detach()
        packed, scales = STORAGES[storage].pack(weight.to(device, torch.float32))
        if not isinstance(layer, cls):
            del layer.weight
            layer.__class__ = cls
        assert isinstance(layer, cls)
        layer.storage, layer.shape, layer.dtype = storage, weight.shape, weight.dtype
        layer.register_buffer("packed", packed.to(weight.device), persistent=False)
        layer.register_buffer("scales", scales.to(weight.device), persistent=False)
        return layer

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a parameter elsewhere, a product here
        """The weight in the compute dtype, as nearly as it was kept."""
        return STORAGES[self.storage].unpack(self.packed, self.scales, self.shape, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """As a linear layer does it."""
        return _Product.apply(x, self.bias, self.packed, self.scales, self.storage, self.shape)  # type: ignore[no-any-return, no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantisedLinear:
        """A move takes bytes and scales along; a cast changes what they are unpacked to, and leaves them as they are."""
        buffers = {name: self._buffers.pop(name) for name in ("packed", "scales")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in buffers.items():  # None where they are elsewhere for a while
            told = fn(torch.empty(0, dtype=self.dtype, device="cpu" if value is None else value.device))
            self._buffers[name] = None if value is None else value.to(told.device)
            self.dtype = told.dtype
        return self


class _Product(torch.autograd.Function):
    """x W^T + b, keeping W packed for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, packed: Tensor, scales: Tensor, storage: str, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(packed, scales)
        ctx.storage, ctx.shape = storage, shape
        return F.linear(x, STORAGES[storage].unpack(packed, scales, shape, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        packed, scales = ctx.saved_tensors
        whole = STORAGES[ctx.storage].unpack(packed, scales, ctx.shape, gradient.dtype)
        return gradient @ whole, None, None, None, None, None


LEAST = 1024
"""Weights of a layer that is worth it."""


def quantise(model: nn.Module, storage: str, device: torch.device) -> None:
    """Store the linear layers of a frozen model so. They keep their places and what was attached to them."""
    for layer in [one for one in model.modules() if isinstance(one, nn.Linear) and one.weight.numel() >= LEAST]:
        patched = layer.__dict__.pop("forward", None)
        QuantisedLinear.of(layer, storage, device)
        if patched is not None:
            patched.base = layer.forward
            layer.forward = patched  # type: ignore[method-assign]
