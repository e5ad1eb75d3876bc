"""TensorBoard's event files, written by hand: a record is its length, its bytes and a checksum of each; its bytes are a protobuf message.

So curves need no package here, and TensorBoard itself only where somebody looks at them. PURE. The format is TensorFlow's `event.proto`,
`summary.proto` and record files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

POLYNOMIAL = 0x82F63B78
"""CRC-32C, as iSCSI has it, reflected."""


def _row(index: int) -> int:
    for _ in range(8):
        index = index >> 1 ^ (POLYNOMIAL if index & 1 else 0)
    return index


_TABLE = tuple(map(_row, range(256)))


def crc32c(data: bytes) -> int:
    """The checksum of the record format."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def record(message: bytes) -> bytes:
    """One message as it stands in a file; its checksums are masked, since they may be checksummed again."""
    length = struct.pack("<Q", len(message))
    return length + _masked(length) + message + _masked(message)


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def heading(wall_time: float) -> bytes:
    """The first record of a file."""
    return record(_double(1, wall_time) + _bytes(3, b"brain.Event:2"))


def scalars(wall_time: float, step: int, values: Iterable[tuple[str, float]]) -> bytes:
    """Numbers of one step."""
    return _summary(wall_time, step, [_bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", _single(value)) for tag, value in values])


def image(wall_time: float, step: int, tag: str, size: tuple[int, int], encoded: bytes) -> bytes:
    """A PNG or JPEG of three channels; `size` is width, height."""
    picture = _number(1, size[1]) + _number(2, size[0]) + _number(3, 3) + _bytes(4, encoded)
    return _summary(wall_time, step, [_bytes(1, tag.encode()) + _bytes(4, picture)])


def _summary(wall_time: float, step: int, values: Iterable[bytes]) -> bytes:
    return record(_double(1, wall_time) + _number(2, step) + _bytes(5, b"".join(_bytes(1, value) for value in values)))


def _single(value: float) -> float:
    """What 32 bits hold: beyond it there is no curve to draw."""
    return max(-3e38, min(value, 3e38))


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
