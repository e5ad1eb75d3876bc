"""Writes the demo's training pictures: two real photographs, cut into many crops each, and a drawn character.

    python templates/demo/datasets.py OUT

The photographs are ones that scikit-image carries in its package, so nothing is downloaded. What is written:

* ``OUT/cat/8_zwx cat/`` and ``OUT/cup/8_qev cup/``: folders named as kohya's trainers want them (repeats, trigger word,
  class);
* ``OUT/character/``: a plain folder of pictures and captions of a little robot, trigger word ``vub``;
* ``OUT/heldout/<concept>/``: pictures of the same subjects that are in no training folder, to compare results with;
* ``OUT/LICENSES.md``: where the photographs come from.

Every picture has a ``.txt`` file with its caption. The pictures differ in shape and size, so that aspect-ratio buckets
have work to do. The outcome is the same each time.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels."""

TRAINING_COUNT = 14
HELD_OUT_COUNT = 6
REPEATS = 8
SEED = 7
ASPECTS = (1.0, 5 / 3, 3 / 5, 9 / 7, 7 / 9)
"""Width by height; those of the sizes that the demo's base was trained on."""
MOST_OVERLAP = 0.85
"""Two crops that share more than this (of what they cover together) would be the same picture twice."""

LICENSES = """# Where these pictures come from

The two photographs are sample data that scikit-image ships inside its package (folder `skimage/data`). What is said of
them here is what scikit-image's own documentation of `skimage.data` says. They were cropped, scaled, some mirrored, and
slightly brightened or darkened.

* `cat` and `heldout/cat`: `skimage.data.chelsea()`, "Chelsea the cat". "No copyright restrictions. CC0 by the
  photographer (Stefan van der Walt)."
* `cup` and `heldout/cup`: `skimage.data.coffee()`, "Coffee cup". "This photograph is courtesy of Pikolo Espresso Bar."
  "No copyright restrictions. CC0 by the photographer (Rachel Michetti)."

The pictures in `character` and `heldout/character` are drawn by the script that wrote this file (`datasets.py`); no
other work went into them.
"""


@dataclass(frozen=True)
class Photo:
    """A photograph from which a concept's crops are cut."""

    concept: str
    trigger: str
    file: str
    centre: tuple[float, float]
    """Where the subject's middle is, as shares of width and height."""
    faces: str
    """The side that the subject turns to, empty if neither."""


@dataclass(frozen=True)
class Sample:
    """A finished picture and its caption."""

    image: Image.Image
    caption: str


PHOTOS = (
    Photo("cat", "zwx", "chelsea.png", (0.48, 0.46), "right"),
    Photo("cup", "qev", "coffee.png", (0.49, 0.47), ""),
)
CHARACTER_TRIGGER = "vub"


def photo_path(name: str) -> Path:
    """Find a photograph in scikit-image's folder, without importing all of scikit-image."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The demo's photographs come from scikit-image; install it: pip install scikit-image")
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    if not path.is_file():
        raise SystemExit(f"This version of scikit-image does not carry {name} (looked in {path.parent})")
    return path


def overlap(one: Box, other: Box) -> float:
    """Return the area that two boxes share as a part of what they cover together."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0, width) * max(0, height)
    return shared / (area(one) + area(other) - shared)


def area(box: Box) -> int:
    """Return the area of a box."""
    return (box[2] - box[0]) * (box[3] - box[1])


def pick_box(rng: random.Random, photo: Photo, size: tuple[int, int], aspect: float) -> tuple[Box, float]:
    """Pick a crop about the subject, and return it with its share of the largest that this shape allows."""
    width, height = size
    share = rng.uniform(0.68, 1.0)
    tall = min(height, width / aspect) * share
    wide = tall * aspect
    x = photo.centre[0] * width + rng.uniform(-0.12, 0.12) * wide
    y = photo.centre[1] * height + rng.uniform(-0.12, 0.12) * tall
    left = min(max(0.0, x - wide / 2), width - wide)
    top = min(max(0.0, y - tall / 2), height - tall)
    return (round(left), round(top), round(left + wide), round(top + tall)), share


def photo_samples(photo: Photo) -> Iterator[Sample]:
    """Cut crops out of a photograph, no two of them nearly alike, in turn of every shape, without end."""
    with Image.open(photo_path(photo.file)) as opened:
        original = opened.convert("RGB")
    rng = random.Random(f"{SEED} {photo.concept}")
    taken: list[Box] = []
    while True:
        aspect = ASPECTS[len(taken) % len(ASPECTS)]
        box, share = pick_box(rng, photo, original.size, aspect)
        if any(overlap(box, other) > MOST_OVERLAP for other in taken):
            continue
        taken.append(box)
        mirrored = rng.random() < 0.5
        image = original.crop(box)
        image = ImageOps.mirror(image) if mirrored else image
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.92, 1.08))
        yield Sample(scaled(image, rng.randint(128, 256)), photo_caption(photo, share, mirrored))


