"""The RunPod provider: the contract over its emulated face, what each fault of the cloud becomes, and answers that make no sense."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
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

from providers import runpod
from providers.base import Instance, InstanceStatus, LaunchSpec, Offer, Requirements
from providers.errors import AuthError, NoCapacity, NoKey, ProviderError, RateLimited, Refused, Unavailable, UnexpectedResponse
from providers.http import CloudHTTP
from providers.runpod import START, RunPod, country, create_body, key_in, offers_from
from providers.sandbox.faults import Fault
from providers.sandbox.plain import Plain
from providers.sandbox.rentals import BootTimes
from providers.sandbox.runpod_face import RunPodFace
from providers.sandbox.server import Server

NEEDS = Requirements(disk_gib=10)
BOOT = BootTimes(created_s=0.05, loading_s=0.05, ports_late_s=0.05)
PUBLIC = "ssh-ed25519 AAAA me"
RENTS_NOTHING = (NoCapacity, Refused, AuthError, RateLimited)


@dataclass
class RunPodCloud:
    server: Server
    ssh_key: Path
    unknown_id: str = "7h9k2m4n6p"
    page_size: int = 3

    def __post_init__(self) -> None:
        self.provider = self.runpod()
        self.stranger = self.runpod(key="wrong-key")

    def runpod(self, key: str = "") -> RunPod:
        told = self.server.descriptor.document()
        rest, graphql = str(told["runpod_rest_url"]), str(told["runpod_graphql_url"])
        return RunPod(key or str(told["runpod_api_key"]), url=rest, graphql_url=graphql, intervals_s={})

    def creates(self) -> int:
        return self.calls("create")

    def calls(self, endpoint: str) -> int:
        return self.server.faults.calls().get(f"runpod.{endpoint}", 0)

    def lose_the_answer_to_create(self) -> None:
        self.script(Fault(endpoint="runpod.create", drop="after"))

    def answer_create(self, status: int, *, instance_id: str = "") -> None:
        body = {"title": "Strange", "status": status, "detail": "by script"} | ({"id": instance_id} if instance_id else {})
        self.script(Fault(endpoint="runpod.create", status=status, body=json.dumps(body), retry_after="7"))

    def break_page_two_of_instances(self) -> None:
        self.script(Fault(endpoint="runpod.list", call=2, status=500))

    def answer_instances_with(self, body: str) -> None:
        self.script(Fault(endpoint="runpod.list", body=body))

    def answer_describe_with_status(self, instance: Instance, status: str) -> None:
        self.script(Fault(endpoint="runpod.show", body=json.dumps({"id": instance.id, "name": instance.label, "status": status})))

    def heal(self) -> None:
        self.script()

    def script(self, *faults: Fault) -> None:
        self.server.faults.set(faults)

    # what the tests below share

    def offer(self, words: str = "") -> Offer:
        return min((one for one in self.provider.offers(NEEDS) if words in one.id), key=lambda offer: offer.prices.gpu_usd_per_hour)

    def spec(self, label: str = "lorry-test", **fields: Any) -> LaunchSpec:
        key = self.ssh_key.with_suffix(".pub").read_text().strip()
        return LaunchSpec(**{"label": label, "image": "pytorch:2", "disk_gib": 10, "ssh_public_key": key} | fields)

    def launch(self, label: str = "lorry-test", **fields: Any) -> Instance:
        return self.provider.launch(self.offer(), self.spec(label, **fields))

    def rented(self) -> list[str]:
        """Labels of all machines that the meter has seen, living or not."""
        return [machine.label for machine in self.server.market.bill().machines if machine.account == "runpod"]

    def living(self) -> list[str]:
        bill = self.server.market.bill()
        return [machine.label for machine in bill.machines if machine.live and machine.account == "runpod"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A practice cloud whose RunPod has short pages and charges at once."""
    faces = (Plain(), RunPodFace(page_size=3, billing_step_s=0))
    with Server(tmp_path_factory.mktemp("runpod"), boot=BOOT, faces=faces) as server:
        yield server


@pytest.fixture
def cloud(server: Server, ssh_key: Path) -> Iterator[RunPodCloud]:
    cloud = RunPodCloud(server, ssh_key)
    yield cloud
    cloud.heal()
    for instance in cloud.provider.instances():
        cloud.provider.terminate(instance.id)


class TestRunPod(ProviderContract):
    @pytest.fixture
    def cloud(self, server: Server, ssh_key: Path) -> Cloud:
        return RunPodCloud(server, ssh_key)


