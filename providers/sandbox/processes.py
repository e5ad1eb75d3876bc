"""Processes by their own id: find a machine's tree, and end it without ever hitting a stranger.

Owns the pair (pid, start time), which the kernel does not hand out twice before a reboot, and signals sent through a pidfd. Knows
nothing of machines, money or HTTP. Linux only: it reads /proc.
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "LORRY_SANDBOX_MACHINE"
"""Every process of a machine carries it in its environment: how strays are found once the init above them was killed."""

DEAD_STATES = frozenset("ZX")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, not whoever gets its number next."""

    pid: int
    started: int
    """Clock ticks after boot, field 22 of /proc/PID/stat."""


@dataclass(frozen=True, slots=True)
class _Row:
    id: ProcessId
    parent: int
    state: str


def _row(pid: int) -> _Row | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the command's name may itself hold spaces and brackets
    return _Row(ProcessId(pid, int(fields[19])), int(fields[1]), fields[0])


def _rows() -> Iterator[_Row]:
    for entry in os.listdir("/proc"):  # noqa: PTH208 - iterdir builds a Path for each of a thousand names
        if entry.isdigit() and (row := _row(int(entry))):
            yield row


def identify(pid: int) -> ProcessId | None:
    """The process that has this number now; None when nobody has."""
    row = _row(pid)
    return row.id if row else None


def alive(process: ProcessId) -> bool:
    """Whether exactly this process still runs. A zombie does not."""
    row = _row(process.pid)
    return row is not None and row.id == process and row.state not in DEAD_STATES


def send(process: ProcessId, signum: signal.Signals) -> bool:
    """Signal exactly this process; False when it has gone, even if its number lives on."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if identify(process.pid) != process:  # the handle pins the number, so this answer stays true
            return False
        signal.pidfd_send_signal(handle, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def descendants(root: ProcessId) -> list[ProcessId]:
    """Everything alive below `root`. Complete for a child subreaper: what daemonises comes back to it."""
    children: dict[int, list[_Row]] = defaultdict(list)
    for row in _rows():
        children[row.parent].append(row)
    found: list[ProcessId] = []
    queue = [root.pid] if identify(root.pid) == root else []
    while queue:
        for row in children[queue.pop()]:
            queue.append(row.id.pid)
            if row.state not in DEAD_STATES:
                found.append(row.id)
    return found


def marked(mark: str) -> list[ProcessId]:
    """Every living process that carries this machine's mark, whoever its parent is."""
    wanted = f"{MARK}={mark}".encode()
    found: list[ProcessId] = []
    for row in _rows():
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # other users' processes are not ours
            if row.state not in DEAD_STATES and wanted in Path(f"/proc/{row.id.pid}/environ").read_bytes().split(b"\0"):
                found.append(row.id)
    return found


def end_tree(root: ProcessId | None, mark: str, *, timeout_s: float = 10.0) -> None:
    """End `root`, all below it and all that carry `mark`; returns when none is left.

    The root is frozen first and killed last: while it lives, orphans come to it and stay findable.
    """
    deadline = time.monotonic() + timeout_s
    if root:
        send(root, signal.SIGSTOP)
        while found := descendants(root):
            _kill(found, deadline)
        send(root, signal.SIGKILL)
    while found := [*marked(mark), *([root] if root and alive(root) else [])]:
        _kill(found, deadline)


def _kill(processes: list[ProcessId], deadline: float) -> None:
    for process in processes:
        send(process, signal.SIGKILL)
    if time.monotonic() > deadline:
        raise TimeoutError(f"processes {[p.pid for p in processes]} do not end; end them by hand")
    time.sleep(0.005)
