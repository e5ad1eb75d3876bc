"""What trying machines has come to: how much of it is enough, what is told of it, and what is remembered for the next time.

Reads the run's book, so that a process that takes a run up goes on counting where the one before had stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from orchestrator.budget import show_usd, spent_usd, time_usd
from orchestrator.errors import IntegrityError, LorryError, MachineFailed, NoOffer
from orchestrator.lease import Lease, prices_of, usage_of
from orchestrator.ledger import Attempt
from orchestrator.lifecycle import Phase, Signal
from orchestrator.plan import Candidate, is_own, worst_usd
from orchestrator.trip import Trip
from providers.base import Offer

from .memory import FORGOTTEN_AFTER, POOL_FORGOTTEN_AFTER, Bad, Fault

TRIES = 5
"""Machines that are tried before the run gives up; each one is paid for while it boots."""
CREATES = 25
"""The same with those that were refused, which cost nothing: offers that go while we look are usual on a busy market."""
WASTED_SHARE = Decimal("0.25")
"""Of the cap, for machines that never become useful. The cap covers a P90; most runs take a good deal less, and a quarter is in it."""
WASTED_S = 3600.0
"""Of trying; by then it is hardly the machines."""
AGAIN = frozenset({"opened", "resumed", "closed", Signal.STARTED})
"""Entries after which counting begins anew: the user has said go, or a machine became useful."""
_OFFERED = ("id", "machine_id", "pooled", "vram_gib", "gpu_count", "down_mbit_s", "up_mbit_s", "reliability", "interruptible")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Why a machine did not become useful."""

    fault: Fault
    why: str


def fruitless(trip: Trip) -> list[Attempt]:
    """The leases of which nothing came, since the user last said go or a machine became useful."""
    numbers: list[int] = []
    for entry in trip.ledger.entries:
        if entry.kind in AGAIN:
            numbers.clear()
        elif entry.kind == Signal.INTENT:
            numbers.append(entry.attempt)
    attempts = trip.book().attempts
    return [attempts[number] for number in numbers if not attempts[number].may_bill]


def enough(trip: Trip) -> str:
    """Why no other machine is tried; empty while one may be."""
    attempts, now, cap = fruitless(trip), trip.ledger.now(), trip.order.cap_usd
    rented = [one for one in attempts if one.instance_ids]
    usd = spent_usd(map(usage_of, attempts), now)
    seconds = sum(((one.gone_at or now) - one.intended_at).total_seconds() for one in rented)
    if len(rented) >= TRIES or len(attempts) >= CREATES:
        return f"{len(attempts)} machines were tried, and none became useful"
    if usd > cap * WASTED_SHARE:
        return f"machines that never became useful have cost {show_usd(usd)}, more than {WASTED_SHARE:.0%} of the cap of ${cap}"
    if seconds > WASTED_S:
        return f"machines were tried for {seconds / 60:.0f} minutes, and none became useful"
    return ""


def affordable(trip: Trip, candidate: Candidate, beside: Sequence[Offer] = ()) -> bool:
    """Whether what is left of the cap still covers the run on this one, and the boots of those beside it; said when it does not."""
    boot_s, disk = candidate.estimate.phases["boot"].p90, trip.order.requirements.disk_gib
    spent = trip.spent_usd() + sum((time_usd(other.prices, disk, boot_s) for other in beside), Decimal(0))
    if spent + worst_usd(candidate, trip.order.requirements.disk_gib) <= trip.order.cap_usd:
        return True
    offer = candidate.offer
    trip.say(f"{offer.gpu_name} at {offer.provider} is passed over: with {show_usd(spent)} spent, the cap may not cover the run on it")
    return False


def tried(trip: Trip) -> str:
    """Every machine that came to nothing, what it cost, and why."""
    now = trip.ledger.now()

    def row(one: Attempt) -> str:
        where = f"{one.gpu} at {one.provider}"
        if not one.instance_ids:
            return f"{where} (not rented): {one.told or one.phase}"
        minutes = ((one.gone_at or now) - one.intended_at).total_seconds() / 60
        return f"{where} ({show_usd(usage_of(one).usd(now))} in {minutes:.0f} min): {one.told or one.phase}"

    return "; ".join(map(row, fruitless(trip))) or "no offer was left to try"


def nothing_found(trip: Trip, why: str) -> LorryError:
    """How a run ends that has no machine: a stranger among those that were tried weighs more than that none was left."""
    words = f"{why}: {tried(trip)}"
    if _met(trip, Fault.STRANGER):
        return IntegrityError(words, hint="nothing of yours was sent; run again over another network, or look at who answers there")
    return NoOffer(words, hint=_hint(trip))


def _met(trip: Trip, fault: Fault) -> bool:
    return any(entry.kind == "unfit" and entry.data.get("fault") == fault for entry in trip.ledger.entries)


def _hint(trip: Trip) -> str:
    """What to do about it."""
    unguarded = _met(trip, Fault.GUARD)
    return "run again later, or loosen [machine]" + (
        "; with --unguarded machines do that cannot end themselves: then this computer must stay on" if unguarded else ""
    )


def remember(trip: Trip, offer: Offer, failed: Failed) -> None:
    """Keep every run of this computer away from a machine for a while. One's own machine is its owner's to judge."""
    if is_own(offer):
        return
    after = min(FORGOTTEN_AFTER[failed.fault], POOL_FORGOTTEN_AFTER) if offer.pooled else FORGOTTEN_AFTER[failed.fault]
    now = trip.clock.now()
    bad = Bad(
        provider=offer.provider,
        machine_id=offer.machine_id,
        gpu=offer.gpu_name,
        fault=failed.fault,
        why=failed.why[:500],
        until=now + after,
    )
    trip.tools.memory.remember(bad, now)


@contextmanager
def loss_remembered(trip: Trip, lease: Lease, offer: Offer) -> Iterator[None]:
    """A machine that is lost while it trains is remembered, unless it was one that anybody may outbid."""
    try:
        yield
    except MachineFailed as err:
        if trip.book().attempts[lease.number].phase in {Phase.TRAINING, Phase.PULLING} and not offer.interruptible:
            remember(trip, offer, Failed(fault=Fault.LOST, why=str(err)))
        raise


def written(offer: Offer) -> dict[str, Any]:
    """What a process that takes the run up must know of an offer, beside what its lease says."""
    return {name: getattr(offer, name) for name in _OFFERED}


def offer_of(trip: Trip, attempt: Attempt) -> Offer:
    """The offer that an attempt took, as it was written down. Of an older book's what its lease says, and no more is held against it."""
    chosen = [e.data["offer"] for e in trip.ledger.entries if e.kind == "chosen" and e.data.get("number") == attempt.number]
    known: dict[str, Any] = dict(chosen[-1]) if chosen else {"id": "", "machine_id": attempt.machine_id, "vram_gib": 0.0}
    return Offer(
        **{name: value for name, value in known.items() if name in _OFFERED},
        provider=attempt.provider,
        gpu_name=attempt.gpu,
        prices=prices_of(attempt),
        disk_gib=attempt.disk_gib,
    )
