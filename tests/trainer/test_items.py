"""What an epoch holds: regularisation, several resolutions and crops, against an independent reading of kohya's rules."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import items
from trainer.buckets import Fit, cuts, epoch_batches, steps_of
from trainer.dataset import Sample
from trainer.protocol import TrainingOptions
from trainer.rotation import Rotation, walk

SMALL: dict[str, Any] = {"resolution": 64, "min_bucket": 32, "max_bucket": 128, "bucket_step": 32}
SIZES = st.sampled_from([(64, 64), (64, 96), (200, 50), (31, 33)])
PICTURES = st.lists(st.tuples(SIZES, st.integers(1, 5)), min_size=1, max_size=9)


def samples(pictures: list[tuple[tuple[int, int], int]], folder: str = "f") -> list[Sample]:
    return [
        Sample(image=Path(folder, f"{i}.png"), caption="a", repeats=repeats, size=size, folder=folder)
        for i, (size, repeats) in enumerate(pictures)
    ]


def kohyas_walk(repeats: list[int], wanted: int) -> list[int]:
    """Written from the description: once round with each one's repeats, then one more each, until there are enough."""
    shown, first = dict.fromkeys(range(len(repeats)), 0), True
    while sum(shown.values()) < wanted:
        for place in shown:
            shown[place] += repeats[place] if first else 1
            if sum(shown.values()) >= wanted:
                break
        first = False
    return list(shown.values())


def test_the_example_that_was_seen_in_kohya() -> None:
    """5 pictures x 2 and 3 of regularisation: 20 batches, repeats 4, 3, 3."""
    lessons = items.lessons(TrainingOptions(**SMALL, epochs=1), samples([((64, 64), 2)] * 5), samples([((64, 64), 1)] * 3, "reg"))
    assert lessons.rotation.repeats(0)[5:] == [4, 3, 3]
    assert (lessons.plan.batches_per_epoch, lessons.plan.steps, lessons.plan.images, lessons.plan.priors) == (20, 20, 10, 10)


@given(PICTURES, PICTURES, st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_regularisation_is_counted_as_kohya_counts_it(ours: list, reg: list, batch: int, many: int, epochs: int) -> None:
    options = TrainingOptions(**SMALL, epochs=epochs, batch_size=batch, gradient_accumulation=many)
    lessons = items.lessons(options, samples(ours), samples(reg, "reg"))
    wanted = sum(repeats for _, repeats in ours)
    shown = kohyas_walk([repeats for _, repeats in reg], wanted)
    assert lessons.rotation.repeats(0) == [repeats for _, repeats in ours] + shown
    counts = Counter()
    for item, times in zip(lessons.items, [*(r for _, r in ours), *shown], strict=True):
        counts[item.bucket] += times
    batches = sum(math.ceil(n / batch) for n in counts.values())
    assert lessons.plan.batches_per_epoch == batches
    assert lessons.plan.steps == epochs * math.ceil(batches / many)
    assert wanted <= lessons.plan.priors < wanted + max(repeats for _, repeats in reg) + 1


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=8),
    st.lists(st.integers(1, 6), min_size=1, max_size=30) | st.lists(st.just(1), min_size=1, max_size=30),
)
def test_over_the_epochs_every_regularisation_picture_is_used_and_about_equally(ours: list[int], reg: list[int]) -> None:
    """kohya begins at the first one in every epoch; here the walk goes on where it ended."""
    rotation, total = Rotation(ours, reg), Counter()
    for epoch in range(len(reg)):
        shown = rotation.repeats(epoch)[len(ours) :]
        assert sum(ours) <= sum(shown) < sum(ours) + max(*reg, 1) + 1
        total.update({i: n for i, n in enumerate(shown) if n})
    assert set(total) == set(range(len(reg)))
    if set(reg) == {1}:
        assert max(total.values()) - min(total.values()) <= 1
    assert rotation.repeats(3) == Rotation(ours, reg).repeats(3), "an epoch is the same whoever asks for it first"


def test_the_walk_goes_round() -> None:
    assert walk([1, 1, 1, 1, 1], 2, 4) == ([1, 0, 0, 0, 1], 1)
    assert walk([], 5) == ([], 0)


def test_how_long_it_takes_is_said() -> None:
    lessons = items.lessons(TrainingOptions(**SMALL), samples([((64, 64), 2)] * 3), samples([((64, 64), 1)] * 20, "reg"))
    assert items.epochs_for_all(lessons) == 4
    assert "after 4 epochs" in items.words_of_priors(lessons)


@given(PICTURES, PICTURES, st.integers(1, 3))
def test_several_resolutions_are_as_several_datasets_of_kohyas(ours: list, reg: list, batch: int) -> None:
    """Each counts, batches and regularises for itself."""
    both = TrainingOptions(**SMALL, more_resolutions=(96,), epochs=1, batch_size=batch)
    lessons = items.lessons(both, samples(ours), samples(reg, "reg"))
    each = [items.lessons(both.model_copy(update={"resolution": r, "more_resolutions": ()}), samples(ours), samples(reg)) for r in (64, 96)]
    assert lessons.plan.batches_per_epoch == sum(one.plan.batches_per_epoch for one in each)
    assert lessons.plan.images == sum(one.plan.images for one in each)
    assert Counter(lessons.buckets) == Counter(each[0].buckets) + Counter(each[1].buckets)
    shapes, repeats = [item.shape for item in lessons.items], lessons.rotation.repeats(0)
    for group in epoch_batches(shapes, repeats, batch, random.Random(0)):
        assert len({(lessons.items[i].bucket, lessons.items[i].resolution) for i in group}) == 1
    assert steps_of(shapes, repeats, batch, 1)[0] == lessons.plan.batches_per_epoch


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 400), st.integers(0, 400), st.integers(1, 16))
def test_crops_lie_within_the_picture_and_begin_in_the_middle(w: int, h: int, more: int, higher: int, many: int) -> None:
    fit = Fit((w, h), (w + more, h + higher))
    found = cuts(fit, many)
    assert len(found) == many
    assert found[0].crop == (more // 2, higher // 2)
    assert all(0 <= one.crop[0] <= more and 0 <= one.crop[1] <= higher for one in found)
    if more >= 100 and many >= 4:
        places = sorted(one.crop[0] for one in found[1:])
        assert places[0] < more / 2 <= places[-1]


def test_resolutions_must_lie_between_the_buckets() -> None:
    with pytest.raises(ValueError, match="resolution 256 must lie between"):
        TrainingOptions(**SMALL, more_resolutions=(256,))