# what is for rent


def test_both_clouds_are_offered_and_the_secure_one_by_data_center(cloud: RunPodCloud) -> None:
    offers = {offer.id: offer for offer in cloud.provider.offers(NEEDS)}
    secure, community = offers["SECURE/EU-RO-1/NVIDIA GeForce RTX 4090"], offers["COMMUNITY//NVIDIA GeForce RTX 4090"]
    assert (secure.gpu_name, secure.vram_gib, secure.region, secure.prices.gpu_usd_per_hour) == ("RTX 4090", 24, "RO", Decimal("0.69"))
    assert (community.region, community.prices.gpu_usd_per_hour) == ("", Decimal("0.34"))
    assert secure.prices.usd_per_hour(720) == Decimal("0.69") + 720 * Decimal("0.000138889")  # 10 cents a GB and month
    assert not secure.interruptible
    assert (secure.secure, community.secure) == (True, False)
    assert not [offer for offer in offers if "L40S" in offer and offer.startswith("COMMUNITY")], "price 0: not in that cloud"
    assert {offers[f"SECURE/{center}/NVIDIA A100-SXM4-80GB"].gpu_name for center in ("US-KS-2", "CA-MTL-1")} == {"A100 SXM4"}


def test_a_data_center_names_its_country() -> None:
    assert [country(name) for name in ("EU-RO-1", "EUR-IS-2", "US-TX-3", "CA-MTL-1", "OC-AU-1", "", "moon", "EU-romania-1")] == [
        "RO", "IS", "US", "CA", "AU", "", "", "",
    ]  # fmt: skip


def test_amd_cards_and_what_is_sold_out_are_left_out() -> None:
    row = {"id": "X", "name": "X", "memory": 24, "price": {"secure": 1}, "dataCenters": [{"id": "EU-RO-1", "availability": "LOW"}]}
    assert len(offers_from([row], "SECURE", 1)) == 1
    assert offers_from([row | {"manufacturer": "AMD"}, row | {"availability": "NONE"}, row | {"price": {"secure": 0}}], "SECURE", 1) == []


# create


def test_a_create_asks_for_one_gpu_type_in_one_place_and_a_driver_that_fits_the_image(cloud: RunPodCloud) -> None:
    spec = LaunchSpec(label="a", image="pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime", disk_gib=7, ssh_public_key=PUBLIC, onstart="echo 1")
    body = create_body(cloud.offer("SECURE/EU-SE-1/NVIDIA GeForce RTX 4090"), spec)
    assert body.pop("cmd") == ["sh", "-c", START, "lorry", "echo 1"]
    assert body.pop("startSsh") is True
    assert body == {
        "name": "a", "image": spec.image, "cloud": "SECURE", "disk": 7, "ports": ["22/tcp"], "env": {"PUBLIC_KEY": PUBLIC},
        "gpu": {"id": "NVIDIA GeForce RTX 4090", "count": 1, "minCudaVersion": "12.8"}, "dataCenterIds": ["EU-SE-1"],
    }  # fmt: skip
    community = create_body(
        cloud.offer("COMMUNITY//NVIDIA GeForce RTX 4090"), LaunchSpec(label="a", image="i", disk_gib=7, ssh_public_key="")
    )
    assert "dataCenterIds" not in community
    assert "minCudaVersion" not in community["gpu"]
    for image, cuda in (
        ("runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404", "12.8"),
        ("runpod/pytorch:2.8.0-py3.11-cuda12.8.1-devel", "12.8"),
    ):
        there = create_body(cloud.offer(), LaunchSpec(label="a", image=image, disk_gib=7, ssh_public_key=""))
        assert there["gpu"]["minCudaVersion"] == cuda


