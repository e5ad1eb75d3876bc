"""A run's folder teaches what its book and its machine told: each phase as predicted and as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import FakeClock, FakeCloud, an_order, offer, spec

from orchestrator.home import RunFolder
from orchestrator.learning.gathering import gathered
from orchestrator.learning.records import BILL, WHOLE, said_of
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.lifecycle import Signal
from orchestrator.plan import estimate
from trainer.protocol import Ended, Phase, Started, Step, dump_event


class Story:
    """One machine that goes through a run, with what it tells."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True)
        self.clock, self.folder = FakeClock(), RunFolder(path)
        self.order = an_order(self.folder)
        self.ledger = Ledger(path / "ledger.jsonl", self.clock)
        self.said = said_of(estimate(self.order.load, offer(), 40))

    def live(self, *, reason: str = "done", predicted: bool = True) -> None:
        """Boots in 60 s, takes 20 to send, 30 to set up, trains as `events` say for 200, is pulled in 5 and gone in 10."""
        said = {"said": self.said.model_dump(mode="json")} if predicted else {}
        self.ledger.record("chosen", number=1, **said)
        lease = Lease.take(FakeCloud(self.clock), offer(), spec(), ledger=self.ledger, clock=self.clock)
        for wait, kind, data in (
            (60, Signal.REACHABLE, {}), (20, "moved", {"uploaded": 1, "fetched": 1}), (30, Signal.SHIPPED, {}),
            (0, Signal.STARTED, {"lifetime_s": 900.0}), (200, Signal.ENDED, {"reason": reason}), (5, Signal.PULLED, {}),
        ):  # fmt: skip
            self.clock.sleep(wait)
            self.ledger.record(kind, attempt=1, **data)
        lease.release("the work is done")
        name, steps = self.order.job_names[0], 100
        told = [
            Phase(at_s=0, job=name, phase="loading"), Phase(at_s=20, job=name, phase="caching"),
            Started(at_s=30, job=name, steps=steps, images=9, epochs=1), Phase(at_s=30, job=name, phase="training"),
            Step(at_s=40, job=name, step=1, steps=steps, epoch=1, loss=0.1, lr=1e-4, samples_per_s=1.0),
            Step(at_s=140, job=name, step=steps, steps=steps, epoch=1, loss=0.1, lr=1e-4, samples_per_s=1.0),
            Phase(at_s=140, job=name, phase="saving"), Ended(at_s=142, job=name, state="done", step=steps),
        ]  # fmt: skip
        (self.folder.path / "events-1.jsonl").write_bytes(b"".join(map(dump_event, told)) + b"torn")

    def records(self):
        return gathered(self.order, self.folder, self.ledger.entries)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path / "autumn-1")


def test_every_phase_is_gathered_from_the_book_and_from_the_machine(story: Story):
    story.live()
    (found,) = story.records()
    expected = {
        "boot": 60, "upload": 20, "set-up": 30, "base model": 20, "caching": 10, "compile": 10, "steps": 100, "saves": 2, "pull": 5,
    }  # fmt: skip
    assert {name: found.took[name] for name in expected} == expected
    assert found.took[WHOLE] >= 315
    assert found.took[BILL] > 0
    assert found.said == story.said
    assert (found.card, found.provider, found.host) == ("RTX 4090", "fake", "m-o1")


def test_a_run_that_a_cap_ended_teaches_its_pace_but_not_its_whole(story: Story):
    story.live(reason="deadline")
    (found,) = story.records()
    assert "steps" in found.took
    assert not {WHOLE, BILL, "saves"} & found.took.keys()


def test_a_machine_that_an_older_lorry_rented_was_not_predicted_and_teaches_nothing(story: Story):
    story.live(predicted=False)
    assert story.records() == []


def test_a_machine_that_is_not_seen_to_be_gone_teaches_nothing_yet(story: Story):
    story.ledger.record("chosen", number=1, said=story.said.model_dump(mode="json"))
    Lease.take(FakeCloud(story.clock), offer(), spec(), ledger=story.ledger, clock=story.clock)
    assert story.records() == []
