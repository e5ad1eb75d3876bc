"""From ranked offers to one machine that answers: rent, wait, log in; the next offer when that fails.

What failed is destroyed and seen to be gone before the next is tried. Knows nothing of what the machine is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from providers.base import LaunchSpec, Offer
from providers.errors import AuthError, NoCapacity, ProviderError, Refused

from .errors import LorryError, MachineFailed, UsageError, outcome_of
from .learning.records import said_of
from .lease import Lease, NeverCreated
from .ledger import Attempt
from .lifecycle import Phase
from .machines import guarding
from .machines.guarding import GuardUnproven, guarded
from .machines.inspecting import Unfit, inspected
from .machines.memory import Fault
from .machines.proof import NONCE_ENV
from .machines.proving import nonce_for
from .machines.reaching import Machine, lets_in, reach
from .machines.trying import Failed, affordable, enough, loss_remembered, nothing_found, offer_of, remember, written
from .plan import Candidate, is_own
from .safety.reconcile import label_for
from .shell import make_keys
from .trip import Trip

POLL_S = 1.0
PROGRESS = tuple(Phase)
"""Phases in the order of a lease's life."""


class OwnMachineUnfit(LorryError):
    """A machine of the user's own is not what it was taken for: no other takes its place."""

    code = "LRY-OWN-MACHINE"
    exit_code = 6


@dataclass(slots=True, kw_only=True)
class _Held:
    """A lease in hand, and the offer that it took."""

    lease: Lease
    offer: Offer
    waited_s: float = 0.0
    """For so long it was waited for beside another."""


@contextmanager
def rented(trip: Trip) -> Iterator[Machine]:
    """Hold a machine that answers, guards itself and is what was offered, for the length of the block.

    Takes up the lease that the ledger shows open, else rents along the plan's candidates. Leaving the
    block destroys the machine and sees that it is gone. Raises `NoOffer` when every machine failed, `IntegrityError` when one
    of them was not the one that was rented.
    """
    for held, *beside in _leases(trip):
        with _given_back_too(trip, beside), _given_back(trip, held.lease) as ending:  # in this order: giving back may fail too
            found = _made_useful(trip, held)
            if isinstance(found, Machine):
                _let_go(trip, found, beside)
                with loss_remembered(trip, held.lease, held.offer):
                    yield found
                ending.decide("the work is done", outcome_of(None))
                return
            ending.why = found.why
            trip.ledger.record("unfit", attempt=held.lease.number, fault=found.fault, why=found.why)
            remember(trip, held.offer, found)
            trip.say(f"{held.lease.gpu} at {held.lease.provider.name} is given back: {found.why}; trying the next")
    raise nothing_found(trip, "no machine could be had")


@contextmanager
def visited(trip: Trip) -> Iterator[Machine]:
    """The machine that the run holds now, for a look; leaving the block leaves it as it is. Raises `UsageError` when there is none."""
    taken = trip.book().current
    if taken is None or taken.phase not in {Phase.TRAINING, Phase.PULLING}:
        raise UsageError(f"run {trip.order.run} has no machine that trains now", hint="lorry ps shows where it stands")
    machine = reach(trip, Lease.adopt(trip.provider(taken.provider), taken, ledger=trip.ledger, clock=trip.clock))
    if isinstance(machine, Failed):
        raise MachineFailed(
            "the machine does not answer", hint=f"lorry attach {trip.order.run} takes it up, lorry down {trip.order.run} ends it"
        )
    try:
        yield machine
    finally:
        machine.shell.close()


@dataclass(slots=True)
class _Ending:
    """Why a machine is given back, and whether the run ends with it."""

    why: str = "it did not boot"
    outcome: dict[str, Any] | None = field(default=None)

    def decide(self, why: str, outcome: dict[str, Any]) -> None:
        self.why, self.outcome = why, outcome


