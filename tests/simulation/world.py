"""A world that goes wrong by a seed: its clock, its disk, its cloud. What happens in it is in `bill` and `story`.

Bounds of the faults, which the protocol may count on, are the constants below; everything inside them happens. The code under
test never sees the bill; the checker sees nothing else but the words and exit codes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any, NoReturn, Self

from orchestrator.interrupts import Interrupts
from orchestrator.reconcile import read_label
from providers.base import Account, Instance, InstanceStatus, LaunchSpec, Offer, Prices, Requirements, SSHEndpoint
from providers.errors import AuthError, NoCapacity, ProviderError, RateLimited, Refused, Unavailable, UnexpectedResponse

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LATE_S = 120.0
"""A create whose answer was lost lands at most so long after it was sent."""
LAG_S = 45.0
"""A new machine is unseen by listings and by its id, and a dead one still seen, at most so long."""
TIMEOUT_S = 30.0
SHORTEST_LABEL = 32
"""A cloud that cuts labels keeps so much."""
ENDLESS = 10_000  # effects
UNCLAIMED_S = 1200.0
"""A guard that was told of no deadline ends its machine after so long."""

RATE = Prices(gpu_usd_per_hour=Decimal("0.40"), disk_usd_per_gib_hour=Decimal("0.0002"))


class Crash(BaseException):
    """The process was killed: nothing that comes after it has an effect."""


class Endless(BaseException):
    """Something goes round and round."""


@dataclass(slots=True)
class Machine:
    """One rented machine, in the cloud's own books."""

    id: str
    asked_label: str
    """What the create asked for."""
    label: str
    """What the cloud made of it."""
    gpu: str
    asked_s: float
    """When the create arrived."""
    from_s: float
    """When it came, or will come, into being."""
    lists_after_s: float
    shows_after_s: float
    boots_after_s: float
    lingers_s: float
    """A dead one is shown for so long."""
    until_s: float | None = None
    dies_at_s: float | None = None
    """A terminate that was taken in, and takes its time."""
    guard_s: float | None = None
    """When its own guard ends it; None: it has none, or that one was killed."""
    stubborn: bool = False
    """Deaf for longer than a foreground command has patience."""
    has_guard: bool = False
    lied: bool = False
    """The last describe said GONE while it lived; no two in a row do."""
    claimed: bool = False
    """Somebody has logged in."""
    deaf: int = 0
    """So many terminates are answered well and do nothing."""


@dataclass(slots=True)
class Weather:
    """What this seed is like."""

    trouble: float
    """Share of calls that go wrong."""
    lies: float
    """Share of describes of living machines that say GONE."""
    cuts_labels: bool
    lags: bool
    deaf: bool
    guarded: bool
    down_for_good: frozenset[str] = frozenset()
    """Endpoints that end for good ..."""
    down_from_s: float = 1e18
    """... at this time."""
    storm: tuple[float, float] = (1e18, 1e18)
    """All calls are refused as too many between these times."""
    session_ends_s: float = 1e18
    """From here until the user logs in again the cloud answers 404 and empty lists, as Vast does."""
    ledger_fails: tuple[int, int] = (0, 0)
    """Writes, by number, that meet a full disk."""

    @property
    def cloud_is_well(self) -> bool:
        """Apart from a call lost here and there."""
        return not (self.deaf or self.down_for_good) and self.trouble < 0.2 and min(self.storm[0], self.session_ends_s) > 1e17

    @classmethod
    def of(cls, rng: Random) -> Weather:
        """Most seeds have few kinds of trouble, as most nights have; some have all of it."""
        chance = rng.random
        weather = cls(
            trouble=rng.choice((0.0, 0.03, 0.15, 0.4)),
            lies=0.05 if chance() < 0.3 else 0.0,
            cuts_labels=chance() < 0.1,
            lags=chance() < 0.4,
            deaf=chance() < 0.3,
            guarded=chance() < 0.5,
        )
        if chance() < 0.05:
            weather.down_for_good = rng.choice((frozenset({"instances"}), frozenset({"describe"}), frozenset({"terminate"}), EVERYTHING))
            weather.down_from_s = rng.expovariate(1 / 200)
        if chance() < 0.1:
            begins = rng.expovariate(1 / 100)
            weather.storm = (begins, begins + rng.uniform(5, 400))
        if chance() < 0.06:
            weather.session_ends_s = rng.expovariate(1 / 100)
        if chance() < 0.1:
            first = rng.randrange(1, 12)
            weather.ledger_fails = (first, first + rng.randrange(1, 6))
        return weather


