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
from contextlib import suppress
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
    from pydantic.fields import FieldInfo
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
    "LRY-CONFIG-FILE": "there is no file to read, or more than one, or it is not text",
    "LRY-CONFIG-SYNTAX": "the file is not TOML",
    "LRY-CONFIG-KEY": "a key that lorry does not know",
    "LRY-CONFIG-TYPE": "text where a number belongs, and the like",
    "LRY-CONFIG-VALUE": "a value outside what is possible",
    "LRY-CONFIG-MISSING": "something required is not there",
    "LRY-CONFIG-NAME": "two jobs would write to the same folder",
    "LRY-CONFIG-RECIPE": "no recipe of that name",
    "LRY-CONFIG-FAMILY": "no model family of that name, or it cannot be told",
    "LRY-CONFIG-PROVIDER": "no provider of that name",
    "LRY-CONFIG-RULE": "values that do not go together",
    "LRY-DATA-CHANGED": "a file changed after it was checked",
}
"""What `Finding.code` can say besides the codes of `trainer.errors`."""

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
    max_hours: float | None = Field(
        None, gt=0, le=10_000, description="The machine is given back after so many hours, whatever is left to train."
    )


class Machine(Section):
    """`[machine]`: where to train."""

    providers: tuple[ProviderName, ...] = Field(
        ("vast", "runpod"), min_length=1, description="Clouds to ask. Their offers compete in one ranking."
    )
    gpus: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        (), description='Cards that will do, as in `"RTX 4090"`. Empty: anything that fits the job.'
    )
    max_usd_per_hour: Decimal | None = Field(None, gt=0, le=1000, description="No machine dearer than this, disk included.")
    interruptible: bool = Field(
        False, description="Also take machines that may be taken away (bids, spot): cheaper, and the run moves on when it happens."
    )
    min_reliability: float = Field(0.95, ge=0, le=1, description="Share of time that the host was up, by the provider's record.")
    regions: tuple[Annotated[str, Field(pattern=r"^[A-Z]{2}$")], ...] = Field(
        (), description='Countries by two letters, as in `"SE"`. Empty: anywhere.'
    )
    min_vram_gib: float | None = Field(None, gt=0, le=2048, description="Video memory at least. Worked out from the jobs when not given.")
    disk_gib: int | None = Field(
        None, ge=1, le=100_000, description="Disk to rent. Worked out from base, datasets and results when not given."
    )
    image: str = Field(
        DEFAULT_IMAGE, min_length=1, max_length=512, description="Container image; must have Python 3.11 or later and torch."
    )
    verified_only: bool = Field(True, description="Only hosts that the provider has checked.")
    secure_cloud_only: bool = Field(False, description="Only machines in data centres.")
    boot_timeout_minutes: float = Field(
        15, gt=0, le=600, description="A machine that cannot be reached by then is given back for the next one."
    )


class LoraConfig(TrainingOptions):
    """`[[lora]]`: one LoRA to train. Recipe and `[defaults]` are already in it."""

    name: str = Field(pattern=NAME_PATTERN, description="Names the job, its folder and its adapter file.")
    dataset: Path = Field(
        description="Folder of pictures: kohya's `10_trigger class` folders, or pictures with .txt captions. Relative to this file."
    )
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
    machine: Machine = Field(default_factory=lambda: Machine.model_validate({}))
    jobs: tuple[LoraConfig, ...] = Field(alias="lora", min_length=1)
    file: Path = Field(exclude=True)
    """Where it was read from; relative paths in it start in its folder."""
    sources: Mapping[str, Mapping[str, str]] = Field(default_factory=dict, exclude=True)
    """Job name -> key -> who said so: `[[lora]]`, `[defaults]` or `recipe sd15-character`. A key that is not there has its default."""


_OWN = [key for key in LoraConfig.model_fields if key not in TrainingOptions.model_fields]
_NAME = {"name": RunConfig.model_fields["name"]}
TABLES: tuple[tuple[str, str, dict[str, FieldInfo]], ...] = (
    ("", "above all tables", _NAME),
    ("[budget]", "what the run may cost", Budget.model_fields),
    ("[machine]", "where to train", Machine.model_fields),
    ("[[lora]]", "one LoRA to train; [defaults] takes the same keys for all of them",
     {key: LoraConfig.model_fields[key] for key in [*_OWN, *TrainingOptions.model_fields]}),
)  # fmt: skip
"""Heading, what the table is for, its keys: what the reference page and `lorry help config` are drawn from."""


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
        names = ", ".join(other.name for other in others[:5])
        raise _refused(here, "LRY-CONFIG-FILE", f"there are {len(others)} configs here", f"say which one: {names}")
    raise _refused(here, "LRY-CONFIG-FILE", f"no {FILE_NAME} in this folder", "`lorry init --dataset FOLDER` writes one, or name your file")


