"""Nothing arrives under its final name unverified, whatever the machine lists or sends."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from fakes import PNG, FakeShell, safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import fetch as fetch_module
from orchestrator.errors import IntegrityError
from orchestrator.fetch import MOST_BYTES, TRIES, fetch, home_path, is_home, look_into
from orchestrator.home import RunFolder
from orchestrator.shell import LocalTrouble
from trainer.protocol import Committed

ADAPTER = safetensors(7)
PATH = "jobs/lisa/out/lisa.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    path = tmp_path / "runs" / "autumn-1"
    path.mkdir(parents=True)
    return RunFolder(path)


@pytest.fixture
def shell() -> FakeShell:
    return FakeShell("s")


def committed(path: str = PATH, content: bytes = ADAPTER, **fields: object) -> Committed:
    values: dict[str, object] = {
        "at_s": 1.0,
        "job": "lisa",
        "path": path,
        "role": "adapter",
        "step": 7,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return Committed.model_construct(**(values | fields))  # the reader's schema is not the only guard


def outside_staging(folder: RunFolder) -> list[str]:
    """Every file of the user's computer that came of it."""
    top = folder.path.parent.parent
    return sorted(p.relative_to(folder.path).as_posix() for p in top.rglob("*") if not p.is_dir() and p.parent.name != "staging")


def test_a_good_file_comes_home_under_its_name_and_nothing_stays_in_staging(folder: RunFolder, shell: FakeShell):
    shell.files[f"s/{PATH}"] = ADAPTER
    arrived = fetch(shell, "s", folder, committed())  # type: ignore[arg-type]
    assert arrived is not None
    assert arrived.path == folder.job("lisa") / "lisa.safetensors"
    assert arrived.path.read_bytes() == ADAPTER
    assert is_home(folder, committed())
    assert list((folder.path / "staging").iterdir()) == []


@pytest.mark.parametrize(
    ("role", "path", "home"),
    [
        ("checkpoint", "jobs/lisa/out/checkpoints/lisa-000007.safetensors", "checkpoints/lisa-000007.safetensors"),
        ("sample", "jobs/lisa/out/samples/00007-0.png", "samples/00007-0.png"),
    ],
)
def test_checkpoints_and_samples_have_their_folders(folder: RunFolder, role: str, path: str, home: str):
    assert home_path(folder, committed(path, role=role)) == folder.job("lisa") / home


