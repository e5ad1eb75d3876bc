"""Whether a file of weights that a stranger made is one: a header of sane size, types that are known, and numbers that are numbers.

Needs no numpy: `lorry` without the trainer fetches too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from trainer import header
from trainer.header import Entry, Malformed

MOST_HEADER_BYTES = 8 * 1024 * 1024
"""The largest that our trainer writes is under one: three thousand tensors, and its words about itself."""
AT_ONCE = 4 * 1024 * 1024

_LOOKS = {
    "F64": (8, ((7, range(0x7F, 0x80)), (6, range(0xF0, 0x100)))),
    "F32": (4, ((3, range(0x7F, 0x80)), (2, range(0x80, 0x100)))),
    "BF16": (2, ((1, range(0x7F, 0x80)), (0, range(0x80, 0x100)))),
    "F16": (2, ((1, range(0x7C, 0x80)),)),
    "F8_E5M2": (1, ((0, range(0x7C, 0x80)),)),
    "F8_E4M3": (1, ((0, range(0x7F, 0x80)),)),
}
"""A type's bytes, and which of them hold what where every bit of the exponent is set: that is no finite number. Signs left aside."""


class Unsound(ValueError):
    """The file is not what it must be; the words end a sentence that begins with its name."""


def look(path: Path) -> None:
    """Raise `Unsound` unless the file is safetensors of known types, whole, and all of it finite."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            length = header.length(file.read(8), size, most=MOST_HEADER_BYTES)
            tensors = header.parse(file.read(length), size - 8 - length).tensors
        except Malformed as err:
            raise Unsound(f"it {err}") from err
        if strange := sorted({entry.dtype for entry in tensors.values()} - header.DTYPE_BYTES.keys()):
            raise Unsound(f"it holds numbers of a type that is not known: {strange[0][:20]!r}")
        for name, entry in tensors.items():
            if entry.dtype in _LOOKS and not all(_finite(piece, entry.dtype) for piece in _pieces(file, 8 + length, entry)):
                raise Unsound(f"the numbers in {name[:80]!r} are not all finite: the training that made them broke")


def _pieces(file: IO[bytes], begin: int, entry: Entry) -> Iterator[bytes]:
    file.seek(begin + entry.start)
    left = entry.end - entry.start
    while left > 0 and (piece := file.read(min(AT_ONCE, left))):  # a multiple of every type's size
        left -= len(piece)
        yield piece


def _finite(data: bytes, dtype: str) -> bool:
    """By bytes, not number by number: one pass over the highest bytes, a second only where one of them could be of no number."""
    count, (first, *rest) = _LOOKS[dtype]
    found = _marked(data[first[0] :: count], first[1])
    if 1 not in found:
        return True
    marks = int.from_bytes(found, "little")
    for place, values in rest:
        marks &= int.from_bytes(_marked(data[place::count], values, signed=False), "little")
    return not marks


def _marked(column: bytes, values: range, *, signed: bool = True) -> bytes:
    """A 1 for each byte of the column that is one of the values; `signed`: whatever its highest bit."""
    hits = bytearray(256)
    for value in values:
        hits[value] = 1
        if signed:
            hits[value | 0x80] = 1
    return column.translate(hits)
