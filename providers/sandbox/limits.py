"""Rate limits: the least time between two calls of one endpoint by one customer. Off until somebody switches them on.

Owns the counting. What a refusal looks like is the faces' business, and what the intervals are too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Window:
    """So many calls in so many seconds."""

    name: str
    quota: int
    seconds: float


@dataclass(slots=True)
class Limits:
    """Who asked what when."""

    scale: float = 0.0
    """1: as the clouds document them; 0: off."""
    monotonic_s: Callable[[], float] = time.monotonic
    _last: dict[tuple[str, str], float] = field(default_factory=dict)
    _counts: dict[tuple[str, str, str], tuple[int, int]] = field(default_factory=dict)

    def count(self, endpoint: str, identity: str, windows: Sequence[Window]) -> list[tuple[Window, int, float]]:
        """Counts one call: each window with how many are left (below 0: this one was too many) and the seconds until it begins anew."""
        found, now = [], self.monotonic_s()
        for window in windows:
            number, into = divmod(now, window.seconds)
            began, calls = self._counts.get((endpoint, identity, window.name), (int(number), 0))
            calls = (calls if began == int(number) else 0) + 1 if self.scale else 0  # switched off, all is forgotten
            self._counts[endpoint, identity, window.name] = int(number), calls
            found.append((window, window.quota - calls, window.seconds - into))
        return found

    def wait_s(self, endpoint: str, identity: str, interval_s: float) -> float:
        """0 and the call counts; else how long to wait, and it does not."""
        now = self.monotonic_s()
        left = self._last.get((endpoint, identity), -math.inf) + interval_s * self.scale - now
        if self.scale and left > 0:
            return left
        self._last[endpoint, identity] = now
        return 0.0
