"""The contract of a family, and the loaded base that every family shares.

A family is one file whose `FAMILY` fills in the table below; it is chosen by its file's name. What differs between
families is there; what does not (residence on the device, adapters, the VAE, hashes) is here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from trainer import offloading, quantised, replay
from trainer.adapters import Adapter, Bank, Target
from trainer.contract import IDS, Condition, Drawing, Foundation, Process, View
from trainer.export import Origin
from trainer.protocol import TrainingOptions

Writer = Callable[[Adapter, torch.dtype], dict[str, Tensor]]
"""An adapter's weights under the names of one file format."""

Decoder = Callable[[Tensor], Tensor]
"""Latents of unit variance [b, c, h, w] to pixels [b, 3, h, w] in -1..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a family's file fills in: tables, and functions of a loaded model that draw nothing and keep nothing."""

    parts: tuple[str, ...]
    """What can be trained, under diffusers' component names: the denoiser, then text encoders in the order of their learning rates."""
    encoders: tuple[str, ...]
    """All text encoders. They leave the device when the texts are embedded, unless they are trained."""
    components: Mapping[str, str]
    """Component -> the class it is loaded with, as `library.Class`."""
    pipeline: str
    """diffusers' pipeline, which knows how to read a single file."""
    real: Mapping[str, Mapping[str, Any]]
    """Component -> its configuration at the family's real size: a single file says none of it."""
    held: Mapping[str, str] = field(default_factory=dict)
    """Component -> the key of a checkpoint that holds it, where files of this family may come without."""
    of_file: Callable[[Collection[str]], Mapping[str, Mapping[str, Any]]] = field(default=lambda _: {})
    """What the keys of a checkpoint say of its size, beside `real`."""
    formats: Mapping[str, Writer]
    """File formats by name; the first is what most programs read, hence the default."""
    unused: tuple[str, ...] = ()
    """Options that mean nothing here. Setting one is answered."""
    multiple: int = 8
    """Sides of pictures are multiples of this, in pixels."""
    guidance: float = 7.5
    """Of sample pictures whose line says none."""
    sampler: str = "DDIM"
    """What draws them."""

    process: Callable[[Mapping[str, Any], Foundation, torch.device], Process]
    """The process of a base, from its components (its scheduler's configuration) and what the user said."""
    targets: Callable[[Model, str, str], list[Target]]
    """Of a part, by a preset: the layers that get an adapter."""
    convolutions: Callable[[Model], list[Target]] = field(default=lambda _: [])
    """Of the denoiser, the layers that a LoCon adds: its residual and resizing blocks, where it has such."""
    key_of: Callable[[str, str], str]
    """Part and module path -> kohya's name of the layer, whatever the installed transformers calls it."""
    capacity: Callable[[TrainingOptions], int]
    """Tokens of a caption that are read; the rest is cut."""
    token_count: Callable[[Model, str], int]
    """Tokens of a caption, marks not counted."""
    tokens: Callable[[Model, str, TrainingOptions], dict[str, Tensor]]
    """Encoder -> what it reads of one text."""
    encode: Callable[[Model, str, Tensor], Condition]
    """What one encoder makes of a batch of its ids, in the model's dtype. Gradients flow where it is trained."""
    describe: Callable[[View], Condition] = field(default=lambda _: {})
    """What one sample's condition says of the picture itself: nothing, unless the family is told."""
    predict: Callable[[Model, Tensor, Tensor, Condition], Tensor]
    """The denoiser's answer to noisy latents [b, c, h, w] at timesteps [b]; packs and unpacks by itself."""
    sample: Callable[[Model, Condition, Condition, Drawing], Tensor]
    """Latents [1, c, h, w] of one picture, by condition and negative, through diffusers' own pipeline around the live modules."""
    origin: Callable[[Model], Origin]
    """What the adapter's metadata says of the base."""


