"""RunPod by its REST API v2; GraphQL for the balance alone, which v2 does not tell. REST v1 ended on 2026-11-15.

Owns the words of that API, its units and its lies. NEVER TRIED LIVE: written to RunPod's published OpenAPI document (2.0.0, August 2026),
to what its own command line sends since, and to what others measured; what only an account can show is to be tried with one.

Only on demand: RunPod's spot machines are gone. One offer is one GPU type in one cloud and, in the secure one, in one data centre: that is
what a create can ask for and what a bad machine can be remembered by. The machine has its own key in its environment.

Environment: `RUNPOD_API_KEY`, else a key that was kept; `LORRY_RUNPOD_URL` and `LORRY_RUNPOD_GRAPHQL_URL` for another server.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from .answers import Id, OddIsNone, Wire, as_agreed, readable, record, said
from .base import Account, Instance, InstanceStatus, LaunchSpec, Offer, Prices, Requirements, SelfDestroy, SSHEndpoint
from .errors import AuthError, NoCapacity, ProviderError, Refused, UnexpectedResponse
from .http import Answer, CloudHTTP, Pace
from .keys import ApiKey

URL = "https://api.runpod.io/v2"
GRAPHQL_URL = "https://api.runpod.io/graphql"
CONSOLE_URL = "https://console.runpod.io/pods"
KEY_HINT = (
    "make a key with read and write rights at console.runpod.io/user/settings and keep it with `lorry login runpod`,"
    " or put it into RUNPOD_API_KEY"
)

DISK_USD_PER_GIB_HOUR = round(Decimal("0.10") / (30 * 24), 9)
"""Container disk: 0.10 USD a GB and month. Traffic is free. Their GB is taken for a GiB and their month for 30 days: the dear side."""
RELIABILITY = {"SECURE": 0.99, "COMMUNITY": 0.96}
"""RunPod publishes none. ASSUMED: data centres against vetted private hosts."""
SANE_USD_PER_HOUR = Decimal(1000)
INTERVALS_S = {"show": 2.0, "list": 1.0}
"""60 calls a minute is the documented quota: whoever only looks leaves half of it to those who act."""
PAGE_SIZE = 100
PAGE_LIMIT = 1000  # pages; a cursor that never ends is not an answer

NAMES = {
    "NVIDIA A100 80GB PCIe": "A100 PCIE",
    "NVIDIA A100-SXM4-80GB": "A100 SXM4",
    "NVIDIA H100 PCIe": "H100 PCIE",
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000Ada",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX PRO 6000",
}
"""GPU id -> the field's name for it, where RunPod's own display name is another."""

STATUSES = {
    "PROVISIONING": InstanceStatus.PENDING,
    "STARTING": InstanceStatus.PENDING,
    "RUNNING": InstanceStatus.RUNNING,
    "EXITED": InstanceStatus.STOPPED,
    "ERROR": InstanceStatus.STOPPED,
    "TERMINATED": InstanceStatus.GONE,
}

REFUSALS: tuple[tuple[int, str, type[ProviderError], str], ...] = (
    (400, r"no longer any instances|no instances available|does not have the resources|not enough free gpus|enough disk", NoCapacity, ""),
    (400, r"unknown gpu type", NoCapacity, ""),
    (422, r"unknown gpu type", NoCapacity, ""),
    (403, r"\b(pool|gpu type)\b", NoCapacity, ""),
    (402, r"", Refused, "add credit at console.runpod.io/user/billing: RunPod wants an hour of the machine's price in advance"),
    (422, r"", Refused, "RunPod's API does not know this request: look for a newer lorry"),
)
"""Status, words, what it means. These rented nothing. A 400 in other words says nothing sure: full stock and a rule have one status."""

START = r"""
mkdir -p ~/.ssh && chmod 700 ~/.ssh
grep -qsxF "$PUBLIC_KEY" ~/.ssh/authorized_keys || printf '\n%s\n' "$PUBLIC_KEY" >>~/.ssh/authorized_keys
chmod 600 ~/.ssh/authorized_keys
(umask 077; unset PWD OLDPWD SHLVL; export -p >~/.lorry_environment)
if ! grep -qs lorry_environment ~/.bashrc; then
    { echo '. ~/.lorry_environment'; cat ~/.bashrc 2>/dev/null; } >~/.bashrc.new; mv ~/.bashrc.new ~/.bashrc
