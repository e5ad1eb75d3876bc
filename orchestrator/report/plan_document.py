"""A plan as a document: the words of `lorry plan --json`, and of the `plan.json` in a run's folder."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from orchestrator.plan import Candidate, Plan
from orchestrator.pricing.alternatives import alternatives, hosted_for
from orchestrator.pricing.quantiles import Range
from orchestrator.pricing.reasons import why_first

ENOUGH_OFFERS = 8
"""More is no help to a reader."""
WORDS = "P10 to P90 from published figures and from what runs of this computer took; lorry plan --calibration says how right they were"


def plan_document(plan: Plan) -> dict[str, Any]:
    """The offers, best first, with every phase's seconds and dollars."""
    return {
        "estimate": WORDS,
        "prefer": plan.prefer,
        "cap_usd": str(plan.cap_usd),
        "disk_gib": plan.disk_gib,
        "offers_seen": plan.seen,
        "left_out": dict(plan.left_out),
        "failed_us": [{"provider": o.provider, "offer": o.id, "machine": o.machine_id, "gpu": o.gpu_name} for o in plan.avoided],
        "reason": why_first(plan),
        "alternatives": [{"what": one.what, "words": one.words, **_brief(one.candidate)} for one in alternatives(plan)],
        "hosted": [
            {"service": one.service, "what": one.what, "usd": [str(usd) for usd in one.usd], "dated": one.dated, "source": one.source}
            for one in hosted_for(plan.load)
        ],
        "candidates": [_candidate(one, plan.disk_gib) for one in plan.candidates[:ENOUGH_OFFERS]],
    }


def _candidate(one: Candidate, disk_gib: int) -> dict[str, Any]:
    offer, made = one.offer, one.estimate
    return {
        "provider": offer.provider,
        "offer": offer.id,
        "gpu": offer.gpu_name,
        "vram_gib": offer.vram_gib,
        "usd_per_hour": str(offer.prices.usd_per_hour(disk_gib)),
        "reliability": offer.reliability,
        "region": offer.region,
        "interruptible": offer.interruptible,
        "settings": list(made.settings),
        "expected_usd": str(one.expected_usd),
        "expected_waste_usd": str(one.waste.usd),
        "expected_losses": one.waste.losses,
        "traffic_usd": str(made.moved_usd),
        "meters_usd": {name: float(usd) for name, usd in made.meters.items()},
        "usd": {name: str(value) for name, value in made.usd.items()},
        "whole_seconds": _plain(made.seconds),
        "seconds": {name: _plain(r) for name, r in made.phases.items()},
        "phases_usd": {name: _plain(made.phase_usd(name)) for name in made.phases},
        "shipped_seconds": {name: _plain(r) for name, r in made.shipped.items()},
        "peak_vram_bytes": made.vram_bytes,
        "memory_bytes": asdict(made.memory),
        "waits_for": made.bound,
    }


def _brief(one: Candidate) -> dict[str, Any]:
    return {"provider": one.offer.provider, "offer": one.offer.id, "gpu": one.offer.gpu_name, "expected_usd": str(one.expected_usd)}


def _plain(one: Range) -> dict[str, float]:
    return {"p10": one.p10, "p50": one.p50, "p90": one.p90}
