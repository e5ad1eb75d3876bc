"""`kill -9` of the client at every place, then `lorry attach`: the same adapters, one machine less than nothing forgotten."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.crashpoints import POINTS
from orchestrator.lease import GRACE_S
from orchestrator.ledger import Entry, read_entries, to_line
from providers.sandbox.provider import Sandbox

from .world import Lorry, adapters, check_gone, check_receipt, check_results

BEFORE_THE_BOOK = {"ordered", "opened-unwritten"}
"""Nothing is known of the run yet, and nothing was rented."""

SAMPLE = (
    "created",
    "started-unwritten",
    "staged",
)
"""Here and there; `make crash` tries them all."""


def points() -> list[object]:
    """Each point; those outside of the sample are marked, so that `make test` leaves them out."""
    return [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.crash) for name in POINTS]


@pytest.mark.parametrize("point", points())
def test_a_run_whose_client_was_killed_ends_as_if_nothing_had_happened(point: str, lorry: Lorry, quick: Path, undisturbed):
    killed = lorry("run", str(quick), "-y", LORRY_CRASH_AT=point)
    assert killed.code == -9, killed.err
    if point in BEFORE_THE_BOOK:
        assert lorry.runs == []
        assert [m.label for m in lorry.cloud.machines(_folder_name(lorry))] == []
        return
    run = lorry.run
    if "launched" not in lorry.kinds(run):
        let_the_grace_pass(lorry, run)
    done = lorry("attach", run, "--json")
    assert done.code == 0, done.err
    assert adapters(lorry, run) == undisturbed("quick")["adapters"]
    check_receipt(lorry, done.document)
    check_results(lorry, run)
    assert done.document["status"] == "done"
    assert len(check_gone(lorry, run)) == 1, "one machine is enough for a run, whoever drives it"
    again = lorry("attach", run, "--json")
    assert again.code == 0
    assert again.document == done.document


def _folder_name(lorry: Lorry) -> str:
    (folder,) = (lorry.home / "runs").iterdir()
    return folder.name


def let_the_grace_pass(lorry: Lorry, run: str) -> None:
    """As if the computer had been off for a while: a create that may have been sent would have landed by now."""
    file = lorry.at(run) / "ledger.jsonl"
    moved = [_earlier(entry) for entry in read_entries(file.read_bytes())]
    file.write_bytes(b"".join(map(to_line, moved)))


def _earlier(entry: Entry) -> Entry:
    at: datetime = entry.at - timedelta(seconds=GRACE_S)
    return Entry(seq=entry.seq, at=at, kind=entry.kind, attempt=entry.attempt, data=entry.data)


@pytest.mark.crash
def test_killed_again_and_again_a_run_still_ends(lorry: Lorry, quick: Path, undisturbed):
    """Each life gets a little further; what one has done, the next does not pay for again."""
    last = lorry("run", str(quick), "-y", LORRY_CRASH_AT="created")
    run = lorry.run
    for point in ("launched-written", "uploading", "started-unwritten", "events-taken", "staged", "fetched-written", "terminated"):
        assert last.code == -9, last.err
        last = lorry("attach", run, LORRY_CRASH_AT=point)
    done = lorry("attach", run, "--json")
    assert done.code == 0, done.err
    assert adapters(lorry, run) == undisturbed("quick")["adapters"]
    check_receipt(lorry, done.document)
    assert len(check_gone(lorry, run)) == 1
    assert re.search(r"-a1-x\w+$", lorry.cloud.machines(run)[0].label)


@pytest.mark.crash
def test_a_machine_that_went_by_itself_when_all_was_at_home_needs_no_other(lorry: Lorry, quick: Path, undisturbed):
    killed = lorry("run", str(quick), "-y", LORRY_CRASH_AT="pulled-written")
    assert killed.code == -9, killed.err
    (machine,) = lorry.cloud.machines(lorry.run)
    Sandbox(lorry.cloud.folder).terminate(machine.id)
    done = lorry("attach", lorry.run, "--json")
    assert done.code == 0, done.err
    assert done.document["status"] == "done"
    assert adapters(lorry, lorry.run) == undisturbed("quick")["adapters"]
    assert len(check_gone(lorry, lorry.run)) == 1
