"""What it costs to believe nothing: a verified pull against plain SFTP, of the same file over the same loopback, in turns."""

from __future__ import annotations

import hashlib
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from machines import machine

from orchestrator.fetch import fetch
from orchestrator.home import RunFolder
from trainer.protocol import Committed

SIZE = 160 * 1024**2
"""As an SDXL adapter of rank 32."""
ROUNDS = 5
LEAST = 0.8


def weights(size: int) -> bytes:
    """A file that passes every look: all its numbers are finite."""
    values = np.random.default_rng(1).standard_normal(size // 4).astype(np.float32)
    header = b'{"lora_unet_x.lora_down.weight":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (values.size, values.nbytes)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + values.tobytes()


def took_s(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


@pytest.mark.bench
def test_a_verified_pull_has_at_least_four_fifths_of_plain_sftps_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = weights(SIZE)
    with machine(tmp_path / "m") as host:
        there = "lorry/r-1/jobs/lisa/out/lisa.safetensors"
        (host.root / there).parent.mkdir(parents=True)
        (host.root / there).write_bytes(data)
        shell = host.shell(tmp_path)
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir()
        told = Committed(
            at_s=0, job="lisa", role="adapter", path="jobs/lisa/out/lisa.safetensors", size=len(data),
            sha256=hashlib.sha256(data).hexdigest(), step=1,
        )  # fmt: skip
        shell.connect()

        def verified() -> None:
            fetch(shell, "lorry/r-1", folder, told)
            folder.job("lisa").joinpath("lisa.safetensors").unlink()

        def plain() -> None:
            shell._files().get(there, str(tmp_path / "plain"))

        def openssh() -> None:
            words = ["sftp", *shell.openssh()[1:], "-q", f"{host.user}@127.0.0.1:{there}", str(tmp_path / "openssh")]
            words[words.index("-p")] = "-P"
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL, capture_output=True)

        rounds = [(took_s(verified), took_s(plain), took_s(openssh)) for _ in range(ROUNDS)]
        shell.close()
    ratio = statistics.median(other / ours for ours, other, _ in rounds)
    speeds = [SIZE / 1e6 / statistics.median(column) for column in zip(*rounds, strict=True)]
    with capsys.disabled():
        print(
            f"\nverified pull {speeds[0]:.0f} MB/s, plain SFTP by the same client {speeds[1]:.0f} MB/s, ratio {ratio:.2f}"
            f"; OpenSSH's sftp {speeds[2]:.0f} MB/s"
        )
    assert ratio >= LEAST
