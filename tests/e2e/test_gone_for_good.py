"""Whoever is lost, the bill stops: the client, its network, the machine's guard, both; computers that sleep, and clocks that jump.

Real processes and, where the cap itself is waited for, the real clock: that takes nine minutes and stands in `make crash`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from . import world
from .island import Island, island, why_not
from .test_lives import check_as_undisturbed
from .world import Cloud, Lorry, adapters, check_gone, check_receipt, children_of, config, poll, supervisor_of

MAX_HOURS = 0.12
"""Seven minutes, of which five are the way out."""
GUARD_LATE_S, CLIENT_LATE_S = 180, 30
"""After the cap, at most: what docs/money.md promises."""
YEAR_S = 365 * 24 * 3600

needs_island = pytest.mark.skipif(bool(why_not()), reason=f"no network namespace can be made here: {why_not()}")


def _why_no_time() -> str:
    made = subprocess.run(["unshare", "--time", "true"], capture_output=True, text=True, check=False)
    return made.stderr.strip()


needs_time = pytest.mark.skipif(bool(why_not() or _why_no_time()), reason="no time namespace can be made here")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose sockets' names are not too long."""
    folder = Path(tempfile.mkdtemp(prefix="lorry-"))
    yield folder
    shutil.rmtree(folder)


def guard_of(lorry: Lorry, run: str) -> int:
    """The process that guards the run's machine: `python3 -c CODE FOLDER CONFIG`."""
    (machine,) = [m for m in lorry.cloud.machines(run) if m.live]
    folder = os.fsencode(lorry.cloud.folder / "machines" / machine.id / "root/.lorry-guard")
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it ended, or is no process
            words = (entry / "cmdline").read_bytes().split(b"\0")
            found += [int(entry.name)] if words[1:2] == [b"-c"] and words[3:4] == [folder] else []
    (pid,) = found
    return pid


def freeze_the_work(lorry: Lorry, run: str) -> None:
    """Nothing on the machine does what it is asked any more."""
    supervisor = supervisor_of(lorry.cloud.session(run))
    for pid in (*children_of(supervisor), supervisor):
        os.kill(pid, signal.SIGSTOP)


def life_s(lorry: Lorry, run: str) -> float:
    """Seconds from the run's first entry to the last machine's end in the cloud's own log."""
    import json

    opened = datetime.fromisoformat(lorry.ledger(run)[0]["at"])
    events = [json.loads(line) for line in (lorry.cloud.folder / "bill.jsonl").read_text().splitlines()]
    ours = {m.id for m in lorry.cloud.machines(run)}
    ends = [datetime.fromisoformat(e["at"]) for e in events if e["machine"] in ours and e["event"] == "ended"]
    return (max(ends).astimezone(UTC) - opened.astimezone(UTC)).total_seconds()


# --- who is lost ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stranger_with_the_key_ends_what_client_and_guard_have_left(lorry: Lorry, long: Path, tmp_path: Path):
    """Both killed, the work frozen: from another computer, knowing no run, `reap` finds the machine by its label."""
    driver = lorry.start("run", str(long), "-y", "--no-keeper")
    with lorry.standing(4) as run:
        lorry.until_home(4)
        driver.kill()
        os.kill(guard_of(lorry, run), signal.SIGKILL)
        freeze_the_work(lorry, run)
        (tmp_path / "elsewhere").mkdir()
        stranger = Lorry(folder=tmp_path / "elsewhere", cloud=lorry.cloud)
        looked = stranger("reap", "--provider", "sandbox", "--json")
        assert looked.code == 10, "it lives, and nothing was asked to be done"
        assert [row for row in looked.document if run in row["label"] and not row["destroyed_verified"]]
        assert [m.live for m in lorry.cloud.machines(run)] == [True]
        ended = stranger("reap", "--provider", "sandbox", "--yes", "--json")
    assert [row["destroyed_verified"] for row in ended.document if run in row["label"]] == [True]
    check_gone(lorry, run)
    done = lorry("attach", run, "--json")
    assert done.code == 0, done.err
    check_receipt(lorry, done.document)
    assert len(check_gone(lorry, run)) == 2, "a run whose machine was taken goes on elsewhere from the checkpoint at home"


