"""A run's events as lines for a person, from the files at home."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.home import RunFolder
from orchestrator.view import duration, size
from trainer.protocol import AnyEvent, Committed, Ended, Evaluated, EventReader, Phase, Scored, Started, Step

POLL_S = 0.5


def told(folder: RunFolder, *, follow: bool) -> Iterator[AnyEvent]:
    """Every event at home, machine after machine; with `follow`, on until nobody drives the run any more."""
    readers: dict[Path, tuple[EventReader, int]] = {}
    while True:
        driven = follow and folder.is_driven
        for file in folder.told():
            reader, offset = readers.get(file, (EventReader(), 0))
            with file.open("rb") as source:
                source.seek(offset)
                data = source.read()
            readers[file] = (reader, offset + len(data))
            yield from reader.feed(data)
        if not driven:
            return
        time.sleep(POLL_S)


def in_words(event: AnyEvent) -> str:
    """One event, one line."""
    return f"[{duration(event.at_s):>7}] {event.job or 'session'}: {_words(event)}"


def _words(event: AnyEvent) -> str:
    match event:
        case Phase():
            return event.phase + (f": {event.detail}" if event.detail else "")
        case Started():
            resumed = f", resumed at step {event.step}" if event.step else ""
            return f"{event.images} pictures, {event.steps} steps, {event.trainable} weights on {event.device or 'the machine'}{resumed}"
        case Step():
            norm = "" if event.grad_norm is None else f", gradient {event.grad_norm:.3g}"
            return f"step {event.step}/{event.steps}, loss {event.loss:.4f}, lr {event.lr:.2e}{norm}, {event.samples_per_s:.1f} samples/s"
        case Evaluated():
            bands = " ".join(f"{band:.4f}" for band in event.bands[:16])
            best = ", the best so far" if event.best else ""
            return f"held-out loss {event.loss:.4f} at step {event.step}{f' (by noise, little to much: {bands})' if bands else ''}{best}"
        case Scored():
            return f"CLIP score {event.clip_score:.1f} of sample {event.number} at step {event.step}"
        case Committed():
            return f"{'finished ' if event.final else ''}{event.role} of step {event.step}: {event.path} ({size(event.size)})"
        case Ended():
            return f"{event.state} at step {event.step}" + (f": {event.message}" if event.message else "")
        case _:
            return f"warning: {event.message}"
