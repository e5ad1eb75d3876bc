"""What this process must not show, it shows nowhere: terminal, JSON, tables, crash files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import console
from orchestrator.cli import main
from orchestrator.setup import redaction
from orchestrator.setup.redaction import SHORTEST, hide, without_secrets
from orchestrator.tools import make_tools

KEY = "canary-0a1b2c3d4e"


@pytest.fixture(autouse=True)
def nothing_hidden() -> Iterator[None]:
    before = set(redaction._HIDDEN)
    redaction._HIDDEN.clear()
    yield
    redaction._HIDDEN.clear()
    redaction._HIDDEN.update(before)


@given(st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20), max_size=4), st.text(max_size=30))
def test_no_hidden_value_of_a_keys_length_is_left_and_nothing_else_is_touched(secrets: list[str], text: str) -> None:
    redaction._HIDDEN.clear()
    for secret in secrets:
        hide(secret)
    long = [secret for secret in secrets if len(secret) >= SHORTEST]
    woven = text + "".join(f"<{secret}>{text}" for secret in secrets)
    clean = without_secrets(woven)
    assert not any(secret in clean for secret in long)
    if not long:
        assert clean == woven


def test_a_key_of_the_environment_is_shown_by_no_way_of_printing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORRY_HOME", str(tmp_path))
    monkeypatch.setenv("VAST_API_KEY", KEY)
    make_tools(as_json=False).provider("vast")
    console.out(KEY)
    console.talk(KEY)
    console.warn(KEY)
    console.error(ValueError(KEY))
    console.json_document({"x": KEY})
    console.json_line({"x": KEY})
    console.check("ok", "x", KEY, KEY)
    console.steps([{"step": "x", "health": "ok", "seconds": 1.0, "said": KEY}])
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    assert (said.out + said.err).count("[key]") >= 9


def test_a_crash_file_does_not_hold_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LORRY_HOME", str(tmp_path))
    monkeypatch.setenv("VAST_API_KEY", KEY)

    def broken(*_: object) -> None:
        raise RuntimeError(f"a library that repeats {KEY}")

    monkeypatch.setattr("providers.vast.Vast.instances", broken)
    assert main(["reap", "--provider", "vast"]) == 1
    said = capsys.readouterr()
    (file,) = (tmp_path / "errors").glob("*.txt")
    assert "a library that repeats [key]" in file.read_text()
    assert KEY not in said.out + said.err + file.read_text()
    assert sys.exc_info() == (None, None, None)