def scaled(image: Image.Image, longer: int) -> Image.Image:
    """Scale a picture so that its longer side has this length."""
    factor = longer / max(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def photo_caption(photo: Photo, share: float, mirrored: bool) -> str:
    """Say what a crop shows."""
    words = f"a {'close ' if share < 0.8 else ''}photo of {photo.trigger} {photo.concept}"
    if not photo.faces:
        return words
    side = {"left": "right", "right": "left"}[photo.faces] if mirrored else photo.faces
    return f"{words}, looking {side}"


GROUNDS: dict[str, RGB] = {
    "yellow": (245, 215, 45),
    "white": (245, 245, 245),
    "blue": (45, 75, 215),
    "pink": (250, 150, 190),
    "gray": (135, 135, 135),
    "purple": (130, 45, 165),
}
TEAL, DARK_TEAL, CREAM, INK, ORANGE = (20, 165, 165), (10, 105, 115), (255, 245, 215), (25, 30, 40), (250, 120, 30)


def character_samples() -> Iterator[Sample]:
    """Draw the robot in different poses and places on different grounds, without end."""
    rng = random.Random(f"{SEED} character")
    for number in itertools.count():
        aspect = ASPECTS[number % len(ASPECTS)]
        ground = list(GROUNDS)[number % len(GROUNDS)]
        width, height = (200, round(200 / aspect)) if aspect >= 1 else (round(200 * aspect), 200)
        unit = min(width, height) * rng.uniform(0.08, 0.1)
        centre = (width * rng.uniform(0.42, 0.58), height * rng.uniform(0.5, 0.56))
        arms = rng.choice(("up", "down"))
        image = draw_robot((width, height), GROUNDS[ground], centre, unit, arms)
        yield Sample(image, f"a drawing of {CHARACTER_TRIGGER} character, arms {arms}, on a {ground} background")


def draw_robot(size: tuple[int, int], ground: RGB, centre: tuple[float, float], unit: float, arms: str) -> Image.Image:
    """Draw the robot: a teal box with a cream face, one big eye, a wide mouth and an orange bobble on its aerial."""
    sharpness = 3
    image = Image.new("RGB", (size[0] * sharpness, size[1] * sharpness), ground)
    pen = ImageDraw.Draw(image)

    def at(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        """Place a box that is given in units from the robot's middle."""
        x, y, step = centre[0] * sharpness, centre[1] * sharpness, unit * sharpness
        return x + left * step, y + top * step, x + right * step, y + bottom * step

    pen.rectangle(at(-0.25, -4.2, 0.25, -2.8), fill=DARK_TEAL)
    pen.ellipse(at(-0.75, -5.0, 0.75, -3.5), fill=ORANGE)
    reach = (-1.6, 0.8) if arms == "up" else (0.6, 3.0)
    for side in (-1, 1):
        inner, outer = sorted((side * 2.6, side * 3.5))
        pen.rounded_rectangle(at(inner, reach[0], outer, reach[1]), radius=unit * sharpness, fill=DARK_TEAL)
        inner, outer = sorted((side * 0.5, side * 1.7))
        pen.rectangle(at(inner, 3.2, outer, 4.4), fill=DARK_TEAL)
    pen.rounded_rectangle(at(-2.6, -3.0, 2.6, 3.4), radius=unit * 2 * sharpness, fill=TEAL)
    pen.rounded_rectangle(at(-2.0, -2.4, 2.0, 1.2), radius=unit * 1.5 * sharpness, fill=CREAM)
    pen.ellipse(at(-1.2, -2.0, 1.2, 0.4), fill=INK)
    pen.ellipse(at(-0.2, -1.6, 0.7, -0.7), fill=CREAM)
    pen.rectangle(at(-1.3, 0.55, 1.3, 0.95), fill=INK)
    return image.reduce(sharpness)


def write_samples(samples: Iterator[Sample], folder: Path, count: int) -> None:
    """Write the next few samples into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        sample = next(samples)
        sample.image.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(sample.caption + "\n", encoding="utf-8")


def write_all(out: Path) -> None:
    """Write every dataset."""
    concepts = [(photo.concept, f"{photo.concept}/{REPEATS}_{photo.trigger} {photo.concept}", photo_samples(photo)) for photo in PHOTOS]
    concepts.append(("character", "character", character_samples()))
    for concept, folder, samples in concepts:
        write_samples(samples, out / folder, TRAINING_COUNT)
        write_samples(samples, out / "heldout" / concept, HELD_OUT_COUNT)
    (out / "LICENSES.md").write_text(LICENSES, encoding="utf-8")


def main() -> None:
    """Read the command line and write the datasets."""
    parser = argparse.ArgumentParser(description="Write the demo's datasets.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write them into")
    options = parser.parse_args()
    write_all(options.out)
    print(f"wrote {len(list(options.out.rglob('*.png')))} pictures to {options.out}")


if __name__ == "__main__":
    main()
