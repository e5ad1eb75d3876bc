"""Formulas against diffusers' schedulers and optimization module."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_polynomial_decay_schedule_with_warmup, get_scheduler
from diffusers.training_utils import compute_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import objective as o
from trainer import schedules
from trainer.protocol import TrainingOptions

ABAR = o.alphas_cumprod(o.scaled_linear_betas())
SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.fixture
def draws() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(6, 4, 8, 8, generator=g), torch.randn(6, 4, 8, 8, generator=g), torch.tensor([0, 1, 10, 500, 998, 999])


def test_the_noise_curve_is_diffusers() -> None:
    torch.testing.assert_close(ABAR, SCHEDULER.alphas_cumprod, rtol=1e-6, atol=1e-7)
    linear = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear").alphas_cumprod
    torch.testing.assert_close(o.alphas_cumprod(o.linear_betas(1e-4, 0.02, 1000)), linear, rtol=1e-6, atol=1e-7)


def test_noisy_latents_and_targets_are_diffusers(draws: tuple[torch.Tensor, ...]) -> None:
    latents, noise, t = draws
    torch.testing.assert_close(o.add_noise(latents, noise, ABAR, t), SCHEDULER.add_noise(latents, noise, t), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(o.target(latents, noise, ABAR, t, "v"), SCHEDULER.get_velocity(latents, noise, t), rtol=1e-6, atol=1e-6)
    assert o.target(latents, noise, ABAR, t, "epsilon") is noise


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_those_of_the_diffusers_example(gamma: float, draws: tuple[torch.Tensor, ...]) -> None:
    t = draws[2]
    snr = compute_snr(SCHEDULER, t)
    capped = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    torch.testing.assert_close(o.min_snr_weight(ABAR, t, gamma, "epsilon"), capped / snr, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(o.min_snr_weight(ABAR, t, gamma, "v"), capped / (snr + 1), rtol=1e-5, atol=1e-6)


def test_a_curve_with_zero_terminal_snr_is_diffusers_and_its_weights_are_finite() -> None:
    """Where no signal is left the ratio is 0: v's weights are 0 and 1, epsilon's min-SNR weight is 1."""
    zero = o.with_zero_terminal_snr(ABAR)
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    torch.testing.assert_close(zero, theirs.alphas_cumprod, rtol=1e-5, atol=1e-6)
    assert float(zero[-1]) == 0.0
    assert float(zero[0]) == pytest.approx(float(ABAR[0]))
    last = torch.tensor([999])
    assert [float(o.min_snr_weight(zero, last, 5.0, kind)) for kind in ("v", "epsilon")] == [0.0, 1.0]
    assert float(o.debiased_weight(zero, last, "v")) == 1.0
    for schedule in ("constant", "exponential", "snr"):
        assert bool(o.huber_threshold(zero, last, 0.1, schedule).isfinite().all())


def test_offset_noise_shifts_whole_channels(draws: tuple[torch.Tensor, ...]) -> None:
    noise = draws[1]
    shift = torch.randn(6, 4, 1, 1)
    difference = o.offset_noise(noise, shift, 0.1) - noise
    torch.testing.assert_close(difference, (0.1 * shift).expand_as(noise), rtol=0, atol=1e-6)


def test_the_loss_is_a_mean_over_each_sample(draws: tuple[torch.Tensor, ...]) -> None:
    latents, noise, _ = draws
    expected = torch.stack([torch.nn.functional.mse_loss(a, b) for a, b in zip(latents, noise, strict=True)])
    torch.testing.assert_close(o.per_sample_loss(latents, noise), expected)


def test_debiased_weights_are_kohyas_numbers(draws: tuple[torch.Tensor, ...]) -> None:
    """1 / sqrt(snr) with snr cut at 1000; at t = 0 the cut holds."""
    snr = compute_snr(SCHEDULER, draws[2])
    assert float(snr[0]) > 1000
    torch.testing.assert_close(o.debiased_weight(ABAR, draws[2], "epsilon"), 1 / snr.clamp(max=1000).sqrt(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(o.debiased_weight(ABAR, draws[2], "v"), 1 / (snr.clamp(max=1000) + 1), rtol=1e-5, atol=1e-7)


def test_huber_losses_by_hand() -> None:
    """One value: difference 3, threshold 4: sqrt(9 + 16) - 4 = 1, so 2 * 4 * 1 and 2 * 1; far out both grow like the absolute value."""
    zero, three, c = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 3.0), torch.tensor([4.0])
    values = {kind: float(o.per_sample_loss(three, zero, kind, c)) for kind in ("l2", "l1", "huber", "smooth_l1")}
    assert values == {"l2": 9.0, "l1": 3.0, "huber": 8.0, "smooth_l1": 2.0}
    assert float(o.per_sample_loss(three / 100, zero, "huber", c)) == pytest.approx(float((three / 100).square()), rel=1e-2)


def test_huber_thresholds_follow_their_schedules() -> None:
    """Constant: c. Exponential: 1 at t = 0, c at the end of the curve. By snr: near 1 at the start, c where only noise is left."""
    t = torch.tensor([0, 500, 999])
    assert o.huber_threshold(ABAR, t, 0.1, "constant").tolist() == pytest.approx([0.1] * 3)
    assert o.huber_threshold(ABAR, t, 0.1, "exponential").tolist() == pytest.approx([1.0, 0.1**0.5, 0.1**0.999])
    sigma = ((1 - SCHEDULER.alphas_cumprod[t]) / SCHEDULER.alphas_cumprod[t]).sqrt()
    expected = (1 - 0.1) / (1 + sigma) ** 2 + 0.1
    torch.testing.assert_close(o.huber_threshold(ABAR, t, 0.1, "snr"), expected, rtol=1e-5, atol=1e-6)


def test_multires_noise_adds_coarser_noise_and_keeps_its_strength(draws: tuple[torch.Tensor, ...]) -> None:
    noise = draws[1][0]
    assert o.coarser_sizes((8, 12), [2.0, 2.0, 3.0, 4.0]) == [(8, 12), (4, 6), (1, 1)]
    flat = torch.full((4, 1, 1), 2.0)
    one = o.multires_noise(noise, [flat, flat], 0.5)
    expected = noise + 2.0 + 1.0  # a single value spreads over all of the picture; the second counts half
    torch.testing.assert_close(one, expected / expected.std())


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["constant", "cosine", "cosine_with_restarts", "linear"]), st.integers(0, 12), st.integers(1, 4), st.integers(13, 60)
)
def test_learning_rates_are_diffusers(kind: str, warmup: int, cycles: int, total: int) -> None:
    options = TrainingOptions(lr_scheduler=kind, lr_warmup_steps=warmup, lr_restarts=cycles, steps=total)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total, num_cycles=cycles)
    for step in range(total):
        assert schedules.factor(options, step, total) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_polynomial_rates_are_diffusers_that_end_at_nothing(power: float) -> None:
    options = TrainingOptions(lr_scheduler="polynomial", lr_warmup_steps=3, lr_power=power, steps=20)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_polynomial_decay_schedule_with_warmup(optimizer, 3, 20, lr_end=0.0, power=power)
    for step in range(20):
        assert schedules.factor(options, step, 20) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()
