"""The receipt: what was asked, what came home, which machines there were, what each meter says.

Reads the run's folder only, so it can be written at any time, by any process, also for a run that died.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrator.budget import spent_usd
from orchestrator.errors import EXIT_CODES
from orchestrator.home import RunFolder
from orchestrator.lease import usage_of
from orchestrator.ledger import Book, Entry, read_entries
from orchestrator.lifecycle import Signal
from orchestrator.progress import JobProgress, Progress
from orchestrator.ship import hash_file
from orchestrator.view import duration
from orchestrator.watch import pieces, replay

from .attempts import attempts, in_lines
from .paid import by_job, paid, rentals
from .paid import in_words as in_words_paid

STATUS_OF_EXIT = {
    0: "done",
    5: "stopped by the cap",
    6: "machine failed",
    7: "training failed",
    8: "incomplete",
    10: "may still bill",
    12: "integrity stop",
    130: "stopped",
}

PHASES = (
    ("boot", Signal.INTENT, Signal.REACHABLE),
    ("upload and set-up", Signal.REACHABLE, Signal.STARTED),
    ("training", Signal.STARTED, Signal.ENDED),
    ("pull", Signal.ENDED, Signal.PULLED),
    ("destroy", Signal.GIVE_UP, Signal.GONE),
)
"""Name, the entry that begins it and the one that ends it."""


def receipt(folder: RunFolder, now: datetime, *, billed_usd: Decimal | None = None) -> dict[str, Any]:
    """The document that `lorry run --json` ends with; see the product page for its words."""
    book, entries = book_and_entries(folder)
    exit_code = 10 if book.open_attempts and book.closed is not None else int((book.closed or {}).get("exit_code", 0))
    status = STATUS_OF_EXIT.get(exit_code, EXIT_CODES.get(exit_code, "failed")) if book.closed is not None else _living_status(book)
    report = folder.path / "report.html"
    jobs = progress_of(folder).jobs
    until = book.closed_at if not book.open_attempts and book.closed_at else now
    machines = rentals(folder, book.attempts.values(), until)
    shares = by_job(machines, list(jobs))
    return {
        "run": folder.id,
        "status": status,
        "exit_code": exit_code,
        "message": str((book.closed or {}).get("message", "")),
        "hint": str((book.closed or {}).get("hint", "")),
        "jobs": [job_document(folder.job(name), name, job, cut=name in book.cut) | shares[name] for name, job in jobs.items()],
        "made_with": made_with(folder),
        "machines": attempts(entries, book, now),
        "phases": phases(entries),
        "paid": paid(machines),
        "cost": _cost(folder, book, now, billed_usd),
        "report": str(report) if report.exists() else None,
        "folder": str(folder.path),
    }


def made_with(folder: RunFolder) -> dict[str, dict[str, str]]:
    """Of each job the image, and the hashes of trainer, packages and base."""
    order = folder.read("order.json") or {"jobs": []}
    return {job["name"]: job.get("made_with", {}) for job in order["jobs"]}


def progress_of(folder: RunFolder, *, but: int = 0) -> Progress:
    """What every machine of the run has told, replayed from the files at home; `but` leaves one attempt's out."""
    order = folder.read("order.json") or {"jobs": []}
    progress = Progress([job["name"] for job in order["jobs"]])
    numbered = {int(file.stem.partition("-")[2]): file for file in folder.path.glob("events-*.jsonl")}
    for number in sorted(numbered.keys() - {but}):
        replay(progress, pieces(numbered[number]))
    return progress


def phases(entries: list[Entry]) -> list[dict[str, Any]]:
    """Seconds of each phase of each attempt that has both its ends in the ledger."""
    found = []
    for attempt in sorted({e.attempt for e in entries if e.attempt}):
        at: dict[str, datetime] = {}
        for entry in entries:
            if entry.attempt == attempt:
                at.setdefault(entry.kind, entry.at)
        for name, begin, end in PHASES:
            if begin in at and end in at:
                found.append({"attempt": attempt, "phase": name, "seconds": round((at[end] - at[begin]).total_seconds(), 1)})
    return found


