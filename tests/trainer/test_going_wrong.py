"""What is done when a training goes wrong: seen, said, gone back from or come down to, and the good files stay."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from trainer import course, loop, train
from trainer.course import Course, Footing
from trainer.families.model import Model
from trainer.jobs import Place
from trainer.protocol import AnyEvent, Committed, Evaluated, JobSpec, Started, Step, TrainingOptions, Warned
from trainer.together import run_jobs

Spec = Callable[..., dict[str, Any]]


def run(root: Path, job: dict[str, Any], stop_after: int | None = None) -> list[AnyEvent]:
    events: list[AnyEvent] = []

    def stopping() -> bool:
        return stop_after is not None and sum(isinstance(e, Step) for e in events) >= stop_after

    train(root=root, on_event=events.append, stopping=stopping, **job)
    return events


def only(events: list[AnyEvent], kind: type[AnyEvent]) -> list[Any]:
    return [e for e in events if isinstance(e, kind)]


def adapter(root: Path, name: str = "lisa") -> dict[str, torch.Tensor]:
    return load_file(root / f"jobs/{name}/out/{name}.safetensors")


Fault = Callable[[loop.Lane, torch.Tensor], torch.Tensor]


def inject(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Let a fault change the losses of passes; gradients as they are."""
    true = loop._backward

    def faulty(model: Any, members: Any) -> list[torch.Tensor]:
        return [fault(lane, loss) for (lane, _), loss in zip(members, true(model, members), strict=True)]

    monkeypatch.setattr(loop, "_backward", faulty)


def at_steps(steps: range, factor: float, times: int = 1) -> Fault:
    """The loss of these steps is multiplied, the first `times` times that they are taken."""
    seen: dict[int, int] = {}

    def fault(lane: loop.Lane, loss: torch.Tensor) -> torch.Tensor:
        seen[lane.step] = seen.get(lane.step, 0) + 1
        return loss * factor if lane.step in steps and seen[lane.step] <= times else loss

    return fault


# --- what a spike is -------------------------------------------------------------------------------

USUAL = st.lists(st.floats(0.05, 0.2), min_size=course.LEAST, max_size=150)


@given(USUAL, st.floats(11, 1e6))
def test_a_loss_that_stays_tenfold_is_seen_after_three_steps_and_not_before(usual: list[float], factor: float) -> None:
    one = Course()
    for loss in [*usual, *usual[: course.WINDOW]]:
        assert one.look(loss) == ""
    height = max(usual) * factor
    assert [bool(one.look(height)) for _ in range(3)] == [False, False, True]


@given(USUAL, st.integers(0, 200))
def test_single_draws_may_be_as_large_as_they_like(usual: list[float], seed: int) -> None:
    """One step in four a thousandfold, as a low timestep at batch size 1 can be."""
    one = Course()
    for number, loss in enumerate(usual * 2):
        assert one.look(loss * (1000 if (number + seed) % 4 == 0 else 1)) == ""


@settings(max_examples=40)
@given(
    st.builds(Course, st.builds(Footing, st.booleans(), st.none() | st.integers(1, 9), st.booleans()), st.floats(0.1, 1), st.integers(0, 9))
)
def test_a_course_comes_back_from_a_header_as_it_was(one: Course) -> None:
    for loss in (0.1, 1 / 3, 2e-45):
        one.look(loss)
    assert Course.of(json.loads(json.dumps(one.facts()))) == one


def test_the_ladder_is_climbed_down_cheapest_first() -> None:
    """A batch of 5 with AdamW: checkpointing, parts of 3, 2 and 1, states in 8 bits; then what a job alone on its base may change of it."""
    rungs, footing = [], Footing()
    while rung := course.next_rung(footing, 5, "AdamW"):
        footing, _ = rung
        rungs.append((footing.checkpointing, footing.micro, footing.in_8_bits, footing.base, footing.offloaded))
    own = [(True, None, False), (True, 3, False), (True, 2, False), (True, 1, False), (True, 1, True)]
    assert rungs[:5] == [(*rung, "full", False) for rung in own]
    assert rungs[5:] == [(True, 1, True, "int8", False), (True, 1, True, "nf4", False), (True, 1, True, "nf4", True)]
    assert course.next_rung(replace(footing, in_8_bits=False), 1, "Prodigy") is None


@given(st.integers(1, 64), st.sampled_from(["AdamW", "AdamW8bit", "Prodigy", "Lion"]), st.booleans())
def test_every_ladder_ends_and_each_rung_needs_less(batch: int, optimizer: str, checkpointing: bool) -> None:
    footing, seen = Footing(checkpointing=checkpointing), 0
    while rung := course.next_rung(footing, batch, optimizer):
        below, words = rung
        assert words
        assert (below.checkpointing, below.in_8_bits, below.offloaded) >= (footing.checkpointing, footing.in_8_bits, footing.offloaded)
        assert course.smaller_base(below.base, footing.base) == below.base
        assert (below.micro or batch) <= (footing.micro or batch)
        assert below != footing
        footing, seen = below, seen + 1
    assert seen <= 12
    assert footing.offloaded
    assert footing.base == "nf4"
    assert (footing.micro or batch) == 1


