"""LoRA layers: exact, alone and together; the right layers at real size; files that others load to the same prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import tiny
from trainer import export, families
from trainer.adapters import Adapter, Bank, Target, find_targets
from trainer.contract import Foundation
from trainer.errors import IntegrityError
from trainer.families import clip, diffusion, sd15
from trainer.families.model import Model

CPU = torch.device("cpu")


class Two(nn.Module):
    """A linear layer and a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 5)
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return self.lin(x).sum((1, 2)) + self.conv(image).square().sum((1, 2, 3))


def random_adapter(targets: list[Target], rank: int, seed: int, scale: float = 0.5) -> Adapter:
    adapter = Adapter.create(targets, rank, scale, seed, CPU)
    g = torch.Generator().manual_seed(seed)
    for part in adapter.layouts:
        for _, _, up in adapter.matrices(part):
            up.copy_(torch.randn(up.shape, generator=g) * 0.3)
    return adapter


@pytest.fixture
def two() -> tuple[Two, Bank, list[Target]]:
    torch.manual_seed(0)
    model = Two().requires_grad_(requires_grad=False)
    targets = find_targets("unet", model, ())
    bank = Bank()
    bank.attach("unet", model, targets)
    return model, bank, targets


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(rows, 7, 6, generator=g), torch.randn(rows, 3, 4, 4, generator=g)


def test_one_adapter_is_the_formula(two: tuple[Two, Bank, list[Target]]) -> None:
    """y = W x + b + scale * B A x, by merging it into the weights by hand."""
    model, bank, targets = two
    adapter = random_adapter(targets, 2, 1)
    x, image = inputs(2)
    with bank.use([adapter], torch.float32):
        live = model(x, image)
    merged = Two()
    merged.load_state_dict(model.state_dict())
    with torch.no_grad():
        for target, down, up in adapter.matrices("unet"):
            weight = getattr(merged, target.name).weight
            weight += (adapter.scale * up @ down).view(weight.shape)
        torch.testing.assert_close(live, merged(x, image))
        assert not torch.allclose(live, model(x, image)), "outside of `use` the base is alone"


@pytest.mark.parametrize("ranks", [(2, 2), (1, 3), (4, 2, 1)])
def test_together_is_the_same_as_alone_whatever_the_neighbours_ranks(two: tuple[Two, Bank, list[Target]], ranks: tuple[int, ...]) -> None:
    """Outputs and gradients; smaller ranks are padded."""
    model, bank, targets = two
    adapters = [random_adapter(targets, rank, seed, scale=0.3 + seed) for seed, rank in enumerate(ranks)]
    x, image = inputs(2 * len(ranks))
    with bank.use(adapters, torch.float32):
        together = model(x, image)
        torch.autograd.backward(together.sum())
    shared = [adapter.flat["unet"].grad.clone() for adapter in adapters]
    for i, adapter in enumerate(adapters):
        adapter.flat["unet"].grad = None
        rows = slice(2 * i, 2 * i + 2)
        with bank.use([adapter], torch.float32):
            alone = model(x[rows], image[rows])
            torch.autograd.backward(alone.sum())
        torch.testing.assert_close(together[rows], alone)
        torch.testing.assert_close(shared[i], adapter.flat["unet"].grad)


def test_detaching_leaves_the_model_as_it_was(two: tuple[Two, Bank, list[Target]]) -> None:
    model, bank, targets = two
    bank.detach()
    assert "forward" not in vars(model.lin)
    assert model.state_dict().keys() == Two().state_dict().keys()
    bank.attach("unet", model, targets)


def test_fresh_weights_follow_kaiming_and_the_seed() -> None:
    targets = [Target("unet", "b", 100, 8), Target("unet", "a", 4, 4)]
    first, again, other = (Adapter.create(targets, 3, 1.0, seed, CPU) for seed in (1, 1, 2))
    assert torch.equal(first.flat["unet"], again.flat["unet"])
    assert not torch.equal(first.flat["unet"], other.flat["unet"])
    for target, down, up in first.matrices("unet"):
        assert not up.any()
        assert down.abs().max() <= target.fan_in**-0.5
        assert down.abs().max() > 0.5 * target.fan_in**-0.5


