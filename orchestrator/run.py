"""The straight-line program: config -> plan -> lease -> ship -> watch -> pull -> release -> report.

Every step finds in the run's folder what was done before, so the same lines serve a run that begins and one
that another process began: `lorry run`, `attach` and `resume` are this program with different beginnings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from providers.base import Offer, Requirements
from providers.errors import NoKey, ProviderError

from . import commands
from .crashpoints import crashpoint
from .errors import Interrupted, LorryError, MachineFailed, MayStillBill, NoOffer, ResultsIncomplete, TrainingFailed, UsageError, outcome_of
from .guarding import guarded
from .home import Busy, RunFolder
from .lease import PATIENCE_S, destroy
from .ledger import Ledger
from .lifecycle import Phase, Signal
from .order import Order, read_order, write_order
from .plan import Candidate, Plan, make_plan
from .rent import Machine, adopted, give_back, rented, visited
from .report.page import write_page
from .report.receipt import progress_of, receipt
from .ship import Shipment, item, send
from .trip import Tools, Trip
from .watch import STOP_PATIENCE_S, fetch_now, pull, start, watch

SETUP_PATIENCE_S, SETUP_POLL_S = 1800.0, 0.5
"""Installing diffusers and its kin took 40 s where it was measured; a slow line may need many times that."""
ENOUGH_OFFERS = 8
"""Kept in plan.json; more is no help to a reader."""


def run(order: Order, plan: Plan, folder: RunFolder, tools: Tools) -> dict[str, Any]:
    """The main job, from a confirmed plan to the receipt."""
    with folder.driving(), tools.interrupts.caught():
        ledger = open_books(order, plan, folder, tools)
        return drive(begin(order, folder, ledger, tools, lambda: plan.candidates))


def open_books(order: Order, plan: Plan, folder: RunFolder, tools: Tools) -> Ledger:
    """The first entries of a confirmed run: from here on any process of lorry can do it."""
    ledger = folder.ledger(tools.clock)
    crashpoint("ordered")
    folder.write("plan.json", plan_document(plan))
    ledger.record("opened", cap_usd=order.cap_usd, run=order.run)
    ledger.record("confirmed", usd=plan.best.estimate.usd)
    return ledger


def attach(folder: RunFolder, tools: Tools) -> dict[str, Any]:
    """Take up a run that another process began, wherever it stands, and bring it to its end."""
    with folder.driving(), tools.interrupts.caught():
        ledger = folder.ledger(tools.clock)
        book = ledger.book()
        if book.closed is not None and not book.open_attempts:
            folder.forget_stop()
            return account(folder, tools)
        order = read_order(folder)
        trip = begin(order, folder, ledger, tools, lambda: market(order, tools, spent_usd=trip.spent_usd()).candidates)
        return go_on(trip)


def resume(folder: RunFolder, tools: Tools, *, cap_usd: Decimal | None = None) -> dict[str, Any]:
    """Go on with a run that ended early, on a new machine, from the checkpoints that are at home."""
    with folder.driving(), tools.interrupts.caught():
        ledger = folder.ledger(tools.clock)
        folder.forget_stop()  # it was meant for the machine that is gone
        order = read_order(folder)
        if cap_usd is not None:
            order = order.model_copy(update={"cap_usd": cap_usd})
            write_order(folder, order)
            ledger.record("opened", cap_usd=cap_usd, run=order.run)
        trip = begin(order, folder, ledger, tools, lambda: market(order, tools, spent_usd=trip.spent_usd()).candidates)
        if not trip.todo() and not trip.book().open_attempts:
            raise UsageError(f"run {folder.id} is finished: every adapter is at home")
        return drive(trip)


def drive(trip: Trip) -> dict[str, Any]:
    """Rent, ship, train, fetch, give back, account. What goes wrong in a run is told by the receipt, not raised."""
    try:
        with rented(trip) as machine:
            guarded(trip, machine)
            python = ship(trip, machine)
            start(trip, machine, python)
            reason = watch(trip, machine, python)
            pull(trip, machine)
            judge(trip, reason)
    except NoOffer as err:
        return close(trip, err if trip.todo() else None)  # a machine that went by itself when all was at home needs no other
    except (LorryError, ProviderError) as err:
        return close(trip, err)
    return close(trip, None)


def go_on(trip: Trip) -> dict[str, Any]:
    """Drive a run that another process began; where that one had decided its end, only give back and account."""
    last = trip.book().last
    if last is None or last.outcome is None:
        return drive(trip)
    try:
        if last.may_bill and (lease := adopted(trip, last)) is not None:
            give_back(trip, lease, last.told)
    except (LorryError, ProviderError) as err:
        return close(trip, err)
    return close(trip, None, last.outcome)


def begin(order: Order, folder: RunFolder, ledger: Ledger, tools: Tools, candidates: Callable[[], Sequence[Candidate]]) -> Trip:
    """A trip that knows what earlier machines of the run have told."""
    current = ledger.book().current
    progress = progress_of(folder, but=current.number if current else 0)
    progress.committed.clear()  # files of machines that are gone
    trip = Trip(order=order, folder=folder, ledger=ledger, tools=tools, progress=progress, candidates=tuple)
    trip.candidates = lambda: tuple(candidates()) if trip.todo() else ()
    return trip


def ship(trip: Trip, machine: Machine) -> str:
    """Send what is missing, have it verified, make the machine able to train. Returns its Python."""
    attempt = trip.book().attempts[machine.number]
    if attempt.phase is not Phase.SHIPPING:
        return _python_of(trip, machine)
    shipment, done = with_checkpoints(trip), 0
    trip.enter("upload", f"{len(shipment.items)} files")

    def moved(count: int) -> None:
        nonlocal done
        done += count
        crashpoint("uploading")
        trip.moved(done, shipment.size)

    before = machine.shell.uploaded
    send(machine.shell, trip.order.root, shipment, moved, check=trip.check_boot)
    trip.ledger.record("moved", attempt=machine.number, uploaded=machine.shell.uploaded - before)
    python = set_up(trip, machine)
    trip.ledger.record(Signal.SHIPPED, attempt=machine.number, files=len(shipment.items), bytes=shipment.size)
    trip.check_boot()
    return python


def set_up(trip: Trip, machine: Machine) -> str:
    """Have the machine build its Python environment, and wait for it; returns the interpreter. Raises `MachineFailed`."""
    trip.enter("set-up", "the trainer's Python environment")
    until = trip.clock.monotonic_s() + SETUP_PATIENCE_S
    while trip.clock.monotonic_s() < until:
        trip.check_boot()
        answer = machine.shell.check(commands.set_up(trip.order.root)).decode(errors="replace").strip()
        state, _, words = answer.partition(" ")
        if state == "ready":
            return words
        if state == "failed":
            raise MachineFailed(f"the trainer's environment could not be built: {words}", hint="another machine.image may do better")
        trip.pulse(words)
        trip.clock.sleep(SETUP_POLL_S)
    raise MachineFailed(f"the trainer's environment was not built within {SETUP_PATIENCE_S / 60:.0f} minutes")


def with_checkpoints(trip: Trip) -> Shipment:
    """The order's shipment, and for unfinished jobs the newest checkpoint that an earlier machine made."""
    found = []
    for name in trip.todo():
        checkpoints = sorted((trip.folder.job(name) / "checkpoints").glob("*.safetensors"))
        found += [item(checkpoints[-1].parent, checkpoints[-1].name, f"jobs/{name}/out/checkpoints")] if checkpoints else []
    return Shipment(items=(*trip.order.items, *found))


