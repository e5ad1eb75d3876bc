"""Several jobs in one pass against one after the other: ratios measured in one run, in turns, so that a busy machine slows both.

CPU seconds of one thread rather than the clock: what else the machine does then counts as little as it can.
Figures go, dated, into docs/measurements.md.
"""

from __future__ import annotations

import multiprocessing
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


def resident_mib() -> float:
    """Main memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def by_itself(root: Path, number: int, ready: Any, results: Any) -> None:
    """One job in a process of its own, begun with the others: its CPU seconds and its memory."""
    import torch

    torch.set_num_threads(1)
    model, lanes = crew_of(root, number + 1)
    lanes = lanes[-1:]
    in_one_pass(model, lanes)
    ready.wait(300)
    results.put((cpu_seconds(lambda: [in_one_pass(model, lanes) for _ in range(ROUNDS)] and None), resident_mib()))


def at_once(root: Path, count: int) -> tuple[float, float]:
    """As many processes as jobs, at the same time: CPU seconds of a round of all, and MiB of all."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(count), context.Queue()
    processes = [context.Process(target=by_itself, args=(root, number, ready, results)) for number in range(count)]
    for process in processes:
        process.start()
    found = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join(60)
    return sum(seconds for seconds, _ in found) / ROUNDS, sum(mib for _, mib in found)


@pytest.mark.bench
def test_jobs_in_one_pass_against_as_many_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is done without a session: every job loads its own base, and all of them get in each other's way."""
    import torch

    from tests import tiny

    torch.set_num_threads(1)
    tiny.sd15(tmp_path / "base")
    tiny.pictures(tmp_path / "data", count=4)
    crew_of(tmp_path, 8)  # latents are made once, for everybody
    gains, grown = {}, {}
    alone_mib = 0.0
    for count in (1, 2, 4, 8):
        before = resident_mib()
        model, lanes = crew_of(tmp_path, count)
        in_one_pass(model, lanes)
        joint = statistics.median(cpu_seconds(lambda m=model, l=lanes: in_one_pass(m, l)) for _ in range(ROUNDS))
        here_mib = resident_mib()
        apart, mib = at_once(tmp_path, count)
        alone_mib = alone_mib or here_mib
        gains[count], grown[count] = apart / joint, here_mib - alone_mib
        samples = STEPS * count
        with capsys.disabled():
            print(
                f"\nN={count}: {samples / joint:.1f} samples a CPU second in one process, {samples / apart:.1f} in {count}, "
                f"gain {gains[count]:.2f}; {here_mib:.0f} MiB ({here_mib - before:+.1f} for this crew) against {mib:.0f} MiB"
            )
    assert gains[4] > 1.5
    assert gains[8] > gains[1]


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
