"""The families of flow models against diffusers' own pipelines: bases, words, answers, files, at tiny and at real size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file

from tests import tiny
from trainer import export, families
from trainer.adapters import Adapter
from trainer.base import Base, inspect_base
from trainer.contract import Condition, Drawing, Foundation
from trainer.errors import BaseModelError
from trainer.families import flux, sd3, sd35, zimage
from trainer.families.model import Model
from trainer.protocol import TrainingOptions

CPU = torch.device("cpu")
PIPELINES: dict[str, Any] = {
    "sd3": StableDiffusion3Pipeline,
    "sd35": StableDiffusion3Pipeline,
    "flux": FluxPipeline,
    "zimage": ZImagePipeline,
}
every = pytest.mark.parametrize("name", PIPELINES)
WORDS = "a photo of dog"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny folder of each family."""
    root = tmp_path_factory.mktemp("bases")
    for name in PIPELINES:
        getattr(tiny, name)(root / name)
    return root


def load(root: Path, name: str, where: str = "", dtype: torch.dtype = torch.float32, **said: Any) -> Model:
    base = inspect_base(where or name, root)
    assert base.family == name
    return families.load(Foundation(family=name, base=base, dtype=dtype, **said), CPU)


def told(model: Model, text: str, many: int = 1, **options: Any) -> Condition:
    made = model.encode_text(text, TrainingOptions(**options))
    return {name: value[None].expand(many, *value.shape) for name, value in made.items()}


def random_adapter(model: Model, parts: list[str] | None = None, preset: str = "kohya") -> Adapter:
    """Weights everywhere, alpha not rank."""
    targets = model.targets(parts or list(model.family.parts), preset)
    model.prepare(targets, checkpointing=False)
    adapter = Adapter.create(targets, 4, 0.375, 5, CPU)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for part in adapter.layouts:
            for _, _, up in adapter.matrices(part):
                up.normal_(0, 0.2, generator=generator)
    return adapter


# --- words and answers -----------------------------------------------------------------------------


def diffusers_answer(name: str, pipeline: Any, noisy: torch.Tensor, levels: torch.Tensor, text: str, length: int) -> torch.Tensor:
    """What diffusers' own pipeline would ask its transformer."""
    many, height, width = len(noisy), *noisy.shape[-2:]
    if name == "zimage":
        words, _ = pipeline.encode_prompt(text, CPU, do_classifier_free_guidance=False, max_sequence_length=length)
        answer = pipeline.transformer(list(noisy[:, :, None].unbind(0)), (1000 - 1000 * levels) / 1000, words * many, return_dict=False)[0]
        return -torch.stack(answer)[:, :, 0]
    if name == "flux":
        words, pooled, places = pipeline.encode_prompt(text, None, CPU, max_sequence_length=length)
        packed = pipeline._pack_latents(noisy, many, 16, height, width)
        answer = pipeline.transformer(
            packed, words.expand(many, -1, -1), pooled.expand(many, -1), levels, return_dict=False, txt_ids=places,
            img_ids=pipeline._prepare_latent_image_ids(many, height // 2, width // 2, CPU, torch.float32), guidance=torch.ones(many),
        )[0]  # fmt: skip
        return pipeline._unpack_latents(answer, height * 8, width * 8, 8)
    words, _, pooled, _ = pipeline.encode_prompt(text, None, None, CPU, do_classifier_free_guidance=False, max_sequence_length=length)
    words, pooled = words.expand(many, -1, -1), pooled.expand(many, -1)
    return pipeline.transformer(noisy, words, pooled, levels * 1000, return_dict=False)[0]


LENGTHS = {"sd3": (None, 77, 154, 256), "sd35": (None, 256), "flux": (None, 256), "zimage": (None, 256)}
DEFAULTS = {"sd3": 154, "sd35": 154, "flux": 512, "zimage": 512}


@every
def test_one_step_is_diffusers_pipeline(name: str, bases: Path) -> None:
    """All encoders, their lengths, the transformer: to 1e-5, over levels and a picture that is not square."""
    model, pipeline = load(bases, name), PIPELINES[name].from_pretrained(bases / name)
    noisy, levels = torch.randn(3, 16, 8, 12), torch.tensor([0.01, 0.5, 1.0])
    for text in (WORDS, "", "a dog " * 100):
        for length in LENGTHS[name]:
            with torch.no_grad():
                ours = model.predict(noisy, levels, told(model, text, 3, t5_length=length))
                theirs = diffusers_answer(name, pipeline, noisy, levels, text, length or DEFAULTS[name])
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "key"), [("sd3", "text_3"), ("flux", "text")])
def test_padding_and_blank_captions_are_what_was_asked_for(name: str, key: str, bases: Path) -> None:
    plain, zeroed, blank = load(bases, name), load(bases, name, zero_padding=True), load(bases, name, blank_zeros=True)
    kept, cut = (one.encode_text("a dog", TrainingOptions())[key] for one in (plain, zeroed))
    many = plain.token_count("a dog") + 1
    assert torch.equal(kept[:many], cut[:many])
    assert bool(kept[many:].any())
    assert not cut[many:].any()
    for what, value in blank.encode_text("", TrainingOptions()).items():
        assert not value.any(), what
        assert bool(plain.encode_text("", TrainingOptions())[what].any())
    for what, value in blank.encode_text("a dog", TrainingOptions()).items():
        assert torch.equal(value, plain.encode_text("a dog", TrainingOptions())[what])
    addresses = {one.text_address(one.family.encoders) for one in (plain, zeroed, blank)}
    assert len(addresses) == 3, "the cache tells them apart"


