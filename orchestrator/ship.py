"""What goes to the machine, and how it gets there: a manifest of exact bytes, sent by rsync or SFTP, verified over there.

Nothing starts before the machine's own `sha256sum` agrees with the manifest. Only what the manifest lists
is sent: pictures and captions that the check has read, the parts of a base that the trainer loads, the
trainer itself. Every step can be cut and repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import IO

from . import commands, confine
from .border.words import one_line
from .errors import DatasetError, Finding, MachineFailed, UsageError
from .shell import CommandFailed, LocalTrouble, Shell

BASES = "bases"
"""Where bases lie in the session's folder."""
BASE_SUFFIXES = frozenset({".json", ".txt", ".safetensors", ".model", ".jinja"})
"""What a diffusers folder is read from. Never pickles."""
STALL_S = 60.0
"""An rsync that moves nothing for so long is ended and started again; it goes on where it was."""
TRIES = 5
RSYNC_TRIES = 20
"""In a row, none of which got a byte on. Before each one the machine has let us in again, so the line is not simply down."""
RSYNC_STARTS = 500
"""In all for one folder: a machine that takes some and dies, over and over, seems to get on each time."""
NO_USE = frozenset({1, 2, 3, 4, 6, 11, 13, 14, 21, 22, 23})
"""Exits of rsync that another try does not mend: usage, files, disk. The others are the line's."""
PROGRESS = re.compile(rb"\s*(\d[\d,]{0,23})\s+\d+%")
MOST_WORDS = 500
LONGEST_LINE_BYTES = 4096
"""The machine can have its own words printed among rsync's: no line of progress is so long."""
CONFINE = Path(confine.__file__)
"""Started as a program of its own before rsync, which reads what is sent and nothing else where the kernel sees to that."""

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
        return "".join(f"{_manifest_line(item.sha256, item.remote)}\n" for item in self.items).encode()

    @property
    def folders(self) -> set[str]:
        """Folders that must exist before."""
        return {item.remote.rpartition("/")[0] for item in self.items} | {"setup"}


def _manifest_line(digest: str, name: str) -> str:
    """As sha256sum writes it: a name with a backslash or a line break is escaped, and the line says so."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
    return f"{digest}  {name}" if escaped == name else f"\\{digest}  {escaped}"


def item(root: Path, name: str, folder: str, *, follow: bool = False) -> Item:
    """Look at a file and hash it.

    Raises `DatasetError` for a link, unless told to follow: what it points to was not asked to be sent. The folder that the user named, the
    first of `name`, may be one. And for what is no file, say a pipe, which could be read for ever.
    """
    source = root / name
    on_the_way = [source, *list(source.parents)[: max(0, len(Path(name).parts) - 2)]]
    if not follow and (links := [path for path in on_the_way if path.is_symlink()]):
        raise _not_sent("LRY-DATA-LINK", links[-1], "is a link", "put the file itself there; links are not followed")
    if not source.is_file():
        raise _not_sent("LRY-DATA-CHANGED", source, "is no file (any more)", "let the folder rest, then run again")
    return Item(root=root, name=name, folder=folder, size=source.stat().st_size, sha256=hash_file(source))


def _not_sent(code: str, path: Path, message: str, hint: str) -> DatasetError:
    return DatasetError(f"{path} {message}", [Finding(code=code, path=str(path), message=message, hint=hint)])


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def items_below(root: Path, folder: str, *, suffixes: frozenset[str] | None = None, follow: bool = False) -> list[Item]:
    """Every regular, visible file below `root`; links are left out, or followed when told to."""
    found = [p for p in sorted(root.rglob("*")) if p.is_file() and (follow or not p.is_symlink())]
    names = [p.relative_to(root) for p in found]
    wanted = [n for n in names if not any(part.startswith((".", "__")) for part in n.parts[:-1]) and not n.name.startswith(".")]
    return [item(root, n.as_posix(), folder, follow=follow) for n in wanted if suffixes is None or n.suffix.lower() in suffixes]


def base_items(base: Path) -> tuple[str, list[Item]]:
    """The files of a base on this computer, and where the trainer finds it over there.

    Two jobs with the same base share it: its folder is named by its content. Links are followed here, unlike in a
    dataset: a hub's cache holds nothing else, and what they point to is what the trainer would load.
    """
    if base.is_file():
        files = [item(base.parent, base.name, "", follow=True)]
        if (beside := base.with_suffix(".config")).is_dir():  # what the trainer takes of a file that does not hold it
            below = items_below(beside, "", suffixes=BASE_SUFFIXES, follow=True)
            files += [replace(f, root=base.parent, name=f"{beside.name}/{f.name}") for f in below]
    else:
        files = items_below(base, "", suffixes=BASE_SUFFIXES, follow=True)
    if not files:
        raise UsageError(f"nothing in {base} can be sent", hint=f"a base is read from {', '.join(sorted(BASE_SUFFIXES))} files")
    digest = hashlib.sha256("".join(f"{f.sha256} {f.name}\n" for f in files).encode()).hexdigest()[:12]
    folder = f"{BASES}/{digest}"
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
        if not wrong:
            words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            told = one_line(words[-1], most=MOST_WORDS) if words else f"exit {done.returncode}"
            raise MachineFailed(f"the machine could not verify what it got: {told}")
        _changed_here(wrong)
        if attempt < TRIES:
            shell.check(commands.remove(base), stdin=b"".join(w.remote.encode() + b"\0" for w in wrong))
    raise MachineFailed(f"{len(wrong)} files arrived damaged {TRIES} times, among them {wrong[0].remote}")


def _refuted(stdout: bytes, shipment: Shipment) -> list[Item]:
    """The files that sha256sum named."""
    named = set()
    for line in stdout.decode(errors="surrogateescape").splitlines():
        name = line.rpartition(": FAILED")[0]
        named.add(re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], name[1:]) if name.startswith("\\") else name)
    return [i for i in shipment.items if i.remote in named]


def _changed_here(items: Iterable[Item], *, closely: bool = True) -> None:
    """Raise `DatasetError` when files are no longer what the manifest says; without `closely` only their sizes are looked at."""
    findings = [
        Finding(
            code="LRY-DATA-CHANGED",
            path=str(i.source),
            message="changed while it was being sent",
            hint="let the folder rest, then run again",
        )
        for i in items
        if not i.source.is_file() or i.source.stat().st_size != i.size or (closely and hash_file(i.source) != i.sha256)
    ]
    if findings:
        raise DatasetError(f"{len(findings)} files changed while they were being sent", findings)


# -- rsync -----------------------------------------------------------------------------------------


def _local_rsync() -> str | None:
    """rsync on this computer, when it is one that reports progress and reads lists (not macOS's own)."""
    program = shutil.which("rsync")
    if program is None or shutil.which("ssh") is None:
        return None
    words = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=20, env=_environment()).stdout
    version = re.search(r"version (\d+)\.(\d+)", words)
    return program if version and (int(version[1]), int(version[2])) >= (3, 1) and "openrsync" not in words else None


