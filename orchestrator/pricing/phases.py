"""How long each part of a run takes on one offer: seconds as P10, P50, P90. PURE.

Where a figure was measured or published, its source stands beside it; what is a guess is called ASSUMED. All of them are a beginning:
what runs of this computer took (`learning/`) moves them, phase by phase, towards what is true here.

Looking for an offer costs nothing and is no phase. A phase lasts until the next begins, so that they add up to the whole time that a
machine is paid for.
"""

from __future__ import annotations

from collections.abc import Sequence

from providers.base import Offer

from .needs import Fit, StepTime
from .quantiles import Range, certain
from .work import Load, Work

NAMES = ("boot", "upload", "set-up", "base model", "caching", "compile", "steps", "samples", "saves", "pull", "destroy")
"""In the order in which they begin; steps, samples and saves take turns."""
BEFORE_TRAINING = NAMES[: NAMES.index("steps")]
"""What a machine is paid for before its first step, and a second machine goes through again."""

SLOWEST_MBIT_S = 50.0
"""A line that is not stated counts as a slow one."""
HOME_UP_MBIT_S, HOME_DOWN_MBIT_S = 20.0, 50.0
"""ASSUMED: what a household's line sends and takes."""
IMAGE_BYTES = 3.6e9
"""What a host pulls of an image with torch and CUDA, compressed; none where it is cached, which popular ones are on many hosts."""
LINE_SHARE = 0.5
"""Of the line that a host names, what a pull or a download gets; 6.8 GB took 30 s and 16.3 GB 165 s where it was measured."""
DISK_BYTES_S = 0.5e9
"""ASSUMED: how fast a base is read from a rented disk."""
STARTING_S = 15.0
"""To import torch and to build a model; 14 s for a toy where it was measured, on two busy cores."""
CACHING_S = 0.15
"""ASSUMED: to decode, crop and encode one picture of 512 by 512."""
DRAWING_PASSES = 50
"""Of a sample: 25 steps, each with and without its prompt."""
FORWARD_SHARE = 1 / 3
"""Of a training step's time, its forward pass."""


def phases(load: Load, offer: Offer, steps: Sequence[StepTime], drawing: Sequence[StepTime]) -> dict[str, Range]:
    """Seconds by phase. `steps`: of one step of each job on this card; `drawing`: the same at batch 1, for samples."""
    down = max(offer.down_mbit_s, SLOWEST_MBIT_S) * 1e6 / 8
    up = max(offer.up_mbit_s, SLOWEST_MBIT_S) * 1e6 / 8
    jobs, pictures = len(load.jobs), sum(work.images * (work.resolution / 512) ** 2 for work in load.jobs)
    loading = (load.upload_bytes + load.hub_bytes) / DISK_BYTES_S
    return {
        "boot": _boot(offer, down),
        "upload": certain(load.upload_bytes / min(down, HOME_UP_MBIT_S * 1e6 / 8) + 5).spread(0.5, 3),
        "set-up": Range(20, 90, 300),  # 40 s for the packages where it was measured; pip instead of uv takes minutes
        "base model": certain(load.hub_bytes / (down * LINE_SHARE) + loading + STARTING_S).spread(0.5, 2.5),
        "caching": certain(pictures * CACHING_S + 10 * jobs).spread(0.5, 3),
        "compile": Range(1, 4, 15).times(jobs),  # ASSUMED: the first step chooses its kernels
        "steps": _side_by_side([_of(one, work.steps) for one, work in zip(steps, load.jobs, strict=True)]),
        "samples": _side_by_side([_samples(one, work) for one, work in zip(drawing, load.jobs, strict=True)]),
        "saves": certain(sum(work.saves for work in load.jobs) * 1.0).spread(0.5, 3),
        "pull": _pull(load, min(up, HOME_DOWN_MBIT_S * 1e6 / 8), sum(s.p50 * w.steps for s, w in zip(steps, load.jobs, strict=True))),
        "destroy": Range(5, 15, 60),
    }


def _boot(offer: Offer, down: float) -> Range:
    """From the order to the first login: P10 where the image is there, P90 where a host pulls it at a third of its usual pace.

    Published boots are 1 to 5 minutes at Vast.ai, 30 s to 3 minutes at RunPod; a machine of one's own only answers.
    """
    if offer.prices.gpu_usd_per_hour == 0:
        return Range(2, 5, 20)
    pull = IMAGE_BYTES / (down * LINE_SHARE)
    return Range(35, 50 + 0.7 * pull, 150 + 3 * pull)


def _pull(load: Load, line: float, training_s: float) -> Range:
    """What is still to come when the last step is done: files come home while training goes on, those of each job's end after it."""
    whole_s = load.download_bytes / line
    last_s = whole_s * len(load.jobs) / max(sum(work.saves for work in load.jobs), len(load.jobs))
    return certain(max(last_s, whole_s - training_s) + 5).spread(0.5, 3)


def _of(step: StepTime, count: int) -> Range:
    return Range(step.p10 * count, step.p50 * count, step.p90 * count)


def _samples(step: StepTime, work: Work) -> Range:
    one = step.p50 * DRAWING_PASSES * FORWARD_SHARE
    return certain(one * work.samples).spread(0.4, 2.5)


def _side_by_side(ranges: Sequence[Range]) -> Range:
    """Jobs on one card share what is not known of it: when one takes long, all do."""
    return Range(sum(r.p10 for r in ranges), sum(r.p50 for r in ranges), sum(r.p90 for r in ranges))


def settings_words(load: Load, fits: Sequence[Fit]) -> tuple[str, ...]:
    """What the plan set for a card, job by job where they differ."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for work, one in zip(load.jobs, fits, strict=True):
        if one.changed:
            grouped.setdefault(one.changed, []).append(work.name)
    if len(grouped) == 1 and len(next(iter(grouped.values()))) == len(load.jobs):
        return next(iter(grouped))
    return tuple(f"{', '.join(names)}: {', '.join(changed)}" for changed, names in grouped.items())
