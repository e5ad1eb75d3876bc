"""What happens before a cent can be spent: the file is read, everything it names is looked at, the market is asked."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

from providers.base import Offer

from . import console
from .config import PROVIDERS, RunConfig, find, load
from .errors import UsageError
from .file.check import both, check, refusal
from .file.joining import joined
from .hub import Hub, HubBase, HubSilent
from .market import offers
from .order import CheckedJob, checked_jobs, load_of, queued, requirements, saving_often, settled
from .plan import RANKS, Load, Plan, disk_gib, make_plan
from .pricing.estimate import Taught
from .pricing.worst import guardable
from .report.tracking import expect_installed
from .trip import Tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A config that passed every check, and what the market says to it."""

    config: RunConfig
    jobs: list[CheckedJob]
    load: Load
    plan: Plan
    cap_usd: Decimal
    hub: tuple[HubBase, ...] = ()
    """Bases that the machine will fetch, at the commits of now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A config that passed every check, and the offers of now: any load can be planned on them."""

    config: RunConfig
    jobs: list[CheckedJob]
    load: Load
    cap_usd: Decimal
    hub: tuple[HubBase, ...]
    offers: tuple[Offer, ...]
    avoid: frozenset[tuple[str, str]]
    taught: Taught

    def planned(self, load: Load) -> Plan:
        """The plan of a load; each card with the settings that suit it. Raises `NoOffer` and `OverBudget`."""
        wanted = requirements(self.config, disk_gib(load, self.config.machine.disk_gib))
        prefer = self.config.machine.prefer
        return make_plan(load, self.offers, wanted, cap_usd=self.cap_usd, avoid=self.avoid, prefer=prefer, taught=self.taught)


def configs_of(files: Sequence[Path] | None) -> list[RunConfig]:
    """The files that are named, read; without any the one of this folder. Raises `ConfigError`."""
    return [load(find(file)) for file in files] if files else [load(find(None))]


def checked_config(files: Sequence[Path] | None, *, given: Collection[str] = ()) -> tuple[RunConfig, list[CheckedJob]]:
    """Read and check, several files as one; warnings are said. Raises `ConfigError` or `DatasetError` with everything that is wrong."""
    configs = configs_of(files)
    config = joined(configs, given=given)
    looked = both([check(one) for one in configs])
    if wrong := refusal(looked):
        raise wrong
    expect_installed(config.log_to)
    console.findings(looked.findings)
    return config, checked_jobs(config, looked)


def asked(
    files: Sequence[Path] | None,
    tools: Tools,
    *,
    providers: Sequence[str] | None,
    budget: str | None,
    unguarded: bool = False,
    prefer: str | None = None,
) -> Asked:
    """Read, check, and ask the market. `unguarded`: machines that cannot end themselves are welcome too."""
    given = [*(["providers"] if providers else []), *(["max_usd"] if budget else [])]
    config, jobs = checked_config(files, given=given)
    jobs = _in_order(jobs, tools)
    if providers:
        config = with_providers(config, providers)
    if prefer:
        config = preferring(config, prefer)
    cap = cap_of(budget) if budget else config.budget.max_usd
    tools.view.say(to_be_sent(jobs))
    hub, jobs = looked_up(jobs, Hub.from_environment(os.environ), tools)
    work = load_of(jobs)
    if hub:
        work = replace(work, hub_bytes=float(sum(base.size for base in hub)))
    wanted = requirements(config, disk_gib(work, config.machine.disk_gib))
    found = offers(config.machine.providers, wanted, tools)
    ready = Asked(
        config=config,
        jobs=jobs,
        load=work,
        cap_usd=cap,
        hub=hub,
        offers=tuple(found if unguarded else guardable(found, tools)),
        avoid=frozenset(tools.memory.bad(tools.clock.now())),
        taught=tools.measured.lessons().about(config.machine.image),
    )
    return _saving_often(ready, tools) if wanted.interruptible and not all(job.saves for job in jobs) else ready


def prepare(ready: Asked, tools: Tools) -> Ready:
    """Up to the question whether to rent; what the plan sets for the card of the first offer is written into the jobs."""
    jobs, work, plan = ready.jobs, ready.load, ready.planned(ready.load)
    if any(one.may for one in work.jobs):
        jobs = settled(jobs, plan.best.estimate.shapes)
        _say_settings(plan, tools)
        work = replace(load_of(jobs), hub_bytes=work.hub_bytes)
        plan = ready.planned(work)
    return Ready(config=ready.config, jobs=jobs, load=work, plan=plan, cap_usd=ready.cap_usd, hub=ready.hub)


