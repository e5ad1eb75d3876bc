"""The practice cloud as a process: found, started, killed, started again, ended; and the faults that a script can ask of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from contract import login, wait_for_ssh
from sandbox_help import poll, processes_of

from providers import load
from providers.base import Instance, InstanceStatus, LaunchSpec, Requirements
from providers.errors import NoCapacity, ProviderError, RateLimited, Refused, Unavailable, UnexpectedResponse
from providers.sandbox.billing import bill
from providers.sandbox.catalogue import catalogue
from providers.sandbox.descriptor import read_descriptor
from providers.sandbox.faults import Fault
from providers.sandbox.machines import HostError
from providers.sandbox.provider import Sandbox, default_folder, running, start
from providers.sandbox.server import Server

NEEDS = Requirements(disk_gib=1)
ROOT = Path(__file__).parents[2]
Serve = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts `python -m providers.sandbox` on tmp_path/s; whatever still runs at the end is ended by its own id."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "providers.sandbox", "--folder", str(tmp_path / "s"), "--json", *arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.terminate()
        process.communicate(timeout=20)


def first_document(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout
    document: dict[str, Any] = json.loads(process.stdout.readline())
    return document


def launch(provider: Sandbox, key: Path, label: str = "lorry-test", **fields: object) -> Instance:
    values = {"label": label, "image": "i", "disk_gib": 1, "ssh_public_key": key.with_suffix(".pub").read_text().strip()}
    return provider.launch(provider.offers(NEEDS)[0], LaunchSpec(**values | fields))  # type: ignore[arg-type]


class Login:
    """What `contract.login` needs of a cloud."""

    def __init__(self, ssh_key: Path) -> None:
        self.ssh_key = ssh_key


# The life of the process


def test_json_prints_one_document_with_which_anybody_can_ask(serve: Serve, tmp_path: Path) -> None:
    document = first_document(serve())
    assert document["folder"] == str(tmp_path / "s")
    answer = httpx.get(f"{document['url']}/v1/account", headers={"Authorization": f"Bearer {document['api_key']}"}, trust_env=False)
    assert answer.json()["name"] == "practice"
    assert (tmp_path / "s" / "sandbox.json").stat().st_mode & 0o077 == 0
    assert (tmp_path / "s" / "market.json").stat().st_mode & 0o077 == 0


def test_a_killed_server_leaves_its_machines_and_the_next_one_knows_and_bills_them(serve: Serve, tmp_path: Path, ssh_key: Path) -> None:
    folder = tmp_path / "s"
    process = serve()
    before = first_document(process)
    provider = Sandbox(folder, autostart=False)
    instance = wait_for_ssh(provider, launch(provider, ssh_key, env={"A": "b"}).id)
    process.kill()
    process.wait()
    assert login(Login(ssh_key), instance, "echo $A") == "b\n", "the machine does not need the server"  # type: ignore[arg-type]
    meanwhile = bill(folder).of(instance.id)
    assert meanwhile
    assert meanwhile.live
    assert first_document(serve())["url"] == before["url"], "clients that know the address find the new one there"
    assert provider.describe(instance.id) == instance
    assert provider.instances() == [instance]
    login(Login(ssh_key), instance, "sleep 600 >/dev/null 2>&1 &")  # type: ignore[arg-type]
    poll(lambda: len(processes_of(folder / "machines")) >= 2, what="work of the machine's own")
    provider.terminate(instance.id)
    poll(lambda: not processes_of(folder / "machines"), what="the end of the machine's processes", timeout_s=2)
    final = bill(folder).of(instance.id)
    assert final
    assert not final.live
    assert final.total_usd > meanwhile.total_usd
    assert final.up_bytes > 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_asked_to_end_destroys_its_machines_first(
    serve: Serve, tmp_path: Path, ssh_key: Path, signum: signal.Signals
) -> None:
    process = serve()
    first_document(process)
    instance = launch(Sandbox(tmp_path / "s", autostart=False), ssh_key)
    process.send_signal(signum)
    assert process.wait(timeout=20) == 0
    assert not processes_of(tmp_path / "s" / "machines")
    assert list((tmp_path / "s" / "machines").iterdir()) == []
    assert bill(tmp_path / "s").live == ()
    assert bill(tmp_path / "s").machines[0].id == instance.id
    assert running(tmp_path / "s") is None


def test_machines_are_kept_when_asked_to_and_billed_without_a_server(serve: Serve, tmp_path: Path, ssh_key: Path) -> None:
    process = serve("--keep-machines")
    first_document(process)
    instance = wait_for_ssh(provider := Sandbox(tmp_path / "s"), launch(provider, ssh_key).id)
    process.terminate()
    process.wait()
    first, second = bill(tmp_path / "s"), bill(tmp_path / "s")
    assert first.live == (instance.id,)
    assert first.total_usd < second.total_usd
    first_document(serve())
    assert provider.describe(instance.id) == instance
    provider.terminate(instance.id)


def test_two_servers_cannot_have_one_folder(serve: Serve, tmp_path: Path) -> None:
    first_document(serve())
    second = serve()
    _, said = second.communicate(timeout=20)
    assert second.returncode == 4
    assert "another practice cloud already serves" in said
    with pytest.raises(HostError):
        Server(tmp_path / "s")


def test_a_port_that_is_taken_is_said_so(tmp_path: Path, server: Server) -> None:
    port = int(server.descriptor.url.rpartition(":")[2])
    with pytest.raises(HostError, match=f"port {port} cannot be had"):
        Server(tmp_path, port=port)


def test_a_computer_without_sshd_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("providers.sandbox.machine.sshd_path", lambda: "")
    with pytest.raises(HostError) as caught:
        Server(tmp_path)
    assert "apt install openssh-server" in caught.value.hint


def test_a_user_without_a_name_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 3_999_999_999)
    with pytest.raises(HostError, match="user id 3999999999 has no name"):
        Server(tmp_path)


def test_a_folder_of_any_name_will_do(tmp_path: Path, ssh_key: Path) -> None:
    """sshd's configuration, two shells and Python's path files each have their own quoting."""
    folder = tmp_path / "it's 100%h odd $HOME é #1"
    with Server(folder):
        provider = Sandbox(folder)
        instance = wait_for_ssh(provider, launch(provider, ssh_key, onstart="echo up > up").id)
        said = login(Login(ssh_key), instance, "pwd; python3 -c 'import httpx'; until [ -s up ]; do sleep 0.05; done; cat up")  # type: ignore[arg-type]
        assert said == f"{folder.resolve()}/machines/{instance.id}/root\nup\n"


def test_clients_that_find_no_server_start_one_and_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands at once, as a user with two terminals has them."""
    monkeypatch.setenv("LORRY_HOME", str(tmp_path))
    monkeypatch.delenv("LORRY_SANDBOX_URL", raising=False)
    command = [sys.executable, "-c", "from providers import load; p = load('sandbox'); p.offers(None); print(p.account().name)"]
    clients = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [client.communicate(timeout=40)[0] for client in clients] == ["practice\n"] * 3
    found = running(default_folder())
    assert found
    servers = [process for process in processes_of(tmp_path) if process.pid == found.pid]
    assert len(servers) == 1
    assert len(processes_of(tmp_path)) == 1
    assert os.getsid(found.pid) == found.pid, "detached: it outlives the terminal that started it"
    os.kill(found.pid, signal.SIGTERM)
    poll(lambda: running(default_folder()) is None, what="the server's end")