@every
def test_drawing_is_diffusers_pipeline(name: str, bases: Path) -> None:
    model, pipeline = load(bases, name), PIPELINES[name].from_pretrained(bases / name)
    drawing = Drawing(size=(64, 96), seed=4, guidance=4.0, steps=3)
    with torch.no_grad():
        live = model.family.sample(model, told(model, WORDS), told(model, "red"), drawing)
    assert live.shape == (1, 16, 12, 8)
    torch.testing.assert_close(live, drawn(name, pipeline), rtol=1e-5, atol=1e-5)


def drawn(name: str, pipeline: Any) -> torch.Tensor:
    """The same picture by diffusers alone, its latents."""
    pipeline.set_progress_bar_config(disable=True)
    common = {"width": 64, "height": 96, "num_inference_steps": 3, "generator": torch.Generator().manual_seed(4), "output_type": "latent"}
    if name != "flux":
        common["negative_prompt"] = "red"
    latents: torch.Tensor = pipeline(WORDS, guidance_scale=4.0, max_sequence_length=DEFAULTS[name], **common).images
    return pipeline._unpack_latents(latents, 96, 64, 8) if name == "flux" else latents


def test_medium_of_3_5_draws_with_skip_layer_guidance(tmp_path: Path) -> None:
    """As its makers advise; a model of ten blocks has those that are skipped."""
    tiny.sd3(tmp_path / "sd35", qk_norm="rms_norm", dual_attention_layers=(0,), num_layers=10)
    model, pipeline = load(tmp_path, "sd35"), StableDiffusion3Pipeline.from_pretrained(tmp_path / "sd35")
    pipeline.set_progress_bar_config(disable=True)
    drawing = Drawing(size=(64, 64), seed=4, guidance=4.0, steps=8)
    with torch.no_grad():
        live = model.family.sample(model, told(model, WORDS), told(model, "red"), drawing)

    def draw(**more: Any) -> torch.Tensor:
        latents: torch.Tensor = pipeline(
            WORDS, negative_prompt="red", guidance_scale=4.0, max_sequence_length=154, width=64, height=64, num_inference_steps=8,
            generator=torch.Generator().manual_seed(4), output_type="latent", **more,
        ).images  # fmt: skip
        return latents

    told_by_its_makers = {"scale": 2.8, "start": 0.01, "stop": 0.2}
    theirs = draw(skip_guidance_layers=[7, 8, 9], **{f"skip_layer_guidance_{key}": value for key, value in told_by_its_makers.items()})
    torch.testing.assert_close(live, theirs, rtol=1e-5, atol=1e-5)
    assert (draw() - live).abs().max() > 1e-3


