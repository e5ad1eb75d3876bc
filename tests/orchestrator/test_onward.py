"""From one machine to the next: who is believed when a machine is silent, what another may cost, and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import FakeClock, FakeCloud, SilentView, an_order, down, offer, safetensors, spec, write

from orchestrator.budget import WAY_OUT_S
from orchestrator.errors import Interrupted, MachineFailed, NoOffer, OverBudget, TrainingFailed
from orchestrator.home import RunFolder
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.lifecycle import Signal
from orchestrator.machines.onward import LOOKS, SEEK_AGAIN_S, SEEK_S, NotWorthIt, leave_behind, onward, stand_by
from orchestrator.machines.reaching import MISSED_LOOKS, Machine
from orchestrator.machines.recovery import FRUITLESS, LONGEST_PATIENCE_S, SHORTEST_PATIENCE_S
from orchestrator.plan import Plan, make_plan
from orchestrator.progress import Progress
from orchestrator.rent import rented
from orchestrator.trip import Tools, Trip
from providers.base import Instance, InstanceStatus, Prices, SSHEndpoint

BOOT_S = 240.0


class Cloud(FakeCloud):
    """Says of its machine what the test wants."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock, offers=[offer(name) for name in ("o1", "o2", "o3", "o4", "o5")])
        self.told: list[InstanceStatus] = []
        """What describes answer, one each; running when it is used up."""
        self.text = ""
        self.reachable = True

    def describe(self, instance_id: str) -> Instance:
        if not self.reachable:
            raise down()
        seen = super().describe(instance_id)
        return replace(seen, status=self.told.pop(0) if self.told else seen.status, status_text=self.text)


class World:
    """A run whose machine trains, and a link to it that is up or down."""

    def __init__(self, path: Path, **order: object) -> None:
        path.mkdir(parents=True)
        self.clock = FakeClock()
        self.cloud = Cloud(self.clock)
        self.folder = RunFolder(path)
        self.order = an_order(self.folder, **{"unguarded": True} | order)  # type: ignore[arg-type]
        self.view = SilentView()
        self.interrupts = SimpleNamespace(wanted=False, urgent=False, check_urgent=lambda: None)
        self.ledger = Ledger(path / "ledger.jsonl", self.clock)
        self.ledger.record("opened", cap_usd=self.order.cap_usd, run=self.order.run)
        tools = Tools(clock=self.clock, view=self.view, interrupts=self.interrupts, provider=lambda _: self.cloud)  # type: ignore[arg-type, return-value]
        progress = Progress(self.order.job_names)
        self.trip = Trip(order=self.order, folder=self.folder, ledger=self.ledger, tools=tools, progress=progress, candidates=tuple)
        self.shell = SimpleNamespace(down_s=0.0, endpoint=SSHEndpoint(host="h", port=1, user="u"))

    def rent(self, name: str = "o1", *, started: bool = True) -> Lease:
        """A machine that trains since `BOOT_S` after it was asked for."""
        label = f"lorry-{self.order.run}-a{self.ledger.book().next_attempt}"
        lease = Lease.take(self.cloud, offer(name), spec(label), ledger=self.ledger, clock=self.clock)
        self.ledger.record(Signal.REACHABLE, attempt=lease.number)
        self.ledger.record(Signal.SHIPPED, attempt=lease.number)
        self.clock.passed_s += BOOT_S
        if started:
            self.ledger.record(Signal.STARTED, attempt=lease.number, lifetime_s=3600.0, python="p")
        stand_by(self.trip, Machine(lease=lease, shell=self.shell))  # type: ignore[arg-type]
        return lease

    def lose(self, name: str, *, step: int = 0) -> None:
        """One that brings a checkpoint home and is gone."""
        lease = self.rent(name)
        if step:
            self.ledger.record("fetched", attempt=lease.number, job="lisa", role="checkpoint", step=step, final=False)
        lease.release("it is stopped: outbid")

    def silence(self, seconds: float, *, asleep_s: float = 0.0) -> None:
        """The link is down for so long; a try a second, as a shell makes them. After the third this computer may sleep."""
        begun, tries = self.clock.passed_s, 0
        while self.clock.passed_s < begun + seconds:
            self.shell.down_s = self.clock.passed_s - begun
            self.shell.give_up()
            tries += 1
            self.clock.passed_s += 1.0 + (asleep_s if tries == 3 else 0.0)
        self.shell.down_s = 0.0
        self.shell.came_back()

    def plan(self) -> Plan:
        return make_plan(self.order.load, self.cloud.market, self.order.requirements, cap_usd=self.order.cap_usd)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "runs" / "autumn-1")


