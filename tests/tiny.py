"""Tiny random models of the true classes, and small datasets: seconds to build, no network.

Usable by every test: `sd15(folder)` and its like, one a family, write a pipeline in diffusers format, `single_file` makes one
checkpoint of it, `pictures(folder)` a dataset.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def tokenizer(folder: Path, padding: str = "<|endoftext|>") -> int:
    """Write a CLIP tokenizer; returns the vocabulary's size."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens, merges = vocabulary()
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": padding}
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(marks))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **marks})
    )
    return len(tokens)


def sd15(folder: Path, *, small: bool = True, seed: int = 0) -> Path:
    """A random SD1.5 pipeline. Small: one cross-attention block up and down; else the real 4-block shape with 192 target layers."""
    return _with_one_encoder(folder, small_unet() if small else full_unet(), seed=seed)


def sd2(folder: Path, *, prediction: str = "v_prediction", seed: int = 0) -> Path:
    """A random SD2 pipeline: another activation and padding, linear projections, v."""
    return _with_one_encoder(folder, {**small_unet(), "use_linear_projection": True}, "!", prediction, seed=seed)


def _with_one_encoder(
    folder: Path, unet: dict[str, object], padding: str = "<|endoftext|>", prediction: str = "epsilon", *, seed: int
) -> Path:
    import torch
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    size = tokenizer(folder / "tokenizer", padding)
    text = CLIPTextModel(text_config(size, "quick_gelu" if prediction == "epsilon" else "gelu"))
    model = UNet2DConditionModel(**unet)
    vae = small_vae()
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1,
        prediction_type=prediction,
    )  # fmt: skip
    words = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"))
    pipeline = StableDiffusionPipeline(vae, text.eval(), words, model.eval(), scheduler, None, None, requires_safety_checker=False)
    pipeline.save_pretrained(folder)
    return folder


def sdxl(folder: Path, *, prediction: str = "epsilon", zero_snr: bool = False, seed: int = 0) -> Path:
    """A random SDXL pipeline: two encoders of different width, a UNet that is told sizes."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(seed)
    size = tokenizer(folder / "tokenizer")
    tokenizer(folder / "tokenizer_2", "!")
    one = CLIPTextModel(text_config(size, "quick_gelu"))
    two = CLIPTextModelWithProjection(text_config(size, "gelu", width=40))
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading",
        prediction_type=prediction, rescale_betas_zero_snr=zero_snr,
    )  # fmt: skip
    words = [CLIPTokenizer.from_pretrained(str(folder / name)) for name in ("tokenizer", "tokenizer_2")]
    unet = UNet2DConditionModel(**sdxl_unet())
    StableDiffusionXLPipeline(small_vae(0.13025), one.eval(), two.eval(), *words, unet.eval(), scheduler).save_pretrained(folder)
    return folder


def t5_tokenizer(folder: Path) -> int:
    """Write a T5 tokenizer of single letters; returns the vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.!?'-_()"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -4.0) for letter in letters)]
    words = Tokenizer(models.Unigram(pieces, unk_id=2))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    words.save(str(folder / "tokenizer.json"))
    marks = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5TokenizerFast", "model_max_length": 512, **marks}))
    return len(pieces)


