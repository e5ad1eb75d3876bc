"""A base that wants a token: tried here, fetched over there, trained on without the hub; and nobody but the hub has seen the token."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from fakehub import COMMIT, TOKEN, serving

from orchestrator import provenance
from trainer.base import read_metadata

from .world import Lorry, check_gone, config


@pytest.mark.slow
def test_a_run_on_a_gated_base_has_its_adapter_at_home_and_the_token_nowhere(lorry: Lorry, base: Path, drawn: Path) -> None:
    files = {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*") if path.is_file()}
    with serving(files) as hub:
        file = config(lorry.folder, Path("someone/gated"), {"cat": drawn}, family="sd15")
        env = {"HF_ENDPOINT": hub.url}
        refused = lorry("run", str(file), "-y", "--json", **env)
        assert refused.code == 11
        assert lorry.runs == [], "nothing was begun"
        done = lorry("run", str(file), "-y", "--json", HF_TOKEN=TOKEN, **env)
        assert done.code == 0, done.err
        check_gone(lorry, done.document["run"])
        assert {host for host, _ in hub.tokens()} == {hub.url.removeprefix("http://")}
    told = read_metadata(lorry.at(done.document["run"]) / "jobs/cat/cat.safetensors")
    weights = [(name, hashlib.sha256(data).hexdigest()) for name, data in files.items() if name.endswith(".safetensors")]
    assert told["lorry_base_revision"] == COMMIT
    assert told["lorry_base_sha256"] == provenance.digest(weights)
    assert done.document["made_with"]["cat"]["base_revision"] == COMMIT
    home = [path for path in lorry.folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert home == []
    assert TOKEN not in done.err + json.dumps(done.document)
