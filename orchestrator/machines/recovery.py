"""Whether a run that lost its machine goes on with another, how long a silent one is waited for, how often to save.

PURE: reads entries of the book and numbers. Who asks the cloud, and who rents, is `onward.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, auto
from math import sqrt

from orchestrator.budget import show_usd
from orchestrator.ledger import Entry
from orchestrator.lifecycle import Signal

FRUITLESS = 3
"""Machines in a row that were lost before anything new was at home: by then it is hardly the machines."""
ENOUGH = 3
"""From so many lost machines on, what a step has cost says more than any estimate does."""
SHORTEST_PATIENCE_S, LONGEST_PATIENCE_S = 120.0, 1800.0
"""A host that restarts its network is back within the first; nobody pays longer than the second for a machine that tells nothing."""
LIFE_S = 2 * 3600.0
"""ASSUMED: how long an interruptible machine is kept on the average; no cloud publishes it. The interval below goes with its root,
and near the optimum the loss is flat: wrong by four times either way, saving and redoing together cost a quarter more than they must."""
SAVE_PAUSE_S = 2.0
"""ASSUMED: training stands still so long while a checkpoint is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What a machine that was lost had come to."""

    attempt: int
    steps: int
    """Gained: those whose state came home from it, and from none before."""
    usd: Decimal


class Choice(Enum):
    """What to do when a machine is lost."""

    GO_ON = auto()
    STEADY = auto()  # go on, but only on machines that nobody can outbid
    END = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The choice and, unless it is to go on as before, why."""

    choice: Choice
    why: str = ""


def does_going_on_pay(lost: Sequence[Stretch], *, steps_left: int, left_usd: Decimal, interruptible: bool) -> Verdict:
    """Whether another machine is worth its money, after these were lost since the user last said go.

    Whether the cap covers what is left on any machine of the market, the plan says; here counts what the past has taught. `left_usd`: of
    the cap. `interruptible`: whether the run takes machines that can be outbid, so that there are steadier ones to turn to.
    """
    fruitless = 0
    for stretch in reversed(lost):
        if stretch.steps:
            break
        fruitless += 1
    if fruitless >= FRUITLESS:
        return Verdict(choice=Choice.END, why=f"{fruitless} machines in a row were lost before anything new had come home")
    steps, usd = sum(one.steps for one in lost), sum((one.usd for one in lost), Decimal(0))
    expected_usd = usd / steps * steps_left if steps else Decimal(0)
    if len(lost) >= ENOUGH and expected_usd > left_usd:
        why = (
            f"{steps} steps have cost {show_usd(usd)} on the {len(lost)} machines that were lost;"
            f" at that pace the {steps_left} that are left need {show_usd(expected_usd)}, and {show_usd(left_usd)} of the cap is left"
        )
        return Verdict(choice=Choice.STEADY if interruptible else Choice.END, why=why)
    if interruptible and fruitless == FRUITLESS - 1:
        why = f"{fruitless} machines in a row were lost before anything new had come home"
        return Verdict(choice=Choice.STEADY, why=why)
    return Verdict(choice=Choice.GO_ON)


def steps_at_home(entries: Iterable[Entry]) -> dict[str, int]:
    """Job -> the step from which it can go on, or at which it is done, wherever it is trained."""
    home: dict[str, int] = {}
    for entry in entries:
        if _is_progress(entry):
            home[str(entry.data["job"])] = max(home.get(str(entry.data["job"]), 0), int(entry.data["step"]))
    return home


def steps_gained(entries: Iterable[Entry]) -> dict[int, int]:
    """Attempt -> steps of all jobs that its machine has moved forward what is at home."""
    home: dict[str, int] = {}
    gained: dict[int, int] = {}
    for entry in entries:
        if _is_progress(entry):
            job, step = str(entry.data["job"]), int(entry.data["step"])
            gained[entry.attempt] = gained.get(entry.attempt, 0) + max(0, step - home.get(job, 0))
            home[job] = max(home.get(job, 0), step)
    return gained


def _is_progress(entry: Entry) -> bool:
    return entry.kind == "fetched" and (entry.data.get("role") == "checkpoint" or bool(entry.data.get("final")))


def given_up(entries: Sequence[Entry]) -> list[int]:
    """Attempts whose machines had let us in and were given up with the run undecided, since it was begun or last told to go on."""
    reached: set[int] = set()
    undecided: dict[int, bool] = {}
    for entry in entries:
        if entry.kind == "resumed":
            undecided.clear()
        elif entry.kind == Signal.REACHABLE:
            reached.add(entry.attempt)
        elif entry.kind == Signal.GIVE_UP and entry.attempt in reached:
            undecided[entry.attempt] = undecided.get(entry.attempt, True) and not entry.data.get("outcome")
    return [number for number, is_so in undecided.items() if is_so]


def lost(entries: Sequence[Entry], usd: Mapping[int, Decimal]) -> list[Stretch]:
    """Of those, the machines that had begun to train. How many others are tried is bounded where they are rented."""
    trained = {entry.attempt for entry in entries if entry.kind == Signal.STARTED}
    gained = steps_gained(entries)
    return [
        Stretch(attempt=number, steps=gained.get(number, 0), usd=usd.get(number, Decimal(0)))
        for number in given_up(entries)
        if number in trained
    ]


def patience_s(start_s: float, unsaved_s: float) -> float:
    """How long a machine is waited for that tells nothing while its cloud calls it alive.

    As long as another one would need to be as far: `start_s` for boot and set-up, `unsaved_s` of training to be done again. Whoever
    rents skis for as long as buying costs pays at most twice the least (Karlin, Manasse, Rudolph and Sleator, 1988).
    """
    return min(max(start_s + unsaved_s, SHORTEST_PATIENCE_S), LONGEST_PATIENCE_S)


def checkpoint_every_s(cost_s: float, life_s: float = LIFE_S) -> float:
    """Seconds of training between two checkpoints that waste the least, where one costs `cost_s` and machines last `life_s` on the average.

    sqrt(2 cost life): J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974).
    """
    return sqrt(2 * cost_s * life_s)
