"""Samples seen through a tiny autoencoder and scored by a CLIP: by tiny random models, against the libraries' own computation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from trainer.previews import Looker
from trainer.protocol import Committed, Ended, Scored, Warned


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderTiny
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    from tests.tiny import text_config, tokenizer

    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("lookers")
    channels = (8, 8, 8, 8)
    AutoencoderTiny(encoder_block_out_channels=channels, decoder_block_out_channels=channels).save_pretrained(folder / "taesd")
    words = text_config(tokenizer(folder / "words"), "quick_gelu").to_dict()
    sight = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    CLIPModel(CLIPConfig(text_config=words, vision_config=sight, projection_dim=32)).save_pretrained(folder / "clip")
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, CLIPTokenizer.from_pretrained(str(folder / "words"))).save_pretrained(folder / "clip")
    return folder


def looker(root: Path, said: list[str], **models: str | None) -> Looker:
    return Looker(**{"preview_decoder": None, "clip_score": None, **models}, root=root, warn=said.append)


def test_a_preview_is_what_diffusers_makes_of_the_same_latents(tiny: Path) -> None:
    """As its pipelines do it with this class of autoencoder: by its own factor, into -1..1."""
    from diffusers import AutoencoderTiny

    said: list[str] = []
    decode = looker(tiny, said, preview_decoder="taesd").decoder(4, torch.device("cpu"))
    assert decode is not None
    latents = torch.randn(2, 4, 8, 8)
    model = AutoencoderTiny.from_pretrained(str(tiny / "taesd")).eval()
    with torch.no_grad():
        theirs = model.decode(latents / model.config.scaling_factor, return_dict=False)[0].clamp(-1, 1)
    assert torch.equal(decode(latents), theirs)
    assert said == []


def test_a_score_is_the_cosine_that_transformers_gives(tiny: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    picture, prompt = Image.new("RGB", (48, 40), "red"), "a red square, " * 60  # longer than CLIP reads
    score = looker(tiny, [], clip_score="clip").score(picture, prompt)
    model, processor = CLIPModel.from_pretrained(str(tiny / "clip")).eval(), CLIPProcessor.from_pretrained(str(tiny / "clip"))
    given = processor(text=[prompt], images=[picture], return_tensors="pt", truncation=True)
    with torch.no_grad():
        logits = model(**given).logits_per_image[0, 0] / model.logit_scale.exp()
    assert score == pytest.approx(100 * logits.item(), abs=1e-4)


@pytest.mark.parametrize("where", ["nowhere", "clip"])
def test_what_cannot_be_loaded_or_does_not_fit_is_said_once_and_done_without(tiny: Path, where: str) -> None:
    said: list[str] = []
    one = looker(tiny, said, preview_decoder=where)
    assert [one.decoder(4, torch.device("cpu")) for _ in range(2)] == [None, None]
    assert len(said) == 1
    assert said[0].startswith(f"preview_decoder {where} cannot be loaded, the VAE decodes samples: ")
    told: list[str] = []
    assert looker(tiny, told, preview_decoder="taesd").decoder(16, torch.device("cpu")) is None
    assert told == ["preview_decoder is for 4 channels, not 16: the VAE decodes samples."]


def test_a_job_draws_with_both_and_its_last_samples_by_the_vae(
    world: Path, tiny: Path, tmp_path: Path, spec: Callable[..., dict[str, Any]]
) -> None:
    """The last ones are the same pictures that a job without a preview decoder draws."""
    from trainer import train

    events: dict[str, list[Any]] = {"plain": [], "seen": []}
    asked = {"steps": 2, "sample_every_steps": 1, "sample_prompts": ["a cat --s 2 --w 64 --h 64"]}
    for name, more in (("plain", {}), ("seen", {"preview_decoder": str(tiny / "taesd"), "clip_score": str(tiny / "clip")})):
        job = {**spec(**asked), "name": name, "output": str(tmp_path / name), **more}
        train(root=world, on_event=events[name].append, **job)
    assert [one.state for one in events["seen"] if isinstance(one, Ended)] == ["done"]
    assert not [one.message for one in events["seen"] if isinstance(one, Warned) and "decoder" in one.message]
    steps = [one.step for one in events["seen"] if isinstance(one, Committed) and one.role == "sample"]
    scored = [(one.step, one.number) for one in events["seen"] if isinstance(one, Scored)]
    assert scored == [(step, 0) for step in steps] == [(0, 0), (1, 0), (2, 0)]
    same = [
        Image.open(tmp_path / f"plain/samples/step{step:06d}-0.png").tobytes()
        == Image.open(tmp_path / f"seen/samples/step{step:06d}-0.png").tobytes()
        for step in steps
    ]
    assert same == [False, False, True]
    told = json.loads(Image.open(tmp_path / "seen/samples/step000001-0.png").text["lorry"])
    assert told["clip_score"] == [one.clip_score for one in events["seen"] if isinstance(one, Scored)][1]
