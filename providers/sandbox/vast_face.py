"""Vast's face: its paths, shapes, texts, limits and lies over the practice cloud's machines, as far as they are public.

The official client (`vastai`) works against it unmodified. Where the documents are silent, what was chosen is said beside it. Rows,
units and filters are in `vast_rows`. Endpoints, as fault scripts call them: the names in `_ROUTES` after "vast.".
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from providers.base import LaunchSpec, Offer

from .faces import Action, Reply, Request
from .market import AccountRecord, Market, MarketError, Rental, Terms, View
from .vast_rows import GB_PER_GIB, HOST_STAYS, OPERATORS, Row, charge_row, instance_row, matches, offer_row, ordered, searchable, stock

ROWS_MAX = 64
PAGE_MAX = 25
MIN_DISK_GB = 8
ONSTART_MAX = 4096
BID_MIN, BID_MAX = Decimal("0.001"), Decimal(128)
RUNTYPES = ("ssh", "jupyter", "args")
COMPUTED = frozenset({"dph_total", "num_gpus", "duration", "disk_usage"})  # cannot be filtered by in a listing
RESERVED = frozenset(
    {"type", "order", "limit", "allocated_storage", "target_reliability", "disable_bundling", "extra_ids", "resource_type"}
)

INTERVALS_S = {
    "create": 4.5, "show": 2.0, "list": 1.0, "manage": 1.0, "destroy": 3.0, "bid": 5.5, "execute": 1.5, "charges": 1.0, "invoices": 3.0,
    "attach": 1.0, "search": 6.0,
}  # fmt: skip
"""Documented least seconds between two calls; searches are "10 per minute"."""

ERRORS: Mapping[str, tuple[int, str, str]] = {
    "no_such_offer": (404, "no_such_ask", "error 404/3603: no_such_ask Instance type by id {} is not available."),
    "offer_taken": (410, "no_such_ask", "error 410/3907: no_such_ask Instance type {} is no longer available."),
    "no_credit": (400, "insufficient_credit", "Your account lacks credit; see the billing page."),  # status and text are not documented
    "invalid_request": (400, "invalid_args", "error 400/3467: Invalid args: {}"),
    "bad_json": (400, "invalid_args", "error 400/3467: Invalid args: {}"),
    "no_such_instance": (404, "no_such_instance", "error 404/3602: no_such_instance {}"),
}
"""The market's words -> status, code and text of Vast's."""


class VastFace:
    """Vast.ai's HTTP API."""

    account = "vast-practice"

    def stock(self) -> Sequence[Offer]:
        return stock()

    def addresses(self, url: str, key: str) -> Mapping[str, str]:
        return {"vast_url": url, "vast_api_key": key}

    def route(self, method: str, path: str) -> tuple[str, Action] | None:
        for wanted, pattern, name, action in _ROUTES:
            if method == wanted and fnmatchcase(path, pattern) and path.count("/") == pattern.count("/"):
                return f"vast.{name}", partial(_limited, name, action)
        return None

    def problem(self, problem: MarketError) -> Reply:
        status, code, text = ERRORS.get(problem.code, (problem.status, problem.code, "{}"))
        return _error(status, code, text.format(problem))


def _error(status: int, code: str, text: str, **more: object) -> Reply:
    return Reply.json({"success": False, "error": code, "msg": text} | more, status=status)


def _limited(name: str, action: Action, market: Market, request: Request) -> Reply:
    """Too often is told in one of several shapes, most without Retry-After."""
    interval_s = INTERVALS_S.get(name, 0.0)
    if not market.limits.wait_s(f"vast.{name}", request.bearer, interval_s):
        try:
            return action(market, request)
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # a list where an object belongs, and the like
            raise MarketError(400, "invalid_request", f"{type(error).__name__}: {error}") from error
    text = f"API requests too frequent endpoint threshold={interval_s}"
    if name == "search":
        return _error(429, "search_quota_exceeded", "Daily search row quota exhausted")
    if name == "create":
        return Reply.json({"detail": text}, status=429)
    if name == "destroy":
        return _error(429, "rate_limit_exceeded", text)
    return Reply(status=429, body=text.replace("frequent", "frequent:").encode(), headers={"Content-Type": "text/plain"})