def test_a_client_whose_server_was_killed_starts_it_again_and_finds_its_machine(tmp_path: Path, ssh_key: Path) -> None:
    provider = Sandbox(tmp_path)
    instance = launch(provider, ssh_key)
    first = running(tmp_path)
    assert first
    os.kill(first.pid, signal.SIGKILL)
    poll(lambda: running(tmp_path) is None, what="the server's death")
    assert [seen.id for seen in provider.instances()] == [instance.id]
    second = running(tmp_path)
    assert second
    assert second.pid != first.pid
    provider.terminate(instance.id)
    os.kill(second.pid, signal.SIGTERM)
    poll(lambda: running(tmp_path) is None, what="the server's end")


def test_a_server_that_nobody_needs_ends_by_itself_but_never_while_a_machine_lives(serve: Serve, tmp_path: Path, ssh_key: Path) -> None:
    process = serve("--idle-end-s", "1")
    first_document(process)
    provider = Sandbox(tmp_path / "s", autostart=False)
    instance = launch(provider, ssh_key)
    time.sleep(1.7)  # longer than it waits for somebody to need it
    assert process.poll() is None
    provider.terminate(instance.id)
    assert process.wait(timeout=20) == 0


def test_a_server_whose_folder_was_removed_takes_its_machines_with_it(tmp_path: Path, ssh_key: Path) -> None:
    """`rm -r` of LORRY_HOME must not leave processes that nothing can find any more."""
    folder = tmp_path / "sandbox"
    provider = Sandbox(folder)
    wait_for_ssh(provider, launch(provider, ssh_key, onstart="exec sleep 600").id)
    assert len(processes_of(folder)) >= 3
    shutil.rmtree(folder)
    poll(lambda: not processes_of(folder), what="the end of the server and its machine", timeout_s=10)


