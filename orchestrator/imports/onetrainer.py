"""OneTrainer's JSON, with its concepts -> one `[[lora]]`.

What means something else there: alpha is 1 where nothing is said; rates are multiplied by the square root of the batch under
`learning_rate_scaler`; a batch that is not full is dropped, so that an epoch is shorter; `balancing` is how often a concept is shown;
several resolutions take turns. Facts of snapshot 23df3832.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.file.drafting import as_name

from .counting import pictures, steps_per_epoch
from .flow import of_onetrainer
from .folders import Folder, several
from .nouns import Conversion, Job, chosen, fault_of, first_existing, flat, number, truth, whole
from .onetrainer_tables import ARGUMENTS, CONCEPT_MEANINGLESS, DEFAULTS, FAMILIES, LACKING, PRECISIONS, RENAMED, STARTS
from .optimizers import Wanted, settle
from .places import placed
from .reading import Source, read


def job(source: Source, concepts: Source | None, target: Path) -> Job:
    """One config with its concepts."""
    return _Run(source, concepts, target).job()


class _Run:
    def __init__(self, source: Source, concepts: Source | None, target: Path) -> None:
        self.file, self.target, self.files = source.file, target, [source.file]
        data = {key: value for key, value in source.data.items() if key not in {"concepts", "secrets"}}
        given = source.data.get("concepts")
        named = str(source.data.get("concept_file_name") or "")
        if not given and concepts is None and named and (found := placed(named, self.file, target).found):
            concepts = next((one for one in read(found) if one.form == "onetrainer-concepts"), None)
        if not given and concepts is not None:
            self.files.append(concepts.file)
            given = concepts.data
        self.concepts = [one for one in given or [] if isinstance(one, Mapping)]
        everything = flat(data)
        if "secrets" in source.data:
            everything["secrets"] = "not shown"
        if "concepts" in source.data and not self.concepts:
            everything["concepts"] = source.data["concepts"]
        self.c = Conversion(tool="OneTrainer", source={**everything, **(flat(self.concepts, "concepts") if self.concepts else {})})
        self.name = as_name(Path(str(data.get("output_model_destination") or self.file.stem).replace("\\", "/")).stem)
        self.folder: Path | None = None
        self.times: float | None = None
        """How often an epoch shows the pictures of the one concept."""

    def job(self) -> Job:
        c = self.c
        if str(c.get("training_method", "LORA")) != "LORA" or str(c.get("peft_type", "LORA")) != "LORA":
            c.lack(("training_method", "peft_type"), "lorry trains LoRA on linear layers", "expect another adapter: compare the results")
        self._model()
        self._pictures()
        c.rename(RENAMED)
        self._precision()
        self._rates()
        self._loss()
        self._length()
        self._samples()
        c.default("heldout", 0, "OneTrainer trains on every picture of these concepts")
        for ours, value in DEFAULTS.items():
            c.default(ours, value)
        of_onetrainer(c, self.family)
        c.note(
            "OneTrainer puts an adapter on every layer, convolutions too",
            "`conv_rank` adapts convolutions; the file has linear layers only",
        )
        c.apply(LACKING)
        c.mean_nothing("concepts", "none are in the file")
        for key in c.source:
            if key.startswith("concepts["):
                continue
            if why := next((why for start, why in STARTS.items() if key.startswith(start)), ""):
                c.mean_nothing(key, why)
        return c.end(name=self.name, files=self.files)

    def _model(self) -> None:
        c = self.c
        if base := c.get("base_model_name"):
            c.carry("base_model_name", "base", placed(str(base), self.file, self.target).written)
        if start := c.get("lora_model_name"):
            c.carry("lora_model_name", "start_from", placed(str(start), self.file, self.target).written)
        kind = str(c.get("model_type", "STABLE_DIFFUSION_15"))
        family = next((ours for start, ours in FAMILIES if kind.startswith(start)), kind)
        self.family = family
        if fault := fault_of("family", family):
            c.lack("model_type", fault, "`lorry check` says whether this version trains the base")
        else:
            c.carry("model_type", "family", family, said_by="OneTrainer's where nothing is said")
        for key, ours in (("force_v_prediction", "v"), ("force_epsilon_prediction", "epsilon")):
            if truth(c.get(key, False)):
                c.carry(key, "prediction", ours)
            c.mean_nothing(key, "off: the base says what it answers")
        skip = whole(c.get("text_encoder_layer_skip", 0))
        if skip and family in {"sd15", "sd2"}:
            c.carry("text_encoder_layer_skip", "clip_skip", skip + 1)

    # --- pictures ---

    def _pictures(self) -> None:
        c = self.c
        self._sides()
        kinds = {
            n: str(one.get("type") or ("VALIDATION" if one.get("validation_concept") else "STANDARD"))
            for n, one in enumerate(self.concepts)
        }
        own = [(n, one) for n, one in enumerate(self.concepts) if kinds[n] == "STANDARD" and one.get("enabled", True)]
        for n, one in enumerate(self.concepts):
            if not any(n == m for m, _ in own):
                self._other(n, one, kinds[n])
        where = {n: placed(str(one.get("path", "")), self.file, self.target) for n, one in own}
        if len(own) == 1:
            n, one = own[0]
            self.folder, self.times = where[n].found, number(one.get("balancing", one.get("repeats", 1.0)))
            c.carry(f"concepts[{n}].path", "dataset", where[n].written)
        elif own:
            folders = [
                Folder(where[n], max(round(number(one.get("balancing", one.get("repeats", 1)))), 1), str(one.get("name") or ""))
                for n, one in own
            ]
            several(c, [key for n, _ in own for key in (f"concepts[{n}].path", f"concepts[{n}].balancing")], self.name, folders)
        for n, one in own:
            self._concept(n, one)
        if not self.concepts:
            c.note(
                "the concepts are not here, so no `dataset` can be written",
                "name the concepts file as well: lorry import config.json concepts.json",
            )

    def _sides(self) -> None:
        c = self.c
        text = str(c.get("resolution", "512"))
        sides = [whole(part) for part in text.replace("x", ",").split(",") if part.strip()]
        if "x" in text and len(set(sides)) > 1:
            c.lack(
                "resolution",
                "lorry has no single oblong size",
                f"{math.isqrt(sides[0] * sides[1])} is written, the square of the same area",
            )
            sides = [math.isqrt(sides[0] * sides[1]) // 8 * 8]
            c.default("resolution", sides[0], "the square of the same area")
        else:
            c.carry("resolution", "resolution", sides[0], said_by="OneTrainer's where nothing is said")
        if len(set(sides)) > 1 and "x" not in text:
            if c.carry("resolution", "more_resolutions", sides[1:]):
                c.note("OneTrainer draws one of the resolutions at each use, lorry trains at each of them", "an epoch is longer by as much")
            else:
                c.lack("resolution", f"lorry trains at one resolution; {sides[0]} is written", "make a [[lora]] for each")
        buckets = truth(c.get("aspect_ratio_bucketing", True))
        c.default(
            "min_bucket",
            min(256, *sides) if buckets else sides[0],
            "it has no shortest side" if buckets else "aspect_ratio_bucketing is off",
        )
        c.default(
            "max_bucket",
            max(sides) * 2 if buckets else sides[0],
            "its longest bucket is twice that" if buckets else "aspect_ratio_bucketing is off",
        )
        c.carry("aspect_ratio_bucketing", "max_bucket", c.lines["max_bucket"].value) if not buckets else None
        c.mean_nothing("aspect_ratio_bucketing", "buckets are always on")
        if buckets:
            c.note("OneTrainer has a bucket for each of 17 aspect ratios, lorry those of kohya", "a picture's bucket may differ")

    def _other(self, n: int, one: Mapping[str, Any], kind: str) -> None:
        c = self.c
        keys = [key for key in c.source if key.startswith(f"concepts[{n}].")]
        if not one.get("enabled", True):
            c.mean_nothing(keys, "it is switched off")
        elif kind == "PRIOR_PREDICTION":
            c.lack(keys, "lorry has no prior prediction", "`regularisation` holds a class with pictures of it")
        else:
            c.lack(keys, "lorry measures by pictures of the dataset itself", "`heldout` says how many")

    def _concept(self, n: int, one: Mapping[str, Any]) -> None:
        c, start = self.c, f"concepts[{n}]."
        if truth(one.get("include_subdirectories", False)):
            c.lack(
                f"{start}include_subdirectories",
                "lorry reads the folder itself, or kohya's `10_words` folders in it",
                "move the pictures together",
            )
        c.mean_nothing(f"{start}include_subdirectories", "off")
        if "SAMPLES" in str(one.get("balancing_strategy", "REPEATS")):
            c.lack(
                (f"{start}balancing_strategy", f"{start}balancing"), "lorry shows every picture of a folder in an epoch", "write `steps`"
            )
            self.times = None
        c.mean_nothing(f"{start}balancing_strategy", "repeats")
        source = str(one.get("text", {}).get("prompt_source", "sample") if isinstance(one.get("text"), Mapping) else "sample")
        if source == "sample":
            c.mean_nothing(f"{start}text.prompt_source", "lorry reads .txt captions")
        else:
            c.lack(f"{start}text.prompt_source", f"lorry reads .txt captions, not by {source}", "write the captions into .txt files")
        if truth(c.get(f"{start}text.enable_tag_shuffling", False)):
            c.carry(f"{start}text.enable_tag_shuffling", "shuffle_caption", True)
            c.carry(f"{start}text.keep_tags_count", "keep_tokens", whole(c.get(f"{start}text.keep_tags_count", 1)))
        if truth(c.get(f"{start}text.tag_dropout_enable", False)):
            keys = [f"{start}text.tag_dropout_{word}" for word in ("enable", "probability")]
            c.carry(keys, "tag_dropout", number(c.get(keys[1], 0.0)))
        flips = truth(c.get(f"{start}image.enable_random_flip", True))
        c.carry(f"{start}image.enable_random_flip", "flip", flips, said_by="OneTrainer's where nothing is said")
        for key in [key for key in c.source if key.startswith((f"{start}image.enable", f"{start}text.caps_randomize_enable"))]:
            usual = key.endswith("enable_crop_jitter")
            if truth(c.get(key)) and key not in c.fates:
                hint = "nothing to do, but expect another result" if usual else "change the pictures beforehand"
                c.lack(key, "lorry crops in the middle" if usual else "lorry changes no picture", hint)
        if number(one.get("loss_weight", 1.0)) != 1:
            c.lack(f"{start}loss_weight", "lorry counts every picture alike", "name the folder with more repeats: `2_words`")
        rest = [key for key in c.source if key.startswith((f"{start}image", f"{start}text", f"{start}loss_weight"))]
        c.mean_nothing(rest, "off, or belongs to what is off")
        c.mean_nothing([start + key for key in CONCEPT_MEANINGLESS], "names and notes of OneTrainer")
        c.mean_nothing(f"{start}image_variations", "lorry caches each picture once")

    # --- rates ---

    def _precision(self) -> None:
        c = self.c
        arithmetic, kept = str(c.get("train_dtype", "FLOAT_16")), str(c.get("output_dtype", "FLOAT_32"))
        said = "OneTrainer's where nothing is said"
        c.carry("train_dtype", "mixed_precision", {"fp32": "no"}.get(*2 * (PRECISIONS.get(arithmetic, "bf16"),)), said_by=said)
        c.carry("output_dtype", "save_precision", PRECISIONS.get(kept, "fp16"), said_by=said)
        checkpointing = c.get("gradient_checkpointing", "ON")
        c.carry("gradient_checkpointing", "gradient_checkpointing", str(checkpointing) not in {"OFF", "False"}, said_by=said)

    def _rates(self) -> None:
        c = self.c
        scaler = str(c.get("learning_rate_scaler", "NONE"))
        batch, accumulation = whole(c.get("batch_size", 1)), whole(c.get("gradient_accumulation_steps", 1))
        scale = {"BATCH": batch, "GLOBAL_BATCH": batch, "GRADIENT_ACCUMULATION": accumulation, "BOTH": batch * accumulation}
        factor = math.sqrt({**scale, "GLOBAL_BOTH": batch * accumulation}.get(scaler, 1))
        table = "optimizer.optimizer" in c.source
        word = str(c.get("optimizer.optimizer" if table else "optimizer", "ADAMW"))
        arguments = {key: value for key, value in c.source.items() if key in {f"optimizer.{name}" for name in ARGUMENTS}}
        rates = ("learning_rate", "unet.learning_rate", "transformer.learning_rate", "text_encoder.learning_rate")
        settle(c, Wanted(keys=("optimizer.optimizer" if table else "optimizer",), word=word, arguments=arguments, rates=rates))
        c.rename({"weight_decay": ("weight_decay", number)})
        if "learning_rate" not in c.fates:
            general = number(c.get("learning_rate", 3e-6))
            keys = ("learning_rate", "learning_rate_scaler") if factor != 1 else ("learning_rate",)
            c.carry(keys, "learning_rate", general * factor, said_by="OneTrainer's where nothing is said")
            for key in ("unet.learning_rate", "transformer.learning_rate", "unet_learning_rate"):
                if c.has(key):
                    c.carry(key, "unet_lr", number(c.get(key)) * factor)
            self._text_encoders(general, factor)
        c.mean_nothing("learning_rate_scaler", "none")
        self._scheduler()
        if c.get("clip_grad_norm") is None and "clip_grad_norm" in c.source:
            c.carry("clip_grad_norm", "max_grad_norm", 0.0)
        c.rename({"clip_grad_norm": ("max_grad_norm", number)})
        if str(c.get("ema", "OFF")) != "OFF":
            c.carry(("ema", "ema_decay"), "ema_decay", number(c.get("ema_decay", 0.999)))
        c.mean_nothing(("ema", "ema_decay"), "off")

    def _text_encoders(self, general: float, factor: float) -> None:
        c = self.c
        for part, ours in (("text_encoder", "text_encoder_lr"), ("text_encoder_2", "text_encoder_2_lr")):
            trained = truth(c.get(f"{part}.train", c.get(f"train_{part}", False)))
            keys = (f"{part}.train", f"train_{part}", f"{part}.learning_rate", f"{part}_learning_rate")
            rate = number(c.get(f"{part}.learning_rate", c.get(f"{part}_learning_rate", general))) * factor if trained else 0.0
            given = [key for key in keys if key in c.source and (trained or "train" in key)]
            c.carry(
                given, ours, rate, said_by=f"OneTrainer trains {part} unless it is told not to"
            ) if given or part == "text_encoder" else None
            if trained and str(c.get(f"{part}.stop_training_after_unit", "NEVER")) != "NEVER":
                stop = (f"{part}.stop_training_after", f"{part}.stop_training_after_unit")
                c.lack(stop, "lorry trains a text encoder to the end or not at all", f"lower `{ours}`")
            dropout = number(c.get(f"{part}.dropout_probability", 0) or 0)
            if dropout:
                c.carry(f"{part}.dropout_probability", "caption_dropout", dropout)

    def _scheduler(self) -> None:
        c = self.c
        name = str(c.get("learning_rate_scheduler", "CONSTANT"))
        words = {"COSINE_WITH_RESTARTS": "cosine_with_restarts", "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts"}
        ours = chosen("lr_scheduler", words.get(name, name))
        if ours:
            c.carry("learning_rate_scheduler", "lr_scheduler", ours, said_by="OneTrainer's where nothing is said")
        else:
            c.lack("learning_rate_scheduler", f"lorry has no scheduler {name}", "`cosine` is written: look at its curve")
            c.default("lr_scheduler", "cosine", f"instead of {name}")
        warmup = number(c.get("learning_rate_warmup_steps", 200))
        if warmup > 1 or not warmup:
            c.carry("learning_rate_warmup_steps", "lr_warmup_steps", int(warmup), said_by="OneTrainer's where nothing is said")
        elif not c.carry("learning_rate_warmup_steps", "lr_warmup_steps", warmup):
            c.lack("learning_rate_warmup_steps", "a share of the steps", f"write `lr_warmup_steps`: {warmup:.0%} of the steps")
        if ours == "cosine_with_restarts":
            c.carry("learning_rate_cycles", "lr_restarts", max(round(number(c.get("learning_rate_cycles", 1))), 1))
        c.mean_nothing("learning_rate_cycles", f"not for {name}")

    def _loss(self) -> None:
        c = self.c
        function, strength = str(c.get("loss_weight_fn", "CONSTANT")), number(c.get("loss_weight_strength", 5.0))
        if function == "MIN_SNR_GAMMA":
            c.carry(("loss_weight_fn", "loss_weight_strength"), "min_snr_gamma", strength)
        elif function == "DEBIASED_ESTIMATION":
            c.carry("loss_weight_fn", "debiased_estimation", True)
        elif function != "CONSTANT":
            c.lack("loss_weight_fn", f"lorry has no loss weighting {function}", "`min_snr_gamma` or `debiased_estimation`")
        c.mean_nothing(("loss_weight_fn", "loss_weight_strength"), "constant, or not for this one")
        strengths = {
            key: number(c.get(key, usual)) for key, usual in (("mse_strength", 1.0), ("mae_strength", 0.0), ("huber_strength", 0.0))
        }
        alone = [key for key, value in strengths.items() if value]
        kinds = {"mse_strength": "l2", "mae_strength": "l1", "huber_strength": "huber"}
        if len(alone) == 1 and strengths[alone[0]] == 1:
            c.carry([key for key in alone if key in c.source], "loss_type", kinds[alone[0]], said_by="OneTrainer's where nothing is said")
        else:
            c.lack(alone, "lorry does not mix losses", "`loss_type` says which one")
        c.mean_nothing(strengths, "off")
        if truth(c.get("masked_training", False)):
            what = "OneTrainer takes masks from `NAME-masklabel.png` beside the pictures"
            hint = (
                "move them into a folder of their own, under the pictures' names, and write `masks`"
                if first_existing("masks")
                else "no masks are used"
            )
            c.lack("masked_training", what, hint)
        c.mean_nothing("masked_training", "off")

    # --- how long ---

    def _length(self) -> None:
        """Epochs become steps where the pictures can be counted: OneTrainer drops what does not fill a batch."""
        c = self.c
        epochs = whole(c.get("epochs", 100))
        batch, accumulation = whole(c.get("batch_size", 1)), whole(c.get("gradient_accumulation_steps", 1))
        found = pictures(self.folder) if self.folder else None
        keys = ["epochs", *(key for key in c.source if key.endswith(".balancing") and key not in c.fates)]
        self.epoch_steps: float | None = None
        if found and self.times and "more_resolutions" not in c.lines:
            side = c.lines["resolution"].value
            square = not truth(c.get("aspect_ratio_bucketing", True))
            groups = [((side, side) if square else bucket_of(one.size, side, self._quantum()), 1) for one in found]
            per = steps_per_epoch(_shown(groups, self.times), batch, 1, keep_incomplete=False)
            self.epoch_steps = per / accumulation
            c.carry(keys, "steps", max(int(per * epochs / accumulation), 1))
        else:
            c.carry(keys, "epochs", max(round(epochs * (self.times or 1)), 1), said_by="OneTrainer's where nothing is said")
            c.note("OneTrainer drops batches that are not full, lorry trains on them", "write `steps` for an exact number")
        every, unit = whole(c.get("save_every", c.get("save_after", 0))), str(c.get("save_every_unit", c.get("save_after_unit", "NEVER")))
        self._every(("save_every", "save_after"), ("save_every_unit", "save_after_unit"), every, unit, "save")

    def _quantum(self) -> int:
        """OneTrainer's buckets are multiples of 8 for SD 1.5 and 2, of 64 for the larger ones."""
        return 8 if self.c.lines.get("family") and self.c.lines["family"].value in {"sd15", "sd2"} else 64

    def _every(self, keys: tuple[str, ...], units: tuple[str, ...], every: int, unit: str, what: str) -> None:
        c = self.c
        if unit == "STEP" and every:
            c.carry((*keys, *units), f"{what}_every_steps", every)
        elif unit == "EPOCH" and every and self.epoch_steps:
            c.carry((*keys, *units), f"{what}_every_steps", max(round(every * self.epoch_steps), 1))
        elif unit == "EPOCH" and every and c.carry((*keys, *units), f"{what}_every_epochs", every):
            pass
        elif unit not in {"NEVER", "ALWAYS"} and every:
            c.lack((*keys, *units), f"every {every} {unit.lower()} is counted in steps here", f"write `{what}_every_steps`")
        c.mean_nothing((*keys, *units), "never")

    def _samples(self) -> None:
        c = self.c
        path = (
            placed(str(c.get("sample_definition_file_name", "")), self.file, self.target).found
            if c.has("sample_definition_file_name")
            else None
        )
        samples = [one for one in self._definitions(path) if isinstance(one, Mapping) and one.get("enabled", True) and one.get("prompt")]
        if samples:
            words = (("n", "negative_prompt"), ("w", "width"), ("h", "height"), ("d", "seed"), ("l", "cfg_scale"), ("s", "diffusion_steps"))
            prompts = [
                " ".join([str(one["prompt"]), *(f"--{flag} {one[key]}" for flag, key in words if one.get(key) not in (None, ""))])
                for one in samples
            ]
            c.carry("sample_definition_file_name", "sample_prompts", prompts)
        every, unit = whole(c.get("sample_after", 10)), str(c.get("sample_after_unit", "MINUTE"))
        if samples:
            self._every(("sample_after",), ("sample_after_unit",), every, unit, "sample")

    def _definitions(self, path: Path | None) -> list[Any]:
        if path is None or not path.is_file() or path.stat().st_size > 1_000_000:
            return []
        try:
            data = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError, UsageError):
            return []
        return data if isinstance(data, list) else []


ASPECTS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)


def bucket_of(size: tuple[int, int], side: int, quantum: int) -> tuple[int, int]:
    """OneTrainer's bucket of a picture: the nearest of its aspect ratios, at the area of the square, rounded."""
    shapes: dict[tuple[int, int], None] = {}
    for aspect in ASPECTS:
        short, long = (round(edge / math.sqrt(aspect) * side / quantum) * quantum for edge in (1.0, aspect))
        shapes |= {(short, long): None, (long, short): None}
    return min(shapes, key=lambda shape: abs(shape[1] / shape[0] - size[1] / size[0]))


def _shown(groups: list[tuple[tuple[int, int], int]], times: float) -> list[tuple[tuple[int, int], int]]:
    """All pictures as often as balancing says: whole rounds, then a part of them."""
    rest = round((times - int(times)) * len(groups))
    return [(bucket, int(times) + (number_ < rest)) for number_, (bucket, _) in enumerate(groups)]