def finding_at(config: RunConfig, job: int, key: str, code: str, message: str, *, hint: str = "") -> Finding:
    """A finding at a key of the `job`-th `[[lora]]`, for whoever looks behind the values: the file is read again for the place."""
    findings = _Findings(config.file, "")
    with suppress(ConfigError, ValueError, RecursionError):
        findings = _Findings(config.file, _text(config.file))
        said_by = config.sources.get(config.jobs[job].name, {}).get(key, "")
        loc: Loc = ("defaults", key) if said_by == "[defaults]" else ("lora", job, "recipe" if said_by.startswith("recipe") else key)
        findings.at(loc, code, message, hint)
    return findings.found[0] if findings.found else Finding(code=code, message=message, path=str(config.file), hint=hint)


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
            raise _refused(file, "LRY-CONFIG-FILE", "this is a folder", f"name the file: {file / FILE_NAME}")
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        guess = nearest(file.stem, [found.stem for found in file.parent.glob("*.toml")])
        hint = f"did you mean {file.with_name(guess + '.toml')}?" if guess else "`lorry init` writes one"
        raise _refused(file, "LRY-CONFIG-FILE", "there is no such file", hint) from None
    except (OSError, ValueError) as error:
        raise _refused(file, "LRY-CONFIG-FILE", f"cannot be read: {getattr(error, 'strerror', None) or error}", "") from error
    if len(data) > MAX_BYTES:
        hint = "a config is a page of text; is this the right file?"
        raise _refused(file, "LRY-CONFIG-FILE", f"is bigger than {MAX_BYTES // 1_000_000} MB", hint)
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _refused(file, "LRY-CONFIG-FILE", f"byte 0x{data[error.start]:02x} is not UTF-8", "save it as UTF-8", line=line) from None


def _refused(file: Path, code: str, message: str, hint: str, *, line: int | None = None) -> ConfigError:
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
        findings.add("LRY-CONFIG-SYNTAX", f"not TOML: {message[:1].lower()}{message[1:]}", hint, line=line, column=column)
    except RecursionError:
        findings.add("LRY-CONFIG-SYNTAX", "not a config: brackets within brackets within brackets", "")
    except (ValueError, DecimalException):
        findings.add("LRY-CONFIG-SYNTAX", "a number is longer than a number can be", "")
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
        finding = Finding(
            code=code, message=message, path=str(self.file), line=line, hint=hint, excerpt=excerpt[:200], column=column if excerpt else None
        )
        if finding not in self.found:
            self.found.append(finding)

    def at(self, loc: Loc, code: str, message: str, hint: str = "", *, key: bool = False) -> None:
        """At the value of `loc`, or at its name; at the table around it when it is not written."""
        from .places import Places

        self._places = self._places or Places(self.text)
        look = self._places.key if key else self._places.value
        around = (self._places.key(loc[:end]) for end in range(len(loc) - 1, 0, -1))
        place = look(loc) or next((found for found in around if found), None)
        self.add(code, message, hint, line=place.line if place else None, column=place.column if place else None)


