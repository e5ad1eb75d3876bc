"""Which layers a job adapts: presets, patterns, kohya's blocks and convolutions; and that they train as chosen, alone and together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trainer import blocks, export, selection
from trainer.adapters import Adapter, Bank, Drop, Slot, find_targets
from trainer.base import read_metadata
from trainer.errors import SpecError
from trainer.families import diffusion, sd15, sdxl
from trainer.jobs import Place
from trainer.protocol import JobSpec, TrainingOptions
from trainer.together import run_job, run_jobs

CPU = torch.device("cpu")


def settle(world: Path, folder: Path) -> None:
    """The base and the dataset, in a folder of their own."""
    folder.mkdir()
    (folder / "base").symlink_to(world / "base")
    shutil.copytree(world / "data", folder / "data")


def options(**keys: Any) -> TrainingOptions:
    return TrainingOptions.model_validate(keys)


def real_unet(family: Any) -> nn.Module:
    """At its real size, without memory."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**family.FAMILY.real["unet"])


class Stub:
    """A model as far as `convolutions` looks at it."""

    def __init__(self, unet: nn.Module) -> None:
        self.parts = {"unet": unet}


def chosen(family: Any, **keys: Any) -> dict[str, Slot]:
    """kohya's names of what is adapted in the real UNet."""
    unet = real_unet(family)
    slots = selection.slots_of(
        options(**keys),
        diffusion.targets(unet, "kohya"),
        diffusion.convolutions(Stub(unet)) if "conv_rank" in keys else [],  # type: ignore[arg-type]
        family.FAMILY.key_of,
    )
    return {family.FAMILY.key_of("unet", slot.target.name): slot for slot in slots}


def test_a_locon_of_sd15_adds_every_layer_of_the_residual_and_resizing_blocks() -> None:
    """22 resnets with two convolutions and a time layer each, 14 shortcuts, three resizes each way, beside the 192."""
    found = chosen(sd15, rank=16, conv_rank=4, conv_alpha=1.0)
    assert len(found) == 192 + 22 * 3 + 14 + 3 + 3
    first = found["lora_unet_down_blocks_0_resnets_0_conv1"]
    assert first.target.shapes(first.rank) == ((4, 320, 3, 3), (320, 4, 1, 1))
    assert first.scale == 0.25
    assert found["lora_unet_down_blocks_0_resnets_0_time_emb_proj"].rank == 16, "a linear layer has the job's rank, as in kohya"
    assert found["lora_unet_up_blocks_0_resnets_0_conv_shortcut"].rank == 16, "and so has a 1x1 convolution"
    assert "lora_unet_down_blocks_0_downsamplers_0_conv" in found
    assert "lora_unet_conv_in" not in found


def test_a_locon_of_sdxl_has_the_originals_names() -> None:
    found = chosen(sdxl, rank=8, conv_rank=4)
    assert len(found) == 722 + 17 * 3 + 11 + 2 + 2
    for name in ("input_blocks_1_0_in_layers_2", "input_blocks_1_0_emb_layers_1", "input_blocks_3_0_op", "output_blocks_2_2_conv"):
        assert f"lora_unet_{name}" in found
    assert found["lora_unet_output_blocks_0_0_skip_connection"].target.kernel == (1, 1)


@pytest.mark.parametrize(("family", "count"), [(sd15, 25), (sdxl, 23)])
def test_every_layer_of_a_unet_has_a_block_of_kohyas(family: Any, count: int) -> None:
    numbers = [blocks.number_of(name, count) for name in chosen(family, conv_rank=1)]
    assert None not in numbers
    assert 0 not in numbers, "block 0 has no layers that are adapted"


def test_the_blocks_are_numbered_as_sd_scripts_numbers_them() -> None:
    """Worked out by hand from its documentation of block weights."""
    sd = {
        "down_blocks_0_attentions_0_proj_in": 1,
        "down_blocks_0_downsamplers_0_conv": 3,
        "down_blocks_2_attentions_1_proj_in": 8,
        "mid_block_attentions_0_proj_in": 12,
        "up_blocks_0_resnets_0_conv1": 13,
        "up_blocks_3_attentions_2_proj_out": 24,
    }
    assert {name: blocks.number_of(f"lora_unet_{name}", 25) for name in sd} == sd
    xl = {"input_blocks_4_1_proj_in": 5, "middle_block_1_proj_in": 11, "output_blocks_0_1_proj_in": 13, "out_2": 22}
    assert {name: blocks.number_of(f"lora_unet_{name}", 23) for name in xl} == xl
    assert blocks.number_of("lora_te_text_model_encoder_layers_0_mlp_fc1", 25) is None


