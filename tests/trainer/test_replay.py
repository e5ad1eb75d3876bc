"""Recorded passes: the same numbers, one recording a shape, and a plain way on where none can be made. A stand-in records on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from trainer import replay
from trainer.families.model import Model
from trainer.jobs import Place
from trainer.protocol import AnyEvent, JobSpec, Step, Warned
from trainer.replay import Outputs, Passes, Replay
from trainer.together import run_jobs

Spec = Callable[..., dict[str, Any]]


class Recorder:
    """Records as a GPU does: outputs lie in fixed places, written anew by each replay from inputs in fixed places."""

    def __init__(self) -> None:
        self.made = self.replayed = 0

    def __call__(self, work: Replay) -> Replay:
        self.made += 1
        places = tuple(None if out is None else out.detach().clone() for out in work())

        def again() -> Outputs:
            self.replayed += 1
            for place, out in zip(places, work(), strict=True):
                if place is not None:
                    place.copy_(out)
            return places

        return again


def double(inputs: replay.Inputs) -> Outputs:
    return inputs["x"] * 2, None


# --- by themselves ---------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=40))
def test_every_pass_gives_its_own_numbers_and_each_shape_is_recorded_once(sizes: list[int]) -> None:
    recorder = Recorder()
    passes, kept = Passes(recorder), []
    for number, size in enumerate(sizes):
        x = torch.full((size,), float(number))
        kept.append((x * 2, passes.run(size, {"x": x}, double)))
    assert all(torch.equal(out[0], expected) and out[1] is None for expected, out in kept), "nor does a later pass change an earlier one's"
    often = sum(sizes.count(size) > replay.WARM for size in set(sizes))
    assert recorder.replayed == sum(max(sizes.count(size) - replay.WARM - 1, 0) for size in set(sizes))
    assert recorder.made == often
    assert passes.notes == []


def test_recordings_are_bounded_and_the_least_used_goes() -> None:
    recorder = Recorder()
    passes = Passes(recorder)
    for size in range(1, 2 * replay.LIMIT):
        for _ in range(replay.WARM + 2):
            passes.run(size, {"x": torch.ones(size)}, double)
    assert len(passes._made) == replay.LIMIT
    assert min(passes._made) == replay.LIMIT


def test_what_cannot_be_recorded_is_never_tried() -> None:
    recorder = Recorder()
    passes = Passes(recorder)
    for _ in range(5):
        assert torch.equal(passes.run(None, {"x": torch.ones(2)}, double)[0], torch.full((2,), 2.0))
    assert recorder.made == 0


def fails(_work: Replay) -> Replay:
    raise RuntimeError("operation not permitted when stream is capturing\nand much more of it")


def lies(work: Replay) -> Replay:
    return lambda: tuple(None if out is None else out + 1 for out in work())


@pytest.mark.parametrize(("capture", "why"), [(fails, "operation not permitted"), (lies, "gave other numbers")])
def test_a_recording_that_fails_or_lies_is_left_out_and_said_once(capture: replay.Capture, why: str) -> None:
    passes = Passes(capture)
    for number in range(8):
        out = passes.run("key", {"x": torch.full((3,), float(number))}, double)
        assert torch.equal(out[0], torch.full((3,), 2.0 * number))
    (note,) = passes.notes
    assert why in note
    assert "\n" not in note
    assert note.endswith("with the same result.")


def test_a_recording_that_stands_still_is_not_believed() -> None:
    """It read its inputs once and for all, as one does that took a host's number: the pass after it would be wrong for ever."""

    def baked(work: Replay) -> Replay:
        outputs = work()
        return lambda: outputs

    passes = Passes(baked)
    for number in range(1, 6):
        out = passes.run("key", {"x": torch.full((2,), float(number))}, double)
        assert torch.equal(out[0], torch.full((2,), 2.0 * number))
    assert len(passes.notes) == 1


def test_rounding_is_no_difference_and_a_hundredth_is() -> None:
    one = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert replay.alike((one, None), (one * (1 + 1e-3), None))
    assert not replay.alike((one, None), (one * 1.02, None))
    assert not replay.alike((one, None), (one, one))
    assert replay.alike((torch.tensor(float("nan")),), (torch.tensor(float("nan")),)), "a NaN is found elsewhere"


def test_what_made_passes_faster_is_undone_when_one_breaks() -> None:
    compiled = [True]

    def work(inputs: replay.Inputs) -> Outputs:
        if compiled[0]:
            raise RuntimeError("no C++ compiler was found")
        return double(inputs)

    passes = Passes(plain_again=lambda: compiled.clear() or compiled.append(False))
    for _ in range(3):
        assert torch.equal(passes.run(None, {"x": torch.ones(2)}, work)[0], torch.full((2,), 2.0))
    assert passes.notes == ["the model's blocks cannot be compiled here (RuntimeError: no C++ compiler was found); they run as they are."]


