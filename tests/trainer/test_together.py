"""Training together changes nothing: to rounding against alone, to the bit against the same group undisturbed. One's end is one's own."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests import tiny
from trainer import loop, together, turns
from trainer.jobs import Place
from trainer.protocol import AnyEvent, Committed, Ended, JobSpec, Phase, Started, Step, Warned
from trainer.together import run_jobs

Spec = Callable[..., dict[str, Any]]


class KilledError(BaseException):
    """As SIGKILL would: nothing of ours may catch it."""


@pytest.fixture(scope="module")
def root(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: latents are made once."""
    root = tmp_path_factory.mktemp("together")
    (root / "base").symlink_to(world / "base")
    shutil.copytree(world / "data", root / "data")
    tiny.pictures(root / "square", count=3)
    tiny.pictures(root / "tall", count=2, sizes=((64, 96),))
    return root


@pytest.fixture(scope="module")
def shared(root: Path) -> Place:
    """The base is loaded once."""
    return Place(root, lambda _: None)


@pytest.fixture
def train(shared: Place, spec: Spec) -> Callable[..., list[AnyEvent]]:
    """Train jobs in a folder; their events."""

    def run(jobs: Sequence[dict[str, Any]], out: str, **how: Any) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        stop_at, leave_at = how.pop("stop_at", math.inf), how.pop("leave_at", {})
        shared.emit, shared.stopping = events.append, lambda: max(reached(events).values(), default=0) >= stop_at
        shared.leaving = lambda name: reached(events).get(name, 0) >= leave_at.get(name, math.inf)
        late = {job["name"]: job["arrives_at"] for job in jobs if "arrives_at" in job}
        plain = [at_once(job) for job in jobs]

        def arriving() -> list[JobSpec]:
            now = [name for name, step in late.items() if max(reached(events).values(), default=0) >= step]
            for name in now:
                del late[name]
            return [one for one in specs if one.name in now]

        shared.arriving = arriving
        until: Callable[[AnyEvent], bool] | None = how.pop("killed_at", None)
        if until is not None:

            def emit(event: AnyEvent) -> None:
                events.append(event)
                if until(event):
                    raise KilledError

            shared.emit = emit
        specs = [JobSpec(**spec(**{"output": f"{out}/{job['name']}", **job})) for job in plain]
        try:
            run_jobs([one for one in specs if one.name not in late], shared, **how)
        except KilledError:
            shared._model.bank.detach()  # what the process held is gone
            shared._model.bank._live.clear()
        return events

    return run


def at_once(job: dict[str, Any]) -> dict[str, Any]:
    """The same job, there from the beginning."""
    return {key: value for key, value in job.items() if key != "arrives_at"}


def reached(events: Sequence[AnyEvent]) -> dict[str, int]:
    return {e.job: e.step for e in events if isinstance(e, Step)}


@pytest.fixture(autouse=True)
def every_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.saying.STEP_EVENT_EVERY_S", 0.0)


def losses(events: Sequence[AnyEvent], name: str) -> dict[int, float]:
    return {e.step: e.loss for e in events if isinstance(e, Step) and e.job == name}


def ends(events: Sequence[AnyEvent]) -> dict[str, Ended]:
    return {e.job: e for e in events if isinstance(e, Ended)}


def weights(root: Path, out: str, name: str) -> torch.Tensor:
    tensors = load_file(root / out / name / f"{name}.safetensors")
    return torch.cat([tensors[key].flatten() for key in sorted(tensors)])


