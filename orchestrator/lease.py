"""A lease is the only way to hold a machine; leaving it always stops the bill.

The intent is in the ledger before the create is sent; the create is sent once; when its answer is in
doubt the label decides, over a grace window; "gone" is written only after the cloud was seen to agree,
twice over: the instance and a whole listing. Knows nothing of SSH or training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

from providers.base import Instance, InstanceStatus, LaunchSpec, Offer, Prices, Provider
from providers.errors import AuthError, NoCapacity, ProviderError, RateLimited, Refused

from .budget import Usage
from .clock import Clock
from .crashpoints import crashpoint
from .errors import LorryError, MachineFailed, MayStillBill
from .ledger import CUT_LABEL, Attempt, Ledger
from .lifecycle import Phase, Signal

GRACE_S = 180.0
"""A create whose answer was lost may still land so long after the intent: client timeout, the cloud's own lag, and margin."""
PATIENCE_S = 180.0
"""How long a foreground command goes on destroying before it says that something may still bill."""
POLL_S = 2.0
CLEAN_LOOKS, LOOK_AGAIN_S = 2, 1.0
"""A single look may be answered by a replica that lags behind, or by one that lies."""
LATE_LOOKS = 2 * CLEAN_LOOKS
"""When patience is over, looks that began to be clean may go on so far: a cloud that contradicts itself would have us look for ever."""
CERTAIN = (NoCapacity, Refused, AuthError, RateLimited)
"""Errors of a create that rented nothing, unless they name an instance."""
STIR = Decimal("0.001")
"""Prices that differ by less are one price, told with other digits."""


class NeverCreated(MachineFailed):
    """A create was announced and never sent, or never taken: certain that there is no machine."""

    code = "LRY-NEVER-CREATED"


class WrongAccount(LorryError):
    """The key that is used now belongs to another account than the machine: with it, everything looks gone."""

    code = "LRY-WRONG-ACCOUNT"
    exit_code = 11


