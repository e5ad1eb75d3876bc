"""The guard alone ends its machine when its time is over. First its decisions, then real machines of the practice cloud."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from inspect import isfunction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import QuickClock, eventually

import templates
from orchestrator.lease import destroy
from orchestrator.machines import guard as ours
from orchestrator.shell import make_keys
from providers.base import Instance, LaunchSpec, Requirements, SelfDestroy
from providers.sandbox.faults import Fault
from providers.sandbox.provider import Sandbox
from providers.vast import ONSTART_MAX, Vast, onstart_script
from templates import guard

CONFIG = {"most_s": 1000.0, "claim_s": 100.0, "grace_s": 50.0}
FRESH: dict[str, Any] = {
    "beat": 0, "started": 0.0, "serial": None, "lease_at": None, "left_s": 0.0, "ended_at": None, "boot_id": "b", "now": 0.0, "wall": 0.0,
}  # fmt: skip
SOON_S = 10.0
"""Stands for the 180 s that are promised: these machines' clocks are that much shorter, this computer's load is not."""


# -- decisions -------------------------------------------------------------------------------------


def test_a_machine_that_nobody_claims_goes():
    assert guard.deadline(FRESH, CONFIG) == (100.0, "nobody claimed this machine")


def test_a_lease_counts_from_when_it_is_heard_and_once():
    state = guard.heard(FRESH, {"serial": 1, "left_s": 300}, None, 20.0)
    state = guard.heard(state, {"serial": 1, "left_s": 300}, None, 200.0)
    assert guard.deadline(state, CONFIG)[0] == 320.0
    assert guard.deadline(guard.heard(state, {"serial": 2, "left_s": 300}, None, 200.0), CONFIG)[0] == 500.0


def test_done_work_waits_for_its_grace_and_anew_while_somebody_fetches():
    state = guard.heard(FRESH, {"serial": 1, "left_s": 900}, {"state": "ended"}, 20.0)
    assert guard.deadline(state, CONFIG) == (70.0, "the work is done and nobody came for it")
    state = guard.heard(state, {"serial": 2, "left_s": 900}, {"state": "ended"}, 60.0)
    assert guard.deadline(state, CONFIG)[0] == 110.0


@given(st.floats(allow_nan=True) | st.text() | st.none(), st.integers())
def test_no_lease_lets_a_machine_live_beyond_the_most(left: object, serial: int):
    state = guard.heard(FRESH, {"serial": serial, "left_s": left}, None, 5.0)
    assert guard.deadline(state, CONFIG)[0] <= 1000.0


@given(st.floats(0, 1e6), st.floats(-1e6, 1e9))
def test_a_restart_begins_no_time_anew(now: float, wall_passed: float):
    """On another boot the time of day has gone on; where it was set back, what this boot has lasted is believed."""
    state = guard.heard(FRESH, {"serial": 1, "left_s": 300}, None, 20.0) | {"now": 50.0, "wall": 0.0}
    assert guard.revived(state, now, wall_passed, "b") == state
    moved = guard.revived(state, now, wall_passed, "another")
    left = guard.deadline(moved, CONFIG)[0] - now
    assert left == pytest.approx(270.0 - max(wall_passed, now), abs=1e-3)


def test_the_text_that_starts_it_fits_the_smallest_cloud():
    call = SelfDestroy(
        method="DELETE", url="https://" + "x" * 80, key="{CONTAINER_API_KEY}", id_env="CONTAINER_ID", show_url="https://" + "y" * 80
    )
    assert len(ours.onstart(templates.text("guard.py"), call, most_s=1e6)) <= ours.ONSTART_MOST


def test_with_what_vast_itself_puts_first_it_is_what_vast_takes(tmp_path: Path):
    """Our key is there, the longest label is not: that has a field of its own."""
    script = ours.onstart(templates.text("guard.py"), Vast("key").self_destroy, most_s=1234567.891)
    spec = LaunchSpec(label="l", image="img", disk_gib=1, ssh_public_key=make_keys(tmp_path).public_line, onstart=script)
    assert len(script) <= ours.ONSTART_MOST
    assert len(onstart_script(spec)) <= ONSTART_MAX
    assert len(onstart_script(replace(spec, onstart="x" * ours.ONSTART_MOST))) <= ONSTART_MAX


def test_what_travels_is_the_same_program_without_its_words():
    script = templates.text("guard.py")
    sent = ours.bare(script)
    assert '"""' not in sent
    assert "#" not in sent
    names: dict[str, Any] = {}
    exec(compile(sent, "guard", "exec"), {"__name__": "guard"}, names)
    assert {name for name, value in names.items() if callable(value)} == {n for n, v in vars(guard).items() if isfunction(v)}


