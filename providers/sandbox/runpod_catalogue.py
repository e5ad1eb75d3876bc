"""RunPod's catalogue: GPU types with their list prices and, when asked, what is in stock now. Knows no HTTP but a query's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from . import runpod_stock as stock
from .market import Market
from .rentals import MarketError


def _availability(query: Mapping[str, str], kind: str) -> bool:
    """Whether stock is asked for too. It depends on the product, which must then be named."""
    wants, product = query.get("include", ""), query.get("product", "")
    if wants not in ("", kind):
        raise MarketError(400, "bad_request", f"invalid include {wants}")
    if kind == "AVAILABILITY" and bool(wants) != bool(product):
        raise MarketError(400, "bad_request", "include=AVAILABILITY and product go together")
    return bool(wants)


def _gpu(market: Market, gpu: stock.GpuType, query: Mapping[str, str], *, with_stock: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": gpu.id, "name": gpu.name, "pool": gpu.pool or None, "manufacturer": "NVIDIA", "memory": gpu.vram_gb,
        "secure": bool(gpu.centers), "community": bool(gpu.community_machines),
        "price": {"secure": float(gpu.secure_usd), "community": float(gpu.community_usd)} | ({"serverless": 1.1} if gpu.pool else {}),
        "maxCount": {"secure": 8, "community": 4 if gpu.community_machines else 0},
    }  # fmt: skip
    if with_stock:
        machines = stock.free(market, gpu.id, query.get("cloud", "SECURE"))
        minimum = query.get("minCudaVersion", "0")
        if not re.fullmatch(r"\d+(\.\d+)?", minimum):
            raise MarketError(400, "bad_request", "invalid minCudaVersion")
        machines = [one for one in machines if stock.version(str(one.provider_data["cuda"])) >= stock.version(minimum)]
        centers = [str(one.provider_data["center"]) for one in machines if one.provider_data["center"]]
        document["availability"] = stock.level(len(machines) if query.get("count", "1") == "1" else 0)
        document["cudaVersions"] = [{"version": gpu.cuda, "available": bool(machines)}]
        if centers:
            document["dataCenters"] = [
                {"id": name, "name": name, "availability": stock.level(centers.count(name))} for name in dict.fromkeys(centers)
            ]
    return document


def gpus(market: Market, query: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every type."""
    with_stock = _availability(query, "AVAILABILITY")
    return [_gpu(market, gpu, query, with_stock=with_stock) for gpu in stock.GPU_TYPES]


def centers(market: Market, query: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every data centre."""
    with_stock = _availability(query, "GPU_AVAILABILITY")
    names = dict.fromkeys(center for gpu in stock.GPU_TYPES for center in gpu.centers)
    return [_center(market, name, with_stock=with_stock) for name in names]


def _center(market: Market, name: str, *, with_stock: bool) -> dict[str, Any]:
    region = "EUROPE" if name.startswith("EU") else "NORTH_AMERICA"
    document = {"id": name, "name": name, "region": region, "networkVolumeTypes": [], "compliance": [], "globalNetwork": False}
    if not with_stock:
        return document
    here = [one for one in market.offers("runpod") if one.provider_data["center"] == name]
    counts = [(gpu, sum(one.provider_data["gpu"] == gpu.id for one in here)) for gpu in stock.GPU_TYPES]
    return document | {"gpuAvailability": [{"id": gpu.id, "name": gpu.name, "availability": stock.level(n)} for gpu, n in counts if n]}