def _python_of(trip: Trip, machine: Machine) -> str:
    """The interpreter that an earlier process started the supervisor with."""
    started = [e for e in trip.ledger.entries if e.attempt == machine.number and e.kind == Signal.STARTED]
    return str(started[-1].data["python"])


def judge(trip: Trip, reason: str) -> None:
    """Whether a session that ended is a success. Raises what it was instead."""
    failed = [job for job in trip.progress.jobs.values() if job.state == "failed"]
    if failed:
        words = "; ".join(f"{job.name}: {job.message or 'no word'}" for job in failed)
        raise TrainingFailed(
            f"{len(failed)} of {len(trip.progress.jobs)} jobs failed: {words}", hint="what they left is at home; see the report"
        )
    if not trip.todo():
        return
    if reason == "deadline":
        raise OverCap(
            "the cap was reached before the last step; the newest checkpoints are at home",
            hint=f"go on with: lorry resume {trip.order.run} --budget USD",
        )
    if reason == "stopped":
        raise Interrupted("stopped as asked; the newest checkpoints are at home", hint=f"go on with: lorry resume {trip.order.run}")
    raise ResultsIncomplete(  # the machine's word is not enough: a job is done when its adapter is at home
        f"the machine says that it is done, but no finished adapter came of: {', '.join(trip.todo())}",
        hint=f"look at lorry logs {trip.order.run}; go on with: lorry resume {trip.order.run}",
    )


