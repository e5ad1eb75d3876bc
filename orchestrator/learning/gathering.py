"""From a run's folder to what it teaches: each machine that was rented, as it was predicted and as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from pydantic import ValidationError

from orchestrator.home import RunFolder
from orchestrator.lease import usage_of
from orchestrator.ledger import Attempt, Entry
from orchestrator.lifecycle import Signal
from orchestrator.order import Order
from trainer.protocol import AnyEvent, EventReader

from .lessons import TOY, families_of
from .records import BILL, WHOLE, Record, Said
from .timeline import completed, seconds_by_phase, steps_taken

UPLOADED = "uploaded"
"""The moment when all was sent; what comes before it on the machine, its inspection, is part of that phase."""


def gathered(order: Order, folder: RunFolder, entries: Sequence[Entry]) -> list[Record]:
    """A record of every machine of the run that let us in. Attempts that an older lorry rented were not predicted phase by phase."""
    records = []
    for number, attempt in folder.book().attempts.items():
        said = _said(entries, number)
        if said is None or attempt.gone_at is None:
            continue
        at = _moments(entries, number)
        took = _took(at) | _trained(folder, number, said.steps, at, _reason(entries, number))
        if "boot" in took:
            whole = _whole(took, attempt, done=_reason(entries, number) == "done")
            records.append(_record(order, folder.id, attempt, attempt.gone_at, said, whole))
    return records


def _record(order: Order, run: str, attempt: Attempt, at: datetime, said: Said, took: Mapping[str, float]) -> Record:
    return Record(
        at=at,
        run=run,
        attempt=attempt.number,
        provider=attempt.provider,
        host=attempt.machine_id,
        card=attempt.gpu,
        image=order.image,
        family=families_of(order.load),
        toy=order.load.base_scale < TOY,
        said=said,
        took={name: round(seconds, 6) for name, seconds in took.items()},
    )


def _said(entries: Sequence[Entry], number: int) -> Said | None:
    chosen = [e.data["said"] for e in entries if e.kind == "chosen" and e.data.get("number") == number and "said" in e.data]
    try:
        return Said.model_validate(chosen[-1]) if chosen else None
    except ValidationError:
        return None


def _moments(entries: Sequence[Entry], number: int) -> dict[str, datetime]:
    """When each thing happened first; `UPLOADED` is the entry that tells what the machine fetches by itself."""
    at: dict[str, datetime] = {}
    for entry in entries:
        if entry.attempt == number:
            at.setdefault(entry.kind, entry.at)
            if entry.kind == "moved" and "fetched" in entry.data:
                at.setdefault(UPLOADED, entry.at)
    return at


ENDS = (
    ("boot", Signal.INTENT, Signal.REACHABLE),
    ("upload", Signal.REACHABLE, UPLOADED),
    ("set-up", UPLOADED, Signal.SHIPPED),
    ("pull", Signal.ENDED, Signal.PULLED),
    ("destroy", Signal.GIVE_UP, Signal.GONE),
)
"""Phase, the entry that begins it and the one that ends it. What lies between, the machine tells."""


def _took(at: Mapping[str, datetime]) -> dict[str, float]:
    return {name: max(0.0, (at[end] - at[begin]).total_seconds()) for name, begin, end in ENDS if begin in at and end in at}


def _trained(folder: RunFolder, number: int, planned: int, at: Mapping[str, datetime], reason: str) -> dict[str, float]:
    if Signal.STARTED not in at or Signal.ENDED not in at:
        return {}
    events = _events(folder, number)
    session_s = max(0.0, (at[Signal.ENDED] - at[Signal.STARTED]).total_seconds())
    return completed(seconds_by_phase(events, session_s), taken=steps_taken(events), planned=planned, done=reason == "done")


def _events(folder: RunFolder, number: int) -> list[AnyEvent]:
    file = folder.path / f"events-{number}.jsonl"
    return list(EventReader().feed(file.read_bytes())) if file.exists() else []


def _reason(entries: Sequence[Entry], number: int) -> str:
    return next((str(e.data.get("reason", "")) for e in entries if e.attempt == number and e.kind == Signal.ENDED), "")


def _whole(took: dict[str, float], attempt: Attempt, *, done: bool) -> dict[str, float]:
    """With the whole and its bill, for a machine that did all of it."""
    if not done or attempt.gone_at is None:
        return took
    whole_s = (attempt.gone_at - attempt.intended_at).total_seconds()
    return took | {WHOLE: max(0.0, whole_s), BILL: float(usage_of(attempt).usd(attempt.gone_at))}
