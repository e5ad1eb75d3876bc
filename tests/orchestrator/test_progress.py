"""What the machine tells, folded into one value: in any chunking, with any rubbish between, and only what can be."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.progress import BIGGEST, CURVE_POINTS, Curve, Progress
from orchestrator.view import job_words, sparkline
from orchestrator.watch import replay
from trainer.protocol import (
    MAX_EVENT_BYTES,
    AnyEvent,
    Committed,
    Ended,
    Evaluated,
    EventReader,
    JobState,
    Phase,
    Started,
    Status,
    Step,
    Warned,
    dump_event,
)

LIFE: list[AnyEvent] = [
    Phase(at_s=1, job="lisa", phase="loading"),
    Started(at_s=2, job="lisa", steps=4, images=3, epochs=2),
    *(Step(at_s=2 + i, job="lisa", step=i, steps=4, epoch=0, loss=1 / i, lr=1e-4, samples_per_s=2.0) for i in range(1, 5)),
    Evaluated(at_s=6, job="lisa", step=4, loss=0.2),
    Warned(at_s=6, job="lisa", message="slow disk"),
    Committed(at_s=7, job="lisa", path="jobs/lisa/out/lisa.safetensors", role="adapter", step=4, size=1, sha256="0" * 64, final=True),
    Ended(at_s=8, job="lisa", state="done", step=4),
]
WHOLE = b"".join(map(dump_event, LIFE))


def told(raw: bytes) -> Progress:
    progress = Progress(["lisa", "forest"])
    replay(progress, [raw])
    return progress


def summary(progress: Progress) -> object:
    return (progress.jobs, progress.committed, progress.warnings)


def test_a_life_is_told_whole():
    progress = told(WHOLE)
    job = progress.jobs["lisa"]
    assert (job.state, job.step, job.steps, job.images, job.samples_per_s) == ("done", 4, 4, 3, 2.0)
    assert job.loss.points == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert job.heldout.points == [(4, 0.2)]
    assert progress.warnings == ["lisa: slow disk"]
    assert list(progress.committed) == ["jobs/lisa/out/lisa.safetensors"]
    assert progress.jobs["forest"].state == "queued"


@given(cuts=st.lists(st.integers(0, len(WHOLE)), max_size=20))
def test_events_survive_any_chunking(cuts: list[int]):
    progress, reader = Progress(["lisa", "forest"]), EventReader()
    edges = [0, *sorted(cuts), len(WHOLE)]
    for start, end in pairwise(edges):
        for event in reader.feed(WHOLE[start:end]):
            progress.take(event)
    assert summary(progress) == summary(told(WHOLE))


RUBBISH = st.one_of(
    st.binary(max_size=60).map(lambda b: b.replace(b"\n", b"")),
    st.sampled_from(
        [
            b"{}",
            b"null",
            b"[" * 3000,
            b'{"kind":"step"}',
            b'{"kind":"nothing","at_s":1}',
            b"x" * (MAX_EVENT_BYTES + 5),
            b"\xff\xfe",
            b"\0\0",
        ]
    ),
)


@settings(deadline=None)
@given(rubbish=st.lists(st.tuples(st.integers(0, len(LIFE)), RUBBISH), max_size=8))
def test_rubbish_between_the_lines_hides_none_of_them(rubbish: list[tuple[int, bytes]]):
    lines = [dump_event(event) for event in LIFE]
    for place, line in sorted(rubbish, key=lambda r: -r[0]):
        lines.insert(place, line + b"\n")
    assert summary(told(b"".join(lines))) == summary(told(WHOLE))


def test_a_job_that_was_not_sent_is_ignored():
    progress = told(WHOLE)
    for event in (Ended(at_s=9, job="stranger", state="done", step=1), Committed(**dict(LIFE[8], job="forest"))):
        progress.take(event)
    assert summary(progress) == summary(told(WHOLE)), "a commit under another job's path counts for neither"


def line(**fields: object) -> bytes:
    values = {"kind": "step", "at_s": 3, "job": "lisa", "step": 2, "steps": 4, "epoch": 0, "loss": 1.0, "lr": 1e-4, "samples_per_s": 1.0}
    return json.dumps(values | fields).encode() + b"\n"


ABSURD = [
    {"step": -5}, {"step": 10**300}, {"steps": 10**4000}, {"steps": -1}, {"at_s": 1e300}, {"samples_per_s": -1.0}, {"samples_per_s": 1e308},
    {"loss": math.nan}, {"loss": math.inf}, {"step": "2"}, {"job": "../x"}, {"extra": 1}, {"at_s": -1},
]  # fmt: skip


@pytest.mark.parametrize("fields", ABSURD, ids=str)
def test_numbers_that_no_training_tells_change_nothing(fields: dict[str, object]):
    assert summary(told(line(**fields))) in (summary(told(b"")), summary(told(line())))


@settings(deadline=None)
@given(losses=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_any_loss_can_be_drawn_and_told(losses: list[float]):
    progress = told(b"".join(line(step=i + 1, steps=100, at_s=i, loss=loss) for i, loss in enumerate(losses)))
    job = progress.jobs["lisa"]
    assert all(abs(value) <= BIGGEST for _, value in job.loss.points)
    assert sparkline([value for _, value in job.loss.points], 20)
    assert "nan" not in job_words(job)
    json.dumps([value for _, value in job.loss.points], allow_nan=False)


def test_a_curve_stays_small_and_keeps_its_ends():
    curve = Curve()
    for step in range(1, 100_001):
        curve.add(step, 1 / step)
    steps = [step for step, _ in curve.points]
    assert len(steps) <= CURVE_POINTS + 1
    assert steps == sorted(set(steps))
    assert steps[-1] > 99_000
    assert all(value == 1 / step for step, value in curve.points)


def test_a_job_that_went_back_to_a_checkpoint_draws_the_new_way():
    curve = Curve()
    for step in (1, 2, 3, 4, 3, 4, 5):
        curve.add(step, step * (10.0 if step > 2 else 1.0))
    assert [step for step, _ in curve.points] == [1, 2, 3, 4, 5]


def test_the_time_left_follows_the_pace_and_counts_the_queue():
    progress = Progress(["lisa", "forest"])
    progress.take(Started(at_s=0, job="lisa", steps=100, images=3, epochs=2))
    assert progress.seconds_left is None
    for i in range(1, 11):
        progress.take(Step(at_s=2.0 * i, job="lisa", step=i, steps=100, epoch=0, loss=1.0, lr=1e-4, samples_per_s=2.0))
    assert progress.jobs["lisa"].seconds_left == pytest.approx(180)
    assert progress.seconds_left == pytest.approx(180 + 200), "the next is taken to be as long"
    progress.take(Ended(at_s=21, job="lisa", state="failed", step=10, message="out of memory"))
    assert progress.jobs["lisa"].seconds_left is None


def test_the_status_tells_of_a_job_that_never_started():
    progress = Progress(["lisa", "forest"])
    jobs = {"lisa": JobState(state="failed", message="no base"), "stranger": JobState(state="failed")}
    progress.hear(Status(state="running", beat=1, uptime_s=1, jobs=jobs))
    assert progress.jobs["lisa"].state == "queued", "while it runs the events tell"
    progress.hear(Status(state="ended", reason="failed", beat=2, uptime_s=2, jobs=jobs))
    assert (progress.jobs["lisa"].state, progress.jobs["lisa"].message) == ("failed", "no base")
    assert set(progress.jobs) == {"lisa", "forest"}


def test_a_status_cannot_undo_what_the_events_told():
    progress = told(WHOLE)
    progress.hear(Status(state="ended", reason="failed", beat=2, uptime_s=2, jobs={"lisa": JobState(state="failed")}))
    assert progress.jobs["lisa"].state == "done"
