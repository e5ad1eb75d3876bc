"""Captions: read from hostile bytes, dressed once, drawn at every use; against an independent reading of kohya's rules."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import captions
from trainer.protocol import TrainingOptions

TAGS = st.lists(st.sampled_from(["1girl", "red dress", "smile", "snow", "dog", "\u05d0\u05d1", "caf\u00e9"]), min_size=1, max_size=8)


def drawn(options: TrainingOptions, caption: str, times: int = 60, epoch: int = 0) -> list[str]:
    return [captions.draw(options, (caption,), epoch, step, step % 3) for step in range(times)]


def kohya(tags: list[str], keep: int) -> tuple[list[str], Counter[str]]:
    """Tags that stay at the start, and those that move: sd-scripts' rule for `keep_tokens`."""
    return tags[:keep], Counter(tags[keep:])


@given(TAGS, st.integers(0, 9), st.integers(0, 2**40))
def test_shuffled_captions_keep_their_first_tags_and_lose_none(tags: list[str], keep: int, seed: int) -> None:
    options = TrainingOptions(shuffle_caption=True, keep_tokens=keep, seed=seed)
    first, rest = kohya(tags, keep)
    for text in drawn(options, ", ".join(tags), 5):
        words = text.split(", ")
        assert words[: len(first)] == first
        assert Counter(words[len(first) :]) == rest


@given(TAGS, TAGS, TAGS, st.booleans(), st.floats(0, 1), st.integers(0, 2**40))
def test_what_lies_outside_of_the_marks_neither_moves_nor_goes(
    first: list[str], middle: list[str], last: list[str], shuffle: bool, share: float, seed: int
) -> None:
    """kohya's `keep_tokens_separator`: before the first mark and behind the second; `keep_tokens` then says nothing."""
    options = TrainingOptions(shuffle_caption=shuffle, keep_tokens=3, keep_tokens_separator="|||", tag_dropout=share, seed=seed)
    caption = " ||| ".join(", ".join(part) for part in (first, middle, last))
    for text in [*drawn(options, caption, 5), captions.plain(options, caption)]:
        words = text.split(", ")
        assert words[: len(first)] == first
        assert words[len(words) - len(last) :] == last
        between = words[len(first) : len(words) - len(last)]
        assert Counter(between) <= Counter(middle)
        assert share or Counter(between) == Counter(middle)
        assert "|||" not in text


def test_shares_of_captions_and_tags_are_dropped() -> None:
    options = TrainingOptions(shuffle_caption=True, keep_tokens=1, caption_dropout=0.25, tag_dropout=0.5)
    texts = drawn(options, "sks, a, b, c", 600)
    assert 110 < texts.count("") < 190
    kept = [text for text in texts if text]
    assert all(text.startswith("sks") for text in kept)
    counted = Counter(tag for text in kept for tag in text.split(", ")[1:])
    assert all(0.4 < counted[tag] / len(kept) < 0.6 for tag in "abc")
    assert len(set(kept)) == 1 + 3 + 6 + 6, "every choice in every order"


def test_every_so_many_epochs_all_captions_are_empty() -> None:
    """kohya counts epochs from 1."""
    options = TrainingOptions(caption_dropout_every_epochs=3)
    assert [drawn(options, "a dog", 2, epoch)[0] for epoch in range(7)] == ["a dog", "a dog", "", "a dog", "a dog", "", "a dog"]


def test_each_line_has_its_turn_by_the_jobs_own_stream() -> None:
    options, lines = TrainingOptions(seed=3), ("one", "two", "three")
    texts = [captions.draw(options, lines, 0, step, 0) for step in range(600)]
    assert all(150 < count < 250 for count in Counter(texts).values())
    assert texts == [captions.draw(options, lines, 0, step, 0) for step in range(600)]
    assert texts != [captions.draw(TrainingOptions(seed=4), lines, 0, step, 0) for step in range(600)]


def test_wildcards_are_one_of_their_words() -> None:
    options = TrainingOptions(wildcards=True)
    assert set(drawn(options, "a {red|blue} {dog}, {{kept}}")) == {"a red dog, {kept}", "a blue dog, {kept}"}
    assert captions.plain(options, "a {red|blue} dog") == "a red dog"
    assert set(drawn(TrainingOptions(), "a {red|blue} dog")) == {"a {red|blue} dog"}


@given(st.text(max_size=60), st.integers(0, 2**40))
def test_any_text_is_drawn_without_trouble_and_as_it_stands_when_nothing_is_asked(text: str, seed: int) -> None:
    assert set(drawn(TrainingOptions(seed=seed), text, 2)) == {text}
    wild: dict[str, Any] = {"shuffle_caption": True, "wildcards": True, "tag_dropout": 0.5, "keep_tokens_separator": "|", "keep_tokens": 2}
    drawn(TrainingOptions(seed=seed, **wild), text, 3)


DRESSES: dict[str, tuple[dict[str, str], str, str]] = {
    "nothing": ({}, "a dog", "a dog"),
    "prefix and suffix with a blank, as kohya": (
        {"caption_prefix": "photo of", "caption_suffix": ", 35mm"},
        "a dog",
        "photo of a dog , 35mm",
    ),
    "trigger before all": ({"trigger": "sks", "caption_prefix": "photo,"}, "a dog", "sks, photo, a dog"),
    "trigger in the prefix": ({"trigger": "sks", "caption_prefix": "photo of SKS,"}, "a dog", "photo of SKS, a dog"),
    "trigger in the caption": ({"trigger": "sks"}, "photo of Sks", "photo of Sks"),
    "trigger alone": ({"trigger": "sks"}, "", "sks"),
}


@pytest.mark.parametrize("case", DRESSES)
def test_captions_are_dressed_once(case: str) -> None:
    options, line, expected = DRESSES[case]
    assert captions.dressed(line, TrainingOptions(**options)) == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_are_refused_in_words(raw: bytes) -> None:
    text, fault = captions.decoded(raw)
    if text is None:
        assert fault
        assert fault.hint
        return
    lines, wrong = captions.lines_of(text)
    assert wrong is None or not lines
    assert all(line and line == line.strip() for line in lines)
    assert not any(ord(c) < 32 and c != "\t" for line in lines for c in line)


@given(st.text(alphabet=st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"], blacklist_characters="\ufeff"), max_size=80))
def test_a_caption_comes_through_every_encoding_that_people_save_in(text: str) -> None:
    plain = text.strip()
    for raw in (text.encode(), b"\xef\xbb\xbf" + text.encode(), (text + "\r\n").encode(), ("\n" + text + "\n").encode()):
        read, fault = captions.decoded(raw)
        assert fault is None
        assert captions.lines_of(read or "")[0] == ((plain,) if plain else ())
