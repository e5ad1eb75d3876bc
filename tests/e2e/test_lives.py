"""What may happen while a run is under way: others look on, processes die, people stop it and go on. The adapter is always the same."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from .world import Lorry, adapters, check_gone, check_receipt, check_results, children_of, lives, losses, poll, supervisor_of


def by_step(undisturbed) -> dict[int, float]:
    """The losses of the long job when nothing happens."""
    return {int(step): loss for step, loss in undisturbed("long")["losses"]}


def check_as_undisturbed(lorry: Lorry, run: str, undisturbed) -> None:
    """The same adapter from the same losses, step by step."""
    assert sorted(by_step(undisturbed)) == list(range(1, 11)), "the steps of the long job are to be told one by one"
    assert {step: loss for (_, step), loss in losses(lorry, run).items()} == by_step(undisturbed)
    assert adapters(lorry, run) == undisturbed("long")["adapters"]


@pytest.mark.slow
def test_others_look_on_while_one_drives(lorry: Lorry, long: Path, undisturbed):
    """ps, logs, pull, cost and a second attach, all beside the lorry that drives; both ends tell the same."""
    driver = lorry.start("run", str(long), "-y", "--json")
    with lorry.standing(4) as run:
        lorry.until_home(4)
        onlooker = lorry.start("attach", run, "--json")
        check_looks(lorry, run)
        poll(lambda: '"step": 4' in onlooker.said or '"step": 5' in onlooker.said, what="step 4 before the onlooker")
    done, looked = driver.end(), onlooker.end()
    assert (done.code, looked.code) == (0, 0), looked.err
    assert looked.document == done.document
    assert "looking on" in looked.err
    check_receipt(lorry, done.document)
    check_as_undisturbed(lorry, run, undisturbed)
    (money,) = lorry("cost", run, "--json").document
    assert money["billed_usd"] == done.document["cost"]["billed_usd"]
    assert lorry("ps", "--json").document == []
    assert [r["run"] for r in lorry("ps", "--all", "--json").document] == [run]


def check_looks(lorry: Lorry, run: str) -> None:
    """What the looking commands say of a run that trains."""
    (row,) = lorry("ps", "--json").document
    assert (row["run"], row["driven"], row["status"]) == (run, True, "training")
    assert row["machines"][0]["destroyed_verified"] is False
    assert row["jobs"][0]["steps"] >= 4
    seen = lorry("ps")
    assert seen.code == 0, "it is looked after"
    assert run in seen.out
    told = lorry("logs", run, "--json")
    assert {"phase", "started", "step"} <= {json.loads(line)["kind"] for line in told.out.splitlines()}
    assert "loss" in lorry("logs", run).out
    pulled = lorry("pull", run, "--json")
    assert (pulled.code, pulled.document["fetched"]) == (0, 0)
    assert "another lorry drives" in pulled.err + lorry("pull", run).err


@pytest.mark.slow
def test_an_onlooker_takes_over_when_the_driver_dies(lorry: Lorry, long: Path, undisturbed):
    driver = lorry.start("run", str(long), "-y")
    with lorry.standing(2) as run:
        onlooker = lorry.start("attach", run, "--json")
        poll(lambda: "looking on" in onlooker.said, what="the second lorry to look on")
        driver.kill()
    done = onlooker.end()
    assert done.code == 0, done.err
    check_receipt(lorry, done.document)
    check_as_undisturbed(lorry, run, undisturbed)


@pytest.mark.slow
def test_pull_fetches_when_nobody_drives_and_leaves_the_machine_to_its_work(lorry: Lorry, long: Path, undisturbed):
    driver = lorry.start("run", str(long), "-y")
    with lorry.standing(4) as run:  # after the checkpoint of step 3
        driver.kill()
        lost = lorry("ps")
        assert lost.code == 10, "a machine that nobody looks after"
        assert f"lorry attach {run}" in lost.err
        pulled = lorry("pull", run, "--json")
        assert pulled.code == 10, "it has fetched, and still nobody looks after the machine"
        assert (lorry.at(run) / "jobs/one/checkpoints/step000003.safetensors").exists()
        check_results(lorry, run)
        assert [m.live for m in lorry.cloud.machines(run)] == [True]
    done = lorry("attach", run, "--json")
    assert done.code == 0
    check_as_undisturbed(lorry, run, undisturbed)


def test_a_killed_supervisor_is_started_again_and_goes_on(lorry: Lorry, long: Path, undisturbed):
    driver = lorry.start("run", str(long), "-y", "--json")
    with lorry.standing(4) as run:
        os.kill(supervisor_of(lorry.cloud.session(run)), signal.SIGKILL)
    done = driver.end()
    assert done.code == 0, done.err
    assert "was started again" in done.err
    check_receipt(lorry, done.document)
    check_results(lorry, run)
    check_as_undisturbed(lorry, run, undisturbed)


@pytest.mark.slow
def test_a_worker_killed_twice_at_one_place_fails_its_job_with_its_likely_cause_and_resume_goes_on(lorry: Lorry, long: Path, undisturbed):
    """A worker that is killed is most often one that took too much memory: it gets another start, and not one for ever."""
    driver = lorry.start("run", str(long), "-y", "--json")
    with lorry.standing(4) as run:
        supervisor = supervisor_of(lorry.cloud.session(run))
        (first,) = children_of(supervisor)
        os.kill(first, signal.SIGKILL)
        (second,) = poll(lambda: [pid for pid in children_of(supervisor) if pid != first], what="another start")
        os.kill(second, signal.SIGKILL)
    failed = driver.end()
    assert failed.code == 7
    assert "memory" in failed.document["message"]
    assert failed.document["jobs"][0]["status"] == "failed"
    assert failed.document["jobs"][0]["checkpoints"]
    check_receipt(lorry, failed.document)
    done = lorry("resume", run, "--json")
    assert done.code == 0, done.err
    check_receipt(lorry, done.document)
    check_as_undisturbed(lorry, run, undisturbed)
    assert len(check_gone(lorry, run)) == 2


@pytest.mark.parametrize("driver", ["alive", pytest.param("dead", marks=pytest.mark.slow)])
def test_stop_brings_a_checkpoint_home_and_resume_goes_on_from_it(driver: str, lorry: Lorry, long: Path, undisturbed):
    """Interrupted and resumed on another machine: the same losses, the same adapter as without."""
    driving = lorry.start("run", str(long), "-y", "--json")
    with lorry.standing(4) as run:
        if driver == "dead":
            driving.kill()
        stopping = lorry.start("stop", run, "--json")
        poll((lorry.cloud.session(run) / "stop").exists, what="the wish to stop over there")
    stopped = stopping.end()
    assert stopped.code == 0, stopped.err
    assert stopped.document["status"] == "stopped"
    assert stopped.document["exit_code"] == 130
    check_receipt(lorry, stopped.document)
    check_results(lorry, run)
    (job,) = stopped.document["jobs"]
    assert job["adapter"] is None
    assert job["status"] == "stopped"
    assert 4 <= job["steps"] < 10
    assert Path(job["checkpoints"][-1]).name == f"step{job['steps']:06d}.safetensors"
    if driver == "alive":
        assert driving.end().code == 130
    done = lorry("resume", run, "--json")
    assert done.code == 0, done.err
    check_receipt(lorry, done.document)
    check_as_undisturbed(lorry, run, undisturbed)
    started = [e["step"] for e in lorry.events(run) if e["kind"] == "started"]
    assert started == [0, job["steps"]], "the second machine goes on where the first one stopped"
    assert lorry("resume", run).code == 2, "there is nothing left to do"


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["alive", pytest.param("dead", marks=pytest.mark.slow)])
def test_down_destroys_at_once(driver: str, lorry: Lorry, long: Path):
    driving = lorry.start("run", str(long), "-y", "--json")
    with lorry.standing(1) as run:
        if driver == "dead":
            driving.kill()
        ended = lorry("down", run, "--json")
    assert ended.code == 0, ended.err
    assert ended.document["status"] == "stopped"
    check_receipt(lorry, ended.document)
    if driver == "alive":
        assert driving.end().code == 130
    again = lorry("down", run, "--json")
    assert (again.code, again.document["machines"]) == (0, ended.document["machines"])
    assert lorry("reap", "--provider", "sandbox", "--json").code == 0


@pytest.mark.slow
def test_a_detached_run_goes_on_without_its_terminal(lorry: Lorry, quick: Path, undisturbed):
    begun = lorry("run", str(quick), "-y", "--detach", "--json")
    assert begun.code == 0, begun.err
    run, pid = begun.document["run"], begun.document["pid"]
    assert begun.document["status"] == "detached"
    done = lorry("attach", run, "--json")
    assert done.code == 0, done.err
    poll(lambda: not lives(pid), what="the end of the lorry in the background", timeout_s=10)
    check_receipt(lorry, done.document)
    assert adapters(lorry, run) == undisturbed("quick")["adapters"]