fi
[ -z "$1" ] || (cd && exec sh -c "$1") >~/.lorry_onstart.log 2>&1 &
[ ! -x /start.sh ] || exec /start.sh
PATH="$PATH:/usr/sbin:/sbin"
command -v sshd >/dev/null && command -v rsync >/dev/null || {
    apt-get update -q; DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends openssh-server rsync ca-certificates; }
mkdir -p /run/sshd 2>/dev/null; ssh-keygen -A
exec "$(command -v sshd)" -D -e
"""
"""The container's command, as a command of ours replaces the image's. Images of RunPod begin by /start.sh, which starts sshd; others
(pytorch/pytorch) have none. A login has nothing of the container's environment, not even its PATH: bash reads ours back from ~/.bashrc."""


M = TypeVar("M", bound=Wire)


class _Gpu(Wire):
    id: str
    count: int = 1


class _Direct(Wire):
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    username: str = Field(min_length=1)


class _SSH(Wire):
    direct: OddIsNone[_Direct] = None


class _Pod(Wire):
    id: Id
    name: str
    status: str | None
    gpu: OddIsNone[_Gpu] = None
    disk: OddIsNone[int] = None
    cost: OddIsNone[Decimal] = None
    runtime: OddIsNone[dict[str, Any]] = None
    ssh: OddIsNone[_SSH] = None
    dataCenterId: OddIsNone[str] = None  # noqa: N815 - RunPod's spelling
    createdAt: OddIsNone[datetime] = None  # noqa: N815


class _More(Wire):
    nextCursor: str | None = None  # noqa: N815
    hasNextPage: bool = False  # noqa: N815


class _Pods(Wire):
    pods: list[_Pod]
    pagination: _More = _More()


class _GpuType(Wire):
    id: Id
    name: str = Field(min_length=1)
    manufacturer: str | None = None
    memory: float = Field(gt=0, le=2048)
    price: dict[str, Any]
    availability: str | None = None
    dataCenters: list[dict[str, Any]] = Field(default_factory=list)  # noqa: N815


class _GpuTypes(Wire):
    gpus: list[Any]


class _Me(Wire):
    id: Id
    email: OddIsNone[str] = None
    clientBalance: OddIsNone[Decimal] = None  # noqa: N815


class _Charge(Wire):
    podId: str  # noqa: N815
    totalAmount: Decimal = Field(ge=0)  # noqa: N815


class _Charges(Wire):
    records: list[_Charge]


def _client_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where RunPod's own tools keep their key."""
    return (Path(environment.get("HOME") or Path.home()) / ".runpod" / "config.toml",)


def key_in(text: str) -> str:
    """The key in such a file: `[default] api_key` of the Python package, else `apikey` of runpodctl. Empty when there is none."""
    try:
        document = tomllib.loads(text)
    except ValueError:
        return ""
    found = record(document.get("default")).get("api_key") or document.get("apikey") or document.get("apiKey")
    return found.strip() if isinstance(found, str) else ""


