"""Adapter files: kohya's names, true alpha, and the metadata that other programs read.

kohya's rule: prefix + module path with dots as underscores; `.lora_down.weight`, `.lora_up.weight`, `.alpha`.
The weight added to the base is up @ down * alpha / rank. Metadata keys as sd-scripts `train_network.py` and
SAI modelspec 1.0.1 write them: A1111, Forge, SD.Next and Civitai show and search by them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from . import changes, schedules
from .adapters import Adapter
from .base import read_header
from .buckets import Plan, Size
from .dataset import Sample
from .errors import BaseModelError, IntegrityError
from .files import Written, write_atomically
from .protocol import JobSpec
from .targets import Slot, Target

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

KeyOf = Callable[[str, str], str]
"""Part and module path -> kohya's name. A family's key map."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a family says about itself in the metadata."""

    base_model_version: str
    architecture: str
    implementation: str
    prediction: str
    """Empty for a flow model, of which modelspec says none."""
    v2: bool = False
    zero_terminal_snr: bool = False


def to_kohya(adapter: Adapter, dtype: torch.dtype, key_of: KeyOf) -> dict[str, Tensor]:
    """The adapter under kohya's names, with ONE alpha, a number of the file's precision as kohya has it.

    diffusers gives attention layers whose alpha differs from the most usual one that one (`get_peft_kwargs`, 0.42), so where layers differ,
    or the precision cannot hold the alpha, the rest goes into B: the strength is then right in every program.
    """
    alpha = _alpha(adapter, dtype)
    tensors: dict[str, Tensor] = {}
    for part in adapter.layouts:
        for slot, values in adapter.values(part):
            name = key_of(part, slot.target.name)
            tensors |= {f"{name}.{ending}": value.to("cpu", dtype, copy=True) for ending, value in _stored(adapter, slot, values, alpha)}
            tensors[f"{name}.alpha"] = alpha.clone()
    return tensors


