"""What RunPod's face has for rent, and the one way in which all its tongues rent it: a GPU type, not a machine, is what one asks for.

Prices are of the kind that RunPod listed in 2026; the machines are invented. Knows nothing of HTTP, REST or GraphQL.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from providers.base import LaunchSpec, Offer, Prices

from .market import Market
from .rentals import AccountRecord, MarketError, Rental, Terms

HOURS_PER_MONTH = 30 * 24
DISK_USD_PER_GIB_MONTH = Decimal("0.10")  # container disk, and a volume while its pod runs
STOPPED_VOLUME_USD_PER_GIB_MONTH = Decimal("0.20")  # a container's disk is wiped by a stop and costs nothing
DISK_MAX_GIB = 1000
NO_CAPACITY = "There are no longer any instances available with the requested specifications. Please refresh and try again."
NO_DISK = "There are no longer any instances available with enough disk space."

_EUROPE = ("EU-RO-1", "EU-SE-1", "EU-NL-1", "EUR-IS-1")
_AMERICA = ("US-KS-2", "US-TX-3", "CA-MTL-1")


@dataclass(frozen=True, slots=True)
class GpuType:
    """One row of the catalogue."""

    id: str
    name: str
    vram_gb: int
    secure_usd: str
    """0: not in this cloud."""
    community_usd: str
    centers: tuple[str, ...]
    """Where the secure cloud has it; named twice, there are two machines."""
    community_machines: int
    cuda: str
    pool: str


# id, name, VRAM, USD/h secure and community, where the secure cloud has it, community machines, CUDA, serverless pool
_ROWS: tuple[tuple[str, str, int, str, str, tuple[str, ...], int, str, str], ...] = (
    ("NVIDIA RTX A4000", "RTX A4000", 16, "0.25", "0.17", _EUROPE[:2], 0, "12.8", ""),
    ("NVIDIA RTX A5000", "RTX A5000", 24, "0.27", "0.16", _EUROPE, 1, "12.8", ""),
    ("NVIDIA GeForce RTX 3090", "RTX 3090", 24, "0.46", "0.22", _EUROPE[1:3], 1, "12.8", ""),
    ("NVIDIA GeForce RTX 4090", "RTX 4090", 24, "0.69", "0.34", _EUROPE + _AMERICA * 2, 1, "12.8", "ADA_24"),
    ("NVIDIA RTX A6000", "RTX A6000", 48, "0.49", "0.33", _AMERICA, 1, "12.8", ""),
    ("NVIDIA L40S", "L40S", 48, "0.86", "0", _AMERICA * 3, 0, "12.8", ""),
    ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada", 48, "0.77", "0.74", _EUROPE[:1], 2, "12.8", ""),
    ("NVIDIA GeForce RTX 5090", "RTX 5090", 32, "0.94", "0.69", _EUROPE, 0, "13.0", ""),
    ("NVIDIA A100-SXM4-80GB", "A100 SXM", 80, "1.74", "0", _AMERICA * 4, 0, "12.8", "AMPERE_80"),
    ("NVIDIA H100 80GB HBM3", "H100 SXM", 80, "2.69", "0", _AMERICA * 3, 0, "13.0", ""),
)
GPU_TYPES = tuple(GpuType(*row) for row in _ROWS)


def stock() -> tuple[Offer, ...]:
    """Every machine behind the face."""
    rows = [(gpu, "SECURE", gpu.secure_usd, center) for gpu in GPU_TYPES for center in gpu.centers]
    rows += [(gpu, "COMMUNITY", gpu.community_usd, "") for gpu in GPU_TYPES for _ in range(gpu.community_machines)]
    return tuple(_machine(number, *row) for number, row in enumerate(rows, 1))


def _machine(number: int, gpu: GpuType, cloud: str, usd: str, center: str) -> Offer:
    return Offer(
        provider="runpod",
        id=f"runpod-{number}",
        machine_id=f"rp{number:010d}",
        gpu_name=gpu.name,
        vram_gib=gpu.vram_gb,
        prices=Prices(gpu_usd_per_hour=Decimal(usd), disk_usd_per_gib_hour=round(DISK_USD_PER_GIB_MONTH / HOURS_PER_MONTH, 9)),
        disk_gib=DISK_MAX_GIB,
        provider_data={"gpu": gpu.id, "cloud": cloud, "center": center, "cuda": gpu.cuda},
    )


def free(market: Market, gpu_id: str, cloud: str) -> list[Offer]:
    """Machines of this type in this cloud that nobody holds."""
    return [one for one in market.offers("runpod") if (one.provider_data["gpu"], one.provider_data["cloud"]) == (gpu_id, cloud)]


def renamed(spec: LaunchSpec, label: str) -> LaunchSpec:
    """The same under another name."""
    return replace(spec, label=label)


def level(machines: int) -> str:
    """How RunPod tells its stock."""
    return ("NONE", "LOW", "MEDIUM")[machines] if machines < 3 else "HIGH"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A create, whichever tongue it came in."""

    name: str
    image: str
    clouds: tuple[str, ...]
    gpu_id: str
    disk_gb: int
    env: Mapping[str, str]
    ports: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    """What the container runs instead of the image's own."""
    centers: tuple[str, ...] = ()
    min_cuda: str = ""
    cudas: tuple[str, ...] = ()
    volume_gb: int = 0
    volume_path: str = ""
    start_ssh: bool = False
    args: str = ""
    count: int = 1


