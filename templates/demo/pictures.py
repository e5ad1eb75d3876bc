"""Draws the pictures that the demo base learns from, each with a caption that says what is in it.

Three kinds, because the base has three things to learn:

* scenes: one or two flat shapes on a background. Their captions name shape, colour, size, place and pattern, so that a
  prompt visibly steers the picture;
* views: clouds, stones and hills in two named colours. They bring the soft light and the grain of photographs, so that
  a LoRA that is later taught a real photograph does not start from flat colour alone;
* leaves: overlapping random patches with shading and grain, without a caption. Such "dead leaves" pictures share much
  of the statistics of natural images; the autoencoder needs them in order to encode photographs acceptably.

Everything is drawn from the generator that is passed in, so a seed fixes the pictures.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

RGB = tuple[int, int, int]
Pixels = npt.NDArray[np.float32]
"""Height x width x 3, from 0 to 255."""

PALETTE: dict[str, RGB] = {
    "red": (215, 35, 40),
    "green": (35, 165, 60),
    "blue": (45, 75, 215),
    "yellow": (245, 215, 45),
    "orange": (245, 130, 25),
    "purple": (130, 45, 165),
    "pink": (250, 150, 190),
    "brown": (115, 70, 35),
    "gray": (135, 135, 135),
    "white": (245, 245, 245),
    "black": (18, 18, 18),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross")
SIZES = {"small": (0.14, 0.19), "": (0.21, 0.30), "big": (0.33, 0.42)}
"""Half the width of a shape as a share of the picture's shorter side, by the word for it."""
PLACES = {"left": (0.28, 0.5), "right": (0.72, 0.5), "top": (0.5, 0.28), "bottom": (0.5, 0.72), "middle": (0.5, 0.5)}
PATTERNS = ("striped", "dotted")
VIEWS = ("clouds", "stones", "hills")
GLUE = ("a", "an", "and", "at", "background", "drawing", "in", "of", "on", "photo", "sky", "the", "under")

WORDS = (*PALETTE, *SHAPES, *(size for size in SIZES if size), *PLACES, *PATTERNS, *VIEWS, *GLUE)
"""Every word that a caption can hold, nonsense words apart."""

SUPERSAMPLE = 4
SCENE_SHARE = 0.75
NONSENSE_SHARE = 0.06


@dataclass(frozen=True)
class Picture:
    """A drawn picture and the caption that goes with it."""

    pixels: npt.NDArray[np.uint8]
    caption: str


def draw_captioned(rng: random.Random, width: int, height: int) -> Picture:
    """Draw one picture of the base's training set."""
    draw = draw_scene if rng.random() < SCENE_SHARE else draw_view
    picture = draw(rng, width, height)
    if rng.random() < NONSENSE_SHARE:
        return Picture(picture.pixels, with_nonsense(rng, picture.caption))
    return picture


def draw_any(rng: random.Random, width: int, height: int) -> Picture:
    """Draw one picture of the autoencoder's training set, which has no use for captions."""
    if rng.random() < 0.4:
        return Picture(to_bytes(dead_leaves(rng, width, height)), "")
    return draw_captioned(rng, width, height)


def with_nonsense(rng: random.Random, caption: str) -> str:
    """Put a made-up word somewhere into a caption.

    A LoRA's trigger word is such a word. A base that has met none would be thrown off by the first one, and the demo
    could not tell the LoRA's work from that.
    """
    words = caption.split(" ")
    made_up = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 5)))
    words.insert(rng.randint(0, len(words)), made_up)
    return " ".join(words)


def draw_scene(rng: random.Random, width: int, height: int) -> Picture:
    """Draw one or two shapes on a background."""
    names = rng.sample(list(PALETTE), 3)
    ground_pattern = rng.choice(PATTERNS) if rng.random() < 0.12 else ""
    canvas = fill(rng, names[0], ground_pattern, width, height)
    subject = add_two_shapes(rng, canvas, names[1:]) if rng.random() < 0.2 else add_one_shape(rng, canvas, names[1])
    ground = f"{ground_pattern} {names[0]}".strip()
    caption = rng.choice(
        (
            f"{subject} on {noun_phrase(ground, 'background')}",
            f"{subject} on {noun_phrase(ground, 'background')}",
            f"{subject}, {ground} background",
            f"a drawing of {subject} on {ground}",
        )
    )
    return Picture(to_bytes(canvas), caption)


def add_one_shape(rng: random.Random, canvas: Pixels, colour: str) -> str:
    """Draw one shape into the canvas and return the words for it."""
    size = rng.choices(list(SIZES), weights=(1, 3, 1))[0]
    pattern = rng.choice(PATTERNS) if rng.random() < 0.15 else ""
    place = rng.choice(list(PLACES)) if size != "big" and rng.random() < 0.35 else ""
    spot = PLACES[place] if place else (rng.uniform(0.36, 0.64), rng.uniform(0.36, 0.64))
    spot = (spot[0] + rng.uniform(-0.04, 0.04), spot[1] + rng.uniform(-0.04, 0.04))
    shape = rng.choice(SHAPES)
    paint(rng, canvas, shape, colour, pattern, spot, rng.uniform(*SIZES[size]))
    return noun_phrase(size, pattern, colour, shape) + place_words(place)


