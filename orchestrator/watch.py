"""Standing beside the machine while it trains: events come in, committed files come home, the cap is kept.

The machine trains on by itself; this loop may die and be begun again by another process at any point. What it
knows of the past is in the run's folder: the events file, byte for byte, and the files that are home.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from trainer.protocol import Committed, EventReader, Session, Status

from . import commands
from .adding import Latecomers
from .budget import SHORTEST_LIFE_S, WAY_OUT_S
from .cap.terms import Terms, session_there
from .crashpoints import crashpoint
from .errors import IntegrityError, Interrupted, MachineFailed, OverBudget, ResultsIncomplete
from .fetch import Arrived, Damaged, fetch, is_home
from .lifecycle import Phase, Signal
from .machines import guarding
from .machines.reaching import Machine
from .machines.trying import offer_of
from .pricing.gpus import gpu
from .pricing.queue import company
from .pricing.work import shape_of
from .progress import Progress
from .shell import LocalTrouble
from .trip import Trip

POLL_S = 1.0
EVENTS_MOST_BYTES = 256 * 1024 * 1024
"""A million steps tell less than half of it."""
MOST_FILES = 20_000
"""Files that one machine may list: thirty jobs with six hundred samples each are fewer."""
STATUS_MOST_BYTES = 1024 * 1024
EVENTS_AT_ONCE = 1024 * 1024
SILENT_S = 10.0
"""A supervisor whose beat stands still for so long is started again, which is harmless if it lives: it beats about once a second."""
MUTE_S = 180.0
"""One that lives and tells nothing for so long (its disk is full, its folder is gone) will not come to itself."""
STOP_PATIENCE_S = 300.0
"""An orderly stop takes a step and a save; after this the machine is given back with what is at home."""
OVERRUN_S = WAY_OUT_S / 2
"""A supervisor ends a session at its lifetime, give or take a step and a save; the rest of the way out is for the pull."""
LOCAL_PAUSE_S = 20.0
DAMAGED_TOLD = 5
"""More than these would only push what matters off the screen."""
STARTS = 3
ROLE_ORDER = {"adapter": 0, "checkpoint": 1, "sample": 2}


class Feed:
    """The machine's events, continued from what is already in the run's folder."""

    def __init__(self, trip: Trip, machine: Machine) -> None:
        self._trip = trip
        self._machine = machine
        self._home = trip.folder.path / f"events-{machine.number}.jsonl"
        self._reader = EventReader()
        self._listed = 0
        self._dropped = 0

    def catch_up(self) -> None:
        """Take in what earlier processes fetched; a torn tail is cut, its bytes come again."""
        if self._home.exists():
            os.truncate(self._home, _end_of_last_line(self._home))
            if self._machine.number not in self._trip.heard:
                for piece in pieces(self._home):
                    self._take(piece)
        self._trip.heard.add(self._machine.number)

    def read_on(self) -> bool:
        """Fetch what was added; True when something was."""
        have = self._home.stat().st_size if self._home.exists() else 0
        data = self._machine.shell.read(f"{self._trip.order.root}/events.jsonl", offset=have, most=EVENTS_AT_ONCE)
        if not data:
            return False
        if have + len(data) > EVENTS_MOST_BYTES:
            raise IntegrityError(f"the machine tells of more than {EVENTS_MOST_BYTES} bytes of events; no training does")
        with self._home.open("ab") as file:
            file.write(data)
        crashpoint("events-taken")
        self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        for event in self._reader.feed(data):
            self._listed += isinstance(event, Committed)
            self._trip.progress.take(event)
        if self._listed > MOST_FILES:
            raise IntegrityError(f"the machine lists more than {MOST_FILES} files; no training makes so many")
        if self._reader.dropped and not self._dropped:
            self._trip.say("the machine tells things that our trainer does not say; they are left out")
        self._dropped = self._reader.dropped

    def status(self) -> Status | None:
        """The supervisor's heartbeat; None while there is none, or none that makes sense."""
        raw = self._machine.shell.read(f"{self._trip.order.root}/status.json", most=STATUS_MOST_BYTES)
        try:
            return Status.model_validate_json(raw) if raw else None
        except ValidationError:
            return None


