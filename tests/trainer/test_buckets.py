"""Buckets and step counts against an independent reading of kohya's rules."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.buckets import Rules, enumerate_buckets, epoch_batches, fit, plan

STEP = st.sampled_from([8, 16, 32, 64])


@st.composite
def rules(draw: st.DrawFn) -> Rules:
    step = draw(STEP)
    resolution = draw(st.integers(step, 1024))
    return Rules(resolution, draw(st.integers(8, resolution)), draw(st.integers(resolution, 2048)), step, draw(st.booleans()))


def kohyas_list(area: int, low: int, high: int, step: int) -> list[tuple[int, int]]:
    """Written from the description, by search instead of by formula."""
    square = max(s for s in range(0, 4096, step) if s * s <= area)
    pairs = {(square, square)}
    for w in range(low, high + 1, step):
        h = max(h for h in range(0, high + 1, step) if h * w <= area or h == 0)
        if h >= low:
            pairs |= {(w, h), (h, w)}
    return sorted(pairs)


@pytest.mark.parametrize(
    ("resolution", "low", "high", "count"), [(512, 256, 1024, 17), (1024, 256, 2048, 41), (1024, 512, 1536, 21), (768, 256, 1024, 19)]
)
def test_the_lists_are_as_long_as_kohyas(resolution: int, low: int, high: int, count: int) -> None:
    assert len(enumerate_buckets(Rules(resolution, low, high, 64))) == count


@given(rules())
def test_the_list_is_what_a_search_finds(rule: Rules) -> None:
    low = max(rule.min_bucket - rule.min_bucket % rule.step, rule.step)
    high = rule.max_bucket + -rule.max_bucket % rule.step
    assert enumerate_buckets(rule) == kohyas_list(rule.resolution**2, low, high, rule.step)


@given(rules(), st.integers(1, 5000), st.integers(1, 5000))
def test_every_picture_covers_its_bucket(rule: Rules, width: int, height: int) -> None:
    """Down to one pixel: kohya divides by zero there."""
    got = fit((width, height), rule, enumerate_buckets(rule))
    assert all(side > 0 and side % rule.step == 0 for side in got.bucket) or got.bucket == (width, height)
    assert got.resized[0] >= got.bucket[0]
    assert got.resized[1] >= got.bucket[1]
    assert min(got.crop) >= 0


@given(rules(), st.integers(1, 5000), st.integers(1, 5000))
def test_with_upscaling_the_nearest_ratio_wins_and_one_side_fits_exactly(rule: Rules, width: int, height: int) -> None:
    listed = enumerate_buckets(rule)
    got = fit((width, height), Rules(rule.resolution, rule.min_bucket, rule.max_bucket, rule.step), listed)
    if (width, height) in listed:
        assert got.bucket == (width, height)
    else:
        error = {b: abs(b[0] / b[1] - width / height) for b in listed}
        assert got.bucket == next(b for b in listed if error[b] == min(error.values()))
    assert got.resized[0] == got.bucket[0] or got.resized[1] == got.bucket[1]


@given(rules(), st.integers(1, 5000), st.integers(1, 5000))
def test_without_upscaling_a_picture_larger_than_a_step_is_never_enlarged(rule: Rules, width: int, height: int) -> None:
    rule = Rules(rule.resolution, rule.min_bucket, rule.max_bucket, rule.step, no_upscale=True)
    got = fit((width, height), rule, [])
    small = min(width, height) < rule.step or min(got.bucket) == rule.step
    assert small or (got.resized[0] <= width and got.resized[1] <= height)
    if width * height <= rule.resolution**2 and min(width, height) >= rule.step:
        assert got.resized == (width, height)
        assert got.bucket == (width - width % rule.step, height - height % rule.step)


@given(rules(), st.integers(64, 5000), st.integers(64, 5000))
def test_without_upscaling_a_large_picture_is_shrunk_as_kohya_shrinks_it(rule: Rules, width: int, height: int) -> None:
    """Two sizes of the target area are tried, by width and by height on the grid; the one whose ratio, itself on the grid, errs less."""
    area, step, ratio = rule.resolution**2, rule.step, width / height
    grid = lambda side: max(n for n in range(0, int(side + 0.5) + 1, step) if n <= int(side + 0.5))  # noqa: E731
    if width * height <= area:
        return
    target = math.sqrt(area * ratio)
    by_width, by_height = grid(target), grid(area / target)
    pairs = (by_width, grid(by_width / ratio)), (grid(by_height * ratio), by_height)
    if not all(all(pair) for pair in pairs):
        return  # kohya divides by zero
    errors = [abs(w / h - ratio) for w, h in pairs]
    resized = (by_width, int(by_width / ratio + 0.5)) if errors[0] < errors[1] else (int(by_height * ratio + 0.5), by_height)
    got = fit((width, height), Rules(rule.resolution, rule.min_bucket, rule.max_bucket, step, no_upscale=True), [])
    assert got.resized == resized
    assert got.bucket == (grid(resized[0] - 0.5), grid(resized[1] - 0.5))
    assert got.crop == ((resized[0] - got.bucket[0]) // 2, (resized[1] - got.bucket[1]) // 2)


def test_examples_of_no_upscale_worked_by_hand() -> None:
    rule = Rules(512, 256, 1024, 64, no_upscale=True)
    assert fit((300, 200), rule, []).bucket == (256, 192)
    assert fit((37, 41), rule, []).bucket == (64, 64)
    wide = fit((1920, 1080), rule, [])  # sqrt(512*512*16/9) = 682.67 -> by width 640x360, floored to 640x320
    assert (wide.bucket, wide.resized) == ((640, 320), (640, 360)) or wide.bucket == (640, 384)


LISTS = st.lists(st.tuples(st.sampled_from([(64, 64), (64, 96), (96, 64)]), st.integers(1, 5)), min_size=1, max_size=12)


@given(LISTS, st.integers(1, 5), st.integers(1, 4), st.integers(1, 7), st.integers(0, 99))
def test_an_epoch_shows_every_picture_as_often_as_it_repeats(items: list, batch: int, many: int, epochs: int, seed: int) -> None:
    fits, repeats = [i[0] for i in items], [i[1] for i in items]
    batches = epoch_batches(fits, repeats, batch, random.Random(seed))
    assert Counter(i for group in batches for i in group) == Counter(dict(enumerate(repeats)))
    assert all(len({fits[i] for i in group}) == 1 for group in batches)
    counted = plan(fits, repeats, batch_size=batch, accumulation=many, steps=None, epochs=epochs)
    assert counted.batches_per_epoch == len(batches)
    assert counted.steps_per_epoch == math.ceil(len(batches) / many)
    assert counted.steps == epochs * counted.steps_per_epoch
    assert counted.images == sum(repeats)


def test_the_order_is_the_seeds_alone() -> None:
    fits, repeats = [(64, 64)] * 9, [3] * 9
    first, again, other = (epoch_batches(fits, repeats, 2, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_a_resolution_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="at least bucket_step"):
        Rules(32, 32, 64, 64)
