"""The computer of the person who pays, for as long as an attack lasts: a home and a folder of its own, a terminal, and everything watched.

`lorry attach` runs in this process, over real SSH, against a cloud in memory. What it does to files is seen twice: by comparing the whole
tree, and by Python's own audit events, which also tell of what is gone again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import pytest
from fakes import FakeClock, FakeCloud, an_order, offer, spec
from stranger import JOB, RUN, Stranger

from orchestrator import tools
from orchestrator.cli import main
from orchestrator.home import RunFolder
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.lifecycle import Signal
from orchestrator.machines.memory import Memory
from orchestrator.safety.interrupts import Interrupts
from orchestrator.shell import make_keys
from orchestrator.trip import Tools
from orchestrator.view import make_view

OWN = re.compile(
    rf"lock|keeper\.lock|ledger\.jsonl|order\.json|plan\.json|key|key\.pub|known_hosts|events-1\.jsonl|receipt\.json|report\.html|staging|jobs(/{JOB})?"
)
"""What lorry itself has in a run's folder."""
SHARED = {f"OUTSIDE home/lorry/{name}" for name in ("settled.json", "machines.json", ".machines.json.lock")}
"""What all runs share."""
SGR = re.compile(r"\x1b\[[0-9;]*m")
MOVES = re.compile(r"\x1b\[\d*[ABCDGJK]|\x1b\[\?25[hl]|\r")
"""Rich draws with these: cursor up, line away, cursor hidden and shown."""


class Watcher:
    """Python's audit events of this process while an attack lasts."""

    _on: ClassVar[list[Watcher]] = []
    _hooked: ClassVar[bool] = False

    def __init__(self) -> None:
        self.written: set[str] = set()
        self.forbidden: list[str] = []

    def __enter__(self) -> Self:
        if not Watcher._hooked:
            sys.addaudithook(Watcher._heard)
            Watcher._hooked = True
        Watcher._on.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        Watcher._on.remove(self)

    @staticmethod
    def _heard(event: str, arguments: tuple[object, ...]) -> None:
        for watcher in Watcher._on:
            watcher._take(event, arguments)

    def _take(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = (*arguments, None, 0)[:3]
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, (str, bytes, os.PathLike)) and not str(os.fsdecode(path)).endswith(".pyc"):
                self.written.add(_plain(path))
        elif event in {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}:
            paths = [one for one in arguments[:2] if isinstance(one, (str, bytes, os.PathLike))]
            self.written |= {_plain(one) for one in paths if not _plain(one).endswith(".pyc")}
        elif event in {"os.symlink", "os.link", "pickle.find_class", "os.system", "os.exec", "subprocess.Popen"}:
            self.forbidden.append(f"{event} {arguments!r}"[:200])


def _plain(path: str | bytes | os.PathLike[Any]) -> str:
    return os.path.abspath(os.fsdecode(path))  # noqa: PTH100  no link is followed


@dataclass
class Outcome:
    """What came of an attack."""

    code: int
    screen: str
    """Every byte that went to the terminal."""
    words: str
    """The same without what rich draws with."""
    written: list[str]
    """Paths outside the run's own home that were opened to be written, made, renamed or removed, also for a moment."""
    forbidden: list[str]
    """Links made, pickles opened, commands run."""
    strange: list[str]
    """Files that lorry does not make by itself, below the run's folder or anywhere else."""
    home: list[str]
    """Results at home."""
    grown_bytes: int
    """Memory that this process took at its peak beyond what it had."""
    page: str
    machines_left: int


