"""The first and the last act of every command: what may bill and nobody looks after is said, taken up, and decides the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import FakeClock

from orchestrator import cli, home
from orchestrator.cli import main
from orchestrator.home import Home, RunFolder
from orchestrator.lifecycle import Signal
from orchestrator.safety import unattended
from orchestrator.safety.unattended import SETTLED, Watch, open_runs

ROOT = Path(__file__).parents[2]
LEASE = {
    "provider": "vast",
    "label": "lorry-autumn-a1",
    "gpu": "RTX 4090",
    "usd_per_hour": "0.4",
    "disk_gib": 1,
    "prices": {"gpu_usd_per_hour": "0.4"},
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("LORRY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LORRY_KEEPER", "off")
    monkeypatch.setenv("VAST_API_KEY", "k" * 64)
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path / "home")


def a_run(place: Home, clock: FakeClock, *, gone: bool = False, closed: bool = False, name: str = "autumn") -> RunFolder:
    """A run with one machine."""
    folder = place.new_run(name)
    ledger = folder.ledger(clock)
    ledger.record("opened", run=folder.id, cap_usd="5")
    ledger.record(Signal.INTENT, attempt=1, **LEASE)
    ledger.record(Signal.LAUNCHED, attempt=1, instance_id="77001", **LEASE)
    if gone:
        ledger.record(Signal.GONE, attempt=1)
    if closed:
        ledger.record("closed", exit_code=0 if gone else 10)
    return folder


# -- what is said -----------------------------------------------------------------------------------------


def test_a_lost_machine_is_told_at_every_command_with_its_price_its_console_and_the_call_by_hand(
    place: Home, clock: FakeClock, capsys: pytest.CaptureFixture[str]
):
    run = a_run(place, clock)
    for command in (["ps"], ["cost"], ["logs", run.id], ["init", "--nonsense"]):
        assert main(command) == 10, "10 wins over whatever the command came to"
        said = capsys.readouterr().err.splitlines()
        assert said[0] == f"warning: run {run.id} MAY BE BILLING $0.400 an hour: RTX 4090 at vast, instance 77001"
        assert said[1].startswith("  by hand: see and stop it at https://")
        assert said[2].startswith("  or: curl -X DELETE -H 'Authorization: Bearer YOUR_API_KEY' https://")
        assert "77001" in said[2]
        assert said[3] == f"  nobody looks after it: lorry attach {run.id} goes on, lorry down {run.id} ends it"


def test_nothing_is_said_where_nothing_is_lost(place: Home, clock: FakeClock, capsys: pytest.CaptureFixture[str]):
    assert main(["ps"]) == 0
    a_run(place, clock, gone=True, closed=True)
    assert main(["ps"]) == 0
    assert "BILLING" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["help", "exit-codes"], ["ps", "--help"], ["sandbox", "bill"]])
def test_help_and_the_practice_cloud_answer_whatever_is_the_matter(
    arguments: list[str], place: Home, clock: FakeClock, capsys: pytest.CaptureFixture[str]
):
    a_run(place, clock)
    assert main(arguments) == 0
    assert "BILLING" not in capsys.readouterr().err


def test_with_json_stdout_stays_one_document_and_stderr_stays_lines_of_json(
    place: Home, clock: FakeClock, capsys: pytest.CaptureFixture[str]
):
    a_run(place, clock)
    assert main(["ps", "--json"]) == 10
    told = capsys.readouterr()
    assert len(json.loads(told.out)) == 1
    lines = [json.loads(line) for line in told.err.splitlines()]
    assert {line["type"] for line in lines} == {"may_bill"}
    assert "MAY BE BILLING" in lines[0]["text"]


def test_a_run_that_somebody_drives_is_not_lost(place: Home, clock: FakeClock, capsys: pytest.CaptureFixture[str]):
    run = a_run(place, clock)
    for held in (run.driving, run.keeping):
        with held():
            assert main(["ps", "--json"]) == 0
            told = capsys.readouterr()
            assert "BILLING" not in told.err
            (row,) = json.loads(told.out)
            assert (row["driven"], row["kept"]) == (held == run.driving, held == run.keeping)


def test_a_machine_that_lorry_could_not_see_go_is_told_whoever_goes_on_trying(
    place: Home, clock: FakeClock, capsys: pytest.CaptureFixture[str]
):
    run = a_run(place, clock, closed=True)
    with run.keeping():
        assert main(["ps"]) == 10
    assert "goes on trying to end it in the background" in capsys.readouterr().err


def test_ps_says_who_looks_after_a_run(place: Home, clock: FakeClock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "160")
    run = a_run(place, clock)
    for held, words in ((run.driving, " lorry "), (run.keeping, "its keeper"), (None, "NOBODY")):
        if held is None:
            main(["ps"])
        else:
            with held():
                main(["ps"])
        assert words in capsys.readouterr().out


# -- what is done -----------------------------------------------------------------------------------------


def test_a_lost_run_is_taken_up_and_then_the_commands_own_code_stands(
    place: Home, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys
):
    run, taken = a_run(place, clock), []
    monkeypatch.setenv("LORRY_KEEPER", "on")
    with run.keeping():  # as the keeper will hold it
        watch = Watch(place, as_json=False, take_up=lambda folder: taken.append(folder.id) or True)
        monkeypatch.setattr(RunFolder, "is_kept", property(lambda self: self.id in taken))
        watch.first()
        assert taken == [run.id]
        assert watch.last(3) == 3
    assert "takes the run up in the background" in capsys.readouterr().err


def test_a_keeper_that_does_not_come_up_leaves_ten(place: Home, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys):
    a_run(place, clock)
    monkeypatch.setenv("LORRY_KEEPER", "on")
    watch = Watch(place, as_json=False, take_up=lambda _: False)
    watch.first()
    assert watch.last(0) == 10
    assert capsys.readouterr().err.count("MAY BE BILLING") == 1, "once a command is enough"


def test_a_command_about_the_run_is_its_own_answer(place: Home, clock: FakeClock, capsys):
    """It would only get in its way: `lorry down` asks whoever drives."""
    run, other = a_run(place, clock), a_run(place, clock, name="winter")
    Watch(place, as_json=False).first(named=["autumn"])
    said = capsys.readouterr().err
    assert run.id not in said
    assert other.id in said
    Watch(place, as_json=False, take_up=lambda _: pytest.fail("reap ends it")).first(reaping=True)


def test_a_machine_lost_by_the_command_itself_is_told_after_it(place: Home, clock: FakeClock, capsys):
    watch = Watch(place, as_json=False)
    watch.first()
    run = a_run(place, clock)
    assert watch.last(0) == 10
    assert run.id in capsys.readouterr().err


def test_a_book_that_cannot_be_read_may_hold_anything(place: Home, clock: FakeClock, capsys, monkeypatch: pytest.MonkeyPatch):
    run = a_run(place, clock, gone=True, closed=True)
    monkeypatch.setattr(RunFolder, "book", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    watch = Watch(place, as_json=False)
    watch.first()
    assert watch.last(0) == 10
    assert f"the book of run {run.id} cannot be read" in capsys.readouterr().err


def test_a_cloud_without_a_key_or_a_name_takes_nothing_from_the_banner(place: Home, clock: FakeClock, capsys, monkeypatch):
    monkeypatch.setitem(LEASE, "provider", "a-cloud-of-tomorrow")
    a_run(place, clock)
    assert main(["ps"]) == 10
    assert "RTX 4090 at a-cloud-of-tomorrow, instance 77001" in capsys.readouterr().err


def test_a_look_that_breaks_keeps_no_command_from_its_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("our mistake")

    monkeypatch.setattr(unattended, "open_runs", broken)
    assert main(["ps"]) == 0
    said = capsys.readouterr().err
    assert "lorry itself broke" in said
    assert "no run is under way" in said


# -- what it costs ----------------------------------------------------------------------------------------


def read_books(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the runs whose books are read from now on."""
    read: list[str] = []
    book = RunFolder.book
    monkeypatch.setattr(RunFolder, "book", lambda self: (read.append(self.id), book(self))[1])
    return read


