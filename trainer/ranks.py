"""Starts the same command in several processes, a GPU each, and sees to it that they end together.

Torch-free: the starter itself takes no GPU. `accelerate launch -m trainer job.json` does as well; this one hands a stop on, and
says in words which process died.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from .errors import EXIT_FAILED

LOOK_EVERY_S = 0.1
GRACE_S = 60.0
"""Between the end of one process and the end of all: the first one may still be saving."""


def is_member() -> bool:
    """Whether this process is one of several that train the same job."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether it is the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def lead(arguments: Sequence[str], count: int, stopping: Callable[[], bool], say: Callable[[str], object]) -> int:
    """Run `python -m trainer` with these arguments in so many processes; the exit code of the first one, once all have ended."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    every = [_start(arguments, {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]
    handed_on, since = False, None
    try:
        while any(one.poll() is None for one in every):
            if stopping() and not handed_on:
                handed_on = True
                _each(every, subprocess.Popen.terminate)
            dead = next((rank for rank, one in enumerate(every) if one.poll() is not None), None)
            if dead is not None and since is None:
                since = time.monotonic()
            broke = dead is not None and (every[dead].returncode < 0 or every[dead].returncode == 1)
            if since is not None and (broke or time.monotonic() - since > GRACE_S):
                assert dead is not None
                say(f"process {dead + 1} of {count} ended ({_how(every[dead].returncode)}), so all of them end; what was saved is good.")
                return EXIT_FAILED
            time.sleep(LOOK_EVERY_S)
    finally:
        _each(every, subprocess.Popen.kill)
        for one in every:
            one.wait()
    return every[0].returncode


def _start(arguments: Sequence[str], more: Mapping[str, str]) -> subprocess.Popen[bytes]:
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}  # as torchrun: else each would take every core
    return subprocess.Popen([sys.executable, "-m", "trainer", *arguments], env={**os.environ, **threads, **more})


def _each(every: Sequence[subprocess.Popen[bytes]], do: Callable[[subprocess.Popen[bytes]], object]) -> None:
    for one in every:
        if one.poll() is None:
            do(one)


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
