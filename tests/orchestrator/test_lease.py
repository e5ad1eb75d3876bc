"""Leaving a lease always stops the bill. The checker reads the cloud's own billing log and nothing else."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from fakes import PRICES, FakeClock, FakeCloud, Plot, down, offer, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import lease as lease_module
from orchestrator import ledger as ledger_module
from orchestrator.errors import MayStillBill
from orchestrator.lease import GRACE_S, PATIENCE_S, Lease, NeverCreated, WrongAccount, destroy, label_trouble, usage_of
from orchestrator.ledger import Entry, Ledger, to_line
from orchestrator.lifecycle import Phase, Signal
from providers.base import Account, Instance, InstanceStatus
from providers.errors import AuthError, NoCapacity, RateLimited, Refused, Unavailable, UnexpectedResponse


class Ground:
    """One run's ledger, one clock, one cloud."""

    def __init__(self, folder: Path, plot: Plot | None = None) -> None:
        self.clock = FakeClock()
        self.cloud = FakeCloud(self.clock, plot)
        self.path = folder / "ledger.jsonl"
        self.ledger = Ledger(self.path, self.clock)

    def take(self) -> Lease:
        return Lease.take(self.cloud, offer(), spec(), ledger=self.ledger, clock=self.clock)

    def another_process(self) -> Ledger:
        """The book as a new process finds it."""
        self.ledger = Ledger(self.path, self.clock)
        return self.ledger

    def clean_up(self) -> None:
        """What the next command does with what it finds open."""
        for attempt in self.another_process().book().open_attempts:
            try:
                Lease.adopt(self.cloud, attempt, ledger=self.ledger, clock=self.clock).release("found")
            except NeverCreated:
                continue

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.ledger.entries]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module.os, "fsync", lambda _: None)  # thousands of them


def assert_truthful(ground: Ground, raised: BaseException | None) -> None:
    """Nothing bills, or the user was told (exit 10) and the book keeps the machine open for the next command."""
    if ground.cloud.billing():
        assert isinstance(raised, MayStillBill), f"{raised!r} while {ground.cloud.billing()} bills"
        assert raised.exit_code == 10
        assert ground.another_process().book().open_attempts
    assert ground.cloud.creates <= 1


# -- the plain way ---------------------------------------------------------------------------------


def test_a_lease_that_goes_well_tells_its_life_in_order(tmp_path: Path):
    ground = Ground(tmp_path)
    with ground.take() as lease:
        assert lease.describe().id == lease.instance_ids[0]
        assert len(ground.cloud.billing()) == 1
    assert ground.cloud.billing() == []
    assert ground.kinds() == [Signal.INTENT, Signal.LAUNCHED, Signal.GIVE_UP, Signal.GONE]


@pytest.mark.parametrize("boom", [KeyboardInterrupt, SystemExit, RuntimeError, MemoryError, OSError, down])
def test_leaving_a_lease_always_stops_the_bill(tmp_path: Path, boom: Callable[[], BaseException]):
    ground = Ground(tmp_path)
    with pytest.raises(type(boom())), ground.take():
        raise boom()
    assert ground.cloud.billing() == []


def test_the_intent_is_on_the_disk_before_the_create_is_sent(tmp_path: Path):
    ground = Ground(tmp_path)
    seen: list[list[Entry]] = []

    def look(method: str, _: int) -> None:
        if method == "launch":
            seen.append(ledger_module.read_entries(ground.path.read_bytes()))

    ground.cloud.plot.fail_call = look
    ground.take().release("done")
    assert [e.kind for e in seen[0]] == [Signal.INTENT]
    assert seen[0][0].data["label"] == spec().label


def test_releasing_twice_asks_nothing_the_second_time(tmp_path: Path):
    ground = Ground(tmp_path)
    lease = ground.take()
    lease.release("done")
    calls = len(ground.cloud.calls)
    lease.release("done")
    assert len(ground.cloud.calls) == calls


# -- creates in doubt ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [NoCapacity("sold"), Refused("no credit"), AuthError("bad key"), RateLimited("slow down")])
def test_a_certain_refusal_ends_at_once_and_costs_nothing(tmp_path: Path, error: Exception):
    ground = Ground(tmp_path, Plot(launch=error))
    with pytest.raises(type(error)):
        ground.take()
    attempt = ground.ledger.book().attempts[1]
    assert (attempt.phase, ground.clock.passed_s, ground.cloud.calls) == (Phase.GONE, 0.0, ["account", "launch"])
    assert usage_of(attempt).usd(ground.clock.now()) == 0


