"""A base of a hub is looked at before a cent is spent, fetched to the byte, and its token seen by nobody but the hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakehub import COMMIT, TOKEN, FakeHub, serving
from machines import eventually

import templates
from orchestrator.delivery import hub_order
from orchestrator.errors import UsageError
from orchestrator.hub import Hub, HubBase, HubFile, HubRefused, HubSilent

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": ["x", "y"],
    "image_encoder": [None, None],
}
FILES = {
    "model_index.json": json.dumps(INDEX).encode(),
    "README.md": b"words",
    ".gitattributes": b"x",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"weights" * 1000,
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half" * 1000,
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors.index.json": b"{}",
    "vae/diffusion_pytorch_model.fp16.safetensors.index.json": b"{}",
    "vae/diffusion_pytorch_model-00001-of-00002.safetensors": b"one" * 500,
    "vae/diffusion_pytorch_model-00002-of-00002.safetensors": b"two" * 500,
    "safety_checker/model.safetensors": b"not needed",
    "whole-model.safetensors": b"everything once more",
}
NEEDED = {
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors.index.json",
    "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
    "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving(FILES) as hub:
        yield hub


def test_an_open_base_is_held_to_its_commit_and_needs_no_token(hub: FakeHub):
    base = Hub(hub.url, TOKEN).look("someone/open", None)
    assert (base.revision, base.needs_token) == (COMMIT, False)
    assert {file.name for file in base.files} == NEEDED
    weights = next(file for file in base.files if file.name == "unet/diffusion_pytorch_model.safetensors")
    assert (weights.size, weights.sha256) == (7000, hashlib.sha256(b"weights" * 1000).hexdigest())
    assert hub.tokens() == set(), "nobody saw the token, although there is one"


def test_a_gated_base_without_a_token_is_refused_before_anything_is_rented(hub: FakeHub):
    with pytest.raises(HubRefused, match="its licence has to be accepted") as caught:
        Hub(hub.url).look("someone/gated", None)
    assert caught.value.exit_code == 11
    assert "HF_TOKEN" in caught.value.hint


def test_a_token_whose_account_has_not_accepted_is_refused(hub: FakeHub):
    hub.accepted = False
    with pytest.raises(HubRefused, match="does not open someone/gated"):
        Hub(hub.url, TOKEN).look("someone/gated", None)


def test_a_token_that_the_hub_does_not_know_is_said_to_be_that(hub: FakeHub):
    with pytest.raises(HubRefused, match="does not know the token"):
        Hub(hub.url, "hf_old_and_revoked").look("someone/gated", None)


def test_a_gated_base_with_the_right_token_is_found_and_the_token_goes_to_the_hub_alone(hub: FakeHub):
    base = Hub(hub.url, TOKEN).look("someone/gated", "main")
    assert base.needs_token
    assert hub.tokens() == {(hub.url.removeprefix("http://"), f"Bearer {TOKEN}")}
    assert TOKEN not in repr(Hub(hub.url, TOKEN)) + base.model_dump_json()


def test_a_revision_that_is_not_there_is_a_mistake_in_the_file(hub: FakeHub):
    with pytest.raises(UsageError, match="has no revision v9"):
        Hub(hub.url).look("someone/open", "v9")


def test_what_is_no_diffusers_model_is_refused_before_anything_is_rented(hub: FakeHub):
    del hub.files["model_index.json"]
    with pytest.raises(UsageError, match="is no diffusers model"):
        Hub(hub.url).look("someone/open", None)


def test_a_base_of_pickles_alone_is_refused(hub: FakeHub):
    hub.files = {name: data for name, data in hub.files.items() if not name.endswith(".safetensors")}
    with pytest.raises(UsageError, match="no weights in the safetensors format"):
        Hub(hub.url).look("someone/open", None)


def test_a_hub_that_does_not_answer_is_told_from_one_that_refuses():
    with pytest.raises(HubSilent, match="does not answer"):
        Hub("http://127.0.0.1:9").look("someone/open", None)


def test_a_machine_that_needs_no_token_gets_none_and_one_that_does_is_not_sent_off_without():
    plain = HubBase(repo="a/b", revision=COMMIT, files=(HubFile(name="x", size=1),))
    gated = plain.model_copy(update={"needs_token": True})
    assert TOKEN not in hub_order([plain], Hub("http://h", TOKEN)).decode()
    assert json.loads(hub_order([plain, gated], Hub("http://h", TOKEN)))["token"] == TOKEN
    with pytest.raises(HubRefused, match="HF_TOKEN is not set"):
        hub_order([gated], Hub("http://h"))


# -- on the machine --------------------------------------------------------------------------------


@dataclass
class Session:
    """A session's folder, and the program that fetches into the machine's cache."""

    root: Path

    def call(self, order: bytes = b"") -> str:
        command = [sys.executable, str(self.root / "setup/hub.py"), str(self.root)]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.root), "HF_HOME": str(self.root / "cache"), "HF_HUB_DISABLE_XET": "1"}
        return subprocess.run(command, input=order, env=environment, capture_output=True, check=True).stdout.decode().strip()

    def end(self) -> str:
        told: list[str] = []

        def over() -> bool:
            told.append(self.call())
            return told[-1].startswith(("ready", "failed", "wanted"))

        eventually(over, "an end of the fetching", timeout_s=120)
        return told[-1]

    def order(self, base: HubBase, hub: FakeHub) -> bytes:
        return hub_order([base], Hub(hub.url, TOKEN))

    def bytes_with(self, secret: str) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    (tmp_path / "setup").mkdir()
    (tmp_path / "setup/hub.py").write_text(templates.text("hub.py"))
    return Session(tmp_path)


def test_a_machine_fetches_a_gated_base_and_keeps_nothing_of_the_token(session: Session, hub: FakeHub):
    base = Hub(hub.url, TOKEN).look("someone/gated", None)
    assert session.call() == "wanted"
    assert session.call(session.order(base, hub)) == "running"
    seen_in = _watched(session)
    assert session.end() == "ready"
    cache = {path.relative_to(session.root).as_posix(): path for path in session.root.rglob("snapshots/*/**/*") if path.is_file()}
    assert {name.partition(f"{COMMIT}/")[2] for name in cache} == NEEDED
    assert session.bytes_with(TOKEN) == []
    assert seen_in == []
    assert hub.cdn.removeprefix("http://") not in {host for host, _ in hub.tokens()}, "the token followed no redirect to another host"
    assert session.call() == "ready", "asked again, it says so"


def _watched(session: Session) -> list[str]:
    """Command lines and environments of this session's processes that show the token, while they run."""
    found: list[Any] = []
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        for entry in Path("/proc").iterdir():
            try:
                shown = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except (OSError, ValueError):
                continue
            if str(session.root).encode() in shown and TOKEN.encode() in shown:
                found.append(shown)
        time.sleep(0.01)
    return found


def test_a_file_with_other_bytes_than_the_hub_had_named_is_not_trained_on(session: Session, hub: FakeHub):
    """Same length: only the hash tells."""
    base = Hub(hub.url).look("someone/open", None)
    hub.served["unet/diffusion_pytorch_model.safetensors"] = b"WEIGHTS" * 1000
    session.call(session.order(base, hub))
    assert "unet/diffusion_pytorch_model.safetensors of someone/open is not what the hub said that it is" in session.end()
    assert not [path for path in session.root.rglob("*") if path.is_file() and b"WEIGHTS" in path.read_bytes()]
