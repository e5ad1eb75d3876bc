"""How right the estimates were: how often the truth fell between P10 and P90, and how far from P50 it was. PURE."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from orchestrator.pricing.phases import NAMES
from orchestrator.pricing.quantiles import Range

from .records import BILL, WHOLE, Record

ROWS = (*NAMES, WHOLE, BILL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One quantity over many runs."""

    name: str
    runs: int
    within: int
    """Runs in which the truth lay between P10 and P90; of 80 in 100 that is expected."""
    below: int
    """In which it lay below P10."""
    error: float
    """Median of |seen / said - 1|."""
    bias: float
    """Median of seen / said; above 1: things take longer than is said."""
    shipped_runs: int
    shipped_within: int
    shipped_error: float
    """The same for the figures that lorry comes with, of those runs for which they are known."""


def calibration(records: Iterable[Record]) -> list[Calibration]:
    """A row for each phase that was ever seen, then the whole run and its bill."""
    known = list(records)
    rows = []
    for name in ROWS:
        used = [(one.took[name], Range(*one.said.used[name])) for one in known if name in one.took and name in one.said.used]
        shipped = [(one.took[name], Range(*one.said.shipped[name])) for one in known if name in one.took and name in one.said.shipped]
        used, shipped = _that_count(used), _that_count(shipped)
        if used:
            rows.append(_row(name, used, shipped))
    return rows


Pairs = list[tuple[float, Range]]


def _that_count(pairs: Pairs) -> Pairs:
    return [(took, said) for took, said in pairs if said.p50 > 0]


def _row(name: str, used: Pairs, shipped: Pairs) -> Calibration:
    return Calibration(
        name=name,
        runs=len(used),
        within=sum(said.p10 <= took <= said.p90 for took, said in used),
        below=sum(took < said.p10 for took, said in used),
        error=median(abs(took / said.p50 - 1) for took, said in used),
        bias=median(took / said.p50 for took, said in used),
        shipped_runs=len(shipped),
        shipped_within=sum(said.p10 <= took <= said.p90 for took, said in shipped),
        shipped_error=median(abs(took / said.p50 - 1) for took, said in shipped) if shipped else 0.0,
    )
