"""Which parts of a model a job trains, at which rates, and which text encoders it needs meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import captions
from .errors import SpecError
from .families import plugin
from .protocol import JobSpec


def rates_of(job: JobSpec) -> dict[str, float]:
    """The parts that are trained, with their learning rates."""
    denoiser, *encoders = plugin(job.family).parts
    second = job.text_encoder_lr if job.text_encoder_2_lr is None else job.text_encoder_2_lr
    rates = {denoiser: job.learning_rate if job.unet_lr is None else job.unet_lr}
    rates |= dict(zip(encoders, (job.text_encoder_lr or 0.0, second or 0.0), strict=False))
    trained = {part: rate for part, rate in rates.items() if rate > 0}
    if not trained:
        raise SpecError(
            "LRY-JOB-NOTHING", "every learning rate is 0: nothing would be trained.", "Set learning_rate, unet_lr or text_encoder_lr."
        )
    return trained


def trains_text(rates: Mapping[str, float], job: JobSpec) -> bool:
    """Whether a text encoder is among the parts that are trained."""
    return any(part in plugin(job.family).encoders for part in rates)


def needed_encoders(job: JobSpec, model: Any) -> list[str]:
    """Text encoders that stay on the device: those that train; all of them, where captions change all the time."""
    rates = rates_of(job)
    return [part for part in model.family.encoders if part in rates or captions.vary(job)]
