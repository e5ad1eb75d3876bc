"""Money arithmetic. PURE: time comes in as an argument, money is Decimal, USD.

A machine has four meters: GPU time, disk time (from creation on), bytes in and bytes out, whoever moved them. The cap of a run covers
all of them for every attempt, and keeps back what saving, pulling and destroying will cost. A price may change while it is paid: each
hour costs what it cost then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_UP, Decimal

from providers.base import Prices

GIB = 1024**3
_NOTHING = Decimal(0)
_TICK, _TICKS_PER_HOUR = timedelta(microseconds=1), 3_600_000_000
CENT = Decimal("0.01")

WAY_OUT_S = 300.0
"""Kept back for the last checkpoint, the final pull and the destroy; the longest save of a large adapter
takes under a minute, a destroy seldom more than one, and the rest is for a slow line."""


SHORTEST_LIFE_S = 30.0
"""Training that would have to end sooner is not begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one machine has used."""

    prices: Prices
    """The rate card that holds now."""
    earlier: tuple[tuple[datetime, Prices], ...] = ()
    """Rate cards that held before, oldest first, each with the moment until which it did."""
    disk_gib: int
    started_at: datetime
    ended_at: datetime | None = None
    uploaded_bytes: int = 0
    """What came to the machine, from here or from anywhere."""
    downloaded_bytes: int = 0

    def usd(self, now: datetime) -> Decimal:
        """What it costs until `now`, every meter."""
        end, since, total = self.ended_at or now, self.started_at, _NOTHING
        for until, prices in self.earlier:
            total += _hours(since, min(until, end)) * prices.usd_per_hour(self.disk_gib)
            since = max(since, until)
        total += _hours(since, end) * self.prices.usd_per_hour(self.disk_gib)
        return total + max(traffic_usd(p, self.uploaded_bytes, self.downloaded_bytes) for p in self._cards)

    @property
    def _cards(self) -> tuple[Prices, ...]:
        """Which bytes moved under which is not known: the dearest counts for all."""
        return (self.prices, *(prices for _, prices in self.earlier))


def _hours(since: datetime, until: datetime) -> Decimal:
    return Decimal(max(0, (until - since) // _TICK)) / _TICKS_PER_HOUR


def traffic_usd(prices: Prices, uploaded_bytes: int, downloaded_bytes: int) -> Decimal:
    """What moving so many bytes to and from the machine costs."""
    if not (uploaded_bytes or downloaded_bytes):
        return _NOTHING
    return (prices.upload_usd_per_gib * uploaded_bytes + prices.download_usd_per_gib * downloaded_bytes) / GIB


def spent_usd(used: Iterable[Usage], now: datetime) -> Decimal:
    """Every attempt's cost together."""
    return sum((u.usd(now) for u in used), _NOTHING)


def time_usd(prices: Prices, disk_gib: int, seconds: float) -> Decimal:
    """What `seconds` on the machine cost, traffic aside."""
    return prices.usd_per_hour(disk_gib) * Decimal(str(seconds)) / 3600


def lifetime_s(
    *,
    cap_usd: Decimal,
    spent: Decimal,
    prices: Prices,
    disk_gib: int,
    download_bytes: int,
    max_hours: float | None,
    used_s: float,
) -> float:
    """Seconds for which training may go on so that the cap holds with the way out paid.

    `spent` is every attempt's cost up to now, `download_bytes` what is still to come home, `used_s` the
    time that the run has taken so far. At most 0 when there is nothing left.
    """
    left = cap_usd - spent - traffic_usd(prices, 0, download_bytes)
    rate = prices.usd_per_hour(disk_gib)
    by_money = float(left / rate) * 3600 if rate > 0 else float("inf") if left >= 0 else 0.0
    by_time = max_hours * 3600 - used_s if max_hours is not None else float("inf")
    return min(by_money, by_time, MOST_HOURS * 3600) - WAY_OUT_S


MOST_HOURS = 24 * 30
"""A free machine still gets an end: a month."""


def rounded_up(usd: Decimal, to: Decimal = CENT) -> Decimal:
    """Cents, upwards: a price shown is never below the price paid."""
    return (usd / to).to_integral_value(rounding=ROUND_UP) * to


def show_usd(usd: Decimal | float) -> str:
    """Money as people read it: cents from a dollar up, four places below."""
    amount = Decimal(str(usd))
    return f"${amount:.2f}" if abs(amount) >= 1 else f"${amount:.4f}"
