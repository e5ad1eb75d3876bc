"""A machine of the worst kind: an SSH and SFTP server in this process, which says what an attack wants it to say.

Left alone it is a rented machine whose training has ended well. It serves from memory: nothing that it lists is a file of this computer.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import paramiko
from fakes import PNG, safetensors
from paramiko.sftp import SFTP_NO_SUCH_FILE, SFTP_OK

from providers.base import SSHEndpoint
from trainer.protocol import AnyEvent, Committed, Ended, Session, Started, Status, Step, dump_event

HOST_KEY, OTHER_KEY = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()
RUN = "autumn-1a2b3c"
ROOT = f"lorry/{RUN}"
JOB = "lisa"
ADAPTER = f"jobs/{JOB}/out/{JOB}.safetensors"
SAMPLE = f"jobs/{JOB}/out/samples/step000002-0.png"

Answer = tuple[int, bytes, bytes]
"""Exit status, stdout, stderr."""


def commit(path: str = ADAPTER, content: bytes = b"", **fields: object) -> Committed:
    """What the machine says of a file, unchecked."""
    role = "sample" if path.endswith(".png") else "checkpoint" if "checkpoints" in path else "adapter"
    values: dict[str, object] = {
        "at_s": 3.0, "job": JOB, "path": path, "role": role, "step": 2, "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(), "final": path == ADAPTER,
    }  # fmt: skip
    return Committed.model_construct(**(values | fields))


@dataclass
class Stranger:
    """What it holds, and how it lies."""

    files: dict[str, bytes] = field(default_factory=dict)
    """By path below its home."""
    reads: dict[str, Callable[[int, int], bytes]] = field(default_factory=dict)
    """Files that are made up as they are read: offset and length -> bytes."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that are told instead of the true ones."""
    commands: dict[str, Callable[[Any], Answer]] = field(default_factory=dict)
    """A word of the command -> what it does with its channel instead."""
    greeting: Callable[[socket.socket], None] | None = None
    """Speaks on the bare line instead of SSH."""
    files_spoken: Callable[[Any], None] | None = None
    """Speaks on the SFTP channel instead of SFTP."""
    has_pinned_key: bool = True
    """Whether its host key is the one that it had when it was rented."""
    sent: int = 0
    """Bytes of files that went out."""
    said: list[str] = field(default_factory=list)
    """Commands that it was given."""

    def __post_init__(self) -> None:
        self.tell(Started(at_s=1, job=JOB, steps=2, images=3, epochs=1))
        self.tell(*(Step(at_s=1 + i, job=JOB, step=i, steps=2, epoch=0, loss=0.5 / i, lr=1e-4, samples_per_s=1.0) for i in (1, 2)))
        self.has(SAMPLE, PNG)
        self.has(ADAPTER, safetensors(2))
        self.tell(Ended(at_s=4, job=JOB, state="done", step=2))
        self.status(Status(state="ended", reason="done", beat=9, uptime_s=5.0, jobs={}).model_dump_json().encode())
        self.files[f"{ROOT}/session.json"] = Session(run=RUN, jobs=(JOB,), lifetime_s=3600).model_dump_json().encode()

    # -- what an attack does to it ---------------------------------------------------------------------

    def tell(self, *events: AnyEvent) -> None:
        self.say(b"".join(map(dump_event, events)))

    def say(self, raw: bytes) -> None:
        """More bytes of events."""
        self.files[f"{ROOT}/events.jsonl"] = self.files.get(f"{ROOT}/events.jsonl", b"") + raw

    def says_only(self, raw: bytes) -> None:
        self.files[f"{ROOT}/events.jsonl"] = raw

    def status(self, raw: bytes) -> None:
        self.files[f"{ROOT}/status.json"] = raw

    def has(self, path: str, content: bytes, **lies: object) -> None:
        """A file, and the event that lists it."""
        self.files[f"{ROOT}/{path}"] = content
        self.tell(commit(path, content, **lies))

    # -- the server ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lines: list[Any] = []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for line in self._lines:
            with contextlib.suppress(OSError, EOFError):
                line.close()

    @property
    def endpoint(self) -> SSHEndpoint:
        return SSHEndpoint(host="127.0.0.1", port=self._listener.getsockname()[1], user="root")

    @property
    def known(self) -> str:
        """The line that pins it."""
        key = HOST_KEY if self.has_pinned_key else OTHER_KEY
        return f"[127.0.0.1]:{self.endpoint.port} {key.get_name()} {key.get_base64()}\n"

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self._lines.append(line)
            threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            if self.greeting is not None:
                self.greeting(line)
                line.close()
                return
            transport = paramiko.Transport(line)
            self._lines.append(transport)
            transport.add_server_key(HOST_KEY)
            transport.set_subsystem_handler("sftp", _Raw if self.files_spoken else paramiko.SFTPServer, _Files, stranger=self)
            transport.start_server(server=_Door(self))

    def answer(self, channel: Any, command: str) -> None:
        """Do a command, as an honest machine would unless the attack has another idea."""
        self.said.append(command)
        argv = shlex.split(command)
        with contextlib.suppress(OSError, EOFError):
            special = next((does for word, does in self.commands.items() if word in argv), None)
            code, out, err = special(channel) if special else self._honest(argv, channel)
            channel.sendall(out)
            channel.sendall_stderr(err)
            channel.send_exit_status(code)
            channel.close()

    def _honest(self, argv: list[str], channel: Any) -> Answer:
        if "write" in argv:
            given = bytearray()
            while piece := channel.recv(65536):
                given += piece
            self.files[argv[-1]] = bytes(given)
        return (0, b'{"pid": 7, "running": true}' if "start" in argv else b"", b"")


