"""What goes to the machine, and how it gets there: a manifest of exact bytes, sent by rsync or SFTP, verified over there.

Nothing starts before the machine's own `sha256sum` agrees with the manifest. Only what the manifest lists
is sent: pictures and captions that the check has read, the parts of a base that the trainer loads, the
trainer itself. Every step can be cut and repeated.
"""

from __future__ import annotations

import hashlib
import os
import re
import selectors
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO

from . import commands
from .errors import DatasetError, Finding, MachineFailed
from .shell import Shell

BASE_SUFFIXES = frozenset({".json", ".txt", ".safetensors", ".model"})
"""What a diffusers folder is read from. Never pickles."""
STALL_S = 60.0
"""An rsync that moves nothing for so long is ended and started again; it goes on where it was."""
TRIES = 5
CHUNK_BYTES = 1024 * 1024

Moved = Callable[[int], None]
"""Told the bytes that have arrived since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file to send: `root/name` here becomes `folder/name` below the session's folder there."""

    root: Path
    name: str
    folder: str
    size: int
    sha256: str

    @property
    def source(self) -> Path:
        """Where it is on this computer."""
        return self.root / self.name

    @property
    def remote(self) -> str:
        """Where it goes, relative to the session's folder."""
        return f"{self.folder}/{self.name}" if self.folder else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """Everything that is sent, with its hashes."""

    items: tuple[Item, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(item.size for item in self.items)

    @property
    def manifest(self) -> bytes:
        """In the format of `sha256sum --check`."""
        return "".join(f"{item.sha256}  {item.remote}\n" for item in self.items).encode()

    @property
    def folders(self) -> set[str]:
        """Folders that must exist before."""
        return {item.remote.rpartition("/")[0] for item in self.items} | {"setup"}


def item(root: Path, name: str, folder: str) -> Item:
    """Look at a file and hash it."""
    source = root / name
    return Item(root=root, name=name, folder=folder, size=source.stat().st_size, sha256=hash_file(source))


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def items_below(root: Path, folder: str, *, suffixes: frozenset[str] | None = None) -> list[Item]:
    """Every regular, visible file below `root`; links are not followed."""
    found = [p for p in sorted(root.rglob("*")) if p.is_file() and not p.is_symlink()]
    names = [p.relative_to(root) for p in found]
    wanted = [n for n in names if not any(part.startswith((".", "__")) for part in n.parts[:-1]) and not n.name.startswith(".")]
    return [item(root, n.as_posix(), folder) for n in wanted if suffixes is None or n.suffix.lower() in suffixes]


def base_items(base: Path) -> tuple[str, list[Item]]:
    """The files of a base on this computer, and where the trainer finds it over there.

    Two jobs with the same base share it: its folder is named by its content.
    """
    files = [item(base.parent, base.name, "")] if base.is_file() else items_below(base, "", suffixes=BASE_SUFFIXES)
    digest = hashlib.sha256("".join(f"{f.sha256} {f.name}\n" for f in files).encode()).hexdigest()[:12]
    folder = f"bases/{digest}"
    moved = [Item(root=f.root, name=f.name, folder=folder, size=f.size, sha256=f.sha256) for f in files]
    return (f"{folder}/{base.name}" if base.is_file() else folder), moved


def send(shell: Shell, base: str, shipment: Shipment, moved: Moved, *, check: Callable[[], None]) -> None:
    """Send what is not there yet, and have the machine verify all of it. `check` raises to stop (Ctrl-C).

    Raises `DatasetError` when a file changed here while it was being sent, `MachineFailed` when the
    machine does not end up with the right bytes.
    """
    shell.check(commands.make_folders(base, shipment.folders))
    by_rsync = _local_rsync() is not None and shell.run(commands.has_rsync()).returncode == 0
    for attempt in range(1, TRIES + 1):
        if by_rsync:
            _send_by_rsync(shell, base, shipment, moved, check)
        else:
            _send_by_sftp(shell, base, shipment, moved, check)
        shell.check(commands.write(f"{base}/{commands.MANIFEST}"), stdin=shipment.manifest)
        done = shell.run(commands.verify(base), timeout_s=1800)
        if done.returncode == 0:
            return
        wrong = _refuted(done.stdout, shipment)
        _changed_here(wrong)
        if attempt < TRIES:
            shell.check(["rm", "-f", "--", *(f"{base}/{w.remote}" for w in wrong)])
    raise MachineFailed(f"{len(wrong)} files arrived damaged {TRIES} times, among them {wrong[0].remote if wrong else '(not told)'}")


def _refuted(stdout: bytes, shipment: Shipment) -> list[Item]:
    """The files that sha256sum named; all of them when it named none that we know."""
    named = {line.rpartition(":")[0] for line in stdout.decode(errors="replace").splitlines()}
    return [i for i in shipment.items if i.remote in named] or list(shipment.items)


def _changed_here(wrong: Iterable[Item]) -> None:
    findings = [
        Finding(
            code="LRY-DATA-CHANGED",
            path=str(w.source),
            message="changed while it was being sent",
            hint="let the folder rest, then run again",
        )
        for w in wrong
        if not w.source.exists() or hash_file(w.source) != w.sha256
    ]
    if findings:
        raise DatasetError(f"{len(findings)} files changed while they were being sent", findings)


# -- rsync -----------------------------------------------------------------------------------------


def _local_rsync() -> str | None:
    """rsync on this computer, when it is one that reports progress and reads lists (not macOS's own)."""
    program = shutil.which("rsync")
    if program is None or shutil.which("ssh") is None:
        return None
    words = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=20).stdout
    version = re.search(r"version (\d+)\.(\d+)", words)
    return program if version and (int(version[1]), int(version[2])) >= (3, 1) and "openrsync" not in words else None