def test_a_server_that_cannot_start_tells_the_client_why(tmp_path: Path) -> None:
    (tmp_path / "market.json").write_text("{not json")
    with pytest.raises(ProviderError, match="did not start") as caught:
        Sandbox(tmp_path).offers(NEEDS)
    assert "server.log" in caught.value.hint


def test_without_autostart_nothing_is_started(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="no practice cloud runs"):
        Sandbox(tmp_path, autostart=False).account()
    assert list(tmp_path.iterdir()) == []


def test_whoever_only_looks_starts_nothing_unless_a_machine_was_left_behind(tmp_path: Path) -> None:
    """`lorry reap` asks every cloud: one that never was has no machine to tell of. A killed server's machines live on."""
    assert (list(Sandbox(tmp_path).instances()), Sandbox(tmp_path).account().name) == ([], "practice")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "machines/10001").mkdir(parents=True)
    (tmp_path / "market.json").write_text("{not json")
    for look in (Sandbox(tmp_path).instances, Sandbox(tmp_path).account):
        with pytest.raises(ProviderError, match="did not start"):
            look()


def test_the_environment_names_another_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORRY_HOME", str(tmp_path))
    monkeypatch.setenv("LORRY_SANDBOX_URL", server.descriptor.url)
    monkeypatch.setenv("LORRY_SANDBOX_KEY", server.descriptor.api_key)
    assert load("sandbox").account().name == "practice"
    assert list(tmp_path.iterdir()) == []


# Time and money


def test_a_clock_that_runs_faster_bills_by_its_own_time(tmp_path: Path, ssh_key: Path) -> None:
    speed = 36_000.0  # an hour in a tenth of a second
    with Server(tmp_path, speed=speed) as server:
        provider = Sandbox(tmp_path)
        began = time.monotonic()
        instance = launch(provider, ssh_key)
        launched = time.monotonic()
        time.sleep(0.2)
        ending = time.monotonic()
        provider.terminate(instance.id)
        ended = time.monotonic()
        charged = provider.billed_usd(instance.id)
        assert server.clock.speed == speed
    hourly = instance.prices.usd_per_hour(1) if instance.prices else Decimal(0)
    at_least, at_most = (hourly * Decimal(seconds * speed / 3600) for seconds in (ending - launched, ended - began))
    assert charged
    assert Decimal("0.9") * at_least <= charged <= Decimal("1.1") * at_most
    assert abs(bill(tmp_path).total_usd - charged) < Decimal("0.000001")


def test_another_speed_counts_from_now_on_only(tmp_path: Path) -> None:
    with Server(tmp_path, speed=1000.0) as server:
        time.sleep(0.05)
        before = server.clock.now()
    with Server(tmp_path, speed=1.0) as server:
        assert before <= server.clock.now()
        assert (server.clock.now() - before).total_seconds() < 1000 * 5
        first = server.clock.now()
        assert (server.clock.now() - first).total_seconds() < 1
    with Server(tmp_path) as server:
        assert server.clock.speed == 1.0


def test_an_account_without_credit_is_refused_and_nothing_is_rented(tmp_path: Path, ssh_key: Path) -> None:
    with Server(tmp_path, speed=3_600_000.0) as server:
        provider = Sandbox(tmp_path)
        provider_offer = max(provider.offers(NEEDS), key=lambda offer: offer.prices.gpu_usd_per_hour)
        key = ssh_key.with_suffix(".pub").read_text().strip()
        instance = provider.launch(provider_offer, LaunchSpec(label="l", image="i", disk_gib=1, ssh_public_key=key))
        poll(lambda: (provider.account().balance_usd or 0) < 0, what="an empty account")
        with pytest.raises(Refused, match="no credit"):
            launch(provider, ssh_key)
        provider.terminate(instance.id)
        assert server.market.bill().live == ()


