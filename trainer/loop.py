"""One training loop for every family, for one job or for several in one pass.

A `Lane` is one job's way through the training: its data order, adapter, optimizer, schedule and counters.
`advance` makes one forward and backward pass for lanes whose next batches have one shape; then every lane
whose step that completes clips and updates by itself. Solo is one lane. Who shares a pass is decided elsewhere.

Every random draw has an address (job seed, stream, step, row), so a lane's draws depend neither on its
neighbours nor on where a run was interrupted. Knows nothing of families, files or events.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from . import captions, objective, schedules, streams
from .adapters import Adapter, Drop
from .buckets import Plan, epoch_batches, steps_of
from .contract import Condition, Denoiser
from .course import Course
from .errors import TrainingError
from .optimizers import LossScale, Updater, clip
from .protocol import TrainingOptions
from .replay import Outputs
from .rotation import Rotation
from .team import Team


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass's worth of one lane, all draws made."""

    latents: Tensor  # [b, c, h, w]
    noise: Tensor  # [b, c, h, w]
    disturbance: Tensor  # [b, c, h, w]; zeros where there is none
    timesteps: Tensor  # [b]
    condition: Condition  # each [b, ...]
    share: float
    """This batch's samples over the step's: what its mean loss counts."""
    mask: Tensor | None = None  # [b, 1, h, w]
    """What each place counts."""
    worth: Tensor | None = None  # [b]
    """What each sample's loss counts."""

    @property
    def shape(self) -> tuple[object, ...]:
        """Lanes whose batches agree in this can share a pass."""
        told = tuple((name, tuple(value.shape), value.dtype) for name, value in sorted(self.condition.items()))
        return tuple(self.latents.shape), told


@dataclass(frozen=True, slots=True)
class Way:
    """One of the ways in which a picture is shown."""

    mirrored: bool = False
    cut: int = 0
    """Which part of it: 0 is the middle."""


AS_IT_IS = Way()


@dataclass(frozen=True, slots=True)
class Data:
    """What a lane draws its batches from."""

    shapes: Sequence[tuple[int, ...]]
    """Items that agree in this may lie in one batch."""
    repeats: Sequence[int]
    """How often the first epoch shows each item."""
    latents: Callable[[int, Way], Tensor]
    """Item index -> [c, h, w]."""
    condition: Callable[[str], Condition]
    """Caption -> what the model is told by it."""
    captions: Sequence[Sequence[str]]
    """Of each item, those that may be drawn."""
    describe: Callable[[int, Way], Condition] = lambda _index, _way: {}
    """Item index -> what the model is told of the picture itself."""
    mask: Callable[[int, Way], Tensor] | None = None
    """Item index -> what each place counts [1, h, w]; None: all the same."""
    priors: Container[int] = ()
    """Indices of regularisation pictures."""
    rotation: Rotation | None = None
    """How often later epochs show each item, where they differ from the first."""

    def repeats_in(self, epoch: int) -> Sequence[int]:
        """How often this epoch shows each item; epochs count from 0."""
        return self.rotation.repeats(epoch) if self.rotation else self.repeats


@dataclass(frozen=True, slots=True)
class Piece:
    """The samples of one pass."""

    step: int
    first: int
    """The row in the step of the first of them: what is drawn for a sample depends on step and row."""
    indices: tuple[int, ...]
    share: float
    """What they count of the step."""


