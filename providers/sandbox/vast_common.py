"""What all of Vast's endpoints share: whose key it is, errors in its words, its pages."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from .faces import Reply, Request
from .market import Market
from .rentals import AccountRecord, MarketError, View
from .vast_rows import Row, instance_row

ACCOUNT = "vast-practice"


def refusal(status: int, code: str, text: str, **more: object) -> Reply:
    """An error in the shape that most of them have."""
    return Reply.json({"success": False, "error": code, "msg": text} | more, status=status)


def key_of(request: Request) -> str:
    """From the header, else from the address."""
    return request.bearer or request.query.get("api_key", "")


def account_of(market: Market, request: Request, *, wrong: int = 401) -> AccountRecord:
    """Whose key it is. A wrong one is a 401 here and a 404 there, a missing one a 403."""
    if not (key := key_of(request)):
        raise MarketError(403, "auth_error", "This action requires login.")
    if (account := market.account(key)) and account.name == ACCOUNT:
        return account
    if (rental := market.rental_of_key(key)) and rental.account == ACCOUNT:
        raise MarketError(403, "auth_error", "This key may only start, stop, show and destroy its own instance.")
    raise MarketError(wrong, "auth_error", "Invalid user key")


def id_of(request: Request) -> str:
    """The last number in the path."""
    return next((part for part in reversed(request.path.split("/")) if part.isdecimal()), "")


def view_of(market: Market, request: Request, id_: str, *, own_key: bool = False) -> View:
    """An instance that this key may touch; `own_key`: the machine's own key too."""
    rental = market.rental_of_key(key_of(request)) if own_key else None
    if rental is None or rental.id != id_ or rental.account != ACCOUNT:
        account_of(market, request)
    return market.show(ACCOUNT, id_)


def row_of(market: Market, view: View) -> Row:
    """An instance as it is shown now."""
    rental, boot, now = view.rental, market.boot, market.now()
    age_s = (now - rental.booted_at).total_seconds()
    late = age_s < boot.created_s + boot.loading_s + boot.ports_late_s  # `running` comes first, the ports after it
    port = view.seen.port if view.status == "running" and not late else None
    floor = market.floor_usd_per_hour(rental.offer.id)
    return instance_row(view, floor=floor, now=now, port=port, user=market.machines.user, null_s=boot.created_s / 2)


def json_of(request: Request, name: str, default: Any) -> Any:
    """A value of the query, which is JSON."""
    try:
        return json.loads(request.query[name]) if name in request.query else default
    except ValueError as error:
        raise MarketError(400, "invalid_request", f"{name} is not JSON") from error


def page_of(request: Request, rows: Sequence[Row], most: int, least: int) -> tuple[list[Row], str | None]:
    """One page and the token of the next, which names the last row by id: a row that goes away skips nobody."""
    limit = request.query.get("limit", str(most))
    count = min(int(limit), most) if limit.isdecimal() and int(limit) > 0 else least
    begin = 0
    if token := request.query.get("after_token"):
        try:
            last, index = json.loads(base64.urlsafe_b64decode(token))
        except (ValueError, TypeError, binascii.Error) as error:
            raise MarketError(400, "invalid_token", "error 400/3480: invalid_token") from error
        begin = next((at + 1 for at, row in enumerate(rows) if _name(row) == last), index - 1)
    page = list(rows[begin : begin + count])
    more = begin + count < len(rows)
    return page, base64.urlsafe_b64encode(json.dumps([_name(page[-1]), begin + count]).encode()).decode() if more else None


def _name(row: Row) -> str:
    return str(row.get("id") or row.get("source"))
