"""A picture's bytes without what it tells of where, when and by whom it was taken. PURE.

Lossless: no pixel is decoded, and the parts that decide how pixels look stay (palettes, colour profiles, transparency). Of EXIF one thing
stays, as the trainer honours it: which way is up. Everything else goes, thumbnails, comments and what lies behind the picture's end too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from zlib import crc32

PNG = b"\x89PNG\r\n\x1a\n"
PNG_KEPT = frozenset(
    {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD", b"pHYs"}
    | {b"acTL", b"fcTL", b"fdAT"}  # frames: the trainer draws the first, as a viewer that knows them does
)
WEBP_KEPT = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"})
WEBP_HAS_METADATA = 0x08 | 0x04  # EXIF, XMP: in the first byte of VP8X
STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""JPEG markers without a length."""


class Unreadable(ValueError):
    """The bytes are no picture of a kind whose parts are known."""


def stripped(data: bytes, turn: int) -> bytes:
    """The same picture and nothing else. `turn`: what its EXIF says of its orientation, 1 for upright. Raises `Unreadable`."""
    try:
        if data.startswith(b"\xff\xd8"):
            return b"".join(_jpeg(data, turn))
        if data.startswith(PNG):
            return b"".join(_png(data, turn))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data, turn)
    except (struct.error, IndexError) as err:
        raise Unreadable("the picture is cut short") from err
    raise Unreadable("not a JPEG, PNG or WebP")


def _turned(turn: int) -> bytes:
    """EXIF that says which way is up, and nothing more: one IFD with one entry."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, turn, 0, 0)


# -- JPEG: markers, most with a length; behind a start of scan its data until the next marker -------


def _jpeg(data: bytes, turn: int) -> Iterator[bytes]:
    yield b"\xff\xd8"
    if turn != 1:
        exif = b"Exif\0\0" + _turned(turn)
        yield b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    place = 2
    while True:
        if data[place] != 0xFF:
            raise Unreadable("a JPEG whose parts do not follow one another")
        while data[place] == 0xFF:  # any number may stand before a marker
            place += 1
        marker, place = data[place], place + 1
        if marker == 0xD9:
            yield b"\xff\xd9"
            return
        if marker in STANDALONE:
            yield bytes((0xFF, marker))
            continue
        (length,) = struct.unpack_from(">H", data, place)
        body, place = data[place + 2 : place + length], place + length
        if length < 2 or len(body) != length - 2:
            raise Unreadable("a JPEG that is cut short")
        if (kept := _jpeg_part(marker, body)) is not None:
            yield bytes((0xFF, marker)) + struct.pack(">H", len(kept) + 2) + kept
        if marker == 0xDA:
            end = _end_of_scan(data, place)
            yield data[place:end]
            place = end


def _jpeg_part(marker: int, body: bytes) -> bytes | None:
    """What stays of a part; None: nothing. Of the free parts only those that say what the colours mean."""
    if marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14:
        return body[:12] + b"\0\0"  # its thumbnail shows the picture as it was before it was cropped
    is_colour = (marker == 0xE2 and body.startswith(b"ICC_PROFILE\0")) or (marker == 0xEE and body.startswith(b"Adobe"))
    return body if is_colour or not (0xE0 <= marker <= 0xEF or marker == 0xFE) else None


def _end_of_scan(data: bytes, place: int) -> int:
    while True:
        place = data.find(b"\xff", place)
        if place < 0:
            raise Unreadable("a JPEG without an end")
        if data[place + 1] != 0 and not 0xD0 <= data[place + 1] <= 0xD7:
            return place
        place += 2


# -- PNG and WebP: chunks with a name and a length --------------------------------------------------


def _png(data: bytes, turn: int) -> Iterator[bytes]:
    yield PNG
    place, said = len(PNG), turn == 1
    while True:
        (length,) = struct.unpack_from(">I", data, place)
        name, chunk = data[place + 4 : place + 8], data[place : place + 12 + length]
        if len(chunk) != 12 + length:
            raise Unreadable("a PNG that is cut short")
        if name == b"IDAT" and not said:
            body = b"eXIf" + _turned(turn)
            yield struct.pack(">I", len(body) - 4) + body + struct.pack(">I", crc32(body))
            said = True
        if name in PNG_KEPT:
            yield chunk
        if name == b"IEND":
            return
        place += len(chunk)


def _webp(data: bytes, turn: int) -> bytes:
    place, parts = 12, []
    (whole,) = struct.unpack_from("<I", data, 4)
    end = min(len(data), 8 + whole)
    while place < end:
        name, (length,) = data[place : place + 4], struct.unpack_from("<I", data, place + 4)
        body = data[place + 8 : place + 8 + length]
        if len(body) != length:
            raise Unreadable("a WebP that is cut short")
        if name == b"VP8X":
            body = bytes((body[0] & ~WEBP_HAS_METADATA | (0x08 if turn != 1 else 0),)) + body[1:]
        if name in WEBP_KEPT:
            parts.append(_riff(name, body))
        place += 8 + length + length % 2
    if turn != 1:
        parts.append(_riff(b"EXIF", _turned(turn)))
    return _riff(b"RIFF", b"WEBP" + b"".join(parts))


def _riff(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
