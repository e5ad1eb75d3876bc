"""What others have published of their trainings, and what is predicted for the same: memory and time.

python -m tests.estimates.published     traces each base as others cast, into published.json, and writes docs/estimates.md's tables
python -m tests.estimates.published tables     the tables alone: seconds, without torch

Sources are those that each case names. A prediction is made as for a job of ours, with two differences: what is kept and what comes and
goes is traced under autocast, and the host launches every kernel from Python.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.pricing.gpus import gpu
from orchestrator.pricing.needs import Bucket, Correction, JobShape, StepTime, memory, step_time

FIGURES = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[2] / "docs" / "estimates.md"
GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One published training."""

    what: str
    base: str
    """Its name in `trainer.tracing.real.VARIANTS`."""
    side: int
    rows: int = 1
    rank: int = 16
    layers: str = "attention"
    checkpointing: bool = False
    weights: str = "full"
    trains_text: bool = False
    params: int | None = None
    """Trained weights, where it is no plain LoRA."""
    gib: float | None = None
    """Peak on the H100."""
    seconds: tuple[tuple[str, float], ...] = ()
    """Card -> seconds of one step."""
    source: str = "SimpleTuner's sweep"
    note: str = ""

    @property
    def key(self) -> str:
        """Cases that agree in this have one trace."""
        return f"{self.base} {self.side} b{self.rows} r{self.rank} {self.layers}{' checkpointed' if self.checkpointing else ''}"


def _both(h100: float, l40s: float) -> tuple[tuple[str, float], ...]:
    return (("H100 SXM", h100), ("L40S", l40s))


LOKR = "LoKr, traced as a LoRA of all layers"
SWEEP = "SimpleTuner's sweep"
QUICKSTART = "SimpleTuner's FLUX.md"
KOHYA = "bmaltais/kohya_ss#1288"
FLUX_BLOG = "huggingface.co/blog/flux-qlora"

