"""The practice cloud's RunPod face: the official Python package lives its whole life with it, unmodified, and its lies and rules hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from contract import ssh_options
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_help import poll

from providers.sandbox import graphql, runpod_stock
from providers.sandbox.graphql import GraphQLError
from providers.sandbox.plain import Plain
from providers.sandbox.rentals import BootTimes
from providers.sandbox.runpod_face import RunPodFace
from providers.sandbox.runpod_graphql import TYPES, split
from providers.sandbox.runpod_schema import validated
from providers.sandbox.server import Server, every_face

BOOT = BootTimes(created_s=0.05, loading_s=0.05)
STEP_S = 300.0
PYTHON = Path(os.environ.get("RUNPOD_PYTHON") or Path(sys.prefix) / "clients" / "runpod" / "bin" / "python")
"""A Python that has the official `runpod` package, in an environment of its own, as the set-up makes it."""


class RunPodAPI:
    """A customer with curl."""

    def __init__(self, server: Server, ssh_key: Path) -> None:
        self.server, self.ssh_key = server, ssh_key
        told = server.descriptor.document()
        self.url, self.graphql_url, self.key = (str(told[f"runpod_{name}"]) for name in ("rest_url", "graphql_url", "api_key"))
        self.public_key = ssh_key.with_suffix(".pub").read_text().strip()
        self.client = httpx.Client(headers={"User-Agent": "curl/8"}, trust_env=False)

    def ask(self, method: str, path: str, body: object = None, *, key: str | None = None, **headers: str) -> httpx.Response:
        return self.client.request(method, f"{self.url}{path}", json=body, headers={**self.bearer(key), **headers})

    def bearer(self, key: str | None) -> dict[str, str]:
        return {} if key == "" else {"Authorization": f"Bearer {key or self.key}"}

    def create(self, **fields: Any) -> httpx.Response:
        body = {
            "name": "lora", "image": "runpod/pytorch:1", "gpu": {"id": "NVIDIA GeForce RTX 4090"}, "disk": 20, "ports": ["22/tcp"],
            "env": {"PUBLIC_KEY": self.public_key},
        }  # fmt: skip
        return self.ask("POST", "/pods", {name: value for name, value in (body | fields).items() if value is not None})

    def pod(self, **fields: Any) -> str:
        answer = self.create(**fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def ready(self, pod_id: str) -> dict[str, Any]:
        poll(lambda: self.ask("GET", f"/pods/{pod_id}").json()["ssh"]["direct"], what="ssh.direct")
        pod: dict[str, Any] = self.ask("GET", f"/pods/{pod_id}").json()
        return pod

    def query(self, query: str, key: str | None = None, **variables: Any) -> httpx.Response:
        return self.client.post(self.graphql_url, json={"query": query, "variables": variables}, headers=self.bearer(key))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    faces = (Plain(), RunPodFace(page_size=2, billing_step_s=STEP_S))
    with Server(tmp_path_factory.mktemp("runpod-face"), boot=BOOT, faces=faces) as server:
        yield server


@pytest.fixture
def api(server: Server, ssh_key: Path) -> Iterator[RunPodAPI]:
    api = RunPodAPI(server, ssh_key)
    yield api
    with server.lock:
        server.market.destroy_all()


def detail(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.status_code, answer.json()["detail"]


# the official package

LIFE = """
import json, sys, time
import runpod
runpod.api_key = sys.argv[1]
public, say = sys.argv[2], {}
say["version"] = runpod.__version__
say["gpus"] = runpod.get_gpus()
say["gpu"] = runpod.get_gpu("NVIDIA GeForce RTX 4090")
try: runpod.get_gpu("NVIDIA nothing")
except ValueError as error: say["no_gpu"] = str(error)
try: runpod.create_pod("spot", "image", "NVIDIA GeForce RTX 4090", gpu_count=8)
except runpod.error.QueryError as error: say["no_capacity"] = str(error)
say["created"] = pod = runpod.create_pod(
    "from-the-package", "runpod/pytorch:1", "NVIDIA GeForce RTX 4090", cloud_type="SECURE", container_disk_in_gb=30, volume_in_gb=50,
    ports="22/tcp", env={"PUBLIC_KEY": public, "JOB": "42"}, docker_args="sh -c 'echo $JOB >job; sleep 9'")
