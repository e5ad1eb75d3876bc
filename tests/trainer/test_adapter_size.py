"""The plans of the real models, by which an adapter is counted without torch, against the models themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from orchestrator.pricing import adapter_size
from trainer import families, selection
from trainer.base import Base
from trainer.contract import Foundation
from trainer.families import sd35
from trainer.families.model import Model
from trainer.protocol import TrainingOptions

EVERY = [("sd15", ""), ("sd2", ""), ("sdxl", ""), ("sd3", ""), ("sd35", ""), ("sd35", "medium"), ("flux", ""), ("zimage", "")]
COUNTS = {
    ("sd15", ""): (192, 86, 72),
    ("sd2", ""): (192, 86, 138),
    ("sdxl", ""): (722, 66, 72 + 192),
    ("sd3", ""): (333, 0, 264),
    ("sd35", ""): (529, 0, 264),
    ("sd35", "medium"): (385, 0, 264),
    ("flux", ""): (494, 0, 72),
    ("zimage", ""): (270, 0, 0),
}
"""Layers of the denoiser, of a LoCon, and of the text encoders that can be trained."""


@pytest.fixture(scope="module", params=EVERY, ids="-".join)
def real(request: pytest.FixtureRequest) -> tuple[str, str, Model]:
    """A family's true classes at their real size, weighing nothing."""
    import diffusers

    name, variant = request.param
    family = families.plugin(name)
    configs = {**family.real, **({"transformer": sd35.MEDIUM} if variant else {})}
    makes = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    parts: dict[str, Any] = {}
    with torch.device("meta"):
        for part in family.parts:
            kind = family.components[part].rsplit(".", 1)[-1]
            parts[part] = makes[kind](CLIPTextConfig(**configs[part])) if kind in makes else getattr(diffusers, kind)(**configs[part])
    model = Model.__new__(Model)
    model.family, model.parts = family, parts
    model.foundation = Foundation(family=name, base=Base(kind="hub", location="a/b", family=name), dtype=torch.float32)
    return name, variant, model


OPTIONS: dict[str, dict[str, Any]] = {
    "all of it": {"text_encoder_lr": 1e-5},
    "attention": {"layers": "attention", "rank": 8},
    "patterns": {"layer_ranks": {"attn": 4, "blocks[.]1[.]": 0}, "text_encoder_lr": 1e-5, "unet_lr": 0.0},
    "loha": {"adapter": "loha", "rank": 4},
    "lokr": {"adapter": "lokr", "lokr_factor": 8, "rank": 32, "dora": True},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_what_is_counted_is_what_is_trained(real: tuple[str, str, Model], kind: str) -> None:
    """Layer by layer: name, sizes, rank and method; and in sum."""
    name, variant, model = real
    keys = {**OPTIONS[kind], "conv_rank": 2} if kind != "attention" and name in adapter_size.UNETS else OPTIONS[kind]
    options = TrainingOptions.model_validate(keys)
    parts = [part for part in model.family.parts if (part != model.denoiser) == bool(options.text_encoder_lr) or "unet_lr" not in keys]
    parts = [part for part in parts if part == model.denoiser or options.text_encoder_lr]
    wide = model.family.convolutions(model) if options.conv_rank and model.denoiser in parts else []
    if options.conv_rank and not wide:
        options = options.model_copy(update={"conv_rank": None})
    trained = selection.slots_of(options, model.targets(parts, options.layers), wide, model.family.key_of)
    counted = adapter_size.slots(options, name, variant)

    def told(slots: list[Any]) -> dict[tuple[str, str], tuple[Any, ...]]:
        every = {(slot.target.part, slot.target.name.removeprefix("text_model.")): slot for slot in slots}
        return {key: (slot.target.fan_in, slot.target.fan_out, slot.target.kernel, slot.rank, slot.pieces) for key, slot in every.items()}

    assert told(counted) == told(trained)
    assert adapter_size.trained_values(options, name, variant) == sum(slot.count for slot in trained)


def test_the_layers_are_those_of_the_references(real: tuple[str, str, Model]) -> None:
    """Counted by other programs: sd-scripts' 192 and 722, with its conv_dim 278 and 788, 72 and 192 of the text encoders."""
    name, variant, model = real
    encoders = [target for part in model.family.parts[1:] for target in model.targets([part])]
    found = len(model.targets([model.denoiser])), len(model.family.convolutions(model)), len(encoders)
    assert found == COUNTS[name, variant]


def test_a_files_shapes_at_real_size_are_those_of_its_method(real: tuple[str, str, Model]) -> None:
    """As they would be written, conv layers and text encoders among them."""
    name, variant, _ = real
    options = TrainingOptions.model_validate(
        {"rank": 4, "text_encoder_lr": 1e-5, **({"conv_rank": 2} if name in adapter_size.UNETS else {})}
    )
    for slot in adapter_size.slots(options, name, variant):
        down, up = (slot.shape_of(piece) for piece in slot.pieces)
        assert (down, up) == slot.target.shapes(slot.rank)
