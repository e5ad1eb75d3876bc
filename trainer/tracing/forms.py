"""From a few traced steps to exact forms: what a step computes, moves and keeps at any size of pictures, batch and rank.

Every number of a step is linear in six things: one; pictures; their area; their area squared (attention); the rank; the rank over the
area. So six traces give each kernel's form, kernel by kernel, since all settings launch the same ones. A model of many equal blocks is
traced with few of them, and with one more of each kind: the difference is what a block costs, and depth is a sum.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from .meter import Kernel, Reading
from .real import Hollow, Setting, model_of, trace

MEGAPIXEL = 1024 * 1024
Form = tuple[float, ...]
"""Coefficients of one, rows, rows x megapixels, rows x megapixels squared, rank, rank x rows x megapixels."""
TRACED = ((2, 512, 16), (2, 768, 16), (2, 1024, 16), (3, 512, 16), (2, 512, 32), (2, 1024, 32))
"""Rows, side and rank of the six. Two rows at least: one alone spares a few views, which changes who runs and not what it costs."""
Rows = Counter[tuple[str, Form, Form]]
"""Kind, arithmetic and bytes of kernels, and how many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A denoiser with few blocks, and by what to lengthen it to its real depth."""

    base: Mapping[str, Any]
    more: tuple[tuple[Mapping[str, Any], int], ...] = ()
    """Configurations with one more block of a kind, and how many more the real one has."""


def _sdxl(middle: int, deep: int) -> Mapping[str, Any]:
    return {"transformer_layers_per_block": [1, middle, deep]}


def _medium(dual: int, layers: int) -> Mapping[str, Any]:
    return {"dual_attention_layers": [*range(dual)], "num_layers": layers}


CUTS: Mapping[str, Cut] = {
    "sd15": Cut(base={}),
    "sd2": Cut(base={}),
    "sdxl": Cut(base=_sdxl(1, 1), more=((_sdxl(2, 1), 1), (_sdxl(1, 2), 9))),
    "sd3": Cut(base={"num_layers": 2}, more=(({"num_layers": 3}, 22),)),
    "sd35": Cut(base={"num_layers": 2}, more=(({"num_layers": 3}, 36),)),
    "sd35-medium": Cut(base=_medium(1, 3), more=((_medium(2, 4), 12), (_medium(1, 4), 9))),
    "flux": Cut(
        base={"num_layers": 1, "num_single_layers": 1},
        more=(({"num_layers": 2, "num_single_layers": 1}, 18), ({"num_layers": 1, "num_single_layers": 2}, 37)),
    ),
    "zimage": Cut(
        base={"n_layers": 1, "n_refiner_layers": 1},
        more=(({"n_layers": 2, "n_refiner_layers": 1}, 29), ({"n_layers": 1, "n_refiner_layers": 2}, 1)),
    ),
}
TEXT_TOKENS: Mapping[str, int] = {"zimage": 128}
"""Where a base reads only as many words as a caption has: so many, which few captions exceed."""


@dataclass(slots=True)
class Forms:
    """One way of taking a step."""

    rows: Rows
    kept: Form
    peak: Form

    def plus(self, times: int, other: Forms, base: Forms) -> None:
        """So many times the difference between two of them."""
        for row in set(other.rows) | set(base.rows):
            self.rows[row] += times * (other.rows[row] - base.rows[row])
        self.kept = _sum(self.kept, other.kept, base.kept, times)
        self.peak = _sum(self.peak, other.peak, base.peak, times)


def _sum(own: Form, other: Form, base: Form, times: int) -> Form:
    return tuple(mine + times * (more - less) for mine, more, less in zip(own, other, base, strict=True))


def basis(rows: float, megapixels: float, rank: float) -> Form:
    """What the coefficients of a form are multiplied by."""
    return (1.0, rows, rows * megapixels, rows * megapixels**2, rank, rank * rows * megapixels)


def value(form: Sequence[float], rows: float, megapixels: float, rank: float) -> float:
    """A form at a setting."""
    return math.fsum(a * b for a, b in zip(form, basis(rows, megapixels, rank), strict=True))


MATRIX = np.array([basis(rows, side * side / MEGAPIXEL, rank) for rows, side, rank in TRACED])


def solved(values: Sequence[Sequence[float]]) -> np.ndarray[Any, Any]:
    """Forms, one a column of `values` [six, n], that give these values at the traced settings [n, six]."""
    found: np.ndarray[Any, Any] = np.linalg.solve(MATRIX, np.asarray(values, dtype=np.float64)).T
    return found


def forms_of(model: Hollow, setting: Setting) -> Forms:
    """By six traces."""
    readings = [trace(model, replace(setting, rows=rows, width=side, height=side, rank=rank)) for rows, side, rank in TRACED]
    alike = _alike([reading.kernels for reading in readings])
    flops = solved([[float(kernel.flops) for kernel in kernels] for kernels in alike])
    moved = solved([[float(kernel.bytes) for kernel in kernels] for kernels in alike])
    rows: Rows = Counter()
    for kernel, work, traffic in zip(alike[0], flops, moved, strict=True):
        rows[kernel.kind, _whole(work), _whole(traffic)] += 1
    kept, peak = solved([[reading.kept, reading.peak] for reading in readings])
    return Forms(rows, _whole(kept), _whole(peak))


MOST_ODD = 0.06
"""Share of kernels that may be of one setting alone: Z-Image takes pictures one by one at its ends."""


def _alike(traces: Sequence[Sequence[Kernel]]) -> list[list[Kernel]]:
    """The kernels that all traces have, in their order. Raises `ValueError` when they differ in many."""
    names = [[kernel.name for kernel in kernels] for kernels in traces]
    common = [{place: place for place in range(len(names[0]))}]
    for other in names[1:]:
        blocks = [(0, 0, len(other))] if other == names[0] else SequenceMatcher(None, names[0], other, autojunk=False).get_matching_blocks()
        common.append({here + i: there + i for here, there, size in blocks for i in range(size)})
    places = [place for place in common[0] if all(place in found for found in common)]
    if len(places) < (1 - MOST_ODD) * max(map(len, names)):
        raise ValueError(f"settings launch different kernels: {len(places)} in common of {sorted(map(len, names))}")
    return [[kernels[found[place]] for place in places] for kernels, found in zip(traces, common, strict=True)]


def _whole(form: Sequence[float]) -> Form:
    return tuple(float(round(one)) for one in form)


def of_variant(name: str, setting: Setting, said: Callable[[str], None]) -> Forms:
    """At the real depth."""
    cut = CUTS[name]
    made = replace(setting, text_tokens=TEXT_TOKENS.get(name))
    base = forms_of(model_of(name, config=cut.base), made)
    said(f"{name}: {base.rows.total()} kernels in the shortest")
    whole = Forms(Counter(base.rows), base.kept, base.peak)
    for config, times in cut.more:
        whole.plus(times, forms_of(model_of(name, config=config), made), base)
    return whole


# --- smaller ---------------------------------------------------------------------------------------

AT = (1.0, 0.5, 16.0)
"""Rows, megapixels and rank at which kernels are compared."""


def merged(rows: Rows) -> list[tuple[str, int, Form, Form]]:
    """Kernels of a kind that move about as much and compute about as much of it are one entry: kind, number, arithmetic, bytes."""
    found: dict[tuple[str, int, int], tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}
    for (kind, work, traffic), count in rows.items():
        flops, moved = value(work, *AT), value(traffic, *AT)
        key = (kind, round(math.log2(max(moved, 1)) / 2), round(math.log2(max(flops, 1) / max(moved, 1)) / 2))
        number, sum_work, sum_traffic = found.get(key, (0, np.zeros(6), np.zeros(6)))
        found[key] = (number + count, sum_work + count * np.array(work), sum_traffic + count * np.array(traffic))
    made = sorted((key, *sums) for key, sums in found.items() if sums[0])
    return [(key[0], number, tuple(work.tolist()), tuple(traffic.tolist())) for key, number, work, traffic in made]


def totals(kernels: Sequence[Kernel]) -> dict[str, float]:
    """Kernels, arithmetic and bytes together."""
    return {
        "kernels": len(kernels),
        "flops": float(sum(kernel.flops for kernel in kernels)),
        "bytes": float(sum(kernel.bytes for kernel in kernels)),
    }


def seen(reading: Reading) -> dict[str, float]:
    """A trace in five numbers."""
    return {**totals(reading.kernels), "kept": reading.kept, "peak": reading.peak}
