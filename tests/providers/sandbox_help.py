"""What the tests of this folder share beside fixtures: waiting with a deadline, and finding processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from providers.sandbox.processes import ProcessId, identify


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
