"""The layers of a LoHa or LoKr as those of a LoRA: each is the product of two matrices, and one can say which. numpy, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .errors import IntegrityError
from .tensorfile import Array

PIECES = (
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
)  # fmt: skip
"""Matrices of LoHa and LoKr, as LyCORIS names them."""


def as_lora(path: Path, name: str, found: Mapping[str, Array], kernel: tuple[int, int] | None) -> Mapping[str, Array]:
    """The matrices of a LoHa or LoKr layer as the two of a LoRA that changes the weight by the same; a LoRA's own as they are."""
    if "dora" in found or "magnitude" in found:
        hint = "What it changes depends on its base's weights: draw with it where it was trained for, or start a DoRA from it."
        raise IntegrityError("LRY-FILE-ADAPTER", f"{path.name} is a DoRA, which cannot be converted without its base.", hint)
    if "down" in found or not found.keys() & set(PIECES):
        return found
    try:
        up, down, rank = _of_hadamard(found) if "hada_w1_a" in found else _of_kronecker(found)
    except (KeyError, ValueError, IndexError):
        raise IntegrityError("LRY-FILE-ADAPTER", f"{path.name} has no fitting matrices for {name}.", "It is damaged.") from None
    if min(len(up), down.shape[1]) <= len(down):  # no thinner than the change itself
        up, down = (up @ down, np.eye(down.shape[1])) if len(up) >= down.shape[1] else (np.eye(len(up)), up @ down)
    cells = 1 if kernel is None else kernel[0] * kernel[1]
    if kernel is not None and down.shape[1] % cells == 0:
        up, down = up[:, :, None, None], down.reshape(len(down), -1, *kernel)
    alpha = float(found["alpha"]) if "alpha" in found and rank else rank
    told = np.asarray(alpha / rank * len(down) if rank else len(down))
    return {"up": up.astype(np.float32), "down": down.astype(np.float32), "alpha": told}


def _of_hadamard(found: Mapping[str, Array]) -> tuple[Array, Array, int]:
    """(a1 b1) * (a2 b2) is one product: of every column of a1 with every one of a2, and of the rows of b1 and b2 alike."""
    a1, b1, a2, b2 = (_flat(found[f"hada_w{number}_{side}"]).astype(np.float64) for number in (1, 2) for side in "ab")
    up = np.einsum("or,os->ors", a1, a2).reshape(len(a1), -1)
    return up, np.einsum("ri,si->rsi", b1, b2).reshape(up.shape[1], -1), len(b1)


def _of_kronecker(found: Mapping[str, Array]) -> tuple[Array, Array, int]:
    """small x (a b) is (small x a)(1 x b), or (1 x a)(small x b), whichever is thinner; of two whole matrices there is no rank."""
    thin_small, thin_large = "lokr_w1_a" in found, "lokr_w2_a" in found
    small = found["lokr_w1_a"] @ found["lokr_w1_b"] if thin_small else found["lokr_w1"]
    small = small.astype(np.float64)
    large = (_flat(found["lokr_w2_a"]), _flat(found["lokr_w2_b"])) if thin_large else (_flat(found["lokr_w2"]),) * 2
    a, b = (large[0], large[1]) if thin_large else (large[0], np.eye(large[0].shape[1]))
    rank = len(large[1]) if thin_large else len(found["lokr_w1_b"]) if thin_small else 0
    if small.shape[1] <= len(small):
        return np.kron(small, a), np.kron(np.eye(small.shape[1]), b), rank
    return np.kron(np.eye(len(small)), a), np.kron(small, b), rank


def _flat(array: Array) -> Array:
    return array.reshape(len(array), -1)
