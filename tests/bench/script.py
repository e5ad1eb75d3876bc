"""A LoRA training as diffusers' own example does it (`train_text_to_image_lora.py`), to be measured against; run as a program.

    python tests/bench/script.py BASE PICTURES STEPS

Accelerate around the loop, peft in the UNet, the VAE and the text encoder in every step, AdamW, clipping, a schedule. Prints one JSON line:
CPU seconds until the first step was taken, those of each further step, and the peak of its memory.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

RANK, SIDE = 4, 64


def peak_mib() -> float:
    """Of this program alone: what getrusage tells is the starting program's where that was larger."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main(base: str, pictures: str, steps: int) -> None:
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig
    from PIL import Image
    from transformers import CLIPTextModel, CLIPTokenizer

    accelerator = Accelerator(mixed_precision="no")
    noise_scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder").requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae").requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet").requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets))
    cast_training_params(unet, dtype=torch.float32)
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-2)
    files = sorted(Path(pictures).glob("*.png"))

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> dict:
            image = Image.open(files[index]).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3)
            caption = files[index].with_suffix(".txt").read_text()
            ids = tokenizer(caption, max_length=77, padding="max_length", truncation=True, return_tensors="pt").input_ids[0]
            return {"pixel_values": raw.permute(2, 0, 1).float() / 127.5 - 1, "input_ids": ids}

    loader = torch.utils.data.DataLoader(Pictures(), shuffle=True, batch_size=1)
    schedule = get_scheduler("constant", optimizer=optimizer, num_warmup_steps=0, num_training_steps=steps)
    unet, optimizer, loader, schedule = accelerator.prepare(unet, optimizer, loader, schedule)
    taken: list[float] = []
    while len(taken) < steps:
        unet.train()
        for batch in loader:
            with accelerator.accumulate(unet):
                latents = vae.encode(batch["pixel_values"]).latent_dist.sample() * vae.config.scaling_factor
                noise = torch.randn_like(latents)
                timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (latents.shape[0],)).long()
                noisy = noise_scheduler.add_noise(latents, noise, timesteps)
                hidden = text_encoder(batch["input_ids"], return_dict=False)[0]
                predicted = unet(noisy, timesteps, hidden, return_dict=False)[0]
                loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
                accelerator.gather(loss.repeat(1)).mean().item()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            taken.append(time.process_time())
            if len(taken) == steps:
                break
    told = {"first_s": taken[0], "step_s": (taken[-1] - taken[4]) / (len(taken) - 5)}
    print(json.dumps({**told, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
