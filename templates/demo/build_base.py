"""Builds the demo's base model: a small but true Stable Diffusion 1.5 pipeline, taught from drawn pictures on a CPU.

    python -m templates.demo.build_base --out templates/demo/base --minutes 40

run from the root of the repository (as a module: run as a plain file, the neighbouring ``datasets.py`` would pose as
the library of that name). ``--minutes 2`` makes a rough one that loads and runs. The whole of what a Stable Diffusion
pipeline holds is built here, with nothing downloaded: the tokenizer, an autoencoder, a text encoder and a UNet, of the
same classes and the same layout as SD 1.5's, and the same noise schedule; only much narrower, and for pictures of about
64 x 64.

First the autoencoder is trained on drawn pictures of all kinds, for a quarter of the time; then the UNet and the text
encoder together on captioned ones, encoded by it. The pipeline is written to ``--out`` at intervals, whole each time, so
a usable one exists early. ``--start templates/demo/base`` goes on from an earlier base: its autoencoder stays as it is,
and all the time goes to the rest. ``--seed`` fixes the start and the drawings; as the time is given in minutes, two runs
still differ in how many steps they get.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .pictures import WORDS, Picture, draw_any, draw_captioned
from .words import MAX_LENGTH, write_tokenizer

SIDE = 64
LATENT_CHANNELS = 4
TEXT_WIDTH = 64
BUCKETS = {(64, 64): 6, (80, 48): 1, (48, 80): 1, (72, 56): 1, (56, 72): 1}
"""Picture sizes (width, height) and how often a batch has them, beside one another."""

VAE_SHARE = 0.25
VAE_BATCH, VAE_RATE, VAE_POOL = 16, 2e-3, 4000
UNET_BATCH, UNET_RATE, UNET_POOL = 16, 7e-4, 12000
KL_WEIGHT = 5e-4
CAPTION_DROPOUT = 0.1
NOISE_OFFSET = 0.3
"""See `offset_noise`."""
MOST_WEIGHT = 10.0
"""Limit on how much more a very noisy moment counts than a clean one; see `Learner.weights`."""
REFRESH = 6
"""So many of the pool's pictures are drawn anew at each step."""
SAVE_EVERY_MINUTES = 4.0
NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


@dataclass
class Record:
    """What there is to know of a run afterwards; kept beside the weights."""

    seed: int
    minutes: float
    vae_steps: int = 0
    vae_l1: float = math.nan
    scaling_factor: float = math.nan
    unet_steps: int = 0
    held_out: list[tuple[int, float, float]] = field(default_factory=list)
    """Step and loss on pictures never trained on, with their own and with one another's captions.

    Only where the second is the higher one do the captions count for anything.
    """
    earlier: dict[str, Any] | None = None
    """The record of the base that this run went on from."""


