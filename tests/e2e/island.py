"""A computer whose network can be cut: a command in a network namespace of its own, tied to this one by a cable that can be pulled.

    unshare --net python -m tests.e2e.island FOLDER COMMAND ARGUMENT...

Becomes COMMAND. Beside it stands a ferry, which listens on the namespace's loopback and passes each connection through a socket in
FOLDER, which no namespace holds back, to the harbour outside. Pulling the cable takes the loopback down in the kernel: what was
connected goes mute, what connects anew is told that the network is unreachable, as when a laptop loses its line.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
PR_SET_PDEATHSIG = 1
PORT = struct.Struct("!H")


class _Threaded(socketserver.ThreadingMixIn):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True


class _Harbour(_Threaded, socketserver.UnixStreamServer):
    """Outside: each passenger names a port of this computer's loopback and is taken there."""


class _Ferry(_Threaded, socketserver.TCPServer):
    """Inside: listens where the real server listens outside."""

    def __init__(self, port: int, harbour: str) -> None:
        self.port, self.harbour = port, harbour
        super().__init__(("127.0.0.1", port), _FerryRide)


class _Arrival(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        here: socket.socket = self.request
        (port,) = PORT.unpack(here.recv(PORT.size, socket.MSG_WAITALL))
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as there:
            _relay(here, there)


class _FerryRide(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Ferry)
        with suppress(OSError), socket.socket(socket.AF_UNIX) as there:
            there.connect(self.server.harbour)
            there.sendall(PORT.pack(self.server.port))
            _relay(self.request, there)


def _relay(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes both ways until both sides have said all."""
    back = threading.Thread(target=_pour, args=(other, one), daemon=True)
    back.start()
    _pour(one, other)
    back.join()


def _pour(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


class _Orders(socketserver.StreamRequestHandler):
    """`listen PORT`, `cut`, `mend`: each is answered when it is done."""

    def handle(self) -> None:
        assert isinstance(self.server, _Warden)
        for line in self.rfile:
            word, *rest = line.decode().split()
            if word == "listen":
                ferry = _Ferry(int(rest[0]), self.server.harbour)
                threading.Thread(target=ferry.serve_forever, daemon=True).start()
            else:
                set_loopback(up=word == "mend")
            self.wfile.write(b"done\n")


class _Warden(_Threaded, socketserver.UnixStreamServer):
    harbour: str


def set_loopback(*, up: bool) -> None:
    """Take this namespace's only interface up or down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sh22x", b"lo", 0))
        (flags,) = struct.unpack_from("h", asked, 16)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP if up else flags & ~IFF_UP))


def become(folder: str, command: list[str]) -> None:
    """Raise the network, leave the ferry behind as a child that dies with us, and become the command."""
    set_loopback(up=True)
    warden = _Warden(f"{folder}/orders", _Orders)
    warden.harbour = f"{folder}/harbour"
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # whoever waits for the command's last word must not wait for ours
            os.dup2(null, stream)
        warden.serve_forever()
    warden.socket.close()
    os.execvp(command[0], command)


class Island:
    """The island seen from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listening: set[int] = set()

    def command(self, *command: str) -> list[str]:
        """What starts `command` there."""
        return ["unshare", "--net", sys.executable, "-m", "tests.e2e.island", str(self.folder), *command]

    def listen(self, port: int) -> None:
        """Make a port of this computer reachable from there."""
        if port not in self.listening:
            self._tell(f"listen {port}")
            self.listening.add(port)

    def cut(self) -> None:
        """Pull the cable."""
        self._tell("cut")

    def mend(self) -> None:
        """Put it back."""
        self._tell("mend")

    def _tell(self, order: str) -> None:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(10)
            line.connect(str(self.folder / "orders"))
            line.sendall(f"{order}\n".encode())
            assert line.recv(16) == b"done\n"


@contextmanager
def island(folder: Path) -> Iterator[Island]:
    """A harbour in `folder`, for as long as the block lasts. Keep the path short: a socket's name has 107 characters."""
    folder.mkdir(parents=True)
    with _Harbour(str(folder / "harbour"), _Arrival) as harbour:
        threading.Thread(target=harbour.serve_forever, daemon=True).start()
        yield Island(folder)
        harbour.shutdown()


def why_not() -> str:
    """Why no such computer can be made here; empty when it can."""
    try:
        made = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "there is no unshare here"
    return made.stderr.strip()


if __name__ == "__main__":
    become(sys.argv[1], sys.argv[2:])
