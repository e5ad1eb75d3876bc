"""The price rises while a machine trains, and queues turn out too long: what is said, what the machine is told, and what that costs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from fakes import PRICES, an_order, down
from test_watch import PYTHON, World

from orchestrator import commands
from orchestrator.budget import WAY_OUT_S
from orchestrator.cap.terms import LOOK_S, PAUSE_S, Terms, session_there
from orchestrator.closing import OverCap, judge
from orchestrator.machines import guard
from orchestrator.order import Order
from orchestrator.trip import Trip
from orchestrator.watch import pull, start, watch
from providers.sandbox.provider import Sandbox
from trainer.protocol import Ended, Session, Step


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "runs" / "autumn-1")


def dearer(world: World, times: str) -> None:
    """From now on the GPU costs so many times its offer."""
    plain, prices = type(world.cloud)._instance, replace(PRICES, gpu_usd_per_hour=PRICES.gpu_usd_per_hour * Decimal(times))
    world.cloud._instance = lambda meter: replace(plain(world.cloud, meter), prices=prices)  # type: ignore[method-assign]


def begun(world: World) -> Terms:
    world.begin()
    terms = Terms(trip=world.trip, machine=world.machine)
    terms.begin()
    terms.look()
    return terms


def told_lifetime(world: World) -> float:
    return session_there(world.trip, world.machine).lifetime_s


# -- the price -------------------------------------------------------------------------------------


def test_a_rise_is_said_metered_and_brings_the_deadline_nearer_on_the_machine_too(world: World):
    """The cap stays what it is, whatever the machine costs."""
    terms = begun(world)
    first, spent = told_lifetime(world), world.trip.spent_usd()
    world.clock.passed_s += 2 * LOOK_S
    dearer(world, "4")
    terms.look()
    (said,) = world.view.said
    assert "costs $1.608 an hour now, $0.408 before: the cap of $5.00 stays, training ends by 2026-01-01 03:0" in said
    assert told_lifetime(world) < first / 3
    assert world.trip.spent_usd() - spent == pytest.approx(Decimal("1.608") * 120 / 3600, abs=Decimal("0.0001")), "since the last look"
    attempt = world.ledger.book().attempts[1]
    assert attempt.lifetime_s == told_lifetime(world)
    ends = attempt.started_at + timedelta(seconds=attempt.lifetime_s + WAY_OUT_S)
    assert world.trip.spent_usd(ends) <= world.order.cap_usd
    world.clock.passed_s += LOOK_S
    terms.look()
    assert len(world.view.said) == 1, "once"


def test_a_rise_that_another_process_saw_first_is_said_all_the_same(world: World):
    """Whoever takes the run up looks at the machine before it looks at the deadline."""
    begun(world)
    world.clock.passed_s += 2 * LOOK_S
    dearer(world, "4")
    taken_up: Trip = world.a_trip()
    world.lease.heed(world.lease.describe())
    terms = Terms(trip=taken_up, machine=world.machine)
    terms.begin()
    terms.look()
    (said,) = world.view.said
    assert "costs $1.608 an hour now, $0.408 before" in said


def test_a_fall_gives_the_time_back_but_no_more_than_the_guard_was_made_for(world: World):
    terms, first = begun(world), told_lifetime(world)
    for times in ("4", "0.5"):
        dearer(world, times)
        world.clock.passed_s += LOOK_S
        terms.look()
    assert told_lifetime(world) == first
    assert len(world.view.said) == 2


def test_a_rise_beyond_what_the_cap_allows_ends_the_training_in_order(world: World):
    terms = begun(world)
    dearer(world, "1000")
    world.clock.passed_s += 10.0
    terms._look_at = 0.0
    terms.look()
    assert "nothing is left to train with, so it ends now, in good order" in world.view.said[0]
    assert told_lifetime(world) <= world.clock.passed_s + 1.0, "the machine's supervisor saves and ends"


def test_a_cloud_that_does_not_answer_keeps_nobody_waiting(world: World):
    terms = begun(world)
    world.cloud.plot.fail_call = lambda method, _: down() if method == "describe" else None
    asked = len(world.cloud.calls)
    for _ in range(int(LOOK_S + PAUSE_S) - 1):
        world.clock.passed_s += 1.0
        terms.look()
    assert len(world.cloud.calls) - asked == 1
    assert world.view.said == []


def test_more_traffic_than_planned_brings_the_deadline_nearer(world: World):
    terms, first = begun(world), told_lifetime(world)
    world.ledger.record("moved", attempt=1, downloaded=50 * 2**30)
    world.clock.passed_s += LOOK_S
    terms.look()
    assert "more was moved than was planned" in world.view.said[0]
    assert told_lifetime(world) == pytest.approx(first - 3600 * 50 * 0.02 / 0.408, abs=1.0)


# -- the queue -------------------------------------------------------------------------------------


class Three(World):
    """Three jobs of 1000 steps that train together; of a pass, each takes so many seconds."""

    def __init__(self, path: Path, *, step_s: float, max_hours: float) -> None:
        super().__init__(path, ("lisa", "anna", "forest-style"))
        self.step_s, self.at, self.left = step_s, 0.0, set[str]()
        (work,) = self.order.load.jobs
        load = replace(self.order.load, jobs=tuple(replace(work, name=name, steps=1000) for name in self.order.job_names))
        self.order: Order = an_order(self.folder, self.order.job_names, load=load, max_hours=max_hours)
        self.trip = self.a_trip()
        self.tick = lambda _: self.train()

    @property
    def taken(self) -> int:
        return min(int(self.at), 1000)

    def train(self) -> None:
        for name in self.order.job_names:
            if name not in self.left and [*commands.leave(self.order.root, name)] in self.shell.commands:
                self.left.add(name)
                self.commit(f"checkpoints/step{self.taken:06d}.safetensors", "checkpoint", self.taken, job=name)
                self.tell(Ended(at_s=self.clock.passed_s, job=name, state="stopped", step=self.taken))
        riders = [name for name in self.order.job_names if name not in self.left]
        self.at += 1.0 / (self.step_s * len(riders))
        for name in riders:
            self.tell(Step(at_s=self.clock.passed_s, job=name, step=self.taken, steps=1000, epoch=0, loss=1.0, lr=1.0, samples_per_s=1.0))
        if self.taken >= 1000:
            for name in riders:
                self.commit(f"{name}.safetensors", "adapter", 1000, final=True, job=name)
                self.tell(Ended(at_s=self.clock.passed_s, job=name, state="done", step=1000))
            self.tick = lambda _: None
            self.end()


def left_alone(world: World) -> list[str]:
    return [argv[-1].split("/")[-2] for argv in world.shell.commands if argv[0] == "touch"]


def test_a_queue_that_no_longer_fits_is_cut_from_its_end_with_a_word_and_the_others_finish(tmp_path: Path):
    """All three would end half done. The last is left out, its checkpoint comes home, and the run ends with 5."""
    world = Three(tmp_path / "runs" / "autumn-1", step_s=0.5, max_hours=(1050 + WAY_OUT_S) / 3600)
    world.begin()
    reason = watch(world.trip, world.machine, PYTHON)
    pull(world.trip, world.machine)
    assert left_alone(world) == ["forest-style"]
    (word,) = [said for said in world.view.said if "more minutes than the cap leaves" in said]
    assert re.match(r"forest-style needs [78] more minutes than the cap leaves; it is left out, so that what stands before it", word)
    budget = world.trip.ledger.entries[[entry.kind for entry in world.trip.ledger.entries].index("cut")].data["budget_usd"]
    assert 5 < budget <= 6, "the cap, and what a machine like this takes at worst"
    assert f"`lorry resume autumn-1 --budget {budget}` trains it" in word
    assert {"anna/anna.safetensors", "lisa/lisa.safetensors"} < set(world.home())
    assert any(name.startswith("forest-style/checkpoints/") for name in world.home())
    assert world.ledger.book().cut == ("forest-style",)
    assert world.trip.to_train() == []
    with pytest.raises(OverCap, match="the cap did not last for forest-style") as caught:
        judge(world.trip, reason)
    assert caught.value.exit_code == 5
    assert caught.value.hint == f"go on with: lorry resume autumn-1 --budget {budget}"


def test_jobs_that_all_fit_are_left_in_peace(tmp_path: Path):
    world = Three(tmp_path / "runs" / "autumn-1", step_s=0.5, max_hours=1.0)
    world.begin()
    watch(world.trip, world.machine, PYTHON)
    pull(world.trip, world.machine)
    assert left_alone(world) == []
    assert world.trip.todo() == []


def test_where_not_even_the_first_would_finish_all_go_on_to_the_deadline(tmp_path: Path):
    world = Three(tmp_path / "runs" / "autumn-1", step_s=50.0, max_hours=(1050 + WAY_OUT_S) / 3600)
    world.begin()
    assert watch(world.trip, world.machine, PYTHON) == "deadline"
    assert left_alone(world) == []


def test_a_process_that_takes_the_run_up_tells_the_machine_again_and_resume_forgets_it(tmp_path: Path):
    """Killed between the book and the machine: the book counts."""
    world = Three(tmp_path / "runs" / "autumn-1", step_s=0.5, max_hours=1.0)
    world.begin()
    world.ledger.record("cut", attempt=1, jobs=["forest-style"])
    world.ledger.record("lifetime", attempt=1, lifetime_s=77.5)
    taken_up: Trip = world.a_trip()
    Terms(trip=taken_up, machine=world.machine).begin()
    assert left_alone(world) == ["forest-style"]
    assert told_lifetime(world) == 77.5
    assert taken_up.to_train() == ["lisa", "anna"]
    start(taken_up, world.machine, PYTHON)
    assert world.ledger.book().attempts[1].lifetime_s == 77.5
    world.ledger.record("resumed")
    assert taken_up.to_train() == ["lisa", "anna", "forest-style"]


def test_a_user_who_stops_the_run_hears_of_no_queue(tmp_path: Path):
    world = Three(tmp_path / "runs" / "autumn-1", step_s=0.5, max_hours=(1050 + WAY_OUT_S) / 3600)
    world.interrupts.wanted = True
    world.begin()
    terms = Terms(trip=world.trip, machine=world.machine)
    terms.begin()
    for _ in range(60):
        world.clock.sleep(1.0)
        terms.look()
    assert left_alone(world) == []


def test_the_session_that_is_sent_again_differs_in_nothing_but_its_lifetime(world: World):
    terms = begun(world)
    path = world.path("session.json")
    before = json.loads(world.shell.files[path])
    dearer(world, "2")
    world.clock.passed_s += LOOK_S
    terms.look()
    after = json.loads(world.shell.files[path])
    assert before | {"lifetime_s": 0} == after | {"lifetime_s": 0}
    assert Session.model_validate(after).lifetime_s < before["lifetime_s"]


# -- the guard -------------------------------------------------------------------------------------


def test_a_guard_that_stops_while_the_machine_trains_is_told_once(world: World, monkeypatch: pytest.MonkeyPatch):
    """Nothing else would show it, until this computer is lost."""
    monkeypatch.setattr(world.cloud, "self_destroy", Sandbox.self_destroy)
    path, beat = f"{guard.FOLDER}/guard.json", 0

    def beats(at: str) -> None:
        nonlocal beat
        if at == path and world.clock.passed_s < 3 * LOOK_S:
            beat += 60
            told = {"beat": beat, "proven": True, "left": 9.0, "why": "", "serial": 1}
            world.shell.files[path] = json.dumps(told).encode()

    world.shell.before_read = beats
    terms = begun(world)
    said = []
    for _ in range(8):
        world.clock.passed_s += LOOK_S
        terms.look()
        said.append(sum("own guard has stopped" in line for line in world.view.said))
    assert said == [0, 0, 1, 1, 1, 1, 1, 1]
