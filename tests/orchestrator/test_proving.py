"""Who answers at the machine's address proves that it is the rental, and that nobody stands in between, before a byte is sent there."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import Host, QuickClock, eventually, machine

import templates
from orchestrator.errors import IntegrityError
from orchestrator.machines.proof import NONCE_ENV, Disproved, judge, mac, nonce
from orchestrator.machines.proving import nonce_for, stranger
from orchestrator.shell import KeyFiles, Shell, make_keys
from providers.base import SSHEndpoint

LABEL = "lorry-autumn-1-a1"


@pytest.fixture(scope="module")
def rental(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A machine whose create carried what a rental's does."""
    folder = tmp_path_factory.mktemp("rental")
    with machine(folder, env={NONCE_ENV: nonce_for(make_keys(folder), LABEL)}) as host:
        yield host


def test_the_machine_that_was_rented_proves_it(rental: Host, tmp_path: Path):
    shell = rental.shell(tmp_path)
    assert stranger(shell, LABEL) == ""
    assert stranger(shell, LABEL) == "", "again, over a link that stands"
    shell.close()


def test_a_machine_of_another_attempt_of_the_same_run_is_a_stranger(rental: Host, tmp_path: Path):
    shell = rental.shell(tmp_path)
    assert "another machine answers there" in stranger(shell, "lorry-autumn-1-a2")
    shell.close()


def test_another_tenant_at_a_reused_address_is_found_out_even_if_it_lets_everybody_in(host: Host, tmp_path: Path):
    """`host` is a real machine that our key opens, and that nobody told the nonce."""
    shell = host.shell(tmp_path)
    assert "it does not know what this rental was started with" in stranger(shell, LABEL)
    shell.close()


def test_a_login_that_prints_a_greeting_proves_itself_all_the_same(rental: Host, tmp_path: Path):
    greeting = rental.root / ".bashrc"
    greeting.write_text('echo "Welcome to this machine!"\n')
    shell = rental.shell(tmp_path)
    assert stranger(shell, LABEL) == ""
    shell.close()
    greeting.unlink()


def test_a_machine_whose_sshd_keeps_its_keys_elsewhere_asks_the_sshd_itself(tmp_path: Path):
    """Then SSH_CONNECTION says where it listens: here a real sshd that listens by itself."""
    key = tmp_path / "host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    shown = paramiko.Ed25519Key.from_private_key_file(str(key))
    with Door(shown) as door:
        environment = {
            "PATH": "/usr/bin:/bin",
            "RENTAL_NONCE": "n",
            "SSH_HOST_KEYS": str(tmp_path / "nowhere"),
            "SSH_CONNECTION": f"127.0.0.1 1 127.0.0.1 {door.port}",
        }
        words, script = [sys.executable, "-", "challenge"], templates.text("proof.py")
        done = subprocess.run(words, input=script, env=environment, capture_output=True, text=True, check=True)
    assert mac("n", "challenge", shown.fingerprint) in json.loads(done.stdout)["lorry_proof"]


# -- somebody in between ---------------------------------------------------------------------------


