"""Datasets as people have them, and as a hostile person would make them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from trainer.dataset import Sample, Scan, scan
from trainer.items import split, total_steps
from trainer.protocol import TrainingOptions

OPTIONS = TrainingOptions(resolution=64, min_bucket=64, max_bucket=128)


def put(path: Path, size: tuple[int, int] = (64, 64), **save: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(path, **save)
    return path


def codes(found: Scan, severity: str = "error") -> list[str]:
    return [p.code for p in found.problems if p.severity == severity]


def good(folder: Path, name: str = "a") -> Path:
    put(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text("a dog")
    return folder


def test_a_parent_of_kohya_folders_is_understood(tmp_path: Path) -> None:
    put(tmp_path / "6_lisabp woman" / "a.png")
    put(tmp_path / "2_red hat" / "b.jpg")
    (tmp_path / "2_red hat" / "b.caption").write_text("a hat on a table")
    found = scan(tmp_path, OPTIONS)
    assert {(s.caption, s.repeats) for s in found.samples} == {("lisabp woman", 6), ("a hat on a table", 2)}
    assert "parent of 2 kohya folders" in found.reading
    assert codes(found) == []
    assert codes(found, "warning") == ["LRY-DATA-CAPTION-MISSING"]


def test_one_kohya_folder_given_itself_is_understood(tmp_path: Path) -> None:
    put(tmp_path / "10_sks dog" / "a.png")
    found = scan(tmp_path / "10_sks dog", OPTIONS)
    assert [(s.caption, s.repeats) for s in found.samples] == [("sks dog", 10)]
    assert "one kohya folder" in found.reading


def test_a_plain_folder_reads_txt_and_caption_alike(tmp_path: Path) -> None:
    good(tmp_path)
    put(tmp_path / "b.webp")
    (tmp_path / "b.caption").write_text("a cat")
    found = scan(tmp_path, OPTIONS)
    assert [s.caption for s in found.samples] == ["a dog", "a cat"]
    assert found.problems == ()


def test_a_picture_without_caption_is_an_error_unless_a_trigger_names_it(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    assert codes(scan(tmp_path, OPTIONS)) == ["LRY-DATA-CAPTION-MISSING"]
    with_trigger = scan(tmp_path, OPTIONS.model_copy(update={"trigger": "sks"}))
    assert [s.caption for s in with_trigger.samples] == ["sks"]


def test_the_trigger_goes_in_front_of_captions_that_lack_it(tmp_path: Path) -> None:
    good(tmp_path)
    put(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("photo of SKS in snow")
    found = scan(tmp_path, OPTIONS.model_copy(update={"trigger": "sks"}))
    assert [s.caption for s in found.samples] == ["sks, a dog", "photo of SKS in snow"]


def test_a_missing_and_an_empty_folder_are_told_apart(tmp_path: Path) -> None:
    assert codes(scan(tmp_path / "no", OPTIONS)) == ["LRY-DATA-MISSING"]
    assert codes(scan(tmp_path, OPTIONS)) == ["LRY-DATA-EMPTY"]


def cut_jpeg(path: Path) -> None:
    import random

    image = Image.effect_noise((256, 256), 90).convert("RGB")
    image.save(path.with_suffix(".jpg"))
    whole = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").write_bytes(whole[: len(whole) // 2])
    random.seed(0)


def cut_png(path: Path) -> None:
    put(path, (256, 256))
    path.write_bytes(path.read_bytes()[:-40])


def animation(path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), (i * 50, 0, 0)) for i in range(3)]
    frames[0].save(path.with_suffix(".webp"), save_all=True, append_images=frames[1:])


def huge(path: Path) -> None:
    """1.6 gigapixels in a few hundred bytes: only the header says so."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))


