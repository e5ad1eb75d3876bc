"""Finds pictures and captions, checks every one, and says how it read the folder.

Torch-free, so that the laptop checks with the same code as the rented machine trains: Pillow and the
standard library only. Collects every problem instead of stopping at the first. Never changes a file.

How a folder is read:

    parent of kohya folders     6_lisabp woman/  10_hat/     repeats and words from each folder's name
    a kohya folder itself       6_lisabp woman/*.jpg         the same, for one
    a plain folder              *.jpg + *.txt or *.caption   one repeat
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from . import buckets
from .protocol import TrainingOptions

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
OTHER_PICTURES = frozenset(
    {
        ".gif",
        ".heic",
        ".heif",
        ".avif",
        ".jxl",
        ".jp2",
        ".psd",
        ".svg",
        ".raw",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".dng",
        ".ico",
        ".tga",
        ".exr",
    }
)
CAPTION_EXTENSIONS = (".txt", ".caption")
"""Both are read: kohya's default `.caption` alone is the most frequent reason for captions that are not used."""

MAX_PIXELS = 100_000_000
"""Told from the header, before anything is decoded: a 100-megapixel picture takes 300 MB as RGB."""
MAX_CAPTION_BYTES = 64 * 1024
EXIF_ORIENTATION = 0x0112
TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""

