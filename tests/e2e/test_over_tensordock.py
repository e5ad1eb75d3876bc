"""The main job over TensorDock's face of the practice cloud. Its machines have no guard of their own, so that one has to allow it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .world import Lorry, adapters, check_gone, check_results, config


@pytest.mark.slow
def test_a_run_over_tensordock_ends_with_its_adapter_at_home(lorry: Lorry, base: Path, drawn: Path) -> None:
    told = json.loads((lorry.cloud.folder / "sandbox.json").read_text())
    env = {"LORRY_TENSORDOCK_URL": told["tensordock_url"], "TENSORDOCK_API_KEY": told["tensordock_api_key"]}
    file = config(lorry.folder, base, {"cat": drawn})
    done = lorry("run", str(file), "--provider", "tensordock", "--unguarded", "-y", "--json", **env)
    assert done.code == 0, done.err
    (machine,) = done.document["machines"]
    assert (machine["provider"], machine["destroyed_verified"]) == ("tensordock", True)
    (rented,) = check_gone(lorry, done.document["run"])
    assert machine["id"] == rented.id
    assert done.document["cost"]["billed_usd"] is None, "TensorDock keeps no public record of charges"
    check_results(lorry, done.document["run"])
    assert list(adapters(lorry, done.document["run"])) == ["cat"]
