"""The end of a run: what its session came to, the last entry, the receipt and the page."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any

from providers.errors import ProviderError

from .crashpoints import crashpoint
from .errors import Interrupted, LorryError, MachineFailed, MayStillBill, ResultsIncomplete, TrainingFailed, outcome_of
from .home import RunFolder
from .learning.gathering import gathered
from .ledger import Attempt
from .report.page import write_page
from .report.receipt import receipt
from .trip import Tools, Trip


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
    if {*trip.todo()} <= {*trip.book().cut}:
        words = f"the cap did not last for {', '.join(trip.todo())}; the others are done, and the newest checkpoints are at home"
        budgets = [entry.data["budget_usd"] for entry in trip.ledger.entries if entry.kind == "cut"]
        raise OverCap(words, hint=f"go on with: lorry resume {trip.order.run} --budget {budgets[-1]}")
    if reason == "deadline":
        raise OverCap(
            "the cap was reached before the last step; the newest checkpoints are at home",
            hint=f"go on with: lorry resume {trip.order.run} --budget USD",
        )
    if reason == "stopped" and not trip.stop_wanted:
        raise MachineFailed("it ended the training without having been asked to")
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
    _learn(trip)
    trip.folder.forget_stop()
    trip.tools.view.close()
    return account(trip.folder, trip.tools)


def _learn(trip: Trip) -> None:
    """What this run took is known to the next estimate. Nothing of the run depends on it."""
    if trip.order.jobs:
        with suppress(OSError, ValueError):
            trip.tools.measured.add(gathered(trip.order, trip.folder, trip.ledger.entries))


def account(folder: RunFolder, tools: Tools, bills: Mapping[int, Decimal | None] | None = None) -> dict[str, Any]:
    """The receipt and the page, from what is in the folder and what the providers have billed by now."""
    write_page(folder, receipt(folder, tools.clock.now()))
    known = list((billed(folder, tools) if bills is None else bills).values())
    total = None if None in known else sum((usd for usd in known if usd is not None), Decimal(0))
    document = receipt(folder, tools.clock.now(), billed_usd=total)
    folder.write("receipt.json", document)
    crashpoint("accounted")
    return document


def billed(folder: RunFolder, tools: Tools) -> dict[int, Decimal | None]:
    """What the provider of each attempt says it charged; None where it has no record, or does not answer."""
    return {attempt.number: _billed(attempt, tools) for attempt in folder.book().attempts.values()}


def _billed(attempt: Attempt, tools: Tools) -> Decimal | None:
    try:
        records = [tools.provider(attempt.provider).billed_usd(instance_id) for instance_id in attempt.instance_ids]
    except ProviderError:
        return None
    return None if None in records else sum((usd for usd in records if usd is not None), Decimal(0))
