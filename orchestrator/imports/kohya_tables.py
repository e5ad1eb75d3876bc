"""The options of sd-scripts that need no thought: renamed, without meaning here, or lacking. Facts of snapshot 48d368fa.

The four trainers' 240 options are all in one of these tables or in `kohya.py`; a test counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .nouns import Lack, number, truth, whole

RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "train_batch_size": ("batch_size", whole),
    "gradient_accumulation_steps": ("gradient_accumulation", whole),
    "bucket_reso_steps": ("bucket_step", whole),
    "bucket_no_upscale": ("bucket_no_upscale", truth),
    "flip_aug": ("flip", truth),
    "shuffle_caption": ("shuffle_caption", truth),
    "keep_tokens": ("keep_tokens", whole),
    "max_token_length": ("max_token_length", whole),
    "caption_dropout_rate": ("caption_dropout", number),
    "network_dim": ("rank", whole),
    "network_alpha": ("alpha", number),
    "max_grad_norm": ("max_grad_norm", number),
    "debiased_estimation_loss": ("debiased_estimation", truth),
    "loss_type": ("loss_type", str),
    "huber_schedule": ("huber_schedule", str),
    "huber_c": ("huber_c", number),
    "ip_noise_gamma": ("ip_noise_gamma", number),
    "noise_offset": ("noise_offset", number),
    "multires_noise_iterations": ("multires_noise_iterations", whole),
    "multires_noise_discount": ("multires_noise_discount", number),
    "min_snr_gamma": ("min_snr_gamma", number),
    "mixed_precision": ("mixed_precision", str),
    "gradient_checkpointing": ("gradient_checkpointing", truth),
    "seed": ("seed", whole),
    "save_every_n_steps": ("save_every_steps", whole),
}
"""kohya's key -> ours, and how its values are read."""

OFF_AT_ZERO = frozenset(
    {
        "min_snr_gamma", "save_every_n_steps", "save_every_n_epochs", "save_n_epoch_ratio", "sample_every_n_steps", "sample_every_n_epochs",
        "max_train_epochs", "max_token_length", "multires_noise_iterations", "multires_noise_discount", "ip_noise_gamma", "clip_skip",
        "network_alpha", "network_dim",
    }
)  # fmt: skip
"""Options that are off, or as without a word, where they are 0."""

DEFAULTS: dict[str, Any] = {
    "batch_size": 1,
    "min_bucket": 256,
    "max_bucket": 1024,
    "bucket_step": 64,
    "rank": 4,
    "alpha": 1.0,
    "max_grad_norm": 1.0,
    "mixed_precision": "no",
    "save_precision": "fp32",
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "gradient_checkpointing": False,
}
"""What kohya does where nothing is said: written out, since a recipe or another default of ours must not change it."""

_MACHINE = "how kohya uses its machine; lorry sees to it by itself"
_CACHE = "lorry always caches what can be cached, by content"
_LOGGING = "lorry keeps its own record of every run"
_HUB = "results come home into the run's folder"
_METADATA = "lorry writes the metadata that other programs read"
_STATE = "lorry always saves what it resumes from"