# -- a machine that is silent ----------------------------------------------------------------------


@pytest.mark.parametrize("status", [InstanceStatus.STOPPED, InstanceStatus.GONE])
def test_a_machine_that_its_cloud_calls_ended_is_lost_at_once(world: World, status: InstanceStatus):
    world.rent()
    world.cloud.told, world.cloud.text = [status] * LOOKS, "outbid"
    with pytest.raises(MachineFailed, match=f"it is {status}: outbid"):
        world.silence(60)
    assert world.clock.passed_s < BOOT_S + 10


def test_a_cloud_that_lies_now_and_then_loses_no_machine(world: World):
    world.rent()
    world.cloud.told = ([InstanceStatus.GONE] * (LOOKS - 1) + [InstanceStatus.RUNNING]) * 8
    world.silence(60)


@pytest.mark.parametrize("status", [InstanceStatus.RUNNING, InstanceStatus.UNKNOWN])
def test_patience_with_a_machine_that_may_be_alive_is_what_another_would_cost(world: World, status: InstanceStatus):
    """Boot and set-up took four minutes; a checkpoint came home a minute before it fell silent: five minutes and what goes by."""
    lease = world.rent()
    world.ledger.record("fetched", attempt=lease.number, job="lisa", role="checkpoint", step=5, final=False)
    world.clock.passed_s += 60
    world.cloud.told = [status] * 100_000
    begun = world.clock.passed_s
    world.silence(BOOT_S)
    with pytest.raises(MachineFailed, match=rf"has not answered for .* and fake calls it {status}"):
        world.silence(2 * LONGEST_PATIENCE_S)
    patience = BOOT_S + 60 + BOOT_S  # the first silence was training too, of which nothing came home
    assert begun + BOOT_S + patience <= world.clock.passed_s <= begun + BOOT_S + patience + 5


def test_while_this_computer_slept_the_machine_trained_and_is_waited_for_so_much_longer(world: World):
    """The line was down when it fell asleep. Twenty minutes later there are twenty minutes more to lose."""
    world.rent()
    begun, asleep_s = world.clock.passed_s, 1200.0
    with pytest.raises(MachineFailed, match="has not answered"):
        world.silence(2 * asleep_s + LONGEST_PATIENCE_S, asleep_s=asleep_s)
    assert world.clock.passed_s - begun == pytest.approx(asleep_s + BOOT_S + asleep_s, abs=15)


def test_a_machine_that_falls_silent_before_it_trains_is_not_waited_for_for_long(world: World):
    world.rent(started=False)
    begun = world.clock.passed_s
    with pytest.raises(MachineFailed, match="has not answered"):
        world.silence(LONGEST_PATIENCE_S)
    assert BOOT_S <= world.clock.passed_s - begun <= BOOT_S + 5, "as long as it has cost so far"


def test_a_machine_of_ones_own_costs_nothing_to_wait_for(world: World):
    lease = world.rent()
    lease.prices = Prices(gpu_usd_per_hour=Decimal(0))
    world.silence(LONGEST_PATIENCE_S - 5)


def test_who_stops_while_the_next_machine_boots_is_told_that_nothing_is_lost(world: World):
    world.interrupts.wanted = True
    with pytest.raises(Interrupted, match="before training began"):
        world.trip.check_boot()
    world.lose("o1", step=5)
    with pytest.raises(Interrupted, match="what is at home is kept") as caught:
        world.trip.check_boot()
    assert f"lorry resume {world.order.run}" in caught.value.hint


def test_when_this_computer_is_offline_itself_the_machine_is_not_blamed(world: World):
    """Neither of the two answers for hours: the machine trains on."""
    world.rent()
    world.cloud.reachable = False
    world.silence(3 * 3600)
    assert any("neither the machine nor fake answers" in line for line in world.view.said)
    assert any("answers again" in line for line in world.view.said)
    assert len(world.view.said) == 2, "said once, not at every try"
    world.cloud.reachable = True
    world.silence(SHORTEST_PATIENCE_S)


