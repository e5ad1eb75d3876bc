"""Runs on this computer: private folders, one driver at a time, files that are whole or not there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakes import FakeClock

from orchestrator.errors import UsageError
from orchestrator.home import Busy, Home, RunFolder, write_atomically

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def a_run(home: Home, name: str, clock: FakeClock) -> RunFolder:
    folder = home.new_run(name)
    folder.ledger(clock).record("opened", run=folder.id, cap_usd="5")
    return folder


def test_a_run_has_a_private_folder_of_its_own(home: Home):
    one, two = home.new_run("autumn"), home.new_run("autumn")
    assert one.path != two.path
    assert one.id.startswith("autumn-")
    assert stat.S_IMODE(one.path.stat().st_mode) == 0o700


def test_lorry_home_moves_it_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LORRY_HOME", str(tmp_path / "x"))
    assert Home.from_env().path == tmp_path / "x"
    monkeypatch.setenv("LORRY_HOME", "relative")
    monkeypatch.chdir(tmp_path)
    assert Home.from_env().path == tmp_path / "relative"
    monkeypatch.delenv("LORRY_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert Home.from_env().path.name == "lorry"


def test_a_place_that_cannot_be_written_is_said_with_the_way_out(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write below") as caught:
        Home(tmp_path / "file").new_run("x")
    assert "LORRY_HOME" in caught.value.hint


# -- ids -------------------------------------------------------------------------------------------


def test_a_run_is_found_by_its_id_or_by_enough_of_it(home: Home, clock: FakeClock):
    autumn, winter = a_run(home, "autumn", clock), a_run(home, "winter", clock)
    assert home.run(autumn.id).path == autumn.path
    assert home.run("win").path == winter.path
    assert home.run(autumn.id[:-2]).path == autumn.path


def test_too_little_of_an_id_names_the_choices(home: Home, clock: FakeClock):
    runs = [a_run(home, "autumn", clock) for _ in range(3)]
    with pytest.raises(UsageError, match="may mean") as caught:
        home.run("autumn")
    assert all(run.id in str(caught.value) for run in runs)
    assert caught.value.exit_code == 2


def test_a_whole_id_wins_over_a_longer_one_that_begins_so(home: Home, clock: FakeClock):
    for name in ("a-111111", "a-111111-222222"):
        folder = RunFolder(home.path / "runs" / name)
        folder.path.mkdir(parents=True)
        folder.ledger(clock).record("opened", run=name)
    assert home.run("a-111111").id == "a-111111"


@pytest.mark.parametrize("name", ["nothing", "../autumn", "/etc", "."])
def test_an_id_that_is_none_names_the_newest(home: Home, clock: FakeClock, name: str):
    newest = a_run(home, "autumn", clock)
    with pytest.raises(UsageError, match=f"no run is called {name}") as caught:
        home.run(name)
    assert newest.id in caught.value.hint


def test_runs_are_listed_by_when_they_began_however_long_they_live(home: Home, clock: FakeClock):
    runs = []
    for name in ("zeta", "alpha", "mid"):
        runs.append(a_run(home, name, clock))
        clock.sleep(60)
    runs[0].ledger(clock).record("confirmed")  # the oldest is still written to
    assert [r.id for r in home.runs()] == [r.id for r in runs]


def test_a_folder_without_a_book_or_with_a_torn_one_stops_nobody(home: Home, clock: FakeClock):
    good = a_run(home, "good", clock)
    home.new_run("no book")
    torn = home.new_run("torn")
    (torn.path / "ledger.jsonl").write_bytes(b'{"v":1,"se\0\0\0')
    assert {r.id for r in home.runs()} == {good.id, torn.id}
    assert torn.book().open_attempts == ()
    assert Home(home.path / "elsewhere").runs() == []


# -- one driver ------------------------------------------------------------------------------------


def test_two_drivers_do_not_drive_one_run(home: Home):
    folder = home.new_run("x")
    with folder.driving():
        with pytest.raises(Busy, match=f"run {folder.id} is being driven") as caught, RunFolder(folder.path).driving():
            pass
        assert caught.value.exit_code == 2
        assert RunFolder(folder.path).is_driven
    assert not folder.is_driven
    with RunFolder(folder.path).driving():
        pass


def test_a_driver_that_was_killed_holds_nothing(home: Home):
    """The lock is the kernel's, not the file's."""
    folder = home.new_run("x")
    code = (
        "import sys, time; from pathlib import Path; from orchestrator.home import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).driving(): print('driving', flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"driving\n"
    assert folder.is_driven
    process.kill()
    process.wait()
    process.stdout.close()
    with folder.driving():
        pass


def test_two_that_only_look_do_not_take_each_other_for_drivers(home: Home):
    folder = home.new_run("x")
    with folder.driving():
        pass
    import fcntl

    with (folder.path / "lock").open("rb") as somebody_looks:
        fcntl.flock(somebody_looks, fcntl.LOCK_SH)
        assert not folder.is_driven


# -- files -----------------------------------------------------------------------------------------


def test_a_reader_sees_the_old_file_or_the_new_one_never_a_part(tmp_path: Path):
    target = tmp_path / "status.json"
    write_atomically(target, b"a" * 100_000)
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(target.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for letter in b"bcdefgh":
        write_atomically(target, bytes([letter]) * 100_000)
    done.set()
    reader.join()
    assert seen <= {bytes([letter]) * 100_000 for letter in b"abcdefgh"}


def test_a_write_that_failed_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "status.json"
    write_atomically(target, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_documents_come_back_as_they_were_written(home: Home):
    folder = home.new_run("x")
    assert folder.read("plan.json") is None
    folder.write("plan.json", {"ü": [1, 2.5, None]})
    assert folder.read("plan.json") == {"ü": [1, 2.5, None]}


# -- requests from another process -----------------------------------------------------------------


def test_a_request_to_stop_stands_until_it_is_met(home: Home):
    folder = home.new_run("x")
    assert not folder.stop_wanted
    assert not folder.end_wanted
    folder.want_stop()
    assert folder.stop_wanted
    assert not folder.end_wanted
    folder.want_stop(now=True)
    folder.want_stop()
    assert folder.end_wanted, "an orderly stop does not soften an end that was asked for"
    folder.forget_stop()
    folder.forget_stop()
    assert not folder.stop_wanted
