"""What is sent to a machine, and what it fetches by itself, is on the meter, whatever becomes of the lorry that sends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import an_order, offer, spec
from test_watch import World

from orchestrator import commands, delivery
from orchestrator.delivery import ENTRY_BYTES, PACKAGES_BYTES, ship
from orchestrator.errors import MachineFailed
from orchestrator.hub import HubBase
from orchestrator.lease import Lease, usage_of
from orchestrator.ledger import Ledger
from orchestrator.lifecycle import Signal
from orchestrator.ship import Item

BASE = 4_300_000_000


class Unsent(World):
    """A machine that nothing was sent to yet, for a run whose base comes from a hub."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.order = an_order(self.folder, load=replace(self.order.load, hub_bytes=float(BASE)))
        self.ledger = Ledger(path / "again.jsonl", self.clock)
        self.lease = Lease.take(self.cloud, offer(), spec(), ledger=self.ledger, clock=self.clock)
        self.ledger.record(Signal.REACHABLE, attempt=1)
        self.trip = self.a_trip()

    @property
    def uploaded(self) -> int:
        """By the book, as another process finds it."""
        return usage_of(Ledger(self.folder.path / "again.jsonl", self.clock).book().attempts[1]).uploaded_bytes


@pytest.fixture
def unsent(tmp_path: Path) -> Unsent:
    return Unsent(tmp_path / "runs" / "autumn-1")


Sends = Callable[[Callable[[int], None]], None]


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch, unsent: Unsent) -> Callable[[Sends], None]:
    def use(what: Sends) -> None:
        def send(shell, root, shipment, moved, check):
            del root, shipment, check
            what(moved)
            shell.uploaded += 10  # what the protocol itself takes

        monkeypatch.setattr(delivery, "send", send)

    monkeypatch.setattr(unsent.shell, "on_command", lambda _: b"ready /usr/bin/python3")
    return use


def test_what_was_sent_and_what_the_machine_fetches_is_counted_once(unsent: Unsent, sends: Callable[[Sends], None]):
    sends(lambda moved: moved(1000))
    ship(unsent.trip, unsent.machine)
    assert unsent.uploaded == 1000 + BASE


def test_a_lorry_that_is_killed_leaves_little_of_what_it_had_sent_uncounted(unsent: Unsent, sends: Callable[[Sends], None]):
    """Its entries are all that is left of it."""
    seen: list[int] = []

    def most(moved: Callable[[int], None]) -> None:
        for _ in range(100):
            moved(ENTRY_BYTES // 10)
        seen.append(unsent.uploaded)

    sends(most)
    ship(unsent.trip, unsent.machine)
    assert 0 <= 10 * ENTRY_BYTES - seen[0] < 1.2 * ENTRY_BYTES


def test_what_went_before_the_line_broke_is_paid_for(unsent: Unsent, sends: Callable[[Sends], None]):
    def breaks(moved: Callable[[int], None]) -> None:
        moved(500)
        raise MachineFailed("the line broke")

    sends(breaks)
    for _ in range(2):
        with pytest.raises(MachineFailed):
            ship(unsent.trip, unsent.machine)
    assert unsent.uploaded == 2 * 500 + BASE, "the base is fetched once"


def test_packages_that_the_machine_had_to_fetch_count_and_those_of_its_image_do_not(unsent: Unsent, sends: Callable[[Sends], None]):
    sends(lambda _: None)
    unsent.shell.on_command = lambda _: f"ready /root/{unsent.order.root}/env/python".encode()
    ship(unsent.trip, unsent.machine)
    assert unsent.uploaded == 10 + BASE + PACKAGES_BYTES


def test_a_machine_prepares_itself_while_data_is_sent(unsent: Unsent, monkeypatch: pytest.MonkeyPatch):
    """Its environment takes ten seconds and its base thirty: both are there before the last picture, and the book says so."""
    data = [Item(root=Path("/"), name=f"{n}.png", folder="jobs/lisa/data", size=5, sha256="0" * 64) for n in range(3)]
    programs = [Item(root=Path("/"), name="setup.sh", folder="setup", size=1, sha256="0" * 64)]
    hub = (HubBase(repo="a/b", revision="0" * 40, files=()),)
    unsent.trip.order = an_order(unsent.folder, items=(*data, *programs), hub=hub)
    told: list[str] = []
    begun: dict[str, float] = {}

    def command(argv: list[str]) -> bytes:
        what = "set-up" if argv == commands.set_up(unsent.order.root) else "base"
        told.append(what)
        since = begun.setdefault(what, unsent.clock.passed_s)
        return b"ready /usr/bin/python3" if unsent.clock.passed_s - since >= {"set-up": 10, "base": 30}[what] else b"running"

    def send(shell, root, shipment, moved, check):
        del root
        told.append(f"{len(shipment.items)} files")
        for one in shipment.items:
            for _ in range(20):
                unsent.clock.passed_s += 1.0
                check()
            moved(one.size)
            shell.uploaded += one.size

    monkeypatch.setattr(delivery, "send", send)
    unsent.shell.on_command = command
    assert ship(unsent.trip, unsent.machine) == "/usr/bin/python3"
    assert told[:4] == ["1 files", "set-up", "3 files", "set-up"]
    shipped = unsent.ledger.entries[-1].data
    assert shipped["upload_s"] == shipped["whole_s"] == 80.0, "nothing was waited for after the last picture"
    assert (shipped["set_up_s"], shipped["base_s"]) == (pytest.approx(10, abs=2), pytest.approx(30, abs=3))


def test_a_machine_that_cannot_prepare_itself_is_given_up_before_all_is_sent(unsent: Unsent, sends: Callable[[Sends], None]):
    unsent.trip.order = an_order(
        unsent.folder, items=[Item(root=Path("/"), name="1.png", folder="jobs/lisa/data", size=5, sha256="0" * 64)]
    )
    calls: list[int] = []
    sends(lambda _: calls.append(1))
    unsent.shell.on_command = lambda _: b"failed no space left"
    with pytest.raises(MachineFailed, match="no space left"):
        ship(unsent.trip, unsent.machine)
    assert calls == [1], "the programs, and no picture"
