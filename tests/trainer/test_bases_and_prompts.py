"""What a base is, told from its files; prompt lines read exactly or refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from trainer.base import expect_family, inspect_base, read_header
from trainer.errors import BaseModelError, SpecError
from trainer.prompts import Prompt, parse_prompt, parse_prompts


def checkpoint_file(path: Path, *keys: str, channels: int = 4) -> str:
    tensors = {key: torch.zeros(1) for key in keys}
    if "model.diffusion_model.input_blocks.0.0.weight" in tensors:
        tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(2, channels, 3, 3)
    save_file(tensors, path)
    return path.name


UNET = "model.diffusion_model.input_blocks.0.0.weight"
SINGLE = {
    "sd15": (UNET, "cond_stage_model.transformer.text_model.embeddings.position_ids"),
    "sd2": (UNET, "cond_stage_model.model.transformer.resblocks.0.ln_1.weight"),
    "sdxl": (UNET, "model.diffusion_model.label_emb.0.0.weight", "conditioner.embedders.0.transformer.x"),
    "sd3": ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",),
    "sd35": ("joint_blocks.0.x_block.attn.qkv.weight", "joint_blocks.0.x_block.attn.ln_q.weight"),
    "flux": ("double_blocks.0.img_attn.qkv.weight",),
    "zimage": ("context_refiner.0.attention.qkv.weight", "cap_pad_token"),
}


@pytest.mark.parametrize("family", SINGLE)
def test_a_checkpoint_tells_its_family_by_its_keys(family: str, tmp_path: Path) -> None:
    base = inspect_base(checkpoint_file(tmp_path / "m.safetensors", *SINGLE[family]), tmp_path)
    assert (base.kind, base.family) == ("checkpoint", family)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "sd35", "sd2", "flux", "zimage"])
def test_a_base_of_another_family_is_refused_by_name(family: str, tmp_path: Path) -> None:
    base = inspect_base(checkpoint_file(tmp_path / "m.safetensors", *SINGLE[family]), tmp_path)
    with pytest.raises(BaseModelError, match=f"m.safetensors is of family {family}, not sd15"):
        expect_family(base, "sd15")


def test_what_is_no_base_is_said_in_words(tmp_path: Path) -> None:
    cases = {
        "a LoRA": ("lora_unet_x.lora_down.weight",),
        "a VAE alone": ("first_stage_model.encoder.conv_in.weight",),
        "no text encoder": (UNET,),
        "has a UNet but no text encoder": (UNET, "model.diffusion_model.label_emb.0.0.weight"),
        "no Stable Diffusion checkpoint": ("model.layers.0.weight",),
    }
    for words, keys in cases.items():
        with pytest.raises(BaseModelError, match=words):
            inspect_base(checkpoint_file(tmp_path / "m.safetensors", *keys), tmp_path)
    inpainting = inspect_base(checkpoint_file(tmp_path / "m.safetensors", *SINGLE["sd15"], channels=9), tmp_path)
    with pytest.raises(BaseModelError, match="inpainting"):
        expect_family(inpainting, "sd15")


def folder(root: Path, pipeline: str = "StableDiffusionPipeline", **unet: object) -> Path:
    two = ("text_encoder_2", "tokenizer_2") if "XL" in pipeline else ()
    for part in ("unet", "vae", "text_encoder", "tokenizer", *two):
        (root / part).mkdir(parents=True, exist_ok=True)
        save_file({"a": torch.zeros(2)}, root / part / "model.safetensors")
    (root / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    (root / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": 768, "in_channels": 4, **unet}))
    return root


def test_a_folder_tells_its_family(tmp_path: Path) -> None:
    assert inspect_base("a", folder(tmp_path / "a").parent).family == "sd15"
    assert inspect_base("b", folder(tmp_path / "b", cross_attention_dim=1024).parent).family == "sd2"
    assert inspect_base("c", folder(tmp_path / "c", "StableDiffusionXLPipeline").parent).family == "sdxl"
    shutil.rmtree(tmp_path / "c/text_encoder_2")
    with pytest.raises(BaseModelError, match="no folder text_encoder_2/"):
        inspect_base("c", tmp_path)
    with pytest.raises(BaseModelError, match="is a WuerstchenPipeline, not sd15"):
        expect_family(inspect_base("d", folder(tmp_path / "d", "WuerstchenPipeline").parent), "sd15")


def test_broken_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseModelError, match=r"model_index\.json is not there"):
        inspect_base("empty", tmp_path)
    pickled = folder(tmp_path / "pickled")
    (pickled / "unet" / "model.safetensors").rename(pickled / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(BaseModelError, match="pickled weights only"):
        inspect_base("pickled", tmp_path)
    cut = folder(tmp_path / "cut") / "vae" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(BaseModelError, match=r"model\.safetensors is cut short"):
        inspect_base("cut", tmp_path)
    (folder(tmp_path / "json") / "unet" / "config.json").write_text("{")
    with pytest.raises(BaseModelError, match="no JSON"):
        inspect_base("json", tmp_path)


def test_hub_ids_files_and_nothing_are_told_apart(tmp_path: Path) -> None:
    assert inspect_base("runwayml/stable-diffusion-v1-5", tmp_path).kind == "hub"
    for wrong in ("models/m.safetensors", "./x", "/nowhere/x", "nothing"):
        with pytest.raises(BaseModelError, match="is not there"):
            inspect_base(wrong, tmp_path)
    (tmp_path / "m.ckpt").write_bytes(b"x")
    with pytest.raises(BaseModelError, match="pickle"):
        inspect_base("m.ckpt", tmp_path)


@given(st.data())
def test_the_header_reader_never_crashes_on_damaged_files(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("h") / "m.safetensors"
    save_file({"a": torch.zeros(3, 2), "b": torch.ones(1, dtype=torch.int64)}, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, min(len(raw), 200) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(BaseModelError):
        assert read_header(path)


def test_a_prompt_line_is_read_whole() -> None:
    line = "a -- dog, high-quality --n blurry, bad --w 515 --H 768 --d 42 --l 3.5 --s 12"
    assert parse_prompt(line) == Prompt(
        text="a -- dog, high-quality", negative="blurry, bad", width=512, height=768, seed=42, guidance=3.5, steps=12
    )
    assert parse_prompts(["# a comment", "", "a cat"]) == (Prompt(text="a cat"),)


@pytest.mark.parametrize(
    "line",
    ["a --w abc", "a --am 0.8", "a --d -1", "a --s 0", "a --s 1001", "a --w", "a --w 10", "a --l nan", "a --w 64 --w 64", "a --d 1.5"],
)
def test_a_malformed_flag_is_an_error_and_not_dropped(line: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_prompt(line)
    assert caught.value.code == "LRY-JOB-PROMPT"


@given(st.text())
def test_any_line_is_read_or_refused(line: str) -> None:
    with contextlib.suppress(SpecError):
        parse_prompt(line)


def sd_scripts_states(model: Any, text: str, longest: int) -> Any:
    """sd-scripts `train_util.py get_input_ids` and `get_hidden_states` for SD1 beyond 75 tokens, written after their loops."""
    import torch

    ids = model.parts["tokenizer"](text, padding="max_length", truncation=True, max_length=longest + 2, return_tensors="pt").input_ids[0]
    pieces = [torch.cat([ids[:1], ids[i : i + 75], ids[-1:]]) for i in range(1, longest + 2 - 77 + 2, 75)]
    states = model.parts["text_encoder"](torch.stack(pieces))[0].reshape(1, -1, model.parts["text_encoder"].config.hidden_size)
    inside = [states[:, i : i + 75] for i in range(1, longest, 77)]
    return torch.cat([states[:, :1], *inside, states[:, -1:]], dim=1)[0]


@pytest.mark.parametrize("longest", [150, 225])
@pytest.mark.parametrize("words", [3, 100, 400])
def test_long_captions_are_read_in_pieces_as_sd_scripts_does(longest: int, words: int, world: Path) -> None:
    import torch

    from trainer import families
    from trainer.base import inspect_base
    from trainer.contract import Foundation
    from trainer.protocol import TrainingOptions

    model = families.load(Foundation(family="sd15", base=inspect_base("base", world), dtype=torch.float32), torch.device("cpu"))
    text = " ".join(("a dog", "red cat", "on the square")[i % 3] for i in range(words))
    ours = model.encode_text(text, TrainingOptions(max_token_length=longest))["text"]
    assert ours.shape == (longest + 2, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours, sd_scripts_states(model, text, longest))
