"""The book of a run can be read whatever happened to its last bytes, and is never less careful for it."""

from __future__ import annotations

import json
import os
import zlib
from functools import lru_cache
from pathlib import Path

import pytest
from fakes import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import ledger as ledger_module
from orchestrator.ledger import Book, Entry, Ledger, read_entries, to_line
from orchestrator.lifecycle import Phase, Signal

INTENT = {
    "provider": "fake",
    "label": "lorry-autumn-1-a1",
    "offer": "o1",
    "machine_id": "m1",
    "gpu": "RTX 4090",
    "usd_per_hour": "0.408",
    "prices": {"gpu_usd_per_hour": "0.4", "disk_usd_per_gib_hour": "0.0002"},
    "disk_gib": 40,
}
LIFE = [
    ("opened", 0, {"cap_usd": "5", "run": "autumn-1"}),
    ("confirmed", 0, {"usd": {"p50": "1"}}),
    (Signal.INTENT, 1, INTENT),
    (Signal.LAUNCHED, 1, INTENT | {"instance_id": "i-1", "via": "answer"}),
    (Signal.REACHABLE, 1, {"host_key": "SHA256:ä"}),
    ("moved", 1, {"uploaded": 12345}),
    (Signal.SHIPPED, 1, {"files": 3, "bytes": 12345}),
    (Signal.STARTED, 1, {"lifetime_s": 1000.5, "python": "/usr/bin/python3"}),
    ("fetched", 1, {"path": "jobs/a/a.safetensors", "sha256": "0" * 64}),
    (Signal.ENDED, 1, {"reason": "done"}),
    (Signal.PULLED, 1, {"missing": []}),
    (Signal.GIVE_UP, 1, {"why": "the work\nis done"}),
    (Signal.GONE, 1, {"evidence": "seen"}),
    ("closed", 0, {"exit_code": 0, "message": "", "hint": ""}),
]


def written(path: Path, life: list[tuple[str, int, dict[str, object]]] = LIFE) -> list[Entry]:
    ledger = Ledger(path, FakeClock())
    for kind, attempt, data in life:
        ledger.record(kind, attempt=attempt, **data)
    return ledger.entries


@pytest.fixture(autouse=True)
def _each_line_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_from_line", lru_cache(maxsize=None)(ledger_module._from_line))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    written(path)
    return path.read_bytes()


def whole_lines_before(raw: bytes, offset: int) -> int:
    """The oracle: entries whose every byte lies before `offset`; the newline itself may be missing."""
    ends = [i for i, byte in enumerate(raw) if byte == 0x0A]
    return sum(1 for end in ends if end <= offset)


def launched_and_not_seen_gone(entries: list[Entry]) -> bool:
    """The checker's own sum, from the kinds alone."""
    alive = False
    for entry in entries:
        alive = (alive or entry.kind == Signal.LAUNCHED) and entry.kind != Signal.GONE
    return alive


def never_less_safe(entries: list[Entry]) -> bool:
    return bool(Book(entries).open_attempts) or not launched_and_not_seen_gone(entries)


def test_what_is_recorded_is_what_is_read(tmp_path: Path):
    entries = written(tmp_path / "l")
    assert read_entries((tmp_path / "l").read_bytes()) == entries
    assert Ledger(tmp_path / "l", FakeClock()).entries == entries


def test_cut_off_at_every_byte_it_keeps_every_whole_entry(whole: bytes):
    for offset in range(len(whole) + 1):
        kept = read_entries(whole[:offset])
        assert len(kept) == whole_lines_before(whole, offset)
        assert never_less_safe(kept)


def test_filled_with_zeros_from_every_byte_on_it_keeps_every_whole_entry(whole: bytes):
    for offset in range(len(whole) + 1):
        kept = read_entries(whole[:offset] + bytes(len(whole) - offset))
        assert len(kept) == whole_lines_before(whole, offset)
        assert never_less_safe(kept)


def test_doubled_from_every_byte_on_nothing_counts_twice(whole: bytes):
    """A block written twice, as a file system may leave it after a crash."""
    entries = read_entries(whole)
    for offset in range(len(whole) + 1):
        for doubled in (whole + whole[offset:], whole[:offset] + whole):
            kept = read_entries(doubled)
            assert [e.seq for e in kept] == sorted({e.seq for e in kept})
            assert kept == [e for e in entries if e.seq in {k.seq for k in kept}]
            assert never_less_safe(kept)
            assert Book(kept).attempts[1].uploaded_bytes <= 12345


