"""One job up to its first step, or to where an earlier life of it had come: its data, its base, its adapter, its checkpoints.

`together` takes the steps, for one job or several; `keeping` and `saying` are what happens between them. Knows no family by name
and no process: the model comes from a plug-in, events go to a function, and whether to stop is asked of a function.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from . import (
    checkpoint,
    dataset,
    export,
    families,
    items,
    loop,
    optimizers,
    prompts,
    selection,
    start,
)
from .adapters import Adapter
from .base import expect_family, inspect_base
from .cache import Cache, file_hash
from .caching import cached, hashes_of, prompt_embeddings
from .contract import Condition, Foundation
from .errors import DatasetError, SpecError, StopRequested, TrainerError, TrainingError
from .events import Emit
from .families import plugin
from .files import Written
from .parts import needed_encoders, rates_of
from .previews import Looker
from .protocol import JobSpec, Phase
from .saying import Losses, say_committed, warn
from .team import Team

VERSION = "0.1.0"

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

NOT_IN_DIGEST = {
    "name",
    "output",
    "comment",
    "stop_when_worse",
    "dataset",
    "masks",
    "regularisation",
    "base",
    "base_revision",
    "start_from",
    "merge_lora",
    "save_every_steps",
    "save_every_epochs",
    "save_precision",
    "offload",
    "speed",
    "sample_every_steps",
    "sample_prompts",
    "preview_decoder",
    "clip_score",
}
"""Options that change no weight. Dataset and base count by content, not by place."""


@dataclass(slots=True)
class Place:
    """Where jobs run, and what they share."""

    root: Path
    emit: Emit
    clock: Callable[[], float] = time.monotonic
    stopping: Callable[[], bool] = lambda: False
    """Whether all training is to stop."""
    leaving: Callable[[str], bool] = lambda _: False
    """Whether this one job is to stop."""
    arriving: Callable[[], Sequence[JobSpec]] = tuple
    """Jobs that were sent since it was asked last."""
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    team: Team | None = None
    """The processes that train each job together, where there are several."""
    _model: Any = None
    _foundation: Foundation | None = None

    def __post_init__(self) -> None:
        """Two runs with one seed on one machine are equal: no kernel that adds up in changing order."""
        if self.device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
            torch.use_deterministic_algorithms(mode=True, warn_only=True)

    @property
    def writes(self) -> bool:
        """Whether this process saves and draws."""
        return self.team is None or self.team.first

    @property
    def cache(self) -> Cache:
        return Cache(self.root / "cache")

    def model(self, foundation: Foundation) -> Any:
        """The loaded base; jobs on the same foundation get the same."""
        if foundation != self._foundation:
            self._model, self._foundation = None, None  # the old one goes before the new one comes
            self._model = families.load(foundation, self.device)
            self._foundation = foundation
        return self._model

    def spoil_model(self) -> None:
        """The loaded base is no longer as it was loaded: whoever comes next gets a fresh one."""
        self._foundation = None

    def pause(self, job: JobSpec) -> None:
        """A point at which a stop is honoured."""
        if self.stopping() or self.leaving(job.name):
            raise StopRequested


@dataclass(slots=True, eq=False)
class Run:
    """A job under way: everything its steps need."""

    job: JobSpec
    place: Place
    model: Any
    lane: loop.Lane
    facts: export.Facts
    prompts: tuple[prompts.Prompt, ...]
    embedding: Callable[[str], Condition]
    digest: str
    held: loop.Data
    """Pictures that are measured by; none: nothing is measured."""
    last_good: int = 0
    measured: tuple[int, float] | None = None
    """Step and held-out loss, the last time."""
    best: tuple[int, float] | None = None
    """Step and held-out loss, the best time."""
    start: dict[str, Tensor] = field(default_factory=dict)
    """The weights before the first step, where this life has seen it."""
    said: Losses = field(init=False)
    looker: Looker = field(init=False)

    def __post_init__(self) -> None:
        self.said = Losses(self)
        told = {"preview_decoder": self.job.preview_decoder, "clip_score": self.job.clip_score, "root": self.place.root}
        self.looker = Looker(**told, warn=lambda message: warn(self.job, self.place, message))  # type: ignore[arg-type]

    @property
    def out(self) -> Path:
        return self.place.root / self.job.output


def load_job(path: Path) -> JobSpec:
    """Read a job file; everything wrong with it at once."""
    try:
        return JobSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SpecError("LRY-JOB-READ", f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise SpecError("LRY-JOB-SPEC", f"{path.name}: {wrong}.") from error


def failure(error: Exception, step: int) -> TrainerError:
    """The border: what torch and the system raise becomes an error of ours."""
    if isinstance(error, TrainerError):
        return error
    if is_out_of_memory(error):
        return _out_of_memory(step)
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        message = f"cannot write after step {step}: {error.strerror}."
        return TrainingError("LRY-TRAIN-DISK", message, "Give the machine more disk (disk_gib); what was saved before is good.")
    return TrainingError("LRY-TRAIN-CRASH", f"broke after step {step}: {type(error).__name__}: {str(error)[:500]}.", "Please report it.")


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller pass might do. The CPU allocator has no class of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error)


def _out_of_memory(step: int) -> TrainingError:
    hint = "Turn on gradient_checkpointing, lower batch_size or resolution, or rent a card with more memory."
    return TrainingError("LRY-TRAIN-OOM", f"out of memory after step {step}.", hint)


def located(error: TrainerError, run: Run) -> TrainerError:
    """The same error, with what can still be had."""
    saved = f"The last good checkpoint is step {run.last_good}." if run.last_good else "Nothing had been saved yet."
    return type(error)(error.code, f"{error.message} {saved}", error.hint)


# --- before training -------------------------------------------------------------------------------


def prepare(job: JobSpec, place: Place) -> Run:
    """Everything up to the first step; `resume` and `say_started` come next."""
    rates = rates_of(job)
    _check_family(job, place)
    wanted = prompts.parse_prompts(job.sample_prompts) if job.sample_every_steps else ()
    found = _read_dataset(job, place)
    trained, held = items.split(job, found.samples)
    if held:
        names = ", ".join(sample.image.name for sample in held)
        many = f"{len(held)} of {len(found.samples)}"
        warn(job, place, f"{many} pictures are not trained on but measured by (heldout = 0 trains on all): {names}.")
    dtype, warning = precision(job, place.device)
    if warning:
        warn(job, place, warning)
    place.emit(Phase(at_s=place.clock(), job=job.name, phase="loading", detail=job.base))
    place.pause(job)
    model = place.model(foundation_of(job, place, dtype))
    lessons = items.lessons(job, trained, found.priors)
    convolutions = model.family.convolutions(model) if job.conv_rank else []
    slots = selection.slots_of(job, model.targets(list(rates), job.layers), convolutions, model.family.key_of)
    selection.expect_all_parts(job, slots, rates)
    place.emit(Phase(at_s=place.clock(), job=job.name, phase="caching", detail=f"{len(found.samples) + len(found.priors)} pictures"))
    hashes = hashes_of([*found.samples, *found.priors])
    data = cached(job, place, model, lessons.items, hashes)
    if found.priors:
        trained_on = len(lessons.items) - len(found.priors) * lessons.rotation.resolutions
        priors, repeats = range(trained_on, len(lessons.items)), lessons.rotation.repeats(0)
        data = replace(data, repeats=repeats, rotation=lessons.rotation, priors=priors)
        warn(job, place, f"{items.words_of_priors(lessons)}.")
    measure = cached(job, place, model, items.measured(job, held), hashes)
    embedding = prompt_embeddings(job, place, model, wanted)
    model.release_encoders(keep=needed_encoders(job, model))
    adapter = Adapter.of(slots, job.seed, place.device, up_rate=job.lora_plus_ratio, base=model.parts)
    if job.start_from:
        warn(job, place, start.fill(adapter, place.root / job.start_from, job.family))
    optimizer, warning = optimizers.create(job, adapter)
    if warning:
        warn(job, place, warning)
    lane = loop.Lane(
        job, lessons.plan, data, adapter, optimizer, rates, optimizers.LossScale(enabled=dtype == torch.float16), team=place.team
    )
    facts = export.Facts(
        samples=trained,
        priors=found.priors,
        buckets=lessons.buckets,
        plan=lessons.plan,
        started_at=datetime.now(UTC),
        optimizer=optimizer.name,
        base_name=model.name,
        version=VERSION,
    )
    return Run(job, place, model, lane, facts, wanted, embedding, _digest(job, place, model, found, hashes), measure)


def foundation_of(job: JobSpec, place: Place, dtype: torch.dtype) -> Foundation:
    """The base as this job wants it."""
    plugin(job.family)
    base = inspect_base(job.base, place.root)
    expect_family(base, job.family)
    return Foundation(
        family=job.family,
        base=base,
        dtype=dtype,
        revision=job.base_revision,
        prediction=job.prediction,
        zero_terminal_snr=job.zero_terminal_snr,
        clip_skip=job.clip_skip,
        zero_padding=job.t5_padding == "zero",
        blank_zeros=job.blank_caption == "zeros",
        guidance=job.guidance_embedding,
        base_precision=job.base_precision,
        encoder_precision=job.encoder_precision,
        merged=(place.root / job.merge_lora, job.merge_weight) if job.merge_lora else None,
    )


def _check_family(job: JobSpec, place: Place) -> None:
    """What the family cannot do with the job's options: sides that do not fit are refused, options without a meaning are said."""
    family = plugin(job.family)
    if job.bucket_step % family.multiple:
        message = f"bucket_step {job.bucket_step} does not fit {job.family}, whose pictures have sides in multiples of {family.multiple}."
        raise SpecError("LRY-JOB-SPEC", message, "Set bucket_step to 64.")
    fields = type(job).model_fields
    if odd := [name for name in family.unused if getattr(job, name) != fields[name].default]:
        warn(job, place, f"{', '.join(odd)} {'means' if len(odd) == 1 else 'mean'} nothing for {job.family} and changes nothing.")


