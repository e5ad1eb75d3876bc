"""Pictures as they are sent: those that tell more than they show as stripped copies in the run's folder. Yours are never touched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from trainer.opening import EXTENSIONS, opened, orientation

from .ship import Item
from .stripping import Unreadable, stripped


def cleaned(items: Iterable[Item], folder: Path) -> list[Item]:
    """The same items, where need be with a stripped copy below `folder` as their source."""
    return [_cleaned(one, folder) if one.source.suffix.lower() in EXTENSIONS else one for one in items]


def _cleaned(one: Item, folder: Path) -> Item:
    data = one.source.read_bytes()
    try:
        clean = stripped(data, 1)
        turn = _turn(one.source) if clean != data else 1
        clean = stripped(data, turn) if turn != 1 else clean
    except Unreadable:  # BMP has nothing to strip; TIFF keeps it between its pixels: the documents say so
        return one
    if clean == data:
        return one
    root = folder / one.folder
    copy = root / one.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(clean)
    return replace(one, root=root, size=len(clean), sha256=hashlib.sha256(clean).hexdigest())


def _turn(path: Path) -> int:
    """As the trainer sees it: a PNG may say it behind its pixels."""
    with opened(path) as image:
        if image.format == "PNG":
            image.load()
        return orientation(image)
