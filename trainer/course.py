"""PURE. What a job has met on its way, and how it goes on for it: a part of every checkpoint.

A *spike* is a loss that has left its own scale: the median of the last `WINDOW` steps is over `SPIKE` times the median of
those before. Medians, because with small batches a single step's loss is a draw: at a low timestep ten times the usual
is nothing, three such steps of five are. Held-out losses have no draws in them (pictures, noise and timesteps stay), and a
run that merely overfits makes them worse by percents: `RUIN` times the best is an adapter that is broken.

The *ladder* is what is given up for memory, rung by rung, the cheapest first: time, then time again, then digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

SPIKE = 10.0
"""Diverged runs leave their scale by orders of magnitude within a few steps; none that came to an end was seen to grow so."""
WINDOW = 5
HISTORY = 100
LEAST = 20
"""Steps before a scale can be told."""
RUIN = 3.0
EASE = 0.5
"""What the learning rate is multiplied by after a fall: most that diverge do so at less than twice a rate that holds."""

IN_8_BITS = {"AdamW": "AdamW8bit", "PagedAdamW": "PagedAdamW8bit", "Lion": "Lion8bit", "PagedLion": "PagedLion8bit"}
"""Optimizer -> the same rule with smaller states."""
SMALLER_BASE = {"full": "int8", "fp8": "nf4", "int8": "nf4"}
"""How a base is stored -> how it is stored when that is too much."""


@dataclass(frozen=True, slots=True)
class Footing:
    """What a pass of one job is made of."""

    checkpointing: bool = False
    """Activations are computed twice instead of kept."""
    micro: int | None = None
    """Samples in a pass at most; a batch goes through in parts, and counts as before."""
    in_8_bits: bool = False
    """Optimizer states in 8 bits."""
    base: str = "full"
    """How the frozen model is stored."""
    offloaded: bool = False
    """The frozen model waits in main memory, block by block."""


@dataclass(slots=True)
class Course:
    """How a job goes on, besides its weights."""

    footing: Footing = field(default_factory=Footing)
    ease: float = 1.0
    """Factor upon the learning rate; below 1 once the job has fallen back."""
    worse: int = 0
    """Measurements since the best one."""
    recent: list[float] = field(default_factory=list)
    """Losses of the last steps."""

    def look(self, loss: float) -> str:
        """Take a step's loss in; what is out of the ordinary, empty if nothing is."""
        self.recent = [*self.recent, loss][-HISTORY - WINDOW :]
        before, now = self.recent[:-WINDOW], self.recent[-WINDOW:]
        if len(before) < LEAST or (seen := median(now)) <= SPIKE * (usual := median(before)):
            return ""
        return f"the loss has left its scale: {seen:.4g} in the middle of the last {WINDOW} steps, {usual:.4g} before"

    def facts(self) -> dict[str, Any]:
        """For a checkpoint's header."""
        return asdict(self)

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Course:
        """From a checkpoint's header."""
        told = facts["footing"]
        micro = None if told["micro"] is None else int(told["micro"])
        eight, base = bool(told["in_8_bits"]), str(told.get("base", "full"))
        footing = Footing(bool(told["checkpointing"]), micro, eight, base, bool(told.get("offloaded")))
        return cls(footing, float(facts["ease"]), int(facts["worse"]), [float(one) for one in facts["recent"]])


def ruined(loss: float, best: float | None) -> bool:
    """Whether a held-out loss is that of a broken adapter."""
    return best is not None and loss > RUIN * best


def next_rung(footing: Footing, batch: int, optimizer: str, *, alone: bool = True) -> tuple[Footing, str] | None:
    """What to give up next for memory, with the words for it; None at the ladder's end.

    What changes the frozen model is for a job that is alone on it: its neighbours have not agreed.
    """
    if not footing.checkpointing:
        return replace(footing, checkpointing=True), "gradient checkpointing is on from here: the same result, about a third slower"
    micro = min(footing.micro or batch, batch)
    if micro > 1:
        half = -(-micro // 2)
        words = f"a batch of {batch} goes through in parts of {half}: the same result to rounding, slower"
        return replace(footing, micro=half), words
    if not footing.in_8_bits and (smaller := IN_8_BITS.get(optimizer)):
        words = f"{smaller} in place of {optimizer}: states in 8 bits, which begin anew"
        return replace(footing, in_8_bits=True), words
    if (stored := SMALLER_BASE.get(footing.base)) and alone:
        return replace(footing, base=stored), f"the frozen model is stored in {stored} from here on: a little less exact, and slower"
    if not footing.offloaded and alone:
        words = "the frozen model waits in main memory from here on, and comes block by block: the same result, much slower"
        return replace(footing, offloaded=True), words
    return None


def smaller_base(one: str, other: str) -> str:
    """Of two ways of storing a base the one that takes less."""
    return max(one, other, key=("full", "fp8", "int8", "nf4").index)


def turned(worse: int, patience: int | None, best: Sequence[float] | None) -> bool:
    """Whether the held-out loss has turned for good: a best one is there, and so many since were none."""
    return patience is not None and best is not None and worse >= patience
