"""One job's way from its spec to its files: read data, load the base, cache, save, draw, say so.

What happens between the steps; `together` takes the steps, for one job or several. Knows no family by name
and no process: the model comes from a plug-in, events go to a function, and whether to stop is asked of a
function.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError
from torch import Tensor

from . import (
    captions,
    checkpoint,
    dataset,
    export,
    families,
    items,
    loop,
    objective,
    optimizers,
    pictures,
    prompts,
    selection,
    start,
    streams,
)
from .adapters import Adapter
from .base import expect_family, inspect_base
from .cache import Cache, address, file_hash
from .contract import IDS, Condition, Drawing, Foundation, View
from .convert import loads_in
from .course import ruined
from .errors import DatasetError, SpecError, StopRequested, TrainerError, TrainingError
from .events import Emit
from .families import plugin
from .files import Written, write_atomically
from .protocol import Committed, Evaluated, JobSpec, Phase, Started, Step, Warned

VERSION = "0.1.0"
STEP_EVENT_EVERY_S = 0.2

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
    "sample_every_steps",
    "sample_prompts",
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
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
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
    def cache(self) -> Cache:
        return Cache(self.root / "cache")

    def model(self, foundation: Foundation) -> Any:
        """The loaded base; jobs on the same foundation get the same."""
        if foundation != self._foundation:
            self._model, self._foundation = None, None  # the old one goes before the new one comes
            self._model = families.load(foundation, self.device)
            self._foundation = foundation
        return self._model

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

    def __post_init__(self) -> None:
        self.said = Losses(self)

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
    embedding = _prompt_embeddings(job, place, model, wanted)
    model.release_encoders(keep=_needed_encoders(job, model))
    adapter = Adapter.of(slots, job.seed, place.device, up_rate=job.lora_plus_ratio)
    if job.start_from:
        warn(job, place, start.fill(adapter, place.root / job.start_from, job.family))
    optimizer, warning = optimizers.create(job, adapter)
    if warning:
        warn(job, place, warning)
    lane = loop.Lane(job, lessons.plan, data, adapter, optimizer, rates, optimizers.LossScale(enabled=dtype == torch.float16))
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
        merged=(place.root / job.merge_lora, job.merge_weight) if job.merge_lora else None,
    )


def rates_of(job: JobSpec) -> dict[str, float]:
    """The parts that are trained, with their learning rates."""
    denoiser, *encoders = plugin(job.family).parts
    second = job.text_encoder_lr if job.text_encoder_2_lr is None else job.text_encoder_2_lr
    rates = {denoiser: job.learning_rate if job.unet_lr is None else job.unet_lr}
    rates |= dict(zip(encoders, (job.text_encoder_lr or 0.0, second or 0.0), strict=False))
    trained = {part: rate for part, rate in rates.items() if rate > 0}
    if not trained:
        raise SpecError(
            "LRY-JOB-NOTHING", "every learning rate is 0: nothing would be trained.", "Set learning_rate, unet_lr or text_encoder_lr."
        )
    return trained


def _check_family(job: JobSpec, place: Place) -> None:
    """What the family cannot do with the job's options: sides that do not fit are refused, options without a meaning are said."""
    family = plugin(job.family)
    if job.bucket_step % family.multiple:
        message = f"bucket_step {job.bucket_step} does not fit {job.family}, whose pictures have sides in multiples of {family.multiple}."
        raise SpecError("LRY-JOB-SPEC", message, "Set bucket_step to 64.")
    fields = type(job).model_fields
    if odd := [name for name in family.unused if getattr(job, name) != fields[name].default]:
        warn(job, place, f"{', '.join(odd)} {'means' if len(odd) == 1 else 'mean'} nothing for {job.family} and changes nothing.")


def trains_text(rates: Mapping[str, float], job: JobSpec) -> bool:
    """Whether a text encoder is among the parts that are trained."""
    return any(part in plugin(job.family).encoders for part in rates)


