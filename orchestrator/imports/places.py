"""Where the paths of another trainer's config lead, and how they are written in ours."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_WINDOWS = re.compile(r"^[A-Za-z]:[\\/]|^\\\\|^[^/]*\\[^/]*$")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


@dataclass(frozen=True, slots=True)
class Placed:
    """A path of the source."""

    written: str
    """As it goes into lorry.toml: relative to it where that can be, else as it was."""
    found: Path | None
    """Where it is; None where it is not on this computer."""


def placed(text: str, source: Path, target: Path) -> Placed:
    """Find a path of `source`: absolute, or from the source's folder or the current one, whichever has it."""
    plain = text.strip().strip("\"'")
    if _WINDOWS.match(plain) and os.name != "nt":
        plain = plain.replace("\\", "/")
    path = Path(plain).expanduser()
    for start in [Path()] if path.is_absolute() else [source.absolute().parent, Path.cwd()]:
        if (start / path).exists():
            return Placed(_relative(start / path, target) if not path.is_absolute() else path.as_posix(), start / path)
    return Placed(plain, None)


def looks_like_hub_id(text: str) -> bool:
    """Whether it is `owner/name`, which may be a folder as well."""
    return bool(_HUB_ID.match(text))


def _relative(path: Path, target: Path) -> str:
    try:
        return Path(os.path.relpath(path.absolute(), target.absolute().parent)).as_posix()
    except ValueError:  # another drive
        return path.absolute().as_posix()
