"""Machines that failed us: which, why, and until when they are not tried again. One file, `machines.json`, for every run of this computer.

Also how fast the line to the last machine was, which tells a slow machine from a slow line at home. A file that is torn or not ours
counts as empty, and a disk that is full is no trouble here: forgetting costs another try, never a run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from providers.base import Offer

from .inspection import Line

FILE = "machines.json"
MOST_BYTES = 4 * 1024 * 1024
MOST_MACHINES = 1000
"""Nobody fails on so many; a file that grows without end helps nobody."""
LOCK_S = 5.0


class Fault(StrEnum):
    """What a machine did wrong."""

    HARDWARE = "wrong hardware"
    SLOW = "slow line"
    BOOT = "did not boot"
    REFUSED = "could not be had"
    DEARER = "dearer than offered"
    GUARD = "no guard that works"
    UNLABELLED = "label not kept"
    LOST = "lost while training"
    STRANGER = "not the machine that was rented"


FORGOTTEN_AFTER: Mapping[Fault, timedelta] = {
    Fault.HARDWARE: timedelta(days=30),  # nobody swaps a card over night, and a listing that is wrong stays wrong
    Fault.STRANGER: timedelta(days=30),  # an address that others answer at, or a line that somebody listens on
    Fault.GUARD: timedelta(days=7),  # calls that do not get out are a matter of how the host is set up
    Fault.LOST: timedelta(days=3),  # what fell over once falls over again until its owner has come by
    Fault.UNLABELLED: timedelta(days=1),  # the cloud's doing, and not mended within the hour
    Fault.SLOW: timedelta(days=1),  # a line is busy for an evening
    Fault.BOOT: timedelta(days=1),  # an image that came too slowly, a host that is being restarted
    Fault.DEARER: timedelta(days=1),  # a price that moved; by then its listing has caught up
    Fault.REFUSED: timedelta(minutes=30),  # somebody else has it, seldom for less
}
POOL_FORGOTTEN_AFTER = timedelta(hours=1)
"""Where the cloud picks one machine of many, a bad one says little of the next."""
LINE_KEPT = timedelta(days=30)
"""People move, and contracts change."""


class Bad(BaseModel):
    """A machine that is not tried for a while."""

    model_config = ConfigDict(frozen=True)

    provider: str
    machine_id: str
    gpu: str
    """As it was offered."""
    fault: Fault
    why: str = Field(max_length=2000)
    until: AwareDatetime

    @property
    def key(self) -> tuple[str, str]:
        """What it is known by."""
        return self.provider, self.machine_id

    @property
    def words(self) -> str:
        """A line for people."""
        again = f"not before {self.until:%Y-%m-%d %H:%M} UTC, or after: lorry offers --forget {self.machine_id}"
        return f"not tried: {self.gpu} at {self.provider}, machine {self.machine_id}: {self.why} ({again})"


class _Kept(BaseModel):
    """The file."""

    machines: tuple[Bad, ...] = ()
    line: Line | None = None
    line_until: AwareDatetime | None = None


class Memory:
    """What is remembered. Without a path, for as long as this process lives."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._kept = _Kept()

    def bad(self, now: datetime) -> dict[tuple[str, str], Bad]:
        """Provider and machine id -> why it is not to be tried now."""
        return {one.key: one for one in self._read().machines if one.until > now}

    def of(self, offers: Iterable[Offer], now: datetime) -> list[Bad]:
        """Those of the machines behind these offers that are not to be tried now, each once."""
        bad = self.bad(now)
        keys = dict.fromkeys((offer.provider, offer.machine_id) for offer in offers)
        return [bad[key] for key in keys if key in bad]

    def remember(self, bad: Bad, now: datetime) -> None:
        """Keep away from a machine. Of two faults the one that is remembered for longer stands."""

        def added(kept: _Kept) -> _Kept:
            others = [one for one in kept.machines if one.until > now and one.key != bad.key]
            known = next((one for one in kept.machines if one.key == bad.key and one.until > bad.until), bad)
            machines = sorted([*others, known], key=lambda one: one.until)[-MOST_MACHINES:]
            return kept.model_copy(update={"machines": tuple(machines)})

        self._change(added)

    def forget(self, word: str) -> list[Bad]:
        """Try again what `word` names: a machine's id, `provider/id`, or `all`. Returns what was forgotten."""
        gone: list[Bad] = []

        def removed(kept: _Kept) -> _Kept:
            gone[:] = [one for one in kept.machines if word in {"all", one.machine_id, f"{one.provider}/{one.machine_id}"}]
            return kept.model_copy(update={"machines": tuple(one for one in kept.machines if one not in gone)})

        self._change(removed)
        return gone

    def last_line(self, now: datetime) -> Line | None:
        """The line to the last machine that was inspected; None when that was long ago."""
        kept = self._read()
        return kept.line if kept.line_until is not None and kept.line_until > now else None

    def learn(self, line: Line, now: datetime) -> None:
        """A line was measured."""
        self._change(lambda kept: kept.model_copy(update={"line": line, "line_until": now + LINE_KEPT}))

    # -- the file ----------------------------------------------------------------------------------

    def _read(self) -> _Kept:
        if self._path is None:
            return self._kept
        try:
            with self._path.open("rb") as file:
                return _Kept.model_validate_json(file.read(MOST_BYTES))
        except (OSError, ValidationError):
            return _Kept()

    def _change(self, change: Callable[[_Kept], _Kept]) -> None:
        if self._path is None:
            self._kept = change(self._kept)
            return
        from filelock import Timeout

        from orchestrator.home import write_atomically

        with contextlib.suppress(OSError, Timeout), self._alone(self._path):
            kept = change(self._read())
            write_atomically(self._path, json.dumps(kept.model_dump(mode="json"), indent=1).encode())

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Of two runs that learn something at the same time, neither forgets what the other has learned."""
        from filelock import FileLock

        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_S):
            yield
