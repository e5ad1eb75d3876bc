"""The header of a safetensors file, strictly. PURE: bytes in, entries out, or a fact that is wrong with them.

The standard's library reads the same files; this one reads them where there is no such library, and before anything else looks at
a file that a stranger made. Whatever two readers could understand differently is refused: keys that stand twice, tensors that
overlap, bytes that belong to none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, NoReturn

MOST_BYTES = 100 * 1024 * 1024
"""As the safetensors library: no header is larger."""
MOST_DIMENSIONS = 16
MOST_COUNT = 2**63 - 1
"""No size or offset is larger in any reader that counts in 64 bits."""

DTYPE_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
"""Types by the format's names; of one that is not here the length is not known."""


class Malformed(ValueError):
    """The bytes are no header; the words end a sentence that begins with the file's name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor, and where it lies behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """All that a file says before its first tensor."""

    tensors: Mapping[str, Entry]
    """In the order in which they lie in the file."""
    metadata: Mapping[str, str]


def length(prefix: bytes, size: int, *, most: int = MOST_BYTES) -> int:
    """Bytes of the header, from the file's first eight and its size."""
    told = int.from_bytes(prefix[:8], "little")
    if len(prefix) < 8 or not 2 <= told <= size - 8:
        raise Malformed("has no safetensors header")
    if told > most:
        raise Malformed(f"has a header of {told} bytes; none of these is larger than {most}")
    return told


def parse(raw: bytes, room: int) -> Header:
    """The header in `raw`, of a file that has `room` bytes behind it."""
    try:
        table = json.loads(raw, object_pairs_hook=_once, parse_constant=_constant)
    except Malformed:
        raise
    except (ValueError, RecursionError) as err:  # the second where it nests deeper than any header does
        raise Malformed("has a header that is no JSON") from err
    if not isinstance(table, dict):
        raise Malformed("has a header that is no table")
    metadata = _words(table.pop("__metadata__", {}))
    entries = {name: _entry(name, told, room) for name, told in table.items()}
    if not entries:
        raise Malformed("holds no tensors")
    tensors = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
    _adjoin(tensors, room)
    return Header(tensors, metadata)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise Malformed("has a header in which a key stands twice")
    return table


def _constant(word: str) -> NoReturn:
    raise Malformed(f"has a header that is no JSON: {word}")


def _words(told: Any) -> dict[str, str]:
    if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
        raise Malformed("has metadata that is no table of words")
    return told


def _entry(name: str, told: Any, room: int) -> Entry:
    match told:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, end]} if all(map(_is_count, (*shape, start, end))):
            if len(told) > 3 or len(shape) > MOST_DIMENSIONS:
                raise Malformed(f"has a malformed entry for tensor {name[:80]!r}")
            if not start <= end <= room:
                raise Malformed(f"is cut short: tensor {name[:80]!r} ends outside the file")
            if dtype in DTYPE_BYTES and prod(shape) * DTYPE_BYTES[dtype] != end - start:
                raise Malformed(f"has a tensor {name[:80]!r} of the wrong length")
            return Entry(dtype, tuple(shape), start, end)
        case _:
            raise Malformed(f"has a malformed entry for tensor {name[:80]!r}")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_COUNT  # True is an int to Python, and to no other reader


def _adjoin(tensors: Mapping[str, Entry], room: int) -> None:
    """Each begins where the one before ends, the first at 0, and the last ends with the file."""
    entries = list(tensors.values())
    if any(after.start < before.end for before, after in pairwise(entries)):
        raise Malformed("has tensors that overlap")
    if entries[0].start or entries[-1].end != room or any(after.start > before.end for before, after in pairwise(entries)):
        raise Malformed("is cut short or has stray bytes: its size does not match its header")
