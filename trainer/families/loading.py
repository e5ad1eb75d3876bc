"""diffusers' and transformers' own classes from a folder, a hub id or one checkpoint file. Safetensors only.

Which class a component has is in the family's table. The VAE is kept in fp32, since fp16 overflows in some.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from trainer import start
from trainer.base import PIPELINES, read_header, read_metadata
from trainer.contract import Foundation
from trainer.errors import BaseModelError
from trainer.families.model import Family, Model
from trainer.startup import leanly


def load(foundation: Foundation, device: torch.device, family: Family) -> Model:
    """Load a base. Says in words what is wrong with it."""
    leanly(partial(_bring, family))
    base = foundation.base
    try:
        if base.kind == "hub":
            _expect_pipeline(foundation, family)
        parts = _from_file(foundation, family) if base.kind == "checkpoint" else _from_folder(foundation, family)
        for name in [name for name in parts if name.startswith("tokenizer")]:
            _check_vocabulary(parts[name], parts[name.replace("tokenizer", "text_encoder")])
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        hint = "Check the id and the network." if base.kind == "hub" else "Fetch the model again, or check that it is complete."
        if "gated repo" in str(error):
            hint = "Accept its licence on the hub with your account, and set HF_TOKEN to a token of that account where it is trained."
        raise BaseModelError("LRY-BASE-LOAD", f"the base {base.location} cannot be loaded: {reason}", hint) from error
    _expect_kind(foundation, family, parts[family.parts[0]].config)
    if foundation.merged:
        start.merge(parts, *foundation.merged, foundation.family)
    process = family.process(parts, foundation, device)
    return Model(family, parts, process, device, foundation)


def _expect_pipeline(foundation: Foundation, family: Family) -> None:
    """Refuse a hub id of another kind before its gigabytes are fetched."""
    from diffusers import DiffusionPipeline

    base = foundation.base
    pipeline = str(DiffusionPipeline.load_config(base.location, revision=foundation.revision).get("_class_name"))
    if pipeline in PIPELINES and pipeline != family.pipeline:
        fact = f"{base.location} is not of family {foundation.family}: it is a {pipeline}."
        raise BaseModelError("LRY-BASE-FAMILY", fact, "Set `family` to what the base is.")


TELLING = ("addition_embed_type", "use_linear_projection", "qk_norm")
"""Keys of a denoiser's configuration in which families of one class differ."""


def _expect_kind(foundation: Foundation, family: Family, config: Any) -> None:
    """Folders and files were looked at before; what a hub id is shows only now."""
    real = family.real[family.parts[0]]
    if odd := [key for key in TELLING if (config.get(key) or None) != (real.get(key) or None)]:
        raise BaseModelError(
            "LRY-BASE-FAMILY",
            f"{foundation.base.location} is not of family {foundation.family}: its {odd[0]} is {config.get(odd[0])}.",
            "Set `family` to what the base is.",
        )


def _check_vocabulary(tokenizer: Any, encoder: Any) -> None:
    """As `FEW_TOKENS` says, for a folder whose tokenizer is damaged."""
    known, wanted = len(tokenizer), encoder.config.vocab_size
    if known < wanted // 2:
        raise ValueError(f"its tokenizer knows {known} tokens, its text encoder {wanted}")


def _from_folder(foundation: Foundation, family: Family) -> dict[str, Any]:
    revision = foundation.revision if foundation.base.kind == "hub" else None
    return {name: _part(foundation.base.location, name, family, foundation.dtype, revision) for name in family.components}


def _part(where: str, name: str, family: Family, dtype: torch.dtype, revision: str | None = None) -> Any:
    """One component of a diffusers folder or hub id."""
    options: dict[str, Any] = {"subfolder": name, "revision": revision}
    if not name.startswith(("tokenizer", "scheduler")):
        options |= {"use_safetensors": True, "torch_dtype": torch.float32 if name == "vae" else dtype}
        if variant := _variant(where, name):
            options["variant"] = variant
    return _class_of(family, name).from_pretrained(where, **options)


def _variant(where: str, part: str) -> str:
    """`fp16` where a folder holds the half-size files alone."""
    folder = Path(where) / part
    names = [p.name for p in folder.glob("*.safetensors")] if folder.is_dir() else []
    return "fp16" if names and all(".fp16." in name for name in names) else ""


CLIP_VOCABULARY = "openai/clip-vit-large-patch14"
"""All Stable Diffusion text encoders of the CLIP kind read these tokens; they differ in what they pad with."""


FEW_TOKENS = 100
"""transformers makes an empty tokenizer where the vocabulary is missing, and says nothing."""


def _from_file(foundation: Foundation, family: Family) -> dict[str, Any]:
    """Through diffusers' own conversion. A folder `<name>.config` beside the file says configurations and tokenizers, if there is one."""
    path = Path(foundation.base.location)
    beside = path.with_suffix(".config")
    if family.held:
        return _completed(path, beside, family, foundation.dtype)
    if beside.is_dir():
        return _converted(path, beside, family, foundation.dtype, {})
    tokenizers = _tokenizers(path, family)
    with tempfile.TemporaryDirectory() as folder:
        _write_configuration(Path(folder), family, family.real)
        return _converted(path, Path(folder), family, foundation.dtype, tokenizers)


