"""What `lorry doctor` finds on this computer. Each check is one sentence about one thing, and the next move where there is one.

Looks and changes nothing. The clouds are asked in `accounts.py`.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from orchestrator import confine
from orchestrator.budget import GIB
from orchestrator.errors import UsageError
from orchestrator.home import Home
from orchestrator.safety.timer import timer_state
from orchestrator.safety.unattended import open_runs

from .versions import flaws_of, version_in

ROOM_GIB, LITTLE_ROOM_GIB = 0.5, 5.0
"""Checkpoints of one SD1.5 job are a few hundred MB; a studio's week is many of them."""
FEW_FILES = 128
PROGRAM_S = 10.0


class Health(StrEnum):
    """How a thing is."""

    OK = "ok"
    WARNING = "warning"
    TROUBLE = "trouble"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    subject: str
    health: Health
    said: str
    hint: str = ""
    """The next move."""
    exit_code: int = 0
    """What the command ends with for this; 0 unless it is trouble."""

    def as_json(self) -> dict[str, Any]:
        """The words of `lorry doctor --json`."""
        return {
            "subject": self.subject,
            "health": str(self.health),
            "said": self.said,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


def ok(subject: str, said: str) -> Check:
    """All is well."""
    return Check(subject=subject, health=Health.OK, said=said)


def warning(subject: str, said: str, hint: str) -> Check:
    """Works, but a person should know."""
    return Check(subject=subject, health=Health.WARNING, said=said, hint=hint)


def trouble(subject: str, said: str, hint: str, exit_code: int) -> Check:
    """Does not work, or costs money."""
    return Check(subject=subject, health=Health.TROUBLE, said=said, hint=hint, exit_code=exit_code)


def exit_code(checks: Iterable[Check]) -> int:
    """10 wins, then credentials, then whatever came first."""
    codes = [check.exit_code for check in checks if check.exit_code]
    return next((code for code in (10, 11) if code in codes), codes[0] if codes else 0)


def this_computer(home: Home) -> Iterator[Check]:
    """Everything that needs no network."""
    yield ok("Python", f"{platform.python_version()} at {sys.executable}")
    yield ok("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield _home(home)
    yield _room(home.path)
    yield _rsync()
    yield _confinement()
    yield _ssh()
    yield ok("paramiko", installed("paramiko"))
    yield _keyring()
    yield _files()
    yield _terminal()


def runs(home: Home) -> Iterator[Check]:
    """Leases of this computer's runs that may cost money now."""
    found = open_runs(home)
    watched = [run for run in found if run.book is not None and run.is_looked_after]
    for run in found:
        if run.book is None:
            yield trouble("runs", f"the book of {run.folder.id} cannot be read: it may hold a machine", "lorry reap shows what lives", 10)
        elif run not in watched:
            rate = sum(attempt.usd_per_hour for attempt in run.book.open_attempts)
            yield trouble(
                "runs",
                f"{run.folder.id} has a machine that may be billing ${rate:.3f} an hour, and no lorry looks after it",
                f"lorry attach {run.folder.id} goes on with it, lorry down {run.folder.id} ends it",
                10,
            )
    if len(watched) == len(found):
        yield ok("runs", f"{len(watched)} under way and looked after" if found else "no machine of a run of this computer may be billing")


def timer(home: Home, *, needed: bool) -> Check:
    """Whether something here ends forgotten machines when nobody types anything any more. `needed`: there is a key to do it with."""
    state = timer_state(home.path)
    if state.running or not needed:
        return ok("timer", state.words.partition(";")[0])
    said = f"{state.words.partition(';')[0]}: only a command of lorry looks for forgotten machines"
    return warning("timer", said, "lorry reap --install-timer" if state.kind else "run `lorry reap --yes --expired` by a timer of your own")


def _home(home: Home) -> Check:
    try:
        home.make()
    except UsageError as err:
        return trouble("LORRY_HOME", str(err), err.hint, err.exit_code)
    if os.name != "nt" and home.path.stat().st_mode & 0o022:
        return warning("LORRY_HOME", f"{home.path} can be changed by others on this computer", f"chmod go-w {home.path}")
    return ok("LORRY_HOME", f"{home.path}, can be written")


def _room(home: Path) -> Check:
    free = shutil.disk_usage(next(path for path in (home, *home.parents) if path.exists())).free / GIB
    said, hint = f"{free:.1f} GiB free for runs", "free some space, or point LORRY_HOME at a larger disk"
    if free < ROOM_GIB:
        return trouble("disk", said, hint, 2)
    return warning("disk", said, hint) if free < LITTLE_ROOM_GIB else ok("disk", said)


def _rsync() -> Check:
    words = _words("rsync", "--version")
    if words is None:
        return warning("rsync", "not installed: files go by SFTP, which is slower for many small ones", "install rsync 3.5.2 or later")
    if "openrsync" in words:
        return warning("rsync", "macOS's own openrsync, which lorry cannot use: files go by SFTP", "brew install rsync")
    return _judged("rsync", version_in(words), words)


def _confinement() -> Check:
    """Whether a hostile machine that talks rsync into something finds nothing to read."""
    if version := confine.abi():
        return ok("confinement", f"Landlock {version}: rsync can read what is sent and nothing else")
    return ok("confinement", "none here (Landlock is Linux's, since 5.13): rsync can read what you can, so keep it up to date")


def _ssh() -> Check:
    words = _words("ssh", "-V")
    if words is None:
        return warning("ssh", "not installed: files go by SFTP, and provider `ssh` cannot be used", "install an OpenSSH client")
    return _judged("ssh", version_in(words), words)


def _judged(program: str, version: str, words: str) -> Check:
    """A program of ours by its version."""
    if not version:
        return warning(program, f"its version cannot be told from {words.splitlines()[0][:60]!r}", f"{program} should be the usual one")
    flaws = flaws_of(program, version)
    if not flaws:
        return ok(program, f"{version}, without known flaws")
    cves = ", ".join(cve for flaw in flaws for cve in flaw.cves)
    return warning(
        program,
        f"{version} is known for {cves}. The oldest means: {flaws[0].meaning}",
        f"update to {flaws[-1].mended_in} or later; systems mend this without a new number too: see your system's security page",
    )


def _words(*command: str) -> str | None:
    """What a program says of itself; None where it is not installed or says nothing in time."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PROGRAM_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout + done.stderr).strip() or None


def _keyring() -> Check:
    from .credentials import keyring_name

    name = keyring_name()
    return ok("keyring", name or "none here; `lorry login` keeps keys in a file that only you can read")


def _files() -> Check:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return ok("open files", "no limit that matters")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = "no limit" if soft == resource.RLIM_INFINITY else f"{soft} at once"
    return warning("open files", said, "ulimit -n 1024") if 0 <= soft < FEW_FILES else ok("open files", said)


def _terminal() -> Check:
    encoding = (os.environ.get("PYTHONIOENCODING") or sys.stdout.encoding or "unknown").lower()
    kind = "a terminal" if sys.stdout.isatty() else "no terminal: plain output, and nothing asks"
    if "utf" not in encoding and not sys.flags.utf8_mode:
        return warning("terminal", f"{kind}, {encoding}", "set LANG to a UTF-8 locale, as in LANG=C.UTF-8")
    return ok("terminal", f"{kind}, {shutil.get_terminal_size().columns} columns, {encoding}")
