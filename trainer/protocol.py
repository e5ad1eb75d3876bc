"""What the two sides say to each other: a session of jobs goes out, events and a status come back.

Imported on the laptop, where there is no torch, and on the rented machine, where there is nothing of
lorry but this package. Needs pydantic and the standard library only. Knows nothing of SSH or money.

The session's folder on the training machine, all names relative to it:

    session.json                  `Session`: the queue; replaced by the client when the lifetime changes
    status.json                   `Status`: replaced atomically, about once a second
    events.jsonl                  `Event` lines, append-only; the client reads on from an offset
    stop                          its existence asks for a checkpoint and an orderly end
    jobs/<name>/stop              the same for this job alone; the others go on
    jobs/<name>/job.json          `JobSpec`
    jobs/<name>/out/...           what `Committed` events list, and nothing else, comes home
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from . import blocks
from .methods import Method, MethodName
from .optimizer_names import OPTIMIZERS, is_dotted, step_rules, trouble

PROTOCOL_VERSION = 1

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names become file names on three systems: letters, digits, dot, dash and underscore only."""

FAMILIES = ("sd15", "sd2", "sdxl", "sd3", "sd35", "flux", "zimage")
"""Model families that the trainer has a plug-in for; `trainer.families` holds one file for each."""

LRScheduler = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "rex",
    "inverse_sqrt",
    "piecewise_constant",
    "warmup_stable_decay",
]
LR_SCHEDULERS: tuple[str, ...] = get_args(LRScheduler)

MAX_EVENT_BYTES = 64 * 1024
"""A line longer than this is not an event of ours; the reader drops it instead of growing."""


def _optimizer(name: str) -> str:
    if name in OPTIMIZERS or is_dotted(name):
        return name
    raise PydanticCustomError("literal_error", "this is no optimizer", {"expected": ", ".join(OPTIMIZERS)})


def _arguments(told: Any) -> Any:
    """TOML's exact numbers as the ordinary ones that an optimizer takes; lists of them as tuples."""
    if not isinstance(told, dict):
        return told
    return {key: tuple(map(_number, one)) if isinstance(one, list | tuple) else _number(one, str, bool) for key, one in told.items()}


def _number(value: object, *others: type) -> Any:
    if isinstance(value, others) or (isinstance(value, int | float | Decimal) and not isinstance(value, bool)):
        return float(value) if isinstance(value, Decimal) else value
    raise PydanticCustomError("argument", "each is a number, a text, true or false, or a list of numbers")


KnownOptimizer = Literal[
    "AdamW",
    "AdamW8bit",
    "PagedAdamW",
    "PagedAdamW8bit",
    "AdamWBF16",
    "StableAdamW",
    "AdamWScheduleFree",
    "Lion",
    "Lion8bit",
    "PagedLion",
    "PagedLion8bit",
    "Prodigy",
    "Adafactor",
    "SGD",
]
OptimizerName = Annotated[KnownOptimizer | str, AfterValidator(_optimizer)]
"""A name that we know, or a class of an installed package with dots in it."""


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


Pattern = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_pattern)]
"""Looked for in `unet.down_blocks.0...`: a piece of a layer's name will do."""


