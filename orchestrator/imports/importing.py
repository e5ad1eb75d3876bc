"""Files of other trainers in, one lorry.toml out. Reads the files, writes one new file. Knows nothing of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import templates
from orchestrator.console import plain
from orchestrator.errors import UsageError
from orchestrator.file.drafting import DEFAULT_BASE, DEFAULT_MAX_USD, as_name, quoted
from trainer.protocol import TrainingOptions

from .aitoolkit import jobs as of_aitoolkit
from .kohya import Kohya
from .nouns import Fate, Job, Line, Remark
from .onetrainer import job as of_onetrainer
from .reading import TRAINING, Source, read
from .simpletuner import job as of_simpletuner


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A config that is not yet on disk, and what became of everything it was made from."""

    file: Path
    jobs: tuple[Job, ...]
    text: str

    def save(self) -> None:
        """Write it; never over another."""
        try:
            with self.file.open("x", encoding="utf-8", newline="\n") as stream:
                stream.write(self.text)
        except FileExistsError:
            raise _taken(self.file) from None
        except OSError as error:
            raise UsageError(f"{self.file} cannot be written: {error.strerror}") from error

    def as_json(self) -> dict[str, object]:
        """The words of `lorry import --json`."""
        return {"file": str(self.file), "jobs": [_as_json(job) for job in self.jobs]}


def _as_json(job: Job) -> dict[str, object]:
    return {
        "name": job.name,
        "trainer": job.tool,
        "read": [str(file) for file in job.files],
        "keys": {line.key: line.value for line in job.lines},
        "carried": [{"key": fate.key, "value": fate.value, "to": list(fate.ours)} for fate in job.of("carried")],
        "meaningless": [{"key": fate.key, "value": fate.value, "why": fate.why} for fate in job.of("meaningless")],
        "listed": [{"key": fate.key, "value": fate.value, "why": fate.why, "hint": fate.hint} for fate in job.of("listed")],
        "differs": [{"what": remark.what, "hint": remark.hint} for remark in job.remarks],
    }


def imported(files: Sequence[Path], target: Path) -> Imported:
    """Read the files and say what to write; raises `UsageError` with the place of what cannot be read."""
    if target.exists():
        raise _taken(target)
    sources = [source for file in files for source in read(file)]
    jobs = _named_apart([_complete(job) for source in _trainings(sources) for job in _jobs(source, sources, target)])
    return Imported(file=target, jobs=tuple(jobs), text=_written(jobs, target))


def _taken(file: Path) -> UsageError:
    return UsageError(f"{file} is there already, and stays as it is", hint="name another with -o, or move that one away")


def _trainings(sources: Sequence[Source]) -> list[Source]:
    """What says how to train; a dataset file of kohya's alone will do, the other trainers' say too little."""
    found = [source for source in sources if source.form in TRAINING] or [source for source in sources if source.form == "kohya-dataset"]
    if not found:
        form = {"simpletuner-data": "SimpleTuner's config.json", "onetrainer-concepts": "OneTrainer's config"}[sources[0].form]
        raise UsageError(f"{sources[0].file} says which pictures, not how to train", hint=f"name {form} as well")
    return found


_DATA = {"kohya": "kohya-dataset", "kohya-gui": "kohya-dataset", "simpletuner": "simpletuner-data", "onetrainer": "onetrainer-concepts"}
"""Form of a training -> form of the file with its pictures."""


def _jobs(source: Source, sources: Sequence[Source], target: Path) -> list[Job]:
    data = next((one for one in sources if one.form == _DATA.get(source.form)), None)
    try:
        if source.form == "ai-toolkit":
            return of_aitoolkit(source, target)
        if source.form == "simpletuner":
            return [of_simpletuner(source, data, target)]
        if source.form == "onetrainer":
            return [of_onetrainer(source, data, target)]
        return [Kohya(source, data, target).job()]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:  # a value of another kind than its key has
        said = plain(str(error))
        raise UsageError(
            f"{source.file}: a value is not what belongs there: {said}", hint="compare it with that trainer's own examples"
        ) from error


