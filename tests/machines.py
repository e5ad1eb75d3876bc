"""A real machine for tests that speak SSH, without a market around it, and a line to it that can be cut, stalled and bent."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from orchestrator.shell import KeyFiles, Shell, make_keys
from providers.base import SSHEndpoint
from providers.sandbox.machines import Boot, RealMachines, login_user, needs_private_run


class QuickClock:
    """Real time, but nobody waits longer than a moment."""

    def now(self) -> object:
        raise AssertionError("a shell needs no time of day")

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.05))


@dataclass
class Host:
    """One machine: where it listens, its HOME as a folder here, and the key that opens it."""

    port: int
    root: Path
    keys: KeyFiles
    user: str

    def shell(self, folder: Path, *, port: int | None = None, clock: object = None, **options: float) -> Shell:
        """A fresh shell with pins of its own in `folder`."""
        keys = KeyFiles(private=self.keys.private, known_hosts=folder / "known_hosts")
        endpoint = SSHEndpoint(host="127.0.0.1", port=port or self.port, user=self.user)
        return Shell(endpoint, keys, clock or QuickClock(), **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def machine(folder: Path, *, env: dict[str, str] | None = None) -> Iterator[Host]:
    """Boot a machine in `folder`; leaving the block ends all its processes and removes it."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = make_keys(folder)
    machines = RealMachines(folder / "machines", login_user(), private_run=needs_private_run(folder))
    machines.start("one", Boot(mark=str(folder), ssh_public_key=keys.public_line, env=env or {}, onstart=""))
    try:
        deadline = time.monotonic() + 20
        while (port := machines.look("one").port) is None:
            assert time.monotonic() < deadline, machines.boot_log("one")
            time.sleep(0.01)
        yield Host(port=port, root=folder / "machines" / "one" / "root", keys=keys, user=machines.user)
    finally:
        machines.end("one", str(folder))
        machines.wipe("one")


@dataclass
class Proxy:
    """A TCP line to a port of this computer. `up` is towards the machine, `down` from it."""

    target: int
    stalled: bool = False
    """Bytes are taken and acknowledged, and go nowhere: a half-open line."""
    refusing: bool = False
    """Connections are closed as soon as they are made."""
    cut_down_after: int | None = None
    """The next connections each end after so many bytes from the machine."""
    cut_up_after: int | None = None
    cuts_left: int = 10**9
    connections: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    port: int = 0
    _open: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End every connection now."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self.refusing:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self.target))
            self._open += [client, server]
            up = self.cut_up_after if self.cuts_left > 0 else None
            down = self.cut_down_after if self.cuts_left > 0 else None
            self.cuts_left -= 1
            threading.Thread(target=self._pump, args=(client, server, "up_bytes", up), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, "down_bytes", down), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counter: str, most: int | None) -> None:
        moved = 0
        with contextlib.suppress(OSError):
            while chunk := source.recv(16384):
                if self.stalled:
                    continue
                chunk = chunk if most is None else chunk[: most - moved]
                sink.sendall(chunk)
                moved += len(chunk)
                setattr(self, counter, getattr(self, counter) + len(chunk))
                if most is not None and moved >= most:
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def eventually(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    """Wait until it is true; say what was not when it never is."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout_s} s"
        time.sleep(0.01)
