"""LoHa, LoKr and DoRA: peft computes the same from the same weights, and files hold what other programs read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests import tiny
from tests.trainer import test_families as unets
from tests.trainer import test_flow_families as flows
from tests.trainer.test_selection import settle
from trainer import changes, export, keeping, start
from trainer.adapters import Adapter, Bank, Drop, find_targets
from trainer.errors import IntegrityError
from trainer.families.model import Model
from trainer.jobs import Place, prepare
from trainer.methods import LORA, Method, factors
from trainer.protocol import JobSpec, TrainingOptions
from trainer.targets import Slot
from trainer.together import run_job, run_jobs

CPU = torch.device("cpu")
RANK, ALPHA = 2, 3.0

METHODS: dict[str, Method] = {
    "dora": Method(dora=True),
    "loha": Method(name="loha"),
    "lokr": Method(name="lokr"),
    "lokr of four": Method(name="lokr", factor=2, both=True),
    "lokr, whole": Method(name="lokr", factor=2, whole=True),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "loha": {},
    "lokr": {},
    "lokr of four": {"decompose_factor": 2, "decompose_both": True},
    "lokr, whole": {"decompose_factor": 2},
}


class Layers(nn.Module):
    """A linear layer, a 1x1 convolution, and a 3x3 one with a stride; wide enough to be divided."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(16, 24)
        self.conv = nn.Conv2d(16, 64, 1)
        self.wide = nn.Conv2d(64, 12, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return self.lin(x).square().sum((1, 2)) + self.wide(self.conv(image)).square().sum((1, 2, 3))


def base() -> Layers:
    torch.manual_seed(0)
    return Layers().requires_grad_(requires_grad=False)


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(rows, 7, 16, generator=g), torch.randn(rows, 16, 8, 6, generator=g)


def adapter_of(method: Method, model: Layers, seed: int = 1, alpha: float = ALPHA) -> Adapter:
    """Weights everywhere."""
    targets = find_targets("unet", model, (), wide=True)
    scales = [alpha / RANK if method.scaled(t.fan_in, t.fan_out, RANK) else 1.0 for t in targets]
    slots = [Slot(target, RANK, scale, method=method) for target, scale in zip(targets, scales, strict=True)]
    adapter = Adapter.of(slots, seed, CPU, base={"unet": model})
    g = torch.Generator().manual_seed(seed)
    for slot, values in adapter.values("unet"):
        last = slot.method.last(slot.pieces)
        values[last].copy_(torch.randn(values[last].shape, generator=g) * 0.3)
        if slot.method.dora:
            values[-1].mul_(1.0 + 0.2 * torch.rand(values[-1].shape, generator=g))
    return adapter


def theirs(name: str, model: Layers, adapter: Adapter) -> tuple[Any, dict[str, torch.Tensor]]:
    """peft's own model with our weights, and its parameters by ours."""
    told = {"r": RANK, "target_modules": ["lin", "conv", "wide"]}
    if name == "dora":
        config: Any = peft.LoraConfig(**told, lora_alpha=ALPHA, **CONFIGS[name])
    elif name == "loha":
        config = peft.LoHaConfig(**told, alpha=ALPHA)
    elif METHODS[name].whole:
        config = peft.LoKrConfig(**{**told, "r": 64}, alpha=64, **CONFIGS[name])  # a rank from which everything is whole
    else:
        config = peft.LoKrConfig(**told, alpha=ALPHA, **CONFIGS[name])
    wrapped = peft.get_peft_model(copy.deepcopy(model), config).eval()  # type: ignore[arg-type]
    parameters, ours = dict(wrapped.named_parameters()), {}
    spelt = {"lora_down.weight": "lora_A.default.weight", "lora_up.weight": "lora_B.default.weight"}
    spelt |= {"dora_scale": "lora_magnitude_vector.default.weight"}
    for slot, values in adapter.values("unet"):
        for piece, value in zip(slot.pieces, values, strict=True):
            own = parameters[f"base_model.model.{slot.target.name}.{spelt.get(piece.name, f'{piece.name}.default')}"]
            own.data = value.reshape(own.shape).clone()
            ours[f"{slot.target.name}.{piece.name}"] = own
    assert len(ours) == sum(parameter.requires_grad for parameter in parameters.values()), "none of peft's is left as it was"
    return wrapped, ours


@pytest.mark.parametrize("name", METHODS)
def test_peft_answers_and_learns_the_same_from_the_same_weights(name: str) -> None:
    """Forward and gradients of every matrix, for linear layers and convolutions."""
    model = base()
    adapter = adapter_of(METHODS[name], model)
    wrapped, parameters = theirs(name, model, adapter)
    x, image = inputs(3)
    expected = wrapped(x, image)
    torch.autograd.backward(expected.sum())
    bank = Bank()
    bank.attach("unet", model, find_targets("unet", model, (), wide=True))
    plain = model(x, image)
    with bank.use([adapter], torch.float32):
        live = model(x, image)
        torch.autograd.backward(live.sum())
    torch.testing.assert_close(live, expected, rtol=1e-6, atol=1e-4)
    assert not torch.allclose(live, plain, rtol=1e-3)
    for slot, values in adapter.values("unet", gradient=True):
        for piece, value in zip(slot.pieces, values, strict=True):
            grad = parameters[f"{slot.target.name}.{piece.name}"].grad
            assert grad is not None
            torch.testing.assert_close(value, grad.reshape(value.shape), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["loha", "lokr", "lokr of four"])
def test_dora_goes_with_every_method(name: str) -> None:
    """The changed weights, each output's row stretched to its trained length, merged by hand."""
    method = Method(name=METHODS[name].name, dora=True, factor=METHODS[name].factor, both=METHODS[name].both)
    model = base()
    adapter = adapter_of(method, model)
    bank = Bank()
    bank.attach("unet", model, find_targets("unet", model, (), wide=True))
    x, image = inputs(2)
    with bank.use([adapter], torch.float32):
        live = model(x, image)
    merged = base()
    for slot, values in adapter.values("unet"):
        weight = merged.get_submodule(slot.target.name).weight
        changed = weight.flatten(1) + slot.scale * changes.product(slot, values)
        weight.copy_((changed * values[-1] / changed.norm(dim=1, keepdim=True)).view_as(weight))
    torch.testing.assert_close(live, merged(x, image), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", [*METHODS, "lora"])
def test_a_fresh_adapter_of_any_method_changes_nothing_and_is_told_what_to_learn(name: str) -> None:
    model = base()
    targets = find_targets("unet", model, (), wide=True)
    method = METHODS.get(name, LORA)
    adapter = Adapter.of([Slot(target, RANK, 1.0, method=method) for target in targets], 3, CPU, base={"unet": model})
    bank = Bank()
    bank.attach("unet", model, targets)
    x, image = inputs(2)
    plain = model(x, image)
    with bank.use([adapter], torch.float32):
        live = model(x, image)
        torch.autograd.backward(live.sum())
    torch.testing.assert_close(live, plain, rtol=1e-5, atol=1e-4)
    for slot, values in adapter.values("unet", gradient=True):
        assert values[slot.method.last(slot.pieces)].any(), slot.target.name
    assert adapter.count() == sum(piece.numel() for vector in adapter.flat for piece in adapter.pieces(vector))


def test_jobs_of_different_methods_share_a_pass_and_get_what_they_get_alone() -> None:
    """Answers and gradients; one of them leaves layers out."""
    model = base()
    adapters = [adapter_of(method, model, seed) for seed, method in enumerate([LORA, *METHODS.values()])]
    drops = [Drop(0.3, 0.0, 0.0, 4, (2, 0)), None, Drop(0.0, 0.0, 0.5, 5, (2, 0)), None, Drop(0.0, 0.0, 0.5, 7, (3, 0)), None]
    bank = Bank()
    bank.attach("unet", model, find_targets("unet", model, (), wide=True))
    x, image = inputs(2 * len(adapters))
    with bank.use(adapters, torch.float32, drops):
        together = model(x, image)
        torch.autograd.backward(together.sum())
    shared = [{name: flat.grad for name, flat in adapter.flat.items()} for adapter in adapters]
    for i, adapter in enumerate(adapters):
        for flat in adapter.flat.values():
            flat.grad = None
        rows = slice(2 * i, 2 * i + 2)
        with bank.use([adapter], torch.float32, [drops[i]]):
            alone = model(x[rows], image[rows])
            torch.autograd.backward(alone.sum())
        torch.testing.assert_close(together[rows], alone, rtol=1e-5, atol=1e-4)
        for name, flat in adapter.flat.items():
            torch.testing.assert_close(shared[i][name], flat.grad, rtol=1e-4, atol=1e-3)


def rebuilt(tensors: dict[str, torch.Tensor], name: str, weight: torch.Tensor) -> torch.Tensor:
    """The layer's new weight as ComfyUI makes it of a file's tensors, written down from its rules."""
    alpha = float(tensors[f"{name}.alpha"])
    own = {key.removeprefix(f"{name}."): value.float() for key, value in tensors.items() if key.startswith(f"{name}.")}
    if "lora_up.weight" in own:
        change = own["lora_up.weight"].flatten(1) @ own["lora_down.weight"].flatten(1) * alpha / len(own["lora_down.weight"])
    elif "hada_w1_a" in own:
        change = (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"]) * alpha / len(own["hada_w1_b"])
    else:
        thin = own.get("lokr_w2_b", own.get("lokr_w1_b"))
        small = own["lokr_w1"] if "lokr_w1" in own else own["lokr_w1_a"] @ own["lokr_w1_b"]
        large = own["lokr_w2"] if "lokr_w2" in own else own["lokr_w2_a"] @ own["lokr_w2_b"]
        if large.ndim == 4:
            small = small[:, :, None, None]
        change = torch.kron(small, large).flatten(1) * (1.0 if thin is None else alpha / len(thin))
    changed = weight + change.reshape(weight.shape)
    if "dora_scale" in own:
        changed = changed * (own["dora_scale"] / weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1)))
    return changed


@pytest.mark.parametrize("name", [*METHODS, "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_comfyui_makes_of_the_file_what_was_trained(name: str, dtype: torch.dtype) -> None:
    """An alpha that is not the rank, and one that half precision cannot hold."""
    model = base()
    adapter = adapter_of(METHODS.get(name, LORA), model, alpha=0.1)
    tensors = export.to_kohya(adapter, dtype, lambda part, module: f"{part}_{module}")
    close = 1e-5 if dtype == torch.float32 else 3e-3
    for slot, values in adapter.values("unet"):
        weight = model.get_submodule(slot.target.name).weight
        changed = weight.flatten(1) + slot.scale * changes.product(slot, values)
        if slot.method.dora:
            changed = changed * values[-1] / changed.norm(dim=1, keepdim=True)
        torch.testing.assert_close(rebuilt(tensors, f"unet_{slot.target.name}", weight), changed.view_as(weight), rtol=close, atol=close)


@pytest.mark.parametrize("name", ["sd15", "sd3", "zimage"])
def test_diffusers_draws_with_a_dora_under_its_own_names_what_was_trained(name: str, tmp_path: Path) -> None:
    """It leaves out the lengths that are there for ComfyUI, and takes those that are there for it."""
    base = unets if name == "sd15" else flows
    getattr(tiny, name)(tmp_path / name)
    model, pipeline = base.load(tmp_path, name), base.PIPELINES[name].from_pretrained(tmp_path / name)
    targets = model.targets([model.denoiser])
    model.prepare(targets, checkpointing=False)
    adapter = Adapter.of([Slot(target, 2, 0.75, method=Method(dora=True)) for target in targets], 1, CPU, base=model.parts)
    g = torch.Generator().manual_seed(1)
    for slot, values in adapter.values(model.denoiser):
        values[1].normal_(0, 0.3, generator=g)
        values[2].mul_(1.0 + 0.3 * torch.rand(values[2].shape, generator=g))
        assert slot.method.dora
    noisy, at = torch.randn(2, 4 if name == "sd15" else 16, 8, 12, generator=g), torch.tensor([0.3, 0.8])

    def ours() -> torch.Tensor:
        if name == "sd15":
            return model.predict(noisy, (at * 999).long(), unets.condition_of(model, "a dog", unets.SIZES, 2))
        return model.predict(noisy, at, flows.told(model, "a dog", 2))

    def theirs() -> torch.Tensor:
        if name == "sd15":
            return unets.diffusers_answer(pipeline, noisy, (at * 999).long(), "a dog", unets.SIZES)
        return flows.diffusers_answer(name, pipeline, noisy, at, "a dog", flows.DEFAULTS[name])

    with torch.no_grad():
        plain = ours()
        with model.bank.use([adapter], torch.float32):
            live = ours()
        pipeline.load_lora_weights(model.family.formats["diffusers"](adapter, torch.float32))
        torch.testing.assert_close(theirs(), live, rtol=1e-4, atol=1e-5)
    assert (live - plain).abs().max() > 1e-3


@given(size=st.integers(1, 20_000), factor=st.integers(-1, 64).filter(bool))
def test_factors_divide_and_come_smaller_first(size: int, factor: int) -> None:
    few, many = factors(size, factor)
    assert few * many == size
    assert few <= many
    from peft.tuners.lokr.layer import factorization

    assert (few, many) == tuple(sorted(factorization(size, factor)))


# --- as jobs ---------------------------------------------------------------------------------------

JOBS: dict[str, dict[str, Any]] = {
    "dora": {"dora": True},
    "loha": {"adapter": "loha", "module_dropout": 0.1},
    "lokr": {"adapter": "lokr", "conv_rank": 2, "dora": True},
}


def test_stopped_jobs_of_every_method_go_on_to_the_same_bits_in_one_pass(world: Path, spec: Any, tmp_path: Path) -> None:
    """Three jobs on one base, a LoRA among them; a life that is cut short, and one that is not, give the same files."""
    for place in ("one", "two"):
        settle(world, tmp_path / place)
    keys = [("lora", {"conv_rank": 2}), *JOBS.items()]
    specs = [JobSpec.model_validate(spec(name=name, output=f"jobs/{name}/out", steps=3, save_every_steps=1, **more)) for name, more in keys]
    whole = run_jobs(specs, Place(tmp_path / "one", lambda _: None, device=CPU))
    assert [result.state for result in whole] == ["done"] * 4, [result.message for result in whole]
    seen: list[Any] = []
    saved = lambda: any(event.kind == "committed" for event in seen)  # noqa: E731
    run_jobs(specs, Place(tmp_path / "two", seen.append, stopping=saved, device=CPU))
    again = run_jobs(specs, Place(tmp_path / "two", lambda _: None, device=CPU))
    for one, other in zip(whole, again, strict=True):
        assert one.adapter is not None
        assert other.adapter is not None
        assert one.adapter.read_bytes() == other.adapter.read_bytes(), one.name


def test_the_last_picture_is_drawn_through_the_saved_file(world: Path, spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved and what is drawn are one; a file that says something else ends the job in words, with its checkpoints good."""
    settle(world, tmp_path / "one")
    settle(world, tmp_path / "two")
    drawn: list[Adapter] = []
    draw = Model.draw
    monkeypatch.setattr(Model, "draw", lambda *told: drawn.append(told[4]) or draw(*told))
    keys = {"steps": 2, "save_every_steps": 1, "sample_every_steps": 1, "sample_prompts": ["a dog --w 64 --h 64 --s 1"]}
    job = JobSpec.model_validate(spec(**keys, dora=True, save_precision="bf16"))
    done = run_job(job, Place(tmp_path / "one", lambda _: None, device=CPU))
    assert done.state == "done", done.message
    assert len(drawn) == 3
    assert drawn[0] is drawn[1] is not drawn[2]
    assert torch.equal(drawn[2].flat["unet"], start.through_file(drawn[2], done.adapter, "sd15").flat["unet"])  # type: ignore[arg-type]
    honest = keeping.export.save_adapter

    def falsified(path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, str]) -> Any:
        return honest(path, {key: value * 1.5 if "lora_up" in key else value for key, value in tensors.items()}, facts)

    monkeypatch.setattr(keeping.export, "save_adapter", falsified)
    failed = run_job(job, Place(tmp_path / "two", lambda _: None, device=CPU))
    assert failed.state == "failed"
    assert "does not say what was trained" in failed.message


def test_a_job_goes_on_from_files_of_its_own_method(world: Path, spec: Any, tmp_path: Path) -> None:
    """To the strength of the file: what is predicted first is what the file's job predicted last. Another rank is refused in words."""
    settle(world, tmp_path / "one")
    place = Place(tmp_path / "one", lambda _: None, device=CPU)
    for name, keys in JOBS.items():
        job = JobSpec.model_validate(spec(name=name, output=f"jobs/{name}/out", steps=1, **keys))
        first = run_job(job, place)
        assert first.adapter is not None, first.message
        again = job.model_copy(update={"output": f"jobs/{name}2/out", "start_from": f"jobs/{name}/out/{name}.safetensors", "alpha": 4.0})
        old, new = prepare(job, place).lane.adapter, prepare(again, place).lane.adapter
        start.fill(old, first.adapter, "sd15")
        for (slot, ours), (other, theirs) in zip(old.values("unet"), new.values("unet"), strict=True):
            one, two = slot.scale * changes.product(slot, ours), other.scale * changes.product(other, theirs)
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
            if slot.method.dora:
                torch.testing.assert_close(ours[-1], theirs[-1], rtol=1e-4, atol=1e-5)
    wrong = job.model_copy(update={"start_from": "jobs/loha/out/loha.safetensors", "rank": 3})
    with pytest.raises(IntegrityError, match="other matrices"):
        prepare(wrong, place)


def test_the_file_says_which_method_made_it(world: Path, spec: Any, tmp_path: Path) -> None:
    from safetensors import safe_open

    settle(world, tmp_path / "one")
    job = JobSpec.model_validate(spec(adapter="lokr", lokr_factor=4, rank=2, steps=1))
    done = run_job(job, Place(tmp_path / "one", lambda _: None, device=CPU))
    assert done.adapter is not None, done.message
    with safe_open(done.adapter, "pt") as file:
        told = file.metadata()
    assert told["ss_network_module"] == "lycoris.kohya"
    assert '"algo": "lokr"' in told["ss_network_args"]
    assert '"factor": "4"' in told["ss_network_args"]


@pytest.mark.parametrize(
    "keys",
    [
        {"adapter": "loha", "dropout": 0.1},
        {"adapter": "lokr", "rank_dropout": 0.1},
        {"lokr_factor": 4},
        {"adapter": "lokr", "lokr_factor": 0},
    ],
)
def test_what_a_method_has_not_is_refused_before_anything_is_rented(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"dropout|lokr_factor"):
        TrainingOptions.model_validate(keys)
