"""A training's curves and samples for TensorBoard and Weights & Biases, made at home of what the machine has told.

So no key goes to a rented machine, and it needs neither package. A view around another: whatever shows a run's progress has its
trackers kept up. They are an extra: one that breaks is said once, and left alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from orchestrator.errors import UsageError
from orchestrator.view import Snapshot, View
from trainer.protocol import AnyEvent, Committed, Evaluated, EventReader, Scored, Step

from . import tfevents

LOOK_EVERY_S = 5.0
"""A person looks at curves; more often would only cost."""
SIDE = 512
"""Samples are shown at most so large: the files themselves are beside."""
MOST_STEPS = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Numbers of one step of one job, or one sample of it."""

    job: str
    step: int
    at_s: float
    """Seconds since the session's start."""
    values: Mapping[str, float] = field(default_factory=dict)
    sample: Path | None = None


class Board(Protocol):
    """Where points go."""

    def take(self, point: Point) -> None:
        """Show it; each comes once in a process, and in their order, but for samples, which come when they are at home."""

    def close(self) -> None:
        """Nothing more comes."""


class TensorBoard:
    """An event file a job, `<folder>/<job>/events.out.tfevents...`. Each process writes anew all that is known: no cursor can be wrong."""

    def __init__(self, folder: Path, began: float) -> None:
        self._folder = folder
        self._began = began
        """Unix time of the session's start."""
        self._known: set[str] = set()

    def take(self, point: Point) -> None:
        """See `Board.take`."""
        file = self._folder / point.job / "events.out.tfevents.0.lorry"
        if point.job not in self._known:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(tfevents.heading(self._began))
            self._known.add(point.job)
        at = self._began + point.at_s
        with file.open("ab") as stream:
            if point.values:
                stream.write(tfevents.scalars(at, point.step, point.values.items()))
            if point.sample is not None:
                size, encoded = _shrunk(point.sample)
                stream.write(tfevents.image(at, point.step, _tag(point.sample), size, encoded))

    def close(self) -> None:
        """See `Board.close`."""


class WandB:
    """A run of Weights & Biases a job, in the group of ours, by the package and the login that this computer has."""

    def __init__(self, folder: Path, run: str) -> None:
        self._folder = folder
        self._run = run
        self._runs: dict[str, Any] = {}
        self._seen = {file.stem: int(file.read_text()) for file in folder.glob("*.seen")}
        self._count: dict[str, int] = {}

    def take(self, point: Point) -> None:
        """See `Board.take`. What an earlier process has sent is not sent again."""
        import wandb

        self._count[point.job] = count = self._count.get(point.job, 0) + 1
        if count <= self._seen.get(point.job, 0):
            return
        if point.job not in self._runs:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^A-Za-z0-9_-]", "-", f"{self._run}-{point.job}")
            known = {"project": "lorry", "group": self._run, "name": point.job, "id": name, "resume": "allow", "reinit": "create_new"}
            self._runs[point.job] = wandb.init(dir=str(self._folder), **known)
            self._runs[point.job].define_metric("*", step_metric="step")
        told: dict[str, Any] = dict(point.values)
        if point.sample is not None:
            told[_tag(point.sample)] = wandb.Image(str(point.sample))
        self._runs[point.job].log({"step": point.step, **told})
        (self._folder / f"{point.job}.seen").write_text(str(count))

    def close(self) -> None:
        """See `Board.close`."""
        for run in self._runs.values():
            run.finish()


def expect_installed(log_to: Collection[str]) -> None:
    """Say before anything is rented what a tracker lacks here."""
    if "wandb" in log_to and find_spec("wandb") is None:
        hint = "pip install wandb, and log in with: wandb login; or take it out of log_to"
        raise UsageError("log_to names wandb, which is not installed on this computer", hint=hint)


def tracked(
    view: View, log_to: Collection[str], source: Source, folder: Path, *, run: str, began: float, clock_s: Callable[[], float]
) -> View:
    """The same view, with the trackers kept up that the file names; theirs are in `folder`. `began`: Unix time of the first event."""
    boards: list[Board] = []
    if "tensorboard" in log_to:
        boards.append(TensorBoard(folder / "tensorboard", began))
    if "wandb" in log_to and find_spec("wandb") is not None:
        boards.append(WandB(folder / "wandb", run))
    return Tracked(view, boards, source, clock_s) if boards else view


