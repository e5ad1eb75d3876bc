"""Regularisation, masks, resolutions, crops, captions in whole jobs: exact to resume, the same in company, never from an old cache."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from trainer import loop
from trainer.jobs import Place
from trainer.protocol import AnyEvent, Committed, Ended, JobSpec, Started, Step, Warned
from trainer.together import run_jobs

Spec = Callable[..., dict[str, Any]]
SHORT: dict[str, Any] = {"steps": 7, "batch_size": 2}


@pytest.fixture
def root(world: Path, tmp_path: Path) -> Path:
    """A session folder: five pictures in two shapes with two captions each and masks, seven of regularisation, one with alpha."""
    from tests import tiny

    (tmp_path / "base").symlink_to(world / "base")
    tiny.pictures(tmp_path / "data", count=5, sizes=((64, 64), (64, 96)))
    tiny.pictures(tmp_path / "reg/1_a dog", count=7, sizes=((64, 64), (96, 64), (64, 96)))
    (tmp_path / "masks").mkdir()
    for number, picture in enumerate(sorted((tmp_path / "data").glob("*.png"))):
        size = Image.open(picture).size
        mask = np.zeros((size[1], size[0]), np.uint8)
        mask[:, : size[0] // 2] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / picture.name)
        picture.with_suffix(".txt").write_text(f"a {{red|blue}} dog, {number}, on red\na cat, the square, of blue\n")
    see_through = Image.open(tmp_path / "data/03.png").convert("RGBA")
    see_through.putalpha(Image.fromarray(mask).resize(see_through.size))
    see_through.save(tmp_path / "data/03.png")
    return tmp_path


@pytest.fixture
def train(root: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[AnyEvent]]:
    """Trains jobs into `out/<name>`, alone or together; a stop is asked for after so many steps of the first."""
    monkeypatch.setattr("trainer.saying.STEP_EVENT_EVERY_S", 0.0)

    def run(jobs: Sequence[dict[str, Any]], out: str, stop_after: int | None = None) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        done = lambda: sum(isinstance(e, Step) for e in events)  # noqa: E731
        place = Place(root, events.append, stopping=lambda: stop_after is not None and done() >= stop_after)
        run_jobs([JobSpec(**spec(**{"output": f"{out}/{job['name']}", **SHORT, **job})) for job in jobs], place)
        return events

    return run


def losses(events: Sequence[AnyEvent], name: str = "lisa") -> dict[int, float]:
    return {e.step: e.loss for e in events if isinstance(e, Step) and e.job == name}


def weights(root: Path, out: str, name: str = "lisa") -> torch.Tensor:
    tensors = load_file(root / out / name / f"{name}.safetensors")
    return torch.cat([tensors[key].flatten() for key in sorted(tensors)])


def ended(events: Sequence[AnyEvent]) -> Ended:
    (one,) = [e for e in events if isinstance(e, Ended)]
    return one


FEATURES: dict[str, dict[str, Any]] = {
    "regularisation": {"regularisation": "reg", "prior_loss_weight": 0.5},
    "masks": {"masks": "masks", "mask_min_weight": 0.1, "flip": True},
    "alpha on grey": {"alpha_mask": True, "background": "grey"},
    "two resolutions": {"more_resolutions": [96]},
    "crops and mirrors": {"crops": 3, "flip": True, "resolution": 96, "bucket_step": 64, "min_bucket": 64},
    "captions": {"several_captions": True, "wildcards": True, "tag_dropout": 0.3, "shuffle_caption": True, "caption_prefix": "the photo"},
    "empty epochs": {"caption_dropout_every_epochs": 2, "batch_size": 4},
    "all of it": {
        "regularisation": "reg", "masks": "masks", "alpha_mask": True, "more_resolutions": [96], "crops": 2, "flip": True,
        "several_captions": True, "shuffle_caption": True, "keep_tokens": 1, "gradient_accumulation": 2, "ema_decay": 0.9, "heldout": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", FEATURES)
def test_a_resumed_run_ends_with_the_bits_of_the_undisturbed_one(case: str, root: Path, train: Callable[..., list[AnyEvent]]) -> None:
    job = {"name": "lisa", **FEATURES[case]}
    whole = train([job], "whole")
    assert ended(whole).state == "done"
    stopped = train([job], "parts", stop_after=3)
    assert ended(stopped).state == "stopped"
    rest = train([job], "parts")
    assert next(e.step for e in rest if isinstance(e, Started)) == 3
    assert losses(stopped) | losses(rest) == losses(whole)
    assert torch.equal(weights(root, "parts"), weights(root, "whole"))


def test_together_each_gets_what_it_gets_alone(root: Path, train: Callable[..., list[AnyEvent]]) -> None:
    """Jobs with masks beside jobs without, with regularisation beside without, in shared passes."""
    cases: list[dict[str, Any]] = [FEATURES[case] for case in ("regularisation", "masks", "two resolutions", "all of it")]
    jobs = [{"name": f"j{i}", "seed": i, "learning_rate": 1e-3, **case} for i, case in enumerate([*cases, {}])]
    joint = train(jobs, "joint")
    for job in jobs:
        alone = train([job], "alone")
        name = str(job["name"])
        assert losses(joint, name) == pytest.approx(losses(alone, name), rel=1e-5)
        a, b = weights(root, "joint", name), weights(root, "alone", name)
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_a_white_mask_changes_nothing_and_a_grey_one_scales_the_loss(root: Path, train: Callable[..., list[AnyEvent]]) -> None:
    """The whole way from files: 255 is 1, 51 is 0.2."""
    plain = losses(train([{"name": "lisa", "steps": 1}], "plain"))
    for shade, factor in ((255, 1.0), (51, 0.2)):
        for mask in (root / "masks").iterdir():
            Image.new("L", Image.open(mask).size, shade).save(mask)
        masked = losses(train([{"name": "lisa", "steps": 1, "masks": "masks"}], f"shade{shade}"))
        assert masked[1] == pytest.approx(plain[1] * factor, rel=1e-5)


def test_a_mask_is_mirrored_with_its_picture_and_cut_as_it_is(root: Path, train: Callable[..., list[AnyEvent]], monkeypatch: Any) -> None:
    seen: list[tuple[loop.Way, torch.Tensor]] = []
    plain = loop.Lane._draw

    def draw(self: loop.Lane, *args: Any) -> loop.Batch:
        for way in {loop.Way(mirrored, cut) for mirrored in (False, True) for cut in range(2)}:
            assert self.data.mask
            seen.append((way, self.data.mask(0, way)))
        return plain(self, *args)

    monkeypatch.setattr(loop.Lane, "_draw", draw)
    train([{"name": "lisa", "steps": 1, "batch_size": 1, "masks": "masks", "flip": True, "crops": 2}], "out")
    masks = dict(seen)
    left = torch.cat([torch.ones(1, 8, 4), torch.zeros(1, 8, 4)], dim=2)
    assert torch.equal(masks[loop.Way()], left)
    assert torch.equal(masks[loop.Way(True)], left.flip(2))


def test_every_second_epoch_is_without_captions(root: Path, train: Callable[..., list[AnyEvent]], monkeypatch: Any) -> None:
    """Five pictures, two epochs: with regularisation an epoch ends where its own batches end."""
    said: list[str] = []
    plain = loop.captions.draw
    monkeypatch.setattr(loop.captions, "draw", lambda *args: said.append(plain(*args)) or said[-1])
    train([{"name": "lisa", "steps": None, "epochs": 2, "batch_size": 1, "caption_dropout_every_epochs": 2}], "out")
    assert [bool(text) for text in said] == [True] * 5 + [False] * 5
    said.clear()
    job = {"name": "lisa", "steps": None, "epochs": 2, "batch_size": 1, "caption_dropout_every_epochs": 2, "regularisation": "reg"}
    train([job], "regular")
    assert [bool(text) for text in said] == [True] * 10 + [False] * 10


def test_regularisation_counts_what_it_is_worth(root: Path, train: Callable[..., list[AnyEvent]]) -> None:
    """With weight 0 a batch of regularisation alone has no loss; the others have theirs."""
    events = train([{"name": "lisa", "steps": 10, "batch_size": 1, "regularisation": "reg", "prior_loss_weight": 0.0}], "out")
    found = losses(events)
    assert sorted(found) == list(range(1, 11))
    assert sum(loss == 0 for loss in found.values()) == 5, "five pictures, five of regularisation, one epoch"
    (started,) = [e for e in events if isinstance(e, Started)]
    assert started.images == 5
    assert any("an epoch shows 5 pictures and 5 of regularisation" in e.message for e in events if isinstance(e, Warned))
    with safe_open(root / "out/lisa/lisa.safetensors", "pt") as file:
        facts = file.metadata()
    assert (facts["ss_num_train_images"], facts["ss_num_reg_images"], facts["ss_prior_loss_weight"]) == ("5", "5", "0.0")
    assert facts["ss_reg_dataset_dirs"] == '{"1_a dog": {"n_repeats": 1, "img_count": 7}}'


def test_every_regularisation_picture_is_trained_on_and_none_is_measured_by(
    root: Path, train: Callable[..., list[AnyEvent]], monkeypatch: Any
) -> None:
    used: Counter[int] = Counter()
    plain, measured = loop.Lane._draw, loop.evaluate

    def draw(self: loop.Lane, model: Any, piece: loop.Piece) -> loop.Batch:
        used.update(piece.indices)
        return plain(self, model, piece)

    def evaluate(model: Any, adapter: Any, held: loop.Data) -> list[float]:
        assert len(held.captions) == 1
        assert "number" not in held.captions[0][0], "no caption of regularisation"
        return measured(model, adapter, held)

    monkeypatch.setattr(loop.Lane, "_draw", draw)
    monkeypatch.setattr(loop, "evaluate", evaluate)
    options = {"heldout": 1, "regularisation": "reg", "batch_size": 1, "epochs": 2, "steps": None}
    events = train([{"name": "lisa", **options}], "out")
    (started,) = [e for e in events if isinstance(e, Started)]
    assert started.steps == 16, "four pictures and four of regularisation, twice"
    assert dict(used) == dict.fromkeys(range(4), 2) | {4: 2} | dict.fromkeys(range(5, 11), 1), "seven take turns: the first comes again"


CHANGES: dict[str, Callable[[Path, dict[str, Any]], object]] = {
    "another background": lambda _, job: job.update(background="#102030"),
    "another mask": lambda root, _: Image.new("L", (64, 64), 200).save(root / "masks/00.png"),
    "another resolution": lambda _, job: job.update(resolution=96),
    "other bucket steps": lambda _, job: job.update(bucket_step=64, min_bucket=64, max_bucket=64),
    "more crops": lambda _, job: job.update(crops=2, bucket_step=64, min_bucket=64, max_bucket=64),
    "another caption": lambda root, _: (root / "data/00.txt").write_text("the green circle"),
    "another vae": lambda root, _: (shutil.copytree(root / "base", root / "other"), _disturb(root / "other/vae")),
}


def _disturb(vae: Path) -> None:
    from safetensors.torch import save_file

    file = next(vae.glob("*.safetensors"))
    tensors = load_file(file)
    tensors["quant_conv.bias"] = tensors["quant_conv.bias"] + 0.1
    save_file(tensors, file)


@pytest.mark.parametrize("case", CHANGES)
def test_what_was_made_from_something_else_is_never_used(case: str, root: Path, train: Callable[..., list[AnyEvent]]) -> None:
    """With the old cache the result is that of an empty one."""
    job: dict[str, Any] = {"name": "lisa", "masks": "masks", "steps": 2, "batch_size": 5}
    train([job], "before")
    CHANGES[case](root, job)
    if case == "another vae":
        job["base"] = "other"
    train([job], "warm")
    shutil.rmtree(root / "cache")
    train([job], "cold")
    assert torch.equal(weights(root, "warm"), weights(root, "cold"))
    assert not torch.equal(weights(root, "warm"), weights(root, "before"))


def test_the_same_again_is_all_found(root: Path, train: Callable[..., list[AnyEvent]]) -> None:
    job = {"name": "lisa", **FEATURES["all of it"]}
    train([job], "one")
    there = {path: path.stat().st_mtime_ns for path in (root / "cache").rglob("*.safetensors")}
    train([job], "two")
    assert {path: path.stat().st_mtime_ns for path in (root / "cache").rglob("*.safetensors")} == there
    assert {path.parent.name for path in there} == {"latents", "masks", "text"}


@pytest.mark.parametrize("change", ["mask", "regularisation", "second caption"])
def test_changed_company_of_the_pictures_does_not_go_on_from_the_old_checkpoint(
    change: str, root: Path, train: Callable[..., list[AnyEvent]]
) -> None:
    job = {"name": "lisa", **FEATURES["all of it"]}
    train([job], "out", stop_after=2)
    match change:
        case "mask":
            Image.new("L", (64, 64), 255).save(root / "masks/00.png")
        case "regularisation":
            Image.new("RGB", (64, 64), "red").save(root / "reg/1_a dog/00.png")
        case _:
            (root / "data/00.txt").write_text("a {red|blue} dog, 0, on red\nsomething else")
    assert ended(train([job], "out")).code == "LRY-CKPT-DIGEST"


def test_every_file_that_is_skipped_is_said_however_many(root: Path, train: Callable[..., list[AnyEvent]]) -> None:
    for number in range(30):
        (root / f"data/stray{number}.txt").write_text("x")
    said = " ".join(e.message for e in train([{"name": "lisa", "steps": 1}], "out") if isinstance(e, Warned))
    assert all(f"stray{number}.txt" in said for number in range(30))
    for number in range(3):
        (root / f"data/empty{number}.png").write_bytes(b"")
    message = ended(train([{"name": "lisa", "steps": 1}], "bad")).message
    assert all(f"empty{number}.png" in message for number in range(3))


def test_the_adapter_is_committed_once(root: Path, train: Callable[..., list[AnyEvent]]) -> None:
    events = train([{"name": "lisa", **FEATURES["all of it"]}], "out")
    assert sum(isinstance(e, Committed) and e.final for e in events) == 1
