"""Vast's official client, unmodified, does its whole life against the practice cloud; and the face keeps Vast's habits.

The client lives in an environment of its own, because it pins older libraries: `$VENV/clients/vastai`, made by the set-up, or wherever
VASTAI_PYTHON says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from contract import ssh_options
from pydantic import TypeAdapter
from sandbox_help import poll

from providers.sandbox.happenings import Happening
from providers.sandbox.rentals import BootTimes, State, Terms
from providers.sandbox.server import Server
from providers.sandbox.vast_rows import holds, matches, stock

PYTHON = Path(os.environ.get("VASTAI_PYTHON") or Path(sys.prefix) / "clients" / "vastai" / "bin" / "python")
needs_client = pytest.mark.skipif(not PYTHON.exists(), reason=f"Vast's own client is not in {PYTHON}: run `make setup`")
QUERY = "gpu_name in [RTX_4090,H100_SXM] reliability>0.98 gpu_ram>=20 duration>=2 driver_version>=550.54.14"
Ask = Callable[..., Any]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "s", boot=BootTimes(created_s=0.05, loading_s=0.05)) as server:
        yield server


@pytest.fixture
def told(server: Server) -> dict[str, str]:
    return {name: str(value) for name, value in server.descriptor.document().items()}


@pytest.fixture
def environment(told: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """What its users set, and homes of its own: it keeps caches by instance id."""
    return own_home(tmp_path) | {"VAST_URL": told["vast_url"], "VAST_API_KEY": told["vast_api_key"]}


def own_home(folder: Path) -> dict[str, str]:
    return {"HOME": str(folder), "TMPDIR": str(folder), "VASTAI_NO_UPDATE_CHECK": "1", "PATH": os.environ["PATH"], "COLUMNS": "250"}


MANY = """
import json, os, sys
from vastai.cli.main import main
from vastai.cli.commands import auth, benchmarks, billing, deployments, endpoints, instances, keys, machines, metrics, misc, offers, storage
for line in sys.stdin:
    task = json.loads(line)
    if not (child := os.fork()):
        os.environ.update(task["environment"])
        for number, path in ((1, task["out"]), (2, task["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["vastai", *task["words"]]
        main()
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""The client as it is, imported once: its start takes two seconds, and a life has twenty commands."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    home = own_home(tmp_path_factory.mktemp("client"))
    command = [str(PYTHON), "-c", MANY]
    with subprocess.Popen(command, env=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin
        process.stdin.close()


@pytest.fixture
def cli(many: subprocess.Popen[str], told: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """`vastai WORDS`: what it printed."""

    def run(*words: str) -> str:
        assert many.stdin
        assert many.stdout
        out, err = tmp_path / "out", tmp_path / "err"
        keys = {"VAST_API_KEY": told["vast_api_key"]}
        task = {"words": ["--url", told["vast_url"], *words], "environment": keys, "out": str(out), "err": str(err)}
        many.stdin.write(json.dumps(task) + "\n")
        many.stdin.flush()
        assert many.stdout.readline() == "0\n", err.read_text()
        return out.read_text() + (err.read_text() if not out.read_text().strip() else "")

    return run


@pytest.fixture
def sdk(environment: dict[str, str]) -> Callable[[str], Any]:
    """What a script with `vast = VastAI()` leaves in `result`, by the client's own Python."""

    def run(script: str) -> Any:
        start = "import json, os\nfrom vastai import VastAI\nvast = VastAI(os.environ['VAST_API_KEY'], server_url=os.environ['VAST_URL'])\n"
        command = [str(PYTHON), "-c", f"{start}{script}\nprint('RESULT', json.dumps(result, default=str))"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.rpartition("RESULT ")[2])

    return run


@pytest.fixture
def ask(told: dict[str, str]) -> Iterator[Ask]:
    """One request with the account's key, or another one."""
    with httpx.Client(base_url=told["vast_url"], trust_env=False) as http:

        def call(method: str, path: str, body: object = None, *, key: str | None = None, **params: object) -> httpx.Response:
            headers = {"Authorization": f"Bearer {told['vast_api_key'] if key is None else key}"} if key != "" else {}
            query = {name: value if isinstance(value, str) else json.dumps(value) for name, value in params.items()}
            return http.request(method, path, json=body, params=query, headers=headers)

        yield call


def create(ask: Ask, offer: int = 24111000, **fields: object) -> dict[str, Any]:
    body = {"client_id": "me", "image": "pytorch:2", "disk": 10, "label": "lorry-x", "runtype": "ssh_direc ssh_proxy", "price": None}
    answer: dict[str, Any] = ask("PUT", f"/api/v0/asks/{offer}/", body | fields).json()
    return answer


def show(ask: Ask, id_: int, **options: Any) -> dict[str, Any]:
    answer: dict[str, Any] = ask("GET", f"/api/v0/instances/{id_}/", owner="me", **options).json()
    return answer["instances"]  # type: ignore[no-any-return]


def running(ask: Ask, id_: int) -> dict[str, Any]:
    poll(lambda: "ports" in show(ask, id_), what="an address")
    return show(ask, id_)


# The official client


@needs_client
def test_the_command_itself_finds_the_practice_cloud_by_its_own_settings(environment: dict[str, str]) -> None:
    command = [str(PYTHON.parent / "vastai"), "search", "offers", QUERY, "--raw"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)) > 5


@needs_client
def test_the_command_line_client_does_the_whole_life(cli: Callable[..., str], ssh_key: Path, server: Server, tmp_path: Path) -> None:
    """Search with a real query, create, show, log in, label, list, charges, destroy."""
    offers = json.loads(cli("search", "offers", QUERY, "-o", "dph", "--limit", "5", "--raw"))
    assert len(offers) == 5
    assert {offer["gpu_name"] for offer in offers} <= {"RTX 4090", "H100 SXM"}
    assert [offer["dph_total"] for offer in offers] == sorted(offer["dph_total"] for offer in offers)
    assert all(offer["reliability"] > 0.98 and offer["verification"] == "verified" for offer in offers)
    assert str(offers[0]["id"]) in cli("search", "offers", QUERY, "-o", "dph")

    key = ssh_key.with_suffix(".pub").read_text().strip()
    cli("create", "ssh-key", key, "-y")
    assert key.split()[1][:20] in cli("show", "ssh-keys", "--raw")
    words = (
        "--image",
        "pytorch:2",
        "--disk",
        "40",
        "--ssh",
        "--direct",
        "--env",
        "-e JOB=42 -p 8000:8000",
        "--onstart-cmd",
        "echo hi>done",
    )
    made = json.loads(cli("create", "instance", str(offers[0]["id"]), *words, "--label", "mine", "--raw"))
    assert made["success"]
    id_ = str(made["new_contract"])
    poll(lambda: "ports" in json.loads(cli("show", "instance", id_, "--raw")), what="an address")

    url = cli("ssh-url", id_).strip()
    user = server.market.machines.user
    login = ["ssh", *ssh_options(ssh_key), url.replace("root@", f"{user}@")]
    said = subprocess.run([*login, "echo $JOB $CONTAINER_ID; cat done"], capture_output=True, text=True, timeout=30, check=True).stdout
    assert said == f"42 {id_}\nhi\n"

    cli("label", "instance", id_, "yours")
    (row,) = json.loads(cli("show", "instances", "--raw"))
    assert (row["label"], row["extra_env"]["JOB"], row["disk_space"]) == ("yours", "42", 40.0)
    assert "yours" in cli("show", "instances")
    assert id_ in cli("show", "instances", "-q")
    assert "credit" in cli("show", "user").lower()
    charges = json.loads(cli("show", "invoices-v1", "--charges", "--raw"))
    assert [one["source"] for one in charges["results"]] == [f"instance-{id_}"]
    cli("logs", id_)
    cli("stop", "instance", id_)
    assert json.loads(cli("show", "instance", id_, "--raw"))["actual_status"] == "exited"
    cli("start", "instance", id_)
    cli("destroy", "instance", id_, "-y")
    assert json.loads(cli("show", "instances", "--raw")) == []
    assert server.market.bill().live == ()


@needs_client
def test_the_command_line_client_says_what_went_wrong_and_still_exits_with_0(cli: Callable[..., str]) -> None:
    """Which is why nothing of ours trusts it with the end of a machine."""
    assert "no_such_ask" in cli("create", "instance", "999", "--image", "i", "--disk", "10")
    assert "no_such_instance" in cli("destroy", "instance", "999", "-y")
    assert "Invalid user key" in cli("--api-key", "wrong", "show", "user")


@needs_client
def test_the_sdk_does_the_whole_life(sdk: Callable[[str], Any], server: Server) -> None:
    life = """
offers = vast.search_offers(query="gpu_name=RTX_4090 num_gpus=1", order="dph_total", limit=3)
made = vast.create_instance(id=offers[0]["id"], image="pytorch:2", disk=20, label="sdk", ssh=True, direct=True, env={"A": "b"})
id_ = made["new_contract"]
shown = vast.show_instance(id=id_)
vast.label_instance(id=id_, label="other")
labels = [row["label"] for row in vast.show_instances()]
user = vast.show_user()
vast.destroy_instance(id=id_)
gone = vast.show_instance(id=id_)
result = [len(offers), shown["id"] == id_, shown["extra_env"], labels, user["credit"] > 99, gone, len(vast.show_instances())]
"""
    assert sdk(life) == [3, True, {"A": "b"}, ["other"], True, None, 0]
    assert len(server.market.bill().machines) == 1


@needs_client
def test_the_sdk_sees_a_refused_create_as_an_http_error(sdk: Callable[[str], Any]) -> None:
    script = "try:\n    vast.create_instance(id=999, image='i', disk=10)\nexcept Exception as error:\n    result = error.response.json()"
    assert sdk(script)["error"] == "no_such_ask"


@needs_client
def test_the_client_bids_is_outbid_and_bids_more(cli: Callable[..., str], server: Server) -> None:
    (offer,) = json.loads(cli("search", "offers", "gpu_name=RTX_4090", "-i", "-o", "dph", "--limit", "1", "--raw"))
    assert offer["dph_base"] == offer["min_bid"]
    made = json.loads(
        cli("create", "instance", str(offer["id"]), "--image", "i", "--disk", "10", "--bid_price", str(offer["min_bid"]), "--ssh", "--raw")
    )
    id_ = str(made["new_contract"])
    server.happen(Happening(what="outbid", machine=id_))
    row = json.loads(cli("show", "instance", id_, "--raw"))
    assert (row["cur_state"], row["intended_status"], row["next_state"]) == ("stopped",) * 3
    cli("change", "bid", id_, "--price", "3")
    row = json.loads(cli("show", "instance", id_, "--raw"))
    assert (row["intended_status"], row["dph_base"], row["is_bid"]) == ("running", 3.0, True)
    cli("destroy", "instance", id_, "-y")


# Habits of the face, asked without any client


def test_paths_are_served_with_and_without_a_slash_and_nothing_is_redirected(ask: Ask) -> None:
    for path in ("/api/v0/users/current", "/api/v0/users/current/"):
        assert ask("GET", path).status_code == 200
    for method, path in (("POST", "/api/v0/bundles"), ("POST", "/api/v0/bundles/"), ("PUT", "/api/v0/search/asks/")):
        reply = ask(method, path, {})
        assert reply.status_code == 200
        assert reply.headers["Content-Type"] == "application/json", "with a charset the client shows no rows"
    assert ask("GET", "/api/v0/bundles", q={"limit": 3}).json()["truncated"] is True


def test_keys_missing_wrong_and_foreign_are_told_apart_by_status(ask: Ask, told: dict[str, str]) -> None:
    """403 without one, 401 for a wrong one at instances, 404 at searches and charges; a search works without any."""
    missing = ask("GET", "/api/v1/instances/", key="")
    assert (missing.status_code, missing.json()["error"]) == (403, "auth_error")
    day = {"day": {"gte": 0, "lte": 9e9}}
    for path, status in (("/api/v1/instances/", 401), ("/api/v0/users/current/", 401), ("/api/v0/charges/", 404)):
        for key in ("wrong", told["api_key"]):  # the plain face's customer is another
            reply = ask("GET", path, key=key, select_filters=day)
            assert (reply.status_code, reply.json()["msg"]) == (status, "Invalid user key")
    assert ask("POST", "/api/v0/bundles/", {}, key="wrong").status_code == 404
    assert len(ask("POST", "/api/v0/bundles/", {}, key="").json()["offers"]) == 64
    assert ask("GET", "/api/v0/users/current/", key="", api_key=told["vast_api_key"]).status_code == 200
    assert ask("GET", "/api/v0/gpu_names/unique/", key="").json()["gpu_names"][0] == "A100 SXM4"


def test_a_search_has_operators_coerces_text_and_never_more_than_64_rows(ask: Ask) -> None:
    def search(**query: object) -> list[dict[str, Any]]:
        return ask("POST", "/api/v0/bundles/", query).json()["offers"]  # type: ignore[no-any-return]

    assert len(search(limit=5000)) == 64
    assert len(search()) == 64
    cheap = search(order=[["dph_total", "asc"]], gpu_name={"in": ["RTX 4090", "L40S"]}, dph_base={"lte": "0.35"}, reliability={"gt": "0.9"})
    assert cheap
    assert [row["dph_total"] for row in cheap] == sorted(row["dph_total"] for row in cheap)
    assert all(row["gpu_name"] == "RTX 4090" and row["dph_base"] <= 0.35 for row in cheap)
    assert search(gpu_name={"eq": "RTX_4090"}) == [], "with a space, or not at all"
    id_ = cheap[0]["id"]
    assert search(id={"eq": id_}) == [], "sic"
    assert [row["id"] for row in search(ask_contract_id={"eq": str(id_)})] == [id_]
    assert {row["verification"] for row in search(verified={"eq": False})} == {"unverified"}
    assert {row["geolocation"] for row in search(geolocation={"notin": ["US", "CZ"], "neq": "SE"})}.isdisjoint(
        {"Czechia, CZ", "Sweden, SE"}
    )
    assert {row["hosting_type"] for row in search(datacenter={"eq": True})} == {1}
    assert len(search(rented={"eq": True}, brand_new={"gt": 5})) == 64, "no filters at all"
    assert search(driver_version={"gt": 570133020}) == []
    assert ask("POST", "/api/v0/bundles/", {"gpu_ram": {"near": 5}}).json()["error"] == "invalid_args"
    bid, whole = search(type="bid", limit=1, order=[["dph_total", "asc"]], allocated_storage=0.001)[0], search(limit=1)[0]
    assert bid["dph_base"] == bid["min_bid"]
    assert whole["dph_base"] > whole["min_bid"]
    assert whole["dph_total"] == pytest.approx(whole["dph_base"] + whole["storage_cost"] * 5 / 720, abs=2e-6)


def test_create_keeps_to_its_rules(ask: Ask, server: Server) -> None:
    wrong: list[tuple[dict[str, object], str]] = [
        ({"env": "-e A=b"}, "env must be a dict"),
        ({"disk": 7}, "at least 8"),
        ({"label": "x" * 257}, "256"),
        ({"onstart": "x" * 4097}, "4096"),
        ({"runtype": "vnc"}, "runtype"),
        ({"price": 0}, "bid price >= 0.001"),
        ({"price": 129}, "bid price"),
        ({"image": ""}, "image"),
        ({"env": {"A B": "c"}}, "environment variable"),
    ]
    for fields, words in wrong:
        reply = create(ask, **fields)
        assert reply["success"] is False
        assert words in reply["msg"]
    assert create(ask, 5)["error"] == "no_such_ask"
    assert create(ask, 2001)["error"] == "no_such_ask", "another face's stock"
    made = create(ask, env={"A": "b", "-p 80:80": "1"}, label=None)
    assert set(made) == {"success", "new_contract", "instance_api_key"}
    taken = [ask("PUT", "/api/v0/asks/24111000/", {"image": "i", "cancel_unavail": sure}) for sure in (False, True)]
    assert [(reply.status_code, reply.json()["error"]) for reply in taken] == [(404, "no_such_ask"), (410, "no_such_ask")]
    row = show(ask, made["new_contract"])
    assert row["extra_env"] == [["A", "b"], ["-p 80:80", "1"]]
    assert row["label"] is None
    assert len(server.market.bill().machines) == 1


def test_an_instance_is_null_then_created_loading_running_and_its_ports_come_last(ask: Ask, server: Server) -> None:
    market, at = server.market, server.market.now()
    market.boot = BootTimes(created_s=2, loading_s=2, ports_late_s=2)
    market.now = lambda: at
    id_ = create(ask)["new_contract"]
    poll(lambda: market.machines.look(str(id_)).port, what="a port")
    seen: list[str | None] = []
    row: dict[str, Any] = {}
    for _ in range(7):
        row = show(ask, id_)
        seen.append("ports" if "ports" in row else row["actual_status"])
        at += timedelta(seconds=1)
    assert seen == [None, "created", "loading", "loading", "running", "running", "ports"]
    assert row["public_ipaddr"].endswith("\n")
    assert isinstance(row["ports"]["22/tcp"][0]["HostPort"], str)
    assert row["ssh_port"] == int(row["ports"]["22/tcp"][0]["HostPort"])


def test_destroyed_is_null_and_never_there_a_404(ask: Ask) -> None:
    id_ = create(ask)["new_contract"]
    assert ask("DELETE", f"/api/v0/instances/{id_}/", {}).json() == {"success": True}
    assert ask("GET", f"/api/v0/instances/{id_}/").json() == {"instances": None}
    for reply in (ask("DELETE", f"/api/v0/instances/{id_}/", {}), ask("GET", "/api/v0/instances/77/")):
        assert (reply.status_code, reply.json()["error"]) == (404, "no_such_instance")
    assert ask("GET", "/api/v0/instances/").json()["error"] == "deprecated_endpoint"


def test_the_listing_has_pages_filters_columns_and_counts(ask: Ask, server: Server) -> None:
    server.market.boot = BootTimes(created_s=9e9)
    ids = [create(ask, 24111000 + n, label=f"l-{n % 2}")["new_contract"] for n in range(5)]

    def pages(**query: object) -> list[dict[str, Any]]:
        found = [ask("GET", "/api/v1/instances/", limit=2, **query).json()]
        while token := found[-1]["next_token"]:
            found.append(ask("GET", "/api/v1/instances/", limit=2, after_token=token, **query).json())
        return found

    whole = pages()
    assert [row["id"] for page in whole for row in page["instances"]] == ids
    assert [page["instances_found"] for page in whole] == [2, 2, 1]
    assert {page["total_instances"] for page in whole} == {5}
    assert whole[0]["label_counts"] == {"l-0": 3, "l-1": 2}
    some = pages(select_filters={"label": {"eq": "l-1"}}, order_by=[{"col": "id", "dir": "desc"}], select_cols=["id", "brand_new"])
    assert [row for page in some for row in page["instances"]] == [{"id": id_, "brand_new": None} for id_ in (ids[3], ids[1])]
    assert ask("GET", "/api/v1/instances/", select_filters={"dph_total": {"gt": 0}}).json()["error"] == "invalid_args"
    assert ask("GET", "/api/v1/instances/", after_token="odd").json()["error"] == "invalid_token"
    token = whole[0]["next_token"]
    ask("DELETE", f"/api/v0/instances/{ids[1]}/", {})
    rest = ask("GET", "/api/v1/instances/", limit=9, after_token=token).json()
    assert {row["id"] for row in rest["instances"]} >= set(ids[2:]), "a machine that goes between two pages hides no other"
    assert ask("POST", "/api/v0/contracts/fetch/", {"label": "l-0"}).json()["contracts"][0]["id"] == ids[0]


def test_the_machines_own_key_reaches_that_machine_only(ask: Ask) -> None:
    own, other = create(ask), create(ask, 24111001)
    key = own["instance_api_key"]
    assert show(ask, own["new_contract"], key=key)["id"] == own["new_contract"]
    refused = (
        ("GET", f"/api/v0/instances/{other['new_contract']}/"),
        ("DELETE", f"/api/v0/instances/{other['new_contract']}/"),
        ("GET", "/api/v1/instances/"),
        ("PUT", "/api/v0/asks/24111002/"),
        ("GET", "/api/v0/users/current/"),
        ("POST", f"/api/v0/instances/{own['new_contract']}/ssh/"),
    )
    for method, path in refused:
        assert ask(method, path, {}, key=key).status_code == 403, path
    assert ask("PUT", f"/api/v0/instances/{own['new_contract']}/", {"state": "stopped"}, key=key).json() == {"success": True}
    assert ask("DELETE", f"/api/v0/instances/{own['new_contract']}/", {}, key=key).json() == {"success": True}
    assert ask("GET", "/api/v0/instances/1/", key=key).status_code == 401, "a key ends with its machine"


def test_stop_keeps_the_disk_start_goes_on_with_it_and_recycle_wipes_it(ask: Ask, server: Server) -> None:
    id_ = create(ask, onstart="echo x >> boots")["new_contract"]
    boots = server.folder / "machines" / str(id_) / "root" / "boots"
    running(ask, id_)
    poll(boots.exists, what="a boot")
    manage = f"/api/v0/instances/{id_}/"
    ask("PUT", manage, {"state": "stopped"})
    row = show(ask, id_)
    assert (row["actual_status"], row["intended_status"], row["cur_state"]) == ("exited", "stopped", "stopped")
    assert "ports" not in row
    ask("PUT", manage, {"state": "running"})
    running(ask, id_)
    poll(lambda: boots.read_text() == "x\nx\n", what="a second boot on the same disk")
    ask("PUT", f"/api/v0/instances/recycle/{id_}/", {})
    running(ask, id_)
    poll(lambda: boots.exists() and boots.read_text() == "x\n", what="a first boot on a new disk")


def test_account_keys_reach_machines_created_later(ask: Ask, ssh_key: Path, server: Server) -> None:
    assert ask("GET", "/api/v0/ssh/").status_code == 404
    text = ssh_key.with_suffix(".pub").read_text().strip()
    made = ask("POST", "/api/v0/ssh/", {"ssh_key": text}).json()["key"]
    (row,) = ask("GET", "/api/v0/ssh/").json()
    assert (row["id"], row["key"], row["public_key"]) == (made["id"], text, text)
    port = running(ask, create(ask)["new_contract"])["ssh_port"]
    user = server.market.machines.user
    command = ["ssh", *ssh_options(ssh_key), "-p", str(port), f"{user}@127.0.0.1", "echo in"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout == "in\n"
    assert ask("DELETE", f"/api/v0/ssh/{made['id']}/", {}).json() == {"success": True}
    assert ask("DELETE", f"/api/v0/ssh/{made['id']}/", {}).json()["error"] == "no_ssh_key"


def test_limits_are_off_until_told_and_then_speak_in_several_shapes(ask: Ask, server: Server) -> None:
    for _ in range(12):
        assert ask("POST", "/api/v0/bundles/", {}).status_code == 200
    server.market.limits.monotonic_s = lambda: 10.0**9
    server.happen(Happening(what="limits", scale=1))
    for _ in range(10):
        assert ask("POST", "/api/v0/bundles/", {}).status_code == 200, "ten a minute"
    assert ask("POST", "/api/v0/bundles/", {}).status_code == 429
    calls = {"create": ("PUT", "/api/v0/asks/1/"), "destroy": ("DELETE", "/api/v0/instances/1/"), "list": ("GET", "/api/v1/instances/")}
    texts = {}
    for name, (method, path) in calls.items():
        assert ask(method, path, {}).status_code != 429
        reply = ask(method, path, {})
        assert reply.status_code == 429
        assert "Retry-After" not in reply.headers
        texts[name] = reply.text
    assert json.loads(texts["create"]) == {"detail": "API requests too frequent endpoint threshold=4.5"}
    assert json.loads(texts["destroy"])["error"] == "rate_limit_exceeded"
    assert texts["list"] == "API requests too frequent: endpoint threshold=1.0"


def test_prices_rise_only_for_those_who_accept(ask: Ask, server: Server) -> None:
    id_ = create(ask)["new_contract"]
    server.happen(Happening(what="announce", machine=str(id_), usd_per_hour=Decimal("0.9")))
    (asked,) = ask("GET", "/api/v0/instances/pending-price-increases/").json()["pending_price_increases"]
    body = {"pending_price_increase_id": asked["pending_price_increase_id"]}
    assert show(ask, id_)["dph_base"] == 0.06
    assert ask("PUT", "/api/v0/instances/accept-price-increase/", body).json() == {"success": True}
    assert show(ask, id_)["dph_base"] == 0.9
    assert ask("PUT", "/api/v0/instances/reject-price-increase/", body).json()["error"] == "no_pending_price_increase"


def test_charges_need_a_range_and_execute_a_harmless_command(ask: Ask) -> None:
    id_ = create(ask)["new_contract"]
    assert "'day' gte and lte" in ask("GET", "/api/v0/charges/").json()["msg"]
    assert ask("GET", "/api/v0/charges/", select_filters={"day": {"gte": 0, "lte": 5}}).json()["results"] == []
    (row,) = ask("GET", "/api/v0/charges/", select_filters={"day": {"gte": 0, "lte": 9e9}}).json()["results"]
    assert [item["type"] for item in row["items"]] == ["gpu", "disk", "bwd", "bwu"]
    assert ask("GET", "/api/v1/invoices/").json()["success"] is False, "with a 200"
    assert ask("PUT", f"/api/v0/instances/command/{id_}/", {"command": "cat /etc/passwd"}).status_code == 400
    assert ask("PUT", f"/api/v0/instances/command/{id_}/", {"command": "ls -l"}).json()["result_url"]


def test_without_credit_machines_are_stopped_and_nothing_new_is_rented(ask: Ask, server: Server) -> None:
    id_ = create(ask)["new_contract"]
    running(ask, id_)
    accounts = server.market.state.accounts
    with server.lock:
        accounts[:] = [replace(account, credit_usd=Decimal(0)) for account in accounts]
    row = show(ask, id_)
    assert (row["actual_status"], row["cur_state"]) == ("exited", "stopped")
    assert create(ask, 24111001)["error"] == "insufficient_credit"


def test_an_ended_contract_is_stopped_and_two_days_later_destroyed(ask: Ask, server: Server) -> None:
    id_ = create(ask)["new_contract"]
    server.happen(Happening(what="expire", machine=str(id_)))
    assert show(ask, id_)["cur_state"] == "stopped"
    with server.lock:
        ends = server.market.now() - timedelta(hours=49)
        server.market.update("vast-practice", str(id_), terms=Terms(ends_at=ends))
    assert show(ask, id_) is None


def test_a_host_off_the_net_answers_nothing_and_comes_back(ask: Ask, server: Server, ssh_key: Path) -> None:
    key = ssh_key.with_suffix(".pub").read_text().strip()
    id_ = create(ask, onstart=f"echo '{key}' >> ~/.ssh/authorized_keys")["new_contract"]
    port = running(ask, id_)["ssh_port"]
    login = ["ssh", *ssh_options(ssh_key), "-o", "ConnectTimeout=1", "-p", str(port), f"{server.market.machines.user}@127.0.0.1", "true"]
    server.happen(Happening(what="offline", machine=str(id_)))
    assert show(ask, id_)["actual_status"] == "offline"
    assert subprocess.run(login, capture_output=True, timeout=30, check=False).returncode == 255
    server.happen(Happening(what="online", machine=str(id_)))
    poll(lambda: subprocess.run(login, capture_output=True, timeout=30, check=False).returncode == 0, what="a login")


def test_a_server_that_is_killed_finds_bids_terms_and_labels_again(ask: Ask, server: Server) -> None:
    """Everything of a rental that matters survives on disk."""
    id_ = str(create(ask, price=0.05)["new_contract"])
    rental = next(one for one in server.market.state.rentals if one.id == id_)
    saved = TypeAdapter(State).validate_json((server.folder / "market.json").read_bytes())
    assert [one for one in saved.rentals if one.id == id_] == [rental]
    assert rental.terms.bid_usd_per_hour == Decimal("0.05")
    assert rental.face_data["label"] == "lorry-x"


def test_whatever_is_sent_is_answered(ask: Ask) -> None:
    for method, path in (
        ("POST", "/api/v0/bundles/"), ("PUT", "/api/v0/asks/24111000/"), ("PUT", "/api/v0/instances/"), ("DELETE", "/api/v0/instances/"),
        ("PUT", "/api/v0/instances/bid_price/1/"), ("POST", "/api/v0/ssh/"), ("PUT", "/api/v0/asks/x1/"), ("GET", "/api/v9/what"),
    ):  # fmt: skip
        for body in ([], "text", 5, None, {"order": 5}, {"limit": "x"}, {"env": []}, {"ids": 5}, {"instance_ids": [[]]}, {"price": []}):
            assert ask(method, path, body).status_code in (200, 400, 404), (path, body)


def test_operators_compare_text_numbers_and_nothing() -> None:
    assert holds(5, "eq", "5")
    assert holds("5.0", "gte", 5)
    assert not holds(None, "gte", 0)
    assert holds(None, "eq", None)
    assert holds(None, "neq", 3)
    assert holds(True, "eq", "true")
    assert not holds(False, "eq", True)
    assert holds("b", "gt", "a")
    assert not holds("b", "gt", 1)
    assert holds("x", "notin", ["y"])
    assert matches({"a": 1}, {"a": 1, "b": {"eq": 2}})
    assert len(stock()) == 96
