"""Faults by script: what goes wrong, at which endpoint, at which of its calls.

Owns the script and the counting. Knows nothing of HTTP beyond a status and a body; the server carries a fault out.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong. What is left at its default stays as it should be."""

    endpoint: str
    """As the face names it: "plain.create", "plain.list" ...; "*" for all."""
    call: int | None = None
    """The n-th call of this endpoint, counted from 1 after the script was set; None: every one."""
    delay_s: float = 0.0
    drop: Literal["", "before", "after"] = ""
    """Cut the connection before anything happened, or after it happened but before the answer."""
    status: int | None = None
    """Answer this instead. Nothing happens, unless `effect` says so."""
    body: str | None = None
    retry_after: str | None = None
    late_s: float = 0.0
    """Cut the connection now; the effect happens so many seconds later."""
    effect: bool = False
    """Whether the request takes effect although `status` or `body` say something else."""
    truncate: int | None = None
    """Send only so many bytes of the body, then cut."""
    stale: bool = False
    """Answer with what this endpoint answered the time before."""


class Faults:
    """The script in force. Empty unless somebody wrote one."""

    def __init__(self) -> None:
        self._script: list[Fault] = []
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def set(self, script: Iterable[Fault]) -> None:
        """Replaces the script and starts counting anew."""
        with self._lock:
            self._script = list(script)
            self._calls.clear()

    def next(self, endpoint: str) -> Fault:
        """Counts one call of `endpoint`; the first line of the script that fits it."""
        with self._lock:
            self._calls[endpoint] += 1
            number = self._calls[endpoint]
            for fault in self._script:
                if fault.endpoint in (endpoint, "*") and fault.call in (None, number):
                    return fault
        return Fault(endpoint=endpoint)

    def calls(self) -> dict[str, int]:
        """How often each endpoint was asked since the script was set."""
        with self._lock:
            return dict(self._calls)
