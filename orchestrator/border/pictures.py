"""Whether a PNG that a stranger made is one, and the same picture made anew by us.

A PNG is a list of chunks. All of them are checked, and only those that make up the picture are ever decoded: profiles, texts and
whatever else can hide in one go nowhere.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .weights import Unsound

if TYPE_CHECKING:
    from PIL import Image

MOST_BYTES = 64 * 1024 * 1024
MOST_PIXELS = 2**24
"""Samples are of the training's resolution: 4096 x 4096 is beyond all of them. Decoded it takes 64 MiB, however small the file."""
MOST_CHUNKS = 100_000
SHOWN_SIDE = 512
"""Pixels of the longer side on the page, which shows them smaller still."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DRAWN = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_MODES = {(8, 0), (8, 2), (8, 3), (8, 4), (8, 6)}
"""Bits and colour type: grey, colour or palette, with or without transparency, at 8 bits."""


def look(path: Path) -> None:
    """Raise `Unsound` unless the file is a whole PNG of sane size that can be drawn."""
    _opened(path)


def anew(path: Path) -> bytes:
    """The same picture as a PNG of ours, small enough for a page. Raises `Unsound`."""
    picture = _opened(path)
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    made = io.BytesIO()
    picture.save(made, format="PNG", compress_level=3)
    return made.getvalue()


def _opened(path: Path) -> Image.Image:
    from PIL import Image

    if path.stat().st_size > MOST_BYTES:
        raise Unsound(f"it has more than {MOST_BYTES} bytes")
    bare = _bare(path.read_bytes())
    try:
        with Image.open(io.BytesIO(bare), formats=("PNG",)) as picture:
            drawn = picture.convert("RGB")
            drawn.info.clear()  # what the file said of its transparency would be written again
            return drawn
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError) as err:
        raise Unsound("it is a PNG that cannot be drawn") from err


def _bare(data: bytes) -> bytes:
    """The picture's own chunks alone. Raises `Unsound` for a file that is not chunk after chunk, whole and in order."""
    if not data.startswith(_SIGNATURE):
        raise Unsound("it is no PNG")
    kept, last = [_SIGNATURE], b""
    for number, (kind, chunk) in enumerate(_chunks(data)):
        if number >= MOST_CHUNKS or (kind == b"IHDR") != (number == 0):
            raise Unsound("it is a PNG out of order")
        if last == b"IEND":
            raise Unsound("it is a PNG that has something behind it")
        if kind == b"IHDR":
            _check_size(chunk)
        if kind in _DRAWN:
            kept.append(chunk)
        elif not kind[0] & 0x20:  # a capital: who does not know it cannot draw the picture
            raise Unsound("it is a PNG of a kind that is not known")
        last = kind
    if last != b"IEND":
        raise Unsound("it is a PNG that is cut short")
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind, and the chunk as it stands with its length and its sum."""
    at = len(_SIGNATURE)
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunk = data[at : at + 12 + length]
        kind = chunk[4:8]
        if len(chunk) != 12 + length or not kind.isalpha():
            raise Unsound("it is a PNG that is cut short, or has something behind it")
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise Unsound("it is a PNG whose sums do not add up")
        yield kind, chunk
        at += len(chunk)


def _check_size(chunk: bytes) -> None:
    if len(chunk) != 12 + 13:
        raise Unsound("it is a PNG out of order")
    width, height, bits, colours = struct.unpack(">IIBB", chunk[8:18])
    if not width or not height or width * height > MOST_PIXELS:
        raise Unsound(f"it is a picture of {width} x {height}; no sample is larger than {MOST_PIXELS} pixels")
    if (bits, colours) not in _MODES:
        raise Unsound("it is a PNG of a kind that is not known")
