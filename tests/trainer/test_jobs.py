"""A job from spec to files: what is written, what is said, how it ends."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer import train
from trainer.errors import SpecError
from trainer.families.model import Model
from trainer.jobs import Place
from trainer.protocol import AnyEvent, Committed, Ended, Evaluated, EventReader, JobSpec, Phase, Started, Step, Warned, dump_event
from trainer.together import run_job

Spec = Callable[..., dict[str, Any]]


@pytest.fixture
def root(world: Path, tmp_path: Path) -> Path:
    """A session folder of its own with the shared base and data."""
    (tmp_path / "base").symlink_to(world / "base")
    shutil.copytree(world / "data", tmp_path / "data")
    return tmp_path


def run(root: Path, job: dict[str, Any], stop_after: int | None = None) -> list[AnyEvent]:
    """Run a job and return its events, read back from their bytes in uneven chunks."""
    events: list[AnyEvent] = []
    train(root=root, on_event=events.append, stopping=lambda: stop_after is not None and steps_of(events) >= stop_after, **job)
    reader, raw, back = EventReader(), b"".join(map(dump_event, events)), []
    for i in range(0, len(raw), 97):
        back += reader.feed(raw[i : i + 97])
    assert back == events
    return events


def steps_of(events: list[AnyEvent]) -> int:
    return max((e.step for e in events if isinstance(e, Step)), default=0)


def only(events: list[AnyEvent], kind: type[AnyEvent]) -> list[Any]:
    return [e for e in events if isinstance(e, kind)]


def test_the_files_are_those_that_were_said_to_be_there(root: Path, spec: Spec) -> None:
    import hashlib

    events = run(
        root, spec(steps=4, save_every_steps=2, sample_every_steps=2, sample_prompts=("a dog --w 64 --h 64 --s 2 --d 5", "a cat --s 2"))
    )
    committed = {e.path: e for e in only(events, Committed)}
    out = "jobs/lisa/out"
    assert committed.keys() == {
        f"{out}/lisa.safetensors",
        f"{out}/lisa-step000002.safetensors",
        f"{out}/checkpoints/step000002.safetensors",
        *(f"{out}/samples/step00000{s}-{n}.png" for s in (0, 2, 4) for n in (0, 1)),
    }
    for path, event in committed.items():
        data = (root / path).read_bytes()
        assert (event.size, event.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert committed[f"{out}/lisa.safetensors"].final
    on_disk = {p.relative_to(root).as_posix() for p in (root / out).rglob("*") if p.is_file()}
    assert on_disk == committed.keys()


def test_the_story_is_told_in_order(root: Path, spec: Spec) -> None:
    events = run(root, spec(steps=4))
    kinds = [e.phase if isinstance(e, Phase) else e.kind for e in events]
    assert kinds[:4] == ["loading", "caching", "started", "training"]
    assert isinstance(events[-1], Ended)
    assert events[-1].state == "done"
    (started,) = only(events, Started)
    assert (started.images, started.steps, started.epochs) == (5, 4, 1)
    assert only(events, Step)[0].step == 1
    assert only(events, Step)[-1].step == 4
    assert [e.at_s for e in events] == sorted(e.at_s for e in events)


def test_samples_say_how_they_were_made_and_the_adapter_changes_them(root: Path, spec: Spec) -> None:
    run(root, spec(steps=6, learning_rate=0.1, sample_every_steps=6, sample_prompts=("a dog --n red --w 64 --h 96 --s 2 --d 5",)))
    before, after = (Image.open(root / f"jobs/lisa/out/samples/step00000{s}-0.png") for s in (0, 6))
    assert before.size == (64, 96)
    assert "Seed: 5" in before.text["parameters"]
    assert "Negative prompt: red" in before.text["parameters"]
    assert json.loads(after.text["lorry"])["step"] == 6
    assert before.tobytes() != after.tobytes()


def test_a_sample_is_what_the_plain_pipeline_draws(root: Path, spec: Spec, world: Path) -> None:
    """Step 0, before training: diffusers' own pipeline on the base with the same seed gives the same picture."""
    import numpy as np
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    run(root, spec(steps=1, sample_every_steps=1, sample_prompts=("a dog --n red --w 64 --h 64 --s 3 --d 5 --l 4",)))
    pipe = StableDiffusionPipeline.from_pretrained(world / "base", safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    image = pipe(
        "a dog", negative_prompt="red", width=64, height=64, num_inference_steps=3, guidance_scale=4.0, generator=generator
    ).images[0]
    ours = np.asarray(Image.open(root / "jobs/lisa/out/samples/step000000-0.png")).astype(int)
    assert abs(ours - np.asarray(image).astype(int)).max() <= 1


def test_the_metadata_tells_readers_what_they_look_for(root: Path, spec: Spec) -> None:
    run(root, spec(steps=2, trigger="sks", comment="made for a test"))
    with safe_open(root / "jobs/lisa/out/lisa.safetensors", "pt") as file:
        facts = file.metadata()
    assert (facts["ss_network_dim"], facts["ss_network_alpha"], facts["ss_base_model_version"]) == ("4", "2.0", "sd_v1")
    assert facts["ss_v2"] == "False"
    assert facts["ss_output_name"] == facts["modelspec.title"] == "lisa"
    assert facts["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert json.loads(facts["ss_tag_frequency"])["data"]["sks"] == 5
    assert json.loads(facts["ss_dataset_dirs"]) == {"data": {"n_repeats": 1, "img_count": 5}}
    assert sum(b["count"] for b in json.loads(facts["ss_bucket_info"])["buckets"].values()) == 5
    assert {"sshs_model_hash", "sshs_legacy_hash", "ss_steps", "modelspec.date", "ss_training_comment"} <= facts.keys()
    assert str(root) not in json.dumps(facts), "no path of the machine leaks"


def test_two_runs_with_one_seed_give_one_file(root: Path, spec: Spec) -> None:
    first = only(run(root, spec(steps=3, output="one")), Committed)[-1]
    again = only(run(root, spec(steps=3, output="two")), Committed)[-1]
    assert first.sha256 == again.sha256


@pytest.mark.parametrize("at", [1, 3, 5])
def test_stopped_and_gone_on_is_the_same_as_undisturbed(at: int, root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the cache, the samples and the adapters in between."""
    monkeypatch.setattr("trainer.saying.STEP_EVENT_EVERY_S", 0.0)
    options = {
        "steps": 7,
        "optimizer": "AdamW8bit",
        "lr_scheduler": "cosine",
        "sample_every_steps": 2,
        "sample_prompts": ("a dog --w 64 --h 64 --s 1",),
    }
    whole = run(root, spec(**options, output="whole"))
    stopped = run(root, spec(**options, output="parts"), stop_after=at)
    assert stopped[-1].state == "stopped"
    assert {e.role for e in only(stopped, Committed)} >= {"adapter", "checkpoint"}
    rest = run(root, spec(**options, output="parts"))
    assert only(rest, Started)[0].step == at
    losses = {e.step: e.loss for e in only(stopped, Step) + only(rest, Step)}
    assert losses == {e.step: e.loss for e in only(whole, Step)}
    final = [only(events, Committed)[-1].sha256 for events in (whole, rest)]
    assert final[0] == final[1]
    for path in (root / "whole/samples").iterdir():
        assert path.read_bytes() == (root / "parts/samples" / path.name).read_bytes()


def test_changed_options_or_pictures_do_not_go_on_from_the_old_checkpoint(root: Path, spec: Spec) -> None:
    run(root, spec(steps=4), stop_after=1)
    ended = run(root, spec(steps=4, learning_rate=1e-3))[-1]
    assert ended.code == "LRY-CKPT-DIGEST"
    (root / "data/00.txt").write_text("something else")
    assert run(root, spec(steps=4))[-1].code == "LRY-CKPT-DIGEST"


def test_a_changed_picture_is_encoded_anew(root: Path, spec: Spec) -> None:
    """Same name, same size, other content: kohya would train on the old latents."""
    from tests import tiny

    run(root, spec(steps=1, output="one"))
    before = len(list((root / "cache/latents").iterdir()))
    run(root, spec(steps=1, output="two"))
    assert len(list((root / "cache/latents").iterdir())) == before
    tiny.picture((64, 64), 99).save(root / "data/00.png")
    run(root, spec(steps=1, output="three"))
    assert len(list((root / "cache/latents").iterdir())) == before + 1


def test_pictures_held_out_are_said_measured_and_never_trained_on(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import tiny
    from trainer import dataset, items, loop

    tiny.pictures(root / "many", count=21)
    used: set[int] = set()
    plain = loop.Lane._draw

    def draw(self: loop.Lane, model: Any, piece: loop.Piece) -> loop.Batch:
        used.update(piece.indices)
        assert len(self.data.captions) == 19
        return plain(self, model, piece)

    monkeypatch.setattr(loop.Lane, "_draw", draw)
    events = run(root, spec(dataset="many", epochs=1, steps=None, save_every_steps=8))
    assert used == set(range(19))
    job = JobSpec(**spec(dataset="many"))
    samples = dataset.scan(root / "many", job).samples
    _, held = items.split(job, samples)
    (said,) = [e.message for e in only(events, Warned) if "measured by" in e.message]
    assert said.startswith("2 of 21 pictures")
    assert all(s.image.name in said for s in held)
    found = only(events, Evaluated)
    assert [e.step for e in found] == [0, 8, 16, 19]
    assert all(len(e.bands) == 4 and sum(e.bands) / 4 == pytest.approx(e.loss) for e in found)
    assert only(events, Started)[0].steps == 19 == items.total_steps(JobSpec(**spec(epochs=1, steps=None)), samples)
    assert f"held-out loss {found[-1].loss:.4f}" in events[-1].message
    with safe_open(root / "jobs/lisa/out/lisa.safetensors", "pt") as file:
        facts = file.metadata()
    best = min(found, key=lambda e: e.loss)
    assert float(facts["lorry_heldout_loss"]) == pytest.approx(found[-1].loss, abs=1e-6)
    assert facts["lorry_heldout_best_step"] == str(best.step)


def test_a_resumed_run_remembers_its_best(root: Path, spec: Spec) -> None:
    from tests import tiny

    tiny.pictures(root / "many", count=12)
    options = spec(dataset="many", steps=6, save_every_steps=2, heldout=2)
    whole = run(root, {**options, "output": "whole"})
    stopped = run(root, {**options, "output": "parts"}, stop_after=3)
    rest = run(root, {**options, "output": "parts"})
    assert rest[-1].message == whole[-1].message != ""
    assert {e.step: e.loss for e in only(stopped, Evaluated) + only(rest, Evaluated)} == {e.step: e.loss for e in only(whole, Evaluated)}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no dataset": ({"dataset": "nowhere"}, "LRY-DATA-MISSING"),
    "no base": ({"base": "nowhere"}, "LRY-BASE-MISSING"),
    "unknown family": ({"family": "sd99"}, "LRY-JOB-FAMILY"),
    "bad prompt": ({"sample_every_steps": 1, "sample_prompts": ("a --w x",)}, "LRY-JOB-PROMPT"),
    "nothing to train": ({"learning_rate": 0.0}, "LRY-JOB-NOTHING"),
    "exploding": ({"learning_rate": 1e30, "steps": 5}, "LRY-TRAIN-NAN"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_goes_wrong_ends_the_job_with_a_code_and_no_traceback(case: str, root: Path, spec: Spec) -> None:
    changes, code = BAD[case]
    ended = run(root, spec(**changes))[-1]
    assert isinstance(ended, Ended)
    assert (ended.state, ended.code) == ("failed", code)
    assert ended.message


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights that are too small": lambda base: save_file(
        {"conv_in.weight": torch.zeros(1)}, base / "unet/diffusion_pytorch_model.safetensors"
    ),
    "a configuration of another class": lambda base: (base / "vae/config.json").write_text('{"block_out_channels": 3}'),
    "no vocabulary": lambda base: [p.unlink() for p in (base / "tokenizer").iterdir()],
    "a curve that nobody knows": lambda base: (base / "scheduler/scheduler_config.json").write_text(
        '{"beta_schedule": "squaredcos_cap_v2"}'
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_base_ends_the_job_in_words(case: str, root: Path, spec: Spec) -> None:
    shutil.copytree(root / "base", root / "damaged")
    DAMAGE[case](root / "damaged")
    ended = run(root, spec(base="damaged"))[-1]
    assert ended.code == "LRY-BASE-LOAD", ended


def test_a_loss_that_is_not_finite_names_step_and_last_good_checkpoint(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Model.predict
    calls = []

    def poisoned(self: Model, *args: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return plain(self, *args) * (float("nan") if len(calls) >= 5 else 1.0)

    monkeypatch.setattr(Model, "predict", poisoned)
    ended = run(root, spec(steps=6, save_every_steps=2))[-1]
    assert ended.code == "LRY-TRAIN-NAN"
    told = re.search(r"not finite at step (\d+). The last good checkpoint is step (\d+)", ended.message)
    assert told, ended.message
    assert int(told[2]) == int(told[1]) - 1
    assert (root / f"jobs/lisa/out/checkpoints/step{int(told[2]):06d}.safetensors").is_file()
    assert not (root / "jobs/lisa/out/lisa.safetensors").exists()


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "LRY-TRAIN-OOM"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), "LRY-TRAIN-OOM"),
        (OSError(28, "No space left on device"), "LRY-TRAIN-DISK"),
    ],
)
def test_what_the_machine_lacks_is_named(raised: Exception, code: str, root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(Model, "predict", fail)
    ended = run(root, spec())[-1]
    assert (ended.state, ended.code) == ("failed", code)


def test_one_failed_job_leaves_the_next_on_the_same_base_as_it_would_be(root: Path, spec: Spec) -> None:
    alone = run(root, spec(output="alone"))
    place = Place(root, lambda _: None)
    assert run_job(JobSpec(**spec(learning_rate=1e30, name="bad", output="bad")), place).code == "LRY-TRAIN-NAN"
    loaded = place._model
    result = run_job(JobSpec(**spec(output="after")), place)
    assert place._model is loaded
    assert result.sha256 == only(alone, Committed)[-1].sha256


def test_a_cpu_says_that_it_computes_in_fp32(root: Path, spec: Spec) -> None:
    events = run(root, spec(mixed_precision="fp16", steps=1))
    assert any("fp16 is for GPUs" in e.message for e in only(events, Warned))


def test_too_long_captions_are_said_and_cut(root: Path, spec: Spec) -> None:
    (root / "data/00.txt").write_text("dog " * 100)
    events = run(root, spec(steps=1))
    assert any("longer than 75 tokens" in e.message and "100" in e.message for e in only(events, Warned))


def test_the_running_mean_is_what_is_saved(root: Path, spec: Spec) -> None:
    """The file differs from that of the last weights; the checkpoint holds both."""
    run(root, spec(steps=5, output="plain", save_every_steps=4))
    run(root, spec(steps=5, output="mean", save_every_steps=4, ema_decay=0.9))
    plain, mean = (load_file(root / out / "lisa.safetensors") for out in ("plain", "mean"))
    assert plain.keys() == mean.keys()
    assert any(not torch.equal(plain[key], mean[key]) for key in plain)
    ours, theirs = (load_file(root / out / "checkpoints/step000004.safetensors") for out in ("mean", "plain"))
    assert torch.equal(ours["adapter.unet"], theirs["adapter.unet"])
    assert ours.keys() - theirs.keys() == {"mean.unet"}


def test_long_captions_are_read_whole_when_asked(root: Path, spec: Spec) -> None:
    """With a cached and with a trained text encoder; samples too, whose prompts take the same way."""
    (root / "data/00.txt").write_text("dog " * 100)
    options = {"steps": 2, "max_token_length": 150, "sample_every_steps": 2, "sample_prompts": ("a dog --w 64 --h 64 --s 1",)}
    for more in ({"output": "cached"}, {"output": "trained", "text_encoder_lr": 1e-3}):
        events = run(root, spec(**options, **more))
        assert events[-1].state == "done", events[-1]
        assert not any("longer than" in e.message for e in only(events, Warned))
        with safe_open(root / more["output"] / "lisa.safetensors", "pt") as file:
            assert file.metadata()["ss_max_token_length"] == "150"


def test_misspelt_keys_are_refused_before_anything(root: Path, spec: Spec) -> None:
    with pytest.raises(SpecError, match="netwrok_dim"):
        train(root=root, **spec(netwrok_dim=4))


def test_the_text_encoder_is_trained_when_asked(root: Path, spec: Spec) -> None:
    run(root, spec(steps=2, text_encoder_lr=1e-3, sample_every_steps=2, sample_prompts=("a dog --w 64 --h 64 --s 1",)))
    tensors = load_file(root / "jobs/lisa/out/lisa.safetensors")
    text = {k: v for k, v in tensors.items() if k.startswith("lora_te_text_model_")}
    assert len(text) == 3 * 6 * 3
    assert all(v.any() for k, v in text.items() if "lora_up" in k)
    run(root, spec(steps=2, unet_lr=0.0, text_encoder_lr=1e-3, output="te"))
    assert all(k.startswith("lora_te_") for k in load_file(root / "te/lisa.safetensors"))


def test_a_single_file_checkpoint_trains_to_the_same_weights_as_its_folder(root: Path, spec: Spec) -> None:
    """Through diffusers' conversion, with the configurations beside the file: no network."""
    from tests import tiny

    tiny.single_file(root / "base", root / "model.safetensors")
    run(root, spec(steps=2, output="folder"))
    events = run(root, spec(steps=2, output="file", base="model.safetensors"))
    assert events[-1].state == "done", events[-1]
    ours, theirs = (load_file(root / out / "lisa.safetensors") for out in ("file", "folder"))
    assert ours.keys() == theirs.keys()
    # To rounding, which follows where the tensors lie in memory; AdamW enlarges it where a gradient is nearly none.
    one, other = (torch.cat([file[key].flatten() for key in sorted(theirs)]) for file in (ours, theirs))
    assert (one - other).norm() < 1e-4 * other.norm()
