"""The main job over Vast's face of the practice cloud: the same command, another name, and nothing else."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from providers.sandbox.billing import bill

from .world import Lorry, adapters, check_gone, check_results, config


@pytest.fixture
def vast(lorry: Lorry) -> dict[str, str]:
    """What a user sets to practise with Vast's tongue."""
    told = json.loads((lorry.cloud.folder / "sandbox.json").read_text())
    return {"LORRY_VAST_URL": told["vast_url"], "VAST_API_KEY": told["vast_api_key"]}


def test_a_run_over_vast_ends_with_its_adapter_at_home_and_the_bill_agrees(
    lorry: Lorry, base: Path, drawn: Path, vast: dict[str, str]
) -> None:
    file = config(lorry.folder, base, {"cat": drawn})
    done = lorry("run", str(file), "--provider", "vast", "-y", "--json", **vast)
    assert done.code == 0, done.err
    document = done.document
    assert document["status"] == "done"
    (machine,) = document["machines"]
    assert (machine["provider"], machine["destroyed_verified"]) == ("vast", True)
    (rented,) = check_gone(lorry, document["run"])
    assert machine["id"] == rented.id
    seen = bill(lorry.cloud.folder).of(rented.id)
    assert seen is not None
    cost = document["cost"]
    assert abs(Decimal(str(cost["billed_usd"])) - seen.total_usd) <= Decimal("0.002"), "Vast rounds each meter to a tenth of a cent"
    assert float(seen.total_usd) <= cost["metered_usd"] <= cost["cap_usd"], "our own meter begins earlier: Vast's GPU is free until it runs"
    check_results(lorry, document["run"])
    assert list(adapters(lorry, document["run"])) == ["cat"]
