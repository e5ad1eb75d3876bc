"""A machine whose rsync does its worst while it is sent to: it reads no file that is not listed, writes none here, and is never believed.

The peer is `peer.py`, put where a real machine's sshd finds `rsync`; lorry's side is its own rsync and ssh, as in life.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the machine is one of Linux", allow_module_level=True)
if not shutil.which("rsync"):
    pytest.skip("there is no rsync on this computer to be attacked", allow_module_level=True)

import peer
from fakes import write
from machines import Host

from orchestrator import confine, ship
from orchestrator.console import plain
from orchestrator.errors import MachineFailed
from orchestrator.shell import Shell
from orchestrator.ship import Shipment, item, send

BASE = "lorry/autumn-1"
LISTED, CANARY = b"listed" * 500, b"CANARY-of-this-computer"
MOST_WORDS = 800
MOST_SAID_BYTES = 16_000_000
"""A limit of one, and what the line's windows and pipes hold besides."""

NO_PROTOCOL = "rsync could not write on the machine: "
GAVE_UP = "rsync failed 2 times"
DAMAGED = "arrived damaged 2 times"
EITHER = "rsync "
"""As the remote exit or the end of the line is seen first."""
ARRIVES = ""


@dataclass(frozen=True)
class Row:
    """An attack of `peer.py`, and what lorry says of it; nothing where all arrives in spite of it."""

    attack: str
    says: str


ROWS = [
    Row("ends well at once, with nothing stored", GAVE_UP),
    Row("takes everything and throws it away", DAMAGED),
    Row("stores other bytes of the same size and date", DAMAGED),
    Row("stores other bytes the first time", ARRIVES),
    Row("speaks nonsense", NO_PROTOCOL),
    Row("speaks nonsense after the greeting", GAVE_UP),
    Row("comes from the future", NO_PROTOCOL),
    Row("claims to be of 1996", NO_PROTOCOL),
    Row("claims a version below nothing", NO_PROTOCOL),
    Row("says nothing at all", GAVE_UP),
    Row("says nothing after the greeting", GAVE_UP),
    Row("floods the line for errors", GAVE_UP),
    Row("fails in escape sequences", EITHER),
    Row("asks for the file that is listed", GAVE_UP),
    Row("asks for a folder as a file", NO_PROTOCOL),
    Row("asks for a file beyond the list", NO_PROTOCOL),
    Row("asks for a file before the list", NO_PROTOCOL),
    Row("asks under a name of its own", GAVE_UP),
    Row("has two billion sums", NO_PROTOCOL),
    Row("has blocks of a negative length", NO_PROTOCOL),
    Row("offers files of its own", NO_PROTOCOL),
    Row("dies while it is sent to", GAVE_UP),
    Row("prints a progress of five thousand digits", GAVE_UP),
    Row("prints a progress of a billion gigabytes", GAVE_UP),
    Row("prints a line without end", GAVE_UP),
    Row("does not run", ARRIVES),
]


@dataclass
class Computer:
    """This side: the folder that is sent from, and what lies in it and beside it and was not asked to be sent."""

    root: Path
    host: Host
    shell: Shell
    shipment: Shipment

    def tree(self) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for path in sorted(self.root.rglob("*")):
            told = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[path.relative_to(self.root).as_posix()] = (told.st_mode, told.st_size, told.st_mtime_ns, content)
        return found

    def arrived(self) -> list[bytes]:
        return [path.read_bytes() for one in self.shipment.items if (path := self.host.root / BASE / one.remote).is_file()]


