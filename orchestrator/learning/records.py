"""One machine of one run, as it was predicted and as it was: the line of `measured.jsonl`. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from orchestrator.pricing.estimate import Estimate
from orchestrator.pricing.phases import NAMES
from orchestrator.pricing.quantiles import Range, total

WHOLE, BILL = "whole run", "bill"
"""Beside the phases: all of them together, in seconds, and what all of it cost, in dollars."""
MOST = 1e9
_Number = Annotated[float, Field(ge=0, le=MOST)]
Triple = tuple[_Number, _Number, _Number]


class Said(BaseModel):
    """What was predicted of one machine before it was rented, quantity by quantity: P10, P50, P90."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    used: Mapping[str, Triple]
    """With what had been learnt by then."""
    shipped: Mapping[str, Triple]
    """By the figures that lorry comes with."""
    steps: int = 0
    """That were to be taken."""


class Record(BaseModel):
    """One machine of one run: what it was, what was said of it, what was seen."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    at: AwareDatetime
    run: str = Field(max_length=200)
    attempt: int
    provider: str = Field(max_length=100)
    host: str = Field(max_length=200)
    card: str = Field(max_length=100)
    image: str = Field(max_length=512)
    family: str = Field(max_length=100)
    """Of the jobs; several are joined by a plus."""
    toy: bool = False
    """Whether the base was much smaller than its family's real one: what is learnt of it says nothing of that."""
    said: Said
    took: Mapping[str, _Number]
    """What was seen; a phase that did not come to its end is not in it."""

    @property
    def key(self) -> tuple[str, int]:
        """What it is known by: a later line about the same machine wins."""
        return self.run, self.attempt

    def ranges(self, *, shipped: bool = False) -> dict[str, Range]:
        """What was said of every quantity that was seen."""
        said = self.said.shipped if shipped else self.said.used
        return {name: Range(*said[name]) for name in self.took if name in said}


def said_of(estimate: Estimate) -> Said:
    """What an estimate says, as it is written down before the machine is rented."""
    whole = {WHOLE: estimate.seconds}
    bill = {BILL: Range(*(float(estimate.usd[name]) for name in ("p10", "p50", "p90")))}
    return Said(
        steps=estimate.steps,
        used={name: _triple(one) for name, one in {**estimate.phases, **whole, **bill}.items()},
        shipped={name: _triple(one) for name, one in {**estimate.shipped, WHOLE: total(estimate.shipped[name] for name in NAMES)}.items()},
    )


def _triple(one: Range) -> Triple:
    low, middle, high = (min(round(value, 6), MOST) for value in (one.p10, one.p50, one.p90))
    return low, middle, high