@dataclass(slots=True, kw_only=True)
class Source:
    """What is at home of a run: its events, and the samples as they come."""

    events: Callable[[], Sequence[Path]]
    """Files of events, machine after machine."""
    results: Path
    """Holds `<job>/samples/...`."""
    jobs: Collection[str]
    _readers: dict[Path, tuple[EventReader, int]] = field(default_factory=dict)
    _awaited: list[Committed] = field(default_factory=list)

    def fresh(self) -> Iterator[Point]:
        """What has come since the last time."""
        for file in self.events():
            reader, offset = self._readers.setdefault(file, (EventReader(), 0))
            with file.open("rb") as stream:
                stream.seek(offset)
                data = stream.read()
            self._readers[file] = (reader, offset + len(data))
            for event in reader.feed(data):
                if event.job in self.jobs and getattr(event, "step", 0) <= MOST_STEPS:
                    yield from self._points(event)
        for committed in [one for one in self._awaited if (self.results / _within(one)).is_file()]:
            self._awaited.remove(committed)
            sample = self.results / _within(committed)
            yield Point(job=committed.job, step=committed.step, at_s=committed.at_s, sample=sample)

    def _points(self, event: AnyEvent) -> Iterator[Point]:
        if isinstance(event, Committed):
            if event.role == "sample":
                self._awaited.append(event)
            return
        values = dict(_values(event))
        if values and isinstance(event, Step | Evaluated | Scored):
            yield Point(job=event.job, step=event.step, at_s=event.at_s, values=values)


class Tracked:
    """A view that keeps trackers up as well."""

    def __init__(self, inner: View, boards: Sequence[Board], source: Source, clock_s: Callable[[], float]) -> None:
        self._inner = inner
        self._boards = list(boards)
        self._source = source
        self._clock_s = clock_s
        self._looked = float("-inf")

    def show(self, snapshot: Snapshot) -> None:
        """See `View.show`."""
        self._inner.show(snapshot)
        if self._clock_s() - self._looked >= LOOK_EVERY_S:
            self._look()
            self._looked = self._clock_s()

    def say(self, text: str) -> None:
        """See `View.say`."""
        self._inner.say(text)

    def close(self) -> None:
        """See `View.close`."""
        self._look()
        for board in list(self._boards):
            self._guarded(board, board.close)
        self._inner.close()

    def _look(self) -> None:
        try:
            points = list(self._source.fresh()) if self._boards else []
        except OSError as error:
            self._inner.say(f"what the machine told cannot be read for the trackers: {error.strerror}")
            return
        for point in points:
            for board in list(self._boards):
                self._guarded(board, lambda board=board, point=point: board.take(point))  # type: ignore[misc]

    def _guarded(self, board: Board, work: Callable[[], None]) -> None:
        """No curve is worth a run."""
        try:
            work()
        except Exception as error:  # noqa: BLE001  # a package of somebody else's, a full disk, a picture that is none
            self._boards.remove(board)
            self._inner.say(f"{type(board).__name__} is left alone from now on: {type(error).__name__}: {str(error)[:200]}")


def _values(event: AnyEvent) -> Iterator[tuple[str, float]]:
    if isinstance(event, Step):
        yield from (("loss", event.loss), ("lr", event.lr), ("images_per_s", event.samples_per_s))
        if event.grad_norm is not None:
            yield "grad_norm", event.grad_norm
    elif isinstance(event, Evaluated):
        yield "heldout/loss", event.loss
        for number, loss in enumerate(event.bands[:16], 1):
            yield f"heldout/noise {number} of {len(event.bands)}", loss
    elif isinstance(event, Scored):
        yield f"clip score/{event.number}", event.clip_score


def _within(committed: Committed) -> str:
    return f"{committed.job}/{committed.path.removeprefix(f'jobs/{committed.job}/out/')}"


def _tag(sample: Path) -> str:
    """`step000100-2.png` is the third prompt's."""
    return f"samples/{sample.stem.rpartition('-')[2]}"


def _shrunk(sample: Path) -> tuple[tuple[int, int], bytes]:
    from PIL import Image

    with Image.open(sample) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=90)
    return picture.size, out.getvalue()
