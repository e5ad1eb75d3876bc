"""Several folders of pictures where lorry takes one: their common parent if it is laid out so, else a folder to be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.file.drafting import as_name

from .counting import KOHYA_FOLDER, repeats_in_name
from .nouns import Conversion
from .places import Placed


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder of pictures as the source describes it."""

    place: Placed
    repeats: int
    """How often an epoch shows each picture."""
    words: str = ""
    """What it shows, if that is said."""


def several(c: Conversion, keys: Sequence[str], name: str, folders: Sequence[Folder]) -> Path | None:
    """Write one `dataset` for them; returns where it is, if it is there already."""
    parents = {Path(folder.place.written).parent for folder in folders}
    if len(parents) == 1 and _laid_out(folders):
        found = folders[0].place.found
        c.carry(keys, "dataset", parents.pop().as_posix())
        return found.parent if found else None
    c.carry(keys, "dataset", f"datasets/{name}")
    copies = "; ".join(f'"{f.place.written}" as "{f.repeats}_{f.words or as_name(Path(f.place.written).name)}"' for f in folders)
    c.note(f"{c.tool} takes several folders for one LoRA, lorry one", f'put copies into "datasets/{name}": {copies}')
    return None


def _laid_out(folders: Sequence[Folder]) -> bool:
    """Whether they stand together, each named as it is to be repeated, and nothing else is there that would be read too."""
    if any(not KOHYA_FOLDER.match(Path(f.place.written).name) or repeats_in_name(Path(f.place.written)) != f.repeats for f in folders):
        return False
    first = folders[0].place.found
    if first is None:
        return False
    there = {child.name for child in first.parent.iterdir() if child.is_dir() and KOHYA_FOLDER.match(child.name)}
    return there == {Path(folder.place.written).name for folder in folders}