@dataclass(slots=True, kw_only=True)
class Guard:
    """Keeps the supervisor alive: when its beat stands still, starts it again. Whether it had died, its own lock decides."""

    revive: Callable[[], bool]
    """Starts the supervisor; False when it was there, or had ended."""
    last_words: Callable[[], str]
    beat: int = -1
    heard_at: float | None = None
    looked_at: float = 0.0
    starts: int = 1

    def look(self, status: Status | None, now: float) -> bool:
        """Take a look at `now`; True when it had died and was started again. Raises `MachineFailed` when that is no use."""
        if self.heard_at is None or (status is not None and status.beat != self.beat):
            self.beat, self.heard_at, self.looked_at = (status.beat if status else -1), now, now
        if now - self.looked_at <= SILENT_S:
            return False
        self.looked_at = now
        if not self.revive():
            if now - self.heard_at > MUTE_S:
                raise MachineFailed(f"the supervisor on the machine lives, but tells nothing: {self.last_words()}")
            return False
        self.starts, self.heard_at = self.starts + 1, now
        if self.starts > STARTS:
            raise MachineFailed(f"the supervisor on the machine died {STARTS} times: {self.last_words()}")
        return True


def start(trip: Trip, machine: Machine, python: str) -> bool:
    """Start the supervisor with the lifetime that the cap leaves, or find it running. Safe to repeat. True when it was started."""
    session = f"{trip.order.root}/session.json"
    if machine.shell.size(session) is None:
        lifetime = trip.lifetime_s(machine.lease)
        if lifetime < SHORTEST_LIFE_S:
            raise OverBudget(
                f"${trip.spent_usd():.4f} of ${trip.order.cap_usd} is spent; nothing is left to train with", hint="raise budget.max_usd"
            )
        document = Session(run=trip.order.run, jobs=tuple(trip.to_train()), lifetime_s=lifetime, width=_width(trip, machine))
        machine.shell.check(commands.write(session), stdin=document.model_dump_json().encode())
        crashpoint("session-sent")
    there = session_there(trip, machine)
    answer = machine.shell.check(commands.start(trip.order.root, python, offline=trip.order.is_offline), timeout_s=120)
    is_new = b'"pid"' in answer and b'"running"' not in answer
    if is_new or trip.book().attempts[machine.number].phase is Phase.SHIPPING:
        trip.ledger.record(Signal.STARTED, attempt=machine.number, lifetime_s=there.lifetime_s, python=python)
    return is_new


def _width(trip: Trip, machine: Machine) -> int | None:
    """Jobs in one pass at most, by what this card's memory was planned for; None where nothing was planned."""
    load, attempt = trip.rest(), trip.book().attempts[machine.number]
    vram_gib = offer_of(trip, attempt).vram_gib
    if not vram_gib or not load.jobs:
        return None
    card = replace(gpu(attempt.gpu), vram_gib=vram_gib)
    return company([shape_of(work, load.base_scale) for work in load.jobs], card)


