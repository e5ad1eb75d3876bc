"""Measures what the demo's pictures show, with nothing but the pixels: no network is asked and nothing is downloaded.

Two questions are answered:

* `nearness`: do generated pictures lie nearer to one set of pictures than to another? With a LoRA they should come
  nearer to its training subject than the same prompts and seeds do without it.
* `adherence`: does the base do as its prompts say? Prompts name a shape, its colour and the background's colour; all
  three are read back from the picture.

    python -m templates.demo.evaluate templates/demo/base --sheet sheet.png

run from the root of the repository prints the adherence of a model and draws a sheet of examples.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .pictures import PALETTE, SHAPES, noun_phrase, shape_mask

Floats = npt.NDArray[np.float64]

STEPS, GUIDANCE = 20, 4.0
LAYOUT_SIDE = 6
HISTOGRAM_BINS = 4
MASK_SIDE = 24
NEIGHBOURS = 3


def features(image: Image.Image) -> tuple[Floats, Floats]:
    """Describe a picture by its colour layout (a 6 x 6 thumbnail) and by how its pixels spread over 64 colours.

    The histogram is soft, each pixel counting for the colours on either side of it, so that a small change of light
    changes it little.
    """
    picture = image.convert("RGB")
    layout = np.asarray(picture.resize((LAYOUT_SIDE, LAYOUT_SIDE), Image.Resampling.BOX), dtype=np.float64) / 255
    pixels = np.asarray(picture.resize((48, 48), Image.Resampling.BOX), dtype=np.float64).reshape(-1, 3) / 255
    weights = 1 - np.abs(pixels[:, :, None] * (HISTOGRAM_BINS - 1) - np.arange(HISTOGRAM_BINS))
    red, green, blue = weights.clip(0, 1).transpose(1, 0, 2)
    histogram = np.einsum("pr,pg,pb->rgb", red, green, blue) / len(pixels)
    return layout, histogram


def distance(one: Image.Image, other: Image.Image) -> float:
    """Return how unlike two pictures are, from 0 to 1: half by their layout, half by their colours."""
    (layout, histogram), (other_layout, other_histogram) = features(one), features(other)
    by_layout = float(np.abs(layout - other_layout).mean())
    by_colour = float(np.abs(histogram - other_histogram).sum()) / 2
    return (by_layout + by_colour) / 2


def distance_to_set(image: Image.Image, pictures: Sequence[Image.Image]) -> float:
    """Return the mean distance to the nearest three of a set: a picture need be like some of them, not like all."""
    distances = sorted(distance(image, picture) for picture in pictures)[:NEIGHBOURS]
    return sum(distances) / len(distances)


@dataclass(frozen=True)
class Nearness:
    """Mean distances of generated pictures to the references and to another set; smaller is nearer."""

    to_references: float
    to_others: float

    @property
    def margin(self) -> float:
        """Return by how much the references are nearer; negative when the others are."""
        return self.to_others - self.to_references


def nearness_of(images: Sequence[Image.Image], references: Sequence[Image.Image], others: Sequence[Image.Image]) -> Nearness:
    """Compare finished pictures with two sets."""
    return Nearness(
        to_references=float(np.mean([distance_to_set(image, references) for image in images])),
        to_others=float(np.mean([distance_to_set(image, others) for image in images])),
    )


def nearness(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    references: Sequence[Image.Image],
    others: Sequence[Image.Image],
    **settings: Any,
) -> Nearness:
    """Generate a picture for each prompt and seed and compare them with two sets; ``settings`` go to `generate`."""
    return nearness_of(generate(pipeline, prompts, seeds, **settings), references, others)


def generate(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    size: tuple[int, int] = (64, 64),
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> list[Image.Image]:
    """Return one picture per prompt and seed, the seeds of the first prompt first; ``size`` is width and height."""
    import torch

    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for prompt in prompts:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images += pipeline(
            [prompt] * len(seeds),
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
        ).images
    return images


def load_pictures(folder: Path) -> list[Image.Image]:
    """Read every picture of a folder and the folders in it, in the order of their names."""
    pictures = []
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as opened:
            pictures.append(opened.convert("RGB"))
    return pictures


@dataclass(frozen=True)
class Content:
    """What a picture of one shape shows, or was asked to show; empty strings where nothing can be told."""

    background: str
    colour: str
    shape: str

    def prompt(self) -> str:
        """Word this as the base's captions do."""
        return f"{noun_phrase(self.colour, self.shape)} on {noun_phrase(self.background, 'background')}"


@dataclass(frozen=True)
class Adherence:
    """The share of pictures in which each thing was as asked."""

    background: float
    colour: float
    shape: float
    cases: int

    def __str__(self) -> str:
        """Return the shares in per cent."""
        shares = f"background {self.background:.0%}, colour {self.colour:.0%}, shape {self.shape:.0%}"
        return f"{shares} (of {self.cases} pictures)"


