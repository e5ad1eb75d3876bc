"""PURE. How many values an adapter has: a family's layers at their real sizes, and what a job's options make of each. No torch.

The layers are written down from the models' plans; a test holds them against the models themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from trainer import names, selection
from trainer.protocol import TrainingOptions
from trainer.targets import Slot, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Unet:
    """A UNet's plan."""

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    """Transformer blocks in each attention of a resolution; 0: it has none."""
    words: int
    linear: bool
    """Whether the way into and out of an attention is a linear layer, and no convolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A CLIP text encoder's plan."""

    width: int
    inner: int
    layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """A transformer of SD3's kind."""

    width: int
    layers: int
    twice: int = 0
    """Blocks that attend to the picture a second time."""


UNETS: Mapping[str, Unet] = {
    "sd15": Unet(channels=(320, 640, 1280, 1280), depths=(1, 1, 1, 0), words=768, linear=False),
    "sd2": Unet(channels=(320, 640, 1280, 1280), depths=(1, 1, 1, 0), words=1024, linear=True),
    "sdxl": Unet(channels=(320, 640, 1280), depths=(0, 2, 10), words=2048, linear=True),
}
JOINTS: Mapping[tuple[str, str], Joint] = {
    ("sd3", ""): Joint(width=1536, layers=24),
    ("sd35", "medium"): Joint(width=1536, layers=24, twice=13),
    ("sd35", ""): Joint(width=2432, layers=38),
}
LARGE, OPEN_H, BIG = (
    Clip(width=768, inner=3072, layers=12),
    Clip(width=1024, inner=4096, layers=23),
    Clip(width=1280, inner=5120, layers=32),
)
CLIPS: Mapping[str, tuple[Clip, ...]] = {
    "sd15": (LARGE,),
    "sd2": (OPEN_H,),
    "sdxl": (LARGE, BIG),
    "sd3": (LARGE, BIG),
    "sd35": (LARGE, BIG),
    "flux": (LARGE,),
    "zimage": (),
}
"""The text encoders that can be trained, in the order of their learning rates."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Ends of the layers of the `attention` preset."""


def trained_values(options: TrainingOptions, family: str, variant: str = "") -> int:
    """Values of the adapter that these options train on the family's real size."""
    return sum(slot.count for slot in slots(options, family, variant))


def slots(options: TrainingOptions, family: str, variant: str = "") -> list[Slot]:
    """The layers that get an adapter, each with its rank and method, chosen as the trainer chooses them."""
    wide = [target for target in convolutions(family) if options.conv_rank] if _rate(options) > 0 else []
    return selection.slots_of(options, targets(options, family, variant), wide, partial(names.kohya_name, family))


def targets(options: TrainingOptions, family: str, variant: str = "") -> list[Target]:
    """The layers of the parts that are trained, by the preset."""
    found = list(denoiser(family, variant)) if _rate(options) > 0 else []
    if options.layers == "attention":
        found = [target for target in found if target.name.endswith(tuple(f".{end}" for end in ATTENTION))]
    first = options.text_encoder_lr or 0.0
    second = first if options.text_encoder_2_lr is None else options.text_encoder_2_lr
    for number, (clip, rate) in enumerate(zip(CLIPS[family], (first, second), strict=False)):
        found += _clip("text_encoder" if number == 0 else "text_encoder_2", clip) if rate > 0 else []
    return found


def _rate(options: TrainingOptions) -> float:
    return options.learning_rate if options.unet_lr is None else options.unet_lr


def denoiser(family: str, variant: str = "") -> Iterator[Target]:
    """The layers of the UNet or transformer that LoRAs of today adapt."""
    if family in UNETS:
        return (target for target in _unet(UNETS[family]) if ".attentions." in target.name)
    if family == "flux":
        return _flux()
    if family == "zimage":
        return _zimage()
    return _joint(JOINTS.get((family, variant), JOINTS.get((family, ""), JOINTS["sd3", ""])))


def convolutions(family: str) -> list[Target]:
    """The layers that a LoCon adds."""
    return [target for target in _unet(UNETS[family]) if ".attentions." not in target.name] if family in UNETS else []


# --- plans -----------------------------------------------------------------------------------------


def _unet(plan: Unet) -> Iterator[Target]:
    last = len(plan.channels) - 1
    before, skips = plan.channels[0], [plan.channels[0]]
    for block, (width, depth) in enumerate(zip(plan.channels, plan.depths, strict=True)):
        for index in range(2):
            yield from _resnet(plan, f"down_blocks.{block}.resnets.{index}", before, width)
            yield from _attention(plan, f"down_blocks.{block}.attentions.{index}", width, depth)
            before = width
            skips.append(width)
        if block < last:
            yield _conv(f"down_blocks.{block}.downsamplers.0.conv", width, width, 3)
            skips.append(width)
    for index in range(2):
        yield from _resnet(plan, f"mid_block.resnets.{index}", before, before)
    yield from _attention(plan, "mid_block.attentions.0", before, plan.depths[-1] or 1)
    for block, (width, depth) in enumerate(zip(plan.channels[::-1], plan.depths[::-1], strict=True)):
        for index in range(3):
            yield from _resnet(plan, f"up_blocks.{block}.resnets.{index}", before + skips.pop(), width)
            yield from _attention(plan, f"up_blocks.{block}.attentions.{index}", width, depth)
            before = width
        if block < last:
            yield _conv(f"up_blocks.{block}.upsamplers.0.conv", width, width, 3)


