"""`lorry.toml` in, `RunConfig` out; everything that is wrong with it in one `ConfigError`.

Owns the keys of the file, their meaning and their defaults. Opens that one file and asks of the paths in it only whether they
exist; knows nothing of pictures, models, offers or money spent: `check` and `plan` do.

    recipe < [defaults] < [[lora]]        the later one wins, key by key
"""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, DecimalException
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import templates
from trainer.protocol import FAMILIES, NAME_PATTERN, TrainingOptions

from .errors import ConfigError, Finding

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from .places import Loc, Places

FILE_NAME = "lorry.toml"
MAX_BYTES = 1_000_000
"""A config is a page of text; anything this big is a mistake, and reading it would only make the mistake slow."""

DEFAULT_IMAGE = "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime"
"""Brings Python and torch, and is so common that many hosts have it cached; CUDA 12.8 knows cards up to Blackwell."""

ProviderName = Literal["vast", "runpod", "ssh", "sandbox", "local"]
PROVIDERS: dict[ProviderName, str] = {
    "vast": "Vast.ai: the marketplace, cheapest",
    "runpod": "RunPod: secure and community cloud",
    "ssh": "a machine of yours, over SSH",
    "sandbox": "the practice cloud on this computer; nothing costs anything",
    "local": "this computer",
}

CODES: dict[str, str] = {
    "no-config": "there is no file to read, or more than one",
    "unreadable": "the file cannot be read as text",
    "toml-syntax": "the file is not TOML",
    "unknown-key": "a key that lorry does not know",
    "wrong-type": "text where a number belongs, and the like",
    "bad-value": "a value outside what is possible",
    "missing": "something required is not there",
    "duplicate-name": "two jobs would write to the same folder",
    "unknown-recipe": "no recipe of that name",
    "unknown-family": "no model family of that name",
    "unknown-provider": "no provider of that name",
    "rule": "two values that do not go together",
}
"""What `Finding.code` says about the file."""

