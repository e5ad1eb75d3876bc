"""`lorry convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .common import Json

if TYPE_CHECKING:
    from orchestrator.convert import Conversion

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="LoRA files; several become one.", show_default=False)]
Out = Annotated[Path | None, typer.Option("-o", "--out", metavar="NEW", help="The file to write.", show_default=False)]
To = Annotated[
    Literal["kohya", "diffusers", "comfyui"] | None,
    typer.Option("--to", help="Whose names it gets; the first file's own when not said.", show_default=False),
]
Dtype = Annotated[
    Literal["fp16", "bf16", "fp32"] | None, typer.Option("--dtype", help="Precision; the first file's when not said.", show_default=False)
]
Rank = Annotated[
    int | None, typer.Option("--rank", min=1, max=1024, metavar="N", help="Shrink every layer to this rank at most.", show_default=False)
]
Weight = Annotated[
    list[float] | None,
    typer.Option("--weight", metavar="W", help="What each file counts, in their order; 1 when not said.", show_default=False),
]
Into = Annotated[
    Path | None,
    typer.Option("--into", metavar="MODEL", help="Add the LoRAs to this checkpoint or folder; -o is the new model.", show_default=False),
]
Less = Annotated[
    Path | None,
    typer.Option("--less", metavar="BASE", help="FILE is a tuned model: what it has learnt over BASE becomes a LoRA.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write over a file that is there.")]


def convert(  # noqa: PLR0917  # each is an option of the command line
    file: Files,
    out: Out = None,
    to: To = None,
    dtype: Dtype = None,
    rank: Rank = None,
    weight: Weight = None,
    into: Into = None,
    less: Less = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Change a LoRA's format, precision or rank, merge several, or see who can load it.

    Strength is kept in every format: alpha, fused query-key-value matrices and convolutions included; what the file says of itself goes
    with it. A LoHa or LoKr becomes the LoRA that does the same. A smaller rank keeps the largest singular values, and says how much of
    the change they hold. With --into LoRAs are added to a whole model; with --less one is taken out of it, by its largest singular
    values. Without -o the file is only looked at. Knows SD 1.5, 2, XL, 3, 3.5, FLUX and Z-Image; needs numpy, no torch.

    Examples:
      lorry convert lisa.safetensors
      lorry convert lisa.safetensors -o new.safetensors --to comfyui
      lorry convert big.safetensors -o small.safetensors --rank 16
      lorry convert a.safetensors b.safetensors -o ab.safetensors --weight 1 --weight 0.5
      lorry convert lisa.safetensors --into model.safetensors -o lisa-model.safetensors --weight 0.8
      lorry convert tuned.safetensors --less model.safetensors -o tuned-lora.safetensors --rank 64
    """
    from orchestrator import console
    from orchestrator.convert import Wish
    from orchestrator.convert import convert as work

    weights = tuple(weight or ())
    done = work(
        Wish(files=tuple(file), out=out, form=to, dtype=dtype, rank=rank, weights=weights, into=into, less=less, overwrite=overwrite)
    )
    if json:
        console.json_document(done.as_json())
    else:
        _tell(done)


def _tell(done: Conversion) -> None:
    from orchestrator import console
    from orchestrator.convert import shown_ranks
    from trainer.convert import words

    if done.out is not None:
        console.out(f"wrote {done.out}")
    if done.form == "model":
        console.out(f"  {done.family} model with {done.layers} layers changed")
        return
    console.out(f"  {done.family}, {done.form} names, {done.layers} layers, {shown_ranks(done.ranks)}")
    if done.kept is not None:
        console.out(f"  {100 * done.kept:.2f} % of the change is kept")
    if done.beside:
        console.out(f"  {done.beside} other layers changed as well, which no such LoRA has: convolutions and embeddings")
    console.out(f"  {words(done.readers)}")
