"""python -m trainer [--root SESSION_DIR] [--one-by-one] [--gpus N] JOB.json [JOB.json ...]

Trains jobs on the same base together, in one process and shared passes, which gives each what it gets alone
to rounding; the others take their turn in order. `--one-by-one` trains every job by itself, to the bit.

`--gpus N` trains each job on so many GPUs of this machine, one job after the other: each GPU takes its share of every step's
pictures, so batch_size times gradient_accumulation must be N at least for all of them to have work.

With `session.json` in the root, events go to its `events.jsonl`; without, plain lines are printed. Exit code:
0 all done, 7 some failed, 75 stopped (SIGTERM, SIGINT or the supervisor's death: the step is finished, adapter
and checkpoint are saved). A single bare job that fails gives its error's own code.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from . import ranks
from .errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, SpecError, TrainerError
from .events import Emit, EventLog, plain_line, session_clock
from .protocol import AnyEvent, Ended, JobSpec, Session, Warned
from .session import Arrivals, read_session

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
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--together", action="store_true", default=True, help="jobs that fit share their passes (default)")
    way.add_argument("--one-by-one", dest="together", action="store_false", help="one job after the other, for equal bits")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="train each job on so many GPUs of this machine (default: 1)")
    options = parser.parse_args(argv)
    flag = StopFlag()
    flag.install()
    root: Path = options.root.resolve()
    in_session = (root / "session.json").is_file()
    if in_session and not ranks.is_member():
        _end_with_the_supervisor()
        lock = _only_worker(root)
        if lock is None:
            sys.stderr.write("another worker of this session is still running\n")
            return EXIT_FAILED
    if options.gpus > 1 and not ranks.is_member():
        return ranks.lead(
            sys.argv[1:] if argv is None else argv, options.gpus, lambda: flag.set, lambda words: sys.stderr.write(f"{words}\n")
        )
    if not ranks.is_first():
        return _run_all(options.jobs, Run(root=root, sink=lambda _: None, flag=flag, in_session=in_session, together=False))
    sink: Emit = EventLog(root / "events.jsonl") if in_session else _print
    return _run_all(
        options.jobs, Run(root=root, sink=sink, flag=flag, in_session=in_session, together=options.together and not ranks.is_member())
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How the jobs of this process run."""

    root: Path
    sink: Emit
    flag: StopFlag
    in_session: bool
    together: bool


def _run_all(paths: Sequence[Path], how: Run) -> int:
    session = _session(how)  # before torch comes: whoever is added from now on is an arrival
    from .jobs import Place
    from .team import join
    from .together import WIDTH, run_jobs

    place = Place(how.root, how.sink, session_clock(how.root), lambda: how.flag.set, _leaving(how))
    if team := join(lambda: how.flag.set):
        place.team, place.device, session = team, team.device, None
        place.stopping, place.leaving = lambda: team.stopping, lambda _: False  # a stop is for all, in the same step
    specs, codes = _read(paths, how, place.clock)
    if session is not None and specs:
        place.arriving = _arriving(how, Arrivals(how.root, {*session.jobs}), specs[0].resident, place.clock)
    width = session.width if session is not None and session.width else WIDTH
    for result in run_jobs(specs, place, together=how.together, width=width):
        stopped = result.state == "stopped" and not place.leaving(result.name)
        codes.append(EXIT_STOPPED if stopped else result.exit_code)
    if how.flag.set and (EXIT_STOPPED in codes or len(codes) < len(paths)):
        return EXIT_STOPPED
    if len(codes) == 1 and not how.in_session:
        return codes[0]
    return EXIT_DONE if not any(codes) else EXIT_FAILED


def _session(how: Run) -> Session | None:
    """The queue; None where there is none, or it cannot be read at this moment: then nobody can be added."""
    try:
        return read_session(how.root) if how.in_session else None
    except TrainerError as error:
        sys.stderr.write(f"{error}\n")
        return None


def _read(paths: Sequence[Path], how: Run, clock: Callable[[], float]) -> tuple[list[JobSpec], list[int]]:
    """The jobs; one whose file is wrong ends here, and its exit code is told."""
    from .jobs import load_job

    specs: list[JobSpec] = []
    codes: list[int] = []
    for path in paths:
        try:
            specs.append(_checked(load_job(path if path.is_file() else how.root / path), in_session=how.in_session))
        except TrainerError as error:
            name = path.parent.name if how.in_session else ""
            how.sink(Ended(at_s=clock(), job=name, state="failed", step=0, message=str(error), code=error.code))
            codes.append(error.exit_code)
    return specs, codes


def _arriving(how: Run, arrivals: Arrivals, resident: tuple[str, ...], clock: Callable[[], float]) -> Callable[[], Sequence[JobSpec]]:
    """Jobs that the client has added on the base that is here; for another base the supervisor begins another worker."""

    def arriving() -> Sequence[JobSpec]:
        names = arrivals.names()
        specs, _ = _read([how.root / "jobs" / name / "job.json" for name in names], how, clock) if names else ([], [])
        return [spec for spec in specs if spec.resident == resident]

    return arriving


def _leaving(how: Run) -> Callable[[str], bool]:
    """One job of a session is asked to stop by a file of its own."""
    return lambda name: how.in_session and (how.root / "jobs" / name / "stop").exists()


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
