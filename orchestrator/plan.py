"""From the work and the offers on the market to what will happen, and what it will cost.

PURE. The estimate here is a simple one and says so wherever it is shown: FLOPs of the family scaled by
pixels, the share of a card's peak that good trainers reach, a host that needs its time to feed the card,
and round figures for booting and setting up. Sources of the constants stand beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite

from providers.base import Offer, Prices, Requirements

from .budget import GIB, WAY_OUT_S, rounded_up, time_usd, traffic_usd
from .errors import NoOffer, OverBudget
from .pricing.families import cost_of
from .pricing.gpus import gpu
from .pricing.risk import Waste, waste

FAILED_US = "failed us lately"
MIB = 1024**2
MOST = 1e6
"""GiB or megabits a second; nothing on any market comes near."""
DEAREST_USD = Decimal(10_000)
"""Per hour or GiB. An offer beyond it is a mistake or a trap; 0 is a machine of one's own."""

PEAK_SHARE = 0.20
"""Share of the card's peak that convolution-heavy training reaches; MLPerf-grade SD2 training gets 0.27."""
CONTEXT_GIB = 0.9
"""VRAM that CUDA takes, and slack."""


BEFORE_TRAINING = ("boot", "upload", "set-up", "base model", "caching")
"""Phases of an estimate that a machine is paid for before its first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One job as the estimate sees it."""

    name: str
    family: str = "sd15"
    steps: int
    images: int
    batch_size: int
    gradient_accumulation: int
    resolution: int
    rank: int
    gradient_checkpointing: bool
    trains_text: bool = False
    saves: int
    samples: int
    dataset_bytes: int

    @property
    def samples_trained(self) -> int:
        """Pictures that go through the model."""
        return self.steps * self.batch_size * self.gradient_accumulation


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The whole queue and what has to be there for it."""

    jobs: tuple[Work, ...]
    upload_bytes: int
    """Datasets, trainer and bases that lie on this computer."""
    hub_bytes: float
    """Bases that the machine fetches by itself."""
    base_scale: float
    """Size of the base against its family's real one: 1 for that, less for a toy."""
    download_bytes: int
    """Adapters, checkpoints and samples that come home."""


@dataclass(frozen=True, slots=True)
class Range:
    """P10, P50 and P90 of one quantity."""

    p10: float
    p50: float
    p90: float

    def __add__(self, other: Range) -> Range:
        """Phases one after the other. Adding P90s overstates the whole a little: the careful side."""
        return Range(self.p10 + other.p10, self.p50 + other.p50, self.p90 + other.p90)

    def spread(self, low: float, high: float) -> Range:
        """The same middle with wider ends."""
        return Range(self.p50 * low, self.p50, self.p50 * high)


