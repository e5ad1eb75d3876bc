"""Under what terms a machine trains, for real: a queue that does not fit is cut from its end, and a price that rises keeps to the cap."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from .world import Lorry, adapters, check_receipt, check_results, config, poll

DAYS = 100_000
"""Steps that no deadline of this file leaves time for."""


def queue(lorry: Lorry, base: Path, drawn: Path, steps: dict[str, int], *, max_usd: float, minutes: float = 600.0) -> Path:
    """A config of jobs with steps of their own."""
    options = {"save_every_steps": DAYS // 10, "steps": 1, "gradient_accumulation": 2}
    path = config(lorry.folder, base, dict.fromkeys(steps, drawn), max_usd=max_usd, **options)
    text = path.read_text().replace("[machine]", f"max_hours = {minutes / 60:.4f}\n[machine]")
    for name, count in steps.items():
        text = text.replace(f'name = "{name}"\n', f'name = "{name}"\nsteps = {count}\n')
    path.write_text(text)
    return path


@pytest.mark.slow
def test_the_end_of_a_queue_that_does_not_fit_is_left_out_the_others_finish_and_resume_trains_it(lorry: Lorry, base: Path, drawn: Path):
    """Both would end half done. One is finished; two ends with a checkpoint at home, is called cut, and goes on from there."""
    file = queue(lorry, base, drawn, {"one": 300, "two": DAYS}, max_usd=20.0, minutes=12.0)
    done = lorry("run", str(file), "-y", "--json", timeout_s=600.0)
    assert done.code == 5, done.err
    document = done.document
    one, two = document["jobs"]
    assert (one["status"], one["steps"], two["status"]) == ("done", 300, "cut")
    assert 0 < two["steps"] < DAYS
    assert [Path(path).name for path in two["checkpoints"]][-1] == f"step{two['steps']:06d}.safetensors"
    assert (two["adapter"], document["status"]) == (None, "stopped by the cap")
    assert "the cap did not last for two" in document["message"]
    assert "two needs" in done.err
    assert "more minutes than the cap leaves; it is left out" in done.err
    check_receipt(lorry, document)
    check_results(lorry, document["run"])
    assert set(adapters(lorry, document["run"])) == {"one"}
    assert document["hint"].startswith(f"go on with: lorry resume {document['run']} --budget ")
    again = lorry.start("resume", document["run"], "--budget", document["hint"].split()[-1], "--json")
    with lorry.standing(two["steps"] + 3) as run:
        poll(lambda: len(began(lorry, run)) == 3, what="word of the second beginning")
        assert began(lorry, run)[2:] == [("two", two["steps"])], "from its checkpoint, and alone"
        again.kill()
        assert lorry("down", run).code == 0


@pytest.mark.slow
def test_a_price_that_rises_while_nobody_looks_is_said_and_the_cap_holds(lorry: Lorry, base: Path, drawn: Path):
    """Thirty times dearer: what is left of the cap is the way out, and the newest checkpoint comes home within it."""
    file = queue(lorry, base, drawn, {"one": DAYS}, max_usd=20.0)
    driver = lorry.start("run", str(file), "-y")
    with lorry.standing(4) as run:
        driver.kill()
        reprice(lorry, run, usd_per_hour=20.0 * 12)
    done = lorry("attach", run, "--json")
    assert done.code == 5, done.err
    assert "an hour now" in done.err
    assert "nothing is left to train with, so it ends now, in good order" in done.err
    document = done.document
    (job,) = document["jobs"]
    assert job["steps"] >= 4
    assert Path(job["checkpoints"][-1]).name == f"step{job['steps']:06d}.safetensors"
    cost = document["cost"]
    assert 0 < cost["billed_usd"] <= cost["cap_usd"]
    assert cost["metered_usd"] >= cost["billed_usd"] * 0.99, "our meter counts from when the old price was last seen"
    assert "priced" in lorry.kinds(run)


def began(lorry: Lorry, run: str) -> list[tuple[str, int]]:
    """Which jobs began at which step, on all its machines."""
    return [(e["job"], e["step"]) for e in lorry.events(run) if e["kind"] == "started"]


def reprice(lorry: Lorry, run: str, *, usd_per_hour: float) -> None:
    """The machine's host wants more from now on."""
    (machine,) = [m.id for m in lorry.cloud.machines(run) if m.live]
    admin = json.loads((lorry.cloud.folder / "sandbox.json").read_text())["admin_key"]
    body = json.dumps([{"what": "price", "machine": machine, "usd_per_hour": str(usd_per_hour)}]).encode()
    headers = {"Authorization": f"Bearer {admin}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{lorry.cloud.url}/sandbox/happenings", body, headers, method="PUT")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status < 300
