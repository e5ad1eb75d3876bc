"""What Vast's tongue says: rows of offers and instances in its units and words, and the filters over them. Pure; knows no HTTP.

Vast's GB are read as 10^9 bytes here, its months as 720 hours. A disk in GB is billed as whole GiB, rounded down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from providers.base import Offer, Prices

from .billing import MachineBill
from .catalogue import catalogue
from .rentals import Out, Rental, View

GB_PER_GIB = Decimal(2**30) / 10**9
HOURS_PER_MONTH = 720
HOST_STAYS = timedelta(days=30)
TWINS = 8
"""Machines of each kind, so that searches run into the row cap."""
COUNTRIES = {
    "SE": "Sweden", "CZ": "Czechia", "US": "California", "NO": "Norway", "FR": "France", "IS": "Iceland", "CN": "China", "CA": "Quebec",
    "NL": "Netherlands", "FI": "Finland",
}  # fmt: skip
NAMES = {"RTX 6000 Ada": "RTX 6000Ada"}
CUDA = ("12.8", "13.0", "12.8", "12.4")

Row = dict[str, Any]


def stock() -> tuple[Offer, ...]:
    """The machines for rent on this face: those of the catalogue many times over, at prices that differ a little."""
    found: list[Offer] = []
    for number, base in enumerate(offer for offer in catalogue() if not offer.interruptible):
        for twin in range(TWINS):
            dearer = 1 + Decimal(13 * twin) / 1000
            disk_usd_month = (Decimal(8 + (number * 5 + twin * 3) % 17) / 100).quantize(Decimal("0.01"))
            prices = Prices(
                gpu_usd_per_hour=round(base.prices.gpu_usd_per_hour * dearer, 4),
                disk_usd_per_gib_hour=round(disk_usd_month * GB_PER_GIB / HOURS_PER_MONTH, 12),
                upload_usd_per_gib=round(base.prices.upload_usd_per_gib * GB_PER_GIB, 9),
                download_usd_per_gib=round(base.prices.download_usd_per_gib * GB_PER_GIB, 9),
            )
            id_ = 24111000 + number * TWINS + twin
            found.append(
                replace(
                    base,
                    provider="vast",
                    id=str(id_),
                    machine_id=str(id_ - 24096000),
                    gpu_name=NAMES.get(base.gpu_name, base.gpu_name),
                    prices=prices,
                )
            )
    return tuple(found)


def _usd(value: Decimal) -> float:
    return float(round(value, 6))


def _rates(prices: Prices, disk_gb: float) -> Row:
    storage = prices.disk_usd_per_gib_hour * HOURS_PER_MONTH / GB_PER_GIB
    disk = storage * Decimal(disk_gb) / HOURS_PER_MONTH
    gpu, total = _usd(prices.gpu_usd_per_hour), _usd(prices.gpu_usd_per_hour + disk)
    parts = {"gpuCostPerHour": gpu, "diskHour": _usd(disk), "totalHour": total, "discountTotalHour": 0, "discountedTotalPerHour": total}
    return {
        "dph_base": gpu,
        "dph_total": total,
        "storage_cost": _usd(storage),
        "storage_total_cost": _usd(disk),
        "inet_up_cost": _usd(prices.download_usd_per_gib / GB_PER_GIB),  # up from the machine is down to its tenant
        "inet_down_cost": _usd(prices.upload_usd_per_gib / GB_PER_GIB),
        "search": parts,
        "instance": parts,
    }


def _hardware(offer: Offer) -> Row:
    """What offers and instances say alike."""
    number = int(offer.id)
    return {
        "machine_id": int(offer.machine_id),
        "host_id": 88000 + number % 97,
        "gpu_name": offer.gpu_name,
        "num_gpus": offer.gpu_count,
        "gpu_ram": int(offer.vram_gib * 1024 * 0.9995),  # what the driver reports, a little below the nominal size
        "cpu_name": "AMD EPYC 7542 32-Core",
        "cpu_cores": None if number % 5 == 0 else 64,  # although it is documented as a number
        "cpu_cores_effective": 16.0,
        "cpu_ram": 257648,
        "cpu_arch": "amd64",
        "gpu_arch": "nvidia",
        "inet_up": offer.up_mbit_s,
        "inet_down": offer.down_mbit_s,
        "reliability2": offer.reliability,
        "verification": "verified" if offer.verified else "unverified",
        "geolocation": f"{COUNTRIES[offer.region]}, {offer.region}",
        "direct_port_count": 64,
        "cuda_max_good": float(CUDA[number % len(CUDA)]),
        "driver_version": "570.133.20",
        "os_version": "22.04",
        "static_ip": True,
        "public_ipaddr": "127.0.0.1",
    }


def offer_row(offer: Offer, *, floor: Decimal, bid: bool, disk_gb: float, now: datetime) -> Row:
    """An offer as a search returns it; `bid`: as one of the kind "bid" does, where the price is the floor."""
    prices = replace(offer.prices, gpu_usd_per_hour=floor) if bid else offer.prices
    ends = now + HOST_STAYS
    rates = _rates(prices, disk_gb)
    return {
        **_hardware(offer),
        **rates,
        "id": int(offer.id),
        "ask_contract_id": int(offer.id),
        "bundle_id": int(offer.id) - 23000000,
        "gpu_frac": 1.0,
        "gpu_total_ram": int(offer.vram_gib * 1024 * 0.9995) * offer.gpu_count,
        "gpu_mem_bw": 892.5,
        "disk_space": round(float(offer.disk_gib * GB_PER_GIB), 1),
        "disk_bw": 2210.0,
        "disk_name": "nvme",
        "min_bid": _usd(floor),
        "is_bid": bid,
        "dlperf": 98.4,
        "dlperf_per_dphtotal": round(98.4 / rates["dph_total"], 1),
        "total_flops": 82.6,
        "flops_per_dphtotal": round(82.6 / rates["dph_total"], 1),
        "compute_cap": 890,
        "driver_vers": 570133020,
        "geolocode": int(offer.id) % 9999,
        "reliability": offer.reliability,
        "vericode": int(offer.verified),
        "hosting_type": int(int(offer.id) % 3 == 0),
        "start_date": (now - HOST_STAYS).timestamp(),
        "end_date": ends.timestamp(),
        "duration": HOST_STAYS.total_seconds(),
        "rentable": True,
        "rented": False,
        "external": None,
        "pci_gen": 4.0,
        "pcie_bw": 24.1,
        "score": round(100 * offer.reliability / rates["dph_total"], 1),
        "cluster_id": None,
        "mobo_name": "X",
        "rn": 1,
    }


def statuses(view: View, *, age_s: float, null_s: float) -> Row:
    """The four fields that together say where an instance stands. They lie: nothing at all at first, and `exited` for stopped."""
    rental = view.rental
    stopped = rental.asked_to_stop or rental.out is not None
    wanted = "stopped" if stopped else "running"
    actual: str | None = view.status
    if actual == "created" and age_s < null_s:
        actual = None
    if rental.out is Out.BID and rental.started_at is None and rental.created_at == rental.exited_at:
        actual = None  # a bid that was too low from the start: it never had a container
    message = f"success, running {rental.spec.image}/ssh" if view.status == "running" else view.status_text
    return {"actual_status": actual, "intended_status": wanted, "cur_state": wanted, "next_state": wanted, "status_msg": message or None}


def instance_row(view: View, *, floor: Decimal, now: datetime, port: int | None, user: str, null_s: float) -> Row:
    """One instance. `port`: where its sshd is, once the cloud lets that be seen."""
    rental, data = view.rental, view.rental.face_data
    runtype = str(data["runtype"])
    ends = rental.terms.ends_at or now + HOST_STAYS
    row = {
        **_hardware(rental.offer),
        **_rates(rental.offer.prices, data["disk_gb"]),
        **statuses(view, age_s=(now - rental.created_at).total_seconds(), null_s=null_s),
        "id": int(rental.id),
        "label": data["label"],
        "image_uuid": rental.spec.image,
        "image_runtype": runtype,
        "image_args": [],
        "extra_env": [[name, value] for name, value in data["env"].items()],  # whoever holds the account's key can read them back
        "onstart": rental.spec.onstart or None,
        "public_ipaddr": "127.0.0.1\n",  # sic: it was seen with a line break
        "local_ipaddrs": "10.0.0.5 172.17.0.2",
        "ssh_host": "127.0.0.1",
        "ssh_idx": "5",
        "ssh_port": (view.seen.port or 1) - ("jupyter" in runtype),  # sic: clients add one there
        "ssh_user": user,  # NOT Vast's: its machines let root in, ours whoever runs the practice cloud
        "direct_port_start": 40000,
        "direct_port_end": 40063,
        "direct_port_count": 64 if "direc" in runtype else 0,
        "jupyter_token": "",
        "start_date": rental.created_at.timestamp(),
        "end_date": ends.timestamp(),
        "duration": (ends - now).total_seconds(),
        "uptime_mins": None,
        "gpu_totalram": int(rental.offer.vram_gib * 1024 * 0.9995),
        "gpu_util": 0.0,
        "gpu_temp": 41.0,
        "mem_limit": 62.9,
        "mem_usage": 1.0,
        "disk_space": data["disk_gb"],
        "disk_usage": 1.0,
        "disk_util": 0.1,
        "is_bid": rental.terms.bid_usd_per_hour is not None,
        "min_bid": _usd(floor),
        "template_id": None,
        "template_hash_id": None,
        "volume_info": None,
    }
    if port is not None and "direc" in runtype:
        row["ports"] = {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(port)}]}  # noqa: S104 - what Docker says there
    return row


def charge_row(machine: MachineBill, label: str | None, now: datetime) -> Row:
    """One contract's charges. Amounts are rounded to a tenth of a cent, each by itself."""
    end = machine.ended_at or now
    gpu_hours = machine.gpu.time(now).total_seconds() / 3600
    disk_hours = machine.disk.time(now).total_seconds() / 3600
    parts = (
        ("gpu", f"{gpu_hours:.3f} hours at ${machine.prices.gpu_usd_per_hour:.3f}/hour", machine.gpu_usd),
        ("disk", f"{disk_hours:.3f} hours at ${machine.disk.usd_per_hour:.3f}/hour", machine.disk_usd),
        ("bwd", f"{machine.up_bytes / 1e9:.3f} GB at ${machine.prices.upload_usd_per_gib / GB_PER_GIB:.3f}/GB", machine.upload_usd),
        ("bwu", f"{machine.down_bytes / 1e9:.3f} GB at ${machine.prices.download_usd_per_gib / GB_PER_GIB:.3f}/GB", machine.download_usd),
    )
    amounts = [round(money, 3) for _, _, money in parts]
    items = [{"type": kind, "description": text, "amount": float(amount)} for (kind, text, _), amount in zip(parts, amounts, strict=True)]
    return {
        "start": int(machine.created_at.timestamp()),
        "end": int(end.timestamp()),
        "type": "instance",
        "source": f"instance-{machine.id}",
        "description": f"Instance {machine.id} Charges - {max(1, math.ceil((end - machine.created_at).total_seconds() / 86400))} day",
        "amount": float(sum(amounts, Decimal(0))),
        "metadata": {"label": label},
        "items": items,
    }


