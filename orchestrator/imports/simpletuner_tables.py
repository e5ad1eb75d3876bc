"""SimpleTuner's keys that need no thought: renamed, without meaning here, or lacking. Facts of snapshot bc8e6ab7."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .nouns import Lack, number, truth, whole

TOOL = "SimpleTuner"
ON_DISK = "local"
"""SimpleTuner's word for a folder, among its backends."""

RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "train_batch_size": ("batch_size", whole),
    "gradient_accumulation_steps": ("gradient_accumulation", whole),
    "gradient_checkpointing": ("gradient_checkpointing", truth),
    "lora_rank": ("rank", whole),
    "lora_alpha": ("alpha", number),
    "mixed_precision": ("mixed_precision", str),
    "seed": ("seed", whole),
    "caption_dropout_probability": ("caption_dropout", number),
    "snr_gamma": ("min_snr_gamma", number),
    "loss_type": ("loss_type", str),
    "input_perturbation": ("ip_noise_gamma", number),
    "aspect_bucket_alignment": ("bucket_step", whole),
    "rescale_betas_zero_snr": ("zero_terminal_snr", truth),
    "checkpoint_step_interval": ("save_every_steps", whole),
    "checkpointing_steps": ("save_every_steps", whole),
    "checkpoint_epoch_interval": ("save_every_epochs", whole),
    "lr_num_cycles": ("lr_restarts", whole),
    "lr_power": ("lr_power", number),
    "revision": ("base_revision", str),
}
OFF_AT_ZERO = frozenset(
    {
        "snr_gamma",
        "seed",
        "checkpoint_epoch_interval",
        "checkpoint_step_interval",
        "checkpointing_steps",
        "lora_alpha",
        "input_perturbation",
    }
)

DEFAULTS: dict[str, Any] = {
    "batch_size": 4,
    "rank": 16,
    "max_grad_norm": 2.0,
    "mixed_precision": "bf16",
    "gradient_checkpointing": False,
    "bucket_step": 64,
}

