"""What a job says: warnings, phases, steps, files. Every event of a job is made here."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Literal

import torch

from . import loop
from .files import Written
from .protocol import Committed, JobSpec, Phase, Scored, Started, Step, Warned

if TYPE_CHECKING:
    from .jobs import Place, Run

STEP_EVENT_EVERY_S = 0.2


class Losses:
    """Collects steps into events: at most five a second, but always the first and the last."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.last: float | None = None
        self._pending: list[loop.Stepped] = []
        self._said_at = -math.inf
        self._since = time.monotonic()

    def begin(self) -> None:
        """Steps begin now: what came before is no part of their speed."""
        self._since = time.monotonic()

    def add(self, stepped: loop.Stepped) -> None:
        self._pending.append(stepped)
        self.last = stepped.loss
        for message in self.run.lane.warnings:
            warn(self.run.job, self.run.place, message)
        self.run.lane.warnings.clear()
        if time.monotonic() - self._said_at >= STEP_EVENT_EVERY_S or self.run.lane.done:
            self.flush()

    def flush(self) -> None:
        if not self._pending:
            return
        now, lane, many = time.monotonic(), self.run.lane, self._pending
        norms = [s.grad_norm for s in many if math.isfinite(s.grad_norm)]
        self.run.place.emit(
            Step(
                at_s=self.run.place.clock(),
                job=self.run.job.name,
                step=lane.step,
                steps=lane.plan.steps,
                epoch=lane.epoch,
                loss=sum(s.loss for s in many) / len(many),
                lr=lane.lr,
                samples_per_s=sum(s.samples for s in many) / max(now - self._since, 1e-9),
                grad_norm=sum(norms) / len(norms) if norms else None,
            )
        )
        self._pending, self._said_at, self._since = [], now, now


def warn(job: JobSpec, place: Place, message: str) -> None:
    """Something a person should know."""
    place.emit(Warned(at_s=place.clock(), job=job.name, message=message[:2000]))


def say_phase(run: Run, phase: Literal["training", "sampling", "saving"], detail: str = "") -> None:
    """What the job does now."""
    run.place.emit(Phase(at_s=run.place.clock(), job=run.job.name, phase=phase, detail=detail))


def say_started(run: Run) -> None:
    """What will be trained, and from which step."""
    lane, device = run.lane, run.place.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    plan = lane.plan
    run.place.emit(
        Started(
            at_s=run.place.clock(),
            job=run.job.name,
            steps=plan.steps,
            images=plan.images,
            epochs=plan.epochs,
            step=lane.step,
            device=name,
            trainable=lane.adapter.count(),
        )
    )


def say_score(run: Run, number: int, score: float) -> None:
    """How one sample of this step agrees with its prompt."""
    event = Scored(at_s=run.place.clock(), job=run.job.name, step=run.lane.step, number=number, clip_score=score)
    run.place.emit(event)


def say_committed(run: Run, written: Written, role: Literal["adapter", "checkpoint", "sample"], step: int, *, final: bool = False) -> None:
    """In the session's names, also where a bare job writes elsewhere."""
    path = f"jobs/{run.job.name}/out/{written.path.relative_to(run.out).as_posix()}"
    run.place.emit(
        Committed(
            at_s=run.place.clock(), job=run.job.name, path=path, role=role, step=step, size=written.size, sha256=written.sha256, final=final
        )
    )
