"""Learning rates: those of diffusers and transformers, and formulas worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.optimization import get_piecewise_constant_schedule, get_scheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import optimization as theirs

from trainer.protocol import LR_SCHEDULERS, TrainingOptions
from trainer.schedules import factor, warmup_steps


def rates(make: Callable[[torch.optim.Optimizer], Any], total: int) -> list[float]:
    """What a scheduler of theirs gives, step by step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(total):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def ours(total: int, **changes: Any) -> list[float]:
    options = TrainingOptions(steps=total, **changes)
    return [factor(options, step, total) for step in range(total)]


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]),
    warmup=st.integers(0, 12),
    cycles=st.integers(1, 4),
    power=st.sampled_from([0.5, 1.0, 2.0]),
    total=st.integers(13, 60),
)
def test_rates_are_diffusers(kind: str, warmup: int, cycles: int, power: float, total: int) -> None:
    told = {"num_warmup_steps": warmup, "num_training_steps": total, "num_cycles": cycles, "power": power}
    wanted = rates(lambda o: get_scheduler(kind, o, **told), total)
    end = 1e-7 if kind == "polynomial" else 0.0  # theirs stops there
    found = ours(total, lr_scheduler=kind, lr_warmup_steps=warmup, lr_restarts=cycles, lr_power=power, lr_min=end)
    assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("warmup", [0, 7])
def test_inverse_square_root_is_transformers(warmup: int) -> None:
    wanted = rates(lambda o: theirs.get_inverse_sqrt_schedule(o, warmup), 40)
    assert ours(40, lr_scheduler="inverse_sqrt", lr_warmup_steps=warmup) == pytest.approx(wanted, abs=1e-5)


def test_a_rate_stops_falling_at_its_least_share_as_in_transformers() -> None:
    wanted = rates(lambda o: theirs.get_cosine_with_min_lr_schedule_with_warmup(o, 5, 40, min_lr_rate=0.1), 40)
    assert ours(40, lr_scheduler="cosine", lr_warmup_steps=5, lr_min=0.1) == pytest.approx(wanted, abs=1e-5)


def test_warmup_stable_decay_is_transformers() -> None:
    """45 steps after a warm-up of 5, of which the last 9 fall."""
    wanted = rates(lambda o: theirs.get_wsd_schedule(o, 5, 9, 50, decay_type="linear", min_lr_ratio=0.2), 50)
    found = ours(50, lr_scheduler="warmup_stable_decay", lr_warmup_steps=5, lr_decay_share=0.2, lr_min=0.2)
    assert found[5:] == pytest.approx(wanted[5:], abs=1e-5)  # theirs begins its warm-up at the least share


@pytest.mark.parametrize("rules", ["1:10,0.1:20,0.01", "0.5", "1:1,0.3:30,0:35,2"])
def test_piecewise_rates_are_diffusers(rules: str) -> None:
    wanted = rates(lambda o: get_piecewise_constant_schedule(o, rules), 40)
    assert ours(40, lr_scheduler="piecewise_constant", lr_step_rules=rules) == pytest.approx(wanted, abs=1e-5)


def test_rex_is_its_papers_formula() -> None:
    """Chen et al. 2021, equation 2, by hand: after a third of the way (2/3) / (1/2 + 1/3) = 0.8, halfway 0.5 / 0.75."""
    found = ours(60, lr_scheduler="rex")
    assert [found[0], found[20], found[30], found[45]] == pytest.approx([1.0, 0.8, 2 / 3, 0.25 / 0.625], abs=1e-9)


def test_a_share_below_one_is_a_warm_up_by_the_length_of_the_run() -> None:
    assert ours(200, lr_scheduler="cosine", lr_warmup_steps=0.05) == ours(200, lr_scheduler="cosine", lr_warmup_steps=10)
    assert warmup_steps(TrainingOptions(lr_warmup_steps=0.25), 10) == 2
    assert warmup_steps(TrainingOptions(lr_warmup_steps=1), 10) == 1


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(LR_SCHEDULERS), st.integers(0, 9), st.floats(0, 1), st.integers(10, 80))
def test_a_factor_is_between_nothing_and_all_and_rises_in_the_warm_up_alone(kind: str, warmup: int, least: float, total: int) -> None:
    told = {"lr_step_rules": "1:20,0.5"} if kind == "piecewise_constant" else {}
    found = ours(total, lr_scheduler=kind, lr_warmup_steps=warmup, lr_min=least, **told)
    assert all(0.0 <= one <= 1.0 and math.isfinite(one) for one in found)
    assert found[:warmup] == sorted(found[:warmup])
    if kind != "cosine_with_restarts":
        assert found[warmup:] == sorted(found[warmup:], reverse=True)
