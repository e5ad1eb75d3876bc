"""What family a base is of, told from its outside: no network, nothing loaded."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.base import inspect_base
from trainer.errors import TrainerError

KNOWN_HUB_BASES: tuple[tuple[str, str], ...] = (
    (r"stable-diffusion-v1-\d", "sd15"),
    (r"stable-diffusion-2", "sd2"),
    (r"stable-diffusion-xl|sdxl|animagine-xl|illustrious|noobai|pony-diffusion-v6", "sdxl"),
    (r"stable-diffusion-3\.5", "sd35"),
    (r"stable-diffusion-3", "sd3"),
    (r"flux\.1", "flux"),
    (r"z-image", "zimage"),
)
"""Hub ids whose family is in the name, in any case."""


def family_by_name(hub_id: str) -> str | None:
    """The family that a hub id says by itself."""
    return next((family for pattern, family in KNOWN_HUB_BASES if re.search(pattern, hub_id, re.IGNORECASE)), None)


def family_told_by(base: str, root: Path) -> str | None:
    """The family of a folder, file or hub id; None where it cannot be told, or where the base is broken, which `check` says better."""
    try:
        found = inspect_base(base, root)
    except (TrainerError, OSError):
        return None
    return found.family or family_by_name(found.location)
