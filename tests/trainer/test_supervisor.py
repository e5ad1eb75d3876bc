"""The supervisor outlives everything but its deadline; a worker's death ends one job."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from trainer.events import EventLog
from trainer.protocol import Committed, Ended, EventReader, Session, Started, Status, Step, Warned
from trainer.supervisor import Supervisor, ended_status, first_start, take_lock

REPO = Path(__file__).resolve().parents[2]
Spec = Callable[..., dict[str, Any]]

WORKER = """
import json, os, signal, sys, time
root, *jobs = sys.argv[1:]
def say(job, kind, **more):
    handle = os.open(root + "/events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, (json.dumps({"kind": kind, "at_s": 0, "job": job, **more}) + "\\n").encode())
    os.close(handle)
stop = []
for job in jobs:
    plan = json.load(open(root + "/plans.json"))[job]
    if plan == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    say(job, "started", steps=9, images=1, epochs=1)
    say(job, "step", step=3, steps=9, epoch=1, loss=1.0, lr=1.0, samples_per_s=1.0)
    if plan == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if plan == "leaks":
        starts = os.path.getsize(root + "/starts") if os.path.exists(root + "/starts") else 0
        open(root + "/starts", "a").write("x")
        say(job, "step", step=3 + 2 * starts, steps=9, epoch=1, loss=1.0, lr=1.0, samples_per_s=1.0)
        if starts < 3: os.kill(os.getpid(), signal.SIGKILL)
    if plan == "crash": sys.exit("something odd")
    if plan == "silent": sys.exit(0)
    if plan == "together":
        if not os.path.exists(root + "/again"):
            open(root + "/again", "w").close(); continue
    if plan == "leaves":
        open(root + "/jobs/" + job + "/stop", "w").close()
        say(job, "ended", state="stopped", step=3); continue
    while plan in ("long", "deaf"):
        time.sleep(0.01)
        if stop:
            say(job, "ended", state="stopped", step=3); sys.exit(75)
    if plan == "fail":
        say(job, "ended", state="failed", step=3, code="LRY-TRAIN-NAN", message="nan"); continue
    say(job, "ended", state="done", step=9)
"""


def session(root: Path, jobs: dict[str, str], lifetime_s: float = 60, bases: Sequence[str] = ()) -> Session:
    queue = Session(run="r", jobs=tuple(jobs), lifetime_s=lifetime_s)
    (root / "session.json").write_text(queue.model_dump_json())
    (root / "plans.json").write_text(json.dumps(jobs))
    for i, name in enumerate(jobs):
        (root / "jobs" / name).mkdir(parents=True, exist_ok=True)
        spec = {"name": name, "family": "sd15", "base": bases[i] if bases else "b", "dataset": "d", "output": f"jobs/{name}/out"}
        (root / "jobs" / name / "job.json").write_text(json.dumps(spec))
    return queue


def supervisor(root: Path, queue: Session, **more: Any) -> Supervisor:
    def command(where: Path, group: Sequence[str], together: bool) -> list[str]:
        with (root / "groups").open("a") as file:
            file.write(" ".join(group) + ("" if together else " one by one") + "\n")
        return [sys.executable, "-c", WORKER, str(where), *group]

    return Supervisor(root, queue, EventLog(root / "events.jsonl"), first_start(root), command=command, **more)


def status(root: Path) -> Status:
    return Status.model_validate_json((root / "status.json").read_bytes())


def events(root: Path) -> list[Any]:
    return list(EventReader().feed((root / "events.jsonl").read_bytes()))


def states(root: Path) -> dict[str, str]:
    return {name: job.state for name, job in status(root).jobs.items()}


def test_jobs_run_in_order_and_those_on_one_base_share_a_worker(tmp_path: Path) -> None:
    queue = session(tmp_path, {"a": "ok", "b": "ok", "c": "ok"}, bases=["x", "x", "y"])
    assert supervisor(tmp_path, queue).run() == 0
    assert (tmp_path / "groups").read_text().splitlines() == ["a b", "c"]
    assert (status(tmp_path).state, status(tmp_path).reason) == ("ended", "done")


DEATHS = {
    "kill": ("LRY-TRAIN-KILLED", "main memory"),
    "crash": ("LRY-TRAIN-CRASH", "exit code 1"),
    "silent": ("LRY-TRAIN-CRASH", "exit code 0"),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_worker_that_dies_costs_its_job_and_the_rest_goes_on(death: str, tmp_path: Path) -> None:
    queue = session(tmp_path, {"a": "ok", "b": death, "c": "ok"})
    assert supervisor(tmp_path, queue).run() == 7
    assert states(tmp_path) == {"a": "done", "b": "failed", "c": "done"}
    again = ["b c"] if death == "kill" else []  # what was killed gets another start, and dies at the same step
    assert (tmp_path / "groups").read_text().splitlines() == ["a b c", *again, "c"]
    code, words = DEATHS[death]
    (ended,) = [e for e in events(tmp_path) if isinstance(e, Ended) and e.job == "b"]
    assert ended.code == code
    assert words in ended.message
    assert ended.step == 3
    assert status(tmp_path).reason == "failed"


def test_a_job_that_is_killed_again_and_again_goes_on_while_it_gets_further(tmp_path: Path) -> None:
    """Memory that leaks, a host that is short of it now and then: from checkpoint to checkpoint it still comes to its end."""
    assert supervisor(tmp_path, session(tmp_path, {"a": "leaks"})).run() == 0
    assert states(tmp_path) == {"a": "done"}
    assert len((tmp_path / "groups").read_text().splitlines()) == 4
    assert [e.message.split()[-1] for e in events(tmp_path) if isinstance(e, Warned)] == ["ends."] * 3


def test_a_worker_that_dies_of_one_of_several_costs_nobody_and_they_go_on_one_by_one(tmp_path: Path) -> None:
    """Whose fault it was shows when it happens again."""
    queue = session(tmp_path, {"a": "together", "b": "kill", "c": "ok"})
    assert supervisor(tmp_path, queue).run() == 7
    assert states(tmp_path) == {"a": "done", "b": "failed", "c": "done"}
    assert (tmp_path / "groups").read_text().splitlines() == ["a b c", "a b c one by one", "c one by one"]
    assert [(e.job, e.code) for e in events(tmp_path) if isinstance(e, Ended)] == [("a", ""), ("b", "LRY-TRAIN-KILLED"), ("c", "")]
    warned = [e for e in events(tmp_path) if isinstance(e, Warned)]
    assert [e.job for e in warned] == ["a", "b"]
    assert "one by one" in warned[0].message


def test_a_session_that_asks_for_equal_bits_never_joins_jobs(tmp_path: Path) -> None:
    queue = session(tmp_path, {"a": "ok", "b": "ok"}).model_copy(update={"together": False})
    assert supervisor(tmp_path, queue).run() == 0
    assert (tmp_path / "groups").read_text().splitlines() == ["a b one by one"]


def test_a_job_that_is_stopped_by_its_own_file_is_left_and_the_session_goes_on(tmp_path: Path) -> None:
    queue = session(tmp_path, {"a": "leaves", "b": "ok", "c": "ok"})
    assert supervisor(tmp_path, queue).run() == 0
    assert states(tmp_path) == {"a": "stopped", "b": "done", "c": "done"}
    assert (tmp_path / "groups").read_text().splitlines() == ["a b c"]


def test_a_job_that_fails_by_itself_is_not_buried_twice(tmp_path: Path) -> None:
    queue = session(tmp_path, {"a": "fail", "b": "ok"})
    assert supervisor(tmp_path, queue).run() == 7
    assert [e.code for e in events(tmp_path) if isinstance(e, Ended)] == ["LRY-TRAIN-NAN", ""]


def test_the_stop_file_ends_in_order_and_leaves_the_rest_queued(tmp_path: Path) -> None:
    queue = session(tmp_path, {"a": "ok", "b": "long", "c": "ok"})
    one = supervisor(tmp_path, queue)
    plain = one._waited

    def wait(worker: Any) -> int | None:
        if one.watch.current == "b":
            (tmp_path / "stop").touch()
        return plain(worker)

    one._waited = wait  # type: ignore[method-assign]
    assert one.run() == 75
    assert states(tmp_path) == {"a": "done", "b": "stopped", "c": "queued"}
    assert status(tmp_path).reason == "stopped"


def test_the_lifetime_ends_the_session_and_a_restart_does_not_renew_it(tmp_path: Path) -> None:
    queue = session(tmp_path, {"a": "long", "b": "ok"}, lifetime_s=0.8)
    assert supervisor(tmp_path, queue).run() == 75
    assert states(tmp_path) == {"a": "stopped", "b": "queued"}
    assert status(tmp_path).reason == "deadline"
    (tmp_path / "groups").unlink()
    assert supervisor(tmp_path, queue).run() == 75
    assert not (tmp_path / "groups").exists(), "no worker was started"
    assert status(tmp_path).reason == "deadline"


def test_a_lifetime_that_the_client_writes_anew_ends_the_session_or_lets_it_go_on(tmp_path: Path) -> None:
    """A price that rose brings the deadline nearer; a file that makes no sense changes nothing."""
    queue = session(tmp_path, {"a": "long", "b": "ok"}, lifetime_s=3600)
    one = supervisor(tmp_path, queue)
    plain, looks = one._waited, 0

    def wait(worker: Any) -> int | None:
        nonlocal looks
        looks += one.watch.current == "a"
        if looks == 2:
            (tmp_path / "session.json").write_text("{")
        if looks == 4:
            assert one.session.lifetime_s == 3600
            document = queue.model_copy(update={"lifetime_s": 0.01}).model_dump_json()
            (tmp_path / "session.json.part").write_text(document)
            (tmp_path / "session.json.part").replace(tmp_path / "session.json")
        return plain(worker)

    one._waited = wait  # type: ignore[method-assign]
    assert one.run() == 75
    assert states(tmp_path) == {"a": "stopped", "b": "queued"}
    assert status(tmp_path).reason == "deadline"


def test_a_job_that_is_cut_before_its_turn_is_never_begun_and_the_session_is_done_without_it(tmp_path: Path) -> None:
    queue = session(tmp_path, {"a": "ok", "b": "ok", "c": "ok"}, bases=["x", "x", "y"])
    (tmp_path / "jobs/c/stop").touch()
    assert supervisor(tmp_path, queue).run() == 0
    assert (tmp_path / "groups").read_text().splitlines() == ["a b"]
    assert (states(tmp_path)["c"], status(tmp_path).reason) == ("queued", "done")


def test_a_job_that_the_client_adds_is_done_and_none_is_taken_out(tmp_path: Path) -> None:
    """Written while a worker is at work. A file that names fewer jobs takes nobody's turn."""
    queue = session(tmp_path, {"a": "ok", "b": "ok"})
    one = supervisor(tmp_path, queue)
    plain = one._waited

    def wait(worker: Any) -> int | None:
        if not (tmp_path / "jobs/c").exists():
            session(tmp_path, {"a": "ok", "b": "ok", "c": "ok"})
            (tmp_path / "session.json").write_text(queue.model_copy(update={"jobs": ("c",)}).model_dump_json())
        return plain(worker)

    one._waited = wait  # type: ignore[method-assign]
    assert one.run() == 0
    assert states(tmp_path) == {"a": "done", "b": "done", "c": "done"}
    assert (tmp_path / "groups").read_text().splitlines() == ["a b", "c"]


def test_a_job_that_its_worker_took_in_is_begun_again_when_that_worker_dies(tmp_path: Path) -> None:
    """The worker may have seen it before the supervisor has."""
    queue = session(tmp_path, {"a": "ok", "b": "leaks"})
    only = queue.model_copy(update={"jobs": ("a",)})
    (tmp_path / "session.json").write_text(only.model_dump_json())
    one = supervisor(tmp_path, only)
    plain = one.command
    assert plain is not None

    def command(root: Path, group: Sequence[str], together: bool) -> list[str]:
        (root / "session.json").write_text(queue.model_dump_json())
        return [*plain(root, group, together), *(["b"] if list(group) == ["a"] else [])]

    one.command = command
    assert one.run() == 0
    assert states(tmp_path) == {"a": "done", "b": "done"}
    assert (tmp_path / "groups").read_text().splitlines() == ["a", "b", "b", "b"]


def test_a_session_that_had_ended_goes_on_for_a_job_that_came_too_late(tmp_path: Path) -> None:
    queue = session(tmp_path, {"a": "ok"})
    assert supervisor(tmp_path, queue).run() == 0
    assert ended_status(tmp_path, queue) is not None
    more = session(tmp_path, {"a": "ok", "b": "ok"})
    assert ended_status(tmp_path, more) is None
    assert supervisor(tmp_path, more).run() == 0
    assert states(tmp_path) == {"a": "done", "b": "done"}


def test_a_worker_that_does_not_listen_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    queue = session(tmp_path, {"a": "deaf"}, lifetime_s=0.5)
    assert supervisor(tmp_path, queue, grace_s=0.3).run() == 75
    assert states(tmp_path) == {"a": "stopped"}
    assert "was killed" in status(tmp_path).jobs["a"].message


def test_a_restart_skips_what_ended_and_takes_up_what_was_stopped(tmp_path: Path) -> None:
    queue = session(tmp_path, {"a": "ok", "b": "ok", "c": "ok"})
    log = EventLog(tmp_path / "events.jsonl")
    log(Ended(at_s=0, job="a", state="done", step=9))
    log(Started(at_s=0, job="b", steps=9, images=1, epochs=1))
    log(Ended(at_s=0, job="b", state="stopped", step=4))
    os.write(log._handle, b'{"kind": "step", "job": "b", "st')  # killed while writing
    assert supervisor(tmp_path, queue).run() == 0
    assert (tmp_path / "groups").read_text().splitlines() == ["b c"]


def test_the_beat_grows_while_it_lives(tmp_path: Path) -> None:
    queue = session(tmp_path, {"a": "long"}, lifetime_s=2.5)
    one = supervisor(tmp_path, queue)
    beats: list[int] = []
    plain = one._waited

    def wait(worker: Any) -> int | None:
        beats.append(status(tmp_path).beat)
        return plain(worker)

    one._waited = wait  # type: ignore[method-assign]
    one.run()
    assert sorted(beats) == beats
    assert len(set(beats)) >= 2


def test_the_first_start_is_remembered(tmp_path: Path) -> None:
    now = [100.0]
    assert first_start(tmp_path, lambda: now[0]) == 100.0
    now[0] = 250.0
    assert first_start(tmp_path, lambda: now[0]) == 100.0


def test_after_a_reboot_the_lifetime_goes_on_by_the_wall_clock(tmp_path: Path) -> None:
    then = {"boot_s": 5000.0, "wall_s": time.time() - 60, "boot_id": "another boot"}
    (tmp_path / "started.json").write_text(json.dumps(then))
    assert first_start(tmp_path, lambda: 100.0) == pytest.approx(40.0, abs=2)


def test_the_lock_is_held_by_one(tmp_path: Path) -> None:
    handle, _ = take_lock(tmp_path)
    assert handle is not None
    assert take_lock(tmp_path)[0] is None
    os.close(handle)
    again, _ = take_lock(tmp_path)
    assert again is not None
    os.close(again)


# --- the real thing: processes, kill -9, the tiny model ---------------------------------------------


@pytest.fixture
def real(world: Path, tmp_path: Path, spec: Spec) -> Iterator[Path]:
    """A session of two jobs on the tiny base. Whatever a test leaves running is ended."""
    (tmp_path / "base").symlink_to(world / "base")
    shutil.copytree(world / "data", tmp_path / "data")
    options = {"steps": 24, "save_every_steps": 6, "optimizer": "AdamW8bit", "lr_scheduler": "cosine"}
    for name in ("lisa", "anna"):
        (tmp_path / "jobs" / name).mkdir(parents=True)
        job = spec(**options, name=name, output=f"jobs/{name}/out", seed=len(name))
        (tmp_path / "jobs" / name / "job.json").write_text(json.dumps(job))
    queue = Session(run="r", jobs=("lisa", "anna"), lifetime_s=300)
    (tmp_path / "session.json").write_text(queue.model_dump_json())
    yield tmp_path
    (tmp_path / "stop").touch()
    handle, pid = take_lock(tmp_path)
    if handle is None and pid:
        os.kill(pid, signal.SIGKILL)


def start(root: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "trainer.supervisor", str(root)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60, check=True)
    return dict(json.loads(done.stdout))


def until(what: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (value := what()) is not None and value is not False:
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def current_step(root: Path, job: str) -> int:
    path = root / "events.jsonl"
    return max((e.step for e in events(root) if isinstance(e, Step) and e.job == job), default=0) if path.is_file() else 0


def worker_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@pytest.mark.slow
def test_killed_supervisor_and_worker_change_nothing_about_the_result(real: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two jobs together, started twice, hung up on, kill -9 of worker and supervisor: to the bit what the two give undisturbed."""
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    for part in ("data", "jobs"):
        shutil.copytree(real / part, undisturbed / part)
    (undisturbed / "base").symlink_to((real / "base").resolve())

    first = start(real)
    assert start(real) == {"pid": first["pid"], "running": True}
    os.kill(first["pid"], signal.SIGHUP)
    until(lambda: current_step(real, "lisa") >= 7)
    os.kill(worker := worker_of(first["pid"]), signal.SIGSTOP)
    os.kill(first["pid"], signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    until(lambda: take_lock_quickly(real))

    second = start(real)
    assert second["pid"] != first["pid"]
    until(lambda: (real / "status.json").is_file() and status(real).state == "ended")
    assert states(real) == {"lisa": "done", "anna": "done"}
    assert status(real).reason == "done"
    resumed = [e.step for e in events(real) if isinstance(e, Started) and e.job == "lisa"]
    assert resumed[0] == 0
    assert resumed[1] >= 5, "it went on from a checkpoint"
    assert start(real) == {"ended": "done"}

    whole = subprocess.run(
        [sys.executable, "-m", "trainer", "--root", str(undisturbed), "jobs/lisa/job.json", "jobs/anna/job.json"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert whole.returncode == 0, whole.stderr
    assert "lisa: step 24/24" in whole.stdout
    for name in ("lisa", "anna"):
        ours, theirs = (load_file(root / f"jobs/{name}/out/{name}.safetensors") for root in (real, undisturbed))
        assert ours.keys() == theirs.keys()
        assert all((ours[key] == theirs[key]).all() for key in ours)
    for event in events(real):
        if isinstance(event, Committed) and event.role == "adapter":
            assert (real / event.path).stat().st_size == event.size


def take_lock_quickly(root: Path) -> bool:
    handle, _ = take_lock(root)
    if handle is not None:
        os.close(handle)
    return handle is not None


def lisa_is_given_up(root: Path, pid: int) -> bool:
    """Kill her worker as soon as there is one, until the supervisor has had enough of it."""
    if any(isinstance(e, Ended) and e.job == "lisa" for e in events(root)):
        return True
    with contextlib.suppress(IndexError, OSError):  # between two workers
        if b"lisa" in Path(f"/proc/{worker_of(pid)}/cmdline").read_bytes():
            os.kill(worker_of(pid), signal.SIGKILL)
    return False


def test_a_worker_killed_and_a_stop_in_real_processes(real: Path) -> None:
    """Two jobs together: the first death is nobody's, the second is that of the job that was alone."""
    for path in real.glob("jobs/*/job.json"):  # long enough that nobody is done before the blow falls
        path.write_text(json.dumps({**json.loads(path.read_text()), "steps": 3000}))
    pid = start(real)["pid"]
    until(lambda: current_step(real, "lisa") >= 6 and current_step(real, "anna") >= 6)
    os.kill(worker := worker_of(pid), signal.SIGKILL)
    until(lambda: any(isinstance(e, Started) and e.step > 0 for e in events(real)) and worker_of(pid) != worker)
    until(lambda: lisa_is_given_up(real, pid))
    until(lambda: any(isinstance(e, Started) and e.job == "anna" and e.step > 0 for e in events(real)))
    (real / "stop").touch()
    until(lambda: (real / "status.json").is_file() and status(real).state == "ended")
    assert states(real) == {"lisa": "failed", "anna": "stopped"}
    ended = {e.job: e for e in events(real) if isinstance(e, Ended)}
    assert ended["lisa"].code == "LRY-TRAIN-KILLED"
    step = ended["anna"].step
    assert (real / f"jobs/anna/out/checkpoints/step{step:06d}.safetensors").is_file()
    assert (real / f"jobs/anna/out/anna-step{step:06d}.safetensors").is_file()
