"""RunPod's billing records: buckets of time, late by a step. Knows no HTTP but a query's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

from .billing import fold
from .market import Market
from .rentals import MarketError


def history(market: Market, account: str, query: Mapping[str, str], step_s: float, *, by_pod: bool) -> dict[str, Any]:
    """Records of an account: one a pod and bucket; those without spend are left out. Charges come every `step_s`."""
    edges, size = _buckets(query, market.now())
    pod_id = query.get("podId", "") if by_pod else ""
    records = list(_records(_charged(market, account, edges, step_s), edges, pod_id))
    totals = {name: float(sum(Decimal(str(one[name])) for one in records)) for name in AMOUNTS}
    resolved = {"startTime": _time(edges[0]), "endTime": _time(edges[-1]), "bucketSize": size} | (
        {"podId": pod_id or None} if by_pod else {}
    )
    pods = {one["podId"] for one in records}
    return {"records": records, "metadata": {"query": resolved, "recordCount": len(records), "uniquePodCount": len(pods), "totals": totals}}


def _charged(market: Market, account: str, edges: Sequence[datetime], step_s: float) -> list[dict[str, Decimal]]:
    """Dollars of each pod's parts up to each edge. A pod is charged in steps from its creation on: its last one comes after its end."""
    now, events = market.now(), market.events()
    sums: list[dict[str, Decimal]] = [{} for _ in edges]
    for begin in (one for one in events if one["event"] == "created" and one["account"] == account):
        created = datetime.fromisoformat(begin["at"])
        step = timedelta(seconds=step_s)
        known = created + (now - created) // step * step if step else now
        own = [one for one in events if one["machine"] == begin["machine"]]
        for edge, found in zip(edges, sums, strict=True):
            until = min(edge, known)
            for machine in fold([one for one in own if datetime.fromisoformat(one["at"]) <= until], until).machines:
                found |= {f"{machine.id} gpu": machine.gpu_usd, f"{machine.id} disk": machine.disk_usd}
    return sums


AMOUNTS = ("totalAmount", "gpuAmount", "cpuAmount", "diskAmount")


def _records(sums: Sequence[Mapping[str, Decimal]], edges: Sequence[datetime], pod_id: str) -> Iterable[dict[str, Any]]:
    """One a pod and bucket; those without spend are left out."""
    for index, (before, after) in enumerate(pairwise(sums)):
        for pod in dict.fromkeys(name.split()[0] for name in after):
            gpu, disk = (after[f"{pod} {part}"] - before.get(f"{pod} {part}", Decimal(0)) for part in ("gpu", "disk"))
            if gpu + disk > 0 and pod_id in ("", pod):
                amounts = {"totalAmount": float(gpu + disk), "gpuAmount": float(gpu), "cpuAmount": 0.0, "diskAmount": float(disk)}
                yield {"startTime": _time(edges[index]), "endTime": _time(edges[index + 1]), "podId": pod} | amounts


def _buckets(query: Mapping[str, str], now: datetime) -> tuple[list[datetime], str]:
    """The edges of the buckets that are asked for."""
    size, start, end, last = (query.get(name, "") for name in ("bucketSize", "startTime", "endTime", "lastN"))
    size = size or "day"
    if size not in ("hour", "day", "week", "month", "year") or (last and (start or end or not last.isdecimal())) or (start and not end):
        raise MarketError(400, "bad_request", "invalid billing query")
    try:
        until = datetime.fromisoformat(end) if end else now
        begin = _floor(datetime.fromisoformat(start) if start else until - timedelta(days=30), size)
    except ValueError as error:
        raise MarketError(400, "bad_request", str(error)) from error
    edges = [_floor(until, size)] if last else [begin]
    while last and len(edges) < int(last):
        edges.insert(0, _floor(edges[0] - timedelta(microseconds=1), size))
    while edges[-1] < until:
        edges.append(_next(edges[-1], size))
    return edges, size


def _floor(at: datetime, size: str) -> datetime:
    hour = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    floors = {
        "hour": hour,
        "day": day,
        "week": day - timedelta(days=day.weekday()),
        "month": day.replace(day=1),
        "year": day.replace(month=1, day=1),
    }
    return floors[size]


def _next(at: datetime, size: str) -> datetime:
    days = {"hour": 1 / 24, "day": 1, "week": 7, "month": 32, "year": 370}[size]
    return _floor(at + timedelta(days=days), size)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