class RunPod:
    """RunPod with one account's key."""

    name = "runpod"
    api_key = ApiKey(
        variable="RUNPOD_API_KEY",
        addresses={"LORRY_RUNPOD_URL": URL, "LORRY_RUNPOD_GRAPHQL_URL": GRAPHQL_URL},
        made_at="https://console.runpod.io/user/settings",
        client_files=_client_files,
        in_client_file=key_in,
    )

    def __init__(self, key: str, *, url: str = URL, graphql_url: str = GRAPHQL_URL, intervals_s: Mapping[str, float] = INTERVALS_S) -> None:
        self._key, self._url, self._graphql_url, self._pace = key, url, graphql_url, Pace(intervals_s)

    @classmethod
    def from_env(cls, key: str = "") -> RunPod:
        key, (url, graphql_url) = cls.api_key.find(key)
        return cls(key, url=url, graphql_url=graphql_url)

    def __repr__(self) -> str:
        return f"RunPod(url={self._url!r})"

    @property
    def console_url(self) -> str:
        return CONSOLE_URL if self._url == URL else f"{self._url}/pods"

    @property
    def self_destroy(self) -> SelfDestroy:
        """With the key that RunPod gives each pod. NOT SEEN: whether v2 takes it; the guard asks for its own pod first."""
        return SelfDestroy(method="DELETE", url=f"{self._url}/pods/{{RUNPOD_POD_ID}}", key="{RUNPOD_API_KEY}", id_env="RUNPOD_POD_ID")

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        found: list[Offer] = []
        for cloud in RELIABILITY:
            params = {"include": "AVAILABILITY", "product": "POD", "count": "1", "cloud": cloud}
            rows = _read(_GpuTypes, self._http.call("GET", "/catalog/gpus", params=params).data).gpus
            found += offers_from(rows, cloud, requirements.disk_gib)
        return found

    def launch(self, offer: Offer, spec: LaunchSpec) -> Instance:
        body = create_body(offer, spec)
        answer = self._create(body)
        if answer.status == 422 and re.search(r"'cmd' not allowed", said(answer.data)):
            # The API of August 2026 had one string in place of the list. What it does not understand it does not begin to do.
            words = body.pop("cmd")
            answer = self._create(body | {"args": shlex.join(words)})
        ids = _ids(answer.data)
        if answer.status not in (200, 201):
            raise _refused(answer, offer, ids)
        pod = _read(_Pod, answer.data)
        if pod.name != spec.label:  # it could not be found again by its label, so it must not live
            raise UnexpectedResponse(f"RunPod named the pod {pod.name!r}, asked for {spec.label!r}", instance_ids=ids)
        if offer.region and pod.dataCenterId and country(pod.dataCenterId) != offer.region:  # the data centre of a create is a preference
            raise UnexpectedResponse(f"RunPod put the pod into {pod.dataCenterId}, asked for {offer.region}", instance_ids=ids)
        return _instance(pod)

    def describe(self, instance_id: str) -> Instance:
        answer = self._http.call("GET", f"/pods/{instance_id}", expect=frozenset({200, 404}), kind="show")
        if _absent(answer):
            # Somebody else's key is told "not found" too. Ours works if it can list, and then the list must agree.
            if any(instance.id == instance_id for instance in self.instances()):
                raise UnexpectedResponse(f"RunPod does not find pod {instance_id}, yet lists it")
            return Instance(provider=self.name, id=instance_id, label="", status=InstanceStatus.GONE)
        instance = _instance(_read(_Pod, answer.data))
        if instance.id != instance_id:
            raise UnexpectedResponse(f"asked RunPod for pod {instance_id}, it answered with {instance.id}")
        return instance

    def instances(self) -> Sequence[Instance]:
        found: dict[str, Instance] = {}
        params = {"limit": str(PAGE_SIZE), "includeClusterPods": "true"}
        for _ in range(PAGE_LIMIT):
            page = _read(_Pods, self._http.call("GET", "/pods", params=params, kind="list").data)
            found |= {pod.id: _instance(pod) for pod in page.pods}
            more = page.pagination
            if not more.hasNextPage and not more.nextCursor:  # an older API has no pages and tells of none
                return [one for one in found.values() if one.status is not InstanceStatus.GONE]
            if not more.nextCursor or more.nextCursor == params.get("cursor"):
                raise UnexpectedResponse("RunPod's list of pods goes on, but does not say where")
            params["cursor"] = more.nextCursor
        raise UnexpectedResponse(f"RunPod's list of pods does not end after {PAGE_LIMIT} pages")

    def terminate(self, instance_id: str) -> None:
        answer = self._http.call("DELETE", f"/pods/{instance_id}", expect=frozenset({200, 204, 404, 409}))
        if answer.status == 409:
            hint = f"unlock or remove it at {self.console_url}"
            raise UnexpectedResponse(f"RunPod will not end pod {instance_id}: {said(answer.data)}", hint=hint)
        _absent(answer)

    def account(self) -> Account:
        """The balance is known to GraphQL only, which ends in early 2027 and which a key may be barred from: then v2 proves the key."""
        query = {"query": "query { myself { id email clientBalance } }"}
        try:
            answer = self._graphql.call("POST", "", json=query, expect=frozenset({200, 404, 410}))
        except AuthError:
            answer = Answer(403, None)
        if answer.status != 200:
            self.instances()
            return Account(name="RunPod account", lacks=("GraphQL",) if answer.status == 403 else None)
        me = _read(_Me, record(record(answer.data).get("data")).get("myself"))
        return Account(name=me.email or me.id, id=me.id, balance_usd=me.clientBalance)

    def billed_usd(self, instance_id: str) -> Decimal | None:
        """Charged about every five minutes, by the month here: two years back. Final some time after the pod has gone."""
        params = {"podId": instance_id, "bucketSize": "month", "lastN": "24"}
        charges = _read(_Charges, self._http.call("GET", "/billing/pods", params=params).data)
        amounts = [charge.totalAmount for charge in charges.records if charge.podId == instance_id]
        return sum(amounts, Decimal(0)) if amounts else None

    def _create(self, body: Mapping[str, object]) -> Answer:
        return self._http.call("POST", "/pods", json=body, expect=frozenset({200, 201, 400, 402, 403, 422}))

    @cached_property
    def _http(self) -> CloudHTTP:
        return CloudHTTP(self._url, cloud="RunPod", key=self._key, key_hint=KEY_HINT, ids_in=_ids, pace=self._pace)

    @cached_property
    def _graphql(self) -> CloudHTTP:
        return CloudHTTP(self._graphql_url, cloud="RunPod", key=self._key, key_hint=KEY_HINT)


