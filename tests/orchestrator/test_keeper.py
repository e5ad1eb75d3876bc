"""The keeper: waits beside a run, has it taken up when its driver dies, gives up on what always crashes, and ends with the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock
from machines import eventually

from orchestrator.home import Home, RunFolder
from orchestrator.lifecycle import Signal
from orchestrator.safety import keeper
from orchestrator.safety.keeper import LONG_LIFE_S, LOOK_S, MOST_CRASHES, PAUSES_S, is_over, keep, kept

LEASE = {"provider": "fake", "label": "lorry-x-a1", "gpu": "g", "usd_per_hour": "0.4", "disk_gib": 1, "prices": {}}


@pytest.fixture
def folder(tmp_path: Path, clock: FakeClock) -> RunFolder:
    """A run with a machine, which nobody drives."""
    folder = Home(tmp_path / "home").new_run("autumn")
    ledger = folder.ledger(clock)
    ledger.record("opened", run=folder.id, cap_usd="5")
    ledger.record(Signal.INTENT, attempt=1, **LEASE)
    return folder


def close(folder: RunFolder, clock: FakeClock) -> None:
    """What a driver that comes to the end leaves behind."""
    ledger = folder.ledger(clock)
    ledger.record(Signal.GONE, attempt=1)
    ledger.record("closed", exit_code=0)


class Lives:
    """Drivers by script: each gives the exit code, and maybe does something before."""

    def __init__(self, *codes: int, last: Any = None, lasting_s: float = 0.0, clock: FakeClock | None = None) -> None:
        self.codes, self.last, self.lasting_s, self.clock = list(codes), last, lasting_s, clock
        self.begun: list[float] = []

    def __call__(self) -> int:
        if self.clock is not None:
            self.begun.append(self.clock.passed_s)
            self.clock.passed_s += self.lasting_s
        code = self.codes.pop(0)
        if not self.codes and self.last:
            self.last()
        return code


def test_a_run_whose_driver_died_is_taken_up_until_it_is_closed(folder: RunFolder, clock: FakeClock):
    said: list[str] = []
    lives = Lives(-9, -9, 0, last=lambda: close(folder, clock), clock=clock)
    keep(folder, clock, lives, said.append)
    assert lives.codes == []
    assert lives.begun == [0.0, PAUSES_S[0], PAUSES_S[0] + PAUSES_S[1]]
    assert any("ended with -9" in words for words in said)


def test_a_closed_run_and_one_that_was_never_begun_need_no_keeper(folder: RunFolder, clock: FakeClock, tmp_path: Path):
    assert not is_over(folder.book())
    close(folder, clock)
    assert is_over(folder.book())
    for done in (folder, RunFolder(tmp_path / "home/runs/empty-000000"), Home(tmp_path / "home").new_run("empty")):
        keep(done, clock, Lives(), lambda _: None)
    assert clock.slept == []


def test_what_always_crashes_is_given_up_in_time_with_the_way_out(folder: RunFolder, clock: FakeClock):
    said: list[str] = []
    keep(folder, clock, lives := Lives(*[-11] * 99, clock=clock), said.append)
    assert len(lives.begun) == MOST_CRASHES + 1
    assert f"lorry down {folder.id}" in said[-1]
    assert clock.passed_s > 40 * 60, "a network that is away for half an hour is survived"
    assert clock.slept == sorted(clock.slept), "ever longer pauses"


def test_a_cloud_that_does_not_answer_is_asked_for_ever(folder: RunFolder, clock: FakeClock):
    """10 is no crash: something may still bill, and to give up would let it."""
    keep(folder, clock, lives := Lives(*[10] * 200, 0, last=lambda: close(folder, clock), clock=clock), lambda _: None)
    assert len(lives.begun) == 201
    assert max(clock.slept) == PAUSES_S[-1]


def test_a_long_life_before_a_crash_is_no_crash_loop(folder: RunFolder, clock: FakeClock):
    crashes = [-9] * (3 * MOST_CRASHES)
    keep(folder, clock, Lives(*crashes, 0, last=lambda: close(folder, clock), lasting_s=LONG_LIFE_S + 1, clock=clock), lambda _: None)
    assert set(clock.slept) == {PAUSES_S[0]}


def test_a_person_who_drives_is_left_alone(folder: RunFolder, clock: FakeClock):
    """The lock decides who drives; the keeper looks now and then, and holds nothing that would be in the way."""
    with another_process_driving(folder) as driver:

        def after(looks: float) -> None:
            assert looks == LOOK_S
            if len(clock.slept) == 3:
                close(folder, clock)
                driver.kill()
                driver.wait()

        clock.on_sleep = after
        keep(folder, clock, Lives(), lambda _: None)
    assert clock.slept == [LOOK_S] * 3


def test_a_run_that_was_taken_away_ends_its_keeper(folder: RunFolder, clock: FakeClock):
    import shutil

    keep(folder, clock, Lives(1, last=lambda: shutil.rmtree(folder.path)), lambda _: None)


@contextmanager
def another_process_driving(folder: RunFolder) -> Iterator[subprocess.Popen[bytes]]:
    """Holds the run's lock until it is killed."""
    code = "import sys; from pathlib import Path; from orchestrator.home import RunFolder\n"
    code += "with RunFolder(Path(sys.argv[1])).driving(): print(flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(folder.path)], **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        yield process
        process.kill()


