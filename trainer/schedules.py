"""PURE. Learning-rate factors as functions of the step: no state, so resume cannot get them wrong.

The formulas are those of `diffusers.optimization` (from huggingface/transformers), `step` counted from 0.
"""

from __future__ import annotations

import math

from .protocol import TrainingOptions


def factor(options: TrainingOptions, step: int, total: int) -> float:
    """What the learning rate is multiplied by at `step` (0 for the first) of `total`."""
    warmup = options.lr_warmup_steps
    if step < warmup:
        return step / max(1, warmup)
    if options.lr_scheduler == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    if options.lr_scheduler == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    if progress >= 1.0:
        return 0.0
    if options.lr_scheduler in ("linear", "polynomial"):
        return float((1.0 - progress) ** (options.lr_power if options.lr_scheduler == "polynomial" else 1.0))
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((options.lr_restarts * progress) % 1.0))))
