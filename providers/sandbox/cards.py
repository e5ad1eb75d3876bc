"""The card that a practice machine plays: told to its processes in their environment, since there is none to ask.

`templates/inspector.py` reads it. Only a client on the same computer believes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from providers.base import Offer

VARIABLE = "LORRY_PRACTICE_GPU"
CUDA = 13000
"""As the newest driver would say."""
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a machine plays instead of what was offered."""

    name: str
    vram_gib: float
    count: int = 1
    cuda: int = CUDA


def as_offered(offer: Offer) -> Card:
    """An honest machine's."""
    return Card(name=offer.gpu_name, vram_gib=offer.vram_gib, count=offer.gpu_count)


def told(card: Card) -> str:
    """The variable's value."""
    one = {"name": card.name, "vram_bytes": int(card.vram_gib * GIB)}
    return json.dumps({"cards": [one] * card.count, "cuda": card.cuda})