# Who asks


def _key(request: Request) -> str:
    return request.bearer or request.query.get("api_key", "")


def _account(market: Market, request: Request, *, wrong: int = 401) -> AccountRecord:
    """Whose key it is. A wrong one is a 401 here and a 404 there, a missing one a 403."""
    if not (key := _key(request)):
        raise MarketError(403, "auth_error", "This action requires login.")
    if (account := market.account(key)) and account.name == VastFace.account:
        return account
    if (rental := market.rental_of_key(key)) and rental.account == VastFace.account:
        raise MarketError(403, "auth_error", "This key may only start, stop, show and destroy its own instance.")
    raise MarketError(wrong, "auth_error", "Invalid user key")


def _id(request: Request) -> str:
    return next(part for part in reversed(request.path.split("/")) if part.isdecimal())


def _view(market: Market, request: Request, id_: str, *, own_key: bool = False) -> View:
    """An instance that this key may touch; `own_key`: the machine's own key too."""
    rental = market.rental_of_key(_key(request)) if own_key else None
    if rental is None or rental.id != id_ or rental.account != VastFace.account:
        _account(market, request)
    return market.show(VastFace.account, id_)


# Offers


def _search(market: Market, request: Request) -> Reply:
    if _key(request):  # it works without any
        _account(market, request, wrong=404)
    document = json.loads(request.query.get("q", "{}")) if request.method == "GET" else request.document()
    query = document.get("q", document)
    if not isinstance(query, dict):
        raise MarketError(400, "invalid_request", "q must be an object")
    for name, tests in query.items():
        if isinstance(tests, dict) and name not in RESERVED and (bad := tests.keys() - OPERATORS):
            raise MarketError(400, "invalid_request", f"unknown operator {min(bad)} for {name}")
    bid = query.get("type") == "bid"
    disk_gb = float(query.get("allocated_storage") or 5.0)
    now = market.now()
    rows = [
        offer_row(offer, floor=market.floor_usd_per_hour(offer.id), bid=bid, disk_gb=disk_gb, now=now) for offer in market.offers("vast")
    ]
    filters = {name: tests for name, tests in query.items() if name not in RESERVED}
    fitting = [row for row in rows if matches(searchable(row), filters)]
    order = [(str(one[0]), str(one[1])) for one in query.get("order") or [["score", "desc"]]]
    limit = min(int(query.get("limit") or ROWS_MAX), ROWS_MAX)  # whatever was asked
    return Reply.json({"offers": ordered(fitting, order)[:limit], "truncated": len(fitting) > limit})


def _gpu_names(market: Market, _: Request) -> Reply:
    return Reply.json({"gpu_names": sorted({offer.gpu_name for offer in market.offers("vast")})})


# Create


def _create(market: Market, request: Request) -> Reply:
    account, body, offer_id = _account(market, request), request.document(), _id(request)
    terms, data, spec = _terms(market, body), _face_data(body), _spec(account, body)
    taken = market.offer(offer_id) is not None and offer_id not in {offer.id for offer in market.offers("vast")}
    if (offer := market.offer(offer_id)) is None or offer.provider != "vast" or (taken and not body.get("cancel_unavail")):
        raise MarketError(404, "no_such_offer", offer_id)
    if taken:
        raise MarketError(410, "offer_taken", offer_id)
    env = partial(_machine_env, account, request.base_url)
    rental = market.create(account, offer_id, spec, env=env, face_data=data, terms=terms)
    made = {"new_contract": int(rental.id), "instance_api_key": rental.key}
    if rental.out:  # refused, AND there: stopped, with a disk that bills. The status is not documented
        return _error(400, "invalid_price", "error 400/3468: Your bid is below the market price.", new_contract=made["new_contract"])
    return Reply.json({"success": True} | made)


def _terms(market: Market, body: Mapping[str, Any]) -> Terms:
    """Without a price it is on demand, whatever kind of search the offer came from."""
    price = body.get("price")
    bid = None if price is None else _price(price)
    return Terms(bid_usd_per_hour=bid, gpu_from_running=True, prepaid=True, ends_at=market.now() + HOST_STAYS)