@pytest.mark.parametrize("error", [NoCapacity("sold"), Unavailable("lost"), UnexpectedResponse("odd"), RuntimeError("bug")])
def test_a_refusal_that_names_an_id_rented_that_machine(tmp_path: Path, error: Exception):
    ground = Ground(tmp_path, Plot(launch=error, rents_all_the_same=True, ids_in_error=True))
    with pytest.raises(type(error)):
        ground.take()
    assert ground.cloud.billing() == []


@pytest.mark.parametrize("lands_after_s", [0.0, 1.0, 30.0, 119.0, GRACE_S - 1])
@pytest.mark.parametrize("lag_s", [0.0, 20.0])
def test_a_create_whose_answer_was_lost_is_found_by_its_label_however_late_it_lands(tmp_path: Path, lands_after_s: float, lag_s: float):
    """Anywhere inside the grace window, counting what the listing lags behind."""
    lands = min(lands_after_s, GRACE_S - 1 - lag_s)
    ground = Ground(tmp_path, Plot(launch=down(), rents_all_the_same=True, lands_after_s=lands, listing_lags_s=lag_s))
    with pytest.raises(Unavailable):
        ground.take()
    assert ground.cloud.billing() == []
    assert ground.cloud.creates == 1


def test_a_computer_that_sleeps_in_the_middle_of_a_look_does_not_believe_what_it_saw_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The create lands while the laptop sleeps: the window is over when it wakes, and its last listing is from before."""
    ground = Ground(tmp_path, Plot(launch=down(), rents_all_the_same=True, lands_after_s=100.0))
    with monkeypatch.context() as patch:
        patch.setattr(Lease, "_undo", lambda *_: None)  # it was killed
        with pytest.raises(Unavailable):
            ground.take()
    attempt = ground.another_process().book().current
    assert attempt is not None

    def asleep() -> Account:
        if ground.clock.passed_s < GRACE_S:
            ground.clock.sleep(8 * 3600.0)
        return Account(name="fake")

    monkeypatch.setattr(ground.cloud, "account", asleep)
    Lease.adopt(ground.cloud, attempt, ledger=ground.ledger, clock=ground.clock).release("found")
    assert ground.cloud.billing() == []
    assert ground.kinds()[-1] == Signal.GONE


def test_nor_of_a_machine_that_was_too_young_to_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ground = Ground(tmp_path)
    lease = ground.take()
    ground.cloud.bill[0].from_s = ground.clock.passed_s + 100.0
    looks = 0

    def asleep() -> Account:
        nonlocal looks
        looks += 1
        if looks == 2:
            ground.clock.sleep(8 * 3600.0)
        return Account(name="fake")

    monkeypatch.setattr(ground.cloud, "account", asleep)
    lease.release("enough")
    assert ground.cloud.billing() == []


def test_a_create_that_never_landed_is_given_up_only_after_the_whole_window(tmp_path: Path):
    ground = Ground(tmp_path, Plot(launch=down()))
    with pytest.raises(Unavailable):
        ground.take()
    assert ground.clock.passed_s >= GRACE_S
    assert ground.ledger.book().open_attempts == ()


# -- teardowns that do not go well -----------------------------------------------------------------


def test_a_terminate_that_is_ignored_is_sent_until_it_works(tmp_path: Path):
    ground = Ground(tmp_path, Plot(deaf_terminates=20))
    ground.take().release("done")
    assert ground.cloud.billing() == []
    assert ground.cloud.calls.count("terminate") == 21


def test_a_machine_that_cannot_be_seen_gone_is_said_so_with_exit_10(tmp_path: Path):
    ground = Ground(tmp_path, Plot(deaf_terminates=10**6))
    lease = ground.take()
    with pytest.raises(MayStillBill) as caught:
        lease.release("done")
    assert caught.value.exit_code == 10
    assert lease.instance_ids[0] in str(caught.value)
    assert ground.cloud.console_url in caught.value.hint
    assert ground.clock.passed_s <= PATIENCE_S + 10
    assert_truthful(ground, caught.value)


def test_a_dead_machine_that_is_still_listed_is_not_called_gone(tmp_path: Path):
    ground = Ground(tmp_path, Plot(listing_lags_s=60.0))
    lease = ground.take()
    ground.clock.passed_s = 100.0
    lease.release("done")
    assert ground.clock.passed_s >= 160.0


def test_a_second_machine_under_the_same_label_is_ended_too(tmp_path: Path):
    ground = Ground(tmp_path)
    lease = ground.take()
    ground.cloud.launch(offer(), spec())
    lease.release("done")
    assert ground.cloud.billing() == []


def test_trouble_with_one_machine_does_not_spare_the_other():
    clock = FakeClock()
    cloud = FakeCloud(clock)
    for _ in range(2):
        cloud.launch(offer(), spec())
    real = cloud.describe

    def describe(instance_id: str) -> object:
        if instance_id == "i-0":
            raise UnexpectedResponse("this one cannot be read")
        return real(instance_id)

    cloud.describe = describe  # type: ignore[method-assign, assignment]
    with pytest.raises(MayStillBill):
        destroy(cloud, ["i-0", "i-1"], "l", clock)
    assert cloud.billing() == [], "both were asked to end; one could only not be seen"


def test_another_label_is_never_touched(tmp_path: Path):
    ground = Ground(tmp_path)
    ground.cloud.launch(offer(), spec("somebody-elses"))
    ground.cloud.calls.clear()
    ground.take().release("done")
    assert [m.label for m in ground.cloud.billing()] == ["somebody-elses"]


def two_intents(ground: Ground) -> None:
    """Two machines of a run were asked for when lorry was killed: the answers were never written down."""
    for number in (1, 2):
        lease = Lease.take(ground.cloud, offer(), spec(f"lorry-x-a{number}"), ledger=ground.ledger, clock=ground.clock)
        ground.cloud.bill[-1].label = "lorry-x-a"
        ground.ledger.entries[:] = [e for e in ground.ledger.entries if e.kind == Signal.INTENT]
        assert lease.number == number
    ground.path.write_bytes(b"".join(to_line(entry) for entry in ground.ledger.entries))


def test_where_labels_are_cut_alike_giving_one_machine_back_spares_the_runs_other(tmp_path: Path):
    ground = Ground(tmp_path)
    leases = [Lease.take(ground.cloud, offer(), spec(f"lorry-x-a{n}"), ledger=ground.ledger, clock=ground.clock) for n in (1, 2)]
    for meter in ground.cloud.bill:
        meter.label = "lorry-x-a"
    leases[0].release("the other one was quicker")
    assert [meter.instance_id for meter in ground.cloud.billing()] == leases[1].instance_ids


def test_where_labels_are_cut_alike_each_is_found_for_one_attempt(tmp_path: Path):
    two_intents(ground := Ground(tmp_path))
    ledger = ground.another_process()
    one, other = (Lease.adopt(ground.cloud, a, ledger=ledger, clock=ground.clock) for a in ledger.book().open_attempts)
    assert [one.instance_ids, other.instance_ids] == [["i-0"], ["i-1"]]
    one.release("the other one was quicker")
    assert [meter.instance_id for meter in ground.cloud.billing()] == ["i-1"]


def test_where_labels_are_cut_alike_gone_is_not_said_while_the_other_may_be_to_come(tmp_path: Path):
    """Nobody can say which of the two was found: it is ended at once, and the word waits until there can be no second one."""
    two_intents(ground := Ground(tmp_path))
    ground.cloud.bill[1].from_s = 65.0
    ledger = ground.another_process()
    first, second = ledger.book().open_attempts
    lease = Lease.adopt(ground.cloud, second, ledger=ledger, clock=ground.clock)
    assert ground.clock.passed_s < 10
    lease.release("found")
    assert ground.cloud.bill[0].until_s < 10
    assert ground.cloud.billing() == []
    with pytest.raises(NeverCreated):
        Lease.adopt(ground.cloud, first, ledger=ledger, clock=ground.clock)


def test_a_full_disk_here_keeps_no_machine_alive_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At whichever entry the disk fills up, for good."""
    for good_entries in range(5):
        folder = tmp_path / str(good_entries)
        folder.mkdir()
        ground = Ground(folder)
        left = iter(range(good_entries))

        def record(
            self: Ledger, kind: str, left: Iterator[int] = left, real: Callable[..., Entry] = Ledger.record, **rest: object
        ) -> Entry:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(self, kind, **rest)

        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "record", record)
            raised: BaseException | None = None
            try:
                with ground.take():
                    pass
            except BaseException as err:
                raised = err
        assert ground.cloud.billing() == [], f"disk full after {good_entries} entries: {raised!r}"
        assert (raised is None) == (good_entries == 4)