@dataclass(slots=True, kw_only=True)
class Lease:
    """One rented machine, or one that may have been rented. A context: leaving it destroys and verifies."""

    number: int
    label: str
    provider: Provider
    prices: Prices
    disk_gib: int
    gpu: str
    ledger: Ledger
    clock: Clock
    account: str = ""
    """Whose money it is; empty where the cloud does not tell."""
    instance_ids: list[str] = field(default_factory=list)
    seen: bool = False
    """Whether this process has seen the machine alive: until then its absence may be its youth."""
    knows_age: bool = True
    """Whether all its time is on the bill: a clock set back while no lorry ran leaves some off it until the machine tells its age."""
    _priced_at: datetime | None = None
    """When this process last saw what the machine costs."""

    @classmethod
    def take(cls, provider: Provider, offer: Offer, spec: LaunchSpec, *, ledger: Ledger, clock: Clock) -> Lease:
        """Rent `offer`: intent first, then the create, once.

        Raises what `Provider.launch` raises when certain that nothing was rented; in doubt it looks for
        the label before it says so. A cloud that cannot say whose key this is could not be seen to be rid of a machine: it
        rents none, and raises what `Provider.account` raises.
        """
        number = ledger.book().next_attempt
        lease = cls(
            number=number,
            label=spec.label,
            provider=provider,
            prices=offer.prices,
            disk_gib=spec.disk_gib,
            gpu=offer.gpu_name,
            ledger=ledger,
            clock=clock,
            account=provider.account().id,
        )
        ledger.record(
            Signal.INTENT,
            attempt=number,
            provider=provider.name,
            label=spec.label,
            offer=offer.id,
            machine_id=offer.machine_id,
            gpu=offer.gpu_name,
            usd_per_hour=offer.prices.usd_per_hour(spec.disk_gib),
            prices=_as_text(offer.prices),
            disk_gib=spec.disk_gib,
            account=lease.account,
        )
        try:
            instance = provider.launch(offer, spec)
            crashpoint("created")
            lease._hold(instance.id, "answer")
        except BaseException as err:
            lease._undo(err)
            raise
        return lease

    @classmethod
    def adopt(cls, provider: Provider, attempt: Attempt, *, ledger: Ledger, clock: Clock) -> Lease:
        """Take up a lease that another process of lorry began. Looks for the label when no id is known.

        Raises `NeverCreated` when the machine was certainly never made, and `WrongAccount` where this key cannot see it.
        """
        with contextlib.suppress(ProviderError):  # not now; it is asked again before anything is believed to be gone
            _prove_key(provider, attempt.label, attempt.account)
        lease = cls(
            number=attempt.number,
            label=attempt.label,
            provider=provider,
            prices=prices_of(attempt),
            disk_gib=attempt.disk_gib,
            gpu=attempt.gpu,
            ledger=ledger,
            clock=clock,
            account=attempt.account,
            instance_ids=list(attempt.instance_ids),
            knows_age=False,
        )
        if attempt.phase is Phase.LAUNCHING:
            lease._search()
            if not lease.instance_ids:
                ledger.record(Signal.GONE, attempt=lease.number, evidence="never created: the label stayed absent for the grace window")
                raise NeverCreated("the machine that was asked for had never been created")
        return lease

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.release(str(err) or kind.__name__ if kind and err is not None else "the work is done")

    def describe(self) -> Instance:
        """The machine as the cloud sees it now."""
        instance = self.provider.describe(self.instance_ids[0])
        self.seen = self.seen or instance.status is not InstanceStatus.GONE
        return instance

    def heed(self, instance: Instance) -> Decimal | None:
        """Meter by what the machine costs now. Returns what an hour cost before, None when that has not changed.

        A rise counts from when the old price was last seen, for nobody knows when it came; a fall from now, and not before the
        machine's age is known: time that is counted late is counted at the price of then.
        """
        now, last = self.ledger.now(), self._priced_at
        if instance.prices is None:
            return None
        self._priced_at = now
        live, before = _live(self.prices, instance.prices), self.prices.usd_per_hour(self.disk_gib)
        after = live.usd_per_hour(self.disk_gib)
        if abs(after - before) <= STIR * before:
            return None
        if after < before and (instance.status is not InstanceStatus.RUNNING or not self.knows_age):
            return None
        since = now if after < before else last or max(e.at for e in self.ledger.entries if e.attempt == self.number)
        self.prices = live
        self.ledger.record(
            "priced", attempt=self.number, prices=_as_text(live), usd_per_hour=after, was_usd_per_hour=before, since=since.isoformat()
        )
        return before

    def release(self, why: str, outcome: Mapping[str, Any] | None = None) -> None:
        """Destroy, and see that it is gone. May be called again. Raises `MayStillBill` when it cannot be seen.

        `outcome`: how the run ends with this; without it another machine may be rented.
        """
        attempt = self.ledger.book().attempts[self.number]
        if attempt.phase is Phase.GONE:
            return
        with contextlib.suppress(OSError):  # a full disk here must not keep a machine alive there
            self.ledger.record(Signal.GIVE_UP, attempt=self.number, why=why, outcome=outcome)
        try:
            if not self.instance_ids:
                self._search()
            known = attempt.phase not in {Phase.LAUNCHING, Phase.BOOTING, Phase.RELEASING} or self.seen
            evidence = destroy(
                self.provider,
                self.instance_ids,
                self.label,
                self.clock,
                account=self.account,
                known=known,
                others=self._others(),
                whole=not (self.ledger.book().attempts[self.number].guessed and self._has_a_twin()),
            )
        except MayStillBill:
            raise
        except BaseException as err:
            raise _cannot_tell(self.provider, self.label, err) from err
        self.ledger.record(Signal.GONE, attempt=self.number, evidence=evidence)

    def usage(self) -> Usage:
        """What the machine has used so far, by our own meter."""
        return usage_of(self.ledger.book().attempts[self.number])

    # -- inside ------------------------------------------------------------------------------------

    def _hold(self, instance_id: str, via: str) -> None:
        """Write an id down. The entry tells all that is needed to end the machine, should the intent have become unreadable."""
        if instance_id not in self.instance_ids:
            self.instance_ids.append(instance_id)
            self.ledger.record(
                Signal.LAUNCHED,
                attempt=self.number,
                instance_id=instance_id,
                via=via,
                provider=self.provider.name,
                label=self.label,
                gpu=self.gpu,
                usd_per_hour=self.prices.usd_per_hour(self.disk_gib),
                prices=_as_text(self.prices),
                disk_gib=self.disk_gib,
                account=self.account,
            )

    def _undo(self, err: BaseException) -> None:
        """Give back what a create that did not end well may have rented. Raises `MayStillBill` when that cannot be seen."""
        ids = err.instance_ids if isinstance(err, ProviderError) else ()
        if isinstance(err, CERTAIN) and not ids:
            self.ledger.record(Signal.REFUSED, attempt=self.number, why=str(err))
            return
        for instance_id in ids:
            with contextlib.suppress(OSError):  # see `release`
                self._hold(instance_id, "error")
        self.release(f"the create did not end well: {err or type(err).__name__}")

    def _others(self) -> frozenset[str]:
        """Instances of the run's other machines: a cloud that cuts labels shows all of a run under one."""
        return frozenset(id_ for a in self.ledger.book().attempts.values() if a.number != self.number for id_ in a.instance_ids)

    def _has_a_twin(self) -> bool:
        """Whether another machine of the run is in doubt: under a label that was cut, each may be the other."""
        return any(a.number != self.number and a.may_bill and not a.instance_ids for a in self.ledger.book().attempts.values())

    def _search(self) -> None:
        """Look for the label until it is found, or for the whole grace window.

        Counted from now: the intent's time of day is no measure, somebody may have set the clock since. What a look did not see
        counts for when it began: this computer may have slept in the middle of it.
        """
        begun = self.clock.monotonic_s()
        while True:
            is_late = self.clock.monotonic_s() >= begun + GRACE_S
            try:
                others = self._others()
                for found in self.provider.instances():
                    if not is_ours(found.label, self.label) or found.id in others:
                        continue
                    cut = found.label != self.label
                    if cut and self.instance_ids and self._has_a_twin():
                        continue  # no attempt rents more than one: this is the other's
                    with contextlib.suppress(OSError):  # see `release`
                        self._hold(found.id, CUT_LABEL if cut else "label")
                if not self.instance_ids:
                    _prove_key(self.provider, self.label, self.account)
            except ProviderError as err:
                if is_late:
                    raise _cannot_tell(self.provider, self.label, err) from err
            else:
                if self.instance_ids or is_late:
                    return
            self.clock.sleep(POLL_S)