@pytest.mark.parametrize("damage", ["cut", "zeros", "garbage"])
def test_an_entry_appended_after_any_torn_tail_is_read(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a thousand of them
    path = tmp_path / "l"
    for offset in range(0, len(whole) + 1, 7):
        tail = {"cut": b"", "zeros": bytes(50), "garbage": b"\xff\x00{]"}[damage]
        path.write_bytes(whole[:offset] + tail)
        before = read_entries(path.read_bytes())
        ledger = Ledger(path, FakeClock())
        entry = ledger.record(Signal.LAUNCHED, attempt=1, **INTENT, instance_id="i-9")
        assert read_entries(path.read_bytes()) == [*before, entry]
        assert Book(read_entries(path.read_bytes())).open_attempts


def test_a_machine_whose_intent_became_unreadable_still_bills_and_can_be_ended(whole: bytes):
    """Any one line lost in the middle: a machine that was written down is not forgotten."""
    lines = whole.splitlines(keepends=True)
    for lost in range(len(lines)):
        for upto in range(len(lines) + 1):
            kept = read_entries(b"".join(bytes(len(x)) if i == lost else x for i, x in enumerate(lines[:upto])))
            assert never_less_safe(kept)
    book = Book(read_entries(b"".join(x for i, x in enumerate(lines[:5]) if i != 2)))
    assert (book.attempts[1].instance_ids, book.attempts[1].label, book.attempts[1].provider) == (("i-1",), INTENT["label"], "fake")
    assert book.next_attempt == 2


def a_night(*, ends: bool) -> list[tuple[str, int, dict[str, object]]]:
    """Four attempts: refused, never booted, trained under a price that rose, and one in doubt; `ends`: until all is seen to be gone."""
    label = {n: INTENT | {"label": f"lorry-autumn-1-a{n}"} for n in (1, 2, 3, 4)}
    dearer = {
        "prices": {"gpu_usd_per_hour": "0.8"},
        "usd_per_hour": "0.8",
        "was_usd_per_hour": "0.408",
        "since": "2026-01-01T00:00:00+00:00",
    }
    life = [
        *LIFE[:2],
        (Signal.INTENT, 1, label[1]),
        (Signal.REFUSED, 1, {"why": "sold"}),
        (Signal.INTENT, 2, label[2]),
        (Signal.LAUNCHED, 2, label[2] | {"instance_id": "i-2", "via": "answer"}),
        (Signal.GIVE_UP, 2, {"why": "it did not boot", "outcome": None}),
        (Signal.GONE, 2, {"evidence": "seen"}),
        (Signal.INTENT, 3, label[3]),
        (Signal.LAUNCHED, 3, label[3] | {"instance_id": "i-3", "via": "error"}),
        *((kind, 3, data) for kind, _, data in LIFE[4:9]),
        ("priced", 3, dearer),
        ("lifetime", 3, {"lifetime_s": 500.0}),
        ("cut", 3, {"jobs": ["b", "c"]}),
        (Signal.INTENT, 4, label[4]),
    ]
    rest = [(Signal.GONE, 4, {"evidence": "never created"}), *((kind, 3 if at else 0, data) for kind, at, data in LIFE[9:])]
    return life + (rest if ends else [])


def open_by_the_words_alone(entries: list[Entry]) -> set[int]:
    """The checker's own sum: asked for or made, and after that neither refused nor seen to be gone."""
    alive: set[int] = set()
    for entry in entries:
        if entry.kind in {Signal.INTENT, Signal.LAUNCHED}:
            alive.add(entry.attempt)
        elif entry.kind in {Signal.GONE, Signal.REFUSED}:
            alive.discard(entry.attempt)
    return alive


DAMAGES = {
    "cut": lambda raw, at: raw[:at],
    "zeros": lambda raw, at: raw[:at] + bytes(len(raw) - at),
    "doubled from there": lambda raw, at: raw + raw[at:],
    "doubled up to there": lambda raw, at: raw[:at] + raw,
    "one byte lost": lambda raw, at: raw[:at] + raw[at + 1 :],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("ends", [False, True])
def test_a_night_of_four_machines_damaged_at_every_byte_is_readable_and_no_open_attempt_reads_as_gone(
    tmp_path: Path, ends: bool, damage: str
):
    """By everything that can still be read. And what nothing was lost of reads as before, to the cent."""
    entries = written(tmp_path / "l", a_night(ends=ends))
    raw, true = (tmp_path / "l").read_bytes(), Book(entries)
    assert open_by_the_words_alone(entries) == {a.number for a in true.open_attempts} == (set() if ends else {3, 4})
    for at in range(len(raw) + 1):
        kept = read_entries(DAMAGES[damage](raw, at))
        book = Book(kept)
        assert {a.number for a in book.open_attempts} >= open_by_the_words_alone(kept), at
        assert book.next_attempt > max((e.attempt for e in kept), default=0)
        lost = {e.seq for e in entries} - {e.seq for e in kept}
        if not lost:
            assert (book.attempts, book.cut, book.closed) == (true.attempts, true.cut, true.closed), at
        if damage.startswith("doubled"):
            assert {a.number for a in book.open_attempts} == {a.number for a in true.open_attempts}, at
        elif damage == "one byte lost":
            assert len(lost) <= 2, "a newline parts two lines"
        else:
            assert len(kept) == whole_lines_before(raw, at), at


def test_a_number_is_never_given_twice_even_when_its_intent_is_lost():
    """Two machines with one label would be taken for one."""
    clock = FakeClock()
    assert Book([Entry(seq=1, at=clock.now(), kind=Signal.GIVE_UP, attempt=3, data={})]).next_attempt == 4


def test_one_create_that_made_two_machines_has_both_in_the_book(tmp_path: Path):
    life = [*LIFE[2:4], (Signal.LAUNCHED, 1, INTENT | {"instance_id": "i-2", "via": "label"})]
    assert Book(written(tmp_path / "l", life)).attempts[1].instance_ids == ("i-1", "i-2")


def test_a_write_that_failed_half_way_hides_no_later_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The disk took the line but the flush failed: the next entry must not look like the same one again."""
    path = tmp_path / "l"
    ledger = Ledger(path, FakeClock())
    ledger.record(Signal.INTENT, attempt=1, **INTENT)

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="Input/output"):
            ledger.record("moved", attempt=1, uploaded=1)
    ledger.record(Signal.LAUNCHED, attempt=1, **INTENT, instance_id="i-1")
    assert Book(read_entries(path.read_bytes())).attempts[1].instance_ids == ("i-1",)


def test_an_entry_is_on_the_disk_before_record_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(ledger_module.os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_size), real(handle)))
    path = tmp_path / "l"
    Ledger(path, FakeClock()).record("opened", run="x")
    assert path.stat().st_size in synced  # the line, flushed
    assert len(synced) == 2  # and the folder that names the file


def test_a_line_of_a_newer_version_that_cannot_be_understood_is_passed_over():
    body = json.dumps({"v": 9, "what": "else"})
    line = f"{body} {zlib.crc32(body.encode()):08x}\n".encode()
    entry = Entry(seq=1, at=FakeClock().now(), kind="opened", data={"run": "x"})
    assert read_entries(line + to_line(entry)) == [entry]


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=300), cut=st.integers(0, 5000))
def test_arbitrary_bytes_are_never_a_reason_to_stop(whole: bytes, raw: bytes, cut: int):
    for mixed in (raw, whole[:cut] + raw + whole[cut:]):
        entries = read_entries(mixed)
        Book(entries)
        assert all(entry in read_entries(whole) for entry in entries)


ANYTHING = INTENT | {"since": "2025-01-01T00:00:00+00:00", "lifetime_s": 1.0, "jobs": ["a"]}
KINDS = st.sampled_from([*Signal, "opened", "confirmed", "moved", "fetched", "priced", "lifetime", "cut", "resumed", "closed"])


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.tuples(KINDS, st.integers(1, 2)), max_size=25))
def test_no_order_of_entries_makes_the_book_raise_or_forget_a_machine(steps: list[tuple[str, int]]):
    at = FakeClock().now()
    entries = [
        Entry(seq=seq, at=at, kind=kind, attempt=attempt, data=ANYTHING | {"instance_id": f"i-{seq}"})
        for seq, (kind, attempt) in enumerate(steps, start=1)
    ]
    for upto in range(len(entries) + 1):
        book = Book(entries[:upto])
        for number in (1, 2):
            mine = [e for e in entries[:upto] if e.attempt == number]
            kinds = [e.kind for e in mine]
            if Signal.LAUNCHED in kinds:
                last_seen = len(kinds) - 1 - kinds[::-1].index(Signal.LAUNCHED)
                if not {Signal.GONE, Signal.REFUSED} & set(kinds[last_seen:]) and Signal.INTENT not in kinds[last_seen:]:
                    assert book.attempts[number].may_bill
                    assert book.attempts[number].phase is not Phase.GONE
