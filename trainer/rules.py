"""Update rules that torch and the packages we use do not have, or not in the form that a checkpoint brings back exactly.

Each is its paper's, held to an independent reference by test. Knows nothing of jobs or files.
"""

# ruff: noqa: SLF001  # `_foreach` is how torch's own optimizers take many tensors in one kernel

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from . import streams

Groups = list[dict[str, Any]]


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023 (arXiv 2302.06675, algorithm 2): the sign of an interpolated momentum; weight decay decoupled."""

    BETAS: ClassVar[tuple[float, float]] = (0.9, 0.99)

    def __init__(self, groups: Groups, lr: float, weight_decay: float, betas: tuple[float, float] = BETAS) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            mix, keep = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.add_(torch.lerp(parameter.grad, momentum, mix).sign_(), alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1.0 - keep)


class StableAdamW(torch.optim.Optimizer):
    """Wortsman et al. 2023 (arXiv 2304.13013, algorithm 2): AdamW whose rate shrinks where the second moment lags behind.

    A matrix whose gradients have just grown gets its step divided by how much they have, as Adafactor does it.
    So each parameter must be one matrix. The moments are debiased in their betas.
    """

    def __init__(self, groups: Groups, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-6) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; a few kernels for all of them."""
        assert closure is None
        for group in self.param_groups:
            if not (moving := [p for p in group["params"] if p.grad is not None]):
                continue
            group["count"] = count = group.get("count", 0) + 1
            first, second = (beta * (1 - beta ** (count - 1)) / (1 - beta**count) for beta in group["betas"])
            grads = [p.grad for p in moving]
            means = [self.state[p].setdefault("mean", torch.zeros_like(p)) for p in moving]
            squares = [self.state[p].setdefault("square", torch.zeros_like(p)) for p in moving]
            torch._foreach_lerp_(means, grads, 1.0 - first)
            torch._foreach_mul_(squares, second)
            torch._foreach_addcmul_(squares, grads, grads, 1.0 - second)
            roots = torch._foreach_sqrt(squares)
            surprise = torch._foreach_norm(torch._foreach_div(grads, torch._foreach_clamp_min(roots, group["eps"])))
            share = torch.stack(list(surprise)) / torch.tensor([p.numel() ** 0.5 for p in moving], device=moving[0].device)
            rates = (group["lr"] / share.clamp(min=1.0)).unbind()  # RMS of gradient over root second moment, at least 1
            updates = torch._foreach_div(means, torch._foreach_add(roots, group["eps"]))
            torch._foreach_add_(updates, moving, alpha=group["weight_decay"])
            torch._foreach_mul_(updates, rates)
            torch._foreach_sub_(moving, updates)


class AdamWBF16(torch.optim.Optimizer):
    """AdamW whose weights and moments are numbers of bf16, every one rounded up or down by chance.

    Zamirai et al. 2020 (arXiv 2010.06192): rounded to the nearest, updates below half a digit vanish and training
    stalls; rounded by chance they arrive in the mean. The arithmetic is fp32's. The chance has an address, the
    step's number, so that a resumed run rounds as the undisturbed one. Moments are kept in bf16 (half of AdamW's
    memory), weights stay in the adapter's own fp32 vector.
    """

    def __init__(
        self, groups: Groups, lr: float, weight_decay: float, seed: int, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for place, group in enumerate(self.param_groups):
            first, second = group["betas"]
            group["count"] = count = group.get("count", 0) + 1
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                address = streams.key(self.seed, "rounding", place, number, count)
                dice = torch.Generator(parameter.device).manual_seed(address)
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                    state["square"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                mean = state["mean"].float().lerp_(parameter.grad, 1.0 - first)
                square = state["square"].float().mul_(second).addcmul_(parameter.grad, parameter.grad, value=1.0 - second)
                state["mean"].copy_(rounded_by_chance(mean, dice))
                state["square"].copy_(rounded_by_chance(square, dice))
                size = (square / (1.0 - second**count)).sqrt_().add_(group["eps"])
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.addcdiv_(mean, size, value=-group["lr"] / (1.0 - first**count))
                parameter.copy_(rounded_by_chance(parameter, dice))


def rounded_by_chance(values: Tensor, dice: torch.Generator) -> Tensor:
    """fp32 numbers of bf16's digits: up with the probability that the cut-off digits say, so that the mean is right."""
    bits = values.detach().clone().view(torch.int32)
    chance = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=dice)
    # Adding below the last digit kept carries into it as often as it should; numbers that are not finite stay.
    made = ((bits + chance) & -(1 << 16)).view(torch.float32)
    return torch.where(values.isfinite(), made, values)