class Message(BaseModel):
    """Strict and frozen: an unknown key is a mistake of ours or a lie of the other side."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingOptions(Message):
    """The keys of `[[lora]]` that say how to train; every family knows them.

    Field descriptions are the user's documentation: the reference page is generated from them.
    """

    trigger: str | None = Field(None, description="Word that calls the concept up; put in front of captions that lack it.")
    steps: int | None = Field(None, ge=1, le=1_000_000, description="Optimizer steps. Give this or `epochs`; 1500 when neither is given.")
    epochs: int | None = Field(None, ge=1, le=100_000, description="Passes over the dataset, repeats counted, instead of `steps`.")
    batch_size: int = Field(1, ge=1, le=1024, description="Pictures in one forward pass.")
    gradient_accumulation: int = Field(1, ge=1, le=1024, description="Forward passes added up before one optimizer step.")
    resolution: int = Field(512, ge=32, le=4096, description="Side in pixels of the square whose area every bucket keeps to.")
    min_bucket: int = Field(256, ge=8, le=8192, description="Shortest bucket side in pixels.")
    max_bucket: int = Field(1024, ge=8, le=8192, description="Longest bucket side in pixels.")
    bucket_step: int = Field(64, ge=8, le=512, multiple_of=8, description="Bucket sides are multiples of this, in pixels.")
    bucket_no_upscale: bool = Field(False, description="Never enlarge a picture: small ones get smaller buckets.")
    more_resolutions: tuple[Annotated[int, Field(ge=32, le=4096)], ...] = Field(
        (), max_length=8, description="Further resolutions at which every picture is trained too, as in `[768]`; an epoch grows by them."
    )
    crops: int = Field(
        1, ge=1, le=16, description="Parts of a picture that take turns where its bucket cuts something off; 1: the middle alone."
    )
    flip: bool = Field(False, description="Also train on mirrored pictures (not for faces and text).")
    background: str = Field(
        "white",
        pattern=r"^(white|black|grey|#[0-9A-Fa-f]{6})$",
        description="What lies under transparent pictures: `white`, `black`, `grey`, or a colour as in `#ff8800`.",
    )
    alpha_mask: bool = Field(False, description="Train on what is opaque: the loss counts by each picture's own transparency.")
    mask_min_weight: float = Field(
        0.0, ge=0, le=1, description="What the loss counts at least where a mask is black; masks come from `masks` or `alpha_mask`."
    )
    prior_loss_weight: float = Field(1.0, ge=0, le=10, description="What the loss of a regularisation picture counts.")
    caption_prefix: str = Field("", max_length=1000, description="Text before every caption, with a blank between.")
    caption_suffix: str = Field("", max_length=1000, description="Text after every caption, with a blank between.")
    several_captions: bool = Field(
        False, description="Each line of a caption file is a caption, and one is drawn at every use. Off: the first line alone is read."
    )
    wildcards: bool = Field(False, description="`{red|blue}` in a caption is one of its words, drawn at every use.")
    shuffle_caption: bool = Field(False, description="Shuffle the comma-separated tags of a caption at every use.")
    keep_tokens: int = Field(0, ge=0, description="Tags at the caption's start that `shuffle_caption` leaves in place.")
    keep_tokens_separator: str | None = Field(
        None, min_length=1, max_length=16, description="Mark in captions, as in `|||`: tags before it, and after a second one, stay there."
    )
    tag_dropout: float = Field(0.0, ge=0, le=1, description="Share of tags left out at every use; those that are kept in place stay.")
    max_token_length: Literal[75, 150, 225] = Field(
        75, description="Tokens of a caption that are read: longer ones are read in pieces of 75, as kohya does it, and beyond this cut."
    )
    heldout: int | None = Field(
        None,
        ge=0,
        le=64,
        description="Pictures kept out of training to measure it by; 0: none. When not given: 1 in 10, at most 8, none of fewer than 10.",
    )
    clip_skip: int = Field(
        1, ge=1, le=11, description="Layer of the text encoder that is read, counted from its end, for sd15 and sd2; SDXL has its own."
    )
    stop_when_worse: int | None = Field(
        None,
        ge=1,
        le=100,
        description="End when so many measurements in a row were no better than the best; the adapter is then the best one's. "
        "Measured when a checkpoint is saved, which is ten times a run unless said otherwise.",
    )
    caption_dropout: float = Field(0.0, ge=0, le=1, description="Share of samples trained with an empty caption.")
    caption_dropout_every_epochs: int | None = Field(None, ge=1, description="Every so many epochs all captions are empty, as in kohya.")
    adapter: MethodName = Field(
        "lora",
        description="How each layer's change is written: `lora`, which every program reads; `loha` or `lokr`, which ComfyUI, Forge and "
        "A1111 read: LoHa reaches higher ranks with as many values, LoKr is far smaller.",
    )
    dora: bool = Field(
        False,
        description="Train the length of every output as well (DoRA): learns more at small ranks, takes longer. ComfyUI and Forge draw "
        "with its files as it was trained; A1111 and diffusers do not.",
    )
    lokr_factor: int = Field(
        -1, ge=-1, le=1024, description="Into how many parts LoKr divides a layer's sides; fewer make a larger file. -1: near the root."
    )
    lokr_decompose_both: bool = Field(False, description="LoKr's small matrix may be a product of two thin ones, as its large one is.")
    lokr_whole: bool = Field(
        False, description="LoKr's large matrix is whole, whatever the rank (LyCORIS: full_matrix); alpha and rank then mean nothing."
    )
    rank: int = Field(16, ge=1, le=1024, description="Rank of the low-rank matrices (kohya: network_dim).")
    alpha: float | None = Field(None, gt=0, description="Scale: the adapter is multiplied by alpha / rank. The rank when not given.")
    rslora: bool = Field(False, description="Multiply by alpha / sqrt(rank) instead: large ranks then learn as fast as small ones.")
    conv_rank: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Adapt the convolutions of sd15, sd2 and sdxl as well (LoCon), the 3x3 ones at this rank (kohya: conv_dim).",
    )
    conv_alpha: float | None = Field(None, gt=0, description="`alpha` of the 3x3 convolutions. `conv_rank` when not given.")
    include_layers: tuple[Pattern, ...] = Field(
        (), description='Adapt only layers whose path has one of these in it: regular expressions, as in `["attn2", "up_blocks[.]1"]`.'
    )
    exclude_layers: tuple[Pattern, ...] = Field((), description="Leave out layers whose path has one of these in it; wins over the former.")
    layer_ranks: dict[Pattern, Annotated[int, Field(ge=0, le=1024)]] = Field(
        {}, description='Ranks of layers by pattern, the last that fits wins, 0 leaves out: `{ "down_blocks" = 4, "mid_block" = 8 }`.'
    )
    layer_lr: dict[Pattern, Annotated[float, Field(ge=0, le=1000)]] = Field(
        {}, description="What the learning rate of layers is multiplied by, by pattern, the last that fits wins; 0 leaves out."
    )
    block_ranks: tuple[Annotated[int, Field(ge=0, le=1024)], ...] = Field(
        (),
        max_length=64,
        description="Ranks of the UNet's blocks, as kohya's block_dims: 25 numbers for sd15 and sd2, 23 for sdxl; 0 leaves out.",
    )
    block_lr: tuple[Annotated[float, Field(ge=0, le=1000)], ...] = Field(
        (), max_length=64, description="What the blocks' learning rates are multiplied by, counted like `block_ranks`; 0 leaves out."
    )
    lora_plus_ratio: float = Field(
        1.0, gt=0, le=1000, description="Learning rate of B over that of A (LoRA+); 16 is its paper's, 1 the usual."
    )
    merge_weight: float = Field(1.0, ge=-10, le=10, description="What `merge_lora` counts.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the values between A and B left out at each step (kohya: network_dropout)."
    )
    rank_dropout: float = Field(0.0, ge=0, lt=1, description="Share of the ranks left out for each sample.")
    module_dropout: float = Field(0.0, ge=0, lt=1, description="Share of the layers left out at each step.")
    learning_rate: float = Field(1e-4, ge=0, description="Learning rate of every part that has none of its own.")
    unet_lr: float | None = Field(None, ge=0, description="Learning rate of the UNet or transformer; 0 leaves it untrained.")
    text_encoder_lr: float | None = Field(None, ge=0, description="Learning rate of the text encoders; untrained when not given or 0.")
    text_encoder_2_lr: float | None = Field(
        None,
        ge=0,
        description="Learning rate of the second text encoder, where a family has one to train; `text_encoder_lr` when not given.",
    )
    optimizer: OptimizerName = Field(
        "AdamW8bit",
        description="Optimizer. 8bit: states in 8 bits; Paged: they may move to main memory; Lion wants a third to a tenth of AdamW's "
        "rate; Prodigy finds the rate itself, one for each part, and wants `learning_rate = 1.0`; AdamWScheduleFree wants a constant "
        "rate, and saves, draws and measures the mean that it keeps; AdamWBF16 rounds weights and states by chance; or a class of a "
        "package that is installed where the job trains, as in `torch.optim.NAdam`.",
    )
    optimizer_args: Annotated[dict[str, Any], BeforeValidator(_arguments)] = Field(
        default_factory=dict,
        description="What else the optimizer is told, as in `{ betas = [0.9, 0.99] }` or, for Prodigy, `{ d_coef = 2.0 }`.",
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Keep a running mean of the weights and save, draw and measure that; 0.999 is usual for long runs."
    )
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are scaled down to this norm; 0 turns it off.")
    lr_scheduler: LRScheduler = Field("constant", description="Shape of the learning rate over the run; a warm-up goes before any of them.")
    lr_warmup_steps: float | int = Field(
        0, ge=0, description="Steps over which the learning rate rises from 0; below 1 the share of all steps, as in 0.05."
    )
    lr_power: float = Field(1.0, gt=0, le=10, description="Power of `polynomial`; 1 is `linear`.")
    lr_min: float = Field(0.0, ge=0, le=1, description="Share of the learning rate that is left at the end of a schedule that falls.")
    lr_decay_share: float = Field(0.2, gt=0, le=1, description="Last part of the run in which `warmup_stable_decay` falls.")
    lr_step_rules: str | None = Field(
        None, description="Factors of `piecewise_constant` and the steps before which they count, as in `1:1000,0.1:1500,0.01`."
    )
    lr_restarts: int = Field(3, ge=1, le=100, description="Cycles of `cosine_with_restarts`.")
    min_snr_gamma: float | None = Field(None, gt=0, description="Min-SNR loss weighting (5 is usual); off when not given.")
    debiased_estimation: bool = Field(False, description="Weigh the loss by 1 / sqrt(signal-to-noise), as debiased estimation does.")
    prediction: Literal["epsilon", "v"] | None = Field(
        None, description="What the base answers: the noise, or v. Read from the base when not given; some files do not say."
    )
    zero_terminal_snr: bool | None = Field(
        None,
        description="Whether the last timestep is noise alone. Read from the base when not given; v-prediction bases of today want it.",
    )
    timestep_sampling: Literal["logit_normal", "uniform", "mode", "sigmoid"] = Field(
        "logit_normal",
        description="How often each noise level of a flow model is trained: `mode` is the SD3 paper's, `sigmoid` is kohya's.",
    )
    logit_mean: float = Field(0.0, ge=-10, le=10, description="Mean of `logit_normal`; above 0 more of the noisy levels are seen.")
    logit_std: float = Field(1.0, gt=0, le=10, description="Width of `logit_normal`, and of `sigmoid` (kohya: sigmoid_scale).")
    mode_scale: float = Field(1.29, ge=-1, le=1.75, description="Scale of `mode`; 0 is `uniform`, above 0 the middle levels are seen more.")
    flow_shift: float | None = Field(
        None, gt=0, le=100, description="Moves a flow model's levels towards noise: 3 is usual, 1 leaves them. The base's when not given."
    )
    resolution_shift: bool | None = Field(
        None, description="Shift by the size of each bucket, as FLUX does it, instead of by one number. As the base does it when not given."
    )
    loss_space: Literal["velocity", "x0"] = Field(
        "velocity",
        description="What a flow model's error is taken of: the velocity (SimpleTuner, ai-toolkit), or the clean picture (SD3 in kohya and "
        "diffusers), which counts low noise less and wants a higher learning rate.",
    )
    flow_weighting: Literal["none", "sigma_sqrt", "cosmap"] = Field("none", description="Loss weight by noise level, as in the SD3 paper.")
    t5_length: Literal[77, 154, 256, 512] | None = Field(
        None,
        description="Tokens that T5, or what is in its place, reads of a caption; when not given 154 for SD3, 512 for FLUX and Z-Image.",
    )
    t5_padding: Literal["kept", "zero"] = Field(
        "kept", description="What T5 says of padding: kept, as the models were trained and pictures are drawn, or set to zero."
    )
    blank_caption: Literal["encoded", "zeros"] = Field(
        "encoded", description="What an empty caption is for SD3 and FLUX: what the encoders make of it, or zeros in its place."
    )
    guidance_embedding: float = Field(1.0, ge=0, le=100, description="Guidance that FLUX.1-dev is told of while it is trained.")
    layers: Literal["kohya", "attention"] = Field(
        "kohya", description="Layers that get an adapter: those of kohya's files, or the attention alone as in diffusers' examples."
    )
    loss_type: Literal["l2", "l1", "huber", "smooth_l1"] = Field(
        "l2", description="Distance between answer and target; `huber` minds outliers less (pseudo-Huber, as in kohya)."
    )
    huber_schedule: Literal["constant", "exponential", "snr"] = Field(
        "snr", description="How the threshold of `huber` and `smooth_l1` depends on the timestep."
    )
    huber_c: float = Field(0.1, gt=0, le=10, description="Threshold between quadratic and linear at the noisiest timestep.")
    multires_noise_iterations: int = Field(0, ge=0, le=16, description="Adds noise of so many coarser resolutions; 6 to 10 is usual.")
    multires_noise_discount: float = Field(0.3, gt=0, le=1, description="What each coarser noise counts of the finer one.")
    ip_noise_gamma: float = Field(
        0.0, ge=0, le=1, description="Input perturbation: extra noise on the model's input that the target does not know of; 0.1 is usual."
    )
    noise_offset: float = Field(
        0.0, ge=0, le=1, description="Adds a constant shift to the noise of each channel; helps very dark and bright pictures."
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "bf16", description="Precision of the frozen model and of the arithmetic; the adapter's own weights stay fp32."
    )
    save_precision: Literal["fp16", "bf16", "fp32"] = Field("fp16", description="Precision of the adapter file.")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations twice instead of keeping them: less VRAM, about a third slower."
    )
    base_precision: Literal["full", "fp8", "int8", "nf4"] = Field(
        "full",
        description="How the frozen UNet's or transformer's linear layers are stored: as `mixed_precision` says, in 8 bits (`int8` is the "
        "more exact), or in 4. They are unpacked for each use, so this saves memory and costs time; the adapter stays as exact as it was.",
    )
    encoder_precision: Literal["full", "fp8", "int8", "nf4"] = Field(
        "full", description="The same for text encoders of more than a billion weights: T5, and what stands in its place."
    )
    offload: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the UNet's or transformer's blocks that wait in main memory and come to the card when they are needed; "
        "turns `gradient_checkpointing` on. The same numbers, slower.",
    )
    speed: Literal["auto", "eager", "graphs", "compile"] = Field(
        "auto",
        description="How passes are run on a GPU: `graphs` records one for each shape and replays it, without waiting for the host; "
        "`compile` compiles the repeated blocks as well, which takes minutes; `eager` does neither; `auto` is `graphs`. What cannot be "
        "done is said and left out, and a recording that does not give the numbers of `eager` is not used.",
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Two runs with one seed on one machine give the same adapter.")
    save_every_steps: int | None = Field(None, ge=1, description="Save adapter and checkpoint every so many steps.")
    save_every_epochs: int | None = Field(None, ge=1, description="Save adapter and checkpoint every so many epochs.")
    sample_every_steps: int | None = Field(None, ge=1, description="Draw `sample_prompts` every so many steps.")
    sample_prompts: tuple[str, ...] = Field(
        (), description="Prompts to draw while training, with kohya's flags: `--n NEGATIVE --w 512 --h 512 --d SEED --l CFG --s STEPS`."
    )
    preview_decoder: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="Tiny autoencoder that decodes samples but the last ones: a hub id, as `madebyollin/taesd` for sd15, or a folder.",
    )
    clip_score: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="CLIP model that scores each sample against its prompt: a hub id, as `openai/clip-vit-large-patch14`, or a folder.",
    )

    @model_validator(mode="after")
    def _optimizer_fits(self) -> TrainingOptions:
        rates: dict[str, float | None] = {"learning_rate": self.learning_rate} if self.unet_lr is None else {"unet_lr": self.unet_lr}
        rates |= {"text_encoder_lr": self.text_encoder_lr, "text_encoder_2_lr": self.text_encoder_2_lr}
        if wrong := trouble(self.optimizer, tuple(self.optimizer_args), rates, self.lr_scheduler, self.ema_decay):
            raise ValueError(wrong)
        return self

    @model_validator(mode="after")
    def _the_method_has_what_is_asked_of_it(self) -> TrainingOptions:
        if self.adapter != "lora" and (self.dropout or self.rank_dropout):
            raise ValueError(f"dropout and rank_dropout lie between LoRA's two matrices; {self.adapter} has module_dropout alone")
        only = {"lokr_factor": -1, "lokr_decompose_both": False, "lokr_whole": False}
        given = [key for key, usual in only.items() if getattr(self, key) != usual]
        if given and self.adapter != "lokr":
            raise ValueError(f'{given[0]} is of adapter = "lokr"; take it out, or set adapter')
        if self.lokr_factor == 0:
            raise ValueError("lokr_factor is -1 or at least 1: nothing can be divided into 0 parts")
        return self

    @model_validator(mode="after")
    def _rates_can_be_told(self) -> TrainingOptions:
        if self.lr_warmup_steps >= 1 and self.lr_warmup_steps != int(self.lr_warmup_steps):
            raise ValueError(f"lr_warmup_steps is a whole number of steps, or below 1 a share of them, not {self.lr_warmup_steps}")
        if (self.lr_scheduler == "piecewise_constant") != (self.lr_step_rules is not None):
            raise ValueError('lr_step_rules and lr_scheduler = "piecewise_constant" go together: give both or neither')
        try:
            step_rules(self.lr_step_rules or "1")
        except ValueError:
            raise ValueError(f"lr_step_rules is written 1:1000,0.1:1500,0.01, its steps rising, not {self.lr_step_rules}") from None
        return self

    @model_validator(mode="after")
    def _there_is_what_to_stop_by(self) -> TrainingOptions:
        if self.stop_when_worse is not None and self.heldout == 0:
            raise ValueError("stop_when_worse needs pictures to measure by: take heldout = 0 out")
        return self

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> TrainingOptions:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give `steps` or `epochs`, not both")
        return self

    @model_validator(mode="after")
    def _buckets_hold_the_resolution(self) -> TrainingOptions:
        for side in (self.resolution, *self.more_resolutions):
            if not self.min_bucket <= side <= self.max_bucket:
                raise ValueError(f"resolution {side} must lie between min_bucket {self.min_bucket} and max_bucket {self.max_bucket}")
        return self

    @model_validator(mode="after")
    def _a_bucket_is_at_least_one_step(self) -> TrainingOptions:
        side = min(self.resolution, *self.more_resolutions, self.resolution)
        if side < self.bucket_step:
            raise ValueError(f"resolution {side} must be at least bucket_step {self.bucket_step}")
        return self

    @model_validator(mode="after")
    def _blocks_are_kohyas(self) -> TrainingOptions:
        for key, values in (("block_ranks", self.block_ranks), ("block_lr", self.block_lr)):
            if values and len(values) not in blocks.COUNTS:
                raise ValueError(f"{key} has {len(values)} numbers; it takes 25 (sd15, sd2) or 23 (sdxl)")
        return self

    @property
    def method(self) -> Method:
        """What the adapter is made of."""
        return Method(name=self.adapter, dora=self.dora, factor=self.lokr_factor, both=self.lokr_decompose_both, whole=self.lokr_whole)

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied by at the job's rank."""
        return self.scale_at(self.rank)

    def scale_at(self, rank: int, *, wide: bool = False) -> float:
        """What the product is multiplied by in a layer of this rank: alpha / rank, or alpha / sqrt(rank). `wide`: a 3x3 convolution."""
        alpha = self.conv_alpha if wide else self.alpha
        return (rank if alpha is None else alpha) / (math.sqrt(rank) if self.rslora else rank)


