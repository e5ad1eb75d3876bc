"""python -m trainer.supervisor [--foreground] SESSION_DIR

Runs a session's queue to its end, whatever happens to the connection that started it. Detaches itself (two
forks, a session of its own, output to supervisor.log), prints one JSON line and returns. Starting it again is
harmless: a lock says whether one runs, the status whether the session has ended.

A worker process trains each group of jobs on one base. When something kills a worker that trained one job, the job goes
on from its last checkpoint as long as it gets further between two deaths; else the supervisor writes its end, names the
likely cause and goes on with the rest. When it trained several together,
nobody can tell whose fault it was: all go on from their checkpoints, one by one from then on. Honours the file `stop`, SIGTERM, and the
session's lifetime, which counts from the first start and is not renewed by a restart. The client may write another one
into session.json while it runs, and more jobs: the worker takes in those that are trained on its base, the others have their turn.

Needs no torch. Knows nothing of training.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from pydantic import ValidationError

from .errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, TrainerError
from .events import EventLog, boot_clock
from .files import write_atomically
from .protocol import AnyEvent, Ended, EventReader, JobSpec, JobState, Phase, Session, Started, Status, Step, Warned
from .session import SessionFile, read_session

GRACE_S = 120.0
"""From SIGTERM to SIGKILL: a step, a checkpoint and an adapter fit in it many times."""
BEAT_S = 1.0
LOOK_S = 0.1

Reason = Literal["", "done", "stopped", "deadline", "failed"]


@dataclass(slots=True)
class Watch:
    """What the supervisor knows of the jobs: events in, states out."""

    path: Path
    jobs: dict[str, JobState]
    current: str = ""
    """The job that last said anything and has not ended."""
    _reader: EventReader = field(default_factory=EventReader)
    _offset: int = 0

    def look(self) -> None:
        """Read what is new in the event log."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        self._offset += len(data)
        for event in self._reader.feed(data):
            if not event.job:
                continue
            state = self.jobs.get(event.job, JobState())  # the worker may have seen an added job before us
            match event:
                case Ended():
                    state = JobState(state=event.state, step=event.step, steps=state.steps, message=event.message)
                    self.current = "" if self.current == event.job else self.current
                case Started() | Step():
                    state = JobState(state="running", step=event.step, steps=event.steps)
                    self.current = event.job
                case Phase():
                    state = JobState(state="running", step=state.step, steps=state.steps)
                    self.current = event.job
            self.jobs[event.job] = state


