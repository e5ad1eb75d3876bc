"""`lorry convert`: what it writes, says and refuses. What a conversion does to a file: tests/trainer/test_convert.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from orchestrator.cli import main

BLOCK = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def lisa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A LoRA of one layer, rank 4, alpha 2, in kohya's names; the working folder is its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORRY_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    weights = {
        f"{BLOCK}.lora_down.weight": rng.standard_normal((4, 768)).astype(np.float32),
        f"{BLOCK}.lora_up.weight": rng.standard_normal((320, 4)).astype(np.float32),
        f"{BLOCK}.alpha": np.asarray(2, np.float32),
    }
    save_file(weights, tmp_path / "lisa.safetensors", {"ss_output_name": "lisa"})
    return tmp_path / "lisa.safetensors"


def test_a_file_is_looked_at_without_writing_anything(lisa: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "lisa.safetensors"]) == 0
    said = capsys.readouterr().out
    assert "sd15, kohya names, 1 layers, rank 4" in said
    assert "loads in A1111, Forge, ComfyUI, diffusers" in said.replace("\n", " ")
    assert [path.name for path in lisa.parent.glob("*.safetensors")] == ["lisa.safetensors"]


def test_a_conversion_says_what_it_wrote_and_who_can_load_it(lisa: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(lisa), "-o", "new.safetensors", "--to", "diffusers", "--dtype", "fp16", "--rank", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["family"], told["format"], told["ranks"], told["from"]) == ("sd15", "diffusers", [2], ["kohya"])
    assert 0.3 < told["kept_energy"] < 1
    assert {one["program"]: one["loads"] for one in told["loads_in"]}["ComfyUI"] == "no"
    written = load_file("new.safetensors")
    assert {value.dtype for value in written.values()} == {np.dtype(np.float16)}
    assert not any(key.endswith(".alpha") for key in written)


def test_two_become_one_by_their_weights(lisa: Path) -> None:
    assert main(["convert", str(lisa), str(lisa), "-o", "both.safetensors", "--weight", "1", "--weight", "-1"]) == 0
    both = load_file("both.safetensors")
    assert not (both[f"{BLOCK}.lora_up.weight"] @ both[f"{BLOCK}.lora_down.weight"]).round(3).any()


def test_a_lora_goes_into_a_model_and_what_a_model_has_learnt_comes_out(lisa: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint of one layer, which is all that matters here; its kind is told by its names."""
    rng = np.random.default_rng(1)
    layer = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    model = {
        layer: rng.standard_normal((320, 768)).astype(np.float32),
        "model.diffusion_model.input_blocks.0.0.weight": np.ones((320, 4, 3, 3), np.float32),
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": np.ones((77, 768), np.float32),
    }
    save_file(model, "model.safetensors")
    assert main(["convert", str(lisa), "--into", "model.safetensors", "-o", "tuned.safetensors", "--weight", "0.5"]) == 0
    assert "sd15 model with 1 layers changed" in capsys.readouterr().out
    weights = load_file(lisa)
    change = weights[f"{BLOCK}.lora_up.weight"] @ weights[f"{BLOCK}.lora_down.weight"] * 0.5 * 2 / 4
    assert np.allclose(load_file("tuned.safetensors")[layer] - model[layer], change, atol=1e-5)
    line = [
        "convert",
        "tuned.safetensors",
        "--less",
        "model.safetensors",
        "-o",
        "out.safetensors",
        "--rank",
        "4",
        "--dtype",
        "fp32",
        "--json",
    ]
    assert main(line) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["family"], told["ranks"], told["changed_beside"]) == ("sd15", [4], 0)
    assert told["kept_energy"] > 0.9999
    found = load_file("out.safetensors")
    assert np.allclose(found[f"{BLOCK}.lora_up.weight"] @ found[f"{BLOCK}.lora_down.weight"], change, atol=1e-3)
    assert main(["convert", str(lisa), "--into", "model.safetensors", "--rank", "2", "-o", "x.safetensors"]) == 2
    assert main(["convert", str(lisa), str(lisa), "--less", "model.safetensors", "-o", "x.safetensors"]) == 2
    assert not Path("x.safetensors").exists()


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (["lisa.safetensors", "--to", "comfyui"], 2, "-o"),
        (["lisa.safetensors", "-o", "lisa.safetensors"], 2, "there already"),
        (["lisa.safetensors", "-o", "new.pt"], 2, "safetensors"),
        (["lisa.safetensors", "-o", "new.safetensors", "--weight", "1", "--weight", "2"], 2, "2 weights"),
        (["nothing.safetensors"], 12, "not there"),
        (["model.ckpt"], 12, "code"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    lisa: Path, capsys: pytest.CaptureFixture[str], line: list[str], code: int, words: str
) -> None:
    before = sorted(path.name for path in lisa.parent.iterdir())
    assert main(["convert", *line]) == code
    assert words in capsys.readouterr().err
    assert [name for name in sorted(path.name for path in lisa.parent.iterdir()) if name != "home"] == before
