"""`check` looks at everything that a config names, with the trainer's own eyes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.config import load
from orchestrator.errors import ConfigError, DatasetError
from orchestrator.file.check import Checked, check, counts, refusal, summary
from trainer import dataset, items


def picture(file: Path, size: tuple[int, int] = (640, 512), caption: str | None = "lisabp woman, in a park") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 60)).save(file)
    if caption is not None:
        file.with_suffix(".txt").write_text(caption)


def diffusers_folder(folder: Path, pipeline: str = "StableDiffusionPipeline") -> None:
    """The outside of a model: what can be told without loading it."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    two = ("text_encoder_2", "tokenizer_2") if "XL" in pipeline else ()
    for part in ("unet", "vae", "text_encoder", "tokenizer", *two):
        (folder / part).mkdir(parents=True)
        (folder / part / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).write_text("{}")
    (folder / "unet/config.json").write_text(json.dumps({"cross_attention_dim": 768}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))


@pytest.fixture
def looked(tmp_path: Path):
    """Writes a config with one job of these lines and checks it."""

    def look(*lines: str, base: str = "stable-diffusion-v1-5/stable-diffusion-v1-5", folder: str = "lisa") -> Checked:
        file = tmp_path / "lorry.toml"
        job = "\n".join([f'base = "{base}"', "[[lora]]", 'name = "lisa"', f'dataset = "{folder}"', *lines])
        file.write_text(f'name = "a"\n[budget]\nmax_usd = 1\n[defaults]\n{job}\n')
        return check(load(file))

    return look


def test_a_dataset_is_counted_as_the_trainer_counts_it(looked, tmp_path):
    """One reading of the folder: the plan's steps are the training's steps."""
    for number in range(5):
        picture(tmp_path / f"lisa/6_lisabp woman/{number}.png", (640, 512) if number < 3 else (512, 768))
    checked = looked("epochs = 10", "batch_size = 2", 'trigger = "lisabp woman"')
    (job,) = checked.jobs
    config = load(tmp_path / "lorry.toml")
    scan = dataset.scan(job.dataset, config.jobs[0])
    assert (job.pictures, job.captions, job.samples) == (5, 5, 30)
    assert sum(job.buckets.values()) == 5
    assert len(job.buckets) == 2
    assert job.steps == items.total_steps(config.jobs[0], scan.samples) == 10 * (9 + 6)
    assert job.reading == scan.reading
    assert checked.findings == ()
    assert refusal(checked) is None


def test_every_picture_that_is_wrong_is_named(looked, tmp_path):
    picture(tmp_path / "lisa/good.png")
    picture(tmp_path / "lisa/bare.png", caption=None)
    (tmp_path / "lisa/torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    checked = looked()
    said = {(Path(found.path).name, found.code) for found in checked.errors}
    assert ("torn.jpg", "LRY-DATA-CORRUPT") in said
    assert any(name == "bare.png" and "CAPTION" in code for name, code in said)
    assert all(found.hint for found in checked.errors)
    error = refusal(checked)
    assert isinstance(error, DatasetError)
    assert error.exit_code == 3


def test_a_dataset_that_is_not_there_is_put_right_in_the_config(looked, tmp_path):
    """So the finding points at the line to change, wherever the folder should have been."""
    (found,) = looked(folder="nowhere").errors
    assert (found.code, found.path, found.line) == ("LRY-DATA-MISSING", str(tmp_path / "lorry.toml"), 8)
    assert found.excerpt[found.column :] == '"nowhere"'


def test_an_empty_dataset_is_refused(looked, tmp_path):
    (tmp_path / "lisa").mkdir()
    checked = looked()
    assert [found.code for found in checked.errors] == ["LRY-DATA-EMPTY"]
    assert checked.jobs[0].steps == 0


def test_a_base_of_another_family_is_refused_at_its_line(looked, tmp_path):
    picture(tmp_path / "lisa/a.png")
    diffusers_folder(tmp_path / "xl", "StableDiffusionXLPipeline")
    checked = looked('family = "sd15"', base="xl")
    (found,) = checked.errors
    assert (found.code, found.line, found.excerpt) == ("LRY-BASE-FAMILY", 5, 'base = "xl"')
    assert isinstance(refusal(checked), ConfigError)


def test_the_family_is_told_from_the_base(looked, tmp_path):
    picture(tmp_path / "lisa/a.png")
    diffusers_folder(tmp_path / "model")
    assert looked(base="model").jobs[0].family == "sd15"
    assert looked().jobs[0].family == "sd15"
    (found,) = looked(base="someone/their-model").errors
    assert (found.code, found.hint) == ("LRY-CONFIG-FAMILY", 'write `family` as well, as in family = "sd15"')
    assert looked('family = "sd15"', base="someone/their-model").jobs[0].family == "sd15"
    assert looked('recipe = "sd15-style"', base="someone/their-model").jobs[0].family == "sd15"
    with pytest.raises(ConfigError) as refused:
        looked('recipe = "style"', base="someone/their-model")
    assert "write `family` as well" in str(refused.value.findings[0].hint)


HUB_BASES = {
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "Laxhar/noobai-XL-Vpred-1.0": "sdxl",
    "OnomaAIResearch/Illustrious-xl-early-release-v0": "sdxl",
    "stabilityai/stable-diffusion-2-1": "sd2",
}


@pytest.mark.parametrize("base", HUB_BASES)
def test_a_short_recipe_is_that_of_the_bases_family(looked, tmp_path, base):
    picture(tmp_path / "lisa/a.png")
    assert looked('recipe = "style"', base=base).jobs[0].family == HUB_BASES[base]
    assert load(tmp_path / "lorry.toml").jobs[0].recipe == f"{HUB_BASES[base]}-style"


def test_a_family_that_is_not_trained_is_refused_before_anything_is_rented(looked, tmp_path, monkeypatch):
    """Whether the folder shows it or the hub id says it."""
    picture(tmp_path / "lisa/a.png")
    diffusers_folder(tmp_path / "sora", "SoraPipeline")
    monkeypatch.setattr("orchestrator.file.check.FAMILIES", ("sd15",))
    for base, words in (("sora", "SoraPipeline"), ("stabilityai/stable-diffusion-xl-base-1.0", "of the family sdxl")):
        (found,) = looked(base=base).errors
        assert (found.code, found.line) == ("LRY-CONFIG-FAMILY", 5)
        assert words in found.message


@pytest.mark.parametrize("base", ["nowhere.safetensors", "./nowhere", "broken.safetensors", "pickle.ckpt", "empty"])
def test_a_base_that_cannot_be_used_is_refused(looked, tmp_path, base):
    picture(tmp_path / "lisa/a.png")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "pickle.ckpt").write_bytes(b"\x80\x02.")
    (tmp_path / "empty").mkdir()
    (found,) = looked('family = "sd15"', base=base).errors
    assert found.code.startswith("LRY-BASE-")
    assert found.line == 5


