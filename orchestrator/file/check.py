"""Looks at everything a config names, before anything costs: pictures, captions, bases, sample prompts.

Runs the trainer's own torch-free code, so that what passes here passes there. Touches no network and changes no file. Raises
nothing: `refusal` turns what was found into the error that stops a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.config import LoraConfig, RunConfig, finding_at
from orchestrator.errors import ConfigError, DatasetError, Finding, WithFindings
from trainer import dataset, items
from trainer.base import Base, expect_family, inspect_base, read_header
from trainer.errors import TrainerError
from trainer.methods import caveat
from trainer.notes import Problem, printable
from trainer.prompts import parse_prompts
from trainer.protocol import FAMILIES

from .bases import family_by_name
from .packages import absent_package


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCheck:
    """What one job will train on."""

    name: str
    dataset: Path
    reading: str
    """In words, how the folder was understood."""
    files: tuple[Path, ...] = ()
    """Every picture that will be trained on, and every caption that is read."""
    masks: tuple[Path, ...] = ()
    prior_files: tuple[Path, ...] = ()
    """Regularisation pictures and their captions."""
    pictures: int = 0
    priors: int = 0
    """Regularisation pictures."""
    captions: int = 0
    """Pictures whose caption is not empty."""
    samples: int = 0
    """Pictures with their repeats, at every resolution, regularisation included: one epoch."""
    buckets: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """Width and height of a bucket -> pictures in it, at every resolution, repeats not counted."""
    steps: int = 0
    epochs: int = 0
    base: Base | None = None
    """None when the base cannot be used."""
    family: str | None = None
    """As the file says, else as the base shows."""

    def as_json(self) -> dict[str, object]:
        """The words of `lorry plan --json`."""
        return {
            "name": self.name,
            "dataset": str(self.dataset),
            "reading": self.reading,
            "pictures": self.pictures,
            "captions": self.captions,
            "masks": len(self.masks),
            "regularisation": self.priors,
            "samples": self.samples,
            "buckets": [{"width": width, "height": height, "pictures": count} for (width, height), count in self.buckets.items()],
            "steps": self.steps,
            "epochs": self.epochs,
            "base": self.base.location if self.base else None,
            "family": self.family,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The whole config, looked at."""

    jobs: tuple[JobCheck, ...]
    findings: tuple[Finding, ...]
    """Errors and warnings, in the order of the jobs."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What must be put right first."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


def check(config: RunConfig) -> Checked:
    """Look at every job of the config."""
    looked = [_job(config, index, job) for index, job in enumerate(config.jobs)]
    findings = dict.fromkeys(finding for _, found in looked for finding in found)  # two jobs may share a folder
    return Checked(jobs=tuple(job for job, _ in looked), findings=tuple(findings))


def both(checks: Sequence[Checked]) -> Checked:
    """Of several configs that are to be one session."""
    found = dict.fromkeys(finding for one in checks for finding in one.findings)  # two files may name one folder
    return Checked(jobs=tuple(job for one in checks for job in one.jobs), findings=tuple(found))


def refusal(checked: Checked) -> WithFindings | None:
    """The error that keeps a run from starting; None when all is well. Wrong values go before wrong pictures."""
    if not checked.errors:
        return None
    wrong = [finding for finding in checked.errors if not finding.code.startswith("LRY-DATA-")]
    kind = ConfigError if wrong else DatasetError
    count = len(checked.errors)
    return kind(f"{count} {'thing' if count == 1 else 'things'} to put right, nothing was started", checked.findings)


def _job(config: RunConfig, index: int, job: LoraConfig) -> tuple[JobCheck, list[Finding]]:
    base, findings = _base(config, index, job)
    findings += _prompts(config, index, job)
    findings += _loras(config, index, job)
    findings += _optimizer(config, index, job)
    findings += _adapter(config, index, job, _family(job, base))
    scan = _scanned(job)
    findings += [_of_dataset(config, index, problem) for problem in scan.problems]
    looked = JobCheck(name=job.name, dataset=job.dataset, reading=scan.reading, base=base, family=_family(job, base))
    if not scan.samples:
        return looked, findings
    try:
        lessons = items.lessons(job, items.split(job, scan.samples)[0], scan.priors)
        plan = lessons.plan
        buckets = Counter(item.bucket for item in items.items(job, scan.samples))
    except ValueError as error:  # a resolution below one bucket step
        return looked, [*findings, finding_at(config, index, "resolution", "LRY-CONFIG-RULE", str(error))]
    counted = replace(
        looked,
        reading=f"{scan.reading}; {items.words_of_priors(lessons)}" if scan.priors else scan.reading,
        files=tuple(path for sample in scan.samples for path in sample.files),
        masks=tuple(dict.fromkeys(sample.mask for sample in scan.samples if sample.mask)),
        prior_files=tuple(path for sample in scan.priors for path in sample.files),
        pictures=len(scan.samples),
        priors=len(scan.priors),
        captions=sum(bool(sample.caption) for sample in scan.samples),
        samples=sum(sample.repeats for sample in scan.samples) * len(items.resolutions(job)) + plan.priors,
        buckets=dict(sorted(buckets.items())),
        steps=plan.steps,
        epochs=plan.epochs,
    )
    return counted, findings


def _scanned(job: LoraConfig) -> dataset.Scan:
    try:
        return dataset.scan(job.dataset, job, masks=job.masks, regularisation=job.regularisation)
    except OSError as error:  # a disk that fails under us, a folder that goes away
        problem = Problem(
            code="LRY-DATA-UNREADABLE",
            path=error.filename or "",
            message=f"cannot be read: {error.strerror}",
            hint="is the disk all right?",
        )
        return dataset.Scan((), (problem,), "nothing")


def _of_dataset(config: RunConfig, index: int, problem: Problem) -> Finding:
    """The trainer's problem in our words; a folder that is not there is put right in the config."""
    if problem.code in {"LRY-DATA-MISSING", "LRY-DATA-EMPTY"}:
        return finding_at(config, index, problem.key, problem.code, problem.message, hint=problem.hint)
    return Finding(
        code=problem.code,
        message=problem.message,
        path=printable(str(problem.file)) if problem.file else problem.path,
        line=problem.line,
        hint=problem.hint,
        severity=problem.severity,
    )


