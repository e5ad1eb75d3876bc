"""TensorDock: virtual machines on other people's hosts. NEVER TRIED LIVE: written to the public pages of its API v2.

A machine is a part of a host: a GPU, cores, memory and a disk, at one rate an hour. That rate is all that TensorDock says of a machine that
runs, so an offer names it too, with everything added up. Nothing is said of fees for traffic. The API tells neither balance nor charges.

It is a whole Linux, not a container: what other clouds put into a container's environment, cloud-init writes down for logins. No key on the
machine could end it but the account's own, which never leaves this computer, so these machines are UNGUARDED.

Environment: `TENSORDOCK_API_KEY`, else a key that was kept; `LORRY_TENSORDOCK_URL` for another address.
"""

from __future__ import annotations

import base64
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

from .answers import Id, OddIsNone, Wire, as_agreed, readable, record, said
from .base import Account, Instance, InstanceStatus, LaunchSpec, Offer, Prices, Requirements, SSHEndpoint
from .errors import AuthError, NoCapacity, ProviderError, RateLimited, Refused, UnexpectedResponse
from .http import Answer, CloudHTTP, Pace
from .keys import ApiKey

URL = "https://dashboard.tensordock.com/api/v2"
CONSOLE_URL = "https://dashboard.tensordock.com"
KEY_HINT = "make a token at dashboard.tensordock.com/api and keep it with `lorry login tensordock`, or put it into TENSORDOCK_API_KEY"

GB_PER_GIB = Decimal(2**30) / 10**9  # they say GB; should they mean GiB, we get 7 % more disk, at the price that we stated
MIN_DISK_GB, DISK_STEP_GB = 100, 50
CORES, MEMORY_GB = 8, 32  # for one card; to be had in steps of 2 and 8
IMAGE = "ubuntu2404_ml_pytorch"
"""Brings driver, CUDA and torch. Container images cannot run here: only a name without "/" and ":" is taken for one of TensorDock's."""
DATA_CENTRE_TIER = 3
INTERVALS_S = {"GET": 1.0}
"""100 calls a minute is the documented quota: whoever only looks leaves some of it to those who act."""

GPU = re.compile(r"(?:geforce)?(?P<model>[a-z0-9]+)-(?P<bus>[a-z0-9]+)-(?P<gib>\d+)gb")
NAMES = {
    "a100-pcie": "A100 PCIE",
    "a100-sxm4": "A100 SXM4",
    "h100-pcie": "H100 PCIE",
    "h100-sxm5": "H100 SXM",
    "v100-pcie": "Tesla V100",
    "teslav100-pcie": "Tesla V100",
}
"""Model and bus -> the field's name, where the rule in `gpu_name` does not make it."""

COUNTRIES = {
    "australia": "AU", "austria": "AT", "belgium": "BE", "bulgaria": "BG", "canada": "CA", "czechia": "CZ", "czech republic": "CZ",
    "denmark": "DK", "estonia": "EE", "finland": "FI", "france": "FR", "germany": "DE", "hungary": "HU", "iceland": "IS", "india": "IN",
    "ireland": "IE", "israel": "IL", "italy": "IT", "japan": "JP", "mexico": "MX", "netherlands": "NL", "the netherlands": "NL",
    "norway": "NO", "poland": "PL", "portugal": "PT", "romania": "RO", "singapore": "SG", "south africa": "ZA", "south korea": "KR",
    "spain": "ES", "sweden": "SE", "switzerland": "CH", "taiwan": "TW", "united arab emirates": "AE", "united kingdom": "GB",
    "united states": "US", "united states of america": "US", "usa": "US",
}  # fmt: skip

STATUSES = {
    "queued": InstanceStatus.PENDING,
    "starting": InstanceStatus.PENDING,
    "running": InstanceStatus.RUNNING,
    "stopping": InstanceStatus.STOPPED,
    "stopped": InstanceStatus.STOPPED,
    "stoppeddisassociated": InstanceStatus.STOPPED,  # its card is somebody else's by now; the disk bills on
    "error": InstanceStatus.STOPPED,
    "deleted": InstanceStatus.GONE,
}
"""Seen with capitals, with and without "_"; `deleting` is not in it: it may bill."""

REFUSALS: tuple[tuple[str, type[ProviderError], str], ...] = (
    (r"balance|credit|need at least", Refused, "add credit at dashboard.tensordock.com: a machine wants a dollar in advance"),
    (r"not available|no longer|not enough|no (available )?(host|node|gpu|port)|out of stock|already (in use|taken)", NoCapacity, ""),
)
"""What the words of a 4xx promise. They are not documented: any other words promise nothing, and the label is looked for."""


Rate = Annotated[Decimal, Field(ge=0, le=10)]


