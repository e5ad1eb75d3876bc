"""Several LoRAs on one machine, for real: what goes wrong in one is that one's, and more may come while it trains."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from trainer.protocol import Status

from .test_terms import DAYS, queue
from .world import Lorry, adapters, check_receipt, check_results, children_of, config, poll, supervisor_of

GOOD = {"one": 30, "two": 40, "three": 50, "four": 60}


@pytest.mark.slow
def test_a_session_of_six_keeps_what_each_has_come_to_whatever_happens_to_the_others(lorry: Lorry, base: Path, drawn: Path):
    """One dataset is spoilt, the machine runs out of memory once, and the cap does not last for the fifth.

    Four adapters are what each job gets alone; the fifth has its newest checkpoint at home; the sixth is told of; the machine is gone.
    """
    file = queue(lorry, base, drawn, {"poisoned": 20, **GOOD, "long": DAYS}, max_usd=20.0, minutes=9.0)
    killed = lorry("run", str(file), "-y", "--json", LORRY_CRASH_AT="started-written")
    assert killed.code == -signal.SIGKILL, killed.err
    session = lorry.cloud.session(lorry.run)
    next((session / "jobs/poisoned/data").rglob("*.png")).write_bytes(b"no picture any more")  # the trainer is still importing torch
    driver = lorry.start("attach", lorry.run, "--json")
    poll(lambda: lorry.step() >= 5, what="five steps", timeout_s=300)
    (worker,) = children_of(supervisor_of(session))
    os.kill(worker, signal.SIGKILL)  # as a kernel that is short of memory does
    done = driver.end(timeout_s=900)
    document = done.document
    assert done.code == 7, done.err
    jobs = {job["name"]: job for job in document["jobs"]}
    assert {name: job["status"] for name, job in jobs.items()} == {"poisoned": "failed", **dict.fromkeys(GOOD, "done"), "long": "stopped"}
    assert [(name, jobs[name]["steps"]) for name in GOOD] == list(GOOD.items())
    assert "LRY-" in jobs["poisoned"]["message"] or "picture" in jobs["poisoned"]["message"]
    assert Path(jobs["long"]["checkpoints"][-1]).name == f"step{jobs['long']['steps']:06d}.safetensors"
    assert "from now on they go one by one" in (lorry.at(lorry.run) / "events-1.jsonl").read_text()
    check_receipt(lorry, document)
    check_results(lorry, lorry.run)
    check_money(document)
    check_as_alone(lorry, file, set(GOOD))


def check_money(document: dict[str, Any]) -> None:
    """Each job's dollars are a part of the whole, and those who got more time paid more."""
    jobs = document["jobs"]
    assert sum(job["usd"] for job in jobs) == pytest.approx(document["cost"]["metered_usd"], abs=1e-4)
    assert sum(job["seconds"] for job in jobs) <= document["paid"]["seconds"]
    assert 0 < document["paid"]["share"] < 1
    poisoned, four = (next(job for job in jobs if job["name"] == name) for name in ("poisoned", "four"))
    assert poisoned["usd"] < four["usd"]


def check_as_alone(lorry: Lorry, file: Path, names: set[str]) -> None:
    """The adapters at home are those of jobs that this computer trains one by one, to rounding."""
    text = file.read_text()
    head, *jobs = text.split("[[lora]]\n")
    alone = file.with_name("alone.toml")
    alone.write_text("[[lora]]\n".join([head, *(job for job in jobs if job.split('"')[1] in names)]))
    done = lorry("train", str(alone), "--out", str(lorry.folder / "here"), "--one-by-one", "--json", timeout_s=600)
    assert done.code == 0, done.err
    for job in done.document["jobs"]:
        ours, theirs = load_file(lorry.at(lorry.run) / f"jobs/{job['name']}/{job['name']}.safetensors"), load_file(job["adapter"])
        assert ours.keys() == theirs.keys()
        apart = sum(float((ours[key].float() - theirs[key].float()).norm() ** 2) for key in ours) ** 0.5
        whole = sum(float(theirs[key].float().norm() ** 2) for key in ours) ** 0.5
        assert apart <= 2e-3 * whole, f"{job['name']}: {apart / whole}"  # saved in fp16


# -- more jobs while it trains ---------------------------------------------------------------------


def more(lorry: Lorry, base: Path, drawn: Path) -> Path:
    """A file with one more job."""
    folder = lorry.folder / "more"
    folder.mkdir()
    return config(folder, base, {"late": drawn}, steps=6)


def state(lorry: Lorry, run: str, job: str) -> str:
    """What the supervisor says of a job."""
    try:
        status = Status.model_validate_json((lorry.cloud.session(run) / "status.json").read_bytes())
    except FileNotFoundError:
        return ""
    return status.jobs[job].state if job in status.jobs else ""


@pytest.mark.slow
@pytest.mark.parametrize("point", ["", "added-written", "order-extended", "adding", "queue-extended", "joined-written"])
def test_a_job_that_is_added_joins_the_one_that_trains_whoever_is_killed_when(
    lorry: Lorry, base: Path, drawn: Path, undisturbed, point: str
):
    """Both are what they are alone; the machine was rented once."""
    file = config(lorry.folder, base, {"one": drawn}, steps=24, save_every_steps=8, gradient_accumulation=20)
    driver = lorry.start("run", str(file), "-y", "--json", **({"LORRY_CRASH_AT": point} if point else {}))
    with lorry.standing(4) as run:
        lorry.until_home(4)
        added = lorry("add", run, str(more(lorry, base, drawn)), "--json")
        assert added.code in ({0, 10} if point else {0}), added.err  # 10: nobody looked after the machine by then
        assert (added.document["added"], added.document["exit_code"]) == (["late"], 0)
        if point:
            assert driver.end().code == -signal.SIGKILL, "it died where it was told to"
            driver = lorry.start("attach", run, "--json")
        poll(lambda: state(lorry, run, "late"), what="the job in the machine's queue")
    done = driver.end()
    assert done.code == 0, done.err
    assert [(job["name"], job["status"], job["steps"]) for job in done.document["jobs"]] == [("one", "done", 24), ("late", "done", 6)]
    assert "together with one" in (lorry.at(run) / "events-1.jsonl").read_text(), "it joined"
    check_receipt(lorry, done.document)
    check_results(lorry, run)
    assert set(adapters(lorry, run)) == {"one", "late"}
    assert len(done.document["machines"]) == 1
    assert lorry.kinds(run).count("joined") == (point != "queue-extended"), "once; not by one who finds it done"


@pytest.mark.slow
def test_a_lorry_add_that_is_killed_has_asked_or_has_not(lorry: Lorry, base: Path, drawn: Path):
    """Killed after its request is on disk: the driver takes it in all the same."""
    file = config(lorry.folder, base, {"one": drawn}, steps=24, save_every_steps=8, gradient_accumulation=20)
    driver = lorry.start("run", str(file), "-y", "--json")
    with lorry.standing(4) as run:
        assert lorry("add", run, str(more(lorry, base, drawn)), LORRY_CRASH_AT="asked").code == -signal.SIGKILL
        again = lorry("add", run, str(lorry.folder / "more/lorry.toml"), "--json")
        assert again.code == 2
        assert "has a job of that name already: late" in json.loads(again.out)["message"]
    done = driver.end()
    assert (done.code, set(adapters(lorry, run))) == (0, {"one", "late"}), done.err
