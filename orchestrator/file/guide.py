"""The options of a training as its user thinks of them: grouped, and when to touch each. What an option means stands with the option.

`docs/training.md` is drawn from here and from `keys.LoraConfig`; a test sees to it that no option is left out. PURE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chapter:
    """Options that are thought of together."""

    title: str
    opening: str
    """What to know before the first of them."""
    options: Mapping[str, str]
    """Name -> when to touch it."""


CHAPTERS = (
    Chapter(
        "What is trained, and on what",
        "The least that a `[[lora]]` says is `name`, `dataset` and `base`.",
        {
            "name": "Once: it is what the file is called where you use it.",
            "dataset": "Always. `lorry check` tells how the folder was understood, and names every file that it does not read.",
            "base": "Train on the model that you draw with, or on the one that its line began with where the LoRA is for several.",
            "base_revision": "When a hub model is changed under your feet and results must be had again.",
            "family": "When a hub id does not tell it by its name.",
            "recipe": "Always, to begin with: `lorry init` picks one. Then change one key at a time.",
            "regularisation": "When the trained person begins to stand for every person: pictures of the class, no captions needed.",
            "keep_metadata": "Hardly ever: training looks at no place and no camera.",
            "masks": "When the ground, a watermark or another person must not be learnt.",
            "start_from": "To train on from a LoRA that was stopped too early, or from another tool's.",
            "merge_lora": "To train something on top of a style that you always use.",
        },
    ),
    Chapter(
        "How long, and of what size",
        "Training is counted in steps. An epoch is every picture once for each of its repeats, and a step takes `batch_size` times "
        "`gradient_accumulation` pictures; several resolutions, and regularisation pictures, make an epoch longer.",
        {
            "steps": "First of all, once the recipe's number has been seen to be too many or too few: see the first page.",
            "epochs": "When you think in passes over a dataset whose size changes, or carry a config over that does.",
            "batch_size": "Raise it on a card with memory to spare, and the rate with it; leave it at 1 or 2 for twenty pictures.",
            "gradient_accumulation": "Where a bigger batch steadies training but does not fit: SD3.5 Large wants 4 and more.",
            "seed": "To see how much of a difference between two runs is luck.",
        },
    ),
    Chapter(
        "Pictures",
        "Every picture is shrunk or enlarged to the bucket of its own shape that is nearest in area to `resolution`, and what hangs over "
        "is cut off. `lorry check` says which buckets there are and what they cut.",
        {
            "resolution": "1024 for SDXL, 768 for SD2's 768 models, 512 for SD1.5; flow models learn a subject at 512 and finer detail at "
            "768 or 1024, at two to four times the price.",
            "min_bucket": "When very long pictures are cut too much: lower it.",
            "max_bucket": "When very long pictures are cut too much: raise it, to twice `resolution` at most.",
            "bucket_step": "Hardly ever. Lower cuts less off and makes more shapes, which fill fewer whole batches and share fewer passes.",
            "bucket_no_upscale": "When many of your pictures are smaller than `resolution`, and blur must not be learnt.",
            "more_resolutions": "When the LoRA will be used at several sizes: flow models at 512 and 1024 are the usual pair.",
            "crops": "When `check` says that much is cut off pictures whose sides matter, as in landscapes.",
            "flip": "For styles and things without a left and right. Never for faces, writing, uniforms, asymmetric haircuts.",
            "background": "When pictures with transparency show what is cut out: a colour that no caption has to explain.",
            "alpha_mask": "When your pictures are cut out already and their ground must not be learnt.",
            "mask_min_weight": "Raise to 0.1 when masked pictures come out with noise around the subject.",
            "prior_loss_weight": "Lower it when regularisation pictures hold the subject back; raise it when others begin to look like it.",
        },
    ),
    Chapter(
        "Captions",
        "What a caption names stays changeable; what it leaves out goes into the trigger word. Describe clothes, place and light, and "
        "leave out what the LoRA is to own.",
        {
            "trigger": "Always for a subject: two or three letters more than a word has, as in `lisabp woman`. A style can do without.",
            "caption_prefix": "When all pictures share words that the files do not say, as a kind of photograph.",
            "caption_suffix": "Likewise, for words that may come last.",
            "several_captions": "When caption files hold a long and a short text each: prompts of both kinds will then work.",
            "wildcards": "When captions were written for a tool that draws from `{red|blue}`; off, the braces are read as they stand.",
            "shuffle_caption": "For tags, so that their order means nothing. Not for sentences.",
            "keep_tokens": "With `shuffle_caption`: as many as the trigger has tags, mostly 1.",
            "keep_tokens_separator": "When captions differ in how many of their first tags must stay.",
            "tag_dropout": "0.1 when long tag lists are learnt as one block, and leaving a tag out of a prompt changes too much.",
            "caption_dropout": "0.05 to 0.1 for most: it keeps the picture steerable by guidance and the negative prompt.",
            "caption_dropout_every_epochs": "To do as a kohya config did; `caption_dropout` does the same more evenly.",
            "max_token_length": "When `check` says that captions are cut: 150 or 225 for SD1.5, SD2 and SDXL.",
            "clip_skip": "2 for anime bases of SD1.5 (those of NovelAI's line), 1 for everything else; draw with the same.",
            "t5_length": "When sentences are longer than 154 tokens; less costs less memory where captions are short.",
            "t5_padding": "`zero` to do as an older kohya run did.",
            "blank_caption": "`zeros` when the tool that you draw with sends zeros for an empty negative prompt.",
        },
    ),
    Chapter(
        "The adapter",
        "Rank is how much can be learnt, alpha over rank how strongly; file size grows with rank. Doubling alpha is much like doubling the "
        "learning rate.",
        {
            "adapter": "`lokr` for the smallest files, `loha` where a low rank is not enough and all your programs read it; else leave it.",
            "dora": "When a small rank misses detail, and you draw with ComfyUI or Forge.",
            "rank": "8 to 16 for a subject, 32 for a style, 64 and more where realistic detail is still missing at the right step count. "
            "Lower it when the style of the pictures bleeds into everything.",
            "alpha": "Half the rank to tame a run that burns in fast; leave it alone while you compare learning rates.",
            "lokr_factor": "With `lokr`: 4 to 8 for a subject; -1 for the smallest file.",
            "lokr_whole": "With `lokr`: for the most that it can learn.",
            "lokr_decompose_both": "With `lokr`: for a file that is smaller still.",
            "rslora": "For ranks of 64 and more, which otherwise learn too slowly to be worth their size.",
            "layers": "`attention` for the smallest file that diffusers' own scripts would give; it learns a style less well.",
            "conv_rank": "For styles of line and texture on UNets, at half the rank or less. `lorry convert` says who can load it.",
            "conv_alpha": "With `conv_rank`; half of it for textures that come out too hard.",
            "include_layers": "To train a part of the model alone when you know which: see `lorry help config` for the paths.",
            "exclude_layers": "To keep the layers of composition out of a style, or those of texture out of a subject.",
            "layer_ranks": "When a published recipe gives ranks by layer.",
            "layer_lr": "When one part of the model burns in before another has learnt.",
            "block_ranks": "To carry kohya's `block_dims` over.",
            "block_lr": "To carry kohya's block weights over; 0 for the outer blocks keeps grain out of a subject's LoRA.",
            "lora_plus_ratio": "4 to 16 to learn faster at the same rate; begin with half the rate.",
            "merge_weight": "With `merge_lora`: the weight at which you use that LoRA.",
            "dropout": "0.1 when held-out loss turns early and there are no more pictures to be had.",
            "rank_dropout": "As `dropout`, a little stronger; 0.1 to 0.3.",
            "module_dropout": "As `dropout`, the strongest; 0.1 at most.",
        },
    ),
    Chapter(
        "Optimiser",
        "The optimiser decides what a learning rate means: take both from one row of the table on the first page.",
        {
            "optimizer": "Lion or a paged one for the least memory, Prodigy when you do not want to look for a rate, AdamW where 8-bit "
            "states are not to be had.",
            "learning_rate": "Half it when samples burn in before the subject is right, or the gradient norm keeps rising; double it when "
            "nothing has happened after a third of the steps.",
            "unet_lr": "When the text encoder needs another rate than the rest.",
            "text_encoder_lr": "A half to a tenth of the UNet's for a new name on SD1.5; not at all for styles, SDXL or flow models.",
            "text_encoder_2_lr": "0 leaves SDXL's larger encoder alone.",
            "optimizer_args": "When a recipe gives them. Prodigy: `d_coef = 0.5` where it goes too far, `2.0` where it does not move.",
            "weight_decay": "0.1 with Lion; 0 to do as many published recipes do. Seldom seen in the picture.",
            "max_grad_norm": "0.1 for SD3.5 Large, whose training jumps; 1 for the rest.",
            "ema_decay": "0.999 for more than 3000 steps, when single checkpoints differ a lot.",
        },
    ),
    Chapter(
        "Schedule of the rate",
        "Constant is right when you pick a checkpoint by eye; a rate that falls is right when the number of steps is known to be.",
        {
            "lr_scheduler": "`cosine` when the number of steps is settled, `constant` while it is not; schedule-free wants the latter.",
            "lr_warmup_steps": "50 to 100, or 0.05, with every rate that is not known to be mild; always with SD3.5 Large.",
            "lr_restarts": "3 to 5 with `cosine_with_restarts`.",
            "lr_power": "2 makes `polynomial` fall earlier.",
            "lr_min": "0.1 where the last part of a falling rate is too small to change anything.",
            "lr_decay_share": "With `warmup_stable_decay`: more where the end still jumps.",
            "lr_step_rules": "To carry a config over that has them.",
        },
    ),
    Chapter(
        "Noise and loss",
        "All of it decides which noise levels count for how much: little noise is texture, much noise is composition and light. One change "
        "at a time, and the held-out loss by noise quarter shows what it did.",
        {
            "min_snr_gamma": "5 for epsilon bases of SD1.5, SD2 and SDXL: faster and more even. Leave it out for flow models.",
            "debiased_estimation": "Instead of `min_snr_gamma`, when fine detail is what is missing.",
            "noise_offset": "0.03 to 0.05 when pictures cannot get truly dark or bright; not with v-prediction and zero terminal SNR.",
            "multires_noise_iterations": "6 to 10, instead of `noise_offset`, for stronger light and colour.",
            "multires_noise_discount": "0.3 to be mild, up to 0.8 for styles; with the former.",
            "ip_noise_gamma": "0.1 when small mistakes in early steps of drawing add up to artefacts.",
            "loss_type": "`huber` when a few odd pictures pull the rest along.",
            "huber_schedule": "With `huber`: to carry a config over.",
            "huber_c": "With `huber`: lower makes it milder to outliers.",
            "prediction": "Only when the base is a single file that does not say, and samples are noise.",
            "zero_terminal_snr": "As the former: NoobAI's v-prediction files and their kin want it.",
            "timestep_sampling": "`sigmoid` to do as kohya does it, `uniform` with SimpleTuner's SD3.5 settings.",
            "logit_mean": "Above 0 to learn more of composition, below 0 more of texture.",
            "logit_std": "Larger spreads training to the ends of the noise scale.",
            "mode_scale": "With `mode`; the paper's value is the default.",
            "flow_shift": "3 for SD3 and SD3.5; 1 with `uniform`; higher when composition is not learnt.",
            "resolution_shift": "Leave it to the base, but where a config to be carried over says so.",
            "loss_space": "To carry a learning rate over from a tool that measures the other.",
            "flow_weighting": "To do as a published run did.",
            "guidance_embedding": "Leave it at 1 for FLUX.1-dev.",
        },
    ),
    Chapter(
        "Measuring and samples",
        "Numbers and pictures to decide by. Both use fixed noise, so that what changes between two steps is the LoRA.",
        {
            "heldout": "0 when every one of your pictures is needed; 2 to 4 of fewer than ten when you want a number all the same.",
            "stop_when_worse": "3 when you would rather pay for no step too many than look at the last checkpoints yourself.",
            "sample_every_steps": "Every 200 to 400 steps. Pictures cost time: two prompts are mostly enough.",
            "preview_decoder": "When samples are many or the card is nearly full: quicker and smaller than the VAE, and a little softer.",
            "clip_score": "When prompts stop being obeyed and you want to see when: the score of a prompt falls. It knows no faces.",
            "sample_prompts": "One with the trigger in a new place, one without it: what the second one changes has bled.",
        },
    ),
    Chapter(
        "Memory and speed",
        "`lorry plan` says what a job will need before anything is rented. When a card runs out all the same, the trainer turns "
        "checkpointing on, lets a batch through in parts, takes 8-bit states, stores the frozen model in 8 bits and then in 4, and at last "
        "keeps it in main memory, by itself, and says so.",
        {
            "gradient_checkpointing": "When the plan says that memory will not do: it is the cheapest way to half of it.",
            "base_precision": "When the frozen model is what does not fit: `int8` halves it and is hardly seen, `nf4` makes "
            "a quarter of it. Each step takes longer, so not for speed. `merge_lora` is added before it is stored.",
            "encoder_precision": "When captions of SD3, FLUX or Z-Image cannot be read for want of memory; a little is lost.",
            "offload": "When nothing else fits: begin with 0.5. Every block travels twice a step, and a slow bus is felt.",
            "speed": "`compile` for runs of some thousand steps; `eager` when you look for a mistake.",
            "memory": "`auto` to let the plan take a cheaper card by storing the frozen base in fewer bits, `written` to be left alone.",
            "mixed_precision": "`fp16` on cards before the RTX 30 series, which have no bf16; `no` to compare results to the bit.",
        },
    ),
    Chapter(
        "Saving",
        "A checkpoint holds all that is needed to go on; an adapter is the file that you use.",
        {
            "save_every_steps": "So that you have five to ten adapters to choose from; 200 to 500.",
            "save_every_epochs": "The same for those who count in epochs.",
            "save_precision": "`fp32` when the file will be merged or trained on; `bf16` hardly ever, it has fewer digits than fp16.",
        },
    ),
)
