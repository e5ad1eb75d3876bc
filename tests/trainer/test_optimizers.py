"""Every optimizer: its paper's rule, and back from a checkpoint to the bit."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers.optimization import Adafactor

from trainer import checkpoint, optimizers, rules
from trainer.adapters import Adapter, Target
from trainer.errors import SpecError
from trainer.optimizer_names import OPTIMIZERS
from trainer.protocol import TrainingOptions

TARGETS = [Target("unet", "a", 12, 20), Target("unet", "b", 9, 7, conv=True), Target("text_encoder", "c", 5, 6)]
RATES = {"unet": 1e-2, "text_encoder": 3e-3}
FOREIGN = ["torch.optim.NAdam", "torch.optim.Adafactor", "schedulefree.SGDScheduleFree", "bitsandbytes.optim.LAMB"]


def options(name: str, **more: Any) -> TrainingOptions:
    return TrainingOptions(**{"optimizer": name, "learning_rate": 1.0, "weight_decay": 0.02, "seed": 5, **more})


def made(name: str, **more: Any) -> optimizers.Updater:
    adapter = Adapter.create(TARGETS, 4, 1.0, 3, torch.device("cpu"))
    updater, _ = optimizers.create(options(name, **more), adapter)
    return updater


def train(updater: optimizers.Updater, steps: range, rates: dict[str, float] | None = None) -> None:
    """Pull towards a place far away, with noise that depends on the step alone; rates change as under a schedule."""
    rates = rates or ({"unet": 1.0, "text_encoder": 0.3} if updater.name == "Prodigy" else RATES)
    for step in steps:
        for part, flat in updater.adapter.flat.items():
            noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1000 * step + len(part)))
            flat.grad = (flat.detach() - 1.0) * 0.1 + noise * 0.05 * (1 + step % 3)
        updater.step({part: rate * min(step / 3, 1.0) for part, rate in rates.items()})


def weights(updater: optimizers.Updater) -> dict[str, torch.Tensor]:
    return {part: flat.detach().clone() for part, flat in updater.adapter.flat.items()}


def far(updater: optimizers.Updater) -> float:
    """How far the UNet's matrices are from where the gradients point."""
    return math.sqrt(sum(float((matrix - 1).square().sum()) for _, *pair in updater.adapter.matrices("unet") for matrix in pair))


@pytest.mark.parametrize("name", [*OPTIMIZERS, *FOREIGN])
def test_killed_at_any_step_and_resumed_is_as_undisturbed_to_the_bit(name: str, tmp_path: Path) -> None:
    """Twenty random steps of forty, each through a file; what is saved, drawn and measured is asked for in between."""
    whole, cuts = made(name), sorted(random.Random(name).sample(range(1, 40), 20))
    scale = optimizers.LossScale(enabled=False)
    for step in range(40):
        if step in cuts:
            with whole.adapter.averaged():
                pass
            checkpoint.save(tmp_path / str(step), checkpoint.State(step, "d", whole.adapter, whole, scale))
        train(whole, range(step, step + 1))
    for cut in cuts:
        again = made(name)
        found = checkpoint.load(tmp_path / str(cut) / f"step{cut:06d}.safetensors", "d")
        found.apply(again.adapter, again, scale)
        train(again, range(cut, 40))
        assert all(torch.equal(value, weights(again)[part]) for part, value in weights(whole).items()), f"cut at {cut}"
        with whole.adapter.averaged():
            mean = weights(whole)
        with again.adapter.averaged():
            assert all(torch.equal(value, weights(again)[part]) for part, value in mean.items())


@pytest.mark.parametrize("name", [*OPTIMIZERS, *FOREIGN])
def test_a_state_put_back_replaces_all_of_the_one_before(name: str) -> None:
    """A job that is rolled back goes on from the same bits, whatever its optimizer did since."""
    whole, back = made(name), made(name)
    train(whole, range(4))
    train(back, range(9))
    tensors, numbers = optimizers.state_of(whole)
    tensors = {key: value.clone() for key, value in tensors.items()}
    with torch.no_grad():
        for part, value in weights(whole).items():
            back.adapter.flat[part].copy_(value)
    optimizers.restore(back, tensors, numbers)
    train(whole, range(4, 8))
    train(back, range(4, 8))
    assert all(torch.equal(value, weights(back)[part]) for part, value in weights(whole).items())


@pytest.mark.parametrize("name", [*OPTIMIZERS, *FOREIGN])
def test_nothing_put_back_is_the_beginning(name: str) -> None:
    fresh, back = made(name), made(name)
    train(back, range(9))
    with torch.no_grad():
        for part, value in weights(fresh).items():
            back.adapter.flat[part].copy_(value)
    optimizers.restore(back, {}, {})
    train(fresh, range(4))
    train(back, range(4))
    assert all(torch.equal(value, weights(back)[part]) for part, value in weights(fresh).items())


