"""Jobs added to a run that trains: refused in words before anything happens, taken in, sent beside the training, whoever dies when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import an_order, offer
from hypothesis import given
from hypothesis import strategies as st
from test_watch import PYTHON, World, starts

from orchestrator import adding, asking
from orchestrator.adding import Addition, ask, take_in
from orchestrator.cap.room import Room
from orchestrator.cap.terms import session_there
from orchestrator.crashpoints import ADDING
from orchestrator.errors import NoOffer, OverBudget, UsageError
from orchestrator.hub import HubBase
from orchestrator.machines.trying import written
from orchestrator.order import read_order
from orchestrator.prepare import checked_config
from orchestrator.ship import Item, Shipment
from orchestrator.watch import start, watch
from tests import tiny
from trainer.protocol import Ended, JobState, Session, Started, Step


class KilledError(BaseException):
    """As SIGKILL would."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A run that trains; what is sent goes straight into the machine's files."""
    world = World(tmp_path / "runs" / "autumn-1")

    def send(shell: Any, base: str, shipment: Shipment, moved: Callable[[int], None], **_: Any) -> None:
        for item in shipment.items:
            shell.files[f"{base}/{item.remote}"] = b"sent"
            shell.uploaded += item.size
            moved(item.size)

    monkeypatch.setattr(adding, "send", send)
    world.begin()
    return world


def an_addition(world: World, *names: str, files: int = 3, size: int = 10 * 2**20) -> Addition:
    """Jobs on the base that is there, a few large pictures each."""
    order = an_order(world.folder, names)
    items = [
        Item(root=Path("/"), name=f"{i}.png", folder=f"jobs/{n}/data", size=size, sha256="0" * 64) for n in names for i in range(files)
    ]
    an_order(world.folder)  # the run's own again
    return Addition(id="a1", jobs=order.jobs, items=tuple(items), load=order.load, expected_usd=1)


def trains_what_it_has(world: World) -> Callable[[int], None]:
    """A machine that does a job every ten seconds, and ends when its queue is empty."""
    done: list[str] = []

    def tick(beat: int) -> None:
        queue = Session.model_validate_json(world.shell.files[world.path("session.json")]).jobs
        left = [name for name in queue if name not in done]
        if left and beat % 10 == 5:
            world.tell(Started(at_s=beat, job=left[0], steps=10, images=3, epochs=1))
        if left and beat % 10 == 0:
            world.commit(f"{left[0]}.safetensors", "adapter", 10, final=True, job=left[0])
            world.tell(Ended(at_s=beat, job=left[0], state="done", step=10))
            done.append(left[0])
        if done and not left and world.alive:
            world.end("done", **{name: JobState(state="done", step=10) for name in done})

    def start_again() -> bytes:
        if not world.alive and {*Session.model_validate_json(world.shell.files[world.path("session.json")]).jobs} - {*done}:
            world.alive = True
        return b'{"pid": 7, "started": true}'

    world.answers_start = start_again
    return tick


def test_added_jobs_are_sent_beside_the_training_and_done_by_the_same_machine(world: World):
    world.tick = trains_what_it_has(world)
    ask(world.folder, an_addition(world, "anna", "bert"))
    assert watch(world.trip, world.machine, PYTHON) == "done"
    assert session_there(world.trip, world.machine).jobs == ("lisa", "anna", "bert")
    assert [path for path in world.home() if path.endswith(".safetensors")] == [f"{n}/{n}.safetensors" for n in ("anna", "bert", "lisa")]
    kinds = [entry.kind for entry in world.ledger.entries]
    assert kinds.index("added") < kinds.index("joined")
    assert kinds[kinds.index("added") : kinds.index("joined")].count("moved") >= 4, "a slice at a time: between them training is looked at"
    assert world.ledger.book().attempts[1].uploaded_bytes == 60 * 2**20
    assert read_order(world.folder).job_names == ["lisa", "anna", "bert"]
    assert not [*(world.folder.path / "additions").iterdir()]


@pytest.mark.parametrize("point", [name for name in ADDING if name != "asked"])
def test_a_driver_killed_anywhere_on_the_way_leaves_the_next_one_nothing_to_guess(
    point: str, world: World, monkeypatch: pytest.MonkeyPatch
):
    world.tick = trains_what_it_has(world)
    ask(world.folder, an_addition(world, "anna"))

    def crashpoint(name: str) -> None:
        if name == point:
            raise KilledError

    for module in ("orchestrator.adding", "orchestrator.ledger"):
        monkeypatch.setattr(f"{module}.crashpoint", crashpoint)
    with pytest.raises(KilledError):
        watch(world.trip, world.machine, PYTHON)
    for module in ("orchestrator.adding", "orchestrator.ledger"):
        monkeypatch.setattr(f"{module}.crashpoint", lambda _: None)
    world.order = read_order(world.folder)
    world.trip = world.a_trip()
    assert watch(world.trip, world.machine, PYTHON) == "done"
    assert session_there(world.trip, world.machine).jobs == ("lisa", "anna")
    assert world.trip.todo() == []
    assert read_order(world.folder).job_names == ["lisa", "anna"]


def test_a_session_that_came_to_its_end_while_data_was_on_its_way_goes_on(world: World):
    """The machine had nothing left to do for a moment; its supervisor is started again."""
    world.tick = trains_what_it_has(world)
    plain = adding.Latecomers._send

    def slow(self: adding.Latecomers, items: list[Item]) -> None:
        plain(self, items)
        for _ in range(15):
            world.step()

    adding.Latecomers._send = slow  # type: ignore[method-assign, assignment]
    try:
        ask(world.folder, an_addition(world, "anna"))
        before = starts(world)
        assert watch(world.trip, world.machine, PYTHON) == "done"
    finally:
        adding.Latecomers._send = plain  # type: ignore[method-assign]
    assert starts(world) > before
    assert world.trip.todo() == []


