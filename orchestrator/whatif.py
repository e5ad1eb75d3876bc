"""`lorry plan --what-if batch=4 rank=64`: the same queue with other keys, on the same offers, side by side. Rents nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from .config import LoraConfig, RunConfig
from .errors import LorryError, UsageError
from .file.check import check, refusal
from .file.wording import nearest
from .order import checked_jobs, load_of
from .plan import Plan
from .prepare import Asked

SHORT = {
    "batch": "batch_size",
    "accumulation": "gradient_accumulation",
    "checkpointing": "gradient_checkpointing",
    "precision": "mixed_precision",
    "lr": "learning_rate",
}
"""What people say -> the key."""
EITHER = {"steps": "epochs", "epochs": "steps"}
"""Keys of which a job has one: who asks for the one takes the other back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One column: the plan, or why there is none."""

    name: str
    plan: Plan | None = None
    why_not: str = ""


def changes_of(words: Iterable[str]) -> dict[str, Any]:
    """`batch=4` and the like as keys and values. Raises `UsageError`."""
    changes: dict[str, Any] = {}
    for word in (part for text in words for part in text.replace(",", " ").split()):
        name, equals, text = word.partition("=")
        key = SHORT.get(name, name)
        if not equals or key not in LoraConfig.model_fields:
            guess = nearest(name, [*SHORT, *LoraConfig.model_fields])
            hint = f"did you mean {guess}=...?" if guess else "write KEY=VALUE, as in batch=4 rank=64 resolution=768"
            raise UsageError(f"{word!r} is no change of a key of [[lora]]", hint=hint)
        changes[key] = _value(text)
    return changes


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}", parse_float=Decimal)["x"]
    except tomllib.TOMLDecodeError:
        return text


def what_if(asked: Asked, changes: Mapping[str, Any]) -> list[Variant]:
    """The plan as it is and as it would be; each with the settings that the plan would choose for it."""
    name = " ".join(f"{key}={_plain(value)}" for key, value in changes.items())
    return [_variant("as it is", asked), _variant(name, changed(asked, changes))]


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def changed(asked: Asked, changes: Mapping[str, Any]) -> Asked:
    """The same offers for other keys: checked as a file with these keys would be. Raises what that check raises."""
    config = _with(asked.config, changes)
    looked = check(config)
    if wrong := refusal(looked):
        raise wrong
    known = {job.name: job for job in asked.jobs}
    jobs = [replace(job, written=known[job.name].written | changes.keys()) for job in checked_jobs(config, looked)]
    return replace(asked, config=config, jobs=jobs, load=replace(load_of(jobs), hub_bytes=asked.load.hub_bytes))


def _with(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    jobs = []
    for job in config.jobs:
        gone = {EITHER[key]: None for key in changes if key in EITHER}
        try:
            jobs.append(LoraConfig.model_validate(job.model_dump() | gone | dict(changes)))
        except ValidationError as err:
            first = err.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "these keys together"
            raise UsageError(f"{job.name}: {where}: {first['msg'].removeprefix('Value error, ')}", hint="lorry help config") from err
    return config.model_copy(update={"jobs": tuple(jobs)})


def _variant(name: str, asked: Asked) -> Variant:
    try:
        return Variant(name=name, plan=asked.planned(asked.load))
    except LorryError as err:
        return Variant(name=name, why_not=f"{err}; {err.hint}" if err.hint else str(err))
