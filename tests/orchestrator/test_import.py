"""`lorry import`: other trainers' configs become ours with the same steps, buckets and rates, and nothing is dropped silently.

What another trainer does is written down here once more, apart from the code under test, from its documented rules.
"""

from __future__ import annotations

import json
import math
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.cli import main
from orchestrator.config import load
from orchestrator.errors import UsageError
from orchestrator.file.keys import LoraConfig
from orchestrator.imports import kohya_tables
from orchestrator.imports.commandline import calls_in
from orchestrator.imports.counting import with_regularisation
from orchestrator.imports.importing import Imported, imported, toml
from orchestrator.imports.nouns import Job, fault_of, flat
from trainer import dataset, items

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A folder of its own for each test, to work in and to keep runs in."""
    monkeypatch.setenv("LORRY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(folder: Path, sizes: list[tuple[int, int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("lisabp woman, smiling")


SIZES = [(512, 512), (600, 512), (640, 512), (512, 768), (900, 512), (512, 700), (512, 512), (1000, 400), (530, 510)]


def written(data: Any, name: str) -> Path:
    """The config as its trainer would find it."""
    path = Path(name)
    if path.suffix == ".json":
        path.write_text(json.dumps(data), encoding="utf-8")
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
    else:
        tables = {key: value for key, value in data.items() if isinstance(value, dict)}
        lines = [f"{key} = {toml(value)}" for key, value in data.items() if key not in tables]
        for table, keys in tables.items():
            lines += [f"[{table}]", *(f"{key} = {toml(value)}" for key, value in keys.items())]
        path.write_text("\n".join(lines), encoding="utf-8")
    return path


def one(*files: Path) -> Job:
    """The only job of an import."""
    (job,) = imported(files, Path("out.lorry.toml")).jobs
    return job


def checked(made: Imported) -> LoraConfig:
    """Saved, and read again as the next command reads it."""
    made.save()
    assert main(["check", str(made.file)]) == 0, made.text
    return load(made.file).jobs[0]


def steps_of(config: LoraConfig) -> int:
    """lorry's own count."""
    options = config.training_options()
    scan = dataset.scan(config.dataset, options)
    assert not scan.errors
    return items.total_steps(options, scan.samples)


# --- what the others do, read once more from their rules -----------------------------------------------------