def unwatched(folder: RunFolder) -> bool:
    """Whether a machine of the run may bill and no process of lorry drives it."""
    return not folder.is_driven and bool(folder.book().open_attempts)  # in this order: a driver that has just gone has left a closed book


def book_and_entries(folder: RunFolder) -> tuple[Book, list[Entry]]:
    """The run's entries as they stand in its folder, and what they add up to."""
    file = folder.path / "ledger.jsonl"
    entries = read_entries(file.read_bytes()) if file.exists() else []
    return Book(entries), entries


def _living_status(book: Book) -> str:
    current = book.current
    return str(current.phase) if current else ("confirmed" if book.confirmed else "planned")


def job_document(home: Path, name: str, progress: JobProgress, *, cut: bool = False) -> dict[str, Any]:
    """One job of the receipt, from its folder and what its events told. `cut`: it was left out, because the cap did not last for it."""
    adapter = home / f"{name}.safetensors"
    checkpoints = sorted((home / "checkpoints").glob("*.safetensors")) if home.is_dir() else []
    samples = sorted((home / "samples").glob("*.png")) if home.is_dir() else []
    return {
        "name": name,
        "status": "cut" if cut and not adapter.exists() else progress.state,
        "steps": progress.step,
        "steps_planned": progress.steps,
        "message": progress.message if progress.state == "failed" else "",
        "adapter": str(adapter) if adapter.exists() else None,
        "sha256": hash_file(adapter) if adapter.exists() else None,
        "checkpoints": [str(c) for c in checkpoints],
        "samples": [str(s) for s in samples],
    }


def _cost(folder: RunFolder, book: Book, now: datetime, billed_usd: Decimal | None) -> dict[str, Any]:
    plan: Mapping[str, Any] = folder.read("plan.json") or {}
    estimated = plan.get("candidates", [{}])[0].get("usd", {})
    return {
        "estimated_usd": {name: float(value) for name, value in estimated.items()},
        "metered_usd": _usd(
            spent_usd(map(usage_of, book.attempts.values()), book.closed_at if not book.open_attempts and book.closed_at else now)
        ),
        "billed_usd": _usd(billed_usd) if billed_usd is not None else None,
        "cap_usd": float(book.opened.get("cap_usd", 0)),
    }


def _usd(amount: Decimal) -> float:
    return float(round(amount, 6))


def in_words(document: Mapping[str, Any]) -> list[str]:
    """The receipt as a person reads it."""
    cost = document["cost"]
    lines = [f"receipt of {document['run']}: {document['status']}"]
    for job in document["jobs"]:
        share = f", {duration(job['seconds'])} for ${job['usd']:.4f}" if job["seconds"] else ""
        lines.append(f"  {job['name']}: {job['status']}, {job['steps']} of {job['steps_planned']} steps{share}")
        lines.append(f"    adapter {job['adapter'] or 'none'}")
        if job["message"]:
            lines.append(f"    {job['message']}")
    lines += in_lines(document["machines"])
    took: dict[str, float] = {}
    for phase in document["phases"]:  # of all machines together
        took[phase["phase"]] = took.get(phase["phase"], 0.0) + phase["seconds"]
    lines += [f"    {name:<18} {seconds:>8.1f} s" for name, seconds in took.items()]
    if worth := in_words_paid(document["paid"]):
        lines.append(f"  {worth}")
    p50 = cost["estimated_usd"].get("p50")
    estimated = f"estimated ${p50:.4f} (P90 ${cost['estimated_usd']['p90']:.4f}), " if p50 is not None else ""
    billed = f"billed ${cost['billed_usd']:.4f}" if cost["billed_usd"] is not None else "not billed yet"
    lines.append(f"  cost: {estimated}metered ${cost['metered_usd']:.4f}, {billed}, cap ${cost['cap_usd']:.2f}")
    if document["report"]:
        lines.append(f"  report {document['report']}")
    return lines


def receipt_path(folder: RunFolder) -> Path:
    """Where it is kept."""
    return folder.path / "receipt.json"
