"""The first `lorry.toml` of a user: what can be told from folders of pictures, written with its reasons.

Reads the folders, writes one new file. Knows nothing of the command line.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import templates
from orchestrator.config import recipe_for
from orchestrator.errors import UsageError
from trainer import dataset
from trainer.protocol import TrainingOptions

from .bases import family_told_by

DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""The maintained copy of Stable Diffusion 1.5; the first publisher's is gone from the hub."""
DEFAULT_MAX_USD = "5.00"
"""An evening's training several times over, and no disaster."""

_STYLE_WORDS = re.compile(r"style|paint|drawing|sketch|artwork|landscape|texture|background", re.IGNORECASE)
_KOHYA_FOLDER = re.compile(r"^\d+_(.+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftJob:
    """One `[[lora]]` to write."""

    name: str
    dataset: str
    trigger: str
    comment: str
    looks_like_style: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A config that is not yet on disk."""

    file: Path
    recipe: str
    """Full name."""
    jobs: tuple[DraftJob, ...]
    text: str

    def save(self) -> None:
        """Write it; never over another."""
        try:
            with self.file.open("x", encoding="utf-8", newline="\n") as stream:
                stream.write(self.text)
        except FileExistsError:
            raise UsageError(
                f"{self.file} is there already, and stays as it is", hint="name another with --file, or move that one away"
            ) from None
        except OSError as error:
            raise UsageError(f"{self.file} cannot be written: {error.strerror}") from error

    def as_json(self) -> dict[str, object]:
        """The words of `lorry init --json`."""
        jobs = [{"name": job.name, "dataset": job.dataset, "trigger": job.trigger or None} for job in self.jobs]
        return {"file": str(self.file), "recipe": self.recipe, "jobs": jobs}


def draft(recipe: str | None, folders: Sequence[Path], base: str | None, file: Path) -> Draft:
    """What to write for these folders; raises `UsageError` when one is no folder or the recipe is unknown."""
    if file.exists():
        raise UsageError(f"{file} is there already, and stays as it is", hint="name another with --file, or move that one away")
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder", hint="--dataset takes the folder with the pictures")
    jobs = tuple(_job(folder, file) for folder in folders) or (_EXAMPLE,)
    jobs = _named_apart(jobs)
    base = base or DEFAULT_BASE
    wanted = recipe or _guessed(jobs)
    full, instead = recipe_for(wanted, family_told_by(base, Path.cwd()))
    if instead:
        raise UsageError(f'there is no recipe "{wanted}" for {base}', hint=instead)
    return Draft(file=file, recipe=full, jobs=jobs, text=_written(full, jobs, base, file))


_EXAMPLE = DraftJob(name="lisa", dataset="datasets/lisa", trigger="lisabp woman", comment="an example: put your own folder here")


def _job(folder: Path, file: Path) -> DraftJob:
    scan = dataset.scan(folder, TrainingOptions.model_validate({}))
    captioned = sum(bool(sample.caption) for sample in scan.samples)
    problems = len(scan.errors)
    comment = f"{len(scan.samples)} pictures, {captioned} with a caption{f', {problems} to put right' if problems else ''}"
    where = os.path.relpath(folder, file.absolute().parent)
    return DraftJob(
        name=as_name(folder.resolve().name),
        dataset=folder.as_posix() if folder.is_absolute() else Path(where).as_posix(),
        trigger=_trigger(folder, scan),
        comment=comment,
        looks_like_style=any(_STYLE_WORDS.search(name) for name in [folder.resolve().name, *(child.name for child in folder.iterdir())]),
    )


def _trigger(folder: Path, scan: dataset.Scan) -> str:
    """Kohya's words where there is one such folder; else what most captions begin with; else nothing."""
    kohya = [
        match[1] for path in [folder.resolve(), *sorted(folder.iterdir())] if path.is_dir() and (match := _KOHYA_FOLDER.match(path.name))
    ]
    if len(kohya) == 1:
        return kohya[0].strip()
    beginnings = Counter(sample.caption.partition(",")[0].strip() for sample in scan.samples)
    for words, count in beginnings.most_common(1):
        if words and len(words) <= 40 and 1 < count >= 0.8 * len(scan.samples):
            return words
    return ""


def _guessed(jobs: Sequence[DraftJob]) -> str:
    return "style" if sum(job.looks_like_style for job in jobs) * 2 > len(jobs) else "character"


def _named_apart(jobs: Sequence[DraftJob]) -> tuple[DraftJob, ...]:
    """Two folders of one name make `lisa` and `lisa-2`."""
    taken: set[str] = set()
    result: list[DraftJob] = []
    for job in jobs:
        candidates = [job.name, *(f"{job.name}-{number}" for number in range(2, len(jobs) + 1))]
        name = next(candidate for candidate in candidates if candidate.lower() not in taken)
        taken.add(name.lower())
        result.append(
            DraftJob(name=name, dataset=job.dataset, trigger=job.trigger, comment=job.comment, looks_like_style=job.looks_like_style)
        )
    return tuple(result)


def as_name(words: str) -> str:
    """The nearest thing that may be a name."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", words).strip("-._")[:56]
    return kept or "lora"


def _written(recipe: str, jobs: Sequence[DraftJob], base: str, file: Path) -> str:
    from jinja2 import Environment, StrictUndefined

    body = [line for line in templates.recipe_text(recipe).splitlines() if line and not line.startswith("#")]
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701  TOML, no HTML
    environment.filters["toml"] = quoted
    name = file.name.removesuffix(".toml").removesuffix(".lorry").removesuffix("lorry")
    return environment.from_string(templates.text("lorry.toml.j2")).render(
        name=as_name(name or jobs[0].name), base=_based(base, file), recipe=recipe, recipe_lines=body, jobs=jobs, max_usd=DEFAULT_MAX_USD
    )


def _based(base: str, file: Path) -> str:
    """A path that works from the file's folder; a hub id as it is."""
    path = Path(base)
    if not path.exists() or path.is_absolute():
        return base
    return Path(os.path.relpath(path, file.absolute().parent)).as_posix()


def quoted(text: str) -> str:
    """TOML's basic strings are JSON's."""
    return json.dumps(text, ensure_ascii=False)
