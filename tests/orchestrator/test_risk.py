"""What a machine is expected to waste is priced in, and offers are ranked by it: one order, whoever came first in the list."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from random import Random

import pytest
from fakes import offer
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.plan import Candidate, Load, Work, candidate, make_plan
from orchestrator.pricing.risk import AWAY_H, BOOT_FAILS, INTERRUPTIONS_PER_HOUR, RELIABLE_MOST, losses_per_hour
from providers.base import Offer, Prices, Requirements

WORK = Work(
    name="lisa", steps=20_000, images=30, batch_size=1, gradient_accumulation=1, resolution=512, rank=16,
    gradient_checkpointing=False, saves=4, samples=8, dataset_bytes=60_000_000,
)  # fmt: skip
LOAD = Load(jobs=(WORK,), upload_bytes=2_000_000_000, hub_bytes=1e9, base_scale=1.0, download_bytes=300_000_000)
WANTED = Requirements(disk_gib=40, interruptible=True)
LOTS = Decimal(100_000)

PRICES = st.builds(
    Prices,
    gpu_usd_per_hour=st.decimals("0.01", 5, places=3),
    disk_usd_per_gib_hour=st.decimals(0, "0.01", places=5),
    upload_usd_per_gib=st.decimals(0, 1, places=3),
    download_usd_per_gib=st.decimals(0, 1, places=3),
)
OFFERS = st.builds(
    offer,
    st.uuids().map(str),
    provider=st.sampled_from(["vast", "runpod"]),
    gpu_name=st.sampled_from(["RTX 4090", "RTX 3090", "Tesla T4", "GPU of tomorrow"]),
    prices=PRICES,
    down_mbit_s=st.floats(0, 10_000),
    up_mbit_s=st.floats(0, 10_000),
    reliability=st.floats(0, 1),
    interruptible=st.booleans(),
)


def ranked(offers: list[Offer]) -> list[str]:
    return [c.offer.id for c in make_plan(LOAD, offers, WANTED, cap_usd=LOTS).candidates]


def of(one: Offer) -> Candidate:
    return candidate(LOAD, one, WANTED.disk_gib)


@settings(deadline=None)
@given(offers=st.lists(OFFERS, min_size=1, max_size=12), seed=st.integers(0, 2**32))
def test_the_order_is_one_whatever_the_clouds_send_first(offers: list[Offer], seed: int):
    shuffled = list(offers)
    Random(seed).shuffle(shuffled)
    assert ranked(offers) == ranked(shuffled)
    assert sorted(ranked(offers)) == sorted(o.id for o in offers), "each once"


BETTER = st.fixed_dictionaries(
    {},
    optional={
        "gpu": st.decimals(0, 1, places=2), "disk": st.decimals(0, 1, places=2), "up": st.decimals(0, 1, places=2),
        "down": st.decimals(0, 1, places=2), "reliability": st.floats(0, 1), "lines": st.floats(1, 10), "steady": st.just(value=True),
    },
)  # fmt: skip
"""In which ways another offer is better, and by how much."""


@settings(deadline=None)
@given(one=OFFERS, ways=BETTER)
def test_an_offer_that_is_better_in_every_way_never_ranks_below(one: Offer, ways: dict[str, object]):
    p = one.prices
    better = replace(
        one,
        id="zzz-last-by-name",
        prices=Prices(
            gpu_usd_per_hour=p.gpu_usd_per_hour * Decimal(str(ways.get("gpu", 1))),
            disk_usd_per_gib_hour=p.disk_usd_per_gib_hour * Decimal(str(ways.get("disk", 1))),
            upload_usd_per_gib=p.upload_usd_per_gib * Decimal(str(ways.get("up", 1))),
            download_usd_per_gib=p.download_usd_per_gib * Decimal(str(ways.get("down", 1))),
        ),
        reliability=one.reliability + (1 - one.reliability) * float(str(ways.get("reliability", 0))),
        down_mbit_s=one.down_mbit_s * float(str(ways.get("lines", 1))),
        up_mbit_s=one.up_mbit_s * float(str(ways.get("lines", 1))),
        interruptible=one.interruptible and "steady" not in ways,
    )
    assert of(better).rank[:3] <= of(one).rank[:3]
    if of(better).rank[:3] != of(one).rank[:3]:
        assert ranked([one, better]) == ["zzz-last-by-name", one.id]


def test_a_machine_that_often_goes_away_must_be_cheaper_to_come_first():
    steady, shaky = offer("steady", reliability=0.999), offer("shaky", reliability=0.90)
    assert ranked([shaky, steady]) == ["steady", "shaky"]
    cheap = replace(shaky, prices=replace(shaky.prices, gpu_usd_per_hour=shaky.prices.gpu_usd_per_hour / 2))
    assert ranked([cheap, steady]) == ["shaky", "steady"]


def test_a_bid_at_the_price_of_a_steady_machine_loses_and_at_half_of_it_wins():
    steady, bid = offer("steady"), offer("bid", interruptible=True)
    assert ranked([bid, steady]) == ["steady", "bid"]
    half = replace(bid, prices=replace(bid.prices, gpu_usd_per_hour=bid.prices.gpu_usd_per_hour / 2))
    assert ranked([half, steady]) == ["bid", "steady"]


def test_more_checkpoints_make_a_loss_cheaper():
    often = replace(LOAD, jobs=(replace(WORK, saves=40),))
    bid = offer(interruptible=True)
    assert candidate(often, bid, 40).waste.losses_usd < of(bid).waste.losses_usd


def test_the_waste_is_what_the_formula_says():
    """By hand, in floats: a second writing of the module's docstring."""
    one = offer(reliability=0.95, interruptible=True)
    phases = {name: (r.p50, r.p90) for name, r in of(one).estimate.phases.items()}
    per_s = float(one.prices.usd_per_hour(40)) / 3600
    boots = (BOOT_FAILS + 0.05) * phases["boot"][1] * per_s
    losses = (0.05 / 0.95 / AWAY_H + INTERRUPTIONS_PER_HOUR) * sum(p50 for p50, _ in phases.values()) / 3600
    again = sum(phases[name][0] for name in ("boot", "upload", "set-up", "base model", "caching", "compile"))
    sent = float(one.prices.upload_usd_per_gib) * (LOAD.upload_bytes + LOAD.hub_bytes) / 2**30
    expected = boots + losses * ((phases["steps"][0] / 4 / 2 + again) * per_s + sent)
    assert float(of(one).waste.usd) == pytest.approx(expected, rel=1e-6)
    assert of(one).waste.losses == pytest.approx(losses)


@given(reliability=st.floats(0, 1))
def test_no_record_promises_that_nothing_will_happen(reliability: float):
    hazard = losses_per_hour(offer(reliability=reliability))
    assert hazard >= (1 - RELIABLE_MOST) / RELIABLE_MOST / AWAY_H > 0
    assert hazard < 1
