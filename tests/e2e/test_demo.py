"""The demo can be believed: its adapters teach the base what it did not know, measured on pictures that no job has seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .world import ROOT, Cloud, Lorry, check_receipt

DEMO = ROOT / "templates/demo"
CONCEPTS = {"cat": "a zwx cat", "cup": "a qev cup"}
SEEDS = range(4)

pytestmark = [
    pytest.mark.xdist_group("demo"),  # one worker trains it, once
    pytest.mark.skipif(not (DEMO / "base/model_index.json").exists(), reason="the demo's base is not in this checkout"),
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, cloud: Cloud) -> dict[str, Any]:
    """The demo's run as it stands: adapters by name, and the folder of its datasets."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copy(DEMO / "lorry.toml", folder)
    shutil.copytree(DEMO / "base", folder / "base")
    subprocess.run([sys.executable, "-m", "templates.demo.datasets", str(folder / "datasets")], cwd=ROOT, check=True, capture_output=True)
    lorry = Lorry(folder=folder, cloud=cloud)
    done = lorry("run", "lorry.toml", "-y", "--json", timeout_s=600)
    assert done.code == 0, done.err
    check_receipt(lorry, done.document)
    return {"folder": folder, **{job["name"]: Path(job["adapter"]) for job in done.document["jobs"]}}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """The demo's base, as any user of diffusers loads it."""
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(1)
    return StableDiffusionPipeline.from_pretrained(DEMO / "base", dtype=torch.float32)


@contextmanager
def taught(pipeline: Any, adapter: Path) -> Iterator[None]:
    """With the adapter, loaded by diffusers itself from our file."""
    pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name)
    try:
        yield
    finally:
        pipeline.unload_lora_weights()


def heldout_loss(pipeline: Any, folder: Path) -> float:
    """Mean error of the noise that the UNet predicts for these pictures, at fixed timesteps and noises."""
    import numpy as np
    import torch
    from PIL import Image

    total, count = 0.0, 0
    abar = pipeline.scheduler.alphas_cumprod
    with torch.no_grad():
        for number, path in enumerate(sorted(folder.rglob("*.png"))):
            pixels = np.asarray(Image.open(path).convert("RGB").resize((64, 64)), dtype=np.float32) / 127.5 - 1
            latent = (
                pipeline.vae.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None]).latent_dist.mode() * pipeline.vae.config.scaling_factor
            )
            context = pipeline.encode_prompt(path.with_suffix(".txt").read_text().strip(), "cpu", 1, do_classifier_free_guidance=False)[0]
            for timestep in range(50, 1000, 150):
                noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1000 * number + timestep))
                noisy = abar[timestep].sqrt() * latent + (1 - abar[timestep]).sqrt() * noise
                predicted = pipeline.unet(noisy, timestep, context).sample
                total, count = total + float((predicted - noise).pow(2).mean()), count + 1
    assert count > 20
    return total / count


@pytest.mark.parametrize("concept", CONCEPTS)
def test_heldout_loss_falls_with_the_adapter(concept: str, demo: dict[str, Any], pipeline: Any):
    """On pictures of the same subject that were in no training folder."""
    pictures = demo["folder"] / "datasets/heldout" / concept
    before = heldout_loss(pipeline, pictures)
    with taught(pipeline, demo[concept]):
        after = heldout_loss(pipeline, pictures)
    assert heldout_loss(pipeline, pictures) == before, "unloaded, it leaves nothing behind"
    assert after < 0.97 * before


@pytest.mark.parametrize("concept", CONCEPTS)
def test_pictures_move_towards_the_dataset_with_the_adapter_and_not_without(concept: str, demo: dict[str, Any], pipeline: Any):
    """Same prompt, same seeds, compared by layout and colours with held-out pictures of the subject."""
    from templates.demo.evaluate import load_pictures, nearness

    (other,) = CONCEPTS.keys() - {concept}
    heldout = {name: load_pictures(demo["folder"] / "datasets/heldout" / name) for name in CONCEPTS}
    asked = ([CONCEPTS[concept]], SEEDS, heldout[concept], heldout[other])
    without = nearness(pipeline, *asked)
    with taught(pipeline, demo[concept]):
        with_it = nearness(pipeline, *asked)
    assert with_it.to_references < 0.95 * without.to_references
    assert nearness(pipeline, *asked) == without, "unloaded, it leaves nothing behind"


def test_every_key_of_an_adapter_finds_its_layer(demo: dict[str, Any], pipeline: Any):
    """kohya's names, all of them: diffusers drops what it does not know with a warning only."""
    from safetensors import safe_open

    for concept in CONCEPTS:
        with safe_open(demo[concept], "pt") as file:
            names = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118  no dict
            about = file.metadata()
        modules = {f"lora_unet_{name.replace('.', '_')}" for name, _ in pipeline.unet.named_modules()}
        assert names
        assert names <= modules
        assert json.loads(about["ss_tag_frequency"])
        with taught(pipeline, demo[concept]):
            loaded = {name for name, _ in pipeline.unet.named_modules() if name.endswith("lora_A")}
            assert len(loaded) == len(names)
