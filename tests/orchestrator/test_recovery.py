"""Whether going on pays, how long silence is borne, how often to save: decided from numbers alone."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from math import sqrt
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger import Entry
from orchestrator.machines.recovery import (
    ENOUGH,
    FRUITLESS,
    LIFE_S,
    LONGEST_PATIENCE_S,
    SHORTEST_PATIENCE_S,
    Choice,
    Stretch,
    checkpoint_every_s,
    does_going_on_pay,
    given_up,
    lost,
    patience_s,
    steps_at_home,
    steps_gained,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def stretches(*told: tuple[int, str]) -> list[Stretch]:
    return [Stretch(attempt=n, steps=steps, usd=Decimal(usd)) for n, (steps, usd) in enumerate(told, start=1)]


def choice(*told: tuple[int, str], left: int = 1000, usd: str = "5", interruptible: bool = True) -> Choice:
    return does_going_on_pay(stretches(*told), steps_left=left, left_usd=Decimal(usd), interruptible=interruptible).choice


# -- does going on pay -----------------------------------------------------------------------------


def test_one_loss_is_no_reason_to_end():
    assert choice((0, "0.05")) is Choice.GO_ON
    assert choice((1, "4.00"), usd="1.00") is Choice.GO_ON, "one machine says nothing of the next"


def test_machines_that_bring_nothing_home_are_bounded():
    """However cheap they were."""
    assert choice((0, "0"), (0, "0"), interruptible=False) is Choice.GO_ON
    assert choice((0, "0"), (0, "0")) is Choice.STEADY, "the last try is on a machine that nobody can outbid"
    for interruptible in (True, False):
        assert choice((500, "0"), *[(0, "0")] * FRUITLESS, interruptible=interruptible) is Choice.END


def test_progress_begins_the_count_anew():
    assert choice((0, "0"), (0, "0"), (5, "0"), (0, "0")) is Choice.GO_ON


def test_a_pace_that_the_cap_does_not_last_for_ends_bids_then_the_run():
    """Three machines, 30 steps for 0.60: 1000 steps would need 20 dollars."""
    slow = [(10, "0.20")] * ENOUGH
    assert choice(*slow, usd="20") is Choice.GO_ON
    assert choice(*slow, usd="19.99") is Choice.STEADY
    assert choice(*slow, usd="19.99", interruptible=False) is Choice.END
    assert choice(*slow[:-1], usd="0.01") is Choice.GO_ON, "two are not enough to know a pace"


def test_the_reason_is_told_with_its_figures():
    verdict = does_going_on_pay(stretches(*[(10, "0.20")] * 3), steps_left=1000, left_usd=Decimal("4.4"), interruptible=False)
    assert verdict.why == (
        "30 steps have cost $0.6000 on the 3 machines that were lost; at that pace the 1000 that are left need $20.00,"
        " and $4.40 of the cap is left"
    )


@given(
    told=st.lists(st.tuples(st.integers(0, 50), st.decimals(0, 1, places=3)), max_size=12),
    left=st.integers(1, 1000),
    usd=st.decimals(0, 10, places=2),
    interruptible=st.booleans(),
)
def test_going_on_never_lasts_for_ever(told: list[tuple[int, Decimal]], left: int, usd: Decimal, interruptible: bool):
    """Machines that gain nothing end any run after `FRUITLESS` more, and more money never turns going on into ending."""
    before = [Stretch(attempt=n, steps=steps, usd=cost) for n, (steps, cost) in enumerate(told)]
    after = [*before, *(Stretch(attempt=99, steps=0, usd=Decimal(0)) for _ in range(FRUITLESS))]
    assert does_going_on_pay(after, steps_left=left, left_usd=usd, interruptible=interruptible).choice is Choice.END
    poor = does_going_on_pay(before, steps_left=left, left_usd=usd, interruptible=interruptible).choice
    rich = does_going_on_pay(before, steps_left=left, left_usd=usd * 2 + 1, interruptible=interruptible).choice
    order = [Choice.END, Choice.STEADY, Choice.GO_ON]
    assert order.index(rich) >= order.index(poor)


# -- what the book says ----------------------------------------------------------------------------


def book(*told: tuple[str, int, dict[str, object]]) -> list[Entry]:
    return [Entry(seq=n, at=T0, kind=kind, attempt=attempt, data=data) for n, (kind, attempt, data) in enumerate(told, start=1)]


def fetched(attempt: int, job: str, step: int, role: str = "checkpoint", *, final: bool = False) -> tuple[str, int, dict[str, object]]:
    return ("fetched", attempt, {"job": job, "step": step, "role": role, "final": final})


def test_steps_count_once_and_for_the_machine_that_brought_them():
    entries = book(
        fetched(1, "a", 10),
        fetched(1, "a", 10, "adapter"),  # from an adapter that is not the last nobody can go on
        fetched(1, "a", 15, "adapter"),
        fetched(2, "a", 10),  # done again
        fetched(2, "a", 20),
        fetched(2, "b", 7),
        fetched(3, "a", 30, "adapter", final=True),
    )
    assert steps_at_home(entries) == {"a": 30, "b": 7}
    assert steps_gained(entries) == {1: 10, 2: 17, 3: 10}


@given(seed=st.integers(0, 10**6))
def test_what_all_machines_gained_is_what_is_at_home(seed: int):
    rng = Random(seed)
    entries = book(*(fetched(rng.randrange(1, 5), rng.choice("ab"), rng.randrange(100)) for _ in range(rng.randrange(12))))
    assert sum(steps_gained(entries).values()) == sum(steps_at_home(entries).values())


def test_lost_are_machines_that_trained_and_ended_undecided_since_the_user_said_go():
    usd = dict.fromkeys(range(1, 9), Decimal("0.1"))
    entries = book(
        ("reachable", 1, {}), ("started", 1, {}), ("give_up", 1, {"why": "outbid"}), ("gone", 1, {}),
        ("resumed", 0, {}),
        ("give_up", 2, {"why": "it did not boot"}),
        ("reachable", 3, {}), ("unfit", 3, {}), ("give_up", 3, {"why": "another card"}),
        ("reachable", 4, {}), ("started", 4, {}), fetched(4, "a", 5), ("give_up", 4, {"why": "outbid"}), ("gone", 4, {}),
        ("reachable", 5, {}), ("started", 5, {}), ("give_up", 5, {"why": "done", "outcome": {"exit_code": 0}}),
        ("reachable", 6, {}), ("started", 6, {}), ("give_up", 6, {"why": "a"}), ("give_up", 6, {"why": "b", "outcome": {"exit_code": 130}}),
        ("reachable", 7, {}), ("give_up", 7, {"why": "its environment could not be built"}),
    )  # fmt: skip
    assert lost(entries, usd) == [Stretch(attempt=4, steps=5, usd=Decimal("0.1"))]
    assert given_up(entries) == [3, 4, 7], "these are not tried again by this run"


# -- how long, how often ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "unsaved", "patience"),
    [(0, 0, SHORTEST_PATIENCE_S), (300, 0, 300), (300, 200, 500), (1e6, 0, LONGEST_PATIENCE_S), (10, 20, SHORTEST_PATIENCE_S)],
)
def test_a_silent_machine_is_waited_for_as_long_as_another_would_need(start: float, unsaved: float, patience: float):
    assert patience_s(start, unsaved) == patience


@given(start=st.floats(SHORTEST_PATIENCE_S, 900), unsaved=st.floats(0, 900), back_after=st.floats(0, 10_000))
def test_whoever_waits_so_pays_at_most_twice_the_least(start: float, unsaved: float, back_after: float):
    """Against one who knows when the machine is back."""
    other = start + unsaved
    paid = back_after if back_after <= patience_s(start, unsaved) else patience_s(start, unsaved) + other
    assert paid <= 2 * min(back_after, other) + 1e-6


def test_the_interval_wastes_the_least():
    """Against every other, by brute force: what saving costs, and half an interval done again at every loss."""
    cost = 20.0

    def waste(every: float) -> float:
        return cost / every + every / 2 / LIFE_S

    best = checkpoint_every_s(cost)
    assert best == pytest.approx(sqrt(2 * cost * LIFE_S))
    assert all(waste(best) <= waste(best * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2))
    for wrong in (1 / 4, 4):  # as the comment at LIFE_S says
        assert waste(checkpoint_every_s(cost, LIFE_S * wrong)) == pytest.approx(1.25 * waste(best))
