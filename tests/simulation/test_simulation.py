"""The real decision code in a faulty world, many seeds; and without any one of its rules some seed breaks a promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .__main__ import Sum, summary
from .checker import PROMISES, faults
from .disk import Disk, Name, SimOs
from .effects import Effects
from .kinds import missing
from .lives import live
from .machine import Machine
from .rules import ROOT, RULES
from .standins import PLAN, install
from .world import World

SEEDS = int(os.environ.get("LORRY_SEEDS", "100000"))
"""In `make test`; `make simulate` runs as many as it is told."""
ENOUGH = 20_000
"""A rule whose absence no so many seeds notice is not needed, or not tested."""
PARTS = 4


def simulation(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_goes_wrong_every_machine_is_gone_or_alarmed_the_cap_holds_and_what_came_home_stays(part: int, tmp_path: Path):
    """And everything that can go wrong does, wherever it can."""
    count, state = SEEDS // PARTS, tmp_path / "state.json"
    done = simulation("--seeds", str(count), "--first", str(part * count), "--cores", "1", "--state", str(state))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} seeds from {part * count} on" in done.stdout
    assert all(f"0 {promise} (" in done.stdout for promise in PROMISES)
    if count >= SEEDS_FOR_ALL:
        assert missing(Sum.from_json(json.loads(state.read_text())["total"]).faults) == []


SEEDS_FOR_ALL = 20_000
"""So many seeds meet everything everywhere."""


def test_a_run_of_seeds_that_was_cut_goes_on_where_it_was(tmp_path: Path):
    state = tmp_path / "state.json"
    whole = simulation("--seeds", "60", "--first", "40", "--cores", "1")
    first = simulation("--seeds", "60", "--first", "40", "--cores", "1", "--state", str(state))
    cut = json.loads(state.read_text())
    assert cut["done"] == 60
    again = simulation("--seeds", "60", "--first", "40", "--cores", "1", "--state", str(state))
    assert _figures(whole) == _figures(first) == _figures(again)


def _figures(done: subprocess.CompletedProcess[str]) -> str:
    """The last line, without how long it took."""
    return done.stdout.splitlines()[-1].partition("; ")[2]


def test_a_seed_is_told_again_word_for_word():
    assert simulation("7").stdout == simulation("7").stdout
    assert "$ lorry run" in simulation("7").stdout


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_of_the_protocol_can_be_left_out(rule: str):
    done = simulation("--without", rule, "--seeds", str(ENOUGH))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"without {rule}: seed" in done.stdout


def test_the_checker_sees_what_it_is_there_to_see():
    """A machine nobody knows of, a create sent twice, a lie, a cap overrun and a lost checkpoint, put into a story that was right."""
    install()
    story = next(s for s in map(live, range(1000)) if s.told[-1].exit_code == 0 and not s.world.cloud.machines)
    assert faults(story) == []
    world = story.world
    world.cloud.asked += ["a", "a"]
    world.said.append((5.0, "GPU 9 at fake: destroyed, and seen to be gone"))
    world.said.append((6.0, "one: checkpoint of step 400 is home"))
    unknown = Machine(world, 9, PLAN.best.offer, "a", "a", 0.0)
    unknown.gpu, unknown.asked_s = "GPU 9", 0.0
    world.cloud.machines.append(unknown)
    story.lost = False
    words = "; ".join(faults(story))
    assert "i-9 bills on" in words
    assert "sent twice for a" in words
    assert "of i-9 which lived on" in words
    assert "one-000400.safetensors is not there" in words
    unknown.until_s, unknown.claimed, unknown.ended_by = 1e5, True, "a terminate"
    unknown.guard = {"proven": True}
    story.clock_was_set = False
    assert "the cap was exceeded" in "; ".join(faults(story))


def test_a_checkpoint_that_went_with_its_machine_is_seen():
    install()
    story = next(s for s in map(live, range(1000)) if s.world.commits and s.told[-1].exit_code == 0 and s.told[-1].command == "attach")
    assert faults(story) == []
    home = [name for name in story.world.disk.files if "/jobs/" in name]
    story.world.disk.files[home[0]] += b"?"
    assert "is not what any machine made" in "; ".join(faults(story))
    for name in home:
        del story.world.disk.files[name]
    assert "its adapter is not at home" in "; ".join(faults(story))


def test_a_disk_keeps_what_was_synced_and_nothing_else_for_sure():
    """Bytes by syncing the file, names by syncing the folder; without, every part of them is lost in some power cut."""
    left: set[bytes | None] = set()
    for seed in range(200):
        disk = Disk(Effects(seed, None, telling=False))
        folder = Name(disk, "/home")
        for name, synced in (("sure", True), ("unsure", False)):
            with (folder / name).open("wb") as file:
                file.write(b"abc")
                file.flush()
                if synced:
                    SimOs.fsync(file.fileno())
            if synced:
                SimOs.fsync(folder)
        disk.power_cut()
        assert disk.files["/home/sure"] == b"abc"
        left.add(disk.files.get("/home/unsure"))
    assert {None, b"", b"a", b"ab", b"abc"} <= left


def test_a_rename_that_was_not_synced_may_be_undone_and_a_synced_one_never():
    for synced in (False, True):
        left: set[bytes] = set()
        for seed in range(100):
            disk = Disk(Effects(seed, None, telling=False))
            disk.files |= {"/home/old": b"old", "/home/new": b"new"}
            (Name(disk, "/home/new")).replace(Name(disk, "/home/old"))
            if synced:
                SimOs.fsync(Name(disk, "/home"))
            disk.power_cut()
            left.add(disk.files["/home/old"])
        assert left == ({b"new"} if synced else {b"old", b"new"})


def test_a_leap_ends_where_something_happens():
    """Looks at what does not change are taken as one; nothing that happens is slept over."""
    world = World(0)
    world.leap = 12.0
    world.at(5.0)
    world.sleep(2.0)
    assert world.time_s == 5.0
    world.sleep(2.0)
    assert world.time_s == 5.0 + 24.0


def test_the_line_of_figures_names_seeds_faults_and_every_promise():
    total = Sum()
    total.happened["seeds"] = 10
    total.faults["killed", "booting"] = 3
    total.broken.append((4, "lost: it"))
    words = summary(total, 0, 2.0)
    assert "10 seeds from 0 on" in words
    assert "3 killed" in words
    assert "1 lost" in words
    assert "0 silent" in words


def test_a_seed_is_cheap():
    install()
    began = time.process_time()
    for seed in range(200):
        live(seed)
    assert time.process_time() - began < 10.0