@dataclass(slots=True)
class Lane:
    """One job on its way."""

    options: TrainingOptions
    plan: Plan
    data: Data
    adapter: Adapter
    optimizer: Updater
    rates: dict[str, float]
    """Part -> learning rate before the schedule; of some layers a multiple of it."""
    scaler: LossScale
    course: Course = field(default_factory=Course)
    step: int = 0
    """Optimizer steps done."""
    checked: bool = False
    """Whether every part was seen to get a gradient."""
    warnings: list[str] = field(default_factory=list)
    team: Team | None = None
    """The processes that train this job together, where there are several."""
    _epoch: int = -1
    _order: list[tuple[int, ...]] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)
    """The first step beyond each epoch, where epochs differ in length."""
    _passed: int = 0
    """Passes of the step under way that are done; their gradients wait in the weights."""
    _rows: int = 0
    """Samples in them."""
    _loss: Tensor | None = None
    """Their share of the step's loss."""
    _coming: tuple[Piece, Batch] | None = None

    @property
    def done(self) -> bool:
        return self.step >= self.plan.steps

    @property
    def epoch(self) -> int:
        """The epoch of the last step done, from 1."""
        return math.ceil(self.step / self.plan.steps_per_epoch)

    @property
    def lr(self) -> float:
        """The learning rate of the first part in the last step done."""
        return next(iter(self.rates.values())) * schedules.factor(self.options, max(self.step - 1, 0), self.plan.steps) * self.course.ease

    @property
    def midway(self) -> bool:
        """Whether a step has begun that is not done: gradients are being added up."""
        return self._passed > 0

    def indices(self, step: int | None = None) -> list[tuple[int, ...]]:
        """The sample indices of a step's batches; of the next step, if none is said."""
        epoch, place = self._place(self.step if step is None else step)
        if epoch != self._epoch:
            rng = streams.dice(self.options.seed, "order", epoch)
            self._order = epoch_batches(self.data.shapes, self.data.repeats_in(epoch), self.options.batch_size, rng)
            self._epoch = epoch
        many = self.options.gradient_accumulation
        groups, micro = self._order[place * many : (place + 1) * many], self.course.footing.micro
        return groups if micro is None else [group[i : i + micro] for group in groups for i in range(0, len(group), micro)]

    def pieces(self, step: int | None = None) -> list[Piece]:
        """What a step's passes take: all of its samples, or this process's share of them. Every process takes as many passes."""
        step = self.step if step is None else step
        groups, many = self.indices(step), self.team.size if self.team else 1
        total, found, row = sum(len(group) for group in groups), [], 0
        for group in groups:
            width = -(-len(group) // many)
            parts = [(row + i, group[i : i + width]) for i in range(0, len(group), width)]
            found += [Piece(step, first, part, len(part) / total) for first, part in parts]
            row += len(group)
        if self.team is None:
            return found
        idle = replace(found[0], indices=found[0].indices[:1], share=0.0)  # it counts nothing, and keeps the others company
        found += [idle] * (-len(found) % many)
        return found[self.team.rank :: many]

    def _place(self, step: int) -> tuple[int, int]:
        """The epoch of a step, from 0, and the step's place in it."""
        if self.data.rotation is None:
            return divmod(step, self.plan.steps_per_epoch)
        options = self.options
        while not self._ends or self._ends[-1] <= step:
            repeats = self.data.repeats_in(len(self._ends))
            _, steps = steps_of(self.data.shapes, repeats, options.batch_size, options.gradient_accumulation)
            self._ends.append((self._ends[-1] if self._ends else 0) + steps)
        epoch = bisect_right(self._ends, step)
        return epoch, step - (self._ends[epoch - 1] if epoch else 0)

    def batches(self, model: Denoiser) -> list[Batch]:
        """The next step's batches, drawn."""
        return [self._draw(model, piece) for piece in self.pieces()]

    def coming(self, model: Denoiser) -> Batch:
        """The next pass's batch; drawn once, however often it is asked for."""
        piece = self.pieces()[self._passed]
        if self._coming is None or self._coming[0] != piece:
            self._coming = piece, self._draw(model, piece)
        return self._coming[1]

    def look_ahead(self, model: Denoiser) -> None:
        """Draw what comes after the pass under way while the device is still at it: the same draws, earlier."""
        now = self.pieces()
        beyond = self.step + 1
        after = now[self._passed] if self._passed < len(now) else self.pieces(beyond)[0] if beyond < self.plan.steps else None
        if after is not None:
            with suppress(Exception):  # what is wrong with it is said when its turn has come
                self._coming = after, self._draw(model, after)

    def passed(self, batch: Batch, loss: Tensor) -> bool:
        """Count a pass; True when it was the step's last."""
        self._loss = loss if self._loss is None else self._loss + loss
        self._passed += 1
        self._rows += len(batch.latents) if batch.share else 0
        self._coming = None
        return self._passed == len(self.pieces())

    def meet(self) -> None:
        """Add up the step's gradients, loss and samples with those of the other processes that train this job."""
        if self.team is None or self._loss is None:
            return
        for flat in self.adapter.flat.values():
            flat.grad = self.team.total(torch.zeros_like(flat) if flat.grad is None else flat.grad)
        counted = self.team.total(torch.stack([self._loss.double(), torch.tensor(float(self._rows)).to(self._loss.device)]))
        self._loss, self._rows = counted[0], int(counted[1])
        self.team.settle()

    def take_result(self) -> tuple[float, int]:
        """The loss and samples of the passes since the last step; a new step begins."""
        result = 0.0 if self._loss is None else float(self._loss), self._rows
        self._passed, self._rows, self._loss = 0, 0, None
        return result

    def drop(self) -> Drop | None:
        """What of the adapter the next pass leaves out."""
        chosen = self.options
        if not chosen.dropout and not chosen.rank_dropout and not chosen.module_dropout:
            return None
        first_row = self.pieces()[self._passed].first
        return Drop(chosen.dropout, chosen.rank_dropout, chosen.module_dropout, chosen.seed, (self.step, first_row))

    def rewind(self) -> None:
        """Forget the step under way: draws have addresses, so it can be taken again."""
        self.take_result()
        self._coming = None
        for parameter in self.adapter.flat.values():
            parameter.grad = None

    def _draw(self, model: Denoiser, piece: Piece) -> Batch:
        latents, noise, disturbance, timesteps, conditions, masks = [], [], [], [], [], []
        options, data = self.options, self.data
        group, (epoch, _) = piece.indices, self._place(piece.step)
        for row, index in enumerate(group, piece.first):
            at = (piece.step, row)
            way = draw_way(options, *at)
            picture = data.latents(index, way)  # [c, h, w]
            latents.append(picture)
            if data.mask:
                masks.append(data.mask(index, way))  # [1, h, w]
            noise.append(draw_noise(options, picture.shape, *at))
            disturbance.append(draw_disturbance(options, picture.shape, *at))
            dice = streams.generator(options.seed, "timestep", *at)
            timesteps.append(model.process.draw_timestep(options, tuple(picture.shape), dice))
            caption = captions.draw(options, data.captions[index], epoch, *at)
            conditions.append({**data.condition(caption), **data.describe(index, way)})
        columns = [_sent(column, model.device) for column in (latents, noise, disturbance, timesteps)]
        told = {name: _sent([one[name] for one in conditions], model.device) for name in conditions[0]}
        worth = None
        if any(index in data.priors for index in group):
            worth = torch.tensor([options.prior_loss_weight if index in data.priors else 1.0 for index in group], device=model.device)
        mask = _sent(masks, model.device) if masks else None
        return Batch(columns[0], columns[1], columns[2], columns[3], told, piece.share, mask, worth)


def _sent(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    """Rows as a batch on the device. From pinned memory, so that the host does not wait for what the device is doing."""
    batch = torch.stack(tuple(rows))
    if device.type == "cuda" and not batch.is_cuda:
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def draw_way(options: TrainingOptions, step: int, row: int) -> Way:
    """How a picture is shown this once."""
    if not options.flip and options.crops == 1:
        return AS_IT_IS
    mirrored = options.flip and streams.key(options.seed, "flip", step, row) % 2 == 1
    return Way(mirrored, streams.key(options.seed, "cut", step, row) % options.crops)


def draw_noise(options: TrainingOptions, shape: Sequence[int], step: int, row: int) -> Tensor:
    """One sample's noise [c, h, w], with its offset and its coarser resolutions."""
    noise = torch.randn(tuple(shape), generator=streams.generator(options.seed, "noise", step, row))
    if options.noise_offset > 0:
        shift = torch.randn((shape[0], 1, 1), generator=streams.generator(options.seed, "offset", step, row))
        noise = objective.offset_noise(noise, shift, options.noise_offset)
    if options.multires_noise_iterations > 0:
        dice, generator = streams.dice(options.seed, "ratios", step, row), streams.generator(options.seed, "multires", step, row)
        ratios = [2.0 + 2.0 * dice.random() for _ in range(options.multires_noise_iterations)]
        sizes = objective.coarser_sizes((shape[1], shape[2]), ratios)
        coarser = [torch.randn((shape[0], *size), generator=generator) for size in sizes]
        noise = objective.multires_noise(noise, coarser, options.multires_noise_discount)
    return noise


def draw_disturbance(options: TrainingOptions, shape: Sequence[int], step: int, row: int) -> Tensor:
    """Input perturbation (Ning et al. 2023, arXiv 2301.11706): noise on the input alone."""
    if options.ip_noise_gamma == 0:
        return torch.zeros(tuple(shape))
    return options.ip_noise_gamma * torch.randn(tuple(shape), generator=streams.generator(options.seed, "disturbance", step, row))


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one lane's step gave. With `error` set the lane has ended and its weights are those before the step."""

    lane: Lane
    loss: float
    grad_norm: float
    samples: int
    error: Exception | None = None


def step(model: Denoiser, lanes: Sequence[Lane]) -> list[Stepped]:
    """Take every lane one optimizer step further, in as few passes as their shapes allow."""
    done: dict[int, Stepped] = {}
    while left := [lane for lane in lanes if id(lane) not in done]:
        groups: dict[tuple[object, ...], list[Lane]] = {}
        for lane in left:
            groups.setdefault(kind(model, lane), []).append(lane)
        for group in groups.values():
            done |= {id(stepped.lane): stepped for stepped in advance(model, group)}
    return [done[id(lane)] for lane in lanes]


def kind(model: Denoiser, lane: Lane) -> tuple[object, ...]:
    """Lanes that agree in this can share the next pass: equal shapes, equal adapted layers."""
    return lane.coming(model).shape, tuple((part, lane.adapter.layouts[part].address) for part in sorted(lane.adapter.layouts))


def advance(model: Denoiser, lanes: Sequence[Lane]) -> list[Stepped]:
    """One pass for lanes of one kind, and the update of every lane whose step it completes: those come back."""
    members = [(lane, lane.coming(model)) for lane in lanes]
    losses = _backward(model, members)
    complete = [lane for (lane, batch), loss in zip(members, losses, strict=True) if lane.passed(batch, loss)]
    for lane, _ in members:
        lane.look_ahead(model)
    for lane in complete:
        lane.meet()
    return [_finished(lane, *lane.take_result()) for lane in complete]


Members = list[tuple[Lane, Batch]]


def _backward(model: Denoiser, members: Members) -> Sequence[Tensor]:
    """One pass for these lanes. Their losses are summed: each is a mean over its own rows, so no lane weighs on another."""
    lanes, drops = [lane for lane, _ in members], [lane.drop() for lane, _ in members]
    inputs = _inputs(members)
    weights = [flat for lane in lanes for flat in lane.adapter.flat.values()]
    shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in inputs.items())
    # A lane brings its own options and weights into a recording; dropout draws inside the pass.
    key = None if any(drops) else (*map(id, lanes), *(flat.data_ptr() for flat in weights), shapes)
    outputs = model.passes.run(key, inputs, partial(_pass, model, lanes, drops, weights))
    lanes[0].warnings += model.passes.notes
    model.passes.notes.clear()
    for flat, gradient in zip(weights, outputs[len(lanes) :], strict=True):
        if gradient is not None:
            flat.grad = gradient if flat.grad is None else flat.grad.add_(gradient)
    return [loss for loss in outputs[: len(lanes)] if loss is not None]


def _inputs(members: Members) -> dict[str, Tensor]:
    """All that differs between passes of one shape."""
    batches = [batch for _, batch in members]
    inputs = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in ("latents", "noise", "disturbance", "timesteps")}
    inputs |= {f"{TOLD}{name}": torch.cat([batch.condition[name] for batch in batches]) for name in batches[0].condition}
    for number, (lane, batch) in enumerate(members):
        inputs |= {f"{name}.{number}": one for name, one in (("mask", batch.mask), ("worth", batch.worth)) if one is not None}
        inputs[f"share.{number}"] = torch.tensor(batch.share, dtype=torch.float32)
        inputs[f"scale.{number}"] = torch.tensor(lane.scaler.value, dtype=torch.float32)
    device = batches[0].latents.device
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}