@pytest.fixture
def computer(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Computer]:
    shutil.rmtree(host.root / "lorry", ignore_errors=True)
    root = tmp_path / "computer"
    for name in ("data/canary.txt", "data/6_lisa/unlisted.png", "canary.txt", "home/.bashrc", "home/.ssh/id_ed25519", "canary/canary.txt"):
        write(root / name, CANARY)
    for name in ("6_lisa/a.png", "6_lisa/b.png"):
        write(root / "data" / name, LISTED)
    for name, value in {"HOME": root / "home", "TMPDIR": root / "canary"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(root)
    # What takes minutes in life: the same branches, sooner.
    for name, value in {"TRIES": 2, "RSYNC_TRIES": 2, "RSYNC_STARTS": 2, "STALL_S": 1.0}.items():
        monkeypatch.setattr(ship, name, value)
    (tmp_path / "pins").mkdir()
    shell = host.shell(tmp_path / "pins", patience_s=10.0)
    shipment = Shipment(items=tuple(item(root / "data" / "6_lisa", name, "jobs/lisa/data") for name in ("a.png", "b.png")))
    yield Computer(root=root, host=host, shell=shell, shipment=shipment)
    shell.close()


def install(attack: str, host: Host, folder: Path) -> Path:
    """Put the peer where the machine's sshd looks for programs first."""
    folder.mkdir()
    program = host.root.parent / "image" / "bin" / "rsync"
    command = [sys.executable, "-I", "-S", peer.__file__, attack, str(folder), shutil.which("rsync") or ""]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.attack)
def test_an_rsync_that_does_its_worst_gets_and_leaves_nothing(row: Row, computer: Computer, host: Host, tmp_path: Path):
    record = install(row.attack, host, tmp_path / "record")
    before, moved = computer.tree(), [0]
    if row.says:
        with pytest.raises(MachineFailed) as caught:
            send(computer.shell, BASE, computer.shipment, moved.append, check=lambda: None)
        said = str(caught.value)
        assert said.startswith(row.says) or row.says in said
        assert caught.value.exit_code == 6
        assert said == plain(said), "a control byte came through"
        assert len(said) < MOST_WORDS
    else:
        send(computer.shell, BASE, computer.shipment, moved.append, check=lambda: None)
        assert computer.arrived() == [LISTED, LISTED]
    assert computer.tree() == before, "a file of this computer was written"
    heard = (record / "heard").read_bytes() if (record / "heard").exists() else b""
    assert CANARY not in heard
    assert not any(CANARY in path.read_bytes() for path in (host.root / "lorry").rglob("*") if path.is_file())
    assert sum(moved) <= ship.RSYNC_TRIES * ship.TRIES * computer.shipment.size
    assert computer.shell.uploaded <= ship.RSYNC_TRIES * ship.TRIES * computer.shipment.size
    if (record / "said").exists():
        assert int((record / "said").read_text()) < MOST_SAID_BYTES


def test_every_attack_is_a_row_and_the_peer_speaks_so_well_that_it_is_given_what_is_listed(computer: Computer, host: Host, tmp_path: Path):
    """What the other rows stand on: the same words with a number of the list bring the file, so it is the number that is refused."""
    assert [row.attack for row in ROWS] == list(peer.ATTACKS)
    record = install("asks for the file that is listed", host, tmp_path / "record")
    with pytest.raises(MachineFailed):
        send(computer.shell, BASE, computer.shipment, lambda _: None, check=lambda: None)
    assert LISTED in (record / "heard").read_bytes()


@pytest.mark.skipif(not confine.abi(), reason="this kernel has no Landlock")
def test_a_file_that_became_a_link_to_a_private_one_is_not_read_for_a_machine_that_asks_for_it(
    computer: Computer, host: Host, tmp_path: Path
):
    """Between the hash and the sending; rsync may follow no link, and the kernel lets it open nothing else."""
    record = install("asks for the file that is listed", host, tmp_path / "record")
    listed = computer.root / "data" / "6_lisa" / "a.png"
    listed.unlink()
    listed.symlink_to(os.path.relpath(computer.root / "home" / ".ssh" / "id_ed25519", listed.parent))
    with pytest.raises(Exception, match=r"changed while|rsync"):
        send(computer.shell, BASE, computer.shipment, lambda _: None, check=lambda: None)
    assert CANARY not in (record / "heard").read_bytes()
