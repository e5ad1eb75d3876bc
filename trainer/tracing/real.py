"""Bases at their real size, without weights, and one step of the trainer on them.

The step is the loop's own: its forward and backward pass with an adapter of the bank's, on tensors without values. What stands in for
a base's tokenizers gives captions that are as long as they may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer import loop
from trainer.adapters import Adapter, Target
from trainer.base import Base
from trainer.buckets import Fit
from trainer.contract import IDS, Condition, Foundation, View
from trainer.families import plugin, sd35
from trainer.families.loading import _class_of
from trainer.families.model import Family, Model, _checkpointing
from trainer.optimizers import LossScale
from trainer.protocol import TrainingOptions

from .meter import Meter, Reading

CPU = torch.device("cpu")
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sd15": ("sd15", {}),
    "sd2": ("sd2", {}),
    "sdxl": ("sdxl", {}),
    "sd3": ("sd3", {}),
    "sd35": ("sd35", {}),
    "sd35-medium": ("sd35", sd35.MEDIUM),
    "flux": ("flux", {}),
    "zimage": ("zimage", {}),
}
"""Name -> family, and the denoiser's configuration where it is not the family's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One step to trace."""

    width: int = 512
    height: int = 512
    rows: int = 1
    """Pictures of each job."""
    jobs: int = 1
    rank: int = 16
    layers: str = "kohya"
    checkpointing: bool = False
    trains_text: bool = False
    text_tokens: int | None = None
    dtype: torch.dtype = torch.bfloat16


class Hollow(Model):
    """A model without values: there is nothing to hash, and no other device to go to."""

    def __post_init__(self) -> None:
        self.dtype = self.foundation.dtype
        for part in (*self.family.encoders, self.denoiser):
            if part in self.parts:
                self.parts[part].requires_grad_(requires_grad=False).eval()

    def prepare(self, targets: Sequence[Target], *, checkpointing: bool, **_how: object) -> None:
        """As of a real one, but for the moving: torch cannot cast modules without values."""
        self.bank.detach()
        trained = sorted({target.part for target in targets})
        for part in trained:
            self.bank.attach(part, self.parts[part], [target for target in targets if target.part == part])
        for part in self.family.parts:
            _checkpointing(self.parts[part], on=checkpointing and part in (*trained, self.denoiser))

    def embed(self, condition: Condition) -> Condition:
        """A mask of words is known to let all of them through: without values nobody could count them."""
        made = super().embed(condition)
        every: Any = {name: [slice(None)] * len(value) for name, value in made.items() if value.dtype == torch.bool}
        return {**made, **every}


class Words:
    """In a tokenizer's place: every text is as long as it may be."""

    pad_token_id, eos_token_id = 0, 2

    def __call__(self, _text: str, *, max_length: int = 77, **_options: object) -> Any:
        return SimpleNamespace(input_ids=torch.ones(1, max_length, dtype=torch.long))

    def apply_chat_template(self, _messages: object, **_options: object) -> str:
        """Some text."""
        return ""


@contextmanager
def hollow() -> Iterator[None]:
    """Inside, tensors have shapes and no values, and new ones are in the precision that bases are kept in."""
    before = torch.get_default_dtype()
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            yield
        finally:
            torch.set_default_dtype(before)


SHORT: Mapping[str, Mapping[str, Any]] = {
    "T5EncoderModel": {"num_layers": 2},
    "CLIPTextModel": {"num_hidden_layers": 2},
    "CLIPTextModelWithProjection": {"num_hidden_layers": 2},
    "Qwen3Model": {"num_hidden_layers": 2},
}
"""What makes encoders quick: of two layers they say things of the same size."""


