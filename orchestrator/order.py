"""What was ordered: everything that a run needs to be done, by this process or by one that takes it up later.

Made once from a checked config and written into the run's folder. The user's file may be edited or moved afterwards: the order
stands. Only `lorry add` makes it longer: see `adding.py`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from math import ceil
from pathlib import Path

from pydantic import BaseModel, ConfigDict

import templates
import trainer
from providers.base import Offer, Requirements
from trainer.base import Base
from trainer.protocol import JobSpec, TrainingOptions

from . import commands, plan, provenance
from .budget import traffic_usd
from .cleaning import cleaned
from .config import LoraConfig, RunConfig
from .file.check import Checked, JobCheck
from .home import RunFolder
from .hub import HubBase
from .machines.recovery import SAVE_PAUSE_S, checkpoint_every_s
from .plan import Load, Prefer, Work
from .pricing.families import cost_of
from .pricing.needs import Bucket, Freedom, JobShape
from .pricing.queue import Entry, queue
from .pricing.settings import freedoms, keys_of
from .ship import Item, Shipment, base_items, item, items_below

TRAINER_BYTES = 500_000
"""The trainer and what sets the machine up."""
USUAL_CARD = "RTX 4090"
"""On which jobs are compared before any card is chosen."""
READ = (".json", ".txt", ".safetensors")
"""What is read of a folder that holds a model for looking at samples."""
CHECKPOINTS_KEPT = 2
"""Of each job, by the trainer; as many are sent to the next machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedJob:
    """One job of the file with what its check found. Only jobs without errors become one."""

    config: LoraConfig
    check: JobCheck
    written: frozenset[str] = frozenset()
    """Keys that the file itself says, not a recipe or a default: a plan leaves them alone."""

    @property
    def name(self) -> str:
        """The job's name."""
        return self.config.name

    @property
    def base(self) -> Base:
        """The base that was looked at."""
        assert self.check.base is not None, "a job without a base does not pass the check"
        return self.check.base

    @property
    def local_base(self) -> Path | None:
        """The base's path on this computer; None for a hub id."""
        return None if self.base.kind == "hub" else Path(self.base.location)

    @property
    def saves(self) -> bool:
        """Whether the file says how often to save."""
        return bool(self.config.save_every_steps or self.config.save_every_epochs)

    @property
    def folders(self) -> dict[str, tuple[Path, tuple[Path, ...]]]:
        """Key of the job -> the folder or file that it names, and what of it is sent: what will be read, and nothing else."""
        loras = {"start_from": self.config.start_from, "merge_lora": self.config.merge_lora}
        lookers = {"preview_decoder": self.config.preview_decoder, "clip_score": self.config.clip_score}
        models = {key: Path(where) for key, where in lookers.items() if where and Path(where).is_dir()}
        named = {
            **{key: (file, (file,)) for key, file in loras.items() if file},
            **{key: (model, tuple(file for file in sorted(model.rglob("*")) if file.suffix in READ)) for key, model in models.items()},
            "dataset": (self.config.dataset, self.check.files),
            "masks": (self.config.masks, self.check.masks),
            "regularisation": (self.config.regularisation, self.check.prior_files),
        }
        return {key: (folder, tuple(dict.fromkeys(files))) for key, (folder, files) in named.items() if folder and files}

    @property
    def files(self) -> list[Path]:
        """All that is sent for this job, but its base."""
        return [file for _, files in self.folders.values() for file in files]


def checked_jobs(config: RunConfig, checked: Checked) -> list[CheckedJob]:
    """The jobs of a config that passed its check."""
    return [
        CheckedJob(config=job, check=look, written=_written(config.sources.get(job.name, {})))
        for job, look in zip(config.jobs, checked.jobs, strict=True)
    ]


def _written(sources: Mapping[str, str]) -> frozenset[str]:
    return frozenset(key for key, said_by in sources.items() if not said_by.startswith("recipe"))


