"""The practice cloud as a provider: our side of its plain HTTP face. Reads strictly; starts a server when none runs.

Owns finding and starting the server, and the translation of its answers. Knows nothing of how machines, meters or faults are made.

Environment: `LORRY_SANDBOX_URL` with `LORRY_SANDBOX_KEY` name a server; else the one in `$LORRY_HOME/sandbox` is used, and started
when it does not run.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from providers.answers import Wire, as_agreed
from providers.base import Account, Instance, InstanceStatus, LaunchSpec, Offer, Prices, Requirements, SelfDestroy, SSHEndpoint
from providers.errors import NoCapacity, ProviderError, Refused, UnexpectedResponse
from providers.http import Answer, CloudHTTP

from .descriptor import Descriptor, read_descriptor
from .processes import ProcessId, alive

START_TIMEOUT_S = 30.0
IDLE_END_S = 15 * 60
"""A server that we started ends after so long without a machine."""
PAGE_LIMIT = 1000  # pages; a cursor that never ends is not an answer
PACKAGES = Path(__file__).parents[2]

STATUSES = {
    "created": InstanceStatus.PENDING,
    "loading": InstanceStatus.PENDING,
    "running": InstanceStatus.RUNNING,
    "exited": InstanceStatus.STOPPED,
}
REFUSALS: Mapping[str, type[ProviderError]] = {
    "no_such_offer": NoCapacity,
    "offer_taken": NoCapacity,
    "no_credit": Refused,
    "invalid_request": Refused,
}
"""Error codes of a create that are certain to have rented nothing."""


class _Prices(Wire):
    gpu_usd_per_hour: Decimal
    disk_usd_per_gib_hour: Decimal
    upload_usd_per_gib: Decimal
    download_usd_per_gib: Decimal


class _Offer(Wire):
    id: str
    machine_id: str
    gpu_name: str
    gpu_count: int
    vram_gib: float
    prices: _Prices
    disk_gib: int
    down_mbit_s: float
    up_mbit_s: float
    reliability: float
    verified: bool
    region: str
    interruptible: bool


class _SSH(Wire):
    host: str
    port: int
    user: str


class _Instance(Wire):
    id: str
    label: str
    status: str | None
    status_text: str
    gpu_name: str
    disk_gib: int
    prices: _Prices
    created_at: datetime
    ssh: _SSH | None
    host_key: str | None
    machine_id: str


class _Page(Wire):
    total: int
    next_cursor: str | None


class _Offers(_Page):
    offers: list[_Offer]


class _Instances(_Page):
    instances: list[_Instance]


class _Account(Wire):
    name: str
    balance_usd: Decimal
    auto_pay: bool | None = None


class _Charges(Wire):
    total_usd: Decimal


class _Refusal(Wire):
    code: str
    message: str


class _Error(Wire):
    error: _Refusal


M = TypeVar("M", bound=Wire)
P = TypeVar("P", bound=_Page)


class Sandbox:
    """The practice cloud. With a `url`, that server and no other; else the one of `folder`."""

    name = "sandbox"
    self_destroy = SelfDestroy(
        method="DELETE",
        url="{SANDBOX_URL}/v1/instances/{SANDBOX_INSTANCE_ID}",
        key="{SANDBOX_INSTANCE_KEY}",
        id_env="SANDBOX_INSTANCE_ID",
    )

    def __init__(self, folder: Path, *, url: str = "", key: str = "", autostart: bool = True) -> None:
        self._folder = folder
        self._url = url
        self._key = key
        self._autostart = autostart
        self._client: tuple[tuple[str, str], CloudHTTP] | None = None

    @classmethod
    def from_env(cls) -> Sandbox:
        return cls(default_folder(), url=os.environ.get("LORRY_SANDBOX_URL", ""), key=os.environ.get("LORRY_SANDBOX_KEY", ""))

    def __repr__(self) -> str:
        return f"Sandbox({str(self._folder)!r}, url={self._url!r})"

    @property
    def console_url(self) -> str:
        return self._url or str(self._folder / "sandbox.json")

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        del requirements  # a market of fourteen: the planner filters
        return [_offer(row) for page in self._pages("/v1/offers", _Offers) for row in page.offers]

    def launch(self, offer: Offer, spec: LaunchSpec) -> Instance:
        body = {
            "offer_id": offer.id,
            "label": spec.label,
            "image": spec.image,
            "disk_gib": spec.disk_gib,
            "ssh_public_key": spec.ssh_public_key,
            "env": dict(spec.env),
            "onstart": spec.onstart,
        }
        answer = self._http().call("POST", "/v1/instances", json=body, expect=frozenset({200, 201, 402, 404, 409, 422}))
        if answer.status in (200, 201):
            return _instance(_read(_Instance, answer.data))
        refusal = _read(_Error, answer.data).error
        if refusal.code in REFUSALS:
            hint = "the practice cloud's credit is in market.json of its folder" if refusal.code == "no_credit" else ""
            raise REFUSALS[refusal.code](f"the practice cloud did not rent offer {offer.id}: {refusal.message}", hint=hint)
        raise UnexpectedResponse(
            f"the practice cloud answered {answer.status} {refusal.code}: {refusal.message}", instance_ids=_ids(answer.data)
        )

    def describe(self, instance_id: str) -> Instance:
        answer = self._http().call("GET", f"/v1/instances/{instance_id}", expect=frozenset({200, 404}))
        if _absent(answer):
            return Instance(provider=self.name, id=instance_id, label="", status=InstanceStatus.GONE)
        instance = _instance(_read(_Instance, answer.data))
        if instance.id != instance_id:
            raise UnexpectedResponse(f"asked for instance {instance_id}, the practice cloud answered with {instance.id}")
        return instance

    def instances(self) -> Sequence[Instance]:
        if self._sleeps():
            return []
        rows: dict[str, _Instance] = {}
        for page in self._pages("/v1/instances", _Instances):
            rows |= {row.id: row for row in page.instances}
            total = page.total
        if len(rows) < total:  # each page is a moment of its own: more than the last total is a machine that went meanwhile
            raise UnexpectedResponse(f"the practice cloud counts {total} instances but listed {len(rows)}")
        return [_instance(row) for row in rows.values()]

    def terminate(self, instance_id: str) -> None:
        answer = self._http().call("DELETE", f"/v1/instances/{instance_id}", expect=frozenset({200, 404}))
        _absent(answer)

    def account(self) -> Account:
        if self._sleeps():
            return Account(name="practice", id="practice", auto_pay=False, lacks=())
        account = _read(_Account, self._http().call("GET", "/v1/account").data)
        return Account(name=account.name, id=account.name, balance_usd=account.balance_usd, auto_pay=account.auto_pay, lacks=())

    def billed_usd(self, instance_id: str) -> Decimal | None:
        answer = self._http().call("GET", f"/v1/instances/{instance_id}/charges", expect=frozenset({200, 404}))
        return None if _absent(answer) else _read(_Charges, answer.data).total_usd

    def _pages(self, path: str, model: type[P]) -> Sequence[P]:
        pages: list[P] = []
        cursor: str | None = None
        for _ in range(PAGE_LIMIT):
            page = _read(model, self._http().call("GET", path, params={"cursor": cursor} if cursor else None).data)
            pages.append(page)
            cursor = page.next_cursor
            if cursor is None:
                return pages
        raise UnexpectedResponse(f"the practice cloud's list at {path} does not end after {PAGE_LIMIT} pages")

    def _sleeps(self) -> bool:
        """Whether there is no server, and nothing that one could tell of: no reason to start one. A machine's folder goes with it."""
        machines = self._folder / "machines"
        return self._autostart and not self._url and running(self._folder) is None and not (machines.is_dir() and any(machines.iterdir()))

    def _http(self) -> CloudHTTP:
        """A client for the server that there is now: it may have been started again elsewhere since the last call."""
        where = (self._url, self._key) if self._url else self._local()
        if self._client is None or self._client[0] != where:
            if self._client:
                self._client[1].close()
            hint = "set LORRY_SANDBOX_KEY to the key that `lorry sandbox --json` printed"
            http = CloudHTTP(where[0], cloud="the practice cloud", key=where[1], key_hint=hint, ids_in=_ids)
            self._client = (where, http)
        return self._client[1]

    def _local(self) -> tuple[str, str]:
        found = running(self._folder)
        if found is None:
            if not self._autostart:
                raise ProviderError(f"no practice cloud runs in {self._folder}", hint="start it with `lorry sandbox`")
            found = start(self._folder)
        return found.url, self._key or found.api_key