class JobSpec(TrainingOptions):
    """One LoRA to train, complete: the trainer reads nothing else. Paths are relative to the session's folder."""

    version: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN)
    family: str
    base: str = Field(description="Diffusers folder, single `.safetensors` checkpoint or hub id.")
    base_revision: str | None = None
    start_from: str | None = None
    """A LoRA file whose weights the adapter begins with."""
    merge_lora: str | None = None
    """A LoRA file that is added to the base before anything else."""
    dataset: str
    masks: str | None = None
    """Folder of masks: one picture for each of the dataset's, white where it is trained on."""
    regularisation: str | None = None
    """Folder of pictures that show what is not to change."""
    output: str
    comment: str = ""
    """Goes into the adapter's metadata."""
    made_with: dict[str, str] = Field(default_factory=dict)
    """What the session is made of, by name and hash: goes into the metadata too."""

    @property
    def resident(self) -> tuple[str, ...]:
        """What jobs must have in common to be trained by one process, on one base in memory."""
        return self.family, self.base, self.base_revision or "", self.mixed_precision


class Session(Message):
    """The queue of one machine."""

    version: Literal[1] = 1
    run: str = Field(pattern=NAME_PATTERN)
    jobs: tuple[str, ...] = Field(min_length=1)
    """Names of the jobs in order; each one's spec is `jobs/<name>/job.json`. The client may write more at its end while it runs."""
    lifetime_s: float = Field(gt=0)
    """Seconds after the supervisor's first start at which training stops with a checkpoint. Relative,
    because the clocks of two machines need not agree."""
    together: bool = True
    """Jobs on one base share their passes where their shapes allow it. False: one after the other, to the bit."""
    width: int | None = Field(default=None, ge=1)
    """Jobs in one pass at most, by what the card's memory was planned for; None: as many as the trainer sees fit."""


