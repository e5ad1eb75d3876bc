"""A rented machine is real: what it runs, what it keeps from others, what it counts, and that nothing of it survives its end."""

from __future__ import annotations

import base64
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import paramiko
import pytest
from contract import login, ssh_options, wait_for_ssh
from sandbox_help import poll, processes_of

from providers.base import Instance, InstanceStatus, LaunchSpec, Requirements
from providers.sandbox.billing import bill
from providers.sandbox.happenings import Happening
from providers.sandbox.processes import ProcessId, alive, descendants, identify, send
from providers.sandbox.provider import Sandbox
from providers.sandbox.server import Server

DAEMON = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
for fd in range(3): os.close(fd)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""


class Rented:
    """One real machine and the ways to it."""

    def __init__(self, server: Server, ssh_key: Path) -> None:
        self.server = server
        self.provider = Sandbox(server.folder, autostart=False)
        self.ssh_key = ssh_key

    def launch(self, **fields: object) -> Instance:
        offer = self.provider.offers(Requirements(disk_gib=1))[0]
        values = {
            "label": "lorry-test",
            "image": "i",
            "disk_gib": 1,
            "ssh_public_key": self.ssh_key.with_suffix(".pub").read_text().strip(),
        }
        instance = self.provider.launch(offer, LaunchSpec(**values | fields))  # type: ignore[arg-type]
        return wait_for_ssh(self.provider, instance.id)

    def folder(self, instance: Instance) -> Path:
        return self.server.folder / "machines" / instance.id

    def run(self, instance: Instance, command: str) -> str:
        return login(self, instance, command)  # type: ignore[arg-type]

    def init(self, instance: Instance) -> ProcessId:
        process = identify(json.loads((self.folder(instance) / "init.json").read_text())["pid"])
        assert process
        return process


@pytest.fixture
def rented(server: Server, ssh_key: Path) -> Iterator[Rented]:
    rented = Rented(server, ssh_key)
    yield rented
    for instance in rented.provider.instances():
        rented.provider.terminate(instance.id)


def test_home_workspace_and_temporary_files_are_in_its_own_folder(rented: Rented) -> None:
    instance = rented.launch()
    root = str(rented.folder(instance) / "root")
    assert rented.run(instance, 'pwd; echo "$HOME"; echo ~; mktemp -u').splitlines()[:3] == [root] * 3
    assert rented.run(instance, "mktemp -u").startswith(root)
    names = {path.name for path in rented.server.folder.iterdir()}
    assert names <= {"bill.jsonl", "clock.json", "lock", "machines", "market.json", "requests.jsonl", "sandbox.json"}


def test_its_python_has_our_packages_and_keeps_what_pip_adds_to_itself(rented: Rented) -> None:
    """The image: what this interpreter has, python3 on the machine has; it never writes into ours."""
    instance = rented.launch()
    image = str(rented.folder(instance) / "image")
    script = "import sys, sysconfig, httpx, paramiko; print(sys.prefix, sysconfig.get_path('purelib'), httpx.__file__, sep='\\n')"
    prefix, packages, ours = rented.run(instance, f"python3 -c {shlex.quote(script)}").splitlines()
    assert prefix == image
    assert packages.startswith(image)
    assert ours == httpx.__file__
    assert rented.run(instance, "command -v python3 python pip pip3").splitlines() == [
        f"{image}/bin/{name}" for name in ("python3", "python", "pip", "pip3")
    ]


def test_a_login_has_the_machines_environment_and_nothing_of_its_owners(rented: Rented) -> None:
    """bash reads ~/.bashrc of the real user when sshd starts it; what that exports stays outside."""
    said = rented.run(rented.launch(env={"MINE": "1"}), "env -0").split("\0")
    names = {entry.partition("=")[0] for entry in said if entry}
    ours = {
        "SANDBOX_INSTANCE_ID",
        "SANDBOX_INSTANCE_KEY",
        "SANDBOX_URL",
        "LORRY_SANDBOX_MACHINE",
        "LORRY_PRACTICE_GPU",
        "SSH_HOST_KEYS",
        "MINE",
    }
    ours |= {"TERM", "SSH_CONNECTION", "SSH_CLIENT"}
    assert ours <= names <= ours | {"HOME", "USER", "LOGNAME", "TMPDIR", "PATH", "LANG", "SHELL", "PWD", "SHLVL", "_", "OLDPWD"}