def _needed_encoders(job: JobSpec, model: Any) -> list[str]:
    """Text encoders that stay on the device: those that train; all of them, where captions change all the time."""
    rates = rates_of(job)
    return [part for part in model.family.encoders if part in rates or captions.vary(job)]


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


def hashes_of(samples: Sequence[dataset.Sample]) -> dict[Path, str]:
    """What is in each file that is trained on."""
    return {path: file_hash(path) for sample in samples for path in (sample.image, sample.mask) if path is not None}


def cached(job: JobSpec, place: Place, model: Any, shown: Sequence[items.Item], hashes: Mapping[Path, str]) -> loop.Data:
    """These items as the model will see them: everything that no step changes is made once, and found again by what it was made from."""
    latents: dict[tuple[int, loop.Way], Tensor] = {}
    masks: dict[tuple[int, loop.Way], Tensor] = {}
    masked = job.alpha_mask or any(item.sample.mask for item in shown)
    for index, item in enumerate(shown):
        for way in (loop.Way(mirrored, cut) for cut in range(len(item.fits)) for mirrored in ((False, True) if job.flip else (False,))):
            place.pause(job)
            latents[index, way] = _latent(job, place.cache, model, item, way, hashes)
            if masked:
                masks[index, way] = _mask(job, place.cache, item, way, hashes, latents[index, way])
    told = [[captions.plain(job, text) for text in item.sample.captions] for item in shown]
    return loop.Data(
        shapes=[item.shape for item in shown],
        repeats=[item.sample.repeats for item in shown],
        latents=lambda index, way: latents[index, way],
        condition=_conditions(job, place, model, [text for texts in told for text in texts]),
        captions=[item.sample.captions if captions.vary(job) else texts for item, texts in zip(shown, told, strict=True)],
        describe=lambda index, way: model.family.describe(View(shown[index].sample.size, shown[index].fits[way.cut], way.mirrored)),
        mask=(lambda index, way: masks[index, way]) if masked else None,
    )


def _latent(job: JobSpec, cache: Cache, model: Any, item: items.Item, way: loop.Way, hashes: Mapping[Path, str]) -> Tensor:
    fit, image = item.fits[way.cut], item.sample.image

    def make() -> Tensor:
        pixels = torch.from_numpy(pictures.fitted(pictures.read_rgb(image, job.background), fit)).permute(2, 0, 1)  # [3, h, w]
        latent: Tensor = model.encode_pixels(pixels.flip(2) if way.mirrored else pixels)  # [c, h/8, w/8]
        return latent

    cut = fit.bucket, fit.resized, fit.crop, way.mirrored
    return cache.get("latents", address("latent", pictures.VERSION, hashes[image], *cut, job.background, model.latent_address()), make)


def _mask(job: JobSpec, cache: Cache, item: items.Item, way: loop.Way, hashes: Mapping[Path, str], latent: Tensor) -> Tensor:
    """What each place of a latent counts [1, h, w]: by its picture's mask, else by its transparency, else all the same."""
    fit, sample, size = item.fits[way.cut], item.sample, (latent.shape[-2], latent.shape[-1])
    if sample.mask is None and not job.alpha_mask:
        return torch.ones(1, *size)

    def make() -> Tensor:
        whole = pictures.read_mask(sample.mask) if sample.mask else pictures.read_alpha(sample.image)
        pixels = torch.from_numpy(pictures.fitted_mask(whole, fit))  # [1, H, W]
        return objective.mask_at(pixels.flip(2) if way.mirrored else pixels, size, 0.0)

    facts = sample.mask is None, hashes[sample.mask or sample.image], fit.bucket, fit.resized, fit.crop, way.mirrored, size
    return cache.get("masks", address("mask", pictures.VERSION, *facts), make).clamp(min=job.mask_min_weight)


