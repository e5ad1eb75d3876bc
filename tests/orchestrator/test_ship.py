"""What is sent arrives, exactly that and nothing else, by rsync and by SFTP, over good lines and bad ones."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import write
from machines import Host, Proxy, eventually, machine

from orchestrator import commands, confine, ship
from orchestrator.errors import DatasetError, IntegrityError, Interrupted, MachineFailed, UsageError
from orchestrator.shell import Shell
from orchestrator.ship import Item, Shipment, base_items, item, items_below, send

BASE = "lorry/autumn-1"
BYTES = random.Random(3).randbytes(2_000_000)
NAMES = [
    "a.png",
    "6_lisa woman/b c.png",
    "6_lisa woman/-rf.png",
    "6_lisa woman/-rf.txt",
    "it's.png",
    'say "hi".png',
    "tab\there.png",
    "line\nbreak.png",
    "back\\slash.png",
    "#hash.png",
    ";semi.png",
    "ü€𝄞.png",
    "$HOME `x`.png",
    "col: on.png",
    " lead.png",
    "*.png",
]


@pytest.fixture(params=["rsync", "no rsync here", "no rsync there"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no rsync here":
        monkeypatch.setattr(ship, "_local_rsync", lambda: None)
    elif request.param == "no rsync there":
        monkeypatch.setattr(commands, "has_rsync", lambda: ["false"])
    return str(request.param)


@pytest.fixture
def shell(host: Host, tmp_path: Path) -> Iterator[Shell]:
    shutil.rmtree(host.root / "lorry", ignore_errors=True)
    shell = host.shell(tmp_path, patience_s=10.0)
    yield shell
    shell.close()


def shipment(root: Path, names: list[str], size: int = 1000) -> Shipment:
    for number, name in enumerate(names):
        write(root / name, BYTES[number : number + size])
    return Shipment(items=tuple(item(root, name, "jobs/lisa/data") for name in names))


def there(host: Host) -> dict[str, bytes]:
    """Every file on the machine below the session's folder."""
    root = host.root / BASE
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file() or p.is_symlink()}


def expected(sent: Shipment) -> dict[str, bytes]:
    return {i.remote: i.source.read_bytes() for i in sent.items} | {commands.MANIFEST: sent.manifest}


def go(shell: Shell, sent: Shipment) -> int:
    counted = 0

    def moved(count: int) -> None:
        nonlocal counted
        counted += count

    send(shell, BASE, sent, moved, check=lambda: None)
    return counted


def test_every_name_arrives_with_its_bytes_and_nothing_else_does(shell: Shell, host: Host, tmp_path: Path, way: str):
    root = tmp_path / "data set's"
    write(root / "secret.env", b"TOKEN")
    write(root / "6_lisa woman" / "not listed.png", b"x")
    sent = shipment(root, NAMES)
    assert go(shell, sent) == sent.size
    assert there(host) == expected(sent), way
    assert shell.uploaded >= sent.size


def test_sending_again_moves_nothing(shell: Shell, tmp_path: Path, way: str):
    sent = shipment(tmp_path / "d", ["a.png", "b.png"])
    go(shell, sent)
    assert go(shell, sent) == 0


def test_an_empty_file_and_a_large_one_arrive(shell: Shell, host: Host, tmp_path: Path, way: str):
    write(tmp_path / "d" / "empty.txt", b"")
    write(tmp_path / "d" / "large.bin", BYTES)
    sent = Shipment(items=tuple(item(tmp_path / "d", n, "bases/x") for n in ("empty.txt", "large.bin")))
    go(shell, sent)
    assert there(host) == expected(sent)