class _Pricing(Wire):
    per_vcpu_hr: Rate
    per_gb_ram_hr: Rate
    per_gb_storage_hr: Rate


class _Card(Wire):
    v0Name: str  # noqa: N815 - TensorDock's spelling, as below
    availableCount: int  # noqa: N815
    price_per_hr: Annotated[Decimal, Field(gt=0, le=1000)]


class _Free(Wire):
    gpus: list[_Card]
    vcpu_count: int
    ram_gb: int
    storage_gb: Annotated[float, Field(ge=0, le=1e6)]
    available_ports: tuple[Annotated[int, Field(gt=0, lt=65536)], ...] = ()


class _Place(Wire):
    country: OddIsNone[str] = None
    tier: OddIsNone[int] = None
    network_speed_gbps: OddIsNone[Annotated[float, Field(ge=0)]] = None
    network_speed_upload_gbps: OddIsNone[Annotated[float, Field(ge=0)]] = None


class _Host(Wire):
    """An offer that lacks a price or a size is dropped: what is not stated may cost."""

    id: Id
    available_resources: _Free
    pricing: _Pricing
    uptime_percentage: Annotated[float, Field(ge=0, le=100)]
    location: _Place = _Place()


class _Forward(Wire):
    internal_port: int
    external_port: Annotated[int, Field(gt=0, lt=65536)]


class _Machine(Wire):
    """Only what says whose it is and whether it bills must be there. The listing has no more than that."""

    id: Id
    name: str
    status: str | None
    ipAddress: OddIsNone[Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.:-]*$")]] = None  # noqa: N815
    portForwards: OddIsNone[list[_Forward]] = None  # noqa: N815
    rateHourly: OddIsNone[Annotated[Decimal, Field(gt=0, le=1000)]] = None  # noqa: N815
    resources: OddIsNone[dict[str, Any]] = None
    ssh_user: str = "root"
    """Only the practice cloud says it, whose machines cannot all be root."""


class TensorDock:
    """TensorDock with one organization's token."""

    name = "tensordock"
    self_destroy = None
    api_key = ApiKey(variable="TENSORDOCK_API_KEY", addresses={"LORRY_TENSORDOCK_URL": URL}, made_at="https://dashboard.tensordock.com/api")

    def __init__(self, key: str, *, url: str = URL, intervals_s: Mapping[str, float] = INTERVALS_S) -> None:
        self._key, self._url, self._pace = key, url, Pace(intervals_s)

    @classmethod
    def from_env(cls, key: str = "") -> TensorDock:
        key, (url,) = cls.api_key.find(key)
        return cls(key, url=url)

    def __repr__(self) -> str:
        return f"TensorDock(url={self._url!r})"

    @property
    def console_url(self) -> str:
        return CONSOLE_URL if self._url == URL else f"{self._url}/instances"

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        rows = record(record(self._ask("GET", "/hostnodes").data).get("data")).get("hostnodes")
        if not isinstance(rows, list):
            raise UnexpectedResponse("TensorDock's list of hosts is not as agreed")
        return offers_from(rows, requirements.disk_gib)

    def launch(self, offer: Offer, spec: LaunchSpec) -> Instance:
        answer = self._ask("POST", "/instances", body=create_body(offer, spec), expect=frozenset({200, 201, 400, 402, 404, 409, 422}))
        ids = _ids(answer.data)
        if answer.status not in (200, 201):
            raise _refused(answer, offer, ids)
        made = as_agreed(_Machine, _flat(answer.data), cloud="TensorDock", ids=ids)
        if made.name != spec.label:  # it could not be found again by its label, so it must not live
            raise UnexpectedResponse(f"TensorDock named the machine {made.name!r}, asked for {spec.label!r}", instance_ids=ids)
        return Instance(
            provider=self.name,
            id=made.id,
            label=spec.label,
            status=InstanceStatus.PENDING,  # "running" is said at once, of a machine that has not begun to boot
            prices=offer.prices,
            disk_gib=_gib(disk_gb(spec.disk_gib)),
            gpu_name=offer.gpu_name,
        )

    def describe(self, instance_id: str) -> Instance:
        answer = self._ask("GET", f"/instances/{instance_id}", expect=frozenset({200, 404}))
        if self._absent(answer, instance_id):
            return Instance(provider=self.name, id=instance_id, label="", status=InstanceStatus.GONE)
        instance = _instance(_flat(answer.data))
        if instance.id != instance_id:
            raise UnexpectedResponse(f"asked TensorDock for instance {instance_id}, it answered with {instance.id}")
        return instance

    def instances(self) -> Sequence[Instance]:
        """In one page, as far as the documents say; an answer that speaks of another page is not taken for the whole."""
        document = record(self._ask("GET", "/instances").data)
        data = document.get("data")
        rows = data if isinstance(data, list) else record(data).get("instances")  # people saw the first, the documents have the second
        if not isinstance(rows, list):
            raise UnexpectedResponse("TensorDock's list of instances is not as agreed")
        if any(record(place).get("next") for place in (document.get("links"), document.get("meta"), record(data).get("pagination"))):
            raise UnexpectedResponse("TensorDock's list of instances goes on, and nobody knows how to ask for the rest")
        found = [_instance(_flat(row)) for row in rows]
        return [one for one in found if one.status is not InstanceStatus.GONE]

    def terminate(self, instance_id: str) -> None:
        self._absent(self._ask("DELETE", f"/instances/{instance_id}", expect=frozenset({200, 204, 404})), instance_id)

    def account(self) -> Account:
        """Nothing documented says whose token it is; that it can list proves it."""
        self.instances()
        return Account(name="TensorDock organization")

    def billed_usd(self, instance_id: str) -> Decimal | None:
        """The API has no record of charges."""
        del instance_id
        return None

    def _absent(self, answer: Answer, instance_id: str) -> bool:
        """Whether there is no such machine. The words of a 404 are not documented, so a whole listing has to agree."""
        if answer.status != 404:
            return False
        if any(instance.id == instance_id for instance in self.instances()):
            raise UnexpectedResponse(f"TensorDock does not find instance {instance_id}, yet lists it")
        return True

    @cached_property
    def _http(self) -> CloudHTTP:
        return CloudHTTP(self._url, cloud="TensorDock", key=self._key, key_hint=KEY_HINT, ids_in=_ids, pace=self._pace)

    def _ask(self, method: str, path: str, *, body: object | None = None, expect: frozenset[int] = frozenset({200})) -> Answer:
        """One call. A failure may come with status 200 and its real status in the body."""
        answer = self._http.call(method, path, json=body, expect=expect, kind=method)
        document = record(answer.data)
        told = document.get("status")
        status = told if isinstance(told, int) and told >= 400 else 400 if document.get("error") and answer.status < 300 else answer.status
        if status == answer.status:
            return answer
        words = f"TensorDock answered {method} {path} with {answer.status} and, in it, {status}: {said(document)}"
        if status in (401, 403):
            raise AuthError(words, hint=KEY_HINT)
        if status == 429:
            raise RateLimited(words)
        if status not in expect:
            raise UnexpectedResponse(words, instance_ids=_ids(document))
        return Answer(status, answer.data)


