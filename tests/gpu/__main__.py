"""python -m tests.gpu [--family NAME ...] [--steps N] [--tiny --device cpu]

Measures every family at its real size, with random weights, on the GPU of this machine: one line of JSON a case, to be put into
docs/measurements.md with the date. `--tiny` takes tiny models, on any device: it shows that the script works, and measures nothing.
Exit code: 0 when all that ran agrees, 1 when a recorded or smaller base gave other losses than the plain one.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from tests.gpu.cases import Bench, Case, Measured, cases, measure, real, small
from trainer.protocol import FAMILIES

NEAR = {"full": 0.02, "fp8": 0.1, "int8": 0.05, "nf4": 0.3}
"""How far the losses of a case may be from the plain one's, by how its base is stored: bf16's rounding, then that of the storage."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description="Measure the trainer on a GPU.")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only these (default: all)")
    parser.add_argument("--steps", type=int, default=20, help="steps by the clock (default: 20)")
    parser.add_argument("--tiny", action="store_true", help="tiny models: shows that the script works")
    parser.add_argument("--device", default="cuda", help="where (default: cuda)")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("no GPU that torch can use; --tiny --device cpu shows that the script works\n")
        return 2
    device = torch.device(options.device)
    every = [run(name, device, options.steps, small_ones=options.tiny) for name in options.family or FAMILIES]
    return 0 if all(every) else 1


def run(family: str, device: torch.device, steps: int, *, small_ones: bool) -> bool:
    """All cases of a family, each said in a line; whether they agree with the first, which is the plain one."""
    plain, agreed, bench = None, True, Loaded(device, small_ones=small_ones)
    for asked in cases(family):
        case = replace(asked, side=64, rank=4) if small_ones else asked
        if small_ones and case.speed == "compile":
            continue  # tracing takes longer than all the others together; the trainer's own tests have it
        measured, error = _tried(case, bench, steps)
        same = measured is None or case.batch != 1 or plain is None or _near(measured, plain, NEAR[case.base_precision])
        agreed &= same
        plain = plain or measured
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        told = {"case": case.name, "device": name, "torch": torch.__version__, **_figures(case, measured), "agrees": same, "error": error}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
    return agreed


class Loaded:
    """The base that is loaded; cases that follow each other on the same one share it."""

    def __init__(self, device: torch.device, *, small_ones: bool) -> None:
        self.device, self.make, self.stored, self.bench = device, small if small_ones else real, "", None

    def for_case(self, case: Case) -> Bench:
        """The base as this case wants it."""
        if self.bench is None or self.stored != case.base_precision:
            self.forget()
            self.bench, self.stored = self.make(case, self.device), case.base_precision
        return self.bench

    def forget(self) -> None:
        """Give its memory back."""
        self.bench = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _tried(case: Case, loaded: Loaded, steps: int) -> tuple[Measured | None, str]:
    try:
        return measure(loaded.for_case(case), case, steps), ""
    except torch.OutOfMemoryError:
        loaded.forget()
        return None, "out of memory"


def _near(one: Measured, plain: Measured, share: float) -> bool:
    """Whether the losses of the first steps agree: later ones drift apart by rounding alone."""
    return all(abs(a - b) <= share * abs(b) for a, b in zip(one.losses[:5], plain.losses[:5], strict=True))


def _figures(case: Case, measured: Measured | None) -> dict[str, object]:
    told: dict[str, object] = asdict(case)
    if measured is not None:
        told |= {
            "s_per_step": round(measured.s_per_step, 5),
            "samples_per_s": round(case.batch / measured.s_per_step, 2),
            "peak_gib": None if measured.peak_gib is None else round(measured.peak_gib, 2),
            "recorded": measured.recorded,
            "losses": [round(loss, 6) for loss in (measured.losses[0], measured.losses[-1])],
            "notes": measured.notes,
        }
    return told


if __name__ == "__main__":
    sys.exit(main())
