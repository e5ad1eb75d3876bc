"""Memory and time of a job from traced forms: what must hold of every job on every card, and figures that were counted by others."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.pricing.footprint import GIB, adapter_params, memory
from orchestrator.pricing.gpus import GPUS, gpu
from orchestrator.pricing.needs import fit, next_card, step_time, usable_bytes
from orchestrator.pricing.shapes import Bucket, Correction, JobShape, Memory
from orchestrator.pricing.traced import traced, value
from trainer.protocol import FAMILIES

SQUARE = (Bucket(width=1024, height=1024),)
SMALL = (Bucket(width=512, height=512),)


def shape(family: str = "sdxl", **more) -> JobShape:
    return JobShape(family=family, **{"buckets": SQUARE, **more})


shapes = st.builds(
    JobShape,
    family=st.sampled_from(FAMILIES),
    buckets=st.lists(
        st.builds(Bucket, width=st.sampled_from([512, 768, 1024]), height=st.sampled_from([512, 896, 1024]), count=st.integers(1, 9)),
        min_size=1,
        max_size=3,
    ).map(tuple),
    batch=st.sampled_from([1, 2, 4, 8]),
    rank=st.sampled_from([4, 16, 128]),
    layers=st.sampled_from(["kohya", "attention"]),
    checkpointing=st.booleans(),
    base=st.sampled_from(["full", "int8", "nf4"]),
    offload=st.sampled_from([0.0, 0.5]),
    jobs=st.integers(1, 4),
    optimizer=st.sampled_from(["AdamW", "AdamW8bit", "Prodigy"]),
)
cards = st.sampled_from(sorted(GPUS))


@given(shapes)
def test_every_part_of_the_memory_is_there_and_the_total_is_their_sum_or_the_moment_beside_training(job):
    needs = memory(job)
    parts = [getattr(needs, field.name) for field in fields(Memory)]
    assert all(part >= 0 for part in parts)
    assert needs.total == max(needs.aside, sum(parts) - needs.aside)


@given(shapes)
def test_more_of_anything_never_needs_less_memory(job):
    for more in (
        replace(job, batch=job.batch * 2),
        replace(job, rank=job.rank * 2),
        replace(job, jobs=job.jobs + 1),
        replace(job, base="full"),
        replace(job, offload=0.0),
    ):
        assert memory(more).total >= memory(job).total


@given(shapes, cards)
def test_a_dearer_step_is_never_quicker(job, card):
    now = step_time(job, gpu(card))
    assert 0 < now.p10 < now.p50 < now.p90
    assert step_time(replace(job, batch=job.batch * 2), gpu(card)).p50 >= now.p50
    assert step_time(job, gpu(card), Correction(compute=2, bandwidth=2, host=2)).p50 > now.p50
    assert step_time(replace(job, recorded=False), gpu(card)).p50 >= now.p50


@given(shapes, cards)
def test_what_fits_is_within_the_card_and_no_slower_than_what_was_asked_for(job, card):
    found = fit(job, gpu(card), may=("checkpointing", "micro", "nf4", "offload"))
    if found is not None:
        assert found.memory.total <= usable_bytes(gpu(card))
        if memory(job).total <= usable_bytes(gpu(card)):
            assert found.step.p50 <= step_time(job, gpu(card)).p50


def test_several_jobs_on_one_base_share_its_weights_and_nothing_else():
    one, four = memory(shape("sd15", buckets=SMALL)), memory(shape("sd15", buckets=SMALL, jobs=4))
    assert four.weights == one.weights
    assert four.adapter == 4 * one.adapter
    assert 3.8 * one.activations < four.activations < 4.2 * one.activations


@pytest.mark.parametrize(
    ("family", "layers", "at_rank_1"),
    [("sd15", "attention", 199_296), ("sd15", "kohya", 423_936), ("sdxl", "attention", 1_451_520), ("sdxl", "kohya", 2_659_840)],
)
def test_trained_weights_are_those_that_others_have_counted(family, layers, at_rank_1):
    """performance.md 2.6: counted on the real models by peft."""
    assert adapter_params(shape(family, layers=layers, rank=8)) == 8 * at_rank_1


@pytest.mark.parametrize(
    ("family", "side", "tflop"), [("sd15", 512, 1.72), ("sdxl", 1024, 14.19), ("sd35", 1024, 66.01), ("flux", 1024, 163.87)]
)
def test_arithmetic_is_what_others_have_counted(family, side, tflop):
    """By torch's own counter on the real models, attention's layers alone; here all layers, and attention's backward computes again."""
    base, megapixels = traced(family), (side / 1024) ** 2
    counted = sum(value(one.flops, 1, megapixels, 16) for one in base.plain.kernels if one.kind != "attention")
    attention = sum(value(one.flops, 1, megapixels, 16) for one in base.plain.kernels if one.kind == "attention")
    assert counted + attention * 6 / 7 == pytest.approx(tflop * 1e12, rel=0.05)


def test_flux_fits_24_gib_only_with_what_was_set_for_it():
    asked = shape("flux", layers="attention")
    card = gpu("RTX 4090")
    assert memory(asked).total > usable_bytes(card)
    assert fit(asked, card) is None
    found = fit(asked, card, may=("checkpointing", "nf4", "int8", "offload"))
    assert found is not None
    assert found.shape.base != "full" or found.shape.offload > 0
    assert found.changed
    bigger = next_card(asked, card, GPUS.values(), may=("checkpointing",))
    assert bigger is not None
    assert bigger.vram_gib >= 32


def test_a_published_trainer_that_launches_from_python_waits_for_its_host_and_a_recording_does_not():
    eager = shape("sd15", buckets=SMALL, recorded=False)
    assert step_time(eager, gpu("H100 SXM")).bound == "host"
    assert step_time(eager, gpu("H100 SXM")).p50 == pytest.approx(step_time(eager, gpu("L40S")).p50, rel=0.1)
    assert step_time(replace(eager, recorded=True), gpu("H100 SXM")).p50 < 0.3 * step_time(eager, gpu("H100 SXM")).p50


def test_pictures_are_weighed_by_how_many_there_are_and_memory_does_for_the_largest():
    large, small = Bucket(width=1024, height=1024, count=1), Bucket(width=512, height=512, count=9)
    mixed = shape(buckets=(large, small))
    assert memory(mixed) == memory(shape())
    assert step_time(shape(buckets=(small,)), gpu("RTX 4090")).p50 < step_time(mixed, gpu("RTX 4090")).p50
    assert step_time(mixed, gpu("RTX 4090")).p50 < 0.5 * step_time(shape(), gpu("RTX 4090")).p50


def test_a_family_without_data_counts_as_the_dearest():
    assert memory(shape("sdxl")).total < memory(shape("tomorrow")).total
    assert memory(shape("tomorrow")).weights > 20 * GIB
