"""Stable Diffusion 2.x: as 1.x, with OpenCLIP-H read at its last layer but one; v-prediction at 768, epsilon at 512.

diffusers' folders hold the text encoder without its last layer: 23 of 24, hence 138 adapted layers.
"""

from __future__ import annotations

from dataclasses import replace

from trainer.export import Origin
from trainer.families import diffusion, sd15
from trainer.families.model import Model


def origin(model: Model) -> Origin:
    """sd-scripts' and modelspec's words."""
    if diffusion.process(model).prediction == "v":
        return diffusion.origin(model, "sd_v2_v", "stable-diffusion-v2-768-v/lora", v2=True)
    return diffusion.origin(model, "sd_v2", "stable-diffusion-v2-512/lora", v2=True)


FAMILY = replace(
    sd15.FAMILY,
    origin=origin,
    real={
        "unet": {
            **diffusion.UNET,
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": True,
            "upcast_attention": True,  # in fp16 the attention of 2.1 overflows without
        },
        "vae": {**diffusion.VAE, "sample_size": 768},
        "text_encoder": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 23,
            "hidden_act": "gelu",
            "projection_dim": 512,
        },
        "tokenizer": {"pad_token": "!"},
        "scheduler": {**diffusion.SCHEDULER, "prediction_type": diffusion.UNSAID},  # no key of a file tells 768 from 512
    },
)
