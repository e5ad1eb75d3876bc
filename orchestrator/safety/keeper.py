"""The keeper of a run: a small process of its own that outlives the terminal and takes the run up when the lorry that drives it has died.

    python -m orchestrator.safety.keeper FOLDER     started by `lorry run` and its kin, one a run

It reads its standard input to the end: the other end of that pipe is held by the lorry that started it, however that one ends. Then it
looks at the run's lock and book. A run that is not closed and that nobody drives is taken up by a `lorry attach` of its own, which holds
the run's lock like any other; when that dies too, by the next. The keeper itself never holds that lock: `attach`, `stop` and `down` typed
by a person ask whoever drives, and find nothing in their way. It ends when the run is closed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator import console
from orchestrator.clock import Clock, SystemClock
from orchestrator.errors import MayStillBill
from orchestrator.home import Busy, RunFolder
from orchestrator.ledger import Book

VARIABLE = "LORRY_KEEPER"
LOG = "lorry.log"
LOOK_S = 2.0
"""How often a run that somebody else drives is looked at."""
PAUSES_S = (1.0, 5.0, 30.0, 120.0, 600.0)
"""Before the run is taken up again, each time that this ended no run; a cloud that is down is asked every ten minutes."""
MOST_CRASHES = 8
"""In a row, over 40 minutes: what has crashed so often will crash again. The next command finds the run, and says so."""
LONG_LIFE_S = 900.0
"""A life that lasted so long was no crash at the start: its successor begins with the short pauses again."""
START_S = 20.0
"""Until a keeper holds its lock; a slow laptop needs a second."""
PACKAGES = Path(__file__).parents[2]


def is_wanted() -> bool:
    """Whether runs get keepers here; `LORRY_KEEPER=off` is for scripts that look after their runs themselves."""
    return os.environ.get(VARIABLE, "").lower() not in {"off", "0", "no"}


@contextmanager
def kept(folder: RunFolder, *, wanted: bool = True) -> Iterator[None]:
    """Have the run looked after by a keeper, should this process not come to the end of the block."""
    heart = None
    if wanted and is_wanted() and not folder.is_kept:
        heart = start(folder, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        if heart is not None and heart.stdin is not None:
            heart.stdin.close()


def start(folder: RunFolder, *, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes] | None:
    """Start a keeper. Without a pipe it looks at the run at once. None, with a word, where no process can be started."""
    try:
        return detached([sys.executable, "-P", "-m", "orchestrator.safety.keeper", str(folder.path)], folder, stdin=stdin)
    except OSError as err:
        console.warn(f"no keeper could be started ({err.strerror}): should this lorry die, the next command takes run {folder.id} up")
        return None


def take_up(folder: RunFolder) -> bool:
    """Give a keeper to a run that nobody looks after, and see it there."""
    process, clock = start(folder), SystemClock()
    until = clock.monotonic_s() + START_S
    while process is not None and process.poll() is None and clock.monotonic_s() < until:
        if folder.is_kept:
            return True
        clock.sleep(0.05)
    return folder.is_kept or folder.is_driven


def detached(argv: list[str], folder: RunFolder, *, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start a process that no terminal takes along when it closes; it talks into the run's log."""
    flags = getattr(subprocess, "DETACHED_PROCESS", 0) | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # Windows
    with (folder.path / LOG).open("ab") as log:
        return subprocess.Popen(
            argv,
            cwd=folder.path,
            env=_environment(folder),
            stdin=stdin,
            stdout=log,
            stderr=log,
            start_new_session=True,
            creationflags=flags,
        )


def _environment(folder: RunFolder) -> dict[str, str]:
    """This process's own, for one that lives in another folder and is to do better."""
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    if PACKAGES.name != "site-packages":  # a checkout; installed packages are found anyway, and must not come before Python's own
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGES), env.get("PYTHONPATH")]))
    if "LORRY_HOME" in env:
        env["LORRY_HOME"] = str(folder.path.parents[1])
    env.pop("LORRY_CRASH_AT", None)
    return env


def is_over(book: Book) -> bool:
    """Whether there is nothing to look after: the run is closed and its machines are gone, or it was never begun."""
    return not book.open_attempts and (book.closed is not None or (book.opened_at is None and not book.attempts))


def keep(folder: RunFolder, clock: Clock, drive: Callable[[], int], say: Callable[[str], None]) -> None:
    """Until the run is over: wait while somebody drives it, have it driven when nobody does."""
    crashes = tries = 0
    while folder.path.exists():
        if folder.is_driven:
            clock.sleep(LOOK_S)
            continue
        if is_over(folder.book()):  # after the lock: a driver that has just gone has left a closed book
            return
        if crashes > MOST_CRASHES:
            say(f"the lorry that takes run {folder.id} up has died {crashes} times; giving up: lorry down {folder.id} ends what it holds")
            return
        say(f"nobody drives run {folder.id}, and it is not closed: taking it up")
        began = clock.monotonic_s()
        code = drive()
        if clock.monotonic_s() - began > LONG_LIFE_S:
            crashes = tries = 0
        crashes = 0 if code == MayStillBill.exit_code else crashes + 1  # the cloud's trouble is no reason to give up
        if not is_over(folder.book()):
            say(f"that ended with {code}, and the run is not over")
            clock.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
            tries += 1


def attached(folder: RunFolder) -> int:
    """`lorry attach` as a process of its own; returns its exit code."""
    env = _environment(folder) | {VARIABLE: "off"}
    argv = [sys.executable, "-P", "-m", "orchestrator.cli", "attach", folder.id]
    return subprocess.run(argv, cwd=folder.path, env=env, stdin=subprocess.DEVNULL, check=False).returncode


def main(argv: list[str]) -> int:
    """See the module."""
    folder, clock = RunFolder(Path(argv[0])), SystemClock()

    def say(text: str) -> None:
        console.talk(f"{clock.now():%Y-%m-%d %H:%M:%S} UTC, keeper {os.getpid()}: {text}")

    try:
        with folder.keeping():
            folder.write("keeper.json", {"pid": os.getpid(), "since": clock.now().isoformat()})
            while sys.stdin.buffer.read(4096):
                pass
            keep(folder, clock, lambda: attached(folder), say)
    except Busy:
        return 0  # the run has a keeper
    except FileNotFoundError:
        return 0  # the run's folder was taken away
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