MEANINGLESS: dict[str, str] = {
    **dict.fromkeys(
        (
            "max_data_loader_n_workers", "persistent_data_loader_workers", "xformers", "sdpa", "mem_eff_attn", "lowram", "highvram",
            "torch_compile", "dynamo_backend", "deepspeed", "zero_stage", "zero3_init_flag", "zero3_save_16bit_model",
            "offload_optimizer_device",
            "offload_optimizer_nvme_path", "offload_param_device", "offload_param_nvme_path", "ddp_gradient_as_bucket_view",
            "ddp_static_graph", "ddp_timeout", "fp16_master_weights_and_gradients", "cpu_offload_checkpointing",
            "disable_mmap_load_safetensors",
            "no_half_vae", "vae_batch_size", "split_mode", "blocks_to_swap", "t5xxl_device", "t5xxl_dtype", "fused_backward_pass",
            "full_fp16", "full_bf16",
        ),
        _MACHINE,
    ),
    **dict.fromkeys(
        (
            "cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "cache_info",
            "skip_cache_check", "text_encoder_batch_size", "tokenizer_cache_dir",
        ),
        _CACHE,
    ),
    **dict.fromkeys(
        (
            "logging_dir", "log_with", "log_prefix", "log_config", "log_tracker_name", "log_tracker_config", "wandb_api_key",
            "wandb_run_name",
            "console_log_level", "console_log_file", "console_log_simple", "output_config", "debug_dataset",
        ),
        _LOGGING,
    ),
    **dict.fromkeys(
        (
            "output_dir", "huggingface_repo_id", "huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token",
            "huggingface_repo_visibility", "async_upload", "save_state_to_huggingface",
        ),
        _HUB,
    ),
    **dict.fromkeys(
        (
            "metadata_title", "metadata_author", "metadata_description", "metadata_license", "metadata_tags", "metadata_usage_hint",
            "metadata_thumbnail", "metadata_merged_from", "metadata_trigger_phrase", "metadata_preprocessor",
            "metadata_is_negative_embedding",
            "training_comment", "no_metadata",
        ),
        _METADATA,
    ),
    **dict.fromkeys(
        (
            "save_state", "save_state_on_train_end", "save_last_n_epochs", "save_last_n_epochs_state", "save_last_n_steps",
            "save_last_n_steps_state",
        ),
        _STATE,
    ),
    "sample_sampler": "each model family has its sampler",
    "caption_separator": "tags are separated by commas",
    "max_validation_steps": "belongs to the validation that is listed, if there is any",
    "validation_seed": "belongs to the validation that is listed, if there is any",
    "validate_every_n_steps": "belongs to the validation that is listed, if there is any",
    "validate_every_n_epochs": "belongs to the validation that is listed, if there is any",
    "resize_interpolation": "lorry resizes as kohya does by default",
    "config_file": "read as well",
    "dataset_config": "read as well",
    "save_clip": "belongs to training the whole model",
    "save_t5xxl": "belongs to training the whole model",
    "model_type": "told from the base",
    "controlnet_model_name_or_path": "belongs to another program of sd-scripts",
}  # fmt: skip
"""Option -> why it changes nothing here."""

_ONE_BASE = "lorry takes encoders and VAE from the base"
_BASE_HINT = "name a diffusers folder as `base` that holds the ones you want"
_FLOW = "lorry samples timesteps of flow models in its own way"
_RESUME = "lorry resumes its own runs only"
_RESUME_HINT = "`lorry resume RUN` goes on from a checkpoint of lorry; an import begins anew"
_CAPTION_HINT = "write it into the .txt captions"

