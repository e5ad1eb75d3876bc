"""`lorry doctor --drill` for real: the machine's own guard ends it while the client only watches, over every face of the practice cloud."""

from __future__ import annotations

import json
import signal
from typing import Any

import httpx
import pytest

from providers.sandbox.billing import bill

from .world import Lorry, check_gone, poll

FACES = {
    "sandbox": {},
    "vast": {"LORRY_VAST_URL": "vast_url", "VAST_API_KEY": "vast_api_key"},
    "runpod": {
        "LORRY_RUNPOD_URL": "runpod_rest_url",
        "LORRY_RUNPOD_GRAPHQL_URL": "runpod_graphql_url",
        "RUNPOD_API_KEY": "runpod_api_key",
    },
}


def told(lorry: Lorry) -> dict[str, str]:
    """What `lorry sandbox --json` printed."""
    document: dict[str, str] = json.loads((lorry.cloud.folder / "sandbox.json").read_text())
    return document


def face(lorry: Lorry, provider: str) -> dict[str, str]:
    """What a user sets to practise with this tongue."""
    return {variable: told(lorry)[name] for variable, name in FACES[provider].items()}


def script(lorry: Lorry, *faults: dict[str, Any]) -> None:
    """Make the practice cloud fail so from now on."""
    key = {"Authorization": f"Bearer {told(lorry)['admin_key']}"}
    httpx.put(f"{told(lorry)['url']}/sandbox/faults", json=faults, headers=key, trust_env=False).raise_for_status()


def steps(document: Any) -> dict[str, dict[str, Any]]:
    return {step["step"]: step for step in document["steps"]}


@pytest.mark.parametrize("provider", [name if name == "sandbox" else pytest.param(name, marks=pytest.mark.slow) for name in FACES])
def test_the_guard_ends_the_machine_by_itself_and_the_bill_agrees(provider: str, lorry: Lorry) -> None:
    done = lorry("doctor", "--drill", provider, "-y", "--json", **face(lorry, provider))
    assert done.code == 0, done.err
    document = done.document
    assert document["passed"] is True
    seen = steps(document)
    assert list(seen) == ["account", "rent", "boot", "guard, hardware", "host key", "guard ends it", "seen to be gone", "bill"]
    assert {step["health"] for step in document["steps"]} == {"ok"}
    assert "by the guard alone" in seen["guard ends it"]["said"]
    (rented,) = check_gone(lorry, document["drill"])
    assert [(machine["id"], machine["destroyed_verified"]) for machine in document["machines"]] == [(rented.id, True)]
    billed = bill(lorry.cloud.folder).of(rented.id)
    assert billed is not None
    assert float(billed.total_usd) <= document["cost"]["metered_usd"] + 1e-6 <= 0.25
    kept = json.loads((lorry.at(document["drill"]) / "drill.json").read_text())
    assert kept == document, "what a user sends is what was printed"
    for secret in face(lorry, provider).values():
        if secret.startswith("sandbox-"):
            assert secret not in done.out + done.err
            assert [file for file in lorry.home.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()] == []


def test_the_price_is_said_first_and_nothing_is_rented_without_a_yes(lorry: Lorry) -> None:
    before = len(lorry.cloud.machines())
    done = lorry("doctor", "--drill", "sandbox")
    assert done.code == 2
    assert "for some minutes, $" in done.err
    assert "at worst; the cap is $0.25" in done.err
    assert "say yes beforehand with -y" in done.err
    assert len(lorry.cloud.machines()) == before
    assert lorry.runs == []


def test_a_cap_that_is_too_small_rents_nothing(lorry: Lorry) -> None:
    before = len(lorry.cloud.machines())
    done = lorry("doctor", "--drill", "sandbox", "--budget", "0.001", "-y")
    assert done.code == 5
    assert len(lorry.cloud.machines()) == before


@pytest.mark.slow
def test_a_drill_that_is_killed_is_found_and_its_machine_ended(lorry: Lorry) -> None:
    """Its book is that of any run: ps lists it, down ends it."""
    running = lorry.start("doctor", "--drill", "sandbox", "-y", LORRY_KEEPER="off")
    poll(lambda: lorry.runs and "reachable" in lorry.kinds(lorry.run), what="a machine that answers")
    running.kill()
    run = lorry.run
    assert [m.live for m in lorry.cloud.machines(run)] == [True]
    listed = lorry("ps", "--json", LORRY_KEEPER="off")
    assert [row["run"] for row in listed.document] == [run]
    looked = lorry("doctor", LORRY_KEEPER="off")
    assert (looked.code, run in looked.out) == (10, True)
    ended = lorry("attach", run, "--json", LORRY_KEEPER="off")
    assert ended.code == 130, ended.err
    assert "the drill was cut off" in ended.document["message"]
    check_gone(lorry, run)


@pytest.mark.slow
def test_ctrl_c_ends_the_machine_at_once(lorry: Lorry) -> None:
    running = lorry.start("doctor", "--drill", "sandbox", "-y")
    poll(lambda: lorry.runs and "inspected" in lorry.kinds(lorry.run), what="a machine that is what it should be")
    running.process.send_signal(signal.SIGINT)
    done = running.end()
    assert done.code == 130, done.err
    check_gone(lorry, lorry.run)
