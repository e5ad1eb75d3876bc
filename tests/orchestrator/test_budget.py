"""Money arithmetic: exact, never backwards, and the cap always leaves the way out."""

from __future__ import annotations

import itertools
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from fakes import PRICES, T0
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.budget import GIB, MOST_HOURS, WAY_OUT_S, Usage, lifetime_s, rounded_up, show_usd, spent_usd, time_usd, traffic_usd
from providers.base import Prices

CENTS = st.decimals(0, 20, places=4)
PRICE_LISTS = st.builds(
    Prices, gpu_usd_per_hour=CENTS, disk_usd_per_gib_hour=st.decimals(0, 1, places=6), upload_usd_per_gib=CENTS, download_usd_per_gib=CENTS
)
MICROSECONDS = st.integers(0, 40 * 24 * 3600 * 10**6)
MOMENTS = st.builds(lambda us: T0 + timedelta(microseconds=us), MICROSECONDS)
USAGES = st.builds(
    Usage,
    prices=PRICE_LISTS,
    disk_gib=st.integers(0, 2000),
    earlier=st.lists(st.tuples(MOMENTS, PRICE_LISTS), max_size=3).map(lambda cards: tuple(sorted(cards, key=lambda card: card[0]))),
    started_at=MOMENTS,
    ended_at=st.none(),
    uploaded_bytes=st.integers(0, 2**44),
    downloaded_bytes=st.integers(0, 2**44),
)


def test_an_hour_costs_the_hourly_price_and_nothing_is_lost_to_rounding():
    usage = Usage(prices=PRICES, disk_gib=50, started_at=T0, uploaded_bytes=GIB, downloaded_bytes=2 * GIB)
    assert usage.usd(T0 + timedelta(hours=1)) == Decimal("0.40") + 50 * Decimal("0.0002") + Decimal("0.01") + 2 * Decimal("0.02")


@given(usage=USAGES, us=MICROSECONDS)
def test_the_sum_is_that_of_exact_fractions(usage: Usage, us: int):
    """The oracle computes with fractions, between every two moments at which the price may change; 28 digits are as good as exact."""
    now = T0 + timedelta(microseconds=us)
    moments = sorted({usage.started_at, now, *(until for until, _ in usage.earlier)})
    exact = Fraction(0)
    for a, b in itertools.pairwise(m for m in moments if usage.started_at <= m <= now):
        card = next((prices for until, prices in usage.earlier if b <= until), usage.prices)
        hours = Fraction((b - a) // timedelta(microseconds=1), 3600 * 10**6)
        exact += hours * (Fraction(card.gpu_usd_per_hour) + Fraction(card.disk_usd_per_gib_hour) * usage.disk_gib)
    exact += max(
        (Fraction(p.upload_usd_per_gib) * usage.uploaded_bytes + Fraction(p.download_usd_per_gib) * usage.downloaded_bytes) / GIB
        for p in (usage.prices, *(card for _, card in usage.earlier))
    )
    assert abs(Fraction(usage.usd(now)) - exact) < Fraction(1, 10**15)


@given(usages=st.lists(USAGES, max_size=4), us=MICROSECONDS, later=MICROSECONDS)
def test_what_is_spent_never_shrinks(usages: list[Usage], us: int, later: int):
    now = T0 + timedelta(microseconds=us)
    assert spent_usd(usages, now) <= spent_usd(usages, now + timedelta(microseconds=later))
    assert spent_usd(usages, now) == sum((u.usd(now) for u in usages), Decimal(0))
    assert spent_usd(usages, now) >= 0


@given(usage=USAGES, us=MICROSECONDS)
def test_a_clock_that_was_set_back_gives_nothing_back(usage: Usage, us: int):
    cards = (usage.prices, *(card for _, card in usage.earlier))
    traffic = max(traffic_usd(card, usage.uploaded_bytes, usage.downloaded_bytes) for card in cards)
    assert usage.usd(usage.started_at - timedelta(microseconds=us)) == traffic


@given(
    cap=st.decimals(0, 100, places=2), spent=st.decimals(0, 100, places=6), prices=PRICE_LISTS, disk=st.integers(0, 500),
    down=st.integers(0, 2**36), max_hours=st.none() | st.floats(0.01, 1000), used=st.floats(0, 1e6),
)  # fmt: skip
def test_the_lifetime_leaves_the_way_out_within_the_cap(cap, spent, prices, disk, down, max_hours, used):
    """Training for so long, then saving, pulling and destroying, costs no more than the cap; nor does it take longer than allowed."""
    life = lifetime_s(cap_usd=cap, spent=spent, prices=prices, disk_gib=disk, download_bytes=down, max_hours=max_hours, used_s=used)
    assert life <= MOST_HOURS * 3600 - WAY_OUT_S
    if max_hours is not None:
        assert life + WAY_OUT_S <= max_hours * 3600 - used + 1e-6
    if life > 0:
        whole = spent + time_usd(prices, disk, life + WAY_OUT_S) + traffic_usd(prices, 0, down)
        assert whole <= cap + Decimal("1e-8")


def test_a_dearer_machine_lives_shorter_and_a_free_one_still_ends():
    def life(price: str) -> float:
        prices = Prices(gpu_usd_per_hour=Decimal(price))
        return lifetime_s(cap_usd=Decimal(3), spent=Decimal(1), prices=prices, disk_gib=0, download_bytes=0, max_hours=None, used_s=0)

    assert life("2") == pytest.approx(3600 - WAY_OUT_S)
    assert life("4") == pytest.approx(1800 - WAY_OUT_S)
    assert life("0") == MOST_HOURS * 3600 - WAY_OUT_S


@given(usd=st.decimals(0, 10**6, places=6))
def test_a_price_shown_is_never_below_the_price_paid(usd: Decimal):
    assert usd <= rounded_up(usd) < usd + Decimal("0.01")
    assert usd <= rounded_up(usd, Decimal("0.50")) < usd + Decimal("0.50")
    assert f"{rounded_up(usd)}".partition(".")[2] == f"{rounded_up(usd):.2f}".partition(".")[2]


@pytest.mark.parametrize(("usd", "shown"), [("0", "$0.0000"), ("0.01234", "$0.0123"), ("1", "$1.00"), ("12.345", "$12.34"), (2.5, "$2.50")])
def test_money_is_shown_in_cents_from_a_dollar_on(usd: object, shown: str):
    assert show_usd(Decimal(usd) if isinstance(usd, str) else usd) == shown  # type: ignore[arg-type]
