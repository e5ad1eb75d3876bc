"""A world that goes wrong by a seed: its clock, its disk, its cloud, its machines. What happens in it is in the bill and the story.

Bounds of the faults, which the protocol may count on, are the constants here and in `cloud`; everything inside them happens. The code
under test never sees the bill; the checker sees nothing else but the words and exit codes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from random import Random

from .cloud import EVERYTHING, Cloud
from .disk import Disk
from .effects import Effects
from .machine import NEVER_S
from .work import Commit

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LEAPS = (1.0, *[8.0] * 7, *[12.0] * 8)
"""So many looks of a program that waits are taken as one, as long as nothing happens in between: a look at what has not changed finds
what the last one found. One seed in sixteen takes every look."""
LONG_LEAP = 600.0
"""The same beside a machine that trains, and has time left to do it."""


@dataclass(slots=True)
class Weather:
    """What this seed is like."""

    trouble: float
    """Share of calls that go wrong."""
    lies: float
    """Share of describes of living machines that say GONE."""
    cuts_labels: bool
    lags: bool
    deaf: bool
    guarded: bool
    """Machines of this cloud can end themselves."""
    poor_machines: bool
    """They do not boot, cost more than their offer, are outbid or lost, hang, send damaged files."""
    starts_two: bool
    """The user wants two machines started, and the quicker one kept."""
    line: float
    """Share of uses of a machine's line that find it cut for some seconds."""
    down_for_good: frozenset[str] = frozenset()
    """Endpoints that end for good ..."""
    down_from_s: float = NEVER_S
    """... at this time."""
    storm: tuple[float, float] = (NEVER_S, NEVER_S)
    """All calls are refused as too many between these times."""
    session_ends_s: float = NEVER_S
    """From here until the user logs in again the cloud answers 404 and empty lists, as Vast does."""

    @property
    def cloud_is_well(self) -> bool:
        """Apart from a call lost here and there."""
        return not (self.deaf or self.down_for_good) and self.trouble < 0.2 and min(self.storm[0], self.session_ends_s) >= NEVER_S

    @classmethod
    def of(cls, rng: Random) -> Weather:
        """Most seeds have few kinds of trouble, as most nights have; some have all of it."""
        chance = rng.random
        weather = cls(
            trouble=rng.choice((0.0, 0.03, 0.15, 0.4)),
            lies=0.05 if chance() < 0.3 else 0.0,
            cuts_labels=chance() < 0.1,
            lags=chance() < 0.4,
            deaf=chance() < 0.3,
            guarded=chance() < 0.5,
            poor_machines=chance() < 0.4,
            starts_two=chance() < 0.15,
            line=rng.choice((0.0, 0.0, 0.02, 0.1)),
        )
        if chance() < 0.05:
            weather.down_for_good = rng.choice((frozenset({"instances"}), frozenset({"describe"}), frozenset({"terminate"}), EVERYTHING))
            weather.down_from_s = rng.expovariate(1 / 200)
        if chance() < 0.1:
            begins = rng.expovariate(1 / 100)
            weather.storm = (begins, begins + rng.uniform(5, 400))
        if chance() < 0.06:
            weather.session_ends_s = rng.expovariate(1 / 100)
        return weather


class World(Effects):
    """Everything outside the code under test, and the moment at which its process dies."""

    def __init__(self, seed: int, tally: Counter[tuple[str, str]] | None = None, *, telling: bool = False) -> None:
        super().__init__(seed, tally, telling=telling)
        rng = self.rng
        self.weather = Weather.of(rng)
        self.wall_offset_s = 0.0
        self.leap = rng.choice(LEAPS)
        self.quiet_until_s = 0.0
        """Until then somebody stands beside a machine that trains."""
        self.due: list[float] = []
        """When something will happen by itself; a heap."""
        self.disk = Disk(self)
        if rng.random() < 0.1:
            first = rng.randrange(1, 20)
            self.disk.full = (first, first + rng.randrange(1, 6))
        self.cloud = Cloud(self)
        self.commits: list[Commit] = []
        """Every file that was ever whole on a machine. For the checker."""

    def new_process(self) -> None:
        super().new_process()
        self.quiet_until_s = 0.0

    def at(self, time_s: float) -> None:
        """Something will happen then."""
        if time_s < NEVER_S:
            heappush(self.due, time_s)

    def pass_time(self, seconds: float) -> None:
        self.time_s = now = self.time_s + seconds
        due = self.due
        if due and due[0] <= now:
            while due and due[0] <= now:
                heappop(due)
            self.cloud.live()

    # -- orchestrator.clock.Clock ---------------------------------------------------------------------

    def now(self) -> datetime:
        return T0 + timedelta(seconds=self.time_s + self.wall_offset_s)

    def monotonic_s(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        """Wait until the next look; where nothing happens before, until a later one."""
        self.effect("sleep")
        most = seconds * (LONG_LEAP if self.phase == "training" and self.time_s < self.quiet_until_s else self.leap)
        if most > seconds:
            until_s = self.due[0] - self.time_s if self.due else most
            seconds = max(seconds, min(most, until_s))
        self.pass_time(max(0.0, seconds))

    def wait(self, seconds: float) -> None:
        """Exactly so long."""
        self.effect("wait")
        self.pass_time(max(0.0, seconds))

    # -- orchestrator.view.View -----------------------------------------------------------------------

    def show(self, _: object) -> None:
        """Drawn, and forgotten."""

    def close(self) -> None:
        """Nothing to close."""
