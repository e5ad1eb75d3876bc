"""What looks at samples besides a person: a tiny autoencoder that decodes them while training goes on, and a CLIP that scores them.

Both are extras: what cannot be loaded is said once, and done without. Loaded when the first sample is drawn. Knows no family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOO_BAD = (OSError, ValueError, RuntimeError, ImportError, TypeError, AttributeError, KeyError)
"""What loading a stranger's model can raise."""


@dataclass(slots=True, kw_only=True)
class Looker:
    """The two models of one job."""

    preview_decoder: str | None
    clip_score: str | None
    root: Path
    warn: Callable[[str], None]
    _loaded: dict[str, Any] = field(default_factory=dict)

    def decoder(self, channels: int, device: torch.device) -> Callable[[Tensor], Tensor] | None:
        """Latents [b, c, h, w] of unit variance to pixels [b, 3, h, w] in -1..1 on the CPU; None where the VAE is to do it."""
        tiny = self._once("preview_decoder", self.preview_decoder, _tiny, "the VAE decodes samples")
        if tiny is None:
            return None
        if tiny.config.latent_channels != channels:
            self._loaded["preview_decoder"] = None
            self.warn(f"preview_decoder is for {tiny.config.latent_channels} channels, not {channels}: the VAE decodes samples.")
            return None

        def decode(latents: Tensor) -> Tensor:
            shift, scale = getattr(tiny.config, "shift_factor", None) or 0.0, float(tiny.config.scaling_factor)
            pixels: Tensor = tiny.to(device).decode(latents.float() / scale + shift, return_dict=False)[0]
            return pixels.clamp(-1, 1).cpu()

        return decode

    def score(self, picture: Any, prompt: str) -> float | None:
        """100 times the cosine between picture and prompt, as CLIP sees them (Hessel et al. 2021, arXiv 2104.08718).

        In main memory, so that no card gets fuller for it.
        """
        both = self._once("clip_score", self.clip_score, _clip, "samples are not scored")
        if both is None:
            return None
        model, processor = both
        given = processor(text=[prompt], images=[picture], return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            seen = model(**given)
        return float(100 * torch.nn.functional.cosine_similarity(seen.image_embeds, seen.text_embeds)[0])

    def _once(self, key: str, where: str | None, load: Callable[[str], Any], instead: str) -> Any:
        if where is None:
            return None
        if key not in self._loaded:
            there = self.root / where
            try:
                self._loaded[key] = load(str(there) if there.is_dir() else where)
            except TOO_BAD as error:
                self._loaded[key] = None
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                self.warn(f"{key} {where} cannot be loaded, {instead}: {reason}")
        return self._loaded[key]


def _tiny(where: str) -> Any:
    from diffusers import AutoencoderTiny

    tiny = AutoencoderTiny.from_pretrained(where, use_safetensors=True, torch_dtype=torch.float32)
    return tiny.eval().requires_grad_(requires_grad=False)


def _clip(where: str) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(where, use_safetensors=True, torch_dtype=torch.float32).eval()
    return model, CLIPProcessor.from_pretrained(where)