CASES: Sequence[Case] = (
    Case(what="SD1.5", base="sd15", side=512, gib=2.87, seconds=_both(0.181, 0.176)),
    Case(what="SD1.5", base="sd15", side=512, checkpointing=True, gib=1.98, seconds=_both(0.305, 0.292)),
    Case(what="SDXL", base="sdxl", side=1024, layers="kohya", params=2_000_000, gib=13.03, seconds=_both(0.606, 0.585), note=LOKR),
    Case(
        what="SDXL", base="sdxl", side=1024, layers="kohya", params=2_000_000, checkpointing=True, gib=6.53, seconds=_both(1.080, 1.029),
        note=LOKR,
    ),
    Case(what="Kolors", base="sdxl", side=512, gib=7.22, seconds=_both(0.635, 0.628), note="SDXL's UNet with other words"),
    Case(
        what="Kolors", base="sdxl", side=512, checkpointing=True, gib=5.36, seconds=_both(1.118, 1.065), note="SDXL's UNet with other words"
    ),
    Case(what="SD3.5 Medium", base="sd35-medium", side=1024, rows=3, rank=128, gib=34.59, seconds=_both(0.529, 1.189)),
    Case(what="SD3.5 Medium", base="sd35-medium", side=1024, rows=3, rank=128, checkpointing=True, gib=7.67, seconds=_both(0.721, 1.607)),
    Case(what="Z-Image", base="zimage", side=512, rank=64, gib=21.25, seconds=_both(0.243, 0.316)),
    Case(what="Z-Image", base="zimage", side=512, rank=64, checkpointing=True, gib=12.87, seconds=_both(0.479, 0.493)),
    Case(
        what="FLUX.1-dev", base="flux", side=624, rank=4, checkpointing=True, weights="nf4", gib=9.0, seconds=(("RTX 4090", 0.88),),
        source=FLUX_BLOG, note="512x768; 8-bit Adam",
    ),
    Case(
        what="FLUX.1-dev", base="flux", side=624, rank=4, checkpointing=True, gib=26.0, source=FLUX_BLOG, note="512x768; bf16 base",
    ),
    Case(
        what="SDXL", base="sdxl", side=1024, rank=32, layers="kohya", seconds=(("RTX 3090", 1.12),), source="kohya-ss/sd-scripts#827",
        note="3090 Ti",
    ),
    Case(
        what="SDXL", base="sdxl", side=1024, rows=4, rank=32, layers="kohya", checkpointing=True,
        seconds=(("RTX 3090", 2.99),), source=KOHYA,
    ),
    Case(
        what="SDXL", base="sdxl", side=1024, rows=7, rank=32, layers="kohya", checkpointing=True,
        seconds=(("RTX 4090", 3.09),), source=KOHYA,
    ),
    Case(
        what="SDXL", base="sdxl", side=1024, rank=32, layers="kohya", checkpointing=True, seconds=(("RTX 3060", 2.4),), source=KOHYA
    ),
    Case(
        what="SDXL", base="sdxl", side=1024, rows=4, rank=32, layers="kohya", checkpointing=True, seconds=(("RTX 5090", 1.72),),
        source="bmaltais/kohya_ss#3332", note="of two passes one",
    ),
    Case(
        what="FLUX.1-dev", base="flux", side=1024, layers="kohya", checkpointing=True, seconds=(("RTX 3090", 5.5),),
        source="huggingface/diffusers#9258",
    ),
    Case(
        what="FLUX.1-dev", base="flux", side=512, checkpointing=True, weights="nf4", seconds=(("RTX 4090", 1.4),), source=QUICKSTART
    ),
    Case(
        what="FLUX.1-dev", base="flux", side=1024, checkpointing=True, weights="nf4", seconds=(("RTX 4090", 3.5),),
        source=QUICKSTART,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cast:
    """What a pass takes under autocast, over what it takes of ours."""

    kept: float
    kernels: float


def casts() -> dict[str, Cast]:
    """By base, as they were traced."""
    return {base: Cast(**told) for base, told in json.loads(FIGURES.read_text()).items()}


def shape_of(case: Case) -> JobShape:
    """The case as a job of ours."""
    family, _, variant = case.base.partition("-")
    return JobShape(
        family=family,
        variant=variant,
        buckets=(Bucket(width=case.side, height=case.side),),
        batch=case.rows,
        rank=case.rank,
        layers="attention" if case.layers == "attention" else "kohya",
        checkpointing=case.checkpointing,
        adapter_params=case.params,
        base="nf4" if case.weights == "nf4" else "full",
        optimizer="AdamWBF16" if case.source == SWEEP else "AdamW8bit",
        recorded=False,
    )


def memory_of(case: Case, cast: Cast) -> float:
    """Predicted peak in GiB, of what torch's allocator gives out: others count neither CUDA's own nor what is held in vain."""
    made = memory(shape_of(case))
    kept = made.activations * (1.0 if case.checkpointing else cast.kept)
    passing = made.transient * (cast.kept if case.checkpointing else 1.0)
    return (made.weights + made.adapter + made.optimizer + kept + passing) * OVERHEAD / GIB


OVERHEAD = 1.065
"""The one constant, for all cases: what the allocator rounds up and what is forgotten."""


def seconds_of(case: Case, card: str, cast: Cast) -> StepTime:
    """Predicted seconds of a step: every kernel is launched from Python, and there are more of them."""
    return step_time(shape_of(case), gpu(card), Correction(host=cast.kernels))


def memory_table() -> str:
    """Every case of which a peak was published."""
    rows = ["| training | published GiB | predicted GiB | error | source |", "| --- | --- | --- | --- | --- |"]
    for case in [case for case in CASES if case.gib]:
        found = memory_of(case, casts()[case.base])
        rows.append(f"| {_words(case)} | {case.gib:.2f} | {found:.2f} | {100 * (found / (case.gib or 1) - 1):+.0f} % | {case.source} |")
    return "\n".join(rows)


def time_table() -> str:
    """Every case of which a time was published."""
    rows = ["| training | card | published s | predicted s | ratio | waits for | source |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for case in CASES:
        for card, seconds in case.seconds:
            found = seconds_of(case, card, casts()[case.base])
            ratio = found.p50 / seconds
            rows.append(f"| {_words(case)} | {card} | {seconds:.2f} | {found.p50:.2f} | {ratio:.2f} | {found.bound} | {case.source} |")
    return "\n".join(rows)


def _words(case: Case) -> str:
    told = [case.what, f"{case.side} px", f"batch {case.rows}", f"rank {case.rank}"]
    told += ["checkpointed"] * case.checkpointing + [case.weights] * (case.weights != "full") + [case.note] * bool(case.note)
    return ", ".join(told)


def page_with(text: str) -> str:
    """The page with its tables made anew."""
    for name, table in (("memory", memory_table()), ("time", time_table())):
        before, _, rest = text.partition(f"<!-- {name} -->")
        _, _, after = rest.partition(f"<!-- end of {name} -->")
        text = f"{before}<!-- {name} -->\n\n{table}\n\n<!-- end of {name} -->{after}"
    return text


def trace_all() -> dict[str, dict[str, float]]:
    """Each base's step as others cast, over ours."""
    from trainer.tracing.casting import Autocast
    from trainer.tracing.forms import CUTS, TEXT_TOKENS, seen
    from trainer.tracing.real import Setting, hollow, model_of, trace

    found: dict[str, dict[str, float]] = {}
    for base in sorted({case.base for case in CASES}):
        setting = Setting(layers="attention", text_tokens=TEXT_TOKENS.get(base))
        cut = CUTS[base]
        with hollow():
            model = model_of(base, config=cut.more[-1][0] if cut.more else cut.base)
            ours, theirs = seen(trace(model, setting)), seen(trace(model, setting, within=Autocast()))
        found[base] = {key: round(theirs[key] / ours[key], 3) for key in ("kept", "kernels")}
        print(base, found[base], flush=True)
    return found


if __name__ == "__main__":
    if sys.argv[1:] != ["tables"]:
        FIGURES.write_text(json.dumps(trace_all(), indent=1) + "\n")
    PAGE.write_text(page_with(PAGE.read_text()))
