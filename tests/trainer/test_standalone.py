"""The trainer stands alone: imports nothing it must not, installs and runs from a copy, and its words are consistent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer import errors
from trainer.events import EventLog, plain_line
from trainer.protocol import MAX_EVENT_BYTES, Ended, EventReader, JobSpec, Step, Warned, dump_event

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "module",
    [
        "trainer",
        *(
            f"trainer.{m}"
            for m in (
                "protocol",
                "errors",
                "buckets",
                "dataset",
                "items",
                "captions",
                "masks",
                "opening",
                "base",
                "prompts",
                "streams",
                "schedules",
                "events",
                "supervisor",
            )
        ),
    ],
)
def test_what_the_laptop_and_the_supervisor_import_needs_no_torch(module: str) -> None:
    heavy = "{'torch', 'numpy', 'diffusers', 'transformers', 'orchestrator', 'providers'}"
    code = f"import sys, {module}; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_every_code_has_one_meaning_and_its_class_exits_as_listed() -> None:
    assert len({meaning for _, meaning in errors.CODES.values()}) == len(errors.CODES)
    by_exit = {c.exit_code: c for c in errors.TrainerError.__subclasses__()}
    for code, (exit_code, _) in errors.CODES.items():
        assert code.startswith("LRY-")
        assert by_exit[exit_code](code, "fact.", "hint.").exit_code == exit_code
    with pytest.raises(AssertionError):
        errors.SpecError("LRY-NO-SUCH", "x")


def test_a_copied_folder_runs_a_bare_job(world: Path, tmp_path: Path, spec: Callable[..., dict[str, Any]]) -> None:
    """As on the rented machine: nothing of lorry but this package. Progress as plain lines; SIGTERM saves and exits 75."""
    shutil.copytree(REPO / "trainer", tmp_path / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(world / "data", tmp_path / "data")
    (tmp_path / "base").symlink_to(world / "base")
    (tmp_path / "job.json").write_text(json.dumps(spec(steps=100000, output="out", save_every_steps=100000)))
    command = [sys.executable, "-m", "trainer", "job.json"]
    environment = {**os.environ, "PYTHONPATH": ""}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if "step" in line and "loss" in line:
                break
        process.send_signal(signal.SIGTERM)
        rest, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "stopped at step" in rest
    assert "Traceback" not in said
    assert list((tmp_path / "out/checkpoints").glob("step*.safetensors"))
    (tmp_path / "job.json").write_text(json.dumps({**spec(), "netwrok_dim": 3}))
    wrong = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "netwrok_dim" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_its_own_pyproject_names_the_packages_that_are_there() -> None:
    import tomllib

    table = tomllib.loads((REPO / "trainer/pyproject.toml").read_text())
    whole = tomllib.loads((REPO / "pyproject.toml").read_text())
    packages = table["tool"]["setuptools"]["packages"]
    there = sorted(file.parent.relative_to(REPO).as_posix().replace("/", ".") for file in (REPO / "trainer").rglob("__init__.py"))
    assert packages == there
    needed = {line.split(">")[0] for line in table["project"]["dependencies"]}
    assert {line.split(">")[0] for line in whole["project"]["optional-dependencies"]["train"]} <= needed


JOB = {"name": "a", "family": "sd15", "base": "b", "dataset": "d", "output": "o"}


@pytest.mark.parametrize(
    "changes",
    [
        {"netwrok_dim": 4},
        {"name": "../x"},
        {"name": "-x"},
        {"steps": 1, "epochs": 1},
        {"rank": 0},
        {"learning_rate": float("nan")},
        {"resolution": 128},
        {"optimizer": "Adam"},
    ],
)
def test_the_protocol_refuses_what_it_does_not_know(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JobSpec(**{**JOB, **changes})


EVENTS = [
    Step(at_s=1.5, job="a", step=3, steps=9, epoch=1, loss=0.5, lr=1e-4, samples_per_s=2.0),
    Warned(at_s=2, job="a", message="ünïcode \n and \x1b[31m escapes"),
    Ended(at_s=3, job="a", state="failed", step=3, message="no", code="LRY-TRAIN-NAN"),
]


@given(st.lists(st.integers(1, 60), max_size=60))
def test_events_survive_any_chunking(cuts: list[int]) -> None:
    raw = b"".join(map(dump_event, EVENTS))
    reader, found, at = EventReader(), [], 0
    for length in [*cuts, len(raw)]:
        found += reader.feed(raw[at : at + length])
        at += length
    assert found == EVENTS
    assert reader.dropped == 0


@given(st.binary(max_size=300))
def test_any_bytes_between_events_are_dropped_and_counted(junk: bytes) -> None:
    reader = EventReader()
    found = list(reader.feed(dump_event(EVENTS[0]) + junk.replace(b"\n", b" ") + b"\n" + dump_event(EVENTS[2])))
    assert found == [EVENTS[0], EVENTS[2]]
    assert reader.dropped == bool(junk.replace(b"\n", b" ").strip())


def test_an_endless_line_does_not_grow_the_reader() -> None:
    reader = EventReader()
    for _ in range(10):
        assert list(reader.feed(b"x" * MAX_EVENT_BYTES)) == []
    assert len(reader._rest) <= MAX_EVENT_BYTES
    assert list(reader.feed(b"\n" + dump_event(EVENTS[0]))) == [EVENTS[0]]


def test_a_torn_line_is_ended_before_the_next_is_written(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(dump_event(EVENTS[0]) + b'{"kind": "st')
    log = EventLog(tmp_path / "events.jsonl")
    log(EVENTS[2])
    log.close()
    reader = EventReader()
    assert list(reader.feed((tmp_path / "events.jsonl").read_bytes())) == [EVENTS[0], EVENTS[2]]
    assert reader.dropped == 1


def test_every_event_has_a_plain_line() -> None:
    assert plain_line(EVENTS[2]) == "a: failed at step 3: no [LRY-TRAIN-NAN]"
    assert "loss 0.5000" in plain_line(EVENTS[0])
