"""A rented machine: when it boots, what it costs, what ends it, and its own guard, whose decisions are the real one's."""

from __future__ import annotations

import json
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.machines.guard import CLAIM_S, GRACE_S
from providers.base import Instance, InstanceStatus, Offer, Prices, SSHEndpoint
from templates import guard

from .work import Work

if TYPE_CHECKING:
    from .world import World

NEVER_S = 1e17
RATE = Prices(gpu_usd_per_hour=Decimal("0.40"), disk_usd_per_gib_hour=Decimal("0.0002"))
DEARER = Prices(gpu_usd_per_hour=Decimal("0.90"), disk_usd_per_gib_hour=Decimal("0.0002"))
DISK_GIB = 40
LAG_S = 45.0
"""A new machine is unseen by listings and by its id, and a dead one still seen, at most so long."""


class Machine:
    """One rented machine, in the cloud's own books."""

    def __init__(self, world: World, number: int, offer: Offer, asked_label: str, label: str, from_s: float) -> None:
        self.world, self.number, self.id = world, number, f"i-{number}"
        self.gpu = offer.gpu_name
        self.account = ""
        """Who pays for it."""
        self.asked_label = asked_label
        """What the create asked for."""
        self.label = label
        """What the cloud made of it."""
        self.asked_s = world.time_s
        """When the create arrived."""
        self.from_s = from_s
        """When it came, or will come, into being."""
        self.until_s: float | None = None
        self.given_back_s: float | None = None
        """When its end was asked for first, heard or not."""
        """When it ceased to be, and to cost."""
        self.ended_by = ""
        self.prices = RATE
        """Its rate card ..."""
        self.rises_at_s = NEVER_S
        """... until then, and from then on `DEARER`."""
        self.lists_after_s = self.shows_after_s = from_s
        self.boots_after_s = from_s
        self.lingers_s = 0.0
        """A dead one is shown for so long."""
        self.dies_at_s = self.lost_at_s = self.outbid_at_s = NEVER_S
        """A terminate that was taken in, and takes its time; the host dies; somebody bids more."""
        self.is_outbid = False
        self.deaf = 0
        """So many terminates are answered well and do nothing."""
        self.stubborn = False
        """Deaf for longer than a foreground command has patience."""
        self.lied = False
        """The last describe said GONE while it lived; no two in a row do."""
        self.claimed = False
        """Somebody has logged in."""
        self.cuts: list[tuple[float, float]] = []
        """When its line was cut, and until when."""
        self.slow = False
        """Its line is hardly one."""
        self.session = b""
        """What the client put there."""
        self.work: Work | None = None
        self.resumes_from = 0
        """Step of the checkpoint that was sent along."""
        self.guard: dict[str, Any] | None = None
        """What its guard knows; None: there is none."""
        self.guard_until_s = self.guard_dies_s = NEVER_S

    # -- its fate -------------------------------------------------------------------------------------

    def fate(self, onstart: str) -> None:
        """Draw what will become of it."""
        world, rng, begins = self.world, self.world.rng, self.from_s
        weather = world.weather
        self.boots_after_s = begins + rng.choice((1.0, 5.0, 30.0))
        if weather.lags:
            self.lists_after_s, self.shows_after_s = begins + rng.uniform(0, LAG_S), begins + rng.uniform(0, LAG_S)
            self.lingers_s = rng.uniform(0, LAG_S)
        if weather.deaf:
            self.deaf = rng.choice((0, 1, 3, 40))
            self.stubborn = self.deaf > 3
        if weather.poor_machines:
            self._poor(rng.random())
        if onstart:
            self._guard(float(onstart), rng.random())
        for time_s in (
            begins,
            self.boots_after_s,
            self.lists_after_s,
            self.shows_after_s,
            self.lost_at_s,
            self.outbid_at_s,
            self.rises_at_s,
        ):
            world.at(time_s)

    def _poor(self, kind: float) -> None:
        rng = self.world.rng
        if kind < 0.2:
            self.boots_after_s = NEVER_S
            self.world.hit("never boots", f"{self.id} will never boot")
        elif kind < 0.3:
            self.prices = DEARER
            self.world.hit("dearer", f"{self.id} costs more than its offer")
        elif kind < 0.45:
            self.lost_at_s = self.from_s + rng.expovariate(1 / rng.choice((20.0, 500.0)))
        elif kind < 0.6:
            self.outbid_at_s = self.from_s + rng.expovariate(1 / rng.choice((20.0, 500.0)))
        elif kind < 0.7:
            self.slow = True
        elif kind < 0.8:
            self.rises_at_s = self.from_s + rng.expovariate(1 / 500)

    def _guard(self, most_s: float, kind: float) -> None:
        if kind < 0.07:
            self.world.hit("guard missing", f"{self.id} has no guard")
            return
        self.guard_config = {"most_s": most_s, "claim_s": CLAIM_S, "grace_s": GRACE_S}
        proven = kind > 0.14
        self.guard = {"started": self.from_s, "serial": None, "lease_at": None, "left_s": 0.0, "ended_at": None, "proven": proven}
        if not proven:
            self.world.hit("guard unproven", f"{self.id}'s guard can do nothing")
        elif kind < 0.25:
            self.guard_dies_s = self.from_s + self.world.rng.expovariate(1 / 500)
            self.world.at(self.guard_dies_s)
        self.guard_hears(None)

    def guard_hears(self, lease: object, *, ended_at_s: float | None = None) -> None:
        """Its guard reads the client's word, or sees that the work has ended; and decides anew."""
        if self.guard is None or self.guard_dies_s <= self.world.time_s:
            return
        now = self.world.time_s if ended_at_s is None else ended_at_s
        if lease is not None:
            self.guard["lease"] = lease
        status = {"state": "ended"} if ended_at_s is not None or self.guard["ended_at"] is not None else None
        self.guard = guard.heard(self.guard, self.guard.get("lease"), status, now)
        assert self.guard is not None
        if self.guard["proven"]:
            self.guard_until_s = guard.deadline(self.guard, self.guard_config)[0]
            self.world.at(self.guard_until_s)

    def beat(self) -> bytes | None:
        """What its guard has told last."""
        if self.guard is None:
            return None
        now, told = self.world.time_s, self.guard
        beat = {"beat": int(now), "proven": told["proven"], "left": self.guard_until_s - now, "why": "", "serial": told["serial"]}
        return json.dumps(beat | {"started": self.from_s, "now": now}).encode()

    @property
    def is_guarded(self) -> bool:
        """It ends itself in time, whatever becomes of the client."""
        return self.guard is not None and self.guard["proven"] and self.guard_dies_s >= NEVER_S

    @property
    def is_dearer(self) -> bool:
        """Than what its guard was told."""
        return self.prices is DEARER

    def live(self) -> None:
        """Let happen what is due by now."""
        now = self.world.time_s
        if self.guard_dies_s <= now and self.guard is not None:
            self.guard, self.guard_until_s = None, NEVER_S if self.guard_until_s > self.guard_dies_s else self.guard_until_s
            self.world.hit("guard dies", f"the guard of {self.id} is dead")
        if self.rises_at_s <= now and self.prices is not DEARER:
            self.prices = DEARER
            self.__dict__.pop("running", None)
            self.world.hit("price rises", f"{self.id} costs more from now on")
        due = min(self.dies_at_s, self.lost_at_s, self.guard_until_s)
        if self.work is not None:
            self.work.go_on(min(now, due, self.outbid_at_s))
            due = min(due, self.guard_until_s)
        if self.outbid_at_s <= min(now, due) and not self.is_outbid:
            self.is_outbid = True
            self.world.hit("outbid", f"{self.id} is stopped: somebody bid more")
        if due <= now:
            self.until_s = max(due, self.from_s)
            self.ended_by = {self.dies_at_s: "a terminate", self.lost_at_s: "its host, which died"}.get(due, "its guard")
            if self.ended_by != "a terminate":
                self.world.hit("machine lost" if due == self.lost_at_s else "guard ends it", f"{self.id} is ended by {self.ended_by}")
            else:
                self.world.tell(f"{self.id} is gone, by a terminate")

    @property
    def answers(self) -> bool:
        """Over SSH."""
        now = self.world.time_s
        return self.until_s is None and self.boots_after_s <= now and not self.is_outbid

    def usd(self, now: float) -> Decimal:
        """What it has cost, to the second."""
        until = now if self.until_s is None else self.until_s
        runs_until = min(until, self.outbid_at_s)
        first = RATE if self.rises_at_s < NEVER_S else self.prices
        gpu = first.gpu_usd_per_hour * Decimal(max(0.0, min(runs_until, self.rises_at_s) - self.from_s))
        gpu += DEARER.gpu_usd_per_hour * Decimal(max(0.0, runs_until - max(self.rises_at_s, self.from_s)))
        return (gpu + RATE.disk_usd_per_gib_hour * DISK_GIB * Decimal(max(0.0, until - self.from_s))) / 3600

    # -- as the cloud shows it ------------------------------------------------------------------------

    @cached_property
    def gone(self) -> Instance:
        return Instance(provider="fake", id=self.id, label="", status=InstanceStatus.GONE)

    @cached_property
    def pending(self) -> Instance:
        return Instance(provider="fake", id=self.id, label=self.label, status=InstanceStatus.PENDING, prices=self.prices)

    @cached_property
    def running(self) -> Instance:
        endpoint = SSHEndpoint(host="10.0.0.1", port=self.number, user="root")
        return Instance(provider="fake", id=self.id, label=self.label, status=InstanceStatus.RUNNING, prices=self.prices, ssh=endpoint)

    @cached_property
    def stopped(self) -> Instance:
        return Instance(provider="fake", id=self.id, label=self.label, status=InstanceStatus.STOPPED, prices=self.prices)