def _price(price: object) -> Decimal:
    try:
        bid = Decimal(str(price))
    except InvalidOperation:
        bid = Decimal(0)
    if not (bid.is_finite() and BID_MIN <= bid <= BID_MAX):
        raise MarketError(400, "invalid_args", "error 400/3470: Please set a bid price >= 0.001.")
    return bid


def _face_data(body: Mapping[str, Any]) -> dict[str, Any]:
    """What an instance says of its create call ever after."""
    env, label, disk_gb = body.get("env") or {}, body.get("label"), body.get("disk", 10)
    if not isinstance(env, dict):
        raise MarketError(400, "invalid_request", "invalid env type: env must be a dict")  # although it is documented as text
    runtype = str(body.get("runtype") or ("args" if body.get("args") else "ssh"))
    if not runtype.startswith(RUNTYPES):
        raise MarketError(400, "invalid_request", f"runtype {runtype}")
    if not isinstance(disk_gb, int | float) or disk_gb < MIN_DISK_GB:
        raise MarketError(400, "invalid_request", f"disk must be at least {MIN_DISK_GB} GB")
    if label is not None and not isinstance(label, str):
        raise MarketError(400, "invalid_request", "label must be text")
    return {"label": label, "runtype": runtype, "disk_gb": float(disk_gb), "env": {str(k): str(v) for k, v in env.items()}, "keys": []}


def _spec(account: AccountRecord, body: Mapping[str, Any]) -> LaunchSpec:
    onstart = str(body.get("onstart") or "")
    if len(onstart) + len(str(body.get("args") or "")) > ONSTART_MAX:
        raise MarketError(400, "invalid_request", f"args and onstart may have {ONSTART_MAX} characters together")
    if not body.get("image"):
        raise MarketError(400, "invalid_request", "'image' is required")
    env = body.get("env") or {}
    return LaunchSpec(
        label=body.get("label") or "",
        image=str(body["image"]),
        disk_gib=int(Decimal(str(body.get("disk", 10))) / GB_PER_GIB),
        ssh_public_key="\n".join(account.ssh_keys),
        env={str(name): str(value) for name, value in env.items() if not str(name).startswith("-")},  # "-p 80:80" is an option
        onstart=onstart,
    )


def _machine_env(account: AccountRecord, base_url: str, rental: Rental) -> dict[str, str]:
    return {
        "CONTAINER_ID": rental.id,
        "CONTAINER_API_KEY": rental.key,
        "VAST_CONTAINERLABEL": f"C.{rental.id}",
        "VAST_URL": base_url,  # the official client's own name for it; on Vast nobody needs it
        "PUBLIC_IPADDR": "127.0.0.1",
        "SSH_PUBLIC_KEY": "\n".join(account.ssh_keys),
        "GPU_COUNT": str(rental.offer.gpu_count),
        "DATA_DIRECTORY": "/workspace",
    }


# Instances


def _row(market: Market, view: View) -> Row:
    rental, boot, now = view.rental, market.boot, market.now()
    age_s = (now - rental.booted_at).total_seconds()
    late = age_s < boot.created_s + boot.loading_s + boot.ports_late_s  # `running` comes first, the ports after it
    port = view.seen.port if view.status == "running" and not late else None
    floor = market.floor_usd_per_hour(rental.offer.id)
    return instance_row(view, floor=floor, now=now, port=port, user=market.machines.user, null_s=boot.created_s / 2)


def _show(market: Market, request: Request) -> Reply:
    id_ = _id(request)
    try:
        return Reply.json({"instances": _row(market, _view(market, request, id_, own_key=True))})
    except MarketError as problem:
        machine = market.bill().of(id_) if problem.code == "no_such_instance" else None
        if machine is None or machine.account != VastFace.account:
            raise
        return Reply.json({"instances": None})  # destroyed; one that never was is a 404


