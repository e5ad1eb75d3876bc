"""`lorry add`: more jobs for a machine that trains already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Json, Run

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Configs whose [[lora]] jobs are added; their [budget] and [machine] mean nothing.")
]


def add(run: Run, file: Files, json: Json = False) -> int:
    """Add LoRAs to a run while its machine trains.

    The jobs are checked as always, and must fit the card, the disk and what is left of the run's cap; the cap stays as it is. Their
    data is sent beside the training, and they join the passes of the jobs on their base. The lorry that drives the run does it, and
    goes on with it after any crash.

    Examples:
      lorry add autumn-3f2a91 forest.toml
      lorry add autumn forest.toml lake.toml
    """
    from orchestrator import console
    from orchestrator.asking import add as ask
    from orchestrator.budget import show_usd
    from orchestrator.file.keys import Budget, Machine
    from orchestrator.home import Home
    from orchestrator.prepare import checked_config
    from orchestrator.tools import make_tools

    folder, tools = Home.from_env().run(run), make_tools(as_json=json)
    _, jobs = checked_config(file, given={*Budget.model_fields, *Machine.model_fields})
    addition, taken = ask(folder, jobs, tools)
    if json:
        document = {"run": folder.id, "added": addition.names, "taken": taken, "expected_usd": float(addition.expected_usd), "exit_code": 0}
        console.json_document(document)
        return 0
    console.talk(f"added to {folder.id}: {', '.join(addition.names)}; about {show_usd(addition.expected_usd)} more (estimated)")
    if not taken:
        console.talk(f"the lorry that drives it is busy and takes them in later; lorry attach {folder.id} watches it")
    return 0
