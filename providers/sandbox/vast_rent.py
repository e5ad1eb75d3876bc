"""Vast's offers, creates, instances and keys."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

from providers.base import LaunchSpec

from .faces import Reply, Request
from .market import Market
from .rentals import AccountRecord, MarketError, Rental, Terms
from .vast_common import ACCOUNT, account_of, id_of, json_of, key_of, page_of, refusal, row_of, view_of
from .vast_rows import GB_PER_GIB, HOST_STAYS, OPERATORS, Row, matches, offer_row, ordered, searchable

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


# Offers


def search(market: Market, request: Request) -> Reply:
    """Offers that fit. It works without any key."""
    if key_of(request):  # it works without any
        account_of(market, request, wrong=404)
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


def gpu_names(market: Market, _: Request) -> Reply:
    """All kinds of GPU that are for rent."""
    return Reply.json({"gpu_names": sorted({offer.gpu_name for offer in market.offers("vast")})})


# Create


def create(market: Market, request: Request) -> Reply:
    """Rent an offer; a bid that is too low is refused and rents."""
    account, body, offer_id = account_of(market, request), request.document(), id_of(request)
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
        return refusal(400, "invalid_price", "error 400/3468: Your bid is below the market price.", new_contract=made["new_contract"])
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


def show(market: Market, request: Request) -> Reply:
    """One instance; null once it is destroyed."""
    id_ = id_of(request)
    try:
        return Reply.json({"instances": row_of(market, view_of(market, request, id_, own_key=True))})
    except MarketError as problem:
        machine = market.bill().of(id_) if problem.code == "no_such_instance" else None
        if machine is None or machine.account != ACCOUNT:
            raise
        return Reply.json({"instances": None})  # destroyed; one that never was is a 404


def listing(market: Market, request: Request) -> Reply:
    """A page of instances, filtered and ordered."""
    account = account_of(market, request)
    filters = json_of(request, "select_filters", {})
    if bad := COMPUTED & filters.keys():
        raise MarketError(400, "invalid_request", f"cannot filter by {min(bad)}")
    rows = [row for row in (row_of(market, view) for view in market.rentals(account)) if matches(row, filters)]
    rows = ordered(rows, [(one["col"], one.get("dir", "asc")) for one in json_of(request, "order_by", [{"col": "id"}])])
    page, token = page_of(request, rows, PAGE_MAX, 5)
    labels = {str(row["label"] or ""): sum(other["label"] == row["label"] for other in rows) for row in rows}
    columns = json_of(request, "select_cols", None)
    shown = page if columns in (None, ["*"]) else [{name: row.get(name) for name in columns} for row in page]
    found = {"instances_found": len(page), "total_instances": len(rows), "label_counts": labels, "next_token": token}
    return Reply.json({"success": True} | found | {"instances": shown})


def destroy(market: Market, request: Request) -> Reply:
    """End one instance, or several that the body names."""
    ids = [id_of(request)] if request.path.split("/")[-1].isdecimal() else [str(i) for i in request.document().get("instance_ids", [])]
    for id_ in ids:
        view_of(market, request, id_, own_key=True)
        market.destroy(ACCOUNT, id_)
    return Reply.json({"success": True})


def manage(market: Market, request: Request) -> Reply:
    """Start, stop, label; of several at once when the path names none."""
    body = request.document()
    ids = [id_of(request)] if request.path.split("/")[-1].isdecimal() else [str(i) for i in body.get("ids", [])]
    for id_ in ids:
        rental = view_of(market, request, id_, own_key="label" not in body).rental
        if (label := body.get("label")) is not None:
            if not isinstance(label, str) or len(label) > 1024:
                raise MarketError(400, "invalid_request", "label must be text of at most 1024 characters")
            market.update(ACCOUNT, id_, face_data={**rental.face_data, "label": label})
        match body.get("state"):
            case "stopped":
                market.stop(ACCOUNT, id_)
            case "running" if rental.out is not None:  # it will start, and bill, when it can
                return Reply.json({"success": True, "msg": "Required resources are currently unavailable, state change queued"})
            case "running":
                market.restart(ACCOUNT, id_)
            case None if label is not None:
                pass
            case other:
                raise MarketError(400, "invalid_request", f"state {other}")
    return Reply.json({"success": True})


def reboot(market: Market, request: Request) -> Reply:
    """Stop and start; recycled, with an empty disk."""
    id_ = id_of(request)
    view_of(market, request, id_)
    market.stop(ACCOUNT, id_)
    market.restart(ACCOUNT, id_, fresh_disk="recycle" in request.path)
    return Reply.json({"success": True})


def bid(market: Market, request: Request) -> Reply:
    """Another bid."""
    rental = view_of(market, request, id_of(request)).rental
    bid = _price(request.document().get("price"))
    if rental.terms.bid_usd_per_hour is None:
        raise MarketError(400, "invalid_args", "this instance is not interruptible")
    market.reprice(ACCOUNT, rental.id, bid)
    return Reply.json({"success": True})


def contracts(market: Market, request: Request) -> Reply:
    """Instances by label, in another shape."""
    views, wanted = market.rentals(account_of(market, request)), request.document().get("label")
    return Reply.json({"contracts": [row_of(market, view) for view in views if wanted in (None, view.rental.face_data["label"])]})


# Keys


def _key_row(text: str) -> Row:
    row = {"id": zlib.crc32(text.encode()) & 0x7FFFFFFF, "user_id": 4, "created_at": "2026-01-01T00:00:00Z", "deleted_at": None}
    return row | {"key": text, "public_key": text}  # the documents have the first name, clients read the second


def _text(request: Request) -> str:
    text = request.document().get("ssh_key")
    if not isinstance(text, str) or not text.startswith(("ssh-", "ecdsa-", "sk-")):
        raise MarketError(400, "invalid_request", "ssh_key must be a public key in OpenSSH format")
    return text.strip()


def account_keys(market: Market, request: Request) -> Reply:
    """All keys, a new one, another text or none for one; the bare list is Vast's own shape."""
    account = account_of(market, request)
    rows = {row["id"]: row for row in map(_key_row, account.ssh_keys)}
    if request.method == "GET":
        return Reply.json(list(rows.values())) if rows else refusal(404, "no_ssh_key", "no ssh key")
    if request.method != "POST":
        if int(id_of(request)) not in rows:
            raise MarketError(400, "no_ssh_key", "no ssh key of that id")
        del rows[int(id_of(request))]
    if request.method != "DELETE":
        new = _key_row(_text(request))
        rows[new["id"]] = new
    market.set_ssh_keys(account, [row["key"] for row in rows.values()])
    return Reply.json({"success": True} | ({} if request.method == "DELETE" else {"key": new}))


