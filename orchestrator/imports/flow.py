"""How flow models (SD3, FLUX, Z-Image) are trained elsewhere: timesteps, shift, loss space. Each loss space has its own rates."""

from __future__ import annotations

from typing import Any

from .nouns import Conversion, Lack, fault_of, number, truth, whole

FAMILIES = frozenset({"sd3", "sd35", "flux", "zimage"})

_SAMPLED = {
    "logit_normal": "logit_normal",
    "mode": "mode",
    "uniform": "uniform",
    "none": "uniform",
    "sigma_sqrt": "uniform",
    "cosmap": "uniform",
}
_WEIGHTED = {"sigma_sqrt": "sigma_sqrt", "cosmap": "cosmap"}

KOHYA = (
    "weighting_scheme", "logit_mean", "logit_std", "mode_scale", "training_shift", "discrete_flow_shift", "timestep_sampling",
    "sigmoid_scale",
    "model_prediction_type", "guidance_scale", "t5xxl_max_token_length", "apply_t5_attn_mask", "apply_lg_attn_mask", "clip_l_dropout_rate",
    "clip_g_dropout_rate", "t5_dropout_rate", "pos_emb_random_crop_rate", "enable_scaled_pos_embed",
)  # fmt: skip
"""Options of sd-scripts that only flow models have."""

SIMPLETUNER = (
    "flow_schedule_shift", "flow_schedule_auto_shift", "flow_use_uniform_schedule", "flow_use_beta_schedule", "flow_beta_schedule_alpha",
    "flow_beta_schedule_beta", "flow_sigmoid_scale", "flux_guidance_mode", "flux_guidance_value", "flux_guidance_min", "flux_guidance_max",
    "flux_lora_target", "flux_fast_schedule", "flux_attention_masked_training", "t5_padding", "sd3_clip_uncond_behaviour",
    "sd3_t5_uncond_behaviour",
)  # fmt: skip
"""Options of SimpleTuner that only flow models have."""

_OTHERS = "for SD3, FLUX and their kind"


def of_kohya(c: Conversion, family: str | None) -> None:
    """SD3 and FLUX in sd-scripts."""
    if family not in FAMILIES:
        return c.mean_nothing(KOHYA, _OTHERS)
    scheme = str(c.get("weighting_scheme", "uniform"))
    sampling = str(c.get("timestep_sampling", "sigma"))
    if sampling == "sigma":
        c.carry(("weighting_scheme", "timestep_sampling"), "timestep_sampling", _SAMPLED.get(scheme, scheme))
        shift = c.get("training_shift", 1.0) if family.startswith("sd3") else c.get("discrete_flow_shift", 3.0)
    else:
        c.carry("timestep_sampling", "timestep_sampling", "uniform" if sampling == "uniform" else "sigmoid")
        shift = c.get("discrete_flow_shift", 3.0) if sampling == "shift" else 1.0
        c.rename({"sigmoid_scale": ("logit_std", number)})
    if sampling == "flux_shift":
        c.carry("timestep_sampling", "resolution_shift", True)
    else:
        c.carry(("training_shift", "discrete_flow_shift"), "flow_shift", number(shift))
    if scheme in _WEIGHTED:
        c.carry("weighting_scheme", "flow_weighting", _WEIGHTED[scheme])
    c.rename({"logit_mean": ("logit_mean", number), "logit_std": ("logit_std", number), "mode_scale": ("mode_scale", number)})
    c.rename({"guidance_scale": ("guidance_embedding", number), "t5xxl_max_token_length": ("t5_length", whole)})
    if family == "flux":
        c.default("guidance_embedding", 3.5)
    if family.startswith("sd3"):
        c.default("t5_length", 256)
        c.default("loss_space", "x0")
    elif str(c.get("model_prediction_type", "sigma_scaled")) == "raw":
        c.carry("model_prediction_type", "loss_space", "velocity")
    c.mean_nothing(("weighting_scheme", "sigmoid_scale"), f"not for timestep_sampling {sampling}")
    return None


def of_simpletuner(c: Conversion, family: str | None) -> None:
    """SD3, FLUX and Z-Image in SimpleTuner: sigmoid timesteps, shift 3, velocity."""
    if family not in FAMILIES:
        return c.mean_nothing(SIMPLETUNER, _OTHERS)
    c.default("loss_space", "velocity")
    if truth(c.get("flow_use_uniform_schedule", False)):
        c.carry("flow_use_uniform_schedule", "timestep_sampling", "uniform")
    elif not truth(c.get("flow_use_beta_schedule", False)):
        c.carry("flow_sigmoid_scale", "timestep_sampling", "sigmoid")
        c.carry("flow_sigmoid_scale", "logit_std", number(c.get("flow_sigmoid_scale", 1.0)))
    if truth(c.get("flow_schedule_auto_shift", False)):
        c.carry("flow_schedule_auto_shift", "resolution_shift", True)
        c.mean_nothing("flow_schedule_shift", "flow_schedule_auto_shift counts")
    else:
        shift = number(c.get("flow_schedule_shift", 3.0))
        c.carry("flow_schedule_shift", "flow_shift", shift or 1.0)
    c.rename({"flux_guidance_value": ("guidance_embedding", number), "t5_padding": ("t5_padding", _padding)})
    for key in ("sd3_clip_uncond_behaviour", "sd3_t5_uncond_behaviour"):
        c.rename({key: ("blank_caption", _blank)})
    c.rename({"tokenizer_max_length": ("t5_length", whole)})
    return None


def _padding(value: Any) -> str:
    return {"zero": "zero", "unmodified": "kept"}[str(value)]


def _blank(value: Any) -> str:
    return {"empty_string": "encoded", "zero": "zeros"}[str(value)]


def of_aitoolkit(c: Conversion, family: str | None) -> None:
    """Flow models in ai-toolkit: velocity, timesteps by `timestep_type`."""
    key = "train.timestep_type"
    if family not in FAMILIES:
        return c.mean_nothing((key, "train.linear_timesteps"), _OTHERS)
    c.default("loss_space", "velocity")
    kind = str(c.get(key, "sigmoid"))
    ours = {"sigmoid": "sigmoid", "linear": "uniform"}.get(kind)
    if ours:
        c.carry(key, "timestep_sampling", ours)
    else:
        c.apply({key: Lack(off=(None, ""), hint="`timestep_sampling` has uniform, sigmoid, logit_normal and mode")})
    return None


def of_onetrainer(c: Conversion, family: str | None) -> None:
    """Flow models in OneTrainer: velocity, a distribution and a shift."""
    keys = ("timestep_distribution", "timestep_shift", "dynamic_timestep_shifting", "noising_weight", "noising_bias")
    if family not in FAMILIES:
        return
    c.default("loss_space", "velocity")
    ours = {"UNIFORM": "uniform", "LOGIT_NORMAL": "logit_normal", "SIGMOID": "sigmoid"}.get(str(c.get(keys[0], "UNIFORM")))
    if ours and not fault_of("timestep_sampling", ours):
        c.carry(keys[0], "timestep_sampling", ours)
        if ours == "logit_normal":
            c.rename({"noising_bias": ("logit_mean", number)})
            c.carry("noising_weight", "logit_std", number(c.get("noising_weight", 0)) + 1)
    if truth(c.get("dynamic_timestep_shifting", False)):
        c.carry("dynamic_timestep_shifting", "resolution_shift", True)
    else:
        c.carry("timestep_shift", "flow_shift", number(c.get("timestep_shift", 1.0)))
    return