def real_parts() -> tuple[nn.Module, nn.Module]:
    """SD1.5 at its real size, without memory."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))
    return unet, text


def test_at_real_size_the_layers_are_kohyas_192_and_72() -> None:
    from diffusers import Transformer2DModel

    unet, text = real_parts()
    kohya = find_targets("unet", unet, diffusion.TARGETS["kohya"], Transformer2DModel)
    attention = find_targets("unet", unet, diffusion.TARGETS["attention"], Transformer2DModel)
    words = find_targets("text_encoder", text, clip.TARGETS)
    assert (len(kohya), len(attention), len(words)) == (192, 128, 72)
    shapes = {sd15.FAMILY.key_of(t.part, t.name): (t.fan_in, t.fan_out, t.conv) for t in [*kohya, *words]}
    assert shapes["lora_unet_down_blocks_0_attentions_0_proj_in"] == (320, 320, True)
    assert shapes["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"] == (768, 1280, False)
    assert shapes["lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj"] == (320, 2560, False)
    assert shapes["lora_te_text_model_encoder_layers_11_mlp_fc1"] == (768, 3072, False)
    assert len(shapes) == 264


def test_layer_names_are_kohyas_with_every_transformers() -> None:
    assert sd15.FAMILY.key_of("text_encoder", "encoder.layers.0.mlp.fc1") == sd15.FAMILY.key_of(
        "text_encoder", "text_model.encoder.layers.0.mlp.fc1"
    )


def kohya_names_of_sd15() -> set[str]:
    """Written out by hand from sd-scripts' listing: blocks 0-2 down, middle, 1-3 up."""
    places = [f"down_blocks_{b}_attentions_{a}" for b in range(3) for a in range(2)] + ["mid_block_attentions_0"]
    places += [f"up_blocks_{b}_attentions_{a}" for b in range(1, 4) for a in range(3)]
    inner = [f"attn{n}_to_{x}" for n in (1, 2) for x in ("q", "k", "v", "out_0")] + ["ff_net_0_proj", "ff_net_2"]
    unet = {f"lora_unet_{p}_{end}" for p in places for end in ["proj_in", "proj_out", *(f"transformer_blocks_0_{i}" for i in inner)]}
    parts = [f"self_attn_{x}_proj" for x in ("q", "k", "v", "out")] + ["mlp_fc1", "mlp_fc2"]
    return unet | {f"lora_te_text_model_encoder_layers_{layer}_{p}" for layer in range(12) for p in parts}


def test_the_names_are_those_of_the_reference_listing() -> None:
    from diffusers import Transformer2DModel

    unet, text = real_parts()
    found = [*find_targets("unet", unet, (), Transformer2DModel), *find_targets("text_encoder", text, clip.TARGETS)]
    assert {sd15.FAMILY.key_of(t.part, t.name) for t in found} == kohya_names_of_sd15()


@pytest.fixture
def trained(world: Path) -> tuple[Model, Adapter]:
    """A loaded base and an adapter with weights everywhere, alpha not rank."""
    from trainer.base import inspect_base

    model = families.load(Foundation(family="sd15", base=inspect_base("base", world), dtype=torch.float32), CPU)
    targets = model.targets(["unet", "text_encoder"])
    model.prepare(targets, checkpointing=False)
    return model, random_adapter(targets, 4, 3, scale=0.375)


def tokens(model: Model, text: str) -> torch.Tensor:
    """Ids [77]."""
    return clip.tokens(model.parts["tokenizer"], text, 1)[0]


def save(adapter: Adapter, path: Path, dtype: torch.dtype = torch.float32, **metadata: str) -> export.Written:
    return export.save_adapter(path, export.to_kohya(adapter, dtype, sd15.FAMILY.key_of), metadata)


