"""Every way in which renting goes wrong, over the faces of three clouds: what the user is told, what was rented, what the meter has seen.

The real program rents (`rent.rented`, from plan to log-in), real machines boot, the cloud's faults come by script. Beside lorry's own words
stands the market's bill, which lorry cannot see: no more machines than creates that took effect, all ended, and none dearer than told.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fakes import SilentView, an_order

from orchestrator.closing import close
from orchestrator.errors import LorryError
from orchestrator.home import RunFolder
from orchestrator.machines.reaching import MISSED_LOOKS
from orchestrator.plan import make_plan
from orchestrator.progress import Progress
from orchestrator.rent import rented
from orchestrator.safety.interrupts import Interrupts
from orchestrator.trip import Tools, Trip
from providers.base import Provider, Requirements
from providers.errors import ProviderError
from providers.runpod import RunPod
from providers.sandbox.faults import Fault
from providers.sandbox.happenings import Happening
from providers.sandbox.rentals import BootTimes
from providers.sandbox.server import Server
from providers.tensordock import TensorDock
from providers.vast import Vast

BOOT = BootTimes(created_s=0.05, loading_s=0.05)
CREATE = {"vast": "vast.create", "runpod": "runpod.create", "tensordock": "tensordock.create"}
LIST = {"vast": "vast.list", "runpod": "runpod.list", "tensordock": "tensordock.list"}
SHOW = {"vast": "vast.show", "runpod": "runpod.show", "tensordock": "tensordock.show"}

ON_ALL = pytest.mark.parametrize("face", ["vast", "runpod", "tensordock"])


class Hurried:
    """Real time in which nobody waits long: what was slept less than asked for has passed all the same."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._skipped_s)

    def monotonic_s(self) -> float:
        return time.monotonic() + self._skipped_s

    def sleep(self, seconds: float) -> None:
        real_s = min(seconds, 0.01)
        time.sleep(real_s)
        self._skipped_s += seconds - real_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What came of one try to rent."""

    receipt: dict[str, Any]
    said: str
    """All that was said on the way."""
    rented: int
    """By the meter."""
    creates: int
    """Requests that the cloud had."""

    @property
    def code(self) -> int:
        return int(self.receipt["exit_code"])


@dataclass
class Rehearsal:
    """A run that is about to rent, at one face of a practice cloud."""

    server: Server
    folder: Path
    face: str
    boot_timeout_s: float = 6000.0
    interruptible: bool = False
    tries: int | None = None
    """How many offers there are to try; None: all that fit."""

    def provider(self) -> Provider:
        told = {name: str(value) for name, value in self.server.descriptor.document().items()}
        match self.face:
            case "vast":
                return Vast(told["vast_api_key"], url=told["vast_url"], intervals_s={})
            case "runpod":
                urls = {"url": told["runpod_rest_url"], "graphql_url": told["runpod_graphql_url"]}
                return RunPod(told["runpod_api_key"], **urls, intervals_s={})
            case _:
                return TensorDock(told["tensordock_api_key"], url=told["tensordock_url"], intervals_s={})

    def script(self, *faults: Fault) -> None:
        self.server.faults.set(faults)

    def rent(self, before: Callable[[Trip], None] = lambda _: None) -> Told:
        """As `lorry run` does: until a machine lets us in and is what was offered, and then give it back."""
        provider, clock, view, folder = self.provider(), Hurried(), SilentView(), RunFolder(self.folder / "run")
        folder.path.mkdir()
        wanted = Requirements(disk_gib=40, max_usd_per_hour=Decimal("1.5"), interruptible=self.interruptible)
        order = an_order(
            folder, providers=(self.face,), requirements=wanted, boot_timeout_s=self.boot_timeout_s, unguarded=True, image="img"
        )
        ledger = folder.ledger(clock)  # type: ignore[arg-type]
        ledger.record("opened", cap_usd=order.cap_usd, run=order.run)
        tools = Tools(clock=clock, view=view, interrupts=Interrupts(), provider=lambda _: provider)  # type: ignore[arg-type]
        plan = make_plan(order.load, provider.offers(wanted), wanted, cap_usd=order.cap_usd)
        fit = plan.candidates[: self.tries]
        trip = Trip(order=order, folder=folder, ledger=ledger, tools=tools, progress=Progress(order.job_names), candidates=lambda: fit)
        known = {machine.id for machine in self.server.market.bill().machines}
        before(trip)
        error: LorryError | ProviderError | None = None
        try:
            with rented(trip):
                pass
        except (LorryError, ProviderError) as err:
            error = err
        receipt = close(trip, error)
        creates = self.server.faults.calls().get(CREATE[self.face], 0)
        return self._agreed(Told(receipt=receipt, said="\n".join(view.said), rented=0, creates=creates), known)

    def _agreed(self, told: Told, known: set[str]) -> Told:
        """The meter's side: nothing lives, every machine is in the receipt, and none of it was dearer than our own meter says."""
        bill = self.server.market.bill()
        machines = [machine for machine in bill.machines if machine.id not in known]
        assert not bill.live
        assert {machine.id for machine in machines} <= {str(one["id"]) for one in told.receipt["machines"]}
        assert all(one["destroyed_verified"] for one in told.receipt["machines"])
        spent = sum((machine.total_usd for machine in machines), Decimal(0))
        assert spent <= Decimal(str(told.receipt["cost"]["metered_usd"])) + Decimal("1e-6")
        return replace(told, rented=len(machines))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("faults"), boot=BOOT) as server:
        yield server