def t5(vocabulary_size: int) -> Any:
    """A T5 encoder of two small layers."""
    from transformers import T5Config, T5EncoderModel

    shape = {"d_model": 80, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
    return T5EncoderModel(T5Config(vocab_size=vocabulary_size, **shape)).eval()


def sd3(folder: Path, *, seed: int = 0, **transformer: object) -> Path:
    """A random SD3 pipeline: three encoders, a transformer of three blocks."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5TokenizerFast

    torch.manual_seed(seed)
    size = tokenizer(folder / "tokenizer")
    tokenizer(folder / "tokenizer_2", "!")
    encoders = [CLIPTextModelWithProjection(text_config(size, act, width=w)).eval() for act, w in (("quick_gelu", 32), ("gelu", 40))]
    encoders[0].text_projection.weight.data = torch.eye(32)  # as published: a checkpoint leaves it out
    encoders.append(t5(t5_tokenizer(folder / "tokenizer_3")))
    shape = {
        "sample_size": 8, "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 4, "joint_attention_dim": 80,
        "caption_projection_dim": 32, "pooled_projection_dim": 72, "pos_embed_max_size": 32, **transformer,
    }  # fmt: skip
    words = [CLIPTokenizer.from_pretrained(str(folder / name)) for name in ("tokenizer", "tokenizer_2")]
    pairs = [encoders[0], words[0], encoders[1], words[1], encoders[2], T5TokenizerFast.from_pretrained(str(folder / "tokenizer_3"))]
    vae = small_vae(1.5305, latent_channels=16, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False)
    model = SD3Transformer2DModel(**shape).eval()
    StableDiffusion3Pipeline(model, FlowMatchEulerDiscreteScheduler(shift=3.0), vae, *pairs).save_pretrained(folder)
    return folder


def sd35(folder: Path, *, seed: int = 1) -> Path:
    """A random SD3.5 Medium: as SD3, attending twice in its first block; its encoders are others, so that no cache takes it for SD3."""
    return sd3(folder, seed=seed, qk_norm="rms_norm", dual_attention_layers=(0,))


def flux(folder: Path, *, seed: int = 2) -> Path:
    """A random FLUX.1-dev pipeline: two blocks of each kind, told of guidance."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer, T5TokenizerFast

    torch.manual_seed(seed)
    words = CLIPTextModel(text_config(tokenizer(folder / "tokenizer"), "quick_gelu")).eval()
    long = t5(t5_tokenizer(folder / "tokenizer_2"))
    model = FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=80,
        pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    vae = small_vae(0.3611, latent_channels=16, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)
    readers = [CLIPTokenizer.from_pretrained(str(folder / "tokenizer")), T5TokenizerFast.from_pretrained(str(folder / "tokenizer_2"))]
    FluxPipeline(scheduler, vae, words, readers[0], long, readers[1], model.eval()).save_pretrained(folder)
    return folder


def chat_tokenizer(folder: Path) -> int:
    """Write a tokenizer of single letters that frames messages as Qwen's does; returns the vocabulary's size."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.!?'-_() \n"]
    known = {token: number for number, token in enumerate([*marks, *letters, "<unk>"])}
    words = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.add_special_tokens(marks)
    folder.mkdir(parents=True, exist_ok=True)
    words.save(str(folder / "tokenizer.json"))
    frame = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": marks[0], "eos_token": marks[2], "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, "model_max_length": 4096, "chat_template": frame}))
    return len(known)


def zimage(folder: Path, *, seed: int = 3) -> Path:
    """A random Z-Image pipeline: two blocks, one of each refiner, a language model of three layers."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

    torch.manual_seed(seed)
    shape = {"hidden_size": 40, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    words = Qwen3Model(Qwen3Config(vocab_size=chat_tokenizer(folder / "tokenizer"), head_dim=8, **shape)).eval()
    model = ZImageTransformer2DModel(
        in_channels=16, dim=48, n_layers=2, n_refiner_layers=1, n_heads=3, n_kv_heads=3, cap_feat_dim=40, axes_dims=[4, 4, 8],
        axes_lens=[1024, 64, 64],
    )  # fmt: skip
    torch.nn.init.normal_(model.x_pad_token)
    torch.nn.init.normal_(model.cap_pad_token)
    vae = small_vae(0.3611, latent_channels=16, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)
    reader = AutoTokenizer.from_pretrained(str(folder / "tokenizer"))
    ZImagePipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), vae, words, reader, model.eval()).save_pretrained(folder)
    return folder


