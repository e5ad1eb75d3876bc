"""`lorry cost` explains every difference, and its explanations add up to the cent."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from fakes import FakeClock, FakeCloud, an_order, offer, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.home import RunFolder
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.lifecycle import Signal
from orchestrator.plan import make_plan
from orchestrator.report.cost import IN_BETWEEN, OTHERS, TRAFFIC, cost, in_words
from orchestrator.report.plan_document import plan_document
from orchestrator.report.receipt import receipt
from providers.base import Instance

LIFE = (Signal.REACHABLE, Signal.SHIPPED, Signal.STARTED, Signal.ENDED, Signal.PULLED)


class Story:
    """A run whose machines take what time they take."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True)
        self.clock, self.folder = FakeClock(), RunFolder(path)
        self.cloud = FakeCloud(self.clock)
        self.order = an_order(self.folder)
        self.ledger = Ledger(path / "ledger.jsonl", self.clock)
        self.ledger.record("opened", cap_usd=self.order.cap_usd, run=self.order.run)
        plan = make_plan(self.order.load, [offer()], self.order.requirements, cap_usd=Decimal(5))
        self.folder.write("plan.json", plan_document(plan))

    def machine(self, seconds: tuple[float, ...], *, times: str = "1", up: int = 0, down: int = 0, price: str = "0.40") -> None:
        """One that gets through as many steps of its life as there are times for; half way its price becomes `times` as high."""
        prices = replace(offer().prices, gpu_usd_per_hour=Decimal(price))
        lease = Lease.take(
            self.cloud, offer(prices=prices), spec(f"lorry-x-a{self.ledger.book().next_attempt}"), ledger=self.ledger, clock=self.clock
        )
        for number, (signal, takes) in enumerate(zip(LIFE, seconds, strict=False)):
            self.clock.sleep(takes)
            self.ledger.record(signal, attempt=lease.number)
            seen: Instance = lease.describe()
            dearer = replace(prices, gpu_usd_per_hour=prices.gpu_usd_per_hour * (Decimal(times) if number > 1 else 1))
            lease.heed(replace(seen, prices=dearer))
        self.ledger.record("moved", attempt=lease.number, uploaded=up, downloaded=down)
        self.clock.sleep(7.0)
        lease.release("the work is done" if len(seconds) > 2 else "it is slow")

    def document(self, billed: dict[int, Decimal | None] | None = None) -> dict[str, object]:
        self.ledger.record("closed", exit_code=0, message="", hint="")
        now = self.clock.now()
        told = receipt(self.folder, now)
        return {"run": self.folder.id, "status": told["status"], **told["cost"], **cost(self.folder, now, billed or {})}


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path / "runs" / "autumn-1")


TIMES = st.lists(st.floats(0, 5000), max_size=5).map(tuple)
MACHINES = st.lists(
    st.tuples(TIMES, st.sampled_from(["1", "2.5", "0.4"]), st.integers(0, 2**36), st.integers(0, 2**36), st.sampled_from(["0.40", "0.9"])),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(machines=MACHINES)
def test_the_differences_add_up_to_what_was_metered_above_the_estimate(machines):
    """Whatever machines there were, how far each came, what it cost and moved; and so do the lines."""
    with tempfile.TemporaryDirectory() as folder:
        story = Story(Path(folder) / "run")
        for seconds, times, up, down, price in machines:
            story.machine(seconds, times=times, up=up, down=down, price=price)
        document = story.document()
    gap = document["metered_usd"] - document["estimated_usd"]["p50"]
    assert sum(part["usd"] for part in document["differences"]) == pytest.approx(gap, abs=2e-5)
    assert sum(line["metered_usd"] or 0 for line in document["lines"]) == pytest.approx(document["metered_usd"], abs=2e-5)
    estimated = sum(line["estimated_usd"] or 0 for line in document["lines"])
    assert estimated == pytest.approx(document["estimated_usd"]["p50"], abs=2e-5)
    assert max(map(len, in_words(document))) <= 80


def whys(document) -> str:
    return "\n".join(part["why"] for part in document["differences"])


def test_every_reason_has_words(story: Story):
    story.machine((600.0,))
    story.machine((900.0, 60.0, 30.0, 7200.0, 40.0), times="1.5", up=3 * 2**30, down=2**30)
    document = story.document({1: Decimal("0.0001"), 2: None})
    said = whys(document)
    assert "RTX 4090 at fake (i-0) did not get to train: it is slow" in said
    assert "boot took 15m00s, 1m40s was estimated" in said
    assert "training took 2h00m" in said
    assert "$0.408 was estimated, its price moved meanwhile" in said
    assert "3.00 GiB went to the machine and 1.00 GiB came from it" in said
    by_name = {line["name"]: line for line in document["lines"]}
    assert by_name[OTHERS]["took_s"] == 600.0 + 7.0 + 1.0, "and the second look"
    assert by_name[TRAFFIC]["metered_usd"] == pytest.approx(0.05)
    assert IN_BETWEEN in by_name
    first, second = document["bills"]
    assert second["why"] == "fake has not written its record yet"
    assert first["billed_usd"] == 0.0001


@pytest.mark.parametrize(
    ("share", "days", "words"),
    [
        ("1.01", 0, "agrees with our meter"),
        ("0.5", 0, "so far: records come in parts"),
        ("0.5", 3, "less than our meter"),
        ("1.5", 3, "which nothing in the book explains: ask fake"),
        (None, 0, "has not written its record yet"),
        (None, 3, "has no record of it"),
    ],
)
def test_what_a_bill_says_beside_the_meter(story: Story, share: str | None, days: int, words: str):
    story.machine((60.0, 60.0, 30.0, 7200.0, 40.0))
    metered = Decimal(str(story.document()["metered_usd"]))
    story.clock.passed_s += days * 86400
    (bill,) = story.document({1: metered * Decimal(share) if share else None})["bills"]
    assert words in bill["why"]


def test_a_run_under_way_is_told_without_explanations(story: Story):
    Lease.take(story.cloud, offer(), spec(), ledger=story.ledger, clock=story.clock)
    story.clock.sleep(100)
    document = story.document()
    assert document["differences"] == []
    assert any("not known to be gone" in line for line in in_words(document))


def test_a_phase_that_nothing_ended_lasts_until_the_machine_was_given_up(story: Story):
    """Lost in the middle of its training: that was training, and no time in between."""
    story.machine((60.0, 60.0, 30.0))
    by_name = {line["name"]: line["took_s"] for line in story.document()["lines"]}
    assert by_name["training"] == 7.0
    assert by_name[IN_BETWEEN] == 0.0


def test_a_run_that_trained_nothing_says_so(story: Story):
    story.machine(())
    assert "nothing was trained" in whys(story.document())