# -- faults at every call --------------------------------------------------------------------------


def live(ground: Ground) -> BaseException | None:
    """A short life with a lease; returns what came out of it."""
    try:
        with ground.take() as lease:
            lease.describe()
            ground.clock.sleep(30)
            lease.describe()
    except BaseException as err:
        return err
    return None


ERRORS: list[Callable[[], BaseException]] = [
    down,
    lambda: AuthError("revoked"),
    lambda: UnexpectedResponse("odd"),
    RuntimeError,
    KeyboardInterrupt,
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("for_ever", [False, True])
def test_a_fault_at_any_call_never_leaves_a_machine_unseen(tmp_path: Path, error: Callable[[], BaseException], after: bool, for_ever: bool):
    for number in range(1, 14):
        folder = tmp_path / str(number)
        folder.mkdir()
        ground = Ground(folder, Plot(fail_after=after))
        ground.cloud.plot.fail_call = lambda _, count, n=number: error() if count == n or (for_ever and count > n) else None
        raised = live(ground)
        assert_truthful(ground, raised)
        ground.cloud.plot.fail_call = lambda _name, _count: None
        ground.clean_up()
        assert ground.cloud.billing() == [], f"fault at call {number}: the next command did not end it"


FAULTS = st.sampled_from(["", "", "", "down", "auth", "odd", "bug", "interrupt"])
MADE = {
    "down": down,
    "auth": lambda: AuthError("no"),
    "odd": lambda: UnexpectedResponse("?"),
    "bug": RuntimeError,
    "interrupt": KeyboardInterrupt,
}


@settings(max_examples=120, deadline=None)
@given(
    faults=st.lists(FAULTS, max_size=40),
    after=st.booleans(),
    refusal=st.sampled_from([None, down, lambda: NoCapacity("sold"), lambda: UnexpectedResponse("odd")]),
    rents=st.booleans(),
    ids=st.booleans(),
    late=st.floats(0, 100),
    lag=st.floats(0, 60),
    deaf=st.integers(0, 200),
)
def test_no_mixture_of_faults_leaves_a_machine_that_nobody_was_told_of(  # noqa: PLR0917
    tmp_path_factory: pytest.TempPathFactory, faults, after, refusal, rents, ids, late, lag, deaf
):
    """Errors of every kind at any call, creates that lied, land late, are listed late, terminates that do nothing."""
    error = refusal() if refusal else None
    certain_lie = isinstance(error, NoCapacity) and rents and not ids  # out of scope: the contract rules it out
    plot = Plot(launch=error, rents_all_the_same=rents and not certain_lie, ids_in_error=ids, deaf_terminates=deaf, fail_after=after)
    plot.lands_after_s, plot.listing_lags_s = (0.0 if ids else late), lag
    plot.fail_call = lambda _, count: MADE[faults[count - 1]]() if count <= len(faults) and faults[count - 1] else None
    ground = Ground(tmp_path_factory.mktemp("g"), plot)
    assert_truthful(ground, live(ground))
    ground.cloud.plot = Plot(listing_lags_s=lag)
    ground.clean_up()
    assert ground.cloud.billing() == []


# -- taking up what a dead process left ------------------------------------------------------------


class Killed(BaseException):
    """kill -9: nothing of ours runs after it."""


def test_killed_before_and_after_every_effect_the_next_command_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every ledger entry and every call is a point at which the process may die."""
    points = 0
    for point in range(1, 60):
        folder = tmp_path / str(point)
        folder.mkdir()
        ground = Ground(folder)
        count = 0

        def step(point: int = point) -> None:
            nonlocal count
            count += 1
            if count >= point:  # once dead, nothing more happens: every later effect fails as well
                raise Killed

        def record(self: Ledger, *args: object, real: Callable[..., Entry] = Ledger.record, **kwargs: object) -> Entry:
            step()
            entry = real(self, *args, **kwargs)
            step()
            return entry

        ground.cloud.plot.fail_call = lambda _name, _count, step=step: step()
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "record", record)
            raised = live(ground)
        if raised is None:
            break
        points += 1
        ground.cloud.plot = Plot()
        ground.clean_up()
        assert ground.cloud.billing() == [], f"killed at effect {point}"
        assert ground.ledger.book().open_attempts == ()
        assert ground.cloud.creates <= 1
    assert points == 21, "the number of points is known; a new effect is a new point"


def test_a_lease_that_was_never_created_is_closed_without_renting(tmp_path: Path):
    ground = Ground(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeCloud, "launch", lambda *_: (_ for _ in ()).throw(Killed()))
        patch.setattr(Lease, "_undo", lambda *_: None)
        with pytest.raises(Killed):
            ground.take()
    attempt = ground.another_process().book().current
    assert attempt is not None
    assert attempt.phase is Phase.LAUNCHING
    with pytest.raises(NeverCreated):
        Lease.adopt(ground.cloud, attempt, ledger=ground.ledger, clock=ground.clock)
    assert ground.ledger.book().open_attempts == ()
    assert ground.clock.passed_s >= GRACE_S - 1


def test_a_lease_in_doubt_is_not_closed_while_the_cloud_cannot_be_asked(tmp_path: Path):
    ground = Ground(tmp_path, Plot(launch=down(), rents_all_the_same=True))
    ground.cloud.plot.fail_call = lambda method, _: down() if method == "instances" else None
    with pytest.raises(MayStillBill) as caught:
        ground.take()
    assert_truthful(ground, caught.value)
    assert "console" in caught.value.hint


def test_the_patience_is_in_the_clock_not_in_the_number_of_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A slow cloud is not given up sooner, a quick one not asked without end."""
    monkeypatch.setattr(lease_module, "POLL_S", 60.0)
    ground = Ground(tmp_path, Plot(deaf_terminates=2))
    ground.take().release("done")
    assert ground.cloud.billing() == []


def test_a_cloud_that_contradicts_itself_is_given_up_like_one_that_is_deaf(tmp_path: Path):
    """Alive when it is to be ended, gone when it is looked for, again and again: that is no proof, and no reason to look for ever."""

    class Fickle(FakeCloud):
        def describe(self, instance_id: str) -> Instance:
            seen = super().describe(instance_id)
            return replace(seen, status=InstanceStatus.RUNNING if self.calls.count("describe") % 2 else InstanceStatus.GONE)

        def instances(self) -> list[Instance]:
            return []

    ground = Ground(tmp_path)
    ground.cloud = Fickle(ground.clock)
    lease = ground.take()
    begun = ground.clock.passed_s
    with pytest.raises(MayStillBill):
        lease.release("done")
    assert ground.clock.passed_s - begun <= PATIENCE_S + 2 * lease_module.LATE_LOOKS * lease_module.POLL_S


# -- what it costs now -----------------------------------------------------------------------------


def costing(lease: Lease, times: str, status: InstanceStatus = InstanceStatus.RUNNING):
    """The machine as the cloud tells it, with a GPU so many times dearer than its offer."""
    prices = replace(PRICES, gpu_usd_per_hour=PRICES.gpu_usd_per_hour * Decimal(times))
    return replace(lease.provider.describe(lease.instance_ids[0]), prices=prices, status=status)


def test_a_rise_is_metered_from_when_the_old_price_was_last_seen_and_a_fall_from_now(tmp_path: Path):
    ground = Ground(tmp_path)
    lease = ground.take()
    assert lease.heed(costing(lease, "1")) is None
    ground.clock.passed_s = 3600.0
    assert lease.heed(costing(lease, "1.0004")) is None, "other digits of the same price"
    ground.clock.passed_s = 7200.0
    before = lease.heed(costing(lease, "2"))
    assert before == PRICES.usd_per_hour(40)
    ground.clock.passed_s = 10800.0
    lease.heed(costing(lease, "0.5"))
    ground.clock.passed_s = 14400.0
    gpu, disk = PRICES.gpu_usd_per_hour, 4 * 40 * PRICES.disk_usd_per_gib_hour
    assert usage_of(ground.ledger.book().attempts[1]).usd(ground.clock.now()) == gpu * (1 + 2 + 2) + gpu / 2 + disk
    book = ground.another_process().book()
    assert usage_of(book.attempts[1]).usd(ground.clock.now()) == gpu * 5 + gpu / 2 + disk
    assert Lease.adopt(ground.cloud, book.attempts[1], ledger=ground.ledger, clock=ground.clock).prices.gpu_usd_per_hour == gpu / 2


def test_a_rise_that_came_while_nobody_looked_counts_from_the_last_word_in_the_book(tmp_path: Path):
    ground = Ground(tmp_path)
    ground.take()
    ground.clock.passed_s = 60.0
    ground.ledger.record("moved", attempt=1, downloaded=0)
    ground.clock.passed_s = 7200.0
    ground.another_process()
    lease = Lease.adopt(ground.cloud, ground.ledger.book().attempts[1], ledger=ground.ledger, clock=ground.clock)
    lease.heed(costing(lease, "3"))
    assert ground.ledger.book().attempts[1].earlier[0][0] == ground.clock.now() - timedelta(seconds=7140)


def test_a_stopped_machine_that_tells_a_lower_price_is_not_believed(tmp_path: Path):
    ground = Ground(tmp_path)
    lease = ground.take()
    assert lease.heed(costing(lease, "0", InstanceStatus.STOPPED)) is None
    assert lease.heed(replace(costing(lease, "1"), prices=None)) is None
    assert lease.prices == PRICES


# -- whose it is -----------------------------------------------------------------------------------


def test_with_the_key_of_another_account_nothing_is_believed_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """To a stranger every machine is absent; the book stays open, nothing is asked for, and the words say which key is wanted."""
    ground = Ground(tmp_path)
    monkeypatch.setattr(ground.cloud, "account", lambda: Account(name="ann", id="acc-1"))
    ground.take()
    calls = len(ground.cloud.calls)
    monkeypatch.setattr(ground.cloud, "account", lambda: Account(name="bob", id="acc-2"))
    attempt = ground.another_process().book().attempts[1]
    with pytest.raises(WrongAccount, match=r"account acc-1.*account acc-2") as caught:
        Lease.adopt(ground.cloud, attempt, ledger=ground.ledger, clock=ground.clock)
    assert caught.value.exit_code == 11
    assert ground.another_process().book().open_attempts
    assert len(ground.cloud.calls) == calls
    monkeypatch.setattr(ground.cloud, "account", lambda: Account(name="ann, by another key", id="acc-1"))
    Lease.adopt(ground.cloud, attempt, ledger=ground.ledger, clock=ground.clock).release("done")
    assert ground.cloud.billing() == []


def test_a_cloud_that_cannot_say_whose_key_this_is_rents_nothing(tmp_path: Path):
    """It could not be seen to be rid of a machine either: nothing is announced, nothing is sent."""
    ground = Ground(tmp_path)
    ground.cloud.plot.fail_call = lambda method, _: down() if method == "account" else None
    with pytest.raises(Unavailable):
        ground.take()
    assert ground.kinds() == []
    assert ground.cloud.creates == 0


def test_an_account_that_could_not_be_asked_for_is_compared_before_anything_is_believed_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ground = Ground(tmp_path)
    monkeypatch.setattr(ground.cloud, "account", lambda: Account(name="ann", id="acc-1"))
    ground.take()
    attempt, answers = ground.another_process().book().attempts[1], iter([down()])

    def of_another() -> Account:
        if error := next(answers, None):
            raise error
        return Account(name="bob", id="acc-2")

    monkeypatch.setattr(ground.cloud, "account", of_another)
    lease = Lease.adopt(ground.cloud, attempt, ledger=ground.ledger, clock=ground.clock)
    ground.cloud.describe = lambda id_: Instance(provider="fake", id=id_, label="", status=InstanceStatus.GONE)  # type: ignore[method-assign]
    ground.cloud.instances = list  # type: ignore[method-assign]
    with pytest.raises(MayStillBill, match="acc-2"):
        lease.release("enough")
    assert ground.another_process().book().open_attempts


@pytest.mark.parametrize(
    ("kept", "words"),
    [("lorry-autumn-1-a1-x00abc", ""), ("lorry-autumn-1-a1", "was cut"), ("", "did not keep"), ("lorry-a", "did not keep")],
)
def test_a_label_that_the_cloud_has_not_kept_is_noticed(kept: str, words: str):
    trouble = label_trouble(kept, "lorry-autumn-1-a1-x00abc")
    assert words in trouble
    assert bool(trouble) == bool(words)
