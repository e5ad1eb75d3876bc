"""What a run was estimated at, what our meter says, what the provider billed, and why these differ.

The differences add up: every line of the explanation is a part of the gap, in dollars. Reads the run's folder; what providers billed
comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from orchestrator.budget import GIB, show_usd
from orchestrator.home import RunFolder
from orchestrator.lease import usage_of
from orchestrator.ledger import Attempt, Entry
from orchestrator.lifecycle import Phase, Signal
from orchestrator.view import duration

from .receipt import PHASES, book_and_entries

IN_BETWEEN, OTHERS, TRAFFIC, DELAYS = "in between", "other machines", "traffic", "delays"
PHASE_OF = {
    "boot": "boot",
    "base model": "training",
    "caching": "training",
    "compile": "training",
    "steps": "training",
    "samples": "training",
    "saves": "training",
    "training": "training",  # as older plans have it, like the next
    "samples and saves": "training",
    "pull": "pull",
    "destroy": "destroy",
}
"""The estimate's phases -> ours, which are those that the book can tell apart. All others are upload and set-up.

`DELAYS` is what the middle of a whole run is above the sum of its phases' middles: something or other always takes long, or fails."""
SETTLED = timedelta(hours=24)
"""Clouds write what they charged by the hour or the day; younger records may be a part of the sum."""
ALIKE = Decimal("0.02")
"""A bill that differs by a smaller share agrees: both sides round."""
SMALL = Decimal("0.02")
"""Of the sum: smaller differences are told together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One phase: seconds and dollars, as estimated and as metered."""

    name: str
    p10_s: float | None = None
    p50_s: float | None = None
    p90_s: float | None = None
    took_s: float | None = None
    estimated_usd: Decimal | None = None
    metered_usd: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A part of what one sum is above the other, and the reason."""

    usd: Decimal
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """One machine's meter beside what its provider charged."""

    machine: str
    metered_usd: Decimal
    billed_usd: Decimal | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What one attempt took: its whole time, and of it the phases that the book knows."""

    attempt: Attempt
    until: datetime
    seconds: Mapping[str, float]
    trained: bool

    @property
    def whole_s(self) -> float:
        """From the order to the end, or to now."""
        usage = usage_of(self.attempt)
        return max(0.0, ((usage.ended_at or self.until) - usage.started_at).total_seconds())

    @property
    def time_usd(self) -> Decimal:
        """GPU and disk."""
        return replace(usage_of(self.attempt), uploaded_bytes=0, downloaded_bytes=0).usd(self.until)

    @property
    def traffic_usd(self) -> Decimal:
        """Bytes in and out."""
        return self.usd - self.time_usd

    @property
    def usd(self) -> Decimal:
        """Every meter."""
        return usage_of(self.attempt).usd(self.until)

    def part_usd(self, seconds: float) -> Decimal:
        """What so much of its time cost, at its average hour."""
        return self.time_usd * Decimal(str(seconds / self.whole_s)) if self.whole_s else Decimal(0)


def cost(folder: RunFolder, now: datetime, billed: Mapping[int, Decimal | None]) -> dict[str, Any]:
    """The document of `lorry cost --json` for one run, beside the receipt's sums. `billed`: what each attempt's provider charged."""
    book, entries = book_and_entries(folder)
    spent = [
        Spent(attempt=a, until=a.gone_at or now, seconds=_took(entries, a.number, a.gone_at or now), trained=a.started_at is not None)
        for a in book.attempts.values()
    ]
    candidates = (folder.read("plan.json") or {}).get("candidates") or [{}]
    plan: Mapping[str, Any] = candidates[0]
    return {
        "lines": [_plain(asdict(line)) for line in lines(plan, spent)],
        "differences": [_plain(asdict(part)) for part in differences(plan, spent)],
        "bills": [_plain(asdict(bill(one, billed.get(one.attempt.number), now))) for one in spent if one.attempt.instance_ids],
    }


def _took(entries: Sequence[Entry], number: int, until: datetime) -> dict[str, float]:
    """Seconds of each phase that one attempt began; one that nothing ended lasts until the machine was given up, or until now."""
    at: dict[str, datetime] = {}
    for entry in entries:
        if entry.attempt == number:
            at.setdefault(entry.kind, entry.at)
    over = {name: at.get(end) or max(at[begin], at.get(Signal.GIVE_UP, until)) for name, begin, end in PHASES if begin in at}
    return {name: max(0.0, (over[name] - at[begin]).total_seconds()) for name, begin, _ in PHASES if name in over}


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    return {name: float(round(value, 6)) if isinstance(value, Decimal) else value for name, value in document.items()}


def lines(plan: Mapping[str, Any], spent: Sequence[Spent]) -> list[Line]:
    """Phase by phase; machines that never trained are one line of their own."""
    estimated, hour = _estimated(plan), _hour(plan)
    trained = [one for one in spent if one.trained]
    found: list[Line] = []
    for name, *_ in PHASES:
        ranged = estimated.get(name)
        parts = [(one, one.seconds[name]) for one in trained if name in one.seconds]
        found.append(
            Line(
                name=name,
                p10_s=ranged[0] if ranged else None,
                p50_s=ranged[1] if ranged else None,
                p90_s=ranged[2] if ranged else None,
                took_s=sum(seconds for _, seconds in parts) if parts else None,
                estimated_usd=_at(hour, ranged[1]) if ranged else None,
                metered_usd=sum((one.part_usd(seconds) for one, seconds in parts), Decimal(0)) if parts else None,
            )
        )
    if trained:
        rest = [(one, one.whole_s - sum(one.seconds.values())) for one in trained]
        usd = sum((one.part_usd(seconds) for one, seconds in rest), Decimal(0))
        found.append(Line(name=IN_BETWEEN, took_s=round(sum(seconds for _, seconds in rest), 1), metered_usd=usd))
    if others := [one for one in spent if not one.trained]:
        found.append(Line(name=OTHERS, took_s=sum(one.whole_s for one in others), metered_usd=sum((o.usd for o in others), Decimal(0))))
    moved = sum((one.traffic_usd for one in trained), Decimal(0)) if trained else None
    found.append(Line(name=TRAFFIC, estimated_usd=_traffic_usd(plan), metered_usd=moved))
    if delays := _delays_usd(plan):
        found.append(Line(name=DELAYS, estimated_usd=delays))
    return found


def differences(plan: Mapping[str, Any], spent: Sequence[Spent]) -> list[Difference]:
    """What the metered sum is above the estimated one, part by part, the greatest first. Empty without an estimate, and before the end."""
    if not plan.get("usd") or any(one.attempt.may_bill for one in spent):
        return []
    estimated, hour = _estimated(plan), _hour(plan)
    trained = [one for one in spent if one.trained]
    parts: list[Difference] = [
        Difference(usd=one.usd, why=f"{_machine(one.attempt)} did not get to train: {one.attempt.told or one.attempt.phase}")
        for one in spent
        if not one.trained and one.usd
    ]
    if not trained:
        return _told([*parts, Difference(usd=-Decimal(str(plan["usd"]["p50"])), why="nothing was trained")], Decimal(0))
    for line in lines(plan, spent):
        if line.name in estimated:
            took, p50 = line.took_s or 0.0, line.p50_s or 0.0
            machines = f" on {len(trained)} machines" if len(trained) > 1 else ""
            words = f"{line.name} took {duration(took)}{machines}, {duration(p50)} was estimated"
            parts.append(Difference(usd=_at(hour, took - p50), why=words))
        elif line.name == IN_BETWEEN:
            words = f"{duration(line.took_s or 0.0)} lay between the phases, and none was estimated"
            parts.append(Difference(usd=_at(hour, line.took_s or 0.0), why=words))
    parts.append(_dearer(hour, trained))
    moved = sum((one.traffic_usd for one in trained), Decimal(0))
    parts.append(Difference(usd=moved - _traffic_usd(plan), why=_moved(trained)))
    if delays := _delays_usd(plan):
        parts.append(Difference(usd=-delays, why="so much was estimated for what takes long here or there, or fails"))
    return _told(parts, sum((one.usd for one in spent), Decimal(0)))


def _dearer(hour: Decimal, trained: Sequence[Spent]) -> Difference:
    whole_s, usd = sum(one.whole_s for one in trained), sum((one.time_usd for one in trained), Decimal(0))
    real = usd / Decimal(str(whole_s)) * 3600 if whole_s else hour
    rose = ", its price moved meanwhile" if any(one.attempt.earlier for one in trained) else ""
    return Difference(usd=usd - _at(hour, whole_s), why=f"an hour cost ${real:.3f}, ${hour:.3f} was estimated{rose}")


def _moved(trained: Sequence[Spent]) -> str:
    into = sum(usage_of(one.attempt).uploaded_bytes for one in trained) / GIB
    out = sum(one.attempt.downloaded_bytes for one in trained) / GIB
    return f"{into:.2f} GiB went to the machine and {out:.2f} GiB came from it"


def _told(parts: Sequence[Difference], whole: Decimal) -> list[Difference]:
    """The greatest first; those that do not matter together in one."""
    least = max(abs(whole) * SMALL, Decimal("0.00005"))
    great = sorted((part for part in parts if abs(part.usd) >= least), key=lambda part: -abs(part.usd))
    small = [part for part in parts if abs(part.usd) < least]
    rest = sum((part.usd for part in small), Decimal(0))
    return [*great, Difference(usd=rest, why="all smaller differences together")] if abs(rest) >= Decimal("0.000001") else great


def bill(one: Spent, billed: Decimal | None, now: datetime) -> Bill:
    """One machine: whether its provider's record agrees with our meter, and what else it may mean."""
    attempt, metered = one.attempt, one.usd
    young = attempt.gone_at is None or now - attempt.gone_at < SETTLED
    if billed is None:
        why = f"{attempt.provider} has not written its record yet" if young else f"{attempt.provider} has no record of it, or tells none"
    elif abs(billed - metered) <= max(metered * ALIKE, Decimal("0.001")):
        why = "agrees with our meter"
    elif billed < metered and young:
        why = "so far: records come in parts, and may be a day late"
    elif billed < metered:
        why = "less than our meter, which counts from the order to the seen end, and in doubt on the careful side"
    else:
        why = f"more than our meter by {show_usd(billed - metered)}, which nothing in the book explains: ask {attempt.provider}"
    return Bill(machine=_machine(attempt), metered_usd=metered, billed_usd=billed, why=why)


