"""Vast.ai: a marketplace of other people's machines. Prices go by the second; the disk bills from creation to destruction.

Written to the public contract and tried against the practice cloud, which the official client accepts as Vast; NEVER TRIED LIVE.

Units. Vast says GB and does not say which. We take 10^9 bytes and ask for as many as hold our GiB: should it mean 2^30, we rent 7 %
more disk than needed, at the price that we stated. Disk: $/GB/month -> $/GiB/h is x 1.073741824 / 720, as Vast's own example has it.
Traffic: $/GB -> $/GiB is x 1.073741824. Network speeds are Mbit/s already. VRAM is MiB, a little below the nominal size.

Environment: VAST_API_KEY, else a key that was kept; LORRY_VAST_URL for another address.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_UP, Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, Field, ValidationError

from .answers import OddIsNone, Wire, as_agreed, fault, record, said
from .base import Account, Instance, InstanceStatus, LaunchSpec, Offer, Prices, Requirements, SelfDestroy, SSHEndpoint
from .errors import AuthError, NoCapacity, ProviderError, RateLimited, Refused, UnexpectedResponse
from .http import Answer, CloudHTTP, Pace
from .keys import ApiKey, Right

URL = "https://console.vast.ai"
KEY_HINT = "make a key at console.vast.ai/manage-keys and keep it with `lorry login vast`, or put it into VAST_API_KEY"
GB_PER_GIB = Decimal(2**30) / 10**9
HOURS_PER_MONTH = 720
MIN_DISK_GB = 8
ONSTART_MAX = 4096
MIN_CUDA = 12.8  # of the default image; drivers older than that refuse it
MIN_DURATION_S = 24 * 3600  # a contract cannot outlive its host's end date
ROWS = 64  # a search returns no more, whatever is asked
SEARCH_PAGES = 10  # searches are limited to 10 a minute; 640 cheapest offers are enough to choose from
PAGE_LIMIT = 400  # pages of instances; a token that never ends is not an answer
BID_MARGIN = Decimal("1.05")  # a bid at the very floor is outbid by the next one
PORTS_PATIENCE_S = 20.0  # `running` comes before the direct port does; after so long we take the proxy

INTERVALS_S = {"create": 4.5, "show": 2.0, "list": 1.0, "destroy": 3.0, "charges": 1.0, "ssh": 1.0}
"""Vast's documented minimum between two calls of one kind. Each kind has its own clock, so nothing ever delays a destroy but a destroy."""

STATUSES = {
    "created": InstanceStatus.PENDING,
    "loading": InstanceStatus.PENDING,
    "rebooting": InstanceStatus.PENDING,
    "scheduling": InstanceStatus.PENDING,
    "running": InstanceStatus.RUNNING,
    "exited": InstanceStatus.STOPPED,
    "stopped": InstanceStatus.STOPPED,
}
"""`offline`, `frozen` and `unknown` are not in it: such a machine may come back and bill."""
DEAD_ON_ARRIVAL = re.compile(r"OCI runtime create failed|manifest unknown|pull access denied", re.IGNORECASE)

REFUSALS: Mapping[str, type[ProviderError]] = {
    "no_such_ask": NoCapacity,
    "invalid_price": NoCapacity,  # the market moved between search and bid
    "insufficient_credit": Refused,
    "spend_rate_limit": Refused,
    "invalid_args": NoCapacity,  # mostly an offer that has gone, or one that has less disk than it said
}
"""Errors of a create that are certain to have rented nothing, as long as no `new_contract` stands beside them."""
HOST = re.compile(r"[0-9A-Za-z][0-9A-Za-z.:-]*\Z")
"""An address, and nothing that a program could take for an option."""
ABSENT = frozenset({"no_such_instance", "not_found"})
READABLE = frozenset({200, 400, 402, 403, 404, 409, 410, 422})
"""Statuses whose body decides: Vast answers a wrong key with 401, 403 or 404."""


Usd = Annotated[Decimal, Field(ge=0, le=10)]
P = TypeVar("P", bound="_Paged")


class _Rates(Wire):
    dph_base: Annotated[Decimal, Field(gt=0, le=1000)]
    storage_cost: Usd
    inet_up_cost: Usd
    inet_down_cost: Usd

    def prices(self) -> Prices:
        return Prices(
            gpu_usd_per_hour=self.dph_base,
            disk_usd_per_gib_hour=round(self.storage_cost * GB_PER_GIB / HOURS_PER_MONTH, 12),
            upload_usd_per_gib=round(self.inet_down_cost * GB_PER_GIB, 9),  # what comes down to the machine is what we send up
            download_usd_per_gib=round(self.inet_up_cost * GB_PER_GIB, 9),
        )


