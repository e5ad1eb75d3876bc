"""The table of what families take: a row for each that is trained, and an estimate that follows it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.plan import GIB, Load, Work, step_seconds, vram_bytes
from orchestrator.pricing.families import COSTS, cost_of
from orchestrator.pricing.traced import traced
from trainer.protocol import FAMILIES

WORK = Work(
    name="lisa", family="sdxl", steps=2000, images=30, batch_size=1, gradient_accumulation=1, resolution=1024, rank=16,
    gradient_checkpointing=False, saves=4, samples=8, dataset_bytes=60_000_000,
)  # fmt: skip


def gib(work: Work) -> float:
    return vram_bytes(Load(jobs=(work,), upload_bytes=0, hub_bytes=0.0, base_scale=1.0, download_bytes=0)) / GIB


def test_every_family_that_is_trained_has_a_row():
    """Without one the dearest is taken: careful, and wrong."""
    assert set(FAMILIES) <= set(COSTS)


def test_sdxl_needs_at_least_what_was_published_and_not_much_more():
    """13.0 GiB at batch 1 without gradient checkpointing, 6.5 with; of a trainer under autocast, which ours is not."""
    assert 12.0 <= gib(replace(WORK, rank=32)) < 15
    assert 6.2 <= gib(replace(WORK, gradient_checkpointing=True)) < 9


def test_what_is_asked_for_costs():
    """More pixels, more pictures a pass, a larger family, a trained text encoder: each needs more."""
    for more in ({"resolution": 1280}, {"batch_size": 2}, {"trains_text": True}, {"rank": 64}):
        assert gib(replace(WORK, **more)) > gib(WORK)
    assert gib(replace(WORK, family="sd15")) < gib(WORK)
    assert step_seconds(replace(WORK, family="sd15"), "RTX 4090", 1.0) < step_seconds(WORK, "RTX 4090", 1.0)


@pytest.mark.parametrize("family", COSTS)
def test_a_familys_sizes_are_those_that_were_traced(family):
    """One table counts bytes, the other weights: they must mean the same model."""
    assert cost_of(family).denoiser_bytes == pytest.approx(2 * traced(family).denoiser, rel=0.01)
    assert cost_of(family).adapter_params_per_rank == traced(family).adapter["kohya"]
    assert cost_of(family).hub_bytes > cost_of(family).denoiser_bytes


def test_a_family_that_is_not_known_is_as_large_as_the_largest():
    assert cost_of("unknown") is COSTS["flux"]
