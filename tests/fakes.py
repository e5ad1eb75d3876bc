"""Hand-written stand-ins: a clock that is turned by hand, and a cloud that can be faulty in every way the contract allows.

The cloud keeps a billing log that the code under test never sees: checkers read only that.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from orchestrator.home import RunFolder
from orchestrator.order import Order, write_order
from orchestrator.plan import Load, Work
from orchestrator.shell import CommandFailed, Completed, CutShort, on_this_computer
from orchestrator.view import Snapshot
from providers.base import Account, Instance, InstanceStatus, LaunchSpec, Offer, Prices, Requirements, SSHEndpoint
from providers.errors import AuthError, NoCapacity, RateLimited, Refused, Unavailable
from trainer.protocol import JobSpec

T0 = datetime(2026, 1, 1, tzinfo=UTC)
PRICES = Prices(
    gpu_usd_per_hour=Decimal("0.40"),
    disk_usd_per_gib_hour=Decimal("0.0002"),
    upload_usd_per_gib=Decimal("0.01"),
    download_usd_per_gib=Decimal("0.02"),
)


class FakeClock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.passed_s = 0.0
        self.slept: list[float] = []
        self.on_sleep: Callable[[float], None] = lambda _: None

    def now(self) -> datetime:
        return T0 + timedelta(seconds=self.passed_s)

    def monotonic_s(self) -> float:
        return self.passed_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.passed_s += max(0.0, seconds)
        self.on_sleep(seconds)


def offer(offer_id: str = "o1", **fields: object) -> Offer:
    values: dict[str, object] = {
        "provider": "fake",
        "id": offer_id,
        "machine_id": f"m-{offer_id}",
        "gpu_name": "RTX 4090",
        "vram_gib": 24.0,
        "prices": PRICES,
        "disk_gib": 500,
        "down_mbit_s": 800.0,
        "up_mbit_s": 400.0,
    }
    return Offer(**(values | fields))  # type: ignore[arg-type]


def spec(label: str = "lorry-test-a1") -> LaunchSpec:
    return LaunchSpec(label=label, image="img", disk_gib=40, ssh_public_key="ssh-ed25519 AAAA lorry")


@dataclass(slots=True)
class Meter:
    """One machine on the bill."""

    instance_id: str
    label: str
    from_s: float
    until_s: float | None = None


@dataclass(slots=True)
class Plot:
    """What goes wrong. Every list is used up from its front; an empty one means that nothing does."""

    launch: Exception | None = None
    """Raised by the create."""
    rents_all_the_same: bool = False
    """The create that raises has rented."""
    lands_after_s: float = 0.0
    """... but only so long after it was asked for."""
    ids_in_error: bool = False
    """The error's body carries the id."""
    listing_lags_s: float = 0.0
    """A new machine is in no listing for so long, and a dead one still in it."""
    deaf_terminates: int = 0
    """So many terminates are answered well and do nothing."""
    fail_call: Callable[[str, int], BaseException | None] = field(default=lambda _name, _count: None)
    """Asked at every call with its name and its number; what it returns is raised instead of the call."""
    fail_after: bool = False
    """... after the call took effect."""


class FakeCloud:
    """A provider in memory. What it does wrong is in `plot`; what it bills is in `bill`."""

    name = "fake"
    console_url = "https://fake.example/console"
    self_destroy = None

    def __init__(self, clock: FakeClock, plot: Plot | None = None, offers: Sequence[Offer] = ()) -> None:
        self.clock = clock
        self.plot = plot or Plot()
        self.market = list(offers) or [offer()]
        self.bill: list[Meter] = []
        self.calls: list[str] = []
        self.ssh: SSHEndpoint | None = None

    # -- what the checker reads -----------------------------------------------------------------------

    def billing(self) -> list[Meter]:
        """Machines that cost money now, or will: also those whose create has yet to land."""
        return [meter for meter in self.bill if meter.until_s is None]

    @property
    def creates(self) -> int:
        return self.calls.count("launch")

    # -- the contract ---------------------------------------------------------------------------------

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        self._called("offers")
        return self.market

    def launch(self, offer: Offer, spec: LaunchSpec) -> Instance:
        fault = self._called("launch", later=self.plot.fail_after)
        plot = self.plot
        if isinstance(fault, (NoCapacity, Refused, AuthError, RateLimited)):
            raise fault  # the contract: nothing was rented
        if plot.launch is None or plot.rents_all_the_same:
            late = plot.lands_after_s if plot.launch is not None else 0.0
            self.bill.append(Meter(f"i-{len(self.bill)}", spec.label, self.clock.passed_s + late))
        if plot.launch is not None:
            if plot.ids_in_error and plot.rents_all_the_same:
                plot.launch.instance_ids = (self.bill[-1].instance_id,)  # type: ignore[attr-defined]
            raise plot.launch
        if fault is not None:
            raise fault
        return self._instance(self.bill[-1])

    def describe(self, instance_id: str) -> Instance:
        self._called("describe")
        meter = next((m for m in self.bill if m.instance_id == instance_id), None)
        if meter is None or meter.until_s is not None or not self._landed(meter):
            return Instance(provider=self.name, id=instance_id, label="", status=InstanceStatus.GONE)
        return self._instance(meter)

    def instances(self) -> Sequence[Instance]:
        self._called("instances")
        now, lag = self.clock.passed_s, self.plot.listing_lags_s
        return [
            self._instance(m)
            for m in self.bill
            if self._landed(m) and now >= m.from_s + lag and (m.until_s is None or now < m.until_s + lag)
        ]

    def terminate(self, instance_id: str) -> None:
        fault = self._called("terminate", later=self.plot.fail_after)
        if self.plot.deaf_terminates > 0:
            self.plot.deaf_terminates -= 1
            return
        for meter in self.bill:
            if meter.instance_id == instance_id and meter.until_s is None and self._landed(meter):
                meter.until_s = self.clock.passed_s
        if fault is not None:
            raise fault

    def account(self) -> Account:
        self._called("account")
        return Account(name="fake")

    def billed_usd(self, instance_id: str) -> Decimal | None:
        self._called("billed_usd")
        return None

    # -- inside ---------------------------------------------------------------------------------------

    def _called(self, method: str, *, later: bool = False) -> BaseException | None:
        self.calls.append(method)
        fault = self.plot.fail_call(method, len(self.calls))
        if fault is not None and not later:
            raise fault
        return fault

    def _landed(self, meter: Meter) -> bool:
        return self.clock.passed_s >= meter.from_s

    def _instance(self, meter: Meter) -> Instance:
        return Instance(
            provider=self.name,
            id=meter.instance_id,
            label=meter.label,
            status=InstanceStatus.RUNNING,
            prices=PRICES,
            ssh=self.ssh,
        )


