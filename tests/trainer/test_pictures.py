"""What is trained is what a person sees."""

from __future__ import annotations

import io
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from trainer.buckets import Fit
from trainer.dataset import scan
from trainer.opening import check_picture
from trainer.pictures import fitted, read_alpha, read_rgb, shrunk
from trainer.protocol import TrainingOptions

RED = (255, 0, 0)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "white")
    image.paste(RED, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image.save(tmp_path / "a.png", exif=exif)
    seen = read_rgb(tmp_path / "a.png")
    assert seen.size == (20, 40)
    assert seen.getpixel((10, 5)) == RED
    assert seen.getpixel((10, 35)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path: Path, mode: str) -> None:
    """Colours hidden under full transparency must not show."""
    image = Image.new("RGBA", (8, 8), (10, 200, 30, 0))
    image.paste((10, 10, 10, 255), (0, 0, 4, 8))
    if mode == "P":
        image = image.quantize(4)
        image.info["transparency"] = image.getpixel((7, 0))
    image.convert(mode).save(tmp_path / "a.png") if mode != "P" else image.save(tmp_path / "a.png")
    seen = read_rgb(tmp_path / "a.png")
    assert seen.getpixel((7, 4)) == (255, 255, 255)
    assert max(seen.getpixel((1, 4))) <= 12


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        seen = np.asarray(read_rgb(tmp_path / name))
        np.testing.assert_allclose(seen[..., 0], values / 257, atol=1)


def test_cmyk_and_grey_and_two_colours_become_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    Image.new("L", (8, 8), 77).save(tmp_path / "b.png")
    Image.new("1", (8, 8), 1).save(tmp_path / "c.png")
    assert read_rgb(tmp_path / "a.jpg").getpixel((4, 4))[0] > 200
    assert read_rgb(tmp_path / "b.png").getpixel((4, 4)) == (77, 77, 77)
    assert read_rgb(tmp_path / "c.png").getpixel((4, 4)) == (255, 255, 255)


def test_a_colour_profile_is_applied_and_a_broken_one_ignored(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    image.save(tmp_path / "a.png", icc_profile=srgb)
    image.save(tmp_path / "b.png", icc_profile=b"junk")
    for name in ("a.png", "b.png"):
        np.testing.assert_allclose(np.asarray(read_rgb(tmp_path / name))[0, 0], (200, 100, 50), atol=2)


def test_pixels_are_resized_cropped_in_the_middle_and_scaled() -> None:
    image = Image.new("RGB", (128, 64), "black")
    image.paste("white", (32, 0, 96, 64))
    got = fitted(image, Fit((32, 32), (64, 32)))
    assert got.shape == (32, 32, 3)
    assert got.dtype == np.float32
    assert (got == 1).all()
    edges = fitted(image, Fit((64, 32), (64, 32)))
    assert edges.min() == -1


def test_one_pixel_can_be_trained_on(tmp_path: Path) -> None:
    """Kohya's no-upscale divides by zero; here it is enlarged to one step."""
    Image.new("RGB", (1, 1), RED).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a dot")
    options = TrainingOptions(resolution=64, min_bucket=64, max_bucket=128, bucket_no_upscale=True)
    from trainer import items

    found = scan(tmp_path, options)
    (fit,) = items.fits(options, found.samples)
    assert fitted(read_rgb(tmp_path / "a.png"), fit).shape == (64, 64, 3)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_shrinking_takes_the_mean_of_the_area_that_a_pixel_covers(w: int, h: int, less: int, lower: int, seed: int) -> None:
    """Against exact fractions: OpenCV's INTER_AREA, which kohya shrinks with."""
    size = max(w - less, 1), max(h - lower, 1)
    pixels = np.random.default_rng(seed).integers(0, 256, (h, w), np.uint8)

    def cover(i: int, new: int, old: int) -> list[Fraction]:
        begin, end = Fraction(i * old, new), Fraction((i + 1) * old, new)
        return [max(Fraction(0), min(end, j + 1) - max(begin, j)) / (end - begin) for j in range(old)]

    across, down = [cover(i, size[0], w) for i in range(size[0])], [cover(i, size[1], h) for i in range(size[1])]
    exact = np.array(down, dtype=float) @ pixels.astype(float) @ np.array(across, dtype=float).T
    got = np.asarray(shrunk(Image.fromarray(pixels), size))
    assert got.shape == exact.shape
    np.testing.assert_allclose(got, exact, atol=0.501)


def noise(size: tuple[int, int], mode: str, seed: int = 0) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), np.uint8), "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