def label_of(rental: Rental) -> str | None:
    """None, where it was created without one."""
    label: str | None = rental.face_data["label"]
    return label


# Filters

_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
}
OPERATORS = frozenset({"eq", "neq", "in", "notin", *_ORDER})


def _plain(value: object) -> object:
    """As a number where it can be one: operands come as text too."""
    if isinstance(value, bool) or value is None:
        return value
    try:
        return float(str(value))
    except ValueError:
        return str(value)


def holds(value: object, operator: str, operand: object) -> bool:
    """Whether a row's value passes one test."""
    have = _plain(value)
    if operator in ("in", "notin"):
        among = isinstance(operand, Sequence) and have in [_plain(one) for one in operand]
        return among == (operator == "in")
    want = _plain(operand)
    if isinstance(want, bool) or isinstance(have, bool):
        have, want = bool(have), want in (True, 1.0, "true", "True")
    if operator in ("eq", "neq"):
        return (have == want) == (operator == "eq")
    return type(have) is type(want) and have is not None and _ORDER[operator](have, want)


def matches(row: Row, filters: Mapping[str, Any]) -> bool:
    """Whether a row passes all filters: `field -> {operator: operand}`, or a bare value for equality. Unknown fields pass."""
    for name, tests in filters.items():
        if name not in row:
            continue
        for operator, operand in tests.items() if isinstance(tests, dict) else [("eq", tests)]:
            if not holds(row[name], operator, operand):
                return False
    return True


def searchable(row: Row) -> Row:
    """An offer's row under the names that filters use, some of which mean something else than in the answer."""
    return (
        {name: value for name, value in row.items() if name not in ("id", "rented")}
        | {
            "id": None,  # filtering by it matches nothing
            "verified": row["verification"] == "verified",
            "datacenter": row["hosting_type"] >= 1,
            "external": bool(row["external"]),
            "geolocation": row["geolocation"][-2:],
            "driver_version": row["driver_vers"],
            "ubuntu_version": row["os_version"],
        }
    )


def ordered(rows: Iterable[Row], order: Iterable[tuple[str, str]]) -> list[Row]:
    """By several fields; what a row lacks comes last."""
    found = list(rows)
    for name, direction in reversed(list(order)):
        known = [row for row in found if row.get(name) is not None]
        rest = [row for row in found if row.get(name) is None]
        texts = any(isinstance(row[name], str) for row in known)
        known.sort(key=lambda row: str(row[name]) if texts else row[name], reverse=direction == "desc")
        found = known + rest
    return found