OTHER_SPELLINGS: dict[str, str] = {
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


class Section(BaseModel):
    """A table of the file: frozen, and a key that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Budget(Section):
    """`[budget]`: what the run may cost."""

    max_usd: Decimal = Field(gt=0, le=100_000, description="The cap in dollars: every meter of every attempt of this run together.")
    max_hours: float | None = Field(None, gt=0, le=10_000, description="The machine is given back after so many hours, whatever is left to train.")


class Machine(Section):
    """`[machine]`: where to train."""

    providers: tuple[ProviderName, ...] = Field(("vast", "runpod"), min_length=1, description="Clouds to ask. Their offers compete in one ranking.")
    gpus: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        (), description='Cards that will do, as in `"RTX 4090"`. Empty: anything that fits the job.'
    )
    max_usd_per_hour: Decimal | None = Field(None, gt=0, le=1000, description="No machine dearer than this, disk included.")
    interruptible: bool = Field(False, description="Also take machines that may be taken away (bids, spot): cheaper, and the run moves on when it happens.")
    min_reliability: float = Field(0.95, ge=0, le=1, description="Share of time that the host was up, by the provider's record.")
    regions: tuple[Annotated[str, Field(pattern=r"^[A-Z]{2}$")], ...] = Field((), description='Countries by two letters, as in `"SE"`. Empty: anywhere.')
    min_vram_gib: float | None = Field(None, gt=0, le=2048, description="Video memory at least. Worked out from the jobs when not given.")
    disk_gib: int | None = Field(None, ge=1, le=100_000, description="Disk to rent. Worked out from base, datasets and results when not given.")
    image: str = Field(DEFAULT_IMAGE, min_length=1, max_length=512, description="Container image; must have Python 3.11 or later and torch.")
    verified_only: bool = Field(True, description="Only hosts that the provider has checked.")
    secure_cloud_only: bool = Field(False, description="Only machines in data centres.")
    boot_timeout_minutes: float = Field(15, gt=0, le=600, description="A machine that cannot be reached by then is given back for the next one.")


class LoraConfig(TrainingOptions):
    """`[[lora]]`: one LoRA to train. Recipe and `[defaults]` are already in it."""

    name: str = Field(pattern=NAME_PATTERN, description="Names the job, its folder and its adapter file.")
    dataset: Path = Field(description="Folder of pictures: kohya's `10_trigger class` folders, or pictures with .txt captions. Relative to this file.")
    base: str = Field(min_length=1, description="Model to train on: a diffusers folder, one .safetensors checkpoint, or a hub id.")
    base_revision: str | None = Field(None, description="Commit of the hub id, so that the same base is used again.")
    family: str | None = Field(None, description=f"Kind of model: {', '.join(FAMILIES)}. Guessed from the base when not given.")
    recipe: str | None = Field(None, description="Values to start from, as `lorry init` lists them; keys written in the file win.")

    def training_options(self) -> TrainingOptions:
        """The part that says how to train."""
        return TrainingOptions.model_validate({key: getattr(self, key) for key in TrainingOptions.model_fields})


class RunConfig(Section):
    """The whole file: one rental and the jobs to do on it."""

    name: str = Field(pattern=NAME_PATTERN, description="Names the run.")
    budget: Budget
    machine: Machine = Machine()
    jobs: tuple[LoraConfig, ...] = Field(alias="lora", min_length=1)
    file: Path = Field(exclude=True)
    """Where it was read from; relative paths in it start in its folder."""
    sources: Mapping[str, Mapping[str, str]] = Field(default_factory=dict, exclude=True)
    """Job name -> key -> who said so: `[[lora]]`, `[defaults]` or `recipe sd15-character`. A key that is not there has its default."""


def load(path: Path | None = None) -> RunConfig:
    """Read `path`, or the config of this folder; raises `ConfigError` with everything that is wrong."""
    file = find(path)
    text = _text(file)
    findings = _Findings(file, text)
    table = _toml(text, findings)
    config = _Reader(file, findings).run(table) if table is not None else None
    if config is None or findings.found:
        raise ConfigError(_count(findings.found, file), sorted(findings.found, key=lambda f: f.line or 0))
    return config


def find(path: Path | None, folder: Path | None = None) -> Path:
    """The file to read: `path`, else ./lorry.toml, else the only *.lorry.toml.

    Never looks in the folders above: the wrong folder would spend money on the wrong pictures.
    """
    if path is not None:
        return path
    here = folder or Path()
    if (here / FILE_NAME).is_file():
        return here / FILE_NAME
    others = sorted(here.glob(f"*.{FILE_NAME}"))
    if len(others) == 1:
        return others[0]
    if others:
        raise _refused(here, "no-config", f"there are {len(others)} configs here", f"say which one: {', '.join(other.name for other in others[:5])}")
    raise _refused(here, "no-config", f"no {FILE_NAME} in this folder", "`lorry init --dataset FOLDER` writes one, or name your file")


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant; empty when none is near."""
    folded = {name.lower(): name for name in known}
    return folded[match[0]] if (match := get_close_matches(word.lower(), folded, n=1, cutoff=0.6)) else ""


def recipe_for(name: str, family: str | None) -> tuple[str, str]:
    """The full name of a recipe and, when there is none, what to write instead: one of the two is empty.

    `character` means `<family>-character`; the family may be left out while only one has such a recipe.
    """
    names = templates.recipe_names()
    if name in names:
        return name, ""
    meant = [known for known in names if known.partition("-")[2] == name and family in (None, known.partition("-")[0])]
    if len(meant) == 1:
        return meant[0], ""
    if meant:
        return "", f"there is one for {', '.join(known.partition('-')[0] for known in meant)}: write `family` as well"
    short = {known.partition("-")[2]: known for known in names}
    guess = nearest(name, [*short, *names])
    return "", f'write "{guess}"' if guess else f"the recipes are {', '.join(sorted(short))}"


def _text(file: Path) -> str:
    try:
        if file.is_dir():
            raise _refused(file, "unreadable", "this is a folder", f"name the file: {file / FILE_NAME}")
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        there = [found.name for found in sorted(file.parent.glob("*.toml"))] if file.parent.is_dir() else []
        guess = nearest(file.name, there)
        raise _refused(file, "no-config", "there is no such file", f"did you mean {guess}?" if guess else "`lorry init` writes one") from None
    except (OSError, ValueError) as error:
        raise _refused(file, "unreadable", f"cannot be read: {getattr(error, 'strerror', None) or error}", "") from error
    if len(data) > MAX_BYTES:
        raise _refused(file, "unreadable", f"is bigger than {MAX_BYTES // 1_000_000} MB", "a config is a page of text; is this the right file?")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _refused(file, "unreadable", f"byte 0x{data[error.start]:02x} is not UTF-8", "save it as UTF-8", line) from None


def _refused(file: Path, code: str, message: str, hint: str, line: int | None = None) -> ConfigError:
    found = [Finding(code=code, message=message, path=str(file), line=line, hint=hint)]
    return ConfigError(_count(found, file), found)


def _count(found: list[Finding], file: Path) -> str:
    return f"{len(found)} {'thing' if len(found) == 1 else 'things'} to put right in {file}, nothing was started"


_SYNTAX_HINTS: tuple[tuple[str, str], ...] = (
    ("Cannot overwrite a value", "this key is there twice: keep one"),
    ("Cannot declare", "this table is there twice: put its keys together, or write [[lora]] with two brackets for each job"),
    ("Cannot mutate", "this table is there twice: put its keys together"),
    ("Unescaped '\\'", "a path with backslashes goes in 'single quotes', or write / instead"),
    ("Invalid hex value", "a path with backslashes goes in 'single quotes', or write / instead"),
    ("Invalid value", 'text goes in "double quotes"; true and false are in small letters'),
    ("Invalid statement", 'write key = value, with text in "double quotes"'),
    ("Expected newline", "one key = value a line"),
    ("Expected '=' after a key", 'write key = value, with text in "double quotes"'),
)
"""What the TOML reader says, and what a person has usually done."""


def _toml(text: str, findings: _Findings) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        message, _, where = str(error).partition(" (at ")
        spot = re.match(r"line (\d+), column (\d+)", where)
        lines = text.rstrip().split("\n")
        line, column = (int(spot[1]), int(spot[2]) - 1) if spot else (len(lines), len(lines[-1]))
        hint = next((hint for start, hint in _SYNTAX_HINTS if message.startswith(start)), "")
        findings.add("toml-syntax", f"not TOML: {message[:1].lower()}{message[1:]}", hint, line=line, column=column)
    except RecursionError:
        findings.add("toml-syntax", "not a config: brackets within brackets within brackets", "")
    except (ValueError, DecimalException):
        findings.add("toml-syntax", "a number is longer than a number can be", "")
    return None


@dataclass
class _Findings:
    """Collects what is wrong, each with its line and the word that the caret points at."""

    file: Path
    text: str
    found: list[Finding] = field(default_factory=list)
    _places: Places | None = None

    def add(self, code: str, message: str, hint: str, *, line: int | None = None, column: int | None = None) -> None:
        """At a place that is already known."""
        lines = self.text.split("\n")
        excerpt = lines[line - 1] if line and line <= len(lines) else ""
        finding = Finding(code=code, message=message, path=str(self.file), line=line, hint=hint, excerpt=excerpt[:200], column=column if excerpt else None)
        if finding not in self.found:
            self.found.append(finding)

    def at(self, loc: Loc, code: str, message: str, hint: str = "", *, key: bool = False) -> None:
        """At the value of `loc`, or at its name; at the table around it when it is not written."""
        from .places import Places

        self._places = self._places or Places(self.text)
        look = self._places.key if key else self._places.value
        place = look(loc) or next((found for end in range(len(loc) - 1, 0, -1) if (found := self._places.key(loc[:end]))), None)
        self.add(code, message, hint, line=place.line if place else None, column=place.column if place else None)


class _Reader:
    """Turns the file's table into a `RunConfig`; what is wrong goes into the findings."""

    def __init__(self, file: Path, findings: _Findings) -> None:
        self.file = file
        self.findings = findings

    def run(self, table: dict[str, Any]) -> RunConfig | None:
        """The config, or None when there are findings."""
        known = self._keys(table, set(RunConfig.model_fields) - {"jobs", "file", "sources"} | {"defaults", "lora"}, (), "at the top of the file")
        budget = self._section(Budget, known, "budget")
        machine = self._section(Machine, known, "machine")
        top = self._values(RunConfig, {"name": known["name"]} if "name" in known else {}, {"name": ("name",)})
        if "name" not in known:
            self.findings.add("missing", "the run has no `name`", f'write it in the first line: name = "{_suggested(self.file)}"', line=1)
        jobs, sources = self._jobs(known)
        if self.findings.found:
            return None
        return RunConfig.model_validate({**top, "budget": budget, "machine": machine, "lora": tuple(jobs), "file": self.file, "sources": sources})

    def _section(self, model: type[Section], table: dict[str, Any], name: str) -> Section | None:
        raw = table.get(name, {})
        if not isinstance(raw, dict):
            self.findings.at((name,), "wrong-type", f"`{name}` is a table of keys", f"write [{name}] on a line of its own, and its keys below")
            return None
        known = self._keys(raw, set(model.model_fields), (name,), f"in [{name}]")
        return self._build(model, known, {key: (name, key) for key in model.model_fields}, f"[{name}]")

    def _jobs(self, table: dict[str, Any]) -> tuple[list[LoraConfig], dict[str, dict[str, str]]]:
        """Every `[[lora]]` with its recipe and the defaults in it."""
        defaults, raw = table.get("defaults", {}), table.get("lora", [])
        if not isinstance(defaults, dict):
            self.findings.at(("defaults",), "wrong-type", "`defaults` is a table of keys", "write [defaults] on a line of its own, and its keys below")
            defaults = {}
        if not isinstance(raw, list) or not all(isinstance(item, dict) for item in raw):
            self.findings.at(("lora",), "wrong-type", "`lora` is a list of jobs", "write [[lora]] with two brackets, once for each job")
            return [], {}
        if not raw:
            self.findings.add("missing", "there is nothing to train", 'add a [[lora]] with its name and dataset: [[lora]] name = "lisa" dataset = "datasets/lisa"')
        shared = self._layer(defaults, ("defaults",), "in [defaults]")
        if "name" in shared:
            self.findings.at(("defaults", "name"), "rule", "`name` cannot be shared: it names the results", "give each [[lora]] its own", key=True)
            del shared["name"]
        jobs: list[LoraConfig] = []
        sources: dict[str, dict[str, str]] = {}
        for index, item in enumerate(raw):
            merged = _Merged.of(shared, self._layer(item, ("lora", index), "in [[lora]]"), index)
            self._recipe(merged)
            if job := self._job(merged, index):
                jobs.append(job)
                sources[job.name] = dict(merged.said_by)
        self._names(raw)
        return jobs, sources

    def _layer(self, raw: dict[str, Any], loc: Loc, where: str) -> dict[str, Any]:
        known = self._keys(raw, set(LoraConfig.model_fields), loc, where)
        if "steps" in known and "epochs" in known:
            self.findings.at((*loc, "epochs"), "rule", "give `steps` or `epochs`, not both", "take one of the two out", key=True)
            del known["epochs"]
        return known

    def _recipe(self, merged: _Merged) -> None:
        """Put the recipe's values under those of the file."""
        name, family = merged.values.get("recipe"), merged.values.get("family")
        if not isinstance(name, str) or not (family is None or family in FAMILIES):
            return
        full, instead = recipe_for(name, family)
        if instead:
            self.findings.at(merged.written["recipe"], "unknown-recipe", f'there is no recipe "{_short(name)}"', instead)
            return
        merged.put_below(tomllib.loads(templates.recipe_text(full), parse_float=Decimal), f"recipe {full}")
        merged.values["recipe"] = full

    def _job(self, merged: _Merged, index: int) -> LoraConfig | None:
        name = merged.values.get("name")
        family = merged.values.get("family")
        if isinstance(family, str) and family not in FAMILIES:
            guess = nearest(family, FAMILIES)
            self.findings.at(
                merged.written["family"],
                "unknown-family",
                f'this version of lorry does not train "{_short(family)}"',
                f'write "{guess}"' if guess else f"it trains {', '.join(FAMILIES)}",
            )
        title = f'job "{_short(name)}"' if isinstance(name, str) else f"job {index + 1}"
        places: dict[str, Loc] = {key: merged.written.get(key, ("lora", index, key)) for key in LoraConfig.model_fields}
        folder = self.file.absolute().parent
        if isinstance(merged.values.get("dataset"), str):
            merged.values["dataset"] = str(_resolved(folder, merged.values["dataset"]))
        if isinstance(merged.values.get("base"), str):
            merged.values["base"] = _base(folder, merged.values["base"])
        job = self._build(LoraConfig, merged.values, places, title)
        return job if isinstance(job, LoraConfig) else None

    def _names(self, raw: list[dict[str, Any]]) -> None:
        """Names become folders, and two of three systems do not tell `Lisa` from `lisa`."""
        seen: dict[str, str] = {}
        for index, item in enumerate(raw):
            name = item.get("name")
            if not isinstance(name, str):
                continue
            if (first := seen.setdefault(name.lower(), name)) == name and list(seen).index(name.lower()) == len(seen) - 1 and self._first(raw, name) == index:
                continue
            why = "is there twice" if first == name else f'differs from "{_short(first)}" by case only, and folders on Windows and macOS do not tell them apart'
            self.findings.at(("lora", index, "name"), "duplicate-name", f'the job name "{_short(name)}" {why}', "give it another name")

    @staticmethod
    def _first(raw: list[dict[str, Any]], name: str) -> int:
        return next(index for index, item in enumerate(raw) if item.get("name") == name)