class Clock:
    """Measures the share of a time budget that is used up, and from it the learning rate."""

    def __init__(self, minutes: float, warm_up_steps: int = 100) -> None:
        """Start now."""
        self.seconds = minutes * 60
        self.warm_up_steps = warm_up_steps
        self.start = time.monotonic()

    def share(self) -> float:
        """Return the share of the time that is gone, at most 1."""
        return min(1.0, (time.monotonic() - self.start) / self.seconds)

    def rate(self, step: int) -> float:
        """Return the factor for the learning rate: a linear warm-up in steps, then a half cosine over the time."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.share()))
        return min(1.0, (step + 1) / self.warm_up_steps) * (0.01 + 0.99 * cosine)

    def steps(self) -> Iterator[int]:
        """Count steps until the time is up."""
        step = 0
        while self.share() < 1:
            yield step
            step += 1


def say(text: str) -> None:
    """Print a line of the log at once."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def build_autoencoder() -> AutoencoderKL:
    """Build the autoencoder: three blocks, so pictures shrink by four (SD 1.5 has four blocks and shrinks by eight)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
    )


def build_unet() -> UNet2DConditionModel:
    """Build the UNet: attention to the text at every scale but the coarsest, and in the middle, as in SD 1.5."""
    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 64, 80),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(vocabulary: int) -> CLIPTextModel:
    """Build CLIP's text model for a vocabulary whose last two ids are the start and the end token."""
    start, end = vocabulary - 2, vocabulary - 1
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=TEXT_WIDTH * 4,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            hidden_act="quick_gelu",
            projection_dim=TEXT_WIDTH,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def to_tensor(pictures: list[Picture]) -> Tensor:
    """Stack pictures of one size, from -1 to 1."""
    pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def reconstruction_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Compare pixels, edges and coarser scales; the edges are what a plain pixel loss leaves blurred."""
    error = made - wanted
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    coarse = functional.avg_pool2d(error, 2).abs().mean() + functional.avg_pool2d(error, 4).abs().mean()
    return error.abs().mean() + 0.5 * edges + 0.5 * coarse


def train_autoencoder(minutes: float, rng: random.Random, record: Record) -> AutoencoderKL:
    """Train the autoencoder and set its scaling factor so that latents have a deviation of 1, as the UNet expects."""
    clock = Clock(minutes)
    vae = build_autoencoder().to(memory_format=torch.channels_last)
    average = EMAModel(vae.parameters(), decay=0.998)
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    pool = to_tensor([draw_any(rng, SIDE, SIDE) for _ in range(pool_size(VAE_POOL, minutes))])
    for step in clock.steps():
        set_rate(optimizer, VAE_RATE * clock.rate(step))
        redrawn = torch.randint(len(pool), (REFRESH,))
        pool[redrawn] = to_tensor([draw_any(rng, SIDE, SIDE) for _ in range(REFRESH)])
        batch = pool[torch.randint(len(pool), (VAE_BATCH,))].contiguous(memory_format=torch.channels_last)
        latent = vae.encode(batch).latent_dist
        loss = reconstruction_loss(vae.decode(latent.sample()).sample, batch)
        loss = loss + KL_WEIGHT * latent.kl().mean() / latent.mean[0].numel()
        take_step(optimizer, loss, list(vae.parameters()))
        average.step(vae.parameters())
        record.vae_steps = step + 1
        if step % 200 == 0:
            say(f"vae step {step} loss {loss.item():.4f}")
    average.copy_to(vae.parameters())
    vae.eval().requires_grad_(False)
    measure_autoencoder(vae, rng, record)
    return vae


@torch.no_grad()
def measure_autoencoder(vae: AutoencoderKL, rng: random.Random, record: Record) -> None:
    """Measure the error on fresh pictures, and the deviation of the latents that the UNet will see."""
    fresh = to_tensor([draw_any(rng, SIDE, SIDE) for _ in range(256)])
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(fresh, 64)])
    made = torch.cat([vae.decode(part).sample for part in torch.split(latents, 64)])
    record.vae_l1 = round((made - fresh).abs().mean().item(), 4)
    captioned = to_tensor([draw_captioned(rng, SIDE, SIDE) for _ in range(512)])
    latents = torch.cat([vae.encode(part).latent_dist.sample() for part in torch.split(captioned, 64)])
    record.scaling_factor = round(1 / latents.std().item(), 5)
    vae.register_to_config(scaling_factor=record.scaling_factor)
    say(f"vae done: {record.vae_steps} steps, L1 {record.vae_l1}, scaling factor {record.scaling_factor}")


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[nn.Parameter]) -> None:
    """Take one step downhill, with the gradient's length kept to 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def pool_size(most: int, minutes: float) -> int:
    """Return how many pictures to draw in advance: fewer for a short run, which would spend its time on drawing."""
    return max(240, min(most, int(most * minutes / 10)))


