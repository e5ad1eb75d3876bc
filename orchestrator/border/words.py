"""Text from a stranger's machine as text: nothing in it acts on a terminal or reorders a page. PURE."""

from __future__ import annotations

import re
import unicodedata

_SUSPECT = re.compile(r"[^\n\t\x20-\x7e]")
_BIDI = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)))
"""Marks that reorder text on a screen: a file name could show as another."""
_STACKED = 3
"""So many marks on one letter are used by some language; more of them smear over the lines above and below."""


def harmless(text: str) -> str:
    """`text` without control characters, escape sequences, bidi marks and stacks of accents; lines and tabs stay."""
    if not _SUSPECT.search(text):
        return text
    kept, marks = [], 0
    for c in text:
        marks = marks + 1 if unicodedata.combining(c) else 0
        if c in "\n\t" or (c.isprintable() and c not in _BIDI and marks <= _STACKED):
            kept.append(c)
    return "".join(kept)


def one_line(text: str, *, most: int) -> str:
    """The same on one line, at most `most` long: a stranger's line break could make a line that looks like ours."""
    kept = harmless(re.sub(r"[\n\t\r]", " ", text[: 2 * most]))
    return kept if len(kept) <= most else kept[: most - 1] + "…"
