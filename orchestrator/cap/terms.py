"""What the machine's price and the pace of its work mean for the deadline, looked at again and again while it trains.

The price is read from the created machine: a rise is said, metered, and brings the deadline nearer. When the queue no longer fits into
what is left, it is cut from its end, so that the others finish. Everything is in the book before the machine is told, and told again by
a process that takes the run up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from math import ceil, inf

from pydantic import ValidationError

from orchestrator import commands
from orchestrator.budget import WAY_OUT_S, rounded_up, show_usd, time_usd
from orchestrator.errors import IntegrityError
from orchestrator.lifecycle import Signal
from orchestrator.machines import guarding
from orchestrator.machines.reaching import Machine
from orchestrator.machines.recovery import steps_at_home
from orchestrator.order import rest_of
from orchestrator.plan import estimate
from orchestrator.trip import Trip
from providers.base import Offer
from providers.errors import ProviderError
from trainer.protocol import Session

from .pace import Stopwatch, Work, left_out, seconds_left

LOOK_S, PAUSE_S = 60.0, 300.0
"""How often the price is read, and how long a cloud that does not answer is left alone."""
DRIFT_S = 60.0
"""More was moved than was planned: a deadline that comes nearer by less is not told."""
SHORTEST_S = 1.0
ROUND_USD = Decimal("0.50")


@dataclass(slots=True, kw_only=True)
class Terms:
    """Under what terms one machine trains."""

    trip: Trip
    machine: Machine
    _jobs: tuple[str, ...] = ()
    """What it was given to train."""
    _look_at: float = -inf
    _beat: int | None = None
    """The guard's, a look ago; None: it has none, or its end was said."""
    _stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def begin(self) -> None:
        """Tell the machine all that the book says of it: a process that died may not have come to it."""
        book, session = self.trip.book(), session_there(self.trip, self.machine)
        self._jobs = session.jobs
        self._send_lifetime(session, book.attempts[self.machine.number].lifetime_s)
        for name in book.cut:
            if name in self._jobs:
                self.machine.shell.check(commands.leave(self.trip.order.root, name))
        guarding.renew(self.trip, self.machine)
        beat = guarding.beats(self.machine)
        self._beat = None if beat == -1 else beat  # one that was never there was said to be missing before

    def look(self) -> None:
        """One look, as often as you like."""
        if (now := self.trip.clock.monotonic_s()) >= self._look_at:
            if (status := self.trip.progress.status) is not None:
                guarding.count_lost_time(self.trip, self.machine, status.uptime_s)
            if self._look_at > -inf:
                self._guard()
            self._look_at = now + (LOOK_S if self._price() else PAUSE_S)
        if not self.trip.stop_wanted:
            self._queue()

    def _guard(self) -> None:
        """A guard that lives beats every second."""
        if self._beat is None:
            return
        if (beat := guarding.beats(self.machine)) == self._beat or beat == -1:
            self.trip.say("the machine's own guard has stopped: should this computer be lost, only lorry reap ends this machine")
            beat = None
        self._beat = beat

    # -- the price ---------------------------------------------------------------------------------

    def _price(self) -> bool:
        """False when the cloud does not answer now."""
        lease = self.machine.lease
        try:
            lease.heed(lease.describe())
        except ProviderError:
            return False
        before = self._price_before()
        attempt, used_s = self.trip.book().attempts[self.machine.number], self._used_s()
        lifetime_s = min(max(used_s + self.trip.lifetime_s(lease), SHORTEST_S), self._longest_s())
        if before is None and lifetime_s > attempt.lifetime_s - DRIFT_S:
            return True
        self._say_deadline(before, lifetime_s - used_s)
        self.trip.ledger.record("lifetime", attempt=self.machine.number, lifetime_s=lifetime_s)
        self._send_lifetime(session_there(self.trip, self.machine), lifetime_s)
        guarding.renew(self.trip, self.machine)
        return True

    def _price_before(self) -> Decimal | None:
        """What an hour cost when the deadline was reckoned last; None when it costs the same now. Somebody else may have seen it change."""
        kinds = {"priced", "lifetime", str(Signal.STARTED)}
        for entry in reversed(self.trip.ledger.entries):
            if entry.attempt == self.machine.number and entry.kind in kinds:
                return Decimal(str(entry.data["was_usd_per_hour"])) if entry.kind == "priced" else None
        return None

    def _longest_s(self) -> float:
        """The lifetime that was reckoned first: the machine's guard was made for it, and lets nobody live longer."""
        started = [e for e in self.trip.ledger.entries if e.attempt == self.machine.number and e.kind == Signal.STARTED]
        return float(started[0].data["lifetime_s"]) if started else inf

    def _say_deadline(self, before: Decimal | None, left_s: float) -> None:
        lease, now = self.machine.lease, self.trip.clock.now()
        why = "more was moved than was planned"
        if before is not None:
            after = lease.prices.usd_per_hour(lease.disk_gib)
            why = f"{lease.gpu} at {lease.provider.name} costs ${after:.3f} an hour now, ${before:.3f} before"
        if left_s > SHORTEST_S:
            ends = f"training ends by {now + timedelta(seconds=left_s):%Y-%m-%d %H:%M} UTC at the latest"
        else:
            ends = "nothing is left to train with, so it ends now, in good order"
        self.trip.say(f"{why}: the cap of {show_usd(self.trip.order.cap_usd)} stays, {ends}")

    def _used_s(self) -> float:
        """How long training has been allowed to go on by now."""
        attempt, now = self.trip.book().attempts[self.machine.number], self.trip.ledger.now()
        return (now - attempt.started_at).total_seconds() if attempt.started_at else 0.0

    # -- the queue ---------------------------------------------------------------------------------

    def _queue(self) -> None:
        jobs = self.trip.progress.jobs
        running = {job.name for job in self.trip.progress.running}
        self._stopwatch.see(running, {name: told for name in running if (told := jobs[name].last_step_at) is not None})
        if not self._stopwatch.paces():
            return
        left_s = self.trip.book().attempts[self.machine.number].lifetime_s - self._used_s()
        works, company = self._works(), self._stopwatch.company()
        names = left_out(works, company, left_s)
        if not names:
            return
        short_s = {w.name: seconds_left(works[: i + 1], company) - left_s for i, w in enumerate(works)}
        budget = self._budget((*self.trip.book().cut, *names))
        missing = {name: round(short_s[name], 1) for name in names}
        self.trip.ledger.record("cut", attempt=self.machine.number, jobs=list(names), short_s=missing, budget_usd=budget)
        for name in names:
            self.machine.shell.check(commands.leave(self.trip.order.root, name))
        self._say_cut(missing, budget)

    def _works(self) -> list[Work]:
        """The jobs of this machine that have not ended and are not left out, in the order of the file."""
        jobs, paces, cut = self.trip.progress.jobs, self._stopwatch.paces(), self.trip.book().cut
        planned = {work.name: work.steps for work in self.trip.order.load.jobs}
        left = [jobs[name] for name in self._jobs if name in jobs and name not in cut and jobs[name].state in {"queued", "running"}]
        return [
            Work(name=job.name, steps=max(0, (job.steps or planned.get(job.name, 0)) - job.step), step_s=paces.get(job.name))
            for job in left
        ]

    def _say_cut(self, missing: dict[str, float], budget: Decimal) -> None:
        it, they_are = ("them", "they are") if len(missing) > 1 else ("it", "it is")
        minutes = {name: max(1, ceil(short_s / 60)) for name, short_s in missing.items()}
        needs = "; ".join(f"{name} needs {more} more minutes than the cap leaves" for name, more in minutes.items())
        self.trip.say(
            f"{needs}; {they_are} left out, so that what stands before {it} in the queue is finished;"
            f" `lorry resume {self.trip.order.run} --budget {budget}` trains {it}"
        )

    def _budget(self, names: tuple[str, ...]) -> Decimal:
        """A cap that is enough for these jobs too, on a machine like this one."""
        trip, lease = self.trip, self.machine.lease
        load = rest_of(trip.order.load, steps_at_home(trip.ledger.entries), names)
        like = Offer(provider=lease.provider.name, id="", machine_id="", gpu_name=lease.gpu, vram_gib=0.0, prices=lease.prices)
        worst = estimate(load, like, lease.disk_gib).usd["p90"] + time_usd(lease.prices, lease.disk_gib, WAY_OUT_S)
        return rounded_up(trip.order.cap_usd + worst, ROUND_USD)

    # -- the machine -------------------------------------------------------------------------------

    def _send_lifetime(self, session: Session, lifetime_s: float) -> None:
        if session.lifetime_s != lifetime_s > 0:
            document = session.model_copy(update={"lifetime_s": lifetime_s})
            self.machine.shell.check(commands.write(f"{self.trip.order.root}/session.json"), stdin=document.model_dump_json().encode())


def session_there(trip: Trip, machine: Machine) -> Session:
    """The queue as it lies on the machine. Raises `IntegrityError` when it is not the one that was sent."""
    try:
        session = Session.model_validate_json(machine.shell.read(f"{trip.order.root}/session.json") or b"")
    except ValidationError as err:
        raise IntegrityError("the machine's session file is not the one that was sent") from err
    if session.run != trip.order.run:
        raise IntegrityError(f"the machine's session file is of another run: {session.run}")
    return session
