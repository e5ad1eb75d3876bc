"""`lorry init`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Json

if TYPE_CHECKING:
    from orchestrator.file.drafting import Draft

Recipe = Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="character or style; guessed when not given.", show_default=False)]
Datasets = Annotated[
    list[Path] | None, typer.Option("--dataset", metavar="DIR", help="Folder of pictures; once for each LoRA.", show_default=False)
]
Base = Annotated[
    str | None, typer.Option("--base", metavar="BASE", help="Hub id, diffusers folder or .safetensors checkpoint.", show_default=False)
]
Target = Annotated[Path, typer.Option("--file", metavar="FILE", help="What to write.")]


def init(recipe: Recipe = None, dataset: Datasets = None, base: Base = None, file: Target = Path("lorry.toml"), json: Json = False) -> None:
    """Write a commented lorry.toml for a folder of pictures.

    Counts the pictures, takes the trigger from kohya folder names (`10_lisabp woman`) or from what the captions begin with, and picks a
    recipe. Never writes over a file that is there.

    Examples:
      lorry init --dataset datasets/lisa
      lorry init style --dataset datasets/forest --base models/dreamlike.safetensors
      lorry init --dataset datasets/lisa --dataset datasets/tom --file family.lorry.toml
    """
    from orchestrator import console
    from orchestrator.file.drafting import draft

    made = draft(recipe, dataset or [], base, file)
    made.save()
    if json:
        console.json_document(made.as_json())
    else:
        _tell(made)


def _tell(made: Draft) -> None:
    from orchestrator import console

    console.out(f"wrote {made.file} from the recipe {made.recipe}")
    for job in made.jobs:
        console.out(f"  {job.name}: {job.comment}{f', trigger {job.trigger!r}' if job.trigger else ''}")
    console.talk(f"next: lorry check {made.file}")
    console.talk(f"then: lorry plan {made.file}")
