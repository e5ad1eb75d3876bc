"""Ten steps beside other programs: the same first weights, pictures, noise and timesteps give the same LoRA.

The reference is a loop of diffusers and peft alone: the pipeline's own words and answers, peft's LoRA in its models, torch's AdamW and
clipping. Where `SD_SCRIPTS` names a checkout of kohya-ss/sd-scripts, its own network trains beside ours too.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from peft import LoraConfig
from torch import Tensor

from tests import tiny
from tests.trainer import test_families as unets
from tests.trainer import test_flow_families as flows
from trainer import loop, optimizers
from trainer.adapters import Adapter
from trainer.buckets import Plan
from trainer.contract import IDS
from trainer.families.model import Model
from trainer.protocol import TrainingOptions

CPU = torch.device("cpu")
STEPS, WORDS = 10, "a photo of dog"
SIZES = (64, 96, 0, 0, 64, 96)
FAMILIES = ["sd15", "sdxl", "sd3", "flux", "zimage"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    for name in FAMILIES:
        getattr(tiny, name)(root / name)
    return root


@dataclass(frozen=True, slots=True)
class Ten:
    """Ten steps of ours, and what they were made of."""

    first: Adapter
    last: Adapter
    batches: list[loop.Batch]
    losses: list[float]


def ten_of_ours(model: Model, parts: list[str]) -> Ten:
    """Random latents of two pictures, one caption; alpha is not the rank."""
    options = TrainingOptions.model_validate(
        {"rank": 4, "alpha": 2.0, "steps": STEPS, "batch_size": 2, "learning_rate": 1e-3, "optimizer": "AdamW", "mixed_precision": "no"}
    )
    channels = 4 if model.family.parts[0] == "unet" else 16
    pictures = torch.randn(2, channels, 8, 12, generator=torch.Generator().manual_seed(2))
    trained = [part for part in parts if part in model.family.encoders]
    with torch.no_grad():
        words = model.encode_text(WORDS, options, [part for part in model.family.encoders if part not in trained])
    ids = model.tokens(WORDS, options)
    told = words | {IDS + part: ids[part] for part in trained}
    told |= {"time_ids": torch.tensor(SIZES, dtype=torch.float32)} if "text_encoder_2" in model.parts and channels == 4 else {}
    data = loop.Data([(8, 12)] * 2, [1, 1], lambda index, _: pictures[index], lambda _: told, [[WORDS]] * 2)

    def lane() -> loop.Lane:
        adapter = Adapter.create(model.targets(parts), options.rank, options.scale, 3, CPU)
        plan = Plan(images=2, batches_per_epoch=1, steps_per_epoch=1, steps=STEPS, epochs=STEPS)
        rates = dict.fromkeys(parts, options.learning_rate)
        return loop.Lane(options, plan, data, adapter, optimizers.create(options, adapter)[0], rates, optimizers.LossScale(enabled=False))

    model.prepare(model.targets(parts), checkpointing=False)
    ours, first = lane(), lane()
    batches = []
    for step in range(STEPS):
        first.step = step
        batches += first.batches(model)
    losses = []
    for _ in range(STEPS):
        (stepped,) = loop.step(model, [ours])
        assert stepped.error is None
        losses.append(stepped.loss)
    model.prepare([], checkpointing=False)
    return Ten(first.adapter, ours.adapter, batches, losses)


Answer = Callable[[Any, loop.Batch], tuple[Tensor, Tensor]]
"""A pipeline and a batch -> its answer, and what was wanted."""


def diffused(pipeline: Any, batch: loop.Batch) -> tuple[Tensor, Tensor]:
    """By diffusers' own scheduler."""
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    return unets.diffusers_answer(pipeline, noisy, batch.timesteps, WORDS, SIZES), batch.noise


def flowing(name: str) -> Answer:
    def answered(pipeline: Any, batch: loop.Batch) -> tuple[Tensor, Tensor]:
        level = batch.timesteps.view(-1, 1, 1, 1)
        noisy = (1.0 - level) * batch.latents + level * batch.noise
        answer = flows.diffusers_answer(name, pipeline, noisy, batch.timesteps, WORDS, flows.DEFAULTS[name])
        return answer, batch.noise - batch.latents

    return answered


