"""What lorry says of a wrong key or value: what it should have been, and what to write instead. Knows no file and no place.

Stricter than pydantic about types, which takes "5" for 5 and true for 1: whoever writes that meant something else.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from .keys import Budget, LoraConfig, Machine

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

OTHER_SPELLINGS: dict[str, str] = {
    "algo": "adapter",
    "use_dora": "dora",
    "dora_wd": "dora",
    "lora_decompose": "dora",
    "factor": "lokr_factor",
    "decompose_both": "lokr_decompose_both",
    "full_matrix": "lokr_whole",
    "network_dim": "rank",
    "network_rank": "rank",
    "lora_rank": "rank",
    "dim": "rank",
    "network_alpha": "alpha",
    "lora_alpha": "alpha",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "max_train_steps": "steps",
    "max_train_epochs": "epochs",
    "num_train_epochs": "epochs",
    "lr": "learning_rate",
    "te_lr": "text_encoder_lr",
    "text_encoder_learning_rate": "text_encoder_lr",
    "optimizer_type": "optimizer",
    "lr_scheduler_num_cycles": "lr_restarts",
    "lr_num_cycles": "lr_restarts",
    "train_data_dir": "dataset",
    "image_dir": "dataset",
    "instance_data_dir": "dataset",
    "pretrained_model_name_or_path": "base",
    "base_model": "base",
    "model": "base",
    "revision": "base_revision",
    "output_name": "name",
    "instance_prompt": "trigger",
    "trigger_word": "trigger",
    "class_tokens": "trigger",
    "save_every_n_steps": "save_every_steps",
    "save_every_n_epochs": "save_every_epochs",
    "sample_every_n_steps": "sample_every_steps",
    "min_bucket_reso": "min_bucket",
    "max_bucket_reso": "max_bucket",
    "bucket_reso_steps": "bucket_step",
    "flip_aug": "flip",
    "caption_dropout_rate": "caption_dropout",
    "conv_dim": "conv_rank",
    "network_dropout": "dropout",
    "lora_dropout": "dropout",
    "loraplus_lr_ratio": "lora_plus_ratio",
    "use_rslora": "rslora",
    "block_dims": "block_ranks",
    "network_weights": "start_from",
    "init_lora": "start_from",
    "base_weights": "merge_lora",
    "base_weights_multiplier": "merge_weight",
}
"""How kohya and its kin write what we have another word for."""

OTHER_WAYS: dict[str, str] = {
    "num_repeats": "repeats are in the folder's name: `10_lisabp woman`",
    "repeats": "repeats are in the folder's name: `10_lisabp woman`",
    "enable_bucket": "buckets are always on; leave it out",
    "cache_latents": "latents are always cached; leave it out",
    "output_dir": "results come home into the run's folder; leave it out",
    "caption_extension": "captions are .txt files beside the pictures; leave it out",
    "network_module": "lorry trains LoRA; leave it out",
}
"""What other trainers need said and lorry does not."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant; empty when none is near."""
    folded = {name.lower(): name for name in known}
    return folded[match[0]] if (match := get_close_matches(word.lower(), folded, n=1, cutoff=0.6)) else ""


_HOMES: tuple[tuple[str, type[BaseModel]], ...] = (
    ("under [budget]", Budget),
    ("under [machine]", Machine),
    ("under [[lora]] or [defaults]", LoraConfig),
)


def instead(key: str, known: Iterable[str]) -> tuple[str, str]:
    """The key that was meant, if that can be said, and what to write."""
    known = list(known)
    if OTHER_SPELLINGS.get(key) in known:
        return OTHER_SPELLINGS[key], f"here it is called `{OTHER_SPELLINGS[key]}`"
    if key in OTHER_WAYS:
        return "", OTHER_WAYS[key]
    if near := nearest(key, known):
        return near, f"did you mean `{near}`?"
    for where, model in _HOMES:
        if key in model.model_fields or OTHER_SPELLINGS.get(key) in model.model_fields:
            return "", f"write `{OTHER_SPELLINGS.get(key, key)}` {where}"
    for where, model in _HOMES:
        if near := nearest(key, model.model_fields):
            return "", f"did you mean `{near}` {where}?"
    return "", f"the keys here are {', '.join(known)}" if len(known) <= 6 else "`lorry help config` lists every key"