def large(path: Path) -> None:
    Image.new("1", (10100, 10000)).save(path)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "text with a picture's name": (lambda p: p.write_text("not a picture"), "LRY-DATA-CORRUPT"),
    "empty file": (lambda p: p.write_bytes(b""), "LRY-DATA-ZERO"),
    "cut JPEG": (cut_jpeg, "LRY-DATA-CORRUPT"),
    "cut PNG": (cut_png, "LRY-DATA-CORRUPT"),
    "animation": (animation, "LRY-DATA-ANIMATED"),
    "decompression bomb": (huge, "LRY-DATA-HUGE"),
    "just over the limit": (large, "LRY-DATA-HUGE"),
    "folder": (lambda p: p.mkdir(), "LRY-DATA-NOT-A-FILE"),
    "pipe": (os.mkfifo, "LRY-DATA-NOT-A-FILE"),
    "gif": (lambda p: Image.new("P", (8, 8)).save(p.with_suffix(".gif")), "LRY-DATA-FORMAT"),
    "heic": (lambda p: p.with_suffix(".heic").write_bytes(b"x"), "LRY-DATA-FORMAT"),
    "dangling link": (lambda p: p.symlink_to("nowhere.png"), "LRY-DATA-LINK"),
    "link outside": (lambda p: p.symlink_to("/etc/hostname"), "LRY-DATA-LINK"),
    "control characters": (lambda p: put(p.with_name("x\x1b[2Jy.png")), "LRY-DATA-NAME"),
    "no Unicode": (lambda p: Path(os.fsdecode(os.fsencode(p.parent) + b"/\xff.png")).write_bytes(b"x"), "LRY-DATA-NAME"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_named_and_the_rest_is_still_read(case: str, tmp_path: Path) -> None:
    good(tmp_path)
    make, code = HOSTILE[case]
    make(tmp_path / "bad.png")
    (tmp_path / "bad.txt").write_text("a caption")
    found = scan(tmp_path, OPTIONS)
    assert code in codes(found)
    assert [s.image.name for s in found.samples] == ["a.png"]
    assert all(p.hint and p.path.isprintable() for p in found.problems)


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"junk")
    put(tmp_path / "c.png")
    assert sorted(codes(scan(tmp_path, OPTIONS))) == sorted(
        ["LRY-DATA-ZERO", "LRY-DATA-CAPTION-MISSING", "LRY-DATA-CORRUPT", "LRY-DATA-CAPTION-MISSING", "LRY-DATA-CAPTION-MISSING"]
    )


CAPTIONS: dict[str, tuple[bytes, str | None, list[str], list[str]]] = {
    "plain": (b"a dog\n", "a dog", [], []),
    "byte order mark": (b"\xef\xbb\xbfa dog", "a dog", [], []),
    "Windows": ("café".encode("cp1252"), "café", [], ["LRY-DATA-CAPTION-ENCODING"]),
    "not Windows either": (b"a \x81\x8d dog", None, ["LRY-DATA-CAPTION-ENCODING"], []),
    "UTF-16": ("a dog".encode("utf-16"), None, ["LRY-DATA-CAPTION-ENCODING"], []),
    "NUL": (b"a\0dog", None, ["LRY-DATA-CAPTION-NUL"], []),
    "escape": (b"a\x1b[31m dog", None, ["LRY-DATA-CAPTION-NUL"], []),
    "empty": (b"", None, ["LRY-DATA-CAPTION-EMPTY"], []),
    "spaces": (b" \r\n \n", None, ["LRY-DATA-CAPTION-EMPTY"], []),
    "two lines": (b"\na dog\r\na cat\n", "a dog", [], ["LRY-DATA-CAPTION-LINES"]),
    "a book": (b"word " * 20000, None, ["LRY-DATA-CAPTION-LONG"], []),
}


@pytest.mark.parametrize("case", CAPTIONS)
def test_captions_are_read_or_refused_in_words(case: str, tmp_path: Path) -> None:
    raw, caption, errors, warnings = CAPTIONS[case]
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(raw)
    found = scan(tmp_path, OPTIONS)
    assert [s.caption for s in found.samples] == ([caption] if caption is not None else [])
    assert (codes(found), codes(found, "warning")) == (errors, warnings)


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    put(tmp_path / "3_dog" / "a.png")
    put(tmp_path / "0_cat" / "b.png")
    put(tmp_path / "other" / "c.png")
    put(tmp_path / "d.png")
    found = scan(tmp_path, OPTIONS)
    assert [s.image.name for s in found.samples] == ["a.png"]
    assert sorted(codes(found, "warning")) == ["LRY-DATA-CAPTION-MISSING", "LRY-DATA-REPEATS", "LRY-DATA-UNUSED", "LRY-DATA-UNUSED"]


def test_sizes_are_as_seen_after_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "a.jpg", (40, 20), exif=exif)
    (tmp_path / "a.txt").write_text("a dog")
    assert scan(tmp_path, OPTIONS).samples[0].size == (20, 40)


def test_steps_count_buckets_repeats_and_accumulation(tmp_path: Path) -> None:
    for i in range(5):
        good(tmp_path / "3_dog", f"a{i}")
    put(tmp_path / "3_dog" / "wide.png", (128, 32))
    samples = scan(tmp_path, OPTIONS).samples
    options = OPTIONS.model_copy(update={"epochs": 2, "batch_size": 4, "gradient_accumulation": 2, "bucket_step": 32, "min_bucket": 32})
    # 15 squares in 4 batches, 3 wide ones in 1: 5 batches, 3 steps an epoch
    assert total_steps(options, samples) == 6
    assert total_steps(OPTIONS, samples) == 1500


def many(folder: Path, count: int) -> tuple[Sample, ...]:
    return tuple(Sample(image=folder / f"{i:03d}.png", caption="a", repeats=1, size=(64, 64), folder="f") for i in range(count))