def watch(trip: Trip, machine: Machine, python: str) -> str:
    """Until the session ends, however it ends. Returns the supervisor's reason.

    Raises `Interrupted` when the machine is to go at once, `MachineFailed` when the supervisor stays dead.
    """
    feed, puller, asked_at = Feed(trip, machine), Puller(trip, machine), None
    guard = Guard(revive=lambda: start(trip, machine, python), last_words=lambda: _last_words(trip, machine))
    feed.catch_up()
    trip.enter("training", "")
    terms, late = Terms(trip=trip, machine=machine), Latecomers(trip=trip, machine=machine)
    terms.begin()
    late.begin()
    while True:
        trip.check_urgent()
        status = feed.status()
        moved = feed.read_on()
        if status is not None:
            trip.progress.hear(status)
            if status.state == "ended" and late.expected(status):
                guarding.renew(trip, machine)  # they are trained on this machine
            elif status.state == "ended" and not moved:
                trip.ledger.record(Signal.ENDED, attempt=machine.number, reason=status.reason)
                return status.reason
        if _overdue(trip, machine):
            trip.say("the machine trains on beyond the cap's end; what is there is fetched and it is given back")
            trip.ledger.record(Signal.ENDED, attempt=machine.number, reason="deadline")
            return "deadline"
        if late.go_on():
            terms.begin()
            start(trip, machine, python)  # a supervisor that had come to its end in the meantime goes on
        fetched = puller.fetch_next()
        if puller.damaged and not fetched and not puller.trouble:
            raise puller.damaged[0]  # all the others are at home
        now = trip.clock.monotonic_s()
        if trip.stop_wanted and asked_at is None:
            asked_at = now
            with suppress(OSError):  # a process that takes the run up is to know why its training ended
                trip.folder.want_stop()
            machine.shell.check(commands.stop(trip.order.root))
            trip.say("asked the machine for a checkpoint and an orderly end")
        if asked_at is not None and now - asked_at > STOP_PATIENCE_S:
            raise Interrupted("the machine did not stop in good order")
        terms.look()
        if guard.look(status, now):
            trip.say("the supervisor on the machine had died; it was started again and goes on from its last checkpoint")
        trip.pulse()
        if not moved and not fetched:
            trip.clock.sleep(POLL_S)


def _overdue(trip: Trip, machine: Machine) -> bool:
    """Whether a session that should have ended by itself has not: a machine's word does not move the cap."""
    attempt = trip.book().attempts[machine.number]
    if attempt.started_at is None:
        return False
    return (trip.ledger.now() - attempt.started_at).total_seconds() > attempt.lifetime_s + OVERRUN_S


def pull(trip: Trip, machine: Machine) -> None:
    """Bring home all that was committed and is not here yet.

    Where this computer cannot take it (disk full), waits for as long as the cap allows. Raises, when all that can be had is at
    home, `Damaged` for a file that is not what it must be, and `ResultsIncomplete` when a finished adapter, or the newest
    checkpoint of an unfinished job, is missing.
    """
    trip.enter("pull", "")
    feed, puller = Feed(trip, machine), Puller(trip, machine)
    feed.catch_up()
    while feed.read_on():
        pass
    while puller.fetch_next() or (puller.trouble and not trip.stop_wanted and trip.lifetime_s(machine.lease) > 0):
        trip.check_urgent()
        if puller.trouble:
            trip.pulse(puller.trouble)
            trip.clock.sleep(POLL_S)
    missing = [c.path for c in _dear(trip) if not is_home(trip.folder, c)]
    trip.ledger.record(Signal.PULLED, attempt=machine.number, missing=missing)
    if puller.damaged:
        raise puller.damaged[0]
    if missing:
        raise ResultsIncomplete(f"did not come home: {', '.join(missing)}")


def _dear(trip: Trip) -> list[Committed]:
    """What must be at home before a machine goes."""
    files = trip.progress.committed.values()
    checkpoints = [[c for c in files if c.job == name and c.role == "checkpoint"] for name in trip.todo()]
    return [c for c in files if c.final] + [max(found, key=lambda c: c.step) for found in checkpoints if found]


