"""What kohya's GUI decides before it calls sd-scripts: epochs, warm-up in per cent, rates of 0, kinds of noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .counting import Picture
from .nouns import Conversion, number, whole

_LYCORIS = (
    "conv_dim", "conv_alpha", "conv_block_dims", "conv_block_alphas", "block_dims", "block_alphas", "block_lr_zero_threshold",
    "down_lr_weight",
    "mid_lr_weight", "up_lr_weight", "decompose_both", "factor", "unit", "use_cp", "use_tucker", "use_scalar", "use_conv_cp",
    "train_on_input",
    "train_norm", "rescaled", "constrain", "bypass_mode", "dora_wd", "rank_dropout_scale", "LyCORIS_preset", "rank_dropout",
    "module_dropout",
    "loraplus_lr_ratio", "loraplus_text_encoder_lr_ratio", "loraplus_unet_lr_ratio", "conv_dims", "conv_alphas",
)  # fmt: skip
_OF_THE_GUI = (
    "model_list", "num_cpu_threads_per_process", "num_processes", "num_machines", "multi_gpu", "gpu_ids", "main_process_port",
    "extra_accelerate_launch_args",
    "use_wandb", "gui_config", "log_tracker_config", "no_token_padding", "noise_offset_type", "LoRA_type", "additional_parameters",
    "train_t5xxl",
    "epoch", "accelerate_launch", "dynamo_mode", "dynamo_use_dynamic", "dynamo_use_fullgraph", "save_as_bool", "lowvram", "train_blocks",
    "lr_scheduler_type_list",
)  # fmt: skip


def settle(c: Conversion) -> None:
    """Decide as the GUI does, in the words of sd-scripts: its settings are replaced by what it would pass on."""
    kind = str(c.get("LoRA_type", "Standard"))
    lone = {"Standard", "Flux1", "SD3", "Kohya LoCon"}
    if kind not in lone - {"Kohya LoCon"}:
        c.lack("LoRA_type", f"lorry trains LoRA on linear layers, not {kind}", "expect another adapter: compare the results")
    c.mean_nothing("LoRA_type", "lorry trains LoRA")
    if kind in lone - {"Kohya LoCon"}:
        c.mean_nothing(_LYCORIS, f"the GUI passes it on for other kinds than {kind}")
    else:
        c.rename({"conv_dim": ("conv_rank", whole), "conv_alpha": ("conv_alpha", number)}, ("conv_dim", "conv_alpha"))
        c.mean_nothing(_LYCORIS, "belongs to the kind of adapter that is listed")
    if str(c.get("noise_offset_type", "Original")) == "Multires":
        c.mean_nothing("noise_offset", "the GUI adds multires noise instead")
    else:
        c.mean_nothing(("multires_noise_iterations", "multires_noise_discount"), "the GUI adds offset noise instead, if any")
    encoder, unet = number(c.get("text_encoder_lr", 0) or 0), number(c.get("unet_lr", 0) or 0)
    if not encoder and not unet:
        c.implied = {"text_encoder_lr": None, "unet_lr": None}
    elif not encoder:
        c.implied = {"network_train_unet_only": True}
    elif not unet:
        c.implied = {"network_train_text_encoder_only": True}
    if whole(c.get("stop_text_encoder_training", 0) or 0) or whole(c.get("stop_text_encoder_training_pct", 0) or 0):
        keys = ("stop_text_encoder_training", "stop_text_encoder_training_pct")
        c.lack(keys, "lorry trains text encoders to the end or not at all", "lower `text_encoder_lr`")
    c.mean_nothing(("stop_text_encoder_training", "stop_text_encoder_training_pct"), "off")
    if str(c.get("seed", "0")) == "0":
        c.mean_nothing("seed", "0: none is set")
    c.mean_nothing("xformers", "how kohya uses its machine; lorry sees to it by itself")
    c.mean_nothing(
        [key for key in c.source if key.startswith(("flux1_", "sd3_")) and not key.endswith("_checkbox")], "a setting of the GUI itself"
    )
    c.mean_nothing([key for key in _OF_THE_GUI if key != "epoch"], "a setting of the GUI itself")


def length(c: Conversion, found: Sequence[Picture] | None, *, reg: bool) -> int | None:
    """The steps that the GUI works out: those that are set, else pictures x repeats / batch x epochs, whatever the buckets are."""
    if steps := whole(c.get("max_train_steps", 0) or 0):
        c.carry("max_train_steps", "steps", steps)
        c.mean_nothing(("epoch", "max_train_epochs"), "max_train_steps counts")
        return steps
    epochs = whole(c.get("epoch", 1) or 1)
    c.mean_nothing(("max_train_steps", "max_train_epochs"), "nothing is said: epoch counts")
    if found is None:
        c.carry("epoch", "epochs", epochs)
        c.note(
            "kohya's GUI makes steps of epochs without minding buckets, and the pictures are not here to count", "expect a few steps more"
        )
        return None
    batch = c.lines["batch_size"].value if "batch_size" in c.lines else 1
    accumulation = c.lines["gradient_accumulation"].value if "gradient_accumulation" in c.lines else 1
    total = math.ceil(sum(picture.repeats for picture in found) / batch / accumulation * epochs * (2 if reg else 1))
    c.carry("epoch", "steps", total, said_by="pictures x repeats / batch, as the GUI counts them")
    return total


def warmup(c: Conversion, total: int | None) -> None:
    """`lr_warmup` is in per cent of the steps; `lr_warmup_steps` wins where it is there."""
    percent = number(c.get("lr_warmup", 0) or 0)
    if percent and not number(c.get("lr_warmup_steps", 0) or 0) and str(c.get("lr_scheduler", "constant")) != "constant":
        if total is None:
            c.lack("lr_warmup", "per cent of steps that cannot be counted yet", f"write `lr_warmup_steps`: {percent:g} % of the steps")
        else:
            c.carry("lr_warmup", "lr_warmup_steps", round(percent * total / 100))
            c.mean_nothing("lr_warmup_steps", "lr_warmup counts")
    c.mean_nothing("lr_warmup", "off, or not for this scheduler")
    c.mean_nothing("epoch", "max_train_epochs counts")