class _Offer(_Rates):
    """An offer that lacks a price, a size or an id is dropped: what is not stated may cost."""

    id: Annotated[int, Field(gt=0)]
    machine_id: Annotated[int, Field(gt=0)]
    gpu_name: Annotated[str, Field(min_length=1, max_length=64)]
    num_gpus: Annotated[int, Field(ge=1, le=64)]
    gpu_ram: Annotated[float, Field(ge=1000, le=2_000_000)]
    disk_space: Annotated[float, Field(ge=0, le=1_000_000)]
    dph_total: Annotated[Decimal, Field(gt=0, le=2000)]
    min_bid: Annotated[Decimal, Field(ge=0, le=1000)] | None = None
    inet_down: Annotated[float, Field(ge=0)] | None = None
    inet_up: Annotated[float, Field(ge=0)] | None = None
    reliability: Annotated[float, Field(ge=0, le=1)] | None = Field(None, validation_alias=AliasChoices("reliability2", "reliability"))
    verification: OddIsNone[str] = None
    geolocation: OddIsNone[str] = None
    cpu_arch: OddIsNone[str] = None
    gpu_arch: OddIsNone[str] = None
    hosting_type: OddIsNone[int] = None


class _Port(Wire):
    HostPort: Annotated[int, Field(gt=0, lt=65536)]


class _Row(Wire):
    """An instance. Only what says whose it is and whether it bills must be there; the rest is read field by field."""

    id: Annotated[int, Field(gt=0)]
    label: str | None
    actual_status: str | None
    rates: OddIsNone[_Rates] = None
    """The row itself: its prices, where all of them can be read."""
    intended_status: OddIsNone[str] = None
    cur_state: OddIsNone[str] = None
    next_state: OddIsNone[str] = None
    status_msg: OddIsNone[str] = None
    gpu_name: OddIsNone[str] = None
    disk_space: OddIsNone[Annotated[float, Field(ge=0, le=1e6)]] = None
    start_date: OddIsNone[Annotated[float, Field(gt=0, le=1e11)]] = None
    public_ipaddr: OddIsNone[str] = None
    ports: OddIsNone[dict[str, list[_Port] | None]] = None
    direct_port_count: OddIsNone[int] = None
    ssh_host: OddIsNone[str] = None
    ssh_port: OddIsNone[Annotated[int, Field(gt=0, lt=65535)]] = None
    image_runtype: OddIsNone[str] = None
    ssh_user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]*$")] = "root"
    """Only the practice cloud says it, whose machines cannot all be root."""


class _Paged(Wire):
    success: Literal[True]
    next_token: str | None = None


class _Instances(_Paged):
    total_instances: int
    instances: list[dict[str, Any]]


class _User(Wire):
    id: int
    email: str | None = None
    credit: Decimal | None = None
    autobill_threshold: OddIsNone[float] = None
    """The balance at which a card is charged; null: never."""


class _Item(Wire):
    amount: Decimal


class _Charge(Wire):
    source: str
    amount: Decimal
    items: tuple[_Item, ...] = ()

    def usd(self) -> Decimal:
        """The items are the finer sum."""
        return sum((item.amount for item in self.items), Decimal(0)) if self.items else self.amount


class _Charges(_Paged):
    results: list[_Charge]


def _client_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where Vast's own client keeps its key, newer place first."""
    home = Path(environment.get("HOME") or Path.home())
    return (Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "vastai" / "vast_api_key", home / ".vast_api_key")


