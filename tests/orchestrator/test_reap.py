"""`lorry reap`: shows first, never touches another's machine, never many by mistake, and leaves books that say what happened."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from fakes import T0, FakeClock, FakeCloud, Meter, SilentView, an_order, down, offer, spec

from orchestrator.cli import main
from orchestrator.cli.reap import CEILING
from orchestrator.home import Home, RunFolder
from orchestrator.lease import Lease
from orchestrator.safety.interrupts import Interrupts
from orchestrator.safety.reconcile import label_for
from orchestrator.trip import Tools


@pytest.fixture
def cloud(clock: FakeClock) -> FakeCloud:
    return FakeCloud(clock)


@pytest.fixture(autouse=True)
def home(cloud: FakeCloud, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """One cloud, and a home of our own."""
    monkeypatch.setenv("LORRY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LORRY_KEEPER", "off")
    monkeypatch.setattr("providers.PROVIDERS", {"fake": ""})

    def tools(*, as_json: bool) -> Tools:
        return Tools(clock=clock, view=SilentView(), interrupts=Interrupts(lambda _: None), provider=lambda _: cloud)  # type: ignore[arg-type]

    monkeypatch.setattr("orchestrator.tools.make_tools", tools)
    return Home(tmp_path / "home")


def foreign(cloud: FakeCloud, *labels: str) -> list[Meter]:
    """Machines that this computer's books know nothing of."""
    made = [Meter(f"f-{number}", label, 0.0) for number, label in enumerate(labels, len(cloud.bill))]
    cloud.bill += made
    return made


def labels(count: int, after: timedelta = timedelta(hours=5)) -> list[str]:
    return [label_for(f"autumn-{number:06}", 1, T0 + after) for number in range(count)]


def a_run(home: Home, cloud: FakeCloud, clock: FakeClock) -> RunFolder:
    """A run of this computer that holds a machine and that nobody drives."""
    folder = home.new_run("autumn")
    an_order(folder)
    ledger = folder.ledger(clock)
    ledger.record("opened", run=folder.id, cap_usd="5")
    Lease.take(cloud, offer(), spec(label_for(folder.id, 1, T0 + timedelta(hours=5))), ledger=ledger, clock=clock)  # type: ignore[arg-type]
    return folder


def test_without_yes_it_only_shows(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]):
    foreign(cloud, *labels(2))
    assert main(["reap"]) == 10
    told = capsys.readouterr()
    assert told.out.count("may be billing") == 2
    assert "nothing was touched" in told.err
    assert len(cloud.billing()) == 2
    assert "terminate" not in cloud.calls


def test_with_yes_every_machine_of_lorry_goes_and_no_other(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]):
    others = foreign(cloud, "", "my-own", "Lorry-x-a1", "notlorry-x-a1", "lorry", " lorry-x-a1")
    foreign(cloud, *labels(3))
    assert main(["reap", "--yes"]) == 0
    assert cloud.billing() == others
    assert capsys.readouterr().out.count("destroyed, and seen to be gone") == 3


def test_more_than_the_ceiling_is_asked_for_by_number(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]):
    foreign(cloud, *labels(CEILING + 1))
    assert main(["reap", "--yes"]) == 10
    told = capsys.readouterr()
    assert f"{CEILING + 1} machines would be destroyed, more than {CEILING}; nothing was touched" in told.err
    assert f"lorry reap --yes --at-most {CEILING + 1}" in told.err
    assert len(cloud.billing()) == CEILING + 1
    assert main(["reap", "--yes", "--at-most", str(CEILING + 1), "--json"]) == 0
    assert cloud.billing() == []
    assert len(json.loads(capsys.readouterr().out)) == CEILING + 1


def test_the_timer_ends_what_nobody_can_want_and_leaves_the_rest(cloud: FakeCloud, clock: FakeClock, home: Home):
    mine = a_run(home, cloud, clock)
    late, at_work = labels(1, timedelta(hours=1))[0], labels(2, timedelta(hours=9))[1]
    foreign(cloud, late, at_work)
    clock.passed_s = 2 * 3600
    with mine.driving():
        assert main(["reap", "--yes", "--expired"]) == 0
    assert {meter.label for meter in cloud.billing()} == {at_work, mine.book().attempts[1].label}


def test_a_run_of_this_computer_ends_with_its_machine(cloud: FakeCloud, clock: FakeClock, home: Home, capsys: pytest.CaptureFixture[str]):
    """Else the next lorry that takes it up would find its machine gone, and rent another."""
    run = a_run(home, cloud, clock)
    assert main(["reap", "--yes", "--json"]) == 0
    told = capsys.readouterr()
    assert [row["destroyed_verified"] for row in json.loads(told.out)] == [True]
    book = run.book()
    assert not book.open_attempts
    assert book.closed is not None
    assert book.closed["exit_code"] == 130
    assert cloud.billing() == []
    assert cloud.creates == 1


def test_a_machine_that_does_not_go_ends_with_10_and_is_not_called_gone(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]):
    foreign(cloud, *labels(1))
    cloud.plot.deaf_terminates = 10**6
    assert main(["reap", "--yes"]) == 10
    told = capsys.readouterr()
    assert "destroyed, and seen to be gone" not in told.out
    assert "MAY STILL BE BILLING" in told.out


def test_a_machine_that_vanishes_between_two_looks_is_not_called_destroyed(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]):
    (meter,) = foreign(cloud, *labels(1))
    listings = 0

    def gone_after_the_first(method: str, _: int) -> None:
        nonlocal listings
        if method == "instances":
            listings += 1
            meter.label = meter.label if listings == 1 else "renamed"

    cloud.plot.fail_call = gone_after_the_first
    assert main(["reap", "--yes"]) == 10
    assert "listed a moment ago, and no longer: look again" in capsys.readouterr().out


def test_a_cloud_that_cannot_be_asked_counts_as_alive(cloud: FakeCloud, capsys: pytest.CaptureFixture[str]):
    cloud.plot.fail_call = lambda *_: down()
    assert main(["reap", "--yes"]) == 10
    assert "it cannot be asked" in capsys.readouterr().out