say["at_once"] = runpod.get_pod(pod["id"])
until = time.monotonic() + 20
while not (runpod.get_pod(pod["id"])["runtime"] or {}).get("ports"):
    assert time.monotonic() < until, "no runtime"
    time.sleep(0.05)
say["ready"] = runpod.get_pod(pod["id"])
say["pods"] = [one["id"] for one in runpod.get_pods()]
print(json.dumps(say), flush=True)
sys.stdin.readline()
say = {"stopped": runpod.stop_pod(pod["id"]), "then": runpod.get_pod(pod["id"])}
say["resumed"] = runpod.resume_pod(pod["id"], 1)
say["terminated"] = runpod.terminate_pod(pod["id"])
say["gone"] = runpod.get_pod(pod["id"])
say["pods"] = runpod.get_pods()
try: runpod.terminate_pod(pod["id"])
except runpod.error.QueryError as error: say["again"] = str(error)
say["keys"] = runpod.update_user_settings(public)
say["user"] = runpod.get_user()
runpod.api_key = "wrong"
try: runpod.get_pods()
except runpod.error.AuthenticationError as error: say["wrong"] = str(error)
print(json.dumps(say), flush=True)
"""


@pytest.mark.skipif(not PYTHON.exists(), reason=f"the `runpod` package is not there: {PYTHON} (.ci/setup makes it)")
def test_the_official_package_lives_its_whole_life(api: RunPodAPI, tmp_path: Path) -> None:
    """Unmodified, pointed here by its own variable: look, rent, log in, stop, resume, end."""
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "RUNPOD_API_BASE_URL": api.graphql_url.removesuffix("/graphql")}
    command = [str(PYTHON), "-c", LIFE, api.key, api.public_key]
    process = subprocess.Popen(
        command, env=env, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        assert process.stdin
        assert process.stderr
        line = process.stdout.readline()
        assert line, process.stderr.read()
        first = json.loads(line)
        port = first["ready"]["runtime"]["ports"][0]
        user = api.server.market.machines.user
        words = [
            "ssh",
            *ssh_options(api.ssh_key),
            "-p",
            str(port["publicPort"]),
            f"{user}@{port['ip']}",
            "cat job; echo $RUNPOD_POD_ID $JOB",
        ]
        poll(lambda: subprocess.run(words, capture_output=True, text=True, check=False).stdout == f"42\n{first['created']['id']} 42\n",
             what="a login")  # fmt: skip
        rest, errors = process.communicate("\n", timeout=30)
    assert process.returncode == 0, errors
    second = json.loads(rest)
    _check_first(first)
    assert (second["stopped"]["desiredStatus"], second["then"]["runtime"], second["then"]["lastStatusChange"][:14]) == (
        "EXITED",
        None,
        "Exited by User",
    )
    assert second["resumed"]["desiredStatus"] == "RUNNING"
    assert (second["terminated"], second["gone"], second["pods"]) == (None, None, [])
    assert second["again"].startswith("pod not found to terminate")
    assert second["keys"]["pubKey"] == second["user"]["pubKey"] == api.public_key
    assert second["wrong"].startswith("Unauthorized request")
    machine = api.server.market.bill().of(first["created"]["id"])
    assert machine
    assert not machine.live


def _check_first(first: dict[str, Any]) -> None:
    assert {"id": "NVIDIA GeForce RTX 4090", "displayName": "RTX 4090", "memoryInGb": 24} in first["gpus"]
    assert (first["gpu"]["securePrice"], first["gpu"]["lowestPrice"]["uninterruptablePrice"]) == (0.69, 0.34)
    assert first["no_gpu"].startswith("No GPU found")
    assert "no longer any instances available" in first["no_capacity"]
    assert "JOB=42" in first["created"]["env"]
    assert first["created"]["machine"]["podHostId"].startswith(first["created"]["id"])
    assert (first["at_once"]["desiredStatus"], first["at_once"]["runtime"]) == ("RUNNING", None)
    assert (first["ready"]["containerDiskInGb"], first["ready"]["volumeInGb"], first["ready"]["costPerHr"]) == (30, 50, 0.69)
    assert first["pods"] == [first["created"]["id"]]


# v2: rules and lies


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"dataCenterId": "EU-RO-1"}, 422, "$: additional properties 'dataCenterId' not allowed"),
        ({"stopAfter": "2027-01-01T00:00:00Z"}, 422, "additional properties 'stopAfter'"),
        ({"interruptible": True}, 422, "additional properties 'interruptible'"),
        ({"name": None}, 422, "$: missing property 'name'"),
        ({"name": ""}, 422, "$.name: '' does not match"),
        ({"name": "x" * 192}, 422, "$.name"),
        ({"image": None}, 422, "$: missing property 'image'"),
        ({"disk": "20"}, 422, "$.disk: got str, want integer"),
        ({"disk": True}, 422, "$.disk"),
        ({"disk": 0}, 422, "$.disk: minimum: got 0, want 1"),
        ({"cloud": "ALL"}, 422, "$.cloud"),
        ({"ports": "22/tcp"}, 422, "$.ports: got str, want array"),
        ({"ports": ["22/udp"]}, 422, "$.ports[0]"),
        ({"env": {"A": 1}}, 422, "$.env.A"),
        ({"gpu": {"id": "X", "type": "Y"}}, 422, "$.gpu: additional properties 'type' not allowed"),
        ({"mounts": {"persistent": {"size": 5, "path": "/w"}}}, 422, "$.mounts.persistent.size: minimum: got 5, want 10"),
        ({"mounts": {"persistent": {"size": 20}}}, 422, "$.mounts.persistent: missing property 'path'"),
        ({"disk": None}, 400, "You must either provide a template id"),
        ({"gpu": None}, 400, "exactly one of gpu or cpu"),
        ({"cpu": {"id": "cpu5c", "vcpuCount": 2}}, 400, "exactly one of gpu or cpu"),
        ({"gpu": {"id": "NVIDIA X"}}, 400, "Unknown GPU type: NVIDIA X"),
        ({"gpu": {"id": "NVIDIA L40S", "minCudaVersion": "12.1", "allowedCudaVersions": ["12.1"]}}, 400, "mutually exclusive"),
        ({"mounts": {"persistent": {"size": 10, "path": "/w"}, "network": [{"volumeId": "v", "path": "/w"}]}}, 400, "mutually exclusive"),
        ({"gpu": {"id": "NVIDIA GeForce RTX 4090", "minCudaVersion": "13.0"}}, 400, "no longer any instances available"),
        ({"gpu": {"id": "NVIDIA GeForce RTX 4090", "count": 2}}, 400, "no longer any instances available"),
        ({"dataCenterIds": ["AP-JP-1"]}, 400, "no longer any instances available"),
        ({"dataCenterIds": ["eu-ro-1"]}, 400, "no longer any instances available"),
        ({"cloud": "COMMUNITY", "gpu": {"id": "NVIDIA L40S"}}, 400, "no longer any instances available"),
        ({"disk": 5000}, 400, "enough disk space"),
        ({"image": None, "templateId": "t"}, 404, "template not found"),
    ],
)  # fmt: skip
def test_a_create_that_breaks_a_rule_is_told_so_and_rents_nothing(api: RunPodAPI, fields: dict[str, Any], status: int, words: str) -> None:
    answer = api.create(**fields)
    said = answer.json()
    assert detail(answer)[0] == status == said["status"]
    assert words in f"{said['detail']} {said.get('errors', '')}".replace('"', "'")
    assert api.ask("GET", "/pods").json()["pods"] == []


def test_a_pod_says_running_at_once_and_shows_its_container_and_its_address_later(api: RunPodAPI) -> None:
    answer = api.create()
    pod = answer.json()
    assert answer.status_code == 201
    assert (pod["status"], pod["runtime"], pod["ssh"]["direct"], pod["cost"]) == ("RUNNING", None, None, 0.69)
    assert pod["actions"] == ["stop", "restart", "terminate"]
    ready = api.ready(pod["id"])
    assert ready["runtime"]["ports"] == [{"private": 22, "public": ready["ssh"]["direct"]["port"], "type": "tcp", "ip": "127.0.0.1"}]
    assert ready["env"]["PUBLIC_KEY"] == api.public_key


def test_without_a_port_for_ssh_there_is_no_address_until_one_is_added(api: RunPodAPI) -> None:
    pod_id = api.pod(ports=None)
    poll(lambda: api.ask("GET", f"/pods/{pod_id}").json()["runtime"], what="a runtime")
    assert api.ask("GET", f"/pods/{pod_id}").json()["ssh"]["direct"] is None
    assert api.ask("PATCH", f"/pods/{pod_id}", {"ports": ["22/tcp"], "name": "other"}).json()["ssh"]["direct"]
    assert api.ask("GET", f"/pods/{pod_id}").json()["name"] == "other"


def test_account_keys_get_in_only_when_asked_for_and_not_beside_an_own_one(api: RunPodAPI) -> None:
    assert api.ask("PUT", "/account/ssh-keys", {"keys": ["nonsense"]}).status_code == 422
    assert api.ask("PUT", "/account/ssh-keys", {"keys": [api.public_key]}).json() == api.ask("GET", "/account/ssh-keys").json()
    asked = {
        "asked": api.pod(env={}, startSsh=True),
        "own": api.pod(startSsh=True, env={"PUBLIC_KEY": "ssh-ed25519 AAAA"}),
        "not": api.pod(env={}),
    }
    keys = {name: api.ask("GET", f"/pods/{pod_id}").json()["env"].get("PUBLIC_KEY") for name, pod_id in asked.items()}
    assert keys == {"asked": api.public_key, "own": "ssh-ed25519 AAAA", "not": None}


def test_stop_start_restart_and_what_may_follow_what(api: RunPodAPI) -> None:
    pod_id = api.pod(mounts={"persistent": {"size": 100, "path": "/workspace"}})
    port = api.ready(pod_id)["ssh"]["direct"]["port"]

    def act(action: str) -> httpx.Response:
        return api.ask("POST", f"/pods/{pod_id}/action", {"action": action})

    assert detail(act("start"))[0] == 409
    stopped = act("stop").json()
    assert (stopped["status"], stopped["actions"], stopped["ssh"]["direct"]) == ("EXITED", ["start", "terminate"], None)
    assert stopped["runtime"], "stale, for a while"
    assert stopped["cost"] == pytest.approx(0.20 * 100 / 720, rel=1e-3), "the volume, at twice its price"
    assert detail(act("stop"))[0] == detail(act("restart"))[0] == 409
    assert act("start").json()["status"] == "RUNNING"
    moved = api.ready(pod_id)["ssh"]["direct"]["port"]
    act("restart")
    assert len({port, moved, api.ready(pod_id)["ssh"]["direct"]["port"]}) == 3
    api.ask("PATCH", f"/pods/{pod_id}", {"locked": True})
    assert detail(act("stop"))[0] == detail(act("terminate"))[0] == detail(api.ask("DELETE", f"/pods/{pod_id}"))[0] == 409
    api.ask("PATCH", f"/pods/{pod_id}", {"locked": False})
    assert (act("terminate").status_code, act("terminate").status_code) == (204, 404)
    assert act("sing").status_code == 422


def test_the_meter_charges_a_stopped_pod_its_volume_twice_and_its_container_not_at_all(api: RunPodAPI) -> None:
    pod_id = api.pod(disk=50, mounts={"persistent": {"size": 100, "path": "/workspace"}})
    machine = api.server.market.bill().of(pod_id)
    assert machine
    hour = timedelta(hours=1)
    assert abs(machine.disk.usd_per_hour - Decimal("0.10") / 720 * 150) < Decimal("1e-6")
    machine.disk.switch(machine.created_at + hour, on=True)
    machine.disk.change(machine.created_at + hour, machine.stopped_usd_per_hour)
    second_hour = machine.disk.usd(machine.created_at + 2 * hour) - machine.disk.usd(machine.created_at + hour)
    assert abs(second_hour - Decimal("0.20") / 720 * 100) < Decimal("1e-6")


def test_pods_are_listed_in_pages_and_unknown_parameters_are_ignored(api: RunPodAPI) -> None:
    ids = [api.pod(name="same") for _ in range(5)]
    seen, cursor, pages = [], "", 0
    while pages < 9:
        page = api.ask("GET", f"/pods?desiredStatus=EXITED&limit=1000{cursor and f'&cursor={cursor}'}").json()
        seen += [pod["id"] for pod in page["pods"]]
        pages += 1
        if not page["pagination"]["hasNextPage"]:
            break
        cursor = page["pagination"]["nextCursor"]
    assert (seen, pages) == (ids, 3)
    assert detail(api.ask("GET", "/pods?limit=0"))[0] == 400


def test_errors_are_problem_documents_and_not_found_has_its_words(api: RunPodAPI) -> None:
    assert detail(api.ask("GET", "/pods/zzz")) == (404, "pod not found")
    assert detail(api.ask("DELETE", "/pods/zzz")) == (404, "pod not found")
    assert detail(api.ask("GET", "/pods", key="")) == (401, "missing bearer token")
    assert detail(api.ask("GET", "/pods", key="wrong"))[0] == 401
    plain = api.server.descriptor.api_key
    assert detail(api.ask("GET", "/pods", key=plain))[0] == 401, "another cloud's key"
    assert api.ask("GET", "/nowhere").json()["detail"] != "pod not found"


def test_a_librarys_default_name_is_turned_away_before_the_key_is_read(api: RunPodAPI) -> None:
    for agent in ("Python-urllib/3.11", ""):
        answer = api.ask("GET", "/pods", **{"User-Agent": agent})
        assert (answer.status_code, answer.text) == (403, "error code: 1010")


def test_the_first_version_has_ended(api: RunPodAPI) -> None:
    for path in ("pods", "pods/1", "billing/pods"):
        answer = api.client.get(api.url.replace("/v2", f"/v1/{path}"), headers={"Authorization": f"Bearer {api.key}"})
        assert answer.status_code == 410


def test_a_pods_own_key_sees_and_ends_that_pod_by_rest_and_by_graphql(api: RunPodAPI) -> None:
    one, two = api.pod(), api.pod()
    keys = {rental.id: rental.key for rental in api.server.market.state.rentals}
    assert api.ask("GET", f"/pods/{one}", key=keys[one]).status_code == 200
    assert detail(api.ask("DELETE", f"/pods/{two}", key=keys[one])) == (403, "access denied")
    assert detail(api.ask("POST", "/pods", {}, key=keys[one]))[0] == 403
    assert api.query("query { myself { id } }", key=keys[one]).status_code == 401
    assert api.query(f'mutation {{ podTerminate(input: {{podId: "{two}"}}) }}', key=keys[one]).status_code == 401
    assert api.query(f'mutation {{ podTerminate(input: {{podId: "{two}"}}) }}', key=keys[two]).json() == {"data": {"podTerminate": None}}
    assert api.ask("DELETE", f"/pods/{one}", key=keys[one]).status_code == 204
    assert not api.server.market.state.rentals


def test_quotas_are_told_on_every_answer_and_end_in_retry_after(api: RunPodAPI) -> None:
    clock, limits = [30.0], api.server.market.limits
    assert api.ask("GET", "/pods").headers["RateLimit-Policy"] == '"minute";q=60;w=60, "hour";q=3000;w=3600, "day";q=50000;w=86400'
    limits.scale, limits.monotonic_s = 1, lambda: clock[0]
    try:
        left = [api.ask("GET", "/catalog/cpus").headers["RateLimit"].split(";")[1] for _ in range(3)]
        assert left == ["r=59", "r=58", "r=57"]
        for _ in range(57):
            api.ask("GET", "/catalog/cpus")
        answer = api.create()
        assert detail(answer) == (429, "rate limit exceeded for the minute window")
        assert answer.headers["Retry-After"] == "31"
        clock[0] += 31
        assert api.ask("GET", "/pods").json()["pods"] == [], "what was turned away did not happen"
    finally:
        limits.scale = 0


def test_the_catalogue_tells_stock_only_with_a_product_and_counts_it(api: RunPodAPI) -> None:
    ask = "/catalog/gpus?include=AVAILABILITY&product=POD"
    assert "availability" not in api.ask("GET", "/catalog/gpus").json()["gpus"][0]
    assert detail(api.ask("GET", "/catalog/gpus?include=AVAILABILITY"))[0] == detail(api.ask("GET", "/catalog/gpus?product=POD"))[0] == 400
    (gpu,) = [one for one in api.ask("GET", f"{ask}&cloud=COMMUNITY").json()["gpus"] if one["name"] == "RTX 4090"]
    assert (gpu["availability"], gpu["price"]["community"], "dataCenters" in gpu) == ("LOW", 0.34, False)
    api.pod(cloud="COMMUNITY")
    (gpu,) = [one for one in api.ask("GET", f"{ask}&cloud=COMMUNITY").json()["gpus"] if one["name"] == "RTX 4090"]
    assert gpu["availability"] == "NONE"
    one = api.ask("GET", "/catalog/gpus/NVIDIA%20GeForce%20RTX%204090?include=AVAILABILITY&product=POD").json()
    assert {"id": "US-KS-2", "name": "US-KS-2", "availability": "MEDIUM"} in one["dataCenters"]
    assert detail(api.ask("GET", "/catalog/gpus/X"))[0] == 404
    centers = api.ask("GET", "/catalog/datacenters?include=GPU_AVAILABILITY").json()["dataCenters"]
    assert {"id": "NVIDIA L40S", "name": "L40S", "availability": "HIGH"} in next(c for c in centers if c["id"] == "US-TX-3")[
        "gpuAvailability"
    ]
    high = api.ask("GET", f"{ask}&minCudaVersion=13.0").json()["gpus"]
    assert {one["name"] for one in high if one["availability"] != "NONE"} == {"RTX 5090", "H100 SXM"}


def test_charges_come_in_steps_after_they_were_earned(api: RunPodAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    market, pod_id = api.server.market, api.pod()
    created = market.bill().of(pod_id).created_at  # type: ignore[union-attr]

    def records(after_s: float, query: str = "bucketSize=hour&lastN=3") -> list[dict[str, Any]]:
        with monkeypatch.context() as patch:
            patch.setattr(market, "now", lambda: created + timedelta(seconds=after_s))
            answer = api.ask("GET", f"/billing/pods?podId={pod_id}&{query}").json()
        assert answer["metadata"]["recordCount"] == len(answer["records"])
        found: list[dict[str, Any]] = answer["records"]
        return found

    assert records(STEP_S - 1) == []
    hourly = 0.69 + 20 * 0.10 / 720
    first = sum(one["totalAmount"] for one in records(STEP_S + 1))
    assert (
        first
        == pytest.approx(hourly * STEP_S / 3600, rel=1e-3)
        == pytest.approx(sum(one["totalAmount"] for one in records(2 * STEP_S - 1)))
    )
    later = records(2 * 3600)
    assert sum(one["totalAmount"] for one in later) == pytest.approx(2 * hourly, rel=1e-3)
    assert len(later) in (2, 3), "a bucket an hour"
    assert later[0]["gpuAmount"] + later[0]["diskAmount"] == pytest.approx(later[0]["totalAmount"])
    assert len(records(2 * 3600, "bucketSize=month&lastN=2")) == 1
    for query in ("bucketSize=minute", "startTime=2026-11-20T06:00:00Z", "lastN=2&endTime=2026-11-20T06:00:00Z", "lastN=x",
                  "startTime=x&endTime=y"):  # fmt: skip
        assert detail(api.ask("GET", f"/billing/pods?{query}"))[0] == 400


def test_without_credit_a_pod_is_terminated_with_all_that_is_on_it(api: RunPodAPI) -> None:
    pod_id, market = api.pod(), api.server.market
    accounts, before = market.state.accounts, list(market.state.accounts)
    accounts[:] = [replace(account, credit_usd=Decimal(0)) for account in before]
    try:
        assert detail(api.ask("GET", f"/pods/{pod_id}"))[0] == 404
        assert detail(api.create())[0] == 402
    finally:
        accounts[:] = before
    machine = market.bill().of(pod_id)
    assert machine
    assert not machine.live


def test_logs_come_as_events(api: RunPodAPI) -> None:
    answer = api.ask("GET", f"/pods/{api.pod()}/logs")
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert json.loads(answer.text.splitlines()[1].removeprefix("data: "))["source"] == "system"


def test_every_practice_cloud_tells_where_its_runpod_is() -> None:
    assert any(isinstance(face, RunPodFace) for face in every_face())
    told = RunPodFace().addresses("http://x", "k")
    assert told == {"runpod_rest_url": "http://x/runpod/v2", "runpod_graphql_url": "http://x/runpod/graphql", "runpod_api_key": "k"}
    ids = [offer.id for face in every_face() for offer in face.stock()]
    assert len(ids) == len(set(ids))


# GraphQL


def test_a_deadline_for_the_server_is_accepted_and_nothing_acts_on_it(api: RunPodAPI) -> None:
    """`terminateAfter` looked like a safety net and was none."""
    answer = api.query(
        "mutation createPod($input: PodFindAndDeployOnDemandInput!) { made: podFindAndDeployOnDemand(input: $input) { id } }",
        input={"name": "n", "imageName": "i", "cloudType": "SECURE", "gpuTypeId": "NVIDIA L40S", "gpuCount": 1,
               "terminateAfter": "2020-01-01T00:00:00Z", "stopAfter": "2020-01-01T00:00:00Z"},
    )  # fmt: skip
    pod_id = answer.json()["data"]["made"]["id"]
    assert api.ask("GET", f"/pods/{pod_id}").json()["status"] == "RUNNING"


def test_spot_is_gone_and_says_there_is_no_capacity(api: RunPodAPI) -> None:
    answer = api.query('mutation { podRentInterruptable(input: {bidPerGpu: 0.2, gpuTypeId: "NVIDIA L40S", imageName: "i"}) { id } }')
    assert answer.status_code == 200
    assert answer.json()["data"] == {"podRentInterruptable": None}
    assert "no instances available" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("query { myself { shoeSize } }", 'Cannot query field "shoeSize" on type "User".'),
        ("query { myself }", 'Field "myself" of type "User" must have a selection'),
        ("query { myself { id { x } } }", 'Field "id" must not have a selection'),
        ('mutation { podFindAndDeployOnDemand(input: {objectMounts: 1, imageName: "i"}) { id } }', 'Field "objectMounts" is not defined'),
        ("query { myself { id }", "Syntax Error"),
        ('query { pod(input: {podId: "a\n"}) { id } }', "Syntax Error"),
        ("", "Syntax Error"),
        ("subscription { x }", "Syntax Error"),
        ("query { myself { id } } }", "Syntax Error"),
        ("query { ?", "Syntax Error"),
    ],
)
def test_what_is_no_graphql_or_not_in_the_schema_is_status_400(api: RunPodAPI, query: str, words: str) -> None:
    answer = api.query(query)
    assert (answer.status_code, words in answer.json()["errors"][0]["message"]) == (400, True), answer.text


def test_gpu_types_need_no_key_and_the_balance_does(api: RunPodAPI) -> None:
    assert api.query('{ gpuTypes(input: {id: "NVIDIA L40S"}) { id } }', key="").json() == {"data": {"gpuTypes": [{"id": "NVIDIA L40S"}]}}
    assert api.query("{ myself { clientBalance } }", key="").status_code == 401
    assert api.query("{ myself { clientBalance } }").json()["data"]["myself"]["clientBalance"] > 90


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=20) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.from_regex(r"[a-z_]\w{0,5}", fullmatch=True), inner, max_size=4),
    max_leaves=12,
)


def literal(value: Any) -> str:
    """The value as GraphQL writes it: names without quotes."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name}: {literal(one)}" for name, one in value.items()) + " }"
    return f"[{' '.join(map(literal, value))}]" if isinstance(value, list) else json.dumps(value)