PROBLEM = '{"title": "x", "status": %d, "detail": "%s"}'
NONE_LEFT = "There are no longer any instances available with the requested specifications. Please refresh and try again."


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, PROBLEM % (400, NONE_LEFT), NoCapacity),
        (400, PROBLEM % (400, NONE_LEFT.replace("requested specifications", "request specifications")), NoCapacity),
        (400, PROBLEM % (400, "This machine does not have the resources to deploy your pod. Please try a different machine"), NoCapacity),
        (400, PROBLEM % (400, "There are not enough free GPUs on the host machine to start this pod."), NoCapacity),
        (400, PROBLEM % (400, "Unknown GPU type: NVIDIA X"), NoCapacity),
        (422, PROBLEM % (422, "Unknown GPU type: NVIDIA X"), NoCapacity),
        (422, '{"title": "x", "status": 422, "detail": "Request validation failed.", "errors": ["$.disk: minimum"]}', Refused),
        (402, PROBLEM % (402, "Insufficient balance"), Refused),
        (403, PROBLEM % (403, "no access to this pool"), NoCapacity),
        (403, PROBLEM % (403, "access denied"), AuthError),
        (401, PROBLEM % (401, "missing bearer token"), AuthError),
        (400, PROBLEM % (400, "exactly one of gpu or cpu must be set"), UnexpectedResponse),
        (400, "<html>Bad Request</html>", UnexpectedResponse),
        (404, PROBLEM % (404, "template not found"), UnexpectedResponse),
        (410, '{"error": "gone"}', UnexpectedResponse),
        (409, PROBLEM % (409, "conflict"), UnexpectedResponse),
        (500, PROBLEM % (500, "Something went wrong. Please try again later or contact support."), Unavailable),
        (504, "<html>", Unavailable),
    ],
)
def test_each_answer_to_a_create_is_told_apart_and_rents_nothing_here(
    cloud: RunPodCloud, status: int, body: str, kind: type[ProviderError]
) -> None:
    before = cloud.rented()
    cloud.script(Fault(endpoint="runpod.create", status=status, body=body))
    with pytest.raises(ProviderError) as caught:
        cloud.launch()
    assert type(caught.value) is kind, caught.value
    assert cloud.creates() == 1
    assert cloud.rented() == before


@pytest.mark.parametrize(
    "fault",
    [
        Fault(endpoint="runpod.create", status=500, effect=True),  # v1 was seen to create, fail to read it back, and say 500
        Fault(endpoint="runpod.create", drop="after"),
        Fault(endpoint="runpod.create", truncate=40),
        Fault(endpoint="runpod.create", body="{}", effect=True),
        Fault(endpoint="runpod.create", body="", effect=True),
        Fault(endpoint="runpod.create", body='{"id": "", "name": "lorry-doubt", "status": "RUNNING"}', effect=True),
        Fault(endpoint="runpod.create", body='{"id": 0, "name": "lorry-doubt", "status": "RUNNING"}', effect=True),
        Fault(endpoint="runpod.create", status=502, body="<html>", effect=True),
    ],
)
def test_a_create_that_took_effect_under_a_bad_answer_is_in_doubt_and_found_by_its_label(cloud: RunPodCloud, fault: Fault) -> None:
    cloud.script(fault)
    with pytest.raises(ProviderError) as caught:
        cloud.launch("lorry-doubt")
    assert not isinstance(caught.value, RENTS_NOTHING)
    assert cloud.creates() == 1
    (found,) = cloud.provider.instances()
    assert found.label == "lorry-doubt"
    cloud.provider.terminate(found.id)
    assert cloud.living() == []


def test_a_create_that_lands_late_is_found_when_it_lands(cloud: RunPodCloud) -> None:
    cloud.script(Fault(endpoint="runpod.create", late_s=0.2))
    with pytest.raises(Unavailable):
        cloud.launch("lorry-late")
    assert cloud.provider.instances() == []
    poll(cloud.provider.instances, what="the late machine")
    assert [one.label for one in cloud.provider.instances()] == ["lorry-late"]


def test_a_listing_that_lags_is_an_absence_only_for_a_moment(cloud: RunPodCloud) -> None:
    cloud.provider.instances()
    cloud.script(Fault(endpoint="runpod.list", call=1, stale=True))
    cloud.launch("lorry-lag")
    assert cloud.provider.instances() == []
    assert [one.label for one in cloud.provider.instances()] == ["lorry-lag"]


def test_a_pod_of_another_name_than_asked_is_no_success_and_its_id_is_kept(cloud: RunPodCloud) -> None:
    """It could never be found again by its label."""
    cloud.script(Fault(endpoint="runpod.create", body='{"id": "abc", "name": "lorry-te", "status": "RUNNING"}'))
    with pytest.raises(UnexpectedResponse, match="named the pod 'lorry-te'") as caught:
        cloud.launch()
    assert caught.value.instance_ids == ("abc",)


