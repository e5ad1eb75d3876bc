"""Rate limits: the least time between two calls of one endpoint by one customer. Off until somebody switches them on.

Owns the counting. What a refusal looks like is the faces' business, and what the intervals are too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Limits:
    """Who asked what when."""

    scale: float = 0.0
    """1: as the clouds document them; 0: off."""
    monotonic_s: Callable[[], float] = time.monotonic
    _last: dict[tuple[str, str], float] = field(default_factory=dict)

    def wait_s(self, endpoint: str, identity: str, interval_s: float) -> float:
        """0 and the call counts; else how long to wait, and it does not."""
        now = self.monotonic_s()
        left = self._last.get((endpoint, identity), -math.inf) + interval_s * self.scale - now
        if self.scale and left > 0:
            return left
        self._last[endpoint, identity] = now
        return 0.0
