"""`lorry.toml` in, `RunConfig` out; everything that is wrong with it in one `ConfigError`.

Opens that one file, and asks of the paths in it only whether they exist; knows nothing of pictures, models, offers or money spent:
`check` and `plan` do. The keys themselves are in `keys`, the words about wrong ones in `wording`.

    recipe < [defaults] < [[lora]]        the later one wins, key by key
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal, DecimalException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

import templates
from trainer.protocol import FAMILIES, NAME_PATTERN, TrainingOptions

from .errors import ConfigError, Finding
from .file.bases import family_told_by
from .file.keys import PROVIDERS, Budget, LogTo, LoraConfig, Machine, RunConfig, Section
from .file.wording import allowed, instead, kind_of, nearest, rewritten, say, short, wrong_type

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from .file.places import Loc, Places

__all__ = ["CODES", "PROVIDERS", "Budget", "LoraConfig", "Machine", "RunConfig", "find", "finding_at", "load", "recipe_for"]

FILE_NAME = "lorry.toml"

MAX_BYTES = 1_000_000
"""A config is a page of text; anything this big is a mistake, and reading it would only make the mistake slow."""

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
    "LRY-CONFIG-PACKAGE": "a class of a package that a rented machine does not have",
    "LRY-CONFIG-ADAPTER": "an adapter that not every program draws with as it was trained",
    "LRY-DATA-CHANGED": "a file changed after it was checked",
}
"""What `Finding.code` can say besides the codes of `trainer.errors`."""


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


def recipe_for(name: str, family: str | None) -> tuple[str, str]:
    """The full name of a recipe and, when there is none, what to write instead: one of the two is empty.

    `character` means `<family>-character`; the family may be left out where the base tells it, or only one has such a recipe.
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
        from .file.places import Places

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
        tables = {"budget": Any, "machine": Any, "defaults": Any, "lora": Any}
        known = self._keys(table, _annotations(_Top) | tables, (), "at the top of the file")
        budget = self._section(Budget, known, "budget")
        machine = self._section(Machine, known, "machine")
        top = {key: known[key] for key in _Top.model_fields if key in known}
        named = self._build(_Top, top, {key: (key,) for key in _Top.model_fields}, "the run")
        jobs, sources = self._jobs(known)
        if self.findings.found or not isinstance(named, _Top):
            return None
        whole = {**dict(named), "budget": budget, "machine": machine, "lora": tuple(jobs), "file": self.file, "sources": sources}
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
        for key in ("dataset", "masks", "regularisation", "start_from", "merge_lora"):
            if key in merged.values:
                merged.values[key] = str(_resolved(folder, merged.values[key]))
        for key in ("base", "preview_decoder", "clip_score"):
            if key in merged.values:
                merged.values[key] = _base(folder, merged.values[key])
        title = f'job "{short(merged.values["name"])}"' if "name" in merged.values else f"job {index + 1}"
        places: dict[str, Loc] = {key: ("lora", index, key) for key in LoraConfig.model_fields} | merged.places
        job = self._build(LoraConfig, merged.values, places, title)
        return (job if isinstance(job, LoraConfig) else None), merged

    def _family(self, merged: _Merged) -> None:
        family = merged.values.get("family")
        if family is None or family in FAMILIES:
            return
        guess = nearest(family, FAMILIES)
        message = f'this version of lorry does not train the family "{short(family)}"'
        hint = f'write "{guess}"' if guess else f"it trains {', '.join(FAMILIES)}"
        self.findings.at(merged.places["family"], "LRY-CONFIG-FAMILY", message, hint)
        del merged.values["family"]

    def _recipe(self, merged: _Merged) -> None:
        """Put the recipe's values under those of the file."""
        if "recipe" not in merged.values:
            return
        name = merged.values["recipe"]
        family = merged.values.get("family")
        if family is None and isinstance(merged.values.get("base"), str):
            told = family_told_by(merged.values["base"], self.file.absolute().parent)
            family = told if told in FAMILIES else None
        full, cure = recipe_for(name, family)
        if cure:
            self.findings.at(merged.places["recipe"], "LRY-CONFIG-RECIPE", f'there is no recipe "{short(name)}"', cure)
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
                by_case = f'differs from "{short(first)}" by case only, which folders on Windows and macOS ignore'
                message = f'the job name "{short(name)}" {"is there twice" if first == name else by_case}'
                self.findings.at(("lora", index, "name"), "LRY-CONFIG-NAME", message, "give it another name")

    def _keys(self, raw: dict[str, Any], annotations: Mapping[str, Any], loc: Loc, where: str) -> dict[str, Any]:
        """The keys of one table that exist and have the right type."""
        good: dict[str, Any] = {}
        for key, value in raw.items():
            if key not in annotations:
                meant, hint = instead(key, annotations)
                self.findings.at((*loc, key), "LRY-CONFIG-KEY", f"there is no key `{short(key)}` {where}", hint, key=True)
                self.refused.add((*loc, meant))
            elif expected := wrong_type(annotations[key], value):
                message = f"`{key}` is {expected}, not {kind_of(value)}"
                self.findings.at((*loc, key), "LRY-CONFIG-TYPE", message, rewritten(annotations[key], key, value))
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
        code, message = say(str(key), details)
        words = allowed(model.model_fields[str(key)].annotation)
        hint = ""
        if details["type"] == "literal_error":
            written = _dig(values[str(key)], inside)
            guess = nearest(written, words) if isinstance(written, str) else ""
            hint = f'write "{guess}"' if guess else f"it can be {', '.join(words)}"
        self.findings.at((*loc, *inside), code, message, hint)


class _Top(Section):
    """The keys above all tables."""

    name: str = Field(pattern=NAME_PATTERN)
    log_to: LogTo = ()


_EXAMPLES: dict[str, str] = {
    "_Top.name": 'begin the file with name = "autumn"',
    "Budget.max_usd": "write max_usd = 5.00 under [budget]: the most that this run may cost",
    "LoraConfig.name": 'write name = "lisa": it names the results',
    "LoraConfig.dataset": 'write dataset = "datasets/lisa": the folder with the pictures',
    "LoraConfig.base": 'write base = "stable-diffusion-v1-5/stable-diffusion-v1-5", or a folder or a .safetensors file',
}
"""What to write where a key must be and is not."""


def _annotations(model: type[BaseModel]) -> dict[str, Any]:
    return {name: info.annotation for name, info in model.model_fields.items()}


def _texts(value: object) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _dig(value: Any, inside: Iterable[str | int]) -> Any:
    for step in inside:
        value = value[step]
    return value


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
