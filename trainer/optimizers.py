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


IN_8_BITS = {"AdamW8bit": "AdamW", "PagedAdamW8bit": "AdamW", "Lion8bit": "Lion"}
"""bitsandbytes' name -> the same rule with states in 32 bits."""


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023 (arXiv 2302.06675, algorithm 2): the sign of an interpolated momentum; weight decay decoupled."""

    BETAS: ClassVar[tuple[float, float]] = (0.9, 0.99)

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.add_(torch.lerp(parameter.grad, momentum, self.BETAS[0]).sign_(), alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1.0 - self.BETAS[1])


def create(options: TrainingOptions, parameters: Mapping[str, nn.Parameter]) -> tuple[torch.optim.Optimizer, str]:
    """The optimizer, one group a part in the order of `parameters`; and a warning, empty if there is none."""
    groups: list[dict[str, Any]] = [{"params": [p], "lr": 0.0, "part": part} for part, p in parameters.items()]
    device = next(iter(parameters.values())).device
    name, warning, decay = options.optimizer, "", options.weight_decay
    if plain := IN_8_BITS.get(name):
        reason = why_no_8bit(device, name)
        if not reason:
            import bitsandbytes

            make = getattr(bitsandbytes.optim, name)
            if plain == "Lion":
                return make(groups, lr=0.0, betas=Lion.BETAS, weight_decay=decay), ""
            return make(groups, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=decay), ""
        warning = f"{name} cannot run here ({reason}); {plain} is used: the same rule with states in 32 bits."
        name = "Lion" if plain == "Lion" else "AdamW"
    if name == "Lion":
        return Lion(groups, lr=0.0, weight_decay=decay), warning
    fused = device.type == "cuda"
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=decay, fused=fused), warning


def why_no_8bit(device: torch.device, name: str = "AdamW8bit") -> str:
    """Empty if this optimizer takes a step on this device, else the reason: older bitsandbytes cannot on a CPU."""
    try:
        import bitsandbytes

        probe = nn.Parameter(torch.ones(8192, device=device))
        probe.grad = torch.ones_like(probe)
        getattr(bitsandbytes.optim, name)([probe], lr=1e-3).step()
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
