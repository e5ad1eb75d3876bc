"""The families with a UNet, and the contract of all: bases are recognised, layers are kohya's, answers diffusers'."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests import tiny
from trainer import export, families
from trainer.adapters import Adapter, Target
from trainer.base import Base, inspect_base
from trainer.buckets import Fit
from trainer.contract import IDS, Drawing, Foundation, View
from trainer.errors import BaseModelError
from trainer.families import clip, loading
from trainer.families.model import Family, Model
from trainer.protocol import FAMILIES, TrainingOptions

CPU = torch.device("cpu")
PIPELINES = {"sd15": StableDiffusionPipeline, "sd2": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
every_unet = pytest.mark.parametrize("name", PIPELINES)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny folder of each family, and the same as single files."""
    root = tmp_path_factory.mktemp("bases")
    for name in PIPELINES:
        getattr(tiny, name)(root / name)
        tiny.single_file(root / name, root / f"{name}.safetensors")
    return root


def load(bases: Path, name: str, where: str = "", **said: Any) -> Model:
    base = inspect_base(where or name, bases)
    assert base.family == name
    return families.load(Foundation(family=name, base=base, dtype=torch.float32, **said), CPU)


# --- the contract ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_fills_in_the_whole_table(name: str) -> None:
    family = families.plugin(name)
    assert {*family.parts, *family.encoders, "vae", "scheduler"} <= set(family.components)
    assert set(family.real) == set(family.components)
    assert set(family.parts[1:]) <= set(family.encoders)
    assert {"kohya", "diffusers"} & set(family.formats)
    lines = Path(str(families.__path__[0]), f"{name}.py").read_text().splitlines()
    assert 20 < len(lines) < 300, "a family is one file that fits in a head"


# --- at real size ----------------------------------------------------------------------------------


def on_meta(name: str) -> Model:
    """The true classes at real size, weighing nothing."""
    family = families.plugin(name)
    real = family.real
    makes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    with torch.device("meta"):
        parts: dict[str, Any] = {part: makes[part](CLIPTextConfig(**real[part])) for part in family.parts[1:]}
        parts["unet"] = UNet2DConditionModel(**real["unet"])
    model = Model.__new__(Model)
    model.family, model.parts = family, parts
    model.foundation = Foundation(family=name, base=Base(kind="hub", location="a/b", family=name), dtype=torch.float32)
    return model


def file_of(model: Model) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the adapter file, at rank 4."""
    shapes: dict[str, tuple[int, ...]] = {}
    for target in model.targets(list(model.family.parts)):
        key, tail = model.family.key_of(target.part, target.name), (1, 1) if target.conv else ()
        shapes[f"{key}.lora_down.weight"] = (4, target.fan_in, *tail)
        shapes[f"{key}.lora_up.weight"] = (target.fan_out, 4, *tail)
        shapes[f"{key}.alpha"] = ()
    return shapes


COUNTS = {"sd15": {"unet": 192, "te": 72}, "sd2": {"unet": 192, "te": 138}, "sdxl": {"unet": 722, "te1": 72, "te2": 192}}


@every_unet
def test_at_real_size_the_layers_are_counted_as_kohya_counts_them(name: str) -> None:
    keys = {key.split(".")[0] for key in file_of(on_meta(name))}
    found = {prefix: sum(key.startswith(f"lora_{prefix}_") for key in keys) for prefix in COUNTS[name]}
    assert found == COUNTS[name]
    assert len(keys) == sum(found.values())


def test_at_real_size_sdxls_layers_have_these_shapes() -> None:
    """Worked out from the paper's widths: 640 and 1280, words of 2048, a feed-forward of four times two."""
    shapes = file_of(on_meta("sdxl"))
    wanted = {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048),
        "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj.lora_up.weight": (10240, 4),
        "lora_unet_middle_block_1_transformer_blocks_9_attn1_to_out_0.lora_up.weight": (1280, 4),
        "lora_unet_output_blocks_2_1_proj_in.lora_down.weight": (4, 1280),
        "lora_unet_output_blocks_5_1_proj_out.lora_up.weight": (640, 4),
        "lora_te1_text_model_encoder_layers_11_mlp_fc1.lora_up.weight": (3072, 4),
        "lora_te2_text_model_encoder_layers_31_self_attn_q_proj.lora_down.weight": (4, 1280),
    }
    assert {key: shapes[key] for key in wanted} == wanted


