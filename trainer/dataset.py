"""Finds pictures, captions, masks and regularisation pictures, checks every one, and says how it read the folders.

Torch-free, so that the laptop checks with the same code as the rented machine trains: Pillow and the
standard library only. Collects every problem instead of stopping at the first. Never changes a file.

How a folder is read:

    parent of kohya folders     6_lisabp woman/  10_hat/     repeats and words from each folder's name
    a kohya folder itself       6_lisabp woman/*.jpg         the same, for one
    a plain folder              *.jpg + *.txt or *.caption   one repeat
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .masks import LABEL, Masks
from .notes import Notes, Problem, listed
from .opening import EXTENSIONS, OTHER_PICTURES, check_picture, has_transparency, inside
from .protocol import TrainingOptions
from .sidecars import CAPTION_EXTENSIONS, captions_for

LITTER = frozenset({"thumbs.db", "desktop.ini", ".ds_store"})
"""What systems leave in folders: nobody misses it."""

_KOHYA_FOLDER = re.compile(r"^(\d+)_(.*)$", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A picture that can be trained on."""

    image: Path
    caption: str
    repeats: int
    size: tuple[int, int]
    """Width, height as seen: after EXIF orientation."""
    folder: str
    """Name of the folder, for the adapter's metadata."""
    others: tuple[str, ...] = ()
    """Its further captions, where each line is one."""
    mask: Path | None = None
    text: Path | None = None
    """The file that the caption was read from."""

    @property
    def captions(self) -> tuple[str, ...]:
        """All that may be drawn."""
        return self.caption, *self.others

    @property
    def files(self) -> tuple[Path, ...]:
        """What must be there to train on it."""
        return tuple(path for path in (self.image, self.text) if path)


