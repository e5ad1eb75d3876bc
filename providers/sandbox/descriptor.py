"""How a client finds the practice cloud of a folder: the file `sandbox.json` that its server leaves there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from .machine import write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """Where the server is, and with which key."""

    url: str
    api_key: str
    admin_key: str
    """For the fault script only."""
    folder: str
    pid: int
    started: int
    speed: float
    faces: Mapping[str, str] = field(default_factory=dict)
    """Addresses and keys of the other clouds' faces, by the names that `lorry sandbox --json` has for them."""

    def document(self) -> dict[str, object]:
        """What `lorry sandbox --json` prints."""
        document: dict[str, object] = asdict(self)
        del document["faces"]
        return document | dict(self.faces)


def write_descriptor(folder: Path, descriptor: Descriptor) -> None:
    """For the owner's eyes only: it holds keys."""
    write_whole(folder / "sandbox.json", json.dumps(descriptor.document()))


def read_descriptor(folder: Path) -> Descriptor | None:
    """The last server of this folder, which may have ended since; None when there was none or the file is not of this version."""
    try:
        document = json.loads((folder / "sandbox.json").read_text(encoding="utf-8"))
        own = {one.name for one in fields(Descriptor)}
        faces = {name: value for name, value in document.items() if name not in own}
        return Descriptor(**{name: value for name, value in document.items() if name in own}, faces=faces)
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None
