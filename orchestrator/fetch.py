"""Bringing files home: staged, hashed, looked into, then renamed. Nothing arrives under its final name unverified.

What is fetched is exactly what the `Committed` events list. The other side is a stranger's machine: names are
checked, links are never made or followed, sizes are known beforehand, and what is in a file is looked at before
it gets its name. `border/` says what is believed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.protocol import Committed

from .border import pictures, weights
from .border.weights import Unsound
from .crashpoints import crashpoint
from .errors import IntegrityError
from .hashing import hashed_behind
from .home import RunFolder
from .ledger import sync_folder
from .shell import CommandFailed, CutShort, Shell, on_this_computer
from .ship import hash_file

MOST_BYTES = {"adapter": 4 * 1024**3, "checkpoint": 16 * 1024**3, "sample": pictures.MOST_BYTES}
"""None of ours is larger; a checkpoint holds its adapter's optimizer too."""
ROOM_BYTES = 1024**3
"""What a fetched file must leave free on this computer's disk."""
PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
DEVICES = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
"""Names that are no files to Windows, whatever stands behind the dot. A job's name the user chose."""
SUFFIXES = {"adapter": {".safetensors"}, "checkpoint": {".safetensors"}, "sample": {".png"}}
FOLDERS = {"checkpoints", "samples"}
TRIES = 3


class Damaged(IntegrityError):
    """A file is not what the machine said, or not what ours are; the others may be good."""

    code = "LRY-DAMAGED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A file at home, verified."""

    committed: Committed
    path: Path


def home_path(folder: RunFolder, committed: Committed) -> Path:
    """Where a committed file belongs: `jobs/lisa/out/samples/x.png` comes to `jobs/lisa/samples/x.png`.

    Raises `Damaged` for a name that no trainer of ours writes.
    """
    parts = committed.path.split("/")
    proper = (
        (len(parts) == 4 or (len(parts) == 5 and parts[3] in FOLDERS))
        and parts[0] == "jobs"
        and parts[1] == committed.job
        and parts[2] == "out"
        and all(PART.fullmatch(part) for part in parts)
        and (not DEVICES.match(parts[-1]) or parts[-1].startswith(committed.job))
        and Path(parts[-1]).suffix in SUFFIXES[committed.role]
    )
    if not proper:
        raise Damaged(f"the machine lists a file that is none of ours: {committed.path}")
    if committed.size > MOST_BYTES[committed.role]:
        raise Damaged(f"the machine says that {committed.path} has {committed.size} bytes; nothing of ours is that large")
    return folder.job(committed.job).joinpath(*parts[3:])


def is_home(folder: RunFolder, committed: Committed) -> bool:
    """Whether this very content is at home under its final name."""
    path = home_path(folder, committed)
    return path.is_file() and path.stat().st_size == committed.size and hash_file(path) == committed.sha256


def fetch(
    shell: Shell, base: str, folder: RunFolder, committed: Committed, *, moved: Callable[[int], None] = lambda _: None
) -> Arrived | None:
    """Bring one file home. None when the machine no longer has it (a newer one took its place).

    Raises `Damaged` when its bytes are not what was listed, after `TRIES`, and `LocalTrouble` when it would fill the disk.
    """
    final = home_path(folder, committed)
    part = _staged(folder, committed)
    for _ in range(TRIES):
        try:
            with hashed_behind(part) as digest:
                shell.fetch(f"{base}/{committed.path}", part, size=committed.size, moved=moved)
                sha256 = digest()
        except CutShort:
            part.unlink(missing_ok=True)
            continue
        except CommandFailed:
            part.unlink(missing_ok=True)
            return None
        if sha256 == committed.sha256:
            look_into(part, committed)
            crashpoint("staged")
            _move_in(part, final)
            return Arrived(committed=committed, path=final)
        part.unlink()
    raise Damaged(f"{committed.path} arrived damaged {TRIES} times: the bytes are not those that the machine listed")


def _staged(folder: RunFolder, committed: Committed) -> Path:
    """Where it is put until it is believed: a plain file, or nothing yet."""
    staging = folder.path / "staging"
    with on_this_computer(staging):
        staging.mkdir(mode=0o700, exist_ok=True)
        part = staging / f"{committed.sha256}.part"
        if part.is_symlink():
            part.unlink()
        if shutil.disk_usage(staging).free < committed.size + ROOM_BYTES:
            raise OSError(28, f"{committed.size / 1e9:.1f} GB more would leave less than {ROOM_BYTES / 1e9:.0f} GB free")
    return part


def _move_in(part: Path, final: Path) -> None:
    with on_this_computer(final):
        with part.open("rb") as file:
            os.fsync(file.fileno())
        final.parent.mkdir(parents=True, exist_ok=True)
        part.replace(final)
        sync_folder(final.parent)


def look_into(path: Path, committed: Committed) -> None:
    """Refuse a file that is not of the kind that its role promises. Raises `Damaged`."""
    try:
        (pictures if committed.role == "sample" else weights).look(path)
    except Unsound as err:
        path.unlink()
        raise Damaged(f"{committed.path} is not what it must be: {err}") from err