class _Door(paramiko.ServerInterface):
    """Lets anybody in."""

    def __init__(self, stranger: Stranger) -> None:
        self.stranger = stranger

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: Any) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        threading.Thread(target=self.stranger.answer, args=(channel, command.decode()), daemon=True).start()
        return True


class _Raw(paramiko.SubsystemHandler):
    """An SFTP channel on which the attack speaks."""

    def __init__(self, channel: Any, name: str, server: Any, _files: object, stranger: Stranger) -> None:
        super().__init__(channel, name, server)
        self.stranger = stranger

    def start_subsystem(self, name: str, transport: Any, channel: Any) -> None:
        assert self.stranger.files_spoken is not None
        with contextlib.suppress(OSError, EOFError):
            self.stranger.files_spoken(channel)


class _Files(paramiko.SFTPServerInterface):
    """The files in memory."""

    def __init__(self, server: Any, stranger: Stranger) -> None:
        super().__init__(server)
        self.stranger = stranger

    def stat(self, path: str) -> Any:
        size = self.stranger.sizes.get(path)
        if size is None:
            if path not in self.stranger.files:
                return SFTP_NO_SUCH_FILE
            size = len(self.stranger.files[path])
        told = paramiko.SFTPAttributes()
        told.st_size, told.st_mode = size, 0o100644
        return told

    lstat = stat

    def open(self, path: str, flags: int, attr: Any) -> Any:
        if path not in self.stranger.files and path not in self.stranger.reads:
            return SFTP_NO_SUCH_FILE
        return _Open(self.stranger, path)

    def posix_rename(self, oldpath: str, newpath: str) -> int:
        self.stranger.files[newpath] = self.stranger.files.pop(oldpath)
        return SFTP_OK


class _Open(paramiko.SFTPHandle):
    """One of them, open."""

    def __init__(self, stranger: Stranger, path: str) -> None:
        super().__init__()
        self.stranger, self.path = stranger, path

    def stat(self) -> Any:
        return _Files(None, self.stranger).stat(self.path)

    def read(self, offset: int, length: int) -> Any:
        made_up = self.stranger.reads.get(self.path)
        data = made_up(offset, length) if made_up else self.stranger.files[self.path][offset : offset + length]
        self.stranger.sent += len(data)
        return data or paramiko.SFTP_EOF
