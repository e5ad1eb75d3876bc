"""PURE. Which layers can get an adapter, and what one job has there. Knows nothing of memory, passes, families or files."""

from __future__ import annotations

from dataclasses import dataclass

from .methods import LORA, Method, Piece


@dataclass(frozen=True, slots=True)
class Target:
    """A layer that gets an adapter."""

    part: str
    """`unet` or `text_encoder`."""
    name: str
    """Module path inside the part."""
    fan_in: int
    fan_out: int
    conv: bool = False
    """A convolution over `fan_in` channels, stored with 4-d shape; at kernel 1x1 a linear layer over channels."""
    idle: bool = False
    """Nothing of it reaches the answer, and no gradient comes back; it is there because other programs' files have it."""
    kernel: tuple[int, int] = (1, 1)

    @property
    def cells(self) -> int:
        """Pixels that its kernel looks at."""
        return self.kernel[0] * self.kernel[1]

    @property
    def width(self) -> int:
        """Values in a row of A."""
        return self.fan_in * self.cells

    @property
    def wide(self) -> bool:
        """Whether it is a convolution that looks at more than one pixel."""
        return self.kernel != (1, 1)

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of A and of B in a file: of a convolution, A has its kernel and B is 1x1."""
        if not self.conv:
            return (rank, self.fan_in), (self.fan_out, rank)
        return (rank, self.fan_in, *self.kernel), (self.fan_out, rank, 1, 1)


@dataclass(frozen=True, slots=True)
class Slot:
    """A target with what one job's adapter has there."""

    target: Target
    rank: int
    scale: float
    """What the change is multiplied by: alpha / rank, or alpha / sqrt(rank)."""
    rate: float = 1.0
    """Its learning rate over its part's."""
    method: Method = LORA

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The matrices that are trained here."""
        return self.method.pieces(self.target.fan_in, self.target.fan_out, self.target.cells, self.rank)

    @property
    def count(self) -> int:
        """Trained values."""
        return sum(piece.count for piece in self.pieces)

    @property
    def scaled(self) -> bool:
        """Whether its scale comes from alpha and rank."""
        return self.method.scaled(self.target.fan_in, self.target.fan_out, self.rank)

    def shape_of(self, piece: Piece) -> tuple[int, ...]:
        """A matrix's shape in a file."""
        target = self.target
        if piece.name == "dora_scale":
            return (target.fan_out, 1, 1, 1) if target.conv else (target.fan_out, 1)
        if not target.conv or piece.name not in ("lora_down.weight", "lora_up.weight", "lokr_w2"):
            return piece.rows, piece.columns
        if piece.name == "lora_up.weight":
            return piece.rows, piece.columns, 1, 1
        return piece.rows, piece.columns // target.cells, *target.kernel