def test_a_pod_in_another_country_than_asked_is_no_success_and_its_id_is_kept(cloud: RunPodCloud) -> None:
    offer = next(one for one in cloud.provider.offers(NEEDS) if one.region == "RO")
    pod = {"id": "abc", "name": "lorry-test", "status": "RUNNING", "dataCenterId": "US-KS-2"}
    cloud.script(Fault(endpoint="runpod.create", status=201, body=json.dumps(pod)))
    with pytest.raises(UnexpectedResponse, match="put the pod into US-KS-2, asked for RO") as caught:
        cloud.provider.launch(offer, LaunchSpec(label="lorry-test", image="i", disk_gib=10, ssh_public_key="ssh-ed25519 AAAA me"))
    assert caught.value.instance_ids == ("abc",)
    for placed in ("EU-RO-1", None):
        cloud.script(Fault(endpoint="runpod.create", status=201, body=json.dumps(pod | {"dataCenterId": placed})))
        assert cloud.provider.launch(offer, LaunchSpec(label="lorry-test", image="i", disk_gib=10, ssh_public_key="k")).id == "abc"


def test_no_credit_is_refused_and_says_where_to_add_some(cloud: RunPodCloud) -> None:
    accounts = cloud.server.market.state.accounts
    rich = list(accounts)
    index = next(index for index, account in enumerate(rich) if account.name == "runpod")
    spent = rich[index].credit_usd - cloud.server.market.balance_usd(rich[index])
    accounts[index] = replace(rich[index], credit_usd=spent + Decimal("0.01"))
    try:
        with pytest.raises(Refused, match="Insufficient balance") as caught:
            cloud.launch()
    finally:
        accounts[:] = rich
    assert "billing" in caught.value.hint
    assert cloud.provider.instances() == []


def test_the_api_of_august_is_asked_in_its_own_words(cloud: RunPodCloud) -> None:
    """It takes one string for the command, and refuses the list before it does anything."""
    face = next(one for one in cloud.server.faces if isinstance(one, RunPodFace))
    face.older_spec = True
    try:
        before = len(cloud.rented())
        instance = wait_for_ssh(cloud.provider, cloud.launch(onstart="echo 'it'\"'\"'s' >said").id)
        poll(lambda: login(cloud, instance, "cat said") == "it's\n", what="onstart")
        assert [one.id for one in cloud.provider.instances()] == [instance.id]
    finally:
        face.older_spec = False
    assert cloud.creates() == 2
    assert len(cloud.rented()) == before + 1


def test_too_often_says_how_long_as_the_cloud_says_it(cloud: RunPodCloud) -> None:
    clock = [1000.0]
    limits = cloud.server.market.limits
    limits.scale, limits.monotonic_s = 1, lambda: clock[0]
    try:
        for _ in range(60):
            cloud.provider.instances()
        with pytest.raises(RateLimited, match="rate limit exceeded for the minute window") as caught:
            cloud.provider.instances()
        assert caught.value.retry_after_s == 21  # the window of 1000 s ends at 1020
        clock[0] += caught.value.retry_after_s
        assert cloud.provider.instances() == []
    finally:
        limits.scale = 0


# boot


def test_running_is_a_lie_until_there_is_a_runtime_and_an_address(server: Server, cloud: RunPodCloud) -> None:
    server.market.boot = BootTimes(created_s=0.05, loading_s=0.05, ports_late_s=600)
    try:
        instance = cloud.launch()
        assert (instance.status, raw(cloud, instance.id)["status"]) == (InstanceStatus.PENDING, "RUNNING")
        poll(lambda: cloud.provider.describe(instance.id).status is InstanceStatus.RUNNING, what="a runtime")
        assert cloud.provider.describe(instance.id).ssh is None
        assert raw(cloud, instance.id)["ssh"]["proxy"], "which takes no commands, so it is no address"
    finally:
        server.market.boot = BOOT
    poll(lambda: cloud.provider.describe(instance.id).ssh, what="an address")


def test_a_pod_that_never_starts_stays_pending_and_can_be_ended(server: Server, cloud: RunPodCloud) -> None:
    instance = cloud.launch()
    server.market.update("runpod", instance.id, stuck=True)
    assert cloud.provider.describe(instance.id).status is InstanceStatus.PENDING
    cloud.provider.terminate(instance.id)
    assert cloud.living() == []