def test_rsync_brings_a_folder_there_and_back(rented: Rented, tmp_path: Path) -> None:
    instance = rented.launch()
    assert instance.ssh
    source, back = tmp_path / "source dir", tmp_path / "back"
    source.mkdir()
    for n in range(20):
        (source / f"fräulein {n}.bin").write_bytes(random.Random(n).randbytes(n * 1000))
    shell = " ".join(["ssh", *ssh_options(rented.ssh_key), "-p", str(instance.ssh.port)])
    remote = f"{instance.ssh.user}@127.0.0.1:work/data set/"
    subprocess.run(["rsync", "-a", "--mkpath", "--partial-dir=.part", "-e", shell, f"{source}/", remote], check=True, timeout=60)
    subprocess.run(["rsync", "-a", "-e", shell, remote, f"{back}/"], check=True, timeout=60)
    assert {p.name: p.read_bytes() for p in back.iterdir()} == {p.name: p.read_bytes() for p in source.iterdir()}


def test_paramiko_speaks_sftp_and_sees_the_host_key_that_the_market_named(rented: Rented) -> None:
    instance = rented.launch()
    assert instance.ssh
    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        kind, key = str(instance.provider_data["host_key"]).split()
        client.get_host_keys().add(f"[127.0.0.1]:{instance.ssh.port}", kind, paramiko.Ed25519Key(data=base64.b64decode(key)))
        client.connect(
            "127.0.0.1", instance.ssh.port, instance.ssh.user, key_filename=str(rented.ssh_key), look_for_keys=False, allow_agent=False
        )
        with client.open_sftp() as sftp:
            with sftp.open("hello", "wb") as file:
                file.write(b"x" * 100_000)
            assert sftp.stat("hello").st_size == 100_000
            assert sftp.normalize(".") == str(rented.folder(instance) / "root")


def test_another_key_and_a_password_are_refused(rented: Rented, tmp_path: Path) -> None:
    instance = rented.launch()
    assert instance.ssh
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        login(rented, instance, "true", key=tmp_path / "other")  # type: ignore[arg-type]
    assert "Permission denied (publickey)" in caught.value.stderr


def test_two_machines_have_their_own_environment_files_port_and_host_key(rented: Rented) -> None:
    one, two = (rented.launch(label=name, env={"WHO": name, f"ONLY_{name}": "1"}) for name in ("one", "two"))
    for machine, other in ((one, "two"), (two, "one")):
        said = rented.run(machine, f"touch ~/mine-{machine.label}; printenv; ls ~")
        assert f"WHO={machine.label}\n" in said
        assert f"ONLY_{other}" not in said
        assert f"mine-{other}" not in said
    assert one.ssh != two.ssh
    assert one.provider_data["host_key"] != two.provider_data["host_key"]