@pytest.mark.parametrize("name", [*OPTIMIZERS, *FOREIGN])
def test_every_optimizer_goes_where_the_gradients_point_and_a_rate_of_nothing_stays(name: str) -> None:
    updater = made(name)
    rates = {"unet": 1.0, "text_encoder": 0.0} if name == "Prodigy" else {"unet": 3e-2, "text_encoder": 0.0}
    before, distance = weights(updater), far(updater)
    train(updater, range(300), rates)
    with updater.adapter.averaged():
        after = weights(updater)
        assert far(updater) < 0.8 * distance
    if name != "AdamWBF16":  # rounds all the same
        assert torch.equal(after["text_encoder"], before["text_encoder"])


def test_stable_adamw_is_its_papers_algorithm() -> None:
    """Algorithm 2 in double precision, matrix by matrix; one matrix's gradient grows a hundredfold on the way."""
    updater = made("StableAdamW", optimizer_args={"betas": [0.9, 0.99], "eps": 1e-6})
    ours = [matrix for _, *pair in updater.adapter.matrices("unet") for matrix in pair]
    theirs = [matrix.double().clone() for matrix in ours]
    means, squares = [torch.zeros_like(m) for m in theirs], [torch.zeros_like(m) for m in theirs]
    clipped = 0
    for t in range(1, 9):
        dice = torch.Generator().manual_seed(t)
        grad = torch.randn(updater.adapter.flat["unet"].shape, generator=dice) * (100.0 if t == 5 else 1.0)
        updater.adapter.flat["unet"].grad = grad
        pieces = [piece.double().clone() for _, *pair in updater.adapter.gradients("unet") for piece in pair]
        updater.adapter.flat["text_encoder"].grad = torch.ones_like(updater.adapter.flat["text_encoder"])
        updater.step({"unet": 1e-2, "text_encoder": 0.0})
        b1, b2 = 0.9 * (1 - 0.9 ** (t - 1)) / (1 - 0.9**t), 0.99 * (1 - 0.99 ** (t - 1)) / (1 - 0.99**t)
        for i, g in enumerate(pieces):
            means[i] = b1 * means[i] + (1 - b1) * g
            squares[i] = b2 * squares[i] + (1 - b2) * g**2
            rms = math.sqrt(float((g**2 / squares[i].clamp(min=1e-12)).mean()))
            clipped += rms > 1.5
            rate = 1e-2 / max(1.0, rms)
            theirs[i] = theirs[i] - rate * 0.02 * theirs[i] - rate * means[i] / (squares[i].sqrt() + 1e-6)
    assert clipped >= 2
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


def test_adafactor_sees_matrices_and_is_transformers() -> None:
    """Factored second moments, a clipping threshold for each matrix: not the same as over one long vector."""
    updater = made("Adafactor")
    pieces = [torch.nn.Parameter(m.clone()) for _, *pair in updater.adapter.matrices("unet") for m in pair]
    reference = Adafactor(pieces, lr=1e-2, weight_decay=0.02, scale_parameter=False, relative_step=False)
    for step in range(5):
        for part, flat in updater.adapter.flat.items():
            flat.grad = torch.randn(flat.shape, generator=torch.Generator().manual_seed(step + len(part)))
        for piece, grad in zip(pieces, [g for _, *pair in updater.adapter.gradients("unet") for g in pair], strict=True):
            piece.grad = grad.clone()
        updater.step({"unet": 1e-2, "text_encoder": 0.0})
        reference.step()
    for ours, theirs in zip([m for _, *pair in updater.adapter.matrices("unet") for m in pair], pieces, strict=True):
        assert torch.equal(ours, theirs.detach())
    tensors, _ = optimizers.state_of(updater)
    assert tensors["unet.0.exp_avg_sq_row"].shape == (4,)


def test_prodigy_finds_a_rate_for_each_part_by_itself_and_takes_factors() -> None:
    """Alone or beside another part, a part's way is the same; and the text encoder may have half the rate."""
    both, alone = made("Prodigy"), made("Prodigy")
    train(both, range(60), {"unet": 1.0, "text_encoder": 0.5})
    train(alone, range(60), {"unet": 1.0, "text_encoder": 0.0})
    assert torch.equal(weights(both)["unet"], weights(alone)["unet"])
    found = {group["vector"]: group["d"] for group in both.groups}
    assert found["unet"] > 1e-4
    assert found["unet"] != found["text_encoder"]