def noun_phrase(*words: str) -> str:
    """Join the words that are not empty behind the article that fits."""
    phrase = " ".join(word for word in words if word)
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def place_words(place: str) -> str:
    """Say where a shape stands."""
    if not place:
        return ""
    joint = {"top": " at the ", "bottom": " at the ", "middle": " in the "}.get(place, " on the ")
    return joint + place


def add_two_shapes(rng: random.Random, canvas: Pixels, colours: list[str]) -> str:
    """Draw two shapes along the canvas's longer side, in the order in which the returned words name them."""
    height, width = canvas.shape[:2]
    words = []
    for position, colour in zip((0.27, 0.73), colours, strict=True):
        shape = rng.choice(SHAPES)
        along, across = position + rng.uniform(-0.03, 0.03), rng.uniform(0.4, 0.6)
        spot = (along, across) if width >= height else (across, along)
        paint(rng, canvas, shape, colour, "", spot, rng.uniform(0.16, 0.23))
        words.append(noun_phrase(colour, shape))
    return " and ".join(words)


def paint(rng: random.Random, canvas: Pixels, shape: str, colour: str, pattern: str, spot: tuple[float, float], radius: float) -> None:
    """Paint a shape over the canvas, with soft edges."""
    height, width = canvas.shape[:2]
    half = radius * min(width, height)
    mask = shape_mask(shape, (spot[0] * width, spot[1] * height), half, width, height)[..., None]
    canvas += (fill(rng, colour, pattern, width, height) - canvas) * mask


def shape_mask(shape: str, centre: tuple[float, float], half: float, width: int, height: int) -> npt.NDArray[np.float32]:
    """Return how far each pixel is covered by the shape, from 0 to 1."""
    scale = SUPERSAMPLE
    image = Image.new("L", (width * scale, height * scale), 0)
    pen = ImageDraw.Draw(image)
    x, y, r = centre[0] * scale, centre[1] * scale, half * scale
    if shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if shape == "ring":
            pen.ellipse((x - r * 0.55, y - r * 0.55, x + r * 0.55, y + r * 0.55), fill=0)
    elif shape == "square":
        pen.rectangle((x - r * 0.9, y - r * 0.9, x + r * 0.9, y + r * 0.9), fill=255)
    elif shape == "cross":
        pen.rectangle((x - r, y - r * 0.33, x + r, y + r * 0.33), fill=255)
        pen.rectangle((x - r * 0.33, y - r, x + r * 0.33, y + r), fill=255)
    else:
        pen.polygon([(x + r * px, y + r * py) for px, py in OUTLINES[shape]], fill=255)
    return np.asarray(np.asarray(image.reduce(scale)) / 255, dtype=np.float32)


def _star() -> list[tuple[float, float]]:
    """Return a five-pointed star's corners, point up."""
    turns = np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, 1.05, 0.45)
    return [(float(r * np.sin(t)), float(-r * np.cos(t))) for t, r in zip(turns, reach, strict=True)]