def create_body(offer: Offer, spec: LaunchSpec) -> dict[str, Any]:
    """The body of the create: one GPU type and no fallback, so that nothing is rented that was not ranked."""
    cloud, data_center, gpu_id = offer.id.split("/", 2)
    gpu: dict[str, object] = {"id": gpu_id, "count": 1}
    if cuda := re.search(r"cu(?:da)?(\d\d)\.?(\d)", spec.image):  # a host with an older driver cannot start that image
        gpu["minCudaVersion"] = f"{cuda[1]}.{cuda[2]}"
    body = {
        "name": spec.label,
        "image": spec.image,
        "cloud": cloud,
        "gpu": gpu,
        "disk": spec.disk_gib,
        "ports": ["22/tcp"],
        "env": {**spec.env, "PUBLIC_KEY": spec.ssh_public_key},
        "startSsh": True,
        "cmd": ["sh", "-c", START, "lorry", spec.onstart],
    }
    return body | ({"dataCenterIds": [data_center]} if data_center else {})


def offers_from(rows: Sequence[Any], cloud: str, disk_gib: int) -> list[Offer]:
    """The catalogue of one cloud as offers."""
    return readable(rows, lambda row: _offers(_GpuType.model_validate(row), cloud, disk_gib), whose="RunPod's catalogue")


def _offers(row: _GpuType, cloud: str, disk_gib: int) -> list[Offer]:
    price = Decimal(str(row.price.get(cloud.lower()) or 0))  # 0 or null: not in this cloud
    if not price.is_finite() or not 0 <= price < SANE_USD_PER_HOUR:
        raise ValueError(f"{row.id} at {price} USD an hour")
    if not price or row.availability == "NONE" or (row.manufacturer or "NVIDIA").upper() != "NVIDIA":  # the trainer needs CUDA
        return []
    centers = [str(one["id"]) for one in row.dataCenters if one.get("id") and one.get("availability") != "NONE"]
    return [
        Offer(
            provider=RunPod.name,
            id=(place := f"{cloud}/{center}/{row.id}"),
            machine_id=place,
            pooled=True,
            gpu_name=NAMES.get(row.id, row.name),
            vram_gib=row.memory,
            prices=Prices(gpu_usd_per_hour=price, disk_usd_per_gib_hour=DISK_USD_PER_GIB_HOUR),
            disk_gib=disk_gib,  # the catalogue has no bound; a create that asks for too much is refused
            reliability=RELIABILITY[cloud],
            secure=cloud == "SECURE",
            region=country(center),
        )
        for center in ((dict.fromkeys(centers) or [""]) if cloud == "SECURE" else [""])
    ]


