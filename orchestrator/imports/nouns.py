"""What an import is made of: the keys of another trainer's file on their way, and what became of each.

Every key of the source ends in exactly one of three places: carried into keys of ours, without meaning here (and why), or listed with the
reason and the next move. `Conversion.end` sees to it that none is left over. Which keys there are to carry into is asked of the models when
it runs, so that an option is carried from the day on which the trainer has it.

Knows nothing of files, formats or other trainers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter, ValidationError

from orchestrator.file.keys import LoraConfig
from trainer.protocol import FAMILIES

Kind = Literal["carried", "meaningless", "listed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What became of one key of the source."""

    key: str
    """Where it stands there, as in `training.network_dim`."""
    value: Any
    kind: Kind
    ours: tuple[str, ...] = ()
    """The keys that it went into; for a carried one only."""
    why: str = ""
    hint: str = ""
    """The next move; for a listed one only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One `key = value` of the `[[lora]]` to write, and where it comes from."""

    key: str
    value: Any
    said_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """Something that differs from what the other trainer would have done, and belongs to no single key."""

    what: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One `[[lora]]` to write."""

    name: str
    lines: tuple[Line, ...]
    fates: tuple[Fate, ...]
    remarks: tuple[Remark, ...]
    tool: str
    files: tuple[Path, ...]

    def of(self, kind: Kind) -> tuple[Fate, ...]:
        """The keys that ended so."""
        return tuple(fate for fate in self.fates if fate.kind == kind)

    @property
    def values(self) -> dict[str, Any]:
        """Key -> value, as it will be read again."""
        return {line.key: line.value for line in self.lines}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """An option that lorry may not have: what of it changes nothing, where it goes if it can, and what to say if it cannot."""

    off: tuple[Any, ...] = (False, None, 0, 0.0, "")
    ours: tuple[str, ...] = ()
    """Keys of ours that mean the same; the first one that exists is taken."""
    why: str = "lorry has no such option"
    hint: str = "nothing to do, but expect another result"


@dataclass(slots=True)
class Conversion:
    """The keys of one source, until each has found its place."""

    tool: str
    """As its users call it."""
    source: Mapping[str, Any]
    """Key -> value, flat: `datasets[0].resolution` where the source has tables in tables."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Key -> how the source's reader finds it, where that is more than the key."""
    same: Mapping[str, str] = field(default_factory=dict)
    """Place -> key, for what is written at several places and means one thing: they share its fate."""
    implied: Mapping[str, Any] = field(default_factory=dict)
    """What the source means without saying it, or instead of what it says."""
    lines: dict[str, Line] = field(default_factory=dict)
    fates: dict[str, Fate] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; `default` where it is not given, or given as nothing."""
        value = self.implied[key] if key in self.implied else self.source.get(key)
        return default if value is None or value == "" else value

    def has(self, key: str) -> bool:
        """Whether the source says anything about it."""
        return self.get(key) is not None

    def carry(self, keys: str | Iterable[str], ours: str, value: Any, *, said_by: str = "") -> bool:
        """Write `ours = value`, said by these keys of the source or, if it has none of them, by `said_by`; list them where it cannot be."""
        given = [key for key in ([keys] if isinstance(keys, str) else keys) if key in self.source]
        fault = fault_of(ours, value)
        for key in given:
            if fault:
                self.lack(key, fault, f"write `{ours}` yourself: `lorry help config` has its limits")
            else:
                before = self.fates.get(key)
                also = before.ours if before and before.kind == "carried" else ()
                self._end(Fate(key=self.place(key), value=self.source[key], kind="carried", ours=tuple(dict.fromkeys((*also, ours)))), key)
        if fault:
            return False
        self.lines[ours] = Line(key=ours, value=value, said_by=self._named(given) or said_by or f"as {self.tool} does")
        return True

    def default(self, ours: str, value: Any, why: str = "") -> None:
        """Write what the other trainer does where nothing is said, if nothing was."""
        if ours not in self.lines and not fault_of(ours, value):
            self.lines[ours] = Line(key=ours, value=value, said_by=why or f"what {self.tool} does where nothing is said")

    def mean_nothing(self, keys: str | Iterable[str], why: str) -> None:
        """These keys change nothing here."""
        for key in [keys] if isinstance(keys, str) else keys:
            if key in self.source and key not in self.fates:
                self._end(Fate(key=self.place(key), value=self.source[key], kind="meaningless", why=why), key)

    def lack(self, keys: str | Iterable[str], why: str, hint: str = "nothing to do, but expect another result") -> None:
        """These keys could not be carried."""
        for key in [keys] if isinstance(keys, str) else keys:
            if key in self.source:
                self._end(Fate(key=self.place(key), value=self.source[key], kind="listed", why=why, hint=hint), key)

    def note(self, what: str, hint: str = "") -> None:
        """Say what differs without a key of the source being to blame."""
        remark = Remark(what=what, hint=hint)
        if remark not in self.remarks:
            self.remarks.append(remark)

    def apply(self, lacks: Mapping[str, Lack]) -> None:
        """Decide on what a table of lacks knows and nobody has decided on."""
        for key, lack in lacks.items():
            if key not in self.source or key in self.fates:
                continue
            value = self.source[key]
            ours = next((name for name in lack.ours if not fault_of(name, value)), None)
            if any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in lack.off):
                self.mean_nothing(key, "off, or as it is here anyway")
            elif ours:
                self.carry(key, ours, value)
            else:
                self.lack(key, lack.why, lack.hint)

    def rename(self, table: Mapping[str, tuple[str, Callable[[Any], Any]]], off_at_zero: Container[str] = ()) -> None:
        """Carry what a table renames and nobody has decided on; a value that is no such thing is listed."""
        for key, (ours, convert) in table.items():
            if key not in self.source or key in self.fates:
                continue
            value = self.get(key)
            if value is None or (key in off_at_zero and str(value) in {"0", "0.0"}):
                self.mean_nothing(key, "nothing is said")
                continue
            try:
                self.carry(key, ours, convert(value))
            except (ValueError, TypeError, KeyError):
                self.lack(key, f"{value!r} is not what belongs there, or nothing that lorry has", f"write `{ours}` yourself")

    def end(self, *, name: str, files: Sequence[Path]) -> Job:
        """The job. What nobody has decided on is listed: nothing is dropped silently."""
        for key in self.source:
            if key not in self.fates:
                why = f"lorry does not know this key of {self.tool}"
                self.lack(key, why, f"check its spelling: {self.tool} itself may pass over a key that it does not know")
        fates = (*(self.fates[key] for key in self.source), *(replace(self.fates[key], key=place) for place, key in self.same.items()))
        order = {key: number for number, key in enumerate(LoraConfig.model_fields)}
        lines = tuple(sorted(self.lines.values(), key=lambda line: (*_rank(line.key), order[line.key])))
        return Job(name=name, lines=lines, fates=fates, remarks=tuple(self.remarks), tool=self.tool, files=tuple(files))

    def place(self, key: str) -> str:
        """A key as the source writes it."""
        return self.places.get(key, key)

    def _named(self, keys: Sequence[str]) -> str:
        """A few keys, as short as they can be understood."""
        short = [key if self.place(key).endswith(key) else self.place(key) for key in keys]
        return ", ".join(short[:3]) + (f" and {len(short) - 3} more" if len(short) > 3 else "")

    def _end(self, fate: Fate, key: str) -> None:
        self.fates[key] = replace(fate, value="not shown") if _SECRET.search(key) or _SECRET_INSIDE.search(str(fate.value)) else fate


_SECRET = re.compile(r"(api_key|_token|password|access_key\w*|secret\w*)$", re.IGNORECASE)
"""Keys whose values are nobody's business, the new file's least of all."""

_SECRET_INSIDE = re.compile(r"--\w*(api_key|_token)\b", re.IGNORECASE)

_FIRST = ("dataset", "base", "base_revision", "family", "trigger", "steps", "epochs")


def _rank(key: str) -> tuple[int]:
    """What a reader looks for first comes first."""
    return (_FIRST.index(key) if key in _FIRST else len(_FIRST),)


def fault_of(ours: str, value: Any) -> str:
    """Why `ours = value` cannot be written; empty when it can."""
    info = LoraConfig.model_fields.get(ours)
    if info is None:
        return f"lorry has no `{ours}` yet"
    if ours == "family" and value not in FAMILIES:
        return f'this version of lorry does not train the family "{value}"'
    annotation: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    try:
        TypeAdapter(annotation).validate_python(value, strict=False)
    except ValidationError as error:
        return f"{value!r} is not possible for `{ours}`: {error.errors()[0]['msg'].lower()}"
    return ""


def choices(ours: str) -> tuple[str, ...]:
    """The words that a key of ours takes, if it takes words from a list."""
    from typing import get_args

    info = LoraConfig.model_fields.get(ours)
    found = [one for one in get_args(info.annotation) if isinstance(one, str)] if info else []
    for inner in get_args(info.annotation) if info else ():
        found += [one for one in get_args(inner) if isinstance(one, str)]
    return tuple(found)


def chosen(ours: str, word: str) -> str | None:
    """The word of ours that is meant, whatever its capitals; None where there is none."""
    folded = {_folded(one): one for one in choices(ours)}
    return folded.get(_folded(word))


def _folded(word: str) -> str:
    return word.lower().replace("_", "").replace("-", "")


def first_existing(*names: str) -> str | None:
    """The first of these keys that a `[[lora]]` has."""
    return next((name for name in names if name in LoraConfig.model_fields), None)


def number(value: Any) -> float:
    """What another trainer takes for a number: 1e-4, "1e-4", "2". Raises ValueError or TypeError for anything else."""
    if isinstance(value, bool):
        raise TypeError(f"{value} is no number")
    return float(value)


def whole(value: Any) -> int:
    """The same for a whole number: "2" and 2.0 are 2."""
    found = number(value)
    if found != int(found):
        raise ValueError(f"{value} is no whole number")
    return int(found)


def truth(value: Any) -> bool:
    """True, "true", 1 and what else other trainers write for yes."""
    return value.strip().lower() in {"true", "1", "yes", "on"} if isinstance(value, str) else bool(value)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Tables in tables as one: `network.linear`, `datasets[0].folder_path`. An empty table, and a list of plain values, is a value."""
    if isinstance(value, Mapping) and value:
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
        return found
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return {key: inner for index, item in enumerate(value) for key, inner in flat(item, f"{prefix}[{index}]").items()}
    return {prefix: value}
