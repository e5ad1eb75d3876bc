"""What a machine is expected to waste: boots that fail, and work that is done twice because the machine went away. PURE.

    expected cost = the whole run on the average
                  + P(boot fails) x a boot's P90, paid for
                  + losses expected x (half of what lies between two checkpoints + beginning again)

Losses come at a constant rate, so that `rate x hours` of them are expected. A host's rate follows from its record: who is up for the share
r of all time and away for `AWAY_H` at a time goes away every `AWAY_H x r / (1 - r)` hours, the textbook's availability = MTBF / (MTBF +
MTTR) turned round. Of what lies between two checkpoints half is lost on the average. Losses while the lost work is made good are left
out: a second-order term. What is ASSUMED is marked so; nothing here is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from orchestrator.budget import time_usd, traffic_usd
from orchestrator.machines.recovery import LIFE_S
from providers.base import Offer

from .phases import BEFORE_TRAINING
from .quantiles import Range
from .work import Load

AWAY_H = 2.0
"""ASSUMED: how long a host is away when it is. No marketplace publishes it."""
RELIABLE_MOST, RELIABLE_LEAST = 0.998, 0.5
"""No record is long enough to say more than the first; below the second an offer is bad enough."""
BOOT_FAILS = 0.03
"""ASSUMED: boots that fail on any host, for an image that does not come or a port that does not open."""
INTERRUPTIONS_PER_HOUR = 3600.0 / LIFE_S
"""Of machines that may be taken away; `recovery.py` says how well that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """What is expected to be paid for nothing."""

    boots: float
    """How many boots are expected to fail."""
    boot_usd: Decimal
    """What one of them costs."""
    losses: float
    """How often the machine is expected to go away under the run."""
    again_usd: Decimal
    """What it costs each time."""
    seconds: float
    """The time of both."""

    @property
    def boots_usd(self) -> Decimal:
        """Boots that fail, on the average."""
        return Decimal(str(self.boots)) * self.boot_usd

    @property
    def losses_usd(self) -> Decimal:
        """Work that is done twice, on the average."""
        return Decimal(str(self.losses)) * self.again_usd

    @property
    def usd(self) -> Decimal:
        """Both."""
        return self.boots_usd + self.losses_usd


def losses_per_hour(offer: Offer) -> float:
    """How often the machine of an offer goes away, on the average."""
    reliability = min(max(offer.reliability, RELIABLE_LEAST), RELIABLE_MOST)
    by_host = (1 - reliability) / reliability / AWAY_H
    return by_host + (INTERRUPTIONS_PER_HOUR if offer.interruptible else 0.0)


def waste(load: Load, offer: Offer, disk: int, phases: Mapping[str, Range]) -> Waste:
    """What the run is expected to waste on a machine of this offer."""
    reliability = min(max(offer.reliability, RELIABLE_LEAST), RELIABLE_MOST)
    boots, boot_s = BOOT_FAILS + 1 - reliability, phases["boot"].p90
    hours = sum(phase.p50 for phase in phases.values()) / 3600
    losses = losses_per_hour(offer) * hours
    saves = max(1, sum(work.saves for work in load.jobs))
    again_s = phases["steps"].p50 / saves / 2 + sum(phases[name].p50 for name in BEFORE_TRAINING)
    moved_usd = traffic_usd(offer.prices, int(load.upload_bytes + load.hub_bytes), 0)
    return Waste(
        boots=boots,
        boot_usd=time_usd(offer.prices, disk, boot_s),
        losses=losses,
        again_usd=time_usd(offer.prices, disk, again_s) + moved_usd,
        seconds=boots * boot_s + losses * again_s,
    )
