"""Recipes for a class of cards: each fits its class by the estimator's own count, and is there because the plain one does not."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files

import pytest

import templates
from orchestrator.pricing import footprint
from orchestrator.pricing.needs import Bucket, JobShape
from trainer.protocol import TrainingOptions

GIB = 1024**3
USABLE = 0.96
"""Of what a card's class is called."""
CLASSES = {match[0]: (match[1], int(match[2])) for name in templates.recipe_names() if (match := re.fullmatch(r"(.+)-(\d+)gb", name))}


def shape_of(name: str) -> JobShape:
    options = TrainingOptions.model_validate(tomllib.loads(templates.recipe_text(name)))
    return JobShape(
        family=name.partition("-")[0],
        buckets=(Bucket(width=options.resolution, height=options.resolution),),
        batch=options.batch_size,
        accumulation=options.gradient_accumulation,
        rank=options.rank,
        trains_text=bool(options.text_encoder_lr),
        precision=options.mixed_precision,
        optimizer=options.optimizer,
        checkpointing=options.gradient_checkpointing,
        base=options.base_precision,
        offload=options.offload,
        samples=True,
    )


def peak_gib(name: str) -> float:
    family = name.partition("-")[0]
    if not files("orchestrator.pricing").joinpath("data", f"{family}.json").is_file():
        pytest.skip(f"no trace of {family} at its real size is there to count by")
    return footprint.memory(shape_of(name)).total / GIB


def test_the_scan_of_classes_finds_small_and_large_ones():
    assert {gib for _, gib in CLASSES.values()} >= {8, 12, 16, 48, 80}


@pytest.mark.parametrize("name", CLASSES)
def test_a_recipe_of_a_class_fits_its_card(name):
    gib = CLASSES[name][1]
    assert peak_gib(name) <= USABLE * gib
    assert f"card with {gib} GB" in templates.recipe_text(name)


@pytest.mark.parametrize("name", [name for name, (_, gib) in CLASSES.items() if gib <= 16])
def test_a_recipe_for_a_small_card_is_there_because_the_plain_one_does_not_fit(name):
    plain, gib = CLASSES[name]
    assert peak_gib(plain) > USABLE * gib
