"""The run without a rental: the same session folder and the same trainer, in a process of this computer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainer.protocol import Committed, EventReader, Session

from .clock import SystemClock
from .errors import UsageError
from .order import CheckedJob, spec_of
from .prepare import checked_config
from .progress import Progress
from .report.receipt import job_document
from .report.tracking import Source, tracked
from .safety.interrupts import HERE, Interrupts
from .tools import version
from .view import Snapshot, View, make_view

POLL_S = 0.2
NO_LIMIT_S = 10 * 365 * 24 * 3600.0
EXIT_OF_TRAINER = {0: 0, 7: 7, 75: 130}
"""The worker's exit code -> ours."""


def train_here(file: Path | None, out: Path, *, together: bool, as_json: bool) -> tuple[list[dict[str, Any]], int]:
    """Train every job of the file; returns the `jobs` list of the receipt and the exit code."""
    config, jobs = checked_config([file] if file else None)
    if find_spec("torch") is None:
        raise UsageError("training here needs torch, which is not installed", hint='pip install "lorry[train]"')
    out = out.absolute()
    session = out / ".session"
    _lay_out(session, config.name, jobs)
    clock = SystemClock()
    view = make_view(as_json=as_json, clock_s=clock.monotonic_s, lorry_version=version())
    progress = Progress([job.name for job in jobs])
    told = Source(events=lambda: [file for file in [session / "events.jsonl"] if file.exists()], results=out, jobs=progress.jobs)
    view = tracked(view, config.log_to, told, out, run=config.name, began=clock.now().timestamp(), clock_s=clock.monotonic_s)
    code = _work(session, out, progress, view, config.name, together=together)
    view.close()
    return [job_document(out / name, name, done) for name, done in progress.jobs.items()], EXIT_OF_TRAINER.get(code, 7)


def _lay_out(session: Path, name: str, jobs: Sequence[CheckedJob]) -> None:
    session.mkdir(parents=True, exist_ok=True)
    for stale in ("events.jsonl", "stop"):
        (session / stale).unlink(missing_ok=True)
    for job in jobs:
        spec = spec_of(job, base=job.base.location, **{key: str(folder.absolute()) for key, (folder, _) in job.folders.items()})
        target = session / "jobs" / job.name / "job.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(spec.model_dump_json(indent=1))
    document = Session(run=name, jobs=tuple(job.name for job in jobs), lifetime_s=NO_LIMIT_S)
    (session / "session.json").write_text(document.model_dump_json())


def _work(session: Path, out: Path, progress: Progress, view: View, name: str, *, together: bool) -> int:
    """Run the worker, follow its events, hand Ctrl-C on to it; returns its exit code."""
    import trainer

    way = "--together" if together else "--one-by-one"
    argv = [sys.executable, "-m", "trainer", way, "--root", str(session), *(f"jobs/{job}/job.json" for job in progress.jobs)]
    env = os.environ | {"PYTHONPATH": str(Path(trainer.__file__).parent.parent)}
    clock, reader, interrupts = SystemClock(), EventReader(), Interrupts(words=HERE)
    started = clock.monotonic_s()
    with interrupts.caught(), (session / "worker.log").open("wb") as log:
        worker = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True)
        asked, offset, ended = 0, 0, False
        while not ended:
            ended = worker.poll() is not None  # before reading: what it wrote last is then read too
            offset = _read_on(session, offset, reader, progress, out)
            if interrupts.count > asked:
                asked = interrupts.count
                worker.send_signal(signal.SIGTERM if asked == 1 else signal.SIGKILL)
            view.show(_snapshot(name, progress, clock.monotonic_s() - started))
            clock.sleep(0 if ended else POLL_S)
    return worker.returncode


def _read_on(session: Path, offset: int, reader: EventReader, progress: Progress, out: Path) -> int:
    file = session / "events.jsonl"
    if not file.exists():
        return offset
    with file.open("rb") as source:
        source.seek(offset)
        data = source.read()
    for event in reader.feed(data):
        progress.take(event)
        if isinstance(event, Committed):
            _bring(session / event.path, out / event.job / Path(event.path).relative_to(f"jobs/{event.job}/out"))
    return offset + len(data)


def _bring(source: Path, target: Path) -> None:
    """Put a finished file where the user looks for it; the session keeps its own for going on later."""
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _snapshot(name: str, progress: Progress, elapsed_s: float) -> Snapshot:
    return Snapshot(
        run=name,
        phase="training",
        detail="",
        transfer=None,
        provider="this computer",
        gpu="",
        usd_per_hour=None,
        spent_usd=None,
        cap_usd=None,
        elapsed_s=elapsed_s,
        progress=progress,
    )
