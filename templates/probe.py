# ruff: noqa: ANN001, ANN201, ANN202, PTH107, PTH118  a script for another machine, like the inspector
"""python3 - FOLDER     measures what a machine does in about 15 seconds, as one line of JSON after `@lorry `

Matrix products, convolutions, attention, copies, what it takes to launch a kernel from Python, the way to main memory, and the disk of
FOLDER. Needs torch and nothing else. The shapes are those that trainings of these models spend their time on.
"""

import contextlib
import json
import os
import sys
import time

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name

EACH_S = 0.8
"""For each measurement; a dozen of them."""
WARM = 3
PRODUCTS = ((4096, 3072, 3072), (4096, 640, 2560), (1024, 1280, 1280))
"""Rows, in and out: FLUX's and SDXL's at 1024 pixels, SD1.5's at 512."""
CONVOLUTIONS = ((320, 320, 128), (640, 640, 64))
"""Channels in and out, and the side, of 3 by 3."""
HEADS, TOKENS, WIDTH = 10, 4096, 64
COPIED = 256 << 20
LAYERS, RANK = 40, 4
LAUNCHES = 9
"""Kernels of one small layer with an adapter, there and back: three products, an addition; five products of gradients."""
ON_DISK = 128 << 20


def seconds(device, work):
    """Of one call, the best of as many as there is time for: others on the machine only make it longer."""
    for _ in range(WARM):
        work()
    wait(device)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < EACH_S:
        start = time.perf_counter()
        work()
        wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def wait(device):
    """Until the card is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product(device, dtype, scale):
    """Operations a second, of each shape."""
    found = []
    for rows, width, out in PRODUCTS:
        a = torch.randn(rows // scale, width // scale, device=device, dtype=dtype)
        b = torch.randn(width // scale, out // scale, device=device, dtype=dtype)
        found.append(2 * a.shape[0] * a.shape[1] * b.shape[1] / seconds(device, lambda a=a, b=b: a @ b))
    return found


def convolution(device, dtype, scale):
    """The same of convolutions."""
    found = []
    for width, out, side in CONVOLUTIONS:
        x = torch.randn(1, width // scale, side, side, device=device, dtype=dtype)
        kernel = torch.randn(out // scale, width // scale, 3, 3, device=device, dtype=dtype)
        work = 2 * 9 * x.shape[1] * kernel.shape[0] * side * side
        found.append(work / seconds(device, lambda x=x, kernel=kernel: F.conv2d(x, kernel, padding=1)))
    return found


def attention(device, dtype, scale):
    """The same of attention."""
    q = torch.randn(1, HEADS, TOKENS // scale, WIDTH, device=device, dtype=dtype)
    return 4 * HEADS * q.shape[2] ** 2 * WIDTH / seconds(device, lambda: F.scaled_dot_product_attention(q, q, q))


def copy(device):
    """Bytes a second, read and written."""
    a = torch.empty(COPIED, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * COPIED / seconds(device, lambda: b.copy_(a))


def link(device):
    """Bytes a second from main memory to the card."""
    if device.type != "cuda":
        return None
    a = torch.empty(COPIED, dtype=torch.uint8, pin_memory=True)
    b = torch.empty(COPIED, dtype=torch.uint8, device=device)
    return COPIED / seconds(device, lambda: b.copy_(a, non_blocking=True))


def launch(device):
    """Seconds that the host needs for one kernel, autograd included: layers so small that nothing else counts."""
    x = torch.randn(8, 64, device=device)
    whole = torch.randn(64, 64, device=device)
    down, up = (torch.randn(*size, device=device, requires_grad=True) for size in ((RANK, 64), (64, RANK)))

    def work():
        y = x
        for _ in range(LAYERS):
            y = F.linear(y, whole) + F.linear(F.linear(y, down), up)
        torch.autograd.grad(y.sum(), [down, up])

    return seconds(device, work) / (LAYERS * LAUNCHES)


def disk(folder):
    """Bytes a second, written to the medium, and read again, which may come from memory."""
    path, piece = os.path.join(folder, f".lorry-probe-{os.getpid()}"), os.urandom(1 << 20)
    try:
        start = time.perf_counter()
        with open(path, "wb") as file:
            file.writelines(piece for _ in range(ON_DISK >> 20))
            file.flush()
            os.fsync(file.fileno())
        written = time.perf_counter() - start
        start = time.perf_counter()
        with open(path, "rb") as file:
            while file.read(1 << 20):
                pass
        return ON_DISK / written, ON_DISK / (time.perf_counter() - start)
    except OSError:
        return None, None
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)


def main(folder):
    """Measure and tell. On a machine without a card the shapes are an eighth: the practice cloud has none."""
    began = time.perf_counter()
    torch.set_grad_enabled(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_card = device.type == "cuda"
    old = on_card and torch.cuda.get_device_capability(device)[0] < 8  # before Ampere bf16 is only played
    dtype = torch.float16 if old else torch.bfloat16 if on_card else torch.float32
    scale = 1 if on_card else 8
    written, read = disk(folder)
    told = {
        "card": torch.cuda.get_device_name(device) if on_card else "",
        "product_flops": product(device, dtype, scale),
        "convolution_flops": convolution(device, dtype, scale),
        "attention_flops": attention(device, dtype, scale),
        "copy_bytes_s": copy(device),
        "link_bytes_s": link(device),
        "launch_s": launch(device),
        "disk_write_bytes_s": written,
        "disk_read_bytes_s": read,
    }
    print("\n@lorry " + json.dumps({**told, "took_s": time.perf_counter() - began}))


if __name__ == "__main__":
    main(sys.argv[1])
