"""What a person, a pipe or a script sees of a run under way: three views of one snapshot.

A view never decides anything and never asks the machine. Prints through `console` only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Protocol

from . import console
from .budget import show_usd
from .progress import JobProgress, Progress

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.live import Live

BLOCKS = "▁▂▃▄▅▆▇█"
ROOMY = 100
"""Columns from which on a job's line has room for a bar."""
MOST_CURVES = 4
"""Loss curves drawn at once; a session of thirty must still fit a screen."""
QUIET_S = 10.0
"""Plain lines about the same phase come at most so often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A run at one moment."""

    run: str
    phase: str
    detail: str
    transfer: tuple[int, int] | None
    provider: str
    gpu: str
    usd_per_hour: Decimal | None
    spent_usd: Decimal | None
    cap_usd: Decimal | None
    """None, like `spent_usd`, where nothing is rented."""
    elapsed_s: float
    progress: Progress


class View(Protocol):
    """Where progress is shown."""

    def show(self, snapshot: Snapshot) -> None:
        """The run stands here now. Called a few times a second."""

    def say(self, text: str) -> None:
        """A line that should stay."""

    def close(self) -> None:
        """Nothing more comes."""


def duration(seconds: float) -> str:
    """`1h05m`, `3m20s`, `12s`."""
    whole = int(min(seconds, 3600 * 9999) + 0.5)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def size(count: float) -> str:
    """`12.3 MB` and so on, in powers of 1000 as disks and lines are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def sparkline(values: list[float], width: int) -> str:
    """The last values as blocks; each column is the mean of its share."""
    if not values:
        return ""
    columns = min(width, len(values))
    means = [_mean(values[i * len(values) // columns : (i + 1) * len(values) // columns]) for i in range(columns)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(BLOCKS[int((m - low) / span * (len(BLOCKS) - 1))] for m in means)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def smooth_loss(job: JobProgress) -> float | None:
    """Mean of the latest tenth of the curve: single losses say little."""
    points = [loss for _, loss in job.loss.points]
    return _mean(points[-max(1, len(points) // 10) :]) if points else None


def job_words(job: JobProgress) -> str:
    """One job in one line, no colours."""
    if job.state == "queued":
        return "waiting"
    if job.state != "running":
        return f"{job.state} at step {job.step}" + (f": {job.message}" if job.state == "failed" else "")
    loss = smooth_loss(job)
    parts = [job.phase or "starting"]
    if job.steps:
        parts.append(f"step {job.step}/{job.steps}")
    if loss is not None:
        parts.append(f"loss {loss:.4f}")
    if job.samples_per_s:
        parts.append(f"{job.samples_per_s:.1f} samples/s")
    if job.seconds_left is not None:
        parts.append(f"{duration(job.seconds_left)} left")
    return ", ".join(parts)


def money_words(snapshot: Snapshot) -> str:
    """Spent against the cap; empty where nothing is rented."""
    if snapshot.spent_usd is None or snapshot.cap_usd is None:
        return ""
    return f"{show_usd(snapshot.spent_usd)} of {show_usd(snapshot.cap_usd)}"


class PlainView:
    """Lines for pipes and logs: a line when something changes, and now and then when nothing does."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._last = ("", "", -1.0)

    def show(self, snapshot: Snapshot) -> None:
        """See `View.show`."""
        jobs = snapshot.progress.running if snapshot.phase == "training" else []
        what = " ".join([snapshot.phase, *(f"{job.name} {job.phase}" for job in jobs)])
        now = self._clock_s()
        if what == self._last[0] and now - self._last[2] < QUIET_S:
            return
        line = f"[{duration(snapshot.elapsed_s)}] {snapshot.phase}"
        if jobs:
            line += ": " + "; ".join(f"{job.name}: {job_words(job)}" for job in jobs)
        elif snapshot.detail:
            line += f": {snapshot.detail}"
        if snapshot.transfer:
            line += f", {size(snapshot.transfer[0])} of {size(snapshot.transfer[1])}"
        line += f"  {money_words(snapshot)}"
        if line != self._last[1]:
            console.talk(console.plain(line))
        self._last = (what, line, now)

    def say(self, text: str) -> None:
        """See `View.say`."""
        console.talk(console.plain(text))

    def close(self) -> None:
        """See `View.close`."""


