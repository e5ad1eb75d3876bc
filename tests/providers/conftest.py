"""Real practice clouds for the tests of this folder, and the proof that none of their processes outlives the session."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from providers.sandbox.market import BootTimes
from providers.sandbox.processes import ProcessId, identify
from providers.sandbox.server import Server


def processes_of(folder: Path) -> list[ProcessId]:
    """Every living process whose command line or environment names this folder, but those that run the tests."""
    own = {os.getpid(), os.getppid()}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in own:
            continue
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if str(folder).encode() in text and b"pytest" not in text.split(b"\0")[0] and (process := identify(int(entry.name))):
            found.append(process)
    return found


def poll(condition: Callable[[], object], *, what: str, timeout_s: float = 20.0) -> None:
    """Wait until it is true; say what was not when it never is."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout_s} s"
        time.sleep(0.01)


@pytest.fixture(scope="session", autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After all tests of this folder no process of any practice cloud of theirs lives."""
    base = tmp_path_factory.getbasetemp()
    yield
    poll(lambda: not processes_of(base), what=f"the end of {processes_of(base)}", timeout_s=5)


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
