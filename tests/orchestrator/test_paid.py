"""What paid time went into: a fold over what machines told, whose parts add up to what was paid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock, an_order
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.home import RunFolder
from orchestrator.ledger import Ledger
from orchestrator.lifecycle import Signal
from orchestrator.pricing.gpus import gpu
from orchestrator.pricing.needs import Bucket, JobShape, step_time
from orchestrator.report.paid import Rental, Worked, by_job, paid, worked
from orchestrator.report.receipt import in_words, receipt
from trainer import turns
from trainer.protocol import AnyEvent, Ended, Evaluated, Phase, Started, Step, dump_event


def step(at: float, job: str, number: int) -> Step:
    return Step(at_s=at, job=job, step=number, steps=10, epoch=1, loss=0.1, lr=1e-4, samples_per_s=1.0)


def started(at: float, job: str) -> Started:
    return Started(at_s=at, job=job, steps=10, images=3, epochs=1)


def test_time_belongs_to_what_was_said_last():
    events: list[AnyEvent] = [
        Phase(at_s=10, job="a", phase="loading"),
        Phase(at_s=40, job="a", phase="caching"),
        started(50, "a"),
        Evaluated(at_s=53, job="a", step=0, loss=0.5),
        Phase(at_s=53, job="a", phase="training"),
        step(60, "a", 5),
        Phase(at_s=65, job="a", phase="saving"),
        Phase(at_s=66, job="a", phase="training"),
        step(70, "a", 10),
        Ended(at_s=71, job="a", state="done", step=10),
        Phase(at_s=90, job="b", phase="loading"),
    ]
    found = worked(events)
    assert found.of("a") == {"loading": 30, "caching": 10, "measuring": 3, "training": 7 + 5 + 4 + 1, "saving": 1}
    assert found.steps_s == 17
    assert found.of("b") == {}


def test_steps_that_are_shared_are_shared_alike_and_one_who_leaves_leaves_the_rest_to_the_others():
    events: list[AnyEvent] = [started(0, "a"), started(0, "b"), Phase(at_s=0, job="b", phase="training")]
    events += [step(10, "a", 5), step(10, "b", 5), Ended(at_s=10, job="a", state="done", step=5), step(16, "b", 10)]
    found = worked(events)
    assert (found.of("a"), found.of("b")) == ({"training": 5}, {"training": 5 + 6})


ANY = st.lists(
    st.one_of(
        st.builds(started, st.floats(0, 1e4), st.sampled_from("abc")),
        st.builds(step, st.floats(0, 1e4), st.sampled_from("abc"), st.integers(1, 9)),
        st.builds(Phase, at_s=st.floats(0, 1e4), job=st.sampled_from("abc"), phase=st.sampled_from(["loading", "saving", "training"])),
        st.builds(Ended, at_s=st.floats(0, 1e4), job=st.sampled_from("abc"), state=st.just("done"), step=st.just(1)),
        st.builds(Evaluated, at_s=st.floats(0, 1e12), job=st.sampled_from("abc"), step=st.just(1), loss=st.just(0.1)),
    ),
    max_size=30,
)


@given(ANY, st.floats(0, 2e4))
def test_whatever_a_machine_tells_no_second_counts_twice_and_dollars_add_up(events: list[AnyEvent], whole: float):
    found = worked(events)
    assert all(seconds >= 0 for seconds in found.seconds.values())
    told = [event.at_s for event in events if event.at_s <= 1e7]
    assert sum(found.seconds.values()) <= (max(told) - told[0] if told else 0) + 1e-6
    machines = [Rental(seconds=whole, usd=Decimal("1.25"), worked=found), Rental(seconds=5, usd=Decimal("0.5"), worked=Worked())]
    share = paid(machines)["share"]
    assert 0 <= share <= 1
    shares = by_job(machines, ["a", "b", "c"])
    assert sum(one["usd"] for one in shares.values()) == pytest.approx(1.75, abs=1e-5)


# -- six LoRAs, the session's way and the guides' way ------------------------------------------------

BOOT_S = 165.0
"""An image of 16 GB on a host that does not have it (measured at RunPod: 165 and 169 s)."""
SET_UP_S = 40.0
"""The trainer's own environment, where the image has torch."""
GUIDES_SET_UP_S = 20 * 60.0
"""What a trainer's installation by its README takes on a rented machine."""
BASE_S = 6.5e9 * 8 / 500e6
"""SDXL over 500 Mbit/s."""
CACHE_S, SAVE_S, PULL_S, DESTROY_S = 12.0, 1.0, 20.0, 15.0
"""Forty pictures; a checkpoint; an adapter and a checkpoint on their way home; until the cloud agrees."""
STEPS, SAVES = 2000, 10
CARD = gpu("RTX 4090")