def kohya_list(width: int, height: int, low: int, high: int, step: int) -> list[tuple[int, int]]:
    """sd-scripts' buckets: every width in steps, the greatest height in steps within the area, both ways round, and the square."""
    area = width * height
    side = int(math.sqrt(area)) // step * step
    found = {(side, side)}
    for w in range(low, high + step, step):
        h = min(high, (area // w) - (area // w) % step)
        if w <= high and h >= low:
            found.update({(w, h), (h, w)})
    return sorted(found)


def kohya_bucket(size: tuple[int, int], known: list[tuple[int, int]]) -> tuple[int, int]:
    """The picture's own size if it is a bucket, else the nearest ratio, the first of equals."""
    ratio = size[0] / size[1]
    return size if size in known else min(known, key=lambda bucket: (abs(bucket[0] / bucket[1] - ratio), known.index(bucket)))


def kohya_epoch(sizes: list[tuple[int, int]], repeats: list[int], batch: int, accumulation: int, known: list[tuple[int, int]]) -> int:
    """Batches of one bucket each, the last one however full; then so many batches a step, the last step however full."""
    members: dict[tuple[int, int], int] = {}
    for size, times in zip(sizes, repeats, strict=True):
        members[kohya_bucket(size, known)] = members.get(kohya_bucket(size, known), 0) + times
    batches = sum(math.ceil(count / batch) for count in members.values())
    return math.ceil(batches / accumulation)


# --- kohya ---------------------------------------------------------------------------------------------------

G4: dict[str, dict[str, Any]] = {
    "model": {"pretrained_model_name_or_path": SD15, "v2": False, "v_parameterization": False},
    "dataset": {
        "train_data_dir": "img",
        "resolution": 512,
        "batch_size": 2,
        "enable_bucket": True,
        "min_bucket_reso": 256,
        "max_bucket_reso": 1024,
    },
    "training": {
        "output_dir": "out",
        "output_name": "concept",
        "max_train_epochs": 10,
        "learning_rate": 1e-4,
        "unet_lr": 1e-4,
        "text_encoder_lr": 5e-5,
        "lr_scheduler": "cosine_with_restarts",
        "lr_warmup_steps": 100,
        "network_dim": 32,
        "network_alpha": 16,
        "optimizer_type": "AdamW8bit",
        "mixed_precision": "fp16",
        "save_every_n_epochs": 2,
        "save_model_as": "safetensors",
    },
}
"""The config of a public guide, as its users write it."""


def test_a_guides_config_comes_out_as_it_was_meant_and_passes_check(home):
    pictures(home / "img/10_concept", SIZES)
    config = checked(imported([written(G4, "config.toml")], Path("out.lorry.toml")))
    assert (config.epochs, config.batch_size, config.rank, config.alpha, config.optimizer) == (10, 2, 32, 16, "AdamW8bit")
    assert (config.learning_rate, config.unet_lr, config.text_encoder_lr) == (1e-4, 1e-4, 5e-5)
    assert (config.lr_scheduler, config.lr_restarts, config.lr_warmup_steps, config.save_every_epochs) == (
        "cosine_with_restarts",
        1,
        100,
        2,
    )
    known = kohya_list(512, 512, 256, 1024, 64)
    assert steps_of(config) == 10 * kohya_epoch(SIZES, [10] * len(SIZES), 2, 1, known)


def test_a_misspelt_batch_size_is_taken_and_said():
    """kohya itself passes over `batch_size` in a run file."""
    job = one(written(G4, "config.toml"))
    assert job.values["batch_size"] == 2
    assert any("train_batch_size" in remark.what for remark in job.remarks)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.tuples(st.integers(200, 1400), st.integers(200, 1400)), min_size=1, max_size=9),
    repeats=st.integers(1, 5),
    batch=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    epochs=st.integers(1, 4),
    rules=st.tuples(st.sampled_from([512, 640, 768]), st.sampled_from([32, 64])),
)
def test_kohyas_epochs_give_kohyas_steps_and_buckets(tmp_path, sizes, repeats, batch, accumulation, epochs, rules):
    resolution, step = rules
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    pictures(folder / f"{repeats}_lisabp woman", sizes)
    data = {
        "pretrained_model_name_or_path": SD15,
        "train_data_dir": str(folder),
        "resolution": f"{resolution},{resolution}",
        "enable_bucket": True,
        "min_bucket_reso": 256,
        "max_bucket_reso": 1024,
        "bucket_reso_steps": step,
        "train_batch_size": batch,
        "caption_extension": ".txt",
        "gradient_accumulation_steps": accumulation,
        "max_train_epochs": epochs,
        "network_dim": 8,
        "output_name": "lisa",
    }
    config = LoraConfig.model_validate({"name": "lisa", **one(written(data, "run.toml")).values})
    known = kohya_list(resolution, resolution, 256, 1024, step)
    options = config.training_options()
    samples = dataset.scan(config.dataset, options).samples
    assert [fit.bucket for fit in items.fits(options, samples)] == [kohya_bucket(sample.size, known) for sample in samples]
    assert steps_of(config) == epochs * kohya_epoch(sizes, [repeats] * len(sizes), batch, accumulation, known)


