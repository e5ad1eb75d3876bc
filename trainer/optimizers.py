"""Optimizers by name, their states as plain tensors and numbers, and the loss scale of fp16.

A job's weights are one long vector a part, or a few. Most rules look at each number by itself and get the vectors: a few
kernels a step. Rules that look at a matrix as a whole get the matrices, as views of the same memory.

Knows nothing of models or files. States go to a checkpoint and come back exactly.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .adapters import Adapter
from .errors import SpecError
from .optimizer_names import OPTIMIZERS, is_dotted
from .protocol import TrainingOptions
from .rules import AdamWBF16, Groups, Lion, StableAdamW

BETAS = (0.9, 0.999)
EPSILON = 1e-8

Number = float | bool | None
"""What a checkpoint's header can hold."""


@dataclass(slots=True)
class Updater:
    """What changes one job's weights: one optimizer, or one a vector."""

    name: str
    optimizers: tuple[torch.optim.Optimizer, ...]
    adapter: Adapter
    by_matrix: bool = False
    """Whether the optimizers hold the adapter's matrices, and not its vectors."""
    _made: list[dict[str, Number]] = field(default_factory=list)
    """The groups' numbers as they were made: what has changed since is state."""

    def __post_init__(self) -> None:
        for one in self._averaging():
            one.train()
        self._made = [_numbers(group) for group in self.groups]

    @property
    def groups(self) -> Groups:
        """Every optimizer's groups, each of one vector."""
        return [group for one in self.optimizers for group in one.param_groups]

    def step(self, rates: Mapping[str, float]) -> None:
        """One update by the gradients that wait in the adapter, each part at its rate."""
        of_vector = self.adapter.rates(rates)
        for group in self.groups:
            group["lr"] = of_vector[group["vector"]]
            if self.by_matrix and self.adapter.flat[group["vector"]].grad is not None:
                found = self.adapter.pieces(group["vector"], gradient=True)
                for parameter, gradient in zip(group["params"], found, strict=True):
                    parameter.grad = gradient
        for one in self.optimizers:
            one.step()
        if self.by_matrix:
            for group in self.groups:
                for parameter in group["params"]:
                    parameter.grad = None

    @torch.no_grad()
    def means(self) -> dict[str, Tensor]:
        """The weights that a schedule-free rule would give now. Those it trains on are left as they were, to the bit."""
        trained = {part: flat.detach().clone() for part, flat in self.adapter.flat.items()}
        for one in self._averaging():
            one.eval()
        means = {part: flat.detach().clone() for part, flat in self.adapter.flat.items()}
        for one in self._averaging():
            one.train()
        for part, flat in self.adapter.flat.items():
            flat.copy_(trained[part])
        return means

    def _averaging(self) -> list[Any]:
        return [one for one in self.optimizers if averages(one)]


