"""`measured.jsonl` in lorry's home: a line for each machine of each run, appended, never changed.

A line that is torn, of a newer version or not ours is passed over. When the file has grown to `MOST_BYTES` it becomes
`measured.old.jsonl`, in the place of the one before, and a new one is begun: what is kept is bounded, and the newest of it is never
lost. A disk that is full costs a lesson, never a run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from .lessons import Lessons
from .records import Record

FILE, OLD = "measured.jsonl", "measured.old.jsonl"
MOST_BYTES = 2 * 1024 * 1024
"""About a thousand machines."""


class Measured:
    """What was seen. Without a path, for as long as this process lives."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._here: list[Record] = []

    def records(self) -> list[Record]:
        """Every machine of which something is known, once each, in the order in which they were written."""
        found: dict[tuple[str, int], Record] = {}
        for record in self._read():
            found[record.key] = record
        return list(found.values())

    def add(self, records: Iterable[Record]) -> None:
        """Append what is not in there yet. Never raises: what cannot be written is not learnt."""
        known = {record.key for record in self._read()}
        new = [record for record in records if record.key not in known]
        if not new:
            return
        if self._path is None:
            self._here += new
            return
        with contextlib.suppress(OSError):
            self._append(self._path, b"".join(record.model_dump_json().encode() + b"\n" for record in new))

    def lessons(self) -> Lessons:
        """What all of it teaches."""
        return Lessons.of(self.records())

    def _append(self, path: Path, lines: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists() and path.stat().st_size + len(lines) > MOST_BYTES:
            path.replace(path.with_name(OLD))
        whole = path.read_bytes()[-1:] in {b"", b"\n"} if path.exists() else True
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "ab") as file:  # one write, so that the lines of two runs that end at once do not mix
            file.write(lines if whole else b"\n" + lines)  # a torn line must not swallow the next

    def _read(self) -> list[Record]:
        if self._path is None:
            return self._here
        raw = b""
        for path in (self._path.with_name(OLD), self._path):
            with contextlib.suppress(OSError), path.open("rb") as file:
                raw += file.read(2 * MOST_BYTES) + b"\n"
        return [record for line in raw.split(b"\n") if (record := _record(line)) is not None]


def _record(line: bytes) -> Record | None:
    if not line.strip():
        return None
    try:
        return Record.model_validate_json(line)
    except ValidationError:
        return None
