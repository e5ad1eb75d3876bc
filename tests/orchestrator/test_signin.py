"""`lorry login` and `logout` over the practice cloud's faces: proved before it is kept, and the key is nowhere else afterwards."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keyring
import pytest
from keyring.backends import null
from test_credentials import Memory

from orchestrator.cli import main
from providers.sandbox.server import Server

ROOT = Path(__file__).parent.parent.parent
WRONG = "canary-wrong-91c2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("cloud")) as server:
        yield server


@pytest.fixture
def told(server: Server) -> dict[str, str]:
    return {name: str(value) for name, value in server.descriptor.document().items()}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, told: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No keyring, an empty home, no key in the environment, and both clouds here."""
    before = keyring.get_keyring()
    keyring.set_keyring(null.Keyring())
    for name in ("VAST_API_KEY", "RUNPOD_API_KEY", "TENSORDOCK_API_KEY", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("LORRY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LORRY_VAST_URL", told["vast_url"])
    monkeypatch.setenv("LORRY_RUNPOD_URL", told["runpod_rest_url"])
    monkeypatch.setenv("LORRY_RUNPOD_GRAPHQL_URL", told["runpod_graphql_url"])
    yield tmp_path / "home"
    keyring.set_keyring(before)


def typed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands on stdin."""
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def holding(folder: Path, word: str) -> list[str]:
    """Files below a folder with this word in them."""
    return [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and word.encode() in file.read_bytes()]


@pytest.mark.parametrize("provider", ["vast", "runpod"])
def test_a_key_that_works_is_kept_and_used_from_then_on(
    provider: str, told: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = told[f"{provider}_api_key"]
    typed(f"  {key}\n", monkeypatch)
    assert main(["login", provider, "--stdin", "--json"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["provider"] == provider
    assert float(document["balance_usd"]) == 100
    assert key not in said.out + said.err
    assert holding(home, key) == ["keys.json"]
    assert main(["reap", "--provider", provider, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["logout", provider]) == 0
    assert holding(home, key) == []
    assert main(["reap", "--provider", provider]) == 0
    assert "no key" in capsys.readouterr().err


def test_with_a_keyring_the_key_is_in_no_file_at_all(
    told: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = Memory()
    keyring.set_keyring(memory)
    key = told["vast_api_key"]
    typed(key, monkeypatch)
    assert main(["login", "vast", "--stdin"]) == 0
    assert "the keyring (a memory)" in capsys.readouterr().out
    assert (list(memory.held.values()), holding(home, key)) == ([key], [])
    assert main(["doctor", "vast", "--json"]) == 0
    said = capsys.readouterr().out
    assert "key from the keyring" in said
    assert key not in said
    memory.locked = True
    assert main(["doctor", "vast"]) == 11
    assert "unlock it" in " ".join(capsys.readouterr().out.split())
    assert main(["reap", "--provider", "vast"]) == 10, "what cannot be asked may hold a machine"
    memory.locked = False
    assert main(["logout", "vast"]) == 0
    assert memory.held == {}


@pytest.mark.parametrize("provider", ["vast", "runpod"])
def test_a_wrong_key_ends_with_11_is_not_kept_and_shows_nowhere(
    provider: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(WRONG, monkeypatch)
    assert main(["login", provider, "--stdin", "--json"]) == 11
    said = capsys.readouterr()
    assert json.loads(said.out)["exit_code"] == 11
    assert "nothing was kept" in said.err
    assert "https://" in said.err, "where a good one is made"
    assert WRONG not in said.out + said.err
    assert not home.exists() or holding(home, WRONG) == []


def test_a_wrong_key_takes_no_good_one_away(
    told: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(told["vast_api_key"], monkeypatch)
    assert main(["login", "vast", "--stdin"]) == 0
    typed(WRONG, monkeypatch)
    assert main(["login", "vast", "--stdin"]) == 11
    assert main(["reap", "--provider", "vast"]) == 0
    assert "no key" not in capsys.readouterr().err


def test_a_key_kept_for_one_address_is_sent_to_no_other(
    told: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else LORRY_VAST_URL in somebody's script would carry a real key away."""
    typed(told["vast_api_key"], monkeypatch)
    assert main(["login", "vast", "--stdin"]) == 0
    monkeypatch.setenv("LORRY_VAST_URL", "http://127.0.0.1:9")
    assert main(["reap", "--provider", "vast"]) == 0
    assert "there is no key for Vast" in capsys.readouterr().err


def test_the_environment_wins_and_that_is_said(
    told: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VAST_API_KEY", WRONG)
    typed(told["vast_api_key"], monkeypatch)
    assert main(["login", "vast", "--stdin"]) == 0, "it is the given key that is proved"
    assert "VAST_API_KEY is set in this environment and wins" in capsys.readouterr().err
    assert main(["reap", "--provider", "vast"]) == 10
    assert main(["logout", "vast"]) == 0
    assert "VAST_API_KEY is still set" in capsys.readouterr().err


def test_the_cloud_own_clients_key_is_taken_only_when_asked_for(
    told: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(os.environ["HOME"]) / ".config" / "vastai" / "vast_api_key"
    assert main(["login", "vast", "--import"]) == 11
    assert str(file) in capsys.readouterr().err
    file.parent.mkdir(parents=True)
    file.write_text(told["vast_api_key"] + "\n")
    assert main(["reap", "--provider", "vast"]) == 0
    assert "there is no key" in capsys.readouterr().err
    assert main(["login", "vast", "--import"]) == 0
    said = capsys.readouterr()
    assert f"taking the key in {file}" in said.err
    assert told["vast_api_key"] not in said.out + said.err
    assert main(["reap", "--provider", "vast"]) == 0
    assert "no key" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["login", "vats"], "keys are for: "),
        (["login", "sandbox"], "provider sandbox needs no key"),
        (["logout", "local"], "provider local needs no key"),
        (["login", "vast"], "there is no terminal to ask for the key on"),
        (["login", "vast", "--key", "abc"], "No such option"),
    ],
)
def test_what_cannot_be_is_answered(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed("", monkeypatch)
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


def test_nothing_on_stdin_is_no_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    typed("\n", monkeypatch)
    assert main(["login", "vast", "--stdin"]) == 11
    assert "no key was given" in capsys.readouterr().err


ON_ITS_OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "orchestrator.cli", *sys.argv[1:]])
"""
"""A question about a secret is asked on the controlling terminal, not on whatever stdin is."""


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_typed_key_is_not_shown(told: dict[str, str], home: Path) -> None:
    key = told["runpod_api_key"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring", "COLUMNS": "80"}
    command = [sys.executable, "-c", ON_ITS_OWN_TERMINAL, "login", "runpod"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True)
    os.close(theirs)
    shown, typed_it = b"", False
    while chunk := _read(ours):
        shown += chunk
        if b"it is not shown" in shown and not typed_it:
            typed_it = True
            os.write(ours, key.encode() + b"\n")
    os.close(ours)
    assert process.wait(60) == 0, shown.decode(errors="replace")
    assert typed_it
    assert key.encode() not in shown
    assert b"the key works; the account is" in shown
    assert holding(home, key) == ["keys.json"]


def _read(terminal: int) -> bytes:
    """What it shows next; nothing once the program has ended."""
    try:
        return os.read(terminal, 4096)
    except OSError:  # EIO
        return b""
