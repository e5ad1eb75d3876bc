"""PURE. How the change of a layer's weight is written: as LoRA, LoHa or LoKr, each with DoRA or without. Names and shapes only.

LoRA (Hu et al. 2021, arXiv 2106.09685) is one product of two thin matrices. LoHa (Hyeon-Woo et al. 2021, arXiv 2108.06098) is two such
products, multiplied value by value. LoKr (LyCORIS, arXiv 2309.14859) is the Kronecker product of a small matrix and a larger one, each
whole or itself a thin product. DoRA (Liu et al. 2024, arXiv 2402.09353) gives every output a length of its own that is trained too.
`changes.py` computes with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MethodName = Literal["lora", "loha", "lokr"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One of the matrices that a change is made of."""

    name: str
    """As kohya's and LyCORIS' files end."""
    rows: int
    columns: int
    uniform: float = 0.0
    """It starts as values between this and its negative,"""
    normal: float = 0.0
    """or as normal values of this deviation; with neither as zeros."""

    @property
    def count(self) -> int:
        """Its values."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What a job's adapter is made of. Of every method the last matrix starts at zero, and the change is linear in it."""

    name: MethodName = "lora"
    dora: bool = False
    factor: int = -1
    """LoKr: into how many parts each side of a layer is divided at most; -1: as near to its root as goes."""
    both: bool = False
    """LoKr: whether the small matrix may be a thin product too."""
    whole: bool = False
    """LoKr: whether the larger matrix is no thin product, whatever the rank."""

    @property
    def plain(self) -> bool:
        """Whether it is LoRA and nothing more: several of these share their arithmetic."""
        return self.name == "lora" and not self.dora

    def pieces(self, fan_in: int, fan_out: int, cells: int, rank: int) -> tuple[Piece, ...]:
        """The matrices of a layer with so many inputs and outputs, over a kernel of so many cells."""
        width = fan_in * cells
        if self.name == "lora":
            found: tuple[Piece, ...] = (_even("lora_down.weight", rank, width), Piece("lora_up.weight", fan_out, rank))
        elif self.name == "loha":  # as LyCORIS starts them
            found = (
                Piece("hada_w1_b", rank, width, normal=1.0),
                Piece("hada_w1_a", fan_out, rank, normal=0.1),
                Piece("hada_w2_b", rank, width, normal=1.0),
                Piece("hada_w2_a", fan_out, rank),
            )
        else:
            found = self._kronecker(fan_in, fan_out, cells, rank)
        return (*found, Piece("dora_scale", fan_out, 1)) if self.dora else found

    def last(self, pieces: Sequence[Piece]) -> int:
        """The index of the matrix that starts at zero."""
        return len(pieces) - (2 if self.dora else 1)

    def _kronecker(self, fan_in: int, fan_out: int, cells: int, rank: int) -> tuple[Piece, ...]:
        (few_out, many_out), (few_in, many_in) = factors(fan_out, self.factor), factors(fan_in, self.factor)
        small: tuple[Piece, ...] = (_even("lokr_w1", few_out, few_in),)
        if self.both and rank < max(few_out, few_in) / 2:
            small = (_even("lokr_w1_a", few_out, rank), _even("lokr_w1_b", rank, few_in))
        if self.whole or rank >= max(many_out, many_in) / 2:
            return (*small, Piece("lokr_w2", many_out, many_in * cells))
        return (*small, _even("lokr_w2_a", many_out, rank), Piece("lokr_w2_b", rank, many_in * cells))

    def scaled(self, fan_in: int, fan_out: int, rank: int) -> bool:
        """Whether alpha over rank counts: of a LoKr of two whole matrices there is no rank, and other programs ignore its alpha."""
        return self.name != "lokr" or {piece.name for piece in self._kronecker(fan_in, fan_out, 1, rank)} != {"lokr_w1", "lokr_w2"}


def _even(name: str, rows: int, columns: int) -> Piece:
    """As kaiming_uniform(a=sqrt 5) starts a matrix."""
    return Piece(name, rows, columns, uniform=1.0 / math.sqrt(columns))


def factors(size: int, factor: int) -> tuple[int, int]:
    """A size as two factors, the smaller first: `factor` where it divides it, else the largest divisor up to it and the root."""
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = size if factor < 0 else factor
    few = max(number for number in range(1, math.isqrt(size) + 1) if size % number == 0 and number <= max(limit, 1))
    return few, size // few


LORA = Method()


def caveat(method: Method, family: str) -> str:
    """Which programs draw with a file of this method as it was trained; empty where LoRA's own rules hold."""
    old = "" if family in ("sd15", "sd2", "sdxl") else "; A1111 knows Stable Diffusion 1, 2 and XL only"
    if method.name != "lora":
        what = {"loha": "LoHa", "lokr": "LoKr"}[method.name]
        if method.dora:
            return f"a {what} with DoRA is drawn as it was trained by ComfyUI and Forge; A1111 and diffusers draw something else or nothing"
        told = f"a {what} loads in ComfyUI and Forge{' and A1111' if not old else ''}; `lorry convert` makes a LoRA of it for diffusers"
        return told + old
    if method.dora and not old:
        return "a DoRA is drawn as it was trained by ComfyUI and Forge; A1111 and diffusers draw something else"
    return f"a DoRA is drawn as it was trained by ComfyUI and diffusers{old}" if method.dora else ""
