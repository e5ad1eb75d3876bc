"""The only place that speaks SSH: one connection to one machine, which reconnects by itself.

paramiko does not notice a dead link: it waits for ever for a machine whose network is gone. The socket options
below help where the network itself falls silent; where something in between still acknowledges (a NAT box, a
proxy, a machine that hangs), only an answer of the SSH server counts: it is asked for one all the time, and a
link on which nothing was heard for `SILENCE_S` is closed. A cut is mended by connecting again.
The host key is pinned at first contact; another key later ends the run (exit 12).
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from providers.base import SSHEndpoint

from .clock import Clock
from .errors import IntegrityError, LorryError, MachineFailed

if TYPE_CHECKING:
    import paramiko

T = TypeVar("T")

SILENCE_S = 25.0
"""A link on which nothing was heard for so long is dead."""
ANSWER_MAX_BYTES = 8 * 1024 * 1024
"""No command of ours answers with more; a machine that does is not believed."""
CHUNK_BYTES = 256 * 1024
PACKET_BYTES = 32 * 1024
"""What SFTP reads at once: a cut loses no more than this."""
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "aes192-ctr", "aes128-ctr")
DIGESTS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
"""Every OpenSSH of the last ten years knows some of these; nobody in between may talk us into older ones."""
_NO_LOG = logging.NullHandler()


class LinkDown(MachineFailed):
    """The machine did not answer over SSH for as long as we were willing to wait."""

    code = "LRY-LINK"


class CommandFailed(MachineFailed):
    """A command on the machine ended badly."""

    code = "LRY-COMMAND"


class CutShort(CommandFailed):
    """A file on the machine is shorter than it was said to be."""

    code = "LRY-SHORT"


class LocalTrouble(LorryError):
    """A file on this computer could not be read or written while the machine did its part."""

    code = "LRY-DISK"
    exit_code = 8


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
    Raises `LinkDown` when the machine cannot be reached for `patience_s`, or nothing gets through in that time;
    `IntegrityError` when it is not the machine that it was.
    """

    def __init__(
        self, endpoint: SSHEndpoint, keys: KeyFiles, clock: Clock, *, patience_s: float = 120.0, silence_s: float = SILENCE_S
    ) -> None:
        self.endpoint = endpoint
        self.keys = keys
        self.patience_s = patience_s
        self.silence_s = silence_s
        self.give_up: Callable[[], None] = lambda: None
        """Called between attempts to connect; raises to stop waiting (Ctrl-C, a machine that is lost)."""
        self.heed: Callable[[], None] = lambda: None
        """Called all the time while a connection stands, by another thread; raises when whatever is under way is to end: a machine that
        answers a byte a minute is silent for no moment, and must not outlast the cap."""
        self.came_back: Callable[[], None] = lambda: None
        """Called when something gets through after `give_up` was."""
        self.down_s = 0.0
        """For so long nothing has got through; 0 while all is well."""
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
        """Fetch exactly `size` bytes into `target`, going on from what is there already.

        Raises `CutShort` when the machine has fewer, `LocalTrouble` when they cannot be kept here.
        """

        def have() -> int:
            return target.stat().st_size if target.exists() else 0

        def once() -> None:
            with on_this_computer(target):
                if have() > size:
                    target.unlink()
                target.touch()
            with target.open("ab") as out, self._files().open(path, "rb") as file:
                file.seek(have())
                _prefetch(file, size)
                self._copy(file, out, size - have(), target, moved)

        self._again(once, f"fetch {path}", have)

    def put(self, source: Path, path: str, *, moved: Callable[[int], None] = lambda _: None) -> None:
        """Send a file, going on from a part that is there; the last name appears only when it is whole."""
        with on_this_computer(source):
            size = source.stat().st_size
        begun_at = 0

        def once() -> None:
            nonlocal begun_at
            files, part = self._files(), path + ".part"
            have = _size_of(files, part)
            begun_at = have = have if have <= size else 0
            with files.open(part, "ab" if have else "wb") as out:
                out.set_pipelined(True)
                for chunk in _chunks(source, have):
                    out.write(chunk)
                    self.uploaded += len(chunk)
                    moved(len(chunk))
            # The answers to pipelined writes are not looked at one by one: a full disk shows only here.
            arrived = _size_of(files, part)
            if arrived != size:
                raise CommandFailed(f"the machine kept {arrived} of {size} bytes of {path}: its disk may be full")
            files.posix_rename(part, path)

        self._again(once, f"send {path}", lambda: begun_at)

    def close(self) -> None:
        """Hang up. Never raises."""
        transport, self._transport, self._sftp = self._transport, None, None
        if transport is not None:
            with contextlib.suppress(OSError, EOFError):
                transport.close()

    def connect(self) -> str:
        """Log in once, now, and return the host key's fingerprint; raises what went wrong."""
        return self._again(self._fingerprint, "log in")

    def probe(self) -> bool:
        """Whether the machine lets us in at this moment; one try, no waiting."""
        try:
            self._link()
        except _link_errors():
            self.close()
            return False
        return True

    # -- inside ------------------------------------------------------------------------------------

    def _again(self, operation: Callable[[], T], what: str, reached: Callable[[], int] = lambda: 0) -> T:
        """Do it, and do it again over a new connection while the link is down, for `patience_s` at most.

        `reached` says how far the operation has come: what moves on between two cuts may be cut for ever.
        """
        failing_since: float | None = None
        best = reached()
        while True:
            try:
                done = operation()
            except _nonsense() as err:
                self.close()
                raise IntegrityError(f"the machine answered nonsense when asked to {what} ({type(err).__name__})") from err
            except _link_errors() as err:
                self.heed()
                if self._is_remote_answer(err):
                    raise CommandFailed(f"could not {what} on the machine: {_words(err)}") from err
                self.close()
                now = self._clock.monotonic_s()
                if failing_since is None or reached() > best:
                    failing_since, best = now, reached()
                self.down_s = now - failing_since
                if self.down_s > self.patience_s:
                    raise LinkDown(
                        f"the machine at {self.endpoint.host}:{self.endpoint.port} does not answer: could not {what} ({_words(err)})"
                    ) from err
                self.give_up()
                self._clock.sleep(1.0)
            else:
                if failing_since is not None:
                    self.down_s = 0.0
                    self.came_back()
                return done

    def _is_remote_answer(self, err: BaseException) -> bool:
        """Whether the machine itself said no (disk full, no permission), over a link that is well."""
        channel = self._sftp.get_channel() if self._sftp is not None else None
        link_is_well = self._transport is not None and self._transport.is_active() and (channel is None or not channel.closed)
        return link_is_well and isinstance(err, OSError) and not isinstance(err, (ConnectionError, TimeoutError))

    def _exec(self, command: str, stdin: bytes, timeout_s: float) -> Completed:
        transport = self._link()
        channel = transport.open_session(timeout=self.silence_s)
        with contextlib.closing(channel):
            channel.settimeout(timeout_s)
            errors = bytearray()
            try:
                channel.exec_command(command)
                talk = threading.Thread(target=_keep_talk, args=(channel, errors), daemon=True)
                talk.start()  # at the same time: stdout and stderr share one window, which either can fill
                if stdin:
                    with contextlib.suppress(ConnectionError, BrokenPipeError):
                        _send_all(channel, stdin)
                channel.shutdown_write()
                output = self._read_output(channel, command)
                if not channel.status_event.wait(timeout_s):
                    raise TimeoutError
            except TimeoutError:
                if transport.is_active():
                    raise CommandFailed(f"`{command[:60]}` on the machine said nothing for {timeout_s:.0f} s") from None
                raise
            talk.join(timeout_s)
            if channel.exit_status == -1:
                transport.join(0.5)  # a link that breaks ends its channels a moment before it says so
                if not transport.is_active():
                    raise EOFError("the link broke")
            return Completed(channel.exit_status, output, bytes(errors))

    def _read_output(self, channel: paramiko.Channel, command: str) -> bytes:
        output = bytearray()
        while chunk := channel.recv(CHUNK_BYTES):
            output += chunk
            self.downloaded += len(chunk)
            if len(output) > ANSWER_MAX_BYTES:
                raise IntegrityError(f"the machine answered `{command[:40]}` with more than {ANSWER_MAX_BYTES} bytes")
        return bytes(output)

    def _files(self) -> paramiko.SFTPClient:
        transport = self._link()
        if self._sftp is None:
            from .border.reading import Files

            self._sftp = Files.from_transport(transport)
            if self._sftp is None:
                raise EOFError("the machine opened no file channel")
            channel = self._sftp.get_channel()
            assert channel is not None
            channel.settimeout(self.silence_s)
        return self._sftp

    def _copy(self, file: paramiko.SFTPFile, out: IO[bytes], size: int, target: Path, moved: Callable[[int], None]) -> None:
        left = size
        while left > 0:
            chunk = file.read(min(PACKET_BYTES, left))
            if not chunk:
                file.stat()  # paramiko reads a broken link as the end of the file: this raises what is so
                raise CutShort(f"a file on the machine ends {left} bytes early")
            with on_this_computer(target):
                out.write(chunk)
                out.flush()
            left -= len(chunk)
            self.downloaded += len(chunk)
            moved(len(chunk))

    def _link(self) -> paramiko.Transport:
        if self._transport is not None and self._transport.is_active():
            return self._transport
        self.close()
        import paramiko

        from .border.reading import MOST_GREETING_BYTES, NONSENSE, bound

        logging.getLogger("paramiko").addHandler(_NO_LOG)  # else every cut prints a traceback on the user's terminal
        line = _Line.to(self.endpoint, self.silence_s)
        line.most_bytes = MOST_GREETING_BYTES
        transport = paramiko.Transport(line)
        bound(transport)
        transport.banner_timeout = transport.auth_timeout = transport.channel_timeout = self.silence_s
        allowed = transport.get_security_options()
        allowed.ciphers = [name for name in CIPHERS if name in allowed.ciphers]
        allowed.digests = [name for name in DIGESTS if name in allowed.digests]
        try:
            transport.start_client(timeout=self.silence_s)
            self._pin(transport.get_remote_server_key())
            transport.auth_publickey(self.endpoint.user, paramiko.Ed25519Key.from_private_key_file(str(self.keys.private)))
        except NONSENSE as err:
            transport.close()
            raise paramiko.SSHException(f"what it says is no SSH: {type(err).__name__}") from err
        except BaseException:
            transport.close()
            raise
        self._transport, line.most_bytes = transport, None
        threading.Thread(target=_ask, args=(transport, self.silence_s), daemon=True).start()
        threading.Thread(target=_hang_up, args=(transport, line, self.silence_s, self.heed), daemon=True).start()
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
                f"the machine at {host} shows another host key than before:"
                " it is not the machine that was rented, or somebody is in between",
                hint="nothing was sent to it; the machine is given back",
            )

    def _known_as(self) -> str:
        return self.endpoint.host if self.endpoint.port == 22 else f"[{self.endpoint.host}]:{self.endpoint.port}"

    def forget_host(self) -> None:
        """Unpin: for a new machine at an address that another one had."""
        if self.keys.known_hosts.exists():
            lines = self.keys.known_hosts.read_text().splitlines(keepends=True)
            self.keys.known_hosts.write_text("".join(x for x in lines if x.split(" ", 1)[0] != self._known_as()))

    def openssh(self) -> list[str]:
        """The `ssh` command that rsync uses, with the same key, the same pin and nothing of the user's own."""
        options = {
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "PreferredAuthentications": "publickey",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UserKnownHostsFile": str(self.keys.known_hosts),
            "GlobalKnownHostsFile": "none",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "UpdateHostKeys": "no",
            "Ciphers": ",".join(CIPHERS),
            "MACs": ",".join(DIGESTS),
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


def _nonsense() -> tuple[type[BaseException], ...]:
    """What paramiko raises over answers that make no sense."""
    from .border.reading import NONSENSE

    return NONSENSE


@contextlib.contextmanager
def on_this_computer(path: Path) -> Iterator[None]:
    """Trouble with a file on this computer must not be taken for the machine's."""
    try:
        yield
    except OSError as err:
        raise LocalTrouble(
            f"{path} on this computer: {err.strerror or err}", hint="free some space there, or see to its permissions, then go on"
        ) from err


def _chunks(source: Path, start: int) -> Iterator[bytes]:
    with on_this_computer(source):
        file = source.open("rb")
    with file:
        file.seek(start)
        while True:
            with on_this_computer(source):
                chunk = file.read(CHUNK_BYTES)
            if not chunk:
                return
            yield chunk


def _size_of(files: paramiko.SFTPClient, path: str) -> int:
    try:
        return int(files.stat(path).st_size or 0)
    except FileNotFoundError:
        return 0


def _send_all(channel: paramiko.Channel, data: bytes) -> None:
    """Send, unless the command has ended without reading: then its exit status tells more than a broken pipe."""
    try:
        channel.sendall(data)
    except TimeoutError:
        raise
    except OSError as err:
        raise BrokenPipeError(str(err)) from err


def _keep_talk(channel: paramiko.Channel, kept: bytearray) -> None:
    """Read stderr to its end; the last words are those that matter."""
    with contextlib.suppress(OSError):
        while chunk := channel.recv_stderr(CHUNK_BYTES):
            kept += chunk
            del kept[:-CHUNK_BYTES]


class _Line(socket.socket):
    """A socket that remembers when it last heard anything."""

    heard_s = 0.0
    most_bytes: int | None = None
    """So much may still come; anything when None."""

    @classmethod
    def to(cls, endpoint: SSHEndpoint, timeout_s: float) -> _Line:
        made = socket.create_connection((endpoint.host, endpoint.port), timeout=timeout_s)
        _notice_silence(made)
        line = cls(fileno=made.detach())
        line.settimeout(timeout_s)
        line.heard_s = time.monotonic()
        return line

    def recv(self, count: int, flags: int = 0, /) -> bytes:
        data = super().recv(count, flags)
        self.heard_s = time.monotonic()
        if self.most_bytes is not None:
            self.most_bytes -= len(data)
            if self.most_bytes < 0:
                raise ConnectionError("it talks without end before it says who it is")
        return data


def _prefetch(file: paramiko.SFTPFile, size: int) -> None:
    """Ask for all of it at once. paramiko asks from a thread, which dies aloud on the user's terminal when the line is cut."""
    asks: Callable[..., None] = file._prefetch_thread  # noqa: SLF001

    def quietly(*args: object) -> None:
        with contextlib.suppress(*_link_errors()):  # the reader meets the same error, and acts on it
            asks(*args)

    file._prefetch_thread = quietly  # noqa: SLF001
    file.prefetch(size)


def _ask(transport: paramiko.Transport, silence_s: float) -> None:
    """Have the server say something now and then; OpenSSH answers this request with a no, which will do."""
    with contextlib.suppress(*_link_errors()):
        while transport.is_active():
            transport.global_request("keepalive@openssh.com")  # waits for the answer, or for the end of the link
            time.sleep(silence_s / 5)


def _hang_up(transport: paramiko.Transport, line: _Line, silence_s: float, heed: Callable[[], None]) -> None:
    """End a dead link, and one that is not to go on: whatever waits on it gets an error instead of waiting for ever."""
    while transport.is_active():
        try:
            heed()
        except Exception:  # noqa: BLE001  it is raised again where it is of use
            transport.close()
        if time.monotonic() - line.heard_s > silence_s:
            transport.close()
            return
        time.sleep(silence_s / 20)


def _words(err: BaseException) -> str:
    return str(err) or type(err).__name__


def _notice_silence(sock: socket.socket) -> None:
    """Ask the kernel to give up on unacknowledged bytes and to probe an idle line."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 20_000}
    for name, value in options.items():  # Linux has all, macOS and Windows some
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