@dataclass(slots=True)
class Model:
    """A loaded base with its bank of adapters."""

    family: Family
    parts: dict[str, Any]
    """diffusers' components by name: `vae`, `scheduler`, the family's parts, encoders and their tokenizers."""
    process: Process
    device: torch.device
    foundation: Foundation
    bank: Bank = field(default_factory=Bank)
    passes: replay.Passes = field(default_factory=replay.Passes)
    conveyor: offloading.Conveyor | None = None
    """What brings the denoiser's blocks, where they wait in main memory."""
    dtype: torch.dtype = field(init=False)
    _identities: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dtype = self.foundation.dtype
        for part in ("vae", *self.family.encoders, self.denoiser):  # now, before anything is cast
            values = _SAMPLE if part == self.denoiser else None if part == "vae" else _LARGE_SAMPLE
            self._identities[part] = _hash_of(self.parts[part], values)
            self.parts[part].requires_grad_(requires_grad=False).eval()
        self.parts[self.denoiser].to(self.dtype)
        if self.foundation.base_precision != "full":
            self.quantise(self.foundation.base_precision)
        if self.foundation.encoder_precision != "full":
            for part in self.family.encoders:
                if sum(p.numel() for p in self.parts[part].parameters()) > LARGE_ENCODER:
                    quantised.quantise(self.parts[part].to(self.dtype), self.foundation.encoder_precision, self.device)

    @property
    def name(self) -> str:
        """What the base is called: the last part of its path or id."""
        return Path(self.foundation.base.location).name

    @property
    def denoiser(self) -> str:
        """The part that answers: UNet or transformer."""
        return self.family.parts[0]

    # --- what the loop asks -------------------------------------------------------------------------

    def embed(self, condition: Condition) -> Condition:
        """A batch's condition with every `ids.<part>` replaced by what that encoder makes of it."""
        made: Condition = {}
        for name, value in condition.items():
            made |= self.family.encode(self, name.removeprefix(IDS), value) if name.startswith(IDS) else {name: value}
        return made

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The model's answer, of the latents' shape."""
        return self.passes.guarded(lambda: self.family.predict(self, noisy.to(self.dtype), timesteps, condition))

    # --- what a job asks before and after -----------------------------------------------------------

    def targets(self, parts: Sequence[str], preset: str = "kohya") -> list[Target]:
        """The layers that get an adapter, for the parts that are trained."""
        return [target for part in parts for target in self.family.targets(self, part, preset)]

    def prepare(self, targets: Sequence[Target], *, checkpointing: bool, offload: float = 0.0, speed: str = "eager") -> None:
        """Attach the bank, and put on the device what trains. With no targets the model is put away.

        The denoiser is there only from here on: while pictures and texts are encoded, the device belongs to the encoders.
        `offload`: the share of its blocks that come only when they are needed, which wants checkpointing. `speed`: as a job says it.
        """
        self._come_to_rest()
        trained = sorted({t.part for t in targets})
        if trained and offload > 0:
            self.conveyor = offloading.Conveyor.along(self.parts[self.denoiser], offload, self.device)
        elif trained:
            self._hasten(speed)
        self.place_denoiser(self.device if trained else torch.device("cpu"))
        for part in trained:
            self.bank.attach(part, self.parts[part], [t for t in targets if t.part == part])
            if part != self.denoiser:
                self.parts[part].to(self.device, self.dtype)
        for part in self.family.parts:
            _checkpointing(self.parts[part], on=checkpointing and part in (*trained, self.denoiser))

    def recompute(self) -> None:
        """Turn gradient checkpointing on under a training."""
        self.passes.forget()
        for part in {*self.bank.targets, self.denoiser}:
            _checkpointing(self.parts[part], on=True)

    def _come_to_rest(self) -> None:
        """As it was before anything trained on it."""
        self.bank.detach()
        if self.passes.plain_again:
            self.passes.plain_again()
        self.passes = replay.Passes()
        if self.conveyor:
            self.conveyor.dismantle()
            self.conveyor = None

    def _hasten(self, speed: str) -> None:
        if self.device.type == "cuda" and speed != "eager":
            self.passes.capture = replay.on_gpu()
        if speed == "compile":
            self.passes.plain_again = replay.compile_blocks(offloading.repeated_blocks(self.parts[self.denoiser]))

    def quantise(self, storage: str) -> None:
        """Store the denoiser's linear layers so from here on. Those that are stored in some way already stay as they are."""
        self.passes.forget()
        quantised.quantise(self.parts[self.denoiser], storage, self.device)

    def place_denoiser(self, device: torch.device) -> None:
        """Bring it to a device, in the memory layout that its kernels like there."""
        denoiser = self.parts[self.denoiser]
        if self.conveyor:
            self.conveyor.place_rest(denoiser, device)
        else:
            denoiser.to(device)
        if device.type == "cuda":
            denoiser.to(memory_format=torch.channels_last)

    def latent_address(self) -> str:
        """What a latent depends on besides the picture."""
        config = self.parts["vae"].config
        return f"{self._identities['vae']}{config.scaling_factor}{getattr(config, 'shift_factor', None) or ''}"

    def text_address(self, encoders: Collection[str]) -> str:
        """What an embedding by these encoders depends on besides the token ids."""
        said = self.foundation
        read = f"{self.dtype}{said.clip_skip}{said.zero_padding}{said.blank_zeros}"
        read += "" if said.encoder_precision == "full" else said.encoder_precision
        return "".join(self._identities[part] for part in sorted(encoders)) + read

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Latents [c, h/8, w/8] of pixels [3, h, w] in -1..1, of unit variance. Always in fp32: fp16 VAEs overflow."""
        vae = self.parts["vae"].to(self.device)  # in fp32 since it was loaded
        mean: Tensor = vae.encode(pixels[None].to(self.device)).latent_dist.mode()[0]
        shift, scale = getattr(vae.config, "shift_factor", None) or 0.0, float(vae.config.scaling_factor)
        return (mean - shift) * scale

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels [b, 3, h, w] in -1..1, on the CPU."""
        vae = self.parts["vae"].to(self.device)
        whole = latents.float() / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        pixels: Tensor = vae.decode(whole, return_dict=False)[0]
        return pixels.cpu()

    def tokens(self, text: str, options: TrainingOptions) -> dict[str, Tensor]:
        """Encoder -> what it reads of a text."""
        return self.family.tokens(self, text, options)

    def token_count(self, text: str) -> int:
        """Tokens of a text, marks not counted."""
        return self.family.token_count(self, text)

    @torch.no_grad()
    def encode_text(self, text: str, options: TrainingOptions, encoders: Collection[str] | None = None) -> Condition:
        """What these encoders (all, if none are named) make of one text, with the adapter in use, if any."""
        made: Condition = {}
        for part, ids in self.tokens(text, options).items():
            if encoders is None or part in encoders:
                self.parts[part].to(self.device, self.dtype)
                made |= self.family.encode(self, part, ids[None].to(self.device))
        return {name: value[0] for name, value in made.items()}

    def release_encoders(self, *, keep: Collection[str]) -> None:
        """Take the encoders off the device, but for those to keep; they wait in main memory for the next job."""
        for part in ("vae", *self.family.encoders):
            if part not in keep:
                self.parts[part].to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def draw(
        self, condition: Condition, negative: Condition, drawing: Drawing, adapter: Adapter | None, decode: Decoder | None = None
    ) -> Any:
        """One picture, decoded by the VAE unless another way is given. A PIL image."""
        from diffusers.image_processor import VaeImageProcessor

        both = [{name: value[None].to(self.device) for name, value in one.items()} for one in (condition, negative)]
        self.place_denoiser(self.device)
        self.parts["vae"].to(self.device)  # where a pipeline finds its first module, there it puts its latents
        with torch.no_grad(), self.bank.use([adapter] if adapter else [], self.dtype):
            latents = self.passes.guarded(lambda: self.family.sample(self, both[0], both[1], drawing))
        return VaeImageProcessor().postprocess((decode or self.decode_latents)(latents), output_type="pil")[0]

    def origin(self) -> Origin:
        """What the adapter's metadata says."""
        return self.family.origin(self)

    def fingerprint(self) -> str:
        """Tells this base from another."""
        return hashlib.sha256("/".join(self._identities.values()).encode()).hexdigest()


