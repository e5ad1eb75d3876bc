"""`lorry import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Json

if TYPE_CHECKING:
    from orchestrator.imports.importing import Imported
    from orchestrator.imports.nouns import Job

Sources = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Config of kohya, SimpleTuner, ai-toolkit or OneTrainer.", show_default=False)
]
Target = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="What to write.")]


def import_(files: Sources, output: Target = Path("lorry.toml"), json: Json = False) -> None:
    """Make a lorry.toml of another trainer's config; lists what it cannot carry.

    Reads kohya's run TOML, dataset TOML, GUI JSON and command lines (.sh, .bat, .ps1), SimpleTuner's config.json with its
    multidatabackend.json, ai-toolkit's YAML, OneTrainer's JSON; which it is, is told by its content. Nothing in it is run. Every key is
    carried, without meaning here, or listed with the reason and the next move. Never writes over a file that is there.

    Examples:
      lorry import config.toml
      lorry import train.sh -o lisa.lorry.toml
      lorry import config.json multidatabackend.json
    """
    from orchestrator import console
    from orchestrator.imports.importing import imported

    made = imported(files, output)
    made.save()
    for job in made.jobs:
        _tell(job)
    if json:
        console.json_document(made.as_json())
    else:
        _conclude(made)


def _tell(job: Job) -> None:
    """What a person should know before the file is used."""
    from orchestrator import console

    for fate in job.of("listed"):
        console.warn(f"{job.name}: {fate.key} could not be carried: {fate.why}")
        console.talk(f"    {console.plain(fate.hint)}")
    for remark in job.remarks:
        console.warn(f"{job.name}: {remark.what}")
        if remark.hint:
            console.talk(f"    {console.plain(remark.hint)}")


def _conclude(made: Imported) -> None:
    from orchestrator import console

    console.out(f"wrote {made.file}")
    for job in made.jobs:
        carried, nothing, listed = (len(job.of(kind)) for kind in ("carried", "meaningless", "listed"))
        console.out(f"  {job.name}: from {job.tool}, {carried} keys carried, {nothing} without meaning here, {listed} could not be carried")
    console.talk(f"next: lorry check {made.file}")
