"""Standing beside a machine that follows a script: what is fetched, what is asked, and when it is given up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import PNG, FakeClock, FakeCloud, FakeShell, SilentView, an_order, offer, safetensors, spec

from orchestrator import commands
from orchestrator import fetch as fetch_module
from orchestrator.closing import OverCap, judge
from orchestrator.errors import IntegrityError, Interrupted, MachineFailed, OverBudget, ResultsIncomplete, TrainingFailed
from orchestrator.home import RunFolder
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.lifecycle import Phase, Signal
from orchestrator.machines.reaching import Machine
from orchestrator.progress import Progress
from orchestrator.trip import Tools, Trip
from orchestrator.watch import LOCAL_PAUSE_S, OVERRUN_S, STARTS, STOP_PATIENCE_S, fetch_now, pull, start, watch
from trainer.protocol import AnyEvent, Committed, Ended, JobState, Started, Status, Step, Warned, dump_event

PYTHON = "/usr/bin/python3"


class World:
    """One run, one machine, one script. Seconds pass only when the client waits; `tick` is what the machine does in each."""

    def __init__(self, path: Path, jobs: tuple[str, ...] = ("lisa",)) -> None:
        path.mkdir(parents=True)
        self.folder = RunFolder(path)
        self.clock = FakeClock()
        self.cloud = FakeCloud(self.clock)
        self.order = an_order(self.folder, jobs)
        self.view = SilentView()
        self.interrupts = SimpleNamespace(wanted=False, urgent=False, check_urgent=self.check_urgent)
        self.ledger = Ledger(path / "ledger.jsonl", self.clock)
        self.ledger.record("opened", cap_usd=self.order.cap_usd, run=self.order.run)
        self.lease = Lease.take(self.cloud, offer(), spec(), ledger=self.ledger, clock=self.clock)
        for signal in (Signal.REACHABLE, Signal.SHIPPED):
            self.ledger.record(signal, attempt=1)
        self.shell = FakeShell(self.order.root)
        self.shell.on_command = self.command
        self.answers_start: Callable[[], bytes] = lambda: b'{"pid": 7, "started": true}'
        self.tick: Callable[[int], None] = lambda _: None
        self.beat = 0
        self.alive = True
        self.clock.on_sleep = lambda _: self.step()
        self.trip = self.a_trip()

    def a_trip(self) -> Trip:
        """A process of lorry, new or taking up."""
        tools = Tools(clock=self.clock, view=self.view, interrupts=self.interrupts, provider=lambda _: self.cloud)  # type: ignore[arg-type]
        return Trip(
            order=self.order, folder=self.folder, ledger=self.ledger, tools=tools, progress=Progress(self.order.job_names), candidates=tuple
        )

    @property
    def machine(self) -> Machine:
        return Machine(lease=self.lease, shell=self.shell)  # type: ignore[arg-type]

    def check_urgent(self) -> None:
        if self.interrupts.urgent:
            raise Interrupted("stopped at once")

    def command(self, argv: list[str]) -> bytes:
        if argv == commands.start(self.order.root, PYTHON):
            return self.answers_start()
        return b"the last words" if argv == commands.tail(self.order.root) else b""

    def path(self, name: str) -> str:
        return f"{self.order.root}/{name}"

    # -- what the machine does ------------------------------------------------------------------------

    def step(self) -> None:
        self.beat += self.alive
        if self.alive:
            self.status()
        self.tick(self.beat)

    def status(self, state: str = "running", reason: str = "", **jobs: JobState) -> None:
        said = Status(state=state, reason=reason, beat=self.beat, uptime_s=self.beat, jobs=jobs)  # type: ignore[arg-type]
        self.shell.files[self.path("status.json")] = said.model_dump_json().encode()

    def tell(self, *events: AnyEvent) -> None:
        log = self.path("events.jsonl")
        self.shell.files[log] = self.shell.files.get(log, b"") + b"".join(map(dump_event, events))

    def commit(self, name: str, role: str, step: int, content: bytes | None = None, *, final: bool = False, job: str = "lisa") -> Committed:
        content = content if content is not None else PNG if role == "sample" else safetensors(step)
        path = f"jobs/{job}/out/{name}"
        event = Committed(
            at_s=1, job=job, path=path, role=role, step=step, size=len(content), final=final,  # type: ignore[arg-type]
            sha256=hashlib.sha256(content).hexdigest(),
        )  # fmt: skip
        self.shell.files[self.path(path)] = content
        self.tell(event)
        return event

    def end(self, reason: str = "done", **jobs: JobState) -> None:
        self.beat += 1
        self.alive = False
        self.status("ended", reason, **jobs)

    def home(self) -> list[str]:
        jobs = self.folder.path / "jobs"
        return sorted(p.relative_to(jobs).as_posix() for p in jobs.rglob("*") if p.is_file()) if jobs.exists() else []

    def begin(self) -> None:
        self.step()
        start(self.trip, self.machine, PYTHON)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "runs" / "autumn-1")


def stops(world: World) -> int:
    return world.shell.commands.count(commands.stop(world.order.root))


def starts(world: World) -> int:
    return world.shell.commands.count(commands.start(world.order.root, PYTHON))


# -- the plain way ---------------------------------------------------------------------------------


def test_a_session_is_watched_to_its_end_and_everything_comes_home(world: World):
    def tick(beat: int) -> None:
        if beat == 3:
            world.tell(Started(at_s=1, job="lisa", steps=10, images=3, epochs=1))
        if beat == 5:
            world.commit("checkpoints/lisa-000005.safetensors", "checkpoint", 5)
        if beat == 8:
            world.commit("lisa.safetensors", "adapter", 10, final=True)
            world.tell(Ended(at_s=9, job="lisa", state="done", step=10))
            world.end()

    world.tick = tick
    world.begin()
    reason = watch(world.trip, world.machine, PYTHON)
    pull(world.trip, world.machine)
    judge(world.trip, reason)
    assert world.home() == ["lisa/checkpoints/lisa-000005.safetensors", "lisa/lisa.safetensors"]
    assert [a.phase for a in world.ledger.book().attempts.values()] == [Phase.PULLING]
    assert starts(world) == 1
    assert stops(world) == 0
    assert "lisa: finished adapter is home" in world.view.said


def test_the_most_precious_comes_home_first(world: World):
    """Adapters, then the newest checkpoint, then samples: the link may die after any of them."""
    for step in (1, 2, 3):
        world.commit(f"samples/{step}.png", "sample", step)
        world.commit(f"checkpoints/lisa-{step}.safetensors", "checkpoint", step)
    world.commit("lisa-2.safetensors", "adapter", 2)
    world.commit("lisa.safetensors", "adapter", 3, final=True)
    world.begin()
    assert fetch_now(world.trip, world.machine) == 8
    assert [Path(p).stem for p in world.shell.fetched] == ["lisa", "lisa-2", "lisa-3", "lisa-2", "lisa-1", "3", "2", "1"]


def test_what_is_at_home_is_not_fetched_again(world: World):
    world.commit("lisa.safetensors", "adapter", 3, final=True)
    world.begin()
    assert fetch_now(world.trip, world.machine) == 1
    world.trip = world.a_trip()
    assert fetch_now(world.trip, world.machine) == 0


def test_every_byte_that_came_is_on_the_meter(world: World):
    world.commit("lisa.safetensors", "adapter", 3, final=True)
    world.begin()
    fetch_now(world.trip, world.machine)
    assert world.ledger.book().attempts[1].downloaded_bytes == len(safetensors())


# -- stopping --------------------------------------------------------------------------------------


def test_a_stop_is_asked_for_once_and_its_checkpoint_comes_home(world: World):
    def tick(beat: int) -> None:
        world.interrupts.wanted = beat >= 3
        if beat == 20:
            world.commit("checkpoints/lisa-000004.safetensors", "checkpoint", 4)
            world.end("stopped")

    world.tick = tick
    world.begin()
    reason = watch(world.trip, world.machine, PYTHON)
    pull(world.trip, world.machine)
    assert (reason, stops(world)) == ("stopped", 1)
    assert world.home() == ["lisa/checkpoints/lisa-000004.safetensors"]
    with pytest.raises(Interrupted, match="stopped as asked"):
        judge(world.trip, reason)


def test_lorry_stop_from_elsewhere_is_the_same(world: World):
    world.tick = lambda beat: world.folder.want_stop() if beat == 3 else world.end("stopped") if beat == 6 else None
    world.begin()
    assert watch(world.trip, world.machine, PYTHON) == "stopped"
    assert stops(world) == 1


def test_a_machine_that_does_not_stop_is_given_up_in_bounded_time(world: World):
    world.interrupts.wanted = True
    world.begin()
    with pytest.raises(Interrupted, match="good order"):
        watch(world.trip, world.machine, PYTHON)
    assert world.clock.passed_s <= STOP_PATIENCE_S + 5
    assert stops(world) == 1


def test_the_second_signal_ends_it_at_once(world: World):
    world.tick = lambda beat: setattr(world.interrupts, "urgent", beat >= 4)
    world.begin()
    with pytest.raises(Interrupted):
        watch(world.trip, world.machine, PYTHON)
    assert world.clock.passed_s < 10


# -- a supervisor that dies ------------------------------------------------------------------------


def test_a_supervisor_that_dies_is_started_again_but_not_for_ever(world: World):
    world.begin()
    world.alive = False
    with pytest.raises(MachineFailed, match=f"died {STARTS} times: the last words"):
        watch(world.trip, world.machine, PYTHON)
    assert starts(world) <= STARTS + 1
    assert world.clock.passed_s < 3600


def test_a_supervisor_that_died_once_goes_on(world: World):
    def answers() -> bytes:
        world.alive = True
        return b'{"pid": 7, "started": true}'

    def tick(beat: int) -> None:
        if beat == 5 and starts(world) == 1:
            world.alive = False
        if beat == 10:
            world.commit("lisa.safetensors", "adapter", 10, final=True)
            world.end()

    world.begin()
    world.answers_start, world.tick = answers, tick
    assert watch(world.trip, world.machine, PYTHON) == "done"
    assert starts(world) == 2
    assert any("died" in line for line in world.view.said)


def test_the_lifetime_is_not_renewed_by_a_new_start(world: World):
    world.begin()
    session = world.shell.files[world.path("session.json")]
    world.clock.passed_s += 1000
    start(world.trip, world.machine, PYTHON)
    assert world.shell.files[world.path("session.json")] == session
    assert world.ledger.book().attempts[1].lifetime_s == json.loads(session)["lifetime_s"]


def test_nothing_is_started_when_nothing_is_left_to_pay_with(tmp_path: Path):
    world = World(tmp_path / "runs" / "autumn-2")
    world.clock.passed_s += 5.00 / 0.408 * 3600
    with pytest.raises(OverBudget, match="nothing is left to train with"):
        start(world.trip, world.machine, PYTHON)
    assert starts(world) == 0


@pytest.mark.parametrize("there", [b"", b"{}", b"garbage", b'{"version":1,"run":"other","jobs":["a"],"lifetime_s":5}'])
def test_a_session_file_that_is_not_ours_is_a_reason_to_leave(world: World, there: bytes):
    world.shell.files[world.path("session.json")] = there
    with pytest.raises(IntegrityError, match="session file"):
        start(world.trip, world.machine, PYTHON)


# -- a machine that lies ---------------------------------------------------------------------------


def test_a_machine_that_says_done_without_an_adapter_is_not_believed(world: World):
    world.begin()
    world.end("done", lisa=JobState(state="done", step=100, steps=100))
    reason = watch(world.trip, world.machine, PYTHON)
    pull(world.trip, world.machine)
    with pytest.raises(ResultsIncomplete, match="no finished adapter came of: lisa") as caught:
        judge(world.trip, reason)
    assert caught.value.exit_code == 8


def test_a_machine_that_trains_for_ever_does_not_move_the_cap(world: World):
    """It beats, it tells of steps, and it never ends."""
    world.tick = lambda beat: world.tell(Step(at_s=beat, job="lisa", step=beat, steps=10**6, epoch=0, loss=1, lr=1, samples_per_s=1))
    world.begin()
    world.clock.passed_s += 43_700  # skip the most of it
    reason = watch(world.trip, world.machine, PYTHON)
    lifetime = world.ledger.book().attempts[1].lifetime_s
    assert reason == "deadline"
    assert world.clock.passed_s <= lifetime + OVERRUN_S + 10
    assert world.trip.spent_usd() < world.order.cap_usd
    with pytest.raises(OverCap):
        judge(world.trip, reason)


def test_a_failed_job_is_told_with_its_words(world: World):
    world.begin()
    world.tell(Ended(at_s=1, job="lisa", state="failed", step=3, message="CUDA out of memory", code="LRY-OOM"))
    world.end("failed")
    reason = watch(world.trip, world.machine, PYTHON)
    with pytest.raises(TrainingFailed, match="lisa: CUDA out of memory"):
        judge(world.trip, reason)


@pytest.mark.parametrize(
    "status", [b"", b"{", b"null", b"[]" * 1000, b'{"state":"ended"}', b"\xff" * 100, b'{"beat":' + b"9" * 5000 + b"}"]
)
def test_a_status_that_makes_no_sense_is_as_good_as_none(world: World, status: bytes):
    def tick(beat: int) -> None:
        if beat == 5:
            world.commit("lisa.safetensors", "adapter", 10, final=True)
            world.end()
        elif beat < 5:
            world.shell.files[world.path("status.json")] = status

    world.tick = tick
    world.begin()
    assert watch(world.trip, world.machine, PYTHON) == "done"


def test_events_without_end_are_a_reason_to_leave(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orchestrator.watch.EVENTS_MOST_BYTES", 10_000)
    world.shell.files[world.path("events.jsonl")] = b"x" * 20_000
    world.begin()
    with pytest.raises(IntegrityError, match="more than 10000 bytes of events"):
        watch(world.trip, world.machine, PYTHON)
    assert sum(file.stat().st_size for file in world.folder.path.glob("events-*")) <= 10_000


def test_a_damaged_adapter_ends_it_and_is_on_the_meter(world: World):
    event = world.commit("lisa.safetensors", "adapter", 3, final=True)
    world.shell.files[world.path(event.path)] = safetensors(99)
    world.begin()
    with pytest.raises(IntegrityError, match="damaged"):
        watch(world.trip, world.machine, PYTHON)
    assert world.home() == []
    assert world.ledger.book().attempts[1].downloaded_bytes > 0


def test_all_that_is_good_comes_home_before_a_damaged_file_ends_it(world: World):
    bad = world.commit("lisa.safetensors", "adapter", 3, final=True)
    world.shell.files[world.path(bad.path)] = safetensors(99)
    world.commit("checkpoints/lisa-000002.safetensors", "checkpoint", 2)
    world.commit("samples/1.png", "sample", 1)
    world.begin()
    with pytest.raises(IntegrityError, match="damaged"):
        watch(world.trip, world.machine, PYTHON)
    assert world.home() == ["lisa/checkpoints/lisa-000002.safetensors", "lisa/samples/1.png"]
    with pytest.raises(IntegrityError, match="damaged"):
        pull(world.trip, world.machine)


def test_another_machine_in_its_place_is_no_damaged_file(world: World):
    """A host key that changed ends it at once: nothing more is asked of that machine."""

    def changed(*_: object, **__: object) -> None:
        raise IntegrityError("the machine shows another host key than before")

    world.commit("lisa.safetensors", "adapter", 3, final=True)
    world.commit("samples/1.png", "sample", 1)
    world.shell.fetch = changed  # type: ignore[method-assign]
    world.begin()
    with pytest.raises(IntegrityError, match="host key"):
        watch(world.trip, world.machine, PYTHON)
    assert not any("comes home first" in line for line in world.view.said)


def test_a_session_that_stopped_without_being_asked_is_a_lost_machine(world: World):
    """A host that ends its container lets the trainer save; the user did not ask for it, so the run is not over."""
    world.begin()
    world.end("stopped")
    with pytest.raises(MachineFailed, match="without having been asked"):
        judge(world.trip, watch(world.trip, world.machine, PYTHON))


def test_that_a_stop_was_asked_for_outlives_the_process(world: World):
    world.interrupts.wanted = True
    world.tick = lambda beat: world.end("stopped") if beat == 6 else None
    world.begin()
    reason = watch(world.trip, world.machine, PYTHON)
    world.interrupts.wanted = False
    with pytest.raises(Interrupted, match="stopped as asked"):
        judge(world.a_trip(), reason)


# -- what went away --------------------------------------------------------------------------------


def test_a_checkpoint_that_made_room_for_a_newer_one_is_skipped(world: World):
    old = world.commit("checkpoints/lisa-000005.safetensors", "checkpoint", 5)
    del world.shell.files[world.path(old.path)]
    world.commit("checkpoints/lisa-000010.safetensors", "checkpoint", 10)
    world.begin()
    world.end("deadline")
    reason = watch(world.trip, world.machine, PYTHON)
    pull(world.trip, world.machine)
    assert reason == "deadline"
    assert world.home() == ["lisa/checkpoints/lisa-000010.safetensors"]


@pytest.mark.parametrize(
    ("name", "role", "final"), [("lisa.safetensors", "adapter", True), ("checkpoints/x.safetensors", "checkpoint", False)]
)
def test_what_is_dear_and_went_away_is_said_to_be_missing(world: World, name: str, role: str, final: bool):
    """A finished adapter; the newest checkpoint of a job that is not finished."""
    world.commit("checkpoints/older.safetensors", "checkpoint", 5)
    gone = world.commit(name, role, 10, final=final)
    del world.shell.files[world.path(gone.path)]
    world.begin()
    world.end("deadline")
    watch(world.trip, world.machine, PYTHON)
    with pytest.raises(ResultsIncomplete, match=name) as caught:
        pull(world.trip, world.machine)
    assert caught.value.exit_code == 8
    assert world.home() == ["lisa/checkpoints/older.safetensors"]


def test_a_sample_that_went_away_is_no_loss(world: World):
    gone = world.commit("samples/1.png", "sample", 1)
    del world.shell.files[world.path(gone.path)]
    world.commit("lisa.safetensors", "adapter", 10, final=True)
    world.begin()
    world.end()
    watch(world.trip, world.machine, PYTHON)
    pull(world.trip, world.machine)


def test_a_full_disk_here_is_waited_for_while_the_machine_keeps_the_file(world: World, monkeypatch: pytest.MonkeyPatch):
    real = fetch_module._move_in

    def full(part: Path, final: Path) -> None:
        if world.clock.passed_s < 100:
            with fetch_module.on_this_computer(final):
                raise OSError(28, "No space left on device")
        real(part, final)

    monkeypatch.setattr(fetch_module, "_move_in", full)
    world.commit("lisa.safetensors", "adapter", 3, final=True)
    world.begin()
    world.end()
    watch(world.trip, world.machine, PYTHON)
    pull(world.trip, world.machine)
    assert world.home() == ["lisa/lisa.safetensors"]
    assert 100 <= world.clock.passed_s <= 100 + 2 * LOCAL_PAUSE_S
    assert sum("No space left" in line for line in world.view.said) <= 2, "said once, not at every try"


def test_a_disk_that_stays_full_is_not_waited_for_beyond_the_cap(world: World, monkeypatch: pytest.MonkeyPatch):
    def full(_: Path, final: Path) -> None:
        with fetch_module.on_this_computer(final):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch_module, "_move_in", full)
    monkeypatch.setattr("orchestrator.watch.POLL_S", 120.0)
    world.commit("lisa.safetensors", "adapter", 3, final=True)
    world.begin()
    world.end()
    watch(world.trip, world.machine, PYTHON)
    with pytest.raises(ResultsIncomplete):
        pull(world.trip, world.machine)
    assert world.trip.spent_usd() <= world.order.cap_usd


# -- another process goes on -----------------------------------------------------------------------


def told(trip: Trip) -> object:
    return (trip.progress.jobs, trip.progress.committed, trip.progress.warnings)


def test_a_new_process_goes_on_after_a_file_torn_at_any_byte_without_loss_or_doubling(tmp_path: Path):
    world = World(tmp_path / "runs" / "autumn-1")
    world.tell(Started(at_s=1, job="lisa", steps=5, images=3, epochs=1), Warned(at_s=1, job="lisa", message="ü"))
    world.tell(*(Step(at_s=i, job="lisa", step=i, steps=5, epoch=0, loss=i, lr=1, samples_per_s=1) for i in (1, 2, 3)))
    world.begin()
    fetch_now(world.trip, world.machine)
    whole, expected = world.shell.files[world.path("events.jsonl")], told(world.trip)
    kept = world.folder.path / "events-1.jsonl"
    assert kept.read_bytes() == whole
    for cut in range(0, len(whole) + 1, 7):
        kept.write_bytes(whole[:cut])
        taken_up = world.a_trip()
        fetch_now(taken_up, world.machine)
        assert told(taken_up) == expected, cut
        assert kept.read_bytes() == whole


def test_watching_then_pulling_tells_nothing_twice(world: World):
    """Both read the same events; the second must not fold them in again."""
    world.tell(Started(at_s=1, job="lisa", steps=5, images=3, epochs=1), Warned(at_s=1, job="lisa", message="once"))
    world.commit("lisa.safetensors", "adapter", 10, final=True)
    world.begin()
    world.end()
    watch(world.trip, world.machine, PYTHON)
    late = dump_event(Warned(at_s=9, job="lisa", message="late"))
    world.shell.files[world.path("events.jsonl")] += late
    pull(world.trip, world.machine)
    assert world.trip.progress.warnings == ["lisa: once", "lisa: late"]


def test_an_event_that_was_read_in_two_parts_is_told_once(world: World):
    """The machine writes while we read."""
    event = dump_event(Warned(at_s=1, job="lisa", message="in two parts"))
    world.shell.files[world.path("events.jsonl")] = event[:10]

    def tick(beat: int) -> None:
        if beat == 4:
            world.shell.files[world.path("events.jsonl")] = event
            world.end()

    world.tick = tick
    world.begin()
    watch(world.trip, world.machine, PYTHON)
    pull(world.trip, world.machine)
    assert world.trip.progress.warnings == ["lisa: in two parts"]
