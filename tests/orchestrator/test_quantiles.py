"""Ranges add up as random draws of them do, without a draw."""

from __future__ import annotations

from random import Random
from statistics import NormalDist, fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.pricing.quantiles import SCENARIOS, Range, certain, range_of, times_it_happens, total

Z90 = NormalDist().inv_cdf(0.9)
RANGES = st.builds(
    lambda middle, low, high: Range(middle / low, middle, middle * high), st.floats(1, 10_000), st.floats(1, 5), st.floats(1, 5)
)
RUNS = {
    "a long training": [(30, 120, 600), (60, 120, 360), (20, 90, 300), (100, 170, 500), (1800, 3600, 6480), (30, 60, 180), (5, 15, 60)],
    "a short one, mostly boot": [(30, 120, 600), (60, 120, 360), (20, 90, 300), (100, 170, 500), (200, 300, 500), (5, 15, 60)],
    "three that may take ten times as long": [(10, 100, 1000)] * 3,
    "eleven alike": [(50, 100, 200)] * 11,
    "one alone": [(30, 120, 600)],
}


def drawn(one: Range, draw: Random) -> float:
    z = draw.gauss(0, 1)
    return one.p50 * ((one.p90 / one.p50) ** (z / Z90) if z > 0 else (one.p50 / one.p10) ** (z / Z90))


@pytest.mark.parametrize("run", RUNS)
def test_a_sum_has_the_quantiles_of_random_draws(run: str):
    """Oracle: twenty thousand of them."""
    ranges, draw = [Range(*one) for one in RUNS[run]], Random(1)
    sums = sorted(sum(drawn(one, draw) for one in ranges) for _ in range(20_000))
    made = total(ranges)
    for value, place in ((made.p10, 2000), (made.p50, 10_000), (made.p90, 18_000)):
        assert value == pytest.approx(sums[place], rel=0.05)
    assert sum(one.mean for one in ranges) == pytest.approx(fmean(sums), rel=0.03)
    assert sum(made.p10 <= value <= made.p90 for value in sums) / 20_000 == pytest.approx(0.8, abs=0.04)


@given(one=RANGES, stream=st.integers(0, 30))
def test_a_range_alone_keeps_its_quantiles_in_every_stream(one: Range, stream: int):
    found = range_of(one.scenarios(stream))
    for name in ("p10", "p50", "p90"):
        assert getattr(found, name) == pytest.approx(getattr(one, name), rel=0.02)


@given(ranges=st.lists(RANGES, min_size=1, max_size=12))
def test_a_sum_lies_between_what_is_sure_and_what_all_at_once_would_be(ranges: list[Range]):
    made = total(ranges)
    assert sum(one.p10 for one in ranges) * 0.98 <= made.p10 <= made.p50 <= made.p90 <= sum(one.p90 for one in ranges) * 1.02
    assert total(ranges) == made, "the same tomorrow"


@given(ranges=st.lists(RANGES, min_size=1, max_size=6), factor=st.floats(1, 10), place=st.integers(0, 5))
def test_what_takes_longer_never_makes_a_sum_shorter(ranges: list[Range], factor: float, place: int):
    longer = list(ranges)
    longer[place % len(ranges)] = longer[place % len(ranges)].times(factor)
    made, more = total(ranges), total(longer)
    assert (more.p10, more.p50, more.p90) >= (made.p10, made.p50, made.p90)


def test_what_is_certain_stays_so():
    assert total([certain(3), certain(4)]) == certain(7)
    assert total([]) == certain(0)
    assert certain(0).mean == 0


@given(one=RANGES)
def test_a_quantile_is_passed_as_often_as_its_name_says(one: Range):
    for name, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)):
        if one.p10 < one.p50 * 0.99 and one.p90 > one.p50 * 1.01:
            assert one.share_below(getattr(one, name)) == pytest.approx(share, abs=1e-3)


@given(expected=st.floats(0.01, 20), stream=st.integers(0, 20))
def test_what_happens_now_and_then_happens_as_often_as_expected(expected: float, stream: int):
    times = times_it_happens(expected, stream)
    assert len(times) == SCENARIOS
    assert fmean(times) == pytest.approx(expected, abs=0.03 + 0.01 * expected)