def test_the_cap_ends_the_waiting(world: World):
    world.rent()
    world.cloud.reachable = False
    with pytest.raises(OverBudget):
        world.silence(24 * 3600)
    assert world.trip.spent_usd() <= world.order.cap_usd


def test_a_user_who_wants_to_stop_waits_no_longer_than_that_takes(world: World):
    world.rent()
    world.interrupts.wanted = True
    with pytest.raises(Interrupted):
        world.silence(600)
    assert world.clock.passed_s <= BOOT_S + SHORTEST_PATIENCE_S + 5


def test_a_machine_that_comes_back_elsewhere_is_looked_for_there(world: World):
    world.rent()
    world.cloud.ssh = SSHEndpoint(host="h", port=2, user="u")
    world.silence(20)
    assert world.shell.endpoint == world.cloud.ssh


def test_a_hiccup_is_not_worth_a_line(world: World):
    world.rent()
    world.silence(5)
    assert world.view.said == []


def test_who_takes_up_a_run_whose_machine_was_outbid_meanwhile_destroys_it_first(world: World):
    """A stopped machine bills its disk; the run is not decided, so it goes on."""
    world.rent()
    world.cloud.told, world.cloud.text = [InstanceStatus.STOPPED] * 10, "outbid"
    with pytest.raises(MachineFailed, match="does not answer any more: it is stopped: outbid"), rented(world.trip):
        pytest.fail("there is no machine to hold")
    assert world.cloud.billing() == []
    assert world.ledger.book().attempts[1].outcome is None
    assert [one.attempt for one in world.trip.lost()] == [1]


def test_who_takes_up_a_run_while_offline_waits_for_the_cloud(world: World):
    """Longer than any machine may take to boot: nobody can be asked, and the machine trains on."""
    world.rent()
    world.cloud.reachable = False
    world.cloud.told = [InstanceStatus.STOPPED] * MISSED_LOOKS

    def back(_: float) -> None:
        world.cloud.reachable = world.clock.passed_s > BOOT_S + 3 * world.order.boot_timeout_s

    world.clock.on_sleep = back
    with pytest.raises(MachineFailed, match="it is stopped"), rented(world.trip):
        pytest.fail("there is no machine to hold")
    assert world.clock.passed_s > BOOT_S + 3 * world.order.boot_timeout_s


# -- the next machine ------------------------------------------------------------------------------


def test_the_first_machines_are_those_of_the_plan_that_was_confirmed(world: World):
    plan = world.plan()
    assert onward(world.trip, plan) == plan.candidates
    assert world.cloud.calls == [], "nobody was asked again"


def test_the_next_machine_is_another_for_what_is_left_and_within_the_same_cap(world: World):
    """Ninety of a hundred steps are at home: the rest costs less than the whole, and the machine that was lost is passed over."""
    plan = world.plan()
    world.lose("o1", step=90)
    candidates = onward(world.trip, plan)
    assert [c.offer.id for c in candidates] == ["o2", "o3", "o4", "o5"]
    assert candidates[0].estimate.phases["steps"].p50 == pytest.approx(plan.best.estimate.phases["steps"].p50 / 10)
    (line,) = [line for line in world.view.said if line.startswith("going on")]
    assert line.startswith("going on from step 90 of 100 on another machine: $0.0")
    assert " of $5.00 is spent, what is left is estimated at $" in line


def test_later_machines_must_be_able_to_end_themselves_too(tmp_path: Path):
    world = World(tmp_path / "runs" / "autumn-1", unguarded=False)
    world.lose("o1", step=90)
    with pytest.raises(NoOffer, match="cannot end themselves"):
        onward(world.trip)


def test_machines_that_bring_nothing_end_it_and_say_so(world: World):
    for name in ("o1", "o2", "o3")[:FRUITLESS]:
        world.lose(name)
    with pytest.raises(
        NotWorthIt, match=r"3 machines in a row were lost before anything new had come home; the last one: it is stopped"
    ) as it:
        onward(world.trip)
    assert it.value.exit_code == 6
    assert f"lorry resume {world.order.run}" in it.value.hint
    world.ledger.record("resumed")
    assert onward(world.trip), "the user has said go again"