def files(events: Sequence[AnyEvent]) -> dict[str, str]:
    return {e.path: e.sha256 for e in events if isinstance(e, Committed) and e.final}


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs each pass carries, from now on."""
    sizes: list[int] = []
    plain = loop.advance

    def counted(model: Any, lanes: Sequence[loop.Lane]) -> list[loop.Stepped]:
        sizes.append(len(lanes))
        return plain(model, lanes)

    monkeypatch.setattr(loop, "advance", counted)
    return sizes


def some_jobs(dice: random.Random, *, short: bool) -> list[dict[str, Any]]:
    """Two to four jobs that have little in common but their base."""
    batch, shortest, longest = dice.choice([1, 1, 2]), *((4, 14) if short else (24, 32))
    return [
        {
            "name": f"j{number}",
            "seed": dice.randrange(1000),
            "rank": dice.choice([1, 2, 4, 8]),
            "alpha": dice.choice([None, 1.0, 3.0]),
            "learning_rate": dice.choice([1e-3, 3e-3]),
            "steps": dice.randint(shortest, longest),
            "dataset": dice.choice(["data", "square", "tall"]) if number else "data",
            "batch_size": batch,
            "gradient_accumulation": dice.choice([1, 1, 2]),
            "min_snr_gamma": dice.choice([None, 5.0]),
            "noise_offset": dice.choice([0.0, 0.1]),
            "caption_dropout": dice.choice([0.0, 0.3]),
            "lr_scheduler": dice.choice(["constant", "cosine", "cosine_with_restarts"]),
            "lr_warmup_steps": dice.choice([0, 2]),
            "max_grad_norm": dice.choice([0.0, 1.0]),
            "save_every_steps": dice.choice([None, 3]),
            "optimizer": dice.choice(["AdamW", "AdamW", "StableAdamW", "SGD"]),
            **({"arrives_at": dice.randint(1, 3)} if number and dice.random() < 0.5 else {}),
        }
        for number in range(dice.randint(2, 4))
    ]


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 40))])
def test_any_set_of_jobs_gets_together_what_each_gets_alone(
    seed: int, train: Callable[..., list[AnyEvent]], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks, rates, losses, buckets, batches, accumulation, schedules, lengths, arrivals; one in three sets has a job that explodes."""
    dice = random.Random(seed)
    jobs = some_jobs(dice, short=seed < 4)
    if seed % 3 == 0:
        jobs.insert(dice.randrange(len(jobs)), {"name": "bad", "learning_rate": 1e30, "steps": 9, "seed": seed})
    sizes = passes(monkeypatch)
    joint = train(jobs, f"joint{seed}")
    assert max(sizes) > 1 or seed > 4, "some passes were shared"
    for job in jobs:
        alone = train([at_once(job)], f"alone{seed}")
        ours, theirs = ends(joint)[job["name"]], ends(alone)[job["name"]]
        assert (ours.state, ours.step, ours.code) == (theirs.state, theirs.step, theirs.code)
        if ours.state == "failed":
            assert job["name"] == "bad"
            continue
        assert losses(joint, job["name"]) == pytest.approx(losses(alone, job["name"]), rel=1e-5)
        a, b = (weights(root, f"{out}{seed}", job["name"]) for out in ("joint", "alone"))
        assert (a - b).norm() <= 1e-5 * b.norm(), float((a - b).norm() / b.norm())


def test_optimizers_that_take_signs_agree_in_their_losses(train: Callable[..., list[AnyEvent]]) -> None:
    """Where a gradient is nearly nothing a sign may turn, and with it a whole update: the weights may part, the losses do not."""
    jobs = [
        {"name": n, "seed": i, "steps": 8, "optimizer": o, "learning_rate": 1e-3}
        for i, (n, o) in enumerate({"a": "Lion", "b": "Lion8bit"}.items())
    ]
    joint = train(jobs, "signs")
    for job in jobs:
        assert losses(joint, job["name"]) == pytest.approx(losses(train([job], "sign"), job["name"]), rel=1e-3)


TRIO: list[dict[str, Any]] = [
    {"name": "anna", "seed": 1, "steps": 9, "save_every_steps": 2, "gradient_accumulation": 2},
    {"name": "bert", "seed": 2, "steps": 12, "rank": 8, "save_every_steps": 5, "optimizer": "AdamW8bit"},
    {"name": "carl", "seed": 3, "steps": 6, "dataset": "square"},
]