_KOHYA_FOLDER = re.compile(r"^(\d+)_(.*)$", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong with the dataset, and what to do about it."""

    code: str
    path: str
    message: str
    hint: str
    line: int | None = None
    severity: Literal["error", "warning"] = "error"


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


@dataclass(frozen=True, slots=True)
class Scan:
    """Everything that was found."""

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    reading: str
    """In words, how the folder was understood."""

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


@dataclass(slots=True)
class _Notes:
    """Where problems are collected; paths are shown relative to the dataset."""

    root: Path
    found: list[Problem] = field(default_factory=list)

    def error(self, code: str, path: Path, message: str, hint: str, line: int | None = None) -> None:
        self.found.append(Problem(code=code, path=_shown(path, self.root), message=message, hint=hint, line=line))

    def warning(self, code: str, path: Path, message: str, hint: str, line: int | None = None) -> None:
        self.found.append(Problem(code=code, path=_shown(path, self.root), message=message, hint=hint, line=line, severity="warning"))


def scan(folder: Path, options: TrainingOptions) -> Scan:
    """Read a dataset folder and check every file in it."""
    notes = _Notes(folder)
    if not folder.is_dir():
        fact = "is a file, not a folder" if folder.exists() else "is not there"
        notes.error(
            "LRY-DATA-MISSING",
            folder,
            f"the dataset {folder} {fact}.",
            "Give the folder that holds the pictures, or the parent of kohya folders.",
        )
        return Scan((), tuple(notes.found), "nothing")
    try:
        leaves, reading = _understand(folder, options, notes)
        samples = [sample for leaf in leaves for sample in _samples_of(leaf, options, notes)]
    except PermissionError as error:
        notes.error(
            "LRY-DATA-UNREADABLE", Path(error.filename or folder), "the folder cannot be opened.", "Give yourself the right to read it."
        )
        return Scan((), tuple(notes.found), "nothing")
    if not samples and not any(p.severity == "error" for p in notes.found):
        notes.error(
            "LRY-DATA-EMPTY",
            folder,
            f"no picture in {folder}.",
            f"Read are {' '.join(sorted(EXTENSIONS))}, in the folder itself or in kohya folders like `10_name class`.",
        )
    return Scan(tuple(samples), tuple(notes.found), reading)


def rules(options: TrainingOptions) -> buckets.Rules:
    """The bucket rules of a job."""
    return buckets.Rules(options.resolution, options.min_bucket, options.max_bucket, options.bucket_step, options.bucket_no_upscale)


def fits(options: TrainingOptions, samples: Sequence[Sample]) -> list[buckets.Fit]:
    """Each sample's bucket."""
    rule = rules(options)
    known = buckets.enumerate_buckets(rule)
    return [buckets.fit(sample.size, rule, known) for sample in samples]


FEW = 10
"""Below so many pictures each one is needed for training."""
MOST_HELD_OUT = 8


def split(options: TrainingOptions, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Pictures to train on, and pictures to measure by. Chosen by their file names, so that a further picture moves none of the others."""
    many = options.heldout
    if many is None:
        many = min(len(samples) // 10, MOST_HELD_OUT) if len(samples) >= FEW else 0
    many = min(many, len(samples) - 1) if samples else 0
    order = sorted(range(len(samples)), key=lambda i: (hashlib.sha256(os.fsencode(samples[i].image.name)).digest(), i))
    kept = set(order[:many])
    return [s for i, s in enumerate(samples) if i not in kept], [s for i, s in enumerate(samples) if i in kept]


def plan(options: TrainingOptions, samples: Sequence[Sample]) -> buckets.Plan:
    """Batches, steps and epochs of all samples of a dataset, less those held out; counted as kohya counts them."""
    trained, _ = split(options, samples)
    return buckets.plan(
        [fit.bucket for fit in fits(options, trained)],
        [sample.repeats for sample in trained],
        batch_size=options.batch_size,
        accumulation=options.gradient_accumulation,
        steps=options.steps,
        epochs=options.epochs,
    )


def total_steps(options: TrainingOptions, samples: Sequence[Sample]) -> int:
    """Optimizer steps of the job."""
    return plan(options, samples).steps


# --- how the folder is meant -----------------------------------------------------------------------


def _understand(folder: Path, options: TrainingOptions, notes: _Notes) -> tuple[list[_Leaf], str]:
    children = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    kohya = [(child, match) for child in children if (match := _KOHYA_FOLDER.match(child.name))]
    loose = [p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS]
    if kohya:
        leaves = [
            _Leaf(child, int(m[1]), m[2].strip())
            for child, m in kohya
            if _inside(child, folder, notes) and _repeated(child, int(m[1]), notes)
        ]
        if loose:
            notes.warning(
                "LRY-DATA-UNUSED",
                folder,
                f"{len(loose)} pictures beside the kohya folders are not read.",
                "Move them into one of the folders.",
            )
        _warn_of_unread(set(children) - {child for child, _ in kohya}, notes)
        names = ", ".join(f"`{leaf.folder.name}` (x{leaf.repeats})" for leaf in leaves)
        return leaves, f"parent of {len(leaves)} kohya folder{'s' if len(leaves) != 1 else ''}: {names}"
    _warn_of_unread(set(children), notes)
    match = _KOHYA_FOLDER.match(folder.resolve().name)
    if match and _repeated(folder, int(match[1]), notes):
        return [_Leaf(folder, int(match[1]), match[2].strip())], f"one kohya folder: {match[1]} repeats of `{match[2].strip()}`"
    return [_Leaf(folder, 1, options.trigger or "")], "plain folder of pictures with .txt or .caption files"


def _repeated(folder: Path, repeats: int, notes: _Notes) -> bool:
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


def _warn_of_unread(folders: set[Path], notes: _Notes) -> None:
    for child in sorted(folders):
        count = sum(1 for p in child.iterdir() if p.suffix.lower() in EXTENSIONS)
        if count:
            notes.warning(
                "LRY-DATA-UNUSED",
                child,
                f"{count} pictures in this subfolder are not read.",
                "Name it `<repeats>_<words>` as kohya does, or move the pictures up.",
            )


# --- one folder's files ----------------------------------------------------------------------------


def _samples_of(leaf: _Leaf, options: TrainingOptions, notes: _Notes) -> Iterator[Sample]:
    files = sorted((p for p in leaf.folder.iterdir() if not p.name.startswith(".")), key=lambda p: os.fsencode(p.name))
    pictures = [p for p in files if p.suffix.lower() in EXTENSIONS]
    stems: dict[str, int] = {}
    for picture in pictures:
        stems[picture.stem] = stems.get(picture.stem, 0) + 1
    _look_at_the_rest(files, set(stems), notes)
    for picture in pictures:
        if not (_named_well(picture, notes) and _inside(picture, notes.root, notes)):
            continue
        size = check_picture(picture, notes.error)
        caption = _caption_for(picture, leaf, options, notes)
        if stems[picture.stem] > 1:
            notes.warning(
                "LRY-DATA-CAPTION-SHARED",
                picture,
                "another picture has this name with another ending; both use one caption file.",
                "Rename one of them.",
            )
        if size is None or caption is None:
            continue
        if max(size) < options.resolution // 2 and not options.bucket_no_upscale:
            notes.warning(
                "LRY-DATA-SMALL",
                picture,
                f"{size[0]}x{size[1]} is enlarged a lot to reach resolution {options.resolution}.",
                "Use a larger picture, a lower resolution, or bucket_no_upscale.",
            )
        yield Sample(image=picture, caption=caption, repeats=leaf.repeats, size=size, folder=leaf.folder.resolve().name)


def _look_at_the_rest(files: Sequence[Path], stems: set[str], notes: _Notes) -> None:
    for path in files:
        ending = path.suffix.lower()
        if ending in OTHER_PICTURES:
            notes.error("LRY-DATA-FORMAT", path, f"{ending} pictures are not read.", "Convert it to PNG or JPEG, or take it away.")
        elif ending in CAPTION_EXTENSIONS and path.stem not in stems:
            notes.warning(
                "LRY-DATA-CAPTION-STRAY", path, "a caption without a picture of the same name.", "Check the names; the caption is not used."
            )


def _named_well(path: Path, notes: _Notes) -> bool:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        notes.error("LRY-DATA-NAME", path, "the file's name is no Unicode text.", "Rename it.")
        return False
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in path.name):
        notes.error("LRY-DATA-NAME", path, "the file's name has control characters.", "Rename it.")
        return False
    return True


def _inside(path: Path, root: Path, notes: _Notes) -> bool:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        notes.error("LRY-DATA-LINK", path, "a symbolic link that leads nowhere.", "Remove it, or put the file in its place.")
        return False
    if not target.is_relative_to(root.resolve()):
        notes.error("LRY-DATA-LINK", path, "a symbolic link to outside of the dataset.", "Copy the file into the dataset.")
        return False
    return True


def check_picture(path: Path, complain: Callable[[str, Path, str, str], None]) -> tuple[int, int] | None:
    """Decode a picture fully; its size as seen, or None when it cannot be used (and `complain` knows why)."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            complain("LRY-DATA-NOT-A-FILE", path, "it is no ordinary file.", "Take it away.")
            return None
        if status.st_size == 0:
            complain("LRY-DATA-ZERO", path, "the file is empty.", "Fetch it again, or take it away.")
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            return _decoded_size(path, complain)
    except Image.DecompressionBombError:
        complain("LRY-DATA-HUGE", path, f"more than {MAX_PIXELS // 1_000_000} megapixels.", "Make it smaller; training shrinks it anyway.")
    except PermissionError:
        complain("LRY-DATA-UNREADABLE", path, "the file cannot be opened.", "Give yourself the right to read it.")
    except UnidentifiedImageError:
        complain("LRY-DATA-CORRUPT", path, "the file is no picture.", "Fetch it again, or take it away.")
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        # Pillow's decoders raise all of these on damaged files.
        complain(
            "LRY-DATA-CORRUPT",
            path,
            f"the picture cannot be decoded ({str(error)[:100] or type(error).__name__}).",
            "Fetch it again, or take it away.",
        )
    return None


def _decoded_size(path: Path, complain: Callable[[str, Path, str, str], None]) -> tuple[int, int] | None:
    with Image.open(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            complain(
                "LRY-DATA-HUGE",
                path,
                f"{width}x{height} is more than {MAX_PIXELS // 1_000_000} megapixels.",
                "Make it smaller; training shrinks it anyway.",
            )
            return None
        if getattr(image, "is_animated", False):
            complain("LRY-DATA-ANIMATED", path, "an animation.", "Save one frame as a picture.")
            return None
        image.verify()
    with Image.open(path) as image:  # verify() leaves the file unusable, and does not see a cut JPEG
        image.load()
        turned = image.getexif().get(EXIF_ORIENTATION) in TURNED
    return (height, width) if turned else (width, height)


# --- captions --------------------------------------------------------------------------------------


def _caption_for(picture: Path, leaf: _Leaf, options: TrainingOptions, notes: _Notes) -> str | None:
    files = [path for ending in CAPTION_EXTENSIONS if (path := picture.with_suffix(ending)).is_file()]
    if len(files) > 1:
        notes.warning(
            "LRY-DATA-CAPTION-TWO",
            picture,
            f"has both {files[0].name} and {files[1].name}; {files[0].name} is used.",
            "Remove one of them.",
        )
    if not files:
        return _fallback(picture, leaf, options, notes)
    if not _inside(files[0], notes.root, notes):
        return None
    caption = _read_caption(files[0], notes)
    if caption == "":
        if leaf.words or options.trigger:
            notes.warning(
                "LRY-DATA-CAPTION-EMPTY",
                files[0],
                f"the caption is empty; `{leaf.words or options.trigger}` is used.",
                "Write what the picture shows.",
            )
            return leaf.words or options.trigger
        notes.error("LRY-DATA-CAPTION-EMPTY", files[0], "the caption is empty.", "Write what the picture shows, or set `trigger`.")
        return None
    return None if caption is None else _with_trigger(caption, options.trigger)


def _fallback(picture: Path, leaf: _Leaf, options: TrainingOptions, notes: _Notes) -> str | None:
    words = _with_trigger(leaf.words, options.trigger) if leaf.words else options.trigger
    if words:
        hint = f"Write {picture.stem}.txt if the picture shows more than that."
        notes.warning("LRY-DATA-CAPTION-MISSING", picture, f"has no caption; `{words}` is used.", hint)
        return words
    hint = f"Write {picture.stem}.txt (or .caption), set `trigger`, or name the folder `<repeats>_<words>`."
    notes.error("LRY-DATA-CAPTION-MISSING", picture, "has no caption.", hint)
    return None


def _with_trigger(caption: str, trigger: str | None) -> str:
    if not trigger or trigger.casefold() in caption.casefold():
        return caption
    return f"{trigger}, {caption}"


def _read_caption(path: Path, notes: _Notes) -> str | None:
    """The caption's text, empty if there is none; None when it cannot be used."""
    try:
        if path.stat().st_size > MAX_CAPTION_BYTES:
            notes.error(
                "LRY-DATA-CAPTION-LONG",
                path,
                f"larger than {MAX_CAPTION_BYTES // 1024} KiB: no caption is.",
                "Check that this is the right file.",
            )
            return None
        raw = path.read_bytes()
    except OSError:
        notes.error("LRY-DATA-UNREADABLE", path, "the caption cannot be opened.", "Give yourself the right to read it.")
        return None
    text = _decoded(path, raw, notes)
    if text is None:
        return None
    for number, line in enumerate(text.splitlines(), 1):
        if any((ord(c) < 32 and c != "\t") or ord(c) == 127 for c in line):
            notes.error("LRY-DATA-CAPTION-NUL", path, "the caption has control characters.", "Save it as plain UTF-8 text.", number)
            return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        notes.warning("LRY-DATA-CAPTION-LINES", path, f"{len(lines)} lines; only the first is used.", "Write the caption on one line.", 2)
    return lines[0] if lines else ""


def _decoded(path: Path, raw: bytes, notes: _Notes) -> str | None:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
    utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = None if utf16 else _as_cp1252(raw)
    if text is None:
        notes.error("LRY-DATA-CAPTION-ENCODING", path, f"the caption is {'UTF-16' if utf16 else 'not UTF-8'}.", "Save it as UTF-8.", line)
        return None
    notes.warning(
        "LRY-DATA-CAPTION-ENCODING",
        path,
        "the caption is not UTF-8; it was read as Windows-1252.",
        "Save it as UTF-8 if letters look wrong.",
        line,
    )
    return text


def _as_cp1252(raw: bytes) -> str | None:
    try:
        return raw.decode("cp1252")
    except UnicodeDecodeError:
        return None


def _shown(path: Path, root: Path) -> str:
    try:
        shown = str(path.relative_to(root.parent))
    except ValueError:
        shown = str(path)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)