@dataclass
class _Merged:
    """The keys of one job from all that speak for it, and who said each."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Loc] = field(default_factory=dict)
    said_by: dict[str, str] = field(default_factory=dict)

    def put_below(self, layer: Mapping[str, Any], said_by: str, place: Loc, *, each: bool = True) -> None:
        """Add what nobody has said yet. `steps` and `epochs` are one question: whoever answers it answers both."""
        answered = {*self.values, *({"steps", "epochs"} if {"steps", "epochs"} & self.values.keys() else ())}
        for key in (key for key in layer if key not in answered):
            self.values[key] = layer[key]
            self.places[key] = (*place, key) if each else place
            self.said_by[key] = said_by


class _Reader:
    """Turns the file's table into a `RunConfig`; what is wrong goes into the findings."""

    def __init__(self, file: Path, findings: _Findings) -> None:
        self.file = file
        self.findings = findings
        self.refused: set[Loc] = set()
        """Keys that were written, but wrongly: they are not missing as well."""

    def run(self, table: dict[str, Any]) -> RunConfig | None:
        """The config, or None when there are findings."""
        known = self._keys(table, {"name": str, "budget": Any, "machine": Any, "defaults": Any, "lora": Any}, (), "at the top of the file")
        budget = self._section(Budget, known, "budget")
        machine = self._section(Machine, known, "machine")
        name = self._build(_Named, {"name": known["name"]} if "name" in known else {}, {"name": ("name",)}, "the run")
        jobs, sources = self._jobs(known)
        if self.findings.found or not isinstance(name, _Named):
            return None
        whole = {"name": name.name, "budget": budget, "machine": machine, "lora": tuple(jobs), "file": self.file, "sources": sources}
        return RunConfig.model_validate(whole)

    def _not_a_table(self, name: str) -> None:
        self.findings.at((name,), "LRY-CONFIG-TYPE", f"`{name}` is a table of keys", f"write [{name}] on a line of its own, its keys below")

    def _section(self, model: type[Section], table: dict[str, Any], name: str) -> BaseModel | None:
        raw = table.get(name, {})
        if not isinstance(raw, dict):
            self._not_a_table(name)
            return None
        known = self._keys(raw, _annotations(model), (name,), f"in [{name}]")
        return self._build(model, known, {key: (name, key) for key in model.model_fields}, f"[{name}]")

    def _jobs(self, table: dict[str, Any]) -> tuple[list[LoraConfig], dict[str, dict[str, str]]]:
        """Every `[[lora]]`, with its recipe and the defaults in it."""
        defaults, raw = table.get("defaults", {}), table.get("lora", [])
        if not isinstance(defaults, dict):
            self._not_a_table("defaults")
            defaults = {}
        if not isinstance(raw, list) or not all(isinstance(item, dict) for item in raw):
            self.findings.at(
                ("lora",), "LRY-CONFIG-TYPE", "`lora` is a list of jobs", "write [[lora]] with two brackets, once for each job"
            )
            return [], {}
        if not raw:
            end = self.findings.text.rstrip().count("\n") + 1
            hint = "add [[lora]], and `name` and `dataset` below it"
            self.findings.add("LRY-CONFIG-MISSING", "there is no [[lora]], so nothing to train", hint, line=end)
        shared = self._layer(defaults, ("defaults",), "in [defaults]")
        if shared.pop("name", None) is not None:
            message = "`name` cannot be shared: it names the results"
            self.findings.at(("defaults", "name"), "LRY-CONFIG-RULE", message, "give each [[lora]] its own", key=True)
        jobs = [self._job(index, self._layer(item, ("lora", index), "in [[lora]]"), shared) for index, item in enumerate(raw)]
        self._names(raw)
        good = [(job, merged.said_by) for job, merged in jobs if job is not None]
        return [job for job, _ in good], {job.name: said_by for job, said_by in good}

    def _layer(self, raw: dict[str, Any], loc: Loc, where: str) -> dict[str, Any]:
        known = self._keys(raw, _annotations(LoraConfig), loc, where)
        if "steps" in known and "epochs" in known:
            self.findings.at((*loc, "epochs"), "LRY-CONFIG-RULE", "give `steps` or `epochs`, not both", "take one of the two out", key=True)
            del known["epochs"]
        return known

    def _job(self, index: int, own: dict[str, Any], shared: dict[str, Any]) -> tuple[LoraConfig | None, _Merged]:
        merged = _Merged()
        merged.put_below(own, "[[lora]]", ("lora", index))
        merged.put_below(shared, "[defaults]", ("defaults",))
        self._family(merged)
        self._recipe(merged)
        folder = self.file.absolute().parent
        if "dataset" in merged.values:
            merged.values["dataset"] = str(_resolved(folder, merged.values["dataset"]))
        if "base" in merged.values:
            merged.values["base"] = _base(folder, merged.values["base"])
        title = f'job "{_short(merged.values["name"])}"' if "name" in merged.values else f"job {index + 1}"
        places: dict[str, Loc] = {key: ("lora", index, key) for key in LoraConfig.model_fields} | merged.places
        job = self._build(LoraConfig, merged.values, places, title)
        return (job if isinstance(job, LoraConfig) else None), merged

    def _family(self, merged: _Merged) -> None:
        family = merged.values.get("family")
        if family is None or family in FAMILIES:
            return
        guess = nearest(family, FAMILIES)
        message = f'this version of lorry does not train the family "{_short(family)}"'
        hint = f'write "{guess}"' if guess else f"it trains {', '.join(FAMILIES)}"
        self.findings.at(merged.places["family"], "LRY-CONFIG-FAMILY", message, hint)
        del merged.values["family"]

    def _recipe(self, merged: _Merged) -> None:
        """Put the recipe's values under those of the file."""
        if "recipe" not in merged.values:
            return
        name = merged.values["recipe"]
        full, instead = recipe_for(name, merged.values.get("family"))
        if instead:
            self.findings.at(merged.places["recipe"], "LRY-CONFIG-RECIPE", f'there is no recipe "{_short(name)}"', instead)
            return
        merged.values["recipe"] = full
        merged.put_below({"family": full.partition("-")[0]}, f"recipe {full}", merged.places["recipe"], each=False)
        recipe = tomllib.loads(templates.recipe_text(full), parse_float=Decimal)
        merged.put_below(recipe, f"recipe {full}", merged.places["recipe"], each=False)

    def _names(self, raw: list[dict[str, Any]]) -> None:
        """Names become folders, and two of three systems do not tell `Lisa` from `lisa`."""
        seen: dict[str, str] = {}
        for index, item in enumerate(raw):
            name = item.get("name")
            if not isinstance(name, str):
                continue
            first = seen.get(name.lower())
            seen.setdefault(name.lower(), name)
            if first is not None:
                by_case = f'differs from "{_short(first)}" by case only, which folders on Windows and macOS ignore'
                message = f'the job name "{_short(name)}" {"is there twice" if first == name else by_case}'
                self.findings.at(("lora", index, "name"), "LRY-CONFIG-NAME", message, "give it another name")

    def _keys(self, raw: dict[str, Any], annotations: Mapping[str, Any], loc: Loc, where: str) -> dict[str, Any]:
        """The keys of one table that exist and have the right type."""
        good: dict[str, Any] = {}
        for key, value in raw.items():
            if key not in annotations:
                meant, hint = _instead(key, annotations)
                self.findings.at((*loc, key), "LRY-CONFIG-KEY", f"there is no key `{_short(key)}` {where}", hint, key=True)
                self.refused.add((*loc, meant))
            elif expected := _wrong_type(annotations[key], value):
                message = f"`{key}` is {expected}, not {_kind_of(value)}"
                self.findings.at((*loc, key), "LRY-CONFIG-TYPE", message, _rewritten(annotations[key], key, value))
                self.refused.add((*loc, key))
            elif any(ord(char) < 32 or ord(char) == 127 for text in _texts(value) for char in text):
                message = f"`{key}` has a line break or another control character in it"
                self.findings.at((*loc, key), "LRY-CONFIG-VALUE", message, "write it on one line")
                self.refused.add((*loc, key))
            else:
                good[key] = value
        return good

    def _build(self, model: type[BaseModel], values: dict[str, Any], places: Mapping[str, Loc], title: str) -> BaseModel | None:
        """The model, or findings for what pydantic says against the values."""
        try:
            return model.model_validate(values)
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_input=False)
        for details in wrong:
            self._explain(details, model, places, title, values)
        one_by_one = {str(details["loc"][0]) for details in wrong if details["loc"]}
        if one_by_one and issubclass(model, TrainingOptions):  # rules between keys are only looked at when each key is right
            rest = {key: value for key, value in values.items() if key in TrainingOptions.model_fields and key not in one_by_one}
            self._build(TrainingOptions, rest, places, title)
        return None

    def _explain(
        self, details: ErrorDetails, model: type[BaseModel], places: Mapping[str, Loc], title: str, values: dict[str, Any]
    ) -> None:
        """One pydantic error in our words, at its place."""
        if not details["loc"]:
            message = details["msg"].removeprefix("Value error, ")
            named = [key for key in values if re.search(rf"\b{key}\b", message) and key in places]
            self.findings.at(places[named[0]] if named else places["name"][:-1], "LRY-CONFIG-RULE", message)
            return
        key, *inside = details["loc"]
        loc = places[str(key)]
        if details["type"] == "missing":
            if not {loc, ("defaults", str(key))} & self.refused:
                self.findings.at(loc, "LRY-CONFIG-MISSING", f"{title} has no `{key}`", _EXAMPLES.get(f"{model.__name__}.{key}", ""))
            return
        code, message = _say(str(key), details)
        allowed = _allowed(model.model_fields[str(key)].annotation)
        hint = ""
        if details["type"] == "literal_error":
            written = _dig(values[str(key)], inside)
            guess = nearest(written, allowed) if isinstance(written, str) else ""
            hint = f'write "{guess}"' if guess else f"it can be {', '.join(allowed)}"
        self.findings.at((*loc, *inside), code, message, hint)