LARGE_ENCODER = 1_000_000_000
"""Weights of a text encoder that is worth storing in fewer bits: T5 XXL has 4.8e9, the largest CLIP 0.7e9."""


def _checkpointing(module: Any, *, on: bool) -> None:
    """The switch of diffusers (`enable_...`) or of transformers (`..._enable`, lately under a new name).

    transformers looks at `training` too, which changes nothing else here: these encoders have no dropout.
    """
    # No random state is kept: nothing in a pass draws but an adapter's dropout, by address; and reading it would stop a recording.
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if hasattr(module, "enable_gradient_checkpointing"):
        if on:
            module.enable_gradient_checkpointing(partial(torch.utils.checkpoint.checkpoint, **how))
        else:
            module.disable_gradient_checkpointing()
        return
    prefix = "activation" if hasattr(module, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(module, f"{prefix}_checkpointing_enable")(**{f"{prefix}_checkpointing_kwargs": how})
    else:
        getattr(module, f"{prefix}_checkpointing_disable")()
    module.train(on)


_SAMPLE = 256
"""Values of each tensor that tell one denoiser from another: any fine-tune moves nearly all of them."""
_LARGE_SAMPLE = 65536
"""Of an encoder more: a retrained one may differ in few words, and its embeddings are cached."""


def _hash_of(module: nn.Module, values: int | None) -> str:
    """Hash of names, shapes and so many values of each tensor; all of them if None."""
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        if values is not None and flat.numel() > values:
            flat = flat[:: flat.numel() // values]
        sha.update(f"{name} {tuple(tensor.shape)}\n".encode())
        sha.update(flat.float().cpu().numpy().tobytes())
    return sha.hexdigest()