TOLD = "told."
"""Before the names of what the model is told."""


def _pass(
    model: Denoiser, lanes: Sequence[Lane], drops: Sequence[Drop | None], weights: Sequence[Tensor], inputs: Mapping[str, Tensor]
) -> Outputs:
    """Each lane's loss, then the gradient of each of the weights. Everything that is drawn is among the inputs, but for dropout."""
    with model.bank.use([lane.adapter for lane in lanes], model.dtype, drops):
        condition = {name.removeprefix(TOLD): value for name, value in inputs.items() if name.startswith(TOLD)}
        latents, noise, disturbance, timesteps = (inputs[name] for name in ("latents", "noise", "disturbance", "timesteps"))
        disturbed = any(lane.options.ip_noise_gamma > 0 for lane in lanes)
        noisy, wanted = model.process.corrupt(latents, noise, timesteps, disturbance if disturbed else None)  # [n*b, c, h, w]
        predicted = model.predict(noisy, timesteps, model.embed(condition))
        losses, scaled = [], []
        rows = (tensor.chunk(len(lanes)) for tensor in (predicted, wanted, timesteps))
        for number, (lane, answer, goal, t) in enumerate(zip(lanes, *rows, strict=True)):
            own = model.process.distances(answer, goal, t, lane.options, inputs.get(f"mask.{number}"))  # [b]
            for weight in (model.process.weigh(t, lane.options), inputs.get(f"worth.{number}")):
                own = own if weight is None else own * weight
            loss = own.mean() * inputs[f"share.{number}"]
            losses.append(loss.detach())
            scaled.append(loss * inputs[f"scale.{number}"])
        gradients = torch.autograd.grad(torch.stack(scaled).sum(), weights, allow_unused=True)
    return *losses, *gradients


