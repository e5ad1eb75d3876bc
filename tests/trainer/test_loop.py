"""The loop: equal to one written by hand, exact to resume, the same alone and in company."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel

from trainer import caching, checkpoint, dataset, families, items, jobs, loop, optimizers, parts, rules, streams
from trainer.adapters import Adapter
from trainer.contract import Foundation
from trainer.families.model import Model
from trainer.protocol import JobSpec

CPU = torch.device("cpu")
Make = Callable[..., loop.Lane]


@pytest.fixture(scope="module")
def model(world: Path) -> Model:
    from trainer.base import inspect_base

    return families.load(Foundation(family="sd15", base=inspect_base("base", world), dtype=torch.float32), CPU)


@pytest.fixture
def lane(world: Path, model: Model, spec: Callable[..., dict[str, Any]]) -> Make:
    """Makes lanes over the small dataset, as `jobs` does."""

    def make(**changes: Any) -> loop.Lane:
        job = JobSpec(**spec(**changes))
        place = jobs.Place(world, lambda _: None)
        samples = dataset.scan(world / "data", job).samples
        lessons = items.lessons(job, samples)
        rates = parts.rates_of(job)
        targets = model.targets(list(rates))
        data = caching.cached(job, place, model, lessons.items, caching.hashes_of(samples))
        model.prepare(targets, checkpointing=job.gradient_checkpointing)
        adapter = Adapter.create(targets, job.rank, job.scale, job.seed, CPU)
        optimizer, _ = optimizers.create(job, adapter)
        scaler = optimizers.LossScale(enabled=job.mixed_precision == "fp16")
        return loop.Lane(job, lessons.plan, data, adapter, optimizer, rates, scaler)

    return make


def run(model: Model, lane: loop.Lane, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        (stepped,) = loop.step(model, [lane])
        assert stepped.error is None
        losses.append(stepped.loss)
    return losses


def weights(lane: loop.Lane) -> dict[str, torch.Tensor]:
    return {part: flat.detach().clone() for part, flat in lane.adapter.flat.items()}


def test_ten_steps_equal_a_loop_written_by_hand(model: Model, lane: Make) -> None:
    """Separate parameters per matrix, hooks instead of our layers, diffusers' scheduler, torch's AdamW and clipping."""
    ours = lane(batch_size=2, steps=10, min_snr_gamma=5.0, noise_offset=0.1, lr_scheduler="cosine", lr_warmup_steps=2)
    reference = lane(batch_size=2, steps=10, min_snr_gamma=5.0, noise_offset=0.1, lr_scheduler="cosine", lr_warmup_steps=2)
    batches = []
    for step in range(10):
        reference.step = step
        batches.append(reference.batches(model)[0])
    losses = run(model, ours, 10)
    model.prepare([], checkpointing=False)

    scheduler = DDPMScheduler.from_config(model.parts["scheduler"].config)
    modules = dict(model.parts["unet"].named_modules())
    pairs = {t.name: (down.clone().requires_grad_(), up.clone().requires_grad_()) for t, down, up in reference.adapter.matrices("unet")}
    hooks = []
    for name, (down, up) in pairs.items():
        conv = isinstance(modules[name], torch.nn.Conv2d)

        def hook(_m: Any, args: Any, out: torch.Tensor, d: torch.Tensor = down, u: torch.Tensor = up, conv: bool = conv) -> torch.Tensor:
            if conv:
                return out + 0.5 * F.conv2d(F.conv2d(args[0], d[:, :, None, None]), u[:, :, None, None])
            return out + 0.5 * (args[0] @ d.T @ u.T)

        hooks.append(modules[name].register_forward_hook(hook))
    flat = [p for pair in pairs.values() for p in pair]
    optimizer = torch.optim.AdamW(flat, lr=1.0, weight_decay=0.01)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    for step, (batch, loss) in enumerate(zip(batches, losses, strict=True)):
        noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        predicted = model.parts["unet"](noisy, batch.timesteps, batch.condition["text"]).sample
        at = snr[batch.timesteps]
        theirs = (F.mse_loss(predicted, batch.noise, reduction="none").mean((1, 2, 3)) * at.clamp(max=5) / at).mean()
        assert loss == pytest.approx(theirs.item(), rel=1e-5)
        theirs.backward()
        torch.nn.utils.clip_grad_norm_(flat, 1.0)
        progress = (step - 2) / 8
        optimizer.param_groups[0]["lr"] = 1e-2 * (step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * progress)))
        optimizer.step()
        optimizer.zero_grad()
    for hook_handle in hooks:
        hook_handle.remove()
    for target, down, up in ours.adapter.matrices("unet"):
        torch.testing.assert_close(down, pairs[target.name][0].detach(), rtol=1e-4, atol=2e-6)
        torch.testing.assert_close(up, pairs[target.name][1].detach(), rtol=1e-4, atol=2e-6)


def test_accumulating_batches_equals_the_larger_batch(model: Model, lane: Make) -> None:
    """Same samples, same draws: four batches of one, one of three and one of one."""
    grads = []
    for batch, many, order in ((1, 4, [(0,), (2,), (4,), (0,)]), (3, 2, [(0, 2, 4), (0,)]), (4, 1, [(0, 2, 4, 0)])):
        one = lane(batch_size=batch, gradient_accumulation=many, steps=1)
        one._epoch, one._order = 0, order
        (stepped,) = loop.step(model, [one])
        grads.append((stepped.loss, stepped.grad_norm, weights(one)["unet"]))
    for loss, norm, _ in grads[1:]:
        assert loss == pytest.approx(grads[0][0], rel=1e-5)
        assert norm == pytest.approx(grads[0][1], rel=1e-4)


OPTIONS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "AdamW8bit": {"optimizer": "AdamW8bit"},
    "restarts with warm-up": {"lr_scheduler": "cosine_with_restarts", "lr_warmup_steps": 3, "lr_restarts": 2},
    "accumulation": {"gradient_accumulation": 2, "batch_size": 2},
    "everything random": {"flip": True, "shuffle_caption": True, "caption_dropout": 0.3, "noise_offset": 0.1},
    "Lion": {"optimizer": "Lion", "learning_rate": 1e-3},
    "Lion8bit and coarse noise": {"optimizer": "Lion8bit", "multires_noise_iterations": 4, "ip_noise_gamma": 0.1},
    "huber": {"loss_type": "huber", "debiased_estimation": True, "optimizer": "PagedAdamW8bit"},
    "running mean": {"ema_decay": 0.9},
    "AdamW in bf16": {"optimizer": "AdamWBF16", "lr_scheduler": "rex", "lr_warmup_steps": 0.3},
    "StableAdamW, text encoder": {"optimizer": "StableAdamW", "text_encoder_lr": 1e-3},
    "schedule-free": {"optimizer": "AdamWScheduleFree", "lr_warmup_steps": 2},
    "Prodigy with two factors": {"optimizer": "Prodigy", "learning_rate": 1.0, "text_encoder_lr": 0.5, "optimizer_args": {"d_coef": 2.0}},
    "Adafactor, mean, text encoder": {"optimizer": "Adafactor", "ema_decay": 0.5, "text_encoder_lr": 1e-3},
    "SGD": {"optimizer": "SGD", "lr_scheduler": "piecewise_constant", "lr_step_rules": "1:3,0.1:6,0.5"},
    "a class by name": {"optimizer": "torch.optim.NAdam"},
    "text encoder": {"text_encoder_lr": 1e-3, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_resumed_run_is_bit_for_bit_the_undisturbed_one(kind: str, model: Model, lane: Make, tmp_path: Path) -> None:
    """Stopped at every step in turn, saved, thrown away, read back: same losses, same weights."""
    whole = lane(steps=8, **OPTIONS[kind])
    losses, middle = [], {}
    for step in range(8):
        checkpoint.save(tmp_path / str(step), checkpoint.State(step, "d", whole.adapter, whole.optimizer, whole.scaler))
        middle[step] = weights(whole)
        losses += run(model, whole, 1)
    for cut in (1, 4, 7):
        again = lane(steps=8, **OPTIONS[kind])
        found = checkpoint.find(tmp_path / str(cut), "d", pytest.fail)
        assert found is not None
        found.apply(again.adapter, again.optimizer, again.scaler)
        again.step = found.step
        assert all(torch.equal(middle[cut][part], value) for part, value in weights(again).items())
        assert run(model, again, 8 - cut) == losses[cut:]
        assert all(torch.equal(weights(whole)[part], value) for part, value in weights(again).items())
        assert all(torch.equal(whole.adapter.mean[part], value) for part, value in again.adapter.mean.items())


def test_the_running_mean_is_diffusers_and_training_does_not_see_it(model: Model, lane: Make) -> None:
    one, calm = lane(steps=12, ema_decay=0.5), lane(steps=12)
    shadow = None
    for _ in range(12):
        run(model, one, 1)
        run(model, calm, 1)
        parameter = torch.nn.Parameter(weights(one)["unet"])
        shadow = shadow or EMAModel([parameter], decay=0.5)
        shadow.step([parameter])
        with one.adapter.averaged():
            torch.testing.assert_close(weights(one)["unet"], shadow.shadow_params[0])
        assert torch.equal(weights(one)["unet"], weights(calm)["unet"])
    assert not torch.allclose(one.adapter.mean["unet"], weights(one)["unet"])


def test_one_seed_gives_one_result_and_another_another(model: Model, lane: Make) -> None:
    first, again, other = lane(), lane(), lane(seed=8)
    assert run(model, first, 3) == run(model, again, 3) != run(model, other, 3)
    assert torch.equal(weights(first)["unet"], weights(again)["unet"])


def test_jobs_in_one_pass_get_what_they_get_alone(model: Model, lane: Make) -> None:
    """Different rank, rate, schedule, loss, seed, batch count; to rounding."""
    kinds: list[dict[str, Any]] = [
        {"seed": 1, "rank": 4},
        {"seed": 2, "rank": 2, "learning_rate": 3e-3, "min_snr_gamma": 5.0, "lr_scheduler": "cosine", "steps": 9},
        {"seed": 3, "rank": 8, "alpha": 1.0, "noise_offset": 0.1, "gradient_accumulation": 2},
    ]
    alone = [lane(**kind) for kind in kinds]
    together = [lane(**kind) for kind in kinds]
    solo = [run(model, one, 5) for one in alone]
    joint: list[list[float]] = [[], [], []]
    for _ in range(5):
        for i, stepped in enumerate(loop.step(model, together)):
            joint[i].append(stepped.loss)
    for one, other, a, b in zip(solo, joint, alone, together, strict=True):
        assert other == pytest.approx(one, rel=1e-5)
        # As a norm: Adam turns a gradient of nearly nothing into a whole step, so single weights may differ more.
        assert (weights(a)["unet"] - weights(b)["unet"]).norm() < 1e-4 * weights(a)["unet"].norm()


@pytest.mark.parametrize("name", ["Prodigy", "AdamWScheduleFree", "StableAdamW"])
def test_a_rule_with_numbers_of_its_own_keeps_them_for_each_job(name: str, model: Model, lane: Make) -> None:
    """Two jobs in one pass: the rate that each finds, the mean that each gives, are those it has alone."""
    rate = 1.0 if name == "Prodigy" else 1e-2
    kinds: list[dict[str, Any]] = [
        {"seed": 1, "optimizer": name, "learning_rate": rate},
        {"seed": 2, "optimizer": name, "learning_rate": rate / 2, "rank": 2, "noise_offset": 0.5},
    ]
    alone, together = [lane(**kind) for kind in kinds], [lane(**kind) for kind in kinds]
    solo = [run(model, one, 6) for one in alone]
    joint = list(zip(*([stepped.loss for stepped in loop.step(model, together)] for _ in range(6)), strict=True))
    for one, other, a, b in zip(solo, joint, alone, together, strict=True):
        assert list(other) == pytest.approx(one, rel=1e-4)
        own, same = a.optimizer.groups[0], b.optimizer.groups[0]
        assert own.get("d", 0.0) == pytest.approx(same.get("d", 0.0), rel=1e-3)
        with a.adapter.averaged(), b.adapter.averaged():
            assert (weights(a)["unet"] - weights(b)["unet"]).norm() < 1e-3 * weights(a)["unet"].norm()


def test_a_poisoned_job_ends_alone(model: Model, lane: Make) -> None:
    """A NaN in one lane leaves the other's weights finite and its own as they were."""
    good, bad = lane(seed=1), lane(seed=2)
    run(model, good, 1)
    run(model, bad, 1)
    before = weights(bad)["unet"]
    latents = bad.data.latents
    bad.data = loop.Data(bad.data.shapes, bad.data.repeats, lambda i, m: latents(i, m) * math.nan, bad.data.condition, bad.data.captions)
    bad.rewind()  # its next batch was drawn already
    first, second = loop.step(model, [good, bad])
    assert first.error is None
    assert math.isfinite(first.loss)
    assert weights(good)["unet"].isfinite().all()
    assert second.error is not None
    assert second.error.code == "LRY-TRAIN-NAN"
    assert "step 2" in second.error.message
    assert torch.equal(weights(bad)["unet"], before)
    assert bad.step == 1


