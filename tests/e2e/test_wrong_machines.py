"""Machines that are not what was offered are found out before anything of the user's goes there; the next one does the job.

The best offer's machine has another card, or a line that creeps; the cloud's own meter says what went to it.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from providers.sandbox.billing import bill

from .world import Lorry, adapters, check_gone, check_results, config

FACES = {
    "sandbox": {},
    "vast": {"LORRY_VAST_URL": "vast_url", "VAST_API_KEY": "vast_api_key"},
    "runpod": {"LORRY_RUNPOD_URL": "runpod_rest_url", "LORRY_RUNPOD_GRAPHQL_URL": "runpod_graphql_url", "RUNPOD_API_KEY": "runpod_api_key"},
}
LOOK_BYTES = 64 * 1024
"""Two log-ins, the guard's lease and the inspector come to less than this."""


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Pictures that nothing makes smaller: 800 kB that cannot pass by unseen."""
    folder, draw = tmp_path / "noise", random.Random(7)
    folder.mkdir()
    for name in ("a", "b", "c", "d"):
        Image.frombytes("RGB", (256, 256), draw.randbytes(3 * 256 * 256)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("noise")
    return folder


def told(lorry: Lorry) -> dict[str, str]:
    """What `lorry sandbox --json` printed."""
    document: dict[str, str] = json.loads((lorry.cloud.folder / "sandbox.json").read_text())
    return document


def let_happen(lorry: Lorry, **happening: Any) -> None:
    """To the machine that is rented next."""
    key = {"Authorization": f"Bearer {told(lorry)['admin_key']}"}
    url = f"{told(lorry)['url']}/sandbox/happenings"
    httpx.put(url, json=[happening], headers=key, trust_env=False).raise_for_status()


def env_of(lorry: Lorry, face: str) -> dict[str, str]:
    return {variable: told(lorry)[name] for variable, name in FACES[face].items()}


def bytes_to(lorry: Lorry, machine: str) -> int:
    """By the cloud's meter."""
    seen = bill(lorry.cloud.folder).of(machine)
    assert seen is not None
    return seen.up_bytes


def remembered(lorry: Lorry) -> list[dict[str, Any]]:
    """What lorry keeps of machines that failed it."""
    machines: list[dict[str, Any]] = json.loads((lorry.home / "machines.json").read_text())["machines"]
    return machines


@pytest.mark.parametrize("face", [name if name == "sandbox" else pytest.param(name, marks=pytest.mark.slow) for name in FACES])
def test_a_machine_with_another_card_gets_no_byte_of_the_dataset_and_the_next_one_trains(lorry: Lorry, base: Path, noise: Path, face: str):
    file, env = config(lorry.folder, base, {"cat": noise}), env_of(lorry, face)
    asked = lorry("plan", str(file), "--provider", face, "--json", **env)
    (best, *_) = asked.document["candidates"]
    let_happen(lorry, what="card", card={"name": "NVIDIA GeForce GTX 1650", "vram_gib": 4.0})
    done = lorry("run", str(file), "--provider", face, "-y", "--json", **env)
    assert done.code == 0, done.err
    wrong, right = done.document["machines"]
    assert wrong["outcome"] == f"offered {best['gpu']} {best['vram_gib']:g} GiB, the machine has GTX 1650 4 GiB"
    assert wrong["outcome"] in done.err, "it is said when it happens, too"
    assert [m.id for m in check_gone(lorry, done.document["run"])] == [wrong["id"], right["id"]]
    assert (wrong["destroyed_verified"], right["destroyed_verified"]) == (True, True)
    data = sum(file.stat().st_size for file in noise.rglob("*") if file.is_file())
    assert bytes_to(lorry, wrong["id"]) < LOOK_BYTES < data < bytes_to(lorry, right["id"])
    kinds = [entry["kind"] for entry in lorry.ledger(done.document["run"]) if entry["attempt"] == 1]
    assert kinds == ["intent", "launched", "reachable", "age", "unfit", "give_up", "gone"]
    check_results(lorry, done.document["run"])
    assert list(adapters(lorry, done.document["run"])) == ["cat"]
    (bad,) = remembered(lorry)
    assert (bad["provider"], bad["fault"], bad["why"]) == (face, "wrong hardware", wrong["outcome"])
    again = lorry("plan", str(file), "--provider", face, "--json", **env).document
    assert again["left_out"]["failed us lately"] >= 1
    assert best["offer"] not in [candidate["offer"] for candidate in again["candidates"]]


@pytest.mark.slow
def test_a_machine_whose_line_creeps_is_given_back_and_what_was_tried_on_it_is_on_our_meter(lorry: Lorry, quick: Path):
    let_happen(lorry, what="line", scale=6000.0)
    done = lorry("run", str(quick), "-y", "--json")
    assert done.code == 0, done.err
    slow, _ = done.document["machines"]
    assert re.match(r"its line is slow, 0\.[01] Mbit/s up, 0\.[01] down: sending and fetching would take", slow["outcome"])
    (bad,) = remembered(lorry)
    assert bad["fault"] == "slow line"
    check_gone(lorry, done.document["run"])
    moved = [entry["data"] for entry in lorry.ledger(done.document["run"]) if (entry["kind"], entry["attempt"]) == ("moved", 1)]
    ours = sum(int(data.get("uploaded", 0)) for data in moved)
    assert 0 < ours <= bytes_to(lorry, slow["id"]) < ours + 2 * LOOK_BYTES