def _completed(path: Path, beside: Path, family: Family, dtype: torch.dtype) -> dict[str, Any]:
    """A file that may be the denoiser alone; what it does not hold lies in the folder beside it, as diffusers has it."""
    keys = read_header(path).keys()
    wanted = [name for name in family.components if name.startswith("tokenizer")]
    wanted += [name for name, key in family.held.items() if key not in keys]
    if absent := [name for name in wanted if not (beside / name).is_dir()]:
        fact = f"{path.name} holds no {', '.join(sorted(absent))}."
        hint = f"Put them, as a diffusers model of the family has them, into a folder {beside.name} beside it; or give the model's hub id."
        raise BaseModelError("LRY-BASE-LOAD", fact, hint)
    given = {name: _part(str(beside), name, family, dtype) for name in wanted}
    with tempfile.TemporaryDirectory() as folder:
        _write_configuration(Path(folder), family, {**family.real, **family.of_file(keys)}, beside)
        return _converted(path, Path(folder), family, dtype, given)


def _tokenizers(path: Path, family: Family) -> dict[str, Any]:
    """A file of weights holds no vocabulary: it is fetched."""
    names = [name for name in family.components if name.startswith("tokenizer")]
    try:
        found = {name: _class_of(family, name).from_pretrained(CLIP_VOCABULARY, **family.real[name]) for name in names}
        if any(len(tokenizer) < FEW_TOKENS for tokenizer in found.values()):
            raise OSError(CLIP_VOCABULARY)
    except OSError as error:
        fact = f"{path.name} needs the vocabulary of {CLIP_VOCABULARY}, which cannot be fetched from the hub."
        hint = f"Check the network, or put a diffusers model's configurations and tokenizers into a folder {path.stem}.config beside it."
        raise BaseModelError("LRY-BASE-LOAD", fact, hint) from error
    return found


def _converted(path: Path, config: Path, family: Family, dtype: torch.dtype, given: Mapping[str, Any]) -> dict[str, Any]:
    import diffusers

    where: dict[str, Any] = {"config": str(config), "local_files_only": True}
    if "vae" not in given:
        given = {**given, "vae": _class_of(family, "vae").from_single_file(str(path), subfolder="vae", torch_dtype=torch.float32, **where)}
    pipeline = getattr(diffusers, family.pipeline)
    whole = pipeline.from_single_file(str(path), torch_dtype=dtype, **where, **given)
    parts = {name: getattr(whole, name) for name in family.components}
    for tied in [part for part in parts.values() if hasattr(part, "tie_weights")]:
        tied.tie_weights()  # diffusers leaves T5's second name for its words empty
    said = _said(path)
    return {**parts, "scheduler": _class_of(family, "scheduler").from_config({**whole.scheduler.config, **said})}


def _said(path: Path) -> dict[str, Any]:
    """What a file says of its own noise schedule: by the marks that NoobAI began, or by its modelspec."""
    keys, spec = read_header(path).keys(), read_metadata(path).get("modelspec.prediction_type")
    said: dict[str, Any] = {"rescale_betas_zero_snr": True} if "ztsnr" in keys else {}
    if "v_pred" in keys or spec in ("v", "v_prediction"):
        return {**said, "prediction_type": "v_prediction"}
    return {**said, "prediction_type": "epsilon"} if spec == "epsilon" else said


def _write_configuration(folder: Path, family: Family, real: Mapping[str, Mapping[str, Any]], beside: Path | None = None) -> None:
    """Real sizes as a diffusers folder without weights; what the folder beside says of a component wins."""
    index = {name: path.rsplit(".", 1) for name, path in family.components.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": family.pipeline, **index}))
    for name, (_, kind) in index.items():
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / name).mkdir()
        if beside is not None and (beside / name / file).is_file():
            (folder / name / file).write_bytes((beside / name / file).read_bytes())
        else:
            (folder / name / file).write_text(json.dumps({"_class_name": kind, **real[name]}))


def _class_of(family: Family, component: str) -> Any:
    library, _, kind = family.components[component].rpartition(".")
    return getattr(importlib.import_module(library), kind)


def _bring(family: Family) -> None:
    """Import what the family is made of."""
    _quiet()
    for package in ("bitsandbytes", "peft"):  # diffusers asks for them sooner or later, and at the worst of times
        if importlib.util.find_spec(package) is not None:
            importlib.import_module(package)
    for component in family.components:
        _class_of(family, component)
    _class_of(family, "scheduler")().compatibles  # noqa: B018  # has all schedulers imported, as loading one does


def _quiet() -> None:
    """Libraries' progress bars and advice would stand between a user's lines."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
