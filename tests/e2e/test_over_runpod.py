"""The main job over RunPod's face of the practice cloud: the same command, another name, and nothing else."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from providers.sandbox.billing import bill

from .world import Lorry, adapters, check_gone, check_results, config


def told(lorry: Lorry) -> dict[str, str]:
    """What `lorry sandbox --json` printed."""
    document: dict[str, str] = json.loads((lorry.cloud.folder / "sandbox.json").read_text())
    return document


def script(lorry: Lorry, *faults: dict[str, Any]) -> None:
    """Make the practice cloud fail so from now on."""
    key = {"Authorization": f"Bearer {told(lorry)['admin_key']}"}
    httpx.put(f"{told(lorry)['url']}/sandbox/faults", json=faults, headers=key, trust_env=False).raise_for_status()


def creates(lorry: Lorry) -> int:
    """Create requests that RunPod's face has had so far."""
    log = lorry.cloud.folder / "requests.jsonl"
    return log.read_text().count('"endpoint": "runpod.create"') if log.exists() else 0


def test_a_run_over_runpod_ends_although_its_first_create_answered_500_and_took_effect(lorry: Lorry, base: Path, drawn: Path) -> None:
    """The machine of that create is found by its label and given back; the next does the job; the meter has seen both and no more."""
    names = {"LORRY_RUNPOD_URL": "runpod_rest_url", "LORRY_RUNPOD_GRAPHQL_URL": "runpod_graphql_url", "RUNPOD_API_KEY": "runpod_api_key"}
    env = {variable: told(lorry)[name] for variable, name in names.items()}
    before = creates(lorry)
    script(lorry, {"endpoint": "runpod.create", "call": 1, "status": 500, "effect": True})
    try:
        done = lorry("run", str(config(lorry.folder, base, {"cat": drawn})), "--provider", "runpod", "-y", "--json", **env)
    finally:
        script(lorry)
    assert done.code == 0, done.err
    document = done.document
    rented = check_gone(lorry, document["run"])
    assert creates(lorry) - before == len(rented) == len(document["machines"]) == 2
    assert {machine["id"] for machine in document["machines"]} == {machine.id for machine in rented}
    assert {(machine["provider"], machine["destroyed_verified"]) for machine in document["machines"]} == {("runpod", True)}
    seen = [bill(lorry.cloud.folder).of(machine.id) for machine in rented]
    total = sum((one.total_usd for one in seen if one), Decimal(0))
    assert total <= Decimal(str(document["cost"]["metered_usd"])) + Decimal("1e-6"), "our own meter begins with the intent"
    assert document["cost"]["metered_usd"] <= float(total) * 1.5 + 0.001
    assert document["cost"]["billed_usd"] is None, "RunPod charges minutes later"
    check_results(lorry, document["run"])
    assert list(adapters(lorry, document["run"])) == ["cat"]