def to_peft(adapter: Adapter, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The adapter under diffusers' names, alpha folded in: `unet.<path>.lora_A.weight`. LoHa and LoKr end and have an alpha as in LyCORIS.

    A DoRA's lengths are there twice: as diffusers and peft read them, and as ComfyUI does.
    """
    alpha = _alpha(adapter, dtype)
    tensors: dict[str, Tensor] = {}
    for part in adapter.layouts:
        for slot, values in adapter.values(part):
            name, plain = f"{part}.{slot.target.name}", slot.method.name == "lora"
            folded = torch.tensor(float(slot.rank)) if plain else alpha
            stored = {_PEFT.get(ending, ending): value for ending, value in _stored(adapter, slot, values, folded)}
            if slot.method.dora and plain:
                stored["lora_magnitude_vector"] = values[-1].view(1, -1, 1, 1) if slot.target.conv else values[-1][:, 0]
            tensors |= {f"{name}.{ending}": value.to("cpu", dtype, copy=True) for ending, value in stored.items()}
            if not plain:
                tensors[f"{name}.alpha"] = alpha.clone()
    return tensors


_PEFT = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}


def _alpha(adapter: Adapter, dtype: torch.dtype) -> Tensor:
    """The most usual one, as the file's precision holds it."""
    slots = [slot for lay in adapter.layouts.values() for slot in lay.slots]
    counted = [slot for slot in slots if slot.scaled] or slots
    return torch.tensor(Counter(slot.scale * slot.rank for slot in counted).most_common(1)[0][0], dtype=dtype)


def _stored(adapter: Adapter, slot: Slot, values: tuple[Tensor, ...], alpha: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A layer's matrices as they are in a file with this alpha: what the alpha does not say goes into the one that started at zero.

    ComfyUI and Forge divide DoRA's lengths by those of the base's weights alone, so they are told what then gives the trained ones.
    """
    rest = slot.scale * slot.rank / float(alpha) if slot.scaled else 1.0
    for number, (piece, value) in enumerate(zip(slot.pieces, values, strict=True)):
        shaped = value.reshape(slot.shape_of(piece))
        if piece.name == "dora_scale":
            layer = adapter.layer_of(slot)
            stretch = value[:, 0] * changes.share(slot, values, layer)
            shaped = (stretch * changes.lengths(changes.dense_weight(layer))).view_as(shaped)
        yield piece.name, shaped * rest if number == slot.method.last(slot.pieces) and rest != 1.0 else shaped


def save_adapter(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Written:
    """Write an adapter file with its hashes, atomically."""
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    bare = save_tensors(dict(tensors), training)  # the hashes leave out what a user may edit later, as sd-scripts does
    start = 8 + int.from_bytes(bare[:8], "little")
    hashes = {
        "sshs_model_hash": hashlib.sha256(bare[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(bare[0x100000:0x110000]).hexdigest()[:8],
    }
    return write_atomically(path, _ordered(save_tensors(dict(tensors), {**metadata, **hashes})))


def _ordered(raw: bytes) -> bytes:
    """The same file with its metadata in order: safetensors keeps them in a hash map, whose order differs from run to run."""
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + raw[start:]


def read_adapter(path: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A kohya-named file: name -> down [r, in, ...], up [out, r, ...], alpha."""
    try:
        read_header(path)
        tensors = load_file(path)
    except (BaseModelError, SafetensorError, OSError) as error:
        raise IntegrityError("LRY-FILE-ADAPTER", f"{path.name} cannot be read as safetensors.", "Fetch it again.") from error
    found: dict[str, tuple[Tensor, Tensor, float]] = {}
    for key in [k for k in tensors if k.endswith(".lora_down.weight")]:
        name = key.removesuffix(".lora_down.weight")
        down, up = tensors.pop(key), tensors.pop(f"{name}.lora_up.weight", None)
        if up is None or up.shape[1] != down.shape[0]:
            raise IntegrityError(
                "LRY-FILE-ADAPTER", f"{path.name} has no fitting lora_up for {name}.", "It is damaged, or made by another method."
            )
        alpha = tensors.pop(f"{name}.alpha", None)
        found[name] = (down, up, float(down.shape[0]) if alpha is None else float(alpha))
    if tensors or not found:
        odd = next(iter(tensors), "nothing")
        raise IntegrityError("LRY-FILE-ADAPTER", f"{path.name} holds {odd}, which no plain LoRA has.", "Convert it first.")
    return found


def load_into(adapter: Adapter, path: Path, key_of: KeyOf) -> None:
    """Fill an adapter from a kohya-named file of the same targets and ranks. The scales become the file's."""
    stored = read_adapter(path)
    wanted = {key_of(part, t.name): (part, t) for part, lay in adapter.layouts.items() for t in lay.targets}
    if wanted.keys() != stored.keys():
        odd = min(wanted.keys() ^ stored.keys())
        raise IntegrityError(
            "LRY-FILE-ADAPTER", f"{path.name} adapts other layers than this job: {odd}.", "Use the options it was made with."
        )
    scales: dict[tuple[str, str], float] = {}
    for part in adapter.layouts:
        for slot, down, up in adapter.weights(part):
            name = key_of(part, slot.target.name)
            _fill(path, name, slot.target, (down, up), stored)
            scales[part, slot.target.name] = stored[name][2] / slot.rank
    adapter.rescale(scales)


def _fill(path: Path, name: str, target: Target, views: tuple[Tensor, Tensor], stored: Mapping[str, tuple[Tensor, Tensor, float]]) -> None:
    down, up, _ = stored[name]
    if down.numel() != views[0].numel() or up.numel() != views[1].numel():
        wanted = f"{target.width} -> {target.fan_out}, rank {views[0].shape[0]}"
        message = f"{path.name} has {name} with rank {down.shape[0]}; the job's layer is {wanted}."
        raise IntegrityError("LRY-FILE-ADAPTER", message, "Set `rank` to the file's.")
    views[0].copy_(down.reshape(views[0].shape))
    views[1].copy_(up.reshape(views[1].shape))


# --- metadata --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What happened, for the metadata."""

    samples: Sequence[Sample]
    priors: Sequence[Sample]
    """Regularisation pictures."""
    buckets: Mapping[Size, int]
    """Bucket -> pictures in it, with their repeats."""
    plan: Plan
    started_at: datetime
    optimizer: str
    base_name: str
    version: str


def metadata(job: JobSpec, facts: Facts, origin: Origin, *, step: int, final_name: str) -> dict[str, str]:
    """All values are strings, `None` and JSON included: that is how readers expect them.

    Times are told to the day: two runs with one seed then give one file, byte for byte.
    """
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    began = facts.started_at.replace(hour=0, minute=0, second=0, microsecond=0)
    values: dict[str, object] = {
        "ss_output_name": final_name,
        "ss_sd_model_name": facts.base_name,
        "ss_base_model_version": origin.base_model_version,
        "ss_v2": origin.v2,
        "ss_zero_terminal_snr": origin.zero_terminal_snr,
        "ss_steps": step,
        "ss_max_train_steps": facts.plan.steps,
        "ss_epoch": -(-step // facts.plan.steps_per_epoch),
        "ss_num_epochs": facts.plan.epochs,
        "ss_num_train_images": facts.plan.images,
        "ss_num_reg_images": facts.plan.priors,
        "ss_num_batches_per_epoch": facts.plan.batches_per_epoch,
        "ss_training_started_at": began.timestamp(),
        "ss_training_finished_at": today.timestamp(),
        **_settings(job, facts.optimizer),
        "ss_lr_warmup_steps": schedules.warmup_steps(job, facts.plan.steps),
    }
    values |= {key: json.dumps(value) for key, value in _data_facts(facts).items()}
    values |= {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": origin.architecture,
        "modelspec.implementation": origin.implementation,
        "modelspec.title": final_name,
        "modelspec.resolution": f"{job.resolution}x{job.resolution}",
        "modelspec.date": today.strftime("%Y-%m-%d"),
    }
    if origin.prediction:
        values["modelspec.prediction_type"] = origin.prediction
    else:
        values |= _flow_settings(job)
    if job.trigger:
        values["modelspec.trigger_phrase"] = job.trigger
    values["lorry_version"] = facts.version
    values |= {f"lorry_{name}": value for name, value in job.made_with.items()}
    return {key: str(value) for key, value in values.items()}


def _settings(job: JobSpec, optimizer: str) -> dict[str, object]:
    """The job's options under sd-scripts' names; what it has and we have not is said as off."""
    text = job.text_encoder_lr or 0
    unet = job.learning_rate if job.unet_lr is None else job.unet_lr
    told = {"weight_decay": job.weight_decay, **job.optimizer_args}
    return {
        "ss_network_module": "networks.lora" if job.method.plain else "lycoris.kohya",
        "ss_network_dim": job.rank,
        "ss_network_alpha": job.scale * job.rank,  # what the file says, rsLoRA's among it
        "ss_network_args": _network_args(job),
        "ss_network_dropout": job.dropout or None,
        "ss_learning_rate": job.learning_rate,
        "ss_unet_lr": unet,
        "ss_text_encoder_lr": text or None,
        "ss_optimizer": f"{optimizer}({','.join(f'{key}={value}' for key, value in told.items())})",
        "ss_lr_scheduler": job.lr_scheduler,
        "ss_max_grad_norm": job.max_grad_norm,
        "ss_seed": job.seed,
        "ss_batch_size_per_device": job.batch_size,
        "ss_total_batch_size": job.batch_size,
        "ss_gradient_accumulation_steps": job.gradient_accumulation,
        "ss_gradient_checkpointing": job.gradient_checkpointing,
        "ss_mixed_precision": job.mixed_precision,
        "ss_full_fp16": False,
        "ss_cache_latents": True,
        "ss_clip_skip": job.clip_skip if job.clip_skip > 1 else None,
        "ss_max_token_length": job.max_token_length if job.max_token_length > 75 else None,
        "ss_min_snr_gamma": job.min_snr_gamma,
        "ss_noise_offset": job.noise_offset or None,
        "ss_loss_type": job.loss_type,
        "ss_huber_schedule": job.huber_schedule,
        "ss_huber_c": job.huber_c,
        "ss_debiased_estimation": job.debiased_estimation,
        "ss_multires_noise_iterations": job.multires_noise_iterations or None,
        "ss_multires_noise_discount": job.multires_noise_discount,
        "ss_ip_noise_gamma": job.ip_noise_gamma or None,
        "ss_prior_loss_weight": job.prior_loss_weight,
        "ss_caption_dropout_rate": job.caption_dropout,
        "ss_caption_dropout_every_n_epochs": job.caption_dropout_every_epochs or 0,
        "ss_caption_tag_dropout_rate": job.tag_dropout,
        "ss_shuffle_caption": job.shuffle_caption,
        "ss_keep_tokens": job.keep_tokens,
        "ss_flip_aug": job.flip,
        "ss_color_aug": False,
        "ss_random_crop": job.crops > 1,
        "ss_resolution": (job.resolution, job.resolution),
        "ss_enable_bucket": True,
        "ss_bucket_no_upscale": job.bucket_no_upscale,
        "ss_min_bucket_reso": job.min_bucket,
        "ss_max_bucket_reso": job.max_bucket,
        "ss_training_comment": job.comment or None,
    }


def _network_args(job: JobSpec) -> str | None:
    """What is special about the adapter, as sd-scripts writes it: JSON of texts, by its names where it has them."""
    told = {
        "algo": "" if job.method.plain else "locon" if job.adapter == "lora" else job.adapter,
        "dora_wd": job.dora,
        "factor": job.lokr_factor if job.adapter == "lokr" else None,
        "decompose_both": job.lokr_decompose_both,
        "full_matrix": job.lokr_whole,
        "conv_dim": job.conv_rank,
        "conv_alpha": job.conv_rank and job.scale_at(job.conv_rank, wide=True) * job.conv_rank,
        "rank_dropout": job.rank_dropout,
        "module_dropout": job.module_dropout,
        "block_dims": ",".join(map(str, job.block_ranks)),
        "block_lr_weight": ",".join(f"{weight:g}" for weight in job.block_lr),
        "loraplus_lr_ratio": job.lora_plus_ratio if job.lora_plus_ratio != 1.0 else None,
        "rslora": job.rslora,
        "include_layers": ",".join(job.include_layers),
        "exclude_layers": ",".join(job.exclude_layers),
        "layer_ranks": ",".join(f"{pattern}={rank}" for pattern, rank in job.layer_ranks.items()),
        "layer_lr": ",".join(f"{pattern}={rate:g}" for pattern, rate in job.layer_lr.items()),
    }
    args = {key: str(value) for key, value in told.items() if value}
    return json.dumps(args) if args else None


def _flow_settings(job: JobSpec) -> dict[str, object]:
    """What sd-scripts writes of flow models."""
    return {
        "ss_timestep_sampling": job.timestep_sampling,
        "ss_weighting_scheme": job.flow_weighting,
        "ss_logit_mean": job.logit_mean,
        "ss_logit_std": job.logit_std,
        "ss_mode_scale": job.mode_scale,
        "ss_sigmoid_scale": job.logit_std,
        "ss_discrete_flow_shift": job.flow_shift,
        "ss_guidance_scale": job.guidance_embedding,
    }


def _data_facts(facts: Facts) -> dict[str, object]:
    """Tag counts by folder (readers take trigger words from them), folder sizes, buckets."""
    tags: dict[str, Counter[str]] = {}
    for sample in facts.samples:
        tags.setdefault(sample.folder, Counter()).update(tag.strip() for tag in sample.caption.split(",") if tag.strip())
    shapes = {str(i): {"resolution": list(size), "count": facts.buckets[size]} for i, size in enumerate(sorted(facts.buckets))}
    folders = {"ss_dataset_dirs": _folders(facts.samples), "ss_reg_dataset_dirs": _folders(facts.priors)}
    return {"ss_tag_frequency": tags, **folders, "ss_bucket_info": {"buckets": shapes}}


def _folders(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for sample in samples:
        folder = found.setdefault(sample.folder, {"n_repeats": sample.repeats, "img_count": 0})
        folder["img_count"] += 1
    return found
