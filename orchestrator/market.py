"""What is for rent now: every provider's offers in one plan, and the plan as a document."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any

from providers.base import Offer, Requirements
from providers.errors import ProviderError

from .order import Order
from .plan import Load, Plan, make_plan
from .pricing.reasons import why_first
from .pricing.worst import guardable
from .trip import Tools

ENOUGH_OFFERS = 8
"""Kept in plan.json; more is no help to a reader."""


def market(
    order: Order, tools: Tools, *, load: Load, spent_usd: Decimal, avoid: Iterable[tuple[str, str]] = (), steady: bool = False
) -> Plan:
    """What could be rented now for what is left of this order, without machines that failed any run of this computer lately.

    `avoid`: machines that this run has lost. `steady`: only what nobody can outbid.
    """
    wanted = replace(order.requirements, interruptible=order.requirements.interruptible and not steady)
    found = offers(order.providers, wanted, tools)
    found = found if order.unguarded else guardable(found, tools)
    bad = {*tools.memory.bad(tools.clock.now()), *avoid}
    return make_plan(load, found, wanted, cap_usd=order.cap_usd, spent_usd=spent_usd, avoid=bad)


def offers(names: Iterable[str], wanted: Requirements, tools: Tools) -> list[Offer]:
    """Every provider's offers. One provider's trouble is said and does not hide the others; all in trouble raises the last."""
    found: list[Offer] = []
    trouble: ProviderError | None = None
    answered = False
    for name in names:
        try:
            found += tools.provider(name).offers(wanted)
            answered = True
        except ProviderError as err:
            tools.view.say(f"{name}: {err}")
            trouble = err
    if not answered and trouble is not None:
        raise trouble
    return found


def plan_document(plan: Plan) -> dict[str, Any]:
    """The words of `lorry plan --json`."""
    return {
        "estimate": "simple: from published figures, not yet calibrated by measurement",
        "cap_usd": str(plan.cap_usd),
        "disk_gib": plan.disk_gib,
        "offers_seen": plan.seen,
        "left_out": dict(plan.left_out),
        "failed_us": [{"provider": o.provider, "offer": o.id, "machine": o.machine_id, "gpu": o.gpu_name} for o in plan.avoided],
        "reason": why_first(plan),
        "candidates": [
            {
                "provider": c.offer.provider,
                "offer": c.offer.id,
                "gpu": c.offer.gpu_name,
                "vram_gib": c.offer.vram_gib,
                "usd_per_hour": str(c.offer.prices.usd_per_hour(plan.disk_gib)),
                "reliability": c.offer.reliability,
                "region": c.offer.region,
                "interruptible": c.offer.interruptible,
                "expected_usd": str(c.expected_usd),
                "expected_waste_usd": str(c.waste.usd),
                "usd": {name: str(value) for name, value in c.estimate.usd.items()},
                "seconds": {name: {"p10": r.p10, "p50": r.p50, "p90": r.p90} for name, r in c.estimate.phases.items()},
                "peak_vram_bytes": c.estimate.vram_bytes,
            }
            for c in plan.candidates[:ENOUGH_OFFERS]
        ],
    }
