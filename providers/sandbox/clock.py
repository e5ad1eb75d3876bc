"""The practice cloud's time: real time, or a fixed number of times faster, and the same for every process that reads the folder."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from .machine import write_whole


@dataclass(frozen=True, slots=True)
class SandboxClock:
    """Runs `speed` times as fast as the wall clock since `real_epoch_s`, when it showed `epoch`."""

    epoch: datetime
    real_epoch_s: float
    speed: float

    def now(self) -> datetime:
        return self.epoch + timedelta(seconds=(time.time() - self.real_epoch_s) * self.speed)

    @classmethod
    def open(cls, folder: Path, speed: float | None = None) -> SandboxClock:
        """The clock of this folder. A new `speed` counts from now on; what has passed stays as it was."""
        path = folder / "clock.json"
        if path.exists():
            state = json.loads(path.read_text(encoding="utf-8"))
            clock = cls(datetime.fromisoformat(state["epoch"]), state["real_epoch_s"], state["speed"])
            if speed is None or speed == clock.speed:
                return clock
            return _saved(cls(clock.now(), time.time(), speed), path)
        return _saved(cls(datetime.now(UTC), time.time(), 1.0 if speed is None else speed), path)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise ValueError(f"the practice cloud's speed must be a number above 0, got {self.speed}")


def _saved(clock: SandboxClock, path: Path) -> SandboxClock:
    state = {"epoch": clock.epoch.isoformat(), "real_epoch_s": clock.real_epoch_s, "speed": clock.speed}
    write_whole(path, json.dumps(state))
    return clock