def text_config(vocabulary_size: int, activation: str, *, width: int = 32) -> Any:
    """A CLIP of three small layers."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=vocabulary_size, hidden_size=width, intermediate_size=37, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=77, hidden_act=activation, projection_dim=width, bos_token_id=vocabulary_size - 2,
        eos_token_id=vocabulary_size - 1, pad_token_id=vocabulary_size - 1,
    )  # fmt: skip


def small_vae(scale: float = 0.18215, **more: Any) -> Any:
    """Halves three times, as all of them do."""
    from diffusers import AutoencoderKL

    shape = {
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4, "sample_size": 64, "scaling_factor": scale, **more,
    }  # fmt: skip
    return AutoencoderKL(**shape)


def sdxl_unet() -> dict[str, object]:
    """SDXL's blocks, narrow, with fewer transformers in each."""
    return {
        "sample_size": 8,
        "layers_per_block": 2,
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 1, 2],
        "cross_attention_dim": 72,
        "attention_head_dim": [1, 2, 2],
        "norm_num_groups": 8,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 40 + 6 * 8,
    }


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


def single_file(folder: Path, path: Path, *, marks: Sequence[str] = (), **metadata: str) -> Path:
    """The same model as one checkpoint in Stable Diffusion's original layout, and a `.config` folder beside it without weights."""
    import torch
    from safetensors.torch import load_file, save_file

    def tensors(part: str) -> dict:
        return load_file(next((folder / part).glob("*.safetensors")))

    config = json.loads((folder / "unet/config.json").read_text())
    layers, first = config["layers_per_block"], config["up_block_types"][0]
    whole = {f"model.diffusion_model.{original_unet(k, layers, first != 'UpBlock2D')}": v for k, v in tensors("unet").items()}
    for key, value in tensors("vae").items():
        name = original_vae(key)
        linear = ".attn_1." in name and value.dim() == 2  # was a 1x1 convolution
        whole[f"first_stage_model.{name}"] = value[:, :, None, None] if linear else value
    two = (folder / "text_encoder_2").is_dir()
    if config["use_linear_projection"] and not two:
        whole |= open_clip(tensors("text_encoder"), "cond_stage_model.model.")
    else:
        prefix = "conditioner.embedders.0.transformer." if two else "cond_stage_model.transformer."
        whole |= {f"{prefix}text_model.{k.removeprefix('text_model.')}": v for k, v in tensors("text_encoder").items()}
        whole[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if two:
        whole |= open_clip(tensors("text_encoder_2"), "conditioner.embedders.1.model.")
    whole |= {key: torch.zeros(3) for key in ("betas", "alphas_cumprod", "model_ema.decay", "model_ema.num_updates")}  # as real ones have
    whole |= {mark: torch.tensor([]) for mark in marks}
    save_file({k: v.contiguous() for k, v in whole.items()}, path, metadata)
    shutil.copytree(folder, path.with_suffix(".config"), ignore=shutil.ignore_patterns("*.safetensors"))
    return path


OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip(tensors: dict, prefix: str) -> dict:
    """A transformers CLIP in OpenCLIP's names: query, key and value are one, the projection is transposed."""
    import torch

    found: dict = {f"{prefix}logit_scale": torch.tensor(4.6)}
    for key, value in tensors.items():
        name = key.removeprefix("text_model.")
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = value.T
        elif ".q_proj." in name:
            fused = torch.cat([tensors[key.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            block, kind = name.split(".")[2], name.rsplit(".", 1)[1]
            found[f"{prefix}transformer.resblocks.{block}.attn.in_proj_{kind}"] = fused
        elif "k_proj" not in name and "v_proj" not in name:
            for ours, theirs in OPEN_CLIP.items():
                name = name.replace(ours, theirs)
            found[prefix + name] = value
    return found


EMBEDDINGS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_unet(key: str, layers: int, first_attends: bool = False) -> str:
    """A diffusers UNet key in CompVis' numbering: every layer of a block, and every resize, has a number of its own."""
    for theirs, ours in EMBEDDINGS.items():
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
        if kind == "upsamplers":  # after the attention, where the block has one
            attends = block > 0 or first_attends
            return f"output_blocks.{block * (layers + 1) + layers}.{2 if attends else 1}.conv.{rest[-1]}"
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