def test_the_bill_has_every_machine_and_names_those_that_live(tmp_path: Path, ssh_key: Path) -> None:
    with Server(tmp_path) as server:
        provider = Sandbox(tmp_path)
        gone = launch(provider, ssh_key, "one")
        provider.terminate(gone.id)
        here = launch(provider, ssh_key, "two")
        document = json.loads(json.dumps(bill(tmp_path).document()))
        assert document["live"] == [here.id]
        assert [(m["id"], m["label"], m["live"]) for m in document["machines"]] == [(gone.id, "one", False), (here.id, "two", True)]
        assert [m["ended_at"] is None for m in document["machines"]] == [False, True]
        for machine in document["machines"]:
            parts = sum(machine[f"{meter}_usd"] for meter in ("gpu", "disk", "upload", "download"))
            assert abs(parts - machine["total_usd"]) < 1e-5
        assert server.market.bill().live == (here.id,)
    assert bill(tmp_path).live == ()
    command = [sys.executable, "-m", "providers.sandbox", "--folder", str(tmp_path), "--bill"]
    printed = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert [m["id"] for m in printed["machines"]] == [gone.id, here.id]
    assert printed["live"] == []


def test_no_bill_is_an_empty_bill(tmp_path: Path) -> None:
    assert bill(tmp_path).document()["machines"] == []
    assert list(tmp_path.iterdir()) == []


# Faults by script


@pytest.fixture
def provider(server: Server) -> Iterator[Sandbox]:
    provider = Sandbox(server.folder, autostart=False)
    yield provider
    server.faults.set([])
    for instance in provider.instances():
        provider.terminate(instance.id)


FAULTS: tuple[tuple[dict[str, Any], type[ProviderError]], ...] = (
    ({"status": 500}, Unavailable),
    ({"status": 502, "body": "<html>bad gateway</html>"}, Unavailable),
    ({"status": 429, "retry_after": "12"}, RateLimited),
    ({"body": "null"}, UnexpectedResponse),
    ({"drop": "before"}, Unavailable),
    ({"drop": "after"}, Unavailable),
    ({"truncate": 10}, Unavailable),
    ({"status": 302}, UnexpectedResponse),
    ({"status": 404, "body": "not here"}, UnexpectedResponse),
    ({"status": 404}, UnexpectedResponse),
)
METHODS = ("account", "offers", "instances", "describe", "terminate", "billed_usd")
NOT_READ = ({"body": "null"}, "terminate")
"""That a destroy worked is seen by looking, not by its answer."""


@pytest.mark.parametrize(("fault", "error", "method"), [(f, e, m) for f, e in FAULTS for m in METHODS if (f, m) != NOT_READ])
def test_each_fault_is_the_error_of_its_kind_in_each_call(
    server: Server, provider: Sandbox, fault: dict[str, Any], error: type[ProviderError], method: str
) -> None:
    arguments = {"offers": (NEEDS,), "account": (), "instances": ()}.get(method, ("12345",))
    server.faults.set([Fault(endpoint="*", call=1, **fault)])
    with pytest.raises(error) as caught:
        getattr(provider, method)(*arguments)
    if isinstance(caught.value, RateLimited):
        assert caught.value.retry_after_s == 12
    getattr(provider, method)(*arguments)


def test_a_fault_hits_the_call_that_was_named(server: Server, provider: Sandbox) -> None:
    server.faults.set([Fault(endpoint="plain.account", call=2, status=500)])
    provider.account()
    with pytest.raises(Unavailable):
        provider.account()
    provider.account()
    assert server.faults.calls() == {"plain.account": 3}


def test_a_stale_listing_shows_what_was(server: Server, provider: Sandbox, ssh_key: Path) -> None:
    provider.instances()
    server.faults.set([Fault(endpoint="plain.list", call=1, stale=True)])
    instance = launch(provider, ssh_key)
    assert provider.instances() == []
    assert [seen.id for seen in provider.instances()] == [instance.id]


def test_a_create_can_land_after_its_connection_was_cut(server: Server, provider: Sandbox, ssh_key: Path) -> None:
    server.faults.set([Fault(endpoint="plain.create", late_s=0.4)])
    with pytest.raises(Unavailable):
        launch(provider, ssh_key, "late")
    assert provider.instances() == []
    poll(provider.instances, what="the late machine")
    assert provider.instances()[0].label == "late"


def test_an_error_can_come_with_its_effect(server: Server, provider: Sandbox, ssh_key: Path) -> None:
    server.faults.set([Fault(endpoint="plain.create", status=500, effect=True)])
    with pytest.raises(Unavailable):
        launch(provider, ssh_key, "made")
    assert [seen.label for seen in provider.instances()] == ["made"]


def test_a_slow_answer_is_waited_for(server: Server, provider: Sandbox) -> None:
    server.faults.set([Fault(endpoint="plain.account", delay_s=0.3)])
    began = time.monotonic()
    provider.account()
    assert time.monotonic() - began >= 0.3