@pytest.fixture
def at(server: Server, tmp_path: Path) -> Iterator[Callable[..., Rehearsal]]:
    yield lambda face, **options: Rehearsal(server, tmp_path, face, **options)
    server.faults.set([])
    server.market.boot = BOOT
    server.market.state.floors.clear()
    server.market.state.gpu_prices.clear()
    server.happen(Happening(what="limits", scale=0))


At = Callable[..., Rehearsal]


@ON_ALL
def test_without_a_fault_one_machine_is_rented_and_given_back(at: At, face: str) -> None:
    told = at(face).rent()
    assert (told.code, told.rented, told.creates) == (0, 1, 1), told


# 2.1 search and price


GONE = {
    "vast": (404, {"success": False, "error": "no_such_ask", "msg": "error 404/3603: no_such_ask Instance type by id 1 is not available."}),
    "runpod": (400, {"status": 400, "detail": "There are no longer any instances available with the requested specifications."}),
    "tensordock": (200, {"status": 409, "error": "GPU is not available"}),
}


@ON_ALL
def test_an_offer_that_vanished_is_told_and_the_next_is_rented(at: At, face: str) -> None:
    status, body = GONE[face]
    here = at(face)
    here.script(Fault(endpoint=CREATE[face], call=1, status=status, body=json.dumps(body)))
    told = here.rent()
    assert (told.code, told.rented, told.creates) == (0, 1, 2)
    assert "available" in told.said
    assert "trying the next" in told.said


@ON_ALL
def test_when_every_offer_has_vanished_the_reasons_are_listed_and_nothing_is_rented(at: At, face: str) -> None:
    status, body = GONE[face]
    here = at(face)
    here.script(Fault(endpoint=CREATE[face], status=status, body=json.dumps(body)))
    told = here.rent()
    assert (told.code, told.rented) == (4, 0)
    assert 1 < told.creates < 40, "a bound on tries"
    assert told.receipt["machines"] == [] or all(one["destroyed_verified"] for one in told.receipt["machines"])


def test_a_machine_that_costs_more_than_its_offer_is_given_back_and_the_next_is_taken(at: At) -> None:
    """Vast's host changed the price between search and rent."""
    here = at("vast")

    def raise_the_best(trip: Trip) -> None:
        best = trip.candidates()[0].offer
        here.server.happen(Happening(what="offer_price", offer=best.id, usd_per_hour=best.prices.gpu_usd_per_hour * 3))

    told = here.rent(raise_the_best)
    assert (told.code, told.rented, told.creates) == (0, 2, 2)
    assert "was offered" in told.said
    assert told.receipt["machines"][0]["destroyed_verified"] is True


NO_MONEY = {
    "vast": (400, {"success": False, "error": "insufficient_credit", "msg": "Your account lacks credit"}),
    "runpod": (402, {"status": 402, "detail": "Insufficient balance: deploying this pod needs at least $0.69."}),
    "tensordock": (402, {"error": "You need at least $1 in your balance"}),
}


@ON_ALL
def test_an_account_without_money_is_told_once_with_the_way_out_and_no_storm_of_tries(at: At, face: str) -> None:
    status, body = NO_MONEY[face]
    here = at(face)
    here.script(Fault(endpoint=CREATE[face], status=status, body=json.dumps(body)))
    told = here.rent()
    assert (told.code, told.rented, told.creates) == (4, 0, 1)


# 2.2 create

LOST = [
    pytest.param({"drop": "after"}, id="12 the line was cut after the effect"),
    pytest.param({"truncate": 20}, id="12 half an answer"),
    pytest.param({"status": 500, "effect": True}, id="13 500 and created"),
    pytest.param({"status": 502, "body": "<html>", "effect": True}, id="13 502 and created"),
    pytest.param({"body": "{}", "effect": True}, id="15 no id"),
    pytest.param({"late_s": 0.3}, id="16 it lands late"),
]