def country(data_center: str) -> str:
    """Its two letters: EU-RO-1 is in Romania, US-TX-3 and CA-MTL-1 name theirs first. Empty when it has none."""
    first, *rest = data_center.split("-")
    return first if first in ("US", "CA") else next((word for word in rest[:1] if re.fullmatch("[A-Z]{2}", word)), "")


def _instance(pod: _Pod) -> Instance:
    """RUNNING IS A LIE for a minute or many: it is said from the create on. Only `runtime` tells that the container is there, and only
    `ssh.direct` where; the proxy beside it takes no commands and no files. A stopped pod keeps a stale runtime.
    """
    status = STATUSES.get(pod.status or "", InstanceStatus.UNKNOWN)
    runs = status is InstanceStatus.RUNNING and pod.runtime is not None
    direct = pod.ssh.direct if pod.ssh and runs else None
    gpus = pod.gpu.count if pod.gpu else 0
    text = pod.status or "no status"
    if status is InstanceStatus.RUNNING and not runs:
        status, text = InstanceStatus.PENDING, "the container has not started"
    sane = pod.cost is not None and 0 < pod.cost < SANE_USD_PER_HOUR and status is not InstanceStatus.STOPPED  # then it is the disk's, or 0
    cost = pod.cost if sane else None
    created = pod.createdAt
    return Instance(
        provider=RunPod.name,
        id=pod.id,
        label=pod.name,
        status=status,
        prices=Prices(gpu_usd_per_hour=cost, disk_usd_per_gib_hour=DISK_USD_PER_GIB_HOUR) if cost else None,
        disk_gib=pod.disk or 0,
        ssh=SSHEndpoint(host=direct.host, port=direct.port, user=direct.username) if direct else None,
        status_text=text if gpus or not runs else f"{text} without a GPU",
        gpu_name=_gpu_name(pod.gpu.id) if pod.gpu and gpus else "",
        created_at=created and (created if created.tzinfo else created.replace(tzinfo=UTC)),
        provider_data={"data_center": pod.dataCenterId or "", "gpu_count": gpus},
    )


def _gpu_name(gpu_id: str) -> str:
    """The field's name; RunPod's display name is the id without its maker's words."""
    return NAMES.get(gpu_id) or re.sub(r"^NVIDIA (GeForce )?|( Ada)? Generation$", r"\2", gpu_id)


def _refused(answer: Answer, offer: Offer, ids: tuple[str, ...]) -> ProviderError:
    """What an answer to a create means that is no pod."""
    told = said(answer.data) or "nothing that explains it"
    for status, words, kind, hint in REFUSALS:
        if answer.status == status and re.search(words, told, re.IGNORECASE):
            return kind(f"RunPod did not rent {offer.gpu_name} ({offer.id}): {told}", hint=hint, instance_ids=ids)
    if answer.status == 403:
        return AuthError(f"RunPod does not let this key rent: {told}", hint=KEY_HINT, instance_ids=ids)
    return UnexpectedResponse(f"RunPod answered the create of {offer.id} with {answer.status}: {told}", instance_ids=ids)


def _absent(answer: Answer) -> bool:
    """Whether RunPod itself says that there is no such pod. Any other 404 (a wrong path, a proxy) says nothing."""
    if answer.status != 404:
        return False
    problem = record(answer.data)
    if problem.get("status") != 404 or not re.search(r"\b(pod|resource) not found\b", str(problem.get("detail")), re.IGNORECASE):
        raise UnexpectedResponse(f"RunPod answered 404, but not that there is no such pod: {said(answer.data)}")
    return True


def _read(model: type[M], data: Any) -> M:
    return as_agreed(model, data, cloud="RunPod", ids=_ids(data))


def _ids(data: Any) -> tuple[str, ...]:
    """The id of a pod, wherever an answer to a create may carry one."""
    places = (record(data), record(record(data).get("pod")), record(record(data).get("data")))
    return tuple(
        dict.fromkeys(str(one[name]) for one in places for name in ("id", "podId") if one.get(name) and isinstance(one[name], str | int))
    )