def test_from_bids_it_turns_to_machines_that_nobody_can_outbid(tmp_path: Path):
    wanted = replace(an_order(RunFolder(tmp_path)).requirements, interruptible=True)
    world = World(tmp_path / "runs" / "autumn-1", requirements=wanted)
    world.cloud.market = [offer("bid", interruptible=True, machine_id="mb"), offer("steady", machine_id="ms")]
    for name in ("o1", "o2"):
        world.lose(name)
    assert [c.offer.id for c in onward(world.trip)] == ["steady"]
    assert any("only machines that nobody can outbid" in line for line in world.view.said)


def test_a_cap_that_does_not_cover_what_is_left_says_that_the_machine_was_lost(tmp_path: Path):
    world = World(tmp_path / "runs" / "autumn-1", cap_usd=Decimal("0.20"))
    lease = world.rent("o1")
    world.clock.passed_s += 1200
    lease.release("it is stopped: outbid")
    with pytest.raises(OverBudget, match=r"the machine was lost, and no other can be had for what is left: .*is spent") as caught:
        onward(world.trip)
    assert "--budget" in caught.value.hint


def test_no_machine_is_rented_that_would_have_no_time_to_train(tmp_path: Path):
    """`max_hours` counts on: booting and setting up would take what is left of it."""
    world = World(tmp_path / "run", max_hours=0.5)
    world.lose("o1", step=5)
    assert onward(world.trip), "half an hour is enough for another"
    world.clock.passed_s = 0.5 * 3600 - WAY_OUT_S - 60
    with pytest.raises(OverBudget, match="before another could train") as caught:
        onward(world.trip)
    assert "lorry resume" in caught.value.hint


def test_a_market_with_nothing_but_the_lost_machine_ends_it(world: World):
    world.cloud.market = [offer("o1")]
    world.lose("o1", step=50)
    begun = world.clock.passed_s
    with pytest.raises(NoOffer, match="the machine was lost"):
        onward(world.trip)
    assert SEEK_S <= world.clock.passed_s - begun <= SEEK_S + SEEK_AGAIN_S, "it was asked again for a while"


@pytest.mark.parametrize("trouble", ["nothing for rent", "a cloud that is down"])
def test_a_market_that_has_nothing_for_a_moment_is_asked_again(world: World, trouble: str):
    offers = world.cloud.market
    world.lose("o1", step=50)
    begun = world.clock.passed_s
    if trouble == "nothing for rent":
        world.cloud.market = []
    else:
        world.cloud.plot.fail_call = lambda name, _: down() if name == "offers" and world.clock.passed_s < begun + 100 else None

    def back(_: float) -> None:
        if world.clock.passed_s >= begun + 100:
            world.cloud.market = offers

    world.clock.on_sleep = back
    assert [c.offer.id for c in onward(world.trip)] == ["o2", "o3", "o4", "o5"]
    assert 100 <= world.clock.passed_s - begun <= 100 + SEEK_AGAIN_S


def test_a_stop_while_the_market_is_asked_again_is_heard(world: World):
    world.cloud.market = []
    world.lose("o1", step=50)
    world.interrupts.wanted = True
    with pytest.raises(Interrupted):
        onward(world.trip)


def test_nothing_is_rented_for_what_is_at_home(world: World):
    world.lose("o1")
    write(world.folder.job("lisa") / "lisa.safetensors", safetensors())
    assert onward(world.trip) == ()


def test_a_job_that_failed_by_itself_is_not_begun_again_elsewhere(tmp_path: Path):
    world = World(tmp_path / "runs" / "autumn-1", jobs=("lisa", "forest"))
    world.trip.progress.jobs["lisa"].state = "failed"
    world.trip.progress.jobs["lisa"].message = "CUDA out of memory"
    assert world.trip.to_train() == ["forest"]
    write(world.folder.job("forest") / "forest.safetensors", safetensors())
    world.lose("o1")
    with pytest.raises(TrainingFailed, match="CUDA out of memory"):
        onward(world.trip)


def test_what_only_the_lost_machine_had_is_forgotten(world: World):
    part = write(world.folder.path / "staging" / "abc.part", b"half")
    world.trip.progress.committed["jobs/lisa/out/x"] = SimpleNamespace()  # type: ignore[assignment]
    world.trip.progress.jobs["lisa"].state = "running"
    leave_behind(world.trip)
    assert not part.exists()
    assert world.trip.progress.committed == {}
    assert world.trip.progress.jobs["lisa"].state == "queued"