def ten_of_theirs(pipeline: Any, parameters: list[Tensor], answer: Answer, batches: list[loop.Batch]) -> list[float]:
    """As their scripts do it: mean squared error, gradients clipped to 1, AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    losses = []
    for batch in batches:
        predicted, wanted = answer(pipeline, batch)
        loss = torch.nn.functional.mse_loss(predicted.float(), wanted.float(), reduction="mean")
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def with_peft(pipeline: Any, adapter: Adapter) -> dict[str, Tensor]:
    """peft's LoRA in the pipeline's own models, with our first weights."""
    found: dict[str, Tensor] = {}
    for part, lay in adapter.layouts.items():
        module = getattr(pipeline, part).requires_grad_(False)
        module.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=[target.name for target in lay.targets]))
        parameters = dict(module.named_parameters())
        for slot, down, up in adapter.weights(part):
            for side, value in (("A", down), ("B", up)):
                own = parameters[f"{slot.target.name}.lora_{side}.default.weight"]
                own.data = value.reshape(own.shape).clone()
                found[f"{part}.{slot.target.name}.{side}"] = own
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_ten_steps_beside_diffusers_and_peft_give_the_same_lora(name: str, bases: Path) -> None:
    """UNets with their text encoders, transformers alone, as their scripts train them. To 1e-5, as every loss on the way."""
    base = {"sd15": unets, "sdxl": unets}.get(name, flows)
    model = base.load(bases, name)
    parts = list(model.family.parts) if name in ("sd15", "sdxl") else [model.denoiser]
    ours = ten_of_ours(model, parts)
    pipeline = base.PIPELINES[name].from_pretrained(bases / name)
    theirs = with_peft(pipeline, ours.first)
    losses = ten_of_theirs(pipeline, list(theirs.values()), diffused if name in ("sd15", "sdxl") else flowing(name), ours.batches)
    assert ours.losses == pytest.approx(losses, rel=1e-5)
    moved = 0.0
    for part in ours.last.layouts:
        for slot, down, up in ours.last.weights(part):
            other_down, other_up = (theirs[f"{part}.{slot.target.name}.{side}"].detach().flatten(1) for side in "AB")
            change, other = up @ down, other_up @ other_down
            torch.testing.assert_close(change, other, rtol=1e-5, atol=1e-5, msg=lambda told, at=slot.target.name: f"{at}: {told}")
            assert bool(change.any()) != slot.target.idle
            moved = max(moved, float(change.abs().max()))
    assert moved > 1e-3, "something was learnt"


# --- sd-scripts ------------------------------------------------------------------------------------


@pytest.fixture
def kohya(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Its `networks/lora.py`, as it is. What that takes from its library is a log and a class to compare with."""
    where = os.environ.get("SD_SCRIPTS", "")
    if not Path(where, "networks", "lora.py").is_file():
        pytest.skip("SD_SCRIPTS names no checkout of kohya-ss/sd-scripts")
    monkeypatch.syspath_prepend(where)
    before = set(sys.modules)
    utils, original = ModuleType("library.utils"), ModuleType("library.sdxl_original_unet")
    utils.setup_logging = lambda *_, **__: None  # type: ignore[attr-defined]
    original.SdxlUNet2DConditionModel = type("SdxlUNet2DConditionModel", (), {})  # type: ignore[attr-defined]
    for module in (ModuleType("library"), utils, original):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield importlib.import_module("networks.lora")
    for name in set(sys.modules) - before:
        if name.startswith(("networks", "library")):
            del sys.modules[name]


def spelt(file: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """transformers 5 has CLIP's layers without their old parent, which sd-scripts, run with it, leaves out of their names."""
    bare = not any("text_model" in key for key in network.state_dict())
    return {key.replace("text_model_", "") if bare else key: value for key, value in file.items()}


def test_ten_steps_beside_sd_scripts_network_give_the_same_file(kohya: Any, bases: Path) -> None:
    """Its network finds the layers by itself and takes our first file by its own names; after ten steps its file is ours."""
    model = unets.load(bases, "sd15")
    ours = ten_of_ours(model, ["unet", "text_encoder"])
    write = model.family.formats["kohya"]
    pipeline = unets.PIPELINES["sd15"].from_pretrained(bases / "sd15")
    unet, text = pipeline.unet.requires_grad_(False), pipeline.text_encoder.requires_grad_(False)
    network = kohya.create_network(1.0, 4, 2.0, pipeline.vae, text, unet)
    network.apply_to(text, unet, True, True)
    network.load_state_dict(spelt(write(ours.first, torch.float32), network), strict=True)
    losses = ten_of_theirs(pipeline, list(network.parameters()), diffused, ours.batches)
    assert ours.losses == pytest.approx(losses, rel=1e-5)
    after = spelt(write(ours.last, torch.float32), network)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(after[key], value, rtol=1e-5, atol=1e-5, msg=lambda told, at=key: f"{at}: {told}")
