"""Which of a model's layers one job adapts, at which rank, strength and rate: presets, patterns and kohya's blocks, in one place.

A pattern is a regular expression that is looked for in `<part>.<module path>`. Knows nothing of memory, passes or files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from . import blocks
from .errors import SpecError
from .protocol import TrainingOptions
from .targets import Slot, Target

Number = TypeVar("Number", int, float)


def slots_of(
    options: TrainingOptions, targets: Sequence[Target], convolutions: Sequence[Target], key_of: Callable[[str, str], str]
) -> list[Slot]:
    """A preset's targets and a LoCon's, as the options want them; those at rank or rate 0 are left out."""
    if options.conv_rank and not convolutions:
        raise SpecError("LRY-JOB-SPEC", "conv_rank is set, but this family has no convolutions to adapt.", "Leave it out.")
    found = []
    for target in {(target.part, target.name): target for target in (*targets, *convolutions)}.values():
        path = f"{target.part}.{target.name}"
        if options.include_layers and not _fits(options.include_layers, path):
            continue
        key = key_of(target.part, target.name)
        rank = _rank(options, target, path, key)
        rate = _last(options.layer_lr, path, _of_block("block_lr", options.block_lr, key, 1.0))
        if rank and rate and not _fits(options.exclude_layers, path):
            scaled = options.method.scaled(target.fan_in, target.fan_out, rank)
            found.append(Slot(target, rank, options.scale_at(rank, wide=target.wide) if scaled else 1.0, rate, options.method))
    return found


def expect_all_parts(options: TrainingOptions, slots: Iterable[Slot], parts: Iterable[str]) -> None:
    """Every trained part has a layer left."""
    left = {slot.target.part for slot in slots}
    if empty := [part for part in parts if part not in left]:
        message = f"no layer of the {empty[0]} is left to train."
        raise SpecError("LRY-JOB-NOTHING", message, f"Change {_words(options)}, or set its learning rate to 0.")


def _words(options: TrainingOptions) -> str:
    keys = ("include_layers", "exclude_layers", "layer_ranks", "layer_lr", "block_ranks", "block_lr")
    return " or ".join(f"`{key}`" for key in keys if getattr(options, key)) or "`layers`"


def _rank(options: TrainingOptions, target: Target, path: str, key: str) -> int:
    usual = options.conv_rank or 0 if target.wide else _of_block("block_ranks", options.block_ranks, key, options.rank)  # as kohya
    return _last(options.layer_ranks, path, usual)


def _of_block(name: str, values: Sequence[Number], key: str, usual: Number) -> Number:
    """A layer's number in a list by blocks; `usual` for layers outside the UNet, and where there is no list."""
    if not values:
        return usual
    number = blocks.number_of(key, len(values))
    if number is None and key.startswith("lora_unet_"):
        fit = blocks.SDXL if len(values) == blocks.DOWN_MIDDLE_UP else blocks.DOWN_MIDDLE_UP
        if blocks.number_of(key, fit) is None:
            raise SpecError("LRY-JOB-SPEC", f"{name} is for the UNets of sd15, sd2 and sdxl.", "Use `layer_ranks` and `layer_lr`.")
        raise SpecError("LRY-JOB-SPEC", f"{name} has {len(values)} numbers, but this model has {fit} blocks.", f"Give {fit} numbers.")
    return usual if number is None else values[number]


def _last(table: Mapping[str, Number], path: str, usual: Number) -> Number:
    fitting = [value for pattern, value in table.items() if re.search(pattern, path)]
    return fitting[-1] if fitting else usual


def _fits(patterns: Iterable[str], path: str) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)