FAMILIES = {"sd1x": "sd15", "sd2x": "sd2", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux", "z_image": "zimage", "z-image": "zimage"}

_LOG, _MACHINE = "lorry keeps its own record of every run", "how SimpleTuner uses its machine; lorry sees to it by itself"
STARTS: dict[str, str] = {
    "push_": "results come home into the run's folder",
    "hub_": "results come home into the run's folder",
    "publishing_": "results come home into the run's folder",
    "model_card_": "lorry writes the metadata that other programs read",
    "tracker_": _LOG,
    "webhook_": _LOG,
    "report_to": _LOG,
    "vae_": _MACHINE,
    "cache_": "lorry always caches what can be cached",
    "dataloader_": _MACHINE,
    "group_offload": _MACHINE,
    "ramtorch": _MACHINE,
    "dynamo_": _MACHINE,
    "aws_": _MACHINE,
    "metadata_update": _MACHINE,
    "quantize_": "lorry chooses the base's precision by the card",
    "text_encoder_1_precision": "lorry chooses the base's precision by the card",
    "text_encoder_2_precision": "lorry chooses the base's precision by the card",
    "text_encoder_3_precision": "lorry chooses the base's precision by the card",
    "text_encoder_4_precision": "lorry chooses the base's precision by the card",
    "base_model_": "lorry chooses the base's precision by the card",
    "checkpoints_": "lorry keeps what comes home",
    "checkpointing_rolling": "lorry keeps what comes home",
    "ema_": "belongs to the running mean",
    "validation_": "belongs to the samples",
    "num_validation_images": "belongs to the samples",
    "eval": "lorry measures by pictures held out",
    "num_eval": "lorry measures by pictures held out",
    "video_": "for films",
    "framerate": "for films",
}
"""How a key begins -> why it changes nothing here."""

MEANINGLESS: dict[str, str] = {
    "model_type": "lorry trains LoRA",
    "lora_type": "lorry trains LoRA",
    "lora_format": "lorry writes for all programs",
    "output_dir": "results come home into the run's folder",
    "logging_dir": _LOG,
    "data_backend_config": "read as well",
    "disable_benchmark": _LOG,
    "disable_bucket_pruning": "lorry trains on every picture",
    "ignore_missing_files": "lorry names every missing file",
    "attention_mechanism": _MACHINE,
    "disable_tf32": _MACHINE,
    "set_grads_to_none": _MACHINE,
    "offload_during_startup": _MACHINE,
    "offload_during_save": _MACHINE,
    "enable_group_offload": _MACHINE,
    "num_processes": "lorry trains on one card",
    "max_workers": _MACHINE,
    "write_batch_size": _MACHINE,
    "read_batch_size": _MACHINE,
    "image_processing_batch_size": _MACHINE,
    "enable_multiprocessing": _MACHINE,
    "compress_disk_cache": _MACHINE,
    "preserve_data_backend_cache": _MACHINE,
    "keep_vae_loaded": _MACHINE,
    "skip_file_discovery": _MACHINE,
    "override_dataset_config": _MACHINE,
    "aspect_bucket_rounding": "lorry makes buckets as kohya does",
    "aspect_bucket_worker_count": _MACHINE,
    "gradient_precision": "the adapter's own weights stay fp32",
    "debug_dataset_loader": _LOG,
    "debug_aspect_buckets": _LOG,
    "print_filenames": _LOG,
    "print_sampler_statistics": _LOG,
    "user_prompt_library": "belongs to the samples",
    "variant": "lorry takes the weights that are there",
    "resume_from_checkpoint": "lorry resumes its own runs only",
    "fuse_qkv_projections": _MACHINE,
    "minimum_image_size": "the folders say it",
    "maximum_image_size": "the folders say it",
    "target_downsample_size": "the folders say it",
    "instance_prompt": "the folders say it",
    "caption_strategy": "the folders say it",
    "resolution": "the folders say it",
    "resolution_type": "the folders say it",
}

_FLOW = "lorry samples timesteps of flow models in its own way"
LACKING: dict[str, Lack] = {
    "lora_dropout": Lack(ours=("dropout",), off=(None, "")),
    "lora_init_type": Lack(off=("default", None, "")),
    "init_lora": Lack(off=(None, "", "None"), why="lorry begins a LoRA anew"),
    "lycoris_config": Lack(off=(None, ""), why="lorry trains LoRA on linear layers", hint="expect another adapter: compare the results"),
    "use_dora": Lack(ours=("dora", "use_dora")),
    "flux_lora_target": Lack(off=("all", None, ""), hint="lorry chooses the layers by family"),
    "flow_schedule_shift": Lack(off=(None, ""), why=_FLOW),
    "flow_schedule_auto_shift": Lack(why=_FLOW),
    "flow_use_uniform_schedule": Lack(why=_FLOW),
    "flow_use_beta_schedule": Lack(why=_FLOW),
    "flow_sigmoid_scale": Lack(off=(1, 1.0, None, ""), why=_FLOW),
    "flux_guidance_mode": Lack(off=(None, ""), why=_FLOW),
    "flux_guidance_value": Lack(off=(None, ""), why="lorry trains FLUX with a guidance of its own"),
    "t5_padding": Lack(off=("unmodified", None, ""), why="lorry pads T5 in its own way"),
    "sd3_clip_uncond_behaviour": Lack(off=("empty_string", None, "")),
    "sd3_t5_uncond_behaviour": Lack(off=("empty_string", None, "")),
    "tokenizer_max_length": Lack(off=(None, "", 77), why="lorry has lengths of its own", hint="`max_token_length`"),
    "use_soft_min_snr": Lack(hint="`min_snr_gamma` cuts hard"),
    "offset_noise": Lack(),
    "noise_offset_probability": Lack(off=(0.25, None), hint="`noise_offset` is added to every picture"),
    "masked_loss_probability": Lack(off=(1, 1.0, None), hint="`masks` are always minded"),
    "input_perturbation_steps": Lack(hint="`ip_noise_gamma` is the same throughout"),
    "timestep_bias_strategy": Lack(off=("none", None, "")),
    "lr_end": Lack(off=(None, "", 0, 0.0, 4e-7, "4e-7"), ours=(), hint="`lr_min` is a share of the rate"),
    "grad_clip_method": Lack(
        off=("norm", None, ""), why="lorry scales all gradients by their norm", hint="0.1 to 1 is usual for `max_grad_norm`"
    ),
    "gradient_checkpointing_interval": Lack(off=(0, 1, None), hint="more memory is saved here, at some speed"),
    "data_backend_sampling": Lack(off=("auto-weighting", "uniform", None, "")),
    "huber_schedule": Lack(off=("snr", None, ""), ours=("huber_schedule",)),
    "huber_c": Lack(off=(0.1, None), ours=("huber_c",)),
    "prediction_type": Lack(off=("epsilon", "flow_matching", None, "")),
    "prodigy_steps": Lack(),
    "controlnet": Lack(why="lorry trains LoRA on pictures and captions"),
    "pretrained_vae_model_name_or_path": Lack(why="lorry takes encoders and VAE from the base", hint="name a diffusers folder as `base`"),
    "delete_unwanted_images": Lack(why="lorry deletes no picture", hint="nothing to do"),
    "delete_problematic_images": Lack(why="lorry deletes no picture", hint="nothing to do"),
}

FOLDER_MEANINGLESS: dict[str, str] = {
    "id": "names the folder for SimpleTuner",
    "type": "a folder of pictures",
    "dataset_type": "a folder of pictures",
    "default": "for caches",
    "metadata_backend": _MACHINE,
    "vae_cache_clear_each_epoch": "lorry always caches what can be cached",
    "preserve_data_backend_cache": _MACHINE,
    "probability": "there is one folder",
    "disabled": "it is not",
    "disable": "it is not",
    "is_regularisation_data": "tells the folders apart",
    "text_embeds": "for caches",
    "image_embeds": "for caches",
    "crop_style": "belongs to the crop",
    "crop_aspect": "belongs to the crop",
    "resolution_type": "says what `resolution` counts",
    "skip_file_discovery": _MACHINE,
    "hash_filenames": _MACHINE,
    "prepend_instance_prompt": "said by `trigger`",
    "only_instance_prompt": "said by the captions",
}
FOLDER_LACKING: dict[str, Lack] = {
    "minimum_image_size": Lack(why="lorry leaves no picture out", hint="take small pictures away"),
    "maximum_image_size": Lack(off=(None,), why="lorry shrinks a picture to its bucket before it crops", hint="nothing to do"),
    "target_downsample_size": Lack(off=(None,), why="lorry shrinks a picture to its bucket before it crops", hint="nothing to do"),
    "minimum_aspect_ratio": Lack(off=(None,), why="lorry leaves no picture out", hint="take such pictures away"),
    "maximum_aspect_ratio": Lack(off=(None,), why="lorry leaves no picture out", hint="take such pictures away"),
    "caption_filter_list": Lack(off=(None, ""), why="lorry reads captions as they are", hint="edit the .txt captions"),
    "max_upscale_threshold": Lack(hint="`bucket_no_upscale` never enlarges a picture"),
}

USUAL_BASES = {
    ("sd1x", ""): "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ("sdxl", ""): "stabilityai/stable-diffusion-xl-base-1.0",
    ("sd3", ""): "stabilityai/stable-diffusion-3.5-large",
    ("sd3", "3.5-large"): "stabilityai/stable-diffusion-3.5-large",
    ("sd3", "3.5-medium"): "stabilityai/stable-diffusion-3.5-medium",
    ("flux", ""): "black-forest-labs/FLUX.1-dev",
}
"""What SimpleTuner takes where no model is named."""
