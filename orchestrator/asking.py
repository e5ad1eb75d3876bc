"""What `lorry add` looks at before it asks: whether these jobs can join this run, on this machine, within this cap.

Reads the run's folder only; the machine and the cloud are the driver's. `adding.py` is the other half.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from .adding import Addition, ask, requests, take_in
from .budget import GIB, rounded_up, time_usd
from .cap.room import Room, pace, room
from .errors import NoOffer, OverBudget, UsageError
from .home import Busy, RunFolder
from .ledger import Attempt
from .lifecycle import Phase
from .machines.trying import offer_of
from .order import CheckedJob, Order, held_to, load_of, read_order, spec_file, written_down
from .plan import Load, disk_gib, estimate, vram_bytes
from .report.receipt import progress_of
from .ship import item
from .trip import Tools, Trip

TAKEN_WITHIN_S, POLL_S = 30.0, 0.3
"""A driver looks about once a second; one that sends a slice, or fetches a large file, takes longer."""

OWN = "lorry run FILE trains the jobs on a machine of their own"


def add(folder: RunFolder, jobs: Sequence[CheckedJob], tools: Tools) -> tuple[Addition, bool]:
    """Ask the run to take these jobs in. Gives the request, and whether it was taken in by now: else the driver does it later."""
    trip = look(folder, tools)
    attempt = _training(trip)
    _free_names(trip, jobs)
    _bases_there(trip, jobs)
    addition = _addition(trip, jobs)
    _expect_room(trip, attempt, addition.load)
    ask(folder, addition)
    return addition, _taken(folder, addition, tools)


def look(folder: RunFolder, tools: Tools) -> Trip:
    """The run as its folder tells it now; nothing is to be recorded through this."""
    ledger = folder.ledger(tools.clock)
    return Trip(order=read_order(folder), folder=folder, ledger=ledger, tools=tools, progress=progress_of(folder), candidates=tuple)


def _training(trip: Trip) -> Attempt:
    """The machine that trains for the run. Raises `UsageError` where there is none."""
    book, run = trip.book(), trip.order.run
    if not trip.order.jobs:
        raise UsageError(f"{run} is a drill: it trains nothing", hint="lorry run FILE trains the jobs")
    if book.closed is not None and not book.open_attempts:
        raise UsageError(f"run {run} has ended; nothing can be added to it", hint=OWN)
    if trip.stop_wanted:
        raise UsageError(f"run {run} was asked to stop", hint=OWN)
    if book.current is None or book.current.phase is not Phase.TRAINING:
        where = str(book.current.phase) if book.current else "between two machines"
        raise UsageError(f"run {run} does not train now: it is {where}", hint="add the jobs when it trains; lorry ps shows where it stands")
    return book.current


def _free_names(trip: Trip, jobs: Sequence[CheckedJob]) -> None:
    asked = {name.casefold() for _, one in requests(trip.folder) for name in one.names}
    taken = {name.casefold() for name in trip.order.job_names} | asked
    if double := [job.name for job in jobs if job.name.casefold() in taken]:
        names = ", ".join(double)
        raise UsageError(f"run {trip.order.run} has a job of that name already: {names}", hint="give it another name in the file")


def _bases_there(trip: Trip, jobs: Sequence[CheckedJob]) -> None:
    """A machine fetches from the hub what the order names, before its training begins, and nothing afterwards."""
    fetched = {base.repo for base in trip.order.hub}
    if fetched and (new := sorted({job.base.location for job in jobs if job.local_base is None} - fetched)):
        words = f"the machine of run {trip.order.run} has {', '.join(sorted(fetched))} from the hub, and not {', '.join(new)}"
        raise UsageError(words, hint=OWN)


def _addition(trip: Trip, jobs: Sequence[CheckedJob]) -> Addition:
    """The request, hashed and laid out; nobody sees it before `ask`."""
    ship = trip.folder.path / "ship"
    jobs = [held_to(job, trip.order.hub) for job in jobs]
    specs, items = written_down(jobs, ship, image=trip.order.image, hub=trip.order.hub)
    items += [item(ship, spec_file(job.name), "") for job in jobs]
    there = {one.remote for one in trip.order.items}
    items = [one for one in items if one.remote not in there]
    bases = {job.base for job in trip.order.jobs}
    load = load_of(jobs)
    hub = load.hub_bytes if any(spec.base not in bases for spec in specs) else 0
    load = replace(load, upload_bytes=sum(one.size for one in items), hub_bytes=hub)
    usd = _expected_usd(trip, load)
    return Addition(id=secrets.token_hex(4), jobs=tuple(specs), items=tuple(items), load=load, expected_usd=usd)


def _expected_usd(trip: Trip, load: Load) -> Decimal:
    attempt = _training(trip)
    offer = offer_of(trip, attempt)
    made = estimate(load, offer, attempt.disk_gib)
    seconds = sum(phase.p50 for name, phase in made.phases.items() if name in {"training", "caching", "samples and saves", "pull"})
    return rounded_up(time_usd(offer.prices, attempt.disk_gib, seconds * _pace(trip, attempt)), Decimal("0.0001"))


def _pace(trip: Trip, attempt: Attempt) -> float:
    running = trip.progress.running
    measured = {job.name: job.step_seconds / len(running) for job in running if job.step_seconds}  # those who share a pass share its time
    return pace(trip.order.load, attempt.gpu, measured)


def _expect_room(trip: Trip, attempt: Attempt, load: Load) -> None:
    """Raise where the card, the disk or the cap has no room for these jobs."""
    offer, run = offer_of(trip, attempt), trip.order.run
    if offer.vram_gib and (need := vram_bytes(load)) > offer.vram_gib * GIB:
        words = f"{need / GIB:.1f} GiB of video memory are needed (estimated), and the {attempt.gpu} of run {run} has {offer.vram_gib:.0f}"
        raise NoOffer(words, hint="lower resolution or batch_size, or run these jobs by themselves: lorry run FILE")
    whole = extended_load(trip.order, load)
    if attempt.disk_gib and (disk := disk_gib(whole, None)) > attempt.disk_gib:
        words = f"{disk} GiB of disk are needed, and the machine of run {run} has {attempt.disk_gib}"
        raise NoOffer(words, hint="run these jobs by themselves: lorry run FILE")
    found = _room(trip, attempt, load)
    if not found.fits:
        raise OverBudget(
            f"the cap of ${trip.order.cap_usd} does not last for them: they need about {_minutes(found.more_s)} more,"
            f" the jobs that are there {_minutes(found.rest_s)}, and {_minutes(max(0.0, found.left_s))} are left (estimated)",
            hint="lower steps, add fewer jobs, or run them by themselves: lorry run FILE",
        )


def _room(trip: Trip, attempt: Attempt, load: Load) -> Room:
    offer, now = offer_of(trip, attempt), trip.ledger.now()
    asked = [one.load for _, one in requests(trip.folder)]
    rest = trip.rest()
    rest = replace(rest, jobs=(*rest.jobs, *(work for one in asked for work in one.jobs)))
    began = attempt.started_at or now
    measured = any(job.step_seconds for job in trip.progress.running)
    return room(
        estimate(rest, offer, attempt.disk_gib),
        estimate(load, offer, attempt.disk_gib),
        pace=_pace(trip, attempt),
        begun=measured,
        left_s=attempt.lifetime_s - (now - began).total_seconds(),
    )


def extended_load(order: Order, load: Load) -> Load:
    """The queue with these jobs too, for what the disk must hold."""
    old = order.load
    return replace(
        old,
        jobs=(*old.jobs, *load.jobs),
        upload_bytes=old.upload_bytes + load.upload_bytes,
        hub_bytes=old.hub_bytes + load.hub_bytes,
        download_bytes=old.download_bytes + load.download_bytes,
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _taken(folder: RunFolder, addition: Addition, tools: Tools) -> bool:
    """Wait a little for the driver; where nobody drives the run, write the jobs into its order at once."""
    request = folder.path / "additions" / f"{addition.id}.json"
    until = tools.clock.monotonic_s() + TAKEN_WITHIN_S
    while request.exists() and tools.clock.monotonic_s() < until:
        if folder.is_driven:
            tools.clock.sleep(POLL_S)
            continue
        try:
            with folder.driving():
                _without_a_driver(folder, addition, tools)
        except Busy:
            continue  # somebody has just taken the run up
    return not request.exists()


def _without_a_driver(folder: RunFolder, addition: Addition, tools: Tools) -> None:
    trip = look(folder, tools)
    if trip.book().closed is not None:
        (folder.path / "additions" / f"{addition.id}.json").unlink(missing_ok=True)
        words = f"run {folder.id} came to its end before it could take them in"
        raise UsageError(words, hint=OWN)
    take_in(trip)
    tools.view.say(f"nobody drives run {folder.id} now: lorry attach {folder.id} takes it up, and sends them")
