"""The plain face: a REST marketplace under /v1 with Bearer keys, JSON, cursors, and errors with a code and a message."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from providers.base import LaunchSpec, Offer

from .catalogue import catalogue
from .faces import Action, Reply, Request
from .market import Market
from .rentals import AccountRecord, MarketError, View

PAGE_SIZE = 10
PAGE_SIZE_MAX = 100


class Plain:
    """The plain face. Endpoints: account, offers, create, list, show, destroy, charges."""

    account = "practice"

    def stock(self) -> Sequence[Offer]:
        return catalogue()

    def addresses(self, url: str, key: str) -> Mapping[str, str]:
        return {"url": url, "api_key": key}

    def route(self, method: str, path: str) -> tuple[str, Action] | None:
        for wanted_method, pattern, name, action in _ROUTES:
            if method == wanted_method and re.fullmatch(pattern, path):
                return f"plain.{name}", action
        return None

    def problem(self, problem: MarketError) -> Reply:
        return Reply.json({"error": {"code": problem.code, "message": str(problem)}}, status=problem.status)


def _account(market: Market, request: Request) -> AccountRecord:
    if (account := market.account(request.bearer)) and account.name == Plain.account:
        return account
    if market.rental_of_key(request.bearer):
        raise MarketError(403, "forbidden", "this key belongs to one machine; it may only show and destroy that machine")
    raise MarketError(401, "bad_key", "the API key is missing or wrong")


def _account_for(market: Market, request: Request, rental_id: str) -> str:
    """The account that may touch this rental with this key: its own, or the machine's key for itself."""
    rental = market.rental_of_key(request.bearer)
    if rental and rental.id == rental_id:
        return rental.account
    return _account(market, request).name


def _page(request: Request, key: str, rows: Sequence[dict[str, object]]) -> Reply:
    """One page; the cursor is the id of the last row that was sent, so that a row which goes away skips nobody."""
    limit, cursor = request.query.get("limit", str(PAGE_SIZE)), request.query.get("cursor", "")
    if not limit.isdecimal() or not 1 <= int(limit) <= PAGE_SIZE_MAX:
        raise MarketError(400, "invalid_request", f"limit must be 1 to {PAGE_SIZE_MAX}")
    rest = [row for row in rows if not cursor or int(str(row["id"])) > int(cursor)] if cursor.isdecimal() or not cursor else None
    if rest is None:
        raise MarketError(400, "invalid_request", "unknown cursor")
    page = rest[: int(limit)]
    more = len(rest) > len(page)
    return Reply.json({key: page, "total": len(rows), "next_cursor": str(page[-1]["id"]) if more else None})


def _show_account(market: Market, request: Request) -> Reply:
    account = _account(market, request)
    document = {"name": account.name, "balance_usd": str(round(market.balance_usd(account), 6)), "auto_pay": False}
    return Reply.json(document)


def _offers(market: Market, request: Request) -> Reply:
    _account(market, request)
    return _page(request, "offers", [_offer_document(offer) for offer in sorted(market.offers(), key=lambda o: int(o.id))])


def _create(market: Market, request: Request) -> Reply:
    account = _account(market, request)
    document = request.document()
    if not document.get("label"):
        raise MarketError(422, "invalid_request", "a label has 1 to 256 characters")
    if not isinstance(key := document.get("ssh_public_key"), str) or len(key.strip().splitlines()) != 1:
        raise MarketError(422, "invalid_request", "the SSH key must be one line in OpenSSH format")
    spec = LaunchSpec(
        label=_field(document, "label", str),
        image=_field(document, "image", str),
        disk_gib=_field(document, "disk_gib", int),
        ssh_public_key=_field(document, "ssh_public_key", str),
        env={str(name): str(value) for name, value in document.get("env", {}).items()},
        onstart=_field(document, "onstart", str, ""),
    )
    rental = market.create(account, _field(document, "offer_id", str), spec, env={"SANDBOX_URL": request.base_url})
    return Reply.json(_instance_document(market, market.show(account.name, rental.id)), status=201)


def _field(document: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = document.get(name, default)
    if not isinstance(value, kind):
        raise MarketError(422, "invalid_request", f"{name} must be given, as {kind.__name__}")
    return value


def _list(market: Market, request: Request) -> Reply:
    views = market.rentals(_account(market, request))
    return _page(request, "instances", [_instance_document(market, view) for view in views])


def _rental_id(request: Request) -> str:
    return request.path.split("/")[3]


def _show(market: Market, request: Request) -> Reply:
    rental_id = _rental_id(request)
    return Reply.json(_instance_document(market, market.show(_account_for(market, request, rental_id), rental_id)))


def _destroy(market: Market, request: Request) -> Reply:
    rental_id = _rental_id(request)
    market.destroy(_account_for(market, request, rental_id), rental_id)
    return Reply.json({"destroyed": rental_id})


def _charges(market: Market, request: Request) -> Reply:
    rental_id = _rental_id(request)
    charged = market.charges(_account(market, request), rental_id)
    meters = ("gpu_usd", "disk_usd", "upload_usd", "download_usd", "total_usd")
    return Reply.json({"instance": rental_id} | {name: str(round(getattr(charged, name), 9)) for name in meters})


def _prices_document(offer: Offer) -> dict[str, str]:
    return {name: str(price) for name, price in asdict(offer.prices).items()}


def _offer_document(offer: Offer) -> dict[str, object]:
    names = ("id", "machine_id", "gpu_name", "gpu_count", "vram_gib", "disk_gib", "down_mbit_s", "up_mbit_s", "reliability", "verified")
    rest = ("region", "interruptible")
    return {name: getattr(offer, name) for name in names + rest} | {"prices": _prices_document(offer)}


def _instance_document(market: Market, view: View) -> dict[str, object]:
    rental = view.rental
    ready = view.status == "running"
    return {
        "id": rental.id,
        "label": rental.spec.label,
        "status": view.status,
        "status_text": view.status_text,
        "offer_id": rental.offer.id,
        "machine_id": rental.offer.machine_id,
        "gpu_name": rental.offer.gpu_name,
        "disk_gib": rental.spec.disk_gib,
        "prices": _prices_document(rental.offer),
        "created_at": rental.created_at.isoformat(),
        "env": dict(rental.spec.env),  # as real clouds do: every holder of the account key can read it back
        "ssh": {"host": "127.0.0.1", "port": view.seen.port, "user": market.machines.user} if ready else None,
        "host_key": view.seen.host_key if ready else None,
    }


_ONE = r"/v1/instances/[^/]+"
_ROUTES: tuple[tuple[str, str, str, Action], ...] = (
    ("GET", r"/v1/account", "account", _show_account),
    ("GET", r"/v1/offers", "offers", _offers),
    ("POST", r"/v1/instances", "create", _create),
    ("GET", r"/v1/instances", "list", _list),
    ("GET", _ONE, "show", _show),
    ("DELETE", _ONE, "destroy", _destroy),
    ("GET", _ONE + r"/charges", "charges", _charges),
)
