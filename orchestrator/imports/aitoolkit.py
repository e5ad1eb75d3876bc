"""ai-toolkit's YAML (or JSON) -> one `[[lora]]` for each process that trains.

What means something else there: `steps` counts passes, so that with `gradient_accumulation_steps` the weights change less often; alpha is
1 where nothing is said; a picture is never enlarged; a list of resolutions trains every picture at each of them.
Facts of snapshot 27a03a91.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.file.bases import family_told_by
from orchestrator.file.drafting import as_name

from .aitoolkit_tables import (
    ARCHITECTURES,
    DEFAULTS,
    FAMILIES,
    FOLDER_LACKING,
    FOLDER_MEANINGLESS,
    LACKING,
    MEANINGLESS,
    OF_A_FOLDER,
    RENAMED,
)
from .flow import of_aitoolkit
from .folders import Folder, several
from .nouns import Conversion, Job, chosen, fault_of, flat, number, truth, whole
from .optimizers import Wanted, settle
from .places import Placed, placed
from .reading import Source


def jobs(source: Source, target: Path) -> list[Job]:
    """One for each process."""
    processes = [one for one in source.data["config"]["process"] if isinstance(one, Mapping)]
    return [_Process(source, number, process, target).job() for number, process in enumerate(processes)]


class _Process:
    def __init__(self, source: Source, index: int, process: Mapping[str, Any], target: Path) -> None:
        self.file, self.target = source.file, target
        own, prefix = flat(dict(process)), f"config.process[{index}]."
        around = flat({key: value for key, value in source.data.items() if key != "config"})
        around |= {f"config.{k}": v for k, v in flat({k: v for k, v in source.data["config"].items() if k != "process"}).items()}
        places = {key: prefix + key for key in own}
        self.c = Conversion(tool="ai-toolkit", source={**around, **own}, places=places)
        self.datasets = [one for one in process.get("datasets", []) if isinstance(one, Mapping)]
        name = str(source.data["config"].get("name") or source.file.stem)
        self.name = as_name(name if index == 0 else f"{name}-{index + 1}")

    def job(self) -> Job:
        c = self.c
        kind = str(c.get("type", "sd_trainer"))
        if kind not in {"sd_trainer", "diffusion_trainer", "ui_trainer"}:
            c.lack("type", f"lorry does not know {kind}", "it trains LoRA on pictures and captions")
        c.mean_nothing("config.name", "names the job")
        self._model()
        self._pictures()
        self._network()
        self._rates()
        self._steps()
        self._samples()
        of_aitoolkit(c, self.family)
        c.rename(RENAMED)
        c.default("heldout", 0, "ai-toolkit trains on every picture")
        for ours, value in DEFAULTS.items():
            c.default(ours, value)
        c.apply(LACKING)
        for key in c.source:
            if key.startswith(("meta.", "logging.", "model.layer_offloading")) or key == "meta":
                c.mean_nothing(key, "about the file, not the training")
        for key, why in MEANINGLESS.items():
            c.mean_nothing(key, why)
        return c.end(name=self.name, files=(self.file,))

    def _model(self) -> None:
        c = self.c
        if base := c.get("model.name_or_path"):
            c.carry("model.name_or_path", "base", placed(str(base), self.file, self.target).written)
        arch = str(c.get("model.arch", "")).partition(":")[0]
        flags = [f"model.{flag}" for flag in FAMILIES if truth(c.get(f"model.{flag}", False))]
        family = ARCHITECTURES.get(arch, arch) or (FAMILIES[flags[0].partition(".")[2]] if flags else "")
        self.family = family or family_told_by(str(c.get("model.name_or_path", "")), self.target.absolute().parent)
        keys = ["model.arch", *flags]
        if family and not fault_of("family", family):
            c.carry(keys, "family", family)
        elif family:
            c.lack(keys, fault_of("family", family), "`lorry check` says what the base is")
        if truth(c.get("model.is_v_pred", False)):
            c.carry("model.is_v_pred", "prediction", "v")
        c.mean_nothing(["model.arch", "model.is_v_pred", *(f"model.{flag}" for flag in FAMILIES)], "off")

    def _pictures(self) -> None:
        c = self.c
        own = [(n, one) for n, one in enumerate(self.datasets) if not truth(one.get("is_reg", False))]
        regs = [(n, one) for n, one in enumerate(self.datasets) if truth(one.get("is_reg", False))]
        where = {n: self._where(one) for n, one in enumerate(self.datasets)}
        if len(own) == 1:
            c.carry(self._folder_key(own[0][0]), "dataset", where[own[0][0]].written)
        elif own:
            keys = [key for n, _ in own for key in (self._folder_key(n), f"datasets[{n}].num_repeats")]
            several(c, keys, self.name, [Folder(where[n], whole(one.get("num_repeats", 1))) for n, one in own])
        for n, _ in regs:
            if not c.carry(self._folder_key(n), "regularisation", where[n].written) or len(regs) > 1:
                c.lack(self._folder_key(n), "lorry takes one folder of regularisation pictures", "nothing to do, but expect another result")
        for n, _ in own:
            self._folder(n)
        for n, _ in regs:
            c.mean_nothing([key for key in c.source if key.startswith(f"datasets[{n}].")], "as for the other pictures")
        c.default("bucket_no_upscale", True, "ai-toolkit never enlarges a picture")
        sides = (
            [c.lines["resolution"].value, *(c.lines["more_resolutions"].value if "more_resolutions" in c.lines else ())]
            if "resolution" in c.lines
            else [512]
        )
        c.default("min_bucket", min(256, *sides), "it has no shortest side")
        c.default("max_bucket", max(2048, *sides), "it has no longest side")
        c.default("bucket_step", 64, "its bucket_tolerance where nothing is said")
        c.note("ai-toolkit rounds buckets in its own way, lorry as kohya does", "a picture's bucket may differ by one step")

    def _where(self, dataset: Mapping[str, Any]) -> Placed:
        return placed(str(dataset.get("folder_path") or dataset.get("dataset_path") or ""), self.file, self.target)

    def _folder_key(self, n: int) -> str:
        return f"datasets[{n}].folder_path" if f"datasets[{n}].folder_path" in self.c.source else f"datasets[{n}].dataset_path"

    def _folder(self, n: int) -> None:
        """What one folder says of its pictures; a second folder that says otherwise is listed."""
        c, start = self.c, f"datasets[{n}]."
        sides = c.get(start + "resolution")
        if sides is not None:
            self._sides(start + "resolution", [whole(side) for side in (sides if isinstance(sides, list) else [sides])])
        for key, (ours, convert) in OF_A_FOLDER.items():
            before = c.lines.get(ours)
            c.rename({start + key: (ours, convert)})
            if before and c.lines.get(ours) != before and c.lines[ours].value != before.value:
                c.lines[ours] = before
                c.lack(start + key, "the folders differ in it, and lorry has one for all", "make a [[lora]] for each")
        ending = str(c.get(start + "caption_ext", "txt")).lstrip(".")
        if ending in {"txt", "caption"}:
            c.mean_nothing(start + "caption_ext", "lorry reads .txt and .caption")
        else:
            c.lack(start + "caption_ext", f"lorry reads .txt and .caption, not .{ending}", "rename the caption files to .txt")
        if mask := c.get(start + "mask_path"):
            c.carry(start + "mask_path", "masks", placed(str(mask), self.file, self.target).written)
        for key, lack in FOLDER_LACKING.items():
            c.apply({start + key: lack})
        for key, why in FOLDER_MEANINGLESS.items():
            c.mean_nothing(start + key, why)
        c.mean_nothing((start + "mask_path", start + "dataset_path", start + "folder_path"), "nothing is said")

    def _sides(self, key: str, sides: list[int]) -> None:
        c = self.c
        first, *others = sides or [512]
        before = c.lines.get("resolution")
        if before and before.value != first:
            c.lack(key, "the folders differ in it, and lorry has one for all", "make a [[lora]] for each")
            return
        c.carry(key, "resolution", first)
        if others and not c.carry(key, "more_resolutions", others):
            c.lack(key, f"lorry trains at one resolution; {first} is written", "make a [[lora]] for each")

    def _network(self) -> None:
        c = self.c
        kind = str(c.get("network.type", "lora"))
        if kind in {"lora", "locon"}:
            c.mean_nothing("network.type", "lorry trains LoRA")
        else:
            c.lack("network.type", f"lorry trains LoRA on linear layers, not {kind}", "expect another adapter: compare the results")
        rank = "network.rank" if c.has("network.rank") else "network.linear"
        c.rename({rank: ("rank", whole)})
        c.mean_nothing("network.linear", "`rank` counts")
        alpha = "network.linear_alpha" if c.has("network.linear_alpha") else "network.alpha"
        c.rename({alpha: ("alpha", number)})
        c.mean_nothing("network.alpha", "`linear_alpha` counts")
        for key in [key for key in c.source if key.startswith("network.network_kwargs")]:
            if c.get(key) in (None, {}, []):
                c.mean_nothing(key, "nothing is said")
            else:
                c.lack(key, "lorry chooses the layers by family", "expect an adapter on more layers")

    def _rates(self) -> None:
        c = self.c
        arguments = {key: value for key, value in c.source.items() if key.startswith("train.optimizer_params.")}
        wanted = Wanted(
            keys=("train.optimizer",),
            word=str(c.get("train.optimizer", "adamw")),
            arguments=arguments,
            rates=("train.lr", "train.unet_lr", "train.text_encoder_lr"),
        )
        settle(c, wanted)
        c.mean_nothing("train.optimizer_params", "nothing is said")
        if "train.lr" not in c.fates:
            c.rename({"train.lr": ("learning_rate", number), "train.unet_lr": ("unet_lr", number)})
        if truth(c.get("train.train_text_encoder", False)):
            rate = number(c.get("train.text_encoder_lr", c.get("train.lr", 1e-6)))
            if "train.text_encoder_lr" not in c.fates:
                c.carry(("train.train_text_encoder", "train.text_encoder_lr"), "text_encoder_lr", rate)
        else:
            c.carry("train.train_text_encoder", "text_encoder_lr", 0.0)
            c.mean_nothing("train.text_encoder_lr", "no text encoder is trained")
        self._scheduler()
        if truth(c.get("train.ema_config.use_ema", False)):
            c.carry(
                ("train.ema_config.use_ema", "train.ema_config.ema_decay"), "ema_decay", number(c.get("train.ema_config.ema_decay", 0.999))
            )
        c.mean_nothing(("train.ema_config.use_ema", "train.ema_config.ema_decay", "train.ema_config"), "off")

    def _scheduler(self) -> None:
        c = self.c
        name = str(c.get("train.lr_scheduler", "constant"))
        ours = chosen("lr_scheduler", {"constant_with_warmup": "constant"}.get(name, name))
        if ours in {"constant", "cosine"}:
            c.carry("train.lr_scheduler", "lr_scheduler", ours, said_by="ai-toolkit's where nothing is said")
        else:
            c.lack("train.lr_scheduler", f"ai-toolkit's `{name}` is a curve of torch that lorry has not", "`cosine` is written")
            c.default("lr_scheduler", "cosine", f"instead of {name}")
        c.rename({"train.lr_scheduler_params.num_warmup_steps": ("lr_warmup_steps", whole)})
        for key in [key for key in c.source if key.startswith("train.lr_scheduler_params")]:
            if key not in c.fates and c.get(key) in (None, {}):
                c.mean_nothing(key, "nothing is said")
            elif key not in c.fates:
                c.lack(key, "belongs to a curve of torch", "look at `lr_scheduler`")

    def _steps(self) -> None:
        """Passes become steps of the optimizer; what is counted in passes follows."""
        c = self.c
        by_steps = max(whole(c.get("train.gradient_accumulation_steps", 1)), 1)
        by_batches = max(whole(c.get("train.gradient_accumulation", 1)), 1)
        if by_steps * by_batches > 1:
            keys = ("train.gradient_accumulation_steps", "train.gradient_accumulation")
            c.carry(keys, "gradient_accumulation", by_steps * by_batches)
        c.mean_nothing(("train.gradient_accumulation_steps", "train.gradient_accumulation"), "one pass, one step")
        said = "ai-toolkit's where nothing is said"
        c.carry("train.steps", "steps", max(whole(c.get("train.steps", 1000)) // by_steps, 1), said_by=said)
        if every := whole(c.get("save.save_every", 1000)):
            c.carry("save.save_every", "save_every_steps", max(every // by_steps, 1), said_by=said)
        self.by_steps = by_steps

    def _samples(self) -> None:
        c = self.c
        written = c.get("sample.prompts") or [
            one for key, one in c.source.items() if key.startswith("sample.samples[") and key.endswith(".prompt")
        ]
        if not written or truth(c.get("train.disable_sampling", False)):
            return c.mean_nothing([key for key in c.source if key.startswith("sample.")], "nothing is drawn")
        trigger, seed = str(c.get("trigger_word", "")), whole(c.get("sample.seed", 0))
        prompts = []
        for number_, prompt in enumerate(written):
            flags = {
                "n": c.get("sample.neg"),
                "w": c.get("sample.width", 512),
                "h": c.get("sample.height", 512),
                "d": seed + number_ * truth(c.get("sample.walk_seed", False)),
                "l": c.get("sample.guidance_scale", 7),
                "s": c.get("sample.sample_steps", 20),
            }
            said = " ".join(f"--{flag} {value}" for flag, value in flags.items() if value not in (None, "", False))
            prompts.append(f"{str(prompt).replace('[trigger]', trigger)} {said}")
        c.carry(
            [key for key in c.source if key.startswith("sample.") and key not in MEANINGLESS and key != "sample.sample_every"],
            "sample_prompts",
            prompts,
        )
        c.carry(
            "sample.sample_every",
            "sample_every_steps",
            max(whole(c.get("sample.sample_every", 100)) // self.by_steps, 1),
            said_by="its own",
        )
        return None