def test_a_pass_that_is_wrong_by_itself_says_so() -> None:
    def work(_inputs: replay.Inputs) -> Outputs:
        raise ValueError("wrong data")

    with pytest.raises(ValueError, match="wrong data"):
        Passes(plain_again=lambda: None).run(None, {}, work)


# --- in a training ---------------------------------------------------------------------------------


def trained(root: Path, specs: list[dict[str, Any]], capture: replay.Capture | None, monkeypatch: pytest.MonkeyPatch) -> list[AnyEvent]:
    with monkeypatch.context() as patch:
        patch.setattr(Model, "_hasten", lambda self, _speed: setattr(self.passes, "capture", capture))
        events: list[AnyEvent] = []
        results = run_jobs([JobSpec(**spec) for spec in specs], Place(root, events.append))
    assert [one.state for one in results] == ["done"] * len(specs)
    return events


def same_files(root: Path, one: str, other: str) -> bool:
    first, second = (load_file(root / f"jobs/{name}/out/{name}.safetensors") for name in (one, other))
    return all(torch.equal(value, second[key]) for key, value in first.items())


JOBS: dict[str, dict[str, Any]] = {
    "plain": {"batch_size": 1},
    "adding up, both parts, running mean": {"gradient_accumulation": 2, "text_encoder_lr": 1e-3, "ema_decay": 0.9, "steps": 6},
    "checkpointing, nf4, weights": {"gradient_checkpointing": True, "base_precision": "nf4", "min_snr_gamma": 5.0, "ip_noise_gamma": 0.1},
}


@pytest.mark.parametrize("kind", JOBS)
def test_a_recorded_training_is_the_plain_one_to_the_bit(kind: str, root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shapes of picture, and a batch that is cut short at each epoch's end."""
    options = {"steps": 10, "heldout": 1, **JOBS[kind]}
    trained(root, [spec(**options, name="plain", output="jobs/plain/out")], None, monkeypatch)
    recorder = Recorder()
    events = trained(root, [spec(**options, name="taped", output="jobs/taped/out")], recorder, monkeypatch)
    assert not [e for e in events if isinstance(e, Warned) and "recorded" in e.message]
    assert recorder.made >= 2
    assert recorder.replayed > recorder.made
    assert same_files(root, "plain", "taped")


def test_jobs_that_share_passes_are_recorded_together(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    def pair(how: str) -> list[dict[str, Any]]:
        return [spec(name=f"{how}{n}", output=f"jobs/{how}{n}/out", seed=n, steps=16, rank=2 + n) for n in range(2)]

    trained(root, pair("plain"), None, monkeypatch)
    recorder = Recorder()
    trained(root, pair("taped"), recorder, monkeypatch)
    assert recorder.replayed > recorder.made > 0
    assert same_files(root, "plain0", "taped0")
    assert same_files(root, "plain1", "taped1")


def test_dropout_draws_inside_a_pass_so_it_is_never_recorded(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    trained(root, [spec(steps=8, dropout=0.2)], recorder, monkeypatch)
    assert recorder.made == 0


def test_a_training_whose_passes_cannot_be_recorded_says_so_and_goes_on(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(root, [spec(steps=8, name="plain", output="jobs/plain/out")], None, monkeypatch)
    events = trained(root, [spec(steps=8)], fails, monkeypatch)
    (said,) = [e.message for e in events if isinstance(e, Warned) and "recorded" in e.message]
    assert said.startswith("passes cannot be recorded here (RuntimeError: operation not permitted")
    assert same_files(root, "plain", "lisa")
    assert len([e for e in events if isinstance(e, Step)]) == 8


# --- compiled blocks -------------------------------------------------------------------------------


def without_compiler(*_: object) -> Callable[..., object]:
    raise RuntimeError("no C++ compiler was found")


@pytest.mark.slow  # tracing takes longer than everything else here
@pytest.mark.parametrize("backend", ["eager", without_compiler])
def test_compiled_blocks_give_the_same_training_or_are_left_out(
    backend: Any, root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`eager` traces, and runs what it traced."""
    options = {"steps": 2, "heldout": 0, "max_bucket": 64}
    trained(root, [spec(**options, name="plain", output="jobs/plain/out")], None, monkeypatch)
    torch._dynamo.reset()
    true = replay.compile_blocks
    asked: list[int] = []

    def compile_blocks(blocks: list[torch.nn.Module]) -> Callable[[], None]:
        asked.append(len(blocks))
        return true(blocks, backend)

    monkeypatch.setattr(replay, "compile_blocks", compile_blocks)
    events: list[AnyEvent] = []
    run_jobs([JobSpec(**spec(**options, speed="compile"))], Place(root, events.append))
    said = [e.message for e in events if isinstance(e, Warned) and "compiled" in e.message]
    assert asked
    assert asked[0] > 0
    assert bool(said) == (backend is without_compiler)
    plain, ours = (load_file(root / f"jobs/{name}/out/{name}.safetensors") for name in ("plain", "lisa"))
    for key, value in plain.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-5)