def default_folder() -> Path:
    """`sandbox` in LORRY_HOME, else in the platform's state folder."""
    if home := os.environ.get("LORRY_HOME"):
        return Path(home) / "sandbox"
    from platformdirs import user_state_path

    return user_state_path("lorry") / "sandbox"


def running(folder: Path) -> Descriptor | None:
    """The server of this folder, if its process lives."""
    found = read_descriptor(folder)
    return found if found and alive(ProcessId(found.pid, found.started)) else None


def start(folder: Path, *, speed: float | None = None) -> Descriptor:
    """Start a server in the background, unless one runs; returns when it answers. It ends by itself when nobody needs it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ProviderError(
            f"the practice cloud cannot have {folder}: {error.strerror}", hint="point LORRY_HOME at another folder"
        ) from error
    with (folder / "start.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two clients that find none, one starts it and the other finds it
        if found := running(folder):
            return found
        command = [sys.executable, "-P", "-m", "providers.sandbox", "--folder", str(folder), "--idle-end-s", str(IDLE_END_S)]
        command += ["--speed", str(speed)] if speed is not None else []
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))}
        log = folder / "server.log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while child.poll() is None and time.monotonic() < deadline:
            if (found := running(folder)) and found.pid == child.pid:
                return found
            time.sleep(0.02)
        if child.poll() is None:
            child.kill()
        said = log.read_text(encoding="utf-8", errors="replace").strip()
        raise ProviderError(f"the practice cloud did not start: {said or 'it said nothing'}", hint=f"its log is {log}")


def _read(model: type[M], data: Any) -> M:
    return as_agreed(model, data, cloud="the practice cloud", ids=_ids(data))


def _ids(data: Any) -> tuple[str, ...]:
    """The id of an instance, wherever an answer to a create may carry one."""
    value = data.get("id") if isinstance(data, dict) else None
    return (str(value),) if isinstance(value, str | int) and value else ()


def _absent(answer: Answer) -> bool:
    """Whether the market itself says that there is no such instance. Any other 404 (a wrong path, a proxy) says nothing."""
    if answer.status != 404:
        return False
    refusal = _read(_Error, answer.data).error
    if refusal.code != "no_such_instance":
        raise UnexpectedResponse(f"the practice cloud answered 404 {refusal.code}: {refusal.message}")
    return True


def _prices(row: _Prices) -> Prices:
    try:
        return Prices(
            gpu_usd_per_hour=row.gpu_usd_per_hour,
            disk_usd_per_gib_hour=row.disk_usd_per_gib_hour,
            upload_usd_per_gib=row.upload_usd_per_gib,
            download_usd_per_gib=row.download_usd_per_gib,
        )
    except ValueError as error:
        raise UnexpectedResponse(f"the practice cloud's price makes no sense: {error}") from error


def _offer(row: _Offer) -> Offer:
    fields = row.model_dump(exclude={"prices"})
    return Offer(provider=Sandbox.name, prices=_prices(row.prices), secure=row.verified, **fields)  # as data centres usually are


def _instance(row: _Instance) -> Instance:
    return Instance(
        provider=Sandbox.name,
        id=row.id,
        label=row.label,
        status=STATUSES.get(row.status or "", InstanceStatus.UNKNOWN),
        prices=_prices(row.prices),
        disk_gib=row.disk_gib,
        ssh=SSHEndpoint(host=row.ssh.host, port=row.ssh.port, user=row.ssh.user) if row.ssh else None,
        status_text=row.status_text,
        gpu_name=row.gpu_name,
        created_at=row.created_at,
        provider_data={"machine_id": row.machine_id, "host_key": row.host_key},
    )