def _heart() -> list[tuple[float, float]]:
    """Return points along a heart's edge (the well-known curve of sixteen sines cubed)."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = np.sin(turn) ** 3
    y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)) / 16
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True)]


OUTLINES: dict[str, list[tuple[float, float]]] = {
    "triangle": [(0.0, -1.0), (-1.0, 0.85), (1.0, 0.85)],
    "star": _star(),
    "heart": _heart(),
}


def shade(rng: random.Random, colour: str) -> Pixels:
    """Return a shade of the named colour, since no two reds are quite the same."""
    drift = rng.uniform(-10, 10)
    tone = [value + drift + rng.uniform(-6, 6) for value in PALETTE[colour]]
    return np.asarray(np.clip(tone, 0, 255), dtype=np.float32)


def fill(rng: random.Random, colour: str, pattern: str, width: int, height: int) -> Pixels:
    """Return a canvas of the named colour, plain or with stripes or dots in a lighter or darker tone of it."""
    base = shade(rng, colour)
    canvas = np.broadcast_to(base, (height, width, 3)).astype(np.float32)
    if not pattern:
        return canvas
    towards = 255.0 if base.mean() < 150 else 0.0
    other = base + (towards - base) * np.float32(0.5)
    across, down = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    period = rng.uniform(8, 11)
    if pattern == "striped":
        angle = rng.choice((0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4))
        wave = np.sin((across * np.cos(angle) + down * np.sin(angle)) * 2 * np.pi / period)
        share = (wave * period / 4 + 0.5).clip(0, 1)
    else:
        x, y = across % period - period / 2, down % period - period / 2
        share = (period * 0.3 - np.hypot(x, y) + 0.5).clip(0, 1)
    return np.asarray(canvas + (other - base) * share[..., None], dtype=np.float32)


def draw_view(rng: random.Random, width: int, height: int) -> Picture:
    """Draw clouds, stones or hills in two named colours, with the soft tones and the grain of a photograph."""
    first, second = rng.sample(list(PALETTE), 2)
    kind = rng.choice(VIEWS)
    if kind == "clouds":
        share = cloud(rng, width, height, rng.uniform(1.6, 2.2))
        share = (share * 0.45 + 0.5).clip(0, 1)[..., None]
        canvas = shade(rng, first) * share + shade(rng, second) * (1 - share)
        caption = f"a photo of {first} and {second} clouds"
    elif kind == "stones":
        canvas = dead_leaves(rng, width, height, (first, second))
        caption = f"a photo of {first} and {second} stones"
    else:
        canvas = hills(rng, width, height, first, second)
        caption = f"a photo of {first} hills under {noun_phrase(second, 'sky')}"
    return Picture(to_bytes(canvas + grain(rng, width, height)), caption)


def hills(rng: random.Random, width: int, height: int, ground: str, sky: str) -> Pixels:
    """Draw two ridges under a sky that grows lighter towards the horizon."""
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    heaven = shade(rng, sky) * (1 - 0.25 * down) + 255 * 0.25 * down
    canvas = np.broadcast_to(heaven, (height, width, 3)).astype(np.float32)
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.linspace(0, 1, width, dtype=np.float32)
    for level, light in ((0.5, 1.2), (0.7, 0.85)):
        wave = np.sin(columns * rng.uniform(3, 8) + rng.uniform(0, 6.3)) * 0.09
        wave = wave + np.sin(columns * rng.uniform(9, 16)) * 0.02
        ridge = (level + rng.uniform(-0.07, 0.07) + wave) * height
        mask = (rows - ridge + 0.5).clip(0, 1)[..., None]
        relief = 1 + 0.15 * cloud(rng, width, height, 1.5)[..., None]
        canvas = canvas + (shade(rng, ground) * light * relief - canvas) * mask
    return np.asarray(canvas, dtype=np.float32)


def dead_leaves(rng: random.Random, width: int, height: int, colours: tuple[str, ...] = ()) -> Pixels:
    """Draw overlapping patches of many sizes, in the named colours or in any, then shade, soften and roughen them."""
    image = Image.new("RGB", (width * 2, height * 2), leaf_tone(rng, colours))
    pen = ImageDraw.Draw(image)
    biggest = 2 * max(width, height) * rng.uniform(0.3, 0.9)
    for step in range(rng.randint(40, 90)):
        half = biggest / (1 + step * 0.12) * rng.uniform(0.6, 1.2)
        x, y = rng.uniform(0, width * 2), rng.uniform(0, height * 2)
        tone = leaf_tone(rng, colours)
        if rng.random() < 0.7 or colours:
            flat = rng.uniform(0.5, 1)
            pen.ellipse((x - half, y - half * flat, x + half, y + half * flat), fill=tone)
        else:
            turn = [rng.uniform(0, 2 * np.pi) for _ in range(rng.randint(3, 5))]
            pen.polygon([(x + half * np.cos(t), y + half * np.sin(t)) for t in sorted(turn)], fill=tone)
    image = image.reduce(2)
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 2.0)))
    light = 1 + rng.uniform(0.05, 0.25) * cloud(rng, width, height, rng.uniform(0.8, 2.0))
    canvas = np.asarray(image, dtype=np.float32) * light[..., None]
    return np.asarray(canvas + grain(rng, width, height), dtype=np.float32)


def leaf_tone(rng: random.Random, colours: tuple[str, ...]) -> RGB:
    """Return the colour of one patch: of the named ones, or any, mostly dull as in nature."""
    if colours:
        tone = shade(rng, rng.choice(colours)) * rng.uniform(0.75, 1.15)
    else:
        gray = rng.uniform(0, 255)
        vivid = rng.random() ** 2
        tone = np.array([gray + vivid * rng.uniform(-160, 160) for _ in range(3)], dtype=np.float32)
    red, green, blue = (int(value) for value in np.clip(tone, 0, 255))
    return red, green, blue


def cloud(rng: random.Random, width: int, height: int, slope: float) -> npt.NDArray[np.float32]:
    """Return noise of mean 0 and deviation 1 whose amplitude falls with frequency, like that of natural images."""
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal((height, width))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(noise) / frequency**slope, s=(height, width))
    return np.asarray(field / (field.std() + 1e-6), dtype=np.float32)


def grain(rng: random.Random, width: int, height: int) -> Pixels:
    """Return a film's grain: faint, and for most pictures next to nothing."""
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal((height, width, 3))
    return np.asarray(noise * (rng.random() ** 2 * 8), dtype=np.float32)


def to_bytes(canvas: Pixels) -> npt.NDArray[np.uint8]:
    """Round a canvas to bytes."""
    return np.asarray(canvas.clip(0, 255).round(), dtype=np.uint8)