@contextmanager
def _given_back(trip: Trip, lease: Lease) -> Iterator[_Ending]:
    """Destroy at the end, whatever the end is; the word "destroyed" is said only after it was seen."""
    ending = _Ending()
    try:
        yield ending
    except MachineFailed as err:  # the machine's end, not the run's: another may be rented
        ending.why = str(err)
        trip.say(f"{lease.gpu} at {lease.provider.name} is lost to the run: {err}")
        raise
    except BaseException as err:
        ending.decide(str(err) or type(err).__name__, outcome_of(err))
        raise
    finally:
        give_back(trip, lease, ending.why, ending.outcome)


@contextmanager
def _given_back_too(trip: Trip, beside: list[_Held]) -> Iterator[None]:
    """What boots beside a machine stays when that one fails, and goes when the run ends there."""
    try:
        yield
    except BaseException as err:
        outcome = None if isinstance(err, MachineFailed) else outcome_of(err)
        with ExitStack() as each:  # trouble with one must not spare the next
            for other in beside:
                each.callback(give_back, trip, other.lease, str(err) or type(err).__name__, outcome)
        raise


def _let_go(trip: Trip, machine: Machine, beside: list[_Held]) -> None:
    """One is ready: the others go at once, and its guard is told that the cap is its alone."""
    if beside:
        with ExitStack() as each:
            for other in beside:
                each.callback(give_back, trip, other.lease, "the other of two was ready first")
        beside.clear()
        guarding.renew(trip, machine)


def end(trip: Trip, attempts: Iterable[Attempt], why: str, outcome: dict[str, Any] | None = None) -> None:
    """Adopt and give back each of these; trouble with one does not spare the next, and is raised when all were tried."""

    def one(attempt: Attempt) -> None:
        if (lease := adopted(trip, attempt)) is not None:
            give_back(trip, lease, attempt.told or why, outcome)

    with ExitStack() as each:
        for attempt in reversed(tuple(attempts)):  # the last called back first
            each.callback(one, attempt)


def give_back(trip: Trip, lease: Lease, why: str, outcome: dict[str, Any] | None = None) -> None:
    """Destroy, see that it is gone, and only then say so."""
    try:
        trip.enter("destroy", f"{lease.gpu} at {lease.provider.name}")
    finally:  # whatever happens to the view
        lease.release(why, outcome)
    trip.say(f"{lease.gpu} at {lease.provider.name}: destroyed, and seen to be gone")


def _leases(trip: Trip) -> Iterator[list[_Held]]:
    """The open leases first, then new ones while trying is worth its money and time. Of several the first is tried, the others boot on."""
    held = _taken_up(trip)
    yield from (held[n:] for n in range(len(held)))
    candidates = iter(trip.candidates())
    while held := _taken(trip, candidates):
        yield from (held[n:] for n in range(len(held)))


def _taken_up(trip: Trip) -> list[_Held]:
    """What an earlier process held, the furthest first; what it had given up is given back."""
    found = sorted(trip.book().open_attempts, key=lambda one: (-PROGRESS.index(one.phase), one.number))
    wanted = [one for one in found if one.phase is not Phase.RELEASING]
    try:
        end(trip, (one for one in found if one.phase is Phase.RELEASING), "")
    except BaseException as err:  # the run ends there, and with it all that it holds
        end(trip, wanted, str(err) or type(err).__name__, outcome_of(err))
        raise
    held: list[_Held] = []
    with _given_back_too(trip, held):
        for taken in wanted:
            if (lease := adopted(trip, taken)) is not None:
                held.append(_Held(lease=lease, offer=offer_of(trip, taken)))  # noqa: PERF401  one by one: trouble gives back what is held
    return held


def _taken(trip: Trip, candidates: Iterator[Candidate]) -> list[_Held]:
    """The next candidate's machine, or the next two, the one that answers first before the other; none when there is none left."""
    held: list[_Held] = []
    with _given_back_too(trip, held):
        for candidate in candidates:
            trip.check_boot()
            if not held and (why := enough(trip)):
                raise nothing_found(trip, why)
            if not affordable(trip, candidate, beside=[one.offer for one in held]):
                continue
            if (lease := _take(trip, candidate)) is not None:
                held.append(_Held(lease=lease, offer=candidate.offer))
            if len(held) == (2 if trip.order.start_two and not is_own(candidate.offer) else 1):
                break
        return _quicker_first(trip, held) if len(held) > 1 else held


