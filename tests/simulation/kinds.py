"""What can go wrong, and where it must have gone wrong in the seeds of a test run: a fault that never occurs proves nothing."""

from __future__ import annotations

PHASES = ("planned", "launching", "booting", "shipping", "training", "pulling", "releasing", "gone")
"""What a run was doing: named by the last entry in its ledger."""
HELD = ("booting", "shipping", "training", "releasing")
"""A machine is rented, and somebody speaks of it with its cloud."""
ASKED = ("planned", *HELD, "gone", "reaping")
"""The cloud is asked, other than for a machine."""
CREATED = ("launching",)
CLOCK = ("planned", "launching", *HELD, "gone")

WHERE: dict[str, tuple[str, ...]] = {
    # the user and the computer
    "killed": (*PHASES, "reaping"),
    "torn write": PHASES,
    "power cut": PHASES,
    "suspended": (*PHASES, "reaping"),
    "Ctrl-C": (*PHASES, "reaping"),
    "clock on by an hour": CLOCK,
    "clock back by an hour": CLOCK,
    "clock on by a year": CLOCK,
    "clock back by a year": CLOCK,
    "disk full": PHASES,
    "computer lost": CLOCK,
    "line cut": ("booting", "shipping", "training", "pulling"),
    # the create
    "create refused": CREATED,
    "create lost": CREATED,
    "create answer lost": CREATED,
    "create lands late": CREATED,
    "error that rented": CREATED,
    "answer without an id": CREATED,
    "label cut": CREATED,
    # the cloud
    "timeout": ASKED,
    "503": ASKED,
    "429": ASKED,
    "half a page": ASKED,
    "storm of 429": (*ASKED, "launching"),
    "down for good": (*ASKED, "launching"),
    "logged out": (*HELD, "reaping"),
    "another's key": ("releasing", "reaping"),
    "describe lies": (*HELD, "reaping"),
    "unseen by id": ("booting", "releasing", "reaping"),
    "unlisted": ("releasing", "reaping"),
    "dead one shown": ("booting", "releasing", "reaping"),
    "dead one listed": ("releasing", "reaping"),
    "terminate ignored": ("releasing", "reaping"),
    "terminate slow": ("releasing", "reaping"),
    "terminate answer lost": ("releasing", "reaping"),
    # the machine
    "never boots": CREATED,
    "dearer": CREATED,
    "unfit": ("shipping",),
    "price rises": ("booting", "shipping", "training", "releasing"),
    "outbid": HELD,
    "machine lost": HELD,
    "supervisor dies": ("training",),
    "damaged file": ("training", "pulling"),
    "guard missing": CREATED,
    "guard unproven": CREATED,
    "guard dies": HELD,
    "guard ends it": HELD,
}
"""What goes wrong -> the phases in which it must have."""


def missing(tally: dict[tuple[str, str], int]) -> list[str]:
    """What a test run has not tried."""
    unknown = [f"{fault} is not in the table" for fault in sorted({fault for fault, _ in tally} - WHERE.keys())]
    return unknown + [f"{fault} while {phase}" for fault, phases in WHERE.items() for phase in phases if not tally.get((fault, phase))]