@dataclass
class Victim:
    """A run whose machine has trained, in a world of its own."""

    root: Path
    patch: pytest.MonkeyPatch
    stranger: Stranger
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.home, self.cwd = self.root / "home", self.root / "cwd"
        for folder in (self.home / "Documents", self.cwd):
            folder.mkdir(parents=True)
        for mine in (self.home / ".bashrc", self.home / "Documents" / "thesis.txt", self.cwd / "lisa.safetensors"):
            mine.write_text("mine")
        self.folder = RunFolder(self.home / "lorry" / "runs" / RUN)
        self.folder.path.mkdir(parents=True)
        self.cloud = FakeCloud(self.clock)
        self.order = an_order(self.folder, (JOB,), boot_timeout_s=3.0)
        ledger = Ledger(self.folder.path / "ledger.jsonl", self.clock)
        ledger.record("opened", cap_usd=self.order.cap_usd, run=self.order.run)
        Lease.take(self.cloud, offer(), spec(), ledger=ledger, clock=self.clock)
        ledger.record(Signal.REACHABLE, attempt=1, host_key="SHA256:x")
        ledger.record(Signal.SHIPPED, attempt=1, files=1, bytes=1)
        ledger.record(Signal.STARTED, attempt=1, lifetime_s=3600.0, python="/usr/bin/python3")
        make_keys(self.folder.path).known_hosts.write_text(self.stranger.known)
        self.cloud.ssh = self.stranger.endpoint
        self.cloud.market.clear()  # whoever fails is the last one
        for name, value in {"HOME": self.home, "LORRY_HOME": self.home / "lorry", "LORRY_KEEPER": "off", "TERM": "xterm"}.items():
            self.patch.setenv(name, str(value))
        self.patch.chdir(self.cwd)
        self.patch.setattr(tools, "make_tools", self._tools)

    def _tools(self, *, as_json: bool) -> Tools:
        view = make_view(as_json=as_json, clock_s=self.clock.monotonic_s, lorry_version="0")
        memory = Memory(self.home / "lorry" / "machines.json")
        return Tools(clock=self.clock, view=view, interrupts=Interrupts(view.say), provider=lambda _: self.cloud, memory=memory)  # type: ignore[arg-type,return-value]

    def call(self, *commands: str) -> Outcome:
        """Call lorry on a terminal; the code is the first command's."""
        before = tree(self.root)
        with Watcher() as watcher, memory() as grown, terminal(self.patch) as shown:
            codes = [main(command.split()) for command in commands]
        after = tree(self.root)
        screen = shown.text
        run = self.folder.path.relative_to(self.root).as_posix()
        changed = [path for path in {*after, *before} if after.get(path) != before.get(path)]
        below = [path.removeprefix(f"{run}/") if path.startswith(f"{run}/") else f"OUTSIDE {path}" for path in changed]
        made = [path for path in below if path.startswith(f"jobs/{JOB}/")]
        results = sorted(path.removeprefix(f"jobs/{JOB}/") for path in made if not (self.folder.path / path).is_dir())
        strange = sorted(path for path in below if not OWN.fullmatch(path) and path not in SHARED and path not in made)
        own = str(self.home / "lorry")
        page = self.folder.path / "report.html"
        return Outcome(
            code=codes[0],
            screen=screen,
            words=MOVES.sub("", SGR.sub("", screen)),
            written=sorted(path for path in watcher.written if not path.startswith((own, "/dev/", "/proc/"))),
            forbidden=watcher.forbidden,
            strange=strange,
            home=results,
            grown_bytes=grown.bytes,
            page=page.read_text(encoding="utf-8") if page.exists() else "",
            machines_left=len(self.cloud.billing()),
        )


def tree(root: Path) -> dict[str, bytes | str | None]:
    """Everything below, and what is in it; a link is told as one."""
    found: dict[str, bytes | str | None] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder) / name
            told = f"link to {path.readlink()}" if path.is_symlink() else None if path.is_dir() else path.read_bytes()
            found[path.relative_to(root).as_posix()] = told if told is not None else "folder"
    return found


@contextlib.contextmanager
def memory() -> Iterator[SimpleNamespace]:
    """The peak of this process's memory within the block, beyond what it had before; 0 where the kernel does not tell."""
    told = SimpleNamespace(bytes=0)
    clear = Path("/proc/self/clear_refs")
    with contextlib.suppress(OSError):
        clear.write_text("5")
    before = _peak("VmRSS")
    try:
        yield told
    finally:
        told.bytes = _peak("VmHWM") - before


def _peak(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def terminal(patch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A real pty as this process's terminal; `text` is all that was written to it."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    shown, got = SimpleNamespace(text=""), bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(master, 65536):
                got.extend(piece)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    streams = [os.fdopen(os.dup(slave), mode, encoding="utf-8", errors="replace") for mode in ("r", "w", "w")]
    with patch.context() as inner:
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            inner.setattr(sys, name, stream)
        try:
            yield shown
        finally:
            for stream in streams:
                with contextlib.suppress(OSError):
                    stream.close()
            os.close(slave)
            reader.join(10)
            os.close(master)
            shown.text = got.decode("utf-8", errors="replace")
