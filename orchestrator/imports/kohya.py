"""kohya's sd-scripts and its GUI -> one `[[lora]]`, with the same steps, buckets and rates.

What means something else there: alpha is 1 where nothing is said, and text encoders are trained; `learning_rate` steps in for the rates
that are not given; epochs win over steps; a dataset file's repeats do not come from a folder's name; without `enable_bucket` every picture
becomes the same square; `constant` knows no warm-up. Knows no file but those it is given, and the pictures when it has to count them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from orchestrator.file.bases import family_told_by
from orchestrator.file.drafting import as_name
from trainer import buckets

from . import flow, kohya_gui, kohya_tables
from .counting import bucketed, pictures, repeats_in_name, steps_per_epoch, with_regularisation
from .folders import Folder, several
from .kohya_args import Arguments, of_command, of_dataset_file, of_gui, of_run_file, prompts_of
from .kohya_sizes import equal_side, same_buckets, size_of, square_of
from .nouns import Conversion, Job, chosen, fault_of, first_existing, number, truth, whole
from .optimizers import of_kohya
from .places import placed
from .reading import Source, read


class Kohya:
    """One run of kohya's on its way."""

    def __init__(self, source: Source, dataset: Source | None, target: Path) -> None:
        self.file, self.target = source.file, target
        self.files = [source.file]
        self.gui = source.form == "kohya-gui"
        self.arguments = Arguments()
        self._read(source, dataset)
        given = self.arguments
        given.expand("optimizer_args", "network_args")
        everything = {**given.values, **given.overruled}
        self.c = Conversion(tool="kohya", source=everything, places=given.places, same=given.same)
        self.c.mean_nothing(given.overruled, "said again elsewhere, and that place counts")
        self.folder: Path | None = None
        self.wanted_repeats: int | None = None
        """How often an epoch of kohya's shows each picture, where that is not in the folders' names."""

    def job(self) -> Job:
        """The finished job."""
        if self.gui:
            kohya_gui.settle(self.c)
        self._base()
        self._dataset()
        self._resolution()
        self._renamed()
        self._rates()
        self._length()
        self._samples_and_saves()
        self.c.default("heldout", 0, "kohya trains on every picture")
        flow.of_kohya(self.c, self.family)
        for ours, value in kohya_tables.DEFAULTS.items():
            self.c.default(ours, value)
        self.c.apply(kohya_tables.LACKING)
        for key, why in kohya_tables.MEANINGLESS.items():
            self.c.mean_nothing(key, why)
        name = as_name(str(self.c.get("output_name", self.file.stem)))
        self.c.carry("output_name", "name", name)
        self.c.lines.pop("name", None)
        return self.c.end(name=name, files=self.files)

    # --- reading ---

    def _read(self, source: Source, dataset: Source | None) -> None:
        arguments = self.arguments
        if source.form == "kohya-gui":
            of_gui(source.data, arguments)
        elif source.form == "kohya-dataset":
            of_dataset_file(source.data, arguments)
        elif source.program:
            self._beneath(str(source.data.get("config_file") or ""))
            of_command(source.data, source.program, arguments)
        else:
            of_run_file(source.data, arguments)
        for key, value in (source.launcher or {}).items():
            arguments.values[f"accelerate --{key}"] = value
        named = str(arguments.values.get("dataset_config") or "")
        if dataset is None and named and (found := placed(named, self.file, self.target).found):
            dataset = next((one for one in read(found) if one.form == "kohya-dataset"), None)
        if dataset is not None:
            self.files.append(dataset.file)
            of_dataset_file(dataset.data, arguments)

    def _beneath(self, config_file: str) -> None:
        """The run file that a command line names; what the command line says itself wins."""
        for ending in ("", ".toml") if config_file else ():
            found = placed(config_file + ending, self.file, self.target).found
            if found and found.is_file():
                self.files.append(found)
                of_run_file(read(found)[0].data, self.arguments)
                return

    # --- what is trained ---

    def _base(self) -> None:
        c = self.c
        if base := c.get("pretrained_model_name_or_path"):
            c.carry("pretrained_model_name_or_path", "base", placed(str(base), self.file, self.target).written)
        program = self.arguments.program
        family = "sdxl" if program.startswith("sdxl_") or truth(c.get("sdxl", False)) else ""
        family = "flux" if program.startswith("flux_") or truth(c.get("flux1_checkbox", False)) else family
        family = "sd3" if program.startswith("sd3_") or truth(c.get("sd3_checkbox", False)) else family
        v2, v = truth(c.get("v2", False)), truth(c.get("v_parameterization", False))
        family = "sd2" if v2 else family
        keys = [key for key in ("v2", "sdxl", "flux1_checkbox", "sd3_checkbox") if truth(c.get(key, False))]
        if family and not fault_of("family", family):
            c.carry(keys, "family", family, said_by=f"{program}.py" if program else "")
        elif family in {"sd3", "flux"}:
            c.lack(keys, fault_of("family", family), "`lorry check` says whether this version trains the base")
        c.mean_nothing(("v2", "sdxl", "flux1_checkbox", "sd3_checkbox"), "off")
        if v or v2:
            c.carry([key for key in ("v_parameterization", "v2") if truth(c.get(key, False))], "prediction", "v" if v else "epsilon")
        if v or truth(c.get("zero_terminal_snr", False)):
            c.carry(
                "zero_terminal_snr", "zero_terminal_snr", truth(c.get("zero_terminal_snr", False)), said_by="zero_terminal_snr is not given"
            )
        c.mean_nothing("v_parameterization", "off: the base says what it answers")
        c.mean_nothing("zero_terminal_snr", "off")
        self._module()
        if weights := c.get("network_weights"):
            c.carry("network_weights", "start_from", placed(str(weights), self.file, self.target).written)
        merged = c.get("base_weights", [])
        if isinstance(merged, list) and len(merged) == 1:
            c.carry("base_weights", "merge_lora", placed(str(merged[0]), self.file, self.target).written)
            c.rename({"base_weights_multiplier": ("merge_weight", _first_number)})
        self.family = family or family_told_by(str(c.get("pretrained_model_name_or_path", "")), self.target.absolute().parent)
        if self.family == "sdxl":
            c.mean_nothing("clip_skip", "SDXL has its own layer, for kohya as well")
        elif c.get("clip_skip") and whole(c.get("clip_skip")):
            c.carry("clip_skip", "clip_skip", whole(c.get("clip_skip")))
        c.mean_nothing("clip_skip", "nothing is skipped")

    def _module(self) -> None:
        c = self.c
        module = str(c.get("network_module", "networks.lora"))
        if module in {"networks.lora", "networks.lora_sd3", "networks.lora_flux", "networks.lora_sdxl"}:
            c.mean_nothing("network_module", "lorry trains LoRA")
        elif module == "lycoris.kohya" and str(c.get("network_args.algo", "lora")) in _ALGORITHMS:
            c.mean_nothing("network_module", "`adapter` says it")
        else:
            c.lack("network_module", f"lorry trains LoRA on linear layers, not {module}", "expect another adapter: compare the results")
        for key in [key for key in c.source if key.startswith("network_args.")]:
            name = key.partition(".")[2]
            ours, value = first_existing(*_NETWORK_ARGUMENTS.get(name, ())), _plain(str(c.get(key)))
            value = _ALGORITHMS.get(str(value), value) if name == "algo" else value
            if ours is None or not c.carry(key, ours, truth(value) if name in _SWITCHES else value):
                c.lack(key, f"lorry has no `{name}` for its adapter", "expect another adapter: compare the results")
        c.mean_nothing("network_args", "nothing is given")

    # --- pictures ---

    def _dataset(self) -> None:
        c, subsets = self.c, self.arguments.subsets
        own, reg = [s for s in subsets if not s.regularisation], [s for s in subsets if s.regularisation]
        if own:
            self._folders()
            c.mean_nothing(("train_data_dir", "reg_data_dir"), "the dataset file counts")
        elif folder := c.get("train_data_dir"):
            where = placed(str(folder), self.file, self.target)
            self.folder = where.found
            c.carry("train_data_dir", "dataset", where.written)
        self._regularisation([s.folder for s in reg] or ([str(c.get("reg_data_dir"))] if c.get("reg_data_dir") and not own else []))
        c.mean_nothing(("train_data_dir", "conditioning_data_dir"), "none, or not for folders that are named so")
        self._captions()
        if not own:
            repeats = c.get("dataset_repeats", 1)
            c.mean_nothing("dataset_repeats", "kohya minds it for datasets with metadata files only" if repeats != 1 else "once")

    def _folders(self) -> None:
        """The training folders of a dataset file: one as it is, several where they stand together as kohya names them."""
        c = self.c
        own = [subset for subset in self.arguments.subsets if not subset.regularisation]
        where = {subset.folder: placed(subset.folder, self.file, self.target) for subset in own}
        first = where[own[0].folder]
        if len(where) == 1:
            self.folder, self.wanted_repeats = first.found, own[0].repeats
            c.carry(("image_dir",), "dataset", first.written)
            self._several_sizes(len(own))
        else:
            name = as_name(str(c.get("output_name", self.file.stem)))
            folders = [Folder(where[s.folder], s.repeats, s.class_tokens) for s in own]
            self.folder = several(c, ("image_dir", "dataset_repeats"), name, folders)
        if masks := c.get("conditioning_data_dir"):
            c.carry("conditioning_data_dir", "masks", placed(str(masks), self.file, self.target).written)
        if "masks" in c.lines or truth(c.get("alpha_mask", False)):
            c.mean_nothing("masked_loss", "`masks` or `alpha_mask` say it")
        c.mean_nothing("is_reg", "tells the folders apart")

    def _several_sizes(self, times: int) -> None:
        """The same folder several times, at several resolutions."""
        sizes = self.arguments.conflicts.get("resolution")
        ours = first_existing("more_resolutions")
        if sizes and ours and times > 1:
            try:
                first, *others = dict.fromkeys(square_of(size) for size in sizes)
                if self.c.carry("resolution", ours, others):
                    self.c.carry("resolution", "resolution", first)
                    self.arguments.conflicts.pop("resolution")
            except ValueError:
                return

    def _regularisation(self, folders: list[str]) -> None:
        """Regularisation pictures: carried where lorry has a key for them, else counted, so that at least the steps are the same."""
        c = self.c
        self.reg: list[Path] = []
        ours = first_existing("regularisation")
        keys = ("reg_data_dir",) if "reg_data_dir" in c.source else ()
        if not folders:
            return c.mean_nothing("reg_data_dir", "none")
        where = [placed(folder, self.file, self.target) for folder in folders]
        if ours and len(where) == 1 and c.carry(keys, ours, where[0].written, said_by="is_reg"):
            return None
        self.reg = [place.found or Path("?") for place in where]
        c.lack(keys, "lorry trains without regularisation pictures", "the steps are kept: an epoch without them is half as long")
        if not keys:
            c.note("lorry trains without regularisation pictures", f"{', '.join(folders)} is not used; the steps are kept")
        return None

    def _captions(self) -> None:
        c = self.c
        ending = str(c.get("caption_extension", c.get("caption_extention", ".caption")))
        if ending in {".txt", ".caption", "txt", "caption"}:
            c.mean_nothing(("caption_extension", "caption_extention"), "lorry reads .txt and .caption")
        else:
            c.lack(
                ("caption_extension", "caption_extention"),
                f"lorry reads .txt and .caption, not {ending}",
                "rename the caption files to .txt",
            )
        found = pictures(self.folder) if self.folder else None
        if ending in {".caption", "caption"} and found and any(p.file.with_suffix(".txt").is_file() for p in found):
            what = "kohya reads .caption files only where caption_extension says nothing else, and would have trained on folder names"
            c.note(what, "the .txt captions are used now: move them away if that is not wanted")
        words = c.get("class_tokens")
        if words and found and not any(picture.captioned for picture in found):
            c.carry("class_tokens", "trigger", str(words))
        elif words and found and all(picture.captioned for picture in found):
            c.mean_nothing("class_tokens", "for pictures without a caption, and there are none")
        elif words:
            c.lack(
                "class_tokens",
                "kohya takes it for pictures without a caption",
                f'name the folder `1_{words}`, or write `trigger = "{words}"`',
            )
        c.mean_nothing("class_tokens", "none")

    def _resolution(self) -> None:
        c = self.c
        if self.c.fates.get("resolution") is None and c.get("resolution") is not None:
            try:
                width, height = size_of(c.get("resolution"))
            except ValueError:
                c.lack("resolution", f"{c.get('resolution')!r} is no size", "write `resolution`: the side of a square in pixels")
                return
            self._sized(width, height)
        c.rename({"min_bucket_reso": ("min_bucket", whole), "max_bucket_reso": ("max_bucket", whole)})
        c.mean_nothing("enable_bucket", "buckets are always on")
        for key, values in self.arguments.conflicts.items():
            if key != "resolution" or first_existing("more_resolutions") is None:
                c.lack(
                    key, f"the folders differ in it ({', '.join(map(str, values))}), and lorry has one for all", "make a [[lora]] for each"
                )

    def _sized(self, width: int, height: int) -> None:
        c = self.c
        bucketed_ = truth(c.get("enable_bucket", False))
        side = equal_side(width, height, self._limits()) if bucketed_ else width // 8 * 8
        if not bucketed_:
            if width != height:
                c.lack(
                    "resolution", "lorry has no single oblong size", f"the square of the same area is written, {math.isqrt(width * height)}"
                )
                side = math.isqrt(width * height) // 8 * 8
            said = "no enable_bucket: every picture becomes this square"
            c.lines.pop("min_bucket", None)
            c.default("min_bucket", side, said)
            c.default("max_bucket", side, said)
            if side % whole(c.get("bucket_reso_steps", 64)):
                c.default("bucket_step", 8, said)
                c.mean_nothing("bucket_reso_steps", "without enable_bucket there are no buckets")
            c.mean_nothing(("min_bucket_reso", "max_bucket_reso", "bucket_no_upscale"), "without enable_bucket there are no buckets")
            c.mean_nothing("enable_bucket", "off: `min_bucket` and `max_bucket` say so")
        if "resolution" in c.fates:
            c.default("resolution", side, "the square of the same area")
            return
        exact = side * side == width * height or (bucketed_ and same_buckets(width * height, side, self._limits()))
        c.carry("resolution", "resolution", side)
        if not exact:
            c.note(f"{width}x{height} is no square: {side} is the nearest that lorry can say", "some buckets are one step narrower")

    def _limits(self) -> tuple[int, int, int]:
        c = self.c
        return tuple(whole(c.get(k, v)) for k, v in (("min_bucket_reso", 256), ("max_bucket_reso", 1024), ("bucket_reso_steps", 64)))  # type: ignore[return-value]

    # --- plain keys ---

    def _renamed(self) -> None:
        c = self.c
        if "batch_size" in c.source and "train_batch_size" not in c.source:
            c.rename({"batch_size": ("batch_size", whole)})
            if "batch_size" in c.lines:
                what = "kohya calls it `train_batch_size`, passes over `batch_size` in a run file, and would have trained with 1"
                c.note(what, "what is written there is taken: write `batch_size = 1` for what kohya does")
        elif "batch_size" in c.source:
            c.lack("batch_size", "kohya does not know it: `train_batch_size` counts", "nothing to do")
        if str(c.get("save_precision", "")) == "float":
            c.carry("save_precision", "save_precision", "fp32")
        elif c.has("save_precision"):
            c.carry("save_precision", "save_precision", str(c.get("save_precision")))
        c.mean_nothing("save_precision", "as kohya does where nothing is said")
        if str(c.get("loss_type", "l2")) == "l2":
            c.mean_nothing(("huber_schedule", "huber_c", "huber_scale"), "for other losses than l2")
        if not c.get("multires_noise_iterations"):
            c.mean_nothing("multires_noise_discount", "without multires_noise_iterations there is no such noise")
        c.rename(kohya_tables.RENAMED, kohya_tables.OFF_AT_ZERO)
        of_kohya(c)

    # --- rates ---

    def _rates(self) -> None:
        """The UNet's rate is `unet_lr` or else `learning_rate`; so is a text encoder's, unless only the UNet is trained."""
        c = self.c
        if c.fates.get("learning_rate") is not None:
            return
        general = number(c.get("learning_rate", 2e-6))
        c.carry("learning_rate", "learning_rate", general, said_by="what kohya does where nothing is said")
        encoders = c.get("text_encoder_lr")
        encoders = [float(one) for one in (encoders if isinstance(encoders, list) else [encoders])] if encoders is not None else []
        if truth(c.get("network_train_text_encoder_only", False)):
            c.carry("network_train_text_encoder_only", "unet_lr", 0.0)
            c.mean_nothing("unet_lr", "the UNet is not trained")
        elif c.has("unet_lr"):
            c.carry("unet_lr", "unet_lr", number(c.get("unet_lr")))
        if truth(c.get("network_train_unet_only", False)):
            c.carry("network_train_unet_only", "text_encoder_lr", 0.0)
            c.mean_nothing("text_encoder_lr", "network_train_unet_only: no text encoder is trained")
        elif self.arguments.program.startswith(("flux_", "sd3_")) and not encoders:
            c.default("text_encoder_lr", general, "kohya trains CLIP as well, at learning_rate")
        else:
            said = "kohya trains text encoders as well, at learning_rate"
            c.carry("text_encoder_lr", "text_encoder_lr", encoders[0] if encoders else general, said_by=said)
            if len(encoders) > 1 and encoders[1] != encoders[0]:
                c.carry("text_encoder_lr", "text_encoder_2_lr", encoders[1])
            if len(encoders) > 2 and encoders[2]:
                c.note(f"the third text encoder's rate, {encoders[2]:g}, is not carried", "lorry leaves T5 as it is")
        c.mean_nothing(("network_train_unet_only", "network_train_text_encoder_only"), "off")
        c.mean_nothing(("unet_lr", "text_encoder_lr"), "nothing is said: learning_rate counts")

    def _scheduler(self, total: int | None) -> None:
        c = self.c
        name = str(c.get("lr_scheduler", "constant"))
        warmup = c.get("lr_warmup_steps", 0)
        ours = chosen("lr_scheduler", {"constant_with_warmup": "constant"}.get(name, name))
        if ours:
            c.carry("lr_scheduler", "lr_scheduler", ours)
        else:
            c.lack("lr_scheduler", f"lorry has no scheduler {name}", "choose one: `lorry help config`; `cosine` is written")
            c.default("lr_scheduler", "cosine", f"instead of {name}")
        if name == "constant":
            c.mean_nothing("lr_warmup_steps", "kohya's `constant` has no warm-up; `constant_with_warmup` has")
        elif 0 < number(warmup) < 1:
            if total is None and not fault_of("lr_warmup_steps", number(warmup)):
                c.carry("lr_warmup_steps", "lr_warmup_steps", number(warmup))
            elif total is None:
                c.lack(
                    "lr_warmup_steps",
                    "a share of steps that cannot be counted yet",
                    f"write `lr_warmup_steps`: {number(warmup):.0%} of the steps",
                )
            else:
                c.carry("lr_warmup_steps", "lr_warmup_steps", int(number(warmup) * total))
        elif "lr_warmup_steps" not in c.lines:
            c.carry("lr_warmup_steps", "lr_warmup_steps", int(number(warmup)))
        if name == "cosine_with_restarts":
            cycles = whole(c.get("lr_scheduler_num_cycles", 1) or 1)
            c.carry("lr_scheduler_num_cycles", "lr_restarts", cycles, said_by="kohya's number of cycles where nothing is said")
        if name == "polynomial":
            c.carry(
                "lr_scheduler_power", "lr_power", number(c.get("lr_scheduler_power", 1) or 1), said_by="kohya's power where nothing is said"
            )
        c.mean_nothing(("lr_scheduler_num_cycles", "lr_scheduler_power"), f"not for {name}")

    # --- how long ---

    def _length(self) -> None:
        """Steps or epochs, as many as kohya would do."""
        c = self.c
        self.shown = repeats_in_name(self.folder) if self.folder else self._shown_unseen()
        self.epoch_steps = self._count()
        epochs = whole(c.get("max_train_epochs", 0))
        total: int | None
        if self.gui and not epochs:
            total = kohya_gui.length(c, pictures(self.folder) if self.folder else None, reg=bool(self.reg))
        elif epochs:
            total = epochs * self.epoch_steps if self.epoch_steps else None
            self._epochs(epochs, total)
            c.mean_nothing("max_train_steps", "max_train_epochs counts")
        else:
            total = whole(c.get("max_train_steps", 1600))
            c.carry("max_train_steps", "steps", total, said_by="what kohya does where nothing is said")
            c.mean_nothing("max_train_epochs", "max_train_steps counts")
            c.carry("dataset_repeats", "steps", total) if self.wanted_repeats is not None and "dataset_repeats" not in c.fates else None
        if self.gui:
            kohya_gui.warmup(c, total)
        processes = c.source.get("accelerate --num_processes")
        if processes is not None and str(processes) != "1":
            c.lack(
                "accelerate --num_processes",
                "lorry trains on one card",
                "a step holds fewer pictures: raise `gradient_accumulation` by as much",
            )
        c.mean_nothing([key for key in c.source if key.startswith("accelerate --")], "how kohya is launched; lorry launches by itself")
        self._scheduler(total)

    def _shown_unseen(self) -> int | None:
        """For a folder that is not at hand, its name alone can tell; for kohya's parent folder nothing need be told."""
        line = self.c.lines.get("dataset")
        return repeats_in_name(Path(str(line.value))) if line and self.wanted_repeats is not None else None

    def _count(self) -> int | None:
        """kohya's optimizer steps of one epoch; None where the pictures are not at hand."""
        values = {key: line.value for key, line in self.c.lines.items()}
        found = pictures(self.folder) if self.folder else None
        regs = [pictures(folder) for folder in self.reg]
        if not found or any(one is None for one in regs) or "resolution" not in values:
            return None
        try:
            known = {**kohya_tables.DEFAULTS, **values}
            sides = (known["resolution"], *known.get("more_resolutions", ()))
            limits = (known["min_bucket"], known["max_bucket"], known["bucket_step"], known.get("bucket_no_upscale", False))
            rules = [buckets.Rules(side, *limits) for side in sides]
        except ValueError:
            return None
        train = [self.wanted_repeats or picture.repeats for picture in found]
        extra = [picture for one in regs for picture in one or ()]
        sizes = [picture.size for picture in (*found, *extra)]
        times = [*train, *with_regularisation(train, [picture.repeats for picture in extra])]
        groups = [
            ((rule.resolution, bucket), repeats) for rule in rules for bucket, repeats in zip(bucketed(sizes, rule), times, strict=True)
        ]
        return steps_per_epoch(groups, known["batch_size"], known.get("gradient_accumulation", 1), keep_incomplete=True)

    def _epochs(self, epochs: int, total: int | None) -> None:
        c = self.c
        keys = ("max_train_epochs", "dataset_repeats") if self.wanted_repeats is not None else ("max_train_epochs",)
        batch = c.lines["batch_size"].value if "batch_size" in c.lines else 1
        accumulation = c.lines["gradient_accumulation"].value if "gradient_accumulation" in c.lines else 1
        same = self.wanted_repeats is None or self.wanted_repeats == self.shown
        if same and not self.reg:
            c.carry(keys, "epochs", epochs)
        elif total is not None:
            c.carry(keys, "steps", total)
        elif not self.reg and batch == accumulation == 1 and self.wanted_repeats and self.shown and self.wanted_repeats % self.shown == 0:
            c.carry(keys, "epochs", epochs * self.wanted_repeats // self.shown)
        else:
            c.carry(keys, "epochs", epochs)
            if not same:
                hint = f"rename the folder to `{self.wanted_repeats}_WORDS`, as kohya's folders are named"
                c.lack("dataset_repeats", "lorry reads repeats from the folder's name, and the pictures are not here to count steps", hint)
            else:
                c.note("the steps could not be counted: the regularisation pictures are not here", "an epoch is half as long without them")

    # --- samples and saves ---

    def _samples_and_saves(self) -> None:
        c = self.c
        epochs = whole(c.get("max_train_epochs", 0))
        ratio = whole(c.get("save_n_epoch_ratio", 0))
        every = epochs // ratio or 1 if ratio and epochs else whole(c.get("save_every_n_epochs", 0))
        self._every_epochs(("save_n_epoch_ratio",) if ratio else ("save_every_n_epochs",), every, "save_every_epochs", "save_every_steps")
        c.mean_nothing(("save_every_n_epochs", "save_n_epoch_ratio"), "off, or the other one counts")
        every = whole(c.get("sample_every_n_epochs", 0))
        if not every and whole(c.get("sample_every_n_steps", 0)):
            c.carry("sample_every_n_steps", "sample_every_steps", whole(c.get("sample_every_n_steps")))
        self._every_epochs(("sample_every_n_epochs",), every, "sample_every_epochs", "sample_every_steps")
        c.mean_nothing(("sample_every_n_epochs", "sample_every_n_steps"), "off, or the other one counts")
        if text := c.get("sample_prompts"):
            file = None if self.gui and "\n" in str(text).strip() else placed(str(text), self.file, self.target).found
            prompts = prompts_of(str(text), file) if file or self.gui else None
            if prompts is not None:
                c.carry("sample_prompts", "sample_prompts", prompts)
            else:
                c.lack("sample_prompts", "no file of prompt lines is there", "write `sample_prompts`, one text for each picture")
        c.mean_nothing("sample_prompts", "none")

    def _every_epochs(self, keys: tuple[str, ...], every: int, ours: str, in_steps: str) -> None:
        """So many epochs of kohya's: as epochs where they are as long here, else as steps."""
        if not every or in_steps in self.c.lines:
            return
        same = (self.wanted_repeats in (None, self.shown)) and not self.reg
        if same and not fault_of(ours, every):
            self.c.carry(keys, ours, every)
        elif self.epoch_steps:
            self.c.carry(keys, in_steps, every * self.epoch_steps)
        else:
            self.c.lack(keys, "its epochs cannot be counted in steps: the pictures are not here", f"write `{in_steps}`")


_NETWORK_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "conv_dim": ("conv_rank",),
    "conv_alpha": ("conv_alpha",),
    "dropout": ("dropout",),
    "rank_dropout": ("rank_dropout",),
    "module_dropout": ("module_dropout",),
    "loraplus_lr_ratio": ("lora_plus_ratio",),
    "algo": ("adapter",),
    "dora_wd": ("dora",),
    "factor": ("lokr_factor",),
    "decompose_both": ("lokr_decompose_both",),
    "full_matrix": ("lokr_whole",),
}
"""network_args -> what the same may be called here."""
_ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}
"""LyCORIS' kinds of adapters -> ours."""
_SWITCHES = ("dora_wd", "decompose_both", "full_matrix")
"""network_args that are true or false."""


def _first_number(value: Any) -> float:
    return number(value[0] if isinstance(value, list) else value)


def _plain(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value == int(value) else value
