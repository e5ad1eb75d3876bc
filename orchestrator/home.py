"""Where runs live on this computer: one folder a run, private to the user.

    runs/<run>/ledger.jsonl        what cost money, append-only
    runs/<run>/order.json          what was ordered, complete
    runs/<run>/plan.json           the offers, ranked
    runs/<run>/key, known_hosts    this run's own SSH key and the host keys it has seen
    runs/<run>/ship/               what is sent besides datasets and bases: trainer, session, job specs
    runs/<run>/staging/            files on their way home; nothing here is a result
    runs/<run>/events-<n>.jsonl    what the n-th machine told, byte for byte
    runs/<run>/jobs/<name>/        results: adapters, checkpoints/, samples/
    runs/<run>/tensorboard/, wandb/  curves, where `log_to` asks for them
    runs/<run>/receipt.json, report.html
    runs/<run>/additions/          jobs that `lorry add` asks the client that drives the run to take in
    runs/<run>/stop                its existence asks the client that drives the run to stop it
    runs/<run>/lock                held by the process that drives the run; keeper.lock: by the one that looks after it
    runs/<run>/lorry.log           what lorry said in the background
    settled.json                   runs whose books were seen to hold no open lease; may be deleted at any time

    keys.json                      which keys `lorry login` has kept, and where; the keys themselves only where there is no keyring
    machines.json                  machines that failed us, until when they are not tried, and how fast the line was

`LORRY_HOME` moves it all.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .clock import Clock
from .errors import UsageError
from .ledger import Book, Ledger, read_entries, sync_folder


class Busy(UsageError):
    """Another process of lorry drives this run."""

    code = "LRY-BUSY"


class RunFolder:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        """The run's id, which is the folder's name."""
        return self.path.name

    def ledger(self, clock: Clock) -> Ledger:
        """The book, for the process that holds the lock."""
        return Ledger(self.path / "ledger.jsonl", clock)

    def book(self) -> Book:
        """The book, for reading."""
        file = self.path / "ledger.jsonl"
        return Book(read_entries(file.read_bytes()) if file.exists() else [])

    def job(self, name: str) -> Path:
        """Where the results of a job are."""
        return self.path / "jobs" / name

    def told(self) -> list[Path]:
        """What its machines have told, machine after machine."""
        return sorted(self.path.glob("events-*.jsonl"), key=lambda file: int(file.stem.partition("-")[2]))

    def write(self, name: str, document: Any) -> Path:
        """A JSON file of the run, replaced as a whole."""
        target = self.path / name
        write_atomically(target, json.dumps(document, indent=2, default=str).encode())
        return target

    def read(self, name: str) -> Any:
        """What `write` wrote; None when it is not there."""
        file = self.path / name
        return json.loads(file.read_bytes()) if file.exists() else None

    @property
    def stop_wanted(self) -> bool:
        """Whether another process asked for an end, orderly or at once."""
        return (self.path / "stop").exists()

    @property
    def end_wanted(self) -> bool:
        """Whether another process asked for an end at once."""
        try:
            return (self.path / "stop").read_bytes() == b"now"
        except FileNotFoundError:
            return False

    def want_stop(self, *, now: bool = False) -> None:
        """Ask the process that drives the run for an orderly end, or for one at once. The sharper request stands."""
        write_atomically(self.path / "stop", b"now" if now or self.end_wanted else b"")

    def forget_stop(self) -> None:
        """Take the request back: it was met."""
        (self.path / "stop").unlink(missing_ok=True)

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Hold the run's lock: one process at a time acts on a run. Raises `Busy`."""
        with self._holding("lock", f"run {self.id} is being driven by another lorry on this computer"):
            yield

    @property
    def is_driven(self) -> bool:
        """Whether a living process drives the run now."""
        return _is_held(self.path / "lock")

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Hold the lock of the run's keeper: one a run. Raises `Busy`."""
        with self._holding("keeper.lock", f"run {self.id} has a keeper already"):
            yield

    @property
    def is_kept(self) -> bool:
        """Whether a living keeper would take the run up, should the process that drives it die."""
        return _is_held(self.path / "keeper.lock")

    @contextmanager
    def _holding(self, name: str, taken: str) -> Iterator[None]:
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / name, timeout=1)  # a process that only looks holds it for a moment
        try:
            lock.acquire()
        except Timeout:
            raise Busy(taken, hint=f"watch it: lorry attach {self.id}") from None
        try:
            yield
        finally:
            lock.release()


class Home:
    """The folder of all runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def from_env(cls) -> Home:
        """`LORRY_HOME`, else the platform's state folder."""
        if set_by_user := os.environ.get("LORRY_HOME"):
            return cls(Path(set_by_user).expanduser().absolute())
        import platformdirs

        return cls(Path(platformdirs.user_state_dir("lorry", appauthor=False)))

    def make(self) -> None:
        """Make the folder of all runs. Raises `UsageError` where nothing can be written."""
        runs = self.path / "runs"
        with self._written():
            runs.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = runs / f".{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()

    def new_run(self, name: str) -> RunFolder:
        """A fresh, private folder. Raises `UsageError` where nothing can be written."""
        folder = self.path / "runs" / f"{name}-{secrets.token_hex(3)}"
        with self._written():
            folder.mkdir(parents=True, mode=0o700)
            sync_folder(folder.parent)
        return RunFolder(folder)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise UsageError(
                f"cannot write below {self.path}: {err.strerror}", hint="free some space there, or point LORRY_HOME at another folder"
            ) from err

    def runs(self) -> list[RunFolder]:
        """Every run, oldest first."""
        folder = self.path / "runs"
        if not folder.is_dir():
            return []
        found = [p for p in folder.iterdir() if (p / "ledger.jsonl").exists()]
        return [RunFolder(p) for p in sorted(found, key=_begun)]

    def run(self, name: str) -> RunFolder:
        """The run with this id, or the only one whose id begins so. Raises `UsageError`."""
        runs = {r.id: r for r in self.runs()}
        if name in runs:
            return runs[name]
        alike = [r for id_, r in runs.items() if id_.startswith(name)]
        if len(alike) == 1:
            return alike[0]
        if alike:
            raise UsageError(f"{name} may mean {', '.join(sorted(r.id for r in alike))}", hint="write more of the id")
        newest = f"the newest is {list(runs)[-1]}" if runs else "there is none yet"
        raise UsageError(f"no run is called {name}", hint=f"lorry ps --all lists them; {newest}")


def _begun(run: Path) -> tuple[float, str]:
    """When a run began, by the first entry of its book: the file's own dates move with every entry."""
    ledger = run / "ledger.jsonl"
    with ledger.open("rb") as file:
        first = read_entries(file.read(16_384))[:1]
    return (first[0].at.timestamp() if first else ledger.stat().st_ctime, run.name)


def _is_held(lock: Path) -> bool:
    """Whether a living process holds this lock. Two that only look do not take each other for holders."""
    if sys.platform == "win32":  # knows no shared locks: a look is a short hold
        from filelock import FileLock, Timeout

        try:
            with FileLock(lock, timeout=1):
                return False
        except Timeout:
            return True
    import fcntl

    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def write_atomically(target: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write beside, fsync, rename: readers see the old file or the new one, never a part. `mode`: the rights, less the umask's."""
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(target.parent)
