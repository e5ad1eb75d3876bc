"""One file a model family: how to load it, encode, predict, draw, and name its layers.

A family's file ends with its `FAMILY`, the table of `model.Family` filled in. What several share lies beside them:
`clip` (text encoders), `diffusion` (discrete timesteps and a UNet), `loading`, `model`. Adding one: such a file, its
name in `protocol.FAMILIES`, the keys that tell it in `base.py`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from trainer.errors import SpecError
from trainer.protocol import FAMILIES

if TYPE_CHECKING:
    import torch

    from trainer.contract import Foundation
    from trainer.families.model import Family, Model


def plugin(name: str) -> Family:
    """The family of this name."""
    if name not in FAMILIES:
        raise SpecError("LRY-JOB-FAMILY", f"family {name!r} is not known.", f"Known: {', '.join(FAMILIES)}.")
    family: Family = importlib.import_module(f"{__name__}.{name}").FAMILY
    return family


def load(foundation: Foundation, device: torch.device) -> Model:
    """The base of a job, loaded."""
    from trainer.families import loading

    return loading.load(foundation, device, plugin(foundation.family))
