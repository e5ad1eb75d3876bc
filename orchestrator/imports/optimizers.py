"""Optimizers by the names that other trainers give them, and the rates that only make sense with some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trainer.protocol import TrainingOptions

from .nouns import Conversion, chosen, fault_of, first_existing, number, truth

ALIASES: dict[str, str] = {
    "optimi-stableadamw": "StableAdamW",
    "optimi-adamw": "AdamW",
    "optimi-lion": "Lion",
    "bnb-adamw": "AdamW",
    "bnb-adamw8bit": "AdamW8bit",
    "bnb-adamw-paged": "PagedAdamW",
    "bnb-adamw8bit-paged": "PagedAdamW8bit",
    "bnb-lion": "Lion",
    "bnb-lion8bit": "Lion8bit",
    "bnb-lion-paged": "PagedLion",
    "bnb-lion8bit-paged": "PagedLion8bit",
    "torch-adamw": "AdamW",
    "ao-adamw8bit": "AdamW8bit",
    "adamw_schedulefree": "AdamWScheduleFree",
    "schedule_free_adamw": "AdamWScheduleFree",
    "adam8bit": "AdamW8bit",
}
"""Theirs, in small letters -> ours, which may not exist yet."""

OWN_RATE = 0.01
"""From here on a rate is a factor for an optimizer that finds its own, as Prodigy's 1; for AdamW it would be ruin."""

SAFE_RATE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the source says of its optimizer."""

    keys: tuple[str, ...]
    word: str
    arguments: Mapping[str, Any]
    """Key of the source -> value, for each argument; the argument's name is what follows the last dot."""
    rates: tuple[str, ...] = ("learning_rate", "unet_lr", "text_encoder_lr")


def settle(c: Conversion, wanted: Wanted) -> str:
    """Write the optimizer, or AdamW8bit and why; returns the one that is written."""
    word = ALIASES.get(wanted.word.lower(), wanted.word)
    ours = chosen("optimizer", word) or chosen("optimizer", word.rpartition(".")[2])
    if ours is None and "." in word and not fault_of("optimizer", word):
        ours = word
    if ours is not None:
        c.carry(wanted.keys, "optimizer", ours, said_by=f"what {c.tool} does where nothing is said")
        _arguments(c, wanted, ours)
        return ours
    c.lack(wanted.keys, f"lorry has no optimizer {wanted.word}", "AdamW8bit is written; look at its learning rate")
    c.default("optimizer", "AdamW8bit", f"instead of {wanted.word}")
    c.lack(list(wanted.arguments), f"belongs to {wanted.word}", "nothing to do")
    if any(_high(c.get(key)) for key in wanted.rates):
        c.lack(wanted.rates, f"a factor for {wanted.word}, which finds its own rate", f"{SAFE_RATE:g} is written, AdamW's usual rate")
        c.default("learning_rate", SAFE_RATE, f"instead of {wanted.word}'s own")
    c.default("weight_decay", 0.01, "AdamW's own")
    return "AdamW8bit"


def _high(rate: Any) -> bool:
    try:
        return any(number(one) >= OWN_RATE for one in (rate if isinstance(rate, list) else [rate]) if one is not None)
    except (ValueError, TypeError):
        return False


_USUAL: dict[str, Sequence[Any]] = {
    "betas": ("0.9,0.999", "(0.9,0.999)", [0.9, 0.999]),
    "beta1": (0.9,),
    "beta2": (0.999,),
    "eps": (1e-8,),
}
"""Arguments at what they are here anyway."""


def _arguments(c: Conversion, wanted: Wanted, ours: str) -> None:
    table = first_existing("optimizer_args", "optimizer_arguments", "optimizer_options")
    carried: dict[str, Any] = {}
    for key, value in wanted.arguments.items():
        name = key.rpartition(".")[2]
        if name == "weight_decay":
            c.carry(key, "weight_decay", number(value))
        elif value in (None, "", False) or _same(value, _USUAL.get(name, ())):
            c.mean_nothing(key, "as it is here anyway")
        elif table and not _refused(ours, table, {**carried, name: _typed(value)}):
            carried[name] = _typed(value)
            c.carry(key, table, dict(carried))
        else:
            c.lack(key, f"lorry gives {ours} no `{name}`", "nothing to do, but expect another result")
    plain = "lion" in ours.lower() or "adamw" not in ours.lower()
    c.default("weight_decay", 0.0 if plain else 0.01, f"{ours}'s own where nothing is said")


def _refused(ours: str, table: str, arguments: dict[str, Any]) -> str:
    """What lorry has against these arguments of an optimizer, whatever else there is against it."""
    without, given = (_said_of({"optimizer": ours, table: one}) for one in ({}, arguments))
    return given if given != without else ""


def _said_of(options: dict[str, Any]) -> str:
    try:
        TrainingOptions.model_validate(options)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    return ""


def _typed(value: Any) -> Any:
    """`True`, `0.9`, `0.9,0.99` and the like, which come as text."""
    if not isinstance(value, str):
        return value
    if value in {"True", "False", "None"}:
        return {"True": True, "False": False, "None": None}[value]
    try:
        parts = [float(part) for part in value.strip("()[] ").split(",") if part.strip()]
    except ValueError:
        return value
    return parts if len(parts) != 1 else int(parts[0]) if parts[0].is_integer() else parts[0]


def _same(value: Any, usual: Sequence[Any]) -> bool:
    text = str(value).replace(" ", "")
    for one in usual:
        try:
            if float(text) == float(one):
                return True
        except (ValueError, TypeError):
            if text == str(one).replace(" ", ""):
                return True
    return False


def of_kohya(c: Conversion) -> str:
    """`optimizer_type`, the old flags, `optimizer_args`."""
    flags = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}
    flag = next((key for key in flags if truth(c.get(key, False))), None)
    word = str(c.get("optimizer_type", flags[flag] if flag else "AdamW"))
    keys = tuple(key for key in ("optimizer_type", flag) if key)
    arguments = {key: value for key, value in c.source.items() if key.startswith("optimizer_args.")}
    ours = settle(c, Wanted(keys=keys, word=word, arguments=arguments))
    c.mean_nothing((*flags, "optimizer_type", "optimizer_args"), "nothing is said")
    return ours