def certain(value: float) -> Range:
    """A range that is one value."""
    return Range(value, value, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the run would take on one offer."""

    phases: Mapping[str, Range]
    """Seconds by phase, in order."""
    usd: Mapping[str, Decimal]
    """P10, P50 and P90 of the whole bill: every meter, every phase, the way out."""
    vram_bytes: int
    """Predicted peak."""

    @property
    def seconds(self) -> Range:
        """The whole run."""
        total = certain(0)
        for phase in self.phases.values():
            total += phase
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An offer with what the run would cost on it."""

    offer: Offer
    estimate: Estimate
    waste: Waste

    @property
    def expected_usd(self) -> Decimal:
        """The whole run's P50, and what this machine is expected to waste: what offers are ranked by."""
        return self.estimate.usd["p50"] + self.waste.usd

    @property
    def rank(self) -> tuple[Decimal, float, float, str, str]:
        """Cheapest first; of two that cost the same the quicker, then the steadier. No two offers are equal, so the order is one."""
        seconds = self.estimate.seconds.p50 + self.waste.seconds
        return self.expected_usd, seconds, -self.offer.reliability, self.offer.provider, self.offer.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be tried, best first."""

    candidates: tuple[Candidate, ...]
    cap_usd: Decimal
    load: Load
    disk_gib: int
    seen: int
    """Offers looked at."""
    left_out: Mapping[str, int]
    """Reason -> number of offers that were left out for it."""
    avoided: tuple[Offer, ...] = ()
    """Those that would fit, and whose machine has failed us lately."""

    @property
    def best(self) -> Candidate:
        """The first to be tried."""
        return self.candidates[0]


def disk_gib(load: Load, wanted: int | None) -> int:
    """Disk to rent: what is shipped and downloaded, twice what comes home, and the environment."""
    need = (load.upload_bytes + load.hub_bytes + 2 * load.download_bytes) / GIB + 20
    return max(wanted or 0, int(need) + 1)


def vram_bytes(load: Load) -> int:
    """Predicted peak of the largest job, in bytes."""
    return int(max(_vram_gib(work) * max(load.base_scale, 0.02) for work in load.jobs) * GIB)


def _vram_gib(work: Work) -> float:
    cost = cost_of(work.family)
    pixels = (work.resolution / cost.side) ** 2
    saved = cost.checkpointed_gib if work.gradient_checkpointing else cost.activations_gib
    adapter = work.rank * cost.adapter_params_per_rank * 16 / GIB  # weights, gradients and two states, all fp32
    encoders = cost.encoders_gib if work.trains_text else 0.0
    training = cost.weights_gib + encoders + CONTEXT_GIB + saved * pixels * work.batch_size + adapter
    return max(training, cost.reading_gib + CONTEXT_GIB)


def step_seconds(work: Work, gpu_name: str, base_scale: float) -> float:
    """Seconds of one optimizer step: the card's or the host's, whichever is slower."""
    cost = cost_of(work.family)
    tflop = cost.tflop_per_sample * (work.resolution / cost.side) ** 2 * work.batch_size * base_scale
    if work.gradient_checkpointing:
        tflop *= cost.checkpointing_factor
    on_card = tflop / (PEAK_SHARE * gpu(gpu_name).peak_tflops)
    return max(on_card, cost.host_s_per_step) * work.gradient_accumulation


def estimate(load: Load, offer: Offer, disk: int) -> Estimate:
    """The simple estimate of the run on `offer`."""
    down = max(offer.down_mbit_s, 50.0) * 1e6 / 8  # bytes a second; an unstated line counts as a slow one
    up = max(offer.up_mbit_s, 50.0) * 1e6 / 8
    home = 20e6 / 8  # what a household line sends, 20 Mbit/s
    steps = sum(work.steps * step_seconds(work, offer.gpu_name, load.base_scale) for work in load.jobs)
    samples = sum(work.samples for work in load.jobs) * 4.0
    caching = sum(work.images for work in load.jobs) * 0.15
    saves = sum(work.saves for work in load.jobs) * 1.0
    phases = {
        "boot": Range(30, 120, 600),
        "upload": certain(load.upload_bytes / min(down, home) + 5).spread(0.5, 3),
        "set-up": Range(20, 90, 300),
        "base model": certain(load.hub_bytes / (down * 0.5)).spread(0.6, 3),
        "caching": certain(caching + 10).spread(0.5, 3),
        "training": certain(steps).spread(0.5, 1.8),
        "samples and saves": certain(samples + saves).spread(0.5, 2.5),
        "pull": certain(load.download_bytes / min(up, 50e6 / 8) + 5).spread(0.5, 3),
        "destroy": Range(5, 15, 60),
    }
    whole = certain(0)
    for phase in phases.values():
        whole += phase
    moved = traffic_usd(offer.prices, int(load.upload_bytes + load.hub_bytes), load.download_bytes)
    usd = {
        name: time_usd(offer.prices, disk, seconds) + moved
        for name, seconds in (("p10", whole.p10), ("p50", whole.p50), ("p90", whole.p90))
    }
    return Estimate(phases=phases, usd=usd, vram_bytes=vram_bytes(load))


def candidate(load: Load, offer: Offer, disk: int) -> Candidate:
    """An offer with what the run would cost on it."""
    made = estimate(load, offer, disk)
    return Candidate(offer=offer, estimate=made, waste=waste(load, offer, disk, made.phases))


def is_own(offer: Offer) -> bool:
    """Whether the machine is one of the user's: nobody is paid for it, and no image is run on it."""
    return offer.prices.gpu_usd_per_hour == 0


def why_not(offer: Offer, wanted: Requirements, vram: int) -> str:
    """The reason to leave `offer` out; empty when it fits. Clouds do not always apply the filters they were given."""
    checks = {
        "numbers that make no sense": not makes_sense(offer),
        "too little VRAM": offer.vram_gib * GIB < max(vram, wanted.min_vram_gib * GIB),
        "another GPU": bool(wanted.gpus) and offer.gpu_name not in wanted.gpus,
        "too little disk": offer.disk_gib < wanted.disk_gib,
        "dearer than max_usd_per_hour": wanted.max_usd_per_hour is not None
        and offer.prices.usd_per_hour(wanted.disk_gib) > wanted.max_usd_per_hour,
        "not reliable enough": offer.reliability < wanted.min_reliability,
        "not verified": wanted.verified_only and not offer.verified,
        "not in a data centre": wanted.secure_only and not offer.secure,
        "another region": bool(wanted.regions) and offer.region not in wanted.regions,
        "interruptible": offer.interruptible and not wanted.interruptible,
    }
    return next((reason for reason, is_so in checks.items() if is_so), "")


def makes_sense(offer: Offer) -> bool:
    """Whether every number of an offer can be true. NaN compares with nothing, so it would pass every filter and spoil the order."""
    sizes = (offer.vram_gib, offer.disk_gib, offer.down_mbit_s, offer.up_mbit_s)
    dearest = max(getattr(offer.prices, name) for name in Prices.__dataclass_fields__)
    return (
        all(isfinite(size) and 0 <= size <= MOST for size in sizes)
        and offer.vram_gib > 0
        and offer.gpu_count >= 1
        and 0 <= offer.reliability <= 1
        and dearest <= DEAREST_USD
    )


def make_plan(
    load: Load,
    offers: Iterable[Offer],
    wanted: Requirements,
    *,
    cap_usd: Decimal,
    avoid: Collection[tuple[str, str]] = (),
    spent_usd: Decimal = Decimal(0),
) -> Plan:
    """Rank the offers that fit by what the whole run is expected to cost on them.

    `avoid`: machines that failed us, by provider and machine id. `spent_usd`: what earlier machines of the run have cost; the cap
    covers it too.

    Raises `NoOffer` when none fits and `OverBudget` when none can be paid.
    """
    vram = vram_bytes(load)
    left_out: Counter[str] = Counter()
    fitting: list[Candidate] = []
    avoided: list[Offer] = []
    for offer in offers:
        if reason := why_not(offer, wanted, vram):
            left_out[reason] += 1
        elif (offer.provider, offer.machine_id) in avoid:
            left_out[FAILED_US] += 1
            avoided.append(offer)
        else:
            fitting.append(candidate(load, offer, wanted.disk_gib))
    seen = len(fitting) + left_out.total()
    if not fitting:
        again = "; lorry offers --forget all tries those again that failed" if left_out[FAILED_US] else ""
        loosen = "loosen [machine] in the file: gpus, max_usd_per_hour, min_reliability, regions"
        raise NoOffer(_nothing_fits(seen, left_out), hint=loosen + again)
    fitting.sort(key=lambda c: c.rank)
    payable = [c for c in fitting if spent_usd + worst_usd(c, wanted.disk_gib) <= cap_usd]
    if not payable:
        raise _too_dear(fitting, cap_usd, wanted.disk_gib, spent_usd)
    return Plan(
        candidates=tuple(payable),
        cap_usd=cap_usd,
        load=load,
        disk_gib=wanted.disk_gib,
        seen=seen,
        left_out=left_out,
        avoided=tuple(avoided),
    )


def worst_usd(candidate: Candidate, disk: int) -> Decimal:
    """What the cap must cover: the P90 bill and the way out."""
    return candidate.estimate.usd["p90"] + time_usd(candidate.offer.prices, disk, WAY_OUT_S)


def _nothing_fits(seen: int, left_out: Counter[str]) -> str:
    if not seen:
        return "no machine is for rent now"
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
    return f"none of {seen} offers fits: {reasons}"


def _too_dear(fitting: Sequence[Candidate], cap_usd: Decimal, disk: int, spent_usd: Decimal) -> OverBudget:
    nearest = min(fitting, key=lambda c: worst_usd(c, disk))
    needed = rounded_up(spent_usd + worst_usd(nearest, disk))
    return OverBudget(
        f"{len(fitting)} offers fit, none finishes surely within ${cap_usd}:"
        f" the nearest, {nearest.offer.gpu_name}, may need ${needed} (estimated)"
        + (f", of which ${rounded_up(spent_usd)} is spent" if spent_usd else ""),
        hint=f"set budget.max_usd to {needed} or more, or lower steps",
    )