class JsonView:
    """JSON lines on stderr. The first names the version of the words; minor versions only add."""

    VERSION = "1.1"

    def __init__(self, lorry_version: str) -> None:
        console.json_line({"type": "version", "lorry": lorry_version, "events": self.VERSION})

    def show(self, snapshot: Snapshot) -> None:
        """See `View.show`."""
        console.json_line(
            {
                "type": "progress",
                "run": snapshot.run,
                "phase": snapshot.phase,
                "detail": console.plain(snapshot.detail),
                "provider": snapshot.provider,
                "gpu": snapshot.gpu,
                "spent_usd": None if snapshot.spent_usd is None else float(round(snapshot.spent_usd, 6)),
                "cap_usd": None if snapshot.cap_usd is None else float(snapshot.cap_usd),
                "elapsed_s": round(snapshot.elapsed_s, 1),
                "bytes": snapshot.transfer,
                "left_s": _left(snapshot.progress.seconds_left),
                "jobs": [
                    {
                        "name": j.name,
                        "state": j.state,
                        "phase": j.phase,
                        "step": j.step,
                        "steps": j.steps,
                        "loss": smooth_loss(j),
                        "left_s": _left(j.seconds_left),
                    }
                    for j in snapshot.progress.jobs.values()
                ],
            }
        )

    def say(self, text: str) -> None:
        """See `View.say`."""
        console.json_line({"type": "note", "text": console.plain(text)})

    def close(self) -> None:
        """See `View.close`."""


def _left(seconds: float | None) -> float | None:
    """Of training, at the pace that was measured last; None while none was, and where a machine told nonsense."""
    return round(seconds, 1) if seconds is not None and isfinite(seconds) else None


class LiveView:
    """One rich live view for a terminal."""

    def __init__(self) -> None:
        self._live: Live | None = None

    def show(self, snapshot: Snapshot) -> None:
        """See `View.show`."""
        with suppress(OSError):  # the terminal has gone; the run has not
            if self._live is None:
                from rich.live import Live

                self._live = Live(console=console.rich_console(), auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(_drawn(snapshot, self._live.console.width), refresh=True)

    def say(self, text: str) -> None:
        """See `View.say`."""
        if self._live is None:
            console.talk(console.plain(text))
        else:
            with suppress(OSError):
                self._live.console.print(console.plain(text), markup=False, highlight=False)

    def close(self) -> None:
        """See `View.close`."""
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
            self._live = None


def _drawn(snapshot: Snapshot, width: int) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    machine = console.plain(f"{snapshot.gpu} at {snapshot.provider}" if snapshot.gpu else snapshot.provider or "no machine yet", most=60)
    price = f" at {show_usd(snapshot.usd_per_hour)}/h" if snapshot.usd_per_hour is not None else ""
    head = Text.assemble((snapshot.run, "bold"), f"  {machine}{price}  ", (snapshot.phase or "starting", "cyan"))
    rows: list[RenderableType] = [head]
    if snapshot.detail and snapshot.phase != "training":
        rows.append(Text(console.plain(snapshot.detail), style="dim"))
    if snapshot.transfer:
        rows.append(_transfer(*snapshot.transfer))
    jobs, roomy = Table.grid(padding=(0, 2)), width >= ROOMY
    for job in snapshot.progress.jobs.values():
        name = Text(job.name, style="bold" if job.state == "running" else "")
        jobs.add_row(name, *([_bar(job)] if roomy else []), Text(console.plain(job_words(job))))
    rows.append(jobs)
    curves = Table.grid(padding=(0, 2))
    for job in snapshot.progress.running[:MOST_CURVES]:
        if len(job.loss.points) > 1:
            curves.add_row(Text(job.name), Text(sparkline([loss for _, loss in job.loss.points], min(60, width - 20)), style="cyan"))
    rows.append(curves)
    left = snapshot.progress.seconds_left
    rest = f", about {duration(left)} of training left" if left is not None else ""
    money = f"spent {money_words(snapshot)} after " if snapshot.cap_usd is not None else "after "
    rows.append(Text(f"{money}{duration(snapshot.elapsed_s)}{rest}"))
    return Group(*rows)


def _bar(job: JobProgress) -> RenderableType:
    from rich.progress_bar import ProgressBar

    return ProgressBar(total=max(job.steps, 1), completed=job.step, width=24)


def _transfer(done: int, total: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    line = Table.grid(padding=(0, 1))
    line.add_row(ProgressBar(total=max(total, 1), completed=min(done, total), width=40), Text(f"{size(done)} of {size(total)}"))
    return line


def make_view(*, as_json: bool, clock_s: Callable[[], float], lorry_version: str) -> View:
    """The view for where stderr goes."""
    if as_json:
        return JsonView(lorry_version)
    return LiveView() if console.is_terminal() else PlainView(clock_s)