def pace_s(riders: int) -> float:
    """A pass of SDXL at 1024 by our own estimate."""
    shape = JobShape(family="sdxl", buckets=(Bucket(width=1024, height=1024),), rank=16, jobs=riders, checkpointing=True)
    return step_time(shape, CARD).p50


class Session:
    """A machine that trains some jobs as our trainer would, by a clock of its own: who rides is decided by the trainer's own rule."""

    def __init__(self, names: Sequence[str], width: int) -> None:
        self.names, self.width, self.at_s = names, width, 0.0

    def events(self, load_s: float) -> Iterator[AnyEvent]:
        """From the supervisor's start to the last job's end."""
        for number, name in enumerate(self.names):
            yield Phase(at_s=self.at_s, job=name, phase="loading")
            self.at_s += 0.0 if number else load_s
            yield Phase(at_s=self.at_s, job=name, phase="caching")
            self.at_s += CACHE_S
        for name in self.names:
            yield started(self.at_s, name)
        yield Phase(at_s=self.at_s, job=self.names[-1], phase="training")
        left, waited = dict.fromkeys(self.names, STEPS), dict.fromkeys(self.names, 0)
        stride = STEPS // SAVES
        while left:
            riding = list(left)
            members = {riding[i] for i in turns.choose([turns.Waiting("1024", waited[name]) for name in riding], self.width)}
            waited = {name: 0 if name in members else waited[name] + 1 for name in riding}
            self.at_s += pace_s(len(members)) * stride / 10
            for name in members:
                left[name] -= stride // 10
                yield step(self.at_s, name, STEPS - left[name])
            for name in [name for name in members if left[name] % stride == 0]:
                yield Phase(at_s=self.at_s, job=name, phase="saving")
                self.at_s += SAVE_S
                yield Phase(at_s=self.at_s, job=name, phase="training")
            for name in [name for name in members if left[name] == 0]:
                del left[name]
                yield Ended(at_s=self.at_s, job=name, state="done", step=STEPS)


def rental(folder: Path, names: Sequence[str], *, width: int, before_s: float, load_s: float) -> dict[str, Any]:
    """The receipt of one run of these jobs: its book and its machine's events as they would stand there."""
    folder.mkdir(parents=True)
    clock = FakeClock()
    run = RunFolder(folder)
    order = an_order(run, names)
    ledger = Ledger(folder / "ledger.jsonl", clock)
    ledger.record("opened", cap_usd=order.cap_usd, run=run.id)
    prices = {"gpu_usd_per_hour": "0.40"}
    facts = {"provider": "fake", "label": "l", "gpu": "RTX 4090", "usd_per_hour": "0.40", "disk_gib": 40, "prices": prices}
    ledger.record(Signal.INTENT, attempt=1, **facts)
    ledger.record(Signal.LAUNCHED, attempt=1, instance_id="i-1")
    clock.passed_s += BOOT_S
    ledger.record(Signal.REACHABLE, attempt=1)
    clock.passed_s += before_s
    ledger.record(Signal.STARTED, attempt=1, lifetime_s=9e5, python="python")
    session = Session(names, width)
    (folder / "events-1.jsonl").write_bytes(b"".join(dump_event(event) for event in session.events(load_s)))
    clock.passed_s += session.at_s
    ledger.record(Signal.ENDED, attempt=1, reason="done")
    clock.passed_s += PULL_S
    ledger.record(Signal.PULLED, attempt=1, missing=[])
    ledger.record(Signal.GIVE_UP, attempt=1, why="")
    clock.passed_s += DESTROY_S
    ledger.record(Signal.GONE, attempt=1)
    ledger.record("closed", exit_code=0)
    return receipt(run, datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=9))


def test_six_loras_in_a_session_spend_nine_tenths_of_the_paid_time_in_steps_where_the_guides_way_spends_less_than_half(tmp_path: Path):
    """The same jobs at the same speed. The session boots once, fetches the base once beside the set-up, and pulls beside the training."""
    names = [f"j{number}" for number in range(6)]
    ours = rental(tmp_path / "six-1", names, width=4, before_s=max(SET_UP_S, BASE_S), load_s=10.0)
    paid_time = ours["paid"]
    assert paid_time["share"] > 0.9, paid_time
    assert sum(job["usd"] for job in ours["jobs"]) == pytest.approx(ours["cost"]["metered_usd"], abs=1e-4)
    words = "\n".join(in_words(ours))
    assert f"{paid_time['share']:.0%} of it in training steps" in words
    each = [rental(tmp_path / f"{name}-1", [name], width=1, before_s=GUIDES_SET_UP_S + BASE_S, load_s=30.0) for name in names]
    theirs = sum(one["paid"]["in_steps_s"] for one in each) / sum(one["paid"]["seconds"] for one in each)
    assert theirs < 0.5
    assert sum(one["cost"]["metered_usd"] for one in each) > 1.5 * ours["cost"]["metered_usd"]