@given(st.floats(-(2.0**90), 2.0**90, width=32), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_rounding_by_chance_takes_a_neighbour_and_is_right_in_the_mean(value: float, seed: int) -> None:
    values = torch.full((4000,), value)
    found = rules.rounded_by_chance(values, torch.Generator().manual_seed(seed))
    assert torch.equal(found, found.bfloat16().float())
    assert len(found.unique()) <= 2
    step = max(abs(value) * 2.0**-7, 2.0**-133)  # from one neighbour to the next at most; a value close to one may never take the other
    assert float((found - values).abs().max()) <= step
    assert float(found.double().mean()) == pytest.approx(float(values[0]), abs=0.06 * step)


def test_adamw_in_bf16_arrives_where_rounding_to_the_nearest_stalls() -> None:
    """A thousand updates far below half a digit: by chance they add up, by rounding to the nearest nothing moves."""
    weight = torch.nn.Parameter(torch.full((500,), 1.0))
    nearest = torch.full((500,), 1.0, dtype=torch.bfloat16)
    rule = rules.AdamWBF16([{"params": [weight], "vector": "unet"}], lr=1e-4, weight_decay=0.0, seed=1)
    for _ in range(1000):
        weight.grad = torch.ones_like(weight)
        rule.step()
        nearest -= 1e-4
    assert float(nearest.float().mean()) == 1.0
    assert float(weight.detach().mean()) == pytest.approx(0.9, abs=5e-3)
    assert rule.state[weight]["square"].dtype == torch.bfloat16


def test_adamw_in_bf16_is_adamw_to_its_digits() -> None:
    exact, coarse = made("AdamW"), made("AdamWBF16")
    train(exact, range(60))
    train(coarse, range(60))
    change = (weights(exact)["unet"] - weights(made("AdamW"))["unet"]).norm()
    assert (weights(exact)["unet"] - weights(coarse)["unet"]).norm() < 0.05 * change


def test_schedule_free_gives_the_mean_of_its_steps_and_trains_on_undisturbed() -> None:
    """Defazio et al. 2024, equations 3 to 5, in double precision; asked for its mean after every step or never."""
    asked, left = made("AdamWScheduleFree", weight_decay=0.0), made("AdamWScheduleFree", weight_decay=0.0)
    rates = {"unet": 1e-2, "text_encoder": 1e-2}
    z = weights(asked)["unet"].double()
    x, y, square = z.clone(), z.clone(), torch.zeros_like(z)
    for t in range(1, 13):
        grad = torch.randn(z.shape, generator=torch.Generator().manual_seed(t))
        for one in (asked, left):
            one.adapter.flat["unet"].grad = grad.clone()
            one.adapter.flat["text_encoder"].grad = torch.ones_like(one.adapter.flat["text_encoder"])
            one.step(rates)
        square = 0.999 * square + 0.001 * grad.double() ** 2
        z = z - 1e-2 * grad.double() / ((square / (1 - 0.999**t)).sqrt() + 1e-8)
        x = (1 - 1 / t) * x + z / t
        y = 0.1 * z + 0.9 * x
        with asked.adapter.averaged():
            torch.testing.assert_close(weights(asked)["unet"].double(), x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(weights(asked)["unet"].double(), y, rtol=1e-5, atol=1e-5)
    assert torch.equal(weights(asked)["unet"], weights(left)["unet"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_package_at_all.Adam", "not installed here"),
        ("torch.optim.NoSuchThing", "cannot be had"),
        ("torch.nn.Linear", "no optimizer"),
        ("torch.optim.LBFGS", "does not work here"),
    ],
)
def test_a_class_that_cannot_be_used_is_told_in_words(name: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        made(name)
    assert caught.value.code == "LRY-JOB-OPTIMIZER"
    assert name in caught.value.message


def test_a_file_that_lies_about_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lies_about.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match="not installed"):
        made("lies_about.Adam")


def test_a_wrong_argument_of_a_foreign_class_is_told_in_words() -> None:
    with pytest.raises(SpecError, match="surprise"):
        made("torch.optim.NAdam", optimizer_args={"surprise": 1})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"optimizer": "Prodigie"}, "this is no optimizer"),
        ({"optimizer": "os; import sys"}, "this is no optimizer"),
        ({"optimizer": "Prodigy"}, "write learning_rate = 1.0, not 0.0001"),
        ({"optimizer": "Prodigy", "unet_lr": 1.0, "text_encoder_lr": 5e-5}, "write text_encoder_lr = 1.0"),
        ({"optimizer_args": {"d_coef": 2.0}}, "AdamW8bit takes betas, eps, not d_coef"),
        ({"optimizer": "AdamWScheduleFree", "lr_scheduler": "cosine"}, 'must be "constant" with AdamWScheduleFree'),
        ({"optimizer": "AdamWScheduleFree", "ema_decay": 0.9}, "two means"),
        ({"lr_warmup_steps": 1.5}, "whole number of steps"),
        ({"lr_scheduler": "piecewise_constant"}, "go together"),
        ({"lr_scheduler": "piecewise_constant", "lr_step_rules": "1:20,0.1:10,0"}, "its steps rising"),
    ],
)
def test_a_choice_that_cannot_work_is_told_before_anything_is_rented(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TrainingOptions(**wrong)


def test_every_known_optimizer_can_be_made_with_what_it_is_said_to_take() -> None:
    assert len(OPTIMIZERS) > 10
    telling: dict[str, Any] = {"betas": [0.8, 0.95], "eps": [1e-30, 1e-3], "beta1": 0.9, "beta3": 0.9, "slice_p": 1, "growth_rate": 1.5}
    for name, known in OPTIMIZERS.items():
        said = {key: telling.get(key, 0.5 if key not in ("amsgrad", "nesterov") else False) for key in known.takes}
        said |= {"eps": 1e-8} if "eps" in known.takes and name != "Adafactor" else {}
        train(made(name, optimizer_args=said), range(2))
