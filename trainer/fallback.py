"""What is done when a training goes wrong: back to the last good checkpoint, or down a rung for memory.

A job falls back once. The second time, or where nothing could be another, it ends with what was seen. Knows no family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from . import checkpoint, course, jobs, optimizers, saying
from .errors import TrainerError
from .jobs import Run
from .protocol import TrainingOptions

CURABLE = ("LRY-TRAIN-NAN", "LRY-TRAIN-SPIKE", "LRY-TRAIN-HELDOUT")
"""Errors after which a smaller rate from an earlier state may do."""


def fall_back(run: Run, error: TrainerError) -> bool:
    """Take a job back to its last good checkpoint, once, to go on at a smaller rate; False where that is no way out."""
    lane = run.lane
    if error.code not in CURABLE or lane.course.ease < 1.0 or run.place.team:
        return False
    # A spike is told by several steps. Else, from the very same step it would only happen again.
    latest = lane.step - (course.WINDOW if error.code == "LRY-TRAIN-SPIKE" else 1)
    every = jobs.saved(run)
    good = next((one for one in every if one.step <= latest), None)
    if good is None and (lane.step == 0 or not run.start):
        return False
    run.said.flush()
    lane.rewind()
    if good is not None:
        resume(run, good)
    else:
        _begin_anew(run)
    lane.course.ease = course.EASE
    run.measured = None
    for one in every:
        if one.step > lane.step:
            one.path.unlink(missing_ok=True)
    where = f"step {lane.step}, the last good checkpoint," if good else "the beginning, nothing being saved yet,"
    words = f"{error.message} The job goes on from {where} at {course.EASE:g} of its learning rate; if it happens again, it ends."
    saying.warn(run.job, run.place, words)
    return True


def resume(run: Run, found: checkpoint.Checkpoint) -> None:
    """Go on from a checkpoint, on what it stood on or on what this life has come down to."""
    here, there = run.lane.course.footing, found.course.footing
    if there.in_8_bits and not here.in_8_bits:
        shrink(run)
    jobs.resume(run, found)
    if here.in_8_bits and not there.in_8_bits:
        shrink(run)  # the states in the file are of the larger kind
    smaller = min((one for one in (here.micro, there.micro) if one is not None), default=None)
    run.lane.course.footing = course.Footing(
        here.checkpointing or there.checkpointing,
        smaller,
        here.in_8_bits or there.in_8_bits,
        course.smaller_base(here.base, there.base),
        here.offloaded or there.offloaded,
    )
    _store_base(run)


def _begin_anew(run: Run) -> None:
    lane = run.lane
    with torch.no_grad():
        for name, flat in lane.adapter.flat.items():
            flat.copy_(run.start[name])
    lane.adapter.mean.clear()
    optimizers.restore(lane.optimizer, {}, {})
    lane.course = course.Course(lane.course.footing)
    lane.step, run.last_good, run.best = 0, 0, None


def climb(run: Run, *, alone: bool = True) -> bool:
    """Give up what the ladder says for memory; False at its end. The step is taken again. `alone`: no other job is on the base."""
    lane, place = run.lane, run.place
    standing = footing_of(run)
    rung = course.next_rung(standing, lane.options.batch_size, run.job.optimizer, alone=alone)
    lane.rewind()
    if rung is None:
        return False
    footing, words = rung
    lane.course.footing = footing
    if footing.checkpointing and not standing.checkpointing:
        run.model.recompute()
    if footing.offloaded and not standing.offloaded:
        put_to_work([run])
    if footing.in_8_bits and not standing.in_8_bits:
        shrink(run)
    if footing.base != standing.base:
        _store_base(run)
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
    saying.warn(run.job, place, f"out of memory at step {lane.step + 1}: {words}.")
    return True


def put_to_work(runs: Sequence[Run]) -> None:
    """Ready the base that these jobs share for their passes."""
    wanted = {(t.part, t.name): t for run in runs for lay in run.lane.adapter.layouts.values() for t in lay.targets}
    checkpointing = any(footing_of(run).checkpointing for run in runs)
    runs[0].model.prepare(list(wanted.values()), checkpointing=checkpointing, offload=max(map(offload_of, runs)), speed=runs[0].job.speed)


def footing_of(run: Run) -> course.Footing:
    """What a job stands on: what it asked for, and what was given up since."""
    since = run.lane.course.footing
    return replace(
        since,
        checkpointing=since.checkpointing or run.job.gradient_checkpointing or offload_of(run) > 0,
        base=course.smaller_base(since.base, run.job.base_precision),
    )


def offload_of(run: Run) -> float:
    """The share of the frozen model that waits in main memory."""
    return 1.0 if run.lane.course.footing.offloaded else run.job.offload


def _store_base(run: Run) -> None:
    """Take the base down to how the job's footing has it, by the same rungs in every life: each rounds what the last one left."""
    stored: str = run.job.base_precision
    while stored != course.smaller_base(run.lane.course.footing.base, stored):
        stored = course.SMALLER_BASE[stored]
        run.model.quantise(stored)
        run.place.spoil_model()


def shrink(run: Run) -> None:
    """Give a job the optimizer of its kind with states in 8 bits."""
    options: TrainingOptions = run.job.model_copy(update={"optimizer": course.IN_8_BITS[run.job.optimizer]})
    run.lane.optimizer, warning = optimizers.create(options, run.lane.adapter)
    if warning:
        saying.warn(run.job, run.place, warning)


def best_of(run: Run) -> checkpoint.Checkpoint | None:
    """The checkpoint at which the held-out loss was lowest, if it is still there."""
    return next((one for one in jobs.saved(run) if run.best and one.step == run.best[0]), None)


def has_turned(run: Run) -> bool:
    """Whether the held-out loss has turned, and the job wants to end there."""
    return course.turned(run.lane.course.worse, run.job.stop_when_worse, run.best)
