"""Real practice clouds for the tests of this folder, and the proof that none of their processes outlives the session."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_help import poll, processes_of

from providers.sandbox.rentals import BootTimes
from providers.sandbox.server import Server


@pytest.fixture(scope="session", autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After all tests of this folder no process of any practice cloud of theirs lives. Other folders' clouds are theirs to end."""
    base = tmp_path_factory.getbasetemp()
    before = set(processes_of(base))
    yield
    poll(lambda: not set(processes_of(base)) - before, what=f"the end of {set(processes_of(base)) - before}", timeout_s=5)


@pytest.fixture(scope="session")
def ssh_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A practice cloud in this process, with machines that boot as fast as they can."""
    with Server(tmp_path_factory.mktemp("sandbox"), boot=BootTimes(created_s=0.05, loading_s=0.05)) as server:
        yield server