class JobState(Message):
    """Where one job stands."""

    state: Literal["queued", "running", "done", "stopped", "failed"] = "queued"
    step: int = 0
    steps: int = 0
    message: str = ""


class Status(Message):
    """The supervisor's heartbeat."""

    version: Literal[1] = 1
    state: Literal["running", "ended"]
    reason: Literal["", "done", "stopped", "deadline", "failed"] = ""
    """Why it ended: all jobs done, asked to stop, lifetime over, or some job failed."""
    beat: int
    """Counts up while the supervisor lives; a client that sees it stand still knows that it died."""
    uptime_s: float
    jobs: dict[str, JobState]


class _Event(Message):
    at_s: float = Field(ge=0)
    """Seconds since the session's start, by the training machine's monotonic clock."""
    job: str = ""
    """Empty for events of the session itself."""


class Phase(_Event):
    """A job entered a phase; `detail` is for a person."""

    kind: Literal["phase"] = "phase"
    phase: Literal["loading", "caching", "training", "sampling", "saving"]
    detail: str = ""


class Started(_Event):
    """A job knows its data: what will be trained."""

    kind: Literal["started"] = "started"
    steps: int
    images: int
    epochs: int
    step: int = 0
    """Above 0 when it resumes from a checkpoint."""
    device: str = ""
    trainable: int = 0
    """Number of trained weights."""