def test_the_servers_own_environment_does_not_reach_the_machine(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORRY_SECRET_OF_THE_HOST", "1")
    instance = rented.launch()
    assert "SECRET_OF_THE_HOST" not in rented.run(instance, "printenv")
    assert b"SECRET_OF_THE_HOST" not in Path(f"/proc/{rented.init(instance).pid}/environ").read_bytes()


def test_what_runs_detached_survives_the_connection_and_dies_with_the_machine(rented: Rented) -> None:
    """A double fork with a session of its own, no terminal, no inherited files: init still counts it as its own."""
    instance = rented.launch()
    rented.run(instance, f"echo {base64.b64encode(DAEMON.encode()).decode()} | base64 -d > d.py; python3 d.py $HOME/pid >/dev/null 2>&1")
    pid_file = rented.folder(instance) / "root" / "pid"
    poll(lambda: pid_file.exists() and pid_file.read_text(), what="the daemon's pid")
    daemon = identify(int(pid_file.read_text()))
    assert daemon
    assert daemon in descendants(rented.init(instance))
    rented.provider.terminate(instance.id)
    assert not alive(daemon)


def test_a_destroyed_machine_has_no_process_no_folder_and_no_port(rented: Rented) -> None:
    instance = rented.launch(onstart="sleep 600 & (setsid sleep 600 &) ; mkdir locked && touch locked/file && chmod 000 locked; sleep 600")
    assert instance.ssh
    folder = rented.folder(instance)
    talking = subprocess.Popen(
        ["ssh", *ssh_options(rented.ssh_key), "-p", str(instance.ssh.port), f"{instance.ssh.user}@127.0.0.1", "echo in; sleep 600"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert talking.stdout
    assert talking.stdout.readline() == b"in\n"
    before = processes_of(folder)
    assert len(before) >= 5
    rented.provider.terminate(instance.id)
    assert not any(alive(process) for process in before)
    assert not folder.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", instance.ssh.port))
    assert talking.wait(timeout=10) == 255
    talking.stdout.close()


def test_a_machine_whose_init_was_killed_is_stopped_and_its_strays_end(rented: Rented) -> None:
    """As the kernel's OOM killer would do it. The disk bills on until somebody destroys it."""
    instance = rented.launch(onstart="exec setsid sleep 600")
    rented.run(instance, "setsid sleep 600 >/dev/null 2>&1 </dev/null &")
    poll(lambda: len(descendants(rented.init(instance))) == 2, what="the end of the login")
    strays = descendants(rented.init(instance))
    send(rented.init(instance), signal.SIGKILL)
    poll(lambda: (seen := bill(rented.server.folder).of(instance.id)) and seen.gpu_off_at, what="the market noticing by itself")
    assert not any(alive(process) for process in strays)
    assert rented.provider.describe(instance.id).status is InstanceStatus.STOPPED
    assert rented.provider.describe(instance.id).ssh is None
    first, second = (bill(rented.server.folder).of(instance.id) for _ in range(2))
    assert first
    assert second
    assert first.gpu_usd == second.gpu_usd > 0
    assert first.disk_usd < second.disk_usd
    rented.provider.terminate(instance.id)
    assert not rented.folder(instance).exists()


def test_every_byte_of_both_directions_is_on_the_bill(rented: Rented, tmp_path: Path) -> None:
    instance = rented.launch()
    assert instance.ssh
    size = 3_000_000
    (tmp_path / "up").write_bytes(os.urandom(size))
    remote = [f"{instance.ssh.user}@127.0.0.1"]
    ssh = ["ssh", *ssh_options(rented.ssh_key), "-p", str(instance.ssh.port), *remote]
    with (tmp_path / "up").open("rb") as file:
        subprocess.run([*ssh, "cat > there"], stdin=file, check=True, timeout=30)
    live = bill(rented.server.folder).of(instance.id)
    assert live
    assert size < live.up_bytes < size * 1.1
    assert live.down_bytes < size * 0.1
    subprocess.run([*ssh, "cat there there"], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True, timeout=30)
    rented.provider.terminate(instance.id)
    final = bill(rented.server.folder).of(instance.id)
    assert final
    assert 2 * size < final.down_bytes < 2 * size * 1.1
    assert final.up_bytes >= live.up_bytes
    assert final.download_usd == final.prices.download_usd_per_gib * final.down_bytes / 2**30


def test_a_machine_with_its_own_key_can_end_itself_and_touch_nothing_else(rented: Rented) -> None:
    """What a guard on the machine needs: the key is in the environment, the address too."""
    one, two = rented.launch(label="one"), rented.launch(label="two")
    script = (
        'curl() { python3 -c "import sys,urllib.request as u; r=u.Request(sys.argv[1], method=sys.argv[2], '
        "headers={'Authorization': 'Bearer '+sys.argv[3]}); print(u.urlopen(r).status)\" \"$@\" 2>&1 | tail -1; }; "
        "curl $SANDBOX_URL/v1/instances/$SANDBOX_INSTANCE_ID GET $SANDBOX_INSTANCE_KEY; "
        f"curl $SANDBOX_URL/v1/instances/{two.id} DELETE $SANDBOX_INSTANCE_KEY; "
        "curl $SANDBOX_URL/v1/instances GET $SANDBOX_INSTANCE_KEY"
    )
    said = rented.run(one, script).splitlines()
    assert said[0] == "200"
    assert "403" in said[1]
    assert "403" in said[2]
    key = rented.run(one, "printenv SANDBOX_INSTANCE_KEY").strip()
    url = f"{rented.server.descriptor.url}/v1/instances/{one.id}"
    assert httpx.delete(url, headers={"Authorization": f"Bearer {key}"}, trust_env=False).status_code == 200
    assert [instance.id for instance in rented.provider.instances()] == [two.id]


def test_a_number_that_was_handed_out_again_is_not_signalled() -> None:
    """The pid lives, the process that we meant does not."""
    child = subprocess.Popen(["sleep", "600"])
    try:
        process = identify(child.pid)
        assert process
        assert send(ProcessId(process.pid, process.started - 1), signal.SIGKILL) is False
        assert not alive(ProcessId(process.pid, process.started - 1))
        assert alive(process)
        assert send(process, signal.SIGKILL) is True
        child.wait()
        assert not alive(process)
        assert send(process, signal.SIGKILL) is False
    finally:
        child.kill()
        child.wait()


def test_a_slow_line_takes_as_long_as_it_must_both_ways(rented: Rented) -> None:
    """Never sooner; how much later, a busy computer decides."""
    rented.server.happen(Happening(what="line", scale=100_000.0))
    instance = rented.launch()
    begun = time.monotonic()
    assert len(rented.run(instance, "head -c 200000 /dev/zero | tr '\\0' x")) == 200_000
    assert time.monotonic() - begun > 1.8
