"""The meter: what every machine cost, from events that are only ever appended.

Owns `bill.jsonl` in the sandbox folder. The fold from events to money is pure; `bill` adds the clock and the byte counters of machines
that still live. No provider reads this file: it is what a checker compares our own figures with.

Events, each with `event`, `at` and `machine`: `created` (who, what, prices; the disk meter starts, and the GPU's unless `gpu_waits`),
`gpu_off` and `gpu_on` (it stopped running, the disk goes on; it runs again), `disk_off` and `disk_on` (where a lost host is not
charged), `price` (the GPU's from now on), `ended` (nothing of it is left; with `up_bytes` and `down_bytes`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
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
class Meter:
    """Money by time: runs at a rate, may be switched off and on, and may change its rate."""

    usd_per_hour: Decimal
    since: datetime | None
    """Since when it runs at this rate; None while it is off."""
    spent_usd: Decimal = Decimal(0)
    """Until `since`."""
    ran: timedelta = timedelta(0)

    def usd(self, now: datetime) -> Decimal:
        return self.spent_usd + (self.usd_per_hour * _hours(now - self.since) if self.since else 0)

    def time(self, now: datetime) -> timedelta:
        """How long it has run in all."""
        return self.ran + (now - self.since if self.since else timedelta(0))

    def switch(self, at: datetime, *, on: bool) -> None:
        """Twice the same is once."""
        self.spent_usd, self.ran = self.usd(at), self.time(at)
        self.since = at if on else None

    def change(self, at: datetime, usd_per_hour: Decimal) -> None:
        self.switch(at, on=self.since is not None)
        self.usd_per_hour = usd_per_hour


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
    gpu: Meter
    disk: Meter
    stopped_usd_per_hour: Decimal
    """The disk's rate while the machine is stopped."""
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
        return self.gpu.usd(self.now)

    @property
    def disk_usd(self) -> Decimal:
        return self.disk.usd(self.now)

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


_LATER = frozenset({"gpu_off", "gpu_on", "disk_off", "disk_on", "price", "ended"})


def _begun(event: Event, at: datetime, now: datetime) -> MachineBill:
    prices = Prices(**{name: Decimal(price) for name, price in event["prices"].items()})
    disk_usd_per_hour = prices.disk_usd_per_gib_hour * event["disk_gib"]
    return MachineBill(
        id=event["machine"],
        account=event["account"],
        label=event["label"],
        offer=event["offer"],
        gpu_name=event["gpu"],
        disk_gib=event["disk_gib"],
        prices=prices,
        created_at=at,
        gpu=Meter(usd_per_hour=prices.gpu_usd_per_hour, since=None if event.get("gpu_waits") else at),
        disk=Meter(usd_per_hour=disk_usd_per_hour, since=at),
        stopped_usd_per_hour=Decimal(event.get("stopped_usd_per_hour", disk_usd_per_hour)),
        now=now,
    )


def fold(events: Iterable[Event], now: datetime) -> Bill:
    """The bill that these events make. Pure."""
    machines: dict[str, MachineBill] = {}
    for event in events:
        at = datetime.fromisoformat(event["at"])
        if event["event"] == "created":
            machines[event["machine"]] = _begun(event, at, now)
            continue
        machine = machines[event["machine"]] if event["event"] in _LATER else None
        match event["event"]:
            case "gpu_off" if machine:
                machine.gpu.switch(at, on=False)
                machine.gpu_off_at = at
                machine.disk.change(at, machine.stopped_usd_per_hour)
            case "gpu_on" if machine:
                machine.gpu.switch(at, on=True)
                machine.gpu_off_at = None
                machine.disk.change(at, machine.prices.disk_usd_per_gib_hour * machine.disk_gib)
            case "disk_off" | "disk_on" if machine:
                machine.disk.switch(at, on=event["event"] == "disk_on")
            case "price" if machine:
                machine.gpu.change(at, Decimal(event["gpu_usd_per_hour"]))
                machine.prices = replace(machine.prices, gpu_usd_per_hour=Decimal(event["gpu_usd_per_hour"]))
            case "ended" if machine:
                machine.gpu.switch(at, on=False)
                machine.disk.switch(at, on=False)
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
