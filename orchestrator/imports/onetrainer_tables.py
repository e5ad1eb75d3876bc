"""OneTrainer's keys that need no thought: renamed, without meaning here, or lacking. Facts of snapshot 23df3832."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .nouns import Lack, number, truth, whole

RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "batch_size": ("batch_size", whole),
    "gradient_accumulation_steps": ("gradient_accumulation", whole),
    "lora_rank": ("rank", whole),
    "lora_alpha": ("alpha", number),
    "offset_noise_weight": ("noise_offset", number),
    "perturbation_noise_weight": ("ip_noise_gamma", number),
    "rescale_noise_scheduler_to_zero_terminal_snr": ("zero_terminal_snr", truth),
}

DEFAULTS: dict[str, Any] = {
    "batch_size": 1,
    "rank": 16,
    "alpha": 1.0,
    "max_grad_norm": 1.0,
    "mixed_precision": "fp16",
    "save_precision": "fp32",
    "gradient_checkpointing": True,
}

FAMILIES = (
    ("STABLE_DIFFUSION_15", "sd15"), ("STABLE_DIFFUSION_20", "sd2"), ("STABLE_DIFFUSION_21", "sd2"), ("STABLE_DIFFUSION_XL", "sdxl"),
    ("STABLE_DIFFUSION_35", "sd35"), ("STABLE_DIFFUSION_3", "sd3"), ("FLUX_DEV_1", "flux"), ("FLUX_DEV", "flux"), ("Z_IMAGE", "zimage"),
)  # fmt: skip
"""How a model type begins -> our family."""

PRECISIONS = {"FLOAT_32": "fp32", "TFLOAT_32": "fp32", "FLOAT_16": "fp16", "BFLOAT_16": "bf16"}

_MACHINE, _LOG = "how OneTrainer uses its machine; lorry sees to it by itself", "lorry keeps its own record of every run"
_CACHE, _HOME = "lorry always caches what can be cached", "results come home into the run's folder"
STARTS: dict[str, str] = {
    "__version": "the file's version",
    "debug_": _LOG,
    "tensorboard": _LOG,
    "validat": "lorry measures by pictures held out",
    "secrets": "never read further",
    "cloud": "lorry rents by itself",
    "workspace_dir": _HOME,
    "cache_dir": _CACHE,
    "output_model": _HOME,
    "latent_caching": _CACHE,
    "image_caching": _CACHE,
    "text_caching": _CACHE,
    "clear_cache": _CACHE,
    "only_cache": _CACHE,
    "dataloader": _MACHINE,
    "caching_threads": _MACHINE,
    "prefetch": _MACHINE,
    "train_device": _MACHINE,
    "temp_device": _MACHINE,
    "multi_gpu": _MACHINE,
    "device_indexes": _MACHINE,
    "gradient_reduce": _MACHINE,
    "fused_gradient": _MACHINE,
    "async_": _MACHINE,
    "enable_async": _MACHINE,
    "enable_activation": _MACHINE,
    "layer_offload": _MACHINE,
    "enable_autocast": _MACHINE,
    "compile": _MACHINE,
    "attention_mechanism": _MACHINE,
    "fallback_train_dtype": _MACHINE,
    "weight_dtype": _MACHINE,
    "lora_weight_dtype": "the adapter's own weights stay fp32",
    "embedding": "lorry trains no embeddings",
    "additional_embeddings": "lorry trains no embeddings",
    "bundle_additional": "lorry trains no embeddings",
    "token_count": "lorry trains no embeddings",
    "initial_embedding": "lorry trains no embeddings",
    "preserve_embedding": "lorry trains no embeddings",
    "oft_": "for another kind of adapter",
    "lokr_": "for another kind of adapter",
    "dora_oft": "for another kind of adapter",
    "frames": "for films",
    "backup_": "lorry always saves what it resumes from",
    "rolling_backup": "lorry always saves what it resumes from",
    "sample_": "belongs to the samples",
    "samples": "belongs to the samples",
    "non_ema_sampling": "belongs to the samples",
    "save_skip_first": "belongs to the saves",
    "save_filename_prefix": _HOME,
    "include_train_config": "lorry writes the metadata that other programs read",
    "prevent_overwrites": _HOME,
    "continue_last_backup": "lorry resumes its own runs only",
    "quantization": "lorry chooses the base's precision by the card",
    "optimizer_defaults": "what the window remembers of other optimizers",
    "extra_model_name": "for another kind of model",
    "vae.": "the base's is used",
    "prior": "for another kind of model",
    "effnet_encoder": "for another kind of model",
    "decoder": "for another kind of model",
    "unconditional_transformer": "for another kind of model",
    "vae_weight": _MACHINE,
    "text_encoder_weight": _MACHINE,
    "unet_weight": _MACHINE,
    "vb_loss_strength": "for another kind of model",
    "huber_delta": "belongs to the loss",
    "ema_update": "lorry updates the mean at every step",
    "unmasked_": "belongs to the masks",
    "normalize_masked": "belongs to the masks",
    "lora_decompose_": "belongs to DoRA",
    "training_method": "lorry trains LoRA",
    "peft_type": "lorry trains LoRA",
    "scheduler_params": "belongs to another scheduler",
    "custom_learning_rate": "belongs to another scheduler",
    "circular_mask": "an aid for masks",
    "random_rotate_and_crop": "an aid for masks",
    "train_text_encoder_epochs": "said by the text encoder",
    "train_unet": "it is always trained",
    "concept_file_name": "read as well",
    "embedding_weight": "lorry trains no embeddings",
    "noising_weight": "belongs to the timesteps",
    "noising_bias": "belongs to the timesteps",
    "unet.": "belongs to the part that is trained",
    "transformer.": "belongs to the part that is trained",
    "text_encoder": "belongs to the text encoder",
    "optimizer.": "as it is here anyway",
}
"""How a key begins -> why it changes nothing here. What changes something has been decided before this table is asked."""

LACKING: dict[str, Lack] = {
    "lora_model_name": Lack(why="lorry begins a LoRA anew"),
    "lora_decompose": Lack(ours=("dora", "use_dora"), why="lorry trains LoRA without DoRA"),
    "layer_filter": Lack(off=(None, ""), hint="lorry chooses the layers by family"),
    "layer_filter_preset": Lack(off=("full", None, ""), hint="lorry chooses the layers by family"),
    "layer_filter_regex": Lack(),
    "timestep_distribution": Lack(off=("UNIFORM", None, ""), hint="lorry samples timesteps in its own way"),
    "timestep_shift": Lack(off=(1, 1.0, None), hint="lorry samples timesteps in its own way"),
    "dynamic_timestep_shifting": Lack(),
    "min_noising_strength": Lack(ours=("min_noising_strength",)),
    "max_noising_strength": Lack(off=(1, 1.0, None), ours=("max_noising_strength",)),
    "generalized_offset_noise": Lack(),
    "cep_gamma": Lack(),
    "force_circular_padding": Lack(),
    "masked_prior_preservation_weight": Lack(),
    "custom_conditioning_image": Lack(),
    "learning_rate_min_factor": Lack(ours=("lr_min",)),
    "loss_scaler": Lack(off=("NONE", None, ""), hint="multiply the rates yourself"),
    "log_cosh_strength": Lack(hint="`loss_type` has l1 and huber"),
    "dropout_probability": Lack(ours=("dropout",)),
}

CONCEPT_MEANINGLESS = ("name", "seed", "__version", "enabled", "validation_concept", "text_variations", "concept_stats", "type")

ARGUMENTS = (
    "weight_decay", "beta1", "beta2", "eps", "d_coef", "d0", "growth_rate", "momentum", "relative_step", "scale_parameter", "warmup_init",
    "use_bias_correction", "safeguard_warmup", "decouple", "clip_threshold", "decay_rate",
)  # fmt: skip
"""What the optimizer is told that makes a difference; the rest of its table is of other optimizers."""