def _send_by_rsync(shell: Shell, base: str, shipment: Shipment, moved: Moved, check: Callable[[], None]) -> None:
    def place(i: Item) -> tuple[str, str]:
        return (str(i.root), i.folder)

    for (root, folder), group in groupby(sorted(shipment.items, key=place), key=place):
        items = list(group)
        target = f"{shell.endpoint.user}@{shell.endpoint.host}:{base}/{folder}/".replace("//", "/")
        failures = starts = 0
        while failures < RSYNC_TRIES and starts < RSYNC_STARTS:
            shell.connect()  # pins the host key before rsync says a word
            links = "--copy-links" if folder.startswith(f"{BASES}/") else "--no-links"
            sent, code, words = _rsync(shell, Path(root), target, items, links, moved, check)
            if code == 0:
                break
            _changed_here(items, closely=False)
            if code in NO_USE:
                raise MachineFailed(f"rsync could not write on the machine: {words}")
            failures, starts = 0 if sent else failures + 1, starts + 1
            shell.close()  # a new login sees whether it is the same machine
        else:
            raise MachineFailed(f"rsync failed {starts} times, last with: {words}", hint="the line to this machine is bad")


def _environment() -> dict[str, str]:
    """All that rsync and its ssh need of ours: keys and tokens stand there too, and are none of their business."""
    needed = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
    return {name: os.environ[name] for name in needed if name in os.environ}


def _rsync(
    shell: Shell, root: Path, target: str, items: Sequence[Item], links: str, moved: Moved, check: Callable[[], None]
) -> tuple[int, int, str]:
    """One run of rsync: the bytes that it moved, its exit code, and its words when it failed."""
    argv = [
        *(sys.executable, "-I", "-S", str(CONFINE), str(root), str(shell.keys.private), str(shell.keys.known_hosts), "--"),
        _local_rsync() or "rsync",
        *("--times", links, "--no-devices", "--no-specials", "--no-implied-dirs", "--protect-args", "--partial-dir=.rsync-partial"),
        *("--files-from=-", "--from0", "--info=progress2", "--no-human-readable", "--outbuf=L", "--timeout=30"),
        *("-e", " ".join(_for_rsync(word) for word in shell.openssh())),
        *("--", f"{root}/", target),
    ]
    with tempfile.TemporaryFile() as listing, tempfile.TemporaryFile() as talk:
        listing.write(b"".join(b"./" + os.fsencode(i.name) + b"\0" for i in items))  # bare, "#x" and ";x" would be comments
        listing.seek(0)
        # A session of its own: Ctrl-C in the terminal is ours to act on, not rsync's.
        process = subprocess.Popen(argv, stdin=listing, stdout=subprocess.PIPE, stderr=talk, start_new_session=True, env=_environment())
        assert process.stdout is not None
        try:
            sent = _follow(process, process.stdout, sum(i.size for i in items), moved, check)
        finally:
            _end(process)
            process.stdout.close()
        shell.uploaded += sent
        talk.seek(0)
        words = talk.read(4000).decode(errors="replace").strip().splitlines()
    told = [line for line in words if line.startswith("rsync: ")] or words[-1:] or [f"exit {process.returncode}"]
    return sent, process.returncode, one_line(told[0], most=MOST_WORDS) or f"exit {process.returncode}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End rsync if it still runs, and the ssh that it started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()


def _follow(process: subprocess.Popen[bytes], stdout: IO[bytes], most: int, moved: Moved, check: Callable[[], None]) -> int:
    """Read rsync's progress until it ends; end it when nothing moves. Returns the bytes that it moved, never more than `most`."""
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
                pending = pending[-LONGEST_LINE_BYTES:]
                for line in lines:
                    total = PROGRESS.match(line)
                    now_sent = min(most, int(total[1].replace(b",", b""))) if total else sent
                    if now_sent > sent:
                        moved(now_sent - sent)
                        sent, last_move = now_sent, time.monotonic()
            if time.monotonic() - last_move > STALL_S:
                _end(process)
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
        try:
            shell.put(one.source, remote, moved=moved)
        except (CommandFailed, LocalTrouble):
            _changed_here([one], closely=False)
            raise