def sd_scripts_names_of_sdxl() -> set[str]:
    """Written out by hand after a file of sd-scripts: the number of each place, and how many transformer blocks it has."""
    places = {"input_blocks_4_1": 2, "input_blocks_5_1": 2, "input_blocks_7_1": 10, "input_blocks_8_1": 10, "middle_block_1": 10}
    places |= {f"output_blocks_{i}_1": 10 if i < 3 else 2 for i in range(6)}
    inner = [f"attn{n}_to_{x}" for n in (1, 2) for x in ("q", "k", "v", "out_0")] + ["ff_net_0_proj", "ff_net_2"]
    names = {f"lora_unet_{place}_{end}" for place in places for end in ("proj_in", "proj_out")}
    names |= {f"lora_unet_{place}_transformer_blocks_{b}_{i}" for place, many in places.items() for b in range(many) for i in inner}
    text = [f"self_attn_{x}_proj" for x in ("q", "k", "v", "out")] + ["mlp_fc1", "mlp_fc2"]
    layers = {"te1": 12, "te2": 32}
    return names | {f"lora_{te}_text_model_encoder_layers_{i}_{x}" for te, many in layers.items() for i in range(many) for x in text}


def test_sdxls_names_are_those_that_sd_scripts_writes() -> None:
    assert {key.split(".")[0] for key in file_of(on_meta("sdxl"))} == sd_scripts_names_of_sdxl()