def test_a_stopped_pod_has_no_address_whatever_its_stale_runtime_says_and_moves_when_it_starts(cloud: RunPodCloud) -> None:
    instance = wait_for_ssh(cloud.provider, cloud.launch().id)
    act(cloud, instance.id, "stop")
    stopped = cloud.provider.describe(instance.id)
    assert raw(cloud, instance.id)["runtime"] is not None
    assert (stopped.status, stopped.ssh, stopped.prices) == (InstanceStatus.STOPPED, None, None)
    act(cloud, instance.id, "start")
    again = wait_for_ssh(cloud.provider, instance.id)
    assert again.ssh != instance.ssh
    assert login(cloud, again, "ls").split() == ["tmp"], "a stop wipes the container's disk"


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"status": "PROVISIONING"}, InstanceStatus.PENDING, "PROVISIONING"),
        ({"status": "STARTING"}, InstanceStatus.PENDING, "STARTING"),
        ({"status": "RUNNING", "runtime": None}, InstanceStatus.PENDING, "the container has not started"),
        ({"status": "RUNNING", "runtime": {}}, InstanceStatus.RUNNING, "RUNNING without a GPU"),
        (
            {"status": "RUNNING", "runtime": {"uptime": 3}, "gpu": {"id": "NVIDIA L4", "count": 0}},
            InstanceStatus.RUNNING,
            "RUNNING without a GPU",
        ),
        ({"status": "EXITED"}, InstanceStatus.STOPPED, "EXITED"),
        ({"status": "ERROR"}, InstanceStatus.STOPPED, "ERROR"),
        ({"status": "TERMINATED"}, InstanceStatus.GONE, "TERMINATED"),
        ({"status": None}, InstanceStatus.UNKNOWN, "no status"),
        ({"status": "OUTBID"}, InstanceStatus.UNKNOWN, "OUTBID"),
    ],
)
def test_each_word_for_a_pods_state(cloud: RunPodCloud, fields: dict[str, Any], status: InstanceStatus, text: str) -> None:
    cloud.script(Fault(endpoint="runpod.show", body=json.dumps({"id": "a", "name": "n"} | fields)))
    seen = cloud.provider.describe("a")
    assert (seen.status, seen.status_text, seen.ssh) == (status, text, None)


# gone


def test_not_found_counts_only_in_the_words_of_runpod(cloud: RunPodCloud) -> None:
    instance = cloud.launch()
    for body in ("", "null", "<html>", "{}", '{"detail": "pod not found"}', PROBLEM % (404, "no route"), '{"status": 404, "detail": null}'):
        cloud.script(Fault(endpoint="runpod.show", status=404, body=body), Fault(endpoint="runpod.terminate", status=404, body=body))
        with pytest.raises(UnexpectedResponse):
            cloud.provider.describe(instance.id)
        with pytest.raises(UnexpectedResponse):
            cloud.provider.terminate(instance.id)
    assert cloud.living() == ["lorry-test"]


def test_not_found_is_believed_only_by_a_key_that_works_and_a_list_that_agrees(cloud: RunPodCloud) -> None:
    instance = cloud.launch()
    not_found = Fault(endpoint="runpod.show", status=404, body=PROBLEM % (404, "pod not found"))
    cloud.script(not_found)
    with pytest.raises(UnexpectedResponse, match="yet lists it"):
        cloud.provider.describe(instance.id)
    for list_fault, kind in (
        (Fault(endpoint="runpod.list", status=401), AuthError),
        (Fault(endpoint="runpod.list", status=503), Unavailable),
    ):
        cloud.script(not_found, list_fault)
        with pytest.raises(kind):
            cloud.provider.describe("zzz")
    cloud.script(not_found)
    assert cloud.provider.describe("zzz").status is InstanceStatus.GONE


def test_an_end_that_was_accepted_and_did_not_happen_is_seen(cloud: RunPodCloud) -> None:
    """204, and the pod lives: whoever destroys must look, and sees it."""
    instance = cloud.launch()
    cloud.script(Fault(endpoint="runpod.terminate", call=1, status=204, body=""))
    cloud.provider.terminate(instance.id)
    assert cloud.provider.describe(instance.id).status is not InstanceStatus.GONE
    assert cloud.living() == ["lorry-test"]
    cloud.provider.terminate(instance.id)
    assert cloud.provider.describe(instance.id).status is InstanceStatus.GONE
    assert cloud.living() == []


def test_an_end_whose_answer_was_lost_is_asked_for_again_without_harm(cloud: RunPodCloud) -> None:
    instance = cloud.launch()
    cloud.script(Fault(endpoint="runpod.terminate", call=1, drop="after"))
    with pytest.raises(Unavailable):
        cloud.provider.terminate(instance.id)
    cloud.provider.terminate(instance.id)
    assert cloud.living() == []


