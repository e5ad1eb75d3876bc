"""What an epoch is made of: which pictures are trained on, at which resolutions, in which buckets, and how many steps that gives.

Torch-free: the laptop plans with the lines by which the rented machine trains. Opens no file.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import buckets
from .buckets import Fit, Plan, Size
from .dataset import Sample
from .protocol import TrainingOptions
from .rotation import Rotation

FEW = 10
"""Below so many pictures each one is needed for training."""
MOST_HELD_OUT = 8


@dataclass(frozen=True, slots=True)
class Item:
    """A picture at one resolution."""

    sample: Sample
    resolution: int
    fits: tuple[Fit, ...]
    """How it is brought into its bucket: the middle first, then the other cuts that take turns with it."""

    @property
    def bucket(self) -> Size:
        """Width and height in pixels of what is trained on."""
        return self.fits[0].bucket

    @property
    def shape(self) -> tuple[int, ...]:
        """Items that agree in this may lie in one batch. Resolutions do not mix, as sd-scripts' datasets do not."""
        return *self.bucket, self.resolution


@dataclass(frozen=True, slots=True)
class Lessons:
    """Everything that is trained on, and how often."""

    items: tuple[Item, ...]
    rotation: Rotation
    plan: Plan

    @property
    def buckets(self) -> dict[Size, int]:
        """Bucket -> pictures in it, as often as the first epoch shows them."""
        counts: Counter[Size] = Counter()
        for item, times in zip(self.items, self.rotation.repeats(0), strict=True):
            counts[item.bucket] += times
        return dict(sorted(counts.items()))


def rules(options: TrainingOptions, resolution: int | None = None) -> buckets.Rules:
    """The bucket rules of a job at one of its resolutions."""
    side = options.resolution if resolution is None else resolution
    return buckets.Rules(side, options.min_bucket, options.max_bucket, options.bucket_step, options.bucket_no_upscale)


def resolutions(options: TrainingOptions) -> tuple[int, ...]:
    """All resolutions of a job, its own first."""
    return tuple(dict.fromkeys((options.resolution, *options.more_resolutions)))


def fits(options: TrainingOptions, samples: Sequence[Sample], resolution: int | None = None) -> list[Fit]:
    """Each sample's bucket."""
    rule = rules(options, resolution)
    known = buckets.enumerate_buckets(rule)
    return [buckets.fit(sample.size, rule, known) for sample in samples]


def items(options: TrainingOptions, samples: Sequence[Sample]) -> list[Item]:
    """Every sample at every resolution, one resolution after the other."""
    return [
        Item(sample, resolution, buckets.cuts(fit, options.crops))
        for resolution in resolutions(options)
        for sample, fit in zip(samples, fits(options, samples, resolution), strict=True)
    ]


def measured(options: TrainingOptions, samples: Sequence[Sample]) -> list[Item]:
    """Pictures to measure by: at the job's own resolution, cut in the middle."""
    return [Item(sample, options.resolution, (fit,)) for sample, fit in zip(samples, fits(options, samples), strict=True)]


def split(options: TrainingOptions, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Pictures to train on, and pictures to measure by. Chosen by their file names, so that a further picture moves none of the others."""
    many = options.heldout
    if many is None:
        many = min(len(samples) // 10, MOST_HELD_OUT) if len(samples) >= FEW else 0
    many = min(many, len(samples) - 1) if samples else 0
    order = sorted(range(len(samples)), key=lambda i: (hashlib.sha256(os.fsencode(samples[i].image.name)).digest(), i))
    kept = set(order[:many])
    return [s for i, s in enumerate(samples) if i not in kept], [s for i, s in enumerate(samples) if i in kept]


def lessons(options: TrainingOptions, trained: Sequence[Sample], priors: Sequence[Sample] = ()) -> Lessons:
    """Pictures of training and of regularisation as epochs, counted as sd-scripts counts them."""
    every = [*items(options, trained), *items(options, priors)]
    many = len(resolutions(options))
    rotation = Rotation([s.repeats for s in trained], [s.repeats for s in priors], many)
    repeats = rotation.repeats(0)
    plan = buckets.plan(
        [item.shape for item in every],
        repeats,
        batch_size=options.batch_size,
        accumulation=options.gradient_accumulation,
        steps=options.steps,
        epochs=options.epochs,
    )
    shown = sum(repeats[len(trained) * many :])
    return Lessons(tuple(every), rotation, replace(plan, images=plan.images - shown, priors=shown))


def plan(options: TrainingOptions, samples: Sequence[Sample], priors: Sequence[Sample] = ()) -> Plan:
    """Batches, steps and epochs of all samples of a dataset, less those held out."""
    return lessons(options, split(options, samples)[0], priors).plan


def epochs_for_all(lessons: Lessons) -> int:
    """Epochs after which every regularisation picture has been shown."""
    seen: set[int] = set()
    start = len(lessons.rotation.trained) * lessons.rotation.resolutions
    for epoch in range(1, math.ceil(len(lessons.rotation.priors)) + 2):
        seen |= {i for i, times in enumerate(lessons.rotation.repeats(epoch - 1)[start:]) if times}
        if len(seen) == len(lessons.items) - start:
            return epoch
    raise AssertionError("every walk shows at least one picture")


def words_of_priors(lessons: Lessons) -> str:
    """What becomes of the regularisation pictures."""
    epochs = epochs_for_all(lessons)
    turns = "each of them in every epoch" if epochs == 1 else f"they take turns, and after {epochs} epochs each has been used"
    return f"an epoch shows {lessons.plan.images} pictures and {lessons.plan.priors} of regularisation: {turns}"


def total_steps(options: TrainingOptions, samples: Sequence[Sample], priors: Sequence[Sample] = ()) -> int:
    """Optimizer steps of the job."""
    return plan(options, samples, priors).steps
