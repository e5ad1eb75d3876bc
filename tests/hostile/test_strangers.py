"""A machine that does its worst: nothing of it lands outside, nothing acts on the terminal, nothing breaks, and lorry says what it was.

The table is in `attacks.py`. Each row is a whole `lorry attach` over SSH, in a home of its own, on a terminal of its own.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("what a process does is watched through /proc and a pty", allow_module_level=True)

from attacks import ATTACKS, Attack
from stranger import Stranger
from victim import MOVES, SGR, Outcome, Victim

MOST_MEMORY_BYTES = 200 * 1024**2
"""An honest run takes a tenth of it; the largest lie is four gigabytes."""
MOST_SENT_BYTES = 40_000_000
RICH = re.compile(r"\x1b\[(0|1|2|1;31|35|36|1;36|38;5;\d+|1;38;5;\d+|2;\d+|)m")
"""The colours of our own views."""


def attacked(attack: Attack, folder: Path, patch: pytest.MonkeyPatch) -> tuple[Outcome, Stranger]:
    for name, value in attack.limits.items():
        patch.setattr(name, value)
    with Stranger() as stranger:
        attack.play(stranger)
        return Victim(folder / "computer", patch, stranger).call("attach autumn", *attack.then), stranger


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_a_stranger_gets_nowhere(attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen, stranger = attacked(attack, tmp_path, monkeypatch)
    said = " ".join(seen.words.split())
    assert attack.says in said, "lorry does not say what it was"
    assert seen.code == attack.code
    assert tuple(seen.home) == attack.home
    nothing_outside(seen)
    nothing_acts(seen)
    assert "Traceback" not in seen.words
    assert "lorry itself broke" not in seen.words
    assert seen.machines_left == 0, "the machine of an attacker bills on"
    assert seen.grown_bytes < MOST_MEMORY_BYTES
    assert stranger.sent < MOST_SENT_BYTES


def nothing_outside(seen: Outcome) -> None:
    """Compared with the whole tree before, and told by Python's audit events, which also see what is gone again."""
    assert seen.strange == []
    assert seen.written == []
    assert seen.forbidden == []


def nothing_acts(seen: Outcome) -> None:
    """On the terminal, only what our own view draws with; on the page, nothing but text, and pictures that were drawn anew."""
    left = MOVES.sub("", RICH.sub("", seen.screen))
    assert sorted({f"U+{ord(c):04X}" for c in left if c != "\n" and not c.isprintable()}) == []
    assert "rm: forged line" not in [line.strip() for line in left.splitlines()]
    assert not re.search(r"<(script|img src=x|svg xmlns)", seen.page)
    assert sorted({f"U+{ord(c):04X}" for c in seen.page if c != "\n" and not c.isprintable()}) == []


def test_the_table_is_long_and_every_row_has_its_words():
    assert len(ATTACKS) >= 60
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert all(len(attack.says) > 5 for attack in ATTACKS)
    assert {attack.code for attack in ATTACKS} >= {0, 4, 5, 7, 8, 12}


def test_an_honest_machine_is_believed_and_the_watchers_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the other tests stand on: all is well without an attack, and a file outside, an escape or a link would be seen."""
    with Stranger() as stranger:
        victim = Victim(tmp_path / "computer", monkeypatch, stranger)
        seen = victim.call("attach autumn")
        assert (seen.code, seen.home) == (0, ["lisa.safetensors", "samples/step000002-0.png"])
        nothing_outside(seen)
        nothing_acts(seen)
        assert SGR.search(seen.screen), "the terminal is taken for a pipe"

        def evil() -> None:
            (victim.cwd / "x").write_text("x")
            (victim.cwd / "y").write_text("y")
            (victim.cwd / "y").unlink()
            (victim.cwd / "z").symlink_to(victim.cwd / "x")
            sys.stderr.write("\x1b]0;owned\x07")
            sys.stderr.flush()

        monkeypatch.setattr("victim.main", lambda _: evil())
        seen = victim.call("x")
        assert seen.strange == ["OUTSIDE cwd/x", "OUTSIDE cwd/z"]
        assert [Path(path).name for path in seen.written] == ["x", "y"]
        assert len(seen.forbidden) == 1
        with pytest.raises(AssertionError):
            nothing_acts(seen)
