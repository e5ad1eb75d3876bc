"""The book of a run: what was about to cost money, and what came of it. Append-only.

Every entry is one line of JSON with a checksum, written and fsynced before the act that it announces.
A line torn by a crash is ignored when read, never repaired; what comes after it is still read. Knows
nothing of clouds: it keeps entries, and `Book` says what they add up to.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from .clock import Clock
from .crashpoints import crashpoint
from .lifecycle import PAYING, Phase, Signal, advance, heard

VERSION = 1
CUT_LABEL = "cut label"
"""How an instance was found whose label its cloud had cut: it may be that of another machine of the run."""
SIGNALS = {str(signal): signal for signal in Signal}
_TO_TEXT = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One fact."""

    seq: int
    at: datetime
    kind: str
    attempt: int = 0
    """The lease it belongs to; 0: the run itself."""
    data: Mapping[str, Any] = field(default_factory=dict)


def to_line(entry: Entry) -> bytes:
    """The entry as it stands in the file, newline included."""
    body = {
        "v": VERSION,
        "seq": entry.seq,
        "at": entry.at.isoformat(),
        "kind": entry.kind,
        "attempt": entry.attempt,
        "data": dict(entry.data),
    }
    text = _TO_TEXT(body)
    return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


def read_entries(raw: bytes) -> list[Entry]:
    """Every whole entry in `raw`, in order; torn, zero-filled and doubled lines are passed over."""
    entries: list[Entry] = []
    for line in raw.split(b"\n"):
        entry = _from_line(line.strip(b"\0\r "))
        if entry is not None and (not entries or entry.seq > entries[-1].seq):
            entries.append(entry)
    return entries


def _from_line(line: bytes) -> Entry | None:
    text, _, checksum = line.rpartition(b" ")
    if not text or checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    try:
        body = json.loads(text)  # the checksum says that a lorry wrote it, but maybe a newer one
        return Entry(
            seq=body["seq"],
            at=datetime.fromisoformat(body["at"]),
            kind=body["kind"],
            attempt=body["attempt"],
            data=body["data"],
        )
    except (KeyError, TypeError, ValueError):
        return None