def _conditions(job: JobSpec, place: Place, model: Any, texts: Sequence[str]) -> Callable[[str], Condition]:
    """Captions -> what the model is told: embeddings made once; token ids for the text encoders that are trained."""
    counts = {text: model.token_count(text) for text in set(texts)}
    room = model.family.capacity(job)
    if long := {c: n for c, n in counts.items() if n > room}:
        worst = max(long, key=lambda c: long[c])
        cut = f"{len(long)} captions are longer than {room} tokens and are cut"
        warn(job, place, f"{cut}; the longest has {long[worst]}: {worst[:80]!r}...")
    known: dict[str, Condition] = {}
    trained = [part for part in rates_of(job) if part in model.family.encoders]
    fixed = [part for part in model.family.encoders if part not in trained]

    def condition(caption: str) -> Condition:
        if caption not in known:
            ids = model.tokens(caption, job) if trained else {}
            known[caption] = {IDS + part: ids[part] for part in trained} | _embedded(job, place, model, caption, fixed)
        return known[caption]

    if not captions.vary(job):  # else they are too many to make ahead
        dropped = bool(job.caption_dropout or job.caption_dropout_every_epochs)
        for text in [*texts, *([""] if dropped else [])]:
            place.pause(job)
            condition(text)
    return condition


def _embedded(job: JobSpec, place: Place, model: Any, text: str, encoders: Sequence[str]) -> Condition:
    if not encoders:
        return {}
    ids = {part: read.tolist() for part, read in model.tokens(text, job).items() if part in encoders}
    where = address("text", sorted(ids.items()), model.text_address(encoders))
    return place.cache.get_named("text", where, lambda: model.encode_text(text, job, encoders))


def _prompt_embeddings(job: JobSpec, place: Place, model: Any, wanted: Sequence[prompts.Prompt]) -> Callable[[str], Condition]:
    """Prompts are embedded before the text encoders leave; with those that are trained, at the time of drawing."""
    trained = [part for part in rates_of(job) if part in model.family.encoders]
    fixed = [part for part in model.family.encoders if part not in trained]
    made = {text: _embedded(job, place, model, text, fixed) for prompt in wanted for text in (prompt.text, prompt.negative)}
    return lambda text: {**made[text], **(model.encode_text(text, job, trained) if trained else {})}


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
    _say_committed(run, Written(found.path, len(data), hashlib.sha256(data).hexdigest()), "checkpoint", found.step)


# --- while training --------------------------------------------------------------------------------