@dataclass
class Supervisor:
    """The queue of one machine, from start to end."""

    root: Path
    session: Session
    log: EventLog
    start_s: float
    """boot_clock at the session's first start."""
    clock: Callable[[], float] = boot_clock
    grace_s: float = GRACE_S
    command: Callable[[Path, Sequence[str], bool], list[str]] | None = None
    """What starts a worker; `worker_command` when not given."""
    together: bool = field(init=False)
    """Whether jobs may share passes; not after a worker has died of one of them."""
    died_at: dict[str, int] = field(default_factory=dict)
    """Job -> the step at which something last killed its worker."""
    beat: int = 0
    signalled: bool = False
    watch: Watch = field(init=False)
    _beaten_at: float = -1e9
    _file: SessionFile = field(init=False)

    def __post_init__(self) -> None:
        self.together = self.session.together
        self._file = SessionFile(self.root)
        self.watch = Watch(self.root / "events.jsonl", {name: JobState() for name in self.session.jobs})
        self.watch.look()
        self.watch.current = ""

    @property
    def uptime_s(self) -> float:
        return max(self.clock() - self.start_s, 0.0)

    def stop_reason(self) -> Reason:
        """Why to stop now, empty if there is no reason."""
        self._hear()
        if self.uptime_s >= self.session.lifetime_s:
            return "deadline"
        return "stopped" if self.signalled or (self.root / "stop").exists() else ""

    def _hear(self) -> None:
        """Take what the client has written into the session's file since: another lifetime, more jobs. None is taken out by it."""
        try:
            news = self._file.news()
        except (OSError, TrainerError) as error:
            _say(2, f"the session's file cannot be read, its lifetime and jobs stay: {error}")
            return
        if news is not None:
            more = tuple(name for name in news.jobs if name not in self.session.jobs)
            self.session = self.session.model_copy(update={"lifetime_s": news.lifetime_s, "jobs": (*self.session.jobs, *more)})
            self.watch.jobs = {name: JobState() for name in more} | self.watch.jobs

    def run(self) -> int:
        """Work the queue off; the exit code."""
        reason: Reason = ""
        while not (reason := self.stop_reason()) and (group := self._next_group()):
            self._tell("running")
            reason = self._work(group)
            if reason:
                break
        if not reason:
            reason = "failed" if any(job.state == "failed" for job in self.watch.jobs.values()) else "done"
        self._tell("ended", reason)
        return {"done": EXIT_DONE, "failed": EXIT_FAILED}.get(reason, EXIT_STOPPED)

    def _next_group(self) -> list[str]:
        """The next jobs that share a base; those that have ended are not begun again, those that were stopped are."""
        group: list[str] = []
        base: tuple[str, ...] | None = None
        for name in self.session.jobs:
            if self.watch.jobs[name].state in ("done", "failed") or (self.root / "jobs" / name / "stop").exists():
                continue
            theirs = _base_of(self.root, name)
            if base is not None and theirs != base:
                break
            base = theirs
            group.append(name)
        return group

    def _work(self, group: Sequence[str]) -> Reason:
        """Run one worker to its end. Every return leaves its current job ended, or the rest of the group to be done."""
        log_path = self.root / "supervisor.log"
        log_from = log_path.stat().st_size if log_path.is_file() else 0
        worker = self._start_worker(group)
        reason: Reason = ""
        killed = False
        asked_at = 0.0
        while (code := self._waited(worker)) is None:
            self.watch.look()
            self._tell("running")
            if not reason and (reason := self.stop_reason()):
                worker.send_signal(signal.SIGTERM)
                asked_at = self.clock()
            elif reason and not killed and self.clock() - asked_at > self.grace_s:
                worker.kill()
                killed = True
        self.watch.look()
        if code == EXIT_STOPPED:
            return reason or "stopped"  # someone stopped the worker itself
        joined = [name for name in self.session.jobs if name not in group and self.watch.jobs[name].state == "running"]
        left = [name for name in (*group, *joined) if not self._has_ended(name)]
        at_work = [name for name in left if self.watch.jobs[name].state == "running"]
        if left and (killed or at_work or not reason):
            if code < 0 and not reason and len(at_work) == 1 and self._got_further(at_work[0]):
                self._begin_again(at_work[0], code)
            elif killed or len(at_work) < 2:
                self._bury(at_work or left[:1], code, killed=killed, log_from=log_from)
            else:
                self._separate(at_work, code)
        return reason

    def _has_ended(self, name: str) -> bool:
        left = self.watch.jobs[name].state == "stopped" and (self.root / "jobs" / name / "stop").exists()
        return left or self.watch.jobs[name].state in ("done", "failed")

    def _got_further(self, name: str) -> bool:
        """Whether a job whose worker was killed had come further than at its last death: then it is worth another start."""
        step = self.watch.jobs[name].step
        before, self.died_at[name] = self.died_at.get(name, -1), step
        return step > before

    def _begin_again(self, name: str, code: int) -> None:
        """A killed job goes on from its last checkpoint."""
        _, why = _cause_of(code, "")
        words = (
            f"{why} The job goes on from its last checkpoint; should it come no further than step {self.watch.jobs[name].step}, it ends."
        )
        self._write(Warned(at_s=self.uptime_s, job=name, message=words))
        self.watch.jobs[name] = self.watch.jobs[name].model_copy(update={"state": "queued"})
        self.watch.current = ""

    def _separate(self, names: Sequence[str], code: int) -> None:
        """A worker died of one of several jobs: each goes on by itself, and the one that does it again is found."""
        self.together = False
        _, why = _cause_of(code, "")
        for name in names:
            self.died_at[name] = self.watch.jobs[name].step
            self._write(
                Warned(
                    at_s=self.uptime_s, job=name, message=f"{why} {len(names)} jobs were training together; from now on they go one by one."
                )
            )
            self.watch.jobs[name] = self.watch.jobs[name].model_copy(update={"state": "queued"})
        self.watch.current = ""

    def _start_worker(self, group: Sequence[str]) -> subprocess.Popen[bytes]:
        home = Path(__file__).resolve().parent.parent
        paths = [str(home), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "LORRY_SUPERVISOR_PID": str(os.getpid()),
            "PYTHONUNBUFFERED": "1",
        }
        command = (self.command or worker_command)(self.root, group, self.together)
        return subprocess.Popen(command, cwd=self.root, env=environment, stdin=subprocess.DEVNULL)

    def _waited(self, worker: subprocess.Popen[bytes]) -> int | None:
        try:
            return worker.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            return None

    def _bury(self, names: Sequence[str], code: int, *, killed: bool, log_from: int) -> None:
        """Write the end of the jobs at which a worker died."""
        for name in names:
            step = self.watch.jobs[name].step
            if killed:
                message = f"did not end within {self.grace_s:.0f} s of being asked and was killed; the last checkpoint is good."
                event = Ended(at_s=self.uptime_s, job=name, state="stopped", step=step, message=message)
            else:
                cause, why = _cause_of(code, _tail(self.root / "supervisor.log", log_from))
                event = Ended(at_s=self.uptime_s, job=name, state="failed", step=step, message=why, code=cause)
            self._write(event)
            if self.watch.jobs[name].state not in ("done", "failed", "stopped"):
                self.watch.jobs[name] = JobState(state=event.state, step=step, message=event.message)

    def _write(self, event: AnyEvent) -> None:
        """Into the event log; a full disk must not end the watch over the clock."""
        try:
            self.log(event)
        except OSError as error:
            _say(2, f"an event of {event.job} cannot be written: {error}")
        self.watch.look()

    def _tell(self, state: Literal["running", "ended"], reason: Reason = "") -> None:
        """Replace status.json, about once a second and at the end. A full disk does not end the supervisor."""
        now = time.monotonic()
        if state == "running" and now - self._beaten_at < BEAT_S:
            return
        self.watch.look()
        self.beat += 1
        self._beaten_at = now
        status = Status(state=state, reason=reason, beat=self.beat, uptime_s=self.uptime_s, jobs=self.watch.jobs)
        try:
            write_atomically(self.root / "status.json", status.model_dump_json().encode(), durable=state == "ended")
        except OSError as error:
            _say(2, f"status.json cannot be written: {error}")