def label_trouble(found: str, label: str) -> str:
    """What is wrong with the label that the cloud has kept; empty when it is whole."""
    if found == label:
        return ""
    if is_ours(found, label):
        return f"its label was cut to {found!r}: another computer's `lorry reap` finds it, and cannot tell when its time is over"
    return f"the cloud did not keep its label {label!r} but has {found!r}: without this computer nobody would find it"


def is_ours(found: str, label: str) -> bool:
    """Whether a machine's label is `label`, whole, or cut by its cloud somewhere behind the run's id."""
    return found == label or (label.startswith(found) and len(found) >= len(label.rpartition("-a")[0]) > 0)


def destroy(
    provider: Provider,
    instance_ids: Sequence[str],
    label: str,
    clock: Clock,
    *,
    account: str = "",
    known: bool = True,
    others: Collection[str] = (),
    whole: bool = True,
    patience_s: float = PATIENCE_S,
) -> str:
    """End the instances and watch until the cloud agrees; returns what was seen, for the ledger.

    Gone means, twice in a row: every instance is described as gone, a whole listing shows neither them nor the label, and the key
    still works and opens the `account` that rented, for to a stranger everything is absent. An instance that was never seen alive
    (`known`) may be so young that the cloud does not show it yet, and where the ids may not be all there is (not `whole`) one may be to
    come: it is looked for until the grace window is over, and once more, for this computer may have slept since it looked. `others` bear
    a label like this one and are somebody else's. Raises `MayStillBill` when all this was not seen within `patience_s`.
    """
    begun = clock.monotonic_s()
    ids, unseen = list(instance_ids), set() if known else set(instance_ids)
    clean, late, trouble = 0, 0, "it is still there"
    while True:
        looked = clock.monotonic_s() - begun
        late += looked >= patience_s
        for instance_id in ids:  # trouble with one must not spare the next
            lives, told = _end(provider, instance_id)
            trouble = told or trouble
            if lives:
                unseen.discard(instance_id)
                clean = 0
        try:
            left = [i for i in ids if provider.describe(i).status is not InstanceStatus.GONE]
            listed = {i.id for i in provider.instances() if i.id in ids or is_ours(i.label, label)} - {*others}
            _prove_key(provider, label, account)
        except Exception as err:  # noqa: BLE001  whatever it is: until it is seen to be gone, it may bill
            clean, trouble = 0, str(err) or type(err).__name__
        else:
            unseen -= {*left, *listed}
            clean = 0 if left or listed else clean + 1
            ids += sorted(listed - {*ids})
        if clean >= CLEAN_LOOKS and ((whole and not unseen) or looked >= GRACE_S):
            return f"{', '.join(ids) or label}: described as gone and absent from a whole listing, twice, with a key that works"
        if late and (not clean or late > LATE_LOOKS):
            raise MayStillBill(
                f"{provider.name} instance {', '.join(ids) or f'labelled {label}'} MAY STILL BE BILLING: {trouble}",
                hint=f"stop it by hand at {provider.console_url}, or run `lorry reap`; lorry goes on trying at its every command",
            )
        clock.sleep(LOOK_AGAIN_S if clean else POLL_S)