@dataclass(frozen=True, slots=True)
class Scan:
    """Everything that was found."""

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    reading: str
    """In words, how the folder was understood."""
    priors: tuple[Sample, ...] = ()
    """Regularisation pictures."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.severity == "error")


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One folder with pictures in it."""

    folder: Path
    repeats: int
    words: str
    """Caption of pictures that have none; empty: there is no such fallback."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """What one folder is read with."""

    options: TrainingOptions
    notes: Notes
    masks: Masks | None = None
    elsewhere: frozenset[Path] = field(default_factory=frozenset)
    """Folders that may lie inside this one and are read for something else."""


def scan(folder: Path, options: TrainingOptions, *, masks: Path | None = None, regularisation: Path | None = None) -> Scan:
    """Read a dataset folder, and those that go with it, and check every file in them."""
    elsewhere = frozenset(path.resolve() for path in (masks, regularisation) if path is not None)
    mask_notes = Notes(masks, "masks") if masks else None
    found_masks = Masks.read(masks, folder, options, mask_notes) if masks and mask_notes else None
    samples, problems, reading = _read(folder, _Reader(options, Notes(folder), found_masks, elsewhere))
    if found_masks:
        found_masks.say_unused()
        reading += f"; masks for {sum(sample.mask is not None for sample in samples)} of {len(samples)} pictures"
    problems += mask_notes.found if mask_notes else []
    if options.alpha_mask and samples and not any(has_transparency(sample.image) for sample in samples):
        notes = Notes(folder)
        notes.warning("LRY-DATA-MASK-MISSING", folder, "no picture is transparent anywhere: alpha_mask does nothing.", "Take it out.")
        problems += notes.found
    priors: list[Sample] = []
    if regularisation:
        # Trigger, prefix and suffix belong to what is learnt; these pictures show what is not to change.
        plain = options.model_copy(update={"trigger": None, "caption_prefix": "", "caption_suffix": "", "alpha_mask": False})
        priors, more, words = _read(regularisation, _Reader(plain, Notes(regularisation, "regularisation"), None, elsewhere))
        problems += more
        reading += f"; regularisation: {words}, {len(priors)} pictures"
        _warn_of_both(samples, priors, problems, regularisation)
    return Scan(tuple(samples), tuple(problems), reading, tuple(priors))


def _read(folder: Path, reader: _Reader) -> tuple[list[Sample], list[Problem], str]:
    """One folder with its kohya folders: what can be trained on, what is wrong, how it was understood."""
    notes = reader.notes
    if not folder.is_dir():
        fact = "is a file, not a folder" if folder.exists() else "is not there"
        what = "the dataset" if notes.key == "dataset" else f"the folder for {notes.key}"
        notes.error(
            "LRY-DATA-MISSING",
            folder,
            f"{what} {folder} {fact}.",
            "Give the folder that holds the pictures, or the parent of kohya folders.",
        )
        return [], notes.found, "nothing"
    try:
        leaves, reading = _understand(folder, reader)
        samples = [sample for leaf in leaves for sample in _samples_of(leaf, reader)]
    except PermissionError as error:
        notes.error(
            "LRY-DATA-UNREADABLE", Path(error.filename or folder), "the folder cannot be opened.", "Give yourself the right to read it."
        )
        return [], notes.found, "nothing"
    if not samples and not any(p.severity == "error" for p in notes.found):
        notes.error(
            "LRY-DATA-EMPTY",
            folder,
            f"no picture in {folder}.",
            f"Read are {' '.join(sorted(EXTENSIONS))}, in the folder itself or in kohya folders like `10_name class`.",
        )
    return samples, notes.found, reading


def _warn_of_both(samples: Sequence[Sample], priors: Sequence[Sample], problems: list[Problem], folder: Path) -> None:
    """The same file in both: it would be pulled two ways."""
    notes = Notes(folder, "regularisation")
    known: dict[int, list[Path]] = {}
    for sample in samples:
        known.setdefault(sample.image.stat().st_size, []).append(sample.image)
    for prior in priors:
        twins = known.get(prior.image.stat().st_size, [])
        if twins and (content := prior.image.read_bytes()) and (same := next((p for p in twins if p.read_bytes() == content), None)):
            notes.warning("LRY-DATA-BOTH", prior.image, f"is the same picture as {same.name} of the dataset.", "Take one of them away.")
    problems += notes.found


# --- how the folder is meant -----------------------------------------------------------------------


def _understand(folder: Path, reader: _Reader) -> tuple[list[_Leaf], str]:
    notes = reader.notes
    children = sorted(p for p in folder.iterdir() if p.is_dir() and p.resolve() not in reader.elsewhere)
    kohya = [(child, match) for child in children if (match := _KOHYA_FOLDER.match(child.name))]
    loose = sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and not p.is_dir())
    if kohya:
        leaves = [
            _Leaf(child, int(m[1]), m[2].strip())
            for child, m in kohya
            if inside(child, folder, notes) and _repeated(child, int(m[1]), notes)
        ]
        if loose:
            many = f"{len(loose)} picture{'s' if len(loose) > 1 else ''} beside the kohya folders"
            notes.warning("LRY-DATA-UNUSED", folder, f"{many} not read: {listed(loose)}.", "Move them into one of the folders.")
        _warn_of_unread(set(children) - {child for child, _ in kohya}, notes)
        names = ", ".join(f"`{leaf.folder.name}` (x{leaf.repeats})" for leaf in leaves)
        return leaves, f"parent of {len(leaves)} kohya folder{'s' if len(leaves) != 1 else ''}: {names}"
    match = _KOHYA_FOLDER.match(folder.resolve().name)
    if match:
        leaves = [_Leaf(folder, int(match[1]), match[2].strip())] if _repeated(folder, int(match[1]), notes) else []
        return leaves, f"one kohya folder: {match[1]} repeats of `{match[2].strip()}`"
    return [_Leaf(folder, 1, reader.options.trigger or "")], "plain folder of pictures with .txt or .caption files"


def _repeated(folder: Path, repeats: int, notes: Notes) -> bool:
    if repeats == 0:
        notes.warning("LRY-DATA-REPEATS", folder, "0 repeats: the folder is not used.", "Rename the folder if it should be.")
    elif repeats > 100_000:
        notes.error(
            "LRY-DATA-REPEATS",
            folder,
            f"{repeats} repeats cannot be meant.",
            "The number before the underscore is how often an epoch shows each picture.",
        )
        return False
    return repeats > 0


def _warn_of_unread(folders: set[Path], notes: Notes) -> None:
    for child in sorted(folders):
        pictures = sorted(p for p in child.iterdir() if p.suffix.lower() in EXTENSIONS)
        if pictures:
            many = f"{len(pictures)} picture{'s' if len(pictures) > 1 else ''} in this subfolder"
            hint = "Name it `<repeats>_<words>` as kohya does, or move the pictures up."
            notes.warning("LRY-DATA-UNUSED", child, f"{many} not read: {listed(pictures)}.", hint)


# --- one folder's files ----------------------------------------------------------------------------


def _samples_of(leaf: _Leaf, reader: _Reader) -> Iterator[Sample]:
    options, notes = reader.options, reader.notes
    files = sorted(leaf.folder.iterdir(), key=lambda p: os.fsencode(p.name))
    pictures = [p for p in files if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")]
    stems: dict[str, int] = {}
    for picture in pictures:
        stems[picture.stem] = stems.get(picture.stem, 0) + 1
    labels = [p for p in pictures if p.stem.endswith(LABEL) and p.stem.removesuffix(LABEL) in stems]
    _look_at_the_rest(files, set(stems), notes)
    _look_at_subfolders(files, leaf, reader)
    if labels and not (reader.masks and reader.masks.beside):
        notes.warning(
            "LRY-DATA-UNUSED",
            leaf.folder,
            f"masks beside the pictures, not used: {listed(labels)}.",
            "Set `masks` to this folder to use them.",
        )
    for picture in [p for p in pictures if p not in labels]:
        if not (_named_well(picture, notes) and inside(picture, notes.root, notes)):
            continue
        size = check_picture(picture, notes.error)
        said = captions_for(picture, leaf.words, options, notes)
        if stems[picture.stem] > 1:
            notes.warning(
                "LRY-DATA-CAPTION-SHARED",
                picture,
                "another picture has this name with another ending; both use one caption file.",
                "Rename one of them.",
            )
        if size is None or said is None:
            continue
        if max(size) < options.resolution // 2 and not options.bucket_no_upscale:
            notes.warning(
                "LRY-DATA-SMALL",
                picture,
                f"{size[0]}x{size[1]} is enlarged a lot to reach resolution {options.resolution}.",
                "Use a larger picture, a lower resolution, or bucket_no_upscale.",
            )
        (first, *others), text = said
        folder = leaf.folder.resolve().name
        mask = reader.masks.of(picture, size) if reader.masks else None
        yield Sample(
            image=picture, caption=first, others=tuple(others), repeats=leaf.repeats, size=size, folder=folder, mask=mask, text=text
        )


def _look_at_the_rest(files: Sequence[Path], stems: set[str], notes: Notes) -> None:
    rest = []
    for path in files:
        ending = path.suffix.lower()
        if ending in OTHER_PICTURES and not path.name.startswith("."):
            notes.error("LRY-DATA-FORMAT", path, f"{ending} pictures are not read.", "Convert it to PNG or JPEG, or take it away.")
        elif ending in CAPTION_EXTENSIONS and not path.name.startswith("."):
            if path.stem not in stems:
                fact = "a caption without a picture of the same name."
                notes.warning("LRY-DATA-CAPTION-STRAY", path, fact, "Check the names; the caption is not used.")
        elif path.name.lower() not in LITTER and (path.name.startswith(".") or ending not in EXTENSIONS) and not path.is_dir():
            rest.append(path)
    if rest:
        folder = rest[0].parent
        notes.warning("LRY-DATA-UNUSED", folder, f"no pictures and no captions, not read: {listed(rest)}.", "Nothing, if that is right.")


def _look_at_subfolders(files: Sequence[Path], leaf: _Leaf, reader: _Reader) -> None:
    """Pictures of a folder's own are read, those below it are not."""
    below = {p for p in files if p.suffix.lower() not in EXTENSIONS and p.is_dir() and p.resolve() not in reader.elsewhere}
    _warn_of_unread({p for p in below if not (leaf.folder == reader.notes.root and _KOHYA_FOLDER.match(p.name))}, reader.notes)


def _named_well(path: Path, notes: Notes) -> bool:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        notes.error("LRY-DATA-NAME", path, "the file's name is no Unicode text.", "Rename it.")
        return False
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in path.name):
        notes.error("LRY-DATA-NAME", path, "the file's name has control characters.", "Rename it.")
        return False
    return True
