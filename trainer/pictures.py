"""From a picture file to the pixels that are trained on. Pillow and numpy; torch-free.

What a person sees is what is trained: the EXIF orientation is applied, transparency lies on a colour, colours
come out as sRGB, 16 bits are scaled rather than cut. Masks go the way of their pictures, pixel by pixel.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from .buckets import Fit
from .opening import UPRIGHT, opened, orientation

VERSION = 2
"""Part of every cache address: raise it when the same file gives other pixels."""


COLOURS = {"white": "#ffffff", "black": "#000000", "grey": "#808080"}

Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.float32]]


def read_rgb(path: Path, background: str = "white") -> Image.Image:
    """The picture as 8-bit sRGB, what is transparent in it on the background's colour."""
    upright, profile = _upright(path)
    return _on(COLOURS.get(background, background), _as_srgb(_to_8_bits(upright), profile))


def read_mask(path: Path) -> Image.Image:
    """A mask's brightness; what is transparent in it is black."""
    return _on(COLOURS["black"], _to_8_bits(_upright(path)[0])).convert("L")


def read_alpha(path: Path) -> Image.Image:
    """How opaque a picture is at each place; white where it has no transparency at all."""
    upright, _ = _upright(path)
    if not upright.has_transparency_data:
        return Image.new("L", upright.size, 255)
    return upright.convert("RGBA").getchannel("A")


def _upright(path: Path) -> tuple[Image.Image, bytes | None]:
    with opened(path) as image:
        image.load()
        turn = UPRIGHT.get(orientation(image))
        return image.copy() if turn is None else image.transpose(turn), image.info.get("icc_profile")


def _to_8_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray((values.clip(0, 65535) / 257 + 0.5).astype(np.uint8))  # 65535 / 257 = 255
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        scale = 255.0 if values.max(initial=0) <= 1 else 1.0
        return Image.fromarray((values * scale + 0.5).clip(0, 255).astype(np.uint8))
    return image


def _as_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Apply the embedded profile. A broken or unfit one is no reason to lose the picture."""
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    colours = image.convert("RGB") if alpha else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    if converted is None:
        return image
    if alpha:
        converted.putalpha(alpha)
    return converted


def _on(colour: str, image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, colour), seen).convert("RGB")


def fitted(image: Image.Image, fit: Fit) -> Pixels:
    """Resized, cropped, scaled to -1..1; height x width x 3."""
    return np.asarray(_cut_out(image, fit), dtype=np.float32) / np.float32(127.5) - np.float32(1)


def fitted_mask(image: Image.Image, fit: Fit) -> Pixels:
    """A mask as its picture is resized and cropped, from 0 to 1; 1 x height x width. A mask of another size is stretched to it."""
    return np.asarray(_cut_out(image, fit), dtype=np.float32)[None] / np.float32(255)


def _cut_out(image: Image.Image, fit: Fit) -> Image.Image:
    """As kohya: the mean over the area that a pixel covers where both sides shrink, LANCZOS elsewhere."""
    resized = image
    if fit.resized != image.size:
        shrinks = fit.resized[0] <= image.width and fit.resized[1] <= image.height
        resized = shrunk(image, fit.resized) if shrinks else image.resize(fit.resized, Image.Resampling.LANCZOS)
    left, top = fit.crop
    return resized.crop((left, top, left + fit.bucket[0], top + fit.bucket[1]))


def shrunk(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Every new pixel is the mean of the area that it covers, with the share of pixels at its edge: OpenCV's INTER_AREA.

    Pillow's BOX is something else: it takes a pixel whole or not at all, which at 5 to 4 is hardly better than leaving pixels out.
    """
    lower = _means(np.asarray(image), size[1])  # rows first: they lie together in memory
    return Image.fromarray(np.rint(_means(lower.swapaxes(0, 1), size[0]).swapaxes(0, 1)).astype(np.uint8))


def _means(lines: np.ndarray[Any, np.dtype[Any]], many: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """So many lines in place of these; each the mean of those that it covers."""
    edges = np.arange(many + 1) * (len(lines) / many)
    first = np.floor(edges[:-1]).astype(np.int64)
    total = np.zeros((many, *lines.shape[1:]), dtype=np.float32)
    for step in range(int(np.ceil(len(lines) / many)) + 1):
        line = first + step
        share = np.clip(np.minimum(edges[1:], line + 1) - np.maximum(edges[:-1], line), 0, 1) * (many / len(lines))
        total += lines[np.minimum(line, len(lines) - 1)] * share.astype(np.float32).reshape(-1, *[1] * (lines.ndim - 1))
    return total