def instance_keys(market: Market, request: Request) -> Reply:
    """Keys of one instance."""
    rental = view_of(market, request, request.path.split("/")[4]).rental
    if request.method == "GET":
        return Reply.json({"success": True, "ssh_keys": json.dumps([_key_row(key) for key in rental.ssh_keys])})  # text in JSON, sic
    if request.method == "POST":
        market.update(ACCOUNT, rental.id, ssh_keys=(*rental.ssh_keys, _text(request)))
        return Reply.json({"success": True, "msg": "SSH key attached successfully"})
    market.update(ACCOUNT, rental.id, ssh_keys=tuple(k for k in rental.ssh_keys if _key_row(k)["id"] != int(id_of(request))))
    return Reply.json({"success": True})


# Looking into a machine


def logs(market: Market, request: Request) -> Reply:
    """Where the log can be fetched."""
    rental = view_of(market, request, id_of(request)).rental
    return Reply.json({"success": True, "result_url": f"{request.base_url}/vast-results/{rental.mark}"})


def result(market: Market, request: Request) -> Reply:
    """As from S3: whoever has the address may read."""
    mark = request.path.rpartition("/")[2]
    for rental in market.state.rentals:
        if rental.mark == mark:
            return Reply(body=market.machines.boot_log(rental.id).encode(), headers={"Content-Type": "text/plain"})
    return Reply(status=404, body=b"")


def execute(market: Market, request: Request) -> Reply:
    """Only what Vast allows is told from what it does not; nothing is carried out here."""
    view_of(market, request, id_of(request))
    try:
        command = str(request.document().get("command") or "")
    except MarketError:
        return refusal(483, "invalid_args", "bad JSON")  # sic
    if len(command) > 512 or command.split(" ", 1)[0] not in ("ls", "rm", "du"):
        raise MarketError(400, "invalid_request", "only ls, rm and du, of at most 512 characters")
    return logs(market, request)


def deprecated(market: Market, request: Request) -> Reply:
    """The listing that died in August 2026; its status is not documented."""
    account_of(market, request)
    return refusal(400, "deprecated_endpoint", "/api/v0/instances/ is deprecated. Use /api/v1/instances/ instead.")
