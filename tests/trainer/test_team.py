"""Several processes on one job: the same step as one process makes, one that writes, and an end in words when one dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from trainer import loop, ranks
from trainer.buckets import Plan, steps_of
from trainer.protocol import TrainingOptions

REPO = Path(__file__).resolve().parents[2]
Spec = Callable[..., dict[str, Any]]


@dataclass
class Seat:
    """A place in a team."""

    rank: int
    size: int


def lane_of(options: TrainingOptions, counts: list[int], team: Seat | None) -> Any:
    """A lane that is asked for nothing but its pieces: pictures in shapes, so many of each."""
    shapes = [(32, 32 * (kind + 1)) for kind, count in enumerate(counts) for _ in range(count)]
    data = loop.Data(shapes, [1] * len(shapes), None, None, [])  # type: ignore[arg-type]
    batches, steps = steps_of(shapes, data.repeats, options.batch_size, options.gradient_accumulation)
    plan = Plan(images=len(shapes), batches_per_epoch=batches, steps_per_epoch=steps, steps=3 * steps, epochs=3)
    return loop.Lane(options, plan, data, None, None, {}, None, team=team)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 3), st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 4), st.integers(0, 9))
def test_every_sample_of_a_step_is_taken_by_one_process_and_all_take_as_many_passes(
    batch: int, accumulation: int, counts: list[int], size: int, seed: int
) -> None:
    options = TrainingOptions(batch_size=batch, gradient_accumulation=accumulation, seed=seed)
    alone = lane_of(options, counts, None)
    for step in range(alone.plan.steps):
        one = alone.pieces(step)
        every = [lane_of(options, counts, Seat(rank, size)).pieces(step) for rank in range(size)]
        assert len({len(pieces) for pieces in every}) == 1
        counted = [piece for pieces in every for piece in pieces if piece.share]
        rows = sorted((piece.first + i, index) for piece in counted for i, index in enumerate(piece.indices))
        assert rows == [(piece.first + i, index) for piece in one for i, index in enumerate(piece.indices)], "at the rows of one process"
        assert sum(piece.share for piece in counted) == pytest.approx(1.0)


# --- real processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("team")
    (root / "base").symlink_to(world / "base")
    shutil.copytree(world / "data", root / "data")
    return root


def started(root: Path, job: dict[str, Any], gpus: int) -> subprocess.Popen[str]:
    path = root / f"{job['name']}.json"
    path.write_text(json.dumps(job))
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "trainer", "--root", str(root), "--gpus", str(gpus), str(path)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


OPTIONS = {"batch_size": 2, "optimizer": "SGD", "learning_rate": 1.0, "steps": 6, "noise_offset": 0.1, "heldout": 1}


@pytest.mark.slow  # three processes that import torch
def test_two_processes_make_of_a_job_what_one_makes_to_rounding(root: Path, spec: Spec) -> None:
    """Two pictures a step, one each; also where an epoch ends with one picture, and over a restart."""
    for name, gpus in (("one", 1), ("two", 2)):
        out, said = (process := started(root, spec(**OPTIONS, name=name, output=f"{name}/out", save_every_steps=3), gpus)).communicate()
        assert process.returncode == 0, said
        assert out.count("step 6/6") <= 1, "one of them speaks"
    one, two = (load_file(root / f"{name}/out/{name}.safetensors") for name in ("one", "two"))
    assert any(value.any() for value in one.values())
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-6)
    (root / "two/out/two.safetensors").unlink()
    for late in (root / "two/out/checkpoints").glob("*6.safetensors"):
        late.unlink()
    assert started(root, spec(**OPTIONS, name="two", output="two/out", save_every_steps=3), 2).wait() == 0
    again = load_file(root / "two/out/two.safetensors")
    assert all(torch.equal(value, again[key]) for key, value in two.items())


@pytest.mark.slow
def test_a_stop_ends_all_processes_in_one_step_and_a_death_ends_them_in_words(root: Path, spec: Spec) -> None:
    job = spec(**{**OPTIONS, "steps": 100_000, "heldout": 0}, name="long", output="long/out")
    leader = started(root, job, 2)
    _until_it_steps(leader)
    leader.send_signal(signal.SIGTERM)
    _, said = leader.communicate()
    assert leader.returncode == 75, said
    assert list((root / "long/out/checkpoints").iterdir())
    leader = started(root, job, 2)
    _until_it_steps(leader)
    members = [int(pid) for pid in Path(f"/proc/{leader.pid}/task/{leader.pid}/children").read_text().split()]
    assert len(members) == 2
    os.kill(members[1], signal.SIGKILL)
    _, said = leader.communicate()
    assert leader.returncode == 7
    assert "process 2 of 2 ended (killed by signal 9), so all of them end; what was saved is good." in said
    assert not [
        pid for pid in members if Path(f"/proc/{pid}/cmdline").is_file() and b"trainer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def _until_it_steps(leader: subprocess.Popen[str]) -> None:
    assert leader.stdout is not None
    for line in leader.stdout:
        if "step" in line and "loss" in line:
            return
    raise AssertionError(leader.stderr.read() if leader.stderr else "")


# --- the starter -----------------------------------------------------------------------------------


class Instead:
    """Stands for `python -m trainer`: a line of shell."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *scripts: str) -> None:
        def start(_arguments: object, more: dict[str, str]) -> subprocess.Popen[bytes]:
            return subprocess.Popen(["sh", "-c", scripts[int(more["RANK"])]], env={**os.environ, **more})

        monkeypatch.setattr(ranks, "_start", start)


def test_the_first_ones_exit_code_is_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    Instead(monkeypatch, "exit 3", "exit 3")
    assert ranks.lead([], 2, lambda: False, lambda _: None) == 3


@pytest.mark.parametrize(("end", "words"), [("kill -9 $$", "killed by signal 9"), ("exit 1", "exit code 1")])
def test_when_one_dies_the_others_are_ended_and_it_is_said_which(end: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Instead(monkeypatch, "exec sleep 600", end)
    said: list[str] = []
    began = time.monotonic()
    assert ranks.lead([], 2, lambda: False, said.append) == 7
    assert said == [f"process 2 of 2 ended ({words}), so all of them end; what was saved is good."]
    assert time.monotonic() - began < ranks.GRACE_S


def test_a_stop_is_handed_on_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = f"trap 'echo stopped >> {tmp_path}/$RANK; exit 75' TERM; touch {tmp_path}/ready$RANK; while :; do sleep 0.05; done"
    Instead(monkeypatch, script, script)
    ready = lambda: all((tmp_path / f"ready{rank}").exists() for rank in range(2))  # noqa: E731
    assert ranks.lead([], 2, ready, lambda _: None) == 75
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["stopped\n"] * 2


def test_this_process_is_no_member_unless_its_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.team import join

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not ranks.is_member()
    assert ranks.is_first()
    assert join(lambda: False) is None