class Ledger:
    """The file. One process writes at a time: the run's lock sees to that."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._named = False
        self.entries = read_entries(path.read_bytes()) if path.exists() else []
        self._book = Book(self.entries)
        self._set_back = max(self.entries[-1].at - clock.now(), timedelta(0)) if self.entries else timedelta(0)
        self._seq = self.entries[-1].seq if self.entries else 0

    def record(self, kind: str, *, attempt: int = 0, **data: Any) -> Entry:
        """Append a fact, durably: when this returns, a power cut cannot take it back."""
        self._seq += 1  # never used twice: a write that failed may stand in the file all the same
        entry = Entry(seq=self._seq, at=self.now(), kind=kind, attempt=attempt, data=data)
        crashpoint(f"{kind}-unwritten")
        with self._path.open("ab") as file:
            if not _ends_a_line(self._path):
                file.write(b"\n")  # a torn tail must not swallow this entry
            file.write(to_line(entry))
            file.flush()
            os.fsync(file.fileno())
        if not self._named:  # whoever made the file may have died before its name was sure
            sync_folder(self._path.parent)
            self._named = True
        self.entries.append(entry)
        self._book = self._book.and_then(entry)
        crashpoint(f"{kind}-written")
        return entry

    def now(self) -> datetime:
        """The time for everything that is paid by it: a clock set back since the last entry takes no bill back."""
        return self._clock.now() + self._set_back

    def catch_up(self, lost_s: float) -> None:
        """So much time has passed that this computer's clock, set back while no lorry ran, knows nothing of: from here on it is counted."""
        self._set_back += timedelta(seconds=lost_s)
        self.record("clock", lost_s=round(lost_s, 1))

    def book(self) -> Book:
        """What the entries add up to now; what is recorded later does not change it."""
        return self._book


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable. A no-op where folders cannot be opened (Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One lease as the book knows it."""

    number: int
    phase: Phase
    provider: str
    label: str
    gpu: str
    usd_per_hour: Decimal
    disk_gib: int
    prices: Mapping[str, str]
    machine_id: str
    intended_at: datetime
    account: str = ""
    """Whose money it is, as the cloud tells accounts apart; empty where it does not."""
    earlier: tuple[tuple[datetime, Mapping[str, str]], ...] = ()
    """Rate cards before `prices`, each with the moment until which it held."""
    instance_ids: tuple[str, ...] = ()
    """Every instance id that was ever seen under this label; usually one."""
    guessed: bool = False
    """Whether one was found by a label that its cloud had cut, which other machines of the run may bear too."""
    started_at: datetime | None = None
    gone_at: datetime | None = None
    shipped: bool = False
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0
    fetched_bytes: int = 0
    """What the machine gets from elsewhere by itself: its base, its programs. An estimate, counted once however often it is said."""
    lifetime_s: float = 0.0
    ended_reason: str = ""
    outcome: Mapping[str, Any] | None = None
    """Exit code, message and hint that the run ends with, decided when this machine was given up; None while the run may go on."""
    told: str = ""
    """Why it was refused or given up, for the person who reads the table of attempts."""

    @property
    def may_bill(self) -> bool:
        """Whether a machine of this lease may cost money now."""
        return self.phase in PAYING

    @property
    def instance_id(self) -> str:
        """The instance that is used."""
        return self.instance_ids[0] if self.instance_ids else ""


class Book:
    """The sum of a run's entries. Built from any prefix of a ledger; never raises on what it finds."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.attempts: dict[int, Attempt] = {}
        self.opened: Mapping[str, Any] = {}
        self.opened_at: datetime | None = None
        self.confirmed = False
        self.closed: Mapping[str, Any] | None = None
        self.closed_at: datetime | None = None
        self.cut: tuple[str, ...] = ()
        """Jobs left out since the user last said go, because the cap does not last for them."""
        self._numbers = 0
        for entry in entries:
            self.take(entry)

    def and_then(self, entry: Entry) -> Book:
        """The sum with one more entry; this one stays as it is."""
        other = Book.__new__(Book)
        other.__dict__ |= self.__dict__
        other.attempts = dict(self.attempts)
        other.take(entry)
        return other

    def take(self, entry: Entry) -> None:
        """One more entry, into a sum that nobody else has yet."""
        self._numbers = max(self._numbers, entry.attempt)
        if entry.kind in {"opened", "resumed"}:
            self.cut = ()
        if entry.kind == "opened":
            self.opened, self.opened_at = entry.data, entry.at
        elif entry.kind == "confirmed":
            self.confirmed = True
        elif entry.kind == "cut":
            self.cut += tuple(str(job) for job in entry.data.get("jobs", ()) if job not in self.cut)
        elif entry.kind == "closed":
            self.closed, self.closed_at = entry.data, entry.at
        elif entry.kind == Signal.INTENT:
            self.closed = None  # a run that goes on
            self.attempts[entry.attempt] = _begin(entry)
        elif entry.kind == Signal.LAUNCHED and entry.attempt not in self.attempts:
            self.attempts[entry.attempt] = _apply(_begin(entry), entry)  # its intent has become unreadable
        elif entry.attempt in self.attempts:
            self.attempts[entry.attempt] = _apply(self.attempts[entry.attempt], entry)

    @property
    def open_attempts(self) -> tuple[Attempt, ...]:
        """Leases whose machine may bill."""
        return tuple(a for a in self.attempts.values() if a.may_bill)

    @property
    def current(self) -> Attempt | None:
        """The lease in hand: the last that may bill."""
        return next((a for a in reversed(self.attempts.values()) if a.may_bill), None)

    @property
    def last(self) -> Attempt | None:
        """The newest lease, whatever became of it."""
        return self.attempts[max(self.attempts)] if self.attempts else None

    @property
    def next_attempt(self) -> int:
        """The number of the next lease."""
        return self._numbers + 1


def _begin(entry: Entry) -> Attempt:
    data = entry.data
    return Attempt(
        number=entry.attempt,
        phase=advance(Phase.PLANNED, Signal.INTENT),
        provider=str(data["provider"]),
        label=str(data["label"]),
        gpu=str(data["gpu"]),
        usd_per_hour=Decimal(str(data["usd_per_hour"])),
        disk_gib=int(data["disk_gib"]),
        prices=dict(data["prices"]),
        machine_id=str(data.get("machine_id", "")),
        account=str(data.get("account", "")),
        intended_at=entry.at,
    )


def _apply(attempt: Attempt, entry: Entry) -> Attempt:
    data = entry.data
    if entry.kind == "moved":
        return replace(
            attempt,
            uploaded_bytes=attempt.uploaded_bytes + int(data.get("uploaded", 0)),
            downloaded_bytes=attempt.downloaded_bytes + int(data.get("downloaded", 0)),
            fetched_bytes=max(attempt.fetched_bytes, int(data.get("fetched", 0))),
        )
    if entry.kind == "priced":
        return _repriced(attempt, entry)
    if entry.kind == "lifetime":
        return replace(attempt, lifetime_s=float(data["lifetime_s"]))
    signal = SIGNALS.get(entry.kind)
    if signal is None or not heard(attempt.phase, signal):
        return attempt
    changes: dict[str, Any] = {"phase": advance(attempt.phase, signal)}
    if signal is Signal.LAUNCHED and data["instance_id"] not in attempt.instance_ids:
        changes["instance_ids"] = (*attempt.instance_ids, str(data["instance_id"]))
        changes["guessed"] = attempt.guessed or data.get("via") == CUT_LABEL
    if signal is Signal.SHIPPED:
        changes["shipped"] = True
    if signal is Signal.STARTED:
        changes["started_at"] = attempt.started_at or entry.at
        changes["lifetime_s"] = attempt.lifetime_s or float(data.get("lifetime_s", 0))
    if signal is Signal.ENDED:
        changes["ended_reason"] = str(data.get("reason", ""))
    if signal in {Signal.REFUSED, Signal.GIVE_UP}:
        changes["told"] = str(data.get("why", "")) or attempt.told
        changes["outcome"] = data.get("outcome") or attempt.outcome
    if changes["phase"] is Phase.GONE:
        changes["gone_at"] = entry.at
    return replace(attempt, **changes)


def _repriced(attempt: Attempt, entry: Entry) -> Attempt:
    """Another rate card, from the moment that the entry names: at most its own time, and never before the card that held last."""
    begun = attempt.earlier[-1][0] if attempt.earlier else attempt.intended_at
    since = max(begun, min(datetime.fromisoformat(str(entry.data["since"])), entry.at))
    return replace(
        attempt,
        prices=dict(entry.data["prices"]),
        usd_per_hour=Decimal(str(entry.data["usd_per_hour"])),
        earlier=(*attempt.earlier, (since, attempt.prices)),
    )