@pytest.fixture(scope="module")
def undisturbed() -> list[AnyEvent]:
    """Filled by the first test that needs it."""
    return []


@pytest.mark.parametrize("seed", range(5))
def test_killed_anywhere_and_gone_on_is_the_same_group_undisturbed_bit_for_bit(
    seed: int, train: Callable[..., list[AnyEvent]], root: Path, undisturbed: list[AnyEvent]
) -> None:
    """Killed at an event drawn at random, once or twice: every file that comes home is the same, byte for byte."""
    undisturbed += [] if undisturbed else train(TRIO, "whole")
    whole = undisturbed
    dice = random.Random(seed)
    events: list[AnyEvent] = []
    for _ in range(1 + seed % 2):
        at = dice.randrange(len(whole) - 12)
        counter = iter(range(10**6))
        left = [job for job in TRIO if ends(events).get(job["name"]) is None]
        events += train(left, f"parts{seed}", killed_at=lambda _, at=at, counter=counter: next(counter) == at)
    left = [job for job in TRIO if ends(events).get(job["name"]) is None]
    events += train(left, f"parts{seed}")
    assert {name: e.state for name, e in ends(events).items()} == {"anna": "done", "bert": "done", "carl": "done"}
    for job in TRIO:
        name = job["name"]
        assert torch.equal(weights(root, f"parts{seed}", name), weights(root, "whole", name)), name
        assert {**losses(whole, name), **losses(events, name)} == losses(whole, name)


def test_stopped_together_and_gone_on_together_is_undisturbed_bit_for_bit(train: Callable[..., list[AnyEvent]], root: Path) -> None:
    """A stop is a cut that the undisturbed run did not have: here all jobs have one kind, so that the passes are the same."""
    jobs = [{"name": n, "seed": i, "steps": 8, "dataset": "square", "rank": 2 + i} for i, n in enumerate(("anna", "bert"))]
    train(jobs, "calm")
    first = train(jobs, "halt", stop_at=4)
    assert {e.state for e in ends(first).values()} == {"stopped"}
    assert all((root / "halt" / n / "checkpoints").is_dir() for n in ("anna", "bert"))
    train(jobs, "halt")
    for name in ("anna", "bert"):
        assert torch.equal(weights(root, "halt", name), weights(root, "calm", name))


LATE: list[dict[str, Any]] = [*TRIO[:2], {**TRIO[2], "name": "dora", "arrives_at": 3, "rank": 2, "learning_rate": 1e-3}]


