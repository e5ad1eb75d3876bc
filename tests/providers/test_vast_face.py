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
from pathlib import Path
from typing import Any

import httpx
import pytest
from contract import ssh_options
from sandbox_help import poll

from providers.sandbox.happenings import Happening
from providers.sandbox.market import BootTimes
from providers.sandbox.server import Server

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