@pytest.mark.parametrize("reason", ["deadline", "stopped"])
def test_a_session_that_ended_for_another_reason_is_not_kept_for_those_who_come_late(reason: str, world: World):
    ask(world.folder, an_addition(world, "anna", files=20))
    world.tick = lambda beat: world.end(reason) if beat == 3 else None
    assert watch(world.trip, world.machine, PYTHON) == reason
    assert read_order(world.folder).job_names == ["lisa", "anna"], "lorry resume trains it"


def test_the_next_machine_is_given_added_jobs_with_all_the_others(world: World):
    ask(world.folder, an_addition(world, "anna"))
    take_in(world.trip)
    world.shell.files.pop(world.path("session.json"))
    start(world.trip, world.machine, PYTHON)
    assert session_there(world.trip, world.machine).jobs == ("lisa", "anna")


# -- what is refused -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """A config of one job, on a base of the hub."""
    root = tmp_path_factory.mktemp("files")
    tiny.pictures(root / "forest", count=3)

    def write(name: str = "forest", steps: int = 100, resolution: int = 512) -> list[Path]:
        path = root / f"{name}.toml"
        keys = f'name = "{name}"\ndataset = "forest"\nsteps = {steps}\nresolution = {resolution}\nmax_bucket = 4096'
        base = 'base = "stable-diffusion-v1-5/stable-diffusion-v1-5"'
        path.write_text(f'name = "more"\n[budget]\nmax_usd = 1\n[[lora]]\n{keys}\n{base}\n')
        return [path]

    return write


def asked(world: World, files: list[Path]) -> Addition:
    addition, _ = asking.add(world.folder, checked_config(files)[1], world.trip.tools)
    return addition


def test_a_job_that_fits_is_asked_for_with_what_it_will_cost(world: World, file: Callable[..., list[Path]]):
    with world.folder.driving():  # this lorry drives
        addition = asked(world, file())
    assert (addition.names, [job.base for job in addition.jobs]) == (["forest"], ["stable-diffusion-v1-5/stable-diffusion-v1-5"])
    assert 0 < addition.expected_usd < world.order.cap_usd
    assert "jobs/forest/job.json" in {item.remote for item in addition.items}
    assert [one.names for _, one in adding.requests(world.folder)] == [["forest"]]


def test_where_nobody_drives_the_order_is_made_longer_at_once(world: World, file: Callable[..., list[Path]]):
    asked(world, file())
    assert read_order(world.folder).job_names == ["lisa", "forest"]
    assert "takes it up, and sends them" in world.view.said[-1]


def refused(world: World, files: list[Path], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        asked(world, files)
    assert list(adding.requests(world.folder)) == []
    assert read_order(world.folder).job_names == ["lisa"]
    assert "added" not in [entry.kind for entry in world.ledger.entries]


def test_what_does_not_fit_the_cap_is_refused_with_the_minutes(world: World, file: Callable[..., list[Path]]):
    refused(world, file(steps=900_000), OverBudget, r"the cap of \$5.00 does not last for them: they need about \d+ minutes more")


def test_what_the_card_cannot_hold_is_refused(world: World, file: Callable[..., list[Path]]):
    world.ledger.record("chosen", number=1, expected_usd=1, offer=written(offer()))
    refused(world, file(resolution=4096), NoOffer, "GiB of video memory are needed")


def test_a_name_that_the_run_has_is_refused(world: World, file: Callable[..., list[Path]]):
    refused(world, file("Lisa"), UsageError, "has a job of that name already: Lisa")


def test_a_base_that_the_machine_would_have_to_fetch_is_refused(world: World, file: Callable[..., list[Path]]):
    an_order(world.folder, hub=(HubBase(repo="someone/other", revision="0" * 40, files=()),))
    refused(world, file(), UsageError, "has someone/other from the hub, and not stable-diffusion-v1-5/stable-diffusion-v1-5")


def test_a_run_that_has_ended_or_does_not_train_takes_nothing(world: World, file: Callable[..., list[Path]]):
    world.ledger.record("ended", attempt=1, reason="done")
    refused(world, file(), UsageError, "does not train now: it is pulling")
    world.ledger.record("give_up", attempt=1)
    world.ledger.record("gone", attempt=1)
    world.ledger.record("closed", exit_code=0)
    refused(world, file(), UsageError, "has ended; nothing can be added")


def test_a_measured_pace_says_more_than_a_predicted_one(world: World, file: Callable[..., list[Path]]):
    """On a machine that is five times slower than was thought, the same job has no room any more."""
    events = world.folder.path / "events-1.jsonl"
    steps = [Step(at_s=at * 2.0, job="lisa", step=at, steps=100, epoch=1, loss=0.1, lr=1e-4, samples_per_s=0.5) for at in range(1, 30)]
    world.tell(Started(at_s=0, job="lisa", steps=100, images=3, epochs=1), *steps)
    trip = asking.look(world.folder, world.trip.tools)
    predicted = asking._pace(trip, trip.book().attempts[1])
    events.write_bytes(world.shell.files[world.path("events.jsonl")])
    trip = asking.look(world.folder, world.trip.tools)
    assert predicted == 1.0
    assert asking._pace(trip, trip.book().attempts[1]) > 1.0


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(-1e6, 1e6))
def test_what_fits_is_short_of_nothing(rest: float, more: float, left: float):
    found = Room(rest_s=rest, more_s=more, left_s=left)
    assert found.fits == (found.short_s == 0)
