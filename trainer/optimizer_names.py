"""PURE. The optimizers that a job can name, what may be said to each, and rates that change at given steps.

Torch-free, so that a wrong name or argument is told before anything is rented. Besides these a job can name any
class of a package that is installed where it trains, as `package.module.Class`: what that takes shows there only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An optimizer by name."""

    takes: tuple[str, ...] = ("betas", "eps")
    """Names that `optimizer_args` may have."""
    plain: str = ""
    """The same rule with states in 32 bits and in place; empty where it is that already."""
    finds_its_rate: bool = False
    """The learning rate is a factor near 1 upon what it finds itself."""
    averages: bool = False
    """What it gives is a mean over its steps: it wants no falling rate and no other mean."""


OPTIMIZERS: Mapping[str, Known] = {
    "AdamW": Known(takes=("betas", "eps", "amsgrad")),
    "AdamW8bit": Known(plain="AdamW"),
    "PagedAdamW": Known(plain="AdamW"),
    "PagedAdamW8bit": Known(plain="AdamW"),
    "AdamWBF16": Known(),
    "StableAdamW": Known(),
    "AdamWScheduleFree": Known(takes=("betas", "eps", "r", "weight_lr_power"), averages=True),
    "Lion": Known(takes=("betas",)),
    "Lion8bit": Known(takes=("betas",), plain="Lion"),
    "PagedLion": Known(takes=("betas",), plain="Lion"),
    "PagedLion8bit": Known(takes=("betas",), plain="Lion"),
    "Prodigy": Known(
        takes=("betas", "beta3", "eps", "use_bias_correction", "safeguard_warmup", "d0", "d_coef", "growth_rate", "slice_p"),
        finds_its_rate=True,
    ),
    "Adafactor": Known(takes=("eps", "clip_threshold", "decay_rate", "beta1", "scale_parameter")),
    "SGD": Known(takes=("momentum", "dampening", "nesterov")),
}

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")

LEAST_FACTOR = 0.05
"""Below this a learning rate is one, and no factor upon a rate that is found: 0.0001 given to Prodigy trains nothing."""


def is_dotted(name: str) -> bool:
    """Whether this names a class of some package."""
    return DOTTED.fullmatch(name) is not None


def step_rules(text: str) -> tuple[list[tuple[int, float]], float]:
    """diffusers' rules for `piecewise_constant`: "1:10,0.1:20,0.01" is 1 before step 10, 0.1 before step 20, then 0.01."""
    *until, last = text.split(",")
    found = [(int(end), float(factor)) for factor, _, end in (rule.partition(":") for rule in until)]
    factors = [*(factor for _, factor in found), float(last)]
    if sorted(end for end, _ in found) != [end for end, _ in found] or not all(0 <= factor < float("inf") for factor in factors):
        raise ValueError(text)
    return found, float(last)


def trouble(name: str, arguments: Sequence[str], rates: Mapping[str, float | None], scheduler: str, ema: float | None) -> str:
    """What is wrong with a choice of optimizer; empty if nothing is."""
    known = OPTIMIZERS.get(name)
    if known is None:
        return ""
    if strange := [argument for argument in arguments if argument not in known.takes]:
        return f"optimizer_args: {name} takes {', '.join(known.takes)}, not {strange[0]}"
    low = [key for key, rate in rates.items() if rate is not None and 0 < rate < LEAST_FACTOR]
    if known.finds_its_rate and low:
        return f"{low[0]} is a factor with {name}, which finds the rate itself: write {low[0]} = 1.0, not {rates[low[0]]:g}"
    if known.averages and scheduler not in ("constant", "constant_with_warmup"):
        return f'lr_scheduler must be "constant" with {name}, which needs no falling rate; a warm-up is fine'
    if known.averages and ema is not None:
        return f"ema_decay and {name} are two means of the same weights: take one"
    return ""
