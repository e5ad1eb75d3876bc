"""The meter: what every machine cost, from events that are only ever appended.

Owns `bill.jsonl` in the sandbox folder. The fold from events to money is pure; `bill` adds the clock and the byte counters of machines
that still live. No provider reads this file: it is what a checker compares our own figures with.

Events, each with `event`, `at` and `machine`: `created` (who, what, prices; the GPU and disk meters start), `gpu_off` (it stopped
running, the disk goes on), `ended` (nothing of it is left; with `up_bytes` and `down_bytes`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from providers.base import Prices

from .clock import SandboxClock
from .machines import read_traffic

Event = Mapping[str, Any]
HOUR = Decimal(3600)
GIB = Decimal(2**30)


@dataclass(slots=True, kw_only=True)
class MachineBill:
    """One machine's meters. The money is exact; only `document` rounds."""

    id: str
    account: str
    label: str
    offer: str
    gpu_name: str
    disk_gib: int
    prices: Prices
    created_at: datetime
    gpu_off_at: datetime | None = None
    ended_at: datetime | None = None
    up_bytes: int = 0
    down_bytes: int = 0
    now: datetime
    """Where meters that still run are read."""

    @property
    def live(self) -> bool:
        return self.ended_at is None

    @property
    def gpu_usd(self) -> Decimal:
        until = self.gpu_off_at or self.ended_at or self.now
        return self.prices.gpu_usd_per_hour * _hours(until - self.created_at)

    @property
    def disk_usd(self) -> Decimal:
        until = self.ended_at or self.now
        return self.prices.disk_usd_per_gib_hour * self.disk_gib * _hours(until - self.created_at)

    @property
    def upload_usd(self) -> Decimal:
        return self.prices.upload_usd_per_gib * self.up_bytes / GIB

    @property
    def download_usd(self) -> Decimal:
        return self.prices.download_usd_per_gib * self.down_bytes / GIB

    @property
    def total_usd(self) -> Decimal:
        return self.gpu_usd + self.disk_usd + self.upload_usd + self.download_usd

    def document(self) -> dict[str, object]:
        """As JSON, money in USD rounded to a millionth of a dollar."""
        meters = ("gpu_usd", "disk_usd", "upload_usd", "download_usd", "total_usd")
        return {
            "id": self.id,
            "account": self.account,
            "label": self.label,
            "offer": self.offer,
            "gpu": self.gpu_name,
            "live": self.live,
            "created_at": self.created_at.isoformat(),
            "ended_at": self.ended_at.isoformat() if self.ended_at else None,
            "disk_gib": self.disk_gib,
            "up_bytes": self.up_bytes,
            "down_bytes": self.down_bytes,
            "prices": {name: float(price) for name, price in asdict(self.prices).items()},
        } | {name: _rounded(getattr(self, name)) for name in meters}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Everything that the practice cloud ever charged."""

    now: datetime
    machines: tuple[MachineBill, ...] = field(default=())

    @property
    def live(self) -> tuple[str, ...]:
        return tuple(machine.id for machine in self.machines if machine.live)

    @property
    def total_usd(self) -> Decimal:
        return sum((machine.total_usd for machine in self.machines), Decimal(0))

    def of(self, machine_id: str) -> MachineBill | None:
        return next((machine for machine in self.machines if machine.id == machine_id), None)

    def document(self) -> dict[str, object]:
        """What `lorry sandbox bill --json` prints."""
        return {
            "now": self.now.isoformat(),
            "total_usd": _rounded(self.total_usd),
            "live": list(self.live),
            "machines": [machine.document() for machine in self.machines],
        }


def _hours(time: timedelta) -> Decimal:
    return Decimal(time // timedelta(microseconds=1)) / 1_000_000 / HOUR


def _rounded(money: Decimal) -> float:
    return float(round(money, 6))


def fold(events: Iterable[Event], now: datetime) -> Bill:
    """The bill that these events make. Pure."""
    machines: dict[str, MachineBill] = {}
    for event in events:
        at = datetime.fromisoformat(event["at"])
        match event["event"]:
            case "created":
                machines[event["machine"]] = MachineBill(
                    id=event["machine"],
                    account=event["account"],
                    label=event["label"],
                    offer=event["offer"],
                    gpu_name=event["gpu"],
                    disk_gib=event["disk_gib"],
                    prices=Prices(**{name: Decimal(price) for name, price in event["prices"].items()}),
                    created_at=at,
                    now=now,
                )
            case "gpu_off":
                machines[event["machine"]].gpu_off_at = at
            case "ended":
                machine = machines[event["machine"]]
                machine.ended_at, machine.up_bytes, machine.down_bytes = at, event["up_bytes"], event["down_bytes"]
            case other:
                raise ValueError(f"unknown event {other!r} in the bill")
    return Bill(now=now, machines=tuple(machines.values()))


class BillLog:
    """Appends to `bill.jsonl`, one line an event."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "bill.jsonl"

    def append(self, event: Event) -> None:
        line = json.dumps(event, default=str) + "\n"
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(handle, line.encode())  # one write: a killed server leaves whole lines
        finally:
            os.close(handle)

    def events(self) -> list[Event]:
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]


def bill(folder: Path) -> Bill:
    """The bill of the practice cloud in `folder`, now, whether its server runs or not."""
    events = BillLog(folder).events()
    if not events:
        return Bill(now=datetime.now().astimezone())
    result = fold(events, SandboxClock.open(folder).now())
    for machine in result.machines:
        if machine.live:
            machine.up_bytes, machine.down_bytes = read_traffic(folder / "machines" / machine.id)
    return result
