"""Places at which the program can be made to die, so that tests know where it died. Each is a no-op unless the environment names it.

`LORRY_CRASH_AT=launched-unwritten lorry run ...` ends as a power cut would: SIGKILL, nothing is tidied. One point lies before and one
after every kind of entry that is written into the ledger, and one at every effect in between.

`LORRY_CRASH_WITH="SIGINT SIGINT"` sends these signals instead, the first time that the place is reached: a person's hands, to the line.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "LORRY_CRASH_AT"
SIGNALS = "LORRY_CRASH_WITH"

LEDGER_KINDS = (
    "opened",
    "confirmed",
    "chosen",
    "intent",
    "launched",
    "reachable",
    "age",
    "inspected",
    "moved",
    "shipped",
    "started",
    "ended",
    "fetched",
    "pulled",
    "give_up",
    "gone",
    "closed",
)
"""Every kind of entry that a run without trouble writes."""

EFFECTS: dict[str, str] = {
    "ordered": "the order is on disk, the book not yet opened",
    "created": "the cloud has rented; its answer was heard by nobody",
    "uploading": "some bytes have arrived on the machine",
    "session-sent": "the queue lies on the machine, nothing runs",
    "events-taken": "events were fetched and appended at home",
    "fetching": "a part of a file lies in the staging folder",
    "staged": "a file is whole and verified, not yet under its name",
    "terminated": "the cloud was asked to end the machine, and not asked whether it did",
    "accounted": "the receipt is written, not printed",
}

POINTS: dict[str, str] = {
    **{f"{kind}-unwritten": f"before the entry `{kind}`" for kind in LEDGER_KINDS},
    **{f"{kind}-written": f"after the entry `{kind}`" for kind in LEDGER_KINDS},
    **EFFECTS,
}
"""Every name that `LORRY_CRASH_AT` may have in a run to which nothing is added, and where it is."""

ADDING: dict[str, str] = {
    "asked": "a request to add jobs is on disk, the run's driver has not seen it",
    "added-unwritten": "before the entry `added`",
    "added-written": "after the entry `added`",
    "order-extended": "added jobs are in the order; their request still lies there",
    "adding": "some bytes for added jobs have arrived on the machine",
    "queue-extended": "added jobs are in the machine's queue; the book does not know it",
    "joined-unwritten": "before the entry `joined`",
    "joined-written": "after the entry `joined`",
}
"""And those that lie on the way of `lorry add`."""


def crashpoint(name: str) -> None:
    """Die here when the environment says so."""
    if os.environ.get(VARIABLE) == name:
        del os.environ[VARIABLE]
        for word in os.environ.get(SIGNALS, "SIGKILL").split():
            os.kill(os.getpid(), signal.Signals[word])
