"""`lorry convert` without its words: read LoRA files, add them up, shrink them, write one; and say who can load it.

Also between LoRAs and whole models: a LoRA baked into one, and what a tuned model has learnt over its base taken out as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import file_digest
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
    into: Path | None = None
    """A model that the LoRAs are added to; what is written is a model."""
    less: Path | None = None
    """The base of a tuned model, which is then the one file; what is written is the difference as a LoRA."""
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
    beside: int = 0
    """Layers of a tuned model that changed and that no LoRA has."""

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
            "changed_beside": self.beside,
            "loads_in": [{"program": r.program, "loads": r.loads, "why": r.why} for r in self.readers],
        }


def convert(wish: Wish) -> Conversion:
    """Do it. Nothing is written where anything is wrong."""
    if find_spec("numpy") is None:
        raise UsageError("converting needs numpy, which is not installed", hint='pip install numpy, or "lorry[train]"')
    _check(wish)
    from trainer.errors import TrainerError

    try:
        if wish.less is not None:
            return _extracted(wish, wish.less)
        return _baked(wish, wish.into) if wish.into is not None else _converted(wish)
    except TrainerError as error:
        raise IntegrityError(error.message, hint=error.hint) from error
    except OSError as error:
        raise UsageError(f"{wish.out} cannot be written: {error.strerror}", hint="choose another place with -o") from error


def _converted(wish: Wish) -> Conversion:
    found = _read(wish)
    whole, kept = _shrunk(wish, _sum(wish, found))
    return _written(wish, whole, wish.form or whole.form, kept, tuple(one.form for one in found))


def _read(wish: Wish) -> list[Lora]:
    from trainer import lora

    return [lora.read(path) for path in wish.files]


def _sum(wish: Wish, found: list[Lora]) -> Lora:
    from trainer.convert import merged

    if len(found) == 1 and not wish.weights:
        return found[0]
    return merged(list(zip(found, wish.weights or [1.0] * len(found), strict=True)))


def _shrunk(wish: Wish, whole: Lora) -> tuple[Lora, float | None]:
    from trainer.convert import resized

    return (whole, None) if wish.rank is None else resized(whole, wish.rank)


def _written(wish: Wish, whole: Lora, form: str, kept: float | None, sources: tuple[str, ...], beside: int = 0) -> Conversion:
    from trainer import lora
    from trainer.convert import readers
    from trainer.tensorfile import DTYPES

    written = lora.write(wish.out, whole, form, DTYPES[wish.dtype] if wish.dtype else None) if wish.out else None
    return Conversion(
        family=whole.family,
        form=form,
        layers=len(whole.layers),
        ranks=tuple(whole.ranks),
        readers=tuple(readers(form, whole.family, one_alpha=wish.out is not None or _one_alpha(whole))),
        out=wish.out,
        sha256=written.sha256 if written else "",
        kept=kept,
        sources=sources,
        beside=beside,
    )


def _extracted(wish: Wish, base: Path) -> Conversion:
    from trainer.baking import extract
    from trainer.weights import look_into

    tuned, plain = (look_into(str(path.absolute()), Path()) for path in (wish.files[0], base))
    found = extract(tuned, plain, wish.rank or EXTRACTED_RANK)
    return _written(wish, found.lora, wish.form or found.lora.form, found.kept, ("model",), found.beside)


def _baked(wish: Wish, into: Path) -> Conversion:
    from trainer.baking import bake
    from trainer.weights import look_into

    assert wish.out is not None
    found = _read(wish)
    whole = _sum(wish, found)
    model = look_into(str(into.absolute()), Path())
    if model.base.kind == "folder" and wish.out.exists():
        raise UsageError(f"{wish.out} is there already", hint="name a folder that is not there yet")
    bake(model, whole, 1.0, wish.out)
    return Conversion(
        family=whole.family,
        form="model",
        layers=len(whole.layers),
        ranks=tuple(whole.ranks),
        readers=(),
        out=wish.out,
        sha256=_sha256(wish.out) if wish.out.is_file() else "",
        sources=tuple(one.form for one in found),
    )


EXTRACTED_RANK = 64
"""Where none is said: what most extracted LoRAs have."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _check(wish: Wish) -> None:
    if wish.weights and len(wish.weights) != len(wish.files):
        raise UsageError(
            f"{len(wish.files)} files, but {len(wish.weights)} weights", hint="give --weight once for each file, in their order"
        )
    if wish.into is not None and (wish.less is not None or wish.form or wish.rank or wish.dtype):
        raise UsageError("a model that a LoRA is added to stays as it is otherwise", hint="leave out --to, --dtype, --rank and --less")
    if wish.less is not None and (len(wish.files) > 1 or wish.weights):
        raise UsageError("--less takes one tuned model", hint="give the model and its base: lorry convert TUNED --less BASE -o NEW")
    if wish.out is None:
        if wish.into or wish.less or wish.form or wish.dtype or wish.rank or len(wish.files) > 1:
            raise UsageError("there is something to write, but no place for it", hint="name the new file: -o NEW.safetensors")
        return
    into_folder = wish.into is not None and wish.into.is_dir()
    if wish.out.suffix != ".safetensors" and not into_folder:
        raise UsageError(f"{wish.out.name} does not end in .safetensors", hint="programs know a LoRA by this ending")
    if wish.out.exists() and not wish.overwrite:
        raise UsageError(f"{wish.out} is there already", hint="choose another name, or say --overwrite")


def _one_alpha(lora: Lora) -> bool:
    return len({layer.alpha for layer in lora.layers.values()}) == 1


def shown_ranks(ranks: Sequence[int]) -> str:
    """`rank 16`, or `ranks 4 to 32`."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
