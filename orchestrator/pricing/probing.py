"""From what a probe has measured on a rented machine to what its steps will take there. PURE.

`templates/probe.py` measures for a quarter of a minute. No run asks for it yet. What it tells is a stranger's word: it is read
strictly, and however fast a machine says that it is, a prediction moves by no more than `MOST`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from pydantic import BaseModel, ConfigDict, Field

from .gpus import Gpu
from .roofline import BANDWIDTH_SHARE, EAGER_S, SHARES, reach
from .shapes import Correction

MOST = 8.0
"""A factor beyond it is a mistake of the probe's; the first steps will show."""
LOW, HIGH = 0.90, 1.12
"""What is left open when a machine has been probed: kernels that were not."""


class Probe(BaseModel):
    """What the probe tells."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    card: str = Field(max_length=100, pattern=r"^[ -~]*$")
    product_flops: tuple[float, ...] = Field(min_length=1, max_length=16)
    convolution_flops: tuple[float, ...] = Field(min_length=1, max_length=16)
    attention_flops: float = Field(gt=0)
    copy_bytes_s: float = Field(gt=0)
    link_bytes_s: float | None = Field(gt=0)
    launch_s: float = Field(gt=0)
    disk_write_bytes_s: float | None = Field(gt=0)
    disk_read_bytes_s: float | None = Field(gt=0)
    took_s: float = Field(ge=0)


def correction_of(told: Probe, card: Gpu) -> Correction:
    """What the machine takes, over what the tables say of its card and of a usual host."""
    peak = reach(card)
    slower = [
        *_slower(SHARES["product"] * peak, told.product_flops),
        *_slower(SHARES["convolution"] * peak, told.convolution_flops),
        *_slower(SHARES["attention"] * peak, [told.attention_flops]),
    ]
    return Correction(
        compute=_bounded(fmean(slower)),
        bandwidth=_bounded(card.bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE / told.copy_bytes_s),
        host=_bounded(told.launch_s / EAGER_S),
        low=LOW,
        high=HIGH,
    )


def _slower(expected: float, measured: Sequence[float]) -> list[float]:
    return [expected / one if one > 0 else MOST for one in measured]


def _bounded(factor: float) -> float:
    return min(max(factor, 1 / MOST), MOST)
