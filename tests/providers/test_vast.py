"""The Vast provider: the contract over its emulated face, what each fault of the cloud becomes, and offers that make no sense."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from contract import Cloud, ProviderContract, login, wait_for_ssh
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_help import poll

from providers.base import Instance, InstanceStatus, LaunchSpec, Offer, Requirements
from providers.errors import AuthError, NoCapacity, ProviderError, RateLimited, Refused, Unavailable, UnexpectedResponse
from providers.sandbox.faults import Fault
from providers.sandbox.happenings import Happening
from providers.sandbox.market import BootTimes
from providers.sandbox.server import Server
from providers.sandbox.vast_rows import offer_row, stock
from providers.vast import GB_PER_GIB, INTERVALS_S, URL, Vast, offers_from, onstart_script, search_body

NEEDS = Requirements(disk_gib=10)
SPEED = 4000  # a cloud that rounds its charges to a tenth of a cent shows them grow within milliseconds


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("vast"), boot=BootTimes(created_s=0.05, loading_s=0.05), speed=SPEED) as server:
        accounts = server.market.state.accounts
        accounts[:] = [replace(account, credit_usd=Decimal(10**6)) for account in accounts]
        yield server


@dataclass
class VastCloud:
    server: Server
    ssh_key: Path
    unknown_id: str = "999999"
    page_size: int = 5

    def __post_init__(self) -> None:
        self.provider = self.vast()
        self.stranger = self.vast(key="wrong-key")

    def vast(self, **options: Any) -> Vast:
        told = self.server.descriptor.document()
        key, url = options.pop("key", told["vast_api_key"]), str(told["vast_url"])
        return Vast(key, **{"url": url, "page_size": self.page_size, "intervals_s": {}, "now": self.server.clock.now} | options)

    def creates(self) -> int:
        return self.calls("create")

    def calls(self, endpoint: str) -> int:
        return self.server.faults.calls().get(f"vast.{endpoint}", 0)

    def lose_the_answer_to_create(self) -> None:
        self.script(Fault(endpoint="vast.create", drop="after"))

    def answer_create(self, status: int, *, instance_id: str = "") -> None:
        body = {"success": False, "error": "strange", "msg": "by script"} | ({"new_contract": int(instance_id)} if instance_id else {})
        self.script(Fault(endpoint="vast.create", status=status, body=json.dumps(body), retry_after="7"))

    def break_page_two_of_instances(self) -> None:
        self.script(Fault(endpoint="vast.list", call=2, status=500))

    def answer_instances_with(self, body: str) -> None:
        self.script(Fault(endpoint="vast.list", body=body))

    def answer_describe_with_status(self, instance: Instance, status: str) -> None:
        row = {"id": int(instance.id), "label": instance.label, "actual_status": status}
        self.script(Fault(endpoint="vast.show", body=json.dumps({"instances": row})))

    def heal(self) -> None:
        self.script()
        self.server.happen(Happening(what="limits", scale=0), Happening(what="ports_late", seconds=0))
        self.server.market.state.floors.clear()
        self.server.market.state.gpu_prices.clear()

    def script(self, *faults: Fault) -> None:
        self.server.faults.set(faults)

    def tell(self, what: str, instance: Instance | None = None, **more: Any) -> None:
        self.server.happen(Happening(what=what, machine=instance.id if instance else "", **more))  # type: ignore[arg-type]

    def live(self) -> list[str]:
        """What the meter says is rented, whatever the provider was told."""
        return list(self.server.market.bill().live)

    def spec(self, label: str = "lorry-test", **fields: Any) -> LaunchSpec:
        key = self.ssh_key.with_suffix(".pub").read_text().strip()
        return LaunchSpec(**{"label": label, "image": "i", "disk_gib": 10, "ssh_public_key": key} | fields)

    def launch(self, label: str = "lorry-test", *, interruptible: bool = False, **fields: Any) -> Instance:
        offers = self.provider.offers(replace(NEEDS, interruptible=interruptible))
        return self.provider.launch(next(o for o in offers if o.interruptible == interruptible), self.spec(label, **fields))


@pytest.fixture
def cloud(server: Server, ssh_key: Path) -> Iterator[VastCloud]:
    cloud = VastCloud(server, ssh_key)
    yield cloud
    cloud.heal()
    for instance in cloud.provider.instances():
        cloud.provider.terminate(instance.id)


class TestVast(ProviderContract):
    @pytest.fixture
    def cloud(self, server: Server, ssh_key: Path) -> Cloud:
        return VastCloud(server, ssh_key)