def disk_gb(disk_gib: int) -> int:
    """What is asked for, so that it holds so many GiB."""
    return max(MIN_DISK_GB, math.ceil(disk_gib * GB_PER_GIB / DISK_STEP_GB) * DISK_STEP_GB)


def _gib(gb: float) -> int:
    return int(Decimal(gb) / GB_PER_GIB)


def create_body(offer: Offer, spec: LaunchSpec) -> dict[str, Any]:
    """The body of the create: on that host, SSH behind one of its free ports."""
    host, _, card = offer.id.partition("/")
    attributes = {
        "name": spec.label,
        "type": "virtualmachine",
        "image": IMAGE if re.search("[/:]", spec.image) else spec.image,
        "hostnode_id": host,
        "resources": {"vcpu_count": CORES, "ram_gb": MEMORY_GB, "storage_gb": disk_gb(spec.disk_gib), "gpus": {card: {"count": 1}}},
        "port_forwards": [{"internal_port": 22, "external_port": offer.provider_data["port"]}],
        "ssh_key": spec.ssh_public_key,
        "cloud_init": {"runcmd": [first_boot(spec)]},
    }
    return {"data": {"type": "virtualmachine", "attributes": attributes}}


def first_boot(spec: LaunchSpec) -> str:
    """What cloud-init runs once, as root: the environment for logins, then the way in for them, then the caller's own.

    `ssh_key` lets in another user than root, and leaves root a key that is answered with "please log in as": hence `>`, not `>>`. One line
    without quotes that YAML could stumble over. cloud-init has no HOME.
    """
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in spec.env.items())
    script = f"""\
export HOME="${{HOME:-/root}}"; cd && umask 077 && mkdir -p ~/.ssh
printf %s {shlex.quote(exports)} >~/.lorry_environment
{{ echo '. ~/.lorry_environment'; cat ~/.bashrc 2>/dev/null; }} >~/.bashrc.new; mv ~/.bashrc.new ~/.bashrc
printf '%s\\n' {shlex.quote(spec.ssh_public_key)} >~/.ssh/authorized_keys
. ~/.lorry_environment
sh -c {shlex.quote(spec.onstart)} >~/.lorry_onstart.log 2>&1 &
"""
    return f'sh -c "$(echo {base64.b64encode(script.encode()).decode()} | base64 -d)"'


