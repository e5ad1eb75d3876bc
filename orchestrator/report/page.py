"""The page of a run: one HTML file with curves, samples and receipt, that needs nothing and loads nothing.

What came from the rented machine is escaped by the template, its marks that reorder text are left out, its pictures are drawn
anew; the content policy in the page forbids everything but the page itself.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from orchestrator.border import pictures
from orchestrator.border.weights import Unsound
from orchestrator.border.words import harmless
from orchestrator.budget import show_usd
from orchestrator.home import RunFolder, write_atomically
from orchestrator.progress import Curve, JobProgress
from orchestrator.view import duration

from .receipt import progress_of

WIDTH, HEIGHT = 640, 160
SAMPLE_NAME = re.compile(r"^step(\d{1,9})-(\d{1,4})\.png$")
MOST_SAMPLES = 200
"""Newest first; a page of more would be slow to open."""


def write_page(folder: RunFolder, document: Mapping[str, Any]) -> Path:
    """Write `report.html` from the receipt and what is in the folder."""
    from jinja2 import Environment, StrictUndefined

    import templates

    source = (Path(templates.__file__).parent / "report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_tame)
    environment.filters |= {"usd": show_usd, "duration": duration}
    progress = progress_of(folder)
    prompts = {job["name"]: job.get("sample_prompts", []) for job in (folder.read("order.json") or {"jobs": []})["jobs"]}
    jobs = [_job(job, progress.jobs[job["name"]], prompts.get(job["name"], [])) for job in document["jobs"]]
    page = environment.from_string(source).render(run=document, jobs=jobs, width=WIDTH, height=HEIGHT, warnings=progress.warnings)
    target = folder.path / "report.html"
    write_atomically(target, page.encode())
    return target


def _tame(value: Any) -> Any:
    return harmless(value) if isinstance(value, str) else value


def _job(document: Mapping[str, Any], progress: JobProgress, prompts: Sequence[str]) -> dict[str, Any]:
    scale = _range(progress.loss)
    return {
        **document,
        "curve": points(progress.loss, progress.steps, scale),
        "smooth": points(smoothed(progress.loss), progress.steps, scale),
        "heldout": points(progress.heldout, progress.steps, scale),
        "loss_range": scale,
        "rows": sample_rows([Path(path) for path in document["samples"]], prompts, progress.scores),
    }


def sample_rows(
    samples: Sequence[Path], prompts: Sequence[str], scores: Mapping[tuple[int, int], float] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """A row for each prompt, its pictures from the first step to the last: what training does to one prompt and seed."""
    rows: dict[int, list[dict[str, Any]]] = {}
    for path in sorted(samples)[-MOST_SAMPLES:]:
        if named := SAMPLE_NAME.match(path.name):
            with suppress(Unsound, OSError):  # a picture that cannot be drawn is none
                picture = base64.b64encode(pictures.anew(path)).decode()
                step, number = int(named[1]), int(named[2])
                told = {"step": step, "name": path.name, "data": picture, "clip": scores.get((step, number))}
                rows.setdefault(number, []).append(told)
    return [{"prompt": prompts[i] if i < len(prompts) else f"prompt {i}", "pictures": rows[i]} for i in sorted(rows)]


def smoothed(curve: Curve, keep: float = 0.95) -> Curve:
    """The exponential mean of a curve, with its start corrected as Adam corrects its moments (Kingma and Ba, 2015)."""
    smooth, mean, weight = Curve(), 0.0, 0.0
    for step, value in curve.points:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.points.append((step, mean / weight))
    return smooth


def _range(curve: Curve) -> tuple[float, float]:
    values = [value for _, value in curve.points] or [0.0]
    return min(values), max(values)


def points(curve: Curve, steps: int, scale: tuple[float, float]) -> str:
    """The curve as an SVG point list, y within `scale` so that several curves share one axis."""
    if len(curve.points) < 2:
        return ""
    low, high = scale
    span, last = (high - low) or 1.0, max(steps, curve.points[-1][0], 1)
    return " ".join(f"{step / last * WIDTH:.1f},{HEIGHT - (value - low) / span * HEIGHT:.1f}" for step, value in curve.points)
