"""What is remembered of machines outlives processes, torn files and two runs at a time, and is forgotten in good time."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from fakes import T0
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.machines.inspection import Line
from orchestrator.machines.memory import FORGOTTEN_AFTER, MOST_MACHINES, Bad, Fault, Memory

DAY = timedelta(days=1)


def bad(machine: str = "m1", *, days: float = 1.0, fault: Fault = Fault.BOOT, provider: str = "fake") -> Bad:
    return Bad(provider=provider, machine_id=machine, gpu="RTX 4090", fault=fault, why="it did not boot", until=T0 + days * DAY)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "machines.json"


@pytest.mark.parametrize("kept", ["in a file", "for as long as the process lives"])
def test_a_machine_is_avoided_until_its_time_is_over_and_no_longer(file: Path, kept: str):
    memory = Memory(file if kept == "in a file" else None)
    memory.remember(bad(), T0)
    assert memory.bad(T0) == {("fake", "m1"): bad()}
    assert memory.bad(T0 + DAY) == {}
    assert ("other", "m1") not in memory.bad(T0), "two clouds may use one number"


def test_another_process_knows_it_too(file: Path):
    Memory(file).remember(bad(), T0)
    assert Memory(file).bad(T0) == {("fake", "m1"): bad()}


def test_of_two_faults_the_graver_one_stands(file: Path):
    memory = Memory(file)
    for one in (bad(days=30, fault=Fault.HARDWARE), bad(days=1)):
        memory.remember(one, T0)
    assert memory.bad(T0)["fake", "m1"].fault is Fault.HARDWARE
    memory.remember(bad(days=40, fault=Fault.LOST), T0)
    assert memory.bad(T0)["fake", "m1"].fault is Fault.LOST


def test_a_machine_is_forgotten_by_its_id_its_whole_name_or_with_all_others(file: Path):
    memory = Memory(file)
    for machine in ("m1", "m2", "m3", "m4"):
        memory.remember(bad(machine), T0)
    assert [one.machine_id for one in memory.forget("m1")] == ["m1"]
    assert [one.machine_id for one in memory.forget("fake/m2")] == ["m2"]
    assert memory.forget("nobody") == []
    assert set(memory.bad(T0)) == {("fake", "m3"), ("fake", "m4")}
    assert len(memory.forget("all")) == 2
    assert memory.bad(T0) == {}


@given(raw=st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(lambda x: json.dumps(x).encode()))  # fmt: skip # noqa: E501
def test_a_file_that_is_not_ours_counts_as_empty_and_is_written_anew(tmp_path_factory: pytest.TempPathFactory, raw: bytes):
    file = tmp_path_factory.mktemp("home") / "machines.json"
    file.write_bytes(raw)
    assert Memory(file).bad(T0) == {}
    Memory(file).remember(bad(), T0)
    assert set(Memory(file).bad(T0)) == {("fake", "m1")}


def test_a_file_torn_at_any_byte_counts_as_empty(file: Path):
    memory = Memory(file)
    memory.remember(bad(), T0)
    whole = file.read_bytes().rstrip()
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        assert memory.bad(T0) == {}


def test_a_folder_that_cannot_be_written_to_costs_a_try_and_no_run(tmp_path: Path):
    (tmp_path / "home").write_text("a file where the folder should be")
    memory = Memory(tmp_path / "home" / "machines.json")
    memory.remember(bad(), T0)
    assert memory.bad(T0) == {}
    assert memory.forget("all") == []


def test_the_file_does_not_grow_for_ever(tmp_path: Path):
    memory = Memory()
    for number in range(MOST_MACHINES + 10):
        memory.remember(bad(f"m{number}", days=1 + number), T0)
    assert len(memory.bad(T0)) == MOST_MACHINES
    memory.remember(bad("new", days=10**4), T0 + timedelta(days=500))
    assert ("fake", "m100") not in memory.bad(T0), "what is over goes with the next writing"


WRITER = """
import sys
sys.path[:0] = [{tests!r}]
from test_memory import Memory, Path, T0, bad
for number in range(25):
    Memory(Path({file!r})).remember(bad(f"{name}-{{number}}"), T0)
"""


def test_two_processes_that_learn_at_the_same_time_lose_nothing(file: Path):
    tests = str(Path(__file__).parent)
    env = {"PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parents[2]}"}
    texts = [WRITER.format(tests=tests, file=str(file), name=name) for name in ("a", "b")]
    writers = [subprocess.Popen([sys.executable, "-c", text], env=env) for text in texts]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        now = len(Memory(file).bad(T0))
        assert now >= seen, "a reader sees the old file or the new one, never a part"
        seen = now
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert len(Memory(file).bad(T0)) == 50


def test_the_last_line_is_kept_for_a_while(file: Path):
    memory = Memory(file)
    assert memory.last_line(T0) is None
    memory.learn(Line(up_bytes_s=1e6, down_bytes_s=2e6), T0)
    memory.remember(bad(), T0)
    assert Memory(file).last_line(T0 + 20 * DAY) == Line(up_bytes_s=1e6, down_bytes_s=2e6)
    assert Memory(file).last_line(T0 + 31 * DAY) is None
    assert set(Memory(file).bad(T0)) == {("fake", "m1")}


def test_every_fault_has_its_time():
    assert FORGOTTEN_AFTER.keys() == set(Fault)
    assert all(timedelta(minutes=1) <= after <= timedelta(days=60) for after in FORGOTTEN_AFTER.values())