class Step(_Event):
    """One optimizer step, or the mean of several when they are faster than the reporting interval."""

    kind: Literal["step"] = "step"
    step: int
    steps: int
    epoch: int
    loss: float
    lr: float
    samples_per_s: float
    grad_norm: float | None = None


class Evaluated(_Event):
    """Loss on held-out pictures with fixed noise and timesteps, comparable across the run."""

    kind: Literal["evaluated"] = "evaluated"
    step: int
    loss: float
    bands: tuple[float, ...] = ()
    """The same for each band of noise, from little to much: a LoRA that has learnt details shows it in the first, a style in the last."""
    best: bool = False
    """Whether it is the lowest so far: its checkpoint is kept."""


class Scored(_Event):
    """How much a sample is of what its prompt says, as a CLIP sees it: 100 times a cosine; 25 to 35 is usual."""

    kind: Literal["scored"] = "scored"
    step: int
    number: int = Field(ge=0, le=100_000)
    """Which of the prompts, from 0."""
    clip_score: float = Field(ge=-101, le=101)


class Committed(_Event):
    """A file is complete on the training machine's disk and may be fetched: the manifest, line by line."""

    kind: Literal["committed"] = "committed"
    path: str = Field(pattern=r"^jobs/[A-Za-z0-9._-]+/out/[A-Za-z0-9._/-]+$", max_length=255)
    role: Literal["adapter", "checkpoint", "sample"]
    step: int = Field(ge=0)
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    final: bool = False
    """True for the finished adapter."""


