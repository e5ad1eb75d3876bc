"""The live drill: rent the cheapest machine, log in, and see its own guard end it while this computer only watches.

A run without jobs: it rents, waits, guards and gives back by the lines that every run uses, and has a book like every run, so a drill
that is killed is found by `ps`, `attach`, `down` and `reap`. What was seen, and how long each step took, goes into its `drill.json`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import providers
from orchestrator import commands
from orchestrator.closing import close
from orchestrator.errors import LorryError, MachineFailed, NoOffer, OverBudget, UsageError, outcome_of
from orchestrator.file.keys import DEFAULT_IMAGE
from orchestrator.home import RunFolder
from orchestrator.machines import guard
from orchestrator.machines.reaching import Machine
from orchestrator.market import offers
from orchestrator.order import Order, write_order
from orchestrator.plan import Load, Plan, Work, make_plan, worst_usd
from orchestrator.rent import rented
from orchestrator.report.receipt import progress_of
from orchestrator.run import open_books
from orchestrator.shell import KeyFiles, Shell
from orchestrator.trip import Tools, Trip
from providers.base import Account, InstanceStatus, Provider, Requirements
from providers.errors import ProviderError

from .doctor import Health
from .steps import Seen, Step, in_order

DISK_GIB = 20
"""For the image; a drill sends nothing."""
LEFT_S = 15.0
"""What the guard is told that it has left. Some of its beats fit in."""
GUARD_S = 240.0
"""How long the guard may take from there: it repeats its call, and clouds are slow to forget. Then this computer ends the machine."""
LOOK_S = 2.0
ENDS = "guard ends it"
"""The step that the drill is for."""
BILL_S = 15.0
BOOT_S = 900.0

LOAD = Load(
    jobs=(
        Work(
            name="drill", steps=1, images=0, batch_size=1, gradient_accumulation=1, resolution=64, rank=1,
            gradient_checkpointing=False, saves=0, samples=0, dataset_bytes=0,
        ),
    ),
    upload_bytes=0,
    hub_bytes=0.0,
    base_scale=0.0,
    download_bytes=0,
)  # fmt: skip
"""What the plan prices: booting, a moment, and the way out."""


def plan(name: str, cap_usd: Decimal, tools: Tools) -> Plan:
    """The cheapest machines of one cloud, and what the drill would cost on them. Raises `UsageError` for a cloud that there is not."""
    if name not in providers.PROVIDERS:
        raise UsageError(f"there is no provider {name!r}", hint=f"there are: {', '.join(sorted(providers.PROVIDERS))}")
    wanted = Requirements(disk_gib=DISK_GIB, min_reliability=0.9, verified_only=True)
    bad = tools.memory.bad(tools.clock.now())
    try:
        return make_plan(LOAD, offers([name], wanted, tools), wanted, cap_usd=cap_usd, avoid=bad)
    except NoOffer as err:
        raise NoOffer(str(err), hint="run it again later, or drill another cloud") from err
    except OverBudget as err:
        raise OverBudget(str(err), hint=f"lorry doctor --drill {name} --budget USD") from err


def offer_in_words(name: str, ranked: Plan) -> tuple[str, str]:
    """What is about to be rented, and what it costs."""
    best = ranked.best
    where = f"{name} {best.offer.region}".strip()
    return (
        f"the drill rents a {best.offer.gpu_name} at {where} for some minutes, ${best.offer.prices.usd_per_hour(DISK_GIB):.3f} an hour",
        f"about ${best.estimate.usd['p50']:.3f}, ${worst_usd(best, DISK_GIB):.2f} at worst; the cap is ${ranked.cap_usd}",
    )


def drill(name: str, ranked: Plan, folder: RunFolder, tools: Tools) -> dict[str, Any]:
    """From a confirmed plan to the document of what was seen."""
    order = Order(
        run=folder.id,
        providers=(name,),
        requirements=Requirements(disk_gib=DISK_GIB),
        cap_usd=ranked.cap_usd,
        max_hours=None,
        image=DEFAULT_IMAGE,
        boot_timeout_s=BOOT_S,
        jobs=(),
        items=(),
        load=LOAD,
    )
    write_order(folder, order)
    seen = Seen(tools.clock)
    with folder.driving(), tools.interrupts.caught():
        ledger = open_books(order, ranked, folder, tools)
        trip = Trip(
            order=order, folder=folder, ledger=ledger, tools=tools, progress=progress_of(folder), candidates=lambda: ranked.candidates
        )
        before = _account(tools.provider(name), seen)
        err: LorryError | ProviderError | None = None
        try:
            _exercise(trip, seen)
        except (LorryError, ProviderError) as raised:
            err = raised
        receipt = close(trip, err)
        steps = in_order(trip, seen.steps)
        after = Seen(tools.clock)
        _money(tools.provider(name), trip, before, after)
    document = _document(name, receipt, [*steps, *after.steps], err, tools.clock.now())
    folder.write("drill.json", document)
    return document


def _exercise(trip: Trip, seen: Seen) -> None:
    """The machine's life. Leaving the block sees, and says, that it is gone, whoever ended it."""
    with rented(trip) as machine:
        with seen.step("host key") as step:
            step.said = _host_key(trip, machine)
        if machine.lease.provider.self_destroy is None:
            words = f"machines of {machine.lease.provider.name} have no guard: this computer ends the machine"
            seen.note("guard", words, health=Health.WARNING)
            return
        with seen.step(ENDS) as step:
            step.said = _ended_by_guard(trip, machine)