@pytest.mark.parametrize("folder", ["lisa", "3_lisabp woman"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_dataset_files_repeats_are_kept_though_lorry_reads_them_from_names(home, folder, batch):
    """kohya takes num_repeats alone there; the folder's name means nothing to it."""
    pictures(home / folder, SIZES)
    text = f'[general]\nenable_bucket = true\ncaption_extension = ".txt"\n[[datasets]]\nresolution = 512\nbatch_size = {batch}\n'
    Path("data.toml").write_text(text + f'[[datasets.subsets]]\nimage_dir = "{folder}"\nnum_repeats = 7\n')
    run = written(
        {"pretrained_model_name_or_path": SD15, "dataset_config": "data.toml", "max_train_epochs": 4, "save_every_n_epochs": 2}, "run.toml"
    )
    config = checked(imported([run], Path("out.lorry.toml")))
    epoch = kohya_epoch(SIZES, [7] * len(SIZES), batch, 1, kohya_list(512, 512, 256, 1024, 64))
    assert steps_of(config) == 4 * epoch
    assert config.save_every_steps == 2 * epoch


def test_several_folders_are_asked_for_in_one_and_the_command_is_told():
    told = (("a", 2, 'class_tokens = "lisa"'), ("b", 5, ""))
    subsets = "".join(f'[[datasets.subsets]]\nimage_dir = "{folder}"\nnum_repeats = {times}\n{words}\n' for folder, times, words in told)
    Path("data.toml").write_text(f"[[datasets]]\nresolution = 512\n{subsets}")
    job = one(Path("data.toml"))
    assert job.values["dataset"] == "datasets/data"
    assert any('"a" as "2_lisa"; "b" as "5_b"' in remark.hint for remark in job.remarks)


def test_folders_that_stand_together_as_kohya_names_them_are_their_parent(home):
    pictures(home / "img/2_lisa", SIZES[:2])
    pictures(home / "img/5_hat", SIZES[:2])
    subsets = "".join(f'[[datasets.subsets]]\nimage_dir = "img/{name}"\nnum_repeats = {name[0]}\n' for name in ("2_lisa", "5_hat"))
    Path("data.toml").write_text(f"[[datasets]]\nresolution = 512\n{subsets}")
    assert one(Path("data.toml")).values["dataset"] == "img"


def test_without_enable_bucket_every_picture_is_the_square(home):
    pictures(home / "img/1_x", SIZES)
    data = {
        "pretrained_model_name_or_path": SD15,
        "train_data_dir": "img",
        "resolution": 500,
        "max_train_steps": 9,
        "caption_extension": ".txt",
    }
    config = checked(imported([written(data, "run.toml")], Path("out.lorry.toml")))
    options = config.training_options()
    found = {fit.bucket for fit in items.fits(options, dataset.scan(config.dataset, options).samples)}
    assert found == {(496, 496)}  # the nearest that a VAE can take


@pytest.mark.parametrize(("width", "height"), [(768, 512), (512, 768), (640, 640), (1024, 1024), (832, 1216), (700, 500)])
def test_an_oblong_resolution_keeps_its_buckets_or_says_so(width, height):
    data = {"resolution": f"{width},{height}", "enable_bucket": True, "max_bucket_reso": 2048, "pretrained_model_name_or_path": SD15}
    job = one(written(data, "run.toml"))
    side = job.values["resolution"]
    same = kohya_list(side, side, 256, 2048, 64) == kohya_list(width, height, 256, 2048, 64)
    assert same or any("no square" in remark.what for remark in job.remarks)


@pytest.mark.parametrize(
    ("said", "unet", "encoder"),
    [
        ({"learning_rate": 2e-4}, 2e-4, 2e-4),
        ({"learning_rate": 2e-4, "unet_lr": 1e-4}, 1e-4, 2e-4),
        ({"learning_rate": 2e-4, "text_encoder_lr": 5e-5}, 2e-4, 5e-5),
        ({"learning_rate": 2e-4, "text_encoder_lr": [5e-5, 1e-5]}, 2e-4, 5e-5),
        ({"learning_rate": 2e-4, "network_train_unet_only": True, "text_encoder_lr": 5e-5}, 2e-4, 0.0),
        ({"learning_rate": 2e-4, "network_train_text_encoder_only": True}, 0.0, 2e-4),
        ({}, 2e-6, 2e-6),
    ],
)
def test_rates_step_in_for_one_another_as_in_kohya(said, unet, encoder):
    values = one(written({"pretrained_model_name_or_path": SDXL, "resolution": 1024, **said}, "run.toml")).values
    assert (values.get("unet_lr", values["learning_rate"]), values["text_encoder_lr"]) == (unet, encoder)
    assert values.get("text_encoder_2_lr") == (1e-5 if isinstance(said.get("text_encoder_lr"), list) else None)


def test_what_kohya_does_where_nothing_is_said_is_written_out():
    values = one(written({"pretrained_model_name_or_path": SD15, "resolution": 512}, "run.toml")).values
    assert (values["rank"], values["alpha"], values["steps"], values["batch_size"], values["heldout"]) == (4, 1.0, 1600, 1, 0)
    assert (values["optimizer"], values["mixed_precision"], values["save_precision"]) == ("AdamW", "no", "fp32")


@pytest.mark.parametrize(
    ("said", "ours"),
    [
        ({"v2": True, "v_parameterization": True}, {"family": "sd2", "prediction": "v", "zero_terminal_snr": False}),
        ({"v2": True}, {"family": "sd2", "prediction": "epsilon"}),
        ({"v_parameterization": True, "zero_terminal_snr": True}, {"prediction": "v", "zero_terminal_snr": True}),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 100}, {"lr_scheduler": "constant", "lr_warmup_steps": 0}),
        ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 100}, {"lr_scheduler": "constant", "lr_warmup_steps": 100}),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 0.1, "max_train_steps": 1500}, {"lr_warmup_steps": 150}),
        ({"optimizer_type": "lion", "optimizer_args": ["weight_decay=0.1"]}, {"optimizer": "Lion", "weight_decay": 0.1}),
        ({"use_8bit_adam": True}, {"optimizer": "AdamW8bit"}),
        ({"max_token_length": 225, "min_snr_gamma": 5, "clip_skip": 2}, {"max_token_length": 225, "min_snr_gamma": 5.0, "clip_skip": 2}),
        ({"save_every_n_epochs": 2, "max_train_epochs": 10}, {"save_every_epochs": 2, "epochs": 10}),
        ({"network_weights": "old.safetensors"}, {"start_from": "old.safetensors"}),
        ({"network_args": ["conv_dim=8", "conv_alpha=4"]}, {"conv_rank": 8, "conv_alpha": 4}),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=lokr", "factor=4", "dora_wd=True"]},
            {"adapter": "lokr", "lokr_factor": 4, "dora": True},
        ),
        ({"save_n_epoch_ratio": 4, "max_train_epochs": 10}, {"save_every_epochs": 2}),
    ],
)
def test_what_means_something_else_in_kohya(said, ours):
    values = one(written({"pretrained_model_name_or_path": SD15, "resolution": 512, **said}, "run.toml")).values
    assert {key: values.get(key) for key in ours} == ours