def rent(market: Market, account: AccountRecord, order: Order, url: str) -> Rental:
    """Rent the first machine that fits."""
    if order.gpu_id not in {gpu.id for gpu in GPU_TYPES}:
        raise MarketError(400, "bad_request", f"Unknown GPU type: {order.gpu_id}")
    candidates = [one for cloud in order.clouds for one in free(market, order.gpu_id, cloud) if _fits(one, order)]
    if not candidates or order.count > 1:  # there are no machines of several cards here
        raise MarketError(400, "bad_request", NO_CAPACITY)
    if order.disk_gb + order.volume_gb > DISK_MAX_GIB:
        raise MarketError(400, "bad_request", NO_DISK)
    chosen = candidates[0]
    hour_usd = chosen.prices.usd_per_hour(order.disk_gb + order.volume_gb)
    if market.balance_usd(account) < hour_usd:
        raise MarketError(402, "insufficient_balance", f"Insufficient balance: deploying this pod needs at least ${hour_usd:.2f}.")
    env = dict(order.env)
    if order.start_ssh and "PUBLIC_KEY" not in env and account.ssh_keys:
        env["PUBLIC_KEY"] = "\n".join(account.ssh_keys)
    spec = LaunchSpec(
        label=order.name,
        image=order.image,
        disk_gib=order.disk_gb + order.volume_gb,
        ssh_public_key=env.get("PUBLIC_KEY", ""),
        env=env,
        onstart=container(order.command),
    )
    data = {
        "ports": list(order.ports), "command": list(order.command), "args": order.args, "disk_gb": order.disk_gb,
        "volume_gb": order.volume_gb, "volume_path": order.volume_path, "locked": False,
    }  # fmt: skip
    stopped_usd = STOPPED_VOLUME_USD_PER_GIB_MONTH / HOURS_PER_MONTH * order.volume_gb
    return market.create(
        account, chosen.id, spec, env=lambda rental: _inside(rental, url), face_data=data, stopped_usd_per_hour=round(stopped_usd, 9),
        terms=Terms(prepaid=True),
    )  # fmt: skip


def _fits(offer: Offer, order: Order) -> bool:
    cuda = str(offer.provider_data["cuda"])
    if order.centers and offer.provider_data["center"] not in order.centers:
        return False
    return version(cuda) >= version(order.min_cuda or "0") and (not order.cudas or cuda in order.cudas)


def version(text: str) -> tuple[int, ...]:
    """So that 12.11 is above 12.2."""
    return tuple(int(part) for part in text.split("."))


def _inside(rental: Rental, url: str) -> dict[str, str]:
    """What a pod finds in its environment. The key may see and end this pod; `LORRY_RUNPOD_URL` stands for the internet's only RunPod."""
    return {
        "RUNPOD_POD_ID": rental.id,
        "RUNPOD_API_KEY": rental.key,
        "RUNPOD_DC_ID": str(rental.offer.provider_data["center"]),
        "RUNPOD_PUBLIC_IP": "127.0.0.1",
        "RUNPOD_POD_HOSTNAME": host_id(rental),
        "RUNPOD_GPU_COUNT": "1",
        "RUNPOD_CPU_COUNT": str(cpus(rental.offer)),
        "LORRY_RUNPOD_URL": f"{url}/runpod/v2",
    }


def host_id(rental: Rental) -> str:
    """The user of the ssh proxy."""
    return f"{rental.id}-{rental.mark[:8]}"


def cpus(offer: Offer) -> int:
    """Some machines have more than others."""
    return 8 * max(1, math.ceil(offer.vram_gib / 24))


def memory_gb(offer: Offer) -> int:
    """RAM of a machine."""
    return 31 * max(1, math.ceil(offer.vram_gib / 24))


def gpu_document(offer: Offer) -> dict[str, object]:
    """What a pod says of its card and what came with it."""
    return {"id": offer.provider_data["gpu"], "count": 1, "vcpuCount": cpus(offer), "memory": memory_gb(offer)}


def container(command: Iterable[str]) -> str:
    """The command as our machine can run it: it has its own sshd already, and nothing may be installed on its host.

    Without a command the image's /start.sh would run, which here has nothing left to do. On RunPod a container whose command ends is
    started again; here it is not.
    """
    words = list(command)
    return CONTAINER.format(command=shlex.join(words)) if words else ""


CONTAINER = """\
mkdir -p "$TMPDIR/container" && cd "$TMPDIR/container" || exit
printf '#!/bin/sh\\nexec sleep 1000000\\n' >sshd
for name in apt-get ssh-keygen service; do printf '#!/bin/sh\\n' >$name; done
chmod +x ./* && PATH="$PWD:$PATH" && cd && exec {command}
"""