@every_unet
def test_every_layer_of_the_original_checkpoint_has_one_name(name: str) -> None:
    """Also resnets and resizes: no two layers of the UNet share a name."""
    model = on_meta(name)
    layers = [path for path, module in model.parts["unet"].named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    assert len({model.family.key_of("unet", path) for path in layers}) == len(layers) > 250


def test_sdxls_resnets_and_resizes_have_the_originals_names() -> None:
    """As the tiny checkpoint's inverse conversion has them, which diffusers reads back."""
    key_of = families.plugin("sdxl").key_of
    with torch.device("meta"):
        unet = UNet2DConditionModel(**tiny.sdxl_unet())
    layers = [path for path, module in unet.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    for path in layers:
        original = tiny.original_unet(f"{path}.weight", 2, first_attends=True).removesuffix(".weight")
        assert key_of("unet", path) == "lora_unet_" + original.replace(".", "_")


# --- bases -----------------------------------------------------------------------------------------


@every_unet
def test_a_single_file_is_the_folder_again(name: str, bases: Path) -> None:
    whole, one = load(bases, name), load(bases, name, f"{name}.safetensors")
    assert one.fingerprint() == whole.fingerprint()
    assert one.process.prediction == whole.process.prediction
    assert one.latent_address() == whole.latent_address()


@every_unet
@pytest.mark.parametrize("ending", ["", ".safetensors"])
def test_everything_is_in_the_dtype_that_was_asked_for_but_the_vae(name: str, ending: str, bases: Path) -> None:
    """fp16 overflows in some VAEs. Nothing is held in fp32 on the way: a rented machine has little memory to spare."""
    base = inspect_base(f"{name}{ending}", bases)
    model = families.load(Foundation(family=name, base=base, dtype=torch.bfloat16), CPU)
    dtypes = {part: next(model.parts[part].parameters()).dtype for part in (*model.family.parts, "vae")}
    assert dtypes.pop("vae") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}


@every_unet
def test_a_file_alone_is_read_by_the_familys_own_configuration(
    name: str, bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network, no folder beside it. The real sizes are swapped for the tiny ones; the way is the real one."""
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((bases / f"{name}.safetensors").read_bytes())
    family = families.plugin(name)
    real = dict(family.real)
    for part in [part for part in family.components if not part.startswith("tokenizer")]:
        config = json.loads(next((bases / name / part).glob("*config.json")).read_text())
        real[part] = {key: value for key, value in config.items() if not key.startswith("_")}
    monkeypatch.setattr(loading, "CLIP_VOCABULARY", str(bases / name / "tokenizer"))
    foundation = Foundation(family=name, base=inspect_base("alone.safetensors", tmp_path), dtype=torch.float32)
    model = loading.load(foundation, CPU, replace(family, real=real))
    whole = load(bases, name)
    assert model.fingerprint() == whole.fingerprint()
    words = "a photo of dog"
    for part, ids in model.tokens(words, TrainingOptions()).items():
        assert torch.equal(ids, whole.tokens(words, TrainingOptions())[part]), "they pad as the folder's do"


def test_a_file_alone_without_a_network_says_what_it_needs(bases: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.safetensors").write_bytes((bases / "sdxl.safetensors").read_bytes())
    with pytest.raises(BaseModelError, match="needs the vocabulary") as caught:
        load(tmp_path, "sdxl", "alone.safetensors")
    assert "alone.config" in caught.value.hint


def test_noobais_marks_say_v_with_zero_terminal_snr(bases: Path, tmp_path: Path) -> None:
    tiny.single_file(bases / "sdxl", tmp_path / "plain.safetensors")
    tiny.single_file(bases / "sdxl", tmp_path / "noob.safetensors", marks=("v_pred", "ztsnr"))
    tiny.single_file(bases / "sdxl", tmp_path / "spec.safetensors", **{"modelspec.prediction_type": "v"})
    kinds = [load(tmp_path, "sdxl", f"{file}.safetensors").process for file in ("plain", "noob", "spec")]
    assert [(p.prediction, p.zero_terminal_snr) for p in kinds] == [("epsilon", False), ("v", True), ("v", False)]


def test_what_the_user_says_of_a_base_wins(bases: Path) -> None:
    process = load(bases, "sdxl", prediction="v", zero_terminal_snr=True).process
    assert (process.prediction, process.zero_terminal_snr) == ("v", True)
    assert load(bases, "sd2", prediction="epsilon").origin().base_model_version == "sd_v2"


@pytest.mark.parametrize(("name", "other"), [("sd15", "sd2"), ("sd15", "sdxl"), ("sd2", "sd15"), ("sd2", "sdxl")])
def test_a_hub_base_of_another_family_is_refused_before_it_is_trained(name: str, other: str, bases: Path) -> None:
    """Nobody has looked at it until it is here."""
    base = Base(kind="hub", location=str(bases / other), family=None)
    with pytest.raises(BaseModelError, match=f"is not of family {name}") as caught:
        families.load(Foundation(family=name, base=base, dtype=torch.float32), CPU)
    assert caught.value.code == "LRY-BASE-FAMILY"


def test_a_file_that_does_not_say_what_it_answers_is_asked_about(bases: Path, tmp_path: Path) -> None:
    """No key of a Stable Diffusion 2 checkpoint tells the 768 model from the 512 one."""
    file = tiny.single_file(bases / "sd2", tmp_path / "two.safetensors")
    config = file.with_suffix(".config") / "scheduler/scheduler_config.json"
    real = families.plugin("sd2").real["scheduler"]
    config.write_text(json.dumps({**json.loads(config.read_text()), **real}))
    with pytest.raises(BaseModelError, match="whether it answers the noise or v") as caught:
        load(tmp_path, "sd2", "two.safetensors")
    assert 'prediction = "v"' in caught.value.hint
    assert load(tmp_path, "sd2", "two.safetensors", prediction="v").process.prediction == "v"


# --- what it is told -------------------------------------------------------------------------------


def test_sdxl_is_told_the_pictures_size_the_true_crop_and_the_bucket() -> None:
    """1000x700 brought to 549x384 and cut to 512x384: 18 pixels go at the left, 19 at the right."""
    fit = Fit((512, 384), (549, 384))
    describe = families.plugin("sdxl").describe
    assert describe(View((1000, 700), fit))["time_ids"].tolist() == [700, 1000, 0, 18, 384, 512]
    assert describe(View((1000, 700), fit, mirrored=True))["time_ids"].tolist() == [700, 1000, 0, 19, 384, 512]
    assert families.plugin("sd15").describe(View((1000, 700), fit)) == {}


def cut_by_sd_scripts(tokenizer: Any, text: str, longest: int) -> torch.Tensor:
    """sd-scripts' rule for a tokenizer that pads with something else than the end mark, written after its description."""
    ids = tokenizer(text, padding="max_length", truncation=True, max_length=longest + 2, return_tensors="pt").input_ids[0].tolist()
    start, end, pad, pieces = ids[0], tokenizer.eos_token_id, tokenizer.pad_token_id, []
    for i in range(1, longest, 75):
        piece = [start, *ids[i : i + 75], ids[-1]]
        if piece[-2] not in (end, pad):
            piece[-1] = end
        if piece[1] == pad:
            piece[1] = end
        pieces.append(piece)
    return torch.tensor(pieces)


@pytest.mark.parametrize("words", [0, 3, 74, 75, 76, 149, 150, 151, 400])
def test_long_captions_of_padded_tokenizers_are_cut_as_sd_scripts_cuts_them(words: int, bases: Path) -> None:
    model = load(bases, "sdxl")
    text = " ".join(["dog"] * words)
    ours = clip.tokens(model.parts["tokenizer_2"], text, 3)
    assert torch.equal(ours, cut_by_sd_scripts(model.parts["tokenizer_2"], text, 225))
    told = model.encode_text(text, TrainingOptions(max_token_length=225))
    assert told["text"].shape == (227, 32)
    assert told["text_2"].shape == (227, 40)


# --- the oracles -----------------------------------------------------------------------------------


def diffusers_answer(pipeline: Any, noisy: torch.Tensor, timesteps: torch.Tensor, text: str, ids: tuple[int, ...]) -> torch.Tensor:
    """What diffusers' own pipeline would ask its UNet."""
    many = len(noisy)
    if not isinstance(pipeline, StableDiffusionXLPipeline):
        words, _ = pipeline.encode_prompt(text, CPU, 1, do_classifier_free_guidance=False)
        return pipeline.unet(noisy, timesteps, words.expand(many, -1, -1)).sample
    words, _, pooled, _ = pipeline.encode_prompt(text, device=CPU, do_classifier_free_guidance=False)
    time_ids = pipeline._get_add_time_ids(ids[:2], ids[2:4], ids[4:], torch.float32, pipeline.text_encoder_2.config.projection_dim)
    told = {"text_embeds": pooled.expand(many, -1), "time_ids": time_ids.expand(many, -1)}
    return pipeline.unet(noisy, timesteps, words.expand(many, -1, -1), added_cond_kwargs=told).sample


def condition_of(model: Model, text: str, ids: tuple[int, ...], many: int) -> dict[str, torch.Tensor]:
    described = {"time_ids": torch.tensor(ids, dtype=torch.float32)} if model.family.describe(View((8, 8), Fit((8, 8), (8, 8)))) else {}
    told = {**model.encode_text(text, TrainingOptions()), **described}
    return {name: value[None].expand(many, *value.shape) for name, value in told.items()}


SIZES = (480, 640, 0, 3, 64, 96)


@every_unet
@pytest.mark.parametrize("zero", [False, True])
def test_one_step_is_diffusers_scheduler_pipeline_and_loss(name: str, zero: bool, bases: Path) -> None:
    """Noisy latents, target, prediction and squared error, each with epsilon and v, with and without a zero terminal SNR."""
    pipeline = PIPELINES[name].from_pretrained(bases / name)
    generator = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn(3, 4, 8, 12, generator=generator) for _ in range(2))
    timesteps = torch.tensor([2, 500, 999])
    for prediction, theirs in (("epsilon", "epsilon"), ("v", "v_prediction")):
        model = load(bases, name, prediction=prediction, zero_terminal_snr=zero)
        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, prediction_type=theirs, rescale_betas_zero_snr=zero)
        noisy, wanted = model.process.corrupt(latents, noise, timesteps)
        torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps), rtol=1e-5, atol=1e-5)
        goal = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
        torch.testing.assert_close(wanted, goal, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            ours = model.predict(noisy, timesteps, model.embed(condition_of(model, "a photo of dog", SIZES, 3)))
            answer = diffusers_answer(pipeline, noisy, timesteps, "a photo of dog", SIZES)
        torch.testing.assert_close(ours, answer, rtol=1e-5, atol=1e-5)
        loss = model.process.distances(ours, wanted, timesteps, TrainingOptions())
        torch.testing.assert_close(loss, (answer - goal).square().mean((1, 2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sd15", "sd2"])
def test_clip_skip_is_an_encoder_without_its_last_layer(name: str, bases: Path) -> None:
    """Counted from 1, as kohya and A1111 do. The layers behind are known to be idle; the cache tells the two apart."""
    plain, skipping = load(bases, name), load(bases, name, clip_skip=2)
    ours = skipping.encode_text("a photo of dog", TrainingOptions())["text"]
    shorter = copy.deepcopy(plain.parts["text_encoder"])
    inner = getattr(shorter, "text_model", shorter).encoder
    inner.layers = inner.layers[:-1]
    with torch.no_grad():
        theirs = shorter(plain.tokens("a photo of dog", TrainingOptions())["text_encoder"]).last_hidden_state[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert sorted(t.name for t in skipping.targets(["text_encoder"]) if t.idle) == sorted(
        t.name for t in plain.targets(["text_encoder"]) if "layers.2." in t.name
    )
    assert plain.text_address(["text_encoder"]) != skipping.text_address(["text_encoder"])


def random_adapter(model: Model, parts: list[str] | None = None) -> Adapter:
    """Weights everywhere, alpha not rank."""
    targets: list[Target] = model.targets(parts or list(model.family.parts))
    model.prepare(targets, checkpointing=False)
    adapter = Adapter.create(targets, 4, 0.375, 5, CPU)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for part in adapter.layouts:
            for _, _, up in adapter.matrices(part):
                up.normal_(0, 0.3, generator=generator)
    return adapter


@every_unet
def test_the_file_in_diffusers_draws_the_live_models_picture(name: str, bases: Path, tmp_path: Path) -> None:
    """Denoiser and all text encoders, read from disk by diffusers; latents after DDIM with guidance."""
    model = load(bases, name)
    adapter = random_adapter(model)
    write = model.family.formats["kohya"]
    export.save_adapter(tmp_path / "a.safetensors", write(adapter, torch.float32), {})
    drawing = Drawing(size=(64, 96), seed=4, guidance=4.0, steps=3)
    with torch.no_grad(), model.bank.use([adapter], torch.float32):
        told, negative = (model.encode_text(text, TrainingOptions()) for text in ("a photo of dog", "red"))
        both = [{key: value[None] for key, value in one.items()} for one in (told, negative)]
        live = model.family.sample(model, both[0], both[1], drawing)
    pipeline = PIPELINES[name].from_pretrained(bases / name)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False)

    def draw() -> torch.Tensor:
        again = torch.Generator().manual_seed(4)
        latents: torch.Tensor = pipeline(
            "a photo of dog", negative_prompt="red", width=64, height=96, guidance_scale=4.0, num_inference_steps=3, generator=again,
            output_type="latent",
        ).images  # fmt: skip
        return latents

    plain = draw()
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    torch.testing.assert_close(draw(), live, rtol=1e-5, atol=1e-5)
    assert (plain - live).abs().max() > 1e-2, "the adapter does something"


@every_unet
def test_the_diffusers_format_predicts_the_same(name: str, bases: Path) -> None:
    """Alpha folded in; every part under its component's name."""
    model = load(bases, name)
    adapter = random_adapter(model)
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    with torch.no_grad(), model.bank.use([adapter], torch.float32):
        live = model.predict(noisy, timesteps, model.embed(condition_of(model, "a cat", SIZES, 2)))
    pipeline = PIPELINES[name].from_pretrained(bases / name)
    pipeline.load_lora_weights(model.family.formats["diffusers"](adapter, torch.float32))
    with torch.no_grad():
        torch.testing.assert_close(diffusers_answer(pipeline, noisy, timesteps, "a cat", SIZES), live, rtol=1e-5, atol=1e-5)


@every_unet
def test_a_trained_encoder_reads_ids_and_the_others_stay_as_cached(name: str, bases: Path) -> None:
    """Half cached, half read live is the same as all of it read live."""
    model = load(bases, name)
    whole = condition_of(model, "a photo of dog", SIZES, 2)
    ids = model.tokens("a photo of dog", TrainingOptions())
    for part in model.family.encoders:
        cached = model.encode_text("a photo of dog", TrainingOptions(), [p for p in model.family.encoders if p != part])
        told = {name: value[None].expand(2, *value.shape) for name, value in cached.items()}
        made = model.embed({**told, IDS + part: ids[part][None].expand(2, *ids[part].shape)})
        assert {**whole, **made}.keys() == whole.keys()
        for key, value in made.items():
            torch.testing.assert_close(value, whole[key])


def test_what_the_trainer_may_not_do_without_is_in_the_table() -> None:
    """A family that leaves something out cannot be made."""
    with pytest.raises(TypeError, match="missing"):
        Family(parts=("unet",))  # type: ignore[call-arg]