class SilentView:
    """A view that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[Snapshot] = []
        self.closed = False

    def show(self, snapshot: Snapshot) -> None:
        self.shown.append(snapshot)

    def say(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        self.closed = True


def an_order(folder: RunFolder, jobs: Sequence[str] = ("lisa",), **fields: object) -> Order:
    """A small order, written into the run's folder as a run does."""
    work = Work(
        name="lisa", steps=100, images=4, batch_size=1, gradient_accumulation=1, resolution=512, rank=4,
        gradient_checkpointing=False, saves=1, samples=0, dataset_bytes=1000,
    )  # fmt: skip
    values: dict[str, object] = {
        "run": folder.id,
        "providers": ("fake",),
        "requirements": Requirements(disk_gib=40, gpus=frozenset({"RTX 4090"}), max_usd_per_hour=Decimal("0.8")),
        "cap_usd": Decimal("5.00"),
        "max_hours": None,
        "image": "img",
        "boot_timeout_s": 600.0,
        "jobs": tuple(JobSpec(name=n, family="sd15", base="b", dataset=f"jobs/{n}/data", output=f"jobs/{n}/out") for n in jobs),
        "items": (),
        "load": Load(jobs=(work,), upload_bytes=10**6, hub_bytes=0.0, base_scale=1.0, download_bytes=10**6),
    }
    order = Order(**(values | fields))  # type: ignore[arg-type]
    write_order(folder, order)
    return order


class FakeShell:
    """A machine's files in memory, and what its commands do, by script."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.files: dict[str, bytes] = {}
        self.commands: list[list[str]] = []
        self.on_command: Callable[[list[str]], bytes] = lambda _: b""
        self.before_read: Callable[[str], None] = lambda _: None
        self.fetched: list[str] = []
        self.uploaded = self.downloaded = 0

    def read(self, path: str, *, offset: int = 0, most: int = 2**23) -> bytes | None:
        self.before_read(path)
        data = self.files.get(path)
        return None if data is None else data[offset : offset + most]

    def size(self, path: str) -> int | None:
        return len(self.files[path]) if path in self.files else None

    def check(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0) -> bytes:
        self.commands.append(list(argv))
        if stdin:
            self.files[argv[-1]] = stdin
        return self.on_command(list(argv))

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed:
        return Completed(0, self.check(argv, stdin=stdin), b"")

    def fetch(self, path: str, target: Path, *, size: int, moved: Callable[[int], None] = lambda _: None) -> None:
        self.fetched.append(path)
        if path not in self.files:
            raise CommandFailed(f"could not fetch {path} on the machine: No such file")
        with on_this_computer(target):
            target.write_bytes(self.files[path][:size])
        if len(self.files[path]) < size:
            raise CutShort("a file on the machine ends early")
        self.downloaded += size
        moved(size)

    def close(self) -> None:
        pass


def safetensors(step: int = 0) -> bytes:
    """A file that parses: one tensor of two numbers."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + step.to_bytes(8, "little")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(width: int = 1, height: int = 1, *between: bytes) -> bytes:
    """A black picture; `between`: more chunks before its pixels."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes((3 * width + 1) * height)))
    return b"".join((b"\x89PNG\r\n\x1a\n", head, *between, pixels, png_chunk(b"IEND", b"")))


PNG = png()


def down() -> Unavailable:
    return Unavailable("the cloud does not answer")


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