class _Named(Section):
    """The keys above all tables."""

    name: str = Field(pattern=NAME_PATTERN)


_EXAMPLES: dict[str, str] = {
    "_Named.name": 'begin the file with name = "autumn"',
    "Budget.max_usd": "write max_usd = 5.00 under [budget]: the most that this run may cost",
    "LoraConfig.name": 'write name = "lisa": it names the results',
    "LoraConfig.dataset": 'write dataset = "datasets/lisa": the folder with the pictures',
    "LoraConfig.base": 'write base = "stable-diffusion-v1-5/stable-diffusion-v1-5", or a folder or a .safetensors file',
}
"""What to write where a key must be and is not."""

_HOMES: tuple[tuple[str, type[BaseModel]], ...] = (
    ("under [budget]", Budget),
    ("under [machine]", Machine),
    ("under [[lora]] or [defaults]", LoraConfig),
)


def _instead(key: str, known: Iterable[str]) -> tuple[str, str]:
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


def _annotations(model: type[BaseModel]) -> dict[str, Any]:
    return {name: info.annotation for name, info in model.model_fields.items()}


_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (int, "a whole number"),
    (Decimal, "a number"),
    (str, "text"),
    (list, "a list"),
    (dict, "a table"),
)
"""What TOML can say, most particular first: a bool is an int to Python."""


