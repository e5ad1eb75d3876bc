"""One run under way, as the steps of `run.py` share it: the order, the book, and the tools of this process.

A step asks the trip for a decision (`check_boot`) or tells it something (`enter`, `say`); it never prints and
never looks at a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from providers.base import Prices, Provider

from .budget import WAY_OUT_S, lifetime_s, spent_usd
from .clock import Clock
from .errors import Interrupted, OverBudget
from .home import RunFolder
from .learning.book import Measured
from .lease import Lease, prices_of, usage_of
from .ledger import Book, Ledger
from .machines.memory import Memory
from .machines.recovery import Stretch, lost, steps_at_home
from .order import Order, rest_of
from .plan import Candidate, Load
from .progress import Progress
from .safety.interrupts import Interrupts
from .view import Snapshot, View

PULSE_S = 0.5
DESTROY_S = 60.0
"""Of the way out, what is kept for the destroy alone: with a healthy cloud it takes a few seconds."""


@dataclass(slots=True, kw_only=True)
class Tools:
    """What a process brings along; tests bring their own."""

    clock: Clock
    view: View
    interrupts: Interrupts
    provider: Callable[[str], Provider]
    memory: Memory = field(default_factory=Memory)
    """Machines that failed us."""
    measured: Measured = field(default_factory=Measured)
    """What runs took."""


@dataclass(slots=True, kw_only=True)
class Trip:
    """The run under way."""

    order: Order
    folder: RunFolder
    ledger: Ledger
    tools: Tools
    progress: Progress
    candidates: Callable[[], tuple[Candidate, ...]]
    """Offers to try, best first; asked for only when a machine has to be rented."""
    phase: str = ""
    detail: str = ""
    transfer: tuple[int, int] | None = None
    """Bytes moved and bytes in all, while something is being moved."""
    heard: set[int] = field(default_factory=set)
    """Attempts whose events at home are in `progress` already."""
    _told: float = field(default=float("-inf"))

    @property
    def clock(self) -> Clock:
        """Time."""
        return self.tools.clock

    def provider(self, name: str) -> Provider:
        """The cloud of that name."""
        return self.tools.provider(name)

    def book(self) -> Book:
        """What the ledger adds up to now."""
        return self.ledger.book()

    # -- telling -----------------------------------------------------------------------------------

    def enter(self, phase: str, detail: str) -> None:
        """A new phase begins."""
        self.phase, self.detail, self.transfer = phase, detail, None
        self._show(force=True)

    def pulse(self, detail: str = "") -> None:
        """Time passed in the same phase."""
        self.detail = detail or self.detail
        self._show()

    def moved(self, done: int, total: int) -> None:
        """Bytes of a transfer arrived."""
        self.transfer = (done, total)
        self._show()

    def say(self, text: str) -> None:
        """Something worth a line of its own."""
        self.tools.view.say(text)

    def _show(self, *, force: bool = False) -> None:
        now = self.clock.monotonic_s()
        if force or now - self._told >= PULSE_S:
            self._told = now
            self.tools.view.show(self.snapshot())

    def snapshot(self) -> Snapshot:
        """Everything that a view may draw."""
        book = self.book()
        current = book.current
        return Snapshot(
            run=self.order.run,
            phase=self.phase,
            detail=self.detail,
            transfer=self.transfer,
            provider=current.provider if current else "",
            gpu=current.gpu if current else "",
            usd_per_hour=current.usd_per_hour if current else None,
            spent_usd=self.spent_usd(),
            cap_usd=self.order.cap_usd,
            elapsed_s=(self.clock.now() - book.opened_at).total_seconds() if book.opened_at else 0.0,
            progress=self.progress,
        )

    # -- deciding ----------------------------------------------------------------------------------

    def check_boot(self) -> None:
        """Raise when a wait before training should end: nothing is lost yet, so any request to stop will do."""
        self.check_cap()
        if self.tools.interrupts.wanted or self.folder.stop_wanted:
            again = steps_at_home(self.ledger.entries)
            words = "stopped before training went on; what is at home is kept" if again else "stopped before training began"
            raise Interrupted(words, hint=f"go on with: lorry resume {self.order.run}" if again else "")

    def check_urgent(self) -> None:
        """Raise when the machine is to go at once."""
        self.check_cap()
        self.tools.interrupts.check_urgent()
        if self.folder.end_wanted:
            raise Interrupted("ended at once, as `lorry down` asked")

    def check_cap(self) -> None:
        """Raise when what is left of the cap is needed for the destroy: whatever the machine still promises, it goes."""
        current = self.book().current
        if current is not None and self.most_s(prices_of(current), current.disk_gib, number=current.number) < DESTROY_S:
            raise OverBudget(
                f"the cap of ${self.order.cap_usd} is reached; the machine is given back, with what had come home by now",
                hint=f"go on with: lorry resume {self.order.run} --budget USD",
            )

    @property
    def stop_wanted(self) -> bool:
        """An orderly stop was asked for, by a signal or by `lorry stop`."""
        return self.tools.interrupts.wanted or self.folder.stop_wanted

    def todo(self) -> list[str]:
        """Jobs whose finished adapter is not at home: what a machine still has to do."""
        return [name for name in self.order.job_names if not (self.folder.job(name) / f"{name}.safetensors").exists()]

    def to_train(self) -> list[str]:
        """Of those the jobs that have not failed by themselves, which they would do again, and for which the cap lasts."""
        failed = {job.name for job in self.progress.jobs.values() if job.state == "failed"}
        return [name for name in self.todo() if name not in failed and name not in self.book().cut]

    def rest(self) -> Load:
        """The queue as the estimate sees it, without what is at home."""
        return rest_of(self.order.load, steps_at_home(self.ledger.entries), self.to_train())

    def lost(self) -> list[Stretch]:
        """The machines that were lost since the user last said go."""
        now = self.ledger.now()
        return lost(self.ledger.entries, {a.number: usage_of(a).usd(now) for a in self.book().attempts.values()})

    def spent_usd(self, now: datetime | None = None) -> Decimal:
        """Every attempt's cost, by our own meter."""
        return spent_usd(map(usage_of, self.book().attempts.values()), now or self.ledger.now())

    def lifetime_s(self, lease: Lease) -> float:
        """Seconds that training may take from now so that the cap holds."""
        return self._left_s(lease.prices, lease.disk_gib, download_bytes=self.rest().download_bytes, number=lease.number)

    def most_s(self, prices: Prices, disk_gib: int, *, number: int = 0) -> float:
        """Seconds that a machine, rented now or that of the attempt `number`, can live before the cap is used up."""
        return self._left_s(prices, disk_gib, download_bytes=0, number=number) + WAY_OUT_S

    def _left_s(self, prices: Prices, disk_gib: int, *, download_bytes: int, number: int) -> float:
        book, now = self.book(), self.ledger.now()
        beside = [one.usd_per_hour for one in book.open_attempts if number and one.number != number]
        if beside:  # another one uses up the cap at the same time
            prices = replace(prices, gpu_usd_per_hour=prices.gpu_usd_per_hour + sum(beside))
        return lifetime_s(
            cap_usd=self.order.cap_usd,
            spent=self.spent_usd(now),
            prices=prices,
            disk_gib=disk_gib,
            download_bytes=download_bytes,
            max_hours=self.order.max_hours,
            used_s=(now - book.opened_at).total_seconds() if book.opened_at else 0.0,
        )
