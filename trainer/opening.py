"""Whether a file is a picture that can be trained on. Pillow and the standard library only.

A header says how large a picture is before anything is decoded; only decoding all of it says whether it is whole.
"""

from __future__ import annotations

import stat
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .notes import Notes

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
OTHER_PICTURES = frozenset(
    {
        ".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".ico", ".tga",
        ".exr",
    }
)  # fmt: skip
MAX_PIXELS = 100_000_000
"""Told from the header, before anything is decoded: a 100-megapixel picture takes 300 MB as RGB."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""What a file may be, whatever its name says. Nothing else is tried: some of Pillow's readers start other programs."""
EXIF_ORIENTATION = 0x0112
TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture look as it was taken."""

Complain = Callable[[str, Path, str, str], None]
"""Code, path, fact, next move."""

DECODERS_RAISE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError, RuntimeError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip
"""Pillow's decoders raise all of these on damaged files."""


def check_picture(path: Path, complain: Complain) -> tuple[int, int] | None:
    """Decode a picture fully; its size as seen, or None when it cannot be used (and `complain` knows why)."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            complain("LRY-DATA-NOT-A-FILE", path, "it is no ordinary file.", "Take it away.")
            return None
        if status.st_size == 0:
            complain("LRY-DATA-ZERO", path, "the file is empty.", "Fetch it again, or take it away.")
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, for which our own limit follows, and of damaged EXIF, which is not used
            return _decoded_size(path, complain)
    except Image.DecompressionBombError:
        complain("LRY-DATA-HUGE", path, f"more than {MAX_PIXELS // 1_000_000} megapixels.", "Make it smaller; training shrinks it anyway.")
    except PermissionError:
        complain("LRY-DATA-UNREADABLE", path, "the file cannot be opened.", "Give yourself the right to read it.")
    except UnidentifiedImageError:
        complain("LRY-DATA-CORRUPT", path, "the file is no picture.", "Fetch it again, or take it away.")
    except DECODERS_RAISE as error:
        complain(
            "LRY-DATA-CORRUPT",
            path,
            f"the picture cannot be decoded ({str(error)[:100] or type(error).__name__}).",
            "Fetch it again, or take it away.",
        )
    return None


def opened(path: Path) -> Image.Image:
    """The picture, whose pixels are not yet read."""
    return Image.open(path, formats=FORMATS)


def orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8. Damaged or odd EXIF says nothing: the picture is taken as it lies."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(EXIF_ORIENTATION, 1)
    except DECODERS_RAISE:
        return 1
    return value if value in UPRIGHT else 1


def _decoded_size(path: Path, complain: Complain) -> tuple[int, int] | None:
    with opened(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            complain(
                "LRY-DATA-HUGE",
                path,
                f"{width}x{height} is more than {MAX_PIXELS // 1_000_000} megapixels.",
                "Make it smaller; training shrinks it anyway.",
            )
            return None
        # MPO is what phones call a JPEG with a depth or brightness map behind it: its first picture is the photograph.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            complain("LRY-DATA-ANIMATED", path, "an animation.", "Save one frame as a picture.")
            return None
        image.verify()
    with opened(path) as image:  # verify() leaves the file unusable, and does not see a cut JPEG
        image.load()
        width, height = image.size  # again: of a TIFF, Pillow turns the picture itself while it loads
        return (height, width) if orientation(image) in TURNED else (width, height)


def has_transparency(path: Path) -> bool:
    """Whether a picture that was checked has an alpha channel or a transparent colour."""
    with opened(path) as image:
        return bool(image.has_transparency_data)


def brightest(path: Path) -> int:
    """The largest value of a mask that was checked, of its own range; 0: it is black."""
    with opened(path) as image:
        plain = image if image.mode in ("L", "I", "I;16", "I;16B", "F") else image.convert("L")
        return int(plain.getextrema()[1])  # type: ignore[arg-type]  # one channel: one pair


def inside(path: Path, root: Path, notes: Notes) -> bool:
    """Whether the path leads to somewhere in the folder; a link out of it would not be sent."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        notes.error("LRY-DATA-LINK", path, "a symbolic link that leads nowhere.", "Remove it, or put the file in its place.")
        return False
    if not target.is_relative_to(root.resolve()):
        notes.error("LRY-DATA-LINK", path, "a symbolic link to outside of the dataset.", "Copy the file into the dataset.")
        return False
    return True