class Warned(_Event):
    """Something a person should know; training goes on."""

    kind: Literal["warned"] = "warned"
    message: str


class Ended(_Event):
    """A job ended. `code` is an error code of the trainer when it failed."""

    kind: Literal["ended"] = "ended"
    state: Literal["done", "stopped", "failed"]
    step: int
    message: str = ""
    code: str = ""


Event = Annotated[Phase | Started | Step | Evaluated | Scored | Committed | Warned | Ended, Field(discriminator="kind")]
AnyEvent = Phase | Started | Step | Evaluated | Scored | Committed | Warned | Ended
_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(Event)


def dump_event(event: AnyEvent) -> bytes:
    """One line of `events.jsonl`, newline included."""
    return event.model_dump_json(exclude_defaults=False).encode() + b"\n"


class EventReader:
    """Bytes in, events out. Knows nothing of SSH, files or time.

    The bytes come from a stranger's machine: a line that is too long or no event is counted in
    `dropped`, and the rest is still read.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False
        self.dropped = 0

    def feed(self, data: bytes) -> Iterator[AnyEvent]:
        """Yield the events that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._skipping:
                self._skipping = False
            elif event := self._parse(line):
                yield event
        if len(self._rest) > MAX_EVENT_BYTES:
            self._rest, self._skipping = b"", True
            self.dropped += 1

    def _parse(self, line: bytes) -> AnyEvent | None:
        if not line.strip():
            return None
        if len(line) > MAX_EVENT_BYTES:
            self.dropped += 1
            return None
        try:
            return _EVENT.validate_json(line)
        except ValidationError:
            self.dropped += 1
            return None