def worker_command(root: Path, group: Sequence[str], together: bool) -> list[str]:
    """The process that trains these jobs."""
    way = "--together" if together else "--one-by-one"
    return [sys.executable, "-m", "trainer", "--root", str(root), way, *(str(root / "jobs" / name / "job.json") for name in group)]


def _base_of(root: Path, name: str) -> tuple[str, ...]:
    """What jobs must have in common to share a process; a job file that cannot be read is alone."""
    try:
        job = JobSpec.model_validate_json((root / "jobs" / name / "job.json").read_bytes())
    except (OSError, ValidationError):
        return (name,)
    return job.resident


def _cause_of(code: int, tail: str) -> tuple[str, str]:
    """Code and words for a worker that died without a word of its own."""
    if code == -signal.SIGKILL:
        return "LRY-TRAIN-KILLED", "the training process was killed (SIGKILL): most likely the machine ran out of main memory."
    if code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
        likely = {
            "SIGSEGV": "a crash in a library or driver",
            "SIGBUS": "a full disk or failing memory",
            "SIGABRT": "a check in a library failed",
        }
        return (
            "LRY-TRAIN-KILLED",
            f"the training process was ended by {name}: {likely.get(name, 'somebody or something on the machine did it')}.",
        )
    last = tail.strip().splitlines()[-1][:500] if tail.strip() else "no output"
    return "LRY-TRAIN-CRASH", f"the training process ended with exit code {code}: {last}"


