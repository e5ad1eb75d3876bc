"""What goes to a stranger's machine shows the picture, and tells nothing of where, when and by whom it was taken."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from zlib import crc32

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from orchestrator.stripping import PNG, Unreadable, stripped
from trainer.opening import opened, orientation
from trainer.pictures import read_alpha, read_rgb

SECRET = "Canary Street 7"
LOSSLESS = {"WEBP": ("RGB", "RGBA"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")}
MODES = {"JPEG": ("L", "RGB", "CMYK"), **LOSSLESS}


def exif(turn: int) -> Image.Exif:
    told = Image.Exif()
    told[0x0112] = turn
    told[0x010E] = SECRET
    told.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.0), 29: SECRET})
    return told


def xmp(turn: int = 1) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="{turn}">{SECRET}</x:xmpmeta>'.encode()


@st.composite
def pictures(draw: st.DrawFn) -> bytes:
    """Of every kind and mode, turned every way, full of things that nobody else is to know."""
    kind = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[kind]))
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    noise = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(noise, "RGBA").convert({"CMYK": "RGB", "LA": "RGBA"}.get(mode, mode)).convert(mode)
    turn = draw(st.integers(1, 8))
    options: dict[str, object] = {"exif": exif(turn)} if draw(st.booleans()) else {}
    if draw(st.booleans()) and mode in ("RGB", "RGBA"):
        options["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB" if draw(st.booleans()) else "sRGB")).tobytes()
    if kind == "JPEG":
        options |= {"progressive": draw(st.booleans()), "comment": SECRET, "xmp": xmp(), "quality": draw(st.sampled_from([20, 95]))}
        options |= {"subsampling": draw(st.sampled_from([0, 2])), "restart_marker_blocks": draw(st.sampled_from([0, 2]))}
    if kind == "WEBP":
        options |= {"lossless": draw(st.booleans()), "xmp": xmp()}
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Author", SECRET, zip=draw(st.booleans()))
        text.add_itxt("XML:com.adobe.xmp", xmp(turn).decode())
        options |= {"pnginfo": text} | ({"transparency": 3} if mode == "P" else {})
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue() + draw(st.sampled_from([b"", SECRET.encode(), b"\xff\xd8" + SECRET.encode()]))


def turn_of(path: Path) -> int:
    with opened(path) as image:
        image.load()
        return orientation(image)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=pictures())
def test_the_trainer_sees_the_same_picture_and_nobody_learns_more(data: bytes, tmp_path: Path):
    before, after = tmp_path / "before", tmp_path / "after"
    before.write_bytes(data)
    clean = stripped(data, turn_of(before))
    after.write_bytes(clean)
    assert turn_of(after) == turn_of(before)
    assert np.array_equal(np.asarray(read_rgb(after)), np.asarray(read_rgb(before)))
    assert np.array_equal(np.asarray(read_alpha(after)), np.asarray(read_alpha(before)))
    with opened(after) as image:
        image.load()
        assert set(image.getexif()) <= {0x0112}
        assert not {"comment", "xmp", "XML:com.adobe.xmp", "Author", "photoshop"} & set(image.info)
    assert SECRET.encode() not in clean
    assert stripped(clean, turn_of(after)) == clean, "what is clean stays as it is"


def test_the_thumbnail_that_shows_what_was_cropped_away_goes_too():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    data = file.getvalue()
    at = data.index(b"JFIF\0") + 12
    (length,) = struct.unpack_from(">H", data, at - 14)
    pixels = SECRET.encode()[:3]
    thumbed = data[: at - 14] + struct.pack(">H", length + 3) + data[at - 12 : at] + b"\1\1" + pixels + data[at + 2 :]
    assert Image.open(io.BytesIO(thumbed)).size == (8, 8)
    assert stripped(thumbed, 1) == stripped(data, 1)


def test_a_png_that_says_its_orientation_behind_its_pixels_is_still_upright(tmp_path: Path):
    file = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(file, "PNG")
    body = b"eXIf" + exif(6).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", crc32(body))
    (tmp_path / "a").write_bytes(file.getvalue().replace(file.getvalue()[-12:], chunk + file.getvalue()[-12:]))
    assert turn_of(tmp_path / "a") == 6
    (tmp_path / "b").write_bytes(stripped((tmp_path / "a").read_bytes(), 6))
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "b")), np.asarray(read_rgb(tmp_path / "a")))


@given(data=pictures(), cut=st.floats(0, 0.99), noise=st.binary(max_size=40))
def test_what_is_cut_short_or_no_picture_is_told_and_never_half_stripped(data: bytes, cut: float, noise: bytes):
    for broken in (data[: int(len(data) * cut)], noise, b"\xff\xd8" + noise, PNG + noise, b"RIFF" + noise[:4].ljust(4) + b"WEBP" + noise):
        try:
            clean = stripped(broken, 1)
        except Unreadable:
            continue
        assert SECRET.encode() not in clean