def test_closed_books_are_read_once(place: Home, clock: FakeClock, monkeypatch: pytest.MonkeyPatch):
    runs = [a_run(place, clock, gone=True, closed=True) for _ in range(5)]
    lost = a_run(place, clock)
    read = read_books(monkeypatch)
    assert [one.folder.id for one in open_runs(place)] == [lost.id]
    assert sorted(read) == sorted([*(run.id for run in runs), lost.id])
    read.clear()
    assert [one.folder.id for one in open_runs(place)] == [lost.id]
    assert read == [lost.id]


def test_a_settled_book_that_is_written_to_is_read_again(place: Home, clock: FakeClock):
    """A machine believed gone and found alive; a run that is resumed: both append."""
    run = a_run(place, clock, gone=True, closed=True)
    assert open_runs(place) == []
    run.ledger(clock).record(Signal.LAUNCHED, attempt=1, instance_id="77002", **LEASE)
    assert [one.folder.id for one in open_runs(place)] == [run.id]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b'{"x": 7}', b"\0" * 100])
def test_without_its_cache_a_look_is_slower_and_no_less_safe(content: bytes | None, place: Home, clock: FakeClock):
    a_run(place, clock, gone=True, closed=True)
    lost = a_run(place, clock)
    open_runs(place)
    if content is None:
        (place.path / SETTLED).unlink()
    else:
        (place.path / SETTLED).write_bytes(content)
    assert [one.folder.id for one in open_runs(place)] == [lost.id]


