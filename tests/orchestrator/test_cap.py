"""The cap holds: whatever machines a run goes through, what they cost and move, and whatever becomes of this computer's clock.

The checker keeps a bill of its own, by true time and true prices; the code under test never sees it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from fakes import T0, FakeClock, FakeCloud, SilentView, an_order, offer, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import ledger as ledger_module
from orchestrator.budget import GIB, SHORTEST_LIFE_S, WAY_OUT_S
from orchestrator.cap.terms import LOOK_S
from orchestrator.errors import OverBudget
from orchestrator.home import RunFolder
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.machines.guarding import LOST_S, count_lost_time
from orchestrator.machines.reaching import Machine
from orchestrator.progress import Progress
from orchestrator.safety.interrupts import Interrupts
from orchestrator.trip import DESTROY_S, Tools, Trip
from orchestrator.watch import OVERRUN_S
from providers.base import Instance, Prices

TICK_S = 10.0
"""How often the cap is looked at, at the latest."""
DESTROYS_S = 40.0
"""What a destroy takes here; with the tick it is less than what is kept for it."""
CAP = Decimal("2.00")


class WildClock(FakeClock):
    """What the time of day is, anybody can say."""

    def __init__(self) -> None:
        super().__init__()
        self.off_s = 0.0

    def now(self) -> datetime:
        return T0 + timedelta(seconds=self.passed_s + self.off_s)


@dataclass
class Life:
    """One machine by the cloud's own bill: stretches of seconds at a rate, and bytes."""

    prices: Prices
    disk_gib: int
    usd: Decimal = Decimal(0)
    dearest_usd_per_hour: Decimal = Decimal(0)
    dearest_leap: Decimal = Decimal(0)
    """The most that a rise can have cost before anybody could see it."""

    def live(self, seconds: float) -> None:
        self.dearest_usd_per_hour = max(self.dearest_usd_per_hour, self.prices.usd_per_hour(self.disk_gib))
        self.usd += self.prices.usd_per_hour(self.disk_gib) * Decimal(str(seconds)) / 3600

    def move(self, sent: int, came: int) -> None:
        self.usd += (self.prices.upload_usd_per_gib * sent + self.prices.download_usd_per_gib * came) / GIB


@dataclass
class Run:
    """The code under test on one side, the bill on the other."""

    folder: RunFolder
    clock: WildClock = field(default_factory=WildClock)
    bill: list[Life] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cloud = FakeCloud(self.clock)
        self.order = an_order(self.folder, cap_usd=CAP)
        self.ledger = Ledger(self.folder.path / "ledger.jsonl", self.clock)
        self.ledger.record("opened", cap_usd=CAP, run=self.order.run)
        self.begin()

    def begin(self) -> None:
        tools = Tools(clock=self.clock, view=SilentView(), interrupts=Interrupts(), provider=lambda _: self.cloud)  # type: ignore[arg-type, return-value]
        self.trip = Trip(
            order=self.order, folder=self.folder, ledger=self.ledger, tools=tools, progress=Progress(["lisa"]), candidates=tuple
        )

    def rent(self, prices: Prices) -> bool:
        """As a run does: only where there is anything left to train with."""
        if self.trip.most_s(prices, 40) < WAY_OUT_S + SHORTEST_LIFE_S:
            return False
        self.lease = Lease.take(
            self.cloud,
            offer(prices=prices),
            spec(f"lorry-x-a{self.ledger.book().next_attempt}"),
            ledger=self.ledger,
            clock=self.clock,
        )
        self.bill.append(Life(prices, 40))
        self.looked_at = 0.0
        return True

    @property
    def life(self) -> Life:
        return self.bill[-1]

    def pass_time(self, seconds: float) -> None:
        """Client alive: looks at the cap every tick, at the price every minute. Raises `OverBudget`."""
        while seconds > 0:
            step = min(TICK_S, seconds)
            seconds -= step
            self.clock.passed_s += step
            self.life.live(step)
            if (now := self.clock.passed_s) - self.looked_at >= LOOK_S:
                self.looked_at = now
                self.look()
            self.trip.check_cap()

    def look(self) -> None:
        seen: Instance = self.lease.describe()
        self.lease.heed(replace(seen, prices=self.life.prices))

    def move(self, sent: int, came: int) -> None:
        self.life.move(sent, came)
        self.ledger.record("moved", attempt=self.lease.number, uploaded=sent, downloaded=came)
        self.trip.check_cap()

    def reprice(self, times: Decimal) -> None:
        old, prices = self.life.prices, self.life.prices
        prices = replace(prices, gpu_usd_per_hour=prices.gpu_usd_per_hour * times)
        leap = prices.usd_per_hour(40) - old.usd_per_hour(40)
        self.life.prices, self.life.dearest_leap = prices, self.life.dearest_leap + max(leap, Decimal(0)) * Decimal(LOOK_S + TICK_S) / 3600

    def die(self, away_s: float, jump_s: float) -> None:
        """The client is killed; time passes and the clock is set; then the run is taken up. The machine tells its age."""
        self.clock.passed_s += away_s
        self.life.live(away_s)
        self.clock.off_s += jump_s
        self.ledger = Ledger(self.folder.path / "ledger.jsonl", self.clock)
        attempt = self.ledger.book().attempts[self.lease.number]
        self.lease = Lease.adopt(self.cloud, attempt, ledger=self.ledger, clock=self.clock)  # type: ignore[arg-type]
        self.begin()
        self.look()  # whoever takes a machine up asks its cloud where it is
        age_s = self.clock.passed_s - self.rented_s
        count_lost_time(self.trip, Machine(lease=self.lease, shell=None), age_s, read_now=True)  # type: ignore[arg-type]
        self.trip.check_cap()

    def end(self) -> None:
        self.clock.passed_s += DESTROYS_S
        self.life.live(DESTROYS_S)
        self.lease.release("over")


