"""`lorry convert` without its words: read LoRA files, add them up, shrink them, write one; and say who can load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from trainer.convert import Reader
    from trainer.lora import Lora


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to become of which files."""

    files: tuple[Path, ...]
    out: Path | None
    """None: nothing is written, the file is only looked at."""
    form: str | None
    """The format wanted; the first file's own when not said."""
    dtype: str | None
    rank: int | None
    weights: tuple[float, ...]
    overwrite: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was read, and what was written."""

    family: str
    form: str
    layers: int
    ranks: tuple[int, ...]
    readers: tuple[Reader, ...]
    out: Path | None
    sha256: str = ""
    kept: float | None = None
    """Share of the squared change that a smaller rank kept."""
    sources: tuple[str, ...] = field(default=())
    """Formats of what was read."""

    def as_json(self) -> dict[str, object]:
        """The document that scripts get."""
        return {
            "file": None if self.out is None else str(self.out),
            "sha256": self.sha256,
            "family": self.family,
            "format": self.form,
            "layers": self.layers,
            "ranks": list(self.ranks),
            "kept_energy": self.kept,
            "from": list(self.sources),
            "loads_in": [{"program": r.program, "loads": r.loads, "why": r.why} for r in self.readers],
        }


def convert(wish: Wish) -> Conversion:
    """Do it. Nothing is written where anything is wrong."""
    if find_spec("numpy") is None:
        raise UsageError("converting needs numpy, which is not installed", hint='pip install numpy, or "lorry[train]"')
    _check(wish)
    from trainer import lora
    from trainer.convert import merged, readers, resized
    from trainer.errors import TrainerError
    from trainer.tensorfile import DTYPES

    try:
        found = [lora.read(path) for path in wish.files]
        whole = merged(list(zip(found, wish.weights or [1.0] * len(found), strict=True))) if len(found) > 1 or wish.weights else found[0]
        kept = None
        if wish.rank is not None:
            whole, kept = resized(whole, wish.rank)
        form = wish.form or whole.form
        written = lora.write(wish.out, whole, form, DTYPES[wish.dtype] if wish.dtype else None) if wish.out else None
    except TrainerError as error:
        raise IntegrityError(error.message, hint=error.hint) from error
    except OSError as error:
        raise UsageError(f"{wish.out} cannot be written: {error.strerror}", hint="choose another place with -o") from error
    return Conversion(
        family=whole.family,
        form=form,
        layers=len(whole.layers),
        ranks=tuple(whole.ranks),
        readers=tuple(readers(form, whole.family, one_alpha=wish.out is not None or _one_alpha(whole))),
        out=wish.out,
        sha256=written.sha256 if written else "",
        kept=kept,
        sources=tuple(one.form for one in found),
    )


def _check(wish: Wish) -> None:
    if wish.weights and len(wish.weights) != len(wish.files):
        raise UsageError(
            f"{len(wish.files)} files, but {len(wish.weights)} weights", hint="give --weight once for each file, in their order"
        )
    if wish.out is None:
        if wish.form or wish.dtype or wish.rank or len(wish.files) > 1:
            raise UsageError("there is something to write, but no place for it", hint="name the new file: -o NEW.safetensors")
        return
    if wish.out.suffix != ".safetensors":
        raise UsageError(f"{wish.out.name} does not end in .safetensors", hint="programs know a LoRA by this ending")
    if wish.out.exists() and not wish.overwrite:
        raise UsageError(f"{wish.out} is there already", hint="choose another name, or say --overwrite")


def _one_alpha(lora: Lora) -> bool:
    return len({layer.alpha for layer in lora.layers.values()}) == 1


def shown_ranks(ranks: Sequence[int]) -> str:
    """`rank 16`, or `ranks 4 to 32`."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
