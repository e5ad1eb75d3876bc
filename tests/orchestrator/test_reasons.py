"""Why the first is the first, in a sentence that a person can check against the table above it."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from fakes import offer

from orchestrator.plan import Load, Plan, Work, make_plan
from orchestrator.pricing.reasons import why_first
from providers.base import Offer, Prices, Requirements

WORK = Work(
    name="lisa", steps=20_000, images=30, batch_size=4, gradient_accumulation=1, resolution=768, rank=16,
    gradient_checkpointing=False, saves=4, samples=8, dataset_bytes=60_000_000,
)  # fmt: skip
LOAD = Load(jobs=(WORK,), upload_bytes=2_000_000_000, hub_bytes=0.0, base_scale=1.0, download_bytes=300_000_000)


def of(*offers: Offer) -> Plan:
    return make_plan(LOAD, offers, Requirements(disk_gib=40, interruptible=True), cap_usd=Decimal(1000))


def priced(usd: str, up: str = "0") -> Prices:
    return Prices(gpu_usd_per_hour=Decimal(usd), upload_usd_per_gib=Decimal(up))


FAST = offer("fast", prices=priced("0.40"))


def test_a_machine_of_ones_own_needs_no_other_reason():
    assert why_first(of(offer("own", prices=priced("0")), FAST)) == "first because it is yours and costs nothing"


def test_the_only_one_is_called_so():
    assert "the only one that fits" in why_first(of(FAST))


def test_the_cheapest_hour_that_is_also_the_cheapest_run_is_told_as_both():
    assert "its hour is the cheapest too" in why_first(of(FAST, offer("dear", prices=priced("0.60"))))


def test_a_cheaper_hour_that_takes_longer_is_told_with_how_much():
    words = why_first(of(FAST, offer("slow", gpu_name="Tesla T4", vram_gib=16.0, prices=priced("0.30"))))
    assert "the cheapest hour, Tesla T4 at fake for $0.300, takes 2." in words


def test_a_cheaper_hour_that_wastes_more_is_told_with_what():
    shaky = offer("shaky", reliability=0.8, prices=priced("0.39"))
    plan = of(FAST, shaky)
    assert plan.best.offer is FAST
    assert f"is expected to waste ${plan.candidates[1].waste.usd:.4f}"[:30] in why_first(plan)


def test_a_cheaper_hour_with_dearer_traffic_is_told_as_that():
    steady = replace(FAST, reliability=0.998)
    words = why_first(of(steady, offer("far", prices=priced("0.39", up="3"), reliability=1.0)))
    assert "dearer traffic" in words or "waste" in words
