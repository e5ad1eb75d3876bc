"""The hash of a file that is still coming in: read behind its writer, so that it is there when the last byte is."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

CHUNK_BYTES = 1024 * 1024
LOOK_S = 0.05


@contextlib.contextmanager
def hashed_behind(path: Path) -> Iterator[Callable[[], str]]:
    """A function for after the last byte is written: the SHA-256 of all that stands in the file, also of what stood there before.

    The file may appear late and may grow; one that is taken away and begun anew meanwhile is hashed once more at the end.
    """
    whole = threading.Event()
    digest, seen = hashlib.sha256(), [0, 0]  # bytes, and the file's number

    def follow() -> None:
        while not path.exists():
            if whole.wait(LOOK_S):
                return
        with contextlib.suppress(OSError), path.open("rb") as file:
            seen[1] = path.stat().st_ino
            while True:
                is_whole = whole.is_set()  # looked at before reading: what is written after it is read by the next turn
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    seen[0] += len(chunk)
                if is_whole:
                    return
                whole.wait(LOOK_S)

    follower = threading.Thread(target=follow, daemon=True)

    def told() -> str:
        whole.set()
        follower.join()
        now = path.stat()
        if (now.st_size, now.st_ino) == (seen[0], seen[1]):
            return digest.hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    follower.start()
    try:
        yield told
    finally:
        whole.set()
        follower.join()