def _kind_of(value: object) -> str:
    return next((words for kind, words in _KINDS if isinstance(value, kind)), "a date")


def _wrong_type(annotation: Any, value: object) -> str:
    """What the value should have been; empty when it is that. Stricter than pydantic, which takes "5" for 5 and true for 1."""
    if annotation is Any:
        return ""
    kind, many = _expected(annotation)
    if many:
        return "" if isinstance(value, list) and all(_kind_of(item) == kind for item in value) else f"a list of {kind}s"
    accepted = {kind, "a whole number"} if kind == "a number" else {kind}
    return "" if _kind_of(value) in accepted else kind


def _expected(annotation: Any) -> tuple[str, bool]:
    """The words for a type, and whether it is a list of them."""
    origin, arguments = get_origin(annotation), [one for one in get_args(annotation) if one not in (type(None), ...)]
    if origin in (Union, types.UnionType, Annotated):
        return _expected(arguments[0])
    if origin is tuple:
        return _expected(arguments[0])[0], True
    if origin is Literal or annotation is Path:
        return "text", False
    return next(words for kind, words in _KINDS if issubclass(Decimal if annotation is float else annotation, kind)), False


def _allowed(annotation: Any) -> list[str]:
    """The words of a `Literal`, however deep it stands in the type."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for inner in get_args(annotation) for word in _allowed(inner)]


def _rewritten(annotation: Any, key: str, value: object) -> str:
    """The same value in the right type, where it is plain what was meant."""
    kind, many = _expected(annotation)
    if many and isinstance(value, str) and kind == "text":
        return f'write {key} = ["{_short(value)}"]'
    if isinstance(value, str) and (number := _NUMBERS.get(kind)) and number.fullmatch(value):
        return f"write {key} = {value}, without quotes"
    if isinstance(value, str) and kind == "true or false" and (truth := _TRUTHS.get(value.lower())):
        return f"write {key} = {truth}, without quotes"
    if isinstance(value, Decimal) and kind == "a whole number" and value.is_finite() and abs(value) < 10**9 and value == int(value):
        return f"write {key} = {int(value)}"
    return ""


_NUMBERS = {"a number": re.compile(r"-?\d{1,9}(\.\d{1,9})?"), "a whole number": re.compile(r"-?\d{1,9}")}
_TRUTHS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}


def _texts(value: object) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _dig(value: Any, inside: Iterable[str | int]) -> Any:
    for step in inside:
        value = value[step]
    return value


_LIMITS: dict[str, tuple[str, str]] = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _say(key: str, details: ErrorDetails) -> tuple[str, str]:
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


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def _base(folder: Path, text: str) -> str:
    """A path where there is such a path or it can be nothing else, the hub id as it stands otherwise."""
    path = _resolved(folder, text)
    try:
        there = path.exists()
    except (OSError, ValueError):  # too long for a name
        there = False
    is_hub_id = _HUB_ID.fullmatch(text) and not text.endswith((".safetensors", ".ckpt"))
    return text if is_hub_id and not there else str(path) if text else ""


def _resolved(folder: Path, text: str) -> Path:
    path = Path(text)
    with suppress(RuntimeError):  # ~somebody who is not there: then it is a name like any other
        path = path.expanduser()
    return folder / path


def _short(text: str) -> str:
    """Enough of what was written to know it again."""
    return text if len(text) <= 60 else f"{text[:57]}..."
