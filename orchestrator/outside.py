"""What can be done to a run from outside the process that drives it: stop, destroy, look on, fetch; and the last net, `reap`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from providers.errors import NoKey, ProviderError

from .closing import account, close
from .errors import Interrupted, MayStillBill, outcome_of
from .home import Busy, RunFolder
from .lease import PATIENCE_S, destroy
from .order import read_order
from .rent import end, visited
from .report.receipt import progress_of
from .run import attach, begin
from .trip import Tools, Trip
from .watch import STOP_PATIENCE_S, fetch_now


def stop(folder: RunFolder, tools: Tools) -> dict[str, Any]:
    """An orderly end: checkpoint, pull, destroy, verify; by the process that drives the run, or by this one."""
    folder.want_stop()
    try:
        return attach(folder, tools)
    except Busy:
        _wait_for_the_driver(folder, tools, patience_s=STOP_PATIENCE_S + PATIENCE_S)
        return stop(folder, tools)  # the receipt; or the end, should the driver have died, by this lorry or by the keeper's


def down(folder: RunFolder, tools: Tools) -> dict[str, Any]:
    """Destroy every machine of a run now, and see that it is gone."""
    folder.want_stop(now=True)
    try:
        with folder.driving(), tools.interrupts.caught():
            trip = begin(read_order(folder), folder, folder.ledger(tools.clock), tools)
            ended = outcome_of(Interrupted("ended by lorry down", hint=f"go on with: lorry resume {folder.id}"))
            end(trip, trip.book().open_attempts, "lorry down", ended)
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
        trip = begin(read_order(folder), folder, folder.ledger(tools.clock), tools)
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
