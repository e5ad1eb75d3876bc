"""The only place that speaks SSH: one connection to one machine, which reconnects by itself.

paramiko does not notice a dead link: without the socket options below it waits for ever for a machine
whose network is gone. With them, and a limit on every answer, silence is noticed within `SILENCE_S`.
The host key is pinned at first contact; another key later ends the run (exit 12).
"""

from __future__ import annotations

import contextlib
import shlex
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from providers.base import SSHEndpoint

from .clock import Clock
from .errors import IntegrityError, MachineFailed

if TYPE_CHECKING:
    import paramiko

T = TypeVar("T")

SILENCE_S = 25.0
"""A link on which nothing was acknowledged for so long is dead."""
ANSWER_MAX_BYTES = 8 * 1024 * 1024
"""No command of ours answers with more; a machine that does is not believed."""
CHUNK_BYTES = 256 * 1024


class LinkDown(MachineFailed):
    """The machine did not answer over SSH for as long as we were willing to wait."""

    code = "LRY-LINK"


class CommandFailed(MachineFailed):
    """A command on the machine ended badly."""

    code = "LRY-COMMAND"


@dataclass(frozen=True, slots=True)
class Completed:
    """How a remote command ended."""

    returncode: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFiles:
    """This run's own key, and the host keys it has pinned. No agent, no keys of the user."""

    private: Path
    known_hosts: Path

    @property
    def public_line(self) -> str:
        """The public key as `authorized_keys` wants it."""
        return self.private.with_suffix(".pub").read_text().strip()


def make_keys(folder: Path) -> KeyFiles:
    """The run's ed25519 key pair; made once, private file 0600."""
    keys = KeyFiles(private=folder / "key", known_hosts=folder / "known_hosts")
    public = keys.private.with_suffix(".pub")
    if keys.private.exists() and public.exists():
        return keys
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    keys.private.touch(mode=0o600)
    keys.private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    public.write_bytes(line + b" lorry\n")
    return keys


