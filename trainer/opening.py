"""Whether a file is a picture that can be trained on. Pillow and the standard library only.

A header says how large a picture is before anything is decoded; only decoding all of it says whether it is whole.
"""

from __future__ import annotations

import stat
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
OTHER_PICTURES = frozenset(
    {
        ".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".ico", ".tga",
        ".exr",
    }
)  # fmt: skip
MAX_PIXELS = 100_000_000
"""Told from the header, before anything is decoded: a 100-megapixel picture takes 300 MB as RGB."""
EXIF_ORIENTATION = 0x0112
TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""

Complain = Callable[[str, Path, str, str], None]
"""Code, path, fact, next move."""

DECODERS_RAISE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError, RuntimeError,
    Image.DecompressionBombError,
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


def _decoded_size(path: Path, complain: Complain) -> tuple[int, int] | None:
    with Image.open(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            complain(
                "LRY-DATA-HUGE",
                path,
                f"{width}x{height} is more than {MAX_PIXELS // 1_000_000} megapixels.",
                "Make it smaller; training shrinks it anyway.",
            )
            return None
        if getattr(image, "is_animated", False):
            complain("LRY-DATA-ANIMATED", path, "an animation.", "Save one frame as a picture.")
            return None
        image.verify()
    with Image.open(path) as image:  # verify() leaves the file unusable, and does not see a cut JPEG
        image.load()
        turned = image.getexif().get(EXIF_ORIENTATION) in TURNED
    return (height, width) if turned else (width, height)


def has_transparency(path: Path) -> bool:
    """Whether a picture that was checked has an alpha channel or a transparent colour."""
    with Image.open(path) as image:
        return bool(image.has_transparency_data)


def brightest(path: Path) -> int:
    """The largest value of a mask that was checked, of its own range; 0: it is black."""
    with Image.open(path) as image:
        plain = image if image.mode in ("L", "I", "I;16", "I;16B", "F") else image.convert("L")
        return int(plain.getextrema()[1])  # type: ignore[arg-type]  # one channel: one pair
