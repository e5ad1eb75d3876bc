"""The straight-line program: config -> plan -> lease -> ship -> watch -> pull -> release -> report.

Every step finds in the run's folder what was done before, so the same lines serve a run that begins and one
that another process began: `lorry run`, `attach` and `resume` are this program with different beginnings.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from providers.errors import ProviderError

from .closing import account, close, judge
from .crashpoints import crashpoint
from .delivery import ship
from .errors import Interrupted, LorryError, MachineFailed, NoOffer, UsageError, outcome_of
from .home import RunFolder
from .lease import WrongAccount
from .ledger import Ledger
from .machines.guarding import guarded
from .machines.onward import leave_behind, onward, stand_by
from .order import Order, read_order, write_order
from .plan import Plan
from .rent import end, rented
from .report.plan_document import plan_document
from .report.receipt import progress_of
from .report.tracking import Source, tracked
from .trip import Tools, Trip
from .watch import pull, start, watch


def run(order: Order, plan: Plan, folder: RunFolder, tools: Tools) -> dict[str, Any]:
    """The main job, from a confirmed plan to the receipt."""
    with folder.driving(), tools.interrupts.caught():
        ledger = open_books(order, plan, folder, tools)
        return drive(begin(order, folder, ledger, tools, plan))


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
        return go_on(begin(read_order(folder), folder, ledger, tools))


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
        ledger.record("resumed")  # what machines were lost before counts no more
        trip = begin(order, folder, ledger, tools)
        leave_behind(trip, failed=True)
        if not trip.todo() and not trip.book().open_attempts:
            raise UsageError(f"run {folder.id} is finished: every adapter is at home")
        return drive(trip)


def drive(trip: Trip) -> dict[str, Any]:
    """Haul, on another machine when one is lost and going on pays, and account. What goes wrong is told by the receipt, not raised."""
    while True:
        try:
            haul(trip)
        except MachineFailed:
            leave_behind(trip)  # whether another is worth its money, `onward` says when it is asked for one
        except NoOffer as err:
            return close(trip, err if trip.todo() else None)  # a machine that went by itself when all was at home needs no other
        except WrongAccount:
            raise  # nothing was asked of the machine: the books stay as they are
        except (LorryError, ProviderError) as err:
            return close(trip, err)
        else:
            return close(trip, None)


def haul(trip: Trip) -> None:
    """One machine: rent, ship, train, fetch, give back. Raises what kept it from bringing everything home."""
    with rented(trip) as machine:
        stand_by(trip, machine)
        if not machine.proven:  # taken up while it trained: its guard is told how long the cap lasts now
            guarded(trip, machine)
        python = ship(trip, machine)
        start(trip, machine, python)
        reason = watch(trip, machine, python)
        pull(trip, machine)
        judge(trip, reason)


def go_on(trip: Trip) -> dict[str, Any]:
    """Drive a run that another process began; where that one had decided its end, only give back and account."""
    book = trip.book()
    last, outcome = book.last, book.last.outcome if book.last else None
    if last is not None and outcome is None and book.closed is not None:  # it ended while its machine was not known to be gone
        outcome = outcome_of(MachineFailed(last.told, hint=f"go on with: lorry resume {trip.order.run}"))
    if outcome is None and not trip.order.jobs:  # a drill: nobody watches any more what it was to show
        outcome = outcome_of(Interrupted("the drill was cut off", hint="run it again: lorry doctor --drill PROVIDER"))
    if last is None or outcome is None:
        return drive(trip)
    try:
        end(trip, book.open_attempts, last.told)
    except WrongAccount:
        raise
    except (LorryError, ProviderError) as err:
        return close(trip, err)
    return close(trip, None, outcome)


def begin(order: Order, folder: RunFolder, ledger: Ledger, tools: Tools, first: Plan | None = None) -> Trip:
    """A trip that knows what earlier machines of the run have told. `first`: the plan that was confirmed, for a run that begins."""
    current = ledger.book().current
    progress = progress_of(folder, but=current.number if current else 0)
    progress.committed.clear()  # files of machines that are gone
    told = Source(events=folder.told, results=folder.path / "jobs", jobs=progress.jobs)
    began = (ledger.book().opened_at or tools.clock.now()).timestamp()
    view = tracked(tools.view, order.log_to, told, folder.path, run=order.run, began=began, clock_s=tools.clock.monotonic_s)
    tools = replace(tools, view=view)
    trip = Trip(order=order, folder=folder, ledger=ledger, tools=tools, progress=progress, candidates=tuple)
    trip.candidates = lambda: onward(trip, first)
    return trip