_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (int, "a whole number"),
    (Decimal, "a number"),
    (str, "text"),
    (list, "a list"),
    (dict, "a table"),
)
"""What TOML can say, most particular first: a bool is an int to Python."""


def kind_of(value: object) -> str:
    """What kind of thing was written."""
    return next((words for kind, words in _KINDS if isinstance(value, kind)), "a date")


def wrong_type(annotation: Any, value: object) -> str:
    """What the value should have been; empty when it is that. Stricter than pydantic, which takes "5" for 5 and true for 1."""
    if annotation is Any:
        return ""
    kind, many = _expected(annotation)
    if many:
        return "" if isinstance(value, list) and all(kind_of(item) == kind for item in value) else f"a list of {kind}s"
    accepted = {kind, "a whole number"} if kind == "a number" else {kind}
    return "" if kind_of(value) in accepted else kind


def _expected(annotation: Any) -> tuple[str, bool]:
    """The words for a type, and whether it is a list of them."""
    origin, arguments = get_origin(annotation), [one for one in get_args(annotation) if one not in (type(None), ...)]
    if origin in (Union, types.UnionType, Annotated):
        return _expected(arguments[0])
    if origin is tuple:
        return _expected(arguments[0])[0], True
    if origin is dict:
        return "a table", False
    if origin is Literal:
        return kind_of(arguments[0]), False
    if annotation is Path:
        return "text", False
    return next(words for kind, words in _KINDS if issubclass(Decimal if annotation is float else annotation, kind)), False


def rewritten(annotation: Any, key: str, value: object) -> str:
    """The same value in the right type, where it is plain what was meant."""
    kind, many = _expected(annotation)
    if many and isinstance(value, str) and kind == "text":
        return f'write {key} = ["{short(value)}"]'
    if isinstance(value, str) and (number := _NUMBERS.get(kind)) and number.fullmatch(value):
        return f"write {key} = {value}, without quotes"
    if isinstance(value, str) and kind == "true or false" and (truth := _TRUTHS.get(value.lower())):
        return f"write {key} = {truth}, without quotes"
    if isinstance(value, Decimal) and kind == "a whole number" and value.is_finite() and abs(value) < 10**9 and value == int(value):
        return f"write {key} = {int(value)}"
    return ""


_NUMBERS = {"a number": re.compile(r"-?\d{1,9}(\.\d{1,9})?"), "a whole number": re.compile(r"-?\d{1,9}")}

_TRUTHS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}


def allowed(annotation: Any) -> list[str]:
    """The words of a `Literal`, however deep it stands in the type."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for inner in get_args(annotation) for word in allowed(inner)]


_LIMITS: dict[str, tuple[str, str]] = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def say(key: str, details: ErrorDetails) -> tuple[str, str]:
    """Code and words for a value that pydantic refuses."""
    kind, context = details["type"], details.get("ctx", {})
    if kind in _LIMITS:
        words, name = _LIMITS[kind]
        return "LRY-CONFIG-VALUE", f"`{key}` must be {words} {context[name]}"
    if kind in {"finite_number", "float_type", "decimal_parsing"}:
        return "LRY-CONFIG-VALUE", f"`{key}` must be an ordinary number"
    if kind == "literal_error":
        return (
            ("LRY-CONFIG-PROVIDER", "there is no such provider") if key == "providers" else ("LRY-CONFIG-VALUE", f"`{key}` cannot be that")
        )
    if kind == "string_pattern_mismatch" and key == "name":
        return (
            "LRY-CONFIG-VALUE",
            "a name has letters, digits, dots, dashes and underscores, begins with one of the first two, at most 64 in all",
        )
    if kind == "string_pattern_mismatch" and key == "regions":
        return "LRY-CONFIG-VALUE", "a region is a country's two capital letters"
    if kind in {"string_too_short", "too_short"}:
        return "LRY-CONFIG-VALUE", f"`{key}` must not be empty"
    if kind == "string_too_long":
        return "LRY-CONFIG-VALUE", f"`{key}` is longer than {context['max_length']} characters"
    return "LRY-CONFIG-VALUE", f"`{key}`: {details['msg']}"


def short(text: str) -> str:
    """Enough of what was written to know it again."""
    return text if len(text) <= 60 else f"{text[:57]}..."
