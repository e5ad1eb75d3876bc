"""The marketplace: accounts, offers, rentals and what state each rental is in.

Owns every rule of renting. Time comes from `clock`, machines from `Machines`, and money leaves as events for the meter, so that all of
it runs in memory under a test. Knows nothing of HTTP; the faces (plain now, others later) translate.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from providers.base import LaunchSpec, Offer

from .billing import Bill, Event, MachineBill, fold
from .cards import VARIABLE, as_offered, told
from .limits import Limits
from .machines import Boot, Machines
from .rentals import AccountRecord, BootTimes, MarketError, Out, Rental, State, Terms, View

ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LABEL_MAX = 256  # what Vast documents; ours stay far below
USUAL_FLOOR = Decimal("0.55")  # of the price on demand, where nobody bids more
EXPIRED_KEPT = timedelta(hours=48)


class Market:
    """One market. Not thread-safe: its server holds a lock."""

    def __init__(
        self,
        state: State,
        offers: Sequence[Offer],
        machines: Machines,
        *,
        now: Callable[[], datetime],
        bill: Callable[[Event], None],
        events: Callable[[], Sequence[Event]],
        save: Callable[[State], None],
        boot: BootTimes | None = None,
    ) -> None:
        self.state = state
        self.machines = machines
        self.now = now
        self._catalogue = {offer.id: offer for offer in offers}
        self._append = bill
        self._events = events
        self._save = save
        self.boot = boot or BootTimes()
        self.limits = Limits()
        self._recover()

    def _recover(self) -> None:
        """Finish what a killed server had begun: bills that lack their first line, folders that outlived their machine."""
        created = {event["machine"] for event in self._events() if event["event"] == "created"}
        for rental in list(self.state.rentals):
            if rental.id not in created:
                self._append(_created(rental))
            if self._ended_in_bill(rental.id):
                self.destroy(rental.account, rental.id)

    # Who asks

    def account(self, key: str) -> AccountRecord | None:
        return next((a for a in self.state.accounts if secrets.compare_digest(a.key.encode(), key.encode())), None)

    def rental_of_key(self, key: str) -> Rental | None:
        """The machine whose own key this is."""
        return next((r for r in self.state.rentals if secrets.compare_digest(r.key.encode(), key.encode())), None)

    def balance_usd(self, account: AccountRecord) -> Decimal:
        return account.credit_usd - sum((m.total_usd for m in self.bill().machines if m.account == account.name), Decimal(0))

    # What is for rent

    def offers(self, stock: str = "sandbox") -> list[Offer]:
        """Those of one face's stock that nobody holds. The stock is the offer's `provider`."""
        taken = {rental.offer.id for rental in self.state.rentals}
        return [self._priced(offer) for offer in self._catalogue.values() if offer.id not in taken and offer.provider == stock]

    def _priced(self, offer: Offer) -> Offer:
        return with_gpu_price(offer, self.state.gpu_prices.get(offer.id, offer.prices.gpu_usd_per_hour))

    def offer(self, offer_id: str) -> Offer | None:
        """Whoever holds it."""
        offer = self._catalogue.get(offer_id)
        return self._priced(offer) if offer else None

    def floor_usd_per_hour(self, offer_id: str) -> Decimal:
        """The least bid with which this offer runs now."""
        offer = self._catalogue[offer_id]
        usual = offer.prices.gpu_usd_per_hour * (1 if offer.interruptible else USUAL_FLOOR)
        return self.state.floors.get(offer_id, round(usual, 4))

    def create(
        self,
        account: AccountRecord,
        offer_id: str,
        spec: LaunchSpec,
        *,
        env: Mapping[str, str] | Callable[[Rental], Mapping[str, str]] = MappingProxyType({}),
        face_data: Mapping[str, Any] = MappingProxyType({}),
        stopped_usd_per_hour: Decimal | None = None,
        terms: Terms | None = None,
    ) -> Rental:
        """Rent `offer_id`. A bid below the floor is taken too: the machine is there, stopped, and its disk bills.

        `env`: what the market itself puts into the machine beside the customer's own. `stopped_usd_per_hour`: what it costs while it is
        stopped, where that is not the price of its disk.
        """
        self._check(account, offer_id, spec)
        terms = terms or Terms()
        rental = Rental(
            id=str(self.state.next_id),
            account=account.name,
            offer=self._offer_on(terms, offer_id),
            spec=spec,
            created_at=self.now(),
            key=secrets.token_hex(20),
            mark=secrets.token_hex(16),
            face_data=dict(face_data),
            stopped_usd_per_hour=stopped_usd_per_hour,
            terms=terms,
            gpu_waits=terms.gpu_from_running,
            stuck=self.state.stuck_next,
        )
        self.state.stuck_next = False
        if terms.bid_usd_per_hour is not None and terms.bid_usd_per_hour < self.floor_usd_per_hour(offer_id):
            rental = replace(rental, exited_at=rental.created_at, out=Out.BID, gpu_waits=True, status_text=str(Out.BID))
        theirs = env(rental) if callable(env) else env
        card = self.state.cards.pop("", None) or self.state.cards.get(offer_id) or as_offered(rental.offer)
        ours = {"SANDBOX_INSTANCE_ID": rental.id, "SANDBOX_INSTANCE_KEY": rental.key, VARIABLE: told(card)}
        line = self.state.lines.pop("", None) or self.state.lines.get(offer_id, 0.0)
        rental = replace(rental, machine_env={**ours, **theirs, **spec.env}, bytes_per_s=line)
        self.state.next_id += 1
        self.state.rentals.append(rental)
        self._save(self.state)
        self._append(_created(rental))
        try:
            if rental.exited_at is None:
                self._boot_machine(rental)
        except OSError as error:
            self.destroy(account.name, rental.id)
            raise MarketError(503, "no_machine", f"this computer could not start a machine: {error}") from error
        return rental

    def _offer_on(self, terms: Terms, offer_id: str) -> Offer:
        """As it is paid for: who bids pays the bid."""
        offer = self._priced(self._catalogue[offer_id])
        return offer if terms.bid_usd_per_hour is None else with_gpu_price(offer, terms.bid_usd_per_hour)

    def _boot_machine(self, rental: Rental) -> None:
        spec = rental.spec
        boot = Boot(
            mark=rental.mark,
            ssh_public_key=spec.ssh_public_key,
            env=rental.machine_env,
            onstart=spec.onstart,
            bytes_per_s=rental.bytes_per_s,
        )
        self.machines.start(rental.id, boot)

    def _check(self, account: AccountRecord, offer_id: str, spec: LaunchSpec) -> None:
        offer = self._catalogue.get(offer_id)
        if offer is None:
            raise MarketError(404, "no_such_offer", f"there is no offer {offer_id}")
        if offer_id in {rental.offer.id for rental in self.state.rentals}:
            raise MarketError(409, "offer_taken", f"offer {offer_id} has just been rented by somebody else")
        if not 1 <= spec.disk_gib <= offer.disk_gib:
            raise MarketError(422, "invalid_request", f"offer {offer_id} has 1 to {offer.disk_gib} GiB of disk, asked for {spec.disk_gib}")
        if bad := [name for name in spec.env if not ENV_NAME.fullmatch(name)]:
            raise MarketError(422, "invalid_request", f"not a name of an environment variable: {bad[0]!r}")
        if any("\0" in value for value in spec.env.values()):
            raise MarketError(422, "invalid_request", "an environment variable cannot hold a NUL")
        if len(spec.label) > LABEL_MAX:
            raise MarketError(422, "invalid_request", f"a label has at most {LABEL_MAX} characters, got {len(spec.label)}")
        if any(not line.startswith(("ssh-", "ecdsa-", "sk-")) for line in spec.ssh_public_key.splitlines()):
            raise MarketError(422, "invalid_request", "SSH keys must be in OpenSSH format, one a line")
        if self.balance_usd(account) <= 0:
            raise MarketError(402, "no_credit", f"account {account.name} has no credit left")

    # What is rented

    def rentals(self, account: AccountRecord) -> list[View]:
        """All of this account, oldest first."""
        self.tick()
        return [self._view(rental) for rental in self.state.rentals if rental.account == account.name]

    def show(self, account: str, rental_id: str) -> View:
        self.tick()
        return self._view(self._find(account, rental_id))

    def destroy(self, account: str, rental_id: str) -> None:
        """End the processes, then the bill, then the folder: never a bill that ended before its machine."""
        rental = self._find(account, rental_id)
        seen = self.machines.end(rental.id, rental.mark)
        ended = {"event": "ended", "at": self.now().isoformat(), "machine": rental.id}
        if not self._ended_in_bill(rental.id):  # else a server was killed between the next lines
            self._append(ended | {"up_bytes": seen.up_bytes, "down_bytes": seen.down_bytes})
        self.machines.wipe(rental.id)
        self.state.rentals.remove(rental)
        self._save(self.state)

    def stop(self, account: str, rental_id: str) -> None:
        """End the processes and keep the disk, which bills on. Nothing happens to one that is stopped."""
        rental = self._find(account, rental_id)
        if rental.exited_at is None:
            self._exit(rental, "stopped by its user", asked=True)

    def restart(self, account: str, rental_id: str, *, fresh_disk: bool = False) -> None:
        """Boot a stopped one again, with another port. `fresh_disk`: what was on it is gone."""
        rental = self._find(account, rental_id)
        if rental.exited_at is None:
            return
        if fresh_disk:
            self.machines.wipe(rental.id)
        waits = rental.terms.gpu_from_running
        rental = self._change(rental, exited_at=None, status_text="", asked_to_stop=False, out=None, started_at=self.now(), gpu_waits=waits)
        if not waits:
            self._bill(rental, "gpu_on")
        self._boot_machine(rental)

    def reprice(self, account: str, rental_id: str, gpu_usd_per_hour: Decimal) -> None:
        """Another GPU price from now on; for who bids, another bid."""
        rental = self._find(account, rental_id)
        terms = rental.terms if rental.terms.bid_usd_per_hour is None else replace(rental.terms, bid_usd_per_hour=gpu_usd_per_hour)
        self._bill(rental, "price", gpu_usd_per_hour=str(gpu_usd_per_hour))
        self._change(rental, offer=with_gpu_price(rental.offer, gpu_usd_per_hour), terms=terms, announced_usd_per_hour=None)
        self.tick()

    def lose_host(self, account: str, rental_id: str, *, lost: bool) -> None:
        """Its host falls off the net, or comes back with everything as it was."""
        rental = self._find(account, rental_id)
        if rental.offline == lost:
            return
        self.machines.freeze(rental.id, frozen=lost)
        if rental.exited_at is None and not rental.gpu_waits:
            self._append({"event": "gpu_off" if lost else "gpu_on", "at": self.now().isoformat(), "machine": rental.id})
        self._bill(rental, "disk_off" if lost else "disk_on")
        self._change(rental, offline=lost)

    def _bill(self, rental: Rental, event: str, **more: str) -> None:
        self._append({"event": event, "at": self.now().isoformat(), "machine": rental.id} | more)

    def update(self, account: str, rental_id: str, **changes: Any) -> Rental:
        """Change what is known of a rental: `spec` for another label, `face_data`."""
        return self._change(self._find(account, rental_id), **changes)

    def _change(self, rental: Rental, **changes: Any) -> Rental:
        changed = replace(rental, **changes)
        self.state.rentals[self.state.rentals.index(rental)] = changed
        self._save(self.state)
        return changed

    def _exit(self, rental: Rental, text: str, *, asked: bool = False, out: Out | None = None) -> None:
        at = self.now()
        self.machines.end(rental.id, rental.mark)
        self._append({"event": "gpu_off", "at": at.isoformat(), "machine": rental.id})
        self._change(rental, exited_at=at, status_text=text, asked_to_stop=asked, out=out)

    def set_ssh_keys(self, account: AccountRecord, keys: Sequence[str]) -> None:
        """The keys that the customer leaves with the cloud from now on."""
        index = self.state.accounts.index(account)
        self.state.accounts[index] = replace(account, ssh_keys=tuple(keys))
        self._save(self.state)

    def destroy_all(self) -> None:
        for rental in list(self.state.rentals):
            self.destroy(rental.account, rental.id)

    def end_all(self) -> None:
        """End the processes and write nothing: for a market whose folder is gone."""
        for rental in self.state.rentals:
            self.machines.end(rental.id, rental.mark)

    def events(self) -> Sequence[Event]:
        """The meter's log so far."""
        return self._events()

    def bill(self) -> Bill:
        """All accounts' charges so far; traffic of living machines included."""
        bill = fold(self._events(), self.now())
        for machine in bill.machines:
            if machine.live:
                seen = self.machines.look(machine.id)
                machine.up_bytes, machine.down_bytes = seen.up_bytes, seen.down_bytes
        return bill

    def charges(self, account: AccountRecord, rental_id: str) -> MachineBill:
        machine = self.bill().of(rental_id)
        if machine is None or machine.account != account.name:
            raise MarketError(404, "no_such_instance", f"account {account.name} never had an instance {rental_id}")
        return machine

    def tick(self) -> None:
        """Notice machines whose init has ended: the GPU meter stops, strays end, the disk goes on billing. Keep all terms."""
        for rental in list(self.state.rentals):
            if rental.exited_at is None and not self.machines.look(rental.id).alive:
                text = self.machines.boot_log(rental.id).strip().rpartition("\n")[2]
                self._exit(rental, f"the machine's init has ended. {text}".strip())
            elif not rental.offline:
                self._keep_terms(rental)

    def _keep_terms(self, rental: Rental) -> None:
        """Contracts end, bids are outbid and win again, credit is used up, and a GPU that runs at last is billed."""
        terms, now = rental.terms, self.now()
        outbid = terms.bid_usd_per_hour is not None and terms.bid_usd_per_hour < self.floor_usd_per_hour(rental.offer.id)
        if terms.ends_at and now >= terms.ends_at + EXPIRED_KEPT:
            self.destroy(rental.account, rental.id)
        elif rental.exited_at is not None:
            if rental.out is Out.BID and not outbid:
                self.restart(rental.account, rental.id)
        elif terms.ends_at and now >= terms.ends_at:
            self._exit(rental, str(Out.EXPIRED), out=Out.EXPIRED)
        elif outbid:
            self._exit(rental, str(Out.BID), out=Out.BID)
        elif terms.prepaid and self._broke(rental.account):
            self._exit(rental, str(Out.CREDIT), out=Out.CREDIT)
        elif self._view(rental).status == "running":
            for key in rental.ssh_keys:
                self.machines.authorize(rental.id, key)
            if rental.gpu_waits:
                self._bill(rental, "gpu_on")
                self._change(rental, gpu_waits=False)

    def _broke(self, account: str) -> bool:
        return any(one.name == account and self.balance_usd(one) <= 0 for one in self.state.accounts)

    def _view(self, rental: Rental) -> View:
        seen = self.machines.look(rental.id)
        age = self.now() - rental.booted_at
        status, text = "running", ""
        if rental.offline:
            status, text = "offline", "the host cannot be reached"
        elif rental.exited_at:
            status, text = "exited", rental.status_text
        elif age < timedelta(seconds=self.boot.created_s):
            status, text = "created", "waiting for the machine"
        elif rental.stuck or age < timedelta(seconds=self.boot.created_s + self.boot.loading_s) or seen.port is None:
            status, text = "loading", f"pulling {rental.spec.image}"
        return View(rental=rental, status=status, status_text=text, seen=seen)

    def _find(self, account: str, rental_id: str) -> Rental:
        for rental in self.state.rentals:
            if rental.id == rental_id and rental.account == account:
                return rental
        raise MarketError(404, "no_such_instance", f"there is no instance {rental_id}")

    def _ended_in_bill(self, rental_id: str) -> bool:
        return any(e["event"] == "ended" and e["machine"] == rental_id for e in self._events())


def _created(rental: Rental) -> Event:
    stopped = {} if rental.stopped_usd_per_hour is None else {"stopped_usd_per_hour": str(rental.stopped_usd_per_hour)}
    return (
        stopped
        | {
            "event": "created",
            "at": rental.created_at.isoformat(),
            "machine": rental.id,
            "account": rental.account,
            "label": rental.spec.label,
            "offer": rental.offer.id,
            "gpu": rental.offer.gpu_name,
            "disk_gib": rental.spec.disk_gib,
            "prices": {name: str(price) for name, price in asdict(rental.offer.prices).items()},
        }
        | ({"gpu_waits": True} if rental.gpu_waits else {})
    )


def with_gpu_price(offer: Offer, gpu_usd_per_hour: Decimal) -> Offer:
    """The same machine for another price."""
    return replace(offer, prices=replace(offer.prices, gpu_usd_per_hour=gpu_usd_per_hour))
