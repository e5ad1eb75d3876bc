"""What is sent to a machine, and what it fetches by itself, is on the meter, whatever becomes of the lorry that sends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import an_order, offer, spec
from test_watch import World

from orchestrator import delivery
from orchestrator.delivery import ENTRY_BYTES, PACKAGES_BYTES, ship
from orchestrator.errors import MachineFailed
from orchestrator.lease import Lease, usage_of
from orchestrator.ledger import Ledger
from orchestrator.lifecycle import Signal

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
