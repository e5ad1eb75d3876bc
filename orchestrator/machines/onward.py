"""From one machine of a run to the next: what became of one that is silent, and whether another is worth its money.

Asks the clouds and tells the user; the decisions themselves are in `recovery.py`. A lost machine is destroyed and seen to be gone by
the lease that held it, before anything here looks for another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf

from orchestrator.budget import SHORTEST_LIFE_S, WAY_OUT_S, show_usd
from orchestrator.closing import judge
from orchestrator.errors import Interrupted, LorryError, MachineFailed, NoOffer, OverBudget
from orchestrator.market import market
from orchestrator.plan import BEFORE_TRAINING, Candidate, Load, Plan
from orchestrator.trip import Trip
from orchestrator.view import duration
from providers.base import InstanceStatus
from providers.errors import ProviderError

from .reaching import OVER, Machine
from .recovery import LONGEST_PATIENCE_S, SHORTEST_PATIENCE_S, Choice, does_going_on_pay, given_up, patience_s, steps_at_home

ASK_S = 2.0
LOOKS = 3
"""In a row that show a machine stopped or gone; a single one may be a replica's that lags behind, or a lie."""
SEEK_S, SEEK_AGAIN_S = 900.0, 30.0
"""No machine is held meanwhile. A market that has nothing for so long has nothing this evening."""
HICCUP_S = 10.0
"""What is over sooner is not worth a line."""


class NotWorthIt(LorryError):
    """Machines were lost, and another would be money thrown after them."""

    code = "LRY-GIVEN-UP"
    exit_code = 6


@dataclass(slots=True)
class Outage:
    """A machine that does not answer: is it lost, or is it we who are offline? Asked between attempts to log in again."""

    trip: Trip
    machine: Machine
    asked_at: float = field(default=-inf)
    waited_s: float = 0.0
    """Silence that counts against the machine: its cloud answered meanwhile, so this computer was online."""
    ended: int = 0
    said: bool = False

    def look(self) -> None:
        """Return to have it tried again. Raises `MachineFailed` when the machine is lost, `Interrupted` when it is to go anyway."""
        self.trip.check_urgent()
        now, down_s = self.trip.clock.monotonic_s(), self.machine.shell.down_s
        if self.trip.stop_wanted and down_s > SHORTEST_PATIENCE_S:
            again = f"go on with: lorry resume {self.trip.order.run}"
            raise Interrupted("the machine was to stop, and does not answer; what was at home is kept", hint=again)
        if now - self.asked_at < ASK_S:
            return
        passed, self.asked_at = min(now - self.asked_at, down_s, 2 * ASK_S), now  # a longer gap is a computer that slept
        cloud = self.machine.lease.provider.name
        try:
            seen = self.machine.lease.describe()
        except ProviderError as err:
            self.ended = 0
            self._tell(f"neither the machine nor {cloud} answers ({err}); it trains on by itself")
            return
        self.waited_s += passed
        self.ended = self.ended + 1 if seen.status in OVER else 0
        if self.ended >= LOOKS:
            raise MachineFailed(f"it is {seen.status}" + (f": {seen.status_text}" if seen.status_text else ""))
        patience_s = self._patience_s()
        if self.waited_s > patience_s:
            raise MachineFailed(f"it has not answered for {duration(self.waited_s)}, and {cloud} calls it {seen.status}")
        if seen.ssh is not None and seen.status is InstanceStatus.RUNNING:
            self.machine.shell.endpoint = seen.ssh  # it may be back elsewhere
        self._tell(f"the machine does not answer, {cloud} calls it {seen.status}; it is waited for, {duration(patience_s)} at most")

    def over(self) -> None:
        """It answers again."""
        self.trip.detail = ""
        if self.said:
            self.trip.say("the machine answers again")
        self.asked_at, self.waited_s, self.ended, self.said = -inf, 0.0, 0, False

    def _tell(self, words: str) -> None:
        self.trip.pulse(words)
        if not self.said and self.machine.shell.down_s >= HICCUP_S:
            self.said = True
            self.trip.say(words)

    def _patience_s(self) -> float:
        """By what it had come to when the silence began; while this computer slept, it trained."""
        lease, silent_since = self.machine.lease, self.trip.ledger.now() - timedelta(seconds=self.waited_s)
        if not lease.prices.usd_per_hour(lease.disk_gib):
            return LONGEST_PATIENCE_S  # one's own, which restarts
        attempt = self.trip.book().attempts[lease.number]
        started = attempt.started_at or silent_since
        saved = [e.at for e in self.trip.ledger.entries if e.attempt == attempt.number and e.kind == "fetched"]
        return patience_s((started - attempt.intended_at).total_seconds(), (silent_since - max([started, *saved])).total_seconds())


