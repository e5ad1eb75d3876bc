"""Jobs that begin with a LoRA that is there: going on from one, and training on top of one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer import convert, export, families, lora, start
from trainer.adapters import Adapter
from trainer.base import inspect_base
from trainer.contract import Foundation
from trainer.errors import IntegrityError
from trainer.families.model import Model
from trainer.jobs import Place
from trainer.protocol import JobSpec
from trainer.together import run_job

CPU = torch.device("cpu")


def loaded(world: Path, merged: tuple[Path, float] | None = None) -> Model:
    return families.load(Foundation(family="sd15", base=inspect_base("base", world), dtype=torch.float32, merged=merged), CPU)


def random_adapter(model: Model, rank: int, scale: float = 0.375) -> Adapter:
    adapter = Adapter.create(model.targets(["unet", "text_encoder"]), rank, scale, 3, CPU)
    for part in adapter.layouts:
        for _, _, up in adapter.matrices(part):
            up.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    return adapter


@pytest.fixture
def old(world: Path, tmp_path: Path) -> Path:
    """A LoRA of rank 4, alpha 1.5."""
    model = loaded(world)
    tensors = model.family.formats["kohya"](random_adapter(model, 4), torch.float32)
    return export.save_adapter(tmp_path / "old.safetensors", tensors, {"ss_base_model_version": "sd_v1"}).path


def changes(adapter: Adapter) -> dict[tuple[str, str], torch.Tensor]:
    """What an adapter adds to each layer."""
    return {
        (part, slot.target.name.removeprefix("text_model.")): slot.scale * up @ down
        for part in adapter.layouts
        for slot, down, up in adapter.weights(part)
    }


@pytest.mark.parametrize("form", ["kohya", "diffusers", "comfyui"])
@pytest.mark.parametrize("rank", [4, 7])
def test_an_adapter_begins_with_what_the_file_does_whatever_its_format_rank_and_alpha(
    world: Path, old: Path, tmp_path: Path, form: str, rank: int
) -> None:
    lora.write(tmp_path / "it.safetensors", lora.read(old), form)
    model = loaded(world)
    fresh = Adapter.create(model.targets(["unet", "text_encoder"]), rank, 2.0, 9, CPU)
    said = start.fill(fresh, tmp_path / "it.safetensors", "sd15")
    assert said == "starts from it.safetensors (rank 4)."
    wanted = changes(random_adapter(model, 4))
    for key, value in changes(fresh).items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=1e-5)


def test_a_smaller_rank_begins_with_the_best_that_fits_and_says_how_good_that_is(world: Path, old: Path) -> None:
    model = loaded(world)
    fresh = Adapter.create(model.targets(["unet"]), 2, 1.0, 9, CPU)
    said = start.fill(fresh, old, "sd15")
    assert "% of its change fits" in said
    assert "layers are not trained here and are left out" in said
    small, _ = convert.resized(lora.read(old), 2)
    for (part, name), value in changes(fresh).items():
        np.testing.assert_allclose(value.numpy(), small.layers[part, name].product(), rtol=1e-4, atol=1e-5)


def test_a_file_for_another_model_is_refused_in_words(world: Path, old: Path, tmp_path: Path) -> None:
    model = loaded(world)
    adapter = random_adapter(model, 4)
    with pytest.raises(IntegrityError, match="LoRA for sd15, not for sdxl"):
        start.fill(adapter, old, "sdxl")
    source = lora.read(old)
    halved = {key: lora.Layer(layer.down[:, : layer.down.shape[1] // 2], layer.up, layer.alpha) for key, layer in source.layers.items()}
    lora.write(tmp_path / "half.safetensors", lora.Lora("sd15", "kohya", "F32", halved, source.metadata), "kohya")
    for refused in (lambda path: start.fill(adapter, path, "sd15"), lambda path: loaded(world, (path, 1.0))):
        with pytest.raises(IntegrityError, match="does not fit"):
            refused(tmp_path / "half.safetensors")


def test_a_merged_base_predicts_what_the_base_with_the_lora_predicts(world: Path, old: Path) -> None:
    """Half of it, so that the weight counts too; and its texts and latents are not taken for the bare base's."""
    plain, merged = loaded(world), loaded(world, (old, 0.5))
    half = random_adapter(plain, 4, scale=0.375 / 2)
    plain.prepare(half.layouts["unet"].targets + half.layouts["text_encoder"].targets, checkpointing=False)
    noisy, t, ids = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.arange(77)[None, None] % 50
    with torch.no_grad():
        with plain.bank.use([half], torch.float32):
            told = plain.embed({"ids.text_encoder": ids})
            live = plain.predict(noisy, t, told)
        theirs = merged.embed({"ids.text_encoder": ids})
        torch.testing.assert_close(theirs["text"], told["text"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(merged.predict(noisy, t, theirs), live, rtol=1e-5, atol=1e-5)
    assert merged.fingerprint() != plain.fingerprint()
    assert merged.text_address(["text_encoder"]) != plain.text_address(["text_encoder"])


def test_a_job_starts_from_one_lora_on_top_of_another_and_goes_on_after_a_stop(world: Path, spec: Any, old: Path, tmp_path: Path) -> None:
    """To the same bits; and a start of other content is another job."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "base").symlink_to(world / "base")
        shutil.copytree(world / "data", tmp_path / name / "data")
        shutil.copy(old, tmp_path / name / "old.safetensors")
    keys = {"start_from": "old.safetensors", "merge_lora": "old.safetensors", "merge_weight": -0.5, "save_every_steps": 2}
    job = JobSpec.model_validate(spec(**keys))
    seen: list[Any] = []
    whole = run_job(job, Place(tmp_path / "one", seen.append, device=CPU))
    assert whole.state == "done", whole.message
    assert "loads in A1111, Forge, ComfyUI, diffusers" in whole.message, "each training says who can load what it made"
    assert any("starts from old.safetensors" in event.message for event in seen if event.kind == "warned")
    seen.clear()
    saved = lambda: any(event.kind == "committed" for event in seen)  # noqa: E731
    assert run_job(job, Place(tmp_path / "two", seen.append, stopping=saved, device=CPU)).state == "stopped"
    again = run_job(job, Place(tmp_path / "two", lambda _: None, device=CPU))
    assert whole.adapter is not None
    assert again.adapter is not None
    assert whole.adapter.read_bytes() == again.adapter.read_bytes()
    source = lora.read(old)
    lora.write(tmp_path / "two" / "old.safetensors", convert.resized(source, 1)[0], "kohya")
    other = run_job(job, Place(tmp_path / "two", lambda _: None, device=CPU))
    assert (other.state, other.code) == ("failed", "LRY-CKPT-DIGEST")