def _host_key(trip: Trip, machine: Machine) -> str:
    """A second login by itself must meet the key that the first one pinned."""
    pinned = machine.shell.keys
    again = Shell(machine.shell.endpoint, KeyFiles(private=pinned.private, known_hosts=pinned.known_hosts), trip.clock)
    try:
        first, second = machine.shell.connect(), again.connect()
    finally:
        again.close()
    assert first == second, "a key that differs from the pinned one is refused when it connects"
    return f"the same at two logins: {second}"


def _ended_by_guard(trip: Trip, machine: Machine) -> str:
    """Tell the guard that its time is nearly over, and only look on. Raises `MachineFailed` when the machine does not go."""
    told = guard.beat(machine.shell.read(f"{guard.FOLDER}/guard.json", most=65536))
    if told is None:
        raise MachineFailed("the guard tells nothing any more")
    machine.shell.check(commands.write(f"{guard.FOLDER}/lease.json"), stdin=guard.lease((told.serial or 0) + 1, LEFT_S))
    machine.shell.close()
    trip.enter("drill", f"the guard has {LEFT_S:.0f} s left; this computer only watches")
    begun_s = trip.clock.monotonic_s()
    statuses: list[str] = []
    while (waited := trip.clock.monotonic_s() - begun_s) < LEFT_S + GUARD_S:
        trip.check_boot()
        try:
            instance = machine.lease.describe()
        except ProviderError as err:
            if not err.transient:
                raise
            trip.pulse(str(err))
        else:
            if not statuses or statuses[-1] != instance.status:
                statuses.append(str(instance.status))
            if instance.status is InstanceStatus.GONE:
                return f"gone {max(0.0, waited - LEFT_S):.0f} s after its time was over, by the guard alone ({' → '.join(statuses)})"
            trip.pulse(f"the cloud says {instance.status}")
        trip.clock.sleep(LOOK_S)
    raise MachineFailed(
        f"the guard did not end the machine in {GUARD_S:.0f} s ({' → '.join(statuses)}); this computer ended it",
        hint="do not leave machines of this cloud alone; send drill.json to lorry's issues",
    )


def _account(provider: Provider, seen: Seen) -> Account | None:
    with seen.step("account") as step:
        try:
            account = provider.account()
        except ProviderError as err:  # renting will say so too
            step.health, step.said = Health.TROUBLE, str(err)
            return None
        lacks = f", the key lacks {', '.join(account.lacks)}" if account.lacks else ""
        step.said = ("balance not told" if account.balance_usd is None else f"${account.balance_usd:.4f} prepaid") + lacks
        return account


def _money(provider: Provider, trip: Trip, before: Account | None, seen: Seen) -> None:
    """What the cloud charged, by its own records and by the balance; some tell it at once, some within the hour."""
    ids = [id_ for attempt in trip.book().attempts.values() for id_ in attempt.instance_ids]
    with seen.step("bill") as step:
        until_s, billed = trip.clock.monotonic_s() + BILL_S, None
        try:
            while (billed := _billed(provider, ids)) is None and trip.clock.monotonic_s() < until_s:
                trip.clock.sleep(LOOK_S)
            after = provider.account().balance_usd if before is not None else None
        except ProviderError as err:
            step.health, step.said = Health.WARNING, str(err)
            return
        metered = f"metered ${trip.spent_usd():.4f}"
        step.said = f"{metered}, " + (
            f"billed ${billed:.4f}" if billed is not None else f"not billed yet: lorry cost {trip.folder.id} asks again"
        )
        if before is not None and before.balance_usd is not None and after is not None:
            step.said += f"; the balance went down by ${before.balance_usd - after:.4f}"


def _billed(provider: Provider, ids: list[str]) -> Decimal | None:
    told = [provider.billed_usd(id_) for id_ in ids]
    return None if None in told else sum((usd for usd in told if usd is not None), Decimal(0))


def _document(
    name: str, receipt: dict[str, Any], steps: list[Step], err: LorryError | ProviderError | None, now: datetime
) -> dict[str, Any]:
    from orchestrator.tools import version

    ended = outcome_of(err)
    code = 10 if receipt["exit_code"] == 10 else ended["exit_code"]
    return {
        "drill": receipt["run"],
        "provider": name,
        "lorry": version(),
        "at": now.astimezone(UTC).isoformat(timespec="seconds"),
        "passed": code == 0 and any(step.name == ENDS and step.health is Health.OK for step in steps),
        "exit_code": code,
        "message": ended["message"],
        "hint": ended["hint"],
        "steps": [step.as_json() for step in steps],
        "machines": receipt["machines"],
        "cost": receipt["cost"],
        "folder": receipt["folder"],
    }