def stand_by(trip: Trip, machine: Machine) -> None:
    """From now on, silence of the machine is judged by what its cloud says of it, and not by time alone."""
    outage = Outage(trip, machine)
    machine.shell.patience_s, machine.shell.give_up, machine.shell.came_back = inf, outage.look, outage.over


def leave_behind(trip: Trip, *, failed: bool = False) -> None:
    """A machine is gone: what only it had is forgotten, and its jobs wait for the next one; with `failed` those that failed on it too."""
    trip.progress.committed.clear()
    for part in (trip.folder.path / "staging").glob("*.part"):
        with contextlib.suppress(OSError):
            part.unlink()
    for job in trip.progress.jobs.values():
        if job.state in {"running", "stopped"} or (failed and job.state == "failed"):
            job.state, job.phase = "queued", ""


def onward(trip: Trip, first: Plan | None = None) -> tuple[Candidate, ...]:
    """The machines to try now, best first: of the plan that was confirmed, later of the market as it is then; none when all is at home.

    Raises `NotWorthIt`, `NoOffer` or `OverBudget` when no other machine is worth renting, `TrainingFailed` when only failed jobs are left.
    """
    if not trip.to_train():
        judge(trip, "")
        return ()
    attempts, lost, left = trip.book().attempts, trip.lost(), given_up(trip.ledger.entries)
    if first is not None and not attempts:
        return first.candidates
    rest, left_usd = trip.rest(), trip.order.cap_usd - trip.spent_usd()
    steps_left = sum(work.steps for work in rest.jobs)
    verdict = does_going_on_pay(lost, steps_left=steps_left, left_usd=left_usd, interruptible=trip.order.requirements.interruptible)
    again = f"go on with: lorry resume {trip.order.run}"
    if verdict.choice is Choice.END:
        raise NotWorthIt(f"{verdict.why}; the last one: {attempts[lost[-1].attempt].told}", hint=f"what came home is kept; {again}")
    steady = verdict.choice is Choice.STEADY
    try:
        plan = _market_in_time(trip, left, rest, steady=steady)
    except (NoOffer, OverBudget) as err:
        if not left:
            raise
        hint = f"what came home is kept; {again}{' --budget USD' if isinstance(err, OverBudget) else ''}"
        raise type(err)(f"the machine was lost, and no other can be had for what is left: {err}", hint=hint) from err
    if left and (short_s := _time_short_s(trip, plan.best)) > 0:
        why = f"the machine was lost, and the run's time is up {duration(short_s)} before another could train"
        raise OverBudget(why, hint=f"what came home is kept; {again} --budget USD, which begins max_hours anew")
    if steady:
        trip.say(f"{verdict.why}: from here on only machines that nobody can outbid")
    if left:
        _say_going_on(trip, plan, steps_left)
    return plan.candidates


def _time_short_s(trip: Trip, best: Candidate) -> float:
    """By how much the cap or `max_hours` ends before the quickest start of another machine has trained anything to speak of."""
    ready_s = sum(best.estimate.phases[name].p10 for name in BEFORE_TRAINING)
    return ready_s + SHORTEST_LIFE_S + WAY_OUT_S - trip.most_s(best.offer.prices, trip.order.requirements.disk_gib)


def _market_in_time(trip: Trip, left: Sequence[int], rest: Load, *, steady: bool) -> Plan:
    """The market without the machines `left` behind; in the middle of a run it is asked again when it has nothing, or is down."""
    attempts = trip.book().attempts
    avoid = [(attempts[number].provider, attempts[number].machine_id) for number in left]
    until = trip.clock.monotonic_s() + (SEEK_S if left else 0.0)
    while True:
        try:
            return market(trip.order, trip.tools, load=rest, spent_usd=trip.spent_usd(), avoid=avoid, steady=steady)
        except (NoOffer, ProviderError) as err:
            is_passing = isinstance(err, NoOffer) or err.transient
            if not is_passing or trip.clock.monotonic_s() >= until:
                raise
            trip.enter("rent", f"{err}; asked again for up to {duration(until - trip.clock.monotonic_s())}, which costs nothing")
        trip.check_boot()
        trip.clock.sleep(SEEK_AGAIN_S)


def _say_going_on(trip: Trip, plan: Plan, steps_left: int) -> None:
    home = sum(steps_at_home(trip.ledger.entries).values())
    usual = show_usd(plan.best.estimate.usd["p50"])
    spent, cap = show_usd(trip.spent_usd()), show_usd(trip.order.cap_usd)
    where = f"from step {home} of {home + steps_left}" if home else "from the beginning"
    trip.say(f"going on {where} on another machine: {spent} of {cap} is spent, what is left is estimated at {usual}")
