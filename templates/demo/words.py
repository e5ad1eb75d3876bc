"""Makes the demo base's CLIP tokenizer: a caption's words are one token each, any other text spells out by bytes.

Real CLIP learnt its merges from web text. This one runs the same procedure on the caption words alone and stops when
each is whole: the most frequent pair of neighbouring pieces is merged, again and again. That the merges come out of
that procedure, and are not just listed, is what guarantees that applying them in order gives back whole words.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
MAX_LENGTH = 77


def byte_alphabet() -> list[str]:
    """Return CLIP's printable stand-ins for the 256 byte values, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in set(printable)]
    return [chr(value) for value in printable] + [chr(256 + place) for place in range(len(others))]


def merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of the pair in a word's pieces."""
    result: list[str] = []
    for piece in pieces:
        # A piece that already is a merge of the pair cannot be its left half, so looking at the last result is enough.
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Learn merges until every word is a single piece; spelling breaks ties, so the outcome is always the same."""
    spelled = [[*word[:-1], word[-1] + WORD_END] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while any(len(pieces) > 1 for pieces in spelled):
        counts = Counter(pair for pieces in spelled for pair in pairwise(pieces))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spelled = [merged(pieces, best) for pieces in spelled]
    return merges


def write_tokenizer(folder: Path, words: Iterable[str]) -> int:
    """Write the files of a CLIP tokenizer and return the size of its vocabulary.

    The end token gets the largest id: CLIP's text model takes its pooled output at the largest id of a text.
    """
    merges = learn_merges(words)
    alphabet = byte_alphabet()
    whole = [left + right for left, right in merges]
    vocabulary = [*alphabet, *(char + WORD_END for char in alphabet), *whole, START, END]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, "do_lower_case": True, **special}
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    files = {
        "vocab.json": json.dumps({token: place for place, token in enumerate(vocabulary)}),
        "merges.txt": "\n".join(lines),
        "special_tokens_map.json": json.dumps(special, indent=2),
        "tokenizer_config.json": json.dumps(settings, indent=2),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return len(vocabulary)
