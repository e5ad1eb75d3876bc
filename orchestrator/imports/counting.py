"""The pictures that a config speaks of, where they are at hand: how many there are, how large, how often lorry shows each.

Another trainer's epochs become the same number of steps only where the pictures can be counted. Reads headers and names; decodes nothing.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from trainer import buckets
from trainer.opening import EXIF_ORIENTATION, EXTENSIONS, TURNED
from trainer.sidecars import CAPTION_EXTENSIONS

KOHYA_FOLDER = re.compile(r"^(\d+)_(.*)$", re.DOTALL)
MOST_PICTURES = 20_000


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, and how often an epoch of lorry's shows it."""

    file: Path
    size: tuple[int, int]
    """Width, height as seen."""
    repeats: int

    @property
    def captioned(self) -> bool:
        """Whether a caption file stands beside it."""
        return any(self.file.with_suffix(ending).is_file() for ending in CAPTION_EXTENSIONS)


def pictures(folder: Path) -> list[Picture] | None:
    """The pictures that lorry reads in a folder; None where it is not at hand, or not all of it can be read."""
    try:
        return [Picture(file, _size(file), repeats) for leaf, repeats in _leaves(folder) for file in _files(leaf)] or None
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def repeats_in_name(folder: Path) -> int | None:
    """What the names say of how often lorry shows a picture of this folder; None where its subfolders say different things."""
    said = {repeats for _, repeats in _leaves(folder)} if folder.is_dir() else {_own_repeats(folder)}
    return said.pop() if len(said) == 1 else None


def _own_repeats(folder: Path) -> int:
    match = KOHYA_FOLDER.match(folder.name)
    return int(match[1]) if match else 1


def _leaves(folder: Path) -> list[tuple[Path, int]]:
    """As `trainer.dataset` understands a folder: kohya's subfolders, else the folder itself."""
    inside = sorted(child for child in folder.iterdir() if child.is_dir() and KOHYA_FOLDER.match(child.name))
    return [(child, _own_repeats(child)) for child in inside] or [(folder, _own_repeats(folder.resolve()))]


def _files(leaf: Path) -> Iterator[Path]:
    for number, file in enumerate(sorted(leaf.iterdir())):
        if number > MOST_PICTURES:
            raise ValueError("too many to count")
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith("."):
            yield file


def _size(file: Path) -> tuple[int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(EXIF_ORIENTATION) in TURNED else (width, height)


def bucketed(sizes: Iterable[tuple[int, int]], rules: buckets.Rules) -> list[tuple[int, int]]:
    """The bucket of each picture, by the rules that lorry and kohya share."""
    known = buckets.enumerate_buckets(rules)
    return [buckets.fit(size, rules, known).bucket for size in sizes]


def steps_per_epoch(groups: Sequence[tuple[Hashable, int]], batch_size: int, accumulation: int, *, keep_incomplete: bool) -> int:
    """Optimizer steps of one epoch of (bucket, repeats): a batch is of one bucket, and an incomplete one counts or is dropped."""
    counts: Counter[Hashable] = Counter()
    for bucket, repeats in groups:
        counts[bucket] += repeats
    batches = sum(-(-n // batch_size) if keep_incomplete else n // batch_size for n in counts.values())
    return math.ceil(batches / accumulation)


def with_regularisation(train: Sequence[int], reg: Sequence[int]) -> list[int]:
    """How often kohya shows each regularisation picture: until there are as many as training pictures, those left over never.

    `train` and `reg` are the repeats of each picture, in order. The first round gives each its own repeats, the later ones one more.
    """
    wanted, shown, given, first = sum(train), [0] * len(reg), 0, True
    while reg and given < wanted:
        for index, repeats in enumerate(reg):
            more = repeats if first else 1
            shown[index] += more
            given += more
            if given >= wanted:
                break
        first = False
        if not any(reg):
            break
    return shown
