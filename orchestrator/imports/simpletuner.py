"""SimpleTuner's config.json and multidatabackend.json -> one `[[lora]]`.

What means something else there: keys may carry `--`; `repeats` counts the further times, so that 0 is once; `resolution` is an edge,
megapixels or the side of an area; 0 epochs or 0 steps leaves it to the other one; `lr_scale` multiplies the rate by the batch. Facts of
snapshot bc8e6ab7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.file.bases import family_told_by
from orchestrator.file.drafting import as_name

from .counting import pictures, repeats_in_name
from .flow import of_simpletuner
from .folders import Folder, several
from .nouns import Conversion, Job, chosen, fault_of, flat, number, truth, whole
from .optimizers import Wanted, settle
from .places import placed
from .reading import Source, read
from .simpletuner_tables import (
    DEFAULTS,
    FAMILIES,
    FOLDER_LACKING,
    FOLDER_MEANINGLESS,
    LACKING,
    MEANINGLESS,
    OFF_AT_ZERO,
    ON_DISK,
    RENAMED,
    STARTS,
    TOOL,
    USUAL_BASES,
)


def job(source: Source, data: Source | None, target: Path) -> Job:
    """One config with its data."""
    return _Run(source, data, target).job()


class _Run:
    def __init__(self, source: Source, data: Source | None, target: Path) -> None:
        self.file, self.target, self.files = source.file, target, [source.file]
        own = {str(key).lstrip("-").replace("-", "_"): value for key, value in flat(dict(source.data)).items()}
        places = {str(key).lstrip("-").replace("-", "_"): str(key) for key in flat(dict(source.data))}
        named = str(own.get("data_backend_config") or "")
        if data is None and named and (found := placed(named, self.file, target).found):
            data = next((one for one in read(found) if one.form == "simpletuner-data"), None)
        self.entries = [one for one in data.data if isinstance(one, Mapping)] if data else []
        if data:
            self.files.append(data.file)
        entries = flat(self.entries, "data") if self.entries else {}
        self.c = Conversion(tool=TOOL, source={**own, **entries}, places=places)
        self.name = as_name(
            str(own.get("tracker_run_name") or own.get("hub_model_id") or Path(str(own.get("output_dir") or self.file.stem)).name)
        )
        self.folder: Path | None = None

    def job(self) -> Job:
        c = self.c
        if str(c.get("model_type", "lora")) != "lora":
            c.lack("model_type", "lorry trains LoRA, not whole models", "expect another result")
        if str(c.get("lora_type", "standard")) != "standard":
            c.lack("lora_type", "lorry trains LoRA on linear layers", "expect another adapter: compare the results")
        self._model()
        self._pictures()
        self._noise()
        c.rename(RENAMED, OFF_AT_ZERO)
        self._rates()
        self._length()
        self._samples()
        of_simpletuner(c, self.family)
        c.default("layers", "attention", "SimpleTuner adapts the attention alone")
        c.default("dropout", 0.1, "SimpleTuner's lora_dropout where nothing is said")
        c.default("heldout", 0, "SimpleTuner trains on every picture")
        for ours, value in DEFAULTS.items():
            c.default(ours, value)
        c.default("alpha", float(c.lines["rank"].value), "SimpleTuner's alpha is the rank where nothing is said")
        c.apply(LACKING)
        for key, why in MEANINGLESS.items():
            c.mean_nothing(key, why)
        for key in c.source:
            if why := next((why for start, why in STARTS.items() if key.startswith(start)), ""):
                c.mean_nothing(key, why)
        return c.end(name=self.name, files=self.files)

    def _model(self) -> None:
        c = self.c
        family = str(c.get("model_family", ""))
        flavour = str(c.get("model_flavour", ""))
        ours = "sd35" if family == "sd3" and flavour.startswith("3.5") and not fault_of("family", "sd35") else FAMILIES.get(family, family)
        if base := c.get("pretrained_model_name_or_path"):
            c.carry("pretrained_model_name_or_path", "base", placed(str(base), self.file, self.target).written)
        elif usual := USUAL_BASES.get((family, flavour)) or USUAL_BASES.get((family, "")):
            c.carry(("model_flavour",), "base", usual, said_by=f"SimpleTuner's model for {family} {flavour}".rstrip())
        self.family = ours or family_told_by(str(c.get("pretrained_model_name_or_path", "")), self.target.absolute().parent)
        if family and not fault_of("family", ours):
            c.carry("model_family", "family", ours)
        else:
            c.lack("model_family", fault_of("family", ours), "`lorry check` says whether this version trains the base")
        c.mean_nothing("model_flavour", "told from the base")
        if str(c.get("init_lora", "None")) != "None":
            c.carry("init_lora", "start_from", placed(str(c.get("init_lora")), self.file, self.target).written)
        if str(c.get("prediction_type", "")) == "v_prediction":
            c.carry("prediction_type", "prediction", "v")

    # --- pictures ---

    def _pictures(self) -> None:
        c = self.c
        numbered = [(n, one) for n, one in enumerate(self.entries)]
        images = [(n, one) for n, one in numbered if str(one.get("dataset_type", "image")) == "image" and not _disabled(one)]
        own = [
            (n, one)
            for n, one in images
            if not truth(one.get("is_regularisation_data", False)) and str(one.get("type", ON_DISK)) == ON_DISK
        ]
        for n, one in numbered:
            self._other(n, one, own=any(n == m for m, _ in own))
        where = {n: placed(str(one.get("instance_data_dir", "")), self.file, self.target) for n, one in own}
        if len(own) == 1:
            n, one = own[0]
            self.folder = where[n].found
            c.carry(f"data[{n}].instance_data_dir", "dataset", where[n].written)
            self.repeats = whole(one.get("repeats", 0)) + 1
        elif own:
            keys = [key for n, _ in own for key in (f"data[{n}].instance_data_dir", f"data[{n}].repeats")]
            self.folder = several(c, keys, self.name, [Folder(where[n], whole(one.get("repeats", 0)) + 1) for n, one in own])
            self.repeats = 0
        for n, one in own:
            self._folder(n, one)
        c.note("SimpleTuner makes a bucket of each aspect ratio, lorry as kohya does", "a picture's bucket may differ by one step")

    def _other(self, n: int, one: Mapping[str, Any], *, own: bool) -> None:
        """Entries that are no folder of pictures to train on."""
        c, start = self.c, f"data[{n}]."
        keys = [key for key in c.source if key.startswith(start)]
        kind = str(one.get("dataset_type", "image"))
        if own:
            return
        if _disabled(one):
            c.mean_nothing(keys, "it is switched off")
        elif kind in {"text_embeds", "image_embeds", "conditioning_image_embeds"}:
            c.mean_nothing(keys, "a cache; lorry always caches what can be cached")
        elif kind == "image" and truth(one.get("is_regularisation_data", False)):
            where = placed(str(one.get("instance_data_dir", "")), self.file, self.target)
            c.carry(f"{start}instance_data_dir", "regularisation", where.written)
            c.mean_nothing([key for key in keys if key != f"{start}instance_data_dir"], "as for the other pictures")
        elif kind == "conditioning" and str(one.get("conditioning_type", "mask")) == "mask":
            where = placed(str(one.get("instance_data_dir", "")), self.file, self.target)
            c.carry(f"{start}instance_data_dir", "masks", where.written)
            c.mean_nothing([key for key in keys if key != f"{start}instance_data_dir"], "belongs to the masks")
        else:
            what = str(one.get("type", "local")) if kind == "image" else kind
            c.lack(keys, f"lorry takes pictures from folders, not {what}", "fetch the pictures into a folder and name it as `dataset`")

    def _folder(self, n: int, one: Mapping[str, Any]) -> None:
        c, start = self.c, f"data[{n}]."
        side = _side(
            one.get("resolution", c.get("resolution", 1024)), str(one.get("resolution_type", c.get("resolution_type", "pixel_area")))
        )
        before = c.lines.get("resolution")
        if before and before.value != side:
            if not c.carry(f"{start}resolution", "more_resolutions", [side]):
                c.lack(f"{start}resolution", f"lorry trains at one resolution; {before.value} is written", "make a [[lora]] for each")
        else:
            c.carry(f"{start}resolution", "resolution", side, said_by="SimpleTuner's where nothing is said")
            if str(one.get("resolution_type", "pixel_area")) == "pixel" and not _square(one):
                what = f"SimpleTuner keeps the shorter edge at {side} (resolution_type pixel), lorry the area of a square of it"
                c.note(what, "oblong pictures become smaller: raise `resolution` by a tenth if that matters")
        if _square(one):
            c.carry(f"{start}crop", "min_bucket", side)
            c.carry(f"{start}crop", "max_bucket", side)
        c.default("min_bucket", min(256, side), "it has no shortest side")
        c.default("max_bucket", max(2048, side * 2), "it has no longest side")
        c.mean_nothing(f"{start}crop", "pictures are cut to their bucket")
        if str(one.get("crop_style", "center")) not in {"center", "centre"} and truth(one.get("crop", False)):
            c.lack(f"{start}crop_style", "lorry crops in the middle", "`crops` trains on several parts of a picture in turn")
        self._captions(start, one)
        if self.repeats:
            c.mean_nothing(f"{start}repeats", "steps count, and there is one folder")
        for key, lack in FOLDER_LACKING.items():
            c.apply({start + key: lack})
        for key, why in FOLDER_MEANINGLESS.items():
            c.mean_nothing(start + key, why)
        c.mean_nothing([key for key in c.source if key.startswith(f"{start}cache_dir")], "lorry always caches what can be cached")

    def _captions(self, start: str, one: Mapping[str, Any]) -> None:
        c = self.c
        strategy = str(one.get("caption_strategy", c.get("caption_strategy", "filename")))
        prompt = one.get("instance_prompt", c.get("instance_prompt"))
        if strategy == "textfile":
            c.mean_nothing(f"{start}caption_strategy", "lorry reads .txt captions")
        elif strategy == "instanceprompt" and prompt:
            c.carry((f"{start}instance_prompt", f"{start}caption_strategy"), "trigger", str(prompt))
            if self.folder and any(picture.captioned for picture in pictures(self.folder) or ()):
                c.note("SimpleTuner captions every picture with instance_prompt alone", "move the .txt captions away: lorry reads them")
        else:
            c.lack(f"{start}caption_strategy", f"lorry reads .txt captions, not by {strategy}", "write the captions into .txt files")
        if truth(one.get("prepend_instance_prompt", False)) and prompt:
            c.carry((f"{start}prepend_instance_prompt", f"{start}instance_prompt"), "trigger", str(prompt))
        c.mean_nothing(f"{start}instance_prompt", "not used by this caption_strategy")
        shuffle = [key for key in c.source if key.startswith(f"{start}caption_shuffle")]
        if truth(c.get(f"{start}caption_shuffle.enable", False)):
            c.carry(f"{start}caption_shuffle.enable", "shuffle_caption", True)
            c.rename({f"{start}caption_shuffle.position_start": ("keep_tokens", whole)})
        c.mean_nothing(shuffle, "lorry shuffles anew at every use" if "shuffle_caption" in c.lines else "off")

    # --- rates and length ---

    def _noise(self) -> None:
        c = self.c
        if truth(c.get("offset_noise", False)):
            c.carry(("offset_noise", "noise_offset"), "noise_offset", number(c.get("noise_offset", 0.1)))
        c.mean_nothing(("noise_offset", "offset_noise"), "offset_noise is off")

    def _rates(self) -> None:
        c = self.c
        arguments: dict[str, Any] = {"adam_weight_decay": c.get("adam_weight_decay")} if c.has("adam_weight_decay") else {}
        word = str(c.get("optimizer", "adamw_bf16"))
        settle(c, Wanted(keys=("optimizer",), word=word, arguments={}, rates=("learning_rate", "text_encoder_lr")))
        if arguments:
            c.carry("adam_weight_decay", "weight_decay", number(arguments["adam_weight_decay"]))
        for key, usual in (
            ("adam_beta1", 0.9),
            ("optimizer_beta1", 0.9),
            ("adam_beta2", 0.999),
            ("optimizer_beta2", 0.999),
            ("adam_epsilon", 1e-8),
        ):
            if c.get(key) is None or number(c.get(key)) == usual:
                c.mean_nothing(key, "as it is here anyway")
            else:
                c.lack(key, f"lorry is not told of {key} by the import", "write it into `optimizer_args`, if the optimizer takes it")
        if c.has("optimizer_config"):
            c.lack(
                "optimizer_config",
                "its words belong to SimpleTuner's optimizers",
                "write them into `optimizer_args`, if the optimizer takes them",
            )
        c.rename({"max_grad_norm": ("max_grad_norm", number)})
        batch = (c.lines["batch_size"].value if "batch_size" in c.lines else 4) * whole(c.get("gradient_accumulation_steps", 1))
        factor = (math.sqrt(batch) if truth(c.get("lr_scale_sqrt", False)) else batch) if truth(c.get("lr_scale", False)) else 1
        if "learning_rate" not in c.fates:
            rate = number(c.get("learning_rate", 4e-7)) * factor
            keys = ("learning_rate", "lr_scale", "lr_scale_sqrt") if factor != 1 else ("learning_rate",)
            c.carry(keys, "learning_rate", rate, said_by="SimpleTuner's where nothing is said")
        c.mean_nothing(("lr_scale", "lr_scale_sqrt"), "off")
        if truth(c.get("train_text_encoder", False)):
            c.carry(
                ("train_text_encoder", "text_encoder_lr"), "text_encoder_lr", number(c.get("text_encoder_lr", c.get("learning_rate", 4e-7)))
            )
        c.default("text_encoder_lr", 0.0, "SimpleTuner trains no text encoder")
        c.mean_nothing(("train_text_encoder", "text_encoder_lr", "text_encoder_limit"), "no text encoder is trained")
        name = str(c.get("lr_scheduler", "constant"))
        ours = chosen("lr_scheduler", {"constant_with_warmup": "constant"}.get(name, name))
        if ours:
            c.carry("lr_scheduler", "lr_scheduler", ours, said_by="written; SimpleTuner's own is `sine`, which lorry has not")
        else:
            c.lack("lr_scheduler", f"lorry has no scheduler {name}", "`cosine` is written: look at its curve")
            c.default("lr_scheduler", "cosine", f"instead of {name}")
        if name == "constant":
            c.mean_nothing("lr_warmup_steps", "`constant` has no warm-up; `constant_with_warmup` has")
        c.rename({"lr_warmup_steps": ("lr_warmup_steps", whole)})
        if truth(c.get("use_ema", False)):
            c.carry(("use_ema", "ema_decay"), "ema_decay", number(c.get("ema_decay", 0.995)))
        c.mean_nothing(("use_ema", "ema_decay"), "off")

    def _length(self) -> None:
        """Steps if there are any; else epochs, which SimpleTuner counts by folders and whole batches."""
        c = self.c
        steps, epochs = whole(c.get("max_train_steps", 0)), whole(c.get("num_train_epochs", 0))
        if steps > 0:
            c.carry("max_train_steps", "steps", steps)
            c.mean_nothing("num_train_epochs", "max_train_steps counts")
        else:
            shown = repeats_in_name(self.folder) if self.folder and self.repeats else 1
            times = max(epochs, 1) * (self.repeats or 1)
            c.carry("num_train_epochs", "epochs", max(times // (shown or 1), 1), said_by="once, as nothing is said")
            c.mean_nothing("max_train_steps", "num_train_epochs counts")
            c.note("SimpleTuner drops batches that are not full in each epoch, lorry trains on them", "write `steps` for an exact number")
        c.mean_nothing("ignore_final_epochs", "steps count")

    def _samples(self) -> None:
        c = self.c
        every = whole(c.get("validation_step_interval", c.get("validation_steps", 0)))
        prompt = c.get("validation_prompt")
        if not prompt or not every or truth(c.get("validation_disable", False)):
            return
        width, _, height = str(c.get("validation_resolution", "1024")).partition(",")[0].partition("x")
        flags = {
            "n": c.get("validation_negative_prompt"),
            "w": width,
            "h": height or width,
            "d": c.get("validation_seed"),
            "l": c.get("validation_guidance"),
            "s": c.get("validation_num_inference_steps"),
        }
        said = " ".join(f"--{flag} {value}" for flag, value in flags.items() if value not in (None, "", False))
        keys = ["prompt", "negative_prompt", "resolution", "seed", "guidance", "num_inference_steps"]
        c.carry([f"validation_{key}" for key in keys], "sample_prompts", [f"{prompt} {said}"])
        c.carry(("validation_step_interval", "validation_steps"), "sample_every_steps", every)
        if library := c.get("user_prompt_library"):
            c.lack("user_prompt_library", f"{library} is not read", "write its prompts into `sample_prompts`")


def _disabled(entry: Mapping[str, Any]) -> bool:
    return truth(entry.get("disabled", entry.get("disable", False)))


def _square(entry: Mapping[str, Any]) -> bool:
    return truth(entry.get("crop", False)) and str(entry.get("crop_aspect", "square")) == "square"


def _side(value: Any, kind: str) -> int:
    """The side of a square in pixels: from megapixels, or as it is."""
    size = number(value)
    return round(math.sqrt(size * 1e6) / 64) * 64 if kind == "area" or size < 32 else int(size)