def test_a_locked_pod_is_said_to_live_on(cloud: RunPodCloud) -> None:
    instance = cloud.launch()
    ask(cloud, "PATCH", f"/pods/{instance.id}", {"locked": True})
    with pytest.raises(UnexpectedResponse, match="pod is locked") as caught:
        cloud.provider.terminate(instance.id)
    assert "unlock" in caught.value.hint
    ask(cloud, "PATCH", f"/pods/{instance.id}", {"locked": False})


def test_a_listing_that_says_there_is_more_and_not_where_is_an_error(cloud: RunPodCloud) -> None:
    pod = {"id": "a", "name": "n", "status": "RUNNING"}
    for more in ({"hasNextPage": True, "nextCursor": None}, {"hasNextPage": True}, {"hasNextPage": "maybe"}, {"nextCursor": {}}, None):
        cloud.answer_instances_with(json.dumps({"pods": [pod], "pagination": more}))
        with pytest.raises(UnexpectedResponse):
            cloud.provider.instances()
    cloud.answer_instances_with(json.dumps({"pods": [pod], "pagination": {"hasNextPage": True, "nextCursor": "for ever"}}))
    with pytest.raises(UnexpectedResponse, match="goes on"):
        cloud.provider.instances()


# money and keys


def test_the_balance_is_read_where_it_can_be_and_unknown_when_graphql_has_ended(cloud: RunPodCloud) -> None:
    seen = cloud.provider.account()
    assert seen.balance_usd is not None
    assert 90 < seen.balance_usd <= 100
    assert (bool(seen.id), seen.auto_pay, seen.lacks) == (True, None, None), "whether a card is charged it does not say"
    for status in (410, 404, 401, 403):  # it has ended, or this key may not ask it
        cloud.script(Fault(endpoint="runpod.graphql", status=status, body='{"error": "gone"}'))
        seen = cloud.provider.account()
        assert (seen.balance_usd, seen.lacks) == (None, ("GraphQL",) if status in (401, 403) else None)
    with pytest.raises(AuthError):
        cloud.runpod(key="wrong").account()
    for body in ('{"data": {"myself": null}, "errors": [{"message": "?"}]}', "[]", "{}"):
        cloud.script(Fault(endpoint="runpod.graphql", body=body))
        with pytest.raises(UnexpectedResponse):
            cloud.provider.account()


def test_what_was_billed_is_the_sum_of_this_pods_records_and_none_while_there_are_none(cloud: RunPodCloud) -> None:
    rows = [("a", 0.5), ("b", 9.0), ("a", 0.25)]
    body = {"records": [{"podId": pod, "totalAmount": usd, "gpuAmount": usd} for pod, usd in rows]}
    cloud.script(Fault(endpoint="runpod.billing", body=json.dumps(body)))
    assert cloud.provider.billed_usd("a") == Decimal("0.75")
    assert cloud.provider.billed_usd("c") is None
    for odd in ("{}", '{"records": [{"podId": "a"}]}', '{"records": [{"podId": "a", "totalAmount": NaN}]}',
                '{"records": [{"podId": "a", "totalAmount": -1}]}'):  # fmt: skip
        cloud.script(Fault(endpoint="runpod.billing", body=odd))
        with pytest.raises(UnexpectedResponse):
            cloud.provider.billed_usd("a")


def test_what_the_cloud_bills_is_what_the_meter_counted(cloud: RunPodCloud) -> None:
    instance = cloud.launch()
    cloud.provider.terminate(instance.id)
    machine = cloud.server.market.bill().of(instance.id)
    assert machine
    billed = cloud.provider.billed_usd(instance.id)
    assert billed is not None
    assert abs(billed - machine.total_usd) < Decimal("1e-9")
    assert machine.upload_usd == machine.download_usd == 0


def test_the_key_comes_from_the_environment_and_not_from_other_programs_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".runpod").mkdir()
    (tmp_path / ".runpod" / "config.toml").write_text("apikey = 'theirs'")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNPOD_API_KEY", " three\n")
    monkeypatch.setenv("LORRY_RUNPOD_URL", "http://127.0.0.1:1/v2")
    assert (RunPod.from_env()._key, RunPod.from_env().console_url) == ("three", "http://127.0.0.1:1/v2/pods")
    assert RunPod.from_env("this one")._key == "this one"
    monkeypatch.delenv("RUNPOD_API_KEY")
    monkeypatch.delenv("LORRY_RUNPOD_URL")
    assert RunPod.from_env().console_url == "https://console.runpod.io/pods"
    with pytest.raises(NoKey, match="there is no key for RunPod"):
        RunPod.from_env().instances()
    assert RunPod.api_key.client_files({"HOME": str(tmp_path)}) == (tmp_path / ".runpod" / "config.toml",)