def test_the_script_can_be_set_from_another_process_with_the_admin_key_only(server: Server, provider: Sandbox) -> None:
    url = f"{server.descriptor.url}/sandbox/faults"
    script = json.dumps([{"endpoint": "plain.account", "status": 500}])
    for key, status in ((server.descriptor.api_key, 401), (server.descriptor.admin_key, 200)):
        answer = httpx.put(url, content=script, headers={"Authorization": f"Bearer {key}"}, trust_env=False)
        assert answer.status_code == status
    with pytest.raises(Unavailable):
        provider.account()
    calls = httpx.get(url, headers={"Authorization": f"Bearer {server.descriptor.admin_key}"}, trust_env=False).json()
    assert calls == {"calls": {"plain.account": 1}}


LISTINGS = {
    "plain.list": ("/v1/instances", "api_key"),
    "vast.list": ("/api/v1/instances/", "vast_api_key"),
    "runpod.list": ("/runpod/v2/pods", "runpod_api_key"),
    "runpod.graphql": ("/runpod/graphql", "runpod_api_key"),
    "tensordock.list": ("/tensordock/v2/instances", "tensordock_api_key"),
}


@pytest.mark.parametrize("endpoint", LISTINGS)
def test_every_kind_of_fault_works_at_every_face(server: Server, endpoint: str) -> None:
    """From outside, by the script's own words; and only at the call that was named."""
    told = server.descriptor.document()
    path, key = LISTINGS[endpoint]

    def script(**fault: Any) -> None:
        put = httpx.put(
            f"{told['url']}/sandbox/faults", json=[fault | {"endpoint": endpoint, "call": 2}],
            headers={"Authorization": f"Bearer {told['admin_key']}"}, trust_env=False,
        )  # fmt: skip
        assert put.status_code == 200
        assert ask().status_code == 200

    def ask() -> httpx.Response:
        method, body = ("POST", {"query": "{ myself { id } }"}) if endpoint == "runpod.graphql" else ("GET", None)
        return httpx.request(method, f"{told['url']}{path}", json=body, headers={"Authorization": f"Bearer {told[key]}"}, trust_env=False)

    script(status=503, body="<html>", retry_after="9")
    answer = ask()
    assert (answer.status_code, answer.text, answer.headers["Retry-After"]) == (503, "<html>", "9")
    script(delay_s=0.2)
    begun = time.monotonic()
    ask()
    assert time.monotonic() - begun >= 0.2
    for cut in ({"drop": "before"}, {"drop": "after"}, {"truncate": 3}, {"late_s": 0.01}):
        script(**cut)
        with pytest.raises(httpx.TransportError):
            ask()
    script(stale=True)
    assert ask().status_code == ask().status_code == 200


def test_two_clients_that_want_one_offer_get_one_machine(server: Server, ssh_key: Path) -> None:
    key = ssh_key.with_suffix(".pub").read_text().strip()
    outcomes: list[object] = []

    def want(number: int) -> None:
        client = Sandbox(server.folder, autostart=False)
        try:
            outcomes.append(client.launch(catalogue()[5], LaunchSpec(label=f"l{number}", image="i", disk_gib=1, ssh_public_key=key)))
        except NoCapacity as error:
            outcomes.append(error)

    threads = [threading.Thread(target=want, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, Instance) for outcome in outcomes) == 1
    provider = Sandbox(server.folder, autostart=False)
    (instance,) = provider.instances()
    provider.terminate(instance.id)
    assert provider.describe(instance.id).status is InstanceStatus.GONE


def test_every_request_leaves_a_line_without_keys(server: Server, provider: Sandbox) -> None:
    provider.account()
    text = (server.folder / "requests.jsonl").read_text()
    last = json.loads(text.splitlines()[-1])
    assert (last["method"], last["path"], last["endpoint"], last["status"]) == ("GET", "/v1/account", "plain.account", 200)
    assert server.descriptor.api_key not in text


def test_start_returns_the_server_that_already_runs(server: Server) -> None:
    assert start(server.folder) == read_descriptor(server.folder)


def test_a_listing_that_holds_fewer_than_it_counts_is_unknown(server: Server, provider: Sandbox) -> None:
    server.faults.set([Fault(endpoint="plain.list", body='{"instances": [], "total": 1, "next_cursor": null}')])
    with pytest.raises(UnexpectedResponse, match="counts 1 instances but listed 0"):
        provider.instances()