EVERYTHING = frozenset({"launch", "describe", "instances", "terminate", "account"})


class World:
    """Everything outside the code under test, and the moment at which its process dies."""

    def __init__(self, seed: int, *, telling: bool = False) -> None:
        self.rng = Random(seed)
        self.weather = Weather.of(self.rng)
        self.story: list[str] | None = [] if telling else None
        self.time_s = 0.0
        self.wall_offset_s = 0.0
        self.effects = 0
        self.crash_at = -1
        self.interrupt_at: tuple[int, ...] = ()
        self.dead = False
        self.files: dict[str, bytes] = {}
        self.writes = 0
        self.interrupts = _Hands(self)
        self.cloud = Cloud(self)
        self.said: list[tuple[float, str]] = []
        """What the user reads, and when."""

    def tell(self, text: str) -> None:
        if self.story is not None:
            self.story.append(f"{self.time_s:9.1f} s  {text}")

    def effect(self, name: str) -> None:
        """Before or after anything that others could see. The place where processes die and keys are hit."""
        if self.dead:
            raise Crash
        self.effects += 1
        if self.effects > ENDLESS:
            raise Endless
        if self.effects == self.crash_at:
            self.dead = True
            self.tell(f"KILLED at {name}")
            raise Crash
        if self.effects in self.interrupt_at:
            self.tell(f"Ctrl-C at {name}")
            self.interrupts.hit()

    def pass_time(self, seconds: float) -> None:
        """It passes, whoever waits."""
        self.time_s += seconds
        self.cloud.live()

    def new_process(self) -> None:
        """The old one is gone with all it knew."""
        self.dead, self.crash_at, self.interrupt_at = False, -1, ()
        self.interrupts = _Hands(self)

    # -- orchestrator.clock.Clock ---------------------------------------------------------------------

    def now(self) -> datetime:
        return T0 + timedelta(seconds=self.time_s + self.wall_offset_s)

    def monotonic_s(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.effect("sleep")
        self.pass_time(max(0.0, seconds))

    # -- orchestrator.view.View -----------------------------------------------------------------------

    def show(self, _: object) -> None:
        """Drawn, and forgotten."""

    def say(self, text: str) -> None:
        if self.dead:
            raise Crash
        self.said.append((self.time_s, text))
        self.tell(f"says: {text}")

    def close(self) -> None:
        """Nothing to close."""


class _Hands(Interrupts):
    """The user's hands on Ctrl-C; no real signals."""

    def __init__(self, world: World) -> None:
        super().__init__(world.say)

    def caught(self) -> Any:
        return _Nothing(self)

    def hit(self) -> None:
        self._take(2, None)


class _Nothing:
    """A block that does nothing at its ends."""

    __slots__ = ("given",)

    def __init__(self, given: Any = None) -> None:
        self.given = given

    def __enter__(self) -> Any:
        return self.given

    def __exit__(self, *_: object) -> None:
        return None


# --- the disk -------------------------------------------------------------------------------------


class Name:
    """A path in memory: as much of `pathlib.Path` as the ledger and the run's folder use."""

    __slots__ = ("full", "world")

    def __init__(self, world: World, full: str) -> None:
        self.world, self.full = world, full

    def __truediv__(self, below: str) -> Name:
        return Name(self.world, f"{self.full}/{below}")

    @property
    def name(self) -> str:
        return self.full.rpartition("/")[2]

    @property
    def parent(self) -> Name:
        return Name(self.world, self.full.rpartition("/")[0])

    def with_name(self, name: str) -> Name:
        return self.parent / name

    def exists(self) -> bool:
        return self.full in self.world.files

    def read_bytes(self) -> bytes:
        try:
            return self.world.files[self.full]
        except KeyError:
            raise FileNotFoundError(self.full) from None

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def unlink(self, *, missing_ok: bool = False) -> None:
        self.world.effect("unlink")
        if self.world.files.pop(self.full, None) is None and not missing_ok:
            raise FileNotFoundError(self.full)

    def replace(self, target: Name) -> None:
        self.world.effect("rename")
        self.world.files[target.full] = self.world.files.pop(self.full)

    def open(self, mode: str) -> Any:
        return io.BytesIO(self.read_bytes()) if mode == "rb" else _Writing(self, fresh=mode == "wb")


class _Writing:
    """A file open for writing. Until it is synced, a crash leaves any part of what was written."""

    __slots__ = ("data", "fresh", "name")

    def __init__(self, name: Name, *, fresh: bool) -> None:
        self.name, self.fresh, self.data = name, fresh, b""

    def __enter__(self) -> Self:
        if self.fresh:
            self.name.world.files[self.name.full] = b""
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def write(self, data: bytes) -> None:
        self.data += data

    def flush(self) -> None:
        """Not yet on the platter."""

    def fileno(self) -> _Writing:
        return self


class SimOs:
    """Stands where `os` stands in `ledger` and `home`: the sync decides what is on the disk."""

    name = "nt"  # no folder to sync
    SEEK_END = io.SEEK_END

    @staticmethod
    def fsync(file: _Writing) -> None:
        world, full = file.name.world, file.name.full
        before = world.files.get(full, b"")
        world.writes += 1
        first, last = world.weather.ledger_fails
        if first <= world.writes < last:
            world.files[full] = before + file.data[: world.rng.randrange(len(file.data) + 1)]
            world.tell(f"the disk is full: {file.data[:60]!r}")
            raise OSError(28, "No space left on device")
        try:
            world.effect("write")
        except Crash:
            torn = file.data[: world.rng.randrange(len(file.data) + 1)]
            world.files[full] = before + torn + (bytes(world.rng.randrange(9)) if world.rng.random() < 0.2 else b"")
            raise
        world.files[full] = before + file.data
        world.effect("written")


# --- the cloud ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Cloud:
    """A provider that keeps the contract of `providers.base`, and no other promise."""

    world: World
    machines: list[Machine] = field(default_factory=list)
    """The billing log. For the checker."""
    asked: list[str] = field(default_factory=list)
    """The label of every create that arrived, in order."""
    name: str = "fake"
    console_url: str = "https://cloud.example/machines"
    self_destroy: None = None

    def live(self) -> None:
        """Let happen what is due by now."""
        now = self.world.time_s
        for m in self.machines:
            if m.until_s is None:
                due = min(t for t in (m.dies_at_s, m.guard_s, 1e18) if t is not None)
                if due <= now:
                    m.until_s = max(due, m.from_s)
                    self.world.tell(f"{m.id} is gone, by {'its guard' if due == m.guard_s else 'a terminate'}")

    # -- the contract ---------------------------------------------------------------------------------

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        raise NotImplementedError

    def launch(self, offer: Offer, spec: LaunchSpec) -> Instance:
        world, rng = self.world, self.world.rng
        self._call("launch")
        self.asked.append(spec.label)
        kind = rng.random()
        if kind < 0.5:
            machine = self._rent(offer, spec, 0.0)
            world.effect("launch answered")
            return self._instance(machine)
        if kind < 0.62:
            raise rng.choice((NoCapacity, NoCapacity, Refused, AuthError, RateLimited))("nothing was rented")
        if kind < 0.70:
            self._lose("the create was lost on its way")
        if kind < 0.80:
            self._rent(offer, spec, 0.0)
            self._lose("the answer to the create was lost")
        if kind < 0.89:
            self._rent(offer, spec, rng.uniform(0.0, LATE_S - TIMEOUT_S) + TIMEOUT_S)
            self._lose("the create lands late")
        machine = self._rent(offer, spec, 0.0)
        world.effect("launch answered with an error")
        if kind < 0.95:
            raise rng.choice((UnexpectedResponse, Refused, NoCapacity, Unavailable))("an error that rented", instance_ids=(machine.id,))
        raise UnexpectedResponse("200 without an id")

    def describe(self, instance_id: str) -> Instance:
        self._call("describe")
        world = self.world
        found = next((m for m in self.machines if m.id == instance_id), None)
        gone = Instance(provider=self.name, id=instance_id, label="", status=InstanceStatus.GONE)
        if found is None or world.time_s < found.shows_after_s or world.time_s >= world.weather.session_ends_s:
            return gone
        if found.until_s is not None:
            return gone if world.time_s >= found.until_s + found.lingers_s else self._instance(found)
        lied, found.lied = found.lied, False
        if world.weather.lies and not lied and world.rng.random() < world.weather.lies:
            found.lied = True
            world.tell(f"describe lies: {instance_id} is gone")
            return gone
        return self._instance(found)

    def instances(self) -> Sequence[Instance]:
        self._call("instances")
        now = self.world.time_s
        if now >= self.world.weather.session_ends_s:
            return []
        return [self._instance(m) for m in self.machines if now >= m.lists_after_s and (m.until_s is None or now < m.until_s + m.lingers_s)]

    def terminate(self, instance_id: str) -> None:
        world = self.world
        self._call("terminate")
        found = next((m for m in self.machines if m.id == instance_id), None)
        hears = found is not None and world.time_s >= max(found.from_s, found.shows_after_s) and world.time_s < world.weather.session_ends_s
        if found is not None and hears:
            if found.deaf > 0:
                found.deaf -= 1
                world.tell(f"terminate {instance_id}: answered well, and does nothing")
            elif found.dies_at_s is None:
                found.dies_at_s = world.time_s + (world.rng.choice((0.0, 0.0, 1.0, 20.0)))
                self.live()
        world.effect("terminate answered")
        if world.weather.trouble and world.rng.random() < world.weather.trouble / 2:
            self._lose(f"the answer to terminate {instance_id} was lost")

    def account(self) -> Account:
        self._call("account")
        if self.world.time_s >= self.world.weather.session_ends_s:
            raise AuthError("session expired")
        return Account(name="sim")

    def billed_usd(self, instance_id: str) -> Decimal | None:
        return None

    # -- inside ---------------------------------------------------------------------------------------

    def _call(self, endpoint: str) -> None:
        """A request on its way: it may meet trouble before it has any effect."""
        world, weather = self.world, self.world.weather
        world.effect(endpoint)
        world.pass_time(0.2)
        now = world.time_s
        if weather.storm[0] <= now < weather.storm[1]:
            raise RateLimited("too many requests", retry_after_s=world.rng.choice((1.0, 5.0, 60.0)))
        if endpoint in weather.down_for_good and now >= weather.down_from_s:
            self._lose(f"{endpoint} is down for good")
        if weather.trouble and endpoint != "launch" and world.rng.random() < weather.trouble:
            kind = world.rng.random()
            if kind < 0.4:
                self._lose(f"{endpoint} timed out")
            if kind < 0.6:
                raise Unavailable(f"{endpoint}: 503")
            if kind < 0.8:
                raise RateLimited("slow down", retry_after_s=2.0)
            raise UnexpectedResponse(f"{endpoint}: half a page")

    def _lose(self, why: str) -> NoReturn:
        self.world.tell(why)
        self.world.pass_time(self.world.rng.choice((1.0, TIMEOUT_S)))
        raise Unavailable(why)

    def _rent(self, offer: Offer, spec: LaunchSpec, late_s: float) -> Machine:
        world, rng, weather = self.world, self.world.rng, self.world.weather
        begins = world.time_s + late_s
        lag = (lambda: rng.uniform(0, LAG_S)) if weather.lags else (lambda: 0.0)
        machine = Machine(
            id=f"i-{len(self.machines) + 1}",
            asked_label=spec.label,
            label=spec.label[:SHORTEST_LABEL] if weather.cuts_labels else spec.label,
            gpu=offer.gpu_name,
            asked_s=world.time_s,
            from_s=begins,
            lists_after_s=begins + lag(),
            shows_after_s=begins + lag(),
            boots_after_s=begins + rng.choice((1.0, 5.0, 30.0, 1e9)),
            lingers_s=lag(),
            deaf=rng.choice((0, 1, 3, 40)) if weather.deaf else 0,
            guard_s=begins + min(UNCLAIMED_S, self._most_s(spec)) if weather.guarded and rng.random() < 0.9 else None,
        )
        machine.has_guard = machine.guard_s is not None
        machine.stubborn = machine.deaf > 3
        self.machines.append(machine)
        world.tell(f"{machine.id} is rented as {machine.label!r}" + (f", in {late_s:.0f} s" if late_s else ""))
        return machine

    def _most_s(self, spec: LaunchSpec) -> float:
        """What its guard was told at the create: the deadline that the label tells too."""
        said = read_label(spec.label)
        assert said is not None
        assert said.ends_at is not None
        return max(0.0, (said.ends_at - self.world.now()).total_seconds())

    def _instance(self, m: Machine) -> Instance:
        up = self.world.time_s >= m.boots_after_s
        return Instance(
            provider=self.name,
            id=m.id,
            label=m.label,
            status=InstanceStatus.RUNNING if up else InstanceStatus.PENDING,
            prices=RATE,
            ssh=SSHEndpoint(host="10.0.0.1", port=int(m.id[2:]), user="root") if up else None,
        )


Tell = Callable[[str], None]
__all__ = ["EVERYTHING", "RATE", "T0", "Cloud", "Crash", "Machine", "Name", "ProviderError", "SimOs", "Weather", "World"]