@dataclass
class Door(paramiko.ServerInterface):
    """An SSH server with a key of its own that lets in whoever comes, and hands what they say to `behind`."""

    key: paramiko.PKey
    behind: Shell | None = None
    attempts: list[tuple[str, str, str]] = field(default_factory=list)
    """User, method and key of every attempt to log in."""
    heard: bytearray = field(default_factory=bytearray)
    """Every command, and what came on its stdin."""
    asked: list[str] = field(default_factory=list)
    """Everything else that was asked for: channels, agents, forwards."""
    port: int = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._transports: list[paramiko.Transport] = []
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for transport in self._transports:
            transport.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                transport = paramiko.Transport(line)
                transport.add_server_key(self.key)
                self._transports.append(transport)
                with contextlib.suppress(paramiko.SSHException, EOFError):
                    transport.start_server(event=threading.Event(), server=self)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password,keyboard-interactive,gssapi-with-mic,hostbased"

    def check_auth_none(self, username: str) -> int:
        self.attempts.append((username, "none", ""))
        return paramiko.AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        self.attempts.append((username, "password", password))
        return paramiko.AUTH_FAILED

    def check_auth_interactive(self, username: str, submethods: str) -> int:
        self.attempts.append((username, "keyboard-interactive", submethods))
        return paramiko.AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.attempts.append((username, "publickey", f"{key.get_name()} {key.get_base64()}"))
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self.asked.append(kind)
        return paramiko.OPEN_SUCCEEDED if kind == "session" else paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_forward_agent_request(self, channel: paramiko.Channel) -> bool:
        self.asked.append("agent")
        return False

    def check_channel_x11_request(self, channel: paramiko.Channel, *_: object) -> bool:
        self.asked.append("x11")
        return False

    def check_channel_env_request(self, channel: paramiko.Channel, name: bytes, value: bytes) -> bool:
        self.asked.append(f"env {name!r}")
        return False

    def check_port_forward_request(self, address: str, port: int) -> int:
        self.asked.append("port")
        return 0

    def check_global_request(self, kind: str, msg: paramiko.Message) -> bool:
        if not kind.startswith("keepalive@"):
            self.asked.append(kind)
        return False

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self._relay, args=(channel, command), daemon=True).start()
        return True

    def _relay(self, channel: paramiko.Channel, command: bytes) -> None:
        stdin = b"".join(iter(lambda: channel.recv(65536), b""))
        self.heard += command + b"\n" + stdin
        answer, code = b"", 1
        if self.behind is not None:
            done = self.behind._again(lambda: self.behind._exec(command.decode(), stdin, 30), "relay")
            answer, code = done.stdout, done.returncode
        with contextlib.suppress(OSError):
            channel.sendall(answer)
            channel.send_exit_status(code)
            channel.close()


def ours(folder: Path, keys: KeyFiles, port: int) -> Shell:
    own = KeyFiles(private=keys.private, known_hosts=folder / "known_hosts")
    return Shell(SSHEndpoint(host="127.0.0.1", port=port, user="root"), own, QuickClock(), patience_s=5.0)  # type: ignore[arg-type]


def new_key(folder: Path) -> paramiko.PKey:
    folder.mkdir(exist_ok=True)
    return paramiko.Ed25519Key.from_private_key_file(str(make_keys(folder).private))


def said_nothing_else(door: Door) -> None:
    """Of ours the one in between has heard the question, and nothing more."""
    commands = re.findall(rb"^sh -c .*$", bytes(door.heard), re.MULTILINE)
    assert len(commands) == 1
    assert b" prove " in commands[0]


def test_somebody_in_between_who_passes_everything_on_to_the_real_machine_is_found_out(rental: Host, tmp_path: Path):
    """The worst of them: one whom the machine lets in too, say with a key of the account's. The machine tells its own host key, not his."""
    behind = rental.shell(tmp_path)
    with Door(new_key(tmp_path / "his"), behind) as door:
        shell = ours(tmp_path / "his", rental.keys, door.port)
        assert "somebody is in between" in (why := stranger(shell, LABEL))
        assert "is not its own" in why
        said_nothing_else(door)
        shell.close()
    behind.close()


def test_somebody_in_between_who_cannot_get_into_the_machine_is_found_out(rental: Host, tmp_path: Path):
    with Door(new_key(tmp_path / "his")) as door:
        shell = ours(tmp_path / "his", rental.keys, door.port)
        assert "does not know what this rental was started with" in stranger(shell, LABEL)
        said_nothing_else(door)
        shell.close()


def test_another_host_key_after_the_proof_ends_it_before_a_byte_is_sent(rental: Host, tmp_path: Path):
    keys = KeyFiles(private=rental.keys.private, known_hosts=tmp_path / "known_hosts")
    with Door(new_key(tmp_path / "one"), None) as door:
        first = Shell(SSHEndpoint(host="127.0.0.1", port=door.port, user="root"), keys, QuickClock())  # type: ignore[arg-type]
        first.connect()
        door.key = new_key(tmp_path / "other")
        first.close()
        with pytest.raises(IntegrityError, match="another host key") as caught:
            first.check(["true"])
        assert caught.value.exit_code == 12
        assert not door.heard
        assert len(door.attempts) == 1, "the second was not even told which key we have"


