"""This computer as a provider: the contract where it applies, and that nothing of a lease is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from contract import Cloud, ProviderContract, login, wait_for_ssh
from sandbox_help import poll, processes_of

from providers.base import Instance, InstanceStatus, LaunchSpec, Requirements
from providers.errors import NoCapacity, ProviderError, UnexpectedResponse
from providers.sandbox import local
from providers.sandbox.local import Local
from providers.sandbox.machines import Boot, RealMachines

CARD = ("RTX 4090", 24.0)
NOT_HERE = None


@dataclass
class Workshop:
    """This computer, with a hand on what starts machines."""

    folder: Path
    ssh_key: Path
    unknown_id: str = "never"
    page_size: int = 0
    """One machine is a page and one more."""
    fails: str = ""
    starts: int = 0
    saved: bytes | None = field(default=None)

    def __post_init__(self) -> None:
        self.provider = self.stranger = Local(self.folder, card=CARD)
        self.lease = self.folder / "lease.json"

    def creates(self) -> int:
        return self.starts

    def lose_the_answer_to_create(self) -> None:
        self.starts, self.fails = 0, "after"

    def answer_create(self, status: int, *, instance_id: str = "") -> None:
        self.starts, self.fails = 0, "before"

    def answer_instances_with(self, body: str) -> None:
        self.saved = self.lease.read_bytes() if self.lease.exists() else b""
        self.folder.mkdir(exist_ok=True)
        self.lease.write_text(body)

    def break_page_two_of_instances(self) -> None:
        self.answer_instances_with("{")

    def answer_describe_with_status(self, instance: Instance, status: str) -> None:
        raise NotImplementedError

    def heal(self) -> None:
        self.fails = ""
        if self.saved is not None:
            self.lease.write_bytes(self.saved) if self.saved else self.lease.unlink()
            self.saved = None


START = RealMachines.start


def start(machines: RealMachines, machine_id: str, boot: Boot, *, workshop: Workshop) -> None:
    """As ever, or failing before or after it took effect."""
    workshop.starts += 1
    if workshop.fails != "before":
        START(machines, machine_id, boot)
    if workshop.fails:
        raise OSError(12, "Cannot allocate memory")


@pytest.fixture
def cloud(tmp_path: Path, ssh_key: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    workshop = Workshop(tmp_path / "local", ssh_key)
    monkeypatch.setattr(RealMachines, "start", partialmethod(start, workshop=workshop))
    yield workshop
    workshop.heal()
    for instance in workshop.provider.instances():
        workshop.provider.terminate(instance.id)


class TestLocal(ProviderContract):
    """Left out: what takes a key, a price, a limit or a line that can fail."""

    test_a_status_that_we_do_not_know_is_unknown = NOT_HERE  # type: ignore[assignment]
    test_too_many_requests_is_rate_limited_and_says_how_long = NOT_HERE  # type: ignore[assignment]
    test_the_bill_of_an_instance_grows_while_it_lives_and_stays_when_it_is_gone = NOT_HERE  # type: ignore[assignment]
    test_a_wrong_key_is_an_auth_error_everywhere_and_never_an_absence = NOT_HERE  # type: ignore[assignment]
    test_keys_are_in_no_repr_and_no_error = NOT_HERE  # type: ignore[assignment]
    test_a_cloud_that_is_down_is_unavailable = NOT_HERE  # type: ignore[assignment]

    def test_an_instance_id_in_the_answer_of_a_failed_create_is_kept(self, cloud: Cloud) -> None:  # type: ignore[override]
        cloud.answer_create(500)
        with pytest.raises(ProviderError) as caught:
            self.launch(cloud)
        assert caught.value.instance_ids == tuple(instance.id for instance in cloud.provider.instances())


def launch(cloud: Any, **fields: Any) -> Instance:
    key = cloud.ssh_key.with_suffix(".pub").read_text().strip()
    spec = LaunchSpec(**{"label": "lorry-here", "image": "", "disk_gib": 1, "ssh_public_key": key} | fields)
    return wait_for_ssh(cloud.provider, cloud.provider.launch(cloud.provider.offers(Requirements(disk_gib=1))[0], spec).id)


def test_another_process_sees_the_lease_and_can_end_it_with_all_that_runs(cloud: Any) -> None:
    instance = launch(cloud, onstart="(setsid sleep 600 &) ; sleep 600")
    other = Local(cloud.folder, card=CARD)
    assert [(one.id, one.label) for one in other.instances()] == [(instance.id, "lorry-here")]
    with pytest.raises(NoCapacity, match="taken by lorry-here"):
        other.launch(Local(cloud.folder / "elsewhere", card=CARD).offers(Requirements(disk_gib=1))[0], LaunchSpec(
            label="x", image="", disk_gib=1, ssh_public_key=""))  # fmt: skip
    poll(lambda: len(processes_of(cloud.folder)) >= 3, what="onstart")
    other.terminate(instance.id)
    assert processes_of(cloud.folder) == []
    assert sorted(path.name for path in cloud.folder.iterdir()) == ["lock", "machines"]
    assert list((cloud.folder / "machines").iterdir()) == []


def test_a_machine_that_died_is_stopped_and_can_be_cleared_away(cloud: Any) -> None:
    instance = launch(cloud)
    lease = json.loads(cloud.lease.read_text())
    RealMachines(cloud.folder / "machines", "x", private_run=False).end(instance.id, lease["mark"])
    assert cloud.provider.describe(instance.id).status is InstanceStatus.STOPPED
    assert cloud.provider.describe(instance.id).ssh is None
    cloud.provider.terminate(instance.id)
    assert cloud.provider.describe(instance.id).status is InstanceStatus.GONE


def test_its_home_is_its_own_folder(cloud: Any) -> None:
    instance = launch(cloud)
    assert login(cloud, instance, "pwd").strip() == str(cloud.folder / "machines" / instance.id / "root")
    assert instance.prices
    assert instance.prices.usd_per_hour(1000) == 0
    assert cloud.provider.billed_usd(instance.id) == 0


def test_without_a_card_there_is_no_offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Local(tmp_path / "x").offers(Requirements(disk_gib=1)) == []
    program = tmp_path / "nvidia-smi"
    for said, card in (("NVIDIA GeForce RTX 3090, 24576", ("RTX 3090", 24.0)), ("No devices were found", None), ("", None)):
        program.write_text(f"#!/bin/sh\necho '{said}'\n")
        program.chmod(0o755)
        assert local._card() == card
    assert not (tmp_path / "x").exists(), "looking changes nothing"


def test_a_lease_that_cannot_be_read_is_no_absence(cloud: Any) -> None:
    instance = launch(cloud)
    cloud.answer_instances_with("{")
    for call in (cloud.provider.instances, lambda: cloud.provider.describe(instance.id), lambda: cloud.provider.terminate(instance.id)):
        with pytest.raises(UnexpectedResponse):
            call()
    with pytest.raises(UnexpectedResponse):
        cloud.provider.offers(Requirements(disk_gib=1))
