"""What a training is made with, by name and hash: written into the adapter's metadata and told by the receipt.

The machine has compared every one of these files with its hash before anything ran; the image is what its cloud was asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import commands
from .hub import HubBase
from .ship import Item, items_below


def digest(files: Iterable[tuple[str, str]]) -> str:
    """One hash for many files: of their hashes and names, in the order of the names."""
    lines = "".join(f"{sha256} {name}\n" for name, sha256 in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def environment(ship: Path, image: str) -> dict[str, str]:
    """The parts that all jobs of a session share: the trainer's own files, the packages, the image."""
    trainer = digest((one.remote, one.sha256) for one in items_below(ship / "trainer", "trainer"))
    packages = digest((one.remote, one.sha256) for one in items_below(ship / "setup", "setup") if one.remote == commands.REQUIREMENTS)
    return {"trainer_sha256": trainer, "requirements_sha256": packages, **({"image": image} if image else {})}


def of_folder(files: Sequence[Item]) -> dict[str, str]:
    """A base that is sent from here."""
    return {"base_sha256": digest((one.name, one.sha256) for one in files)}


def of_hub(base: HubBase) -> dict[str, str]:
    """A base that the machine fetches: the commit names every file, the hashes those with weights."""
    return {
        "base_revision": base.revision,
        "base_sha256": digest((one.name, one.sha256) for one in base.files if one.sha256),
    }
