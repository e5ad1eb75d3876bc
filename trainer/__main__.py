"""python -m trainer [--root SESSION_DIR] JOB.json [JOB.json ...]

Runs jobs in order; jobs on the same base share what is loaded. With `session.json` in the root, events go to
its `events.jsonl`; without, plain lines are printed. Exit code: 0 all done, 7 some failed, 75 stopped
(SIGTERM, SIGINT or the supervisor's death: the step is finished, adapter and checkpoint are saved). A single
bare job that fails gives its error's own code.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from .errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, SpecError, TrainerError
from .events import Emit, EventLog, plain_line, session_clock
from .protocol import AnyEvent, Ended, JobSpec, Warned

LOCK_WAIT_S = 120.0
PARENT_VARIABLE = "LORRY_SUPERVISOR_PID"


class StopFlag:
    """Set by a signal; asked between steps. A second signal ends at once."""

    def __init__(self) -> None:
        self.set = False

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.set and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.set = True


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Train LoRAs.", epilog="example: python -m trainer job.json")
    parser.add_argument("jobs", nargs="+", type=Path, metavar="JOB.json", help="job files, run in this order")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that the jobs' paths are relative to (default: here)")
    options = parser.parse_args(argv)
    flag = StopFlag()
    flag.install()
    root: Path = options.root.resolve()
    in_session = (root / "session.json").is_file()
    if in_session:
        _end_with_the_supervisor()
        lock = _only_worker(root)
        if lock is None:
            sys.stderr.write("another worker of this session is still running\n")
            return EXIT_FAILED
    sink: Emit = EventLog(root / "events.jsonl") if in_session else _print
    return _run_all(options.jobs, root, sink, flag, in_session=in_session)


def _run_all(paths: Sequence[Path], root: Path, sink: Emit, flag: StopFlag, *, in_session: bool) -> int:
    from .jobs import Place, load_job, run_job

    place = Place(root, sink, session_clock(root), lambda: flag.set)
    codes: list[int] = []
    for path in paths:
        if flag.set:
            return EXIT_STOPPED
        try:
            job = _checked(load_job(path if path.is_file() else root / path), in_session=in_session)
        except TrainerError as error:
            name = path.parent.name if in_session else ""
            sink(Ended(at_s=place.clock(), job=name, state="failed", step=0, message=str(error), code=error.code))
            codes.append(error.exit_code)
            continue
        result = run_job(job, place)
        codes.append(EXIT_STOPPED if result.state == "stopped" else result.exit_code)
        if result.state == "stopped":
            return EXIT_STOPPED
    if len(codes) == 1 and not in_session:
        return codes[0]
    return EXIT_DONE if not any(codes) else EXIT_FAILED


def _checked(job: JobSpec, *, in_session: bool) -> JobSpec:
    if in_session and job.output.rstrip("/") != f"jobs/{job.name}/out":
        raise SpecError("LRY-JOB-SPEC", f"in a session the output of {job.name} is jobs/{job.name}/out, not {job.output}.")
    return job


def _print(event: AnyEvent) -> None:
    stream = sys.stderr if isinstance(event, Warned) or (isinstance(event, Ended) and event.state == "failed") else sys.stdout
    stream.write(plain_line(event) + "\n")
    stream.flush()


def _end_with_the_supervisor() -> None:
    """A supervisor that is killed takes its worker along, in order: a second worker beside a forgotten one would write the same files."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def _only_worker(root: Path) -> int | None:
    """Take the session's worker lock; wait for one that is just ending."""
    import fcntl

    handle = os.open(root / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.1)
        else:
            return handle


if __name__ == "__main__":
    sys.exit(main())
