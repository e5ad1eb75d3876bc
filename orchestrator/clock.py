"""Time as an argument. Decisions get a `Clock`; tests give them one that they turn by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """The time of day for people and bills, a duration that nobody can set back, and waiting."""

    def now(self) -> datetime:
        """The time of day, aware, in UTC."""

    def monotonic_s(self) -> float:
        """Seconds that only grow; the zero means nothing."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""


class SystemClock:
    """This computer's time. Counts sleep of the laptop too, where the system can tell.

    The time of day is read once and goes on from there: setting the computer's clock moves no deadline and no bill of a process.
    """

    def __init__(self) -> None:
        self._began = datetime.now(UTC)
        self._began_s = self.monotonic_s()

    def now(self) -> datetime:
        """See `Clock.now`."""
        return self._began + timedelta(seconds=self.monotonic_s() - self._began_s)

    def monotonic_s(self) -> float:
        """See `Clock.monotonic_s`. CLOCK_MONOTONIC stands still while a Linux laptop sleeps, the bill does not."""
        boottime = getattr(time, "CLOCK_BOOTTIME", None)
        return time.monotonic() if boottime is None else time.clock_gettime(boottime)

    def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        time.sleep(max(0.0, seconds))
