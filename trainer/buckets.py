"""PURE. kohya's aspect buckets, exactly, and the batches of an epoch.

Source: sd-scripts `library/model_util.py make_bucket_resolutions` and `library/train_util.py BucketManager`
(snapshot 48d368fa), as summarised in our notes; the formulas are theirs, so that a dataset gives the same
buckets and steps. One difference: where kohya divides by zero because a picture is smaller than one step,
the bucket here is one step wide and the picture is enlarged to cover it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

Size = tuple[int, int]
"""Width, height in pixels."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides on buckets."""

    resolution: int
    min_bucket: int
    max_bucket: int
    step: int
    no_upscale: bool = False

    def __post_init__(self) -> None:
        if self.step < 1 or self.resolution < self.step:
            raise ValueError(f"resolution {self.resolution} must be at least bucket_step {self.step}")


@dataclass(frozen=True, slots=True)
class Fit:
    """How a picture is brought into its bucket: resized, then cropped."""

    bucket: Size
    resized: Size
    at: Size | None = None
    """Left and top edge of the crop; None: in the middle."""

    @property
    def crop(self) -> Size:
        """Left and top edge of the crop."""
        return self.at or ((self.resized[0] - self.bucket[0]) // 2, (self.resized[1] - self.bucket[1]) // 2)


def cuts(fit: Fit, many: int) -> tuple[Fit, ...]:
    """So many crops of one picture: the middle, then places spread evenly over what there is to move.

    Fixed places instead of drawn ones, so that each is encoded once and found again by every run; the order is van der
    Corput's in base 2 and 3 (Halton 1960), under which any number of them lies well spread.
    """
    room = fit.resized[0] - fit.bucket[0], fit.resized[1] - fit.bucket[1]
    spread = (Fit(fit.bucket, fit.resized, (round(_halton(n, 2) * room[0]), round(_halton(n, 3) * room[1]))) for n in range(1, many))
    return fit, *spread


def _halton(number: int, base: int) -> float:
    """The digits of `number` mirrored at the point: a place from 0 to 1."""
    place, weight = 0.0, 1.0 / base
    while number:
        number, digit = divmod(number, base)
        place += digit * weight
        weight /= base
    return place


def enumerate_buckets(rules: Rules) -> list[Size]:
    """All buckets of at most the resolution's area, ascending; always holds the square."""
    area, step = rules.resolution**2, rules.step
    low = max(rules.min_bucket // step * step, step)
    high = math.ceil(rules.max_bucket / step) * step
    square = int(math.sqrt(area) // step) * step
    found = {(square, square)}
    for width in range(low, high + 1, step):
        height = min(high, (area // width) // step * step)
        if height >= low:
            found |= {(width, height), (height, width)}
    return sorted(found)


def fit(size: Size, rules: Rules, buckets: Sequence[Size]) -> Fit:
    """The bucket of a picture of this size."""
    return _shrunk(size, rules) if rules.no_upscale else _nearest(size, buckets)


def _nearest(size: Size, buckets: Sequence[Size]) -> Fit:
    width, height = size
    ratio = width / height
    bucket = size if size in buckets else min(buckets, key=lambda b: abs(b[0] / b[1] - ratio))
    scale = bucket[1] / height if ratio > bucket[0] / bucket[1] else bucket[0] / width
    return Fit(bucket, (int(width * scale + 0.5), int(height * scale + 0.5)))


def _shrunk(size: Size, rules: Rules) -> Fit:
    width, height = size
    area, step, ratio = rules.resolution**2, rules.step, width / height
    resized = size
    if width * height > area:
        target_width = math.sqrt(area * ratio)
        by_width = _rounded(target_width, step)
        by_height = _rounded(area / target_width, step)
        error_of_width = _ratio_error(by_width, _rounded(by_width / ratio, step), ratio)
        error_of_height = _ratio_error(_rounded(by_height * ratio, step), by_height, ratio)
        resized = (by_width, int(by_width / ratio + 0.5)) if error_of_width < error_of_height else (int(by_height * ratio + 0.5), by_height)
    return _covering(resized, size, step)


def _covering(resized: Size, size: Size, step: int) -> Fit:
    """The bucket is the size floored to the step, but at least one step: kohya divides by zero there."""
    bucket = (max(resized[0] // step, 1) * step, max(resized[1] // step, 1) * step)
    if resized[0] >= bucket[0] and resized[1] >= bucket[1]:
        return Fit(bucket, resized)
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    return Fit(bucket, (max(int(size[0] * scale + 0.5), bucket[0]), max(int(size[1] * scale + 0.5), bucket[1])))


def _rounded(side: float, step: int) -> int:
    whole = int(side + 0.5)
    return whole - whole % step


def _ratio_error(width: int, height: int, ratio: float) -> float:
    return abs(width / height - ratio) if width > 0 and height > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Plan:
    """What an epoch holds, counted as kohya counts."""

    images: int
    """Pictures with their repeats."""
    batches_per_epoch: int
    steps_per_epoch: int
    steps: int
    epochs: int
    priors: int = 0
    """Regularisation pictures that go with them, with their repeats."""


def steps_of(shapes: Sequence[tuple[int, ...]], repeats: Sequence[int], batch_size: int, accumulation: int) -> tuple[int, int]:
    """Batches and steps of one epoch. An incomplete batch is a batch, an incomplete accumulation a step."""
    counts: dict[tuple[int, ...], int] = {}
    for shape, times in zip(shapes, repeats, strict=True):
        counts[shape] = counts.get(shape, 0) + times
    batches = sum(math.ceil(n / batch_size) for n in counts.values())
    return batches, max(math.ceil(batches / accumulation), 1)


def plan(
    shapes: Sequence[tuple[int, ...]], repeats: Sequence[int], *, batch_size: int, accumulation: int, steps: int | None, epochs: int | None
) -> Plan:
    """Count the batches and steps of an epoch and of the run."""
    batches, per_epoch = steps_of(shapes, repeats, batch_size, accumulation)
    total = epochs * per_epoch if epochs is not None else steps or 1500
    return Plan(sum(repeats), batches, per_epoch, total, math.ceil(total / per_epoch))


def epoch_batches(shapes: Sequence[tuple[int, ...]], repeats: Sequence[int], batch_size: int, rng: Random) -> list[tuple[int, ...]]:
    """One epoch's batches of item indices: each of one shape, in an order that `rng` alone decides."""
    members: dict[tuple[int, ...], list[int]] = {}
    for index, (shape, times) in enumerate(zip(shapes, repeats, strict=True)):
        members.setdefault(shape, []).extend([index] * times)
    batches: list[tuple[int, ...]] = []
    for shape in sorted(members):
        order = members[shape]
        rng.shuffle(order)
        batches += [tuple(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches
