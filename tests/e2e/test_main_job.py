"""The main job: two datasets of photographs become two adapters at home, and the money adds up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from orchestrator import crashpoints
from orchestrator.crashpoints import LEDGER_KINDS

from .world import ROOT, Lorry, adapters, check_receipt, check_results, config


@pytest.fixture(scope="session")
def photographs(once) -> Path:
    """The demo's datasets: crops of two real photographs, in kohya folders."""

    def make(folder: Path) -> str:
        subprocess.run([sys.executable, "-m", "templates.demo.datasets", str(folder)], cwd=ROOT, check=True, capture_output=True)
        return str(folder)

    return Path(once("photographs", make))


def prompted(name: str) -> dict[str, object]:
    return {"sample_every_steps": 2, "sample_prompts": [f"a {name} --w 64 --h 64 --s 2 --d 1"]}


def test_two_datasets_of_photographs_become_two_adapters_at_home(lorry: Lorry, base: Path, photographs: Path):
    """As the product page says it: one document on stdout, events as JSON lines on stderr, exit 0; and the cloud's own log agrees."""
    file = config(lorry.folder, base, {"cat": photographs / "cat", "cup": photographs / "cup"}, **prompted("cat"))
    done = lorry("run", str(file), "-y", "--json")
    assert done.code == 0, done.err
    document = done.document
    run = document["run"]
    assert document["status"] == "done"
    assert document["exit_code"] == 0
    assert set(document) >= {"run", "status", "exit_code", "jobs", "machines", "cost", "report"}
    check_receipt(lorry, document)
    check_results(lorry, run)
    assert [job["name"] for job in document["jobs"]] == ["cat", "cup"]
    home = adapters(lorry, run)
    for job in document["jobs"]:
        check_job(job, home)
    cost = document["cost"]
    assert set(cost) == {"estimated_usd", "metered_usd", "billed_usd", "cap_usd"}
    assert 0 < cost["estimated_usd"]["p10"] <= cost["estimated_usd"]["p50"] <= cost["estimated_usd"]["p90"]
    assert cost["metered_usd"] == pytest.approx(cost["billed_usd"], rel=0.25, abs=2e-5)
    assert cost["cap_usd"] == 1.0
    check_events(done.err)
    page = Path(document["report"]).read_text(encoding="utf-8")
    assert all(word in page for word in (run, "cat", "cup", "data:image/png;base64,"))
    assert not re.search(r"""(?:src|href)\s*=\s*["']?https?:""", page), "the page is to be self-contained"
    assert json.loads((lorry.at(run) / "receipt.json").read_text()) == document


def check_job(job: dict[str, Any], home: dict[str, str]) -> None:
    assert job["status"] == "done"
    assert job["steps"] == 4
    assert job["sha256"] == home[job["name"]]
    names = [Path(path).name for path in job["checkpoints"]]
    assert names[0] == "step000002.safetensors"
    assert names[1:] in ([], ["step000004.safetensors"]), "jobs that train together save together, so one may be saved at its end too"
    assert sorted(Path(path).name for path in job["samples"]) == [f"step{step:06d}-0.png" for step in (0, 2, 4)]
    with safe_open(job["adapter"], "pt") as file:
        names, about = set(file.keys()), file.metadata()
    assert all(re.fullmatch(r"lora_unet_\w+\.(lora_down\.weight|lora_up\.weight|alpha)", name) for name in names)
    assert about["ss_output_name"] == job["name"]


def check_events(stderr: str) -> None:
    lines = [json.loads(line) for line in stderr.splitlines()]
    assert lines[0]["type"] == "version"
    shown = [line for line in lines if line["type"] == "progress"]
    phases = dict.fromkeys(line["phase"] for line in shown if line["phase"] != "set-up")  # which may be over before the upload is
    assert list(phases) == ["rent", "boot", "proof", "inspection", "upload", "training", "pull", "destroy"]
    assert max(job["step"] for line in shown for job in line["jobs"]) == 4


def test_a_run_without_trouble_writes_the_kinds_of_entries_that_can_be_crashed_at(undisturbed):
    """Else a crash point would never be reached, or an entry never be crashed at."""
    assert set(undisturbed("quick")["kinds"]) == set(LEDGER_KINDS)


def test_every_crash_point_in_the_code_is_in_the_table():
    """A name that is not in the table would never be tried, one that is not in the code would never crash."""
    source = "".join(path.read_text() for path in sorted((ROOT / "orchestrator").rglob("*.py")) if path.name != "crashpoints.py")
    named = re.findall(r"crashpoint\(f?\"([^\"]+)\"\)", source)
    effects = [*crashpoints.EFFECTS, *(name for name in crashpoints.ADDING if not name.endswith("written"))]
    assert sorted(named) == sorted([*effects, "{kind}-unwritten", "{kind}-written"])
    assert len(crashpoints.POINTS) == len(crashpoints.EFFECTS) + 2 * len(LEDGER_KINDS)
