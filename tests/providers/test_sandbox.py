"""The practice cloud keeps the contract, over its real server and with real machines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from contract import Cloud, ProviderContract

from providers.base import Instance
from providers.sandbox.faults import Fault
from providers.sandbox.plain import PAGE_SIZE
from providers.sandbox.provider import Sandbox
from providers.sandbox.server import Server


@dataclass
class SandboxCloud:
    server: Server
    ssh_key: Path
    unknown_id: str = "999999"
    page_size: int = PAGE_SIZE

    def __post_init__(self) -> None:
        self.provider = Sandbox(self.server.folder, autostart=False)
        self.stranger = Sandbox(self.server.folder, url=self.server.descriptor.url, key="wrong-key")

    def creates(self) -> int:
        return self.server.faults.calls().get("plain.create", 0)

    def lose_the_answer_to_create(self) -> None:
        self._script(Fault(endpoint="plain.create", drop="after"))

    def answer_create(self, status: int, *, instance_id: str = "") -> None:
        body = {"error": {"code": "strange", "message": "by script"}} | ({"id": instance_id} if instance_id else {})
        self._script(Fault(endpoint="plain.create", status=status, body=json.dumps(body), retry_after="7"))

    def break_page_two_of_instances(self) -> None:
        self._script(Fault(endpoint="plain.list", call=2, status=500))

    def answer_instances_with(self, body: str) -> None:
        self._script(Fault(endpoint="plain.list", body=body))

    def answer_describe_with_status(self, instance: Instance, status: str) -> None:
        document = {
            "id": instance.id,
            "label": instance.label,
            "status": status,
            "status_text": "",
            "machine_id": "m-1",
            "gpu_name": "RTX 4090",
            "disk_gib": 2,
            "prices": dict.fromkeys(("gpu_usd_per_hour", "disk_usd_per_gib_hour", "upload_usd_per_gib", "download_usd_per_gib"), "0.1"),
            "created_at": "2026-11-20T10:00:00+00:00",
            "ssh": None,
            "host_key": None,
        }
        self._script(Fault(endpoint="plain.show", body=json.dumps(document)))

    def heal(self) -> None:
        self._script()

    def _script(self, *faults: Fault) -> None:
        self.server.faults.set(faults)


class TestSandbox(ProviderContract):
    @pytest.fixture
    def cloud(self, server: Server, ssh_key: Path) -> Cloud:
        return SandboxCloud(server, ssh_key)
