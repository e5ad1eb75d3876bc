"""PURE. Learning-rate factors as functions of the step: no state, so resume cannot get them wrong.

The formulas are those of `diffusers.optimization` and `transformers.optimization`, `step` counted from 0; `rex` is that
of Chen et al. 2021 (arXiv 2107.04197). A rate that falls can stop falling at a share of itself, `lr_min`.
"""

from __future__ import annotations

import math

from .optimizer_names import step_rules
from .protocol import TrainingOptions

TIMESCALE = 10_000
"""Over how many steps `inverse_sqrt` falls to 0.7 when there is no warm-up: transformers' number."""


def factor(options: TrainingOptions, step: int, total: int) -> float:
    """What the learning rate is multiplied by at `step` (0 for the first) of `total`."""
    warmup = warmup_steps(options, total)
    if step < warmup:
        return step / max(1, warmup)
    match options.lr_scheduler:
        case "constant" | "constant_with_warmup":
            return 1.0
        case "inverse_sqrt":
            scale = warmup or TIMESCALE
            return 1.0 / math.sqrt((step + scale - warmup) / scale)
        case "piecewise_constant":
            return _piecewise(options, step)
    left = _left(options, (step - warmup) / max(1, total - warmup))
    return options.lr_min + (1.0 - options.lr_min) * left


def warmup_steps(options: TrainingOptions, total: int) -> int:
    """The steps of the warm-up; below 1 it was given as a share of all steps."""
    given = options.lr_warmup_steps
    return round(given * total) if given < 1 else int(given)


def _left(options: TrainingOptions, progress: float) -> float:
    """What is left of the rate after this share of its way, 1 to 0."""
    match options.lr_scheduler:
        case "cosine":
            return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
        case "warmup_stable_decay":
            return min(1.0, max(0.0, (1.0 - progress) / options.lr_decay_share))
        case _ if progress >= 1.0:
            return 0.0
        case "cosine_with_restarts":
            return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((options.lr_restarts * progress) % 1.0))))
        case "polynomial":
            return float((1.0 - progress) ** options.lr_power)
        case "rex":
            return (1.0 - progress) / (0.5 + 0.5 * (1.0 - progress))
        case _:
            return 1.0 - progress  # linear


def _piecewise(options: TrainingOptions, step: int) -> float:
    until, last = step_rules(options.lr_step_rules or "1")
    return next((factor for end, factor in until if step < end), last)
