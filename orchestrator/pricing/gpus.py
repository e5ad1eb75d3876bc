"""What is known of graphics cards. A table: data, no decisions.

Peak: dense bf16 (fp16 on Turing) with fp32 accumulation, TFLOP/s, from the makers' sheets. Usable VRAM is what a
process gets of the nominal size.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One card."""

    vram_gib: float
    peak_tflops: float
    bandwidth_gb_s: float


GPUS: dict[str, Gpu] = {
    "RTX 3060": Gpu(vram_gib=12, peak_tflops=25.6, bandwidth_gb_s=360),
    "RTX 3090": Gpu(vram_gib=24, peak_tflops=71, bandwidth_gb_s=936),
    "RTX 4060 Ti": Gpu(vram_gib=16, peak_tflops=44, bandwidth_gb_s=288),
    "RTX 4080": Gpu(vram_gib=16, peak_tflops=97, bandwidth_gb_s=717),
    "RTX 4090": Gpu(vram_gib=24, peak_tflops=165, bandwidth_gb_s=1008),
    "RTX 5090": Gpu(vram_gib=32, peak_tflops=209, bandwidth_gb_s=1792),
    "RTX A4000": Gpu(vram_gib=16, peak_tflops=77, bandwidth_gb_s=448),
    "RTX A5000": Gpu(vram_gib=24, peak_tflops=111, bandwidth_gb_s=768),
    "RTX A6000": Gpu(vram_gib=48, peak_tflops=155, bandwidth_gb_s=768),
    "RTX 6000Ada": Gpu(vram_gib=48, peak_tflops=364, bandwidth_gb_s=960),
    "RTX PRO 6000": Gpu(vram_gib=96, peak_tflops=503, bandwidth_gb_s=1792),
    "L4": Gpu(vram_gib=24, peak_tflops=121, bandwidth_gb_s=300),
    "L40": Gpu(vram_gib=48, peak_tflops=181, bandwidth_gb_s=864),
    "L40S": Gpu(vram_gib=48, peak_tflops=362, bandwidth_gb_s=864),
    "A10": Gpu(vram_gib=24, peak_tflops=125, bandwidth_gb_s=600),
    "A40": Gpu(vram_gib=48, peak_tflops=150, bandwidth_gb_s=696),
    "A100 PCIE": Gpu(vram_gib=40, peak_tflops=312, bandwidth_gb_s=1555),
    "A100 SXM4": Gpu(vram_gib=80, peak_tflops=312, bandwidth_gb_s=2039),
    "H100 PCIE": Gpu(vram_gib=80, peak_tflops=756, bandwidth_gb_s=2000),
    "H100 SXM": Gpu(vram_gib=80, peak_tflops=989, bandwidth_gb_s=3350),
    "H200": Gpu(vram_gib=141, peak_tflops=989, bandwidth_gb_s=4800),
    "Tesla T4": Gpu(vram_gib=16, peak_tflops=65, bandwidth_gb_s=300),
    "Tesla V100": Gpu(vram_gib=16, peak_tflops=125, bandwidth_gb_s=900),
}

UNKNOWN = Gpu(vram_gib=0, peak_tflops=50, bandwidth_gb_s=500)
"""For a card that the table lacks: slow, so that the estimate errs to the dear side."""


def gpu(name: str) -> Gpu:
    """The card by its name as marketplaces write it; `UNKNOWN` when it is not in the table."""
    return GPUS.get(name, UNKNOWN)
