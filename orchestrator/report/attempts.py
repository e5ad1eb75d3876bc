"""The table of attempts: every machine that was tried, what came of it and why it ended. From the book's entries alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from orchestrator.lease import usage_of
from orchestrator.ledger import Attempt, Book, Entry
from orchestrator.lifecycle import Phase, Signal
from orchestrator.machines.recovery import steps_gained
from orchestrator.view import duration


def attempts(entries: Sequence[Entry], book: Book, now: datetime) -> list[dict[str, Any]]:
    """`machines` of the receipt, one for each attempt, in order."""
    gained = steps_gained(entries)
    bids = {int(e.data["number"]) for e in entries if e.kind == "chosen" and e.data["offer"].get("interruptible")}
    trained = {e.attempt for e in entries if e.kind == Signal.STARTED}
    return [
        _attempt(one, now)
        | {"interruptible": one.number in bids, "trained": one.number in trained, "steps_gained": gained.get(one.number, 0)}
        for one in book.attempts.values()
    ]


def _attempt(attempt: Attempt, now: datetime) -> dict[str, Any]:
    return {
        "attempt": attempt.number,
        "provider": attempt.provider,
        "id": attempt.instance_id or None,
        "machine_id": attempt.machine_id or None,
        "gpu": attempt.gpu,
        "usd_per_hour": float(attempt.usd_per_hour),
        "label": attempt.label,
        "began_at": attempt.intended_at.isoformat(),
        "seconds": round(((attempt.gone_at or now) - attempt.intended_at).total_seconds(), 1),
        "destroyed_verified": attempt.phase is Phase.GONE,
        "outcome": attempt.told or attempt.ended_reason or str(attempt.phase),
        "metered_usd": float(round(usage_of(attempt).usd(attempt.gone_at), 6)) if attempt.gone_at else None,
    }


def in_lines(machines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table for people, two lines a machine: what it was, and what came of it."""
    return [line for machine in machines for line in (_what(machine), f"    {came_of_it(machine)}")]


def _what(machine: Mapping[str, Any]) -> str:
    bid = ", a bid" if machine["interruptible"] else ""
    gone = "destroyed, seen to be gone" if machine["destroyed_verified"] else "NOT KNOWN TO BE GONE"
    price = f"${machine['usd_per_hour']:.3f}/h{bid}"
    return f"  {machine['gpu']} at {machine['provider']} ({machine['id'] or 'never created'}), {price}: {gone}"


def came_of_it(machine: Mapping[str, Any]) -> str:
    """Time, money, steps, and why it ended."""
    if machine["id"] is None:
        return str(machine["outcome"])
    usd = f", ${machine['metered_usd']:.4f}" if machine["metered_usd"] is not None else ""
    steps = f", {machine['steps_gained']} steps gained" if machine["trained"] else ""
    return f"{duration(machine['seconds'])}{usd}{steps}: {machine['outcome']}"
