"""The real decision code in a faulty world, many seeds; and without any one of its rules some seed breaks a promise."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from .checker import faults
from .lives import install, live
from .rules import ROOT, RULES
from .world import Machine

SEEDS = int(os.environ.get("LORRY_SEEDS", "4000"))
"""In `make test`; `make simulate` runs as many as it is told."""
ENOUGH = 20_000
"""A rule whose absence no so many seeds notice is not needed, or not tested."""


def simulation(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)


def test_whatever_goes_wrong_every_machine_is_gone_or_alarmed_and_the_cap_holds():
    done = simulation("--seeds", str(SEEDS), "--cores", "1")
    assert done.returncode == 0, done.stdout
    assert f"{SEEDS} seeds" in done.stdout


def test_a_seed_is_told_again_word_for_word():
    assert simulation("7").stdout == simulation("7").stdout
    assert "$ lorry run" in simulation("7").stdout


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_of_the_protocol_can_be_left_out(rule: str):
    done = simulation("--without", rule, "--seeds", str(ENOUGH))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"without {rule}: seed" in done.stdout


def test_the_checker_sees_what_it_is_there_to_see():
    """A machine nobody knows of, a create sent twice, a lie and a cap overrun, put into a story that was right."""
    install()
    story = next(s for s in map(live, range(100)) if s.told[-1].exit_code == 0 and not s.world.cloud.machines)
    assert faults(story) == []
    story.world.cloud.asked += ["a", "a"]
    story.world.said.append((5.0, "GPU 9 at fake: destroyed, and seen to be gone"))
    unknown = Machine("i-9", "a", "a", "GPU 9", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    story.world.cloud.machines.append(unknown)
    words = "; ".join(faults(story))
    assert "i-9 bills on" in words
    assert "sent twice for a" in words
    assert "of i-9 which lived on" in words
    unknown.until_s, unknown.claimed, unknown.has_guard = 1e5, True, True
    story.lost, story.world.wall_offset_s = False, 0.0
    assert "the cap was exceeded" in "; ".join(faults(story))


def test_a_seed_is_cheap():
    install()
    began = time.process_time()
    for seed in range(200):
        live(seed)
    assert time.process_time() - began < 10.0
