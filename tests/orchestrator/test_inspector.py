"""What runs on the machine to tell what it is, against a driver of our own making: the same calls through the same door.

No real card has met it here: `libcuda.c` has the driver's names, arguments and error codes as its documentation gives them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import templates
from orchestrator import commands
from orchestrator.machines.inspection import Told, read

GIB = 2**30


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc to build a stand-in for the driver with")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("libcuda.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(folder / "libcuda.so.1"), str(source)], check=True)
    return folder


def inspect(home: Path, *, patience_s: int = 60, **env: str) -> subprocess.CompletedProcess[bytes]:
    """As it is run on a machine: on stdin, by whatever Python there is."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    script = templates.text("inspector.py").replace("PATIENCE_S = 60", f"PATIENCE_S = {patience_s}")
    argv = commands.inspect("lorry/autumn-1")
    return subprocess.run(argv, input=script.encode(), capture_output=True, cwd=home, env={"PATH": path, **env}, check=False, timeout=120)


def told(home: Path, **env: str) -> Told:
    done = inspect(home, **env)
    found = read(done.stdout)
    assert found is not None, done
    return found


def test_a_card_is_written_to_and_read_back(tmp_path: Path, driver: Path):
    said = told(tmp_path, LD_LIBRARY_PATH=str(driver))
    (card,) = said.cards
    assert (card.name, card.vram_bytes, card.free_bytes) == ("NVIDIA GeForce RTX 4090", 24564 << 20, 24000 << 20)
    assert (said.cuda, said.trouble, said.practice, said.disk_trouble) == (12080, "", False, "")
    there = os.statvfs(tmp_path)
    assert said.disk_free_bytes == pytest.approx(there.f_bavail * there.f_frsize, rel=0.05)
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"
    assert len(told(tmp_path, LD_LIBRARY_PATH=str(driver), STAND_IN="two").cards) == 2
    assert told(tmp_path, LD_LIBRARY_PATH=str(driver), STAND_IN="old").cuda == 11040


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("mismatch", "cuInit answered 803, system has unsupported display driver / cuda driver combination"),
        ("none", "the driver sees no card"),
        ("full", "cuDevicePrimaryCtxRetain answered 2"),
        ("forgets", "card 0 does not keep what is written to it"),
    ],
)
def test_the_call_that_failed_is_told_in_the_drivers_words(tmp_path: Path, driver: Path, fault: str, words: str):
    assert told(tmp_path, LD_LIBRARY_PATH=str(driver), STAND_IN=fault).trouble == words


def test_a_name_cannot_carry_what_a_terminal_obeys(tmp_path: Path, driver: Path):
    (card,) = told(tmp_path, LD_LIBRARY_PATH=str(driver), STAND_IN="rude").cards
    assert card.name == "RTX [2J 4090"


def test_a_card_that_never_answers_ends_the_inspector_without_a_word(tmp_path: Path, driver: Path):
    done = inspect(tmp_path, patience_s=1, LD_LIBRARY_PATH=str(driver), STAND_IN="hangs")
    assert done.returncode != 0
    assert read(done.stdout) is None


def test_a_machine_without_a_driver_says_so(tmp_path: Path):
    said = told(tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    if said.cards:
        pytest.skip("this computer has a driver")
    assert said.trouble.startswith(("no CUDA driver: libcuda.so.1", "cuInit answered")), said.trouble


def test_a_played_card_is_called_one(tmp_path: Path):
    card = json.dumps({"cards": [{"name": "RTX 3090", "vram_bytes": 24 * GIB}], "cuda": 13000})
    said = told(tmp_path, LORRY_PRACTICE_GPU=card)
    assert (said.practice, said.cards[0].name, said.cards[0].free_bytes) == (True, "RTX 3090", 24 * GIB)


def test_a_full_disk_is_told(tmp_path: Path):
    (tmp_path / "lorry").symlink_to("/proc/self")  # where nobody can write
    assert told(tmp_path, LORRY_PRACTICE_GPU='{"cards": [], "cuda": 0}').disk_trouble


def test_a_machine_without_python_is_told_apart(tmp_path: Path):
    sh = shutil.which("sh")
    assert sh is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").symlink_to(sh)
    done = subprocess.run(commands.inspect("x"), input=b"", capture_output=True, env={"PATH": str(tmp_path / "bin")}, check=False)
    assert (done.returncode, done.stderr.strip()) == (127, b"no Python")
