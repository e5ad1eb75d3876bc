"""What a run would take on one offer: its phases, and every meter that they turn. PURE.

    the bill = (seconds of all phases) x (GPU + disk, from the order to the seen end)
             + bytes in and out, at their prices
             + boots that fail, and work that is done twice because the machine went away

The first line is careful: some clouds bill the GPU only once the machine runs, ours is counted from the order as the meter of `budget.py`
counts it. The third is in P10, P50 and P90 as often as it happens in the courses of `quantiles.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property

from orchestrator.budget import time_usd, traffic_usd
from providers.base import Offer

from .gpus import gpu
from .needs import Fit, JobShape, Memory, StepTime, fit, step_time, usable_bytes
from .phases import NAMES, phases, settings_words
from .quantiles import Range, added, range_of, times_it_happens, total
from .risk import Waste, waste
from .work import Load, memory_of, needs_of, reading_total, shape_of, vram_bytes

_BOOTS, _LOSSES = len(NAMES), len(NAMES) + 1
"""Streams of what may go wrong, beside those of the phases."""

Taught = Callable[[Mapping[str, Range], Offer, Load], Mapping[str, Range]]
"""Phases by the shipped figures -> the same by what runs of this computer have taught."""


def untaught(shipped: Mapping[str, Range], offer: Offer, load: Load) -> Mapping[str, Range]:  # noqa: ARG001  one signature
    """Where nothing has been learnt."""
    return shipped


@dataclass(frozen=True, kw_only=True)  # no slots: what is worked out once is kept
class Estimate:
    """What the run would take on one offer."""

    offer: Offer
    disk_gib: int
    phases: Mapping[str, Range]
    """Seconds by phase, in order."""
    shipped: Mapping[str, Range]
    """The same before anything was learnt."""
    waste: Waste
    moved_usd: Decimal
    """Bytes both ways."""
    vram_bytes: int
    """Predicted peak."""
    memory: Memory
    """Its parts, of the job that needs most."""
    settings: tuple[str, ...] = ()
    """What the plan set so that the jobs fit this card, or are done sooner on it; empty: all is as asked for."""
    bound: str = ""
    """What a step waits for most."""
    steps: int = 0
    """Of all jobs together."""
    shapes: tuple[JobShape, ...] = ()
    """Every job as it is trained on this card."""

    @cached_property
    def seconds(self) -> Range:
        """The whole run, when nothing goes wrong."""
        return total(self.phases[name] for name in NAMES)

    @cached_property
    def mean_s(self) -> float:
        """The whole run on the average, what goes wrong included."""
        return sum(phase.mean for phase in self.phases.values()) + self.waste.seconds

    @cached_property
    def expected_usd(self) -> Decimal:
        """The whole bill on the average: what offers are ranked by."""
        running_s = sum(phase.mean for phase in self.phases.values())
        return time_usd(self.offer.prices, self.disk_gib, running_s) + self.moved_usd + self.waste.usd

    @cached_property
    def usd(self) -> Mapping[str, Decimal]:
        """P10, P50 and P90 of the whole bill."""
        per_s = float(self.offer.prices.usd_per_hour(self.disk_gib)) / 3600
        took = added([self.phases[name].scenarios(stream) for stream, name in enumerate(NAMES)])
        bills = [seconds * per_s for seconds in took]
        if per_s > 0 or self.waste.usd > 0:
            boot, again = float(self.waste.boot_usd), float(self.waste.again_usd)
            boots, losses = times_it_happens(self.waste.boots, _BOOTS), times_it_happens(self.waste.losses, _LOSSES)
            bills = [usd + boot * b + again * n for usd, b, n in zip(bills, boots, losses, strict=True)]
        of_all = range_of(bills)
        return {name: Decimal(str(round(getattr(of_all, name), 9))) + self.moved_usd for name in ("p10", "p50", "p90")}

    @cached_property
    def most_usd(self) -> Decimal:
        """Never below the P90, and quickly worked out: for a cap that covers it, nobody needs to know the P90."""
        long_s = sum(phase.p90 for phase in self.phases.values())
        often = 3 + 3 * int(self.waste.losses + 1)
        return time_usd(self.offer.prices, self.disk_gib, long_s) + self.moved_usd + 3 * self.waste.boot_usd + often * self.waste.again_usd

    @cached_property
    def least_usd(self) -> Decimal:
        """Never above the P90: half of all runs cost more than the middles of their phases together."""
        return time_usd(self.offer.prices, self.disk_gib, sum(phase.p50 for phase in self.phases.values())) + self.moved_usd

    @property
    def meters(self) -> Mapping[str, Decimal]:
        """The average bill, meter by meter."""
        hours, prices = Decimal(str(sum(phase.mean for phase in self.phases.values()) / 3600)), self.offer.prices
        return {
            "gpu": hours * prices.gpu_usd_per_hour,
            "disk": hours * prices.disk_usd_per_gib_hour * self.disk_gib,
            "traffic": self.moved_usd,
            "failed boots": self.waste.boots_usd,
            "work done twice": self.waste.losses_usd,
        }

    def phase_usd(self, name: str) -> Range:
        """What one phase costs."""
        per_s = float(self.offer.prices.usd_per_hour(self.disk_gib)) / 3600
        return self.phases[name].times(per_s)


@dataclass(slots=True)
class Estimator:
    """Estimates of one load on many offers: what depends on the card alone is worked out once for each card."""

    load: Load
    taught: Taught = untaught
    _cards: dict[tuple[str, float], _OnCard | None] = field(default_factory=dict)

    def on(self, offer: Offer, disk_gib: int) -> Estimate | None:
        """What the run would take on `offer`; None where no setting that may be chosen fits its card."""
        card = self._on_card(offer)
        return None if card is None else self._estimate(card, offer, disk_gib)

    def as_asked(self, offer: Offer, disk_gib: int) -> Estimate:
        """The same with the load as it stands, whether it fits or not."""
        return self._estimate(_as_asked(self.load, offer), offer, disk_gib)

    def fits(self, offer: Offer) -> tuple[Fit, ...]:
        """The fastest setting of each job that fits the card of `offer`; empty where one does not."""
        card = self._on_card(offer)
        return () if card is None else card.fits

    def _on_card(self, offer: Offer) -> _OnCard | None:
        key = (offer.gpu_name, offer.vram_gib)
        if key not in self._cards:
            self._cards[key] = _fitted(self.load, offer)
        return self._cards[key]

    def _estimate(self, card: _OnCard, offer: Offer, disk_gib: int) -> Estimate:
        shipped = phases(self.load, offer, card.steps, card.drawing)
        taught = self.taught(shipped, offer, self.load)
        return Estimate(
            offer=offer,
            disk_gib=disk_gib,
            phases=taught,
            shipped=shipped,
            waste=waste(self.load, offer, disk_gib, taught),
            moved_usd=traffic_usd(offer.prices, int(self.load.upload_bytes + self.load.hub_bytes), self.load.download_bytes),
            vram_bytes=card.vram_bytes,
            memory=card.memory,
            settings=card.settings,
            bound=card.steps[0].bound if card.steps else "",
            steps=sum(work.steps for work in self.load.jobs),
            shapes=tuple(one.shape for one in card.fits),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _OnCard:
    """A load on one kind of card."""

    fits: tuple[Fit, ...]
    steps: tuple[StepTime, ...]
    drawing: tuple[StepTime, ...]
    vram_bytes: int
    memory: Memory
    settings: tuple[str, ...]


def _fitted(load: Load, offer: Offer) -> _OnCard | None:
    """The fastest setting of every job that its owner lets the plan choose and the card has room for."""
    card = replace(gpu(offer.gpu_name), vram_gib=offer.vram_gib)
    found = [fit(shape_of(work, load.base_scale), card, may=work.may) for work in load.jobs]
    fits = tuple(one for one in found if one is not None)
    if len(fits) < len(load.jobs):
        return None
    needed = max((one.memory for one in fits), key=lambda one: one.total)
    peak = max(needed.total, *(reading_total(work.family, needed.context, load.base_scale) for work in load.jobs))
    if peak > usable_bytes(card):
        return None
    return _OnCard(
        fits=fits,
        steps=tuple(one.step for one in fits),
        drawing=tuple(step_time(replace(one.shape, batch=1, micro=None, accumulation=1, checkpointing=False), card) for one in fits),
        vram_bytes=peak,
        memory=needed,
        settings=settings_words(load, fits),
    )


def _as_asked(load: Load, offer: Offer) -> _OnCard:
    card, shapes = gpu(offer.gpu_name), [shape_of(work, load.base_scale) for work in load.jobs]
    steps = tuple(step_time(shape, card) for shape in shapes)
    drawing = tuple(step_time(replace(shape, batch=1, micro=None, accumulation=1, checkpointing=False), card) for shape in shapes)
    fits = tuple(Fit(shape=shape, changed=(), memory=needs_of(shape), step=step) for shape, step in zip(shapes, steps, strict=True))
    return _OnCard(fits=fits, steps=steps, drawing=drawing, vram_bytes=vram_bytes(load), memory=memory_of(load), settings=())


def estimate(load: Load, offer: Offer, disk: int, taught: Taught = untaught) -> Estimate:
    """What the run would take on `offer`, with the load as it stands."""
    return Estimator(load, taught).as_asked(offer, disk)
