"""Tiny random models of the true classes, and small datasets: seconds to build, no network.

Usable by every test: `sd15(folder)` writes a StableDiffusionPipeline in diffusers format, `pictures(folder)` a dataset.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

WORDS = ("a", "the", "photo", "of", "dog", "cat", "red", "blue", "green", "circle", "square", "on")


def alphabet() -> list[str]:
    """CLIP's 256 byte symbols: printable ones stand for themselves, the rest come after 255."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in own] + [chr(256 + n) for n in range(256 - len(own))]


def vocabulary(words: Sequence[str] = WORDS) -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-pair tokenizer that knows these words whole."""
    symbols = alphabet()
    tokens = symbols + [s + "</w>" for s in symbols]
    merges: list[str] = []
    for word in words:
        left = word[0]
        for i, letter in enumerate(word[1:], 1):
            right = letter + ("</w>" if i == len(word) - 1 else "")
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
                tokens.append(left + right)
            left += right
    return [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"], merges  # the end mark has the largest id: CLIP pools by it


def tokenizer(folder: Path) -> int:
    """Write a CLIP tokenizer; returns the vocabulary's size."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens, merges = vocabulary()
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(marks))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **marks})
    )
    return len(tokens)


def sd15(folder: Path, *, small: bool = True, seed: int = 0) -> Path:
    """A random SD1.5 pipeline. Small: one cross-attention block up and down; else the real 4-block shape with 192 target layers."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    size = tokenizer(folder / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size, hidden_size=32, intermediate_size=37, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=77,
            bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(**(small_unet() if small else full_unet()))
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, block_out_channels=(8, 8, 16, 16),
        layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
    )
    words = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"))
    pipeline = StableDiffusionPipeline(vae, text.eval(), words, unet.eval(), scheduler, None, None, requires_safety_checker=False)
    pipeline.save_pretrained(folder)
    return folder


def small_unet() -> dict[str, object]:
    """The least that has every kind of layer."""
    return {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }


def full_unet() -> dict[str, object]:
    """SD1.5's blocks, narrow."""
    return {
        "sample_size": 8,
        "layers_per_block": 2,
        "block_out_channels": (32, 64, 128, 128),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """A circle on a ground, colours and place by the seed."""
    dice = random.Random(seed)
    image = Image.new("RGB", size, tuple(dice.randrange(256) for _ in range(3)))
    x, y, r = dice.randrange(size[0]), dice.randrange(size[1]), min(size) // 3
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=tuple(dice.randrange(256) for _ in range(3)))
    return image


def pictures(folder: Path, *, count: int = 4, sizes: Sequence[tuple[int, int]] = ((64, 64),), captions: bool = True) -> Path:
    """A folder of drawn pictures with captions."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i in range(count):
        picture(sizes[i % len(sizes)], i).save(folder / f"{i:02d}.png")
        if captions:
            (folder / f"{i:02d}.txt").write_text(f"a photo of {'dog' if i % 2 else 'cat'}, number {i}, on red")
    return folder
