"""Pods as RunPod's REST v2 shows them: RUNNING from the create on, a runtime that comes late, an address later still."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from . import runpod_stock as stock
from .market import Market
from .rentals import View

STALE_S = 2.0
"""A stopped pod shows its last runtime for so long."""

ACTIONS = {
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
    "PROVISIONING": ["stop", "terminate"],
    "STARTING": ["stop", "terminate"],
}


def document(market: Market, view: View, *, early_status: str, older_spec: bool) -> dict[str, Any]:
    """One pod's document."""
    rental, data = view.rental, view.rental.face_data
    exited = view.status == "exited"
    stale = exited and rental.exited_at is not None and market.now() - rental.exited_at < timedelta(seconds=STALE_S)
    status = "EXITED" if exited else "RUNNING" if view.status == "running" else early_status
    running = view.status == "running"
    words = {"args": data["args"]} if older_spec else {"args": data["args"], "cmd": data["command"], "entrypoint": []}
    mounts = {"persistent": {"size": data["volume_gb"], "path": data["volume_path"]}} if data["volume_gb"] else {}
    usd = (rental.stopped_usd_per_hour or Decimal(0)) if exited else rental.offer.prices.gpu_usd_per_hour
    return words | {
        "id": rental.id,
        "name": rental.spec.label,
        "image": rental.spec.image,
        "disk": data["disk_gb"],
        "ports": data["ports"],
        "env": dict(rental.spec.env),  # every holder of the account key can read it back
        "registry": None,
        "status": status,
        "actions": ACTIONS[status],
        "mounts": mounts,
        "gpu": stock.gpu_document(rental.offer),
        "cloud": rental.offer.provider_data["cloud"],
        "dataCenterId": rental.offer.provider_data["center"] or None,
        "cudaVersion": rental.offer.provider_data["cuda"],
        "ssh": {"proxy": None if view.status == "created" else _proxy(view), "direct": _direct(market, view)},
        "template": None,
        "cost": float(round(usd, 5)),
        "locked": data["locked"],
        "globalNetworking": {"enabled": False},
        "runtime": _runtime(market, view) if running or stale else None,
        "createdAt": time_text(rental.created_at),
        "startedAt": time_text(rental.booted_at) if running else None,
    }


def _direct(market: Market, view: View) -> dict[str, Any] | None:
    """Published after the container runs, and only for a port that was asked for."""
    late = timedelta(seconds=market.boot.created_s + market.boot.loading_s + market.boot.ports_late_s)
    if view.status != "running" or "22/tcp" not in view.rental.face_data["ports"] or market.now() - view.rental.booted_at < late:
        return None
    user, port = market.machines.user, view.seen.port
    return {"host": "127.0.0.1", "port": port, "username": user, "command": f"ssh {user}@127.0.0.1 -p {port}"}


def _runtime(market: Market, view: View) -> dict[str, Any]:
    direct = _direct(market, view)
    ports = [{"private": 22, "public": direct["port"], "type": "tcp", "ip": "127.0.0.1"}] if direct else []
    uptime = int((market.now() - view.rental.booted_at).total_seconds())
    return {"uptime": uptime, "gpus": [{"util": 0, "memoryUtil": 0}], "cpu": {"util": 3}, "memory": {"util": 5}, "ports": ports}


def time_text(at: datetime) -> str:
    """As RunPod writes times."""
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _proxy(view: View) -> dict[str, Any]:
    """Takes an interactive terminal and nothing else; not emulated."""
    user = stock.host_id(view.rental)
    return {"host": "ssh.runpod.io", "port": 22, "username": user, "command": f"ssh {user}@ssh.runpod.io"}