def test_ranks_and_rates_by_block_are_kohyas() -> None:
    ranks = [0, *range(1, 25)]
    found = chosen(sd15, block_ranks=ranks, alpha=2.0, block_lr=[1.0] * 13 + [0.5] * 11 + [0])
    assert {blocks.number_of(name, 25) for name in found} == {1, 2, 4, 5, 7, 8, 12, 16, 17, 18, 19, 20, 21, 22, 23}
    for name, slot in found.items():
        number = blocks.number_of(name, 25)
        assert number is not None
        assert (slot.rank, slot.scale, slot.rate) == (number, 2.0 / number, 1.0 if number < 13 else 0.5)


def test_patterns_choose_layers_ranks_and_rates() -> None:
    found = chosen(
        sd15,
        rank=8,
        include_layers=["attn[12]", "mid_block"],
        exclude_layers=["to_out"],
        layer_ranks={"unet": 2, "mid_block": 6, "up_blocks.3": 0},
        layer_lr={"attn2": 4.0},
    )
    assert not any("to_out" in name or "up_blocks_3" in name for name in found)
    assert all("attn" in name or "mid_block" in name for name in found)
    assert found["lora_unet_mid_block_attentions_0_proj_in"].rank == 6
    assert found["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"].rate == 4.0
    assert {slot.rank for name, slot in found.items() if "mid_block" not in name} == {2}


def test_rslora_scales_by_the_root_of_each_layers_rank() -> None:
    found = chosen(sd15, rank=16, alpha=8.0, rslora=True, layer_ranks={"mid_block": 64})
    assert {(slot.rank, slot.scale) for slot in found.values()} == {(16, 2.0), (64, 1.0)}


@pytest.mark.parametrize(
    "keys",
    [
        {"include_layers": ["nothing_is_called_this"]},
        {"exclude_layers": ["."]},
        {"layer_ranks": {"unet": 0}},
        {"block_ranks": [1] * 23},
    ],
)
def test_what_leaves_nothing_to_train_is_refused_in_words(keys: dict[str, Any]) -> None:
    job, targets = options(**keys), diffusion.targets(real_unet(sd15), "kohya")
    with pytest.raises(SpecError) as caught:  # noqa: PT012  # either of the two may say it
        slots = selection.slots_of(job, targets, [], sd15.FAMILY.key_of)
        selection.expect_all_parts(job, slots, ["unet"])
    assert next(iter(keys)) in str(caught.value)


@pytest.mark.parametrize("keys", [{"block_lr": [1.0] * 12}, {"include_layers": ["("]}, {"layer_ranks": {"[": 3}}])
def test_what_cannot_be_right_is_refused_before_anything_is_rented(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"numbers|regular expression"):
        options(**keys)


# --- what is chosen trains -------------------------------------------------------------------------


