"""Machines that are taken away under a run: outbid, gone, cut off for a while. The run goes on by itself, and its adapter is the same."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from providers.sandbox.billing import bill

from .conftest import LONG
from .test_lives import check_as_undisturbed
from .world import Cloud, Lorry, check_gone, check_receipt, check_results, children_of, config, poll, supervisor_of


def happen(cloud: Cloud, **happening: object) -> None:
    """What no customer asked for."""
    told = json.loads((cloud.folder / "sandbox.json").read_text())
    request = urllib.request.Request(
        f"{cloud.url}/sandbox/happenings",
        data=json.dumps([happening]).encode(),
        method="PUT",
        headers={"Authorization": f"Bearer {told['admin_key']}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


@pytest.fixture
def vast(lorry: Lorry) -> dict[str, str]:
    """What a user sets to practise with Vast's tongue."""
    told = json.loads((lorry.cloud.folder / "sandbox.json").read_text())
    return {"LORRY_VAST_URL": told["vast_url"], "VAST_API_KEY": told["vast_api_key"]}


def living(lorry: Lorry) -> list[str]:
    """Ids of the only run's machines that live, in the order in which they were made."""
    return [m.id for m in lorry.cloud.machines(lorry.run) if m.live] if lorry.runs else []


def events_of(lorry: Lorry, machine: str) -> list[dict[str, Any]]:
    """What a machine's trainer has told so far, read on the machine itself."""
    log = lorry.cloud.folder / "machines" / machine / "root" / "lorry" / lorry.run / "events.jsonl"
    with suppress(FileNotFoundError):
        return [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]]
    return []


@contextmanager
def nth_standing(lorry: Lorry, number: int, step: int, *, home: int) -> Iterator[str]:
    """The run's machine of that number, when it has done `step`, stands still, and the checkpoint of step `home` is at home."""

    def reached() -> str:
        machines = [m.id for m in lorry.cloud.machines(lorry.run)] if lorry.runs else []
        there = machines[number - 1] if len(machines) == number and living(lorry) == machines[-1:] else ""
        return there if there and any(e["kind"] == "step" and e["step"] >= step for e in events_of(lorry, there)) else ""

    machine = poll(reached, what=f"step {step} on machine {number}", timeout_s=240)
    (worker,) = children_of(supervisor_of(lorry.cloud.session(lorry.run)))
    os.kill(worker, signal.SIGSTOP)
    try:
        poll(
            (lorry.at(lorry.run) / f"jobs/one/checkpoints/step{home:06d}.safetensors").exists, what=f"the checkpoint of step {home} at home"
        )
        yield machine
    finally:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)


