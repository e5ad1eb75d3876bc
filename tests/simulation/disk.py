"""A disk in memory, and what a power cut leaves of it. As much of `pathlib.Path` and `os` as the ledger and the run's folder use.

What a process reads is `files`. What is sure to be there after a power cut is what was synced: the bytes of a file by syncing it, its
name by syncing its folder. Of everything else any part may be left.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from random import Random
from types import SimpleNamespace
from typing import Any, Self

from .effects import PHASE_AFTER, Crash, Effects

MOST_ZEROS = 9
"""Bytes of nothing that a torn write may leave behind."""


class Disk:
    """Files by name, and what of them could still be lost."""

    def __init__(self, world: Effects) -> None:
        self.world = world
        self.files: dict[str, bytes] = {}
        self.unsynced: dict[str, bytes] = {}
        """Name -> the bytes that are sure, of files whose last bytes are not."""
        self.unnamed: dict[str, bytes | None] = {}
        """Name -> what stood under it before; None: nothing. Until the folder is synced the old may come back."""
        self.writes = 0
        self.full = (0, 0)
        """Writes, by number, that find no room."""

    def power_cut(self) -> None:
        """Of what was not synced, any part is left."""
        rng = self.world.rng
        for name, sure in self.unsynced.items():
            if name in self.files:
                self.files[name] = torn(self.files[name], len(sure) if self.files[name].startswith(sure) else 0, rng)
        for name, before in self.unnamed.items():
            if rng.random() < 0.5:
                self.files.pop(name, None)
                if before is not None:
                    self.files[name] = before
        self.unsynced.clear()
        self.unnamed.clear()

    def has_room(self) -> None:
        """Raise what a full disk raises, while it is full."""
        self.writes += 1
        if self.full[0] <= self.writes < self.full[1]:
            self.world.hit("disk full")
            raise OSError(28, "No space left on device")

    def written(self, name: str, data: bytes, before: bytes) -> None:
        """A process put these bytes there; nothing is synced."""
        if name not in self.files:
            self.unnamed.setdefault(name, None)
        self.unsynced.setdefault(name, before)
        self.files[name] = data

    def sync(self, name: str) -> None:
        self.unsynced.pop(name, None)

    def sync_folder(self, folder: str) -> None:
        for name in [n for n in self.unnamed if n.rpartition("/")[0] == folder]:
            del self.unnamed[name]


def torn(data: bytes, sure: int, rng: Random) -> bytes:
    """The first `sure` bytes and any part of the rest, sometimes with zeros for what was not written."""
    kept = data[: rng.randrange(sure, len(data) + 1)]
    return kept + (bytes(rng.randrange(MOST_ZEROS)) if rng.random() < 0.2 else b"")


class Name:
    """A path on the disk."""

    __slots__ = ("disk", "full")

    def __init__(self, disk: Disk, full: str) -> None:
        self.disk, self.full = disk, full

    def __truediv__(self, below: str) -> Name:
        return Name(self.disk, f"{self.full}/{below}")

    def joinpath(self, *parts: str) -> Name:
        return Name(self.disk, "/".join((self.full, *parts)))

    def __str__(self) -> str:
        return self.full

    @property
    def name(self) -> str:
        return self.full.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def parent(self) -> Name:
        return Name(self.disk, self.full.rpartition("/")[0])

    def with_name(self, name: str) -> Name:
        return self.parent / name

    def relative_to(self, above: Name) -> str:
        return self.full.removeprefix(above.full + "/")

    def exists(self) -> bool:
        return self.full in self.disk.files

    is_file = exists

    def is_symlink(self) -> bool:
        return False  # nobody makes links here

    def is_dir(self) -> bool:
        return any(name.startswith(self.full + "/") for name in self.disk.files)

    def glob(self, pattern: str) -> Iterator[Name]:
        """One star."""
        before, _, behind = pattern.partition("*")
        for name in list(self.disk.files):
            if name.startswith(f"{self.full}/{before}") and name.endswith(behind):
                yield Name(self.disk, name)

    def stat(self) -> Any:
        return SimpleNamespace(st_size=len(self.read_bytes()))

    def read_bytes(self) -> bytes:
        try:
            return self.disk.files[self.full]
        except KeyError:
            raise FileNotFoundError(2, "No such file", self.full) from None

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def mkdir(self, **_: Any) -> None:
        """Folders are there."""

    def unlink(self, *, missing_ok: bool = False) -> None:
        if self.full not in self.disk.files:
            if missing_ok:
                return
            raise FileNotFoundError(2, "No such file", self.full)
        self.disk.world.effect("unlink")
        self.disk.unnamed.setdefault(self.full, self.disk.files.pop(self.full))
        self.disk.unsynced.pop(self.full, None)

    def replace(self, target: Name) -> None:
        disk = self.disk
        disk.world.effect("rename")
        before = disk.files.get(target.full)
        if self.full in disk.unsynced:  # its bytes are as unsure under the new name
            disk.unsynced[target.full] = disk.unsynced.pop(self.full)
        disk.files[target.full] = disk.files.pop(self.full)
        disk.unnamed.pop(self.full, None)
        disk.unnamed.setdefault(target.full, before)
        disk.world.effect("renamed")

    def open(self, mode: str) -> Any:
        return _Reading(self) if mode == "rb" else _Writing(self, fresh=mode == "wb")


class _Reading(io.BytesIO):
    """A file open for reading; it can be synced like any other."""

    def __init__(self, name: Name) -> None:
        super().__init__(name.read_bytes())
        self.of = name

    def fileno(self) -> Any:
        return self


class _Writing:
    """A file open for writing. What was written is seen by others when it is flushed, and sure when it is synced."""

    __slots__ = ("data", "fresh", "of")

    def __init__(self, name: Name, *, fresh: bool) -> None:
        self.of, self.fresh, self.data = name, fresh, b""
        if name.full not in name.disk.files:
            name.disk.files[name.full] = b""
            name.disk.unnamed.setdefault(name.full, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.data:
            self.flush()

    def write(self, data: bytes) -> None:
        self.data += data

    def flush(self) -> None:
        """Not yet on the platter. A process that dies here leaves any part of it."""
        disk, full = self.of.disk, self.of.full
        before = b"" if self.fresh else disk.files.get(full, b"")
        data, self.data, self.fresh = self.data, b"", False
        try:
            disk.has_room()
            disk.world.effect("write")
        except (OSError, Crash) as cut:
            if isinstance(cut, Crash):
                disk.world.hit("torn write", f"torn: {full}")
            disk.written(full, torn(before + data, len(before), disk.world.rng), before)
            disk.unsynced.pop(full, None)  # that is all that can be left
            raise
        disk.written(full, before + data, before)
        if full.endswith("/ledger.jsonl"):
            kind = data.partition(b'"kind":"')[2].partition(b'"')[0].decode()
            if kind in PHASE_AFTER:
                disk.world.enter(PHASE_AFTER[kind])

    def fileno(self) -> _Writing:
        return self


class SimOs:
    """Stands where `os` stands."""

    name = "posix"
    SEEK_END = io.SEEK_END
    O_RDONLY, O_WRONLY, O_CREAT, O_EXCL = 0, 1, 64, 128

    @staticmethod
    def open(name: Name, *_: int) -> Name:
        return name

    @staticmethod
    def fdopen(name: Name, mode: str) -> Any:
        return name.open(mode)

    @staticmethod
    def close(_: Name) -> None:
        """Nothing is open."""

    @staticmethod
    def fsync(what: Any) -> None:
        if isinstance(what, Name):
            what.disk.world.effect("sync folder")
            what.disk.sync_folder(what.full)
        else:
            disk = what.of.disk
            disk.world.effect("sync")
            disk.sync(what.of.full)
            disk.world.effect("synced")

    @staticmethod
    def truncate(name: Name, length: int) -> None:
        data = name.read_bytes()
        if length != len(data):
            name.disk.written(name.full, data[:length], data[:length])