def model_of(
    name: str, *, dtype: torch.dtype = torch.bfloat16, config: Mapping[str, Any] | None = None, whole_encoders: bool = False
) -> Hollow:
    """A base by its name in `VARIANTS`; `config` changes the denoiser. Call it inside `hollow`."""
    family_name, own = VARIANTS[name]
    family = plugin(family_name)
    base = Base(kind="hub", location=f"hollow/{name}", family=family_name)
    prediction = "epsilon" if family_name == "sd2" else None
    foundation = Foundation(family=family_name, base=base, dtype=dtype, prediction=prediction)  # type: ignore[arg-type]
    made: dict[str, Any] = {}
    for part in family.components:
        told = {**family.real[part], **(own if part == family.parts[0] else {}), **((config or {}) if part == family.parts[0] else {})}
        told |= {} if whole_encoders else SHORT.get(family.components[part].rpartition(".")[2], {})
        if part == "scheduler":
            made[part] = SimpleNamespace(config=told)
        else:
            made[part] = Words() if part.startswith("tokenizer") else _part(family, part, told, torch.float32 if part == "vae" else dtype)
    return Hollow(family, made, family.process(made, foundation, CPU), CPU, foundation)


def _part(family: Family, part: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    kind = _class_of(family, part)
    torch.set_default_dtype(dtype)
    try:
        made = kind(kind.config_class(**config)) if family.components[part].startswith("transformers.") else kind(**config)
    finally:
        torch.set_default_dtype(torch.float32)
    return made


def condition_of(model: Model, setting: Setting) -> Condition:
    """What the model is told in one pass of one job's rows: what its encoders make of captions, or ids for those that are trained."""
    options = TrainingOptions.model_validate({})
    told: Condition = {}
    with torch.no_grad():
        for part, ids in model.family.tokens(model, "", options).items():
            if setting.trains_text and part in model.family.parts:
                told[IDS + part] = ids
            else:
                told |= {name: value[0] for name, value in model.family.encode(model, part, ids[None]).items()}
    size = (setting.width, setting.height)
    told |= model.family.describe(View(size, Fit(size, size)))
    if setting.text_tokens is not None:
        told = {name: value[: setting.text_tokens] if name in ("text", "text_3", "worded") else value for name, value in told.items()}
    return {name: torch.empty((setting.rows, *value.shape), dtype=value.dtype) for name, value in told.items()}


def lanes_of(model: Model, setting: Setting, told: Condition) -> list[tuple[loop.Lane, loop.Batch]]:
    """So many jobs, each with a batch."""
    channels = model.parts["vae"].config.latent_channels
    shape = (setting.rows, channels, setting.height // 8, setting.width // 8)
    targets = model.targets(parts_of(model, setting), setting.layers)
    options = TrainingOptions.model_validate({"rank": setting.rank, "batch_size": setting.rows})
    members = []
    for number in range(setting.jobs):
        adapter = Adapter.create(targets, setting.rank, 1.0, number, CPU)
        nothing: Any = None
        lane = loop.Lane(options, nothing, nothing, adapter, nothing, {}, LossScale(enabled=False))
        timesteps = model.process.spread_timesteps(setting.rows, shape[1:])
        picture = [torch.empty(shape) for _ in range(3)]
        members.append((lane, loop.Batch(picture[0], picture[1], picture[2], timesteps, told, 1.0)))
    return members


def parts_of(model: Model, setting: Setting) -> tuple[str, ...]:
    """What is trained."""
    return model.family.parts if setting.trains_text else model.family.parts[:1]


def trace(model: Model, setting: Setting, *, told: Condition | None = None, within: AbstractContextManager[Any] | None = None) -> Reading:
    """One pass of the loop, forward and backward, as the meter sees it. `told`: a condition of its own; `within`: how others cast."""
    told = condition_of(model, setting) if told is None else told
    targets = model.targets(parts_of(model, setting), setting.layers)
    model.prepare(targets, checkpointing=setting.checkpointing)
    try:
        members = lanes_of(model, setting, told)
        meter = Meter()
        meter.know(_there(model, members))
        with meter, within or nullcontext():
            loop._backward(model, members)  # noqa: SLF001  # the trainer's own pass is what is measured
        return meter.reading
    finally:
        model.prepare([], checkpointing=False)


def _there(model: Model, members: Sequence[tuple[loop.Lane, loop.Batch]]) -> list[Tensor]:
    """What lies on the card before a pass."""
    there = [*model.parts[model.denoiser].parameters(), *model.parts[model.denoiser].buffers()]
    for lane, batch in members:
        there += [*lane.adapter.flat.values(), batch.latents, batch.noise, batch.disturbance, batch.timesteps, *batch.condition.values()]
    return there