KINDS = [("a.png", "RGB"), ("a.png", "RGBA"), ("a.png", "P"), ("a.png", "1"), ("a.jpg", "RGB"), ("a.jpg", "CMYK"), ("a.jpg", "L"),
         ("a.webp", "RGBA"), ("a.bmp", "RGB"), ("a.tif", "CMYK")]  # fmt: skip


SIDES, SHARES = st.integers(1, 40), st.floats(0, 1)


@given(st.sampled_from(KINDS), SIDES, SIDES, SHARES, SHARES, st.binary(max_size=4), st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_what_the_check_lets_through_can_be_trained_on(
    kind: tuple[str, str], w: int, h: int, end: float, place: float, junk: bytes, turn: int
) -> None:
    """Whatever is cut off or overwritten: refused with a code and a next move, or read at the size that was told."""
    name, mode = kind
    exif = Image.Exif()
    exif[0x0112] = turn
    out = io.BytesIO()
    noise((w, h), mode).save(out, Image.registered_extensions()[Path(name).suffix], exif=exif)
    raw = out.getvalue()
    at = int(place * len(raw))
    damaged = (raw[:at] + junk + raw[at + len(junk) :])[: max(1, int((0.5 + end) * len(raw)))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(damaged)
        said: list[tuple[str, Path, str, str]] = []
        size = check_picture(path, lambda *about: said.append(about))
        assert (size is None) == bool(said)
        if size is None:
            assert said[0][0].startswith("LRY-DATA-")
            assert said[0][3]
        else:
            assert read_rgb(path).size == read_alpha(path).size == size


@pytest.mark.parametrize("turn", range(10))
def test_the_eight_orientations_look_alike_and_odd_ones_say_nothing(turn: int, tmp_path: Path) -> None:
    """Against Pillow's own reading of the standard; 0 and 9 are no orientations."""
    image, exif = noise((30, 20), "RGB"), Image.Exif()
    exif[0x0112] = turn
    image.save(tmp_path / "a.png", exif=exif)
    seen = read_rgb(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as again:
        assert seen.tobytes() == ImageOps.exif_transpose(again).tobytes()
    assert check_picture(tmp_path / "a.png", pytest.fail) == seen.size


def test_damaged_exif_costs_no_picture(tmp_path: Path) -> None:
    noise((30, 20), "RGB").save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff junk")
    assert check_picture(tmp_path / "a.jpg", pytest.fail) == read_rgb(tmp_path / "a.jpg").size == (30, 20)


def test_a_phones_photograph_with_a_map_behind_it_is_a_photograph(tmp_path: Path) -> None:
    """MPO: depth or brightness maps lie in it as further pictures; it is no animation."""
    first = Image.new("RGB", (30, 20), RED)
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (30, 20), "blue")])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.is_animated
    assert check_picture(tmp_path / "a.jpg", pytest.fail) == (30, 20)
    assert read_rgb(tmp_path / "a.jpg").getpixel((5, 5))[0] > 240


def test_a_file_that_another_program_would_be_started_for_is_not_opened(tmp_path: Path) -> None:
    """Pillow hands EPS to Ghostscript."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    said: list[str] = []
    assert check_picture(tmp_path / "a.png", lambda code, *_: said.append(code)) is None
    assert said == ["LRY-DATA-CORRUPT"]
