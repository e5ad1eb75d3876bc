"""diffusers' and transformers' own classes from a folder, a hub id or one checkpoint file. Safetensors only.

Which class a component has is in the family's table. The VAE is kept in fp32, since fp16 overflows in some.
"""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from trainer.contract import Foundation
from trainer.errors import BaseModelError
from trainer.families.model import Family, Model


def load(foundation: Foundation, device: torch.device, family: Family) -> Model:
    """Load a base. Says in words what is wrong with it."""
    _quiet()
    base = foundation.base
    try:
        parts = _from_file(foundation, family) if base.kind == "checkpoint" else _from_folder(foundation, family)
        for name in [name for name in parts if name.startswith("tokenizer")]:
            _check_vocabulary(parts[name], parts[name.replace("tokenizer", "text_encoder")])
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        hint = "Check the id and the network." if base.kind == "hub" else "Fetch the model again, or check that it is complete."
        raise BaseModelError("LRY-BASE-LOAD", f"the base {base.location} cannot be loaded: {reason}", hint) from error
    process = family.process(parts, foundation, device)
    return Model(family, parts, process, device, foundation.dtype, Path(base.location).name)


def _check_vocabulary(tokenizer: Any, encoder: Any) -> None:
    """transformers makes an empty tokenizer where the vocabulary is missing, and says nothing."""
    known, wanted = len(tokenizer), encoder.config.vocab_size
    if known < wanted // 2:
        raise ValueError(f"its tokenizer knows {known} tokens, its text encoder {wanted}")


def _from_folder(foundation: Foundation, family: Family) -> dict[str, Any]:
    where = foundation.base.location
    revision = foundation.revision if foundation.base.kind == "hub" else None
    parts: dict[str, Any] = {}
    for name, path in family.components.items():
        library, _, kind = path.rpartition(".")
        options: dict[str, Any] = {"subfolder": name, "revision": revision}
        if not name.startswith(("tokenizer", "scheduler")):
            dtype = torch.float32 if name == "vae" else foundation.dtype
            options |= {"use_safetensors": True, "torch_dtype": dtype}
            if variant := _variant(where, name):
                options["variant"] = variant
        parts[name] = getattr(importlib.import_module(library), kind).from_pretrained(where, **options)
    return parts


def _variant(where: str, part: str) -> str:
    """`fp16` where a folder holds the half-size files alone."""
    folder = Path(where) / part
    names = [p.name for p in folder.glob("*.safetensors")] if folder.is_dir() else []
    return "fp16" if names and all(".fp16." in name for name in names) else ""


def _from_file(foundation: Foundation, family: Family) -> dict[str, Any]:
    """Through diffusers' own conversion. A folder `<name>.config` beside the file gives configurations and tokenizers without a network."""
    import diffusers

    path = Path(foundation.base.location)
    config = path.with_suffix(".config")
    local = {"config": str(config), "local_files_only": True} if config.is_dir() else {}
    whole = getattr(diffusers, family.pipeline).from_single_file(str(path), torch_dtype=torch.float32, **local)
    parts = {name: getattr(whole, name) for name in family.components}
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module) and name != "vae":
            part.to(foundation.dtype)
    kind = getattr(importlib.import_module("diffusers"), family.components["scheduler"].rpartition(".")[2])
    return {**parts, "scheduler": kind.from_config(whole.scheduler.config)}


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