LACKING: dict[str, Lack] = {
    "vae": Lack(ours=("vae",), why=_ONE_BASE, hint=_BASE_HINT),
    "clip_l": Lack(ours=("clip_l",), why=_ONE_BASE, hint=_BASE_HINT),
    "clip_g": Lack(ours=("clip_g",), why=_ONE_BASE, hint=_BASE_HINT),
    "t5xxl": Lack(ours=("t5xxl",), why=_ONE_BASE, hint=_BASE_HINT),
    "ae": Lack(ours=("vae",), why=_ONE_BASE, hint=_BASE_HINT),
    "color_aug": Lack(ours=("color_aug",), why="lorry never changes the colours of a picture"),
    "random_crop": Lack(why="lorry crops in the middle", hint="`crops` trains on several parts of a picture in turn"),
    "face_crop_aug_range": Lack(why="lorry crops in the middle", hint="`lorry prep` crops around faces beforehand"),
    "masked_loss": Lack(hint="masks are told by `masks` or `alpha_mask`, and there are none"),
    "alpha_mask": Lack(ours=("alpha_mask",), hint="expect the background to be learnt as well"),
    "caption_prefix": Lack(ours=("caption_prefix",), hint=_CAPTION_HINT),
    "caption_suffix": Lack(ours=("caption_suffix",), hint=_CAPTION_HINT),
    "caption_dropout_every_n_epochs": Lack(
        ours=("caption_dropout_every_epochs",), hint="`caption_dropout` drops captions at random instead"
    ),
    "caption_tag_dropout_rate": Lack(ours=("tag_dropout",)),
    "keep_tokens_separator": Lack(ours=("keep_tokens_separator",), hint="`keep_tokens` counts the tags to keep instead"),
    "secondary_separator": Lack(ours=("secondary_separator",), hint=_CAPTION_HINT),
    "enable_wildcard": Lack(ours=("wildcards",), hint=_CAPTION_HINT),
    "weighted_captions": Lack(why="lorry reads `(word:1.3)` as it is written", hint="take the weights out of the captions"),
    "token_warmup_min": Lack(off=(1, 0, None, ""), hint="nothing to do: all tags are there from the first step"),
    "token_warmup_step": Lack(hint="nothing to do: all tags are there from the first step"),
    "min_timestep": Lack(ours=("min_timestep",)),
    "max_timestep": Lack(off=(1000, None, ""), ours=("max_timestep",)),
    "adaptive_noise_scale": Lack(ours=("adaptive_noise_scale",), hint="`noise_offset` alone is carried"),
    "noise_offset_random_strength": Lack(hint="`noise_offset` is always of full strength"),
    "ip_noise_gamma_random_strength": Lack(hint="`ip_noise_gamma` is always of full strength"),
    "v_pred_like_loss": Lack(off=(0, 0.0, None, "")),
    "scale_v_pred_loss_like_noise_pred": Lack(),
    "huber_scale": Lack(off=(1, 1.0, None, ""), ours=("huber_scale",)),
    "scale_weight_norms": Lack(ours=("scale_weight_norms", "max_norm"), hint="`max_grad_norm` holds the gradients, not the weights"),
    "network_dropout": Lack(ours=("dropout",)),
    "network_weights": Lack(why="lorry begins a LoRA anew"),
    "dim_from_weights": Lack(hint="write `rank` as it is in that file"),
    "base_weights": Lack(off=([], None, ""), hint="merge it into the base beforehand"),
    "base_weights_multiplier": Lack(off=([], None, ""), hint="merge it into the base beforehand"),
    "prior_loss_weight": Lack(off=(1, 1.0, None, ""), ours=("prior_loss_weight",)),
    "fp8_base": Lack(ours=("fp8_base",), why="lorry chooses the base's precision by the card", hint="nothing to do unless memory is short"),
    "fp8_base_unet": Lack(why="lorry chooses the base's precision by the card", hint="nothing to do unless memory is short"),
    "lr_scheduler_type": Lack(why="lorry has no schedulers of other packages", hint="choose an `lr_scheduler` of lorry"),
    "lr_scheduler_args": Lack(off=([], None, ""), hint="choose an `lr_scheduler` of lorry"),
    "lr_scheduler_min_lr_ratio": Lack(ours=("lr_min",)),
    "lr_scheduler_timescale": Lack(),
    "lr_decay_steps": Lack(off=(0, 0.0, None, ""), ours=("lr_decay_steps",)),
    "resume": Lack(why=_RESUME, hint=_RESUME_HINT),
    "resume_from_huggingface": Lack(why=_RESUME, hint=_RESUME_HINT),
    "initial_epoch": Lack(off=(1, 0, None, ""), why=_RESUME, hint=_RESUME_HINT),
    "initial_step": Lack(why=_RESUME, hint=_RESUME_HINT),
    "skip_until_initial_step": Lack(why=_RESUME, hint=_RESUME_HINT),
    "validation_split": Lack(hint="`heldout` keeps a number of pictures to measure by; the import writes 0, so that all are trained on"),
    "sample_at_first": Lack(ours=("sample_at_start", "sample_at_first"), hint="the first samples come at `sample_every_steps`"),
    "in_json": Lack(why="lorry reads captions beside the pictures", hint="write them into .txt files"),
    "dataset_class": Lack(why="lorry runs no code of others", hint="put pictures and captions into a folder"),
    "save_model_as": Lack(
        off=("safetensors", None, ""), why="lorry writes .safetensors only", hint="nothing to do: every program reads them"
    ),
    "weighting_scheme": Lack(off=("uniform", "none", None, ""), why=_FLOW),
    "logit_mean": Lack(off=(0, 0.0, None, ""), why=_FLOW),
    "logit_std": Lack(off=(1, 1.0, None, ""), why=_FLOW),
    "mode_scale": Lack(off=(1.29, None, ""), why=_FLOW),
    "training_shift": Lack(off=(None, ""), why=_FLOW),
    "discrete_flow_shift": Lack(off=(None, ""), why=_FLOW),
    "timestep_sampling": Lack(off=(None, ""), why=_FLOW),
    "sigmoid_scale": Lack(off=(1, 1.0, None, ""), why=_FLOW),
    "model_prediction_type": Lack(off=(None, ""), why=_FLOW),
    "guidance_scale": Lack(off=(None, ""), why="lorry trains FLUX with a guidance of its own"),
    "t5xxl_max_token_length": Lack(off=(None, ""), why="lorry has a length of its own"),
    "apply_t5_attn_mask": Lack(),
    "apply_lg_attn_mask": Lack(),
    "clip_l_dropout_rate": Lack(hint="`caption_dropout` empties the caption for all encoders at once"),
    "clip_g_dropout_rate": Lack(hint="`caption_dropout` empties the caption for all encoders at once"),
    "t5_dropout_rate": Lack(hint="`caption_dropout` empties the caption for all encoders at once"),
    "pos_emb_random_crop_rate": Lack(),
    "enable_scaled_pos_embed": Lack(),
}
"""Option -> what may be said of it."""