# -- the run's own key -----------------------------------------------------------------------------


@pytest.fixture
def user(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of somebody with a key of their own, in ~/.ssh and in an agent, and a config that would offer all there is."""
    home = tmp_path / "home" / ".ssh"
    home.mkdir(parents=True)
    make_keys(home).private.rename(home / "id_ed25519")
    (home / "config").write_text("Host *\n  ForwardAgent yes\n  SendEnv *\n  PasswordAuthentication yes\n")
    environment = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "LANG": "C", "SSH_AUTH_SOCK": str(tmp_path / "agent")}
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", environment["SSH_AUTH_SOCK"]], stdout=subprocess.DEVNULL)
    eventually((tmp_path / "agent").exists, "an agent")
    subprocess.run(["ssh-add", "-q", str(home / "id_ed25519")], env=environment, check=True)
    yield environment
    agent.terminate()
    agent.wait()


def test_the_only_thing_ever_offered_is_the_runs_own_key(tmp_path: Path, user: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    """No agent, none of the user's keys, no password, nothing forwarded: a server that writes everything down has seen one key."""
    for name, value in user.items():
        monkeypatch.setenv(name, value)
    keys = make_keys(tmp_path)
    assert keys.private.stat().st_mode & 0o777 == 0o600
    with Door(new_key(tmp_path / "host")) as door:
        shell = ours(tmp_path, keys, door.port)
        shell.run(["true"])
        shell.close()
        name, value = keys.public_line.split()[:2]
        assert door.attempts == [("root", "publickey", f"{name} {value}")]
        assert door.asked == ["session"]


def test_the_ssh_that_rsync_starts_offers_that_key_alone_too(tmp_path: Path, user: dict[str, str]):
    keys = make_keys(tmp_path)
    with Door(new_key(tmp_path / "host")) as door:
        shell = ours(tmp_path, keys, door.port)
        shell.connect()
        door.attempts.clear()
        door.asked.clear()
        words = [*shell.openssh(), "root@127.0.0.1", "true"]
        subprocess.run(words, env=user, timeout=60, check=False)
        shell.close()
        name, value = keys.public_line.split()[:2]
        assert {attempt for attempt in door.attempts if attempt[1] != "none"} == {("root", "publickey", f"{name} {value}")}
        assert door.asked == ["session"]


# -- the judgement, without a machine --------------------------------------------------------------


@given(st.binary(max_size=300))
def test_no_answer_that_was_made_without_the_nonce_is_believed(noise: bytes):
    for answer in (noise, b'{"lorry_proof": ' + noise + b"}", b'{"lorry_proof": ["' + noise + b'"]}'):
        with pytest.raises(Disproved):
            judge(answer, secret="s", challenge="c", fingerprint="SHA256:x")


@given(st.lists(st.sampled_from(["secret", "challenge", "fingerprint"]), min_size=1, unique=True))
def test_a_proof_holds_for_its_own_secret_challenge_and_key_alone(changed: list[str]):
    """An answer that was recorded, or given to another question, is worth nothing."""
    right = {"secret": "s", "challenge": "c", "fingerprint": "SHA256:x"}
    answer = f'hello\n{{"lorry_proof": ["{mac(**right)}"]}}'.encode()
    judge(answer, **right)
    with pytest.raises(Disproved):
        judge(answer, **(right | dict.fromkeys(changed, "other")))


def test_each_attempt_has_a_nonce_of_its_own_that_any_process_of_the_run_can_make_again():
    made = {nonce(key, label) for key in (b"k1", b"k2") for label in ("a1", "a2")}
    assert len(made) == 4
    assert nonce(b"k1", "a1") in made
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in made)
