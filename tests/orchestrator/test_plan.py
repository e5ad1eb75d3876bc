"""Offers are ranked by what the whole run costs; what cannot be true or paid for is not ranked at all."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from decimal import Decimal
from random import Random

import pytest
from fakes import offer
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import NoOffer, OverBudget
from orchestrator.plan import GIB, Load, Range, Work, disk_gib, estimate, make_plan, step_seconds, vram_bytes, worst_usd
from orchestrator.pricing.gpus import GPUS
from providers.base import Offer, Prices, Requirements

WORK = Work(
    name="lisa", steps=2000, images=30, batch_size=1, gradient_accumulation=1, resolution=512, rank=16,
    gradient_checkpointing=False, saves=4, samples=8, dataset_bytes=60_000_000,
)  # fmt: skip
LOAD = Load(jobs=(WORK,), upload_bytes=2_000_000_000, hub_bytes=0.0, base_scale=1.0, download_bytes=300_000_000)
WANTED = Requirements(disk_gib=40)
LOTS = Decimal(10_000)


def prices(gpu: str, disk: str = "0", up: str = "0", down: str = "0") -> Prices:
    return Prices(
        gpu_usd_per_hour=Decimal(gpu),
        disk_usd_per_gib_hour=Decimal(disk),
        upload_usd_per_gib=Decimal(up),
        download_usd_per_gib=Decimal(down),
    )


def ranked(*offers: Offer, cap: Decimal = LOTS, **fields: object) -> list[str]:
    return [c.offer.id for c in make_plan(LOAD, offers, replace(WANTED, **fields), cap_usd=cap).candidates]  # type: ignore[arg-type]


def test_a_dearer_hour_that_makes_a_cheaper_run_comes_first():
    slow = offer("slow", gpu_name="Tesla T4", vram_gib=16.0, prices=prices("0.30"))
    fast = offer("fast", gpu_name="RTX 4090", prices=prices("0.40"))
    heavy = replace(LOAD, jobs=(replace(WORK, resolution=768, batch_size=4),))
    assert slow.prices.gpu_usd_per_hour < fast.prices.gpu_usd_per_hour
    assert [c.offer.id for c in make_plan(heavy, [slow, fast], WANTED, cap_usd=LOTS).candidates] == ["fast", "slow"]


@pytest.mark.parametrize("dearer", [prices("0.40", disk="0.01"), prices("0.40", up="1"), prices("0.40", down="1"), prices("0.41")])
def test_every_meter_counts(dearer: Prices):
    assert ranked(offer("a", prices=dearer), offer("b", prices=prices("0.40"))) == ["b", "a"]


def test_the_bill_is_that_of_random_courses_of_the_run():
    """Oracle: five thousand runs, each phase, failed boot and loss of the machine drawn by itself."""
    machine = offer(prices=prices("0.36", disk="0.001", up="0.5", down="0.25"), interruptible=True, reliability=0.9)
    made = estimate(LOAD, machine, 40)
    moved = (0.5 * LOAD.upload_bytes + 0.25 * LOAD.download_bytes) / GIB
    draw, bills = Random(1), []
    for _ in range(5000):
        seconds = sum(drawn(phase, draw) for phase in made.phases.values())
        boots, losses = poisson(made.waste.boots, draw), poisson(made.waste.losses, draw)
        bills.append(seconds / 3600 * 0.40 + moved + boots * float(made.waste.boot_usd) + losses * float(made.waste.again_usd))
    bills.sort()
    for name, place in (("p10", 500), ("p50", 2500), ("p90", 4500)):
        assert float(made.usd[name]) == pytest.approx(bills[place], rel=0.06)
    assert float(made.expected_usd) == pytest.approx(sum(bills) / 5000, rel=0.03)
    assert sum(made.meters.values()) == pytest.approx(made.expected_usd)


def drawn(one: Range, draw: Random) -> float:
    """A log-normal with a spread of its own on either side."""
    z = draw.gauss(0, 1)
    if not one.p50:
        return 0.0
    return one.p50 * ((one.p90 / one.p50) ** (z / 1.28155) if z > 0 else (one.p50 / one.p10) ** (z / 1.28155))


def poisson(expected: float, draw: Random) -> int:
    times, passed = 0, draw.expovariate(1)
    while passed < expected:
        times, passed = times + 1, passed + draw.expovariate(1)
    return times


OFFERS = st.builds(
    offer,
    st.uuids().map(str),
    gpu_name=st.sampled_from([*GPUS, "GPU of tomorrow"]),
    vram_gib=st.floats(1, 200),
    prices=st.builds(
        Prices,
        gpu_usd_per_hour=st.decimals(0, 5, places=3),
        disk_usd_per_gib_hour=st.decimals(0, "0.01", places=5),
        upload_usd_per_gib=st.decimals(0, 1, places=3),
        download_usd_per_gib=st.decimals(0, 1, places=3),
    ),
    down_mbit_s=st.floats(0, 10_000),
    up_mbit_s=st.floats(0, 10_000),
    reliability=st.floats(0, 1),
    disk_gib=st.integers(0, 2000),
)


@settings(deadline=None)
@given(offers=st.lists(OFFERS, max_size=8), cap=st.decimals("0.01", 50, places=2))
def test_what_is_ranked_fits_can_be_paid_and_is_in_order(offers: list[Offer], cap: Decimal):
    try:
        plan = make_plan(LOAD, offers, WANTED, cap_usd=cap)
    except NoOffer:
        assert all(0.97 * o.vram_gib * GIB < vram_bytes(LOAD) or o.disk_gib < 40 for o in offers)
        return
    except OverBudget as err:
        named = Decimal(re.findall(r"max_usd to (\d+\.\d\d)", err.hint)[0])
        assert named > cap
        assert make_plan(LOAD, offers, WANTED, cap_usd=named).candidates, "what the message says must do"
        with pytest.raises(OverBudget):
            make_plan(LOAD, offers, WANTED, cap_usd=named - Decimal("0.01"))
        return
    costs = [c.expected_usd for c in plan.candidates]
    assert costs == sorted(costs)
    assert all(worst_usd(c, 40) <= cap for c in plan.candidates)
    assert all(c.estimate.usd["p10"] <= c.estimate.usd["p50"] <= c.estimate.usd["p90"] for c in plan.candidates)
    assert plan.seen == len(offers)


def test_money_that_is_spent_is_part_of_the_cap_that_is_named():
    spent = Decimal("1.234")
    with pytest.raises(OverBudget, match=r"of which \$1.24 is spent") as caught:
        make_plan(LOAD, [offer()], WANTED, cap_usd=Decimal("1.30"), spent_usd=spent)
    named = Decimal(re.findall(r"max_usd to (\d+\.\d\d)", caught.value.hint)[0])
    assert make_plan(LOAD, [offer()], WANTED, cap_usd=named, spent_usd=spent).candidates


NONSENSE = {
    "vram_gib": [math.nan, math.inf, 0.0, -24.0, 1e12],
    "down_mbit_s": [math.nan, math.inf, -1.0],
    "up_mbit_s": [math.nan, -math.inf],
    "reliability": [math.nan, -0.1, 1.5, math.inf],
    "gpu_count": [0, -1],
    "disk_gib": [-1, 10**15],
    "prices": [prices("1e30"), prices("0.4", disk="1e20"), prices("0.4", up="1e27")],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NONSENSE.items() for value in values])
def test_an_offer_whose_numbers_cannot_be_true_is_never_ranked(name: str, value: object):
    strange = offer("strange", **{name: value})
    assert ranked(strange, offer("honest")) == ["honest"]
    with pytest.raises(NoOffer, match="none of 1 offers fits: 1 numbers that make no sense"):
        ranked(strange)


def test_a_machine_of_ones_own_costs_nothing_and_comes_first():
    assert ranked(offer("rented"), offer("own", prices=prices("0"))) == ["own", "rented"]


@pytest.mark.parametrize(
    ("reason", "theirs", "ours"),
    [
        ("too little VRAM", {"vram_gib": 2.0}, {}),
        ("too little VRAM", {}, {"min_vram_gib": 40.0}),
        ("another GPU", {}, {"gpus": frozenset({"H200"})}),
        ("too little disk", {"disk_gib": 39}, {}),
        ("dearer than max_usd_per_hour", {"prices": prices("0.39", disk="0.001")}, {"max_usd_per_hour": Decimal("0.40")}),
        ("not reliable enough", {"reliability": 0.9}, {"min_reliability": 0.95}),
        ("not verified", {"verified": False}, {"verified_only": True}),
        ("not in a data centre", {"secure": False}, {"secure_only": True}),
        ("another region", {"region": "US"}, {"regions": frozenset({"DE"})}),
        ("interruptible", {"interruptible": True}, {}),
    ],
)
def test_every_wish_is_checked_here_whatever_the_cloud_sent(reason: str, theirs: dict[str, object], ours: dict[str, object]):
    with pytest.raises(NoOffer, match=f"1 {reason}"):
        ranked(offer(**theirs), **ours)


def test_a_machine_that_failed_us_is_not_tried_again():
    plan = make_plan(LOAD, [offer("a"), offer("b")], WANTED, cap_usd=LOTS, avoid=[("fake", "m-a")])
    assert [c.offer.id for c in plan.candidates] == ["b"]
    assert plan.left_out == {"failed us lately": 1}


def test_no_offer_at_all_is_said_so():
    with pytest.raises(NoOffer, match="no machine is for rent now"):
        ranked()


def test_more_work_never_costs_less():
    base = estimate(LOAD, offer(), 40).usd["p50"]
    for more in (
        {"steps": 4000}, {"images": 300}, {"gradient_accumulation": 4}, {"resolution": 1024, "batch_size": 4},
        {"saves": 40}, {"samples": 80}, {"gradient_checkpointing": True, "batch_size": 8},
    ):  # fmt: skip
        assert estimate(replace(LOAD, jobs=(replace(WORK, **more),)), offer(), 40).usd["p50"] > base, more  # type: ignore[arg-type]
    for more in ({"upload_bytes": 9 * GIB}, {"hub_bytes": 9e9}, {"download_bytes": 9 * GIB}):
        assert estimate(replace(LOAD, **more), offer(), 40).usd["p50"] > base  # type: ignore[arg-type]


def test_a_card_that_is_not_known_counts_as_a_slow_one():
    heavy = replace(WORK, resolution=1024, batch_size=8)
    assert step_seconds(heavy, "GPU of tomorrow", 1.0) > step_seconds(heavy, "RTX 4090", 1.0)


def test_the_disk_holds_what_is_sent_and_made():
    assert disk_gib(LOAD, None) * GIB >= LOAD.upload_bytes + LOAD.hub_bytes + 2 * LOAD.download_bytes
    assert disk_gib(LOAD, 500) == 500
    assert disk_gib(LOAD, 1) == disk_gib(LOAD, None)