def test_sample_prompts_and_buckets_that_cannot_be_are_refused(looked, tmp_path):
    picture(tmp_path / "lisa/a.png")
    (found,) = looked('sample_prompts = ["a dog --q 3"]').errors
    assert (found.code, found.line) == ("LRY-JOB-PROMPT", 9)
    with pytest.raises(ConfigError) as refused:
        looked("resolution = 256", "bucket_step = 512")
    assert [found.code for found in refused.value.findings] == ["LRY-CONFIG-RULE"]


def test_two_jobs_on_one_folder_complain_once(tmp_path):
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/a.png").write_bytes(b"no picture")
    jobs = "".join(f'[[lora]]\nname = "{name}"\n' for name in ("a", "b"))
    (tmp_path / "lorry.toml").write_text(
        f'name = "a"\n[budget]\nmax_usd = 1\n[defaults]\nbase = "x/stable-diffusion-v1-5"\ndataset = "torn"\n{jobs}'
    )
    checked = check(load(tmp_path / "lorry.toml"))
    assert len(checked.jobs) == 2
    assert len(checked.errors) == len({(found.code, found.path) for found in checked.errors})


def test_what_is_shown_of_a_job_says_what_will_happen(looked, tmp_path):
    for number in range(3):
        picture(tmp_path / f"lisa/{number}.png")
    checked = looked("steps = 30")
    text = "\n".join(summary(checked.jobs[0]))
    assert "lisa: 3 pictures, 3 with a caption, 30 steps (10 epochs)" in text
    assert "576x448: 3" in text
    assert checked.jobs[0].as_json()["steps"] == 30
    assert counts(checked.findings) == ""


def test_masks_and_regularisation_are_looked_at_and_counted(looked, tmp_path):
    """Relative to the file, as the dataset is; steps double, as kohya's do."""
    for number in range(4):
        picture(tmp_path / f"lisa/2_lisabp woman/{number}.png", (512, 512))
        picture(tmp_path / f"masks/{number}.png", (512, 512), caption=None)
    for number in range(20):
        picture(tmp_path / f"reg/1_woman/{number}.png", (520, 512))
    checked = looked("epochs = 5", 'masks = "masks"', 'regularisation = "reg"')
    assert checked.findings == ()
    (job,) = checked.jobs
    assert (job.pictures, len(job.masks), job.priors, job.samples, job.steps) == (4, 4, 20, 16, 80)
    assert (job.as_json()["masks"], job.as_json()["regularisation"]) == (4, 20)
    text = "\n".join(summary(job))
    assert "masks for 4 of 4 pictures; regularisation: parent of 1 kohya folder: `1_woman` (x1), 20 pictures" in text
    assert "an epoch shows 8 pictures and 8 of regularisation: they take turns, and after 3 epochs each has been used" in text


def test_a_folder_beside_the_dataset_that_is_not_there_is_put_right_at_its_own_line(looked, tmp_path):
    picture(tmp_path / "lisa/a.png")
    found = looked('masks = "nowhere"', 'regularisation = "nothing"').errors
    assert [(f.code, f.path, f.line) for f in found] == [("LRY-DATA-MISSING", str(tmp_path / "lorry.toml"), line) for line in (9, 10)]


