"""TensorDock's face: its API v2 as far as that is public, over the practice cloud's machines. What is not documented is said beside it.

    {url}/tensordock/v2       hostnodes, locations, instances

Kept from the documents and from what others saw: "running" in the create's own answer, a listing that says less than a look at one machine,
failures with status 200 and the real one in the body, no key of the machine's own. cloud-init's `runcmd` runs; its other words are taken
and do nothing. `ssh_key` is not let in: there it is for another user than the one that lorry logs in as.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from providers.base import LaunchSpec, Offer, Prices

from .faces import Action, Reply, Request
from .limits import Window
from .market import Market
from .rentals import AccountRecord, MarketError, Terms, View

MINUTE = Window("minute", 100, 60)
MIN_DISK_GB, DISK_STEP_GB = 100, 50
VCPU_USD, MEMORY_USD, STORAGE_USD = Decimal("0.003"), Decimal("0.002"), Decimal("0.00005")  # an hour: each, a GB, a GB

# host, card, USD/h, country, tier, up-time in per cent
_HOSTS: tuple[tuple[str, str, str, str, int, float], ...] = (
    ("h-frankfurt-1", "geforcertx3090-pcie-24gb", "0.17", "Germany", 2, 99.1),
    ("h-frankfurt-1", "geforcertx3090-pcie-24gb", "0.17", "Germany", 2, 99.1),
    ("h-winnipeg-1", "geforcertx4090-pcie-24gb", "0.31", "Canada", 3, 99.95),
    ("h-winnipeg-1", "rtxa6000-pcie-48gb", "0.40", "Canada", 3, 99.95),
    ("h-austin-1", "geforcertx3090-pcie-24gb", "0.155", "United States", 0, 93.5),
    ("h-austin-2", "geforcertx5090-pcie-32gb", "0.52", "United States", 1, 98.7),
    ("h-mumbai-1", "l40s-pcie-48gb", "0.62", "India", 4, 99.99),
    ("h-oslo-1", "a100-sxm4-80gb", "0.95", "Norway", 4, 99.99),
    ("h-oslo-1", "h100-sxm5-80gb", "1.99", "Norway", 4, 99.99),
)

Verb = Callable[[Market, Request, AccountRecord], Reply]


class TensorDockFace:
    """TensorDock's API. Endpoints: hostnodes, locations, create, list, show, delete, start, stop."""

    account = "tensordock"

    def stock(self) -> Sequence[Offer]:
        return [
            Offer(
                provider="tensordock",
                id=f"tensordock-{number}",
                machine_id=host,
                gpu_name=card,
                vram_gib=24,
                prices=Prices(gpu_usd_per_hour=Decimal(usd), disk_usd_per_gib_hour=STORAGE_USD),
                disk_gib=1000,
                reliability=uptime / 100,
                provider_data={"country": country, "tier": tier},
            )
            for number, (host, card, usd, country, tier, uptime) in enumerate(_HOSTS, 1)
        ]

    def addresses(self, url: str, key: str) -> Mapping[str, str]:
        return {"tensordock_url": f"{url}/tensordock/v2", "tensordock_api_key": key}

    def route(self, method: str, path: str) -> tuple[str, Action] | None:
        for wanted, pattern, name, verb in _ROUTES:
            if method == wanted and re.fullmatch(f"/tensordock/v2{pattern}", path):
                return f"tensordock.{name}", partial(_act, verb)
        return None

    def problem(self, problem: MarketError) -> Reply:
        """Their words and shapes are not documented; a create that was refused was seen with status 200."""
        words = {"no_such_instance": "Instance not found", "offer_taken": "GPU is not available", "no_such_offer": "hostnode not found"}
        status = 200 if problem.status in (402, 409) else problem.status
        return Reply.json({"status": problem.status, "error": words.get(problem.code, str(problem))}, status)


def _act(verb: Verb, market: Market, request: Request) -> Reply:
    """One call: whose it is, and whether it is one too many."""
    account = market.account(request.bearer)
    if verb is _locations and account is None:  # the price list is for everybody
        return _locations(market, request, None)
    if account is None or account.name != TensorDockFace.account:
        raise MarketError(401, "unauthorized", "Unauthorized")
    ((_, left, reset_s),) = market.limits.count("tensordock", request.bearer, (MINUTE,))
    if left < 0:
        return Reply.json({"error": "Too many requests"}, 429, **{"Retry-After": str(int(reset_s) + 1)})
    try:
        return verb(market, request, account)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a list where an object belongs, and the like
        raise MarketError(400, "invalid_request", f"{type(error).__name__}: {error}") from error


def _hostnodes(market: Market, _: Request, __: AccountRecord) -> Reply:
    offers = market.offers("tensordock")
    return Reply.json({"data": {"hostnodes": [_host(host, offers) for host in dict.fromkeys(offer.machine_id for offer in offers)]}})


def _host(host: str, offers: Sequence[Offer]) -> dict[str, Any]:
    here = [offer for offer in offers if offer.machine_id == host]
    cards = {offer.gpu_name: offer for offer in here}
    place = {"uuid": f"loc-{host}", "country": here[0].provider_data["country"], "tier": here[0].provider_data["tier"]}
    free = {
        "gpus": [
            {
                "v0Name": name,
                "availableCount": sum(one.gpu_name == name for one in here),
                "price_per_hr": float(card.prices.gpu_usd_per_hour),
            }
            for name, card in cards.items()
        ],
        "vcpu_count": 32,
        "ram_gb": 128,
        "storage_gb": 1000,
        "available_ports": [20000 + number for number in range(20)],
        "has_public_ip_available": False,
    }
    return {
        "id": host,
        "location_id": place["uuid"],
        "engine": "practice",
        "uptime_percentage": here[0].reliability * 100,
        "available_resources": free,
        "pricing": {"per_vcpu_hr": float(VCPU_USD), "per_gb_ram_hr": float(MEMORY_USD), "per_gb_storage_hr": float(STORAGE_USD)},
        "location": place | {"network_speed_gbps": 10, "network_speed_upload_gbps": 1},
    }