def _quicker_first(trip: Trip, held: list[_Held]) -> list[_Held]:
    """Wait until one of them lets us in, or the boot deadline has passed for all."""
    trip.enter("boot", " and ".join(f"{one.lease.gpu} at {one.lease.provider.name}" for one in held))
    begun = trip.clock.monotonic_s()
    while (waited_s := trip.clock.monotonic_s() - begun) < trip.order.boot_timeout_s:
        trip.check_boot()
        for one in held:
            one.waited_s = waited_s
            if lets_in(trip, one.lease):
                return [one, *(other for other in held if other is not one)]
        trip.pulse("waiting for either")
        trip.clock.sleep(POLL_S)
    return held


def adopted(trip: Trip, taken: Attempt) -> Lease | None:
    """The lease that another process began; None when its machine was never made."""
    if taken.phase is Phase.LAUNCHING:
        trip.enter("rent", "looking for the machine that an earlier process asked for")
    try:
        return Lease.adopt(trip.provider(taken.provider), taken, ledger=trip.ledger, clock=trip.clock)
    except NeverCreated as err:
        trip.say(f"{taken.gpu} at {taken.provider}: {err}")
        return None


def _take(trip: Trip, candidate: Candidate) -> Lease | None:
    offer = candidate.offer
    trip.enter("rent", f"{offer.gpu_name} at {offer.provider}, ${offer.prices.usd_per_hour(trip.order.requirements.disk_gib):.3f}/h")
    number = trip.book().next_attempt
    said = said_of(candidate.estimate).model_dump(mode="json")
    trip.ledger.record("chosen", number=number, expected_usd=candidate.expected_usd, offer=written(offer), said=said)
    keys = make_keys(trip.folder.path)
    most_s = trip.most_s(offer.prices, trip.order.requirements.disk_gib)
    label = label_for(trip.order.run, number, trip.clock.now() + timedelta(seconds=most_s))
    spec = LaunchSpec(
        label=label,
        image=trip.order.image,
        disk_gib=trip.order.requirements.disk_gib,
        ssh_public_key=keys.public_line,
        env={NONCE_ENV: nonce_for(keys, label)},
        onstart=guarding.text(trip.provider(offer.provider), most_s),
    )
    try:
        return Lease.take(trip.provider(offer.provider), offer, spec, ledger=trip.ledger, clock=trip.clock)
    except (AuthError, Refused):
        raise  # the next offer of this account would fare no better
    except ProviderError as err:
        if isinstance(err, NoCapacity):
            remember(trip, offer, Failed(fault=Fault.REFUSED, why=str(err)))
        trip.say(f"{offer.gpu_name} at {offer.provider}: {err}; trying the next")
        return None


def _made_useful(trip: Trip, held: _Held) -> Machine | Failed:
    """Reach the machine; one that nothing was sent to yet must also show that it can end itself, and that it is what was paid for."""
    machine = reach(trip, held.lease, held.waited_s)
    if isinstance(machine, Failed) or trip.book().attempts[held.lease.number].phase is not Phase.SHIPPING:
        return machine
    failed = _disproved(trip, machine, held.offer)
    if failed is not None:
        machine.shell.close()
        return failed
    return replace(machine, proven=True)


def _disproved(trip: Trip, machine: Machine, offer: Offer) -> Failed | None:
    try:
        guarded(trip, machine)
        inspected(trip, machine, offer)
    except GuardUnproven as err:
        return Failed(fault=Fault.GUARD, why=str(err))
    except Unfit as err:
        if is_own(offer):
            raise OwnMachineUnfit(f"{offer.gpu_name} at {offer.id}: {err}", hint="put that right there, then run again") from err
        return Failed(fault=Fault.SLOW if err.slow else Fault.HARDWARE, why=str(err))
    except MachineFailed as err:  # the link, or a command that no machine of ours fails at
        return Failed(fault=Fault.BOOT, why=str(err))
    return None
