"""python -m trainer.tracing FOLDER [NAME...]     traces a step of every base and writes what it takes as FOLDER/NAME.json

Needs torch and diffusers, no GPU and no weights: minutes of one core.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.adapters import Target

from .forms import CUTS, MEGAPIXEL, TEXT_TOKENS, Forms, merged, of_variant, seen
from .meter import Meter
from .real import VARIANTS, Hollow, Setting, hollow, model_of, trace

TWO_BLOCKS: Mapping[str, Any] = {
    "layers_per_block": 1,
    "block_out_channels": [64, 128],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
WITNESSES: Mapping[str, Mapping[str, Any]] = {
    **{name: cut.base for name, cut in CUTS.items()},
    "sd15": TWO_BLOCKS,
    "sd2": {**TWO_BLOCKS, "attention_head_dim": [1, 2]},
    "sdxl": {**CUTS["sdxl"].base, "layers_per_block": 1, "block_out_channels": [64, 128, 128], "attention_head_dim": [1, 2, 2]},
}
"""A small relation of each base, whose trace is kept beside the forms: a step that has changed is told by it in a second."""
WITNESSED = Setting(width=256, height=256, rows=1, rank=4)
Numbers = dict[str, float]


def witness(name: str) -> dict[str, Numbers]:
    """The small relation's step, without and with checkpointing."""
    model = model_of(name, config=WITNESSES[name])
    setting = replace(WITNESSED, text_tokens=TEXT_TOKENS.get(name))
    return {"plain": seen(trace(model, setting)), "checkpointed": seen(trace(model, replace(setting, checkpointing=True)))}


def described(name: str, said: Callable[[str], None]) -> dict[str, Any]:
    """All that is known of one base."""
    plain, thrifty = (of_variant(name, Setting(checkpointing=on), said) for on in (False, True))
    return {
        "family": VARIANTS[name][0],
        "text_tokens": TEXT_TOKENS.get(name),
        **weights(name),
        "plain": written(plain),
        "checkpointed": written(thrifty),
        "attention": _ratios(name, Setting(rows=2), Setting(rows=2, layers="attention")),
        "joint": _ratios(name, Setting(rows=2), Setting(rows=1, jobs=2)),
        "text": text(name),
        "vae": vae(name),
        "witness": witness(name),
    }


def written(forms: Forms) -> dict[str, Any]:
    """As lists of numbers."""
    kernels = [[kind, count, _short(flops), _short(moved)] for kind, count, flops, moved in merged(forms.rows)]
    return {"kept": _short(forms.kept), "peak": _short(forms.peak), "kernels": kernels}


def _short(form: Sequence[float]) -> list[int | float]:
    return [int(rounded) if (rounded := float(f"{one:.6g}")).is_integer() else rounded for one in form]


def weights(name: str) -> dict[str, Any]:
    """Numbers of weights, and of an adapter's at rank 1."""
    model = model_of(name, whole_encoders=True)
    presets = {preset: _per_rank(model.targets(model.family.parts[:1], preset)) for preset in ("kohya", "attention")}
    encoders = {part: _numel(model.parts[part]) for part in model.family.encoders}
    return {
        "denoiser": _numel(model.parts[model.denoiser]),
        "linear": sum(one.weight.numel() for one in model.parts[model.denoiser].modules() if isinstance(one, torch.nn.Linear)),
        "encoders": encoders,
        "autoencoder": _numel(model.parts["vae"]),
        "adapter": {
            **presets,
            "text": _per_rank(model.targets(model.family.parts[1:])),
            "convolutions": _per_rank([target for target in model.family.convolutions(model) if target.wide]),
        },
    }


def _per_rank(targets: Sequence[Target]) -> int:
    return sum(target.width + target.fan_out for target in targets)


def _numel(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _ratios(name: str, usual: Setting, other: Setting) -> Numbers:
    """What another way of training takes of the usual one's, with few blocks."""
    model = model_of(name, config=CUTS[name].more[-1][0] if CUTS[name].more else {})
    one, two = (seen(trace(model, replace(setting, text_tokens=TEXT_TOKENS.get(name)))) for setting in (usual, other))
    return {key: round(two[key] / one[key], 4) for key in one}


def text(name: str) -> Numbers | None:
    """What training the text encoders adds to a pass: for each picture, but for kernels, which are there once."""
    if not model_of(name).family.parts[1:]:
        return None
    model = model_of(name, config=CUTS[name].base, whole_encoders=True)
    one, many = (
        {on: seen(trace(model, Setting(width=256, height=256, rows=rows, trains_text=on))) for on in (False, True)} for rows in (2, 4)
    )
    added = {key: (many[True][key] - many[False][key] - one[True][key] + one[False][key]) / 2 for key in one[True]}
    return {**added, "kernels": one[True]["kernels"] - one[False]["kernels"]}


def vae(name: str) -> dict[str, list[int | float]]:
    """Arithmetic, bytes and peak of encoding and decoding one picture: of one, megapixels and their square."""
    model = model_of(name)
    sides = (512, 768, 1024)
    powers = np.array([[(side * side / MEGAPIXEL) ** power for power in range(3)] for side in sides])

    def solved(key: str, readings: Sequence[Numbers]) -> list[int | float]:
        found: list[float] = np.linalg.solve(powers, np.array([reading[key] for reading in readings])).tolist()
        return _short(found)

    made: dict[str, list[int | float]] = {}
    for way in ("encode", "decode"):
        readings = [_picture(model, way, side) for side in sides]
        made |= {f"{way}_{key}": solved(key, readings) for key in ("flops", "bytes", "peak")}
    return made


def _picture(model: Hollow, way: str, side: int) -> Numbers:
    autoencoder = model.parts["vae"]
    channels = autoencoder.config.latent_channels
    given = torch.empty((1, 3, side, side) if way == "encode" else (1, channels, side // 8, side // 8))
    meter = Meter()
    meter.know(list(autoencoder.parameters()))
    with torch.no_grad(), meter:
        autoencoder.encode(given) if way == "encode" else autoencoder.decode(given, return_dict=False)
    return seen(meter.reading)


def _say(words: str) -> None:
    sys.stderr.write(f"{words}\n")


def main(folder: Path, names: Sequence[str]) -> None:
    """Write a file for each."""
    warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
    for name in names or VARIANTS:
        with hollow():
            made = described(name, _say)
        (folder / f"{name}.json").write_text(laid_out({"torch": torch.__version__.partition("+")[0], **made}))


def laid_out(made: Mapping[str, Any]) -> str:
    """As JSON that a person can compare: a line for each key, and one for each class of kernels."""
    lines = []
    for key, value in made.items():
        if isinstance(value, dict) and "kernels" in value and isinstance(value["kernels"], list):
            rows = ",\n   ".join(json.dumps(row) for row in value["kernels"])
            forms = "".join(f'\n  "{form}": {json.dumps(value[form])},' for form in ("kept", "peak"))
            lines.append(f' "{key}": {{{forms}\n  "kernels": [\n   {rows}\n  ]\n }}')
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(str(__doc__))
    main(Path(sys.argv[1]), sys.argv[2:])
