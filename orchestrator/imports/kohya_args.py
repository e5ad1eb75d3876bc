"""All that a user of kohya writes, as one table of sd-scripts' options: run file, command line, dataset file, settings of the GUI.

Precedence is kohya's: subset > dataset > [general] > command line > run file. Section names of a run file mean nothing, to kohya either.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .commandline import calls_in
from .nouns import flat

DATASET_NAMES = {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}
"""What a dataset file calls otherwise than the command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """One folder of a dataset file."""

    place: str
    """As in `datasets[0].subsets[1]`."""
    folder: str
    repeats: int
    class_tokens: str
    regularisation: bool


@dataclass(slots=True)
class Arguments:
    """Option -> value, where each stands, and what was said and does not count."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    overruled: dict[str, Any] = field(default_factory=dict)
    """Place -> value that another place overrules."""
    conflicts: dict[str, list[Any]] = field(default_factory=dict)
    """Option -> what the folders of a dataset file say differently."""
    subsets: list[Subset] = field(default_factory=list)
    program: str = ""

    def say(self, name: str, value: Any, place: str) -> None:
        """Said here; whatever was said before is overruled."""
        if name in self.values:
            before = self.places[name]
            key = f"{before} (overruled)" if before == name else before
            self.overruled[key], self.places[key] = self.values[name], before
        self.values[name] = value
        self.places[name] = place

    def expand(self, *names: str) -> None:
        """Options that are lists of `name=value`: each entry becomes a key of its own."""
        for name in names:
            entries = self.values.get(name)
            if isinstance(entries, list) and entries:
                place = self.places.pop(name, name)
                del self.values[name]
                for entry in entries:
                    inner, _, value = str(entry).partition("=")
                    self.values[f"{name}.{inner.strip()}"] = value.strip()
                    self.places[f"{name}.{inner.strip()}"] = f"{place}.{inner.strip()}"


def of_run_file(data: Mapping[str, Any], arguments: Arguments) -> None:
    """A TOML for --config_file."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            for inner, one in value.items():
                arguments.say(str(inner), one, f"{key}.{inner}")
        else:
            arguments.say(str(key), value, str(key))


def of_command(options: Mapping[str, Any], program: str, arguments: Arguments) -> None:
    """The words after the program's name."""
    arguments.program = program
    for key, value in options.items():
        arguments.say(key, value, f"--{key}")


def of_dataset_file(data: Mapping[str, Any], arguments: Arguments) -> None:
    """A TOML or JSON for --dataset_config."""
    general = data.get("general") or {}
    for key, value in general.items():
        arguments.say(DATASET_NAMES.get(key, key), value, f"general.{key}")
    said: dict[str, list[tuple[Any, str]]] = {}
    for number, dataset in enumerate(one for one in data.get("datasets", []) if isinstance(one, Mapping)):
        for key, value in dataset.items():
            if key != "subsets":
                said.setdefault(DATASET_NAMES.get(key, key), []).append((value, f"datasets[{number}].{key}"))
        for index, subset in enumerate(one for one in dataset.get("subsets", []) if isinstance(one, Mapping)):
            place = f"datasets[{number}].subsets[{index}]"
            arguments.subsets.append(_subset(subset, {**general, **dataset}, arguments, place))
            for key, value in flat(dict(subset)).items():
                said.setdefault(DATASET_NAMES.get(key, key), []).append((value, f"{place}.{key}"))
    for name, written in said.items():
        _say_all(name, written, arguments)


_OF_ITS_FOLDER = frozenset({"image_dir", "class_tokens", "is_reg", "dataset_repeats"})
"""What every subset may say for itself: `Subset` holds it."""


def _say_all(name: str, written: list[tuple[Any, str]], arguments: Arguments) -> None:
    (value, place), *others = written
    if any(other != value for other, _ in others) and name not in _OF_ITS_FOLDER:
        arguments.conflicts[name] = [one for one, _ in written]
    arguments.say(name, value, place)
    for _, another in others:
        arguments.same[another] = name


def _subset(subset: Mapping[str, Any], around: Mapping[str, Any], arguments: Arguments, place: str) -> Subset:
    repeats = subset.get("num_repeats", around.get("num_repeats", arguments.values.get("dataset_repeats", 1)))
    return Subset(
        place=place,
        folder=str(subset.get("image_dir", "")),
        repeats=int(repeats) if str(repeats).isdecimal() else 1,
        class_tokens=str(subset.get("class_tokens") or ""),
        regularisation=bool(subset.get("is_reg", False)),
    )


GUI_NAMES = {
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
    "lora_network_weights": "network_weights",
    "model_path": "pretrained_model_name_or_path",
    "vae_path": "vae",
    "sdxl_no_half_vae": "no_half_vae",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "flux1_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "flux1_clip_l": "clip_l",
    "flux1_t5xxl": "t5xxl",
}
"""What the GUI calls otherwise than sd-scripts."""


def of_gui(data: Mapping[str, Any], arguments: Arguments) -> None:
    """The GUI's JSON: empty text is not said, and `additional_parameters` is a piece of command line that wins."""
    for key, value in data.items():
        if key == "additional_parameters":
            arguments.values[key], arguments.places[key] = value, key
        else:
            arguments.say(GUI_NAMES.get(key, key), value, key)
    for key in ("optimizer_args", "lr_scheduler_args"):
        if isinstance(text := arguments.values.get(key), str):
            arguments.values[key] = _split(text)
    extra = str(data.get("additional_parameters") or "").replace("\n", " ")
    for call in calls_in(f"train_network.py {extra}") if extra.strip() else ():
        for key, value in call.options.items():
            arguments.say(key, value, f"additional_parameters --{key}")


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def prompts_of(text: str, file: Path | None) -> list[str] | None:
    """Prompt lines of a file, or of a text field; None where they cannot be told."""
    if file is not None and file.suffix.lower() in {".json", ".toml"}:
        return None
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8-sig", errors="replace")[:100_000] if file.stat().st_size < 1_000_000 else ""
        except OSError:
            return None
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