# --- falling back ----------------------------------------------------------------------------------


def test_a_nan_goes_back_to_the_last_checkpoint_once_and_on_at_half_the_rate(
    root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, at_steps(range(7, 8), math.nan))
    events = run(root, spec(steps=12, save_every_steps=5))
    (said,) = [e.message for e in only(events, Warned) if "goes on from" in e.message]
    assert "the loss is not finite at step 8" in said
    assert "step 5, the last good checkpoint, at 0.5 of its learning rate" in said
    steps = [(e.step, e.lr) for e in only(events, Step)]
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9, 10, 11, 12]
    assert [lr for _, lr in steps] == pytest.approx([1e-2] * 7 + [5e-3] * 7)
    assert events[-1].state == "done"
    assert all(tensor.isfinite().all() for tensor in adapter(root).values())


def test_a_nan_before_the_first_checkpoint_goes_back_to_the_beginning(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is what a run at half the rate gives from its first step on."""
    inject(monkeypatch, at_steps(range(3, 4), math.nan))
    events = run(root, spec(steps=6, optimizer="Prodigy", learning_rate=1.0, ema_decay=0.9))
    assert events[-1].state == "done"
    assert "the beginning" in next(e.message for e in only(events, Warned) if "goes on from" in e.message)
    fallen = adapter(root)
    run(root, spec(steps=6, optimizer="Prodigy", learning_rate=0.5, ema_decay=0.9, name="half", output="jobs/half/out"))
    assert all(torch.equal(value, adapter(root, "half")[key]) for key, value in fallen.items())


def test_the_second_nan_ends_the_job_and_leaves_its_good_files(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, at_steps(range(7, 8), math.nan, times=2))
    events = run(root, spec(steps=12, save_every_steps=5))
    assert (events[-1].state, events[-1].code, events[-1].step) == ("failed", "LRY-TRAIN-NAN", 7)
    assert "The last good checkpoint is step 5" in events[-1].message
    assert all(t.isfinite().all() for t in load_file(root / "jobs/lisa/out/lisa-step000005.safetensors").values())


def test_a_nan_that_must_come_again_ends_the_job_at_once(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the very first step nothing would be another: no time is wasted on it."""
    inject(monkeypatch, at_steps(range(1), math.nan))
    events = run(root, spec(steps=4))
    assert (events[-1].state, events[-1].code) == ("failed", "LRY-TRAIN-NAN")
    assert not only(events, Step)


def test_a_loss_tenfold_is_told_and_gone_back_from_to_before_it_rose(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """It rises at step 31 and is seen at 33: the checkpoint of step 30 is already of the rising and is not used."""
    inject(monkeypatch, lambda lane, loss: loss * 200.0 if lane.step >= 30 and lane.course.ease == 1.0 else loss)
    events = run(root, spec(steps=36, save_every_steps=6, batch_size=2))
    (said,) = [e.message for e in only(events, Warned) if "goes on from" in e.message]
    assert "the loss has left its scale" in said
    assert "(step 33)" in said
    assert "step 24, the last good checkpoint" in said
    assert events[-1].state == "done"
    assert events[-1].step == 36


@pytest.mark.parametrize("cut", [7, 9, 11])
def test_killed_around_a_fall_and_resumed_is_as_undisturbed_to_the_bit(
    cut: int, root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate after the fall is part of the checkpoint."""
    inject(monkeypatch, at_steps(range(7, 8), math.nan))
    whole = spec(steps=12, save_every_steps=5, name="whole", output="jobs/whole/out")
    run(root, whole)
    inject(monkeypatch, at_steps(range(7, 8), math.nan))
    parts = spec(steps=12, save_every_steps=5, name="parts", output="jobs/parts/out")
    assert run(root, parts, stop_after=cut)[-1].state == "stopped"
    events = run(root, parts)
    assert only(events, Started)[0].step > 0
    assert all(torch.equal(value, adapter(root, "parts")[key]) for key, value in adapter(root, "whole").items())


def test_a_neighbour_does_not_notice_a_fall(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [
        spec(name=name, output=f"jobs/{name}/out", seed=seed, steps=12, save_every_steps=4) for seed, name in enumerate(("good", "bad"))
    ]

    def fault(lane: loop.Lane, loss: torch.Tensor) -> torch.Tensor:
        bad = lane.options.seed == 1 and lane.step == 6 and lane.course.ease == 1.0
        return loss * math.nan if bad else loss

    inject(monkeypatch, fault)
    events: list[AnyEvent] = []
    results = run_jobs([JobSpec(**job) for job in jobs], Place(root, events.append))
    assert [result.state for result in results] == ["done", "done"]
    assert {e.job for e in only(events, Warned) if "goes on from" in e.message} == {"bad"}
    assert [e.step for e in only(events, Step) if e.job == "good"] == list(range(1, 13))
    together = adapter(root, "good")
    run(root, {**jobs[0], "name": "alone", "output": "jobs/alone/out"})
    for key, value in adapter(root, "alone").items():
        torch.testing.assert_close(together[key], value, rtol=1e-3, atol=1e-4)


def test_a_held_out_loss_beyond_ruin_goes_back_too(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    true, asked = loop.evaluate, []

    def evaluate(*args: Any) -> list[float]:
        asked.append(true(*args))
        return [band * (10.0 if len(asked) == 3 else 1.0) for band in asked[-1]]

    monkeypatch.setattr(loop, "evaluate", evaluate)
    events = run(root, spec(steps=9, save_every_steps=3, heldout=1))
    (said,) = [e.message for e in only(events, Warned) if "goes on from" in e.message]
    assert "the held-out loss is" in said
    assert "after step 6; the best was" in said
    assert "step 3, the last good checkpoint" in said
    assert events[-1].state == "done"


# --- held-out loss ---------------------------------------------------------------------------------


def measured_as(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    told = iter(losses)
    monkeypatch.setattr(loop, "evaluate", lambda *_: [next(told)])


def test_the_best_checkpoint_is_marked_and_kept(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_as(monkeypatch, [1.0, 0.9, 0.5, 0.6, 0.7, 0.8, 0.9])
    events = run(root, spec(steps=12, save_every_steps=2, heldout=1))
    assert [(e.step, e.best) for e in only(events, Evaluated)] == [(0, True), (2, True), (4, True), *((s, False) for s in (6, 8, 10, 12))]
    kept = sorted(p.name for p in (root / "jobs/lisa/out/checkpoints").iterdir())
    assert kept == ["step000004.safetensors", "step000008.safetensors", "step000010.safetensors"]


def test_a_job_ends_when_the_held_out_loss_has_turned_with_the_best_adapter(
    root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_as(monkeypatch, [1.0, 0.9, 0.5, 0.6, 0.7, 0.8])
    events = run(root, spec(steps=40, save_every_steps=2, heldout=1, stop_when_worse=2, optimizer="AdamWScheduleFree"))
    ended = events[-1]
    assert (ended.state, ended.step) == ("done", 4)
    assert "not better for 2 measurements: ended at step 8 with the adapter of step 4" in ended.message
    assert only(events, Committed)[-1].final
    at_best = load_file(root / "jobs/lisa/out/lisa-step000004.safetensors")
    assert all(torch.equal(value, at_best[key]) for key, value in adapter(root).items())


def test_turning_is_counted_over_a_restart(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [1.0, 0.5, 0.6, 0.7, 0.8]
    measured_as(monkeypatch, told)
    job = spec(steps=40, save_every_steps=2, heldout=1, stop_when_worse=3)
    assert run(root, job, stop_after=5)[-1].state == "stopped"
    measured_as(monkeypatch, told[3:])
    events = run(root, job)
    assert "ended at step 8 with the adapter of step 2" in events[-1].message


def test_stopping_needs_something_to_measure_by() -> None:
    with pytest.raises(ValueError, match="needs pictures to measure by"):
        TrainingOptions(stop_when_worse=2, heldout=0)


# --- out of memory ---------------------------------------------------------------------------------


def memory_for(monkeypatch: pytest.MonkeyPatch, *, rows: int, checkpointing: bool = False, after: int = 0) -> list[int]:
    """A model that has room for so many samples at once, with gradient checkpointing alone if so. What it was asked for."""
    true, asked = Model.predict, []

    def predict(self: Model, noisy: torch.Tensor, *args: Any) -> torch.Tensor:
        asked.append(len(noisy))
        on = any(getattr(module, "gradient_checkpointing", False) for module in self.parts["unet"].modules())
        if torch.is_grad_enabled() and len(asked) > after and (len(noisy) > rows or (checkpointing and not on)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return true(self, noisy, *args)

    monkeypatch.setattr(Model, "predict", predict)
    return asked


def said_of_memory(events: list[AnyEvent]) -> list[str]:
    return [e.message for e in only(events, Warned) if "out of memory" in e.message]


@pytest.mark.parametrize("after", [0, 3])
def test_checkpointing_comes_first_and_changes_nothing(after: int, root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first step or on the way."""
    run(root, spec(steps=5, batch_size=3, name="roomy", output="jobs/roomy/out"))
    memory_for(monkeypatch, rows=3, checkpointing=True, after=after)
    events = run(root, spec(steps=5, batch_size=3))
    assert events[-1].state == "done"
    (said,) = said_of_memory(events)
    assert said.startswith(f"out of memory at step {after + 1}: gradient checkpointing is on from here")
    for key, value in adapter(root, "roomy").items():
        torch.testing.assert_close(adapter(root)[key], value, rtol=1e-4, atol=1e-5)


def test_a_smaller_part_of_the_batch_gives_the_same_adapter_to_rounding(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The effective batch, its draws and its mean loss stay; also where a batch is not a multiple of its parts."""
    options = {"steps": 6, "batch_size": 3, "optimizer": "SGD", "learning_rate": 1.0, "noise_offset": 0.1, "min_snr_gamma": 5.0}
    whole = run(root, spec(**options, name="roomy", output="jobs/roomy/out"))
    asked = memory_for(monkeypatch, rows=2)
    events = run(root, spec(**options))
    assert events[-1].state == "done"
    assert said_of_memory(events)[-1].endswith("a batch of 3 goes through in parts of 2: the same result to rounding, slower.")
    assert len(said_of_memory(events)) == 2
    assert max(asked[-6:]) == 2
    assert [e.loss for e in only(events, Step)] == pytest.approx([e.loss for e in only(whole, Step)], rel=1e-5)
    for key, value in adapter(root, "roomy").items():
        torch.testing.assert_close(adapter(root)[key], value, rtol=1e-4, atol=1e-6)


RUNGS = [
    "gradient checkpointing is on",
    "a batch of 2 goes through",
    "AdamW8bit in place of AdamW",
    "the frozen model is stored in int8",
    "the frozen model is stored in nf4",
    "the frozen model waits in main memory",
]


def test_a_job_comes_down_rung_by_rung_and_then_ends_in_words(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_for(monkeypatch, rows=0, after=4)
    events = run(root, spec(steps=6, batch_size=2, save_every_steps=2))
    said = said_of_memory(events)
    assert len(said) == len(RUNGS)
    assert all(f": {rung}" in words for words, rung in zip(said, RUNGS, strict=True))
    assert (events[-1].state, events[-1].code) == ("failed", "LRY-TRAIN-OOM")
    assert (root / "jobs/lisa/out/checkpoints/step000002.safetensors").is_file()


@pytest.mark.parametrize("rows", [1, 2])
def test_what_was_given_up_for_memory_stays_so_after_a_restart_to_the_bit(
    rows: int, root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"steps": 9, "batch_size": 3, "save_every_steps": 3}
    memory_for(monkeypatch, rows=rows)
    run(root, spec(**options, name="whole", output="jobs/whole/out"))
    assert run(root, spec(**options), stop_after=5)[-1].state == "stopped"
    again = run(root, spec(**options))
    assert again[-1].state == "done"
    assert said_of_memory(again) == [], "it knows from its checkpoint"
    assert all(torch.equal(value, adapter(root)[key]) for key, value in adapter(root, "whole").items())


@pytest.mark.parametrize("rungs", [3, 6])
def test_what_was_stored_smaller_is_so_after_a_restart(rungs: int, root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """States in 8 bits, the frozen model in 4, then out of the way: to the bit."""
    true, left = Model.predict, [rungs]

    def predict(self: Model, *args: Any) -> torch.Tensor:
        if torch.is_grad_enabled() and left[0] > 0:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return true(self, *args)

    monkeypatch.setattr(Model, "predict", predict)
    options = {"steps": 8, "batch_size": 2, "save_every_steps": 4}
    whole = run(root, spec(**options, name="whole", output="jobs/whole/out"))
    assert RUNGS[rungs - 1] in said_of_memory(whole)[-1]
    left[0] = rungs
    run(root, spec(**options), stop_after=5)
    again = run(root, spec(**options))
    assert said_of_memory(again) == [], "it knows from its checkpoint"
    assert all(torch.equal(value, adapter(root)[key]) for key, value in adapter(root, "whole").items())


def test_jobs_in_one_pass_come_apart_before_any_of_them_gives_something_up(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [spec(name=name, output=f"jobs/{name}/out", seed=seed, steps=9, batch_size=2) for seed, name in enumerate("ab")]
    memory_for(monkeypatch, rows=2)
    events: list[AnyEvent] = []
    results = run_jobs([JobSpec(**job) for job in jobs], Place(root, events.append))
    assert [result.state for result in results] == ["done", "done"]
    assert said_of_memory(events) == []
    assert any("at most 1 share one" in e.message for e in only(events, Warned))