def test_the_file_loaded_by_diffusers_predicts_what_the_live_model_predicts(
    trained: tuple[Model, Adapter], world: Path, tmp_path: Path
) -> None:
    """UNet and text encoder, alpha different from rank."""
    from diffusers import StableDiffusionPipeline

    model, adapter = trained
    save(adapter, tmp_path / "a.safetensors")
    noisy, t, ids = torch.randn(2, 4, 8, 8), torch.tensor([3, 800]), torch.stack([tokens(model, "a photo of dog"), tokens(model, "")])
    with torch.no_grad(), model.bank.use([adapter], torch.float32):
        told = model.embed({"ids.text_encoder": ids[:, None]})
        live = model.predict(noisy, t, told)
    pipeline = StableDiffusionPipeline.from_pretrained(world / "base", safety_checker=None)
    with torch.no_grad():
        plain = pipeline.unet(noisy, t, pipeline.text_encoder(ids)[0]).sample
        pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
        theirs = pipeline.text_encoder(ids)[0]
        torch.testing.assert_close(theirs, told["text"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pipeline.unet(noisy, t, theirs).sample, live, rtol=1e-5, atol=1e-5)
    assert (live - plain).abs().max() > 1e-2, "the adapter does something"


def test_the_peft_naming_gives_the_same_prediction(trained: tuple[Model, Adapter], world: Path) -> None:
    from diffusers import StableDiffusionPipeline

    model, adapter = trained
    noisy, t, words = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 32)
    with torch.no_grad(), model.bank.use([adapter], torch.float32):
        live = model.predict(noisy, t, {"text": words})
    pipeline = StableDiffusionPipeline.from_pretrained(world / "base", safety_checker=None)
    pipeline.load_lora_weights(export.to_peft(adapter))
    with torch.no_grad():
        torch.testing.assert_close(pipeline.unet(noisy, t, words).sample, live, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_reads_back_as_it_was_written(trained: tuple[Model, Adapter], tmp_path: Path, dtype: torch.dtype) -> None:
    _, adapter = trained
    save(adapter, tmp_path / "a.safetensors", dtype)
    targets = [t for lay in adapter.layouts.values() for t in lay.targets]
    again = Adapter.create(targets, 4, 1.0, 0, CPU)
    export.load_into(again, tmp_path / "a.safetensors", sd15.FAMILY.key_of)
    assert again.scale == adapter.scale
    for part in adapter.layouts:
        for (_, down, up), (_, down2, up2) in zip(adapter.matrices(part), again.matrices(part), strict=True):
            assert torch.equal(down.to(dtype).float(), down2)
            assert torch.equal(up.to(dtype).float(), up2)


def test_hashes_are_sd_scripts(trained: tuple[Model, Adapter], tmp_path: Path) -> None:
    """sha256 of the bytes after the header; metadata that a user may edit does not count."""
    import hashlib

    _, adapter = trained
    save(adapter, tmp_path / "a.safetensors", ss_network_dim="4", **{"modelspec.title": "x"})
    raw = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    facts = json.loads(raw[8 : 8 + length])["__metadata__"]
    assert facts["sshs_model_hash"] == hashlib.sha256(raw[8 + length :]).hexdigest()
    assert facts["sshs_legacy_hash"] == "e3b0c442", "files under 1 MiB have the hash of nothing"


def damaged(tensors: dict[str, torch.Tensor]) -> dict[str, Callable[[], dict[str, torch.Tensor]]]:
    first = next(k for k in tensors if k.endswith("lora_up.weight"))
    return {
        "up missing": lambda: {k: v for k, v in tensors.items() if k != first},
        "stray": lambda: {**tensors, "lora_unet_x.dora_scale": torch.ones(1)},
        "layer missing": lambda: {k: v for k, v in tensors.items() if not k.startswith(first.split(".")[0])},
    }


@pytest.mark.parametrize("case", ["up missing", "stray", "layer missing"])
def test_a_file_that_does_not_fit_is_refused(trained: tuple[Model, Adapter], tmp_path: Path, case: str) -> None:
    _, adapter = trained
    tensors = damaged(export.to_kohya(adapter, torch.float32, sd15.FAMILY.key_of))[case]()
    export.save_adapter(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(IntegrityError) as caught:
        export.load_into(adapter, tmp_path / "a.safetensors", sd15.FAMILY.key_of)
    assert caught.value.code == "LRY-FILE-ADAPTER"


def test_a_narrow_unet_of_the_real_shape_has_192_layers() -> None:
    from diffusers import Transformer2DModel, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**tiny.full_unet())
    assert len(find_targets("unet", unet, (), Transformer2DModel)) == 192
