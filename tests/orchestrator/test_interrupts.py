"""Signals are counted, never obeyed in the middle of a line; once is orderly, twice is now, and afterwards all is as before."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from orchestrator.errors import Interrupted
from orchestrator.safety.interrupts import HERE, RENTED, SIGNALS, Interrupts

NUMBERS = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.mark.parametrize("number", NUMBERS)
def test_every_signal_that_means_stop_is_counted(number: int, said: list[str]):
    with Interrupts(said.append).caught() as interrupts:
        assert not interrupts.wanted
        os.kill(os.getpid(), number)
        assert (interrupts.count, interrupts.wanted, interrupts.urgent) == (1, True, False)


def test_once_asks_twice_ends_and_a_third_time_changes_nothing(said: list[str]):
    with Interrupts(said.append).caught() as interrupts:
        interrupts.check()
        interrupts.check_urgent()
        os.kill(os.getpid(), signal.SIGINT)
        interrupts.check_urgent()
        with pytest.raises(Interrupted):
            interrupts.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted) as caught:
            interrupts.check_urgent()
        assert caught.value.exit_code == 130
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.count == 3
    assert ["saved and fetched" in said[0], "ending now" in said[1], "lorry stays" in said[2]] == [True] * 3
    assert not any("destroyed, and seen" in words for words in said), "nothing is promised that was not seen"


def test_afterwards_every_handler_is_what_it_was(said: list[str]):
    mine = {number: (lambda *_: None) for number in NUMBERS}
    for number, handler in mine.items():
        signal.signal(number, handler)
    with suppress(ZeroDivisionError), Interrupts(said.append).caught():
        assert all(signal.getsignal(number) is not mine[number] for number in NUMBERS)
        raise ZeroDivisionError
    assert {number: signal.getsignal(number) for number in NUMBERS} == mine


def test_what_was_ignored_stays_ignored(said: list[str]):
    """nohup and a shell's background jobs ask for it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupts(said.append).caught() as interrupts:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.count == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_closed_terminal_ends_nothing_that_can_be_watched_from_another(said: list[str]):
    """Any other signal still does, before and after it."""
    with Interrupts(said.append, outlives_terminal=True).caught() as interrupts:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert (interrupts.count, interrupts.wanted) == (0, False)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (interrupts.count, interrupts.wanted) == (1, True)
    assert ["goes on without it" in words for words in said] == [True, True, False]


def test_the_words_are_true_before_there_is_a_machine_and_where_none_is_rented(said: list[str]):
    assert not any("a checkpoint" in words or "the machine is destroyed" in words for words in RENTED)
    assert not any("machine" in words for words in HERE)
    with Interrupts(said.append, words=HERE).caught():
        for _ in range(4):
            os.kill(os.getpid(), signal.SIGINT)
    assert said == [*HERE, HERE[-1]]


@pytest.mark.parametrize(
    "error", [RuntimeError("reentrant call"), BrokenPipeError(), OSError(5, "Input/output error"), ValueError("closed file")]
)
def test_a_terminal_that_cannot_be_written_to_makes_no_signal_fatal(error: Exception):
    def say(_: str) -> None:
        raise error

    with Interrupts(say).caught() as interrupts:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.urgent


def test_the_count_outlives_the_block(said: list[str]):
    """What is destroyed after it still knows that the user asked."""
    interrupts = Interrupts(said.append)
    with interrupts.caught():
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.wanted