def test_a_job_that_arrives_joins_the_passes_of_those_under_way(
    train: Callable[..., list[AnyEvent]], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It and they get what they get alone; a second one, of another kind, has its turn when they are done."""
    sizes = passes(monkeypatch)
    events = train([*LATE, {"name": "thin", "steps": 2, "gradient_checkpointing": True, "arrives_at": 2}], "joins")
    assert max(sizes) == 3
    assert {name: e.state for name, e in ends(events).items()} == dict.fromkeys(("anna", "bert", "dora", "thin"), "done")
    assert [e.job for e in events if isinstance(e, Ended)][-1] == "thin"
    for job in LATE:
        train([at_once(job)], "joins alone")
        a, b = weights(root, "joins", job["name"]), weights(root, "joins alone", job["name"])
        assert (a - b).norm() <= (1e-5 if "optimizer" not in job else 1e-3) * b.norm(), job["name"]


@pytest.mark.parametrize("after", [0, 7])
def test_a_session_killed_after_a_job_has_joined_goes_on_with_it_bit_for_bit(
    after: int, train: Callable[..., list[AnyEvent]], root: Path
) -> None:
    whole = train(LATE, f"joined{after}")
    begun = next(i for i, e in enumerate(whole) if isinstance(e, Started) and e.job == "dora")
    saved = next(i for i, e in enumerate(whole) if i > begun and isinstance(e, Committed) and e.job == "bert")
    counter = iter(range(10**6))
    cut = train(LATE, f"cut off{after}", killed_at=lambda _: next(counter) == saved + after)
    left = [at_once(job) for job in LATE if job["name"] not in ends(cut)]
    later = train(left, f"cut off{after}")
    assert {e.state for e in ends(cut + later).values()} == {"done"}
    for job in LATE:
        assert torch.equal(weights(root, f"cut off{after}", job["name"]), weights(root, f"joined{after}", job["name"])), job["name"]


def test_a_job_that_arrives_and_cannot_begin_leaves_the_others_as_they_were(train: Callable[..., list[AnyEvent]], root: Path) -> None:
    events = train([PAIR[0], {"name": "bad", "dataset": "nowhere", "arrives_at": 2}], "unfit guest")
    assert {name: e.code for name, e in ends(events).items()} == {"good": "", "bad": "LRY-DATA-MISSING"}
    train(PAIR[:1], "lonely host")
    a, b = weights(root, "unfit guest", "good"), weights(root, "lonely host", "good")
    assert torch.equal(a, b), "its passes were always its own"


SAMPLES = {"anna": 15, "bert": 12, "carl": 6}
"""Five pictures in two and three batches: two of three steps have two samples, one has one."""

PAIR: list[dict[str, Any]] = [{"name": "good", "seed": 1, "steps": 7}, {"name": "bad", "seed": 2, "steps": 7}]


def spoil_data(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loop.Lane._draw

    def draw(self: loop.Lane, model: Any, piece: loop.Piece) -> loop.Batch:
        if self.options.seed == 2 and piece.step == 3:
            raise ValueError("a picture that nobody can read")
        return plain(self, model, piece)

    monkeypatch.setattr(loop.Lane, "_draw", draw)


def spoil_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass itself breaks, whoever else is in it."""
    plain = loop._backward

    def backward(model: Any, members: loop.Members) -> Sequence[torch.Tensor]:
        if any(lane.options.seed == 2 and lane.step == 3 for lane, _ in members):
            plain(model, members)  # leaves gradients behind
            raise RuntimeError("a kernel that does not like this batch")
        return plain(model, members)

    monkeypatch.setattr(loop, "_backward", backward)


def spoil_update(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loop._update

    def update(lane: loop.Lane) -> None:
        if lane.options.seed == 2 and lane.step == 3:
            raise RuntimeError("no such state")
        plain(lane)

    monkeypatch.setattr(loop, "_update", update)


def spoil_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = together.keeping.keep_up

    def keep_up(run: Any, **how: Any) -> None:
        if run.job.name == "bad" and run.lane.step == 3:
            raise OSError(28, "No space left on device")
        plain(run, **how)

    monkeypatch.setattr(together.keeping, "keep_up", keep_up)


def test_what_is_not_a_number_in_one_job_is_in_no_bit_of_its_neighbours(train: Callable[..., list[AnyEvent]], root: Path) -> None:
    """As long as its slot is kept: it explodes, goes back, explodes again; beside it all is as beside a calm one of its kind."""
    good = {"name": "good", "seed": 1, "steps": 9, "dataset": "square"}
    other = {"name": "other", "seed": 2, "steps": 9, "dataset": "square", "rank": 2, "save_every_steps": 2}
    calm = train([good, {**other, "learning_rate": 1e-3}], "beside a calm one")
    wild = train([good, {**other, "learning_rate": 1e30}], "beside a wild one")
    end = next(i for i, event in enumerate(wild) if isinstance(event, Ended) and event.job == "other")
    ours, theirs = losses(wild[:end], "good"), losses(calm, "good")
    assert len(ours) >= 3, "steps beside it"
    assert {step: theirs[step] for step in ours} == ours
    assert ends(wild)["good"].state == "done"


SPOILT = {
    "its data": (spoil_data, "LRY-TRAIN-CRASH"),
    "its pass": (spoil_pass, "LRY-TRAIN-CRASH"),
    "its optimizer": (spoil_update, "LRY-TRAIN-CRASH"),
    "its disk": (spoil_disk, "LRY-TRAIN-DISK"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_breaks_in_one_job_ends_that_job_alone(
    case: str, train: Callable[..., list[AnyEvent]], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(PAIR[:1], "lonely")
    spoil, code = SPOILT[case]
    spoil(monkeypatch)
    events = train(PAIR, f"spoilt {case}")
    assert (ends(events)["bad"].state, ends(events)["bad"].code, ends(events)["bad"].step) == ("failed", code, 3)
    assert ends(events)["good"].state == "done"
    a, b = weights(root, f"spoilt {case}", "good"), weights(root, "lonely", "good")
    assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize(("key", "value", "code"), [("dataset", "nowhere", "LRY-DATA-MISSING"), ("base", "nowhere", "LRY-BASE-MISSING")])
def test_a_job_that_cannot_begin_ends_alone(key: str, value: str, code: str, train: Callable[..., list[AnyEvent]]) -> None:
    events = train([{"name": "bad", key: value}, PAIR[0]], f"unfit {key}")
    assert ends(events)["bad"].code == code
    assert ends(events)["good"].state == "done"


def test_one_job_is_stopped_and_the_others_go_on(train: Callable[..., list[AnyEvent]], root: Path) -> None:
    train(PAIR[:1], "lonely")
    events = train(PAIR, "one leaves", leave_at={"bad": 3})
    stopped = ends(events)["bad"]
    assert stopped.state == "stopped"
    assert stopped.step == 3
    assert (root / f"one leaves/bad/checkpoints/step{stopped.step:06d}.safetensors").is_file()
    assert ends(events)["good"].state == "done"
    a, b = weights(root, "one leaves", "good"), weights(root, "lonely", "good")
    assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("together", [True, False])
def test_a_job_that_was_cut_goes_on_later_and_neither_it_nor_its_neighbour_is_another_for_it(
    train: Callable[..., list[AnyEvent]], root: Path, together: bool
) -> None:
    """One by one to the bit. In shared passes to rounding: a pass of one adds up in another order than a pass of two."""
    out = f"cut, {together}"
    train(PAIR, f"whole, {together}", together=together)
    cut = train(PAIR, out, together=together, leave_at={"bad": 3})
    assert (ends(cut)["bad"].state, ends(cut)["good"].state) == ("stopped", "done")
    later = train(PAIR[1:], out, together=together)
    assert ends(later)["bad"].state == "done"
    assert min(losses(later, "bad")) == 4, "from its checkpoint"
    for name in ("good", "bad"):
        a, b = weights(root, out, name), weights(root, f"whole, {together}", name)
        assert (a - b).norm() <= (1e-5 if together else 0.0) * b.norm()


def test_too_many_for_the_memory_share_smaller_passes(
    train: Callable[..., list[AnyEvent]], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [{"name": f"j{i}", "seed": i, "steps": 4, "dataset": "square"} for i in range(4)]
    plain = loop._backward

    def backward(model: Any, members: loop.Members) -> Sequence[torch.Tensor]:
        if len(members) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, members)

    monkeypatch.setattr(loop, "_backward", backward)
    sizes = passes(monkeypatch)
    events = train(jobs, "tight")
    assert {e.state for e in ends(events).values()} == {"done"}
    assert sizes == [4] + [2] * 8
    assert [e.job for e in events if isinstance(e, Warned) and "at most 2 share one" in e.message] == ["j0", "j1", "j2", "j3"]
    train(jobs[3:], "roomy")
    a, b = weights(root, "tight", "j3"), weights(root, "roomy", "j3")
    assert (a - b).norm() <= 1e-5 * b.norm()


def test_one_by_one_gives_the_bits_of_a_job_alone(train: Callable[..., list[AnyEvent]], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = passes(monkeypatch)
    strict = train(TRIO, "strict", together=False)
    assert set(sizes) == {1}
    order = [e.job for e in strict if isinstance(e, Step)]
    assert order == sorted(order), "one after the other"
    for job in TRIO:
        (path, sha), *_ = files(train([job], "by itself")).items()
        assert files(strict)[path] == sha


def test_jobs_that_differ_in_kind_take_turns_on_the_same_base(
    train: Callable[..., list[AnyEvent]], shared: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [
        {"name": "anna", "steps": 3},
        {"name": "text", "steps": 2, "text_encoder_lr": 1e-3},
        {"name": "thin", "steps": 2, "gradient_checkpointing": True},
        {"name": "bert", "steps": 3, "seed": 2},
    ]
    train(jobs[:1], "load")
    loaded = shared._model
    events = train(jobs, "turns")
    assert shared._model is loaded
    assert {e.state for e in ends(events).values()} == {"done"}
    order = list(dict.fromkeys(e.job for e in events if isinstance(e, Ended)))
    assert order == ["anna", "bert", "text", "thin"]
    told = [e.detail for e in events if isinstance(e, Phase) and e.phase == "training" and e.job == "anna"]
    assert told[0] == "together with bert"


def test_every_job_tells_its_own_story(train: Callable[..., list[AnyEvent]]) -> None:
    """Events carry the job's name, its own steps in order, and a speed that is its share of the whole."""
    events = train(TRIO, "story")
    for job in TRIO:
        mine = [e for e in events if e.job == job["name"]]
        assert [e.step for e in mine if isinstance(e, Step)] == list(range(1, job["steps"] + 1))
        assert isinstance(mine[-1], Ended)
        assert len([e for e in mine if isinstance(e, Started)]) == 1
    begun = {e.job: e.at_s for e in events if isinstance(e, Phase) and e.phase == "training" and e.detail}
    for job in TRIO:
        steps = [e for e in events if isinstance(e, Step) and e.job == job["name"]]
        seconds = steps[-1].at_s - begun[job["name"]]
        seen = SAMPLES[job["name"]]
        assert seen / max(e.samples_per_s for e in steps) <= seconds * 1.05 + 0.1, "no job claims its neighbours' samples"
        said = sum(seen / len(steps) / e.samples_per_s for e in steps)
        assert said == pytest.approx(seconds, rel=0.5, abs=0.2)


# --- who shares a pass ------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=9), st.integers(1, 8))
def test_a_pass_carries_one_kind_and_no_more_than_fit(waiting: list[tuple[int, int]], width: int) -> None:
    chosen = turns.choose([turns.Waiting(*one) for one in waiting], width)
    assert 1 <= len(chosen) <= width
    assert chosen == sorted(set(chosen))
    assert len({waiting[i][0] for i in chosen}) == 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=8), st.integers(1, 8))
def test_nobody_starves(kinds: list[list[int]], width: int) -> None:
    """However kinds follow each other, a job waits at most for patience and for every other job once."""
    at, waited, worst = [0] * len(kinds), [0] * len(kinds), 0
    for _ in range(200):
        jobs = [turns.Waiting(mine[i % len(mine)], w) for mine, i, w in zip(kinds, at, waited, strict=True)]
        chosen = turns.choose(jobs, width)
        for job in range(len(kinds)):
            at[job] += job in chosen
            waited[job] = 0 if job in chosen else waited[job] + 1
        worst = max(worst, *waited)
    assert worst <= turns.PATIENCE + len(kinds)


def test_the_largest_group_goes_first_and_the_odd_one_when_its_patience_ends() -> None:
    odd = [turns.Waiting("square", 0), turns.Waiting("tall", 0), turns.Waiting("square", 0)]
    assert turns.choose(odd, 8) == [0, 2]
    assert turns.choose([odd[0], turns.Waiting("tall", turns.PATIENCE), odd[2]], 8) == [1]
    assert math.isfinite(turns.PATIENCE)