def _complete(job: Job) -> Job:
    """A base where none is named, as `lorry init` does."""
    remarks, lines = list(job.remarks), list(job.lines)
    if "base" not in job.values:
        lines.insert(0, Line(key="base", value=DEFAULT_BASE, said_by="none was named; write yours"))
        remarks.append(Remark(what="no model is named", hint=f'"{DEFAULT_BASE}" is written: write the one that you mean'))
    if "dataset" not in job.values:
        lines.insert(0, Line(key="dataset", value=f"datasets/{job.name}", said_by="none was named; write yours"))
        remarks.append(
            Remark(what="no folder of pictures is named", hint=f'"datasets/{job.name}" is written: put them there, or write their folder')
        )
    return _agreeing(_fitting(replace(job, lines=tuple(lines), remarks=tuple(remarks))))


def _agreeing(job: Job) -> Job:
    """Say beforehand what `lorry check` will say of values that do not go together."""
    options: dict[str, Any] = {key: value for key, value in job.values.items() if key in TrainingOptions.model_fields}
    try:
        TrainingOptions.model_validate(options)
    except ValidationError as error:
        said = tuple(
            Remark(what=str(one["msg"]).removeprefix("Value error, "), hint="`lorry check` shows the place") for one in error.errors()
        )
        return replace(job, remarks=(*job.remarks, *said))
    return job


def _fitting(job: Job) -> Job:
    """Widen `min_bucket` and `max_bucket` where lorry would refuse what the other trainer takes."""
    values, remarks = job.values, list(job.remarks)
    sides = [values.get("resolution", 512), *values.get("more_resolutions", ())]
    changed: dict[str, int] = {}
    if values.get("min_bucket", 256) > min(sides):
        changed["min_bucket"] = min(sides)
    if values.get("max_bucket", 1024) < max(sides):
        changed["max_bucket"] = max(sides)
    if values.get("bucket_step", 64) > min(sides):
        changed["bucket_step"] = 8
    if not changed:
        return job
    lines = [line for line in job.lines if line.key not in changed]
    lines += [Line(key=key, value=value, said_by="as wide as `resolution` needs it") for key, value in changed.items()]
    if not values.get("bucket_no_upscale"):
        remarks.append(Remark(what=f"{' and '.join(changed)} did not hold the resolution", hint="they are written as it needs them"))
    return replace(job, lines=tuple(lines), remarks=tuple(remarks))


def _named_apart(jobs: Sequence[Job]) -> list[Job]:
    """Two jobs of one name become `lisa` and `lisa-2`."""
    taken: set[str] = set()
    result = []
    for job in jobs:
        candidates = [job.name, *(f"{job.name[:56]}-{number}" for number in range(2, len(jobs) + 1))]
        name = next(candidate for candidate in candidates if candidate.lower() not in taken)
        taken.add(name.lower())
        result.append(replace(job, name=name))
    return result


def _written(jobs: Sequence[Job], target: Path) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, trim_blocks=True, lstrip_blocks=True)  # noqa: S701  TOML, no HTML
    environment.filters |= {"toml": toml, "comment": _comment, "shown": _shown}
    name = target.name.removesuffix(".toml").removesuffix(".lorry").removesuffix("lorry")
    text = templates.text("imported.toml.j2")
    return environment.from_string(text).render(name=as_name(name or jobs[0].name), jobs=jobs, max_usd=DEFAULT_MAX_USD)


def toml(value: Any) -> str:
    """A value as TOML writes it; TOML's basic strings are JSON's."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value.encode("utf-8", "replace").decode()).replace("\x7f", "\\u007F")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml(one) for one in value)}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{quoted(str(key))} = {toml(one)}' for key, one in value.items())} }}"
    return _number(value)


def _number(value: float) -> str:
    """0.0001 is read more easily as 1e-4."""
    if isinstance(value, int):
        return str(value)
    text = repr(float(value))
    if 0 < abs(value) < 0.01:
        mantissa, _, exponent = f"{Decimal(text):e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return text


def _comment(text: str) -> str:
    """What stands behind a #: on one line, and nothing that a terminal would obey."""
    return plain(text, most=300)


def _shown(fate: Fate) -> str:
    """A key of the source with its value, short."""
    return plain(
        f"{fate.key} = {toml(fate.value) if not isinstance(fate.value, dict) else '{...}'}" if fate.value is not None else fate.key, most=80
    )
