"""Writes what happens: as protocol lines into the session's `events.jsonl`, or as plain lines for a person.

Knows nothing of training.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .protocol import AnyEvent, Committed, Ended, Evaluated, Phase, Scored, Started, Step, Warned, dump_event

Emit = Callable[[AnyEvent], None]


def boot_clock() -> float:
    """Seconds since boot, sleep included: the lifetime of a rental goes on while a machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def session_clock(root: Path) -> Callable[[], float]:
    """Seconds since the session's first start, as the supervisor noted it; since now if there was none."""
    try:
        start = float(json.loads((root / "started.json").read_text(encoding="utf-8"))["boot_s"])
    except (OSError, ValueError, KeyError, TypeError):
        start = boot_clock()
    return lambda: max(boot_clock() - start, 0.0)


class EventLog:
    """Appends whole lines, each in one write with O_APPEND, so that two writers never mix theirs."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o644)
        self._end_torn_line()

    def __call__(self, event: AnyEvent) -> None:
        line = dump_event(event)
        written = os.write(self._handle, line)
        if written != len(line):
            raise OSError(28, "event log: short write")  # ENOSPC: the disk took only a part

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def _end_torn_line(self) -> None:
        """A writer that was killed may have left half a line; ours must not continue it."""
        size = os.lseek(self._handle, 0, os.SEEK_END)
        if size == 0:
            return
        os.lseek(self._handle, size - 1, os.SEEK_SET)
        if os.read(self._handle, 1) != b"\n":
            os.write(self._handle, b"\n")


def _in_bands(bands: Sequence[float]) -> str:
    return f" (by noise, from little to much: {' '.join(f'{band:.4f}' for band in bands)})" if bands else ""


def plain_line(event: AnyEvent) -> str:
    """An event as a line for a person."""
    match event:
        case Phase():
            text = f"{event.phase}{' ' + event.detail if event.detail else ''}"
        case Started():
            since = f", resumed at step {event.step}" if event.step else ""
            text = (
                f"{event.images} images, {event.steps} steps, {event.epochs} epochs, {event.trainable:,} weights on {event.device}{since}"
            )
        case Step():
            where = f"step {event.step}/{event.steps}  epoch {event.epoch}"
            text = f"{where}  loss {event.loss:.4f}  lr {event.lr:.2e}  {event.samples_per_s:.2f} images/s"
        case Evaluated():
            text = f"step {event.step}  held-out loss {event.loss:.4f}{_in_bands(event.bands)}{', the best so far' if event.best else ''}"
        case Scored():
            text = f"step {event.step}  CLIP score {event.clip_score:.2f} of sample {event.number}"
        case Committed():
            text = f"saved {event.path} ({event.size:,} bytes)"
        case Warned():
            text = f"note: {event.message}"
        case Ended():
            why = f": {event.message}" if event.message else ""
            text = f"{event.state} at step {event.step}{why}{f' [{event.code}]' if event.code else ''}"
    return f"{event.job}: {text}" if event.job else text
