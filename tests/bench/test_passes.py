"""Several jobs in one pass against one after the other: ratios measured in one run, in turns, so that a busy machine slows both.

CPU seconds of one thread rather than the clock: what else the machine does then counts as little as it can.
Figures go, dated, into docs/measurements.md.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

STEPS = 6
ROUNDS = 5


def crew_of(root: Path, count: int) -> tuple[Any, list[Any]]:
    """A loaded tiny base and `count` lanes on it, as a session would make them."""
    from trainer import jobs
    from trainer.protocol import JobSpec

    place = jobs.Place(root, lambda _: None)
    runs = [
        jobs.prepare(
            JobSpec(
                name=f"j{i}", family="sd15", base="base", dataset="data", output=f"out/j{i}", steps=10_000, resolution=64, min_bucket=32,
                max_bucket=128, bucket_step=32, rank=4, optimizer="AdamW", mixed_precision="no", seed=i,
            ),
            place,
        )
        for i in range(count)
    ]  # fmt: skip
    targets = [t for lay in runs[0].lane.adapter.layouts.values() for t in lay.targets]
    runs[0].model.prepare(targets, checkpointing=False)
    return runs[0].model, [run.lane for run in runs]


def cpu_seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def one_after_the_other(model: Any, lanes: list[Any]) -> None:
    from trainer import loop

    for lane in lanes:
        for _ in range(STEPS):
            loop.advance(model, [lane])


def in_one_pass(model: Any, lanes: list[Any]) -> None:
    from trainer import loop

    for _ in range(STEPS):
        loop.advance(model, lanes)


@pytest.mark.bench
@pytest.mark.parametrize("small", [True, False], ids=["two-block", "four-block"])
def test_jobs_in_one_pass_make_more_samples_a_second(small: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Batch 1 each. On a CPU the gain is the calls that are saved; on a large card it is the idle arithmetic that is used."""
    import torch

    from tests import tiny

    torch.set_num_threads(1)
    tiny.sd15(tmp_path / "base", small=small)
    tiny.pictures(tmp_path / "data", count=4)
    gains: dict[int, float] = {}
    for count in (1, 2, 4, 8):
        model, lanes = crew_of(tmp_path, count)
        in_one_pass(model, lanes)
        pairs = [
            (cpu_seconds(lambda m=model, l=lanes: one_after_the_other(m, l)), cpu_seconds(lambda m=model, l=lanes: in_one_pass(m, l)))
            for _ in range(ROUNDS)
        ]
        alone, joint = (statistics.median(column) for column in zip(*pairs, strict=True))
        samples = STEPS * count
        gains[count] = statistics.median(a / b for a, b in pairs)
        state = sum(3 * lane.adapter.flat["unet"].nbytes for lane in lanes) / count
        with capsys.disabled():
            print(
                f"\nN={count}: {samples / joint:.1f} samples a CPU second together, {samples / alone:.1f} one after the other, "
                f"gain {gains[count]:.2f}; weights and AdamW state {state / 2**20:.2f} MiB a job"
            )
    if small:
        assert gains[1] > 0.8, "one job pays nothing for the company it could have"
        assert gains[4] >= 1.8
    assert gains[8] >= gains[2] > 1.0