class Puller:
    """Fetches committed files, the most precious first: adapters, then the newest checkpoint, then samples."""

    def __init__(self, trip: Trip, machine: Machine) -> None:
        self._trip = trip
        self._machine = machine
        self._settled: set[tuple[str, str]] = set()
        """(path, sha256) of what is at home or no longer there to be fetched."""
        self.trouble = ""
        """Why this computer cannot take what is waiting; empty while it can."""
        self.damaged: list[Damaged] = []
        """Files that are not what they must be: told when all the others are at home."""
        self._not_before = 0.0

    def fetch_next(self) -> bool:
        """Fetch one file; False when nothing is waiting, or this computer could not take it a moment ago."""
        if self._trip.clock.monotonic_s() < self._not_before:
            return False
        waiting = [c for c in self._trip.progress.committed.values() if (c.path, c.sha256) not in self._settled]
        for committed in sorted(waiting, key=lambda c: (not c.final, ROLE_ORDER[c.role], -c.step, c.path)):
            self._settled.add((committed.path, committed.sha256))
            try:
                if is_home(self._trip.folder, committed):
                    continue
                self._fetch(committed)
            except Damaged as err:
                self.damaged.append(err)
                if len(self.damaged) <= DAMAGED_TOLD:
                    self._trip.say(f"{err}; what else there is comes home first")
            except LocalTrouble as err:
                self._settled.discard((committed.path, committed.sha256))
                self._not_before = self._trip.clock.monotonic_s() + LOCAL_PAUSE_S
                if not self.trouble:
                    self._trip.say(f"{err}; {err.hint}: the machine waits with what it has")
                self.trouble = str(err)
                return False
            self.trouble = ""
            return True
        return False

    def _fetch(self, committed: Committed) -> None:
        done = 0

        def moved(count: int) -> None:
            nonlocal done
            done += count
            crashpoint("fetching")
            self._trip.check_urgent()
            self._trip.moved(done, committed.size)

        before = self._machine.shell.downloaded
        try:
            arrived = fetch(self._machine.shell, self._trip.order.root, self._trip.folder, committed, moved=moved)
        finally:  # what came is paid for, whatever it was
            self._trip.transfer = None
            self._trip.ledger.record("moved", attempt=self._machine.number, downloaded=self._machine.shell.downloaded - before)
        if arrived is not None:
            self._came_home(arrived)

    def _came_home(self, arrived: Arrived) -> None:
        committed = arrived.committed
        self._trip.ledger.record(
            "fetched",
            attempt=self._machine.number,
            job=committed.job,
            path=str(arrived.path.relative_to(self._trip.folder.path)),
            role=committed.role,
            step=committed.step,
            sha256=committed.sha256,
            final=committed.final,
        )
        if committed.role != "sample":
            what = "finished adapter" if committed.final else f"{committed.role} of step {committed.step}"
            self._trip.say(f"{committed.job}: {what} is home")


def _last_words(trip: Trip, machine: Machine) -> str:
    log = machine.shell.run(commands.tail(trip.order.root)).stdout.decode(errors="replace").strip().splitlines()
    return log[-1] if log else "its log is empty"


def fetch_now(trip: Trip, machine: Machine) -> int:
    """Bring home what is committed at this moment, and leave the machine to its work. Returns the number of files."""
    feed, puller, count = Feed(trip, machine), Puller(trip, machine), 0
    feed.catch_up()
    while feed.read_on():
        pass
    while puller.fetch_next():
        count += 1
    return count


def replay(progress: Progress, raw: Iterable[bytes]) -> None:
    """Fold what a machine told into `progress`; for commands that only look."""
    reader = EventReader()
    for piece in raw:
        for event in reader.feed(piece):
            progress.take(event)


def pieces(file: Path) -> Iterator[bytes]:
    """An events file at home, so much at once: a stranger says how large it is."""
    with file.open("rb") as source:
        while piece := source.read(EVENTS_AT_ONCE):
            yield piece


def _end_of_last_line(file: Path) -> int:
    end = file.stat().st_size
    with file.open("rb") as source:
        while end > 0:
            begin = max(0, end - EVENTS_AT_ONCE)
            source.seek(begin)
            if (at := source.read(end - begin).rfind(b"\n")) >= 0:
                return begin + at + 1
            end = begin
    return 0