class Hours:
    """A machine's clocks: one that counts since boot, one that anybody can set. Asking the cloud to destroy ends the story."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME if hasattr(time, "CLOCK_BOOTTIME") else 7

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, sets: Callable[[Hours], None] = lambda _: None) -> None:
        self.boot_s, self.wall_s, self.sets = 5000.0, 1e9, sets
        monkeypatch.setattr(guard, "time", self)
        monkeypatch.setattr(guard, "call", self.call)
        monkeypatch.setenv("ID", "i-1")

    def clock_gettime(self, clock: int) -> float:
        assert clock == self.CLOCK_BOOTTIME
        return self.boot_s

    def time(self) -> float:
        return self.wall_s

    def sleep(self, seconds: float) -> None:
        self.boot_s += seconds
        self.wall_s += seconds
        self.sets(self)

    def call(self, method: str, *_: str) -> tuple[int, str]:
        if method == "DELETE":
            raise EOFError
        return 200, "i-1"

    def live(self, folder: Path) -> float:
        """How long the machine lived, by the boot clock."""
        began = self.boot_s
        config = CONFIG | {"method": "DELETE", "url": "u", "show_url": "u", "key": "k", "id_env": "ID", "beat_s": 1.0}
        with pytest.raises(EOFError):
            guard.main(str(folder), config)
        return self.boot_s - began


YEAR_S = 365 * 86400.0


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, YEAR_S, -YEAR_S])
def test_a_clock_that_is_set_moves_no_deadline(jump_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every minute again, by an hour or a year."""

    def sets(hours: Hours) -> None:
        hours.wall_s += jump_s * (int(hours.boot_s) % 60 == 0)

    guard.write(str(tmp_path / "lease.json"), json.loads(ours.lease(1, 300.0)))
    assert Hours(monkeypatch, sets=sets).live(tmp_path) == pytest.approx(300.0, abs=1.0)


def test_a_machine_that_was_suspended_beyond_its_time_goes_at_the_first_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def sets(hours: Hours) -> None:
        hours.boot_s += 7200.0 * (hours.boot_s == 5060.0)

    guard.write(str(tmp_path / "lease.json"), json.loads(ours.lease(1, 300.0)))
    assert Hours(monkeypatch, sets=sets).live(tmp_path) == pytest.approx(7200.0 + 60.0, abs=1.0)


def test_what_a_machine_tells_is_data():
    for raw in (None, b"", b"{}", b"[]", b'{"beat": "x"}', b"\xff" * 100):
        assert ours.beat(raw) is None
    first = ours.Beat(beat=1, proven=True, left=5.0, why="", serial=None)
    assert ours.is_proven(first, first.model_copy(update={"beat": 2}))
    assert not ours.is_proven(first, first)
    assert not ours.is_proven(first, first.model_copy(update={"beat": 2, "proven": False}))
    assert not ours.is_proven(None, first)


# -- real machines ---------------------------------------------------------------------------------

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the practice cloud's machines are Linux processes")


@dataclass
class Ground:
    """A practice cloud, and machines with a guard whose clock is short."""

    server: Any
    cloud: Sandbox
    folder: Path
    made: int = 0

    def rent(self, *, call: SelfDestroy | None = None, **times: float) -> Instance:
        self.made += 1
        text = ours.onstart(templates.text("guard.py"), call or self.cloud.self_destroy, **({"most_s": 600.0, "beat_s": 0.1} | times))
        spec = LaunchSpec(
            label=f"lorry-guarded-a{self.made}",
            image="img",
            disk_gib=1,
            ssh_public_key=make_keys(self.folder / "keys").public_line,
            onstart=text,
        )
        instance = self.cloud.launch(self.cloud.offers(Requirements(disk_gib=1))[0], spec)
        eventually(lambda: self.beat(instance), "a first beat")
        return instance

    def at(self, instance: Instance) -> Path:
        return self.server.folder / "machines" / instance.id / "root" / ours.FOLDER

    def beat(self, instance: Instance) -> ours.Beat | None:
        file = self.at(instance) / "guard.json"
        return ours.beat(file.read_bytes() if file.exists() else None)

    def lease(self, instance: Instance, serial: int, left_s: float, status: str = "") -> None:
        guard.write(str(self.at(instance) / "lease.json"), json.loads(ours.lease(serial, left_s, status)))
        eventually(lambda: (b := self.beat(instance)) and b.serial == serial, "the lease to be heard")

    def pid(self, instance: Instance) -> int:
        """Of the guard: the process that has its own folder as an argument."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(self.at(instance)).encode() in words and words[0].endswith(b"python3"):
                return int(process.name)
        return 0

    def lives(self, instance: Instance) -> bool:
        """By the cloud's own bill."""
        return instance.id in self.server.market.bill().live


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    from providers.sandbox.server import Server

    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").mkdir()
    with Server(folder / "sandbox") as server:
        yield Ground(server, Sandbox(folder / "sandbox", url=server.descriptor.url, key=server.descriptor.api_key), folder)


