"""Everything that reads what a stranger wrote, with a taste of what `make fuzz` gives it for ten minutes."""

from __future__ import annotations

import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import paramiko
import pytest
from fakes import PNG, png, safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machines import QuickClock
from PIL import Image
from stranger import Stranger
from targets import TARGETS, Target

from orchestrator.border import pictures, weights
from orchestrator.border.reading import MOST_PACKET_BYTES, bound
from orchestrator.border.weights import Unsound
from orchestrator.errors import OverBudget
from orchestrator.shell import Shell, _Line, make_keys
from trainer import header


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_nothing_that_a_stranger_writes_breaks_its_reader(target: Target):
    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(target.made)
    def check(made: object) -> None:
        target.check(made)

    check()


KINDS = {"F64": "d", "F32": "f", "F16": "e"}


def one_tensor(dtype: str, body: bytes) -> bytes:
    raw = f'{{"w":{{"dtype":"{dtype}","shape":[{len(body) // header.DTYPE_BYTES[dtype]}],"data_offsets":[0,{len(body)}]}}}}'.encode()
    return len(raw).to_bytes(8, "little") + raw + body


@pytest.mark.parametrize("dtype", [*KINDS, "BF16"])
@given(values=st.lists(st.floats(width=16), min_size=1, max_size=9))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_is_finite_when_every_number_in_it_is(dtype: str, values: list[float], tmp_path: Path):
    """The bytes are looked at, not the numbers: struct is the oracle."""
    if dtype == "BF16":
        body = b"".join(struct.pack("<f", value)[2:] for value in values)
    else:
        body = struct.pack(f"<{len(values)}{KINDS[dtype]}", *values)
    (tmp_path / "f").write_bytes(one_tensor(dtype, body))
    if all(value - value == 0 for value in values):
        weights.look(tmp_path / "f")
    else:
        with pytest.raises(Unsound, match="not all finite"):
            weights.look(tmp_path / "f")


def test_the_largest_finite_numbers_are_finite(tmp_path: Path):
    """Their highest byte is that of no number; only the second one tells."""
    (tmp_path / "f").write_bytes(one_tensor("F32", struct.pack("<3f", 3.4e38, -3.4e38, 1.8e38)))
    weights.look(tmp_path / "f")


def test_a_number_that_is_none_is_found_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "AT_ONCE", 64)
    for place in (0, 15, 16, 17, 31, 99):
        values = [1.0] * 100
        values[place] = float("inf")
        (tmp_path / "f").write_bytes(one_tensor("F32", struct.pack("<100f", *values)))
        with pytest.raises(Unsound, match="not all finite"):
            weights.look(tmp_path / "f")


def test_a_picture_that_is_drawn_anew_is_the_same_picture(tmp_path: Path):
    Image.new("RGBA", (40, 30), (200, 10, 30, 128)).save(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(pictures.anew(tmp_path / "x.png"))
    with Image.open(tmp_path / "y.png") as made:
        assert (made.size, made.mode, made.getpixel((5, 5))) == ((40, 30), "RGB", (200, 10, 30))


def test_a_picture_is_no_larger_than_the_page_shows(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(png(2000, 100))
    (tmp_path / "y.png").write_bytes(pictures.anew(tmp_path / "x.png"))
    with Image.open(tmp_path / "y.png") as made:
        assert made.size == (512, 26)


@pytest.mark.parametrize("cut", range(1, len(PNG), 5))
def test_a_picture_cut_anywhere_is_none(cut: int, tmp_path: Path):
    (tmp_path / "x.png").write_bytes(PNG[:-cut])
    with pytest.raises(Unsound):
        pictures.look(tmp_path / "x.png")


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_file_of_weights_cut_anywhere_is_none(cut: int, tmp_path: Path):
    (tmp_path / "x").write_bytes(safetensors(3)[:-cut])
    with pytest.raises(Unsound):
        weights.look(tmp_path / "x")


def test_a_line_takes_no_more_than_a_greeting_before_it_knows_who_speaks():
    ours, theirs = socket.socketpair()
    line = _Line(fileno=ours.detach())
    line.most_bytes = 100
    theirs.sendall(b"x" * 150)
    assert len(line.recv(90)) == 90
    with pytest.raises(ConnectionError, match="without end"):
        line.recv(60)
    line.close()
    theirs.close()


@pytest.mark.parametrize("way", ["command", "file"])
def test_a_machine_that_answers_a_byte_a_moment_does_not_outlast_the_cap(way: str, tmp_path: Path):
    """It is never silent, so nothing but the cap ends it; and the cap is looked at while one waits."""
    over = threading.Event()

    def drip(channel: Any) -> tuple[int, bytes, bytes]:
        for count in range(10**6):
            channel.sendall(b"x")
            if count > 3:
                over.set()
            time.sleep(0.01)
        raise AssertionError

    def heed() -> None:
        if over.is_set():
            raise OverBudget("the cap is reached")

    with Stranger(commands={"drip": drip}, reads={"slow": lambda _, length: (over.set(), time.sleep(0.2), b"x")[2]}) as stranger:
        keys = make_keys(tmp_path)
        shell = Shell(stranger.endpoint, keys, QuickClock(), silence_s=1.0)  # type: ignore[arg-type]
        shell.heed = heed
        with pytest.raises(OverBudget):
            shell.run(["drip"]) if way == "command" else shell.read("slow")
        shell.close()


def test_no_packet_is_gathered_that_is_larger_than_any_that_was_asked_for():
    """The other side tells its length: four gigabytes are four bytes to say."""
    ours, theirs = socket.socketpair()
    transport = paramiko.Transport(ours)
    bound(transport)
    theirs.sendall(b"12345678")
    assert transport.packetizer.read_all(8) == b"12345678"
    for length in (MOST_PACKET_BYTES + 1, 2**32 - 4, -1):
        with pytest.raises(paramiko.SSHException, match="a packet of"):
            transport.packetizer.read_all(length)
    transport.close()
    theirs.close()
