"""The life of a lease is a table; these are its promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.lifecycle import PAYING, TRANSITIONS, IllegalTransition, Phase, Signal, advance, heard

ROOT = Path(__file__).parents[2]
END = Phase.GONE


def reachable(start: Phase) -> set[Phase]:
    seen, todo = {start}, [start]
    while todo:
        for phase in TRANSITIONS[todo.pop()].values():
            if phase not in seen:
                seen.add(phase)
                todo.append(phase)
    return seen


def test_the_table_knows_every_phase_and_uses_every_signal():
    assert set(TRANSITIONS) == set(Phase)
    assert {signal for row in TRANSITIONS.values() for signal in row} == set(Signal)


@pytest.mark.parametrize("phase", sorted(PAYING))
def test_from_every_paying_phase_the_end_is_reachable(phase: Phase):
    assert END in reachable(phase)


@pytest.mark.parametrize("phase", sorted(PAYING))
def test_every_paying_phase_can_be_given_up_and_can_be_found_gone(phase: Phase):
    assert advance(phase, Signal.GIVE_UP) is Phase.RELEASING
    assert advance(phase, Signal.GONE) is END


def test_giving_up_is_one_step_from_being_gone():
    assert advance(Phase.RELEASING, Signal.GONE) is END


def test_only_the_first_phase_and_the_last_are_free():
    assert frozenset(Phase) - PAYING == {Phase.PLANNED, END}


def test_a_machine_that_is_found_alive_always_opens_the_books_again():
    for phase in Phase:
        if heard(phase, Signal.LAUNCHED):
            assert advance(phase, Signal.LAUNCHED) in PAYING
    assert heard(END, Signal.LAUNCHED)


def test_nothing_leads_out_of_paying_but_gone_and_a_certain_refusal():
    out = {signal for phase in PAYING for signal, after in TRANSITIONS[phase].items() if after not in PAYING}
    assert out == {Signal.GONE, Signal.REFUSED}
    assert [phase for phase in PAYING if Signal.REFUSED in TRANSITIONS[phase]] == [Phase.LAUNCHING]


def test_every_phase_can_be_reached_from_the_first():
    assert reachable(Phase.PLANNED) == set(Phase)


def test_a_signal_that_means_nothing_is_our_mistake_and_says_so():
    with pytest.raises(IllegalTransition, match="shipped means nothing while training"):
        advance(Phase.TRAINING, Signal.SHIPPED)


def test_the_drawing_in_the_documents_is_fresh():
    script = ROOT / "docs" / "lifecycle.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0, f"run python {script.relative_to(ROOT)}"
    drawn = (ROOT / "docs" / "lifecycle.md").read_text()
    assert all(f"{phase} --> " in drawn or phase is END for phase in Phase)
