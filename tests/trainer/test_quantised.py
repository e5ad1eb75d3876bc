"""A base in fewer bits: near the whole one, learnt upon as well, and the same after a restart."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from trainer import quantised, train
from trainer.families import model as model_file
from trainer.families.model import Model
from trainer.jobs import Place
from trainer.protocol import AnyEvent, JobSpec, Step
from trainer.quantised import STORAGES, QuantisedLinear, quantise
from trainer.together import run_jobs

CPU = torch.device("cpu")
ERROR = {"fp8": 0.04, "int8": 0.01, "nf4": 0.12}
"""How far a random matrix may be from itself, over its size: near what each number of bits can tell of a normal distribution."""
Spec = Callable[..., dict[str, Any]]


# --- a matrix --------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(STORAGES)),
    st.tuples(st.integers(1, 40), st.integers(1, 90)),
    st.integers(0, 2**31),
    st.sampled_from([1e-6, 0.02, 1.0, 300.0]),
)
def test_a_matrix_comes_back_as_nearly_as_its_bits_allow(storage: str, shape: tuple[int, int], seed: int, size: float) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size
    pack, unpack = STORAGES[storage].pack, STORAGES[storage].unpack
    again = unpack(*pack(matrix), matrix.shape, torch.float32)
    assert again.shape == matrix.shape
    top = matrix.abs().amax()
    assert float((again - matrix).abs().max()) <= float(top) * {"fp8": 0.07, "int8": 0.005, "nf4": 0.16}[storage]
    assert torch.equal(unpack(*pack(torch.zeros(shape)), matrix.shape, torch.float32), torch.zeros(shape))


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_a_large_matrix_takes_its_bits_and_errs_little(storage: str) -> None:
    matrix = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    packed, scales = STORAGES[storage].pack(matrix)
    bits = 8 * (packed.numel() * packed.element_size() + scales.numel() * scales.element_size()) / matrix.numel()
    assert bits == pytest.approx(STORAGES[storage].bits, abs=0.1)
    again = STORAGES[storage].unpack(packed, scales, matrix.shape, torch.float32)
    assert float((again - matrix).norm() / matrix.norm()) < ERROR[storage]


def test_nf4_is_laid_out_as_bitsandbytes_has_it() -> None:
    """So that its kernel can unpack on a GPU what was packed here: bytes, scales and values agree."""
    functional = pytest.importorskip("bitsandbytes").functional
    matrix = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    packed, scales = STORAGES["nf4"].pack(matrix)
    theirs, state = functional.quantize_4bit(matrix, blocksize=quantised.BLOCK, quant_type="nf4")
    assert torch.equal(theirs.flatten(), packed)
    assert torch.equal(state.absmax, scales)
    for dtype in (torch.float32, torch.bfloat16):
        ours = STORAGES["nf4"].unpack(packed, scales, matrix.shape, dtype)
        torch.testing.assert_close(quantised._unpack_nf4_by_kernel(packed, scales, matrix.shape, dtype), ours, rtol=1e-2, atol=1e-6)


# --- a layer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", sorted(STORAGES))
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_answers_and_passes_gradients_on_as_one_with_the_unpacked_weight(storage: str, bias: bool) -> None:
    layer = nn.Linear(48, 40, bias=bias).requires_grad_(False)
    held = nn.Sequential(layer)
    quantise(held, storage, CPU)
    assert held[0] is layer
    plain = nn.Linear(48, 40, bias=bias)
    plain.weight.data = layer.weight.clone()
    if bias:
        plain.bias.data = layer.bias.clone()
    x = torch.randn(3, 5, 48, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    push = torch.randn(3, 5, 40)
    torch.testing.assert_close(layer(x), plain(y))
    layer(x).backward(push)
    plain(y).backward(push)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)


def test_nothing_whole_is_kept_for_the_way_back() -> None:
    layer = nn.Linear(64, 64).requires_grad_(False)
    quantise(layer, "int8", CPU)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(2, 64, requires_grad=True))
    assert kept
    assert all(t.dtype == torch.uint8 or t.numel() == 64 for t in kept)


def test_a_cast_changes_what_is_unpacked_and_not_what_is_kept() -> None:
    layer = nn.Linear(64, 64)
    quantise(layer, "fp8", CPU)
    packed, scales = layer.packed.clone(), layer.scales.clone()
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.packed, packed)
    assert torch.equal(layer.scales, scales)


def test_small_layers_stay_whole_and_stored_ones_can_be_stored_smaller() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(64, 64))
    quantise(model, "int8", CPU)
    assert type(model[0]) is nn.Linear
    at_first = model[1].weight.clone()
    quantise(model, "nf4", CPU)
    expected = STORAGES["nf4"].unpack(*STORAGES["nf4"].pack(at_first), at_first.shape, torch.float32)
    assert torch.equal(model[1].weight, expected)


# --- a training ------------------------------------------------------------------------------------


def run(root: Path, job: dict[str, Any], stop_after: int | None = None) -> list[AnyEvent]:
    events: list[AnyEvent] = []
    train(
        root=root,
        on_event=events.append,
        stopping=lambda: stop_after is not None and sum(isinstance(e, Step) for e in events) >= stop_after,
        **job,
    )
    return events


def losses(events: list[AnyEvent]) -> list[float]:
    return [e.loss for e in events if isinstance(e, Step)]


@pytest.mark.parametrize("storage", [pytest.param("fp8", marks=pytest.mark.slow), pytest.param("int8", marks=pytest.mark.slow), "nf4"])
def test_a_training_on_a_smaller_base_learns_nearly_the_same_and_resumes_to_the_bit(storage: str, root: Path, spec: Spec) -> None:
    options = {"steps": 6, "batch_size": 2, "save_every_steps": 3}
    full = losses(run(root, spec(**options, name="full", output="jobs/full/out")))
    stored = losses(run(root, spec(**options, name="whole", output="jobs/whole/out", base_precision=storage)))
    assert stored == pytest.approx(full, rel=0.1)
    assert stored != full
    run(root, spec(**options, base_precision=storage), stop_after=4)
    assert run(root, spec(**options, base_precision=storage))[-1].state == "done"
    whole, again = (load_file(root / f"jobs/{name}/out/{name}.safetensors") for name in ("whole", "lisa"))
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    assert any(value.any() for key, value in whole.items() if "lora_up" in key)


def test_jobs_share_passes_on_a_smaller_base_and_get_what_they_get_alone(root: Path, spec: Spec) -> None:
    specs = [
        JobSpec(**spec(name=name, output=f"jobs/{name}/out", seed=seed, steps=4, base_precision="nf4", rank=rank, optimizer="SGD"))
        for seed, (name, rank) in enumerate([("a", 4), ("b", 2)])
    ]
    results = run_jobs(specs, Place(root, lambda _: None))
    assert [one.state for one in results] == ["done", "done"]
    for one in specs:
        shutil.move(root / f"jobs/{one.name}", root / f"jobs/{one.name}-together")
    run_jobs(specs, Place(root, lambda _: None), together=False)
    for one in specs:
        alone, together = (load_file(root / f"jobs/{one.name}{where}/out/{one.name}.safetensors") for where in ("", "-together"))
        for key, value in alone.items():
            torch.testing.assert_close(together[key], value, rtol=1e-4, atol=1e-6)


def test_a_lora_is_merged_before_the_base_is_stored(root: Path, spec: Spec) -> None:
    """What is stored is the sum: nothing is added to weights that were already rounded."""
    run(root, spec(steps=3, learning_rate=0.1))
    shutil.copy(root / "jobs/lisa/out/lisa.safetensors", root / "first.safetensors")
    seen: dict[str, torch.Tensor] = {}
    for storage in ("full", "int8"):
        place = Place(root, lambda _: None)
        job = JobSpec(**spec(name="next", output=f"jobs/{storage}/out", steps=1, merge_lora="first.safetensors", base_precision=storage))
        run_jobs([job], place)
        name, layer = next(
            (n, m)
            for n, m in place._model.parts["unet"].named_modules()
            if n.endswith("attn1.to_q") and m.weight.numel() >= quantised.LEAST
        )
        assert isinstance(layer, QuantisedLinear) == (storage == "int8"), name
        seen[storage] = layer.weight.detach().clone()
    expected = STORAGES["int8"].unpack(*STORAGES["int8"].pack(seen["full"]), seen["full"].shape, torch.float32)
    assert torch.equal(seen["int8"], expected)


def test_large_text_encoders_are_stored_as_they_are_told_and_their_embeddings_kept_apart(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import families
    from trainer.base import inspect_base
    from trainer.contract import Foundation

    monkeypatch.setattr(model_file, "LARGE_ENCODER", 1000)

    def load(**changes: Any) -> Model:
        found: Model = families.load(Foundation(family="sd15", base=inspect_base("base", world), dtype=torch.float32, **changes), CPU)
        return found

    plain, stored = load(), load(encoder_precision="int8")
    assert any(isinstance(m, QuantisedLinear) for m in stored.parts["text_encoder"].modules())
    assert not any(isinstance(m, QuantisedLinear) for m in stored.parts["unet"].modules())
    assert plain.text_address(["text_encoder"]) != stored.text_address(["text_encoder"])
    job = JobSpec(name="a", family="sd15", base="base", dataset="data", output="out")
    whole, near = (one.encode_text("a photo of dog", job)["text"] for one in (plain, stored))
    assert 0 < float((whole - near).norm() / whole.norm()) < 0.1
