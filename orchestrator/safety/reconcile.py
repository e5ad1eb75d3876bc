"""What a machine found at a cloud is to us, told by its label and our books. PURE: looks at nothing by itself.

The label carries run, attempt and deadline, so that any copy of lorry on any computer can tell a machine that is at work from one
whose time is over, without the run's book.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial

from orchestrator.ledger import Attempt, Book
from providers.base import SelfDestroy

LABEL = "lorry-"
"""Every label of ours begins so; nothing else is ever touched by `lorry reap`."""
LABEL_MOST = 60
"""Characters; what other tools found to be safe at every cloud."""
SLACK = timedelta(minutes=5)
"""A machine whose deadline has just passed may be on its way out."""
DEADLINE_DIGITS = 5
"""Always so many, so that a label cut by its cloud tells no deadline rather than an earlier one. Enough until 2134."""
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What an instance's label says."""

    run: str
    """Its end, where the id is long."""
    attempt: int
    ends_at: datetime | None
    """When the cap is used up at the latest; None on labels cut by their cloud or written by an older lorry."""


def label_for(run: str, attempt: int, ends_at: datetime) -> str:
    """The instance's label: how it is found again, by any copy of lorry. At most 60 characters."""
    minutes = max(0, -((_EPOCH - ends_at) // _MINUTE))  # rounded up
    tail = f"-a{attempt}-x{_base36(minutes):0>{DEADLINE_DIGITS}}"
    return f"{LABEL}{run[-(LABEL_MOST - len(LABEL) - len(tail)) :]}{tail}"


def read_label(text: str) -> Label | None:
    """What `label_for` wrote; None for labels that are not ours."""
    found = re.fullmatch(rf"{LABEL}(.+)-a([0-9]{{1,4}})(?:-x([0-9a-z]*))?", text)
    if found is None:
        return None
    ends_at = _EPOCH + int(found[3], 36) * _MINUTE if found[3] and len(found[3]) == DEADLINE_DIGITS else None
    return Label(run=found[1], attempt=int(found[2]), ends_at=ends_at)


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, rest = divmod(number, 36)
        digits = DIGITS[rest] + digits
        if not number:
            return digits


class Verdict(StrEnum):
    """What a machine found at a cloud is."""

    STRANGER = "not lorry's"
    IN_HAND = "at work for a run of this computer"
    BELIEVED_GONE = "a run of this computer believes it gone"
    OVER = "its time is over"
    ELSEWHERE = "at work for a run of another computer, as far as its label tells"


def verdict(label: str, books: Mapping[str, Book], now: datetime) -> Verdict:
    """What the machine with this label is. Never less careful than its label allows: what cannot be read is at work."""
    if not label.startswith(LABEL):
        return Verdict.STRANGER
    for book in books.values():
        for attempt in book.attempts.values():
            if attempt.label == label:
                return Verdict.IN_HAND if attempt.may_bill else Verdict.BELIEVED_GONE
    said = read_label(label)
    if said is not None and said.ends_at is not None and now > said.ends_at + SLACK:
        return Verdict.OVER
    return Verdict.ELSEWHERE


def is_over(label: str, books: Mapping[str, Book], now: datetime) -> bool:
    """Whether nobody can want this machine any more: what a timer on any computer may end."""
    return verdict(label, books, now) in {Verdict.OVER, Verdict.BELIEVED_GONE}


def banner(run: str, attempt: Attempt, *, console_url: str, self_destroy: SelfDestroy | None) -> list[str]:
    """What to say of a lease that may bill: what it costs, where it can be seen, and the call that ends it by hand."""
    where = ", ".join(attempt.instance_ids) or f"labelled {attempt.label}"
    lines = [f"run {run} MAY BE BILLING ${attempt.usd_per_hour:.3f} an hour: {attempt.gpu} at {attempt.provider}, instance {where}"]
    by_hand = [f"see and stop it at {console_url}"] if console_url else []
    by_hand += [f"or: {call}" for call in map(partial(hand_call, self_destroy), attempt.instance_ids) if call]
    return [*lines, *(f"  by hand: {words}" for words in by_hand[:1]), *(f"  {words}" for words in by_hand[1:])]


def hand_call(call: SelfDestroy | None, instance_id: str) -> str:
    """The command line with which a person ends an instance without lorry; empty where the cloud documents no such call."""
    if call is None:
        return ""
    url = call.url.replace(f"{{{call.id_env}}}", instance_id)
    return "" if "{" in url else f"curl -X {call.method} -H 'Authorization: Bearer YOUR_API_KEY' {url}"