def test_a_byte_that_flipped_over_there_is_found_and_mended(shell: Shell, host: Host, tmp_path: Path, way: str):
    """Same size, same date: only the hash tells."""
    sent = shipment(tmp_path / "d", ["a.png", "line\nbreak.png", "c.png"])
    go(shell, sent)
    for name in ("jobs/lisa/data/a.png", "jobs/lisa/data/line\nbreak.png"):
        broken = host.root / BASE / name
        before = broken.stat()
        data = bytearray(broken.read_bytes())
        data[500] ^= 1
        broken.write_bytes(data)
        os.utime(broken, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert go(shell, sent) == 2000, "only what was broken is sent again"
    assert there(host) == expected(sent)


def test_a_file_that_changed_here_meanwhile_is_named_and_stops_it(shell: Shell, tmp_path: Path, way: str):
    sent = shipment(tmp_path / "d", ["a.png", "b c.png"])
    write(tmp_path / "d" / "b c.png", BYTES[-1000:])
    with pytest.raises(DatasetError) as caught:
        go(shell, sent)
    assert caught.value.exit_code == 3
    assert [f.path for f in caught.value.findings] == [str(tmp_path / "d" / "b c.png")]


def test_a_file_that_went_away_here_meanwhile_is_named_at_once(shell: Shell, tmp_path: Path, way: str):
    sent = shipment(tmp_path / "d", ["a.png", "b.png"])
    (tmp_path / "d" / "a.png").unlink()
    begun = time.monotonic()
    with pytest.raises(DatasetError) as caught:
        go(shell, sent)
    assert [f.path for f in caught.value.findings] == [str(tmp_path / "d" / "a.png")]
    assert time.monotonic() - begun < 30


def test_no_permission_over_there_is_said_at_once(shell: Shell, host: Host, tmp_path: Path, way: str):
    sent = shipment(tmp_path / "d", ["a.png"])
    target = host.root / BASE / "jobs" / "lisa" / "data" / "a.png"
    (target / "a folder in its place").mkdir(parents=True)
    (target.with_name("a.png.part") / "and here").mkdir(parents=True)
    begun = time.monotonic()
    with pytest.raises(MachineFailed) as caught:
        go(shell, sent)
    assert time.monotonic() - begun < 30
    assert caught.value.exit_code == 6


def test_a_machine_that_cannot_hash_is_not_sent_everything_again(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(commands, "verify", lambda _: ["sh", "-c", "echo sha256sum: not found >&2; exit 127"])
    with pytest.raises(MachineFailed, match="could not verify what it got: sha256sum: not found"):
        go(shell, shipment(tmp_path / "d", ["a.png"]))


def test_more_wrong_files_than_an_argument_list_holds_are_mended(shell: Shell, host: Host, tmp_path: Path):
    names = [f"{'n' * 100}-{i}.txt" for i in range(1300)]
    sent = shipment(tmp_path / "d", names, size=10)
    go(shell, sent)
    for name in names:
        (host.root / BASE / "jobs/lisa/data" / name).write_bytes(b"")
    go(shell, sent)
    assert there(host) == expected(sent)


# -- links -----------------------------------------------------------------------------------------


def test_a_link_is_refused_before_anything_is_sent(tmp_path: Path):
    write(tmp_path / "id_ed25519", b"private")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.png").symlink_to(tmp_path / "id_ed25519")
    with pytest.raises(DatasetError, match="link") as caught:
        item(tmp_path / "d", "a.png", "x")
    assert caught.value.findings[0].path.endswith("a.png")


def test_a_file_that_became_a_link_after_the_check_is_not_followed(shell: Shell, host: Host, tmp_path: Path):
    """By rsync; what it points to stays here."""
    sent = shipment(tmp_path / "d", ["a.png", "b.png"])
    secret = write(tmp_path / "id_ed25519", b"private key")
    (tmp_path / "d" / "a.png").unlink()
    (tmp_path / "d" / "a.png").symlink_to(secret)
    with pytest.raises((DatasetError, MachineFailed)):
        go(shell, sent)
    assert b"private key" not in there(host).values()


def test_a_dataset_folder_that_is_itself_a_link_is_sent(shell: Shell, host: Host, tmp_path: Path, way: str):
    write(tmp_path / "disk" / "lisa" / "6_x" / "a.png", b"picture")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "lisa").symlink_to(tmp_path / "disk" / "lisa")
    sent = Shipment(items=(item(tmp_path / "datasets", "lisa/6_x/a.png", "jobs/lisa/data"),))
    go(shell, sent)
    assert there(host) == expected(sent)


def test_below_a_folder_only_visible_regular_files_are_taken(tmp_path: Path):
    root = tmp_path / "r"
    for name in ("a.json", "sub/b.json", ".env", ".git/config", "sub/.hidden/c.json", "__pycache__/d.pyc", "__init__.py"):
        write(root / name, b"x")
    (root / "link.json").symlink_to(root / "a.json")
    (root / "folder-link").symlink_to(root / "sub")
    os.mkfifo(root / "pipe.json")
    assert [i.name for i in items_below(root, "f")] == ["__init__.py", "a.json", "sub/b.json"]


def test_a_base_brings_what_the_trainer_reads_and_no_pickle(tmp_path: Path):
    base = tmp_path / "base"
    for name in ("model_index.json", "unet/model.safetensors", "unet/model.bin", "tokenizer/merges.txt", "x.ckpt", "x.pt"):
        write(base / name, name.encode())
    where, files = base_items(base)
    assert [f.name for f in files] == ["model_index.json", "tokenizer/merges.txt", "unet/model.safetensors"]
    assert {f.folder for f in files} == {where}
    shutil.copytree(base, tmp_path / "copy")
    assert base_items(tmp_path / "copy")[0] == where, "the same content is sent once, wherever it lies"


def test_with_a_single_file_goes_what_the_trainer_takes_from_beside_it(tmp_path: Path):
    for name in ("m.safetensors", "m.config/tokenizer/chat_template.jinja", "m.config/text_encoder/model.safetensors", "other.json"):
        write(tmp_path / name, name.encode())
    where, files = base_items(tmp_path / "m.safetensors")
    assert [f.name for f in files] == ["m.safetensors", "m.config/text_encoder/model.safetensors", "m.config/tokenizer/chat_template.jinja"]
    assert {f"{f.folder}/m.safetensors" for f in files} == {where}, "side by side over there too"
    assert all((f.root / f.name).read_bytes() == f.name.encode() for f in files)


def test_a_base_out_of_a_hubs_cache_is_sent_though_it_holds_links_only(shell: Shell, host: Host, tmp_path: Path, way: str):
    write(tmp_path / "blobs" / "1", b'{"_class_name": "StableDiffusionPipeline"}')
    write(tmp_path / "blobs" / "2", b"weights")
    (tmp_path / "snapshot" / "unet").mkdir(parents=True)
    (tmp_path / "snapshot" / "model_index.json").symlink_to("../blobs/1")
    (tmp_path / "snapshot" / "unet" / "model.safetensors").symlink_to("../../blobs/2")
    where, files = base_items(tmp_path / "snapshot")
    go(shell, Shipment(items=tuple(files)))
    assert there(host)[f"{where}/unet/model.safetensors"] == b"weights"


def test_a_base_folder_with_nothing_to_send_is_said_to_be_one(tmp_path: Path):
    write(tmp_path / "base" / "model.bin", b"x")
    with pytest.raises(UsageError, match=r"nothing in .* can be sent"):
        base_items(tmp_path / "base")


def test_the_manifest_is_what_sha256sum_would_have_written(tmp_path: Path):
    sent = Shipment(
        items=tuple(Item(root=i.root, name=i.name, folder="", size=i.size, sha256=i.sha256) for i in shipment(tmp_path, NAMES).items)
    )
    theirs = subprocess.run(["sha256sum", "--", *NAMES], cwd=tmp_path, capture_output=True, check=True).stdout
    assert sent.manifest == theirs


# -- bad lines -------------------------------------------------------------------------------------


def test_a_line_cut_over_and_over_ends_with_everything_there(host: Host, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch):
    """It goes on from what had arrived: the cuts together let less than the whole through twice."""
    shutil.rmtree(host.root / "lorry", ignore_errors=True)
    write(tmp_path / "d" / "big.safetensors", BYTES[:900_000])
    sent = Shipment(items=(item(tmp_path / "d", "big.safetensors", "bases/x"),))
    with Proxy(host.port) as line:
        shell = host.shell(tmp_path, port=line.port, patience_s=30.0)
        shell.connect()
        line.cut_up_after, line.cuts_left = 350_000, 6
        if way != "rsync":
            line.cut()
        go(shell, sent)
        shell.close()
        assert line.connections >= 4
        assert line.up_bytes < 2_700_000
    assert there(host) == expected(sent)


def test_ctrl_c_ends_rsync_and_its_ssh(host: Host, tmp_path: Path):
    shutil.rmtree(host.root / "lorry", ignore_errors=True)
    write(tmp_path / "d" / "big.bin", BYTES)
    sent = Shipment(items=(item(tmp_path / "d", "big.bin", "bases/x"),))

    def ours() -> list[str]:
        return [p for p in processes() if str(tmp_path) in p]

    with Proxy(host.port) as line:
        shell = host.shell(tmp_path, port=line.port)
        shell.connect()
        line.cut_up_after = None
        seen: list[list[str]] = []

        def check() -> None:
            line.stalled = True
            if ours():
                seen.append(ours())
                raise Interrupted("stopped")

        with pytest.raises(Interrupted):
            send_stalled(shell, sent, check, line)
        assert any("rsync" in p for p in seen[0])
        eventually(lambda: not ours(), f"the end of {ours()}")


def send_stalled(shell: Shell, sent: Shipment, check: object, line: Proxy) -> None:
    shell.check(commands.make_folders(BASE, sent.folders))
    ship._send_by_rsync(shell, BASE, sent, lambda _: None, check)  # type: ignore[arg-type]


def processes() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return found


def test_another_machine_behind_the_address_gets_nothing(host: Host, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, way: str):
    sent = shipment(tmp_path / "d", ["a.png"])
    with Proxy(host.port) as line, machine(tmp_path_factory.mktemp("other")) as other:
        shell = host.shell(tmp_path, port=line.port, patience_s=5.0)
        shell.connect()
        line.target = other.port
        line.cut()
        with pytest.raises(IntegrityError):
            go(shell, sent)
        assert not (other.root / "lorry").exists()


def test_a_folder_that_is_a_link_leads_nowhere_and_a_pipe_is_not_waited_for(tmp_path: Path):
    """What lies behind was never asked to be sent; nothing ever comes out of a pipe."""
    write(tmp_path / "private" / "a.png", b"x")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "6_lisa").symlink_to(tmp_path / "private")
    os.mkfifo(tmp_path / "d" / "b.png")
    for name, words in (("d/6_lisa/a.png", "6_lisa is a link"), ("d/b.png", "b.png is no file")):
        with pytest.raises(DatasetError, match=words):
            item(tmp_path, name, "jobs/lisa/data")