def _in_order(jobs: Sequence[CheckedJob], tools: Tools) -> list[CheckedJob]:
    """The queue; said where it is another than the file's."""
    ordered = queued(jobs)
    if [job.name for job in ordered] != [job.name for job in jobs]:
        names = ", ".join(job.name for job in ordered)
        tools.view.say(f"in this order, by base and the shortest first, so that the cap loses least should it bite: {names}")
    return ordered


def to_be_sent(jobs: Sequence[CheckedJob]) -> str:
    """What of the user's own would go to a stranger's machine, by count and size."""
    files = {file for job in jobs for file in job.files}
    bases = {job.local_base.name for job in jobs if job.local_base is not None}
    told = [job.name for job in jobs if job.config.keep_metadata]
    rest = f", and {', '.join(sorted(bases))}" if bases else ""
    size = sum(file.stat().st_size for file in files) / 1e6
    left_out = f"with place, time and camera for {', '.join(told)}" if told else "pictures without place, time and camera"
    return f"what is sent of yours: {len(files)} files, {size:.1f} MB{rest}; {left_out}"


def looked_up(jobs: Sequence[CheckedJob], hub: Hub, tools: Tools) -> tuple[tuple[HubBase, ...], list[CheckedJob]]:
    """The hub's bases as it has them now, and the jobs held to these commits. Raises what keeps a machine from having one of them."""
    wanted = dict.fromkeys((job.base.location, job.config.base_revision) for job in jobs if job.local_base is None)
    try:
        found = {(repo, revision): hub.look(repo, revision) for repo, revision in wanted}
    except HubSilent as err:
        tools.view.say(f"{err}; the machine fetches the base by itself, as the hub has it then, and without a token")
        return (), list(jobs)
    for base in found.values():
        with_token = "; its licence wants your token, which the machine gets for the download alone" if base.needs_token else ""
        tools.view.say(f"{base.repo} at {base.revision[:12]}: {len(base.files)} files, {base.size / 1e9:.2f} GB{with_token}")
    return tuple(found.values()), [_held_to(job, found) for job in jobs]


def _held_to(job: CheckedJob, found: Mapping[tuple[str, str | None], HubBase]) -> CheckedJob:
    base = found.get((job.base.location, job.config.base_revision)) if job.local_base is None else None
    return job if base is None else replace(job, config=job.config.model_copy(update={"base_revision": base.revision}))


def _say_settings(plan: Plan, tools: Tools) -> None:
    """What was set is what is trained, so it is said."""
    best = plan.best
    if best.estimate.settings:
        chosen = ", ".join(best.estimate.settings)
        tools.view.say(f'for {best.offer.gpu_name} the plan sets: {chosen}; the keys of your file, or memory = "written", say otherwise')


def _saving_often(ready: Asked, tools: Tools) -> Asked:
    """The same with checkpoints as often as wastes least on the first offer, where the file does not say how often."""
    often = saving_often(ready.jobs, ready.load, ready.planned(ready.load).best.offer)
    every = ", ".join(
        f"{now.name} every {now.config.save_every_steps} steps" for now, before in zip(often, ready.jobs, strict=True) if not before.saves
    )
    tools.view.say(f"machines may be taken away, so checkpoints are made unasked: {every}; save_every_steps says otherwise")
    return replace(ready, jobs=often, load=replace(load_of(often), hub_bytes=ready.load.hub_bytes))


def with_providers(config: RunConfig, names: Sequence[str]) -> RunConfig:
    """The config with other providers than the file's."""
    unknown = [name for name in names if name not in PROVIDERS]
    if unknown:
        raise UsageError(f"there is no provider {unknown[0]!r}", hint=f"there are: {', '.join(PROVIDERS)}")
    machine = config.machine.model_copy(update={"providers": tuple(names)})
    return config.model_copy(update={"machine": machine})


def preferring(config: RunConfig, word: str) -> RunConfig:
    """The config with another preference than the file's."""
    if word not in RANKS:
        raise UsageError(f"there is no preference {word!r}", hint=f"there are: {', '.join(RANKS)}")
    return config.model_copy(update={"machine": config.machine.model_copy(update={"prefer": word})})


def cap_of(text: str) -> Decimal:
    """A cap as written on the command line: dollars, above 0."""
    try:
        cap = Decimal(text.removeprefix("$"))
    except InvalidOperation:
        cap = Decimal("NaN")
    if not cap.is_finite() or not 0 < cap <= 100_000:
        raise UsageError(f"{text!r} is no budget", hint="write dollars, as in --budget 5 or --budget 2.50")
    return cap