class Order(BaseModel):
    """One run, complete. Carries no secret."""

    model_config = ConfigDict(frozen=True)

    run: str
    providers: tuple[str, ...]
    requirements: Requirements
    cap_usd: Decimal
    max_hours: float | None
    image: str
    boot_timeout_s: float
    log_to: tuple[str, ...] = ()
    """Trackers that are kept up at home."""
    start_two: bool = False
    """Whether to start two machines at a time and keep the one that is ready first."""
    prefer: Prefer = "cheap"
    """What machines are chosen by, the first as well as one that takes up what another lost."""
    unguarded: bool = False
    """Whether to train also where the machine's own guard does not prove itself."""
    jobs: tuple[JobSpec, ...]
    items: tuple[Item, ...]
    load: Load
    hub: tuple[HubBase, ...] = ()
    """Bases that the machine fetches by itself, to the byte."""

    @property
    def is_offline(self) -> bool:
        """Whether the trainer must not ask the hub, which would tell it nothing without a token; nor need it, once these are there."""
        gated = any(base.needs_token for base in self.hub)
        return gated and all((job.base, job.base_revision) in {(one.repo, one.revision) for one in self.hub} for job in self.jobs)

    @property
    def shipment(self) -> Shipment:
        """What is sent."""
        return Shipment(items=self.items)

    @property
    def root(self) -> str:
        """The session's folder on the machine."""
        return commands.root(self.run)

    @property
    def job_names(self) -> list[str]:
        """In the order of the queue."""
        return [job.name for job in self.jobs]


def load_of(jobs: Sequence[CheckedJob]) -> Load:
    """The queue as the estimate sees it; looks at file sizes only."""
    local = {job.local_base for job in jobs if job.local_base is not None}
    hub = {job.base.location: cost_of(family_of(job)).hub_bytes for job in jobs if job.local_base is None}
    works = tuple(_work(job) for job in jobs)
    sizes = [_unet_bytes(job.local_base) / cost_of(family_of(job)).denoiser_bytes for job in jobs if job.local_base is not None]
    scale = 1.0 if hub else min(1.0, max(sizes))
    return Load(
        jobs=works,
        upload_bytes=sum(map(_size, local)) + sum(work.dataset_bytes for work in works) + TRAINER_BYTES,
        hub_bytes=sum(hub.values()),
        base_scale=scale,
        download_bytes=sum(_download_bytes(work, scale) for work in works),
    )


def settled(jobs: Sequence[CheckedJob], shapes: Sequence[JobShape]) -> list[CheckedJob]:
    """The same jobs as a plan has set them for a card: from here on nothing more is set."""
    made = []
    for job, shape in zip(jobs, shapes, strict=True):
        keys = keys_of(shape, _may(job)) | {"memory": "written"}
        made.append(replace(job, config=job.config.model_copy(update=keys)))
    return made


def _may(job: CheckedJob) -> tuple[Freedom, ...]:
    return freedoms(job.config.memory, job.written, TrainingOptions.model_fields)


def queued(jobs: Sequence[CheckedJob]) -> list[CheckedJob]:
    """The jobs in the order in which they are trained: see `pricing/queue.py`."""
    works = {job.name: _work(job) for job in jobs}

    def entry(job: CheckedJob) -> Entry:
        work, config = works[job.name], job.config
        seconds = work.steps * plan.step_seconds(work, USUAL_CARD, 1.0)
        resident = (work.family, job.base.location, config.base_revision or "", config.mixed_precision)
        return Entry(name=job.name, resident=resident, seconds=seconds, size=(work.resolution, work.batch_size))

    by_name = {job.name: job for job in jobs}
    return [by_name[name] for name in queue([entry(job) for job in jobs])]


def rest_of(load: Load, home: Mapping[str, int], todo: Collection[str]) -> Load:
    """What is left of a queue: only the jobs `todo`, each from the step that is at `home`, whose checkpoints are sent again."""
    left: list[Work] = []
    sent = 0
    for work in (work for work in load.jobs if work.name in todo):
        share = Fraction(max(0, work.steps - home.get(work.name, 0)), work.steps)
        saves, samples = max(1, ceil(work.saves * share)), ceil(work.samples * share)
        left.append(replace(work, steps=int(work.steps * share), saves=saves, samples=samples))
        sent += CHECKPOINTS_KEPT * _checkpoint_bytes(work, load.base_scale) if work.name in home else 0
    spared = sum(work.dataset_bytes for work in load.jobs if work.name not in todo)
    return replace(
        load,
        jobs=tuple(left),
        upload_bytes=load.upload_bytes - spared + sent,
        download_bytes=sum(_download_bytes(work, load.base_scale) for work in left),
    )


def saving_often(jobs: Sequence[CheckedJob], load: Load, offer: Offer) -> list[CheckedJob]:
    """The same jobs for machines that may be taken away: those whose file names no interval save as often as wastes least on `offer`."""
    works = {work.name: work for work in load.jobs}
    return [job if job.saves else _saving_every(job, _steps_between_saves(works[job.name], load.base_scale, offer)) for job in jobs]