def read_content(image: Image.Image) -> Content:
    """Read the background's colour from the rim, and the shape and its colour from the pixels that differ from it."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    rim = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, 0], pixels[:, -1]])
    background = np.median(rim, axis=0)
    mask = np.linalg.norm(pixels - background, axis=-1) > 45
    if mask.mean() < 0.015:
        return Content(nearest_colour(background), "", "")
    colour = nearest_colour(np.median(pixels[mask], axis=0))
    return Content(nearest_colour(background), colour, nearest_shape(mask))


def nearest_colour(pixel: Floats) -> str:
    """Return the name of the palette's nearest colour."""
    return min(PALETTE, key=lambda name: float(np.linalg.norm(pixel - np.array(PALETTE[name]))))


def nearest_shape(mask: npt.NDArray[np.bool_]) -> str:
    """Return the shape whose outline, brought to the same size, covers most of the same pixels."""
    seen = standard_mask(mask)
    fits = {}
    for shape in SHAPES:
        model = standard_mask(shape_mask(shape, (48, 48), 40, 96, 96) > 0.5)
        fits[shape] = float((seen & model).sum() / (seen | model).sum())
    return max(fits, key=lambda shape: fits[shape])


def standard_mask(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Cut a mask to what it holds, leaving out stray pixels at the edges, and bring it to a fixed size."""
    rows, columns = (np.flatnonzero(mask.sum(axis=axis) > 1) for axis in (1, 0))
    if not len(rows) or not len(columns):
        rows, columns = np.arange(mask.shape[0]), np.arange(mask.shape[1])
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray(cut.astype(np.uint8) * 255).resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BOX)
    return np.asarray(image) > 127


def wishes(count: int, seed: int = 0) -> list[Content]:
    """Return things to ask for: every shape in turn, in two colours picked at random."""
    rng = random.Random(seed)
    colours = (rng.sample(list(PALETTE), 2) for _ in range(count))
    return [Content(one, other, SHAPES[number % len(SHAPES)]) for number, (one, other) in enumerate(colours)]


def adherence(pipeline: Any, count: int = 56, seed: int = 0, **settings: Any) -> Adherence:
    """Ask the pipeline for pictures of one shape and count what came as asked; ``settings`` go to `generate`."""
    wanted = wishes(count, seed)
    shown = []
    for number, wish in enumerate(wanted):
        shown += [read_content(image) for image in generate(pipeline, [wish.prompt()], [seed + number], **settings)]
    return compare(wanted, shown)


def compare(wanted: Sequence[Content], shown: Sequence[Content]) -> Adherence:
    """Count in how many pictures each thing is as wanted."""
    pairs = list(zip(wanted, shown, strict=True))
    return Adherence(
        background=share(wish.background == seen.background for wish, seen in pairs),
        colour=share(wish.colour == seen.colour for wish, seen in pairs),
        shape=share(wish.shape == seen.shape for wish, seen in pairs),
        cases=len(pairs),
    )


def share(hits: Iterable[bool]) -> float:
    """Return the share of what is true."""
    return float(np.mean(list(hits)))


EXAMPLES = (
    "a red circle on a white background",
    "a blue square on a yellow background",
    "a big green triangle on a black background",
    "a small white star on a red background",
    "a purple heart on a pink background",
    "a striped orange ring on a blue background",
    "a black cross on the left on a gray background",
    "a yellow circle and a red square on a green background",
    "a red heart, dotted blue background",
    "a photo of green hills under a blue sky",
    "a photo of white and blue clouds",
    "a photo of gray and brown stones",
)


def contact_sheet(images: Sequence[Image.Image], columns: int, cell: int = 128) -> Image.Image:
    """Lay pictures out in rows, enlarged without smoothing so that each pixel can be seen."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell))
    for place, image in enumerate(images):
        factor = cell / max(image.size)
        scaled = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.NEAREST)
        sheet.paste(scaled, (place % columns * cell, place // columns * cell))
    return sheet


def main() -> None:
    """Read the command line, measure a model's adherence and draw a sheet of examples."""
    parser = argparse.ArgumentParser(description="Measure how well the demo's base does as its prompts say.")
    parser.add_argument("model", type=Path, help="folder of a diffusers pipeline")
    parser.add_argument("--count", type=int, default=56, help="pictures to judge")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help="guidance scale")
    parser.add_argument("--sheet", type=Path, help="file to draw example pictures into, one prompt a row")
    options = parser.parse_args()

    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(options.model, dtype=torch.float32)
    if options.sheet:
        contact_sheet(generate(pipeline, EXAMPLES, range(6), guidance=options.guidance), 6).save(options.sheet)
    print(adherence(pipeline, options.count, guidance=options.guidance))


if __name__ == "__main__":
    main()
