"""Files that are either whole or not there. Knows nothing of what is in them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Written:
    """A file that is complete on the disk."""

    path: Path
    size: int
    sha256: str


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> Written:
    """Write beside, flush to the disk, rename, flush the folder: a reader sees the old file or the new one, also after a power cut.

    `durable=False` leaves out the flushing, for what can be made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    if durable:
        _sync_folder(path.parent)
    return Written(path, len(data), hashlib.sha256(data).hexdigest())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; its rename is durable enough
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
