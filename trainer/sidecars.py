"""Reads the caption that lies beside a picture, or says what stands in for it."""

from __future__ import annotations

from pathlib import Path

from . import captions
from .notes import Notes
from .opening import inside
from .protocol import TrainingOptions

CAPTION_EXTENSIONS = (".txt", ".caption")
"""Both are read: kohya's default `.caption` alone is the most frequent reason for captions that are not used."""
MAX_CAPTION_BYTES = 64 * 1024


def captions_for(picture: Path, fallback: str, options: TrainingOptions, notes: Notes) -> tuple[tuple[str, ...], Path | None] | None:
    """The picture's captions, with the file they come from; None when it has none that can be used, and `notes` knows why."""
    files = [path for ending in CAPTION_EXTENSIONS if (path := picture.with_suffix(ending)).is_file()]
    if len(files) > 1:
        notes.warning(
            "LRY-DATA-CAPTION-TWO",
            picture,
            f"has both {files[0].name} and {files[1].name}; {files[0].name} is used.",
            "Remove one of them.",
        )
    words = captions.dressed(fallback, options)
    if not files:
        if words:
            hint = f"Write {picture.stem}.txt if the picture shows more than that."
            notes.warning("LRY-DATA-CAPTION-MISSING", picture, f"has no caption; `{words}` is used.", hint)
            return (words,), None
        hint = f"Write {picture.stem}.txt (or .caption), set `trigger`, or name the folder `<repeats>_<words>`."
        notes.error("LRY-DATA-CAPTION-MISSING", picture, "has no caption.", hint)
        return None
    if not inside(files[0], notes.root, notes):
        return None
    lines = _read_lines(files[0], notes, every=options.several_captions)
    if lines is None:
        return None
    if lines:
        return tuple(dict.fromkeys(captions.dressed(line, options) for line in lines)), files[0]
    if words:
        notes.warning("LRY-DATA-CAPTION-EMPTY", files[0], f"the caption is empty; `{words}` is used.", "Write what the picture shows.")
        return (words,), files[0]
    notes.error("LRY-DATA-CAPTION-EMPTY", files[0], "the caption is empty.", "Write what the picture shows, or set `trigger`.")
    return None


def _read_lines(path: Path, notes: Notes, *, every: bool) -> tuple[str, ...] | None:
    """The caption's lines, none if it is empty; None when it cannot be used."""
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
    text, fault = captions.decoded(raw)
    if fault:
        (notes.error if text is None else notes.warning)(fault.code, path, fault.message, fault.hint, fault.line)
    if text is None:
        return None
    lines, fault = captions.lines_of(text)
    if fault:
        notes.error(fault.code, path, fault.message, fault.hint, fault.line)
        return None
    if len(lines) > 1 and not every:
        hint = "Write the caption on one line, or set several_captions to have the lines take turns."
        notes.warning("LRY-DATA-CAPTION-LINES", path, f"{len(lines)} lines; only the first is used.", hint, 2)
        return lines[:1]
    return lines
