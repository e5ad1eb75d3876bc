"""What trainers on the web ask for one LoRA. A table: data, no decisions; prices move, so each has its day and its source.

A flat price has no machine to boot and nothing to set up; what it leaves out are the settings, the checkpoints, and often the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """One service's price for one family."""

    service: str
    families: tuple[str, ...]
    usd: tuple[Decimal, Decimal] = (Decimal(0), Decimal(0))
    """Of one LoRA, from and to."""
    usd_per_step: Decimal = Decimal(0)
    what: str
    dated: str
    """When its source was read, or the month that the source itself says."""
    source: str


HOSTED: tuple[Hosted, ...] = (
    Hosted(
        service="Salad",
        families=("sdxl",),
        usd_per_step=Decimal("0.00016179"),
        what="lowest of a benchmark on interruptible consumer cards",
        dated="2026-11",
        source="blog.salad.com/cost-effective-stable-diffusion-fine-tuning-on-salad",
    ),
    Hosted(
        service="Civitai",
        families=("sd15", "sdxl"),
        usd=(Decimal("0.50"), Decimal("0.50")),
        what="500 Buzz, reported and not confirmed",
        dated="2026-11",
        source="civitai.com",
    ),
    Hosted(
        service="Civitai",
        families=("flux",),
        usd=(Decimal("2.00"), Decimal("2.00")),
        what="2000 Buzz for its default of 2000 steps",
        dated="2026-11",
        source="developer.civitai.com, training-flux1",
    ),
    Hosted(
        service="Replicate",
        families=("flux",),
        usd=(Decimal("1.50"), Decimal("2.00")),
        what="1000 steps in 20 to 30 minutes, by a third party's guide",
        dated="2026-10",
        source="OTStudio wiki",
    ),
    Hosted(
        service="Replicate, SimpleTuner",
        families=("sdxl",),
        usd=(Decimal("3.00"), Decimal("6.00")),
        what="2000 steps, by its trainer's own page",
        dated="2026-11",
        source="SimpleTuner, REPLICATE.md",
    ),
    Hosted(
        service="fal",
        families=("flux",),
        usd=(Decimal("2.00"), Decimal("2.00")),
        what="a fast training, reported and not confirmed",
        dated="2026-11",
        source="fal.ai, flux-lora-fast-training",
    ),
)
"""None was bought for this table."""