def _list(market: Market, request: Request) -> Reply:
    account = _account(market, request)
    filters = _json(request, "select_filters", {})
    if bad := COMPUTED & filters.keys():
        raise MarketError(400, "invalid_request", f"cannot filter by {min(bad)}")
    rows = [row for row in (_row(market, view) for view in market.rentals(account)) if matches(row, filters)]
    rows = ordered(rows, [(one["col"], one.get("dir", "asc")) for one in _json(request, "order_by", [{"col": "id"}])])
    page, token = _page(request, rows, PAGE_MAX, 5)
    labels = {str(row["label"] or ""): sum(other["label"] == row["label"] for other in rows) for row in rows}
    columns = _json(request, "select_cols", None)
    shown = page if columns in (None, ["*"]) else [{name: row.get(name) for name in columns} for row in page]
    found = {"instances_found": len(page), "total_instances": len(rows), "label_counts": labels, "next_token": token}
    return Reply.json({"success": True} | found | {"instances": shown})


def _json(request: Request, name: str, default: Any) -> Any:
    try:
        return json.loads(request.query[name]) if name in request.query else default
    except ValueError as error:
        raise MarketError(400, "invalid_request", f"{name} is not JSON") from error


def _page(request: Request, rows: Sequence[Row], most: int, least: int) -> tuple[list[Row], str | None]:
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


def _destroy(market: Market, request: Request) -> Reply:
    ids = [_id(request)] if request.path.split("/")[-1].isdecimal() else [str(i) for i in request.document().get("instance_ids", [])]
    for id_ in ids:
        _view(market, request, id_, own_key=True)
        market.destroy(VastFace.account, id_)
    return Reply.json({"success": True})


def _manage(market: Market, request: Request) -> Reply:
    """Start, stop, label; of several at once when the path names none."""
    body = request.document()
    ids = [_id(request)] if request.path.split("/")[-1].isdecimal() else [str(i) for i in body.get("ids", [])]
    for id_ in ids:
        rental = _view(market, request, id_, own_key="label" not in body).rental
        if (label := body.get("label")) is not None:
            if not isinstance(label, str) or len(label) > 1024:
                raise MarketError(400, "invalid_request", "label must be text of at most 1024 characters")
            market.update(VastFace.account, id_, face_data={**rental.face_data, "label": label})
        match body.get("state"):
            case "stopped":
                market.stop(VastFace.account, id_)
            case "running" if rental.out is not None:  # it will start, and bill, when it can
                return Reply.json({"success": True, "msg": "Required resources are currently unavailable, state change queued"})
            case "running":
                market.restart(VastFace.account, id_)
            case None if label is not None:
                pass
            case other:
                raise MarketError(400, "invalid_request", f"state {other}")
    return Reply.json({"success": True})


def _reboot(market: Market, request: Request) -> Reply:
    id_ = _id(request)
    _view(market, request, id_)
    market.stop(VastFace.account, id_)
    market.restart(VastFace.account, id_, fresh_disk="recycle" in request.path)
    return Reply.json({"success": True})


def _bid(market: Market, request: Request) -> Reply:
    rental = _view(market, request, _id(request)).rental
    bid = _price(request.document().get("price"))
    if rental.terms.bid_usd_per_hour is None:
        raise MarketError(400, "invalid_args", "this instance is not interruptible")
    market.reprice(VastFace.account, rental.id, bid)
    return Reply.json({"success": True})


def _contracts(market: Market, request: Request) -> Reply:
    views, wanted = market.rentals(_account(market, request)), request.document().get("label")
    return Reply.json({"contracts": [_row(market, view) for view in views if wanted in (None, view.rental.face_data["label"])]})


# Keys


def _key_row(text: str) -> Row:
    row = {"id": zlib.crc32(text.encode()) & 0x7FFFFFFF, "user_id": 4, "created_at": "2026-01-01T00:00:00Z", "deleted_at": None}
    return row | {"key": text, "public_key": text}  # the documents have the first name, clients read the second


def _text(request: Request) -> str:
    text = request.document().get("ssh_key")
    if not isinstance(text, str) or not text.startswith(("ssh-", "ecdsa-", "sk-")):
        raise MarketError(400, "invalid_request", "ssh_key must be a public key in OpenSSH format")
    return text.strip()


