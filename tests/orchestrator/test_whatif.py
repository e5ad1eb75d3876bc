"""From a file to a plan: what the plan sets for a card is what is ordered, and other keys are tried on the same offers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeClock, FakeCloud, SilentView, offer
from PIL import Image

from orchestrator.errors import ConfigError, NoOffer, UsageError
from orchestrator.order import load_of
from orchestrator.prepare import asked, prepare
from orchestrator.pricing.needs import GIB, Bucket, JobShape, memory
from orchestrator.safety.interrupts import Interrupts
from orchestrator.trip import Tools
from orchestrator.whatif import changes_of, what_if
from providers.base import Offer

FILE = """
name = "autumn"
[budget]
max_usd = 20
[machine]
providers = ["ssh"]
[[lora]]
name = "lisa"
dataset = "pictures"
base = "stabilityai/stable-diffusion-xl-base-1.0"
family = "sdxl"
resolution = 1024
epochs = 100
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        Image.new("RGB", (1024, 1024), (number, 9, 9)).save(tmp_path / "pictures" / f"{number}.png")
        (tmp_path / "pictures" / f"{number}.txt").write_text("a cat")
    (tmp_path / "lorry.toml").write_text(FILE)
    return tmp_path / "lorry.toml"


def tools_for(*offers: Offer) -> Tools:
    cloud = FakeCloud(FakeClock(), offers=list(offers))
    return Tools(clock=cloud.clock, view=SilentView(), interrupts=Interrupts(), provider=lambda _: cloud)  # type: ignore[arg-type, return-value]


SHAPE = JobShape(family="sdxl", buckets=(Bucket(width=1024, height=1024),))
SMALL = offer("small", gpu_name="RTX 3060", vram_gib=sum(memory(replace(SHAPE, checkpointing=on)).total for on in (False, True)) / 2 / GIB)
"""A card on which the file's job fits with gradient checkpointing alone."""


def test_what_the_plan_sets_for_the_first_card_is_what_is_ordered_and_it_is_said(file: Path):
    tools = tools_for(SMALL)
    ready = prepare(asked([file], tools, providers=None, budget=None, unguarded=True), tools)
    (job,) = ready.jobs
    assert job.config.gradient_checkpointing
    assert ready.load == load_of(ready.jobs)
    assert ready.load.jobs[0].may == (), "from here on nothing more is set, on whatever machine"
    assert ready.plan.best.estimate.settings == ()
    assert any("gradient checkpointing" in line and "RTX 3060" in line for line in tools.view.said)  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["gradient_checkpointing = false", 'memory = "written"'])
def test_a_key_of_the_file_stands_and_what_then_does_not_fit_is_refused_with_the_way_out(file: Path, key: str):
    file.write_text(FILE + key + "\noffload = 0.0\n")
    with pytest.raises(NoOffer) as caught:
        prepare(asked([file], tools_for(SMALL), providers=None, budget=None, unguarded=True), tools_for(SMALL))
    assert "GiB less" in caught.value.hint


def test_other_keys_are_tried_on_the_same_offers_as_if_the_file_had_them(file: Path):
    ready = asked([file], tools_for(offer("large")), providers=None, budget=None, unguarded=True)
    now, then = what_if(ready, changes_of(["rank=128", "epochs=200"]))
    assert now.plan is not None
    assert then.plan is not None
    assert then.name == "rank=128 epochs=200"
    assert then.plan.load.jobs[0].steps == 2 * now.plan.load.jobs[0].steps, "epochs are counted again"
    assert then.plan.best.estimate.vram_bytes > now.plan.best.estimate.vram_bytes
    assert then.plan.best.expected_usd > now.plan.best.expected_usd
    steps = what_if(ready, changes_of(["steps=7"]))[1]
    assert steps.plan is not None
    assert steps.plan.load.jobs[0].steps == 7, "steps take the epochs back"


def test_a_change_that_fits_nothing_is_told_beside_the_other(file: Path):
    ready = asked([file], tools_for(SMALL), providers=None, budget=None, unguarded=True)
    now, then = what_if(ready, changes_of(["batch=64 resolution=2048 max_bucket=2048"]))
    assert now.plan is not None
    assert then.plan is None
    assert "too little VRAM" in then.why_not


def test_a_change_that_no_file_could_have_is_refused_in_words(file: Path):
    ready = asked([file], tools_for(SMALL), providers=None, budget=None, unguarded=True)
    with pytest.raises(UsageError, match="lisa: rank: Input should be greater than or equal to 1"):
        what_if(ready, changes_of(["rank=0"]))
    with pytest.raises(UsageError, match="must lie between"):
        what_if(ready, changes_of(["resolution=4096"]))
    with pytest.raises((UsageError, ConfigError)):
        what_if(ready, changes_of(["base=nowhere.safetensors"]))
