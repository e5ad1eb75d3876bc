"""PURE. From a caption file's bytes to the words that the model is told at one use of its picture.

Once, when the dataset is read: `decoded` makes text of the bytes, `lines_of` splits it, `dressed` adds trigger, prefix and suffix.
At every use: `draw` picks a line, drops the caption or some of its tags, shuffles the rest. The rules are sd-scripts', with two
differences: prefix and suffix go to every line and not to the first alone, and the mark that ends the kept tags never reaches the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from . import streams
from .protocol import TrainingOptions

_WILDCARD = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a caption cannot be read as it stands."""

    code: str
    message: str
    hint: str
    line: int | None = None


def decoded(raw: bytes) -> tuple[str | None, Fault | None]:
    """The bytes as text, and what there is to say of them. Without text the caption cannot be used."""
    try:
        return raw.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return None, Fault("LRY-DATA-CAPTION-ENCODING", "the caption is UTF-16.", "Save it as UTF-8.", line)
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        return None, Fault("LRY-DATA-CAPTION-ENCODING", "the caption is not UTF-8.", "Save it as UTF-8.", line)
    message, hint = "the caption is not UTF-8; it was read as Windows-1252.", "Save it as UTF-8 if letters look wrong."
    return text, Fault("LRY-DATA-CAPTION-ENCODING", message, hint, line)


def lines_of(text: str) -> tuple[tuple[str, ...], Fault | None]:
    """The lines that say something; none of them where there are control characters, which no model knows."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if any((ord(c) < 32 and c != "\t") or ord(c) == 127 for c in line):
            return (), Fault("LRY-DATA-CAPTION-NUL", "the caption has control characters.", "Save it as plain UTF-8 text.", number)
        found.append(line.strip())
    return tuple(line for line in found if line), None


def dressed(line: str, options: TrainingOptions) -> str:
    """A line with prefix and suffix, a blank between as in sd-scripts, and the trigger in front where it is missing."""
    text = " ".join(part for part in (options.caption_prefix.strip(), line, options.caption_suffix.strip()) if part)
    if not options.trigger or options.trigger.casefold() in text.casefold():
        return text
    return f"{options.trigger}, {text}" if text else options.trigger


def vary(options: TrainingOptions) -> bool:
    """Whether there are too many captions to make them all ahead."""
    return options.shuffle_caption or options.wildcards or options.tag_dropout > 0


def plain(options: TrainingOptions, caption: str) -> str:
    """A caption as it is where nothing is drawn: first words of its wildcards, tags in their order."""
    if options.wildcards:
        caption = _without_wildcards(caption, None)
    return _arranged(options, caption, None, None)


def draw(options: TrainingOptions, captions: Sequence[str], epoch: int, step: int, row: int) -> str:
    """The caption as used this once. `epoch` counts from 0; each kind of draw has a stream of its own."""
    seed, at = options.seed, (step, row)
    if options.caption_dropout > 0 and streams.dice(seed, "dropout", *at).random() < options.caption_dropout:
        return ""
    if options.caption_dropout_every_epochs and (epoch + 1) % options.caption_dropout_every_epochs == 0:
        return ""
    caption = captions[streams.key(seed, "line", *at) % len(captions)]
    if options.wildcards:
        caption = _without_wildcards(caption, streams.dice(seed, "wildcards", *at))
    order = streams.dice(seed, "tags", *at) if options.shuffle_caption else None
    return _arranged(options, caption, order, streams.dice(seed, "tag dropout", *at) if options.tag_dropout > 0 else None)


def _without_wildcards(caption: str, dice: Random | None) -> str:
    """`{a|b}` is one of its words; a doubled brace stands for itself."""

    def chosen(match: re.Match[str]) -> str:
        words = match[1].split("|")
        return dice.choice(words) if dice else words[0]

    text = _WILDCARD.sub(chosen, caption.replace("{{", "\0").replace("}}", "\1"))
    return text.replace("\0", "{").replace("\1", "}")


def _arranged(options: TrainingOptions, caption: str, order: Random | None, losses: Random | None) -> str:
    """The tags in the order, and with the losses, of this use. Those at the start that are kept are neither moved nor lost."""
    mark = options.keep_tokens_separator
    marked = mark is not None and mark in caption
    if not (marked or order or losses):
        return caption
    first, last = "", ""
    if mark is not None and marked:
        first, _, caption = caption.partition(mark)
        caption, _, last = caption.partition(mark)
        last = last.replace(mark, ",")
    kept, rest = _tags(first), _tags(caption)
    if not marked:
        kept, rest = rest[: options.keep_tokens], rest[options.keep_tokens :]
    if order:
        order.shuffle(rest)
    if losses:
        rest = [tag for tag in rest if losses.random() >= options.tag_dropout]
    return ", ".join(kept + rest + _tags(last))


def _tags(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(",") if tag.strip()]
