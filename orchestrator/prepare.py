"""What happens before a cent can be spent: the file is read, everything it names is looked at, the market is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from . import console
from .config import PROVIDERS, RunConfig, find, load
from .errors import UsageError
from .file.check import check, refusal
from .market import offers
from .order import CheckedJob, checked_jobs, load_of, requirements, saving_often
from .plan import Load, Plan, disk_gib, make_plan
from .pricing.worst import guardable
from .trip import Tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A config that passed every check, and what the market says to it."""

    config: RunConfig
    jobs: list[CheckedJob]
    load: Load
    plan: Plan
    cap_usd: Decimal


def checked_config(file: Path | None) -> tuple[RunConfig, list[CheckedJob]]:
    """Read and check; warnings are said. Raises `ConfigError` or `DatasetError` with everything that is wrong."""
    config = load(find(file))
    looked = check(config)
    if wrong := refusal(looked):
        raise wrong
    console.findings(looked.findings)
    return config, checked_jobs(config, looked)


def prepare(file: Path | None, tools: Tools, *, providers: Sequence[str] | None, budget: str | None, unguarded: bool = False) -> Ready:
    """Everything up to the question whether to rent. `unguarded`: machines that cannot end themselves are welcome too."""
    config, jobs = checked_config(file)
    if providers:
        config = with_providers(config, providers)
    cap = cap_of(budget) if budget else config.budget.max_usd
    work = load_of(jobs)
    disk = disk_gib(work, config.machine.disk_gib)
    wanted = requirements(config, disk)
    found = offers(config.machine.providers, wanted, tools)
    found = found if unguarded else guardable(found, tools)
    bad = tools.memory.bad(tools.clock.now())
    plan = make_plan(work, found, wanted, cap_usd=cap, avoid=bad)
    if wanted.interruptible and not all(job.saves for job in jobs):
        jobs = _saving_often(jobs, work, plan, tools)
        work = load_of(jobs)
        plan = make_plan(work, found, wanted, cap_usd=cap, avoid=bad)
    return Ready(config=config, jobs=jobs, load=work, plan=plan, cap_usd=cap)


def _saving_often(jobs: Sequence[CheckedJob], work: Load, plan: Plan, tools: Tools) -> list[CheckedJob]:
    often = saving_often(jobs, work, plan.best.offer)
    every = ", ".join(
        f"{now.name} every {now.config.save_every_steps} steps" for now, before in zip(often, jobs, strict=True) if not before.saves
    )
    tools.view.say(f"machines may be taken away, so checkpoints are made unasked: {every}; save_every_steps says otherwise")
    return often


def with_providers(config: RunConfig, names: Sequence[str]) -> RunConfig:
    """The config with other providers than the file's."""
    unknown = [name for name in names if name not in PROVIDERS]
    if unknown:
        raise UsageError(f"there is no provider {unknown[0]!r}", hint=f"there are: {', '.join(PROVIDERS)}")
    machine = config.machine.model_copy(update={"providers": tuple(names)})
    return config.model_copy(update={"machine": machine})


def cap_of(text: str) -> Decimal:
    """A cap as written on the command line: dollars, above 0."""
    try:
        cap = Decimal(text.removeprefix("$"))
    except InvalidOperation:
        cap = Decimal("NaN")
    if not cap.is_finite() or not 0 < cap <= 100_000:
        raise UsageError(f"{text!r} is no budget", hint="write dollars, as in --budget 5 or --budget 2.50")
    return cap
