"""What a plan lets one choose: by cost, time or trouble; the settings that fit a card; what could be changed; other keys side by side."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from decimal import Decimal

import pytest
from fakes import offer

from orchestrator.errors import NoOffer, OverBudget, UsageError
from orchestrator.plan import Load, Plan, Work, make_plan, worst_usd
from orchestrator.pricing.advice import advised, in_words
from orchestrator.pricing.alternatives import alternatives, hosted_for
from orchestrator.pricing.hosted import HOSTED
from orchestrator.pricing.needs import GIB, memory
from orchestrator.pricing.reasons import why_first
from orchestrator.pricing.settings import FREEDOMS, KEYS, freedoms, keys_of
from orchestrator.pricing.work import shape_of
from orchestrator.report.plan import too_slow
from orchestrator.whatif import changes_of
from providers.base import Offer, Prices, Requirements
from trainer.protocol import FAMILIES, TrainingOptions

WORK = Work(
    name="lisa", family="sdxl", steps=2000, images=30, batch_size=1, gradient_accumulation=1, resolution=1024, rank=16,
    gradient_checkpointing=False, saves=4, samples=8, dataset_bytes=60_000_000, may=("checkpointing",),
)  # fmt: skip
LOAD = Load(jobs=(WORK,), upload_bytes=60_000_000, hub_bytes=6.9e9, base_scale=1.0, download_bytes=300_000_000)
LOTS = Decimal(1000)


AS_ASKED, CHECKPOINTED = (memory(replace(shape_of(WORK, 1.0), checkpointing=on)).total / GIB for on in (False, True))
BETWEEN_GIB = (AS_ASKED + CHECKPOINTED) / 2
"""A card on which the job fits with gradient checkpointing alone."""


def priced(usd: str) -> Prices:
    return Prices(gpu_usd_per_hour=Decimal(usd))


CHEAP = offer("cheap", gpu_name="RTX 3090", prices=priced("0.15"), reliability=0.95)
FAST = offer("fast", gpu_name="H100 SXM", vram_gib=80.0, prices=priced("3.00"), reliability=0.98)
STEADY = offer("steady", gpu_name="RTX 3090", prices=priced("0.40"), reliability=0.9999)
BID = offer("bid", gpu_name="RTX 3090", prices=priced("0.145"), interruptible=True, reliability=0.95)


def plan_of(*offers: Offer, load: Load = LOAD, cap: Decimal = LOTS, **more: object) -> Plan:
    return make_plan(load, offers, Requirements(disk_gib=40, interruptible=True), cap_usd=cap, **more)  # type: ignore[arg-type]


# --- by what ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefer", "first"), [("cheap", "cheap"), ("fast", "fast"), ("safe", "steady")])
def test_the_first_is_the_one_that_is_best_at_what_was_asked_for_and_says_so(prefer: str, first: str):
    plan = plan_of(CHEAP, FAST, STEADY, BID, prefer=prefer)
    assert plan.best.offer.id == first
    words = why_first(plan)
    assert {"cheap": "cost least", "fast": "done soonest", "safe": "least is expected to go wrong"}[prefer] in words
    if prefer != "cheap":
        assert "more than on RTX 3090 at fake" in words, "what it costs to be choosy"


def test_what_else_could_be_done_stands_beside_the_first():
    found = {one.what: one for one in alternatives(plan_of(CHEAP, FAST, STEADY, BID))}
    assert found["faster"].candidate.offer.id == "fast"
    assert found["steadier"].candidate.offer.id == "steady"
    assert "taken away" in found["interruptible"].words
    own = alternatives(plan_of(CHEAP, offer("own", prices=priced("0"), gpu_name="RTX 3060"), prefer="fast"))
    assert [one.what for one in own] == ["your own"], "it is the slower one here, and free"


def test_hosted_prices_are_dated_and_of_the_family():
    assert all(one.dated >= "2023" and one.source and set(one.families) <= set(FAMILIES) for one in HOSTED)
    salad = next(one for one in hosted_for(LOAD) if one.service == "Salad")
    assert salad.usd[0] == Decimal("0.32"), "2000 steps at its price for one"
    assert hosted_for(replace(LOAD, jobs=(WORK, replace(WORK, family="sd15")))) == []


# --- settings that fit ----------------------------------------------------------------------------------


def test_each_card_gets_the_fastest_setting_that_fits_and_says_which():
    small, large = offer("small", gpu_name="RTX 3060", vram_gib=BETWEEN_GIB), offer("large", gpu_name="RTX 4090")
    by_id = {one.offer.id: one.estimate for one in plan_of(small, large).candidates}
    assert by_id["small"].settings == ("gradient checkpointing",)
    assert by_id["large"].settings == ()
    assert by_id["small"].shapes[0].checkpointing
    assert by_id["small"].vram_bytes < BETWEEN_GIB * GIB < by_id["large"].vram_bytes


def test_what_the_file_says_itself_is_never_set_otherwise():
    known = TrainingOptions.model_fields
    assert "checkpointing" in freedoms("same", [], known)
    assert "checkpointing" not in freedoms("auto", ["gradient_checkpointing"], known)
    assert freedoms("written", [], known) == ()
    assert not {"fp8", "int8", "nf4"} & set(freedoms("same", [], known)), "the base's precision changes the result"
    assert {"fp8", "int8", "nf4"} <= set(freedoms("auto", [], known))
    with pytest.raises(NoOffer):
        plan_of(offer("small", vram_gib=BETWEEN_GIB), load=replace(LOAD, jobs=(replace(WORK, may=()),)))


def test_every_setting_of_a_plan_is_a_key_of_the_job():
    assert {key for one in FREEDOMS.values() for key in map(KEYS.__getitem__, one)} <= set(TrainingOptions.model_fields)
    made = plan_of(offer("small", gpu_name="RTX 3060", vram_gib=BETWEEN_GIB)).best.estimate
    keys = keys_of(made.shapes[0], ("checkpointing", "offload"))
    assert keys == {"gradient_checkpointing": True, "offload": 0.0}
    TrainingOptions.model_validate(keys)


G1 = Work(
    name="g1", family="sd35", steps=2250, images=15, batch_size=1, gradient_accumulation=4, resolution=512, rank=16,
    gradient_checkpointing=False, saves=3, samples=15, dataset_bytes=30_000_000, may=FREEDOMS["same"],
)  # fmt: skip


def test_the_guides_sd35_large_fits_24_gib_with_what_the_plan_chose_and_says_what_the_next_card_gives():
    """More than 24 GiB as they are at 1024; the plan finds what fits, and a card with 48 needs none of it."""
    at_1024 = replace(LOAD, jobs=(replace(G1, resolution=1024),))
    card = offer("4090", prices=priced("0.40"))
    with pytest.raises(NoOffer):
        plan_of(card, load=replace(at_1024, jobs=(replace(at_1024.jobs[0], may=()),)))
    made = plan_of(card, load=at_1024).best.estimate
    assert made.settings
    assert made.vram_bytes < 24 * GIB
    larger = plan_of(offer("a6000", gpu_name="RTX A6000", vram_gib=48.0), load=at_1024).best.estimate
    assert larger.settings == ()


def test_what_fits_nothing_says_so_in_a_line_with_a_way_out():
    huge = replace(LOAD, jobs=(replace(WORK, family="flux", batch_size=8, may=()),))
    with pytest.raises(NoOffer, match=r"none of 2 offers fits: 2 too little VRAM; the jobs need \d+\.\d GiB, .* has 24") as caught:
        plan_of(offer("a"), offer("b"), load=huge)
    assert "\n" not in str(caught.value)
    assert "GiB less" in caught.value.hint
    assert "a larger card" in caught.value.hint


# --- too dear -------------------------------------------------------------------------------------------


def test_what_is_too_dear_names_the_share_of_the_steps_that_can_be_paid():
    whole = plan_of(CHEAP)
    cap = worst_usd(whole.best, 40) * Decimal("0.7")
    with pytest.raises(OverBudget) as caught:
        plan_of(CHEAP, cap=cap)
    share = int(caught.value.hint.partition("lower steps to ")[2].partition("%")[0])
    fewer = replace(LOAD, jobs=(replace(WORK, steps=WORK.steps * share // 100),))
    assert plan_of(CHEAP, load=fewer, cap=cap).candidates, "what the message says must do"


def test_each_change_is_told_with_what_it_does_to_memory_time_and_money():
    found = {one.words: one for one in advised(LOAD, CHEAP)}
    checkpointed = found["gradient_checkpointing = true"]
    assert checkpointed.saved_bytes > GIB
    assert checkpointed.seconds > 0
    assert checkpointed.usd == pytest.approx(Decimal(str(checkpointed.seconds)) * Decimal("0.15") / 3600)
    words = in_words(checkpointed)
    for part in ("GiB less", "minutes more", "$"):
        assert part in words


def test_a_time_limit_that_may_not_last_is_told_with_how_likely_it_is_and_who_is_quicker():
    plan = plan_of(CHEAP, FAST)
    hours = plan.best.estimate.seconds.p50 / 3600
    (line,) = too_slow(plan, hours)
    assert "50% of such runs" in line
    assert "H100 SXM takes" in line
    assert too_slow(plan, None) == too_slow(plan, 3 * hours) == []


# --- what if --------------------------------------------------------------------------------------------


def test_changes_are_read_as_people_type_them():
    assert changes_of(["batch=4", "rank=64"]) == changes_of(["batch=4 rank=64"]) == {"batch_size": 4, "rank": 64}
    assert changes_of(["checkpointing=true", "optimizer=AdamW"]) == {"gradient_checkpointing": True, "optimizer": "AdamW"}
    with pytest.raises(UsageError, match="no change") as caught:
        changes_of(["batsh=4"])
    assert "batch" in caught.value.hint
    with pytest.raises(UsageError):
        changes_of(["rank"])


# --- the guide's table ----------------------------------------------------------------------------------

GUIDE = {
    "RTX 3090": (24.0, "0.50", 2.5),
    "RTX 4090": (24.0, "0.70", 1.5),
    "RTX A6000": (48.0, "0.80", 1.5),
    "A100 PCIE": (40.0, "1.50", 1.0),
}
"""Card -> VRAM, dollars and hours as a public guide has them, for 50 pictures of SD1.5 at batch 2 over ten epochs of ten repeats."""


def test_the_guides_job_fits_all_its_cards_for_less_than_it_says_and_in_its_order_of_speed():
    work = Work(
        name="concept", family="sd15", steps=2500, images=50, batch_size=2, gradient_accumulation=1, resolution=512, rank=32,
        gradient_checkpointing=False, trains_text=True, saves=6, samples=0, dataset_bytes=50_000_000, mixed_precision="fp16",
    )  # fmt: skip
    load = replace(LOAD, jobs=(work,), hub_bytes=4.3e9)
    cards = [offer(gpu, gpu_name=gpu, vram_gib=vram, prices=priced(usd)) for gpu, (vram, usd, _) in GUIDE.items()]
    plan = plan_of(*cards, load=load)
    assert len(plan.candidates) == len(GUIDE)
    for one in plan.candidates:
        _, usd, hours = GUIDE[one.offer.gpu_name]
        assert one.estimate.seconds.p10 < hours * 3600, one.offer.gpu_name
        assert float(one.estimate.usd["p50"]) < float(usd) * hours


# --- quickly --------------------------------------------------------------------------------------------


def test_planning_needs_no_torch_and_no_numpy():
    code = "import sys; import orchestrator.prepare, orchestrator.whatif, orchestrator.report.plan_document, orchestrator.learning.book\n"
    code += "heavy = {'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