@settings(max_examples=120, deadline=None)
@given(value=JSON)
def test_a_literal_is_read_as_it_was_written_and_so_is_a_variable(value: Any) -> None:
    for text, variables in ((literal(value), {}), ("$x", {"x": value})):
        operation = graphql.parse(f"mutation named($x: T!) {{ alias: field(input: {text}) # a comment\n {{ id }} }}")
        (field,) = operation.selection
        assert (operation.kind, field.alias, field.name, field.selection[0].name) == ("mutation", "alias", "field", "id")
        assert graphql.fill(dict(field.arguments), variables) == {"input": value}


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='{}()[]:$"\\#! \naquery1.-', max_size=30))
def test_any_text_is_graphql_or_a_syntax_error(text: str) -> None:
    try:
        graphql.check(graphql.parse(text).selection, "Query", TYPES)
    except GraphQLError:
        return


@settings(max_examples=100, deadline=None)
@given(body=st.dictionaries(st.sampled_from(["name", "image", "gpu", "mounts", "env", "ports", "disk"]), JSON))
def test_any_body_is_checked_without_a_crash(body: dict[str, Any]) -> None:
    assert all(one.startswith("$") for one in validated(body, "create"))


def test_a_command_in_one_string_is_split_as_a_shell_would() -> None:
    assert split("bash -lc 'python /app/render.py'") == ["bash", "-lc", "python /app/render.py"]
    assert split('{"cmd": ["a b", "c"], "entrypoint": ["e"]}') == ["e", "a b", "c"]
    assert split("it's broken") == ["it's", "broken"]
    assert split("") == []
    assert runpod_stock.container([]) == ""