def _saving_every(job: CheckedJob, steps: int) -> CheckedJob:
    return replace(job, config=job.config.model_copy(update={"save_every_steps": steps}))


def _steps_between_saves(work: Work, scale: float, offer: Offer) -> int:
    """A save costs its pause and its way home, the latter counted as the time on the machine that the same money buys."""
    moved = int(_checkpoint_bytes(work, scale) * 8 / 7)  # with the adapter beside it
    usd_per_s = offer.prices.usd_per_hour(0) / 3600
    way_home_s = float(traffic_usd(offer.prices, 0, moved) / usd_per_s) if usd_per_s else 0.0
    every_s = checkpoint_every_s(SAVE_PAUSE_S + way_home_s)
    return max(1, round(every_s / plan.step_seconds(work, offer.gpu_name, scale)))


def make_order(
    config: RunConfig,
    jobs: Sequence[CheckedJob],
    load: Load,
    folder: RunFolder,
    *,
    cap_usd: Decimal,
    disk_gib: int,
    unguarded: bool = False,
    hub: Sequence[HubBase] = (),
) -> Order:
    """Write down what is to be done: hashes every file that will be sent, and lays the small ones into the run's folder."""
    ship = folder.path / "ship"
    _lay_out(ship)
    specs, items = written_down(jobs, ship, image=config.machine.image, hub=hub)
    items += items_below(ship, "")
    order = Order(
        run=folder.id,
        providers=config.machine.providers,
        requirements=requirements(config, disk_gib),
        cap_usd=cap_usd,
        start_two=config.machine.start_two,
        prefer=config.machine.prefer,
        unguarded=unguarded,
        max_hours=config.budget.max_hours,
        log_to=config.log_to,
        image=config.machine.image,
        boot_timeout_s=config.machine.boot_timeout_minutes * 60,
        jobs=tuple(specs),
        items=tuple(items),
        load=load,
        hub=tuple(hub),
    )
    write_order(folder, order)
    return order


