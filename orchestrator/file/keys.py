"""The keys of `lorry.toml`: their names, types, limits, defaults and meaning. Reads nothing.

What is written here is what the user finds in `lorry help config`, in the reference page and in every refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainer.protocol import FAMILIES, NAME_PATTERN, TrainingOptions

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

DEFAULT_IMAGE = "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime"
"""Brings Python and torch, and is so common that many hosts have it cached; CUDA 12.8 knows cards up to Blackwell."""

ProviderName = Literal["vast", "runpod", "tensordock", "ssh", "sandbox", "local"]

TrackerName = Literal["tensorboard", "wandb"]

LogTo = Annotated[
    tuple[TrackerName, ...],
    Field(
        description="Where curves and samples go besides the report, written on this computer while it trains: `tensorboard` files in the "
        "run's folder, `wandb` with the package and the login that are here. No key of them goes to the machine."
    ),
]

PROVIDERS: dict[ProviderName, str] = {
    "vast": "Vast.ai: the marketplace, cheapest",
    "runpod": "RunPod: secure and community cloud",
    "tensordock": "TensorDock: whole virtual machines; never tried live, and they have no guard",
    "ssh": "a machine of yours, over SSH",
    "sandbox": "the practice cloud on this computer; nothing costs anything",
    "local": "this computer",
}


class Section(BaseModel):
    """A table of the file: frozen, and a key that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Budget(Section):
    """`[budget]`: what the run may cost."""

    max_usd: Decimal = Field(gt=0, le=100_000, description="The cap in dollars: every meter of every attempt of this run together.")
    max_hours: float | None = Field(
        None, gt=0, le=10_000, description="The machine is given back after so many hours, whatever is left to train."
    )


class Machine(Section):
    """`[machine]`: where to train."""

    providers: tuple[ProviderName, ...] = Field(
        ("vast", "runpod"), min_length=1, description="Clouds to ask. Their offers compete in one ranking."
    )
    gpus: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        (), description='Cards that will do, as in `"RTX 4090"`. Empty: anything that fits the job.'
    )
    max_usd_per_hour: Decimal | None = Field(None, gt=0, le=1000, description="No machine dearer than this, disk included.")
    interruptible: bool = Field(
        False,
        description="Also take machines that may be taken away (bids, spot): cheaper, and the run goes on elsewhere when it happens."
        " Without an interval of yours it saves as often as wastes least.",
    )
    min_reliability: float = Field(0.95, ge=0, le=1, description="Share of time that the host was up, by the provider's record.")
    regions: tuple[Annotated[str, Field(pattern=r"^[A-Z]{2}$")], ...] = Field(
        (), description='Countries by two letters, as in `"SE"`. Empty: anywhere.'
    )
    min_vram_gib: float | None = Field(None, gt=0, le=2048, description="Video memory at least. Worked out from the jobs when not given.")
    disk_gib: int | None = Field(
        None, ge=1, le=100_000, description="Disk to rent. Worked out from base, datasets and results when not given."
    )
    image: str = Field(
        DEFAULT_IMAGE,
        min_length=1,
        max_length=512,
        description="Container image; must have Python 3.11 or later and torch. As `name@sha256:...` it is the same one tomorrow.",
    )
    verified_only: bool = Field(True, description="Only hosts that the provider has checked.")
    secure_cloud_only: bool = Field(False, description="Only machines in data centres.")
    boot_timeout_minutes: float = Field(
        15, gt=0, le=600, description="A machine that cannot be reached by then is given back for the next one."
    )
    prefer: Literal["cheap", "fast", "safe"] = Field(
        "cheap",
        description="What offers are ranked by: the run's expected cost, its expected time, or how seldom something goes wrong.",
    )
    start_two: bool = Field(
        False, description="Start two machines and keep the one that is ready first; the other is given back at once, its boot is paid."
    )


class LoraConfig(TrainingOptions):
    """`[[lora]]`: one LoRA to train. Recipe and `[defaults]` are already in it."""

    name: str = Field(pattern=NAME_PATTERN, description="Names the job, its folder and its adapter file.")
    dataset: Path = Field(
        description="Folder of pictures: kohya's `10_trigger class` folders, or pictures with .txt captions. Relative to this file."
    )
    masks: Path | None = Field(
        None, description="Folder with a mask for each picture, white where the loss counts: same names, laid out alike or flat."
    )
    regularisation: Path | None = Field(
        None, description="Folder of pictures that show what is not to change, as in `1_woman`; they make up half of every epoch."
    )
    start_from: Path | None = Field(
        None, description="LoRA to go on from, of any format that `lorry convert` reads; another rank is made to fit, and how well is said."
    )
    merge_lora: Path | None = Field(
        None, description="LoRA that is added to the base first, by `merge_weight`: the new one is trained on top, and wants it at use."
    )
    base: str = Field(min_length=1, description="Model to train on: a diffusers folder, one .safetensors checkpoint, or a hub id.")
    base_revision: str | None = Field(None, description="Commit of the hub id, so that the same base is used again.")
    family: str | None = Field(None, description=f"Kind of model: {', '.join(FAMILIES)}. Guessed from the base when not given.")
    memory: Literal["same", "auto", "written"] = Field(
        "same",
        description="What the plan may set so that the job fits a card or is done sooner: `same` what leaves the result as it is to"
        " rounding (gradient checkpointing, offload), `auto` also the precision of the frozen base, `written` nothing. Keys that the file"
        " itself has always stand.",
    )
    keep_metadata: bool = Field(
        False, description="Send pictures with what they tell of place, time and camera, which is left out of what is sent otherwise."
    )
    recipe: str | None = Field(None, description="Values to start from, as `lorry init` lists them; keys written in the file win.")

    def training_options(self) -> TrainingOptions:
        """The part that says how to train."""
        return TrainingOptions.model_validate({key: getattr(self, key) for key in TrainingOptions.model_fields})


class RunConfig(Section):
    """The whole file: one rental and the jobs to do on it."""

    name: str = Field(pattern=NAME_PATTERN, description="Names the run.")
    log_to: LogTo = ()
    budget: Budget
    machine: Machine = Field(default_factory=lambda: Machine.model_validate({}))
    jobs: tuple[LoraConfig, ...] = Field(alias="lora", min_length=1)
    file: Path = Field(exclude=True)
    """Where it was read from; relative paths in it start in its folder."""
    sources: Mapping[str, Mapping[str, str]] = Field(default_factory=dict, exclude=True)
    """Job name -> key -> who said so: `[[lora]]`, `[defaults]` or `recipe sd15-character`. A key that is not there has its default."""


_OWN = [key for key in LoraConfig.model_fields if key not in TrainingOptions.model_fields]

_TOP = {key: RunConfig.model_fields[key] for key in ("name", "log_to")}

TABLES: tuple[tuple[str, str, dict[str, FieldInfo]], ...] = (
    ("", "above all tables", _TOP),
    ("[budget]", "what the run may cost", Budget.model_fields),
    ("[machine]", "where to train", Machine.model_fields),
    ("[[lora]]", "one LoRA to train; [defaults] takes the same keys for all of them",
     {key: LoraConfig.model_fields[key] for key in [*_OWN, *TrainingOptions.model_fields]}),
)  # fmt: skip
"""Heading, what the table is for, its keys: what the reference page and `lorry help config` are drawn from."""