# --- files -----------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("preset", ["kohya", "attention"])
def test_the_file_in_diffusers_draws_the_live_models_picture(name: str, preset: str, bases: Path, tmp_path: Path) -> None:
    """Transformer and all text encoders that can be trained, read from disk by diffusers."""
    model = load(bases, name)
    adapter = random_adapter(model, preset=preset)
    assert next(iter(model.family.formats)) == "diffusers"
    export.save_adapter(tmp_path / "a.safetensors", model.family.formats["diffusers"](adapter, torch.float32), {})
    drawing = Drawing(size=(64, 96), seed=4, guidance=4.0, steps=3)
    with torch.no_grad(), model.bank.use([adapter], torch.float32):
        live = model.family.sample(model, told(model, WORDS), told(model, "red"), drawing)
    pipeline = PIPELINES[name].from_pretrained(bases / name)
    plain = drawn(name, pipeline)
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    torch.testing.assert_close(drawn(name, pipeline), live, rtol=1e-5, atol=1e-5)
    assert (plain - live).abs().max() > 1e-2, "the adapter does something"


def differences(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a kohya file adds to each original layer."""
    names = {key.rsplit(".lora_down", 1)[0] for key in tensors if ".lora_down" in key}
    found = {}
    for name in names:
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        found[name] = up @ down * (tensors[f"{name}.alpha"] / len(down))
    return found


OUTSIDE = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
INSIDE = {
    "attn.to_q": "x_block.attn.qkv",
    "attn.add_q_proj": "context_block.attn.qkv",
    "attn2.to_q": "x_block.attn2.qkv",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
}


def swapped(value: torch.Tensor) -> torch.Tensor:
    return torch.cat([*reversed(value.chunk(2))])


def original_sd3(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A diffusers SD3 transformer in the original's layout: diffusers' conversion, written the other way."""
    last = max(int(key.split(".")[1]) for key in state if key.startswith("transformer_blocks"))
    found = {"pos_embed": state["pos_embed.pos_embed"]}
    for key, value in state.items():
        path, kind = key.rsplit(".", 1)
        if key.startswith("transformer_blocks."):
            _, block, inner = path.split(".", 2)
            if inner.endswith(("to_k", "to_v", "add_k_proj", "add_v_proj")):
                continue
            whole = value
            if inner.endswith(("to_q", "add_q_proj")):
                whole = torch.cat([state[key.replace("_q", f"_{letter}")] for letter in "qkv"])
            elif inner == "norm1_context.linear" and int(block) == last:
                whole = swapped(value)
            found[f"joint_blocks.{block}.{INSIDE[inner]}.{kind}"] = whole
        elif key != "pos_embed.pos_embed":
            found[f"{OUTSIDE.get(path, path)}.{kind}"] = swapped(value) if path == "norm_out.linear" else value
    return found


@pytest.mark.parametrize("name", ["sd3", "sd35"])
def test_kohyas_file_of_sd3_adds_to_the_original_what_ours_adds_to_diffusers(name: str, bases: Path) -> None:
    """Query, key and value fused and yet of full strength; the last block's halves swapped. Layer by layer, by diffusers' own map."""
    model = load(bases, name)
    adapter = random_adapter(model, ["transformer"])
    transformer = model.parts["transformer"]
    original = {key: torch.zeros_like(value) for key, value in original_sd3(transformer.state_dict()).items()}
    added = differences(model.family.formats["kohya"](adapter, torch.float32))
    for key in [key for key in original if key.endswith(".weight")]:
        added_here = added.pop("lora_unet_" + key.removesuffix(".weight").replace(".", "_"), None)
        if added_here is not None:
            original[key] = added_here
    assert added == {}, "every layer of the file is a layer of the original"
    theirs = convert_sd3_transformer_checkpoint_to_diffusers(original)
    for target, down, up in adapter.matrices("transformer"):
        torch.testing.assert_close(theirs[f"{target.name}.weight"], up @ down * adapter.scale, rtol=1e-5, atol=1e-6)


# --- at real size ----------------------------------------------------------------------------------


def transformer_on_meta(kind: Any, config: Any, name: str) -> Model:
    with torch.device("meta"):
        transformer = kind(**config)
    model = Model.__new__(Model)
    model.family, model.parts = families.plugin(name), {"transformer": transformer}
    return model


def kohya_file(model: Model) -> dict[str, tuple[int, ...]]:
    adapter = Adapter.create(model.targets(["transformer"]), 2, 1.0, 0, CPU)
    return {key: tuple(value.shape) for key, value in model.family.formats["kohya"](adapter, torch.float16).items()}


def sd3_by_hand(width: int, blocks: int, twice: int) -> dict[str, tuple[int, int]]:
    """sd-scripts' modules of an MMDiT with their sizes in and out, after section 2a of the reference: fused, none after the last words."""
    found: dict[str, tuple[int, int]] = {}
    for i in range(blocks):
        for side in ("x_block", "context_block"):
            whole = side == "x_block" or i < blocks - 1
            many = 9 if side == "x_block" and i < twice else 6 if whole else 2
            own = {"attn_qkv": (width, 3 * width), "adaLN_modulation_1": (width, many * width)}
            if whole:
                own |= {"attn_proj": (width, width), "mlp_fc1": (width, 4 * width), "mlp_fc2": (4 * width, width)}
            if many == 9:
                own |= {"attn2_qkv": (width, 3 * width), "attn2_proj": (width, width)}
            found |= {f"lora_unet_joint_blocks_{i}_{side}_{end}": size for end, size in own.items()}
    return found


@pytest.mark.parametrize(
    ("config", "width", "blocks", "twice", "count"),
    [(sd3.MEDIUM, 1536, 24, 0, 237), (sd35.MEDIUM, 1536, 24, 13, 263), (sd35.LARGE, 2432, 38, 0, 377)],
)
def test_at_real_size_sd3s_files_are_the_reference(config: Any, width: int, blocks: int, twice: int, count: int) -> None:
    model = transformer_on_meta(SD3Transformer2DModel, config, "sd3")
    wanted = sd3_by_hand(width, blocks, twice)
    assert len(wanted) == count
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (fan_in, fan_out) in wanted.items():
        rank = 6 if name.endswith("qkv") else 2
        shapes |= {f"{name}.lora_down.weight": (rank, fan_in), f"{name}.lora_up.weight": (fan_out, rank), f"{name}.alpha": ()}
    assert kohya_file(model) == shapes


def test_at_real_size_fluxs_file_is_the_reference() -> None:
    """The 304 modules of sd-scripts: 10 in each of 19 double blocks, 3 in each of 38 single ones, with the original's sizes."""
    width, wanted = 3072, {}
    for i in range(19):
        for side in ("img", "txt"):
            own = {"attn_qkv": (1, 3), "attn_proj": (1, 1), "mlp_0": (1, 4), "mlp_2": (4, 1), "mod_lin": (1, 6)}
            wanted |= {f"double_blocks_{i}_{side}_{end}": size for end, size in own.items()}
    for i in range(38):
        wanted |= {
            f"single_blocks_{i}_{end}": size for end, size in {"linear1": (1, 7), "linear2": (5, 1), "modulation_lin": (1, 3)}.items()
        }
    assert len(wanted) == 304
    ranks = {"attn_qkv": 6, "linear1": 8}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (fan_in, fan_out) in wanted.items():
        rank = next((value for end, value in ranks.items() if name.endswith(end)), 2)
        shapes |= {f"lora_unet_{name}.lora_down.weight": (rank, fan_in * width), f"lora_unet_{name}.alpha": ()}
        shapes[f"lora_unet_{name}.lora_up.weight"] = (fan_out * width, rank)
    assert kohya_file(transformer_on_meta(FluxTransformer2DModel, flux.DEV, "flux")) == shapes


def test_diffusers_reads_kohyas_file_of_flux_at_full_strength() -> None:
    """By its own converter, which knows the real widths only: one block of each kind."""
    model = transformer_on_meta(FluxTransformer2DModel, {**flux.DEV, "num_layers": 1, "num_single_layers": 1}, "flux")
    adapter = Adapter.create(model.targets(["transformer"]), 2, 0.375, 0, CPU)
    with torch.no_grad():
        for flat in adapter.flat.values():
            flat.normal_()
    theirs, _ = FluxPipeline.lora_state_dict(model.family.formats["kohya"](adapter, torch.float32), return_alphas=True)
    ours = model.family.formats["diffusers"](adapter, torch.float32)
    assert theirs.keys() == ours.keys()
    columns = torch.randn(3, 1)
    for key in [key for key in ours if ".lora_A." in key]:
        other, column = key.replace("lora_A", "lora_B"), columns.repeat(ours[key].shape[1] // 3 + 1, 1)[: ours[key].shape[1]]
        torch.testing.assert_close(theirs[other] @ (theirs[key] @ column), ours[other] @ (ours[key] @ column), rtol=1e-4, atol=1e-3)


def test_at_real_size_z_images_file_has_every_layer_of_its_blocks() -> None:
    """4 of attention, 3 of the feed-forward, and the modulation, which the refiners of words do without."""
    model = transformer_on_meta(ZImageTransformer2DModel, zimage.REAL, "zimage")
    adapter = Adapter.create(model.targets(["transformer"]), 2, 1.0, 0, CPU)
    sizes: dict[str, tuple[int, int]] = {}
    for block in [f"layers.{i}" for i in range(30)] + [f"{kind}_refiner.{i}" for kind in ("noise", "context") for i in range(2)]:
        sizes |= {f"{block}.attention.{end}": (3840, 3840) for end in ("to_q", "to_k", "to_v", "to_out.0")}
        sizes |= {f"{block}.feed_forward.w1": (3840, 10240), f"{block}.feed_forward.w3": (3840, 10240)}
        sizes[f"{block}.feed_forward.w2"] = (10240, 3840)
        if "context" not in block:
            sizes[f"{block}.adaLN_modulation.0"] = (256, 4 * 3840)
    for name, prefix in (("diffusers", "transformer"), ("comfyui", "diffusion_model")):
        file = model.family.formats[name](adapter, torch.float16)
        found = {key: tuple(value.shape) for key, value in file.items()}
        assert found == {f"{prefix}.{key}.lora_A.weight": (2, fan_in) for key, (fan_in, _) in sizes.items()} | {
            f"{prefix}.{key}.lora_B.weight": (fan_out, 2) for key, (_, fan_out) in sizes.items()
        }


def test_diffusers_reads_comfys_file_of_z_image(bases: Path) -> None:
    model = load(bases, "zimage")
    adapter = random_adapter(model)
    with torch.no_grad(), model.bank.use([adapter], torch.float32):
        live = model.family.sample(model, told(model, WORDS), told(model, "red"), Drawing(size=(64, 96), seed=4, guidance=4.0, steps=3))
    pipeline = ZImagePipeline.from_pretrained(bases / "zimage")
    pipeline.load_lora_weights(model.family.formats["comfyui"](adapter, torch.float32))
    torch.testing.assert_close(drawn("zimage", pipeline), live, rtol=1e-5, atol=1e-5)


def test_the_attention_preset_has_the_layers_of_the_diffusers_example() -> None:
    """The listing of a file that its SD3 script wrote: these names in every block, less the last block's way out for words."""
    model = transformer_on_meta(SD3Transformer2DModel, sd3.MEDIUM, "sd3")
    names = {target.name for target in model.targets(["transformer"], "attention")}
    ends = ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_out.0", "to_q", "to_v")
    assert names == {f"transformer_blocks.{i}.attn.{end}" for i in range(24) for end in ends} - {"transformer_blocks.23.attn.to_add_out"}


# --- bases -----------------------------------------------------------------------------------------


def write_sd3_file(folder: Path, path: Path, *, encoders: bool) -> Path:
    """The tiny model as its makers publish it: the transformer and VAE, with or without encoders; the rest in a folder beside it."""
    state = {f"model.diffusion_model.{key}": value for key, value in original_sd3(_weights(folder / "transformer")).items()}
    for key, value in _weights(folder / "vae").items():
        name = tiny.original_vae(key)
        state[f"first_stage_model.{name}"] = value[:, :, None, None] if ".attn_1." in name and value.dim() == 2 else value
    beside = path.with_suffix(".config")
    shutil.copytree(folder, beside)
    if encoders:
        for part, prefix in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g"), ("text_encoder_3", "t5xxl")):
            for key, value in _weights(folder / part).items():
                state[f"text_encoders.{prefix}.transformer.{key}"] = value
            next((beside / part).glob("*.safetensors")).unlink()
    for part in ("transformer", "vae"):
        next((beside / part).glob("*.safetensors")).unlink()
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


@pytest.mark.parametrize("name", ["sd3", "sd35"])
@pytest.mark.parametrize("encoders", [False, True])
def test_a_checkpoint_is_the_folder_again(name: str, encoders: bool, bases: Path, tmp_path: Path) -> None:
    """With its encoders, or without: then they come from beside it."""
    file = write_sd3_file(bases / name, tmp_path / "m.safetensors", encoders=encoders)
    whole, one = load(bases, name), load(tmp_path, name, file.name)
    assert one.fingerprint() == whole.fingerprint()
    assert one.process == whole.process
    half = load(tmp_path, name, file.name, dtype=torch.bfloat16)
    assert {part: next(half.parts[part].parameters()).dtype for part in ("transformer", "vae", "text_encoder_3")} == {
        "transformer": torch.bfloat16, "vae": torch.float32, "text_encoder_3": torch.bfloat16,
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_z_images_transformer_alone_is_the_folder_again(prefix: str, bases: Path, tmp_path: Path) -> None:
    state, names = _weights(bases / "zimage/transformer"), {"all_final_layer.2-1.": "final_layer.", "all_x_embedder.2-1.": "x_embedder."}
    names |= {".to_out.0.": ".out.", ".norm_k.": ".k_norm.", ".norm_q.": ".q_norm."}
    for key in [key for key in state if ".attention.to_q." in key]:
        state[key.replace("to_q", "qkv")] = torch.cat([state.pop(key.replace("to_q", f"to_{letter}")) for letter in "qkv"])
    for ours, theirs in names.items():
        state = {key.replace(ours, theirs): value for key, value in state.items()}
    save_file({prefix + key: value.contiguous() for key, value in state.items()}, tmp_path / "z.safetensors")
    shutil.copytree(bases / "zimage", tmp_path / "z.config")
    assert load(tmp_path, "zimage", "z.safetensors").fingerprint() == load(bases, "zimage").fingerprint()


def test_the_transformer_of_flux_alone_says_what_it_lacks(tmp_path: Path) -> None:
    """diffusers converts one at its real width only, so that a tiny file cannot be loaded here."""
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 1)}, tmp_path / "flux1-dev.safetensors")
    with pytest.raises(BaseModelError, match="holds no text_encoder, text_encoder_2, tokenizer, tokenizer_2, vae"):
        load(tmp_path, "flux", "flux1-dev.safetensors")
    assert families.plugin("flux").of_file(["guidance_in.in_layer.weight"])["transformer"] == flux.DEV
    assert not families.plugin("flux").of_file([])["transformer"]["guidance_embeds"]