PRICES = st.builds(
    Prices,
    gpu_usd_per_hour=st.decimals("0.05", "4", places=3),
    disk_usd_per_gib_hour=st.decimals(0, "0.001", places=4),
    upload_usd_per_gib=st.decimals(0, "0.05", places=3),
    download_usd_per_gib=st.decimals(0, "0.05", places=3),
)
BYTES = st.integers(0, GIB)
JUMPS = st.sampled_from([0.0, 3600.0, -3600.0, -365 * 86400.0])
MOVES = st.one_of(
    st.tuples(st.just("pass_time"), st.floats(0, 4000)),
    st.tuples(st.just("move"), BYTES, BYTES),
    st.tuples(st.just("reprice"), st.decimals("0.3", "5", places=2)),
    st.tuples(st.just("die"), st.floats(0, 200), JUMPS),
)


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module.os, "fsync", lambda _: None)


@settings(max_examples=100, deadline=None)
@given(machines=st.lists(st.tuples(PRICES, st.lists(MOVES, max_size=8)), min_size=1, max_size=4))
def test_what_all_machines_cost_together_is_at_most_the_cap_and_what_nobody_could_see(machines):
    """Killed clients are away for at most 200 s here: beyond that it is the guard that keeps the cap. Bytes count when they have moved."""
    unseen = Decimal(0)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(RunFolder(Path(folder)))
        for prices, moves in machines:
            if not run.rent(prices):
                break
            run.rented_s = run.clock.passed_s
            try:
                for name, *given_ in moves:
                    before = run.bill[-1].usd
                    getattr(run, name)(*given_)
            except OverBudget:
                if name in {"move", "die"}:  # the last transfer, or what passed while nobody was there
                    unseen += run.life.usd - before
            run.end()
            unseen += run.life.dearest_leap + run.life.dearest_usd_per_hour * Decimal(LOST_S) / 3600
    assert sum((life.usd for life in run.bill), Decimal(0)) <= CAP + unseen


def test_the_constants_that_the_promise_is_made_of_fit_each_other():
    """Between looks, for the destroy, for a supervisor that does not end: each is within what is kept back for it."""
    assert TICK_S + DESTROYS_S <= DESTROY_S
    assert OVERRUN_S + DESTROY_S < WAY_OUT_S
