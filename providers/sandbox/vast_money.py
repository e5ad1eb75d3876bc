"""Vast's money: the customer, charges, invoices, and prices that hosts want to raise."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from .faces import Reply, Request
from .market import Market
from .rentals import MarketError
from .vast_common import account_of, json_of, page_of, refusal
from .vast_rows import charge_row


def user(market: Market, request: Request) -> Reply:
    """Whose key it is; `credit` is what can be spent."""
    account = account_of(market, request)
    credit = float(round(market.balance_usd(account), 6))
    document = {"id": 4, "email": f"{account.name}@example.com", "username": account.name, "credit": credit, "balance": 0.0}
    rest = {"balance_threshold": 0.0, "ssh_key": None, "sid": "1", "host_agreement_accepted": False, "api_key": "hidden"}
    rest |= {"autobill_threshold": None, "autobill_amount": None}  # nothing is charged to a card here
    return Reply.json(document | rest)


def charges(market: Market, request: Request) -> Reply:
    """What each contract cost, a page at a time."""
    account = account_of(market, request, wrong=404)
    filters = json_of(request, "select_filters", {})
    day = filters.get("day", {})
    if not {"gte", "lte"} <= day.keys():
        raise MarketError(400, "invalid_request", "Must provide both 'day' gte and lte filters for instance charges")
    kinds = filters.get("type", {}).get("in", ["instance"])
    begin, end, now = float(day["gte"]), float(day["lte"]), market.now()
    machines = [machine for machine in market.bill().machines if machine.account == account.name and "instance" in kinds]
    rows = [charge_row(m, m.label or None, now) for m in machines if m.created_at.timestamp() <= end and _until(m.ended_at, now) >= begin]
    rows.sort(key=lambda row: row["start"], reverse=request.query.get("latest_first") == "true")
    page, token = page_of(request, rows, 500, 20)
    return Reply.json({"success": True, "count": len(page), "total": len(rows), "next_token": token, "results": page})


def _until(ended_at: datetime | None, now: datetime) -> float:
    return (ended_at or now).timestamp()


def invoices(market: Market, request: Request) -> Reply:
    """Payments; there never are any."""
    account_of(market, request, wrong=404)
    if not json_of(request, "select_filters", {}).get("when"):
        return refusal(200, "invalid_request", "Must provide both 'when' gte and lte filters")  # a failure with 200, sic
    return Reply.json({"success": True, "count": 0, "total": 0, "next_token": None, "results": []})


def old_invoices(market: Market, request: Request) -> Reply:
    """The older bill, in one sum."""
    account = account_of(market, request, wrong=404)
    spent = sum((m.total_usd for m in market.bill().machines if m.account == account.name), Decimal(0))
    return Reply.json({"invoices": [], "current": {"charges": float(round(spent, 3)), "service_fee": 0, "total": float(round(spent, 3))}})


def pending(market: Market, request: Request) -> Reply:
    """Prices that hosts want to raise."""
    views = market.rentals(account_of(market, request))
    found = [
        {
            "pending_price_increase_id": int(view.rental.id) * 10,
            "contract_id": int(view.rental.id),
            "host_id": 1,
            "new_gpu_costpersec": float(view.rental.announced_usd_per_hour) / 3600,
            "old_gpu_costpersec": float(view.rental.offer.prices.gpu_usd_per_hour) / 3600,
            "contract_end_date": view.rental.terms.ends_at.timestamp() if view.rental.terms.ends_at else None,
        }
        for view in views
        if view.rental.announced_usd_per_hour is not None
    ]
    return Reply.json({"success": True, "count": len(found), "truncated": False, "pending_price_increases": found})


def answer_pending(market: Market, request: Request) -> Reply:
    """A price goes up only when its customer agrees."""
    account = account_of(market, request)
    for view in market.rentals(account):
        asked = view.rental.announced_usd_per_hour
        if asked is not None and request.document().get("pending_price_increase_id") == int(view.rental.id) * 10:
            if "accept" in request.path:
                market.reprice(account.name, view.rental.id, asked)
            market.update(account.name, view.rental.id, announced_usd_per_hour=None)
            return Reply.json({"success": True})
    return refusal(404, "no_pending_price_increase", "no_pending_price_increase")