@dataclass(frozen=True)
class Codec:
    """What turns pictures into latents and captions into token ids, just as the pipeline does."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def latents(self, pictures: list[Picture]) -> Tensor:
        """Encode pictures of one size, to a deviation of about 1."""
        latents: Tensor = self.vae.encode(to_tensor(pictures)).latent_dist.sample() * self.vae.config["scaling_factor"]
        return latents

    def tokens(self, captions: list[str]) -> Tensor:
        """Turn captions into rows of token ids, padded to full length."""
        encoded = self.tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
        tokens: Tensor = encoded.input_ids
        return tokens


class LatentPool:
    """Captioned pictures of one size, encoded, of which some are drawn anew at each step.

    Drawing and encoding a whole batch each time would cost half as much as the step itself; a fixed set would be learnt
    by heart.
    """

    def __init__(self, size: tuple[int, int], count: int, rng: random.Random, codec: Codec) -> None:
        """Draw and encode the first pictures."""
        self.size, self.rng, self.codec = size, rng, codec
        parts = [self.draw(min(64, count - start)) for start in range(0, count, 64)]
        self.latents = torch.cat([latents for latents, _ in parts])
        self.tokens = torch.cat([tokens for _, tokens in parts])
        self.oldest = 0

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw and encode some pictures."""
        pictures = [draw_captioned(self.rng, *self.size) for _ in range(count)]
        return self.codec.latents(pictures), self.codec.tokens([picture.caption for picture in pictures])

    def refresh(self, count: int) -> None:
        """Replace the oldest pictures."""
        places = [(self.oldest + offset) % len(self.latents) for offset in range(count)]
        self.latents[places], self.tokens[places] = self.draw(count)
        self.oldest = (self.oldest + count) % len(self.latents)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Return latents and tokens of some pictures picked at random."""
        places = torch.randint(len(self.latents), (count,))
        return self.latents[places], self.tokens[places]


@dataclass
class Learner:
    """The two networks that are trained together, and what their loss needs."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    scheduler: DDPMScheduler

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of both."""
        return [*self.unet.parameters(), *self.text_encoder.parameters()]

    def losses(self, latents: Tensor, tokens: Tensor, noise: Tensor, moments: Tensor) -> Tensor:
        """Return how badly the noise is predicted, for each picture."""
        noisy = self.scheduler.add_noise(latents, noise, moments).contiguous(memory_format=torch.channels_last)
        states = self.text_encoder(tokens).last_hidden_state
        predicted: Tensor = self.unet(noisy, moments, states).sample
        return (predicted - noise).square().mean(dim=(1, 2, 3))

    def weights(self, moments: Tensor) -> Tensor:
        """Return how much the loss counts at each moment of the noise schedule; 1 on average over the schedule.

        Where there is most noise, the plain loss is small whatever is guessed of the picture beneath, although that
        is where the picture's colours and layout are settled. Dividing by the picture's share in the mixture makes up
        for it: it is the loss of predicting "v", which counts all moments alike.
        """
        every: Tensor = (1 / self.scheduler.alphas_cumprod).clamp(max=MOST_WEIGHT)
        return (every / every.mean())[moments]


def offset_noise(like: Tensor) -> Tensor:
    """Return noise that also moves each channel of a picture as a whole.

    Plain noise averages out over a picture, so the colour of a flat background shines through nearly all of it, and
    there is nothing that a colour word could add: trained so for 1,000 steps, this base had learnt none. Noise that
    hides the average too leaves only the caption to tell the colour.
    """
    return torch.randn_like(like) + NOISE_OFFSET * torch.randn(*like.shape[:2], 1, 1)


def held_out_loss(learner: Learner, pool: LatentPool) -> Callable[[], tuple[float, float]]:
    """Return a function that measures the loss on pictures, noise and moments which stay the same.

    It measures twice: with the pictures' own captions and with those of their neighbours.
    """
    latents, tokens = pool.draw(160)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(latents.shape, generator=generator)
    moments = torch.linspace(0, 999, len(latents)).long()
    weights = learner.weights(moments)

    @torch.no_grad()
    def measure() -> tuple[float, float]:
        totals = []
        for captions in (tokens, tokens.roll(1, 0)):
            parts = zip(*(torch.split(whole, 32) for whole in (latents, captions, noise, moments)), strict=True)
            losses = torch.cat([learner.losses(*part) for part in parts])
            totals.append(round((losses * weights).mean().item(), 4))
        return totals[0], totals[1]

    return measure


class JointTraining:
    """The training of the UNet together with the text encoder."""

    def __init__(self, minutes: float, rng: random.Random, record: Record, codec: Codec, learner: Learner) -> None:
        """Draw the pictures and make ready."""
        self.clock = Clock(minutes)
        self.rng, self.record, self.codec, self.learner = rng, record, codec, learner
        self.parameters = self.learner.parameters()
        self.average = EMAModel(self.parameters, decay=0.999)
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
        total = pool_size(UNET_POOL, minutes)
        self.pools = [LatentPool(size, total * share // 10, rng, codec) for size, share in BUCKETS.items()]
        self.measure = held_out_loss(self.learner, self.pools[0])
        self.no_caption = codec.tokens([""])

    def run(self, out: Path) -> None:
        """Train until the time is up, and write the pipeline at intervals and at the end."""
        next_save = SAVE_EVERY_MINUTES * 60
        for step in self.clock.steps():
            set_rate(self.optimizer, UNET_RATE * self.clock.rate(step))
            loss = self.loss()
            take_step(self.optimizer, loss, self.parameters)
            self.average.step(self.parameters)
            self.record.unet_steps = step + 1
            if step % 100 == 0:
                say(f"unet step {step} loss {loss.item():.4f}")
            if self.clock.share() * self.clock.seconds >= next_save:
                next_save += SAVE_EVERY_MINUTES * 60
                self.save(out)
        self.save(out)

    def loss(self) -> Tensor:
        """Return the loss on a batch, some of it without captions, which is what guidance needs."""
        pool = self.rng.choices(self.pools, weights=list(BUCKETS.values()))[0]
        pool.refresh(REFRESH)
        latents, tokens = pool.batch(UNET_BATCH)
        tokens = torch.where(torch.rand(UNET_BATCH, 1) < CAPTION_DROPOUT, self.no_caption, tokens)
        moments = torch.randint(len(self.learner.scheduler), (UNET_BATCH,))
        losses = self.learner.losses(latents, tokens, offset_noise(latents), moments)
        return (losses * self.learner.weights(moments)).mean()

    def save(self, out: Path) -> None:
        """Measure and write the averaged weights, then go back to the current ones."""
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)
        own, others = self.measure()
        self.record.held_out.append((self.record.unet_steps, own, others))
        write_pipeline(self.learner, self.codec, self.record, out)
        self.average.restore(self.parameters)
        say(f"unet step {self.record.unet_steps}: held-out loss {own}, with wrong captions {others}, written to {out}")


def write_pipeline(learner: Learner, codec: Codec, record: Record, out: Path) -> None:
    """Write the pipeline in half precision beside ``out`` and then swap it in, so that no reader finds half of it."""
    vae, text_encoder, unet = (copy.deepcopy(part).half() for part in (codec.vae, learner.text_encoder, learner.unet))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=codec.tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    fresh, old = out.with_name(out.name + ".new"), out.with_name(out.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(fresh, safe_serialization=True)
    # Libraries before transformers 5 read these two files, later ones only tokenizer.json.
    write_tokenizer(fresh / "tokenizer", WORDS)
    (fresh / "training.json").write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def make_tokenizer(out: Path) -> CLIPTokenizer:
    """Make the tokenizer, by way of a folder that is removed again."""
    folder = out.with_name(out.name + ".tokenizer")
    write_tokenizer(folder, WORDS)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    return tokenizer


def from_nothing(options: argparse.Namespace, rng: random.Random, record: Record) -> tuple[Codec, Learner, float]:
    """Train an autoencoder and build the other networks; return them and the minutes left."""
    vae = train_autoencoder(options.minutes * VAE_SHARE, rng, record)
    tokenizer = make_tokenizer(options.out)
    learner = Learner(build_unet(), build_text_encoder(len(tokenizer)), DDPMScheduler(**NOISE))
    return Codec(vae, tokenizer), learner, options.minutes * (1 - VAE_SHARE)


def from_earlier(options: argparse.Namespace, record: Record) -> tuple[Codec, Learner, float]:
    """Load all networks from an earlier base, and what is on record of it."""
    pipeline = StableDiffusionPipeline.from_pretrained(options.start, dtype=torch.float32)
    record.earlier = json.loads((options.start / "training.json").read_text(encoding="utf-8"))
    for name in ("vae_steps", "vae_l1", "scaling_factor"):
        setattr(record, name, record.earlier[name])
    vae = pipeline.vae.requires_grad_(False)
    learner = Learner(pipeline.unet.train(), pipeline.text_encoder.train(), DDPMScheduler(**NOISE))
    return Codec(vae, pipeline.tokenizer), learner, options.minutes


def main() -> None:
    """Read the command line and build the base."""
    parser = argparse.ArgumentParser(description="Build the demo's base model from drawn pictures.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base", help="folder to write it to")
    parser.add_argument("--minutes", type=float, default=40.0, help="time to train for, in all")
    parser.add_argument("--start", type=Path, help="folder of an earlier base to go on from")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawings and the weights")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    record = Record(seed=options.seed, minutes=options.minutes)
    codec, learner, minutes = from_earlier(options, record) if options.start else from_nothing(options, rng, record)
    learner.unet.to(memory_format=torch.channels_last)
    networks = (codec.vae, learner.unet, learner.text_encoder)
    say(f"{sum(p.numel() for network in networks for p in network.parameters()):,} parameters in all")
    JointTraining(minutes, rng, record, codec, learner).run(options.out)


if __name__ == "__main__":
    main()