MOST_SAID = 20
"""Warnings about a dataset that are said in full; of the others the files are named."""


def _read_dataset(job: JobSpec, place: Place) -> dataset.Scan:
    masks = place.root / job.masks if job.masks else None
    regularisation = place.root / job.regularisation if job.regularisation else None
    found = dataset.scan(place.root / job.dataset, job, masks=masks, regularisation=regularisation)
    warnings = [problem for problem in found.problems if problem.severity == "warning"]
    for problem in warnings[:MOST_SAID]:
        warn(job, place, f"{problem.path}: {problem.message} {problem.hint}")
    if more := warnings[MOST_SAID:]:
        warn(job, place, f"{len(more)} more such remarks, about {', '.join(dict.fromkeys(problem.path for problem in more))}.")
    if found.errors:
        first, *rest = found.errors
        others = f" Also to put right: {', '.join(f'{p.path} ({p.code})' for p in rest[:MOST_SAID])}" if rest else ""
        others += f" and {len(rest) - MOST_SAID} more." if len(rest) > MOST_SAID else "." if rest else ""
        raise DatasetError(first.code, f"{first.path}: {first.message}", f"{first.hint}{others}")
    return found


def precision(job: JobSpec, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and a warning where it is not the one asked for."""
    if device.type == "cpu" and job.mixed_precision != "no":
        return torch.float32, f"mixed_precision {job.mixed_precision} is for GPUs; on this CPU fp32 is used, which is exact."
    if job.mixed_precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16, "this card has no bf16; fp16 with a loss scale is used."
    return DTYPES[job.mixed_precision], ""


def _digest(job: JobSpec, place: Place, model: Any, found: dataset.Scan, hashes: Mapping[Path, str]) -> str:
    begun = file_hash(place.root / job.start_from) if job.start_from else None
    spec = job.model_dump(mode="json", exclude=NOT_IN_DIGEST)
    data, priors = (
        [[hashes[s.image], s.captions, s.repeats, hashes[s.mask] if s.mask else None] for s in samples]
        for samples in (found.samples, found.priors)
    )
    return checkpoint.digest_of({"spec": spec, "data": data, "priors": priors, "base": model.fingerprint(), "start": begun, "trainer": 2})


def saved(run: Run) -> list[checkpoint.Checkpoint]:
    """The whole checkpoints of this job, newest first."""
    return list(checkpoint.whole(run.out / "checkpoints", run.digest, lambda message: warn(run.job, run.place, message)))


def resume(run: Run, found: checkpoint.Checkpoint) -> None:
    """Go on from a checkpoint."""
    run.lane.course = deepcopy(found.course)
    found.apply(run.lane.adapter, run.lane.optimizer, run.lane.scaler)
    run.lane.step = run.last_good = found.step
    run.best = found.best
    data = found.path.read_bytes()  # said again: the last life may have ended before it could
    say_committed(run, Written(found.path, len(data), hashlib.sha256(data).hexdigest()), "checkpoint", found.step)
