"""What the training machine has told so far, as one value that views draw and decisions read.

Knows no clock, file or network: events and a status go in. It believes nothing about files: those are the
puller's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from trainer.protocol import AnyEvent, Committed, Ended, Evaluated, Phase, Scored, Started, Status, Step, Warned

JobStateName = Literal["queued", "running", "done", "stopped", "failed"]

BIGGEST = 1e12
"""Steps, seconds and losses beyond it come from no training of ours."""
MOST_WORDS = 2000
"""Characters of a message that are kept."""
MOST_WARNINGS = 200
"""The latest are kept."""
MOST_SCORES = 100_000
CURVE_POINTS = 600
"""Loss points kept for drawing; beyond that every second one is dropped and the spacing doubles."""


def _makes_sense(event: AnyEvent) -> bool:
    numbers = [getattr(event, name, 0) for name in ("at_s", "step", "steps", "images", "epochs", "samples_per_s", "trainable")]
    return all(0 <= number <= BIGGEST for number in numbers)


@dataclass(slots=True)
class Curve:
    """A thinned series of (step, value)."""

    points: list[tuple[int, float]] = field(default_factory=list)
    every: int = 1
    _seen: int = 0

    def add(self, step: int, value: float) -> None:
        """Take a point; older detail is thinned so that the curve stays small."""
        value = min(max(value, -BIGGEST), BIGGEST)  # sums and differences of what is drawn stay numbers
        if self.points and step <= self.points[-1][0]:
            self.points = [p for p in self.points if p[0] < step]  # a resumed job goes back a little
        self._seen += 1
        if self._seen % self.every == 0:
            self.points.append((step, value))
        if len(self.points) > CURVE_POINTS:
            self.points = self.points[::2]
            self.every *= 2


@dataclass(slots=True)
class JobProgress:
    """One job."""

    name: str
    state: JobStateName = "queued"
    phase: str = ""
    detail: str = ""
    step: int = 0
    steps: int = 0
    images: int = 0
    loss: Curve = field(default_factory=Curve)
    heldout: Curve = field(default_factory=Curve)
    scores: dict[tuple[int, int], float] = field(default_factory=dict)
    """CLIP scores of samples, by step and number of the prompt."""
    samples_per_s: float = 0.0
    lr: float = 0.0
    message: str = ""
    code: str = ""
    started_s: float | None = None
    ended_s: float | None = None
    last_step_at: tuple[float, int] | None = None
    step_seconds: float = 0.0
    """Smoothed seconds per optimizer step."""

    @property
    def seconds_left(self) -> float | None:
        """Until this job's last step, at the pace of its latest steps; None while nothing is known."""
        if self.state not in {"running", "queued"} or not self.steps or not self.step_seconds:
            return None
        return max(0, self.steps - self.step) * self.step_seconds

    def take(self, event: AnyEvent) -> None:
        """Fold one event in."""
        if isinstance(event, Phase):
            self.state, self.phase, self.detail = "running", event.phase, event.detail[:MOST_WORDS]
            self.last_step_at = None  # sampling and saving are no steps: the pace is taken up after them
        elif isinstance(event, Started):
            self.state, self.steps, self.images, self.step = "running", event.steps, event.images, event.step
            self.started_s = event.at_s if self.started_s is None else self.started_s
            self.last_step_at = None  # before the first step lie the first samples and the held-out loss
        elif isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Evaluated):
            self.heldout.add(event.step, event.loss)
        elif isinstance(event, Scored):
            self.score(event)
        elif isinstance(event, Warned):
            self.message = event.message[:MOST_WORDS]
        elif isinstance(event, Ended):
            self.state, self.step, self.phase = event.state, event.step, ""
            self.message, self.code, self.ended_s = event.message[:MOST_WORDS], event.code[:MOST_WORDS], event.at_s

    def score(self, event: Scored) -> None:
        """Take a sample's score; no training draws more than so many."""
        if len(self.scores) < MOST_SCORES:
            self.scores[event.step, event.number] = event.clip_score

    def _step(self, event: Step) -> None:
        self.state, self.phase = "running", "training"
        if self.last_step_at and event.step > self.last_step_at[1] and event.at_s >= self.last_step_at[0]:
            pace = (event.at_s - self.last_step_at[0]) / (event.step - self.last_step_at[1])
            self.step_seconds = pace if not self.step_seconds else 0.8 * self.step_seconds + 0.2 * pace
        self.last_step_at = (event.at_s, event.step)
        self.step, self.steps, self.samples_per_s, self.lr = event.step, event.steps, event.samples_per_s, event.lr
        self.loss.add(event.step, event.loss)


class Progress:
    """The whole session."""

    def __init__(self, jobs: list[str]) -> None:
        self.jobs = {name: JobProgress(name) for name in jobs}
        self.committed: dict[str, Committed] = {}
        """Every file that is ready over there, by path; a later commit of the same path wins."""
        self.warnings: list[str] = []
        self.status: Status | None = None

    def expect(self, names: Iterable[str]) -> None:
        """Jobs that were added; what is known of one stays."""
        for name in names:
            self.jobs.setdefault(name, JobProgress(name))

    def take(self, event: AnyEvent) -> None:
        """Fold one event in. Jobs that we did not send are ignored, and so is what no training can tell."""
        if not _makes_sense(event):
            return
        if isinstance(event, Warned):
            self.warnings.append((f"{event.job}: {event.message}" if event.job else event.message)[:MOST_WORDS])
            del self.warnings[:-MOST_WARNINGS]
        job = self.jobs.get(event.job)
        if job is None:
            return
        if isinstance(event, Committed):
            if event.path.startswith(f"jobs/{event.job}/out/"):
                self.committed[event.path] = event
        else:
            job.take(event)

    def hear(self, status: Status) -> None:
        """Take the supervisor's word on what the events do not tell (a job that never started)."""
        self.status = status
        for name, state in status.jobs.items():
            job = self.jobs.get(name)
            if job is not None and state.state in {"failed", "stopped"} and job.state in {"queued", "running"} and status.state == "ended":
                job.state, job.message = state.state, state.message or job.message

    @property
    def running(self) -> list[JobProgress]:
        """The jobs that are being trained now: several when they share their passes."""
        return [j for j in self.jobs.values() if j.state == "running"]

    @property
    def seconds_left(self) -> float | None:
        """Until the last job's last step. Jobs that run together end with the slowest; queued ones follow at the pace of the known ones."""
        pace = next((j.step_seconds for j in reversed(self.jobs.values()) if j.step_seconds), None)
        if pace is None:
            return None
        usual = max((j.steps for j in self.jobs.values()), default=0)

        def left(job: JobProgress) -> float:
            return max(0, (job.steps or usual) - job.step) * (job.step_seconds or pace or 0.0)

        queued = [j for j in self.jobs.values() if j.state == "queued"]
        return max(map(left, self.running), default=0.0) + sum(map(left, queued))