def averages(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this is a schedule-free rule, which trains on other weights than it gives (Defazio et al. 2024, arXiv 2405.15682)."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def create(options: TrainingOptions, adapter: Adapter) -> tuple[Updater, str]:
    """The optimizer of these options; and a warning, empty if there is none."""
    name, warning = options.optimizer, ""
    if is_dotted(name):
        updater, warning = _foreign(options, adapter)
    else:
        device = next(iter(adapter.flat.values())).device
        plain = OPTIMIZERS[name].plain
        if plain and (reason := why_not_in_8_bits(device, name)):
            warning = f"{name} cannot run here ({reason}); {plain} is used: the same rule with states in 32 bits."
            name = plain
        updater = Updater(name, _made(name, options, adapter), adapter, by_matrix=name in BY_MATRIX)
    if updater._averaging():  # noqa: SLF001  # its own maker
        adapter.outcome = updater.means
    return updater, warning


BY_MATRIX = ("StableAdamW", "Adafactor")
"""Rules for which a matrix is more than its numbers."""


def _made(name: str, options: TrainingOptions, adapter: Adapter) -> tuple[torch.optim.Optimizer, ...]:
    given: dict[str, Any] = {"weight_decay": options.weight_decay, **options.optimizer_args}
    groups = _matrices(adapter) if name in BY_MATRIX else _vectors(adapter)
    match name:
        case "AdamW":
            fused = groups[0]["params"][0].device.type == "cuda"
            return (torch.optim.AdamW(groups, **{"lr": 0.0, "betas": BETAS, "eps": EPSILON, "fused": fused} | given),)
        case "AdamWBF16":
            return (AdamWBF16(groups, lr=0.0, seed=options.seed, **given),)
        case "Lion":
            return (Lion(groups, lr=0.0, **given),)
        case "StableAdamW":
            return (StableAdamW(groups, lr=0.0, **given),)
        case "SGD":
            return (torch.optim.SGD(groups, **{"lr": 0.0, "momentum": 0.9} | given),)
        case "Adafactor":
            from transformers.optimization import Adafactor

            # The schedule is ours, so its own one stays off; Shazeer & Stern 2018 (arXiv 1804.04235).
            return (Adafactor(groups, **{"lr": 0.0, "scale_parameter": False, "relative_step": False} | given),)
        case "AdamWScheduleFree":
            from schedulefree import AdamWScheduleFree

            return (AdamWScheduleFree(groups, **{"lr": 0.0} | given),)
        case "Prodigy":
            return tuple(_prodigy(group, given) for group in groups)
    import bitsandbytes

    usual = {"lr": 0.0, "betas": Lion.BETAS} if OPTIMIZERS[name].plain == "Lion" else {"lr": 0.0, "betas": BETAS, "eps": EPSILON}
    return (getattr(bitsandbytes.optim, name)(groups, **usual | given),)


def _prodigy(group: dict[str, Any], given: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Mishchenko & Defazio 2023 (arXiv 2306.06101). One a vector: each finds its own rate, and may have its own factor."""
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # it greets
        return Prodigy([group], lr=1.0, **given)  # type: ignore[no-any-return]


def _vectors(adapter: Adapter) -> Groups:
    return [{"params": [flat], "lr": 0.0, "vector": name} for name, flat in adapter.flat.items()]


def _matrices(adapter: Adapter) -> Groups:
    """The matrices of each vector, as parameters over its memory."""
    return [{"params": [nn.Parameter(piece) for piece in adapter.pieces(name)], "lr": 0.0, "vector": name} for name in adapter.flat]


def why_not_in_8_bits(device: torch.device, name: str = "AdamW8bit") -> str:
    """Empty if this optimizer of bitsandbytes takes a step on this device, else the reason: older ones cannot on a CPU."""
    try:
        import bitsandbytes

        probe = nn.Parameter(torch.ones(8192, device=device))
        probe.grad = torch.ones_like(probe)
        getattr(bitsandbytes.optim, name)([probe], lr=1e-3).step()
    except (ImportError, RuntimeError, NotImplementedError, AttributeError, ValueError, TypeError, OSError) as error:
        return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return "" if bool((probe.detach() < 1).all()) else "its step changes nothing"


# --- any other class -------------------------------------------------------------------------------


def _foreign(options: TrainingOptions, adapter: Adapter) -> tuple[Updater, str]:
    """A class of an installed package, by its dotted name; tried on a few numbers first."""
    name = options.optimizer
    kind = found_class(name)
    takes = inspect.signature(kind).parameters
    usual = {"lr": 1e-3, "weight_decay": options.weight_decay}
    given: dict[str, Any] = {key: value for key, value in usual.items() if key in takes} | dict(options.optimizer_args)

    def make(what: Adapter) -> Updater:
        with contextlib.redirect_stdout(io.StringIO()):
            return Updater(name, (kind(_matrices(what), **given),), what, by_matrix=True)

    try:
        exact = _comes_back(make)
    except Exception as error:  # whatever a stranger's class raises, it is no choice for this job
        raise _unusable(name, f"does not work here: {type(error).__name__}: {str(error)[:300]}") from error
    warning = "" if exact else f"{name} keeps more than its state says: a run that was interrupted will not end with the same bits."
    return make(adapter), warning


def found_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of this dotted name. Only packages that are installed are imported, never a file that lies about."""
    module, _, last = name.rpartition(".")
    if module.partition(".")[0] not in packages_distributions():
        raise _unusable(name, f"is of a package that is not installed here ({module.partition('.')[0]})")
    try:
        found = getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError) as error:
        raise _unusable(name, f"cannot be had: {error}") from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise _unusable(name, "is no optimizer of torch's kind")
    return found


def _unusable(name: str, why: str) -> SpecError:
    return SpecError("LRY-JOB-OPTIMIZER", f"optimizer {name} {why}.", f"Write one of {', '.join(OPTIMIZERS)}, or change optimizer_args.")


def _comes_back(make: Callable[[Adapter], Updater]) -> bool:
    """Whether this rule goes on from a saved state as if nothing had been; it must change its weights in two steps."""
    from .adapters import Target

    def fresh() -> Adapter:
        return Adapter.create([Target("probe", "layer", 6, 5)], 2, 1.0, 0, torch.device("cpu"))

    def taken(updater: Updater, steps: Sequence[int]) -> Tensor:
        flat = updater.adapter.flat["probe"]
        for step in steps:
            flat.grad = torch.linspace(-1.0, 1.0 + step, flat.numel())
            updater.step({"probe": 1e-3})
        return flat.detach().clone()

    whole, again = make(fresh()), make(fresh())
    before = taken(whole, ())
    middle = taken(whole, (0, 1))
    tensors, numbers = state_of(whole)
    tensors = {name: value.clone() for name, value in tensors.items()}
    if torch.equal(before, middle):
        raise ValueError("its step changes nothing")
    with torch.no_grad():
        again.adapter.flat["probe"].copy_(middle)
    restore(again, tensors, numbers)
    return torch.equal(taken(whole, (2, 3)), taken(again, (2, 3)))


# --- to a checkpoint and back ----------------------------------------------------------------------


def _numbers(group: Mapping[str, Any]) -> dict[str, Number]:
    return {key: value for key, value in group.items() if key != "lr" and (value is None or isinstance(value, int | float))}


def _named(group: Mapping[str, Any]) -> list[tuple[str, nn.Parameter]]:
    """Each parameter with its name: the vector's, numbered where there are several."""
    parameters = group["params"]
    names = [group["vector"]] if len(parameters) == 1 else [f"{group['vector']}.{i}" for i in range(len(parameters))]
    return list(zip(names, parameters, strict=True))


def state_of(updater: Updater) -> tuple[dict[str, Tensor], dict[str, Number]]:
    """The state as tensors and as numbers: of parameters `<name>.<key>`, of groups `<vector>.group.<key>`."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Number] = {}

    def keep(name: str, value: object) -> None:
        if isinstance(value, Tensor):
            tensors[name] = value.detach()
        elif value is None or isinstance(value, int | float):
            numbers[name] = value
        else:
            raise TypeError(f"its state holds {type(value).__name__} ({name}), which no checkpoint takes")

    for one in updater.optimizers:
        for group in one.param_groups:
            for name, parameter in _named(group):
                for key, value in one.state.get(parameter, {}).items():
                    keep(f"{name}.{key}", value)
    for group, made in zip(updater.groups, updater._made, strict=True):  # noqa: SLF001  # this module's own
        for key, value in group.items():
            if isinstance(value, Tensor) or (key in _numbers(group) and made.get(key, math.nan) != value):
                keep(f"{group['vector']}.group.{key}", value)
    return tensors, numbers


def restore(updater: Updater, tensors: Mapping[str, Tensor], numbers: Mapping[str, Number]) -> None:
    """Put a state back. Around `load_state_dict`, which would cast it. What is not named is as in the beginning."""
    states: dict[str, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers}.items():
        owner, _, key = name.rpartition(".")
        states.setdefault(owner, {})[key] = value
    for group, made in zip(updater.groups, updater._made, strict=True):  # noqa: SLF001
        group.update(made)
        for key, value in states.get(f"{group['vector']}.group", {}).items():
            group[key] = value.clone() if isinstance(value, Tensor) else value
        if "count" in group and f"{group['vector']}.group" not in states:
            del group["count"]  # it comes with the first step
    for one in updater.optimizers:
        for group in one.param_groups:
            for name, parameter in _named(group):
                one.state.pop(parameter, None)
                if state := states.get(name):
                    one.state[parameter] = {key: _placed(key, value, parameter, group) for key, value in state.items()}


def _placed(key: str, value: object, parameter: nn.Parameter, group: Mapping[str, Any]) -> object:
    if not isinstance(value, Tensor):
        return value
    on_host = key == "step" and not group.get("fused")  # AdamW counts on the CPU unless fused
    return value.clone() if on_host else value.to(parameter.device, copy=True)


@dataclass(slots=True)
class LossScale:
    """Dynamic loss scaling of fp16 (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2); 1 and still otherwise."""

    enabled: bool
    value: float = 65536.0
    good: int = 0

    GROW_AFTER: ClassVar[int] = 2000  # as torch.amp.GradScaler
    FLOOR: ClassVar[float] = 2.0**-4

    def __post_init__(self) -> None:
        if not self.enabled:
            self.value = 1.0

    def update(self, *, finite: bool) -> bool:
        """Count a step; False when even the smallest scale overflows: then it is no matter of scale."""
        if not self.enabled:
            return finite
        if finite:
            self.good += 1
            if self.good >= self.GROW_AFTER:
                self.value, self.good = min(self.value * 2, 2.0**24), 0
            return True
        self.value, self.good = self.value / 2, 0
        return self.value >= self.FLOOR


def clip(parameters: list[nn.Parameter], limit: float) -> float:
    """The gradients' joint 2-norm before they are scaled down to `limit` (0: only measured)."""
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if limit > 0 and math.isfinite(norm):
        coefficient = min(limit / (norm + 1e-6), 1.0)  # as torch's clip_grad_norm_
        for parameter in parameters:
            if parameter.grad is not None and coefficient < 1.0:
                parameter.grad.mul_(coefficient)
    return norm
