"""ai-toolkit's keys that need no thought: renamed, without meaning here, or lacking. Facts of snapshot 27a03a91."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .nouns import Lack, number, truth, whole

_PRECISIONS = {
    "float16": "fp16", "fp16": "fp16", "half": "fp16", "bfloat16": "bf16", "bf16": "bf16", "float32": "fp32", "fp32": "fp32",
    "float": "fp32",
}  # fmt: skip


def _arithmetic(value: Any) -> str:
    return {"fp32": "no"}.get(_PRECISIONS[str(value)], _PRECISIONS[str(value)])


def _kept(value: Any) -> str:
    return _PRECISIONS[str(value)]


RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "train.batch_size": ("batch_size", whole),
    "train.dtype": ("mixed_precision", _arithmetic),
    "train.gradient_checkpointing": ("gradient_checkpointing", truth),
    "train.max_grad_norm": ("max_grad_norm", number),
    "train.min_snr_gamma": ("min_snr_gamma", number),
    "train.noise_offset": ("noise_offset", number),
    "save.dtype": ("save_precision", _kept),
    "trigger_word": ("trigger", str),
}

DEFAULTS: dict[str, Any] = {
    "batch_size": 1,
    "alpha": 1.0,
    "learning_rate": 1e-6,
    "max_grad_norm": 1.0,
    "mixed_precision": "no",
    "save_precision": "fp16",
    "gradient_checkpointing": True,
    "resolution": 512,
    "save_every_steps": 1000,
}

FAMILIES = {"is_xl": "sdxl", "is_v3": "sd3", "is_v2": "sd2", "is_flux": "flux", "is_pixart": "pixart", "is_lumina2": "lumina2"}
ARCHITECTURES = {"sd1": "sd15", "sd15": "sd15", "sd2": "sd2", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux", "zimage": "zimage"}

_MACHINE = "how ai-toolkit uses its machine; lorry sees to it by itself"
MEANINGLESS: dict[str, str] = {
    "job": "says what kind of file it is",
    "type": "says that it trains",
    "device": _MACHINE,
    "training_folder": "results come home into the run's folder",
    "sqlite_db_path": _MACHINE,
    "performance_log_every": "lorry keeps its own record of every run",
    "log_dir": "lorry keeps its own record of every run",
    "save.max_step_saves_to_keep": "lorry keeps what comes home",
    "save.save_format": "lorry writes for all programs",
    "save.push_to_hub": "results come home into the run's folder",
    "save.hf_private": "results come home into the run's folder",
    "save.hf_repo_id": "results come home into the run's folder",
    "train.noise_scheduler": "follows from the base",
    "train.train_unet": "it is always trained",
    "train.xformers": _MACHINE,
    "train.sdp": _MACHINE,
    "train.unload_text_encoder": _MACHINE,
    "train.cache_text_embeddings": "lorry always caches what can be cached",
    "train.skip_first_sample": "lorry draws at intervals only",
    "train.force_first_sample": "lorry draws at intervals only",
    "train.disable_sampling": "said by `sample_prompts`",
    "train.bypass_guidance_embedding": "follows from the base",
    "model.quantize": "lorry chooses the base's precision by the card",
    "model.quantize_te": "lorry chooses the base's precision by the card",
    "model.qtype": "lorry chooses the base's precision by the card",
    "model.qtype_te": "lorry chooses the base's precision by the card",
    "model.low_vram": _MACHINE,
    "model.layer_offloading": _MACHINE,
    "sample.sampler": "each model family has its sampler",
    "sample.sample_start_step": "lorry draws at intervals only",
    "sample.num_frames": "for films",
    "sample.fps": "for films",
}

LACKING: dict[str, Lack] = {
    "train.content_or_style": Lack(off=("balanced", None, ""), hint="lorry draws all timesteps alike"),
    "train.timestep_type": Lack(off=(None, ""), hint="lorry samples timesteps of flow models in its own way"),
    "train.linear_timesteps": Lack(),
    "train.loss_type": Lack(off=("mse", None, ""), hint="`loss_type` has l1 and huber"),
    "train.do_differential_guidance": Lack(),
    "train.diff_output_preservation": Lack(hint="`regularisation` holds a class with pictures of it"),
    "train.blank_prompt_preservation": Lack(),
    "train.optimal_noise_pairing_samples": Lack(off=(1, 0, None)),
    "train.start_step": Lack(),
    "train.reg_weight": Lack(off=(1, 1.0, None), ours=("prior_loss_weight",)),
    "network.conv": Lack(ours=("conv_rank",)),
    "network.conv_alpha": Lack(off=(None, ""), ours=("conv_alpha",)),
    "network.dropout": Lack(ours=("dropout",)),
    "model.assistant_lora_path": Lack(why="lorry trains on the base as it is", hint="use a base that is not distilled"),
    "model.vae_path": Lack(why="lorry takes encoders and VAE from the base", hint="name a diffusers folder as `base`"),
}
OF_A_FOLDER = {
    "shuffle_tokens": ("shuffle_caption", truth),
    "keep_tokens": ("keep_tokens", whole),
    "caption_dropout_rate": ("caption_dropout", number),
    "token_dropout_rate": ("tag_dropout", number),
    "flip_x": ("flip", truth),
    "bucket_tolerance": ("bucket_step", whole),
    "alpha_mask": ("alpha_mask", truth),
    "mask_min_value": ("mask_min_weight", number),
}
FOLDER_MEANINGLESS = {
    "cache_latents": "lorry always caches what can be cached",
    "cache_latents_to_disk": "lorry always caches what can be cached",
    "buckets": "buckets are always on",
    "type": "a folder of pictures",
    "num_frames": "for films",
    "shrink_video_to_frames": "for films",
    "fps": "for films",
    "do_i2v": "for films",
    "is_reg": "tells the folders apart",
    "num_repeats": "steps count, not epochs, and there is one folder",
}

FOLDER_LACKING = {
    "flip_y": Lack(why="lorry mirrors left and right only"),
    "random_crop": Lack(why="lorry crops in the middle", hint="`crops` trains on several parts of a picture in turn"),
    "random_scale": Lack(),
    "default_caption": Lack(hint="write it into the .txt captions that are missing, or as `trigger`"),
    "trigger_word": Lack(hint="`trigger` is one for the whole LoRA"),
    "network_weight": Lack(off=(1, 1.0, None)),
    "loss_multiplier": Lack(off=(1, 1.0, None)),
    "scale": Lack(off=(1, 1.0, None)),
    "invert_mask": Lack(hint="turn the masks round: white is what is trained on"),
    "prior_reg": Lack(),
    "control_path": Lack(why="lorry trains LoRA on pictures and captions"),
    "short_and_long_captions": Lack(),
}
"""Of a folder of pictures: what lorry may lack."""
