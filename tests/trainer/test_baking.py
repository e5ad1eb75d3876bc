"""Between whole models and LoRAs: added to the weights, and taken out of them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests import tiny
from trainer import baking, convert, export, families, lora, names, tensorfile
from trainer.adapters import Adapter
from trainer.base import inspect_base
from trainer.contract import Foundation
from trainer.errors import IntegrityError
from trainer.weights import Weights, look_into

CPU = torch.device("cpu")
FAMILIES = ["sd15", "sdxl", "sd3", "zimage"]
"""One UNet with its encoder, one in the original's numbering, one with fused and swapped layers, one with a single stream."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    for family in FAMILIES:
        getattr(tiny, family)(root / family)
    return root


def model_of(where: Path, family: str) -> Any:
    base = inspect_base(where.name, where.parent)
    return families.load(Foundation(family=family, base=base, dtype=torch.float32), CPU)


def lora_for(model: Any, path: Path, said: dict[str, str]) -> Path:
    adapter = Adapter.create(model.targets(list(model.family.parts)), 2, 0.375, 3, CPU)
    for part in adapter.layouts:
        for _, _, up in adapter.matrices(part):
            up.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return export.save_adapter(path, next(iter(model.family.formats.values()))(adapter, torch.float32), said).path


def sums(one: Weights, key: lora.Key) -> Any:
    return one.layers[key].read().reshape(one.layers[key].read().shape[0], -1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_is_in_a_model_and_out_again(family: str, bases: Path, tmp_path: Path) -> None:
    """Into a diffusers folder: every layer is the sum, everything else as it was; and the difference is the LoRA again."""
    model = model_of(bases / family, family)
    file = lora_for(model, tmp_path / "a.safetensors", {"ss_base_model_version": model.origin().base_model_version})
    one, base = lora.read(file), look_into(str(bases / family), Path())
    baking.bake(base, one, 0.5, tmp_path / "baked")
    baked = look_into(str(tmp_path / "baked"), Path())
    keys = {(part, names.with_text_model(part, module)): layer for (part, module), layer in one.layers.items()}
    for key in base.layers:
        wanted = sums(base, key) + (0.5 * keys[key].product() if key in keys else 0.0)
        np.testing.assert_allclose(sums(baked, key), wanted, rtol=1e-5, atol=1e-6, err_msg=str(key))
    assert model_of(tmp_path / "baked", family).fingerprint() != model.fingerprint()
    out = baking.extract(baked, base, 2)
    assert (out.beside, out.lora.family) == (0, names.FILES_OF.get(family, family))
    assert out.kept == pytest.approx(1.0, abs=1e-5)
    assert out.lora.layers.keys() == keys.keys()
    for key, layer in keys.items():
        np.testing.assert_allclose(out.lora.layers[key].product(), 0.5 * layer.product(), rtol=1e-3, atol=1e-5, err_msg=str(key))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_checkpoint_in_the_originals_names_is_changed_as_its_folder(family: str, bases: Path, tmp_path: Path) -> None:
    """Into one file: the same layers are found, the sum is there in the file's own type, and nothing else has changed."""
    base = bases / family if family == "sdxl" else tiny.sd15(tmp_path / "sd15", small=False)  # its blocks are as many as the real one's
    model = model_of(base, family)
    file = lora_for(model, tmp_path / "a.safetensors", {})
    checkpoint = tiny.single_file(base, tmp_path / "base.safetensors")
    one = lora.read(file)
    whole, folder = look_into(str(checkpoint), Path()), look_into(str(base), Path())
    keys = {(part, names.with_text_model(part, module)) for part, module in one.layers}
    assert keys <= whole.layers.keys()
    for key in keys:
        np.testing.assert_allclose(sums(whole, key), sums(folder, key), rtol=1e-2, atol=1e-3, err_msg=str(key))
    baking.bake(whole, one, 1.0, tmp_path / "new.safetensors")
    changed = look_into(str(tmp_path / "new.safetensors"), Path())
    for (part, module), layer in one.layers.items():
        key = part, names.with_text_model(part, module)
        np.testing.assert_allclose(sums(changed, key) - sums(whole, key), layer.product(), rtol=1e-2, atol=2e-3, err_msg=str(key))
    before, after = load_file(checkpoint), load_file(tmp_path / "new.safetensors")
    assert before.keys() == after.keys()
    assert {value.dtype for value in after.values()} == {value.dtype for value in before.values()}
    assert sum(not torch.equal(before[key], after[key]) for key in before) == len({whole.layers[key].tensor for key in keys})


def test_a_lora_of_another_model_is_refused_and_nothing_is_written(bases: Path, tmp_path: Path) -> None:
    model = model_of(bases / "sd15", "sd15")
    one = lora.read(lora_for(model, tmp_path / "a.safetensors", {}))
    with pytest.raises(IntegrityError, match="sd15"):
        baking.bake(look_into(str(bases / "sdxl"), Path()), one, 1.0, tmp_path / "new")
    with pytest.raises(IntegrityError, match="agree"):
        baking.extract(*[look_into(str(bases / "sd15"), Path())] * 2, 4)
    assert not (tmp_path / "new").exists()


@given(rows=st.integers(2, 90), columns=st.integers(2, 90), rank=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_thin_change_keeps_what_the_best_of_its_rank_keeps(rows: int, columns: int, rank: int, seed: int) -> None:
    """Against the whole decomposition; of large matrices to a thousandth."""
    matrix = np.random.default_rng(seed).standard_normal((rows, columns)) @ np.diag(0.7 ** np.arange(columns))
    layer, squares = baking.thin(matrix.astype(np.float32), rank)
    best = np.linalg.svd(matrix, compute_uv=False)[: min(rank, rows, columns)]
    assert squares == pytest.approx(float((best**2).sum()), rel=1e-3)
    assert ((matrix - layer.product()) ** 2).sum() == pytest.approx(float((matrix**2).sum() - (best**2).sum()), rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("method", ["loha", "lokr", "lokr of four", "lokr, whole"])
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_loha_or_lokr_is_read_as_the_lora_that_does_the_same(method: str, form: str, tmp_path: Path) -> None:
    """Of every kind of layer, alpha not the rank; diffusers' own names and kohya's."""
    from tests.trainer.test_methods import METHODS
    from trainer import changes
    from trainer.targets import Slot, Target

    block = "mid_block.attentions.0"
    targets = [
        Target("unet", f"{block}.transformer_blocks.0.attn2.to_k", 768, 16),
        Target("unet", f"{block}.proj_in", 16, 24, conv=True),
        Target("unet", "mid_block.resnets.0.conv1", 16, 24, conv=True, kernel=(3, 3)),
        Target("text_encoder", "text_model.encoder.layers.0.mlp.fc1", 16, 64),
    ]
    told = METHODS[method]
    scales = [0.3 if told.scaled(target.fan_in, target.fan_out, 2) else 1.0 for target in targets]
    adapter = Adapter.of([Slot(target, 2, scale, method=told) for target, scale in zip(targets, scales, strict=True)], 1, CPU)
    for part in adapter.layouts:
        for slot, values in adapter.values(part):
            values[slot.method.last(slot.pieces)].normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    family = families.plugin("sd15")
    export.save_adapter(tmp_path / "a.safetensors", family.formats[form](adapter, torch.float32), {})
    found = lora.read(tmp_path / "a.safetensors")
    lora.write(tmp_path / "b.safetensors", found, "diffusers", "F32")
    again = lora.read(tmp_path / "b.safetensors")
    for part in adapter.layouts:
        for slot, values in adapter.values(part):
            wanted = slot.scale * changes.product(slot, values).double().numpy()
            for one in (found, again):
                layer = one.layers[part, slot.target.name]
                np.testing.assert_allclose(layer.product(), wanted, rtol=1e-4, atol=1e-5, err_msg=slot.target.name)
                assert layer.down.shape[2:] == (slot.target.kernel if slot.target.conv else ())
    smaller, kept = convert.resized(found, 2)
    assert smaller.ranks == [2]
    assert 0 < kept < 1


def test_z_images_original_names_are_read(tmp_path: Path) -> None:
    """One matrix for query, key and value, as the original has it, is three layers here."""
    rng = torch.Generator().manual_seed(0)
    name = "diffusion_model.layers.3.attention"
    shapes = {"qkv.lora_A": (4, 16), "qkv.lora_B": (24, 4), "out.lora_A": (4, 8), "out.lora_B": (8, 4)}
    tensors = {f"{name}.{key}.weight": torch.randn(shape, generator=rng) for key, shape in shapes.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    found = lora.read(tmp_path / "a.safetensors")
    assert found.family == "zimage"
    whole = (tensors[f"{name}.qkv.lora_B.weight"] @ tensors[f"{name}.qkv.lora_A.weight"]).numpy()
    for index, which in enumerate(("to_q", "to_k", "to_v")):
        own = found.layers["transformer", f"layers.3.attention.{which}"].product()
        np.testing.assert_allclose(own, whole[8 * index : 8 * index + 8], rtol=1e-5, atol=1e-6)
    assert ("transformer", "layers.3.attention.to_out.0") in found.layers
    written = lora.write(tmp_path / "b.safetensors", found, "comfyui", "F32")
    assert f"{name}.to_q.lora_A.weight" in tensorfile.read(written.path)[0]