def written_down(jobs: Sequence[CheckedJob], ship: Path, *, image: str, hub: Sequence[HubBase]) -> tuple[list[JobSpec], list[Item]]:
    """The trainer's view of these jobs, laid below `ship` too, and what is sent for them besides that."""
    made_with = provenance.environment(ship, image)
    known: dict[tuple[str, str | None], dict[str, str]] = {(base.repo, base.revision): provenance.of_hub(base) for base in hub}
    items: list[Item] = []
    specs: list[JobSpec] = []
    bases: dict[Path, str] = {}
    for job in jobs:
        local = job.local_base
        if local is not None and local not in bases:
            bases[local], files = base_items(local)
            known[bases[local], None] = provenance.of_folder(files)
            items += files
        base = job.base.location if local is None else bases[local]
        places = {}
        for key, (chosen, used) in job.folders.items():
            there = f"jobs/{job.name}/{'data' if key == 'dataset' else key}"
            found = [item(chosen.parent, file.relative_to(chosen.parent).as_posix(), there) for file in used]
            items += found if job.config.keep_metadata else cleaned(found, ship.with_name("clean"))
            places[key] = f"{there}/{chosen.name}"
        of_base = known.get((base, job.config.base_revision), {})
        specs.append(spec_of(job, base=base, **places).model_copy(update={"made_with": made_with | of_base}))
        target = ship / spec_file(job.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(specs[-1].model_dump_json(indent=1))
    return specs, items


def held_to(job: CheckedJob, hub: Sequence[HubBase]) -> CheckedJob:
    """The job with the commit of its base that the session has, where it asks for no other."""
    asked, wanted = (job.base.location if job.local_base is None else None), job.config.base_revision
    found = next((base for base in hub if base.repo == asked and wanted in (None, base.revision)), None)
    return job if found is None else replace(job, config=job.config.model_copy(update={"base_revision": found.revision}))


def spec_file(job: str) -> str:
    """Where a job's spec lies, below the session's folder and below what is shipped."""
    return f"jobs/{job}/job.json"


def write_order(folder: RunFolder, order: Order) -> None:
    """Keep the order in the run's folder."""
    folder.write("order.json", order.model_dump(mode="json"))


def read_order(folder: RunFolder) -> Order:
    """The order that stands in the run's folder."""
    return Order.model_validate(folder.read("order.json"))


def requirements(config: RunConfig, disk_gib: int) -> Requirements:
    """What the file asks of a machine, in the providers' words."""
    machine = config.machine
    return Requirements(
        disk_gib=disk_gib,
        min_vram_gib=machine.min_vram_gib or 0.0,
        gpus=frozenset(machine.gpus),
        max_usd_per_hour=machine.max_usd_per_hour,
        min_reliability=machine.min_reliability,
        regions=frozenset(machine.regions),
        interruptible=machine.interruptible,
        verified_only=machine.verified_only,
        secure_only=machine.secure_cloud_only,
    )


def spec_of(job: CheckedJob, *, base: str, **places: str) -> JobSpec:
    """The trainer's view of a job, with its paths as the training machine sees them: `places` are those of `CheckedJob.folders`."""
    told = {
        **job.config.training_options().model_dump(),
        "name": job.name,
        "family": family_of(job),
        "base": base,
        "base_revision": job.config.base_revision,
        "output": f"jobs/{job.name}/out",
        **places,
    }
    return JobSpec.model_validate(told)


def _lay_out(ship: Path) -> None:
    """The trainer of this very version, and what sets the machine up."""
    source = Path(trainer.__file__).parent
    skip = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    shutil.copytree(source, ship / "trainer", ignore=skip, dirs_exist_ok=True)
    setup = ship / "setup"
    setup.mkdir(parents=True, exist_ok=True)
    for remote in (commands.SETUP, commands.BOOTSTRAP, commands.REQUIREMENTS, commands.HUB):
        (ship / remote).write_bytes((Path(templates.__file__).parent / Path(remote).name).read_bytes())


def family_of(job: CheckedJob) -> str:
    """The family of a job that has been checked: one that cannot be told was refused there."""
    return str(job.check.family)


def _work(job: CheckedJob) -> Work:
    options, steps = job.config, job.check.steps
    steps_per_epoch = max(1, steps // max(1, job.check.epochs))
    every = options.save_every_steps or (options.save_every_epochs or 0) * steps_per_epoch
    drawn = options.sample_every_steps
    return Work(
        name=job.name,
        family=family_of(job),
        steps=steps,
        images=(job.check.pictures + job.check.priors) * (1 + len(options.more_resolutions)),
        batch_size=options.batch_size,
        gradient_accumulation=options.gradient_accumulation,
        resolution=max(options.resolution, *options.more_resolutions, 0),  # the largest: memory must do for it
        rank=options.rank,
        gradient_checkpointing=options.gradient_checkpointing,
        trains_text=bool(options.text_encoder_lr or options.text_encoder_2_lr),
        saves=1 + (steps // every if every else 0),
        samples=len(options.sample_prompts) * (1 + steps // drawn if drawn else 0),
        dataset_bytes=sum(file.stat().st_size for file in job.files),
        optimizer=options.optimizer,
        mixed_precision=options.mixed_precision,
        layers=options.layers,
        conv_rank=options.conv_rank,
        ema=options.ema_decay is not None,
        base_precision=options.base_precision,
        offload=options.offload,
        recorded=options.speed != "eager" and not (options.dropout or options.rank_dropout or options.module_dropout),
        buckets=tuple(Bucket(width=width, height=height, count=count) for (width, height), count in job.check.buckets.items()),
        may=_may(job),
    )


def _download_bytes(work: Work, scale: float) -> int:
    adapter = work.rank * cost_of(work.family).adapter_params_per_rank * scale * 2  # fp16
    return int(work.saves * (adapter + _checkpoint_bytes(work, scale)) + work.samples * 0.5 * plan.MIB)


def _checkpoint_bytes(work: Work, scale: float) -> int:
    return int(work.rank * cost_of(work.family).adapter_params_per_rank * scale * 12)  # fp32 weights and two states


def _size(path: Path) -> int:
    """Of a base; with a single file goes the folder that lies beside it."""
    beside = path.with_suffix(".config") if path.is_file() else path
    alone = path.stat().st_size if path.is_file() else 0
    return alone + sum(f.stat().st_size for f in beside.rglob("*") if f.is_file())


def _unet_bytes(base: Path) -> int:
    """Size of the UNet's or transformer's weights as if in fp16; a checkpoint holds encoders too, so its size is an upper bound."""
    if base.is_file():
        return base.stat().st_size
    files = [(f.name, f.stat().st_size) for part in ("unet", "transformer") for f in (base / part).glob("*.safetensors")]
    parts = sum(size for name, size in files if re.search(r"-\d+-of-\d+\.", name))
    return parts or max((size for _, size in files), default=0)
