"""Which jobs still finish: told by paces alone, checked against a session that is played through pass by pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cap.pace import MEASURED_S, MEASURED_STEPS, NEAR, Company, Stopwatch, Work, left_out, seconds_left

STEPS = st.integers(0, 3000)
SHARES = st.floats(0, 1)


def works(*steps: int, step_s: float | None = 1.0) -> list[Work]:
    return [Work(name=f"job{n}", steps=left, step_s=step_s) for n, left in enumerate(steps)]


def played(steps: list[int], pass_s: float, company: Company) -> float:
    """The oracle: every pass takes all who are left one step further."""
    total = 0.0
    while riders := sum(left > 0 for left in steps):
        total += pass_s * company.slowness(riders)
        steps = [max(0, left - 1) for left in steps]
    return total


@given(steps=st.lists(st.integers(0, 60), min_size=1, max_size=6), pass_s=st.floats(0.01, 5), share=SHARES)
def test_the_projection_is_what_playing_every_pass_gives(steps: list[int], pass_s: float, share: float):
    company = Company(size=len(steps), fixed_share=share)
    told = seconds_left(works(*steps, step_s=pass_s), company)
    assert told == pytest.approx(played(steps, pass_s, company), rel=1e-6, abs=1e-6)


@given(steps=st.lists(STEPS, min_size=1, max_size=6), begun=st.integers(1, 6), left_s=st.floats(0, 1e5), share=SHARES)
def test_what_is_left_out_is_an_end_of_the_order_and_no_longer_than_needed(steps: list[int], begun: int, left_s: float, share: float):
    """Either all are kept, or the kept ones finish; with one more they would not."""
    jobs = [Work(name=w.name, steps=w.steps, step_s=w.step_s if n < begun else None) for n, w in enumerate(works(*steps))]
    company = Company(size=min(begun, len(jobs)), fixed_share=share)
    out = left_out(jobs, company, left_s)
    kept = len(jobs) - len(out)
    assert out == tuple(job.name for job in jobs[kept:])
    if out:
        assert kept >= 1
        assert seconds_left(jobs[:kept], company) <= left_s < seconds_left(jobs[: kept + 1], company)
    elif seconds_left(jobs, company) > left_s * NEAR:
        assert all(seconds_left(jobs[:n], company) > left_s for n in range(1, len(jobs)))


def test_of_jobs_that_compute_together_the_last_is_left_out_and_of_jobs_that_share_one_clock_nobody():
    """Where a pass costs the same whoever rides, leaving somebody behind gains nothing."""
    jobs = works(100, 100, 100)
    assert left_out(jobs, Company(size=3), 70.0) == ("job2",)
    assert left_out(jobs, Company(size=3), 35.0) == ("job1", "job2")
    assert left_out(jobs, Company(size=3, fixed_share=1.0), 70.0) == ()
    assert left_out(jobs, Company(size=3), 20.0) == (), "not even the first: all go on as far as they come"
    assert left_out(jobs, Company(size=3), 99.0) == (), "so near, it is waited"


def test_jobs_that_wait_their_turn_are_counted_at_the_pace_of_the_others():
    jobs = [*works(50), Work(name="next", steps=100, step_s=None), Work(name="last", steps=100, step_s=None)]
    assert seconds_left(jobs, Company(size=1)) == 250.0
    assert left_out(jobs, Company(size=1), 160.0) == ("last",)


def watched(stopwatch: Stopwatch, names: list[str], *, from_s: float, step_s: float, steps: int = 100) -> float:
    for n in range(steps + 1):
        stopwatch.see(names, dict.fromkeys(names, (from_s + n * step_s, n)))
    return from_s + steps * step_s


def test_nothing_is_believed_before_everybody_was_measured_in_this_company():
    stopwatch = Stopwatch()
    stopwatch.see(["a", "b"], {"a": (0.0, 0)})
    stopwatch.see(["a", "b"], {"a": (100.0, 1000)})
    assert stopwatch.paces() == {}, "b has not told of a step"
    for n in range(2 * MEASURED_STEPS):
        stopwatch.see(["a", "b"], {"a": (101.0 + n, 1001 + n), "b": (101.0 + n, n)})
    assert stopwatch.paces()["b"] == pytest.approx(1.0)
    stopwatch.see(["a"], {"a": (300.0, 1200)})
    assert stopwatch.paces() == {}, "b has left: a will be faster"
    quick = Stopwatch()
    watched(quick, ["a"], from_s=0.0, step_s=MEASURED_S / 1000)
    assert quick.paces() == {}, "many steps in no time tell little"


@given(share=SHARES, step_s=st.floats(0.2, 10), stay=st.integers(1, 4))
def test_what_a_pass_costs_is_learnt_when_somebody_leaves(share: float, step_s: float, stay: int):
    """Five ride; some leave; those who stay get faster by what depends on riders, and the rest of the time is known to be fixed."""
    truth, names, stopwatch = Company(size=5, fixed_share=share), list("abcde"), Stopwatch()
    end_s = watched(stopwatch, names, from_s=0.0, step_s=step_s)
    assert stopwatch.company() == Company(size=5)
    watched(stopwatch, names[:stay], from_s=end_s, step_s=step_s * truth.slowness(stay))
    learnt = stopwatch.company()
    assert learnt.size == stay
    assert learnt.slowness(1) * truth.slowness(stay) == pytest.approx(truth.slowness(1), rel=1e-6)


def test_a_host_that_stood_still_for_once_leaves_nobody_out_and_saves_that_come_again_count():
    stopwatch = Stopwatch()
    end_s = watched(stopwatch, ["a"], from_s=0.0, step_s=1.0)
    stopwatch.see(["a"], {"a": (end_s + 3600.0, 101)})
    assert stopwatch.paces()["a"] == pytest.approx(1.0)
    for n in range(10):
        stopwatch.see(["a"], {"a": (end_s + 3600.0 + 20.0 * (n + 1), 101 + 10 * (n + 1))})
    assert stopwatch.paces()["a"] == pytest.approx(1.5), "ten steps in twenty seconds: every ten steps a save"


def test_a_job_that_was_taken_up_goes_back_a_little_and_is_measured_anew():
    stopwatch = Stopwatch()
    end_s = watched(stopwatch, ["a"], from_s=0.0, step_s=1.0)
    stopwatch.see(["a"], {"a": (end_s + 500.0, 50)})
    assert stopwatch.paces() == {}