def _send_by_rsync(shell: Shell, base: str, shipment: Shipment, moved: Moved, check: Callable[[], None]) -> None:
    def place(i: Item) -> tuple[str, str]:
        return (str(i.root), i.folder)

    for (root, folder), group in groupby(sorted(shipment.items, key=place), key=place):
        names = [i.name for i in group]
        target = f"{shell.endpoint.user}@{shell.endpoint.host}:{base}/{folder}/".replace("//", "/")
        for attempt in range(1, TRIES + 1):
            shell.connect()  # pins the host key before rsync says a word
            failed = _rsync(shell, Path(root), target, names, moved, check)
            if not failed:
                break
            if attempt == TRIES:
                raise MachineFailed(f"rsync failed {TRIES} times, last with: {failed}", hint="the line to this machine is bad")


def _rsync(shell: Shell, root: Path, target: str, names: Sequence[str], moved: Moved, check: Callable[[], None]) -> str:
    """One run of rsync. Returns what went wrong; empty when all is there."""
    argv = [
        _local_rsync() or "rsync",
        *("--times", "--no-links", "--no-devices", "--no-specials", "--protect-args", "--partial-dir=.rsync-partial"),
        *("--files-from=-", "--from0", "--info=progress2", "--no-human-readable", "--outbuf=L", "--timeout=30"),
        *("-e", " ".join(_for_rsync(word) for word in shell.openssh())),
        *("--", f"{root}/", target),
    ]
    with tempfile.TemporaryFile() as listing, tempfile.TemporaryFile() as talk:
        listing.write(b"".join(name.encode() + b"\0" for name in names))
        listing.seek(0)
        # A session of its own: Ctrl-C in the terminal is ours to act on, not rsync's.
        process = subprocess.Popen(argv, stdin=listing, stdout=subprocess.PIPE, stderr=talk, start_new_session=True)
        assert process.stdout is not None
        try:
            sent = _follow(process, process.stdout, moved, check)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        shell.uploaded += sent
        talk.seek(0)
        words = talk.read(4000).decode(errors="replace").strip().splitlines()
    return "" if process.returncode == 0 else (words[-1] if words else f"exit {process.returncode}")


def _follow(process: subprocess.Popen[bytes], stdout: IO[bytes], moved: Moved, check: Callable[[], None]) -> int:
    """Read rsync's progress until it ends; end it when nothing moves. Returns the bytes that it moved."""
    sent, pending, last_move = 0, b"", time.monotonic()
    os.set_blocking(stdout.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            check()
            if selector.select(timeout=0.2):
                chunk = stdout.read(65536)
                if chunk == b"":
                    break
                pending += chunk or b""
                *lines, pending = re.split(rb"[\r\n]", pending)
                for line in lines:
                    total = re.match(rb"\s*([\d,]+)\s+\d+%", line)
                    now_sent = int(total[1].replace(b",", b"")) if total else sent
                    if now_sent > sent:
                        moved(now_sent - sent)
                        sent, last_move = now_sent, time.monotonic()
            if time.monotonic() - last_move > STALL_S:
                process.kill()
                break
    process.wait()
    return sent


def _for_rsync(word: str) -> str:
    """rsync splits `-e` at spaces and knows quotes, but no backslashes."""
    return word if shlex.quote(word) == word else '"' + word.replace('"', '""') + '"'


# -- SFTP, where rsync is missing ------------------------------------------------------------------


def _send_by_sftp(shell: Shell, base: str, shipment: Shipment, moved: Moved, check: Callable[[], None]) -> None:
    for one in shipment.items:
        check()
        remote = f"{base}/{one.remote}"
        if shell.size(remote) == one.size:
            continue  # a wrong one is found by the verification
        shell.put(one.source, remote, moved=moved)