class OverCap(LorryError):
    """The cap ended the training."""

    code = "LRY-CAP"
    exit_code = 5


def close(trip: Trip, err: LorryError | ProviderError | None, decided: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write the last entry, the receipt and the page. An open lease wins over whatever else happened."""
    if trip.book().open_attempts and not isinstance(err, MayStillBill):
        err = MayStillBill("a machine of this run is not known to be gone", hint=f"lorry down {trip.order.run}")
    trip.ledger.record("closed", **(outcome_of(err) if err is not None or decided is None else decided))
    trip.folder.forget_stop()
    trip.tools.view.close()
    return account(trip.folder, trip.tools)


def account(folder: RunFolder, tools: Tools) -> dict[str, Any]:
    """The receipt and the page, from what is in the folder and what the providers have billed by now."""
    write_page(folder, receipt(folder, tools.clock.now()))
    document = receipt(folder, tools.clock.now(), billed_usd=_billed(folder, tools))
    folder.write("receipt.json", document)
    crashpoint("accounted")
    return document


def _billed(folder: RunFolder, tools: Tools) -> Decimal | None:
    """What the providers say they charged for every machine of the run; None while one has no record."""
    total = Decimal(0)
    for attempt in folder.book().attempts.values():
        for instance_id in attempt.instance_ids:
            try:
                billed = tools.provider(attempt.provider).billed_usd(instance_id)
            except ProviderError:
                return None
            if billed is None:
                return None
            total += billed
    return total


# -- before a run ----------------------------------------------------------------------------------


def market(order: Order, tools: Tools, *, spent_usd: Decimal = Decimal(0)) -> Plan:
    """What could be rented for this order now."""
    found = offers(order.providers, order.requirements, tools)
    return make_plan(order.load, found, order.requirements, cap_usd=order.cap_usd, spent_usd=spent_usd)


def offers(names: Iterable[str], wanted: Requirements, tools: Tools) -> list[Offer]:
    """Every provider's offers. One provider's trouble is said and does not hide the others; all in trouble raises the last."""
    found: list[Offer] = []
    trouble: ProviderError | None = None
    answered = False
    for name in names:
        try:
            found += tools.provider(name).offers(wanted)
            answered = True
        except ProviderError as err:
            tools.view.say(f"{name}: {err}")
            trouble = err
    if not answered and trouble is not None:
        raise trouble
    return found


def plan_document(plan: Plan) -> dict[str, Any]:
    """The words of `lorry plan --json`."""
    return {
        "estimate": "simple: from published figures, not yet calibrated by measurement",
        "cap_usd": str(plan.cap_usd),
        "disk_gib": plan.disk_gib,
        "offers_seen": plan.seen,
        "left_out": dict(plan.left_out),
        "candidates": [
            {
                "provider": c.offer.provider,
                "offer": c.offer.id,
                "gpu": c.offer.gpu_name,
                "vram_gib": c.offer.vram_gib,
                "usd_per_hour": str(c.offer.prices.usd_per_hour(plan.disk_gib)),
                "reliability": c.offer.reliability,
                "region": c.offer.region,
                "interruptible": c.offer.interruptible,
                "usd": {name: str(value) for name, value in c.estimate.usd.items()},
                "seconds": {name: {"p10": r.p10, "p50": r.p50, "p90": r.p90} for name, r in c.estimate.phases.items()},
                "peak_vram_bytes": c.estimate.vram_bytes,
            }
            for c in plan.candidates[:ENOUGH_OFFERS]
        ],
    }


# -- ending what another process began -------------------------------------------------------------


def stop(folder: RunFolder, tools: Tools) -> dict[str, Any]:
    """An orderly end: checkpoint, pull, destroy, verify; by the process that drives the run, or by this one."""
    folder.want_stop()
    try:
        return attach(folder, tools)
    except Busy:
        _wait_for_the_driver(folder, tools, patience_s=STOP_PATIENCE_S + PATIENCE_S)
        return attach(folder, tools)  # the receipt; or the end, should the driver have died


def down(folder: RunFolder, tools: Tools) -> dict[str, Any]:
    """Destroy every machine of a run now, and see that it is gone."""
    folder.want_stop(now=True)
    try:
        with folder.driving(), tools.interrupts.caught():
            trip = begin(read_order(folder), folder, folder.ledger(tools.clock), tools, tuple)
            ended = outcome_of(Interrupted("ended by lorry down", hint=f"go on with: lorry resume {folder.id}"))
            for attempt in trip.book().open_attempts:
                if (lease := adopted(trip, attempt)) is not None:
                    give_back(trip, lease, "lorry down", ended)
            if trip.book().closed is None:
                return close(trip, None, ended)
            folder.forget_stop()
            return account(folder, tools)
    except Busy:
        _wait_for_the_driver(folder, tools, patience_s=PATIENCE_S)
        return down(folder, tools)  # the receipt; or the end, should the driver have died


def _wait_for_the_driver(folder: RunFolder, tools: Tools, *, patience_s: float) -> None:
    """The process that drives the run has been asked; wait until it has done it."""
    tools.view.say("another lorry drives this run; it was asked")
    until = tools.clock.monotonic_s() + patience_s
    while folder.is_driven:
        if tools.clock.monotonic_s() > until:
            raise MayStillBill("the lorry that drives this run does not end it", hint="end that process, then run the command again")
        tools.clock.sleep(0.5)


def follow(folder: RunFolder, tools: Tools) -> None:
    """Look on for as long as another process drives the run: everything that it knows is in the folder."""
    tools.view.say("another lorry drives this run; looking on")
    try:
        while folder.is_driven:
            trip = Trip(
                order=read_order(folder),
                folder=folder,
                ledger=folder.ledger(tools.clock),
                tools=tools,
                progress=progress_of(folder),
                candidates=tuple,
            )
            current = trip.book().current
            trip.enter(str(current.phase) if current else "rent", "")
            tools.clock.sleep(1.0)
    finally:
        tools.view.close()


def fetch(folder: RunFolder, tools: Tools) -> int:
    """Bring home what is committed now, and leave the machine to its work. Returns the number of files."""
    with folder.driving(), tools.interrupts.caught():
        trip = begin(read_order(folder), folder, folder.ledger(tools.clock), tools, tuple)
        with visited(trip) as machine:
            count = fetch_now(trip, machine)
        tools.view.close()
        return count


def reap(labels: Callable[[str], bool], names: Iterable[str], tools: Tools, *, really: bool) -> list[dict[str, Any]]:
    """Every machine whose label is ours, at every provider; ended when `really`. Never touches another label.

    Trouble with one machine or cloud does not spare the others: it is told in `trouble`, and what is in doubt counts as alive.
    A cloud for which there is no key is passed over with a word.
    """
    found: list[dict[str, Any]] = []
    for name in names:
        row = {"provider": name, "id": "", "label": "", "status": "unknown", "destroyed_verified": False, "trouble": ""}
        try:
            provider = tools.provider(name)
            ours = [i for i in provider.instances() if labels(i.label)]
            provider.account()  # to a stranger everything is absent
        except NoKey as err:
            tools.view.say(f"{name} was not asked: {err}")
            continue
        except ProviderError as err:
            found.append(row | {"trouble": f"it cannot be asked: {err}"})
            continue
        for instance in ours:
            row |= {"id": instance.id, "label": instance.label, "status": str(instance.status)}
            try:
                if really:
                    destroy(provider, [instance.id], instance.label, tools.clock)
                found.append(row | {"destroyed_verified": really})
            except MayStillBill as err:
                found.append(row | {"trouble": str(err)})
    return found
