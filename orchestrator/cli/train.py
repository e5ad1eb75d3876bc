"""`lorry train`: the same jobs, the same trainer, this computer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import ConfigFile, Json

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where adapters, checkpoints and samples go.")]
Together = Annotated[bool, typer.Option("--together/--one-by-one", help="Jobs on one base share their passes, or wait for each other.")]


def train(file: ConfigFile = None, out: Out = Path("out"), together: Together = True, json: Json = False) -> int:
    """Train the LoRAs of a config on this computer; rents nothing.

    Needs `pip install "lorry[train]"`. The same trainer as on a rented machine. Ctrl-C makes a checkpoint; the same command goes on
    from it. Jobs on one base train together, which is faster and gives each the same result to rounding; --one-by-one is the strict way.

    Examples:
      lorry train
      lorry train autumn.toml --out results --json
    """
    from orchestrator import console
    from orchestrator.here import train_here

    jobs, code = train_here(file, out, together=together, as_json=json)
    if json:
        console.json_document({"jobs": jobs, "exit_code": code})
    else:
        for job in jobs:
            console.out(
                console.plain(f"{job['name']}: {job['status']}, {job['steps']} steps, adapter {job['adapter'] or 'none'}", most=4000)
            )
    return code