def _locations(market: Market, _: Request, __: AccountRecord | None) -> Reply:
    offers = market.offers("tensordock")
    rows = [{"id": f"loc-{o.machine_id}", "country": o.provider_data["country"], "gpus": [{"v0Name": o.gpu_name}]} for o in offers]
    return Reply.json({"data": {"locations": rows}})


def _create(market: Market, request: Request, account: AccountRecord) -> Reply:
    asked = request.document()["data"]["attributes"]
    wanted = asked["resources"]
    if missing := {"name", "image", "hostnode_id", "ssh_key"} - {name for name, value in asked.items() if value}:
        raise MarketError(400, "invalid_request", f"{min(missing)} is required")
    if wanted["storage_gb"] < MIN_DISK_GB or wanted["storage_gb"] % DISK_STEP_GB or wanted["vcpu_count"] % 2 or wanted["ram_gb"] % 8:
        raise MarketError(400, "invalid_request", "resources are out of step")
    if market.balance_usd(account) < 1:
        raise MarketError(402, "no_credit", "You need at least $1 in your balance")
    ((card, _),) = wanted["gpus"].items()
    free = [one for one in market.offers("tensordock") if (one.machine_id, one.gpu_name) == (asked["hostnode_id"], card)]
    if not free:
        raise MarketError(409, "offer_taken", "GPU is not available")
    spec = LaunchSpec(
        label=asked["name"],
        image=asked["image"],
        disk_gib=wanted["storage_gb"],  # the rate is for a GB, and so is the meter here
        ssh_public_key="",
        onstart="\n".join(asked.get("cloud_init", {}).get("runcmd", [])),
    )
    data = {"vcpu_count": wanted["vcpu_count"], "ram_gb": wanted["ram_gb"], "image": asked["image"]}
    rental = market.create(account, free[0].id, spec, face_data=data, terms=Terms(prepaid=True))
    rest = wanted["vcpu_count"] * VCPU_USD + wanted["ram_gb"] * MEMORY_USD
    market.reprice(account.name, rental.id, rental.offer.prices.gpu_usd_per_hour + rest)
    return Reply.json({"data": {"type": "virtualmachine", "id": rental.id, "name": rental.spec.label, "status": "running"}}, 201)


def _status(view: View) -> str:
    if view.status == "exited":
        return "stoppeddisassociated" if view.rental.out else "stopped"
    return {"running": "running", "offline": "unknown"}.get(view.status, "starting")


def _list(market: Market, _: Request, account: AccountRecord) -> Reply:
    rows = [
        {"type": "VM", "id": view.rental.id, "attributes": {"name": view.rental.spec.label, "status": _status(view)}}
        for view in market.rentals(account)
    ]
    return Reply.json({"data": {"instances": rows}})


def _show(market: Market, request: Request, account: AccountRecord) -> Reply:
    """Without an envelope, as documented."""
    view = market.show(account.name, _id(request))
    rental, data = view.rental, view.rental.face_data
    up = view.status == "running"
    return Reply.json({
        "type": "instance",
        "id": rental.id,
        "name": rental.spec.label,
        "status": _status(view),
        "ipAddress": "127.0.0.1" if up else "",
        "portForwards": [{"internal_port": 22, "external_port": view.seen.port}] if up else [],  # not the port that was asked for
        "ssh_user": market.machines.user,
        "resources": {
            "vcpu_count": data["vcpu_count"],
            "ram_gb": data["ram_gb"],
            "storage_gb": rental.spec.disk_gib,
            "gpus": {rental.offer.gpu_name: {"count": 1, "v0Name": rental.offer.gpu_name}},
        },
        "rateHourly": float(round(rental.offer.prices.usd_per_hour(rental.spec.disk_gib), 6)),
    })  # fmt: skip


def _delete(market: Market, request: Request, account: AccountRecord) -> Reply:
    market.destroy(account.name, _id(request))
    return Reply.json({"data": {"type": "success", "attributes": {"message": "Instance deleted successfully"}}})


def _power(market: Market, request: Request, account: AccountRecord) -> Reply:
    starts = request.path.endswith("/start")
    (market.restart if starts else market.stop)(account.name, _id(request))
    attributes = {"status": "starting" if starts else "stopping"}
    return Reply.json({"data": {"type": "instance", "id": _id(request), "attributes": attributes}})


def _id(request: Request) -> str:
    return request.path.split("/")[4]


_ONE = "/instances/[0-9A-Za-z-]+"
_ROUTES: tuple[tuple[str, str, str, Verb], ...] = (
    ("GET", "/hostnodes", "hostnodes", _hostnodes),
    ("GET", "/locations", "locations", _locations),
    ("POST", "/instances", "create", _create),
    ("GET", "/instances", "list", _list),
    ("GET", _ONE, "show", _show),
    ("DELETE", _ONE, "delete", _delete),
    ("POST", f"{_ONE}/start", "start", _power),
    ("POST", f"{_ONE}/stop", "stop", _power),
)
