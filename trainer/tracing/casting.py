"""How trainers cast that keep an adapter in fp32 and train under `torch.autocast` on a GPU; ours does not.

Only for comparing with what they publish. On tensors of the CPU torch follows the CPU's list of operations; the GPU's is longer: norms
are computed and kept in fp32, and every layer casts what it is given for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor
from torch.overrides import TorchFunctionMode

WIDE = (F.layer_norm, F.group_norm, F.rms_norm, torch.nn.functional.mse_loss, torch.rms_norm, torch.layer_norm, torch.group_norm)
NARROW = (F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.conv2d, Tensor.matmul)


class Autocast(TorchFunctionMode):
    """Inside, operations cast as under `torch.autocast("cuda", torch.bfloat16)`."""

    def __torch_function__(self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        to = torch.float32 if func in WIDE else torch.bfloat16 if func in NARROW else None
        if to is None:
            return func(*args, **(kwargs or {}))
        return func(*(_cast(one, to) for one in args), **{name: _cast(one, to) for name, one in (kwargs or {}).items()})


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