def _resnet(plan: Unet, name: str, fan_in: int, fan_out: int) -> Iterator[Target]:
    yield _conv(f"{name}.conv1", fan_in, fan_out, 3)
    yield Target("unet", f"{name}.time_emb_proj", 4 * plan.channels[0], fan_out)
    yield _conv(f"{name}.conv2", fan_out, fan_out, 3)
    if fan_in != fan_out:
        yield _conv(f"{name}.conv_shortcut", fan_in, fan_out, 1)


def _attention(plan: Unet, name: str, width: int, depth: int) -> Iterator[Target]:
    for end in ("proj_in", "proj_out") if depth else ():
        yield Target("unet", f"{name}.{end}", width, width) if plan.linear else _conv(f"{name}.{end}", width, width, 1)
    for block in range(depth):
        inner = f"{name}.transformer_blocks.{block}"
        for end in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0"):
            yield Target("unet", f"{inner}.{end}", width, width)
        for end in ("attn2.to_k", "attn2.to_v"):
            yield Target("unet", f"{inner}.{end}", plan.words, width)
        yield Target("unet", f"{inner}.ff.net.0.proj", width, 8 * width)
        yield Target("unet", f"{inner}.ff.net.2", 4 * width, width)


def _conv(name: str, fan_in: int, fan_out: int, side: int) -> Target:
    return Target("unet", name, fan_in, fan_out, conv=True, kernel=(side, side))


def _clip(part: str, plan: Clip) -> list[Target]:
    found = []
    for layer in range(plan.layers):
        name = f"text_model.encoder.layers.{layer}"
        found += [Target(part, f"{name}.self_attn.{which}_proj", plan.width, plan.width) for which in ("q", "k", "v", "out")]
        found += [Target(part, f"{name}.mlp.fc1", plan.width, plan.inner), Target(part, f"{name}.mlp.fc2", plan.inner, plan.width)]
    return found


def _linear(name: str, sizes: Sequence[tuple[str, int, int]]) -> Iterator[Target]:
    return (Target("transformer", f"{name}.{end}", fan_in, fan_out) for end, fan_in, fan_out in sizes)


def _square(width: int, *ends: str) -> list[tuple[str, int, int]]:
    return [(end, width, width) for end in ends]


def _mlp(name: str, width: int) -> list[tuple[str, int, int]]:
    return [(f"{name}.net.0.proj", width, 4 * width), (f"{name}.net.2", 4 * width, width)]


OWN = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
WORDS = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")


def _joint(plan: Joint) -> Iterator[Target]:
    for block in range(plan.layers):
        twice, last = block < plan.twice, block == plan.layers - 1
        sizes = [
            *_square(plan.width, *OWN, *WORDS),
            *_mlp("ff", plan.width),
            ("norm1.linear", plan.width, (9 if twice else 6) * plan.width),
        ]
        sizes.append(("norm1_context.linear", plan.width, (2 if last else 6) * plan.width))
        sizes += [] if last else [*_square(plan.width, "attn.to_add_out"), *_mlp("ff_context", plan.width)]
        sizes += _square(plan.width, "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0") if twice else []
        yield from _linear(f"transformer_blocks.{block}", sizes)


def _flux(width: int = 3072) -> Iterator[Target]:
    for block in range(19):
        sizes = [*_square(width, *OWN, *WORDS, "attn.to_add_out"), *_mlp("ff", width), *_mlp("ff_context", width)]
        sizes += [("norm1.linear", width, 6 * width), ("norm1_context.linear", width, 6 * width)]
        yield from _linear(f"transformer_blocks.{block}", sizes)
    for block in range(38):
        sizes = [
            *_square(width, *OWN[:3]),
            ("proj_mlp", width, 4 * width),
            ("proj_out", 5 * width, width),
            ("norm.linear", width, 3 * width),
        ]
        yield from _linear(f"single_transformer_blocks.{block}", sizes)


def _zimage(width: int = 3840, inner: int = 10240, told: int = 256) -> Iterator[Target]:
    for blocks, many in (("layers", 30), ("noise_refiner", 2), ("context_refiner", 2)):
        sizes = _square(width, "attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
        sizes += [("feed_forward.w1", width, inner), ("feed_forward.w2", inner, width), ("feed_forward.w3", width, inner)]
        sizes += [] if blocks == "context_refiner" else [("adaLN_modulation.0", told, 4 * width)]
        for block in range(many):
            yield from _linear(f"{blocks}.{block}", sizes)
