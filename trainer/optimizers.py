"""Optimizers, their states as plain tensors and numbers, and the loss scale of fp16.

Knows nothing of models or files. States go to a checkpoint and come back exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .protocol import TrainingOptions

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def create(options: TrainingOptions, parameters: Mapping[str, nn.Parameter]) -> tuple[torch.optim.Optimizer, str]:
    """The optimizer, one group a part in the order of `parameters`; and a warning, empty if there is none."""
    groups: list[dict[str, Any]] = [{"params": [p], "lr": 0.0, "part": part} for part, p in parameters.items()]
    device = next(iter(parameters.values())).device
    if options.optimizer == "AdamW8bit":
        reason = why_no_8bit(device)
        if not reason:
            import bitsandbytes

            return bitsandbytes.optim.AdamW8bit(groups, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=options.weight_decay), ""
        warning = f"AdamW8bit cannot run here ({reason}); AdamW is used: the same rule with states in 32 bits."
    else:
        warning = ""
    fused = device.type == "cuda"
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=options.weight_decay, fused=fused), warning


def why_no_8bit(device: torch.device) -> str:
    """Empty if AdamW8bit takes a step on this device, else the reason: older bitsandbytes cannot on a CPU."""
    try:
        import bitsandbytes

        probe = nn.Parameter(torch.ones(8192, device=device))
        probe.grad = torch.ones_like(probe)
        bitsandbytes.optim.AdamW8bit([probe], lr=1e-3).step()
    except (ImportError, RuntimeError, NotImplementedError, AttributeError, ValueError, TypeError, OSError) as error:
        return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return "" if bool((probe.detach() < 1).all()) else "its step changes nothing"


def state_of(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The state as tensors and as numbers, named `<part>.<key>`."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for group in optimizer.param_groups:
        for key, value in optimizer.state.get(group["params"][0], {}).items():
            name = f"{group['part']}.{key}"
            if isinstance(value, Tensor):
                tensors[name] = value.detach()
            else:
                numbers[name] = value
    return tensors, numbers


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
    """Put a state back. Around `load_state_dict`, which would cast it."""
    for group in optimizer.param_groups:
        parameter, prefix = group["params"][0], f"{group['part']}."
        state: dict[str, Any] = {}
        for name, value in tensors.items():
            if name.startswith(prefix):
                on_host = name.endswith(".step") and not group.get("fused")  # AdamW counts on the CPU unless fused
                state[name.removeprefix(prefix)] = value.clone() if on_host else value.to(parameter.device, copy=True)
        state |= {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
        if state:
            optimizer.state[parameter] = state


@dataclass(slots=True)
class LossScale:
    """Dynamic loss scaling of fp16 (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2); 1 and still otherwise."""

    enabled: bool
    value: float = 65536.0
    good: int = 0

    GROW_AFTER: ClassVar[int] = 2000  # as torch.amp.GradScaler
    FLOOR: ClassVar[float] = 2.0**-4

    def __post_init__(self) -> None:
        if not self.enabled:
            self.value = 1.0

    def update(self, *, finite: bool) -> bool:
        """Count a step; False when even the smallest scale overflows: then it is no matter of scale."""
        if not self.enabled:
            return finite
        if finite:
            self.good += 1
            if self.good >= self.GROW_AFTER:
                self.value, self.good = min(self.value * 2, 2.0**24), 0
            return True
        self.value, self.good = self.value / 2, 0
        return self.value >= self.FLOOR


def clip(parameters: list[nn.Parameter], limit: float) -> float:
    """The gradients' joint 2-norm before they are scaled down to `limit` (0: only measured)."""
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if limit > 0 and math.isfinite(norm):
        coefficient = min(limit / (norm + 1e-6), 1.0)  # as torch's clip_grad_norm_
        for parameter in parameters:
            if parameter.grad is not None and coefficient < 1.0:
                parameter.grad.mul_(coefficient)
    return norm