def test_guidance_is_told_while_training(bases: Path) -> None:
    noisy, levels = torch.randn(1, 16, 8, 8), torch.tensor([0.5])
    plain, more = load(bases, "flux"), load(bases, "flux", guidance=3.5)
    with torch.no_grad():
        answers = [model.predict(noisy, levels, told(model, WORDS)) for model in (plain, more)]
    assert (answers[0] - answers[1]).abs().max() > 1e-3


def test_what_a_checkpoint_lacks_is_said(bases: Path, tmp_path: Path) -> None:
    file = write_sd3_file(bases / "sd3", tmp_path / "m.safetensors", encoders=False)
    shutil.rmtree(tmp_path / "m.config/text_encoder_3")
    with pytest.raises(BaseModelError, match=r"m.safetensors holds no text_encoder_3\.") as caught:
        load(tmp_path, "sd3", file.name)
    assert "m.config beside it" in caught.value.hint
    shutil.rmtree(tmp_path / "m.config")
    with pytest.raises(BaseModelError, match="holds no text_encoder, text_encoder_2, text_encoder_3, tokenizer, tokenizer_2, tokenizer_3"):
        load(tmp_path, "sd3", file.name)


@pytest.mark.parametrize("name", ["sd35"])
def test_the_size_of_3_5_is_told_by_the_keys(name: str, bases: Path) -> None:
    keys = original_sd3(_weights(bases / name / "transformer"))
    family = families.plugin(name)
    assert family.of_file(keys)["transformer"] is sd35.MEDIUM
    assert family.of_file([key for key in keys if "attn2" not in key])["transformer"] is sd35.LARGE