@pytest.mark.parametrize(
    ("count", "given", "held"), [(9, None, 0), (10, None, 1), (35, None, 3), (500, None, 8), (35, 0, 0), (9, 4, 4), (2, 4, 1)]
)
def test_enough_pictures_spare_a_few_to_measure_by(count: int, given: int | None, held: int, tmp_path: Path) -> None:
    trained, kept = split(OPTIONS.model_copy(update={"heldout": given}), many(tmp_path, count))
    assert (len(trained), len(kept)) == (count - held, held)
    assert sorted(s.image for s in [*trained, *kept]) == [s.image for s in many(tmp_path, count)]


def test_the_same_are_held_out_wherever_the_folder_lies_and_a_further_one_moves_no_other(tmp_path: Path) -> None:
    names = lambda samples: {s.image.name for s in split(OPTIONS, samples)[1]}  # noqa: E731
    assert names(many(tmp_path, 50)) == names(many(tmp_path / "elsewhere", 50))
    assert len(names(many(tmp_path, 51)) - names(many(tmp_path, 50))) <= 1


def test_each_line_is_a_caption_where_that_is_asked_for(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa dog\r\n\r\na cat\r\na dog\r\n")
    found = scan(tmp_path, OPTIONS.model_copy(update={"several_captions": True, "trigger": "sks", "caption_suffix": "in snow"}))
    assert [s.captions for s in found.samples] == [("sks, a dog in snow", "sks, a cat in snow")], "twice the same is one"
    assert found.problems == ()


LETTERS = [
    "\u05e9\u05dc\u05d5\u05dd, \u200fdog",
    "e\u0301t\u00e9",
    "\U0001f415 dog",
    "word, " * 300,
    "a\tdog",
    "\u202etxet",
    "dog\u00a0cat",
]


@pytest.mark.parametrize("number", range(len(LETTERS)))
def test_captions_of_every_script_and_length_come_through_letter_by_letter(number: int, tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(LETTERS[number], encoding="utf-8")
    found = scan(tmp_path, OPTIONS)
    assert [s.caption for s in found.samples] == [LETTERS[number].strip()]
    assert found.problems == ()


def test_regularisation_keeps_to_its_own_words(tmp_path: Path) -> None:
    """Trigger, prefix and suffix belong to what is learnt; what it is not, is the class."""
    good(tmp_path / "data")
    put(tmp_path / "reg/2_dog/a.png", (64, 96))
    put(tmp_path / "reg/1_cat/b.png", (96, 64))
    (tmp_path / "reg/1_cat/b.txt").write_text("a cat asleep")
    options = OPTIONS.model_copy(update={"trigger": "sks", "caption_prefix": "photo of", "caption_suffix": "in snow"})
    found = scan(tmp_path / "data", options, regularisation=tmp_path / "reg")
    assert [s.caption for s in found.samples] == ["sks, photo of a dog in snow"]
    assert [(s.caption, s.repeats) for s in found.priors] == [("a cat asleep", 1), ("dog", 2)]
    assert "regularisation: parent of 2 kohya folders: `1_cat` (x1), `2_dog` (x2), 2 pictures" in found.reading
    (problem,) = found.problems
    assert (problem.code, problem.severity, problem.key) == ("LRY-DATA-CAPTION-MISSING", "warning", "regularisation")


def test_regularisation_without_a_picture_or_a_word_is_refused(tmp_path: Path) -> None:
    good(tmp_path / "data")
    (tmp_path / "reg").mkdir()
    empty = scan(tmp_path / "data", OPTIONS, regularisation=tmp_path / "reg")
    assert [(p.code, p.key) for p in empty.errors] == [("LRY-DATA-EMPTY", "regularisation")]
    put(tmp_path / "reg/a.png", (64, 96))
    assert codes(scan(tmp_path / "data", OPTIONS, regularisation=tmp_path / "reg")) == ["LRY-DATA-CAPTION-MISSING"]


def test_a_picture_that_is_both_learnt_and_kept_is_said(tmp_path: Path) -> None:
    good(tmp_path / "data")
    good(tmp_path / "reg", "other")
    (problem,) = scan(tmp_path / "data", OPTIONS, regularisation=tmp_path / "reg").problems
    assert (problem.code, problem.path) == ("LRY-DATA-BOTH", "reg/other.png")
    assert "a.png" in problem.message


def test_pictures_below_a_folder_that_is_read_are_named(tmp_path: Path) -> None:
    """kohya reads a folder's own pictures only, and so do we; but it says nothing."""
    good(tmp_path / "3_dog")
    put(tmp_path / "3_dog/more/b.png")
    put(tmp_path / "3_dog/.ipynb_checkpoints/a-checkpoint.png")
    found = scan(tmp_path, OPTIONS)
    assert sorted(p.path.rpartition("/")[2] for p in found.problems) == [".ipynb_checkpoints", "more"]
    assert all(p.code == "LRY-DATA-UNUSED" for p in found.problems)
    assert codes(scan(tmp_path / "3_dog", OPTIONS), "warning") == ["LRY-DATA-UNUSED", "LRY-DATA-UNUSED"]
