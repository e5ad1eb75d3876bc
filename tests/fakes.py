"""Hand-written stand-ins: a clock that is turned by hand, and a cloud that can be faulty in every way the contract allows.

The cloud keeps a billing log that the code under test never sees: checkers read only that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from orchestrator.view import Snapshot
from providers.base import Account, Instance, InstanceStatus, LaunchSpec, Offer, Prices, Requirements, SSHEndpoint
from providers.errors import AuthError, NoCapacity, RateLimited, Refused, Unavailable

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


def down() -> Unavailable:
    return Unavailable("the cloud does not answer")


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