def _tail(path: Path, start: int, most: int = 4000) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(start, path.stat().st_size - most))
            return file.read(most).decode(errors="replace")
    except OSError:
        return ""


# --- the process around it -------------------------------------------------------------------------


def take_lock(root: Path) -> tuple[int | None, int]:
    """The lock's handle, or None and the pid of who holds it. The kernel lets go when the holder dies."""
    handle = os.open(root / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(handle, 32).strip()
        os.close(handle)
        return None, int(text) if text.isdigit() else 0
    return handle, 0


def first_start(root: Path, clock: Callable[[], float] = boot_clock) -> float:
    """When the session first started, on this boot's clock. Kept in a file, so that a restart does not begin the lifetime anew."""
    path = root / "started.json"
    now = {"boot_s": clock(), "wall_s": time.time(), "boot_id": _boot_id()}
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
        if then["boot_id"] == now["boot_id"]:
            return float(then["boot_s"])
        passed = max(time.time() - float(then["wall_s"]), 0.0)  # another boot: only the wall clock has gone on
        now |= {"boot_s": clock() - passed, "wall_s": then["wall_s"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the first start, or a file that nobody could read
    write_atomically(path, json.dumps(now).encode())
    return float(str(now["boot_s"]))


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def supervise(root: Path, handle: int) -> int:
    """Run the session in this process, which holds the lock."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    session = read_session(root)
    log = EventLog(root / "events.jsonl")
    supervisor = Supervisor(root, session, log, first_start(root))

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        supervisor.signalled = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return supervisor.run()


def ended_status(root: Path, session: Session) -> Status | None:
    """The last status, if it says that the session has ended: not one that came to its end before jobs were added to it."""
    try:
        status = Status.model_validate_json((root / "status.json").read_bytes())
    except (OSError, ValidationError):
        return None
    late = status.reason in {"done", "failed"} and not {*session.jobs} <= status.jobs.keys()
    return status if status.state == "ended" and not late else None


def detach(root: Path) -> int:
    """Fork twice; the grandchild supervises. Returns its pid in the first process once it holds the lock, 0 if it could not."""
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read(32)
        os.waitpid(child, 0)
        return int(said) if said.isdigit() else 0
    os.close(reading)
    os.setsid()  # no terminal of ours can hang up on us
    if os.fork():
        os._exit(0)
    _redirect(root)
    handle, holder = take_lock(root)
    os.write(writing, str(os.getpid() if handle is not None else holder).encode())
    os.close(writing)
    code = EXIT_FAILED
    if handle is not None:
        with contextlib.suppress(KeyboardInterrupt):
            code = supervise(root, handle)
    os._exit(code)


def _redirect(root: Path) -> None:
    log = os.open(root / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.close(null)


def main(argv: Sequence[str] | None = None) -> int:
    """Start, or say that it runs or has ended."""
    parser = argparse.ArgumentParser(prog="python -m trainer.supervisor", description="Run a session's queue, detached.")
    parser.add_argument("session", type=Path, help="the session's folder, with session.json and jobs/")
    parser.add_argument("--foreground", action="store_true", help="stay in this process until the session has ended")
    options = parser.parse_args(argv)
    root: Path = options.session.resolve()
    try:
        session = read_session(root)
    except TrainerError as error:
        _say(2, f"{error} [{error.code}]")
        return error.exit_code
    if (status := ended_status(root, session)) is not None:
        return _answer({"ended": status.reason})
    handle, holder = take_lock(root)
    if handle is None:
        return _answer({"pid": holder, "running": True})
    if options.foreground:
        return supervise(root, handle)
    os.close(handle)  # the grandchild takes its own
    return _answer({"pid": detach(root)})


def _answer(what: dict[str, object]) -> int:
    _say(1, json.dumps(what))
    return EXIT_DONE


def _say(stream: int, line: str) -> None:
    """Unbuffered: a buffer would be written twice after a fork."""
    os.write(stream, f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
