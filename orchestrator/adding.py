"""Jobs that are added to a run while its machine trains: asked for by `lorry add`, taken in by whoever drives the run.

    request -> into the book -> into the order -> sent beside the training -> into the machine's queue

`lorry add` writes a request, complete, and touches nothing else. The driver writes it into the ledger, then into the order, and only
then forgets the request; from there on the order says what the machine should have, so a driver that is killed anywhere leaves the next
one nothing to guess: what is in the order and not in the machine's queue is sent, verified and queued.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.protocol import JobSpec, Status

from . import commands
from .cap.terms import session_there
from .crashpoints import crashpoint
from .errors import UsageError
from .home import RunFolder, write_atomically
from .machines.reaching import Machine
from .order import Order, write_order
from .plan import Load
from .ship import BASES, Item, Shipment, send
from .trip import Trip

OPEN_ENDS = frozenset({"done", "failed"})
"""Ends of a session that had come to the end of its queue: jobs that were added meanwhile may still be trained there."""
SLICE_BYTES = 16 * 1024**2
"""So much is sent between two looks at the training: at 20 Mbit/s seven seconds."""


class Addition(BaseModel):
    """A request: jobs to add, complete."""

    model_config = ConfigDict(frozen=True)

    id: str
    jobs: tuple[JobSpec, ...]
    items: tuple[Item, ...]
    load: Load
    """These jobs alone, with what has to be sent for them."""
    expected_usd: Decimal

    @property
    def names(self) -> list[str]:
        """In their order."""
        return [job.name for job in self.jobs]


# --- the request ----------------------------------------------------------------------------------


def ask(folder: RunFolder, addition: Addition) -> Path:
    """Write the request down: from here on any driver of the run takes it in."""
    place = folder.path / "additions"
    place.mkdir(exist_ok=True)
    write_atomically(place / f"{addition.id}.json", addition.model_dump_json().encode())
    crashpoint("asked")
    return place / f"{addition.id}.json"


def requests(folder: RunFolder) -> Iterator[tuple[Path, Addition]]:
    """What was asked for and not taken in yet, oldest first."""
    for file in sorted((folder.path / "additions").glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        try:
            yield file, Addition.model_validate_json(file.read_bytes())
        except ValidationError as err:
            raise UsageError(f"{file} is no request of this lorry's", hint="remove it, and add the jobs again") from err


def extended(order: Order, addition: Addition) -> Order:
    """The order with more jobs at its end; what is being sent already is not sent twice."""
    there = {item.remote for item in order.items}
    load, more = order.load, addition.load
    return order.model_copy(
        update={
            "jobs": (*order.jobs, *addition.jobs),
            "items": (*order.items, *(item for item in addition.items if item.remote not in there)),
            "load": replace(
                load,
                jobs=(*load.jobs, *more.jobs),
                upload_bytes=load.upload_bytes + more.upload_bytes,
                hub_bytes=load.hub_bytes + more.hub_bytes,
                base_scale=max(load.base_scale, more.base_scale),
                download_bytes=load.download_bytes + more.download_bytes,
            ),
        }
    )


def take_in(trip: Trip) -> None:
    """Every request of the run, into its book and its order. Safe to repeat at any point."""
    for file, addition in list(requests(trip.folder)):
        if not {*addition.names} & {*trip.order.job_names}:
            trip.ledger.record("added", id=addition.id, jobs=addition.names, expected_usd=addition.expected_usd)
            trip.order = extended(trip.order, addition)
            write_order(trip.folder, trip.order)
            crashpoint("order-extended")
            trip.say(f"taken in: {', '.join(addition.names)}")
        trip.progress.expect(addition.names)
        file.unlink(missing_ok=True)


# --- the machine ----------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Latecomers:
    """Brings what the order has and the machine's queue lacks to a machine that trains, a slice at a time."""

    trip: Trip
    machine: Machine
    _queued: set[str] = field(default_factory=set)
    """Jobs that are in the machine's queue."""
    _left: list[Item] | None = None
    """What is still to be sent for those that are not; None: nothing has been looked at."""

    def begin(self) -> None:
        """Look at what the machine has; a process that died may have got anywhere."""
        self._queued = {*session_there(self.trip, self.machine).jobs}

    @property
    def waiting(self) -> list[str]:
        """Jobs that the machine is still to get."""
        return [name for name in self.trip.to_train() if name not in self._queued]

    def expected(self, status: Status) -> bool:
        """Whether a session that has ended did not know of all the jobs that were added: it will go on."""
        added = {str(name) for entry in self.trip.ledger.entries if entry.kind == "added" for name in entry.data["jobs"]}
        left = [name for name in self.trip.to_train() if name in added]
        return status.reason in OPEN_ENDS and any(name not in self._queued or name not in status.jobs for name in left)

    def go_on(self) -> bool:
        """Take in what was asked for, and send the next slice. True when the machine's queue has grown by this."""
        take_in(self.trip)
        names = self.waiting
        if not names or self.trip.stop_wanted:
            return False
        if self._left is None:
            self._left = self._wanted(names)
            self.trip.say(f"sending what {', '.join(names)} will be trained on, beside the training")
        if self._left:
            now, self._left = _slice(self._left)
            self._send(now)
            return False
        self._queue(names)
        return True

    def _wanted(self, names: Sequence[str]) -> list[Item]:
        """What these jobs need, but for a base that the machine has."""
        jobs = self.trip.order.jobs
        bases = {_folder(job.base) for job in jobs if job.name in names} - {_folder(job.base) for job in jobs if job.name in self._queued}
        prefixes = (*(f"jobs/{name}/" for name in names), *(f"{base}/" for base in bases if base.startswith(f"{BASES}/")))
        return [item for item in self.trip.order.items if item.remote.startswith(prefixes)]

    def _send(self, items: Sequence[Item]) -> None:
        trip, shell = self.trip, self.machine.shell
        before = shell.uploaded
        try:
            send(shell, trip.order.root, Shipment(items=tuple(items)), lambda _: crashpoint("adding"), check=trip.check_urgent)
        finally:  # what was sent is paid for, whatever became of it
            trip.ledger.record("moved", attempt=self.machine.number, uploaded=shell.uploaded - before)

    def _queue(self, names: Sequence[str]) -> None:
        """Everything is there and verified: the supervisor finds the names in its session's file."""
        trip = self.trip
        session = session_there(trip, self.machine)
        more = tuple(name for name in names if name not in session.jobs)
        document = session.model_copy(update={"jobs": (*session.jobs, *more)})
        self.machine.shell.check(commands.write(f"{trip.order.root}/session.json"), stdin=document.model_dump_json().encode())
        crashpoint("queue-extended")
        trip.ledger.record("joined", attempt=self.machine.number, jobs=list(names))
        self._queued |= {*names}
        self._left = None
        trip.say(f"{', '.join(names)}: on the machine, in its queue")


def _folder(base: str) -> str:
    """Where a base lies that was sent: a single file and what belongs to it lie in one folder."""
    return "/".join(base.split("/")[:2])


def _slice(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """The first of these up to `SLICE_BYTES`, at least one; and the rest."""
    size = 0
    for count, item in enumerate(items):
        size += item.size
        if count and size > SLICE_BYTES:
            return list(items[:count]), list(items[count:])
    return list(items), []