def offers_from(rows: Iterable[object], disk_gib: int) -> list[Offer]:
    """Each kind of card on each host."""
    return readable(rows, lambda row: _offers(_Host.model_validate(row), disk_gib), whose="TensorDock's list of hosts")


def _offers(host: _Host, disk_gib: int) -> list[Offer]:
    free, pricing, place = host.available_resources, host.pricing, host.location
    if free.vcpu_count < CORES or free.ram_gb < MEMORY_GB or not free.available_ports:
        return []
    rest_usd = CORES * pricing.per_vcpu_hr + MEMORY_GB * pricing.per_gb_ram_hr + disk_gb(disk_gib) * pricing.per_gb_storage_hr
    return [
        Offer(
            provider=TensorDock.name,
            id=f"{host.id}/{card.v0Name}",
            machine_id=host.id,
            gpu_name=known[0],
            vram_gib=known[1],
            prices=Prices(gpu_usd_per_hour=round(card.price_per_hr + rest_usd, 6)),
            disk_gib=_gib(free.storage_gb // DISK_STEP_GB * DISK_STEP_GB),
            down_mbit_s=(place.network_speed_gbps or 0) * 1000,
            up_mbit_s=(place.network_speed_upload_gbps or 0) * 1000,
            reliability=host.uptime_percentage / 100,
            verified=bool(place.tier),
            secure=(place.tier or 0) >= DATA_CENTRE_TIER,
            region=COUNTRIES.get((place.country or "").strip().lower(), ""),
            provider_data={"port": free.available_ports[0]},
        )
        for card in free.gpus
        if card.availableCount > 0 and (known := gpu_name(card.v0Name))
    ]


def gpu_name(v0_name: str) -> tuple[str, float] | None:
    """The field's name and the GiB of "geforcertx4090-pcie-24gb"; None for what is spelled otherwise."""
    found = GPU.fullmatch(v0_name)
    if found is None or not int(found["gib"]):
        return None
    words = re.sub(r"^(rtx|gtx)(pro)?", lambda m: " ".join(filter(None, m.groups())) + " ", found["model"]).upper()
    spelled = re.sub(r"(\d)TI$", r"\1 Ti", words).replace("ADA", "Ada")
    return NAMES.get(f"{found['model']}-{found['bus']}", spelled), float(found["gib"])


def _instance(data: object) -> Instance:
    machine = as_agreed(_Machine, data, cloud="TensorDock")
    status = STATUSES.get((machine.status or "").lower().replace("_", ""), InstanceStatus.UNKNOWN)
    port = next((one.external_port for one in machine.portForwards or [] if one.internal_port == 22), None)
    reachable = status is InstanceStatus.RUNNING and machine.ipAddress and port
    if status is InstanceStatus.RUNNING and not reachable and machine.portForwards is not None:
        status = InstanceStatus.PENDING
    resources = machine.resources or {}
    storage, cards = resources.get("storage_gb"), list(record(resources.get("gpus")))
    known = gpu_name(cards[0]) if len(cards) == 1 else None
    return Instance(
        provider=TensorDock.name,
        id=machine.id,
        label=machine.name,
        status=status,
        prices=Prices(gpu_usd_per_hour=machine.rateHourly) if machine.rateHourly and status is not InstanceStatus.STOPPED else None,
        disk_gib=_gib(storage) if isinstance(storage, int | float) and 0 <= storage < 1e6 else 0,
        ssh=SSHEndpoint(host=machine.ipAddress, port=port, user=machine.ssh_user) if reachable and machine.ipAddress and port else None,
        status_text=machine.status or "no status",
        gpu_name=known[0] if known else "",
    )


def _refused(answer: Answer, offer: Offer, ids: tuple[str, ...]) -> ProviderError:
    """What an answer to a create means that is no machine."""
    told = said(answer.data)
    for words, kind, hint in REFUSALS:
        if not ids and re.search(words, told, re.IGNORECASE):
            return kind(f"TensorDock did not rent {offer.gpu_name} ({offer.id}): {told}", hint=hint)
    return UnexpectedResponse(f"TensorDock answered the create of {offer.id} with {answer.status}: {told}", instance_ids=ids)


def _flat(data: object) -> dict[str, Any]:
    """One machine without the envelopes that it comes in here and not there."""
    row = record(data)
    row = record(row["data"]) if "data" in row else row
    return {**record(row.get("attributes")), **row}


def _ids(data: object) -> tuple[str, ...]:
    value = _flat(data).get("id")
    return (str(value),) if isinstance(value, str | int) and value and not isinstance(value, bool) else ()
