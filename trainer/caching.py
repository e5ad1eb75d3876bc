"""What no step of a job changes, made once before the first: latents, masks, embeddings. Found again by what it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import captions, dataset, items, loop, objective, pictures, prompts
from .cache import Cache, address, file_hash
from .contract import IDS, Condition, View
from .parts import rates_of
from .protocol import JobSpec
from .saying import warn

if TYPE_CHECKING:
    from .jobs import Place


def hashes_of(samples: Sequence[dataset.Sample]) -> dict[Path, str]:
    """What is in each file that is trained on."""
    return {path: file_hash(path) for sample in samples for path in (sample.image, sample.mask) if path is not None}


def cached(job: JobSpec, place: Place, model: Any, shown: Sequence[items.Item], hashes: Mapping[Path, str]) -> loop.Data:
    """These items as the model will see them: everything that no step changes is made once, and found again by what it was made from."""
    latents: dict[tuple[int, loop.Way], Tensor] = {}
    masks: dict[tuple[int, loop.Way], Tensor] = {}
    masked = job.alpha_mask or any(item.sample.mask for item in shown)
    for index, item in enumerate(shown):
        for way in (loop.Way(mirrored, cut) for cut in range(len(item.fits)) for mirrored in ((False, True) if job.flip else (False,))):
            place.pause(job)
            latents[index, way] = _latent(job, place.cache, model, item, way, hashes)
            if masked:
                masks[index, way] = _mask(job, place.cache, item, way, hashes, latents[index, way])
    told = [[captions.plain(job, text) for text in item.sample.captions] for item in shown]
    return loop.Data(
        shapes=[item.shape for item in shown],
        repeats=[item.sample.repeats for item in shown],
        latents=lambda index, way: latents[index, way],
        condition=_conditions(job, place, model, [text for texts in told for text in texts]),
        captions=[item.sample.captions if captions.vary(job) else texts for item, texts in zip(shown, told, strict=True)],
        describe=lambda index, way: model.family.describe(View(shown[index].sample.size, shown[index].fits[way.cut], way.mirrored)),
        mask=(lambda index, way: masks[index, way]) if masked else None,
    )


def _latent(job: JobSpec, cache: Cache, model: Any, item: items.Item, way: loop.Way, hashes: Mapping[Path, str]) -> Tensor:
    fit, image = item.fits[way.cut], item.sample.image

    def make() -> Tensor:
        pixels = torch.from_numpy(pictures.fitted(pictures.read_rgb(image, job.background), fit)).permute(2, 0, 1)  # [3, h, w]
        latent: Tensor = model.encode_pixels(pixels.flip(2) if way.mirrored else pixels)  # [c, h/8, w/8]
        return latent

    cut = fit.bucket, fit.resized, fit.crop, way.mirrored
    return cache.get("latents", address("latent", pictures.VERSION, hashes[image], *cut, job.background, model.latent_address()), make)


def _mask(job: JobSpec, cache: Cache, item: items.Item, way: loop.Way, hashes: Mapping[Path, str], latent: Tensor) -> Tensor:
    """What each place of a latent counts [1, h, w]: by its picture's mask, else by its transparency, else all the same."""
    fit, sample, size = item.fits[way.cut], item.sample, (latent.shape[-2], latent.shape[-1])
    if sample.mask is None and not job.alpha_mask:
        return torch.ones(1, *size)

    def make() -> Tensor:
        whole = pictures.read_mask(sample.mask) if sample.mask else pictures.read_alpha(sample.image)
        pixels = torch.from_numpy(pictures.fitted_mask(whole, fit))  # [1, H, W]
        return objective.mask_at(pixels.flip(2) if way.mirrored else pixels, size, 0.0)

    facts = sample.mask is None, hashes[sample.mask or sample.image], fit.bucket, fit.resized, fit.crop, way.mirrored, size
    return cache.get("masks", address("mask", pictures.VERSION, *facts), make).clamp(min=job.mask_min_weight)


def _conditions(job: JobSpec, place: Place, model: Any, texts: Sequence[str]) -> Callable[[str], Condition]:
    """Captions -> what the model is told: embeddings made once; token ids for the text encoders that are trained."""
    counts = {text: model.token_count(text) for text in set(texts)}
    room = model.family.capacity(job)
    if long := {c: n for c, n in counts.items() if n > room}:
        worst = max(long, key=lambda c: long[c])
        cut = f"{len(long)} captions are longer than {room} tokens and are cut"
        warn(job, place, f"{cut}; the longest has {long[worst]}: {worst[:80]!r}...")
    known: dict[str, Condition] = {}
    trained = [part for part in rates_of(job) if part in model.family.encoders]
    fixed = [part for part in model.family.encoders if part not in trained]

    def condition(caption: str) -> Condition:
        if caption not in known:
            ids = model.tokens(caption, job) if trained else {}
            known[caption] = {IDS + part: ids[part] for part in trained} | _embedded(job, place, model, caption, fixed)
        return known[caption]

    if not captions.vary(job):  # else they are too many to make ahead
        dropped = bool(job.caption_dropout or job.caption_dropout_every_epochs)
        for text in [*texts, *([""] if dropped else [])]:
            place.pause(job)
            condition(text)
    return condition


def _embedded(job: JobSpec, place: Place, model: Any, text: str, encoders: Sequence[str]) -> Condition:
    if not encoders:
        return {}
    ids = {part: read.tolist() for part, read in model.tokens(text, job).items() if part in encoders}
    where = address("text", sorted(ids.items()), model.text_address(encoders))
    return place.cache.get_named("text", where, lambda: model.encode_text(text, job, encoders))


def prompt_embeddings(job: JobSpec, place: Place, model: Any, wanted: Sequence[prompts.Prompt]) -> Callable[[str], Condition]:
    """Prompts are embedded before the text encoders leave; with those that are trained, at the time of drawing."""
    trained = [part for part in rates_of(job) if part in model.family.encoders]
    fixed = [part for part in model.family.encoders if part not in trained]
    made = {text: _embedded(job, place, model, text, fixed) for prompt in wanted for text in (prompt.text, prompt.negative)}
    return lambda text: {**made[text], **(model.encode_text(text, job, trained) if trained else {})}
