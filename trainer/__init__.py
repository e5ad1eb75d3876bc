"""Trains Stable Diffusion LoRAs, alone or under lorry's supervisor. Imports nothing of lorry's other packages.

As a command: `python -m trainer job.json`. As a library:

    from trainer import train

    result = train(
        name="lisa",
        base="models/sd15",
        dataset="pictures/10_lisa woman",
        output="out",
        steps=1000,
    )
    print(result.state, result.adapter)

Importing this package imports no torch; `train` does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .protocol import AnyEvent
    from .together import Result


def train(
    *, root: str | Path = ".", on_event: Callable[[AnyEvent], None] | None = None, stopping: Callable[[], bool] = lambda: False, **job: Any
) -> Result:
    """Train one LoRA and return how it ended. `job` is a `JobSpec`'s keys; paths are relative to `root`.

    The family of a folder or a checkpoint file need not be said. Goes on from the newest checkpoint in the output folder.
    Raises a `TrainerError` for keys that are wrong, and for a base that is none; whatever happens later is in the result.
    """
    from pydantic import ValidationError

    from .base import inspect_base
    from .errors import SpecError
    from .events import boot_clock
    from .jobs import Place
    from .protocol import JobSpec
    from .together import run_job

    if "family" not in job and "base" in job and (told := inspect_base(str(job["base"]), Path(root)).family):
        job["family"] = told
    try:
        spec = JobSpec(**job)
    except ValidationError as error:
        raise SpecError("LRY-JOB-SPEC", "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from error
    start = boot_clock()
    return run_job(spec, Place(Path(root), on_event or (lambda _: None), lambda: boot_clock() - start, stopping))