def _machine(attempt: Attempt) -> str:
    open_ = "" if attempt.phase is Phase.GONE else ", not known to be gone"
    return f"{attempt.gpu} at {attempt.provider} ({attempt.instance_id or 'never created'}{open_})"


def _estimated(plan: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Seconds by our phases: P10, P50, P90."""
    found: dict[str, tuple[float, float, float]] = {}
    for name, ranged in plan.get("seconds", {}).items():
        ours = PHASE_OF.get(name, "upload and set-up")
        low, middle, high = found.get(ours, (0.0, 0.0, 0.0))
        found[ours] = (low + ranged["p10"], middle + ranged["p50"], high + ranged["p90"])
    return found


def _hour(plan: Mapping[str, Any]) -> Decimal:
    return Decimal(str(plan.get("usd_per_hour", 0)))


def _at(hour: Decimal, seconds: float) -> Decimal:
    return hour * Decimal(str(seconds)) / 3600


def _traffic_usd(plan: Mapping[str, Any]) -> Decimal:
    """What of the estimate is no time; older plans do not say it by itself."""
    if "traffic_usd" in plan:
        return Decimal(str(plan["traffic_usd"]))
    return _beside_the_phases_usd(plan)


def _delays_usd(plan: Mapping[str, Any]) -> Decimal:
    return _beside_the_phases_usd(plan) - _traffic_usd(plan)


def _beside_the_phases_usd(plan: Mapping[str, Any]) -> Decimal:
    seconds = sum(middle for _, middle, _ in _estimated(plan).values())
    return Decimal(str(plan.get("usd", {}).get("p50", 0))) - _at(_hour(plan), seconds)


# --- for people -----------------------------------------------------------------------------------


def in_words(document: Mapping[str, Any]) -> list[str]:
    """One run's cost, for a terminal of 80 columns."""
    head = f"{'':<18}{'estimated':>10}{'(P10 to P90)':>19}{'took':>9}{'est.':>11}{'metered':>11}"
    words = [f"{document['run']}: {document['status']}", "", head]
    words += [_row(line) for line in document["lines"]]
    p50 = document["estimated_usd"].get("p50")
    sums = f"{_dollars(p50):>11}{_dollars(document['metered_usd']):>11}"
    words += [f"{'all':<56}{sums}", ""]
    if document["differences"]:
        gap = document["metered_usd"] - p50
        ranged = f"P10 ${document['estimated_usd']['p10']:.4f}, P90 ${document['estimated_usd']['p90']:.4f}"
        words.append(f"metered is ${abs(gap):.4f} {'below' if gap < 0 else 'above'} the estimate ({ranged}):")
        words += _listed(document["differences"])
        words.append("")
    for bill_ in document["bills"]:
        billed = "nothing yet" if bill_["billed_usd"] is None else f"${bill_['billed_usd']:.4f}"
        words += _wrapped(f"billed for {bill_['machine']}: {billed}, metered ${bill_['metered_usd']:.4f}; {bill_['why']}", "")
    billed_usd = document["billed_usd"]
    words.append(f"billed in all: {'not known yet' if billed_usd is None else f'${billed_usd:.4f}'}; the cap is ${document['cap_usd']:.2f}")
    return words


def _row(line: Mapping[str, Any]) -> str:
    p50 = "" if line["p50_s"] is None else duration(line["p50_s"])
    ranged = "" if line["p50_s"] is None else f"({duration(line['p10_s'])} to {duration(line['p90_s'])})"
    took = "" if line["took_s"] is None else duration(line["took_s"])
    return f"{line['name']:<18}{p50:>10}{ranged:>19}{took:>9}{_dollars(line['estimated_usd']):>11}{_dollars(line['metered_usd']):>11}"


def _dollars(usd: float | None) -> str:
    return "" if usd is None else f"${usd:.4f}"


def _signed(usd: float) -> str:
    return f"{'-' if usd < 0 else '+'}${abs(usd):.4f}"


def _listed(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    return [line for part in parts for line in _wrapped(part["why"], f"  {_signed(part['usd']):>10}  ")]


def _wrapped(text: str, first: str) -> list[str]:
    from textwrap import wrap

    return wrap(text, 80, initial_indent=first, subsequent_indent=" " * (len(first) or 2))
