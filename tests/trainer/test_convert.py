"""LoRA files change their format and keep what they do; resized, merged, refused in words; and who can load them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from trainer import convert, lora, names, tensorfile
from trainer.base import read_metadata
from trainer.errors import IntegrityError
from trainer.lora import Layer, Lora

FORMS = names.FORMATS
ENCODER = "text_model.encoder.layers.{}.self_attn.q_proj"
UNET = (
    ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 8, 8, 1),
    ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 0, 8, 1),  # as wide as the family's words
    ("mid_block.attentions.0.proj_in", 8, 8, 1),
    ("up_blocks.0.upsamplers.0.conv", 4, 4, 3),
    ("up_blocks.1.resnets.2.conv_shortcut", 6, 4, -1),
    ("down_blocks.0.resnets.1.time_emb_proj", 12, 4, 1),
)
"""Path, fan in, fan out, kernel (-1: a convolution of 1x1)."""
WORDS = {"sd15": 768, "sd2": 1024, "sdxl": 2048}


def modules_of(family: str) -> list[tuple[str, str, int, int, int]]:
    """Part, path, sizes: a few of each kind of layer."""
    found = [(part, ENCODER.format(0), 8, 8, 1) for part in names.KOHYA_ENCODERS[family] if names.COMFYUI_ENCODERS[family][part] != "t5xxl"]
    if family in WORDS:
        return found + [("unet", path, fan_in or WORDS[family], fan_out, kernel) for path, fan_in, fan_out, kernel in UNET]
    width = 16
    for (blocks, _), table in names.BLOCKS[family].items():
        for rows in table.values():
            for row in rows:
                out = 2 * width if row == names.SWAPPED else 4 * 8 if row == "proj_mlp" else 8
                found.append(("transformer", f"{blocks}.3.{row}", width, out, 1))
    return found


def random_lora(family: str, seed: int, rank: int = 3, scale: float = 0.5) -> Lora:
    rng = np.random.default_rng(seed)
    layers = {}
    for part, path, fan_in, fan_out, kernel in modules_of(family):
        tail, end = (() if kernel == 1 else (abs(kernel),) * 2), (() if kernel == 1 else (1, 1))
        down = rng.standard_normal((rank, fan_in, *tail)).astype(np.float32)
        up = rng.standard_normal((fan_out, rank, *end)).astype(np.float32)
        layers[part, path] = Layer(down, up, scale * rank)
    return Lora(family, "kohya", "F32", layers, {"ss_output_name": "x", "ss_network_dim": str(rank)})


def products(one: Lora) -> dict[lora.Key, Any]:
    return {key: layer.product() for key, layer in one.layers.items()}


def assert_equal_products(one: Lora, other: Lora, close: float = 1e-6) -> None:
    ours, theirs = products(one), products(other)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(theirs[key], value, rtol=close, atol=close * max(1e-9, abs(value).max()), err_msg=str(key))


@pytest.mark.parametrize("family", names.FAMILIES)
@pytest.mark.parametrize("there", FORMS)
@pytest.mark.parametrize("here", FORMS)
def test_there_and_back_is_the_same_file(tmp_path: Path, family: str, here: str, there: str) -> None:
    """Names, shapes, alpha and bits, for a power of two; and what the layers do is the same to fp64 in between."""
    source = random_lora(family, 1)
    lora.write(tmp_path / "a.safetensors", source, here)
    first = lora.read(tmp_path / "a.safetensors")
    assert (first.form, first.family) == (here, family)
    assert_equal_products(source, first, 1e-12)
    lora.write(tmp_path / "b.safetensors", first, there)
    second = lora.read(tmp_path / "b.safetensors")
    assert (second.form, second.family) == (there, family)
    assert_equal_products(source, second, 1e-12)
    lora.write(tmp_path / "c.safetensors", second, here)
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


@given(
    family=st.sampled_from(names.FAMILIES),
    chain=st.lists(st.sampled_from(FORMS), min_size=1, max_size=4),
    rank=st.integers(1, 5),
    scale=st.floats(0.01, 100),
    dtype=st.sampled_from(["F32", "F16", "BF16"]),
    seed=st.integers(0, 10),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_chain_of_formats_keeps_the_strength(
    tmp_path: Path, family: str, chain: list[str], rank: int, scale: float, dtype: str, seed: int
) -> None:
    """Alpha different from rank, ranks and scales that differ, every precision: each step costs its rounding and no more."""
    start = random_lora(family, seed, rank, scale)
    lora.write(tmp_path / "x.safetensors", start, "kohya", "F32")
    now = lora.read(tmp_path / "x.safetensors")
    for form in chain:
        lora.write(tmp_path / "x.safetensors", now, form, dtype)
        now = lora.read(tmp_path / "x.safetensors")
    assert_equal_products(start, now, {"F32": 1e-5, "F16": 1e-2, "BF16": 1e-1}[dtype])


def test_layers_of_different_rank_and_scale_are_told_by_one_alpha(tmp_path: Path) -> None:
    source = random_lora("sd15", 2)
    one, *rest = source.layers
    other = random_lora("sd15", 3, rank=5, scale=3.0).layers[one]
    mixed = Lora("sd15", "kohya", "F32", {one: other, **{key: source.layers[key] for key in rest}}, {})
    for form in FORMS:
        lora.write(tmp_path / f"{form}.safetensors", mixed, form)
        assert_equal_products(mixed, lora.read(tmp_path / f"{form}.safetensors"))
    alphas = {float(v) for k, v in load_file(tmp_path / "kohya.safetensors").items() if k.endswith(".alpha")}
    assert alphas == {1.5}, "diffusers misreads alphas that differ"


def test_query_key_and_value_are_one_matrix_in_the_original_and_keep_their_strength(tmp_path: Path) -> None:
    """Ranks add up, B lies in blocks; split again, each is what it was. A file whose three share A keeps its rank."""
    source = random_lora("flux", 4)
    arrays, _ = lora.tensors(source, "kohya", "F32")
    name = "lora_unet_single_blocks_3_linear1"
    down, up = arrays[f"{name}.lora_down.weight"], arrays[f"{name}.lora_up.weight"]
    assert down.shape == (12, 16)
    assert up.shape == (8 + 8 + 8 + 32, 12)
    assert float(arrays[f"{name}.alpha"]) == 6.0
    assert not up[:8, 3:].any()
    shared = {f"{name}.lora_down.weight": down[:2], f"{name}.lora_up.weight": up[:, :2] + 1, f"{name}.alpha": np.float32(1)}
    shared |= {
        "lora_unet_double_blocks_3_img_attn_proj.lora_down.weight": down[:2],
        "lora_unet_double_blocks_3_img_attn_proj.lora_up.weight": up[:8, :2],
    }
    save_file({key: np.asarray(value) for key, value in shared.items()}, tmp_path / "k.safetensors")
    lora.write(tmp_path / "d.safetensors", lora.read(tmp_path / "k.safetensors"), "diffusers")
    again, _ = lora.tensors(lora.read(tmp_path / "d.safetensors"), "kohya", "F32")
    assert again[f"{name}.lora_down.weight"].shape == (2, 16)


def test_a_layer_without_an_adapter_has_none_after_a_round_trip(tmp_path: Path) -> None:
    """Only queries and values were trained: no key appears from nowhere."""
    source = random_lora("sd3", 5)
    chosen = {key: layer for key, layer in source.layers.items() if "to_k" not in key[1] and "add_k" not in key[1]}
    lora.write(tmp_path / "k.safetensors", Lora("sd3", "kohya", "F32", chosen, {}), "kohya")
    assert lora.read(tmp_path / "k.safetensors").layers.keys() == chosen.keys()


def test_what_was_said_of_a_file_is_kept_and_its_hash_is_new(tmp_path: Path) -> None:
    written = lora.write(tmp_path / "a.safetensors", random_lora("sdxl", 1), "kohya")
    lora.write(tmp_path / "b.safetensors", lora.read(written.path), "kohya", "F16")
    before, after = read_metadata(tmp_path / "a.safetensors"), read_metadata(tmp_path / "b.safetensors")
    assert after["ss_output_name"] == "x"
    assert before["sshs_model_hash"] != after["sshs_model_hash"]


def test_the_library_reads_what_we_write_and_we_read_what_it_writes(tmp_path: Path) -> None:
    """Bits of every precision, subnormals and rounding to even among them."""
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-12, 4, 1000)
    for ours, theirs in (("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)):
        tensorfile.write(tmp_path / "a.safetensors", {"x": values.numpy()}, ours, {"ss_x": "1"})
        assert torch.equal(load_torch(tmp_path / "a.safetensors")["x"], values.to(theirs))
        save_torch({"x": values.to(theirs)}, tmp_path / "b.safetensors")
        np.testing.assert_array_equal(tensorfile.read(tmp_path / "b.safetensors")[0]["x"], values.to(theirs).float().numpy())


def test_other_spellings_are_read(tmp_path: Path) -> None:
    """te1 for SD1, SDXL with diffusers' blocks, the old and PEFT's own endings, text encoders without text_model."""
    rng = np.random.default_rng(0)
    pair = rng.standard_normal((2, 768)).astype(np.float32), rng.standard_normal((8, 2)).astype(np.float32)
    block = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    unet = (
        "unet",
        block.replace("blocks_1", "blocks.1").replace("_attentions_0_", ".attentions.0.").replace("blocks_0_attn2_", "blocks.0.attn2."),
    )
    spellings = {
        ("lora_unet_" + block, ".lora_down.weight", ".lora_up.weight"): unet,
        ("unet." + unet[1], ".lora.down.weight", ".lora.up.weight"): unet,
        ("unet." + unet[1], ".lora_A.default.weight", ".lora_B.default.weight"): unet,
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", ".lora_down.weight", ".lora_up.weight"): (
            "text_encoder",
            "text_model.encoder.layers.0.mlp.fc1",
        ),
        ("text_encoder.encoder.layers.0.mlp.fc1", ".lora_A.weight", ".lora_B.weight"): (
            "text_encoder",
            "text_model.encoder.layers.0.mlp.fc1",
        ),
    }
    for (name, down, up), key in spellings.items():
        save_file({name + down: pair[0], name + up: pair[1]}, tmp_path / "a.safetensors")
        assert list(lora.read(tmp_path / "a.safetensors").layers) == [key], name


def test_an_alpha_that_peft_tells_beside_the_weights_counts(tmp_path: Path) -> None:
    source = random_lora("sd15", 1)
    arrays, _ = lora.tensors(source, "diffusers", "F32")
    told = {"unet.r": 3, "unet.lora_alpha": 6, "unet.alpha_pattern": {"mid_block.attentions.0.proj_in": 12}}
    tensorfile.write(tmp_path / "a.safetensors", arrays, "F32", {"lora_adapter_metadata": json.dumps(told)})
    found = lora.read(tmp_path / "a.safetensors").layers
    scales = {key[1]: layer.scale for key, layer in found.items()}
    assert scales["mid_block.attentions.0.proj_in"] == 4.0
    assert scales["up_blocks.0.upsamplers.0.conv"] == 2.0


@pytest.mark.parametrize("family", names.FAMILIES)
def test_a_smaller_rank_keeps_the_largest_part_and_says_how_much(family: str) -> None:
    """Against a plain decomposition of the whole change; a rank that is enough keeps everything."""
    source = random_lora(family, 6, rank=4)
    small, kept = convert.resized(source, 2)
    whole = {key: np.linalg.svd(product, compute_uv=False) ** 2 for key, product in products(source).items()}
    expected = sum(values[:2].sum() for values in whole.values()) / sum(values.sum() for values in whole.values())
    assert kept == pytest.approx(expected, rel=1e-5)
    assert small.ranks == [2]
    assert {layer.scale for layer in small.layers.values()} == {0.5}
    lost = sum(((products(small)[key] - product) ** 2).sum() for key, product in products(source).items())
    assert lost == pytest.approx((1 - expected) * sum(values.sum() for values in whole.values()), rel=1e-4)
    assert convert.resized(source, 8) == (source, 1.0), "as it is, to the bit"


def test_several_in_one_are_their_sum_by_weight() -> None:
    one, two = random_lora("sdxl", 1, rank=2, scale=0.5), random_lora("sdxl", 2, rank=4, scale=2.0)
    both = convert.merged([(one, 0.75), (two, -0.5)])
    for key, product in products(both).items():
        np.testing.assert_allclose(product, 0.75 * products(one)[key] - 0.5 * products(two)[key], rtol=1e-5, atol=1e-5)
    assert both.ranks == [6]
    with pytest.raises(IntegrityError, match="sd15"):
        convert.merged([(one, 1.0), (random_lora("sd15", 1), 1.0)])


BAD: dict[str, dict[str, Any]] = {
    "LoHa in Tucker": {"lora_unet_mid_block_attentions_0_proj_in.hada_t1": np.ones((2, 2), np.float32)},
    "LoKr in Tucker": {"lora_unet_mid_block_attentions_0_proj_in.lokr_t2": np.ones((2, 2), np.float32)},
    "DoRA": {"lora_unet_mid_block_attentions_0_proj_in.dora_scale": np.ones((2, 1), np.float32)},
    "matrices for": {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": np.ones((2, 2), np.float32)},
    "pair": {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": np.ones((2, 2), np.float32)},
    "no LoRA has": {"model.diffusion_model.input_blocks.0.0.weight": np.ones((2, 2), np.float32)},
    "finite": {
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": np.full((2, 2), np.nan, np.float32),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": np.ones((2, 2), np.float32),
    },
    "known here": {
        "something_else.lora_down.weight": np.ones((2, 2), np.float32),
        "something_else.lora_up.weight": np.ones((2, 2), np.float32),
    },
}


@pytest.mark.parametrize("word", BAD)
def test_what_is_no_lora_is_refused_in_words(tmp_path: Path, word: str) -> None:
    save_file(BAD[word], tmp_path / "a.safetensors")
    with pytest.raises(IntegrityError, match=word):
        lora.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04rubbish", b"\x80\x02}q\x00.", b"\xff" * 100])
def test_a_file_of_rubbish_is_refused_and_never_opened_as_code(tmp_path: Path, content: bytes) -> None:
    for name in ("a.safetensors", "a.pt", "a.ckpt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(IntegrityError, match=name):
            lora.read(tmp_path / name)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_diffusers_draws_the_same_with_a_converted_file(tmp_path: Path, family: str) -> None:
    """UNet and text encoders of a LoCon: kohya's file by diffusers' own conversion, ours by its own names, one prediction."""
    import diffusers
    import torch

    from tests import tiny
    from trainer import export, families
    from trainer.adapters import Adapter
    from trainer.base import inspect_base
    from trainer.contract import Foundation

    getattr(tiny, family)(tmp_path / "base")
    model = families.load(Foundation(family=family, base=inspect_base("base", tmp_path), dtype=torch.float32), torch.device("cpu"))
    targets = [*model.targets(list(model.family.parts)), *model.family.convolutions(model)]
    adapter = Adapter.create(targets, 4, 0.375, 3, torch.device("cpu"))
    for part in adapter.layouts:
        for _, _, up in adapter.matrices(part):
            up.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    kohya = model.family.formats["kohya"](adapter, torch.float32)
    export.save_adapter(tmp_path / "kohya.safetensors", kohya, {"ss_base_model_version": model.origin().base_model_version})
    read = lora.read(tmp_path / "kohya.safetensors")
    assert read.family == family
    lora.write(tmp_path / "peft.safetensors", read, "diffusers")
    pipeline = getattr(diffusers, model.family.pipeline).from_pretrained(tmp_path / "base")
    seen = {}
    ids = torch.arange(77)[None] % 50
    for name in ("kohya", "peft"):
        pipeline.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors")
        encoders = [getattr(pipeline, part) for part in model.family.encoders]
        with torch.no_grad():
            words = [encoder(ids, output_hidden_states=True).hidden_states[-1] for encoder in encoders]
            told = {"text_embeds": torch.ones(1, 32), "time_ids": torch.ones(1, 6)} if family == "sdxl" else None
            width = pipeline.unet.config.cross_attention_dim
            noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
            if family == "sdxl":
                told["text_embeds"] = torch.ones(1, pipeline.text_encoder_2.config.projection_dim)
            seen[name] = [*words, pipeline.unet(noisy, torch.tensor([500]), torch.ones(1, 77, width), added_cond_kwargs=told).sample]
        pipeline.unload_lora_weights()
    with torch.no_grad():
        plain = pipeline.unet(noisy, torch.tensor([500]), torch.ones(1, 77, width), added_cond_kwargs=told).sample
    for one, other in zip(seen["kohya"], seen["peft"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert (seen["peft"][-1] - plain).abs().max() > 1e-3
    for part in model.family.encoders:
        assert any(key[0] == part for key in read.layers)


def test_who_can_load_a_file_is_told_from_its_names() -> None:
    assert convert.words(convert.readers("kohya", "sdxl")) == "loads in A1111, Forge, ComfyUI, diffusers"
    assert "ComfyUI: no" in convert.words(convert.readers("diffusers", "sd15"))
    assert "diffusers: no, it warns" in convert.words(convert.readers("kohya", "sd3"))
    assert "diffusers: partly" in convert.words(convert.readers("kohya", "sd15", one_alpha=False))
    for form in FORMS:
        for family in names.FAMILIES:
            assert [reader.program for reader in convert.readers(form, family)] == list(convert.PROGRAMS)


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "sd3", "sd35", "flux", "zimage"])
def test_every_format_that_a_training_writes_says_the_same_of_every_layer(tmp_path: Path, family: str) -> None:
    """The trainer's own writers against this reader: the same layers, the same strength, whatever the original fuses or swaps."""
    import torch

    from tests import tiny
    from trainer import export, families
    from trainer.adapters import Adapter
    from trainer.base import inspect_base
    from trainer.contract import Foundation

    getattr(tiny, family)(tmp_path / "base")
    model = families.load(Foundation(family=family, base=inspect_base("base", tmp_path), dtype=torch.float32), torch.device("cpu"))
    adapter = Adapter.create(model.targets(list(model.family.parts)), 4, 0.375, 3, torch.device("cpu"))
    for part in adapter.layouts:
        for _, _, up in adapter.matrices(part):
            up.normal_(generator=torch.Generator().manual_seed(0))
    wanted = {
        (part, slot.target.name.removeprefix("text_model.")): (slot.scale * up.double() @ down.double()).numpy()
        for part in adapter.layouts
        for slot, down, up in adapter.weights(part)
    }
    for form, write in model.family.formats.items():
        said = {"ss_base_model_version": model.origin().base_model_version}
        path = export.save_adapter(tmp_path / f"{form}.safetensors", write(adapter, torch.float32), said).path
        found = lora.read(path)
        assert (found.form, found.family) == (form, "sd3" if family == "sd35" else family)
        changes = {(part, name.removeprefix("text_model.")): change for (part, name), change in products(found).items()}
        assert changes.keys() == wanted.keys()
        for key, change in wanted.items():
            np.testing.assert_allclose(changes[key], change, rtol=1e-5, atol=1e-6, err_msg=f"{form} {key}")