@pytest.mark.parametrize(
    ("text", "key"),
    [('[default]\napi_key = "one"', "one"), ("apikey = 'two'\napiurl = 'x'", "two"), ("nonsense [", ""), ("default = 3", "")],
)
def test_the_key_of_runpods_own_tools_can_be_read_when_asked_for(text: str, key: str) -> None:
    assert key_in(text) == key


def test_a_machine_with_its_own_key_can_end_itself_and_touch_nothing_else(cloud: RunPodCloud) -> None:
    """What a guard on the machine does, with the machine's own environment and nothing of the account."""
    one, two = wait_for_ssh(cloud.provider, cloud.launch("lorry-one").id), cloud.launch("lorry-two")
    way, base = cloud.provider.self_destroy, str(cloud.server.descriptor.document()["runpod_rest_url"])
    own = dict(line.partition("=")[::2] for line in login(cloud, one, "env").splitlines() if line.startswith("RUNPOD_"))
    assert own[way.id_env] == one.id
    headers = {"Authorization": f"Bearer {way.key.format(**own)}", "User-Agent": "guard"}
    with httpx.Client(trust_env=False, headers=headers) as http:
        for method, path in (("DELETE", f"/pods/{two.id}"), ("GET", f"/pods/{two.id}"), ("GET", "/pods"), ("GET", "/account/ssh-keys")):
            assert http.request(method, f"{base}{path}").status_code == 403
        assert http.get(way.url.format(**own)).json()["id"] == one.id
        assert http.request(way.method, way.url.format(**own)).status_code == 204
    assert cloud.living() == ["lorry-two"]


# the container's command