def test_a_folder_without_its_t5_is_refused_in_words(bases: Path, tmp_path: Path) -> None:
    shutil.copytree(bases / "sd3", tmp_path / "sd3")
    shutil.rmtree(tmp_path / "sd3/text_encoder_3")
    with pytest.raises(BaseModelError, match="no folder text_encoder_3/"):
        inspect_base("sd3", tmp_path)


@every
def test_a_hub_base_of_another_kind_is_refused_before_it_is_fetched(name: str, bases: Path, tmp_path: Path) -> None:
    """By its index alone: nothing else is there."""
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    base = Base(kind="hub", location=str(tmp_path), family=None)
    with pytest.raises(BaseModelError, match=f"is not of family {name}: it is a StableDiffusionXLPipeline"):
        families.load(Foundation(family=name, base=base, dtype=torch.float32), CPU)
    assert (bases / name).is_dir()


def test_a_gated_base_says_what_opens_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's words, without the hub."""
    words = "You are trying to access a gated repo.\nMake sure to have access to it at https://hub/a/b."
    monkeypatch.setattr("diffusers.DiffusionPipeline.load_config", lambda *_, **__: (_ for _ in ()).throw(OSError(words)))
    with pytest.raises(BaseModelError, match="gated repo") as caught:
        families.load(Foundation(family="flux", base=Base(kind="hub", location="a/b", family=None), dtype=torch.float32), CPU)
    assert "HF_TOKEN" in caught.value.hint


def test_3_is_not_3_5(bases: Path) -> None:
    base = Base(kind="hub", location=str(bases / "sd35"), family=None)
    with pytest.raises(BaseModelError, match="is not of family sd3: its qk_norm is rms_norm"):
        families.load(Foundation(family="sd3", base=base, dtype=torch.float32), CPU)


@pytest.mark.parametrize(("config", "version", "kind"), [
    (sd3.MEDIUM, "sd3_medium", "medium"), (sd35.MEDIUM, "sd35_medium", "5-medium"), (sd35.LARGE, "sd35_large", "5-large"),
])  # fmt: skip
def test_the_metadata_names_the_variant(config: Any, version: str, kind: str) -> None:
    origin = sd3.origin(transformer_on_meta(SD3Transformer2DModel, config, "sd3"))
    assert (origin.base_model_version, origin.architecture) == (version, f"stable-diffusion-3-{kind}/lora")