class Vast:
    """Vast.ai."""

    name = "vast"
    console_url = "https://cloud.vast.ai/instances/"
    api_key = ApiKey(
        variable="VAST_API_KEY",
        addresses={"LORRY_VAST_URL": URL},
        made_at="https://console.vast.ai/manage-keys",
        rights=(
            Right(name="misc", needed_for="search the market"),
            Right(name="instance_read", needed_for="see whether a machine is gone"),
            Right(name="instance_write", needed_for="rent a machine or end one"),
            Right(name="user_read", needed_for="say whose account it is and what is left in it", essential=False),
            Right(name="billing_read", needed_for="read back what a run was charged", essential=False),
        ),
        client_files=_client_files,
    )

    def __init__(
        self,
        key: str,
        *,
        url: str = URL,
        page_size: int = 25,
        intervals_s: Mapping[str, float] = INTERVALS_S,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`intervals_s`: how far apart calls of one kind are kept; a limit that is run into costs a penalty on top."""
        self._key, self._url, self._page_size, self._now, self._monotonic_s = key, url, page_size, now, monotonic_s
        self._pace = Pace(intervals_s, monotonic_s=monotonic_s, sleep=sleep)
        self._portless_since: dict[int, float] = {}

    @classmethod
    def from_env(cls, key: str = "") -> Vast:
        key, (url,) = cls.api_key.find(key)
        return cls(key, url=url)

    def __repr__(self) -> str:
        return f"Vast(url={self._url!r})"

    @property
    def self_destroy(self) -> SelfDestroy:
        """With the key that Vast gives each container for itself. Logins see it only because our start script passes it on."""
        url = f"{self._url.rstrip('/')}/api/v0/instances/{{CONTAINER_ID}}/"
        return SelfDestroy(method="DELETE", url=url, key="{CONTAINER_API_KEY}", id_env="CONTAINER_ID")

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        kinds = ("on-demand", "bid") if requirements.interruptible else ("on-demand",)
        return [offer for kind in kinds for offer in self._search(requirements, kind)]

    def launch(self, offer: Offer, spec: LaunchSpec) -> Instance:
        if len(onstart := onstart_script(spec)) > ONSTART_MAX:
            raise Refused(f"the start script has {len(onstart)} characters, Vast takes {ONSTART_MAX}", hint="shorten it")
        disk_gb = max(MIN_DISK_GB, math.ceil(spec.disk_gib * GB_PER_GIB))
        body = {
            "client_id": "me",
            "image": spec.image,
            "env": dict(spec.env),  # an object: as text it is refused, whatever the documentation says
            "price": float(offer.prices.gpu_usd_per_hour) if offer.interruptible else None,  # without it a bid offer is rented on demand
            "disk": disk_gb,
            "label": spec.label,
            "onstart": onstart,
            "runtype": "ssh_direc ssh_proxy",  # sic
            "cancel_unavail": not offer.interruptible,  # else a busy machine leaves the request waiting, to bill one day
        }
        answer = self._ask("create", "PUT", f"/api/v0/asks/{offer.id.partition('/')[0]}/", body=body)
        ids = _ids(answer.data)
        if answer.status != 200 or not record(answer.data).get("success") or not ids:
            raise _refused(answer, offer, ids)
        with suppress(ProviderError):  # sometimes only one of the two ways puts the key there; an error here must not lose the machine
            self._ask("ssh", "POST", f"/api/v0/instances/{ids[0]}/ssh/", body={"ssh_key": spec.ssh_public_key})
        return Instance(
            provider=self.name,
            id=ids[0],
            label=spec.label,
            status=InstanceStatus.PENDING,
            prices=offer.prices,
            disk_gib=_gib(disk_gb),
            gpu_name=offer.gpu_name,
        )

    def describe(self, instance_id: str) -> Instance:
        answer = self._ask("show", "GET", f"/api/v0/instances/{instance_id}/", params={"owner": "me"})
        if answer.data == {"instances": None} or self._absent(answer, instance_id):  # destroyed: exactly the first; never there: the other
            return Instance(provider=self.name, id=instance_id, label="", status=InstanceStatus.GONE)
        instance = self._instance(record(answer.data).get("instances"))
        if instance.id != instance_id:
            raise UnexpectedResponse(f"asked Vast for instance {instance_id}, it answered with {instance.id}")
        return instance

    def instances(self) -> Sequence[Instance]:
        rows: dict[str, Instance] = {}
        total = 0
        params = {"limit": str(self._page_size), "order_by": '[{"col":"id","dir":"asc"}]'}
        for page in self._pages(_Instances, "list", "/api/v1/instances/", params):
            rows |= {instance.id: instance for instance in map(self._instance, page.instances)}
            total = page.total_instances
        if len(rows) < total:
            raise UnexpectedResponse(f"Vast counts {total} instances but listed {len(rows)}")
        return list(rows.values())

    def terminate(self, instance_id: str) -> None:
        answer = self._ask("destroy", "DELETE", f"/api/v0/instances/{instance_id}/", body={})
        if not self._absent(answer, instance_id) and record(answer.data).get("success") is not True:
            raise _odd(answer, f"destroy instance {instance_id}")

    def account(self) -> Account:
        """Keys have rights: one without `user_read` is refused here as a wrong one is, and a listing tells the two apart."""
        try:
            answer = self._ask("user", "GET", "/api/v0/users/current/")
        except AuthError:
            self.instances()
            return Account(name="Vast account", lacks=("user_read",))
        if answer.status != 200:
            raise _odd(answer, "who we are")
        user = as_agreed(_User, answer.data, cloud="Vast")
        told = "autobill_threshold" in user.model_fields_set
        auto_pay = user.autobill_threshold is not None if told else None
        return Account(name=user.email or str(user.id), id=str(user.id), balance_usd=user.credit, auto_pay=auto_pay)  # `balance` is 0

    def billed_usd(self, instance_id: str) -> Decimal | None:
        """By Vast's own charges, whose amounts are rounded to a tenth of a cent."""
        day = {"gte": int((self._now() - timedelta(days=60)).timestamp()), "lte": int((self._now() + timedelta(days=1)).timestamp())}
        params = {"select_filters": json.dumps({"day": day, "type": {"in": ["instance"]}}), "format": "table", "limit": "100"}
        pages = self._pages(_Charges, "charges", "/api/v0/charges/", params)
        found = [charge for page in pages for charge in page.results if charge.source == f"instance-{instance_id}"]
        return sum((charge.usd() for charge in found), Decimal(0)) if found else None

    @cached_property
    def _http(self) -> CloudHTTP:
        return CloudHTTP(self._url, cloud="Vast", key=self._key, key_hint=KEY_HINT, ids_in=_ids, pace=self._pace)

    def _ask(self, kind: str, method: str, path: str, *, params: Mapping[str, str] | None = None, body: object | None = None) -> Answer:
        """One call, in its turn; the answers that say nothing of its effect, and those about key and limits, are errors for every kind."""
        try:
            answer = self._http.call(method, path, params=params, json=body, expect=READABLE, kind=kind)
        except RateLimited as error:
            raise _limited(error) from None
        code = _code(answer.data)
        if code == "auth_error" or (answer.status == 403 and not code):
            raise AuthError(f"Vast answered {method} {path} with {answer.status}: {said(answer.data) or 'forbidden'}", hint=KEY_HINT)
        if code == "rate_limit_exceeded":
            raise _limited(RateLimited(f"Vast: {said(answer.data)}"))
        return answer

    def _pages(self, model: type[P], kind: str, path: str, params: Mapping[str, str]) -> Iterator[P]:
        """Every page; a token that leads in a circle, or on for ever, is not an answer."""
        token, seen = "", set[str]()
        while token not in seen and len(seen) < PAGE_LIMIT:
            seen.add(token)
            page = as_agreed(
                model, self._ask(kind, "GET", path, params={**params, **({"after_token": token} if token else {})}).data, cloud="Vast"
            )
            yield page
            if not page.next_token:
                return
            token = page.next_token
        raise UnexpectedResponse(f"Vast's pages at {path} do not end")

    def _absent(self, answer: Answer, instance_id: str) -> bool:
        """Whether Vast itself says that there is no such instance, and a whole listing agrees. Any other 404 says nothing.

        A session that has expired sees no instance either; a listing it does not get.
        """
        if answer.status == 200:
            return False
        if answer.status != 404 or _code(answer.data) not in ABSENT:
            raise _odd(answer, "an instance")
        if any(instance.id == instance_id for instance in self.instances()):
            raise UnexpectedResponse(f"Vast does not find instance {instance_id}, yet lists it")
        return True

    def _search(self, wanted: Requirements, kind: str) -> Iterable[Offer]:
        query = search_body(wanted, kind)
        found: dict[int, Offer] = {}
        faults: list[str] = []
        floor: tuple[str, float] | None = None
        for page in range(SEARCH_PAGES):
            body = query | ({"dph_total": {**query.get("dph_total", {}), floor[0]: floor[1]}} if floor else {})
            try:
                answer = self._ask("search", "POST", "/api/v0/bundles/", body=body)
            except RateLimited:
                if page == 0:
                    raise
                break  # the cheapest are known, the rest is dearer
            rows = record(answer.data).get("offers") if answer.status == 200 else None
            if not isinstance(rows, list):
                raise _odd(answer, "a search")
            found |= dict(offers_from(rows, kind, faults))
            prices = [float(price) for row in rows if isinstance(price := record(row).get("dph_total"), int | float) and 0 < price < 1e6]
            if len(rows) < ROWS or not prices:
                break
            last = max(prices)
            floor = ("gte" if floor is None or last > floor[1] else "gt", last)  # gt: one price fills a whole page
        if faults and not found:
            raise UnexpectedResponse(f"none of Vast's {len(faults)} offers can be read; the first: {faults[0]}")
        return found.values()

    def _instance(self, data: object) -> Instance:
        row = as_agreed(_Row, {**record(data), "rates": data}, cloud="Vast")
        return Instance(
            provider=self.name,
            id=str(row.id),
            label=row.label or "",
            status=status_of(row),
            prices=row.rates.prices() if row.rates else None,
            disk_gib=_gib(row.disk_space or 0),
            ssh=self._endpoint(row),
            status_text=" ".join((row.status_msg or row.actual_status or "").split()),
            gpu_name=row.gpu_name or "",
            created_at=datetime.fromtimestamp(row.start_date, UTC) if row.start_date else None,
        )

    def _endpoint(self, row: _Row) -> SSHEndpoint | None:
        """Direct where there is a port for it; the proxy is slower but always there."""
        if row.actual_status != "running":
            return None
        port = next((port.HostPort for port in (row.ports or {}).get("22/tcp") or []), None)
        address, proxy = (HOST.match((host or "").strip()) for host in (row.public_ipaddr, row.ssh_host))  # seen with a line break
        if port and address:
            return SSHEndpoint(host=address[0], port=port, user=row.ssh_user)
        waited_s = self._monotonic_s() - self._portless_since.setdefault(row.id, self._monotonic_s())
        if not proxy or not row.ssh_port or (row.direct_port_count and waited_s < PORTS_PATIENCE_S):
            return None
        return SSHEndpoint(host=proxy[0], port=row.ssh_port + ("jupyter" in (row.image_runtype or "")), user=row.ssh_user)


def search_body(wanted: Requirements, kind: str) -> dict[str, Any]:
    """The search as Vast wants it. Filters are not always applied, so that the planner checks again; they save rows, which are rationed."""
    body: dict[str, Any] = {
        "type": kind,
        "order": [["dph_total", "asc"]],
        "limit": ROWS,
        "allocated_storage": float(max(MIN_DISK_GB, math.ceil(wanted.disk_gib * GB_PER_GIB))),
        "rentable": {"eq": True},
        "external": {"eq": False},
        "num_gpus": {"eq": 1},  # one is what the trainer uses
        "disk_space": {"gte": math.ceil(wanted.disk_gib * GB_PER_GIB)},
        "cuda_max_good": {"gte": MIN_CUDA},
        "duration": {"gte": MIN_DURATION_S},
    }
    if wanted.verified_only:
        body["verified"] = {"eq": True}
    if wanted.gpus:
        body["gpu_name"] = {"in": sorted(wanted.gpus)}
    if wanted.min_vram_gib:
        body["gpu_ram"] = {"gte": math.floor(wanted.min_vram_gib * 1024 * 0.9)}  # the usable part is up to 10 % below the nominal
    if wanted.min_reliability:
        body["reliability2"] = {"gte": wanted.min_reliability}
    if wanted.max_usd_per_hour is not None:
        body["dph_total"] = {"lte": float(wanted.max_usd_per_hour)}
    if wanted.regions:
        body["geolocation"] = {"in": sorted(wanted.regions)}
    return body


def offers_from(rows: Iterable[object], kind: str, faults: list[str]) -> Iterable[tuple[int, Offer]]:
    """Vast's rows in our words; those that make no sense are left out, and why goes into `faults`."""
    for data in rows:
        try:
            row = _Offer.model_validate(data)
        except ValidationError as error:
            faults.append(fault(error))
            continue
        if row.cpu_arch not in (None, "", "amd64", "x86_64") or row.gpu_arch not in (None, "", "nvidia"):
            continue  # no image of ours runs there
        prices = row.prices()
        if kind == "bid":
            bid = (max(row.min_bid or row.dph_base, Decimal("0.001")) * BID_MARGIN).quantize(Decimal("0.0001"), ROUND_UP)
            prices = replace(prices, gpu_usd_per_hour=bid)  # the highest bid runs, and pays what it bid
        place = re.search(r"\b([A-Z]{2})$", row.geolocation or "")
        yield (
            row.id,
            Offer(
                provider=Vast.name,
                id=f"{row.id}/bid" if kind == "bid" else str(row.id),  # the same offer can be had both ways
                machine_id=str(row.machine_id),
                gpu_name=row.gpu_name,
                gpu_count=row.num_gpus,
                vram_gib=_vram_gib(row.gpu_ram),
                prices=prices,
                disk_gib=_gib(max(row.disk_space - 1, 0)),  # what we ask for is rounded up
                down_mbit_s=row.inet_down or 0.0,
                up_mbit_s=row.inet_up or 0.0,
                reliability=row.reliability or 0.0,
                verified=row.verification == "verified",
                secure=bool(row.hosting_type),
                region=place[1] if place else "",
                interruptible=kind == "bid",
            ),
        )


def status_of(row: _Row) -> InstanceStatus:
    """One word from four fields and a text."""
    if row.cur_state == row.intended_status == row.next_state == "stopped" and row.actual_status in (None, "", *STATUSES):
        return InstanceStatus.STOPPED  # outbid, or a bid too low from the start; `actual_status` may lag behind
    if not row.actual_status:
        return InstanceStatus.PENDING  # just created
    status = STATUSES.get(row.actual_status, InstanceStatus.UNKNOWN)
    if status is InstanceStatus.PENDING and DEAD_ON_ARRIVAL.search(row.status_msg or ""):
        return InstanceStatus.STOPPED  # it says `created` for ever
    return status


def onstart_script(spec: LaunchSpec) -> str:
    """What makes logins work, then the caller's own.

    Without the first file every login ends in tmux. Logins do not inherit the container's environment, hence the third line.
    """
    return f"""\
touch ~/.no_auto_tmux
mkdir -p ~/.ssh && printf '\\n%s\\n' {shlex.quote(spec.ssh_public_key)} >> ~/.ssh/authorized_keys && chmod 700 ~/.ssh && chmod 600 ~/.ssh/*
{{ export -p; cat ~/.bashrc 2>/dev/null; }} > ~/.bashrc.new; mv ~/.bashrc.new ~/.bashrc
{spec.onstart}
"""


def _code(data: object) -> str:
    return str(record(data).get("error") or "")


def _ids(data: object) -> tuple[str, ...]:
    """Every instance id in an answer, also an error's: a bid that is too low is refused AND leaves a stopped machine that bills."""
    values = [str(record(data).get(name)) for name in ("new_contract", "instance_id")]
    return tuple(dict.fromkeys(value for value in values if value.isdecimal() and int(value)))


def _odd(answer: Answer, what: str, ids: tuple[str, ...] = ()) -> UnexpectedResponse:
    return UnexpectedResponse(f"Vast answered {answer.status} about {what}: {said(answer.data)}", instance_ids=ids)


def _refused(answer: Answer, offer: Offer, ids: tuple[str, ...]) -> ProviderError:
    """Why a create did not end well; only what certainly rented nothing is told as such."""
    code = _code(answer.data)
    if ids or (kind := REFUSALS.get(code)) is None:
        return _odd(answer, f"offer {offer.id}", ids)
    hint = "see credit and limits at cloud.vast.ai/billing" if code in ("insufficient_credit", "spend_rate_limit") else ""
    return kind(f"Vast did not rent offer {offer.id}: {said(answer.data)}", hint=hint)


def _limited(error: RateLimited) -> ProviderError:
    """How long to wait, from whatever the answer's words or headers say."""
    words = str(error)
    if "spend_rate_limit" in words:
        return Refused(words, hint="a new account may only spend so fast; wait, or add credit at cloud.vast.ai/billing")
    told = re.findall(r'(?:threshold=|"retry_after": ?"?)(\d+(?:\.\d+)?)', words)
    error.retry_after_s = max([error.retry_after_s, *map(float, told)])
    return error


def _gib(gb: float) -> int:
    return int(Decimal(gb) / GB_PER_GIB)


def _vram_gib(mib: float) -> float:
    """The nominal size where the usable one is a little less: 24564 MiB is a 24 GiB card."""
    gib, whole = mib / 1024, math.ceil(mib / 1024)
    return float(whole) if whole / gib < 1.025 else round(gib, 2)