def _account_keys(market: Market, request: Request) -> Reply:
    """All keys, a new one, another text or none for one; the bare list is Vast's own shape."""
    account = _account(market, request)
    rows = {row["id"]: row for row in map(_key_row, account.ssh_keys)}
    if request.method == "GET":
        return Reply.json(list(rows.values())) if rows else _error(404, "no_ssh_key", "no ssh key")
    if request.method != "POST":
        if int(_id(request)) not in rows:
            raise MarketError(400, "no_ssh_key", "no ssh key of that id")
        del rows[int(_id(request))]
    if request.method != "DELETE":
        new = _key_row(_text(request))
        rows[new["id"]] = new
    market.set_ssh_keys(account, [row["key"] for row in rows.values()])
    return Reply.json({"success": True} | ({} if request.method == "DELETE" else {"key": new}))


def _instance_keys(market: Market, request: Request) -> Reply:
    rental = _view(market, request, request.path.split("/")[4]).rental
    if request.method == "GET":
        return Reply.json({"success": True, "ssh_keys": json.dumps([_key_row(key) for key in rental.ssh_keys])})  # text in JSON, sic
    if request.method == "POST":
        market.update(VastFace.account, rental.id, ssh_keys=(*rental.ssh_keys, _text(request)))
        return Reply.json({"success": True, "msg": "SSH key attached successfully"})
    market.update(VastFace.account, rental.id, ssh_keys=tuple(k for k in rental.ssh_keys if _key_row(k)["id"] != int(_id(request))))
    return Reply.json({"success": True})


# Looking into a machine


def _logs(market: Market, request: Request) -> Reply:
    rental = _view(market, request, _id(request)).rental
    return Reply.json({"success": True, "result_url": f"{request.base_url}/vast-results/{rental.mark}"})


def _result(market: Market, request: Request) -> Reply:
    """As from S3: whoever has the address may read."""
    mark = request.path.rpartition("/")[2]
    for rental in market.state.rentals:
        if rental.mark == mark:
            return Reply(body=market.machines.boot_log(rental.id).encode(), headers={"Content-Type": "text/plain"})
    return Reply(status=404, body=b"")


def _execute(market: Market, request: Request) -> Reply:
    """Only what Vast allows is told from what it does not; nothing is carried out here."""
    _view(market, request, _id(request))
    try:
        command = str(request.document().get("command") or "")
    except MarketError:
        return _error(483, "invalid_args", "bad JSON")  # sic
    if len(command) > 512 or command.split(" ", 1)[0] not in ("ls", "rm", "du"):
        raise MarketError(400, "invalid_request", "only ls, rm and du, of at most 512 characters")
    return _logs(market, request)


# Money


def _user(market: Market, request: Request) -> Reply:
    account = _account(market, request)
    credit = float(round(market.balance_usd(account), 6))
    document = {"id": 4, "email": f"{account.name}@example.com", "username": account.name, "credit": credit, "balance": 0.0}
    rest = {"balance_threshold": 0.0, "ssh_key": None, "sid": "1", "host_agreement_accepted": False, "api_key": "hidden"}
    return Reply.json(document | rest)


def _charges(market: Market, request: Request) -> Reply:
    account = _account(market, request, wrong=404)
    filters = _json(request, "select_filters", {})
    day = filters.get("day", {})
    if not {"gte", "lte"} <= day.keys():
        raise MarketError(400, "invalid_request", "Must provide both 'day' gte and lte filters for instance charges")
    kinds = filters.get("type", {}).get("in", ["instance"])
    begin, end, now = float(day["gte"]), float(day["lte"]), market.now()
    machines = [machine for machine in market.bill().machines if machine.account == account.name and "instance" in kinds]
    rows = [charge_row(m, m.label or None, now) for m in machines if m.created_at.timestamp() <= end and _until(m.ended_at, now) >= begin]
    rows.sort(key=lambda row: row["start"], reverse=request.query.get("latest_first") == "true")
    page, token = _page(request, rows, 500, 20)
    return Reply.json({"success": True, "count": len(page), "total": len(rows), "next_token": token, "results": page})


def _until(ended_at: datetime | None, now: datetime) -> float:
    return (ended_at or now).timestamp()


def _invoices(market: Market, request: Request) -> Reply:
    _account(market, request, wrong=404)
    if not _json(request, "select_filters", {}).get("when"):
        return _error(200, "invalid_request", "Must provide both 'when' gte and lte filters")  # a failure with 200, sic
    return Reply.json({"success": True, "count": 0, "total": 0, "next_token": None, "results": []})