def test_a_home_that_cannot_be_written_is_looked_at_all_the_same(place: Home, clock: FakeClock, monkeypatch: pytest.MonkeyPatch):
    lost = a_run(place, clock)
    a_run(place, clock, gone=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(home.os, "fsync", full)
    assert [one.folder.id for one in open_runs(place)] == [lost.id]


def test_folders_that_are_no_runs_stop_nobody(place: Home):
    (place.path / "runs/empty").mkdir(parents=True)
    (place.path / "runs/a-file").write_text("")
    assert open_runs(place) == []


def test_the_look_imports_no_cloud_where_nothing_is_lost(place: Home, clock: FakeClock):
    """It comes before every command, so it may not cost what clouds cost."""
    for _ in range(3):
        a_run(place, clock, gone=True, closed=True)
    code = (
        "import sys; from orchestrator.cli import main; main(['logs', 'nonsense']); sys.stderr.write('\\nMODULES ' + ' '.join(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ, check=False)
    modules = set(answer.stderr.rpartition("MODULES ")[2].split())
    assert "orchestrator.safety.unattended" in modules
    assert {"httpx", "paramiko", "torch", "filelock"} & modules == set()


def test_every_command_that_is_exempt_exists():
    assert cli.COMMANDS.keys() >= cli.LOOKS_AT_NO_RUN | cli.ACTS_ON_A_RUN


@pytest.mark.parametrize(
    ("arguments", "named", "reaping"),
    [
        (["ps"], [], False),
        (["reap", "--yes"], [], True),
        (["reap", "--yes", "--expired"], [], False),  # the timer: it gives lost runs of this computer their keepers
        (["down", "autumn", "--json"], ["autumn"], False),
        (["logs", "autumn"], [], False),
    ],
)
def test_each_command_looks_as_it_should(arguments: list[str], named: list[str], reaping: bool, monkeypatch: pytest.MonkeyPatch):
    looked: list[dict[str, object]] = []
    monkeypatch.setattr(Watch, "first", lambda _, **how: looked.append(how))
    monkeypatch.setattr(cli, "_answered", lambda _: 3)
    assert main(arguments) == 3
    assert looked == [{"named": named, "reaping": reaping}]