@pytest.mark.crash
@needs_island
def test_the_cap_holds_on_the_real_clock_whoever_is_lost(tmp_path: Path, cloud: Cloud, base: Path, drawn: Path, short_path: Path):
    """Killed, frozen, cut off: the guard alone. Guard dead and machine deaf: the client alone."""
    with island(short_path / "island") as sea:
        lives: dict[str, tuple[Lorry, world.Running]] = {}
        for loss, happens in LOSSES.items():
            lorry, driver = lives[loss] = _begin(tmp_path / loss, cloud, base, drawn, through=sea if loss == "cut" else None)
            poll(lambda lorry=lorry: _has_a_checkpoint(lorry), what=f"a checkpoint of {loss}")
            freeze_the_work(lorry, lorry.run)
            happens(lorry, driver, sea)
        try:
            for loss, (lorry, _) in lives.items():
                run = lorry.run
                poll(
                    lambda lorry=lorry, run=run: not any(m.live for m in lorry.cloud.machines(run)),
                    what=f"the end of {loss}",
                    timeout_s=600,
                )
                late_s = life_s(lorry, run) - MAX_HOURS * 3600
                assert late_s <= (CLIENT_LATE_S if loss == "guard" else GUARD_LATE_S), f"{loss}: {late_s:.0f} s after the cap"
            sea.mend()
            for loss, (lorry, driver) in lives.items():
                if loss == "frozen":
                    os.kill(driver.process.pid, signal.SIGCONT)
                done = driver.end() if loss != "killed" else lorry("attach", lorry.run, "--json")
                assert done.code == 5, f"{loss}: {done.err}"
                check_receipt(lorry, done.document)
                assert done.document["jobs"][0]["checkpoints"], "what was committed in time is at home"
        finally:
            for _, driver in lives.values():
                driver.process.kill()
                driver.process.wait(10)


def _begin(folder: Path, cloud: Cloud, base: Path, drawn: Path, *, through: Island | None) -> tuple[Lorry, world.Running]:
    folder.mkdir()
    lorry = Lorry(folder=folder, cloud=cloud)
    file = config(folder, base, {"one": drawn}, max_usd=50.0, steps=20_000, save_every_steps=3, gradient_accumulation=20)
    file.write_text(file.read_text().replace("[budget]", f"[budget]\nmax_hours = {MAX_HOURS}"))
    return lorry, _start(lorry, "run", str(file), "-y", "--no-keeper", "--json", through=through)


def _has_a_checkpoint(lorry: Lorry) -> bool:
    entries = lorry.ledger(lorry.run) if lorry.runs else []
    return any(entry["kind"] == "fetched" and entry["data"]["role"] == "checkpoint" for entry in entries)


def _start(lorry: Lorry, *arguments: str, through: Island | None = None) -> world.Running:
    """Start a command here, or on the island with every machine's port ferried over as it appears."""
    if through is None:
        return lorry.start(*arguments)
    driver = lorry.start(*arguments, prefix=through.command())
    poll((through.folder / "orders").exists, what="the island")
    through.listen(int(lorry.cloud.url.rpartition(":")[2]))
    poll(lambda: lorry.runs and lorry.cloud.machines(lorry.run), what="a machine")
    (machine,) = lorry.cloud.machines(lorry.run)
    through.listen(poll(lambda: _port(lorry.cloud.folder / "machines" / machine.id / "init.json"), what="its port"))
    return driver


def _port(init: Path) -> int:
    import json

    with suppress(FileNotFoundError):
        return int(json.loads(init.read_text()).get("port", 0))
    return 0


LOSSES: dict[str, Callable[[Lorry, world.Running, Island], object]] = {
    "killed": lambda lorry, driver, sea: driver.kill(),
    "frozen": lambda lorry, driver, sea: os.kill(driver.process.pid, signal.SIGSTOP),
    "cut": lambda lorry, driver, sea: sea.cut(),
    "guard": lambda lorry, driver, sea: os.kill(guard_of(lorry, lorry.run), signal.SIGKILL),
}


