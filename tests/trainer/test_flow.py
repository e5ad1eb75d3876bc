"""Flow matching's formulas against diffusers' scheduler and training helpers, and against values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from hypothesis import given
from hypothesis import strategies as st

from trainer import flow
from trainer.families.flow import Flow
from trainer.protocol import TrainingOptions

SHAPE = (16, 64, 64)
LEVELS = torch.tensor([0.001, 0.25, 0.5, 0.9, 1.0])


def drawn(process: Flow, shape: tuple[int, ...] = SHAPE, count: int = 4000, **options: object) -> torch.Tensor:
    said = TrainingOptions(**options)
    return torch.stack([process.draw_timestep(said, shape, torch.Generator().manual_seed(i)) for i in range(count)])


def test_mixtures_are_the_schedulers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    latents, noise = torch.randn(3, 16, 4, 6), torch.randn(3, 16, 4, 6)
    timesteps = scheduler.timesteps[[0, 400, 999]]
    noisy, wanted = Flow().corrupt(latents, noise, timesteps / 1000)
    torch.testing.assert_close(noisy, scheduler.scale_noise(latents, timesteps, noise), rtol=1e-5, atol=1e-5)
    scheduler.set_timesteps(sigmas=[0.75])
    stepped = scheduler.step(wanted, scheduler.timesteps[0], Flow().corrupt(latents, noise, torch.full((3,), 0.75))[0]).prev_sample
    torch.testing.assert_close(stepped, latents, rtol=1e-5, atol=1e-5, msg="one step by the velocity leads to the picture")


def test_levels_are_drawn_as_diffusers_draws_them() -> None:
    """The same density: moments of many draws. diffusers counts from the noisy end, which is the same for densities that are even."""
    torch.manual_seed(0)
    for name, scheme in (("logit_normal", "logit_normal"), ("mode", "mode"), ("uniform", "none")):
        ours = drawn(Flow(), timestep_sampling=name)
        theirs = compute_density_for_timestep_sampling(scheme, 200_000, 0.0, 1.0, 1.29)
        for power in (1, 2, 3):
            assert float((ours**power).mean()) == pytest.approx(float((theirs**power).mean()), abs=0.015)


def test_mode_is_the_papers_function() -> None:
    u = torch.linspace(0, 1, 11)
    torch.testing.assert_close(flow.mode(u, 0.0), 1 - u)
    torch.testing.assert_close(flow.mode(u, 1.29), 1 - u - 1.29 * (torch.cos(math.pi * u / 2) ** 2 - 1 + u))


def test_sigmoid_is_kohyas_and_a_mean_above_0_is_noisier() -> None:
    torch.testing.assert_close(drawn(Flow(), count=50, timestep_sampling="sigmoid"), drawn(Flow(), count=50))
    assert float(drawn(Flow(), logit_mean=1.0).mean()) > 0.65
    assert float(drawn(Flow(), timestep_sampling="sigmoid", logit_std=0.1).std()) < 0.05


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_the_shift_is_the_schedulers(shift: float) -> None:
    plain, moved = FlowMatchEulerDiscreteScheduler().sigmas, FlowMatchEulerDiscreteScheduler(shift=shift).sigmas
    torch.testing.assert_close(flow.shifted(plain, shift), moved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 6000])
def test_the_shift_by_resolution_is_fluxs(tokens: int) -> None:
    mu = calculate_shift(tokens)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs = torch.as_tensor(scheduler.time_shift(mu, 1.0, LEVELS))
    shift = flow.resolution_shift(tokens, (256, 0.5), (4096, 1.15))
    torch.testing.assert_close(flow.shifted(LEVELS, shift), theirs, rtol=1e-5, atol=1e-6)


def test_whose_shift_counts() -> None:
    """The user's number over the size, the size over the base's number, the base's way where nothing is said."""
    fixed, sized = Flow(shift=3.0), Flow(by_resolution=True)
    by_size = math.exp(calculate_shift(32 * 32))
    for process, options, wanted in [
        (fixed, {}, 3.0),
        (fixed, {"flow_shift": 2.0}, 2.0),
        (fixed, {"resolution_shift": True}, by_size),
        (sized, {}, by_size),
        (sized, {"flow_shift": 2.0}, 2.0),
        (sized, {"resolution_shift": False}, 1.0),
    ]:
        assert process.shift_of(TrainingOptions(**options), SHAPE) == pytest.approx(wanted)


def test_weights_are_diffusers() -> None:
    for name in ("sigma_sqrt", "cosmap"):
        ours = Flow().weigh(LEVELS, TrainingOptions(flow_weighting=name))
        assert ours is not None
        torch.testing.assert_close(ours, compute_loss_weighting_for_sd3(name, LEVELS), rtol=1e-5, atol=1e-6)
    assert Flow().weigh(LEVELS, TrainingOptions()) is None


def test_both_loss_spaces_are_the_examples() -> None:
    """x0 as diffusers' SD3 script preconditions it: answer times minus sigma, plus the noisy latents, against the clean ones."""
    latents, noise, answer = (torch.randn(5, 16, 4, 4) for _ in range(3))
    noisy, wanted = Flow().corrupt(latents, noise, LEVELS)
    at = LEVELS.view(-1, 1, 1, 1)
    clean = ((answer * -at + noisy) - latents).square().mean((1, 2, 3))
    torch.testing.assert_close(Flow().distances(answer, wanted, LEVELS, TrainingOptions(loss_space="x0")), clean, rtol=1e-4, atol=1e-5)
    plain = (answer - (noise - latents)).square().mean((1, 2, 3))
    torch.testing.assert_close(Flow().distances(answer, wanted, LEVELS, TrainingOptions()), plain)


def test_the_huber_threshold_falls_from_1_to_c() -> None:
    for schedule in ("exponential", "snr"):
        found = flow.huber_threshold(torch.tensor([0.0, 0.3, 0.7, 1.0]), 0.1, schedule)
        assert [float(found[0]), float(found[-1])] == pytest.approx([1.0, 0.1])
        assert bool((found.diff() < 0).all())
    assert flow.huber_threshold(LEVELS, 0.1, "constant").tolist() == pytest.approx([0.1] * 5)
    ratio = (1 - 0.3) / 0.3
    assert float(flow.huber_threshold(torch.tensor([0.3]), 0.1, "snr")) == pytest.approx(0.9 / (1 + 1 / ratio) ** 2 + 0.1)


@given(
    st.sampled_from(["uniform", "mode", "logit_normal", "sigmoid"]),
    st.floats(0.05, 50),
    st.integers(0, 10_000),
    st.floats(-10, 10),
    st.floats(0.01, 10),
)
def test_a_level_is_always_between_picture_and_noise(name: str, shift: float, seed: int, mean: float, std: float) -> None:
    options = TrainingOptions(timestep_sampling=name, flow_shift=shift, logit_mean=mean, logit_std=std)
    level = Flow().draw_timestep(options, SHAPE, torch.Generator().manual_seed(seed))
    assert level.shape == ()
    assert flow.LEAST <= float(level) <= 1.0


def test_levels_for_measuring_are_one_in_each_band() -> None:
    assert Flow(shift=3.0).spread_timesteps(4, SHAPE).tolist() == [0.125, 0.375, 0.625, 0.875]