def _base(config: RunConfig, index: int, job: LoraConfig) -> tuple[Base | None, list[Finding]]:
    """The base, and what speaks against it."""
    try:
        base = inspect_base(job.base, config.file.absolute().parent)
        if job.family:
            expect_family(base, job.family)
    except TrainerError as error:
        return None, [finding_at(config, index, "base", error.code, error.message, hint=error.hint)]
    except OSError as error:
        return None, [finding_at(config, index, "base", "LRY-BASE-BROKEN", f"the base cannot be read: {error.strerror}")]
    family = _family(job, base)
    if family is None:
        message = f"the family of {job.base} cannot be told from its name, and nothing is downloaded to look"
        return base, [finding_at(config, index, "base", "LRY-CONFIG-FAMILY", message, hint='write `family` as well, as in family = "sd15"')]
    if family not in FAMILIES:
        what = family if " " in family else f"of the family {family}"
        message = f"{Path(base.location).name} is {what}, which this version of lorry does not train"
        return base, [finding_at(config, index, "base", "LRY-CONFIG-FAMILY", message, hint=f"it trains {', '.join(FAMILIES)}")]
    return base, []


def _family(job: LoraConfig, base: Base | None) -> str | None:
    return job.family or (base and (base.family or family_by_name(base.location))) or None


def _prompts(config: RunConfig, index: int, job: LoraConfig) -> list[Finding]:
    try:
        parse_prompts(job.sample_prompts)
    except TrainerError as error:
        return [finding_at(config, index, "sample_prompts", error.code, error.message, hint=error.hint)]
    return []


def _loras(config: RunConfig, index: int, job: LoraConfig) -> list[Finding]:
    """What speaks against the LoRA files that a job begins with. Their numbers are looked at where it trains."""
    found = []
    for key, path in (("start_from", job.start_from), ("merge_lora", job.merge_lora)):
        if path is None:
            continue
        if not path.is_file() or path.suffix != ".safetensors":
            hint = "give a .safetensors file; other kinds can hold code, and are not opened"
            found.append(finding_at(config, index, key, "LRY-FILE-ADAPTER", f"{path.name} is no .safetensors file", hint=hint))
            continue
        try:
            known = any(mark in name for name in read_header(path) for mark in (".lora", ".hada_", ".lokr_"))
        except (TrainerError, OSError) as error:
            found.append(finding_at(config, index, key, "LRY-FILE-ADAPTER", f"{path.name} cannot be read: {error}"))
            continue
        if not known:
            message = f"{path.name} holds no LoRA"
            found.append(
                finding_at(config, index, key, "LRY-FILE-ADAPTER", message, hint="`lorry convert FILE` tells what it knows of a file")
            )
    return found


def _optimizer(config: RunConfig, index: int, job: LoraConfig) -> list[Finding]:
    """A warning where a rented machine has not the package of the optimizer's class: an image of one's own may have it."""
    package = absent_package(job.optimizer)
    if not package:
        return []
    message = f"optimizer {job.optimizer} is of a package that a rented machine does not have ({package}): the job would end there"
    hint = "take an image that has it (`machine.image`), train with `lorry train` where it is installed, or take a built-in optimizer"
    return [replace(finding_at(config, index, "optimizer", "LRY-CONFIG-PACKAGE", message, hint=hint), severity="warning")]


def _adapter(config: RunConfig, index: int, job: LoraConfig, family: str | None) -> list[Finding]:
    """A warning where not every program draws with the file as it was trained."""
    if job.method.plain or family is None:
        return []
    key = "adapter" if job.adapter != "lora" else "dora"
    hint = 'that is well if you draw with those; `adapter = "lora"` without dora loads everywhere'
    return [replace(finding_at(config, index, key, "LRY-CONFIG-ADAPTER", caveat(job.method, family), hint=hint), severity="warning")]


def summary(job: JobCheck) -> list[str]:
    """A job in a few lines for a person."""
    lines = [f"{job.name}: {job.pictures} pictures, {job.captions} with a caption, {job.steps} steps ({job.epochs} epochs)"]
    lines.append(f"  read as {job.reading}")
    if job.buckets:
        lines.append(f"  buckets {_listed(job.buckets)}")
    if job.base:
        lines.append(f"  base    {job.base.location} ({job.family})")
    return lines


def _listed(buckets: Mapping[tuple[int, int], int], most: int = 8) -> str:
    ranked = sorted(buckets.items(), key=lambda item: -item[1])
    shown = [f"{width}x{height}: {count}" for (width, height), count in ranked[:most]]
    return ", ".join([*shown, *([f"and {len(ranked) - most} more"] if len(ranked) > most else [])])


def counts(findings: Iterable[Finding]) -> str:
    """`2 errors, 1 warning`; empty when there are none."""
    number = Counter(finding.severity for finding in findings)
    words: Sequence[str] = [f"{number[kind]} {kind}{'' if number[kind] == 1 else 's'}" for kind in ("error", "warning") if number[kind]]
    return ", ".join(words)