LOOKS = 4
"""Timesteps at which a held-out picture is looked at: one in each quarter, which are the bands."""


@torch.no_grad()
def evaluate(model: Denoiser, adapter: Adapter, held: Data) -> list[float]:
    """Mean squared error on held-out pictures in each band, from little noise to much.

    Noise and timesteps are always the same: comparable over steps and between jobs.
    """
    total = torch.zeros(LOOKS, dtype=torch.float64)
    with adapter.averaged(), model.bank.use([adapter], model.dtype):
        for index, (caption, *_) in enumerate(held.captions):
            picture = held.latents(index, AS_IT_IS)  # [c, h, w]
            timesteps = model.process.spread_timesteps(LOOKS, tuple(picture.shape))
            noise = [torch.randn(picture.shape, generator=streams.generator(0, "heldout", index, look)) for look in range(LOOKS)]
            latents = picture.expand(LOOKS, *picture.shape).to(model.device)
            noisy, wanted = model.process.corrupt(latents, torch.stack(noise).to(model.device), timesteps)
            told = {**held.condition(caption), **held.describe(index, AS_IT_IS)}
            made = model.embed({name: value[None].to(model.device) for name, value in told.items()})
            predicted = model.predict(noisy, timesteps, {name: value.expand(LOOKS, *value.shape[1:]) for name, value in made.items()})
            mask = held.mask(index, AS_IT_IS).to(model.device) if held.mask else None
            total += objective.per_sample_loss(predicted, wanted, mask=mask).cpu()
    bands: list[float] = (total / len(held.captions)).tolist()
    return bands


