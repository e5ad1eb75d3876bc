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


def single_file(folder: Path, path: Path) -> Path:
    """The same model as one checkpoint in Stable Diffusion's original layout, and a `.config` folder beside it without weights."""
    from safetensors.torch import load_file, save_file

    def tensors(part: str) -> dict:
        return load_file(next((folder / part).glob("*.safetensors")))

    layers = json.loads((folder / "unet/config.json").read_text())["layers_per_block"]
    whole = {f"model.diffusion_model.{original_unet(k, layers)}": v for k, v in tensors("unet").items()}
    for key, value in tensors("vae").items():
        name = original_vae(key)
        linear = ".attn_1." in name and value.dim() == 2  # was a 1x1 convolution
        whole[f"first_stage_model.{name}"] = value[:, :, None, None] if linear else value
    for key, value in tensors("text_encoder").items():
        whole[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({k: v.contiguous() for k, v in whole.items()}, path)
    shutil.copytree(folder, path.with_suffix(".config"), ignore=shutil.ignore_patterns("*.safetensors"))
    return path


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_unet(key: str, layers: int) -> str:
    """A diffusers UNet key in CompVis' numbering: every layer of a block, and every resize, has a number of its own."""
    for theirs, ours in {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}.items():
        key = key.replace(theirs, ours)
    for theirs, ours in {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}.items():
        if key.startswith(theirs):
            return key.replace(theirs, ours)
    place, *rest = key.split(".")
    if place == "mid_block":
        number = {"resnets": 2 * int(rest[1]), "attentions": 1}[rest[0]]
        return f"middle_block.{number}.{_inner(rest[0], rest[2:])}"
    if place == "down_blocks":
        block, kind, index = int(rest[0]), rest[1], int(rest[2])
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest[-1]}"
        return f"input_blocks.{1 + block * (layers + 1) + index}.{int(kind == 'attentions')}.{_inner(kind, rest[3:])}"
    if place == "up_blocks":
        block, kind, index = int(rest[0]), rest[1], int(rest[2])
        if kind == "upsamplers":  # after the attention, where the block has one; the first of these models has none
            return f"output_blocks.{block * (layers + 1) + layers}.{1 if block == 0 else 2}.conv.{rest[-1]}"
        return f"output_blocks.{block * (layers + 1) + index}.{int(kind == 'attentions')}.{_inner(kind, rest[3:])}"
    return key


def _inner(kind: str, rest: list[str]) -> str:
    return ".".join([RESNET[rest[0]], *rest[1:]] if kind == "resnets" else rest)


def original_vae(key: str, blocks: int = 4) -> str:
    """A diffusers VAE key in CompVis' names; the decoder's blocks count the other way."""
    side, *rest = key.split(".")
    if rest[0] == "mid_block":
        names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
        if rest[1] == "attentions":
            return f"{side}.mid.attn_1.{names[rest[3]]}.{rest[-1]}"
        return f"{side}.mid.block_{int(rest[2]) + 1}.{'.'.join(rest[3:])}".replace("conv_shortcut", "nin_shortcut")
    if rest[0] in ("down_blocks", "up_blocks"):
        number = int(rest[1]) if rest[0] == "down_blocks" else blocks - 1 - int(rest[1])
        way = rest[0].removesuffix("_blocks")
        if rest[2] == "resnets":
            return f"{side}.{way}.{number}.block.{rest[3]}.{'.'.join(rest[4:])}".replace("conv_shortcut", "nin_shortcut")
        return f"{side}.{way}.{number}.{way}sample.conv.{rest[-1]}"
    return key.replace("conv_norm_out", "norm_out")


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