FOREIGN = [
    "jobs/lisa/out/../../../../x.safetensors", "/etc/x.safetensors", "jobs/lisa/out//x.safetensors", "jobs/lisa/out/./x.safetensors",
    "jobs/other/out/x.safetensors", "jobs/lisa/data/x.safetensors", "jobs/lisa/out/.hidden.safetensors", "jobs/lisa/out/-rf.safetensors",
    "jobs/lisa/out/a b.safetensors", "jobs/lisa/out/x.safetensors\n", "jobs/lisa/out/x.pt", "jobs/lisa/out/x.png", "jobs/lisa/out/x.sh",
    "jobs/lisa/out/deep/er/x.safetensors", "jobs/lisa/out/elsewhere/x.safetensors", "jobs/lisa/out/..\\x.safetensors", "jobs/lisa/out",
    "", "jobs/../lisa/out/x.safetensors", "../x.safetensors", f"jobs/lisa/out/{'x' * 200}.safetensors", "jobs/lisa/out/ü.safetensors",
    "C:/x.safetensors", "jobs/lisa/out/checkpoints/../x.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("path", FOREIGN)
def test_a_name_that_no_trainer_of_ours_writes_is_refused_before_a_byte_is_asked_for(folder: RunFolder, shell: FakeShell, path: str):
    shell.files[f"s/{path}"] = ADAPTER
    with pytest.raises(IntegrityError, match="none of ours") as caught:
        fetch(shell, "s", folder, committed(path))  # type: ignore[arg-type]
    assert caught.value.exit_code == 12
    assert shell.fetched == []
    assert outside_staging(folder) == []


@given(path=st.text(max_size=80))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_leads_out_of_the_jobs_folder(folder: RunFolder, path: str):
    for listed in (path, f"jobs/lisa/out/{path}", f"jobs/lisa/out/{path}.safetensors"):
        try:
            home = home_path(folder, committed(listed))
        except IntegrityError:
            continue
        assert home.resolve().is_relative_to(folder.job("lisa").resolve())
        assert home.suffix == ".safetensors"


def test_a_size_beyond_reason_is_refused_before_a_byte_is_asked_for(folder: RunFolder, shell: FakeShell):
    with pytest.raises(IntegrityError, match="nothing of ours is that large"):
        fetch(shell, "s", folder, committed(size=MOST_BYTES["adapter"] + 1))  # type: ignore[arg-type]
    assert shell.fetched == []


def spoilt() -> dict[str, bytes]:
    flipped = bytearray(ADAPTER)
    flipped[-3] ^= 1
    return {"flipped": bytes(flipped), "cut short": ADAPTER[:-1], "empty": b"", "another": safetensors(8)}


@pytest.mark.parametrize("name", spoilt())
def test_bytes_that_are_not_those_that_were_listed_never_get_the_name(folder: RunFolder, shell: FakeShell, name: str):
    shell.files[f"s/{PATH}"] = spoilt()[name]
    with pytest.raises(IntegrityError, match=f"arrived damaged {TRIES} times"):
        fetch(shell, "s", folder, committed())  # type: ignore[arg-type]
    assert outside_staging(folder) == []
    assert len(shell.fetched) == TRIES


def test_a_file_that_grew_gives_the_bytes_that_were_listed(folder: RunFolder, shell: FakeShell):
    shell.files[f"s/{PATH}"] = ADAPTER + b"more"
    assert fetch(shell, "s", folder, committed()) is not None  # type: ignore[arg-type]
    assert (folder.job("lisa") / "lisa.safetensors").read_bytes() == ADAPTER


def header_of(table: object, body: bytes = b"") -> bytes:
    raw = json.dumps(table).encode()
    return len(raw).to_bytes(8, "little") + raw + body


POISON = {
    "a pickle": b"\x80\x04\x95\x00\x00\x00\x00",
    "a zip": b"PK\x03\x04" + b"\0" * 40,
    "nothing": b"",
    "seven bytes": b"1234567",
    "a header longer than the file": (10**9).to_bytes(8, "little") + b"{}",
    "a header that is no JSON": (4).to_bytes(8, "little") + b"{{{{",
    "a header that is a list": header_of([1, 2]),
    "a header of deep nesting": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "no tensors": header_of({}),
    "a tensor outside the file": header_of({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    "offsets that are words": header_of({"w": {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]}}, b"12345678"),
    "a negative offset": header_of({"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, b"12345678"),
    "a tensor that is null": header_of({"w": None}),
    "stray bytes": safetensors() + b"stray",
    "a number without end": header_of({"w": {"dtype": "F32", "shape": [int("9" * 4000)], "data_offsets": [0, 8]}}, b"12345678"),
    "bytes that are no text": (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
}


@pytest.mark.parametrize("name", POISON)
def test_a_file_that_hashes_right_and_is_no_adapter_never_gets_the_name(folder: RunFolder, shell: FakeShell, name: str):
    """The machine's own hash of its own poison proves only the transport."""
    shell.files[f"s/{PATH}"] = POISON[name]
    with pytest.raises(IntegrityError, match="is not what it must be"):
        fetch(shell, "s", folder, committed(content=POISON[name]))  # type: ignore[arg-type]
    assert outside_staging(folder) == []


@given(raw=st.binary(max_size=200))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_make_the_look_into_a_file_break(tmp_path: Path, raw: bytes):
    for content in (raw, len(raw).to_bytes(8, "little") + raw):
        (tmp_path / "f").write_bytes(content)
        try:
            look_into(tmp_path / "f", committed())
        except IntegrityError:
            assert not (tmp_path / "f").exists()


def test_a_sample_that_is_no_png_never_gets_the_name(folder: RunFolder, shell: FakeShell):
    path = "jobs/lisa/out/samples/1.png"
    for content in (b"<script>", b"", PNG[1:], b"\x89PNG\r\n\x1a"):
        shell.files[f"s/{path}"] = content
        with pytest.raises(IntegrityError, match="it is no PNG"):
            fetch(shell, "s", folder, committed(path, content, role="sample"))  # type: ignore[arg-type]
    assert outside_staging(folder) == []


def test_what_the_machine_no_longer_has_is_no_error_here(folder: RunFolder, shell: FakeShell):
    assert fetch(shell, "s", folder, committed()) is None  # type: ignore[arg-type]
    assert outside_staging(folder) == []


def test_killed_between_staging_and_the_name_nothing_has_the_name_and_the_next_gets_it(
    folder: RunFolder, shell: FakeShell, monkeypatch: pytest.MonkeyPatch
):
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    shell.files[f"s/{PATH}"] = ADAPTER
    for name in ("hashed_behind", "look_into", "_move_in"):
        with monkeypatch.context() as patch:
            patch.setattr(fetch_module, name, killed)
            with pytest.raises(Killed):
                fetch(shell, "s", folder, committed())  # type: ignore[arg-type]
        assert outside_staging(folder) == []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            fetch(shell, "s", folder, committed())  # type: ignore[arg-type]
    assert outside_staging(folder) == []
    assert fetch(shell, "s", folder, committed()) is not None  # type: ignore[arg-type]


def test_the_bytes_are_on_the_disk_before_they_get_the_name(folder: RunFolder, shell: FakeShell, monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append("sync"), real_sync(handle)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (seen.append("name"), real_replace(self, to))[1])
    shell.files[f"s/{PATH}"] = ADAPTER
    fetch(shell, "s", folder, committed())  # type: ignore[arg-type]
    assert seen == ["sync", "name", "sync"]


def test_a_full_disk_here_is_said_to_be_ours(folder: RunFolder, shell: FakeShell, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    shell.files[f"s/{PATH}"] = ADAPTER
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LocalTrouble, match="No space left on device"):
        fetch(shell, "s", folder, committed())  # type: ignore[arg-type]
    assert outside_staging(folder) == []


def test_a_link_in_the_place_of_the_file_is_replaced_not_followed(folder: RunFolder, shell: FakeShell, tmp_path: Path):
    target = tmp_path / "users file"
    target.write_bytes(b"mine")
    folder.job("lisa").mkdir(parents=True)
    (folder.job("lisa") / "lisa.safetensors").symlink_to(target)
    shell.files[f"s/{PATH}"] = ADAPTER
    fetch(shell, "s", folder, committed())  # type: ignore[arg-type]
    assert target.read_bytes() == b"mine"
