"""Masks: found, refused, resized, and what they make of the loss."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from trainer import objective, pictures
from trainer.buckets import Fit
from trainer.dataset import Scan, scan
from trainer.protocol import TrainingOptions

OPTIONS = TrainingOptions(resolution=64, min_bucket=32, max_bucket=128, bucket_step=32)


def put(path: Path, colour: object = (200, 30, 30), size: tuple[int, int] = (64, 64), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        put(tmp_path / f"data/4_dog/{name}.png")
        (tmp_path / f"data/4_dog/{name}.txt").write_text("a dog")
    return tmp_path / "data"


def masks_of(found: Scan) -> dict[str, str | None]:
    return {sample.image.name: sample.mask and sample.mask.name for sample in found.samples}


def codes(found: Scan) -> list[str]:
    return [problem.code for problem in found.problems]


PLACES: dict[str, tuple[str, str, str]] = {
    "laid out as the dataset": ("data", "masks", "4_dog/a.png"),
    "flat": ("data", "masks", "a.webp"),
    "labelled": ("data", "masks", "4_dog/a-masklabel.png"),
    "one kohya folder, masks laid out as its parent": ("data/4_dog", "masks", "4_dog/a.png"),
    "beside the pictures, as OneTrainer keeps them": ("data/4_dog", "data/4_dog", "a-masklabel.png"),
}


@pytest.mark.parametrize("case", PLACES)
def test_masks_are_found_where_people_keep_them(case: str, data: Path) -> None:
    folder, masks, name = PLACES[case]
    put(data.parent / masks / name, 255, mode="L")
    found = scan(data.parent / folder, OPTIONS, masks=data.parent / masks)
    assert masks_of(found) == {"a.png": Path(name).name, "b.png": None}
    assert codes(found) == ["LRY-DATA-MASK-MISSING"]
    assert "masks for 1 of 2 pictures" in found.reading


def test_a_mask_beside_its_picture_is_never_trained_on_and_said_when_it_is_not_used(data: Path) -> None:
    put(data / "4_dog/a-masklabel.png", 255, mode="L")
    found = scan(data, OPTIONS)
    assert masks_of(found) == {"a.png": None, "b.png": None}
    assert codes(found) == ["LRY-DATA-UNUSED"]
    assert "a-masklabel.png" in found.problems[0].message


def test_a_folder_of_masks_within_the_dataset_is_not_taken_for_pictures(data: Path) -> None:
    for name in ("a", "b"):
        put(data / f"masks/4_dog/{name}.png", 255, mode="L")
    assert codes(scan(data, OPTIONS, masks=data / "masks")) == []


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "black": (lambda p: put(p, 0, mode="L"), "LRY-DATA-MASK-EMPTY"),
    "black with alpha": (lambda p: put(p, (0, 0), mode="LA"), "LRY-DATA-MASK-EMPTY"),
    "of another picture": (lambda p: put(p, 255, (64, 40), "L"), "LRY-DATA-MASK-SIZE"),
    "torn": (lambda p: put(p) and p.write_bytes(p.read_bytes()[:-30]), "LRY-DATA-CORRUPT"),
    "empty": (lambda p: p.write_bytes(b""), "LRY-DATA-ZERO"),
    "link outside": (lambda p: p.symlink_to("/etc/hostname"), "LRY-DATA-LINK"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mask_that_cannot_be_meant_is_refused_by_name(case: str, data: Path) -> None:
    make, code = BAD[case]
    put(data.parent / "masks/b.png", 255, mode="L")
    make(data.parent / "masks/a.png")
    found = scan(data, OPTIONS, masks=data.parent / "masks")
    (problem,) = found.errors
    assert (problem.code, problem.path, problem.key) == (code, "masks/a.png", "masks")


def test_a_black_mask_is_right_where_nothing_goes_below_a_weight(data: Path) -> None:
    for name in ("a", "b"):
        put(data.parent / f"masks/{name}.png", 0, mode="L")
    assert codes(scan(data, OPTIONS.model_copy(update={"mask_min_weight": 0.1}), masks=data.parent / "masks")) == []


def test_masks_without_a_picture_and_second_ones_are_named(data: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png", "c.png"):
        put(data.parent / "masks" / name, 255, mode="L")
    found = scan(data, OPTIONS, masks=data.parent / "masks")
    assert codes(found) == ["LRY-DATA-UNUSED", "LRY-DATA-UNUSED"]
    assert "a.png" in found.problems[0].path
    assert "c.png" in found.problems[1].message


def test_no_folder_of_masks_is_an_error_of_its_key(data: Path) -> None:
    (problem,) = scan(data, OPTIONS, masks=data / "nowhere").errors
    assert (problem.code, problem.key) == ("LRY-DATA-MISSING", "masks")


def test_alpha_that_no_picture_has_is_said(data: Path) -> None:
    options = OPTIONS.model_copy(update={"alpha_mask": True})
    assert codes(scan(data, options)) == ["LRY-DATA-MASK-MISSING"]
    put(data / "4_dog/a.png", (1, 2, 3, 0), mode="RGBA")
    assert codes(scan(data, options)) == []


# --- pixels ----------------------------------------------------------------------------------------


def test_a_mask_goes_the_way_of_its_picture(tmp_path: Path) -> None:
    """Turned by EXIF, resized, cropped: a mask made from the picture's own pixels stays on them. Of another size it is stretched."""
    dice = np.random.default_rng(0)
    grey = Image.fromarray(dice.integers(0, 256, (60, 90), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.save(tmp_path / "a.png", exif=exif)
    fit = Fit((32, 64), (48, 72), (3, 5))
    picture = pictures.fitted(pictures.read_rgb(tmp_path / "a.png"), fit)[..., 0] / 2 + 0.5
    mask = pictures.fitted_mask(pictures.read_mask(tmp_path / "a.png"), fit)[0]
    np.testing.assert_allclose(mask, picture, atol=1e-6)
    grey.resize((180, 120), Image.Resampling.NEAREST).save(tmp_path / "b.png", exif=exif)
    larger = pictures.fitted_mask(pictures.read_mask(tmp_path / "b.png"), fit)[0]
    np.testing.assert_allclose(larger, mask, atol=1.01 / 255)


MODES = [("L", 51, 0.2), ("RGB", (51, 51, 51), 0.2), ("1", 1, 1.0), ("I;16", 13107, 0.2), ("RGBA", (255, 255, 255, 51), 0.2)]


@pytest.mark.parametrize(("mode", "colour", "value"), MODES)
def test_masks_of_every_mode_are_read(mode: str, colour: object, value: float, tmp_path: Path) -> None:
    got = pictures.fitted_mask(pictures.read_mask(put(tmp_path / "a.png", colour, mode=mode)), Fit((64, 64), (64, 64)))
    assert got.shape == (1, 64, 64)
    np.testing.assert_allclose(got, value, atol=1 / 255)


def test_alpha_is_read_from_every_kind_of_transparency(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (10, 200, 30, 0))
    image.paste((10, 10, 10, 255), (0, 0, 4, 8))
    image.save(tmp_path / "a.png")
    image.convert("LA").save(tmp_path / "b.png")
    palette = image.quantize(4)
    palette.info["transparency"] = palette.getpixel((7, 0))
    palette.save(tmp_path / "c.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "d.png")
    for name, right in (("a", 0), ("b", 0), ("c", 0), ("d", 255)):
        alpha = pictures.read_alpha(tmp_path / f"{name}.png")
        assert (alpha.getpixel((1, 4)), alpha.getpixel((7, 4))) == (255, right), name


def test_the_ground_under_transparency_has_the_colour_that_was_asked_for(tmp_path: Path) -> None:
    put(tmp_path / "a.png", (255, 0, 0, 0), mode="RGBA")
    for colour, seen in (("white", (255, 255, 255)), ("black", (0, 0, 0)), ("grey", (128, 128, 128)), ("#ff8800", (255, 136, 0))):
        assert pictures.read_rgb(tmp_path / "a.png", colour).getpixel((3, 3)) == seen
    with pytest.raises(ValueError, match="background"):
        TrainingOptions(background="url(x)")


def test_the_masked_loss_is_kohyas() -> None:
    """Worked out by hand: the distance times the mean of the mask under each latent, over all places, not only those that count."""
    torch.manual_seed(0)
    predicted, wanted = torch.randn(2, 4, 2, 3), torch.randn(2, 4, 2, 3)
    mask = torch.rand(2, 1, 16, 24)
    small = torch.stack([objective.mask_at(one, (2, 3), 0.0) for one in mask])
    torch.testing.assert_close(small[0, 0, 1, 2], mask[0, 0, 8:, 16:].mean())
    torch.testing.assert_close(small, F.interpolate(mask, size=(2, 3), mode="area"))
    expected = ((predicted - wanted) ** 2 * small).sum(dim=(1, 2, 3)) / (4 * 2 * 3)
    torch.testing.assert_close(objective.per_sample_loss(predicted, wanted, mask=small), expected)
    assert objective.mask_at(torch.zeros(1, 8, 8), (1, 1), 0.25).item() == 0.25
    for kind in ("l1", "huber", "smooth_l1"):
        c, ones = torch.full((2,), 0.1), torch.ones(2, 1, 2, 3)
        plain = objective.per_sample_loss(predicted, wanted, kind, c)
        assert torch.equal(objective.per_sample_loss(predicted, wanted, kind, c, ones), plain)
        assert torch.equal(objective.per_sample_loss(predicted, wanted, kind, c, ones * 0), torch.zeros(2))


def test_masks_do_not_move_with_the_tree(data: Path, tmp_path: Path) -> None:
    """On the rented machine the folders lie elsewhere: the same masks are found."""
    put(data.parent / "masks/4_dog/a.png", 255, mode="L")
    shutil.copytree(data, tmp_path / "job/data/data")
    shutil.copytree(data.parent / "masks", tmp_path / "job/masks/masks")
    there = scan(tmp_path / "job/data/data", OPTIONS, masks=tmp_path / "job/masks/masks")
    assert masks_of(there) == masks_of(scan(data, OPTIONS, masks=data.parent / "masks"))