NO_LANDLOCK = pytest.mark.skipif(not confine.abi(), reason="this kernel has no Landlock")


@NO_LANDLOCK
def test_rsync_can_read_what_is_sent_and_nothing_else_of_this_computer(tmp_path: Path):
    """Whatever the other side talks it into: here `sh` stands for an rsync that does all it is told."""
    private, listed = write(tmp_path / "private.txt", b"private"), write(tmp_path / "d" / "listed.png", b"listed")
    write(tmp_path / "d" / "unlisted.png", b"unlisted")
    tries = 'cat "$1"; cat d/listed.png; cat d/unlisted.png; ls d; echo x >d/new; echo x >>d/listed.png; rm d/listed.png'
    names = tmp_path / "names"
    names.write_bytes(b"./listed.png\0")
    command = [sys.executable, "-I", "-S", str(ship.CONFINE), str(tmp_path / "d"), "--", "/bin/sh", "-c", tries, "sh", str(private)]
    with names.open("rb") as stdin:
        done = subprocess.run(command, cwd=tmp_path, stdin=stdin, capture_output=True, text=True, check=False)
    assert done.stdout == "listed"
    assert done.stderr.lower().count("permission denied") == 6
    assert listed.read_bytes() == b"listed"
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["listed.png", "unlisted.png"]


def test_without_landlock_rsync_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(confine, "abi", lambda: 0)
    assert confine.confine([], []) is False
    assert list(tmp_path.iterdir()) == [], "and reads on"
