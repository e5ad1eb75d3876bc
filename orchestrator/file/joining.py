"""Several files, one session: what they agree in, and every point in which they do not. Reads nothing.

    lorry run lisa.toml forest.toml

A key of `[budget]` or `[machine]` that one file says holds for all of them; one that two files say differently is refused, because a
session has one cap and one machine. The session is named after the first file. `[defaults]` and recipes stay each file's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import ConfigError, Finding

from .keys import RunConfig, Section

Table = TypeVar("Table", bound=Section)


def joined(configs: Sequence[RunConfig], *, given: Collection[str] = ()) -> RunConfig:
    """One config of several. Raises `ConfigError` with every conflict. `given`: keys that the command line says, whatever the files do."""
    assert configs
    first, *others = configs
    if not others:
        return first
    found = [*_of_tables(configs, given), *_of_names(configs)]
    if found:
        many = f"{len(found)} {'thing' if len(found) == 1 else 'things'}"
        raise ConfigError(f"{many} in which {len(configs)} files cannot be one session, nothing was started", found)
    update = {
        "budget": reduce(_over, [one.budget for one in others], first.budget),
        "machine": reduce(_over, [one.machine for one in others], first.machine),
        "log_to": tuple(dict.fromkeys(name for one in configs for name in one.log_to)),
        "jobs": tuple(job for one in configs for job in one.jobs),
        "sources": {name: keys for one in configs for name, keys in one.sources.items()},
    }
    return first.model_copy(update=update)


def _over(one: Table, other: Table) -> Table:
    """The same table with what another one says too."""
    return one.model_copy(update={key: getattr(other, key) for key in other.model_fields_set})


def _of_tables(configs: Sequence[RunConfig], given: Collection[str]) -> Iterator[Finding]:
    """Keys that two files say differently."""
    for title in ("budget", "machine"):
        tables = [(one.file, getattr(one, title)) for one in configs]
        for key in dict.fromkeys(key for _, table in tables for key in sorted(table.model_fields_set)):
            said = [(file, getattr(table, key)) for file, table in tables if key in table.model_fields_set]
            other = next(((file, value) for file, value in said if value != said[0][1]), None)
            if other is None or key in given:
                continue
            words = f"[{title}] {key} is {_shown(said[0][1])} in {said[0][0]} and {_shown(other[1])} here"
            yield _conflict("LRY-CONFIG-RULE", other[0], words, _way_out(key))


def _of_names(configs: Sequence[RunConfig]) -> Iterator[Finding]:
    """Jobs of one name: they would be written into one folder."""
    owner: dict[str, Path] = {}
    for config in configs:
        for job in config.jobs:
            other = owner.setdefault(job.name.casefold(), config.file)
            if other is not config.file:
                words = f"a job is called {job.name} here and in {other}; both would be written into jobs/{job.name}"
                yield _conflict("LRY-CONFIG-NAME", config.file, words, "give one of them another name")


def _way_out(key: str) -> str:
    options = {"max_usd": "--budget USD", "providers": "--provider NAME"}
    alike = "one session has one machine and one cap: write the same in both files, or leave it out of one"
    return f"{alike}, or say {options[key]}" if key in options else alike


def _conflict(code: str, file: Path, message: str, hint: str) -> Finding:
    return Finding(code=code, path=str(file), message=message, hint=hint)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "empty"
    return f"{value:f}" if isinstance(value, Decimal) else str(value).lower() if isinstance(value, bool) else str(value)