def _old_invoices(market: Market, request: Request) -> Reply:
    account = _account(market, request, wrong=404)
    spent = sum((m.total_usd for m in market.bill().machines if m.account == account.name), Decimal(0))
    return Reply.json({"invoices": [], "current": {"charges": float(round(spent, 3)), "service_fee": 0, "total": float(round(spent, 3))}})


def _pending(market: Market, request: Request) -> Reply:
    views = market.rentals(_account(market, request))
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


def _answer_pending(market: Market, request: Request) -> Reply:
    """A price goes up only when its customer agrees."""
    account = _account(market, request)
    for view in market.rentals(account):
        asked = view.rental.announced_usd_per_hour
        if asked is not None and request.document().get("pending_price_increase_id") == int(view.rental.id) * 10:
            if "accept" in request.path:
                market.reprice(account.name, view.rental.id, asked)
            market.update(account.name, view.rental.id, announced_usd_per_hour=None)
            return Reply.json({"success": True})
    return _error(404, "no_pending_price_increase", "no_pending_price_increase")


def _deprecated(market: Market, request: Request) -> Reply:
    _account(market, request)  # the status is not documented
    return _error(400, "deprecated_endpoint", "/api/v0/instances/ is deprecated. Use /api/v1/instances/ instead.")


def _constant(document: object) -> Action:
    return lambda market, request: Reply.json(document)  # noqa: ARG005 - every action takes both


_ONE = "/api/v0/instances/[0-9]*"
_ROUTES: tuple[tuple[str, str, str, Action], ...] = (
    ("POST", "/api/v0/bundles", "search", _search),
    ("GET", "/api/v0/bundles", "search", _search),
    ("PUT", "/api/v0/search/asks", "search", _search),
    ("GET", "/api/v0/gpu_names/unique", "gpu_names", _gpu_names),
    ("GET", "/api/v0/gpu_types", "gpu_types", _constant({"gpu_types": []})),
    ("PUT", "/api/v0/asks/[0-9]*", "create", _create),
    ("GET", "/api/v1/instances", "list", _list),
    ("GET", "/api/v0/instances", "old_list", _deprecated),
    ("GET", "/api/v0/instances/filters", "filters", _constant({"success": True, "filters": {}})),
    ("GET", "/api/v0/instances/pending-price-increases", "pending", _pending),
    ("PUT", "/api/v0/instances/accept-price-increase", "answer_pending", _answer_pending),
    ("PUT", "/api/v0/instances/reject-price-increase", "answer_pending", _answer_pending),
    ("GET", _ONE, "show", _show),
    ("DELETE", _ONE, "destroy", _destroy),
    ("DELETE", "/api/v0/instances", "destroy", _destroy),
    ("PUT", _ONE, "manage", _manage),
    ("PUT", "/api/v0/instances", "manage", _manage),
    ("PUT", "/api/v0/instances/reboot/[0-9]*", "reboot", _reboot),
    ("PUT", "/api/v0/instances/recycle/[0-9]*", "reboot", _reboot),
    ("PUT", "/api/v0/instances/bid_price/[0-9]*", "bid", _bid),
    ("PUT", "/api/v0/instances/request_logs/[0-9]*", "logs", _logs),
    ("PUT", "/api/v0/instances/command/[0-9]*", "execute", _execute),
    ("GET", "/vast-results/*", "result", _result),
    ("POST", "/api/v0/contracts/fetch", "contracts", _contracts),
    *((method, "/api/v0/ssh", "keys", _account_keys) for method in ("GET", "POST")),
    *((method, "/api/v0/ssh/[0-9]*", "keys", _account_keys) for method in ("PUT", "DELETE")),
    *((method, f"{_ONE}/ssh", "attach", _instance_keys) for method in ("GET", "POST")),
    ("DELETE", f"{_ONE}/ssh/[0-9]*", "attach", _instance_keys),
    ("GET", "/api/v0/users/current", "user", _user),
    ("GET", "/api/v0/users/me/invoices", "old_invoices", _old_invoices),
    ("GET", "/api/v0/charges", "charges", _charges),
    ("GET", "/api/v1/invoices", "invoices", _invoices),
)
