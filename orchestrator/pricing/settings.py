"""What a plan may set of a job so that it fits a card, or is done sooner on it; and what of it is written into the job. PURE.

    memory = "same"       what leaves the result as it is to rounding: gradient checkpointing, a part of the base that waits in main memory
    memory = "auto"       also what does: the frozen base in 8 or 4 bits
    memory = "written"    nothing at all

A key that stands in the file itself is never touched; a recipe's or a default is only somebody's guess at a card that was not known yet.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from .needs import Freedom, JobShape

MemoryChoice = Literal["same", "auto", "written"]

KEYS: Mapping[Freedom, str] = {
    "checkpointing": "gradient_checkpointing",
    "offload": "offload",
    "fp8": "base_precision",
    "int8": "base_precision",
    "nf4": "base_precision",
}
"""Freedom -> the key of the job that it moves. `micro` has none: the trainer cuts a batch by itself when it runs out of memory."""
FREEDOMS: Mapping[MemoryChoice, tuple[Freedom, ...]] = {
    "same": ("checkpointing", "offload"),
    "auto": ("checkpointing", "offload", "fp8", "int8", "nf4"),
    "written": (),
}


def freedoms(choice: MemoryChoice, written: Collection[str], known: Collection[str]) -> tuple[Freedom, ...]:
    """What may be set of a job in whose file these keys are `written`. `known`: the keys that its trainer has."""
    return tuple(one for one in FREEDOMS[choice] if KEYS[one] in known and KEYS[one] not in written)


def keys_of(shape: JobShape, may: Collection[Freedom]) -> dict[str, Any]:
    """The keys of a job that was given this shape, only those that the plan might move."""
    values: dict[str, Any] = {"gradient_checkpointing": shape.checkpointing, "offload": shape.offload, "base_precision": shape.base}
    moved = {KEYS[one] for one in may if one in KEYS}
    return {key: value for key, value in values.items() if key in moved}
