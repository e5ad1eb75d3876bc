"""From offers to a machine: what boots wrong, dearer or not at all is given back, seen to be gone, and the next one is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from fakes import FakeClock, FakeCloud, SilentView, an_order, offer

from orchestrator import rent
from orchestrator.errors import NoOffer
from orchestrator.home import RunFolder
from orchestrator.lease import WrongAccount, prices_of
from orchestrator.ledger import Ledger
from orchestrator.machines import reaching
from orchestrator.plan import make_plan
from orchestrator.progress import Progress
from orchestrator.rent import rented
from orchestrator.run import drive, go_on
from orchestrator.safety.interrupts import Interrupts
from orchestrator.trip import Tools, Trip
from providers.base import Account, Instance, InstanceStatus, SSHEndpoint


class Market(FakeCloud):
    """Two offers; the machines of neither come up as they should."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock, offers=[offer("o1", machine_id="m1"), offer("o2", machine_id="m2")])
        self.status = InstanceStatus.RUNNING
        self.times = Decimal(1)
        """How many times dearer the machine is than its offer."""

    def describe(self, instance_id: str) -> Instance:
        seen = super().describe(instance_id)
        if seen.status is InstanceStatus.GONE or seen.prices is None:
            return seen
        prices = replace(seen.prices, gpu_usd_per_hour=seen.prices.gpu_usd_per_hour * self.times)
        return replace(seen, status=self.status, prices=prices)


@pytest.fixture
def market() -> Market:
    return Market(FakeClock())


@pytest.fixture
def trip(tmp_path: Path, market: Market) -> Trip:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    order = an_order(folder)
    ledger = Ledger(folder.path / "ledger.jsonl", market.clock)
    ledger.record("opened", cap_usd=order.cap_usd, run=order.run)
    tools = Tools(clock=market.clock, view=SilentView(), interrupts=Interrupts(), provider=lambda _: market)  # type: ignore[arg-type, return-value]
    plan = make_plan(order.load, market.market, order.requirements, cap_usd=order.cap_usd)
    return Trip(
        order=order, folder=folder, ledger=ledger, tools=tools, progress=Progress(order.job_names), candidates=lambda: plan.candidates
    )


def said(trip: Trip) -> str:
    view = trip.tools.view
    assert isinstance(view, SilentView)
    return "\n".join(view.said)


def nobody_stays(trip: Trip, market: Market) -> None:
    with pytest.raises(NoOffer, match="no machine could be had"), rented(trip):
        pytest.fail("there is no machine to hold")
    assert market.creates == 2, "the next one was tried"
    assert market.billing() == []
    assert not trip.book().open_attempts


def test_a_machine_that_costs_more_than_its_offer_is_given_back(trip: Trip, market: Market):
    market.times = Decimal("1.5")
    nobody_stays(trip, market)
    assert "was offered" in said(trip)


def test_a_price_that_differs_by_rounding_is_taken(trip: Trip, market: Market):
    """It never answers over SSH here, so the wait goes on to the boot deadline."""
    market.times = Decimal("1.01")
    nobody_stays(trip, market)
    assert "was offered" not in said(trip)
    assert market.clock.passed_s >= 2 * trip.order.boot_timeout_s


def test_a_machine_that_stops_while_it_boots_is_not_waited_for(trip: Trip, market: Market):
    """An image that does not start, or a higher bid: every minute of waiting would be paid."""
    market.status = InstanceStatus.STOPPED
    nobody_stays(trip, market)
    assert "it is stopped" in said(trip)
    assert market.clock.passed_s < trip.order.boot_timeout_s


def test_a_machine_that_never_boots_is_given_back_at_the_deadline(trip: Trip, market: Market):
    market.status = InstanceStatus.PENDING
    nobody_stays(trip, market)
    assert "did not boot" in said(trip)


class Door:
    """A machine that lets everybody in."""

    def __init__(self, endpoint: SSHEndpoint, *_: object) -> None:
        self.endpoint = endpoint

    def forget_host(self) -> None:
        pass

    def probe(self) -> bool:
        return True

    def connect(self) -> str:
        return "SHA256:x"


@pytest.fixture
def open_doors(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    market.ssh = SSHEndpoint(host="127.0.0.1", port=22, user="root")
    monkeypatch.setattr(reaching, "Shell", Door)
    monkeypatch.setattr(reaching, "stranger", lambda *_: "")


@pytest.mark.usefixtures("open_doors")
def test_a_machine_whose_label_the_cloud_has_not_kept_is_given_back(trip: Trip, market: Market, monkeypatch: pytest.MonkeyPatch):
    """Without it no other computer, and no later one, would find the machine again."""
    plain = market.describe
    monkeypatch.setattr(market, "describe", lambda instance_id: replace(plain(instance_id), label="my-pod"))
    nobody_stays(trip, market)
    assert "did not keep its label" in said(trip)


@pytest.mark.usefixtures("open_doors")
def test_a_label_that_was_cut_behind_the_run_is_told_and_taken(trip: Trip, market: Market, monkeypatch: pytest.MonkeyPatch):
    plain = market.describe
    monkeypatch.setattr(market, "describe", lambda instance_id: replace(seen := plain(instance_id), label=seen.label.rpartition("-x")[0]))
    lease = rent._take(trip, trip.candidates()[0])
    assert lease is not None
    assert isinstance(reaching.reach(trip, lease), reaching.Machine)
    assert "its label was cut to" in said(trip)
    lease.release("done")


@pytest.mark.usefixtures("open_doors")
def test_what_a_dearer_machine_costs_while_it_is_given_back_is_on_the_meter(trip: Trip, market: Market):
    market.times = Decimal("1.5")
    market.plot.deaf_terminates = 20
    nobody_stays(trip, market)
    gpu = market.market[0].prices.gpu_usd_per_hour
    assert all(prices_of(attempt).gpu_usd_per_hour == gpu * market.times for attempt in trip.book().attempts.values())


@pytest.mark.parametrize("last", [drive, go_on])
def test_a_run_is_not_taken_up_with_the_key_of_another_account(
    trip: Trip, market: Market, monkeypatch: pytest.MonkeyPatch, last: Callable[[Trip], object]
):
    monkeypatch.setattr(market, "account", lambda: Account(name="ann", id="acc-1"))
    lease = rent._take(trip, trip.candidates()[0])
    assert lease is not None
    monkeypatch.setattr(market, "account", lambda: Account(name="bob", id="acc-2"))
    if last is go_on:
        trip.ledger.record("give_up", attempt=1, why="enough", outcome={"exit_code": 130, "message": "", "hint": ""})
    with pytest.raises(WrongAccount):
        last(trip)
    assert trip.book().closed is None
    assert trip.book().open_attempts
    assert len(market.billing()) == 1