def _finished(lane: Lane, loss: float, samples: int) -> Stepped:
    try:
        return _finish(lane, loss, samples)
    except Exception as error:  # noqa: BLE001  # one lane's optimizer must not keep its neighbours from their updates
        return Stepped(lane, loss, math.nan, samples, error)


def _finish(lane: Lane, loss: float, samples: int) -> Stepped:
    """Check, unscale, clip, update: one lane, by itself."""
    parameters = list(lane.adapter.flat.values())
    for parameter in parameters:
        if parameter.grad is not None and lane.scaler.value != 1.0:
            parameter.grad.mul_(1.0 / lane.scaler.value)
    norm = clip(parameters, lane.options.max_grad_norm)
    finite = math.isfinite(norm)
    tolerable = lane.scaler.update(finite=finite)
    error = None
    if not math.isfinite(loss) or not tolerable:
        error = _not_finite(lane, loss)
    elif spike := lane.course.look(loss):
        hint = "Lower the learning rate or max_grad_norm, or take another optimizer; what was saved before is good."
        error = TrainingError("LRY-TRAIN-SPIKE", f"{spike} (step {lane.step + 1}).", hint)
    elif finite:
        error = _without_gradient(lane)
    if error is None:
        if finite:  # an overflow that the smaller loss scale will cure only skips the update
            _update(lane)
        if lane.options.ema_decay is not None:
            lane.adapter.follow(lane.options.ema_decay, lane.step)
        lane.step += 1
    for parameter in parameters:
        parameter.grad = None
    return Stepped(lane, loss, norm, samples, error)


def _update(lane: Lane) -> None:
    factor = schedules.factor(lane.options, lane.step, lane.plan.steps) * lane.course.ease
    lane.optimizer.step({part: rate * factor for part, rate in lane.rates.items()})


def _not_finite(lane: Lane, loss: float) -> TrainingError:
    what = "the loss" if not math.isfinite(loss) else "a gradient"
    message = f"{what} is not finite at step {lane.step + 1}."
    hint = "Lower the learning rate, or use bf16 instead of fp16; what was saved before is good."
    return TrainingError("LRY-TRAIN-NAN", message, hint)


def _without_gradient(lane: Lane) -> TrainingError | None:
    """At the first step every layer's B must have got a gradient (A has none yet, since B is zero)."""
    if lane.checked or lane.drop():  # a layer that was left out has none, rightly
        return None
    lane.checked = True
    for part in lane.adapter.layouts:
        pairs = [(slot.target, values) for slot, values in lane.adapter.values(part, gradient=True)]
        heard = [(target.name, any(bool(value.any()) for value in values)) for target, values in pairs if not target.idle]
        silent = [name for name, moved in heard if not moved]
        if len(silent) == len(heard):
            return TrainingError(
                "LRY-TRAIN-NOGRAD", f"the {part} gets no gradient.", "This is a mistake of ours or a broken base: please report it."
            )
        if silent:
            lane.warnings.append(f"{len(silent)} layers of the {part} got no gradient in the first step, {silent[0]} among them.")
    return None
