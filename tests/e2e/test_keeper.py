"""With a keeper: the lorry that drives is killed at every phase, nobody types anything, and the results come home all the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from orchestrator.crashpoints import POINTS

from .test_signals import Terminal, last_entry, words
from .world import Lorry, adapters, check_gone, check_receipt, check_results, lives, poll

BEFORE_THE_BOOK = {"ordered", "opened-unwritten"}
SAMPLE = ("fetching",)
"""While training goes on; `make crash` tries them all."""
KEEPER = {"LORRY_KEEPER": "on"}


def points() -> list[object]:
    return [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.crash) for name in POINTS]


def until_closed(lorry: Lorry, run: str, timeout_s: float = 300) -> None:
    """Wait for the book's last word, and for the end of whoever wrote it."""
    poll(lambda: "closed" in lorry.kinds(run), what="the run's end", timeout_s=timeout_s)
    poll(lambda: not lives(keeper_of(lorry, run)), what="the keeper's end", timeout_s=30)


def keeper_of(lorry: Lorry, run: str) -> int:
    import json

    return int(json.loads((lorry.at(run) / "keeper.json").read_text())["pid"])


@pytest.mark.parametrize("point", points())
def test_a_killed_lorry_is_followed_by_its_keeper_with_nobody_typing_anything(point: str, lorry: Lorry, quick: Path, undisturbed):
    killed = lorry("run", str(quick), "-y", LORRY_CRASH_AT=point, **KEEPER)
    assert killed.code == -9, killed.err
    (folder,) = (lorry.home / "runs").iterdir()
    run = folder.name
    if point in BEFORE_THE_BOOK:
        poll(lambda: (lorry.at(run) / "keeper.json").exists() and not lives(keeper_of(lorry, run)), what="the keeper's end", timeout_s=30)
        assert lorry.cloud.machines(run) == []
        return
    until_closed(lorry, run)
    assert adapters(lorry, run) == undisturbed("quick")["adapters"]
    check_results(lorry, run)
    told = lorry("attach", run, "--json")
    assert (told.code, told.document["status"]) == (0, "done")
    check_receipt(lorry, told.document)
    assert len(check_gone(lorry, run)) == 1


@pytest.mark.slow
def test_a_machine_is_looked_after_before_anybody_notices_that_its_lorry_has_died(lorry: Lorry, long: Path, undisturbed):
    """While the keeper drives, `ps` says so and ends with 0; `stop` asks it like any other."""
    driver = lorry.start("run", str(long), "-y", **KEEPER)
    with lorry.standing(2) as run:
        before = lorry("ps", "--json")
        assert [(row["driven"], row["kept"]) for row in before.document] == [(True, True)]
        driver.kill()
        poll(lambda: lorry("ps", "--json").document[0]["driven"], what="the next lorry", timeout_s=60)
        seen = lorry("ps")
        assert seen.code == 0, seen.err
        assert "its keeper" in seen.out
        stopping = lorry.start("stop", run, "--json")
        poll((lorry.cloud.session(run) / "stop").exists, what="the wish to stop over there")
    stopped = stopping.end()
    assert (stopped.code, stopped.document["status"]) == (0, "stopped"), stopped.err
    check_receipt(lorry, stopped.document)
    until_closed(lorry, run)


@pytest.mark.slow
def test_when_the_keeper_is_killed_too_the_next_command_finds_and_finishes_the_run(lorry: Lorry, quick: Path, undisturbed):
    driver = lorry.start("run", str(quick), "-y", **KEEPER)
    poll(lambda: lorry.runs and "launched" in lorry.kinds(lorry.run), what="a machine")
    run = lorry.run
    poll((lorry.at(run) / "keeper.json").exists, what="a keeper", timeout_s=30)
    os.kill(keeper_of(lorry, run), signal.SIGKILL)
    driver.kill()
    told = lorry("ps")  # without a keeper, as scripts have it: it is said, and the exit code says it too
    assert told.code == 10
    assert "MAY BE BILLING" in told.err
    found = lorry("ps", **KEEPER)
    assert found.code == 0, found.err
    assert f"run {run} MAY BE BILLING" in found.err
    assert "takes the run up in the background" in found.err
    until_closed(lorry, run)
    assert adapters(lorry, run) == undisturbed("quick")["adapters"]
    assert len(check_gone(lorry, run)) == 1
    assert lorry("ps", **KEEPER).err == "no run is under way; `lorry ps --all` lists the finished ones\n"


@pytest.mark.slow
def test_a_detached_run_is_driven_by_its_keeper(lorry: Lorry, quick: Path, undisturbed):
    begun = lorry("run", str(quick), "-y", "--detach", "--json", **KEEPER)
    run = begun.document["run"]
    poll((lorry.at(run) / "keeper.json").exists, what="a keeper", timeout_s=30)
    assert keeper_of(lorry, run) == begun.document["pid"]
    until_closed(lorry, run)
    assert adapters(lorry, run) == undisturbed("quick")["adapters"]
    assert len(check_gone(lorry, run)) == 1


@pytest.mark.slow
def test_a_run_whose_machine_is_reaped_rents_no_other(lorry: Lorry, long: Path):
    """`reap --yes` means an end: whoever drives is asked to stop first."""
    driver = lorry.start("run", str(long), "-y", "--json", **KEEPER)
    with lorry.standing(1) as run:
        refused = lorry("reap", "--yes", "--at-most", "0", "--provider", "sandbox")
        assert refused.code == 10
        assert "more than 0; nothing was touched" in refused.err
        assert [m.live for m in lorry.cloud.machines(run)] == [True]
        reaped = lorry("reap", "--yes", "--provider", "sandbox", "--json")
    assert reaped.code == 0, reaped.err
    assert [row["destroyed_verified"] for row in reaped.document] == [True]
    assert driver.end().code == 130
    until_closed(lorry, run)
    assert len(check_gone(lorry, run)) == 1


def test_a_closed_terminal_and_a_kill_after_it_lose_nothing(lorry: Lorry, long: Path, undisturbed):
    terminal = Terminal(lorry, "run", str(long), "-y", **KEEPER)
    with lorry.standing(4, meanwhile=terminal.read) as run:
        terminal.close()
        assert lives(terminal.pid), "the lorry lives on without it"
        os.kill(terminal.pid, signal.SIGKILL)
        terminal.wait(10)
    until_closed(lorry, run)
    assert last_entry(lorry, run)["exit_code"] == 0
    assert adapters(lorry, run) == undisturbed("long")["adapters"]
    assert "destroyed" not in words(terminal.shown)
    assert len(check_gone(lorry, run)) == 1