@needs_linux
def test_it_proves_itself_before_anybody_trusts_it(ground: Ground):
    one = ground.rent()
    eventually(lambda: ground.beat(one).proven, "the proof")
    first = ground.beat(one)
    eventually(lambda: ours.is_proven(first, ground.beat(one)), "the next beat")
    other = ground.rent(call=replace(ground.cloud.self_destroy, key="not the key"))
    time.sleep(0.5)
    assert ground.beat(other).beat > 1
    assert not ground.beat(other).proven
    for instance in (one, other):
        ground.cloud.terminate(instance.id)


@needs_linux
@pytest.mark.parametrize("kind", ["deadline", "unclaimed", "done", "most"])
def test_with_the_client_gone_for_good_the_guard_alone_ends_the_machine(ground: Ground, kind: str):
    """The bill ends: at the lease's end, at the claim's, when nobody came for finished work, at the most whatever a lease says."""
    instance = ground.rent(claim_s=1.0 if kind == "unclaimed" else 600.0, grace_s=1.0, most_s=2.0 if kind == "most" else 600.0)
    if kind == "deadline":
        ground.lease(instance, 1, 1.0)
    elif kind == "most":
        ground.lease(instance, 1, 500.0)
    elif kind == "done":
        status = ground.at(instance) / "status.json"
        ground.lease(instance, 1, 500.0, str(status))
        time.sleep(0.3)
        assert ground.lives(instance)
        status.write_text('{"state": "ended"}')
    eventually(lambda: not ground.lives(instance), "the end", SOON_S)


@needs_linux
def test_it_asks_for_ever_when_its_cloud_does_not_listen(ground: Ground):
    instance = ground.rent()
    ground.server.faults.set([Fault(endpoint="plain.destroy", call=n, status=503) for n in (1, 2)])
    ground.lease(instance, 1, 0.2)
    eventually(lambda: not ground.lives(instance), "the end", SOON_S * 2)
    assert ground.server.faults.calls()["plain.destroy"] == 3
    ground.server.faults.set([])


@needs_linux
def test_a_restart_goes_on_where_it_was_and_two_guards_are_one(ground: Ground):
    instance = ground.rent()
    ground.lease(instance, 1, 300.0)
    before, pid = ground.beat(instance), ground.pid(instance)
    assert pid
    script = ground.server.folder / "machines" / instance.id / "etc" / "onstart"
    enter = script.with_name("enter")
    subprocess.run([enter, "/bin/sh", script], check=True)
    time.sleep(0.5)
    assert ground.pid(instance) == pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: ground.pid(instance) != pid, "its death")
    subprocess.run([enter, "/bin/sh", script], check=True)
    eventually(lambda: ground.beat(instance).beat > before.beat + 10, "the new one's beat")
    assert ground.beat(instance).left < before.left
    assert ground.beat(instance).serial == 1
    ground.cloud.terminate(instance.id)


@needs_linux
def test_with_the_guard_killed_the_client_ends_the_machine(ground: Ground):
    instance = ground.rent()
    os.kill(ground.pid(instance), signal.SIGKILL)
    began = time.monotonic()
    destroy(ground.cloud, [instance.id], "lorry-guarded", QuickClock())  # type: ignore[arg-type]
    assert not ground.lives(instance)
    assert time.monotonic() - began < 30


@needs_linux
def test_with_both_gone_a_reap_from_another_home_with_the_key_alone_ends_it(ground: Ground, tmp_path: Path):
    instance = ground.rent()
    os.kill(ground.pid(instance), signal.SIGKILL)
    env = {name: value for name, value in os.environ.items() if not name.startswith("LORRY_")} | {
        "LORRY_HOME": str(tmp_path / "another"),
        "LORRY_SANDBOX_URL": ground.server.descriptor.url,
        "LORRY_SANDBOX_KEY": ground.server.descriptor.api_key,
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
    }
    command = [sys.executable, "-m", "orchestrator.cli", "reap", "--provider", "sandbox", "--json"]
    looked = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert looked.returncode == 10, looked.stderr
    assert ground.lives(instance)
    done = subprocess.run([*command, "--yes"], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not ground.lives(instance)
