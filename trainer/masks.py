"""Finds each picture's mask: white where the loss counts, black where it does not.

A mask has its picture's name, with any ending that pictures have, in a folder of its own that is laid out as the dataset is, or flat;
or, as OneTrainer keeps them, it lies beside its picture and is called `NAME-masklabel.png`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .notes import Notes, listed
from .opening import EXTENSIONS, brightest, check_picture
from .protocol import TrainingOptions

LABEL = "-masklabel"
CROOKED = 0.02
"""Masks whose sides differ from their pictures' by more in proportion are not of this picture."""


@dataclass(slots=True)
class Masks:
    """The masks of a dataset."""

    folder: Path
    dataset: Path
    options: TrainingOptions
    notes: Notes
    beside: bool
    """Whether masks lie among the pictures: then only labelled ones are."""
    _known: dict[tuple[str, str], Path] = field(default_factory=dict)
    """Folder below the masks' own, and name of the picture -> its mask."""
    _used: set[Path] = field(default_factory=set)

    @classmethod
    def read(cls, folder: Path, dataset: Path, options: TrainingOptions, notes: Notes) -> Masks | None:
        """Look through the folder; None when there is none."""
        if not folder.is_dir():
            fact = "is a file, not a folder" if folder.exists() else "is not there"
            notes.error("LRY-DATA-MISSING", folder, f"the folder for masks {folder} {fact}.", "Give the folder that holds the masks.")
            return None
        masks = cls(folder, dataset, options, notes, beside=folder.resolve() == dataset.resolve())
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in EXTENSIONS or any(part.startswith(".") for part in path.relative_to(folder).parts):
                continue
            if masks.beside and not path.stem.endswith(LABEL):
                continue
            place = path.parent.relative_to(folder).as_posix(), path.stem.removesuffix(LABEL)
            if place in masks._known:
                fact = f"is a second mask of its picture; {masks._known[place].name} is used."
                notes.warning("LRY-DATA-UNUSED", path, fact, "Take one of them away.")
                masks._used.add(path)
            else:
                masks._known[place] = path
        return masks

    def of(self, picture: Path, size: tuple[int, int]) -> Path | None:
        """The mask of a picture; None where it has none that can be used, and then all of it counts."""
        below = picture.parent.relative_to(self.dataset).as_posix()
        places = (below, ".", self.dataset.resolve().name)  # as the dataset is laid out, flat, or as a kohya folder of its own
        mask = next((found for place in places if (found := self._known.get((place, picture.stem)))), None)
        if mask is None:
            hint = f"Put {picture.stem}.png among the masks if part of it should not be learnt."
            self.notes.warning("LRY-DATA-MASK-MISSING", picture, "has no mask: all of it is trained on.", hint)
            return None
        self._used.add(mask)
        if not mask.resolve().is_relative_to(self.folder.resolve()):
            self.notes.error("LRY-DATA-LINK", mask, "a symbolic link to outside of the masks.", "Copy the file into the folder.")
            return None
        own = check_picture(mask, self.notes.error)
        if own is None:
            return None
        if abs(own[0] * size[1] / (own[1] * size[0]) - 1) > CROOKED:
            fact = f"the mask is {own[0]}x{own[1]} and its picture {size[0]}x{size[1]}: other proportions."
            self.notes.error("LRY-DATA-MASK-SIZE", mask, fact, "Make the mask from this picture.")
            return None
        if brightest(mask) == 0 and self.options.mask_min_weight == 0:
            fact = "the mask is black: nothing of its picture would be trained on."
            self.notes.error("LRY-DATA-MASK-EMPTY", mask, fact, "Paint white what is to be learnt, set mask_min_weight, or take it away.")
            return None
        return mask

    def say_unused(self) -> None:
        """Name masks without a picture."""
        if stray := [path for path in self._known.values() if path not in self._used]:
            fact = f"masks without a picture of the same name: {listed(stray)}."
            self.notes.warning("LRY-DATA-UNUSED", self.folder, fact, "Check the names; they are not used.")