def test_a_part_that_gets_no_gradient_is_an_error(model: Model, lane: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = lane(text_encoder_lr=1e-3)
    monkeypatch.setattr(Model, "embed", lambda self, told: {"text": torch.ones(len(told["ids.text_encoder"]), 77, 32)})
    (stepped,) = loop.step(model, [one])
    assert stepped.error is not None
    assert stepped.error.code == "LRY-TRAIN-NOGRAD"
    assert "text_encoder" in stepped.error.message


def test_fp16_overflows_halve_the_scale_and_skip_the_update(model: Model, lane: Make) -> None:
    one = lane()
    one.scaler = optimizers.LossScale(enabled=True, value=2.0**16)
    first = run(model, lane(), 1)
    before = weights(one)["unet"]
    one.scaler.value = 3e38 * 10  # inf in fp32: every gradient overflows
    (stepped,) = loop.step(model, [one])
    assert stepped.error is None
    assert torch.equal(weights(one)["unet"], before)
    assert stepped.loss == pytest.approx(first[0], rel=1e-6)
    assert one.step == 1


def test_the_loss_scale_grows_and_gives_up() -> None:
    scale = optimizers.LossScale(enabled=True)
    for _ in range(2000):
        assert scale.update(finite=True)
    assert (scale.value, scale.good) == (131072.0, 0)
    tries = 0
    while scale.update(finite=False):
        tries += 1
    assert tries < 25
    assert not optimizers.LossScale(enabled=False).update(finite=False)


def test_scaling_changes_nothing_but_rounding(model: Model, lane: Make) -> None:
    plain, scaled = lane(), lane()
    scaled.scaler = optimizers.LossScale(enabled=True, value=1024.0)
    assert run(model, plain, 3) == pytest.approx(run(model, scaled, 3), rel=1e-6)


def test_gradient_checkpointing_changes_no_number(model: Model, lane: Make) -> None:
    plain = run(model, lane(text_encoder_lr=1e-3), 3)
    assert run(model, lane(text_encoder_lr=1e-3, gradient_checkpointing=True), 3) == pytest.approx(plain, rel=1e-5)


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(world: Path, lane: Make) -> None:
    from trainer.base import inspect_base

    half = families.load(Foundation(family="sd15", base=inspect_base("base", world), dtype=torch.bfloat16), CPU)
    one = lane()
    half.prepare([t for lay in one.adapter.layouts.values() for t in lay.targets], checkpointing=False)
    losses = run(half, one, 3)
    assert one.adapter.flat["unet"].dtype == torch.float32
    assert half.parts["unet"].conv_in.weight.dtype == torch.bfloat16
    assert all(math.isfinite(loss) for loss in losses)


def test_draws_have_addresses() -> None:
    a = torch.randn(3, generator=streams.generator(1, "noise", 5, 0))
    b = torch.randn(3, generator=streams.generator(1, "noise", 5, 0))
    others = [torch.randn(3, generator=streams.generator(*k)) for k in ((2, "noise", 5, 0), (1, "timestep", 5, 0), (1, "noise", 0, 5))]
    assert torch.equal(a, b)
    assert not any(torch.equal(a, other) for other in others)


def test_lion_is_its_papers_algorithm() -> None:
    """Two steps by hand: sign of 0.9 m + 0.1 g, then m = 0.99 m + 0.01 g; decay by lr times weight decay before."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    lion = rules.Lion([{"params": [weight], "vector": "unet"}], lr=0.1, weight_decay=0.5)
    weight.grad = torch.tensor([3.0, -1.0])
    lion.step()
    assert weight.tolist() == pytest.approx([1.0 * 0.95 - 0.1, -2.0 * 0.95 + 0.1])
    assert lion.state[weight]["momentum"].tolist() == pytest.approx([0.03, -0.01])
    weight.grad = torch.tensor([-0.5, -1.0])  # 0.9 * 0.03 - 0.1 * 0.5 < 0, though 0.99 * 0.03 - 0.01 * 0.5 > 0
    lion.step()
    assert weight.tolist() == pytest.approx([0.85 * 0.95 + 0.1, -1.8 * 0.95 + 0.1])


def test_lion_in_8_bits_follows_lion(model: Model, lane: Make) -> None:
    """Its updates are signs: the losses agree, single weights need not."""
    plain = run(model, lane(optimizer="Lion", learning_rate=1e-3), 6)
    assert run(model, lane(optimizer="Lion8bit", learning_rate=1e-3), 6) == pytest.approx(plain, rel=2e-2)


def test_input_perturbation_changes_the_input_and_not_the_target(model: Model, lane: Make) -> None:
    calm, shaken = lane(), lane(ip_noise_gamma=0.5)
    a, b = calm.coming(model), shaken.coming(model)
    assert torch.equal(a.noise, b.noise)
    assert not a.disturbance.any()
    noisy, wanted = model.process.corrupt(b.latents, b.noise, b.timesteps, b.disturbance)
    expected = DDPMScheduler.from_config(model.parts["scheduler"].config).add_noise(b.latents, b.noise + b.disturbance, b.timesteps)
    torch.testing.assert_close(noisy, expected)
    assert torch.equal(wanted, b.noise)
    assert b.disturbance.std() == pytest.approx(0.5, rel=0.2)


def test_held_out_loss_is_the_plain_error_of_the_adapted_model(model: Model, lane: Make) -> None:
    """Against diffusers' scheduler and a loop; asking twice gives the same, and changes nothing of the training."""
    one, calm = lane(steps=4), lane(steps=4)
    run(model, one, 2)
    before = weights(one)["unet"]
    held = loop.Data(one.data.shapes[:2], [1, 1], one.data.latents, one.data.condition, one.data.captions[:2])
    found = loop.evaluate(model, one.adapter, held)
    assert loop.evaluate(model, one.adapter, held) == found
    scheduler, errors = DDPMScheduler.from_config(model.parts["scheduler"].config), []
    for index in range(2):
        for look, t in enumerate((125, 375, 625, 875)):
            latent = held.latents(index, loop.AS_IT_IS)[None]
            noise = torch.randn(latent.shape[1:], generator=streams.generator(0, "heldout", index, look))[None]
            with torch.no_grad(), model.bank.use([one.adapter], torch.float32):
                at = torch.tensor([t])
                words = held.condition(held.captions[index][0])["text"][None]
                answer = model.parts["unet"](scheduler.add_noise(latent, noise, at), at, words).sample
            errors.append(float(F.mse_loss(answer, noise)))
    assert found == pytest.approx([sum(errors[band::4]) / 2 for band in range(4)], rel=1e-5)
    assert torch.equal(weights(one)["unet"], before)
    run(model, calm, 2)
    assert run(model, one, 2) == run(model, calm, 2)
