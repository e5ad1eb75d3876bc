"""Every family through whole jobs: trained, drawn, saved, resumed, several in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests import tiny
from trainer.families.model import Model
from trainer.jobs import Place
from trainer.protocol import FAMILIES, AnyEvent, Committed, Ended, JobSpec, Step, Warned
from trainer.together import run_jobs

Train = Callable[..., list[AnyEvent]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base of each family beside one dataset of two shapes."""
    root = tmp_path_factory.mktemp("families")
    for name in FAMILIES:
        getattr(tiny, name)(root / name)
    tiny.pictures(root / "data", count=5, sizes=((64, 64), (64, 96)))
    tiny.pictures(root / "others", count=2, sizes=((96, 64),))
    return root


@pytest.fixture(scope="module")
def places(root: Path) -> dict[str, Place]:
    """Each base is loaded once."""
    return {name: Place(root, lambda _: None) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def home(root: Path, family: str) -> Path:
    """Where this family's jobs write."""
    return root / "runs" / family


@pytest.fixture
def train(family: str, places: dict[str, Place], spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train jobs of one family in a folder; their events."""
    monkeypatch.setattr("trainer.saying.STEP_EVENT_EVERY_S", 0.0)
    place = places[family]

    def run(jobs: Sequence[dict[str, Any]], out: str, stop_at: float = math.inf) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        place.emit = events.append
        place.stopping = lambda: max((e.step for e in events if isinstance(e, Step)), default=0) >= stop_at
        common = {"family": family, "base": family}
        late = {job["name"]: job["arrives_at"] for job in jobs if "arrives_at" in job}
        plain = [{key: value for key, value in job.items() if key != "arrives_at"} for job in jobs]
        specs = [JobSpec(**spec(**{**common, "output": f"runs/{family}/{out}/{job['name']}", **job})) for job in plain]

        def arriving() -> list[JobSpec]:
            reached = max((e.step for e in events if isinstance(e, Step)), default=0)
            return [one for one in specs if late.get(one.name, math.inf) <= reached and late.pop(one.name)]

        place.arriving = arriving
        run_jobs([one for one in specs if one.name not in late], place)
        return events

    return run


def ended(events: Sequence[AnyEvent]) -> list[tuple[str, str]]:
    return [(e.state, e.message) for e in events if isinstance(e, Ended)]


def only(events: Sequence[AnyEvent], kind: type[AnyEvent]) -> list[Any]:
    return [e for e in events if isinstance(e, kind)]


WORDS: list[dict[str, Any]] = [{}, {"text_encoder_lr": 1e-3}]
PREFIXES = {
    "sd15": ("lora_unet_", "lora_te_text_model_"),
    "sd2": ("lora_unet_", "lora_te_text_model_"),
    "sdxl": ("lora_unet_", "lora_te1_text_model_", "lora_te2_text_model_"),
    "sd3": ("transformer", "text_encoder", "text_encoder_2"),
    "sd35": ("transformer", "text_encoder", "text_encoder_2"),
    "flux": ("transformer", "text_encoder"),
    "zimage": ("transformer",),
}
"""How the keys of the file begin, up to the first dot: one for each part that is trained."""
WHOLE = {
    "name": "lisa",
    "steps": 4,
    "batch_size": 2,
    "text_encoder_lr": 1e-3,
    "min_snr_gamma": 5.0,
    "flip": True,
    "caption_dropout": 0.2,
    "gradient_checkpointing": True,
}


def test_a_job_with_everything_ends_well(train: Train, home: Path, family: str) -> None:
    """All text encoders trained, samples drawn, metadata written; nothing that a person need worry about is said."""
    events = train([{**WHOLE, "sample_every_steps": 4, "sample_prompts": ("a dog --w 64 --h 96 --s 2",)}], "whole")
    assert [state for state, _ in ended(events)] == ["done"], ended(events)
    assert [e.message for e in only(events, Warned) if "gradient" in e.message] == []
    assert len([e for e in only(events, Committed) if e.role == "sample"]) == 2
    assert all(math.isfinite(e.loss) for e in only(events, Step))
    with safe_open(home / "whole/lisa/lisa.safetensors", "pt") as file:
        facts = file.metadata()
        keys = {key.split(".")[0] for key in file.keys()}  # noqa: SIM118  # its own kind of file
    wanted = {
        "sd15": ("sd_v1", "False", "stable-diffusion-v1/lora", "epsilon"),
        "sd2": ("sd_v2_v", "True", "stable-diffusion-v2-768-v/lora", "v"),
        "sdxl": ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora", "epsilon"),
        "sd3": ("sd3_medium", "False", "stable-diffusion-3-medium/lora", None),
        "sd35": ("sd35_medium", "False", "stable-diffusion-3-5-medium/lora", None),
        "flux": ("flux1", "False", "flux-1-dev/lora", None),
        "zimage": ("zimage", "False", "z-image/lora", None),
    }[family]
    assert tuple(facts.get(k) for k in ("ss_base_model_version", "ss_v2", "modelspec.architecture", "modelspec.prediction_type")) == wanted
    prefixes = PREFIXES[family]
    assert all(key.startswith(prefixes) for key in keys)
    assert all(any(key.startswith(prefix) for key in keys) for prefix in prefixes)


def test_the_device_belongs_to_the_encoders_first_and_then_to_what_trains(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large denoiser beside large encoders would need a larger card than the training."""
    order: list[str] = []
    for name in ("encode_pixels", "encode_text", "place_denoiser", "predict"):
        plain = getattr(Model, name)

        def noted(self: Model, *args: Any, _name: str = name, _plain: Any = plain) -> Any:
            order.append(_name)
            return _plain(self, *args)

        monkeypatch.setattr(Model, name, noted)
    train([{"name": "order", "steps": 2, "dataset": "others", "trigger": "new"}], "order")  # words that no cache has
    first = order.index("place_denoiser")
    assert "encode_text" in order[:first]
    assert set(order[first:-1]) == {"place_denoiser", "predict"}
    assert order[-1] == "place_denoiser", "put away at the end"


@pytest.mark.parametrize("words", WORDS)
def test_stopped_and_gone_on_is_undisturbed_bit_for_bit(words: dict[str, Any], train: Train, home: Path) -> None:
    job = {"name": "lisa", "steps": 6, "flip": True, **words}
    where = f"resume{len(words)}"
    train([job], f"{where}/whole")
    assert ended(train([job], f"{where}/parts", stop_at=3))[0][0] == "stopped"
    assert ended(train([job], f"{where}/parts"))[0][0] == "done"
    whole, parts = (load_file(home / where / part / "lisa/lisa.safetensors") for part in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_jobs_in_one_pass_get_what_they_get_alone(train: Train, home: Path) -> None:
    """Different ranks, rates and seeds over pictures of two shapes; one comes later, one explodes; what a picture says goes with its row.

    To rounding, which AdamW enlarges where a gradient is nearly none: the learnt halves agree as wholes.
    """
    jobs = [{"name": f"j{i}", "steps": 5, "rank": 4 - i, "seed": i, "learning_rate": 1e-3 * (i + 1)} for i in range(3)]
    guests = [{**jobs[2], "arrives_at": 2}, {"name": "bad", "steps": 5, "seed": 9, "learning_rate": 1e30}]
    told = only(train([*jobs[:2], *guests], "together"), Ended)
    assert {e.job: e.state for e in told} == {"j0": "done", "j1": "done", "j2": "done", "bad": "failed"}
    for job in jobs:
        train([job], "alone")
        a, b = (load_file(home / how / job["name"] / f"{job['name']}.safetensors") for how in ("together", "alone"))
        assert a.keys() == b.keys()
        one, other = (torch.cat([file[key].flatten() for key in sorted(file) if "lora_up" in key or "lora_B" in key]) for file in (a, b))
        assert other.norm() > 0
        assert (one - other).norm() < 1e-3 * other.norm()


def test_one_encoder_can_be_trained_and_another_left(train: Train, home: Path, family: str) -> None:
    if len(PREFIXES[family]) < 3:
        pytest.skip("this family has one text encoder to train")
    assert ended(train([{"name": "lisa", "steps": 2, "text_encoder_lr": 1e-3, "text_encoder_2_lr": 0.0}], "first"))[0][0] == "done"
    keys = load_file(home / "first/lisa/lisa.safetensors").keys()
    _, first, second = PREFIXES[family]
    assert any(key.startswith(first) for key in keys)
    assert not any(key.startswith(second) for key in keys)


def test_one_session_trains_jobs_of_every_family(root: Path, spec: Callable[..., dict[str, Any]]) -> None:
    """Each group has its own base; the one before has left the device. What a job gets does not depend on who came first."""
    jobs = [JobSpec(**spec(name=name, family=name, base=name, steps=2, output=f"session/{name}")) for name in FAMILIES]
    events: list[AnyEvent] = []
    run_jobs(jobs, Place(root, events.append))
    assert [state for state, _ in ended(events)] == ["done"] * len(FAMILIES)
    again: list[AnyEvent] = []
    run_jobs([job.model_copy(update={"output": f"again/{job.name}"}) for job in jobs[::-1]], Place(root, again.append))
    files = [{e.job: e.sha256 for e in only(one, Committed) if e.final} for one in (events, again)]
    assert files[0] == files[1]