class Three(nn.Module):
    """A linear layer, a 1x1 convolution, and a 3x3 one with a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 5)
        self.conv = nn.Conv2d(3, 4, 1)
        self.wide = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.vector = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return self.vector(self.lin(x).sum(1)).sum(1) + self.wide(self.conv(image)).square().sum((1, 2, 3))


def varied(seed: int, *, up_rate: float = 1.0) -> tuple[Three, list[Slot], Adapter]:
    """A model, and an adapter whose layers differ in rank, scale and rate."""
    torch.manual_seed(0)
    model = Three().requires_grad_(requires_grad=False)
    targets = find_targets("unet", model, (), wide=True)
    slots = [Slot(t, 1 + (seed + i) % 3, 0.3 * (i + 1 + seed), 1.0 if i % 2 else 0.5) for i, t in enumerate(targets)]
    adapter = Adapter.of(slots, seed, CPU, up_rate=up_rate)
    for _, up in ((t, up) for t, _, up in adapter.matrices("unet")):
        up.copy_(torch.randn(up.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
    return model, slots, adapter


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(rows, 7, 6, generator=g), torch.randn(rows, 3, 8, 6, generator=g)


def test_layers_of_all_kinds_and_ranks_are_the_formula() -> None:
    """By merging B @ A * scale into the weights by hand."""
    model, _, adapter = varied(1, up_rate=16.0)
    bank = Bank()
    bank.attach("unet", model, [slot.target for slot in adapter.layouts["unet"].slots])
    x, image = inputs(2)
    with bank.use([adapter], torch.float32):
        live = model(x, image)
    merged = Three()
    merged.load_state_dict(model.state_dict())
    with torch.no_grad():
        for slot, down, up in adapter.weights("unet"):
            weight = merged.get_submodule(slot.target.name).weight
            weight += (slot.scale * up @ down).view(weight.shape)
    torch.testing.assert_close(live, merged(x, image))
    assert not torch.allclose(live, model(x, image))


@pytest.mark.parametrize("drop", [None, Drop(0.3, 0.0, 0.0, 4, (2, 0)), Drop(0.2, 0.4, 0.3, 4, (7, 0))])
def test_together_is_the_same_as_alone_for_all_kinds_of_layers_and_drops(drop: Drop | None) -> None:
    """Outputs and gradients; neighbours differ in ranks, scales and rates, and in what they leave out."""
    model, _, _ = varied(0)
    adapters = [varied(seed, up_rate=1.0 + seed)[2] for seed in range(3)]
    drops = [drop, None, None if drop is None else Drop(0.5, 0.0, 0.0, 9, (1, 1))]
    bank = Bank()
    bank.attach("unet", model, [slot.target for slot in adapters[0].layouts["unet"].slots])
    x, image = inputs(6)
    with bank.use(adapters, torch.float32, drops):
        together = model(x, image)
        torch.autograd.backward(together.sum())
    shared = [{name: flat.grad.clone() for name, flat in adapter.flat.items() if flat.grad is not None} for adapter in adapters]
    for i, adapter in enumerate(adapters):
        for flat in adapter.flat.values():
            flat.grad = None
        rows = slice(2 * i, 2 * i + 2)
        with bank.use([adapter], torch.float32, [drops[i]]):
            alone = model(x[rows], image[rows])
            torch.autograd.backward(alone.sum())
        torch.testing.assert_close(together[rows], alone)
        for name, flat in adapter.flat.items():
            torch.testing.assert_close(shared[i][name], flat.grad)


def test_drops_leave_out_what_they_say_and_keep_the_mean() -> None:
    like = torch.zeros(1)
    element = Drop(0.25, 0.0, 0.0, 1, (0, 0)).mask(0, (4, 500, 8), like)
    assert element.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float(element.mean()) == pytest.approx(1.0, abs=0.02)
    rank = Drop(0.0, 0.5, 0.0, 1, (0, 0)).mask(0, (100, 3, 16), like)
    assert torch.equal(rank, rank[:, :1].expand_as(rank)), "a sample loses a rank in all its cells"
    assert float(rank.mean()) == pytest.approx(1.0, abs=0.1)
    module = [float(Drop(0.0, 0.0, 0.3, 1, (0, 0)).mask(layer, (2, 3, 4), like).mean()) for layer in range(400)]
    assert set(module) == {0.0, 1.0}, "a layer is there, as it is, or not at all"
    assert sum(module) / 400 == pytest.approx(0.7, abs=0.07)


def test_what_is_left_out_depends_on_job_step_row_and_layer_and_on_nothing_else() -> None:
    """A draw has an address: the same again for gradient checkpointing and after a restart, another one everywhere else."""

    def mask(seed: int, counters: tuple[int, int], layer: int) -> torch.Tensor:
        return Drop(0.5, 0.0, 0.0, seed, counters).mask(layer, (2, 50, 8), torch.zeros(1))

    here = mask(1, (3, 0), 4)
    torch.manual_seed(99)
    assert torch.equal(here, mask(1, (3, 0), 4))
    for other in (mask(2, (3, 0), 4), mask(1, (4, 0), 4), mask(1, (3, 1), 4), mask(1, (3, 0), 5)):
        assert not torch.equal(here, other)


def test_each_vector_learns_at_its_own_rate() -> None:
    _, _, adapter = varied(2, up_rate=16.0)
    assert adapter.rates({"unet": 0.1}) == pytest.approx({"unet": 0.1, "unet*0.5": 0.05, "unet*16": 1.6, "unet*8": 0.8})
    assert adapter.count() == sum(s.rank * (s.target.width + s.target.fan_out) for s in adapter.layouts["unet"].slots)
    assert sum(piece.numel() for vector in adapter.flat for piece in adapter.pieces(vector)) == adapter.count()


KINDS: dict[str, dict[str, Any]] = {
    "locon": {"conv_rank": 2, "conv_alpha": 1.0},
    "by pattern": {"layer_ranks": {"down_blocks": 1}, "layer_lr": {"up_blocks": 0.25}, "exclude_layers": ["to_out"]},
    "by block": {"block_ranks": [2] * 12 + [4] + [3] * 12, "block_lr": [0.5] * 25},
    "drops": {"dropout": 0.1, "rank_dropout": 0.2, "module_dropout": 0.1},
    "lora plus": {"lora_plus_ratio": 8.0, "rslora": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_was_stopped_goes_on_to_the_same_bits(world: Path, spec: Any, tmp_path: Path, kind: str) -> None:
    """Whatever is adapted: the file of a job stopped in the middle is that of one left alone."""
    settle(world, tmp_path / "one")
    settle(world, tmp_path / "two")
    job = JobSpec.model_validate(spec(**KINDS[kind], gradient_checkpointing=True, save_every_steps=2))
    whole = run_job(job, Place(tmp_path / "one", lambda _: None, device=CPU))
    assert whole.state == "done", whole.message
    seen: list[Any] = []
    saved = lambda: any(event.kind == "committed" for event in seen)  # noqa: E731
    first = run_job(job, Place(tmp_path / "two", seen.append, stopping=saved, device=CPU))
    assert first.state == "stopped"
    assert 0 < first.step < 6
    again = run_job(job, Place(tmp_path / "two", lambda _: None, device=CPU))
    assert whole.adapter is not None
    assert again.adapter is not None
    assert whole.adapter.read_bytes() == again.adapter.read_bytes()


def test_jobs_of_all_kinds_train_side_by_side_as_they_do_alone(world: Path, spec: Any, tmp_path: Path) -> None:
    """Those that adapt the same layers share passes; the others take turns on the same base."""
    specs = [
        JobSpec.model_validate(spec(name=f"job{i}", output=f"jobs/job{i}/out", steps=3, **keys))
        for i, keys in enumerate([{}, *KINDS.values()])
    ]
    found = {}
    for name, together in (("joint", True), ("alone", False)):
        settle(world, tmp_path / name)
        results = run_jobs(specs, Place(tmp_path / name, lambda _: None, device=CPU), together=together)
        assert [result.state for result in results] == ["done"] * len(specs), [result.message for result in results]
        found[name] = {result.name: load_file(result.adapter) for result in results if result.adapter}
    for job, joint in found["joint"].items():
        alone = found["alone"][job]
        assert joint.keys() == alone.keys()
        for key, value in joint.items():
            torch.testing.assert_close(value, alone[key], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_a_file_has_one_alpha_and_every_layer_its_strength(dtype: torch.dtype, close: float) -> None:
    """diffusers misreads alphas that differ."""
    _, _, adapter = varied(1, up_rate=4.0)
    tensors = export.to_kohya(adapter, dtype, lambda _, name: name)
    assert len({float(value) for key, value in tensors.items() if key.endswith(".alpha")}) == 1
    for slot, down, up in adapter.weights("unet"):
        stored = [tensors[f"{slot.target.name}.{end}"].double() for end in ("lora_up.weight", "lora_down.weight", "alpha")]
        assert (stored[1].shape, stored[0].shape) == slot.target.shapes(slot.rank)
        product = stored[0].flatten(1) @ stored[1].flatten(1) * stored[2] / slot.rank
        torch.testing.assert_close(product, slot.scale * (up @ down).double(), rtol=close, atol=close)


def test_a_locon_drawn_by_diffusers_is_the_one_that_was_trained(world: Path, spec: Any, tmp_path: Path) -> None:
    """rsLoRA, ranks by layer, convolutions: the saved file, loaded by diffusers, predicts what the formula says; its metadata tells."""
    from diffusers import StableDiffusionPipeline

    settle(world, tmp_path / "it")
    job = JobSpec.model_validate(spec(conv_rank=2, conv_alpha=1.0, rslora=True, layer_ranks={"up_blocks": 3}, save_precision="fp16"))
    result = run_job(job, Place(tmp_path / "it", lambda _: None, device=CPU))
    assert result.adapter is not None, result.message
    args = json.loads(read_metadata(result.adapter)["ss_network_args"])
    assert args["conv_dim"] == "2"
    noisy, t, words = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 32)
    pipeline = StableDiffusionPipeline.from_pretrained(world / "base", safety_checker=None)
    merged = StableDiffusionPipeline.from_pretrained(world / "base", safety_checker=None).unet
    stored = export.read_adapter(result.adapter)
    with torch.no_grad():
        for name, module in merged.named_modules():
            if (key := sd15.FAMILY.key_of("unet", name)) in stored:
                down, up, alpha = stored.pop(key)
                module.weight += (alpha / len(down) * up.float().flatten(1) @ down.float().flatten(1)).view(module.weight.shape)
        assert not stored
        plain = pipeline.unet(noisy, t, words).sample
        pipeline.load_lora_weights(result.adapter.parent, weight_name=result.adapter.name)
        theirs = pipeline.unet(noisy, t, words).sample
        torch.testing.assert_close(theirs, merged(noisy, t, words).sample, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, theirs)
