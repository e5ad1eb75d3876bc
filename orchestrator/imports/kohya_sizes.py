"""kohya's `resolution`, and the square that gives the same buckets."""

from __future__ import annotations

import math
from typing import Any

from .nouns import whole


def size_of(value: Any) -> tuple[int, int]:
    """`512`, `"512"`, `"768,512"`, `[768, 512]`: width, height. Raises ValueError."""
    parts = [whole(part) for part in (value if isinstance(value, list) else str(value).split(","))]
    if not 1 <= len(parts) <= 2 or min(parts) < 1:
        raise ValueError(f"{value!r} is no size")
    return parts[0], parts[-1]


def square_of(value: Any) -> int:
    """The side of a square; raises ValueError for anything else."""
    width, height = size_of(value)
    if width != height:
        raise ValueError(f"{value!r} is no square")
    return width


def equal_side(width: int, height: int, limits: tuple[int, int, int]) -> int:
    """The square that gives the same buckets: the one of the same area, or the next larger one."""
    side = math.isqrt(width * height)
    if side * side == width * height or same_buckets(width * height, side, limits):
        return side
    return side + 1 if same_buckets(width * height, side + 1, limits) else side


def same_buckets(area: int, side: int, limits: tuple[int, int, int]) -> bool:
    """Whether kohya's list for this area is ours for this side: it depends on whole steps only."""
    low, high, step = limits
    widths = range(max(low // step * step, step), math.ceil(high / step) * step + 1, step)
    return all(area // width // step == side * side // width // step for width in widths)