def _end(provider: Provider, instance_id: str) -> tuple[bool, str]:
    """Ask once for the end of an instance that is not gone. Returns whether it was seen alive, and the trouble, empty if there was none."""
    lives, trouble = False, ""
    try:
        if provider.describe(instance_id).status is InstanceStatus.GONE:
            return False, ""
        lives = True
    except Exception as err:  # noqa: BLE001  then it is ended unseen
        trouble = str(err) or type(err).__name__
    try:
        provider.terminate(instance_id)
    except Exception as err:  # noqa: BLE001  see `destroy`
        return lives, str(err) or type(err).__name__
    crashpoint("terminated")
    return lives, trouble


def _cannot_tell(provider: Provider, label: str, err: BaseException) -> MayStillBill:
    return MayStillBill(
        f"{provider.name} may have rented a machine labelled {label}, and cannot be asked: {err or type(err).__name__}",
        hint=f"look at {provider.console_url}; run `lorry reap` when it answers again",
    )


def _as_text(prices: Prices) -> dict[str, str]:
    return {name: str(getattr(prices, name)) for name in Prices.__dataclass_fields__}


def prices_of(attempt: Attempt) -> Prices:
    """The rate card as it was written into the ledger."""
    return _prices(tuple(attempt.prices.items()))


@lru_cache(maxsize=64)
def _prices(written: tuple[tuple[str, str], ...]) -> Prices:
    """A run asks for the same few a thousand times."""
    return Prices(**{name: Decimal(value) for name, value in written})


def _live(known: Prices, told: Prices) -> Prices:
    """The rate card as a machine tells it; not every cloud repeats there what traffic costs."""
    return replace(
        told,
        upload_usd_per_gib=max(known.upload_usd_per_gib, told.upload_usd_per_gib),
        download_usd_per_gib=max(known.download_usd_per_gib, told.download_usd_per_gib),
    )


def _prove_key(provider: Provider, label: str, account: str) -> None:
    """See that the key works, and opens the account that rented: to a stranger everything is absent. Raises `WrongAccount`."""
    told = provider.account().id
    if account and told and told != account:
        raise WrongAccount(
            f"{label} was rented at {provider.name} by account {account}; the key in use is of account {told}",
            hint=f"use a key of that account (lorry login {provider.name}): to any other its machines look gone while they bill",
        )


def usage_of(attempt: Attempt) -> Usage:
    """What the machine of an attempt has used, by our own meter: from the intent until it was seen to be gone. Never made: nothing."""
    never_was = attempt.gone_at is not None and not attempt.instance_ids
    return Usage(
        prices=prices_of(attempt),
        earlier=tuple((until, _prices(tuple(card.items()))) for until, card in attempt.earlier),
        disk_gib=attempt.disk_gib,
        started_at=attempt.intended_at,
        ended_at=attempt.intended_at if never_was else attempt.gone_at,
        uploaded_bytes=attempt.uploaded_bytes + attempt.fetched_bytes,
        downloaded_bytes=attempt.downloaded_bytes,
    )
