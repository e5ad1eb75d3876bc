"""Opens what the user names, and says by its content whose file it is. Nothing in it is ever run.

Limits come first: a config is a page of text, and what claims to be one and is not must not cost memory or time.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import UsageError, place

from .commandline import PROGRAM, calls_in

MAX_BYTES = 1_000_000
MAX_VALUES = 20_000
MAX_DEPTH = 20
"""Brackets within brackets; a YAML file of a few lines can refer to itself without end."""

Form = Literal["kohya", "kohya-gui", "kohya-dataset", "simpletuner", "simpletuner-data", "ai-toolkit", "onetrainer", "onetrainer-concepts"]

TRAINING: tuple[Form, ...] = ("kohya", "kohya-gui", "simpletuner", "ai-toolkit", "onetrainer")
"""Forms that say how to train; the others describe pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file, or one command in it, read and recognised."""

    file: Path
    form: Form
    data: Any
    program: str = ""
    """The program that a command line calls."""
    launcher: Mapping[str, Any] | None = None


def read(file: Path) -> tuple[Source, ...]:
    """What is in a file: mostly one source, several where a script trains several times. Raises `UsageError`."""
    text = text_of(file)
    if file.suffix.lower() in {".sh", ".bat", ".cmd", ".ps1"} or (not _structured(file) and PROGRAM.search(text)):
        found = tuple(Source(file=file, form="kohya", data=c.options, program=c.program, launcher=c.launcher) for c in calls_in(text))
        if not found:
            hint = "a command line is looked for that calls train_network.py, sdxl_, sd3_ or flux_train_network.py"
            raise UsageError(f"{file} calls no program of sd-scripts that trains a LoRA", hint=hint)
        return found
    data = parsed(file, text)
    form = _form(data)
    if form is None:
        raise UsageError(f"{file} is of no trainer that lorry knows", hint=_known(data))
    return (Source(file=file, form=form, data=data),)


def text_of(file: Path) -> str:
    """The whole text, within the limit."""
    try:
        if file.is_dir():
            raise UsageError(f"{file} is a folder", hint="name the config in it; pictures alone are for `lorry init --dataset`")
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"there is no {file}", hint="name a config of kohya, SimpleTuner, ai-toolkit or OneTrainer") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{file} is bigger than {MAX_BYTES // 1_000_000} MB", hint="a config is a page of text; is this the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{place(file, line)}: byte 0x{data[error.start]:02x} is not UTF-8", hint="save it as UTF-8") from None


def parsed(file: Path, text: str) -> Any:
    """TOML, JSON or YAML, by the file's ending, or by what it turns out to be."""
    readers = {".json": _json, ".toml": _toml, ".yaml": _yaml, ".yml": _yaml}
    ending = file.suffix.lower()
    chosen = [readers[ending]] if ending in readers else [_json, _toml, _yaml]
    for number, reader in enumerate(chosen, 1):
        try:
            data = reader(file, text)
        except UsageError:
            if number == len(chosen):
                raise
        else:
            _within_limits(file, data)
            return data
    raise AssertionError("one of the readers has answered")


def _structured(file: Path) -> bool:
    return file.suffix.lower() in {".json", ".toml", ".yaml", ".yml"}


def _json(file: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = "no comments, no comma after the last entry, backslashes in paths doubled"
        raise UsageError(f"{place(file, error.lineno)}: not JSON: {error.msg}", hint=hint) from None
    except (RecursionError, ValueError):
        raise UsageError(f"{file} is no config: brackets or numbers without end") from None


def _toml(file: Path, text: str) -> Any:
    try:
        return tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        message, _, where = str(error).partition(" (at line ")
        line = where.partition(",")[0]
        hint = "a path with backslashes goes in 'single quotes'; true and false are in small letters"
        raise UsageError(f"{place(file, int(line) if line.isdecimal() else None)}: not TOML: {message}", hint=hint) from None
    except (RecursionError, ValueError):
        raise UsageError(f"{file} is no config: brackets or numbers without end") from None


def _yaml(file: Path, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)  # makes plain values only, whatever the tags say
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error)
        raise UsageError(
            f"{place(file, mark.line + 1 if mark else None)}: not YAML: {said}", hint="indent with spaces, never tabs"
        ) from None
    except (RecursionError, ValueError):
        raise UsageError(f"{file} is no config: brackets or numbers without end") from None


def _within_limits(file: Path, data: Any) -> None:
    for number, depth in enumerate(_depths(data, 0)):
        if number > MAX_VALUES or depth > MAX_DEPTH:
            raise UsageError(f"{file} is no config: more than {MAX_VALUES} values, or tables {MAX_DEPTH} deep")


def _depths(value: Any, depth: int) -> Iterator[int]:
    yield depth
    if depth > MAX_DEPTH:
        return
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for one in inner:
        yield from _depths(one, depth + 1)


_KOHYAS = frozenset(
    {
        "pretrained_model_name_or_path",
        "network_module",
        "network_dim",
        "train_data_dir",
        "dataset_config",
        "optimizer_type",
        "train_batch_size",
    }
)
"""A run file has one of these at least."""


def _form(data: Any) -> Form | None:
    if isinstance(data, list):
        return _form_of_list([one for one in data if isinstance(one, Mapping)])
    if not isinstance(data, Mapping):
        return None
    keys = {str(key).lstrip("-") for key in data}
    process = data["config"].get("process") if isinstance(data.get("config"), Mapping) else None
    if isinstance(process, list):
        return "ai-toolkit"
    if "training_method" in keys and {"base_model_name", "model_type", "concepts", "concept_file_name"} & keys:
        return "onetrainer"
    if isinstance(data.get("datasets"), list) and any(isinstance(one, Mapping) and "subsets" in one for one in data["datasets"]):
        return "kohya-dataset"
    if {"LoRA_type", "max_resolution", "num_cpu_threads_per_process"} & keys:
        return "kohya-gui"
    if {"data_backend_config", "model_family"} & keys:
        return "simpletuner"
    leaves = {str(key) for value in data.values() if isinstance(value, Mapping) for key in value} | keys
    if _KOHYAS & leaves:
        return "kohya"
    return None


def _form_of_list(entries: list[Mapping[str, Any]]) -> Form | None:
    keys = {key for entry in entries for key in entry}
    if {"instance_data_dir", "dataset_type", "caption_strategy", "cache_dir_vae"} & keys:
        return "simpletuner-data"
    return "onetrainer-concepts" if "path" in keys and {"image", "text", "include_subdirectories", "balancing"} & keys else None


def _known(data: Any) -> str:
    if (
        isinstance(data, Mapping)
        and isinstance(data.get("datasets"), list)
        and any("image_directory" in str(one) for one in data["datasets"])
    ):
        return "this looks like musubi-tuner's dataset file, which lorry does not read; `lorry init --dataset FOLDER` writes a new config"
    if isinstance(data, Mapping) and "lora" in data and "budget" in data:
        return "this is a config of lorry already: `lorry check` looks at it"
    return "it reads kohya's TOML, GUI JSON and command lines, SimpleTuner's config.json, ai-toolkit's YAML and OneTrainer's JSON"