@pytest.mark.parametrize("key", ["start_from", "merge_lora"])
def test_a_lora_to_begin_with_is_looked_at_before_anything_is_rented(looked, tmp_path, key):
    """That it is there, is data and not code, and holds a LoRA."""
    picture(tmp_path / "lisa/1.png")
    for name, tensor in (("old.safetensors", "lora_unet_x.lora_up.weight"), ("model.safetensors", "w")):
        header = json.dumps({tensor: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    (tmp_path / "torn.safetensors").write_bytes(b"\0")
    (tmp_path / "old.pt").write_bytes(b"pickle")
    assert not looked(f'{key} = "old.safetensors"').errors
    wrong = {
        "nowhere.safetensors": "no .safetensors",
        "old.pt": "no .safetensors",
        "model.safetensors": "no LoRA",
        "torn.safetensors": "read",
    }
    for name, words in wrong.items():
        (found,) = looked(f'{key} = "{name}"').errors
        assert words in found.message
        assert found.code == "LRY-FILE-ADAPTER"
        assert found.line is not None


def test_what_is_wrong_in_a_folder_is_named_by_its_whole_path(looked, tmp_path):
    picture(tmp_path / "lisa/4_dog/a.png")
    (tmp_path / "lisa/4_dog/b.png").write_bytes(b"")
    (tmp_path / "reg").mkdir()
    (tmp_path / "reg/c.png").write_bytes(b"")
    found = looked('regularisation = "reg"').errors
    assert {f.path for f in found if f.code == "LRY-DATA-ZERO"} == {str(tmp_path / "lisa/4_dog/b.png"), str(tmp_path / "reg/c.png")}


def test_every_file_that_is_left_out_is_named(looked, tmp_path):
    """Whatever lies in the folders: it is trained on, or it is said by name that it is not."""
    picture(tmp_path / "lisa/4_dog/a.png")
    left = ["lisa/loose.png", "lisa/4_dog/below/b.png", "lisa/other/c.png", "lisa/4_dog/.hidden.png", "lisa/4_dog/notes.md",
            "lisa/4_dog/a.npz", "lisa/4_dog/d.gif", "lisa/4_dog/stray.txt", "lisa/4_dog/film.mp4"]  # fmt: skip
    for name in left:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((tmp_path / "lisa/4_dog/a.png").read_bytes())
    said = " ".join(f"{finding.path} {finding.message}" for finding in looked().findings)
    assert [name for name in left if Path(name).name not in said] == []


def test_checking_needs_neither_torch_nor_network(tmp_path):
    """In a fresh Python in which a socket cannot be made."""
    picture(tmp_path / "lisa/a.png")
    (tmp_path / "lorry.toml").write_text(
        'name = "a"\n[budget]\nmax_usd = 1\n[[lora]]\nname = "x"\ndataset = "lisa"\nbase = "x/stable-diffusion-v1-5"\n'
    )
    code = """
import socket, sys
def refuse(*a, **k): raise AssertionError("the network was asked")
socket.socket = refuse
from pathlib import Path
from orchestrator.file.check import check
from orchestrator.config import load
assert check(load(Path(sys.argv[1]))).jobs[0].pictures == 1
print(*sorted({"torch", "httpx", "paramiko", "rich", "diffusers"} & set(sys.modules)))
"""
    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lorry.toml")], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["dora = true"], "A1111 and diffusers draw something else"),
        (['adapter = "loha"'], "lorry convert"),
        (['adapter = "lokr"', "dora = true", "lokr_factor = 4"], "LoKr with DoRA"),
        (['adapter = "lora"'], ""),
    ],
)
def test_an_adapter_that_not_every_program_reads_is_warned_of_before_anything_is_rented(looked, tmp_path, lines, said):
    picture(tmp_path / "lisa/0.png")
    checked = looked(*lines)
    found = [one for one in checked.findings if one.code == "LRY-CONFIG-ADAPTER"]
    assert [one.severity for one in found] == (["warning"] if said else [])
    assert not found or said in found[0].message
    assert not checked.errors


@pytest.mark.parametrize(
    ("optimizer", "absent"),
    [("lion_pytorch.Lion", "lion_pytorch"), ("torch.optim.NAdam", ""), ("prodigyopt.Prodigy", ""), ("AdamW8bit", "")],
)
def test_an_optimizer_of_a_package_that_no_rented_machine_has_is_warned_of(looked, tmp_path, optimizer, absent):
    """A warning, and no error: an image of one's own may have it."""
    picture(tmp_path / "lisa/0.png")
    more = ["learning_rate = 1.0"] if "Prodigy" in optimizer else []
    checked = looked(f'optimizer = "{optimizer}"', *more)
    found = [one for one in checked.findings if one.code == "LRY-CONFIG-PACKAGE"]
    assert [one.severity for one in found] == (["warning"] if absent else [])
    if absent:
        assert f"a rented machine does not have ({absent})" in found[0].message
        assert found[0].line == 9
    assert not checked.errors