class Shell:
    """Commands and files on one machine.

    Every operation may be cut and done again: callers send only what can be repeated without harm.
    Raises `LinkDown` when the machine stays silent for `patience_s`, `IntegrityError` when it is not
    the machine that it was.
    """

    def __init__(self, endpoint: SSHEndpoint, keys: KeyFiles, clock: Clock, *, patience_s: float = 120.0) -> None:
        self.endpoint = endpoint
        self.keys = keys
        self.patience_s = patience_s
        self.give_up: Callable[[], None] = lambda: None
        """Called between attempts to connect; raises to stop waiting (Ctrl-C)."""
        self.uploaded = 0
        self.downloaded = 0
        self._clock = clock
        self._transport: paramiko.Transport | None = None
        self._sftp: paramiko.SFTPClient | None = None

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed:
        """Run a command; arguments are quoted here and nowhere else. `timeout_s`: the longest silence."""
        command = shlex.join(argv)
        return self._again(lambda: self._exec(command, stdin, timeout_s), f"run {argv[0]}")

    def check(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0) -> bytes:
        """`run`, and its stdout; raises `CommandFailed` when it did not end with 0."""
        done = self.run(argv, stdin=stdin, timeout_s=timeout_s)
        if done.returncode != 0:
            words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            raise CommandFailed(f"`{argv[0]}` on the machine ended with {done.returncode}: {words[-1] if words else 'no word'}")
        return done.stdout

    def read(self, path: str, *, offset: int = 0, most: int = ANSWER_MAX_BYTES) -> bytes | None:
        """Bytes of a remote file from `offset` on; None when it does not exist."""

        def once() -> bytes | None:
            try:
                with self._files().open(path, "rb") as file:
                    file.seek(offset)
                    data: bytes = file.read(most)
            except FileNotFoundError:
                return None
            self.downloaded += len(data)
            return data

        return self._again(once, f"read {path}")

    def size(self, path: str) -> int | None:
        """Bytes of a remote file; None when it does not exist."""

        def once() -> int | None:
            try:
                size = self._files().stat(path).st_size
            except FileNotFoundError:
                return None
            return None if size is None else int(size)

        return self._again(once, f"look at {path}")

    def fetch(self, path: str, target: Path, *, size: int, moved: Callable[[int], None] = lambda _: None) -> None:
        """Fetch exactly `size` bytes into `target`, going on from what is there already."""

        def once() -> None:
            have = target.stat().st_size if target.exists() else 0
            if have > size:
                target.unlink()
                have = 0
            with target.open("ab") as out, self._files().open(path, "rb") as file:
                file.seek(have)
                file.prefetch(size)
                self._copy(file, out, size - have, moved)

        self._again(once, f"fetch {path}")

    def put(self, source: Path, path: str, *, moved: Callable[[int], None] = lambda _: None) -> None:
        """Send a file, going on from a part that is there; the last name appears only when it is whole."""
        size = source.stat().st_size

        def once() -> None:
            files, part = self._files(), path + ".part"
            try:
                have = int(files.stat(part).st_size or 0)
            except FileNotFoundError:
                have = 0
            have = have if have <= size else 0
            with source.open("rb") as file, files.open(part, "ab" if have else "wb") as out:
                out.set_pipelined(True)
                file.seek(have)
                while chunk := file.read(CHUNK_BYTES):
                    out.write(chunk)
                    self.uploaded += len(chunk)
                    moved(len(chunk))
            files.posix_rename(part, path)

        self._again(once, f"send {path}")

    def close(self) -> None:
        """Hang up. Never raises."""
        transport, self._transport, self._sftp = self._transport, None, None
        if transport is not None:
            with contextlib.suppress(OSError, EOFError):
                transport.close()

    def connect(self) -> str:
        """Log in once, now, and return the host key's fingerprint; raises what went wrong."""
        return self._again(lambda: self._fingerprint(), "log in")

    def probe(self) -> bool:
        """Whether the machine lets us in at this moment; one try, no waiting."""
        try:
            self._link()
        except _link_errors():
            self.close()
            return False
        return True

    # -- inside ------------------------------------------------------------------------------------

    def _again(self, operation: Callable[[], T], what: str) -> T:
        """Do it, and do it again over a new connection while the link is down, for `patience_s` at most."""
        first_failure: float | None = None
        while True:
            try:
                return operation()
            except _link_errors() as err:
                if self._is_remote_answer(err):
                    raise CommandFailed(f"could not {what} on the machine: {_words(err)}") from err
                self.close()
                now = self._clock.monotonic_s()
                first_failure = first_failure if first_failure is not None else now
                if now - first_failure > self.patience_s:
                    raise LinkDown(
                        f"the machine at {self.endpoint.host}:{self.endpoint.port} does not answer: could not {what} ({_words(err)})"
                    ) from err
                self.give_up()
                self._clock.sleep(1.0)

    def _is_remote_answer(self, err: BaseException) -> bool:
        """Whether the machine itself said no (disk full, no permission), over a link that is well."""
        link_is_well = self._transport is not None and self._transport.is_active()
        return link_is_well and isinstance(err, OSError) and not isinstance(err, (ConnectionError, TimeoutError))

    def _exec(self, command: str, stdin: bytes, timeout_s: float) -> Completed:
        channel = self._link().open_session(timeout=SILENCE_S)
        with contextlib.closing(channel):
            channel.settimeout(timeout_s)
            channel.exec_command(command)
            if stdin:
                channel.sendall(stdin)
            channel.shutdown_write()
            out, err = bytearray(), bytearray()
            while chunk := channel.recv(CHUNK_BYTES):
                out += chunk
                if len(out) > ANSWER_MAX_BYTES:
                    raise IntegrityError(f"the machine answered `{command[:40]}` with more than {ANSWER_MAX_BYTES} bytes")
            while len(err) < CHUNK_BYTES and (chunk := channel.recv_stderr(CHUNK_BYTES)):
                err += chunk
            return Completed(channel.recv_exit_status(), bytes(out), bytes(err))

    def _files(self) -> paramiko.SFTPClient:
        transport = self._link()
        if self._sftp is None:
            import paramiko

            self._sftp = paramiko.SFTPClient.from_transport(transport)
            if self._sftp is None:
                raise EOFError("the machine opened no file channel")
            channel = self._sftp.get_channel()
            assert channel is not None
            channel.settimeout(SILENCE_S)
        return self._sftp

    def _copy(self, file: IO[bytes], out: IO[bytes], size: int, moved: Callable[[int], None]) -> None:
        left = size
        while left > 0:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise EOFError(f"the file ended {left} bytes early")
            out.write(chunk)
            left -= len(chunk)
            self.downloaded += len(chunk)
            moved(len(chunk))

    def _link(self) -> paramiko.Transport:
        if self._transport is not None and self._transport.is_active():
            return self._transport
        self.close()
        import paramiko

        sock = socket.create_connection((self.endpoint.host, self.endpoint.port), timeout=SILENCE_S)
        _notice_silence(sock)
        transport = paramiko.Transport(sock)
        transport.banner_timeout = transport.auth_timeout = transport.channel_timeout = SILENCE_S
        try:
            transport.start_client(timeout=SILENCE_S)
            self._pin(transport.get_remote_server_key())
            transport.set_keepalive(5)
            transport.auth_publickey(self.endpoint.user, paramiko.Ed25519Key.from_private_key_file(str(self.keys.private)))
        except BaseException:
            transport.close()
            raise
        self._transport = transport
        return transport

    def _fingerprint(self) -> str:
        key: paramiko.PKey = self._link().get_remote_server_key()
        return str(key.fingerprint)

    def _pin(self, key: paramiko.PKey) -> None:
        """Trust the first key, then only that one."""
        host = self._known_as()
        line = f"{host} {key.get_name()} {key.get_base64()}"
        known = self.keys.known_hosts.read_text().splitlines() if self.keys.known_hosts.exists() else []
        pinned = [entry for entry in known if entry.split(" ", 1)[0] == host]
        if not pinned:
            with self.keys.known_hosts.open("a") as file:
                file.write(line + "\n")
        elif line not in pinned:
            raise IntegrityError(
                f"the machine at {host} shows another host key than before: it is not the machine that was rented, or somebody is in between",
                hint="nothing was sent to it; the machine is given back",
            )

    def _known_as(self) -> str:
        return f"[{self.endpoint.host}]:{self.endpoint.port}"

    def forget_host(self) -> None:
        """Unpin: for a new machine at an address that another one had."""
        if self.keys.known_hosts.exists():
            lines = self.keys.known_hosts.read_text().splitlines(keepends=True)
            self.keys.known_hosts.write_text("".join(x for x in lines if x.split(" ", 1)[0] != self._known_as()))

    def openssh(self) -> list[str]:
        """The `ssh` command that rsync uses, with the same key, the same pin and nothing of the user's own."""
        options = {
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.keys.known_hosts),
            "GlobalKnownHostsFile": "none",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ControlMaster": "no",
            "ControlPath": "none",
            "ConnectTimeout": "20",
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "4",
            "LogLevel": "ERROR",
        }
        settings = [item for name, value in options.items() for item in ("-o", f'{name}="{value}"' if " " in value else f"{name}={value}")]
        return ["ssh", "-F", "none", "-i", str(self.keys.private), "-p", str(self.endpoint.port), *settings]


def _link_errors() -> tuple[type[BaseException], ...]:
    """What a dead or sick link raises."""
    import paramiko

    return (paramiko.SSHException, EOFError, OSError)


def _words(err: BaseException) -> str:
    return str(err) or type(err).__name__


def _notice_silence(sock: socket.socket) -> None:
    """Ask the kernel to give up on unacknowledged bytes and to probe an idle line."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 20_000}
    for name, value in options.items():  # Linux has all, macOS and Windows some
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