class Losses:
    """Collects steps into events: at most five a second, but always the first and the last."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.last: float | None = None
        self._pending: list[loop.Stepped] = []
        self._said_at = -math.inf
        self._since = time.monotonic()

    def begin(self) -> None:
        """Steps begin now: what came before is no part of their speed."""
        self._since = time.monotonic()

    def add(self, stepped: loop.Stepped) -> None:
        self._pending.append(stepped)
        self.last = stepped.loss
        for message in self.run.lane.warnings:
            warn(self.run.job, self.run.place, message)
        self.run.lane.warnings.clear()
        if time.monotonic() - self._said_at >= STEP_EVENT_EVERY_S or self.run.lane.done:
            self.flush()

    def flush(self) -> None:
        if not self._pending:
            return
        now, lane, many = time.monotonic(), self.run.lane, self._pending
        norms = [s.grad_norm for s in many if math.isfinite(s.grad_norm)]
        self.run.place.emit(
            Step(
                at_s=self.run.place.clock(),
                job=self.run.job.name,
                step=lane.step,
                steps=lane.plan.steps,
                epoch=lane.epoch,
                loss=sum(s.loss for s in many) / len(many),
                lr=lane.lr,
                samples_per_s=sum(s.samples for s in many) / max(now - self._since, 1e-9),
                grad_norm=sum(norms) / len(norms) if norms else None,
            )
        )
        self._pending, self._said_at, self._since = [], now, now


def measure(run: Run) -> None:
    """Held-out loss, once a step."""
    if not run.held.captions or (run.measured is not None and run.measured[0] == run.lane.step):
        return
    bands = loop.evaluate(run.model, run.lane.adapter, run.held)
    loss = sum(bands) / len(bands)
    if not math.isfinite(loss):
        raise TrainingError("LRY-TRAIN-NAN", f"the held-out loss is not finite after step {run.lane.step}.", "Lower the learning rate.")
    if run.best is not None and ruined(loss, run.best[1]):
        message = f"the held-out loss is {loss:.4g} after step {run.lane.step}; the best was {run.best[1]:.4g} at step {run.best[0]}."
        raise TrainingError("LRY-TRAIN-HELDOUT", message, "Lower the learning rate; what was saved before is good.")
    run.measured = run.lane.step, loss
    best = run.best is None or loss < run.best[1]
    run.best = run.measured if best else run.best
    run.lane.course.worse = 0 if best else run.lane.course.worse + 1
    run.place.emit(Evaluated(at_s=run.place.clock(), job=run.job.name, step=run.lane.step, loss=loss, bands=tuple(bands), best=best))


def verdict(run: Run) -> str:
    """What the held-out pictures say of the whole run, and who can load its file."""
    told = []
    if run.best is not None and run.measured is not None:
        told.append(f"held-out loss {run.measured[1]:.4f}")
        told += [] if run.best == run.measured else [f"the best was {run.best[1]:.4f} at step {run.best[0]}"]
    form = next(iter(run.model.family.formats))
    return "; ".join([*told, *loads_in(form, run.job.family)])


def due(run: Run) -> bool:
    """Whether a checkpoint is to be saved at this step."""
    return run.lane.step > 0 and (due_adapter(run) or _due_checkpoint(run))


def keep_up(run: Run, *, again: bool = False) -> None:
    """Draw what is due at this step. `again`: only what the last life did not get to."""
    job = run.job
    if run.prompts and job.sample_every_steps and (run.lane.step % job.sample_every_steps == 0 or run.lane.done):
        _draw(run, again=again)


def due_adapter(run: Run) -> bool:
    """Whether the user wants the adapter of this step."""
    job, step, per_epoch = run.job, run.lane.step, run.lane.plan.steps_per_epoch
    if run.lane.done:
        return False  # the finished adapter is coming
    by_steps = job.save_every_steps is not None and step % job.save_every_steps == 0
    return by_steps or (job.save_every_epochs is not None and step % (job.save_every_epochs * per_epoch) == 0)


def _due_checkpoint(run: Run) -> bool:
    """Without a wish of the user's, ten checkpoints a run, so that a lost machine costs a tenth at most."""
    if run.job.save_every_steps or run.job.save_every_epochs or run.lane.done:
        return False
    return run.lane.step % max(run.lane.plan.steps // 10, 25) == 0


def save(run: Run, company: Mapping[str, int], cut: int) -> None:
    """Write a checkpoint. `company`: the steps at which jobs that train together are saved in this moment, their `cut`-th."""
    lane = run.lane
    if lane.step == 0:
        return
    say_phase(run, "saving", f"step {lane.step}")
    state = checkpoint.State(lane.step, run.digest, lane.adapter, lane.optimizer, lane.scaler, company, cut, run.best, lane.course)
    _say_committed(run, checkpoint.save(run.out / "checkpoints", state), "checkpoint", lane.step)
    run.last_good = lane.step


def commit_adapter(run: Run, *, final: bool) -> Written:
    """Write the adapter of this step."""
    step = run.lane.step
    name = run.job.name if final else f"{run.job.name}-step{step:06d}"
    with run.lane.adapter.averaged():
        write = next(iter(run.model.family.formats.values()))
        tensors = write(run.lane.adapter, export.DTYPES[run.job.save_precision])
    facts = export.metadata(run.job, run.facts, run.model.origin(), step=step, final_name=name)
    if run.measured is not None and run.best is not None and run.measured[0] == step:
        facts |= {"lorry_heldout_loss": f"{run.measured[1]:.6f}", "lorry_heldout_best_step": str(run.best[0])}
    written = export.save_adapter(run.out / f"{name}.safetensors", tensors, facts)
    _say_committed(run, written, "adapter", step, final=final)
    return written


def _draw(run: Run, *, again: bool) -> None:
    say_phase(run, "sampling", f"step {run.lane.step}")
    for number, prompt in enumerate(run.prompts):
        if run.place.stopping() or run.place.leaving(run.job.name):
            return
        path = run.out / "samples" / f"step{run.lane.step:06d}-{number}.png"
        if again and path.is_file():
            data = path.read_bytes()
            _say_committed(run, Written(path, len(data), hashlib.sha256(data).hexdigest()), "sample", run.lane.step)
            continue
        with run.lane.adapter.averaged():
            written = write_atomically(path, _drawn(run, prompt, number))
        _say_committed(run, written, "sample", run.lane.step)
    run.model.release_encoders(keep=_needed_encoders(run.job, run.model))
    say_phase(run, "training")


def _drawn(run: Run, prompt: prompts.Prompt, number: int) -> bytes:
    """One sample as a PNG that says how it was made."""
    job, model = run.job, run.model
    multiple, guidance = model.family.multiple, model.family.guidance if prompt.guidance is None else prompt.guidance
    width, height = (side // multiple * multiple for side in (prompt.width or job.resolution, prompt.height or job.resolution))
    size = (width, height)
    seed = streams.key(job.seed, "sample", number) % 2**32 if prompt.seed is None else prompt.seed
    with model.bank.use([run.lane.adapter], model.dtype):
        embedding, negative = run.embedding(prompt.text), run.embedding(prompt.negative)
    drawing = Drawing(size=size, seed=seed, guidance=guidance, steps=prompt.steps)
    picture = model.draw(embedding, negative, drawing, run.lane.adapter)
    about = PngInfo()
    drawn_by = f"Sampler: {model.family.sampler}, CFG scale: {guidance:g}"
    settings = f"Steps: {prompt.steps}, {drawn_by}, Seed: {seed}, Size: {width}x{height}"
    negative_line = f"\nNegative prompt: {prompt.negative}" if prompt.negative else ""
    about.add_itxt("parameters", f"{prompt.text}{negative_line}\n{settings}")  # as A1111 writes and others read it
    about.add_itxt("lorry", json.dumps({"job": job.name, "step": run.lane.step, "prompt": prompt.text, "seed": seed}))
    out = io.BytesIO()
    picture.save(out, format="PNG", pnginfo=about)
    return out.getvalue()


# --- what is said ----------------------------------------------------------------------------------


def warn(job: JobSpec, place: Place, message: str) -> None:
    """Something a person should know."""
    place.emit(Warned(at_s=place.clock(), job=job.name, message=message[:2000]))


def say_phase(run: Run, phase: Literal["training", "sampling", "saving"], detail: str = "") -> None:
    """What the job does now."""
    run.place.emit(Phase(at_s=run.place.clock(), job=run.job.name, phase=phase, detail=detail))


def say_started(run: Run) -> None:
    """What will be trained, and from which step."""
    lane, device = run.lane, run.place.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    plan = lane.plan
    run.place.emit(
        Started(
            at_s=run.place.clock(),
            job=run.job.name,
            steps=plan.steps,
            images=plan.images,
            epochs=plan.epochs,
            step=lane.step,
            device=name,
            trainable=lane.adapter.count(),
        )
    )


def _say_committed(run: Run, written: Written, role: Literal["adapter", "checkpoint", "sample"], step: int, *, final: bool = False) -> None:
    """In the session's names, also where a bare job writes elsewhere."""
    path = f"jobs/{run.job.name}/out/{written.path.relative_to(run.out).as_posix()}"
    run.place.emit(
        Committed(
            at_s=run.place.clock(), job=run.job.name, path=path, role=role, step=step, size=written.size, sha256=written.sha256, final=final
        )
    )