@ON_ALL
@pytest.mark.parametrize("fault", LOST)
def test_a_create_in_doubt_is_sent_once_found_by_its_label_and_ended(at: At, face: str, fault: dict[str, Any]) -> None:
    here = at(face, tries=1)
    here.script(Fault(endpoint=CREATE[face], **fault))
    told = here.rent()
    assert (told.code, told.rented, told.creates) == (4, 1, 1), "never a second create, never a machine that nobody ended"
    (machine,) = told.receipt["machines"]
    assert machine["outcome"].startswith("the create did not end well")


@ON_ALL
def test_after_a_create_in_doubt_the_next_offer_does_the_job(at: At, face: str) -> None:
    here = at(face)
    here.script(Fault(endpoint=CREATE[face], call=1, status=500, effect=True))
    told = here.rent()
    assert (told.code, told.rented, told.creates) == (0, 2, 2), "one for each create, and no more"
    assert "trying the next" in told.said


@ON_ALL
def test_a_create_that_never_arrived_is_looked_for_and_costs_nothing(at: At, face: str) -> None:
    here = at(face, tries=1)
    here.script(Fault(endpoint=CREATE[face], drop="before"))
    told = here.rent()
    assert (told.code, told.rented, told.creates) == (4, 0, 1)
    assert told.receipt["cost"]["metered_usd"] == 0


def test_a_bid_below_the_market_is_an_error_with_an_id_and_that_machine_is_ended(at: At) -> None:
    """Vast refuses, and leaves a stopped machine whose disk bills."""
    here = at("vast", interruptible=True)

    def outbid_the_best(trip: Trip) -> None:
        best = next(one for one in trip.candidates() if one.offer.interruptible)
        trip.candidates = lambda: (best,)
        here.server.happen(Happening(what="floor", offer=best.offer.id.partition("/")[0], usd_per_hour=Decimal(9)))

    told = here.rent(outbid_the_best)
    assert (told.code, told.rented, told.creates) == (4, 1, 1)
    assert "below the market" in told.said


@ON_ALL
def test_too_many_requests_rented_nothing(at: At, face: str) -> None:
    here = at(face, tries=1)
    here.script(Fault(endpoint=CREATE[face], status=429, body="{}", retry_after="2"))
    told = here.rent()
    assert (told.code, told.rented, told.creates) == (4, 0, 1)
    assert "429" in told.said


@ON_ALL
def test_a_listing_that_lags_or_fails_is_no_absence(at: At, face: str) -> None:
    """The create's answer was lost, and the first listings are old, broken or none at all."""
    here = at(face, tries=1)
    here.provider().instances()  # what a stale listing shows
    odd = (Fault(endpoint=LIST[face], call=n, **how) for n, how in enumerate(({"stale": True}, {"status": 503}, {"body": "{}"}), 1))
    here.script(Fault(endpoint=CREATE[face], drop="after"), *odd)
    told = here.rent()
    assert (told.code, told.rented, told.creates) == (4, 1, 1)


# 2.3 boot


@ON_ALL
def test_machines_that_boot_for_ever_are_given_back_one_after_the_other_within_a_bound(at: At, face: str) -> None:
    here = at(face, boot_timeout_s=5.0)
    here.server.market.boot = BootTimes(created_s=0.05, loading_s=1e6)
    told = here.rent()
    assert told.code == 4
    assert 1 <= told.rented == told.creates < 12
    assert "did not boot" in told.said


@ON_ALL
def test_an_address_that_comes_late_is_waited_for(at: At, face: str) -> None:
    here = at(face)
    here.server.happen(Happening(what="ports_late", seconds=0.7))
    told = here.rent()
    assert (told.code, told.rented) == (0, 1)


DEAD = {
    "vast": {"actual_status": "created", "status_msg": "Error response from daemon: OCI runtime create failed"},
    "runpod": {"status": "ERROR"},
    "tensordock": {"status": "error"},
}


@ON_ALL
def test_a_machine_that_is_dead_on_arrival_is_not_polled_till_the_deadline(at: At, face: str) -> None:
    here = at(face, boot_timeout_s=90000.0)
    number = here.server.market.state.next_id
    row: dict[str, Any] = {"id": number if face == "vast" else str(number), "label": "x", "name": "x"} | DEAD[face]
    body = json.dumps({"instances": row} if face == "vast" else row)
    here.script(
        *(Fault(endpoint=SHOW[face], call=look, body=body) for look in range(1, MISSED_LOOKS + 3))
    )  # and two while it is given back
    told = here.rent()
    assert (told.code, told.rented) == (0, 2)
    assert "did not boot: it is stopped" in told.said