def check_one_at_a_time(lorry: Lorry, run: str) -> None:
    """By the cloud's own log: no machine of the run was made before the one before had ended."""
    mine = {m.id for m in lorry.cloud.machines(run)}
    alive: set[str] = set()
    for line in (lorry.cloud.folder / "bill.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["machine"] in mine and event["event"] == "created":
            assert not alive, f"{event['machine']} was rented while {alive} was still there"
            alive.add(event["machine"])
        elif event["machine"] in mine and event["event"] == "ended":
            alive.discard(event["machine"])


@pytest.mark.slow
def test_a_run_outbid_three_times_ends_with_the_same_adapter(
    lorry: Lorry, base: Path, drawn: Path, vast: dict[str, str], undisturbed: Any
) -> None:
    """Over Vast's face, with bids: every stopped machine is destroyed before the next is rented, and the receipt shows all four."""
    file = config(lorry.folder, base, {"one": drawn}, machine="interruptible = true", **LONG)
    driver = lorry.start("run", str(file), "--provider", "vast", "-y", "--json", **vast)
    for number, (step, home) in enumerate(((4, 3), (7, 6), (7, 6)), start=1):
        with nth_standing(lorry, number, step, home=home) as machine:
            happen(lorry.cloud, what="outbid", machine=machine)
    done = driver.end()
    assert done.code == 0, done.err
    run, document = lorry.run, done.document
    check_as_undisturbed(lorry, run, undisturbed)
    check_results(lorry, run)
    check_one_at_a_time(lorry, run)
    rented = check_gone(lorry, run)
    machines = document["machines"]
    assert [m["id"] for m in machines] == [m.id for m in rented]
    assert [m["steps_gained"] for m in machines] == [3, 3, 0, 4]
    assert [m["interruptible"] for m in machines] == [True] * 4
    assert [m["outcome"] for m in machines] == [*["it is stopped: outbid"] * 3, "the work is done"]
    for mine, theirs in zip(machines, rented, strict=True):
        assert mine["destroyed_verified"] is True
        seen = bill(lorry.cloud.folder).of(theirs.id)
        assert seen is not None
        assert float(seen.total_usd) <= mine["metered_usd"] <= mine["usd_per_hour"] * mine["seconds"] / 3600 + 1e-3
    billed = sum((bill(lorry.cloud.folder).of(m.id).total_usd for m in rented), Decimal(0))  # type: ignore[union-attr]
    assert abs(Decimal(str(document["cost"]["billed_usd"])) - billed) <= Decimal("0.002") * 4, "Vast rounds each meter to a tenth of a cent"
    assert document["cost"]["metered_usd"] == pytest.approx(sum(m["metered_usd"] for m in machines), abs=1e-5)
    assert "going on from step 3 of 10 on another machine" in done.err
    assert sum("destroyed, and seen to be gone" in line for line in done.err.splitlines()) >= 4
    assert (lorry.at(run) / "report.html").read_text().count("<td>it is stopped: outbid</td>") == 3
    shown = lorry("attach", run, **vast)
    assert (shown.code, shown.out.count("steps gained: it is stopped: outbid")) == (0, 3), "the receipt for people"


@pytest.mark.parametrize("client", ["killed", pytest.param("alive", marks=pytest.mark.slow)])
def test_a_machine_that_dies_is_destroyed_and_another_goes_on(client: str, lorry: Lorry, long: Path, undisturbed: Any) -> None:
    """On demand, its container ended: what it leaves bills its disk until it is destroyed. Who takes the run up goes on as well."""
    crash = {"LORRY_CRASH_AT": "gone-written", "LORRY_KEEPER": "off"} if client == "killed" else {}
    driver = lorry.start("run", str(long), "-y", "--json", **crash)
    with nth_standing(lorry, 1, 4, home=3) as machine:
        happen(lorry.cloud, what="exit", machine=machine)
    done = driver.end()
    if client == "killed":  # between two machines: nothing lives, nothing was decided
        assert done.code == -9
        assert living(lorry) == []
        done = lorry("attach", lorry.run, "--json")
    assert done.code == 0, done.err
    run, document = lorry.run, done.document
    check_as_undisturbed(lorry, run, undisturbed)
    check_results(lorry, run)
    check_one_at_a_time(lorry, run)
    check_receipt(lorry, document)
    assert [m["steps_gained"] for m in document["machines"]] == [3, 7]
    assert document["machines"][0]["machine_id"] != document["machines"][1]["machine_id"], "it is remembered for what it did"
    assert [e["step"] for e in lorry.events(run) if e["kind"] == "started"] == [0, 3]


@pytest.mark.slow
def test_a_host_that_was_offline_for_a_while_is_not_replaced(lorry: Lorry, long: Path, undisturbed: Any) -> None:
    """Its cloud does not call it gone, and waiting costs less than another one: the run has one machine."""
    driver = lorry.start("run", str(long), "-y", "--json")
    with nth_standing(lorry, 1, 4, home=3) as machine:
        happen(lorry.cloud, what="offline", machine=machine)
        poll(lambda: '"text": "the machine does not answer, sandbox calls it' in driver.said, what="a word about the silence")
        happen(lorry.cloud, what="online", machine=machine)
    done = driver.end()
    assert done.code == 0, done.err
    assert "the machine answers again" in done.err
    check_as_undisturbed(lorry, lorry.run, undisturbed)
    (rented,) = check_gone(lorry, lorry.run)
    cost, seen = done.document["cost"], bill(lorry.cloud.folder).of(rented.id)
    assert seen is not None
    assert cost["billed_usd"] == pytest.approx(float(seen.total_usd), abs=2e-6)
    assert cost["billed_usd"] <= cost["metered_usd"], "our own meter does not know that the host's stood still"
