"""What a step of each base takes, as `python -m trainer.tracing` has found it: forms, read once from `data/`. PURE but for that reading.

A form is six coefficients: of one, rows, rows x megapixels, rows x megapixels squared, rank, rank x rows x megapixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

MEGAPIXEL = 1024 * 1024
Form = tuple[float, ...]

MEDIUM = "sd35-medium"
VARIANTS: Mapping[tuple[str, str], str] = {("sd35", "medium"): MEDIUM}
"""Family and variant -> name of its data, where it is not the family's own name."""
DEAREST = "flux"
"""Stands for a family that there is no data of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Launches of one class that are about equal, together."""

    kind: str
    count: int
    flops: Form
    bytes: Form


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A forward and a backward pass."""

    kept: Form
    """Bytes that the forward pass keeps for the backward pass."""
    peak: Form
    """Bytes alive at once."""
    kernels: tuple[Kernels, ...]

    @property
    def launches(self) -> int:
        """How many kernels."""
        return sum(one.count for one in self.kernels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """All that is known of one base."""

    name: str
    denoiser: int
    """Its weights, as a number."""
    linear: int
    """Those of them that lie in linear layers."""
    encoders: Mapping[str, int]
    autoencoder: int
    adapter: Mapping[str, int]
    """Trained weights at rank 1: of the presets, of the text encoders, of wide convolutions."""
    plain: Pass
    checkpointed: Pass
    attention: Mapping[str, float]
    """What adapting the attention alone takes of what adapting all takes."""
    joint: Mapping[str, float]
    """What a pass of two jobs takes of what one of as many pictures takes."""
    text: Mapping[str, float] | None
    """What training the text encoders adds for each picture."""
    vae: Mapping[str, tuple[float, ...]]
    """Encoding and decoding a picture: coefficients of one, megapixels, megapixels squared."""


def traced(family: str, variant: str = "") -> Traced:
    """A base's data; the dearest one's for a family that has none."""
    name = VARIANTS.get((family, variant), family)
    return _read(name if _file(name).is_file() else DEAREST)


def value(form: Form, rows: float, megapixels: float, rank: float) -> float:
    """A form at a setting."""
    one, of_rows, of_area, of_square, of_rank, of_rank_area = form
    area = rows * megapixels
    return one + of_rows * rows + of_area * area + of_square * area * megapixels + of_rank * rank + of_rank_area * rank * area


def _file(name: str) -> Any:
    return files("orchestrator.pricing").joinpath("data", f"{name}.json")


@cache
def _read(name: str) -> Traced:
    told = json.loads(_file(name).read_text(encoding="utf-8"))
    return Traced(
        name=name,
        **{key: told[key] for key in ("denoiser", "linear", "encoders", "autoencoder", "adapter", "attention", "joint", "text")},
        plain=_pass(told["plain"]),
        checkpointed=_pass(told["checkpointed"]),
        vae={key: tuple(form) for key, form in told["vae"].items()},
    )


def _pass(told: Mapping[str, Any]) -> Pass:
    kernels = (Kernels(kind=kind, count=count, flops=tuple(work), bytes=tuple(moved)) for kind, count, work, moved in told["kernels"])
    return Pass(kept=tuple(told["kept"]), peak=tuple(told["peak"]), kernels=tuple(kernels))
