"""The straight-line program: config -> plan -> lease -> ship -> watch -> pull -> release -> report.

Every step finds in the run's folder what was done before, so the same lines serve a run that begins and one
that another process began: `lorry run`, `attach` and `resume` are this program with different beginnings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from providers.errors import ProviderError

from .closing import account, close, judge
from .crashpoints import crashpoint
from .delivery import ship
from .errors import LorryError, NoOffer, UsageError
from .guarding import guarded
from .home import RunFolder
from .ledger import Ledger
from .market import market, plan_document
from .order import Order, read_order, write_order
from .plan import Candidate, Plan
from .rent import adopted, give_back, rented
from .report.receipt import progress_of
from .trip import Tools, Trip
from .watch import pull, start, watch


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
