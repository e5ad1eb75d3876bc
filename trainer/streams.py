"""PURE. Counter-based randomness: every draw has an address (seed, stream, counters) and no state.

Resume therefore needs no saved generator, and a job's draws do not depend on what its neighbours do.
The address is hashed, so that neighbouring counters give unrelated streams.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def key(seed: int, stream: str, *counters: int) -> int:
    """63 bits that belong to this address alone."""
    text = f"{seed}/{stream}/{'/'.join(map(str, counters))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def dice(seed: int, stream: str, *counters: int) -> random.Random:
    """A Python generator, for orders and choices."""
    return random.Random(key(seed, stream, *counters))  # noqa: S311  # training, not secrets


def generator(seed: int, stream: str, *counters: int) -> torch.Generator:
    """A torch generator. Always on the CPU: the same numbers on every device."""
    import torch

    return torch.Generator().manual_seed(key(seed, stream, *counters))