def test_a_login_on_a_plain_image_has_the_containers_environment(tmp_path: Path) -> None:
    """As on the real cloud, where sshd hands over nothing: bash, started by sshd, reads it from ~/.bashrc. Run twice, as a restart does."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sshd", "ssh-keygen", "apt-get", "rsync"):
        (programs / name).write_text("#!/bin/sh\nexit 0\n")
        (programs / name).chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".bashrc").write_text("export MINE=1\n")
    env = {"HOME": str(home), "PATH": f"{programs}:/usr/bin:/bin", "PUBLIC_KEY": PUBLIC, "GREETING": 'it\'s "me" $HOME\nand more'}
    for _ in range(2):
        subprocess.run(["sh", "-c", START, "lorry", 'echo "$GREETING" >greeted'], check=True, env=env, timeout=30, cwd=tmp_path)
    poll(lambda: (home / "greeted").exists() and (home / "greeted").read_text() == env["GREETING"] + "\n", what="onstart")
    assert (home / ".ssh" / "authorized_keys").read_text().split("\n") == ["", PUBLIC, ""]
    assert ((home / ".ssh" / "authorized_keys").stat().st_mode, (home / ".lorry_environment").stat().st_mode) == (0o100600, 0o100600)
    by_sshd = [
        "env",
        "-i",
        f"HOME={home}",
        "SSH_CLIENT=1 2 3",
        "PATH=/usr/bin:/bin",
        "bash",
        "-c",
        'printf %s "$GREETING"; echo "|$MINE|$PATH"',
    ]
    said = subprocess.run(by_sshd, check=True, capture_output=True, text=True, timeout=30).stdout
    if said != f"|{''}|/usr/bin:/bin\n":  # a bash built to read ~/.bashrc for sshd, as all of Debian's are
        assert said == f"{env['GREETING']}|1|{programs}:/usr/bin:/bin\n"


# answers that make no sense


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["RUNNING", "NaN", "1e999", "EU-RO-1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "host", "port", "direct"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
POD = {
    "id": "a", "name": "n", "status": "RUNNING", "cost": 0.5, "disk": 10, "runtime": {}, "gpu": {"id": "NVIDIA L4", "count": 1},
    "ssh": {"direct": {"host": "h", "port": 1, "username": "u"}}, "createdAt": "2026-11-20T10:00:00Z", "dataCenterId": "EU-RO-1",
}  # fmt: skip
ROW = {
    "id": "NVIDIA L4", "name": "L4", "memory": 24, "manufacturer": "NVIDIA", "price": {"secure": 0.4}, "availability": "LOW",
    "dataCenters": [{"id": "EU-RO-1", "availability": "LOW"}],
}  # fmt: skip


def asked(answer: object, verb: Callable[[RunPod], Any], status: int = 200) -> Any:
    """What the provider makes of this answer to every question."""
    provider = RunPod("key", url="http://127.0.0.1:1/v2", intervals_s={})
    text = json.dumps(answer)
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=text, headers={"Content-Type": "application/json"}))
    provider.__dict__["_http"] = CloudHTTP("http://127.0.0.1:1/v2", cloud="RunPod", key="key", ids_in=runpod._ids, transport=transport)
    return verb(provider)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(POD)), value=ODD)
def test_an_odd_field_never_hides_a_pod_or_breaks_the_reader(name: str, value: Any) -> None:
    """Either the pod is seen, or the whole answer is an error. It is never missing from a list that was read."""
    try:
        (seen,) = asked({"pods": [POD | {name: value}]}, lambda provider: provider.instances())
    except UnexpectedResponse:
        assert name in ("id", "name", "status")
    except ValueError:  # not exactly one: told to be terminated
        assert (name, value) == ("status", "TERMINATED")
    else:
        assert seen.prices is None or 0 < seen.prices.gpu_usd_per_hour < 1000
        assert seen.created_at is None or seen.created_at.tzinfo
        assert seen.ssh is None or (seen.ssh.host and 0 < seen.ssh.port < 65536)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(ROW)), value=ODD)
def test_an_absurd_offer_is_never_ranked(name: str, value: Any) -> None:
    for offer in asked({"gpus": [ROW, ROW | {name: value}]}, lambda provider: provider.offers(NEEDS)):
        assert 0 < offer.prices.gpu_usd_per_hour < 1000
        assert 0 < offer.vram_gib <= 2048
        assert offer.gpu_name


@settings(max_examples=100, deadline=None)
@given(answer=ODD, status=st.sampled_from([200, 201, 400, 402, 403, 404, 409, 410, 422, 429, 500, 503]))
def test_no_answer_breaks_any_verb(answer: Any, status: int) -> None:
    spec = LaunchSpec(label="n", image="i", disk_gib=10, ssh_public_key=PUBLIC)
    offer = offers_from([ROW], "SECURE", 10)[0]
    verbs: list[Callable[[RunPod], Any]] = [
        lambda provider: provider.offers(NEEDS),
        lambda provider: provider.launch(offer, spec),
        lambda provider: provider.describe("a"),
        lambda provider: provider.instances(),
        lambda provider: provider.terminate("a"),
        lambda provider: provider.billed_usd("a"),
    ]
    for verb in verbs:
        try:
            asked(answer, verb, status)
        except ProviderError:
            continue


@pytest.mark.parametrize("price", [0, -1, "NaN", "Infinity", 1e9, None, "free", {}, [1]])
def test_a_price_that_makes_no_sense_is_no_offer(price: Any) -> None:
    rows = [ROW, ROW | {"price": {"secure": price}}]
    assert len(offers_from(rows, "SECURE", 1)) == 1


def test_a_catalogue_of_nothing_but_nonsense_is_an_error_and_an_empty_one_is_not() -> None:
    with pytest.raises(UnexpectedResponse, match="cannot be read"):
        offers_from([{"id": "x"}, 3], "SECURE", 1)
    assert offers_from([], "SECURE", 1) == []


# helpers


def ask(cloud: RunPodCloud, method: str, path: str, body: object = None) -> Any:
    told = cloud.server.descriptor.document()
    headers = {"Authorization": f"Bearer {told['runpod_api_key']}", "User-Agent": "test"}
    answer = httpx.request(method, f"{told['runpod_rest_url']}{path}", json=body, headers=headers, trust_env=False)
    assert answer.status_code < 300, answer.text
    return answer.json() if answer.content else None


def raw(cloud: RunPodCloud, pod_id: str) -> dict[str, Any]:
    pod: dict[str, Any] = ask(cloud, "GET", f"/pods/{pod_id}")
    return pod


def act(cloud: RunPodCloud, pod_id: str, action: str) -> None:
    ask(cloud, "POST", f"/pods/{pod_id}/action", {"action": action})