def test_regularisation_pictures_are_carried_or_their_steps_are():
    """Each as often as the training pictures; what is left over is never seen."""
    assert with_regularisation([2, 2, 2, 2, 2], [1, 1, 1]) == [4, 3, 3]
    assert with_regularisation([1], [1, 1, 1]) == [1, 0, 0]
    values = one(written({"train_data_dir": "a", "reg_data_dir": "r", "resolution": 512, "max_train_epochs": 3}, "run.toml")).values
    assert values["regularisation"] == "r"


def test_an_optimizer_that_lorry_lacks_takes_its_rate_with_it():
    """A rate of 1 is Prodigy's factor and AdamW's ruin."""
    data = {"optimizer_type": "DAdaptLion", "learning_rate": 1.0, "unet_lr": 1.0, "text_encoder_lr": 0.5, "resolution": 512}
    job = one(written(data, "run.toml"))
    assert job.values["optimizer"] == "AdamW8bit"
    assert all(job.values.get(key, 0) <= 1e-3 for key in ("learning_rate", "unet_lr", "text_encoder_lr"))
    assert {fate.key for fate in job.of("listed")} == {"optimizer_type", "learning_rate", "unet_lr", "text_encoder_lr"}


SCRIPTS = {
    "train.sh": (
        "MODEL=base.safetensors\n# sdxl_train_network.py --network_dim 99\n"
        "accelerate launch --mixed_precision bf16 sdxl_train_network.py \\\n"
        '  --pretrained_model_name_or_path="$MODEL" --train_data_dir "img/my pictures" \\\n'
        '  --resolution 1024,1024 --optimizer_args "weight_decay=0.1" "betas=0.9,0.99" \\\n'
        "  --network_dim=32 --network_train_unet_only && echo done\n"
    ),
    "train.bat": (
        "@echo off\nset MODEL=base.safetensors\naccelerate launch .\\sdxl_train_network.py ^\n  --pretrained_model_name_or_path %MODEL% ^\n"
        '  --train_data_dir "img/my pictures" --resolution 1024,1024 ^\n'
        '  --optimizer_args weight_decay=0.1 "betas=0.9,0.99" --network_dim 32 --network_train_unet_only\r\n'
    ),
    "train.ps1": (
        '$model = "base.safetensors"\naccelerate launch "./sdxl_train_network.py" `\n  --pretrained_model_name_or_path=$model `\n'
        '  --train_data_dir="img/my pictures" --resolution="1024,1024" `\n'
        '  --optimizer_args weight_decay=0.1 "betas=0.9,0.99" --network_dim=32 --network_train_unet_only\n'
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_command_line_is_read_whatever_the_shell(name):
    Path(name).write_text(SCRIPTS[name])
    values = one(Path(name)).values
    assert (values["base"], values["dataset"], values["family"], values["rank"]) == ("base.safetensors", "img/my pictures", "sdxl", 32)
    assert (values["weight_decay"], values["text_encoder_lr"], values["resolution"]) == (0.1, 0.0, 1024)


def test_a_command_line_wins_over_the_run_file_that_it_names():
    written({"network_dim": 8, "network_alpha": 4, "resolution": 512}, "run.toml")
    Path("train.sh").write_text("accelerate launch train_network.py --config_file run.toml --network_dim 64\n")
    job = one(Path("train.sh"))
    assert (job.values["rank"], job.values["alpha"]) == (64, 4.0)
    assert {"network_dim", "--network_dim"} <= {fate.key for fate in job.fates}


def test_several_trainings_of_a_script_are_several_jobs():
    Path("all.sh").write_text("".join(f"accelerate launch train_network.py --output_name lisa --network_dim {n}\n" for n in (8, 16)))
    made = imported([Path("all.sh")], Path("out.lorry.toml"))
    assert [(job.name, job.values["rank"]) for job in made.jobs] == [("lisa", 8), ("lisa-2", 16)]


def test_nothing_of_a_script_is_run(home):
    Path("evil.sh").write_text(
        'touch "$(touch made)"\nX=$(touch made)\naccelerate launch train_network.py --network_dim `touch made` --seed $(touch made)\n'
    )
    imported([Path("evil.sh")], Path("out.lorry.toml"))
    assert not Path("made").exists()


GUI: dict[str, Any] = {
    "LoRA_type": "Standard",
    "additional_parameters": "--max_grad_norm=0.5",
    "bucket_no_upscale": True,
    "caption_extension": ".txt",
    "epoch": 4,
    "enable_bucket": True,
    "learning_rate": "0.0001",
    "lr_scheduler": "cosine",
    "lr_warmup": 10,
    "max_resolution": "512,512",
    "network_dim": 8,
    "network_alpha": 1,
    "max_train_epochs": "",
    "max_train_steps": "",
    "optimizer": "AdamW",
    "pretrained_model_name_or_path": SD15,
    "sdxl": False,
    "seed": "",
    "stop_text_encoder_training_pct": 0,
    "text_encoder_lr": 0,
    "unet_lr": 0.0002,
    "train_batch_size": 2,
    "train_data_dir": "img",
    "noise_offset_type": "Multires",
    "noise_offset": 0.1,
    "multires_noise_iterations": 6,
    "multires_noise_discount": 0.3,
    "conv_dim": 1,
    "max_token_length": "150",
    "xformers": "xformers",
    "huggingface_token": "hf_verysecret",
}


def test_kohyas_gui_counts_steps_in_its_own_way(home):
    """Pictures x repeats / batch x epochs, whatever the buckets; warm-up in per cent; a text encoder's rate of 0 leaves it untrained."""
    pictures(home / "img/3_x", SIZES)
    config = checked(imported([written(GUI, "gui.json")], Path("out.lorry.toml")))
    steps = math.ceil(len(SIZES) * 3 / 2 * 4)
    assert (steps_of(config), config.lr_warmup_steps) == (steps, round(steps / 10))
    assert (config.text_encoder_lr, config.unet_lr, config.max_grad_norm, config.max_token_length) == (0.0, 2e-4, 0.5, 150)
    assert (config.noise_offset, config.multires_noise_iterations) == (0.0, 6)


# --- the others ----------------------------------------------------------------------------------------------


def test_simpletuner_counts_further_repeats_and_scales_its_rate(home):
    pictures(home / "img", SIZES)
    data = {
        "--model_type": "lora",
        "--model_family": "sdxl",
        "--data_backend_config": "data.json",
        "--max_train_steps": 300,
        "--num_train_epochs": 0,
        "--train_batch_size": 4,
        "--learning_rate": 1e-4,
        "--lr_scale": True,
        "--lr_scale_sqrt": True,
        "--optimizer": "adamw_bf16",
        "--lora_rank": 32,
        "--lr_scheduler": "constant",
        "--lr_warmup_steps": 50,
    }
    folder = {
        "id": "a",
        "instance_data_dir": "img",
        "resolution": 1.0,
        "resolution_type": "area",
        "caption_strategy": "textfile",
        "repeats": 4,
    }
    written([folder, {"id": "t", "dataset_type": "text_embeds", "cache_dir": "x"}], "data.json")
    config = checked(imported([written(data, "config.json")], Path("out.lorry.toml")))
    assert (config.steps, config.batch_size, config.rank, config.alpha, config.resolution) == (300, 4, 32, 32.0, 1024)
    assert config.learning_rate == pytest.approx(2e-4)
    assert (config.lr_warmup_steps, config.text_encoder_lr, config.max_grad_norm, config.base) == (0, 0.0, 2.0, SDXL)


def test_simpletuners_epochs_count_its_repeats():
    written([{"id": "a", "instance_data_dir": "img", "repeats": 4, "caption_strategy": "textfile"}], "data.json")
    data = {"model_family": "sdxl", "data_backend_config": "data.json", "num_train_epochs": 3, "max_train_steps": 0}
    assert one(written(data, "config.json")).values["epochs"] == 15


def ai_toolkit(**train: Any) -> dict[str, Any]:
    process = {
        "type": "sd_trainer",
        "training_folder": "out",
        "device": "cuda:0",
        "trigger_word": "lisabp",
        "network": {"type": "lora", "linear": 16},
        "save": {"dtype": "float16", "save_every": 300},
        "datasets": [{"folder_path": "img", "caption_ext": "txt", "resolution": [512, 768], "caption_dropout_rate": 0.05}],
        "train": {"batch_size": 1, "steps": 3000, "lr": "1e-4", "optimizer": "adamw8bit", "dtype": "bf16", **train},
        "model": {"name_or_path": SDXL, "is_xl": True},
        "sample": {
            "sample_every": 300,
            "width": 1024,
            "height": 768,
            "prompts": ["[trigger] at home"],
            "neg": "",
            "seed": 7,
            "walk_seed": True,
        },
    }
    return {"job": "extension", "config": {"name": "lisa v1", "process": [process]}, "meta": {"version": "1.0"}}


@pytest.mark.parametrize(("accumulation", "steps", "every"), [(1, 3000, 300), (4, 750, 75)])
def test_ai_toolkit_counts_passes(home, accumulation, steps, every):
    pictures(home / "img", SIZES)
    config = checked(imported([written(ai_toolkit(gradient_accumulation_steps=accumulation), "ai.yaml")], Path("out.lorry.toml")))
    assert (config.steps, config.save_every_steps, config.sample_every_steps) == (steps, every, every)
    assert (config.name, config.trigger, config.rank, config.alpha, config.gradient_accumulation) == (
        "lisa-v1",
        "lisabp",
        16,
        1.0,
        accumulation,
    )
    assert (config.resolution, config.more_resolutions, config.bucket_no_upscale) == (512, (768,), True)
    assert config.sample_prompts == ("lisabp at home --w 1024 --h 768 --d 7 --l 7 --s 20",)
    assert (config.learning_rate, config.text_encoder_lr) == (1e-4, 0.0)


def onetrainer(**said: Any) -> dict[str, Any]:
    concept = {"path": "img", "name": "lisa", "balancing": 3.0, "image": {"enable_random_flip": False}, "text": {"prompt_source": "sample"}}
    return {
        "training_method": "LORA",
        "model_type": "STABLE_DIFFUSION_XL_10_BASE",
        "base_model_name": SDXL,
        "concepts": [concept],
        "epochs": 5,
        "batch_size": 4,
        "learning_rate": 3e-4,
        "learning_rate_scheduler": "COSINE",
        "learning_rate_warmup_steps": 20,
        "lora_rank": 16,
        "resolution": "1024",
        "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.01},
        "text_encoder": {"train": False},
        "text_encoder_2": {"train": False},
        "train_dtype": "BFLOAT_16",
        "secrets": {"huggingface_token": "hf_verysecret"},
        **said,
    }


def onetrainer_epoch(sizes: list[tuple[int, int]], repeats: int, batch: int) -> int:
    """A bucket for each of nine ratios both ways round, in steps of 64; only whole batches of a bucket are trained."""
    ratios = [1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4]
    heights_and_widths = [(1 / math.sqrt(r) * 1024, r / math.sqrt(r) * 1024) for r in ratios]
    heights_and_widths += [(w, h) for h, w in heights_and_widths]
    shapes = list(dict.fromkeys((round(h / 64) * 64, round(w / 64) * 64) for h, w in heights_and_widths))
    members: dict[tuple[int, int], int] = {}
    for width, height in sizes:
        shape = min(shapes, key=lambda s: abs(s[0] / s[1] - height / width))
        members[shape] = members.get(shape, 0) + repeats
    return sum(count // batch for count in members.values())


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_onetrainer_drops_what_does_not_fill_a_batch(home, batch):
    pictures(home / "img", SIZES)
    config = checked(imported([written(onetrainer(batch_size=batch), "one.json")], Path("out.lorry.toml")))
    assert steps_of(config) == 5 * onetrainer_epoch(SIZES, 3, batch)
    assert (config.alpha, config.rank, config.mixed_precision, config.text_encoder_lr) == (1.0, 16, "bf16", 0.0)


@pytest.mark.parametrize(("scaler", "factor"), [("NONE", 1), ("BATCH", 2), ("GRADIENT_ACCUMULATION", 3), ("BOTH", 6)])
def test_onetrainers_scaler_multiplies_by_a_square_root(scaler, factor):
    values = one(written(onetrainer(learning_rate_scaler=scaler, gradient_accumulation_steps=9), "one.json")).values
    assert values["learning_rate"] == pytest.approx(3e-4 * factor)


def test_onetrainers_concepts_may_be_a_file_of_their_own():
    data = onetrainer(concept_file_name="concepts.json")
    written(data.pop("concepts"), "concepts.json")
    assert one(written(data, "one.json")).values["dataset"] == "img"


# --- every key ends somewhere --------------------------------------------------------------------------------


def sources() -> dict[str, dict[str, Any]]:
    return {"gui.json": GUI, "run.toml": G4, "ai.yaml": ai_toolkit(), "one.json": onetrainer()}


@pytest.mark.parametrize("name", sources())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    extra=st.dictionaries(
        st.text("abcdefghijklmnop_", min_size=3, max_size=12),
        st.one_of(st.booleans(), st.integers(0, 9), st.text("abc", max_size=5)),
        max_size=4,
    )
)
def test_every_key_is_carried_without_meaning_or_listed(name, extra):
    """Exactly once, whatever else is in the file; what nobody knows is listed."""
    data = {**sources()[name], **{key: value for key, value in extra.items() if key not in sources()[name]}}
    job = one(written(data, name))
    keys = set(flat({key: value for key, value in data.items() if key != "secrets"})) | ({"secrets"} & data.keys())
    ended = [fate.key for fate in job.fates if not fate.key.startswith("additional_parameters --")]  # words within a key
    assert set(ended) == keys
    assert len(ended) == len(set(ended))
    assert all(fate.ours for fate in job.of("carried"))
    assert all(fate.why for fate in job.of("meaningless"))
    assert all(fate.why and fate.hint for fate in job.of("listed"))


def test_a_key_that_nobody_knows_is_listed_in_the_file_and_told(capsys):
    written({**G4, "netwrok_dim": 64}, "run.toml")
    assert main(["import", "run.toml"]) == 0
    assert "netwrok_dim" in capsys.readouterr().err
    assert "#   netwrok_dim = 64" in Path("lorry.toml").read_text()


def test_an_option_is_carried_from_the_day_on_which_lorry_has_it():
    """The tables name what may come; whether it is there is asked of the model."""
    promised = {ours for lack in kohya_tables.LACKING.values() for ours in lack.ours}
    assert any(fault_of(ours, None).startswith("lorry has no") for ours in promised), "nothing is left to wait for: shorten the tables"
    assert not any(fault_of(ours, None).startswith("lorry has no") for ours, _ in kohya_tables.RENAMED.values())


def test_secrets_stay_where_they_are(capsys):
    for name, data in (("gui.json", GUI), ("one.json", onetrainer())):
        written(data, name)
        assert main(["import", name, "-o", f"{name}.lorry.toml", "--json"]) == 0
        said = capsys.readouterr()
        assert "verysecret" not in said.out + said.err + Path(f"{name}.lorry.toml").read_text()


# --- the command ---------------------------------------------------------------------------------------------


def test_import_answers_scripts(capsys):
    written(G4, "config.toml")
    assert main(["import", "config.toml", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"] == "lorry.toml"
    (job,) = document["jobs"]
    assert (job["name"], job["trainer"], job["keys"]["rank"]) == ("concept", "kohya", 32)
    assert {"key": "training.network_dim", "value": 32, "to": ["rank"]} in job["carried"]
    assert {"carried", "meaningless", "listed", "differs"} <= job.keys()


def test_import_never_writes_over_a_file(capsys):
    written(G4, "config.toml")
    Path("lorry.toml").write_text("mine")
    assert main(["import", "config.toml"]) == 2
    assert Path("lorry.toml").read_text() == "mine"
    assert "-o" in capsys.readouterr().err


BOMB = "".join(f"{name}: &{name} [{', '.join([inner] * 9)}]\n" for name, inner in zip("abcde", ("1", "*a", "*b", "*c", "*d"), strict=True))
"""Five lines of YAML that mean sixty thousand values."""


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '{"training_method": "LORA",}', "a.json:1"),
        ("a.toml", 'network_dim = 4\nbase = "C:\\users"\n', "a.toml:2"),
        ("a.yaml", "config:\n\tprocess: []\n", "a.yaml:2"),
        ("a.json", "[" * 100_000, "no config"),
        ("a.yaml", "a: &x [*x]\n", "no config"),
        ("a.yaml", BOMB, "no config"),
        ("a.yaml", "config: !!python/object/apply:os.system ['touch made']\n", "not YAML"),
        ("a.json", '{"hello": 1}', "no trainer that lorry knows"),
        ("a.sh", "echo hello\n", "calls no program"),
        ("a.toml", "network_dim = 4\nresolution = 512\n" + "x" * 1_100_000, "bigger than"),
        ("a.json", '[{"id": "a", "dataset_type": "image"}]', "not how to train"),
        ("a.toml", 'network_dim = 4\nresolution = 512\nlearning_rate = "fast"\n', "not what belongs there"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(name, text, says, capsys):
    Path(name).write_text(text)
    assert main(["import", name]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not Path("lorry.toml").exists()
    assert not Path("made").exists()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20), st.lists(st.integers())),
    key=st.sampled_from(sorted(GUI)),
)
def test_no_value_of_any_key_breaks_it(value, key):
    """It is carried, listed, or refused in words; and what is written is TOML."""
    path = written({**GUI, key: value}, "gui.json")
    try:
        made = imported([path], Path("out.lorry.toml"))
    except UsageError:
        return
    assert tomllib.loads(made.text)["lora"][0]["name"]


@given(st.text(max_size=300))
def test_no_script_breaks_the_reader(text):
    list(calls_in(f"{text}\naccelerate launch train_network.py {text}"))