# -- the process ------------------------------------------------------------------------------------------


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch, folder: RunFolder, tmp_path: Path) -> Path:
    """Real keepers, whose `lorry attach` is a script that writes down that it was called, and closes the run."""
    monkeypatch.delenv("LORRY_KEEPER", raising=False)
    monkeypatch.setenv("LORRY_CRASH_AT", "created")
    package = tmp_path / "stand-in/orchestrator"
    real = Path(keeper.__file__).parents[1]
    package.mkdir(parents=True)
    for entry in real.iterdir():
        if entry.name != "cli":
            (package / entry.name).symlink_to(entry)
    (package / "cli").mkdir()
    (package / "cli/__init__.py").write_text("")
    (package / "cli/__main__.py").write_text(
        "import os, sys\nfrom pathlib import Path\nfrom orchestrator.clock import SystemClock\nfrom orchestrator.home import RunFolder\n"
        "folder = RunFolder(Path.cwd())\n"
        "with folder.driving():\n"
        "    ledger = folder.ledger(SystemClock())\n"
        "    ledger.record('gone', attempt=1)\n"
        "    ledger.record('gone', attempt=2)\n"
        "    ledger.record('closed', exit_code=0)\n"
        "print('ATTACHED', sys.argv[1:], os.environ.get('LORRY_KEEPER'), os.environ.get('LORRY_CRASH_AT'))\n"
    )
    monkeypatch.setattr(keeper, "PACKAGES", package.parent)
    return folder.path / keeper.LOG


def test_a_keeper_sleeps_while_its_lorry_lives_and_takes_the_run_up_when_it_is_killed(folder: RunFolder, closing: Path):
    """SIGKILL: nobody can say goodbye. The pipe between the two tells it all the same."""
    code = "import sys; from pathlib import Path; from orchestrator.home import RunFolder; from orchestrator.safety.keeper import kept\n"
    code += "from orchestrator.safety import keeper; keeper.PACKAGES = Path(sys.argv[2])\n"
    code += "folder = RunFolder(Path(sys.argv[1]))\nwith kept(folder), folder.driving(): print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", code, str(folder.path), str(keeper.PACKAGES)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        eventually(lambda: folder.read("keeper.json"), "a keeper that has written down who it is")
        pid = folder.read("keeper.json")["pid"]
        assert os.getsid(pid) == pid, "detached: no terminal takes it along"
        assert not is_over(folder.book())
        driver.kill()
    eventually(lambda: is_over(folder.book()), "the run's end", 20)
    eventually(lambda: not folder.is_kept, "the keeper's end", 20)
    log = closing.read_text()
    assert f"ATTACHED ['attach', '{folder.id}'] off None" in log, (
        "no keeper of its own, and it does not die where the first one was told to"
    )
    assert "taking it up" in log


def test_a_keeper_waits_for_its_lorry_to_begin(folder: RunFolder, closing: Path, clock: FakeClock):
    """`lorry resume` opens a closed book again, but not before it has asked the market."""
    close(folder, clock)
    with kept(folder):
        eventually(lambda: folder.read("keeper.json"), "a keeper")
        with folder.driving():
            folder.ledger(clock).record(Signal.INTENT, attempt=2, **LEASE)
    eventually(lambda: "ATTACHED" in closing.read_text(), "the next lorry", 20)
    eventually(lambda: not folder.is_kept, "the keeper's end", 20)


def test_a_lorry_that_comes_to_the_end_is_followed_by_its_keeper(folder: RunFolder, closing: Path, clock: FakeClock):
    with kept(folder):
        eventually(lambda: folder.is_kept, "a keeper")
        with kept(folder):
            pass  # one keeper a run: the second is none
        close(folder, clock)
    eventually(lambda: not folder.is_kept, "the keeper's end", 20)
    assert "ATTACHED" not in closing.read_text()


def test_a_run_that_nobody_drives_is_given_to_a_keeper_and_that_is_seen(folder: RunFolder, closing: Path):
    assert keeper.take_up(folder)
    eventually(lambda: is_over(folder.book()) and not folder.is_kept, "the end of both", 20)
    assert closing.read_text().count("ATTACHED") == 1


def test_whoever_wants_no_keeper_gets_none(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    for wanted, variable in ((False, "on"), (True, "off"), (True, "0")):
        monkeypatch.setenv("LORRY_KEEPER", variable)
        with kept(folder, wanted=wanted):
            assert not (folder.path / keeper.LOG).exists()


def test_a_keeper_that_cannot_be_started_stops_no_run(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.delenv("LORRY_KEEPER", raising=False)
    monkeypatch.setattr(subprocess, "Popen", full)
    with kept(folder):
        pass
    assert "no keeper could be started" in capsys.readouterr().err
    assert not keeper.take_up(folder)


def test_a_keeper_is_small(folder: RunFolder, closing: Path, clock: FakeClock):
    """It waits beside a night of training on a laptop: no torch, no SSH, no HTTP."""
    code = "import sys, orchestrator.safety.keeper, filelock; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "numpy", "paramiko", "httpx", "pydantic", "rich", "typer"} & set(modules) == set()
    with kept(folder):
        eventually(lambda: folder.read("keeper.json"), "a keeper that has written down who it is")
        status = Path(f"/proc/{folder.read('keeper.json')['pid']}/status")
        if status.exists():
            resident_kb = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))
            assert resident_kb < 40_000
        close(folder, clock)
    eventually(lambda: not folder.is_kept, "the keeper's end", 20)


def test_a_keeper_that_is_killed_too_leaves_the_run_to_the_next_command(folder: RunFolder, closing: Path):
    with another_process_driving(folder) as driver:
        process = keeper.start(folder, stdin=subprocess.PIPE)
        assert process is not None
        eventually(lambda: folder.is_kept, "a keeper")
        process.send_signal(signal.SIGKILL)
        process.wait()
        driver.kill()
        driver.wait()
    assert process.stdin is not None
    process.stdin.close()
    assert not folder.is_kept
    assert not folder.is_driven
    assert not is_over(folder.book())
