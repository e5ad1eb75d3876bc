"""A machine without rsync: everything goes over SFTP, and is verified all the same."""

from __future__ import annotations

import json
import shutil
import site
import sys
import venv
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from .world import ROOT, Cloud, Lorry, adapters, check_receipt, check_results, config


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Cloud]:
    """A practice cloud whose machines have this Python and everything else, but an rsync that does not run."""
    venv.create(tmp_path / "image", with_pip=False)
    (packages,) = (tmp_path / "image/lib").glob("python*/site-packages")
    (packages / "here.pth").write_text("\n".join(site.getsitepackages() + [p for p in sys.path if "site-packages" in p]))
    rsync = tmp_path / "image/bin/rsync"
    rsync.write_text(f"#!/bin/sh\necho asked >>{tmp_path}/asked\nexit 127\n")
    rsync.chmod(0o755)
    cloud = Cloud.start(tmp_path / "sandbox", python=str(tmp_path / "image/bin/python"))
    yield cloud
    cloud.stop()


@pytest.mark.slow
def test_a_machine_without_rsync_gets_everything_over_sftp(bare: Cloud, tmp_path: Path, base: Path, drawn: Path, undisturbed):
    assert shutil.which("rsync"), "this computer has it, so it is the machine's lack that counts"
    folder = tmp_path / "client"
    folder.mkdir()
    lorry = Lorry(folder=folder, cloud=bare)
    killed = lorry("run", str(config(folder, base, {"one": drawn})), "-y", LORRY_CRASH_AT="shipped-written")
    assert killed.code == -9, killed.err
    assert (tmp_path / "asked").exists()
    session = bare.session(lorry.run)
    order = json.loads((lorry.at(lorry.run) / "order.json").read_text())
    assert len(order["items"]) > 40
    for item in order["items"]:
        arrived = session / item["folder"] / item["name"]
        assert sha256(arrived.read_bytes()).hexdigest() == item["sha256"], item["name"]
    assert list(session.rglob("*.part")) == []
    check_the_trainer(session)
    done = lorry("attach", lorry.run, "--json")
    assert done.code == 0, done.err
    check_receipt(lorry, done.document)
    check_results(lorry, lorry.run)
    assert adapters(lorry, lorry.run) == undisturbed("quick")["adapters"]


def check_the_trainer(session: Path) -> None:
    """The trainer over there is the one of this very checkout, file by file, and nothing beside it."""
    here, there = hashes(ROOT / "trainer"), hashes(session / "trainer")
    assert len(here) > 15
    assert there == here


def hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file below, but what Python compiled for itself."""
    found = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in found}
