"""Blocks that wait in main memory: brought when needed, never many at a time, and the same numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer import offloading, train
from trainer.offloading import Conveyor
from trainer.protocol import FAMILIES, TrainingOptions
from trainer.quantised import quantise

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x))


class Tower(nn.Module):
    """Blocks between two layers that stay; each block is computed twice, as with gradient checkpointing."""

    _repeated_blocks = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(6))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
        return self.last(x)


class Gauge:
    """Brings tensors as copies, and remembers what was brought and what is still alive."""

    def __init__(self) -> None:
        self.brought: list[int] = []
        self.alive: set[int] = set()
        self.most = 0

    def __call__(self, waiting: Tensor) -> Tensor:
        import weakref

        copy = waiting.detach().clone()
        self.brought.append(waiting.data_ptr())
        key = len(self.brought)
        self.alive.add(key)
        weakref.finalize(copy.untyped_storage(), self.alive.discard, key)
        self.most = max(self.most, len(self.alive))
        return copy


def answer(model: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, 128).view(2, 64).requires_grad_()
    out = model(x)
    out.square().sum().backward()
    assert x.grad is not None
    return out.detach(), x.grad


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("storage", ["", "nf4"])
def test_a_model_on_the_conveyor_gives_the_same_to_the_bit(share: float, storage: str) -> None:
    plain, moved = Tower(), Tower()
    for model in (plain, moved) if storage else ():
        quantise(model, storage, CPU)
    expected = answer(plain)
    conveyor = Conveyor.along(moved, share, CPU)
    assert len(conveyor.blocks) == round(share * 6)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(answer(moved), expected, strict=True))
    assert conveyor.here == set()
    conveyor.dismantle()
    assert all(torch.equal(a, b) for a, b in zip(answer(moved), expected, strict=True))


def test_each_block_comes_once_forwards_and_once_backwards_and_few_are_here_at_a_time() -> None:
    model, gauge = Tower(), Gauge()
    conveyor = Conveyor.along(model, 1.0, CPU, gauge)
    answer(model)
    order = [tensor.data_ptr() for block in conveyor.blocks for _, _, tensor in block.waiting]
    pairs = [order[i : i + 2] for i in range(0, len(order), 2)]
    assert gauge.brought == [one for pair in [*pairs, *reversed(pairs)] for one in pair]
    assert gauge.most <= 4, "two blocks of weight and bias"
    assert [tensor.data_ptr() for tensor in model.blocks.parameters()] == order, "they wait where they waited"


def test_moving_the_model_leaves_what_waits_where_it_is() -> None:
    """Seen on the device that has no memory: what went there can be told."""
    model = Tower()
    conveyor = Conveyor.along(model, 0.5, CPU)
    conveyor.place_rest(model, torch.device("meta"))
    waiting = {id(module) for block in conveyor.blocks for module in block.module.modules()}
    for module in model.modules():
        for tensor in module.parameters(recurse=False):
            assert tensor.is_meta == (id(module) not in waiting)


def test_the_share_is_spread_over_the_models_length() -> None:
    conveyor = Conveyor.along(Tower(), 0.5, CPU)
    tower = [block.module for block in conveyor.blocks]
    assert len(tower) == 3
    assert Conveyor.along(Tower(), 0.0, CPU).blocks == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_blocks_are_known(family: str) -> None:
    """They hold most of what the denoiser weighs, at the real size; no memory is taken for it."""
    import importlib

    from diffusers import ModelMixin

    from trainer.families import plugin

    table = plugin(family)
    library, _, kind = table.components[table.parts[0]].rpartition(".")
    with torch.device("meta"):
        model: ModelMixin = getattr(importlib.import_module(library), kind).from_config(dict(table.real[table.parts[0]]))
    blocks = offloading.repeated_blocks(model)
    weights = sum(p.numel() for block in blocks for p in block.parameters())
    share = weights / sum(p.numel() for p in model.parameters())
    assert share > {"sd15": 0.2, "sd2": 0.2, "sdxl": 0.7}.get(family, 0.9), f"{len(blocks)} blocks with {share:.0%}"


def test_an_offloaded_training_is_the_same_to_the_bit(
    world: Path, tmp_path: Path, spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpointing comes with it."""
    gauge = Gauge()
    true = Conveyor.along.__func__
    monkeypatch.setattr(Conveyor, "along", classmethod(lambda cls, model, share, device: true(cls, model, share, device, gauge)))
    (tmp_path / "base").symlink_to(world / "base")
    shutil.copytree(world / "data", tmp_path / "data")
    common = {"steps": 3, "sample_every_steps": 2, "sample_prompts": ["a dog --w 64 --h 64 --s 2"], "text_encoder_lr": 1e-3}
    for name, more in (("plain", {"gradient_checkpointing": True}), ("moved", {"offload": 1.0})):
        assert train(root=tmp_path, **spec(**common, name=name, output=f"{name}/out", **more)).state == "done"
    assert gauge.brought
    plain, moved = (load_file(tmp_path / f"{name}/out/{name}.safetensors") for name in ("plain", "moved"))
    assert all(torch.equal(value, moved[key]) for key, value in plain.items())
    pictures = [sorted((tmp_path / f"{name}/out/samples").iterdir()) for name in ("plain", "moved")]
    assert len(pictures[0]) == len(pictures[1]) > 0


def test_a_share_is_between_nothing_and_all() -> None:
    with pytest.raises(ValueError, match="offload"):
        TrainingOptions(offload=1.5)