# --- sleep, lines and clocks ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_client_that_slept_goes_on_as_if_nothing_had_happened(lorry: Lorry, long: Path, undisturbed):
    """The lid is closed for a moment; the machine trains on."""
    driver = lorry.start("run", str(long), "-y", "--json")
    poll(lambda: lorry.step() >= 2, what="step 2")
    os.kill(driver.process.pid, signal.SIGSTOP)
    poll(lambda: lorry.step() >= 6, what="training without a client")
    os.kill(driver.process.pid, signal.SIGCONT)
    done = driver.end()
    assert done.code == 0, done.err
    check_receipt(lorry, done.document)
    check_as_undisturbed(lorry, lorry.run, undisturbed)


@pytest.mark.slow
@needs_island
def test_a_line_that_breaks_and_comes_back_costs_nothing(lorry: Lorry, long: Path, undisturbed, short_path: Path):
    """Cut in the middle of training, mended after some steps: one machine, the same adapter."""
    with island(short_path / "island") as sea:
        driver = _start(lorry, "run", str(long), "-y", "--json", through=sea)
        poll(lambda: lorry.step() >= 2, what="step 2")
        sea.cut()
        poll(lambda: lorry.step() >= 6, what="training without a line")
        time.sleep(3)  # long enough for every reader of ours to have noticed
        sea.mend()
        done = driver.end()
    assert done.code == 0, done.err
    check_receipt(lorry, done.document)
    assert len(check_gone(lorry, lorry.run)) == 1
    assert adapters(lorry, lorry.run) == undisturbed("long")["adapters"]


@pytest.mark.slow
@needs_time
@pytest.mark.parametrize("shift_s", [YEAR_S, pytest.param(3600, marks=pytest.mark.slow)])
def test_a_run_is_taken_up_on_a_computer_whose_uptime_tells_another_story(shift_s: int, lorry: Lorry, long: Path, undisturbed):
    """Rebooted, or awake for a year: monotonic clocks begin anew, and no deadline is told by them."""
    driver = lorry.start("run", str(long), "-y", "--no-keeper")
    with lorry.standing(4) as run:
        driver.kill()
    later = ["unshare", "--time", "--fork", "--boottime", str(shift_s), "--monotonic", str(shift_s)]
    done = lorry.start("attach", run, "--json", prefix=later).end()
    assert done.code == 0, done.err
    check_receipt(lorry, done.document)
    assert len(check_gone(lorry, run)) == 1
    check_as_undisturbed(lorry, run, undisturbed)


@pytest.mark.slow
@needs_time
def test_a_machine_that_was_suspended_beyond_its_time_ends_when_it_wakes(lorry: Lorry, long: Path):
    """Its guard counts the time since boot, asleep or not: a day later by that clock it ends the machine without anybody's word."""
    driver = lorry.start("run", str(long), "-y", "--no-keeper")
    with lorry.standing(4) as run:
        driver.kill()
        guard = guard_of(lorry, run)
        entry = Path(f"/proc/{guard}")
        command = [os.fsdecode(word) for word in (entry / "cmdline").read_bytes().split(b"\0")[:-1]]
        environ = dict(os.fsdecode(pair).split("=", 1) for pair in (entry / "environ").read_bytes().split(b"\0")[:-1])
        home = Path(environ["HOME"])
        os.kill(guard, signal.SIGKILL)
        poll(lambda: not world.lives(guard), what="the guard's end")
        woken = subprocess.Popen(["unshare", "--time", "--fork", "--boottime", "86400", *command], env=environ, cwd=home)
        poll(lambda: not any(m.live for m in lorry.cloud.machines(run)), what="the end of the machine", timeout_s=60)
        woken.wait(30)
    poll(lambda: not list((lorry.cloud.folder / "machines").iterdir()), what="the end of its folder", timeout_s=30)
    check_gone(lorry, run)
    assert lorry("down", run).code == 0
