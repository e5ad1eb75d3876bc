"""One file a model family: how to load it, encode, predict, draw, and name its layers.

A family's module offers `load(base, revision, device, dtype)`, which returns what `loop.Denoiser` and
`jobs` ask of a model, `key_of(part, module)`, kohya's name of a layer, and `MAX_TOKENS`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from trainer.errors import SpecError
from trainer.protocol import FAMILIES


def plugin(family: str) -> ModuleType:
    """The module of a family."""
    if family not in FAMILIES:
        raise SpecError("LRY-JOB-FAMILY", f"family {family!r} is not known.", f"Known: {', '.join(FAMILIES)}.")
    return importlib.import_module(f"{__name__}.{family}")
