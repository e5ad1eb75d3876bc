"""What a person reads before saying yes: what it costs at worst, and who could not be held to it."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import PRICES, FakeClock, FakeCloud, down, offer

from orchestrator.errors import NoOffer
from orchestrator.lease import PATIENCE_S
from orchestrator.pricing.worst import OVER_S, account_of, guardable, worst_case
from providers.base import Account, Prices, SelfDestroy

CAP = Decimal(5)


def best(**prices: str) -> Any:
    card = Prices(**{name: Decimal(value) for name, value in prices.items()}) if prices else PRICES
    return SimpleNamespace(offer=offer(prices=card))


def account(balance: str | None = "12.4", *, auto_pay: bool | None = False) -> Account:
    return Account(name="me", balance_usd=Decimal(balance) if balance else None, auto_pay=auto_pay)


def test_the_worst_is_the_cap_and_some_minutes_else_the_balance():
    (line, else_line) = worst_case(best(), 40, CAP, account())
    assert line == (
        "at worst you pay $5.00, the cap, and $0.03 for up to 3 minutes more until the machine is seen to be gone, "
        "while this computer, the machine itself, or `lorry reap` on any other can reach fake"
    )
    assert else_line == "if none of them can: $12.40, all that is prepaid at fake; auto-pay is off"
    assert OVER_S == PATIENCE_S == 180, "docs/money.md and these words say three minutes"


@pytest.mark.parametrize(
    ("whose", "words"),
    [
        (account(auto_pay=True), "there is no limit, because auto-pay is on at fake: turn it off there"),
        (account(auto_pay=None), "$12.40, all that is prepaid at fake; more if auto-pay is on there, so turn it off"),
        (account(None), "all that is prepaid at fake; auto-pay is off"),
        (account(None, auto_pay=None), "all that is prepaid at fake; more if auto-pay is on there, so turn it off"),
        (None, "all that is prepaid at fake; more if auto-pay is on there, so turn it off"),
    ],
)
def test_no_balance_is_promised_as_a_limit_where_a_card_is_charged(whose: Account | None, words: str):
    assert worst_case(best(), 40, CAP, whose)[1] == f"if none of them can: {words}"


def test_what_costs_nothing_has_no_worst_case():
    assert worst_case(best(gpu_usd_per_hour="0"), 40, CAP, None) == []
    assert worst_case(best(gpu_usd_per_hour="0", disk_usd_per_gib_hour="0.001"), 40, CAP, None) != []


def test_a_few_minutes_are_never_told_to_cost_nothing():
    assert "$0.01 for up to 3 minutes" in worst_case(best(gpu_usd_per_hour="0.0001"), 40, CAP, None)[0]


def tools(*guarded: str) -> Any:
    call = SelfDestroy(method="DELETE", url="u", key="k", id_env="ID")
    return SimpleNamespace(provider=lambda name: SimpleNamespace(self_destroy=call if name in guarded else None))


def test_machines_that_cannot_end_themselves_are_not_rented_unless_they_are_free():
    held, loose = offer("1", provider="held"), offer("2", provider="loose")
    free = offer("3", provider="loose", prices=Prices(gpu_usd_per_hour=Decimal(0)))
    assert guardable([held, loose, free], tools("held")) == [held, free]
    assert guardable([free], tools()) == [free]
    assert guardable([], tools()) == []


def test_where_there_are_no_others_the_refusal_says_what_it_would_mean_and_the_way_on():
    with pytest.raises(NoOffer, match="machines of loose cannot end themselves: should this computer be lost") as caught:
        guardable([offer(provider="loose")], tools())
    assert "--unguarded" in caught.value.hint
    assert caught.value.exit_code == 4


def test_a_cloud_that_does_not_tell_its_balance_keeps_nobody_from_renting(clock: FakeClock):
    cloud = FakeCloud(clock)
    assert account_of(cloud) == Account(name="fake")  # type: ignore[arg-type]
    cloud.plot.fail_call = lambda name, _: down() if name == "account" else None
    assert account_of(cloud) is None  # type: ignore[arg-type]
