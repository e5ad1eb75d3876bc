"""Ctrl-C, a closed terminal, a polite kill: true last words, the exit code that says it, and the machine gone."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.crashpoints import POINTS
from orchestrator.safety.interrupts import HUNG_UP, RENTED

from .world import COMMAND, Lorry, adapters, check_gone, check_receipt, check_results, chunks, poll


class Terminal:
    """The command as the foreground program of a terminal of its own."""

    def __init__(self, lorry: Lorry, *arguments: str, **env: str) -> None:
        self.pid, self.stream = pty.fork()
        if self.pid == 0:  # pragma: no cover - the child becomes the command
            os.chdir(lorry.folder)
            os.execve(sys.executable, [*COMMAND, *arguments], lorry.env | {"TERM": "xterm"} | env)
        os.set_inheritable(self.stream, False)
        self.shown = b""
        self.code: int | None = None

    def read(self) -> bytes:
        """All that was shown so far; keeps the terminal from filling up."""
        import select

        while select.select([self.stream], [], [], 0)[0]:
            try:
                data = os.read(self.stream, 65536)
            except OSError:
                break
            if not data:
                break
            self.shown += data
        return self.shown

    def press(self, key: bytes) -> None:
        os.write(self.stream, key)

    def end(self, timeout_s: float = 240.0) -> int:
        """Read to the end; the exit code."""
        for data in chunks(self.stream, timeout_s):
            self.shown += data
        return self.wait(10)

    def close(self) -> None:
        """As a person closes the window: the kernel sends SIGHUP, and nobody reads any more."""
        os.close(self.stream)
        self.stream = -1

    def wait(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            else:
                assert time.monotonic() < deadline, f"it did not end in {timeout_s:.0f} s"
                time.sleep(0.02)
        return self.code

    def clean(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(10)
        if self.stream >= 0:
            os.close(self.stream)


@pytest.fixture
def terminal(lorry: Lorry, long: Path) -> Iterator[Terminal]:
    """`lorry run` on a terminal, with the question answered."""
    one = Terminal(lorry, "run", str(long))
    poll(lambda: b"[y/N]" in one.read(), what="the question", timeout_s=30)
    one.press(b"y\n")
    yield one
    one.clean()


def words(shown: bytes) -> str:
    """What a person has read: without escapes, on one line."""
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode(errors="replace")
    return re.sub(r"\s+", " ", text)


def last_entry(lorry: Lorry, run: str) -> dict[str, object]:
    entry = lorry.ledger(run)[-1]
    assert entry["kind"] == "closed"
    return dict(entry["data"])


def test_ctrl_c_once_makes_a_checkpoint_brings_it_home_and_destroys(terminal: Terminal, lorry: Lorry):
    with lorry.standing(4, meanwhile=terminal.read) as run:
        terminal.press(b"\x03")
        poll(lambda: (terminal.read(), (lorry.cloud.session(run) / "stop").exists())[1], what="the wish to stop over there")
    assert terminal.end() == 130
    said = words(terminal.shown)
    assert "stopping: what has been trained" in said
    assert said.index("stopping: what") < said.index("destroyed, and seen to be gone")
    assert f"lorry resume {run}" in said
    assert "Traceback" not in said
    check_results(lorry, run)
    (job,) = lorry("ps", "--all", "--json").document[0]["jobs"]
    assert job["status"] == "stopped"
    assert Path(job["checkpoints"][-1]).name == f"step{job['steps']:06d}.safetensors"
    assert len(check_gone(lorry, run)) == 1
    assert adapters(lorry, run) == {}


@pytest.mark.slow
def test_ctrl_c_twice_destroys_at_once(terminal: Terminal, lorry: Lorry):
    with lorry.standing(1, meanwhile=terminal.read) as run:
        terminal.press(b"\x03")
        poll(lambda: "stopping: what" in words(terminal.read()), what="an answer to the first Ctrl-C", timeout_s=30)
        terminal.press(b"\x03")
        assert terminal.end(timeout_s=60) == 130
    said = words(terminal.shown)
    assert "ending now" in said
    assert "destroyed, and seen to be gone" in said
    assert "Traceback" not in said
    assert last_entry(lorry, run)["exit_code"] == 130
    assert len(check_gone(lorry, run)) == 1


def test_a_closed_terminal_ends_nothing(terminal: Terminal, lorry: Lorry, undisturbed):
    """SIGHUP, and every word from then on is written to nobody: the run goes on, another terminal sees it, and it ends as planned."""
    with lorry.standing(4, meanwhile=terminal.read) as run:
        terminal.close()
        (row,) = lorry("ps", "--json").document
        assert (row["run"], row["driven"]) == (run, True)
    assert terminal.wait(240) == 0
    assert last_entry(lorry, run)["exit_code"] == 0
    check_results(lorry, run)
    assert adapters(lorry, run) == undisturbed("long")["adapters"]
    assert len(check_gone(lorry, run)) == 1
    assert list((lorry.home / "errors").glob("*")) == []


@pytest.mark.slow
def test_sigterm_is_an_orderly_stop_and_json_stays_json(lorry: Lorry, long: Path):
    import json

    driver = lorry.start("run", str(long), "-y", "--json")
    with lorry.standing(4) as run:
        driver.process.terminate()
        poll((lorry.cloud.session(run) / "stop").exists, what="the wish to stop over there")
    done = driver.end()
    assert done.code == 130
    assert done.document["exit_code"] == 130
    assert all(json.loads(line)["type"] for line in done.err.splitlines())
    assert "stopping" in done.err
    check_results(lorry, run)
    assert Path(done.document["jobs"][0]["checkpoints"][-1]).exists()
    assert len(check_gone(lorry, run)) == 1


@pytest.mark.slow
def test_sigterm_before_training_destroys_without_waiting(lorry: Lorry, quick: Path):
    driver = lorry.start("run", str(quick), "-y", "--json")
    poll(lambda: '"phase": "boot"' in driver.said or '"phase": "upload"' in driver.said, what="a machine")
    driver.process.terminate()
    done = driver.end()
    assert done.code == 130
    assert "before training" in done.document["message"]
    assert len(check_gone(lorry, done.document["run"])) == 1


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_does_not_keep_the_machine_alive(lorry: Lorry, quick: Path, undisturbed):
    """`lorry run 2>&1 | head -1`: the pipe breaks in the middle of the run."""
    import subprocess

    head = subprocess.Popen(["head", "-1"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert head.stdin is not None
    driver = subprocess.Popen([*COMMAND, "run", str(quick), "-y"], cwd=lorry.folder, env=lorry.env, stdout=head.stdin, stderr=head.stdin)
    head.stdin.close()
    assert driver.wait(240) == 0
    assert head.wait(10) == 0
    assert adapters(lorry, lorry.run) == undisturbed("quick")["adapters"]
    assert len(check_gone(lorry, lorry.run)) == 1


# -- every phase, every signal ------------------------------------------------------------------------------

PLACES = {
    "chosen-written": "renting",
    "created": "the cloud has rented, nobody knows",
    "launched-written": "booting",
    "reachable-written": "let in",
    "uploading": "uploading",
    "session-sent": "set up",
    "started-written": "training begins",
    "events-taken": "training",
    "fetching": "fetching",
    "ended-written": "training has ended",
    "pulled-written": "all is at home",
    "give_up-written": "giving back",
    "terminated": "destroying",
    "gone-written": "gone",
    "closed-unwritten": "closing the book",
    "accounted": "the receipt is written",
}
"""Where the signals come, one of each phase."""
SIGNALS = ("SIGINT", "SIGINT SIGINT", "SIGINT SIGINT SIGINT", "SIGTERM", "SIGTERM SIGTERM", "SIGHUP", "SIGHUP SIGINT")
SAMPLE = {("created", "SIGINT SIGINT")}
"""Of 112; `make crash` has them all."""


def hands() -> list[object]:
    pairs = [(place, given) for place in PLACES for given in SIGNALS]
    return [pytest.param(*pair, marks=() if pair in SAMPLE else pytest.mark.crash, id=f"{pair[0]}, {pair[1]}") for pair in pairs]


def test_the_places_are_places_of_the_program():
    assert PLACES.keys() <= POINTS.keys()
    assert {(place, given) for place, given in SAMPLE} <= {(place, given) for place in PLACES for given in SIGNALS}


@pytest.mark.parametrize(("place", "given"), hands())
def test_whatever_is_pressed_whenever_what_is_said_is_true_and_nothing_lives_on(
    place: str, given: str, lorry: Lorry, quick: Path, undisturbed
):
    done = lorry("run", str(quick), "-y", LORRY_CRASH_AT=place, LORRY_CRASH_WITH=given)
    run, asked = lorry.run, [word for word in given.split() if word != "SIGHUP"]
    said = [line for line in done.err.splitlines() if line in {*RENTED, HUNG_UP}]
    assert said == [HUNG_UP] * given.count("SIGHUP") + list(RENTED[: len(asked)]), done.err
    whole = adapters(lorry, run) == undisturbed("quick")["adapters"]
    assert done.code in ({0, 130} if asked else {0}), "a closed terminal ends nothing"
    assert whole or done.code == 130, done.err
    assert "Traceback" not in done.err
    told = lorry("attach", run, "--json")
    check_receipt(lorry, told.document)
    assert told.document["exit_code"] == done.code
    assert f"receipt of {run}: {told.document['status']}" in done.out
    if list((lorry.at(run) / "jobs").rglob("*.safetensors")):
        check_results(lorry, run)
    destroyed = [line for line in done.err.splitlines() if "destroyed, and seen to be gone" in line]
    assert len(destroyed) == len(check_gone(lorry, run)) <= 1, "said once, after it was seen, and only of a machine that there was"


def test_ctrl_c_or_a_closed_terminal_at_the_question_rents_nothing(lorry: Lorry, quick: Path):
    for way in ("press", "close"):
        one = Terminal(lorry, "run", str(quick))
        poll(lambda one=one: b"[y/N]" in one.read(), what="the question", timeout_s=60)
        shown = words(one.shown)
        assert "at worst you pay $1.00, the cap" in shown
        if way == "press":
            one.press(b"\x03")
            assert one.end(30) == 130
            assert "Traceback" not in words(one.shown)
        else:
            one.close()
            assert one.wait(30) == -signal.SIGHUP
        one.clean()
    assert lorry.runs == []
    assert not any((lorry.home / "runs").iterdir()), "a run has its folder before it has a machine"


@pytest.mark.slow
def test_ctrl_c_while_looking_on_ends_the_looking_only(lorry: Lorry, long: Path):
    driver = lorry.start("run", str(long), "-y")
    with lorry.standing(1) as run:
        onlooker = lorry.start("attach", run)
        poll(lambda: "looking on" in onlooker.said, what="the second lorry to look on")
        onlooker.process.send_signal(signal.SIGINT)
        looked = onlooker.end(30)
        assert looked.code == 130
        assert f"looked away; run {run} goes on" in looked.err
        assert f"lorry stop {run} ends it" in looked.err
    assert driver.end().code == 0
    assert len(check_gone(lorry, run)) == 1
