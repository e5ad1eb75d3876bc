"""One seed: a user's commands, most of them killed on their way, then a last one; all of them the real program.

What stands in for the world outside is put into the program's modules by `install`: the disk, the crash points, SSH, and what happens
over SSH (shipping, training, fetching). Renting, releasing, searching, booking, budgeting and judging are the program's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from orchestrator import closing, home, lease, ledger, outside, rent, run, watch
from orchestrator.budget import WAY_OUT_S
from orchestrator.errors import LorryError, MachineFailed, OverBudget
from orchestrator.lifecycle import Phase, Signal
from orchestrator.plan import Load
from orchestrator.progress import Progress
from orchestrator.reconcile import LABEL
from orchestrator.report.receipt import unwatched
from orchestrator.trip import Tools
from providers.base import Offer, Requirements
from providers.errors import ProviderError
from providers.wrappers import Retrying

from .world import LAG_S, LATE_S, RATE, Crash, Name, SimOs, World, _Nothing

RUN = "autumn-landscapes-3f2a91"
CAP_USD, DISK_GIB = Decimal("1.00"), 40
OFFERS = tuple(
    SimpleNamespace(
        offer=Offer(provider="fake", id=f"o{n}", machine_id=f"m{n}", gpu_name=f"GPU {n}", vram_gib=24.0, prices=RATE, disk_gib=500),
    )
    for n in range(3)
)
LOAD = Load(jobs=(), upload_bytes=0, hub_bytes=0, base_scale=1.0, download_bytes=0)


@dataclass(frozen=True, slots=True)
class SimOrder:
    """As much of an `Order` as renting and budgeting read."""

    run: str = RUN
    providers: tuple[str, ...] = ("fake",)
    requirements: Requirements = field(default=Requirements(disk_gib=DISK_GIB))
    cap_usd: Decimal = CAP_USD
    max_hours: float | None = None
    image: str = "img"
    boot_timeout_s: float = 60.0
    load: Load = LOAD
    job_names: tuple[str, ...] = ("one",)
    root: str = "lorry/run"


ORDER = SimOrder()


class SimFolder(home.RunFolder):
    """The real folder, in memory; no two processes of one seed live at a time."""

    def driving(self) -> Any:
        return _Nothing()

    @property
    def is_driven(self) -> bool:
        return False


class SimShell:
    """A log-in that works while its machine lives."""

    def __init__(self, endpoint: Any, keys: World, clock: Any) -> None:
        del clock
        self.endpoint, self.world = endpoint, keys
        self.give_up: Callable[[], None] = lambda: None

    @property
    def machine(self) -> Any:
        return self.world.cloud.machines[self.endpoint.port - 1]

    def forget_host(self) -> None:
        """No pins here."""

    def probe(self) -> bool:
        self.world.effect("ssh")
        return self.answers

    @property
    def answers(self) -> bool:
        self.world.cloud.live()
        return self.machine.until_s is None

    def connect(self) -> str:
        self.machine.claimed = True
        return "SHA256:x"

    def close(self) -> None:
        """Nothing is open."""

    def work(self, seconds: float) -> None:
        """Something takes time over there."""
        self.world.sleep(seconds)
        if not self.answers:
            raise MachineFailed("the machine does not answer")


def install() -> None:
    """Put the stand-ins into the program's modules, once a process."""
    for module in (ledger, home):
        module.os = SimOs  # type: ignore[attr-defined]
    for module in (ledger, lease, run, closing):
        module.crashpoint = lambda _: None  # type: ignore[attr-defined]  # every effect of this world is one
    rent.Shell = SimShell  # type: ignore[misc,assignment]
    rent.make_keys = _keys  # type: ignore[assignment]
    for name in ("ship", "start", "watch", "pull"):
        setattr(run, name, globals()[f"_{name}"])
    for module in (run, closing, outside):
        module.account = _account  # type: ignore[attr-defined]
    for module in (run, outside):
        module.progress_of = lambda *_a, **_k: Progress(())  # type: ignore[attr-defined]
        module.read_order = lambda _: ORDER  # type: ignore[attr-defined]
    run.plan_document = lambda _: {}  # type: ignore[assignment]
    run.market = lambda *_a, **_k: SimpleNamespace(candidates=OFFERS)  # type: ignore[assignment,return-value]


def _keys(path: Name) -> Any:
    keys = path.world
    keys.public_line = "ssh-ed25519 AAAA lorry"  # type: ignore[attr-defined]
    return keys


def _ship(trip: Any, machine: Any) -> str:
    if trip.book().attempts[machine.number].phase is Phase.SHIPPING:
        for _ in range(2):
            trip.check_boot()
            machine.shell.work(20.0)
        trip.ledger.record(Signal.SHIPPED, attempt=machine.number)
        trip.check_boot()
    return "python3"


def _start(trip: Any, machine: Any, python: str) -> bool:
    """As `watch.start`, with the machine's own guard told of the deadline."""
    attempt = trip.book().attempts[machine.number]
    rented = machine.shell.machine
    lifetime_s = attempt.lifetime_s or trip.lifetime_s(machine.lease)
    if lifetime_s < watch.SHORTEST_LIFE_S:
        raise OverBudget("nothing is left to train with")
    machine.shell.world.effect("start")
    if not hasattr(machine.shell.world, "ends"):
        machine.shell.world.ends = {}
    machine.shell.world.ends.setdefault(rented.id, machine.shell.world.time_s + lifetime_s)
    if rented.guard_s is not None:
        rented.guard_s = machine.shell.world.ends[rented.id] + WAY_OUT_S
    if attempt.phase is Phase.SHIPPING:
        trip.ledger.record(Signal.STARTED, attempt=machine.number, lifetime_s=lifetime_s, python=python)
    return True


def _watch(trip: Any, machine: Any, python: str) -> str:
    """As `watch.watch`: training ends by itself, at its lifetime, or when it is asked to; or it hangs, and never does."""
    del python
    world = machine.shell.world
    rented = machine.shell.machine
    rng = world.rng
    ends = world.ends[rented.id]
    hangs = rng.random() < 0.1
    done = world.time_s + rng.choice((30.0, 600.0, 40000.0))
    while True:
        trip.check_urgent()
        if watch._overdue(trip, machine):
            trip.ledger.record(Signal.ENDED, attempt=machine.number, reason="deadline")
            return "deadline"
        machine.shell.work(min(240.0, max(5.0, min(ends, done) - world.time_s)))
        reason = "done" if world.time_s >= done else "deadline" if world.time_s >= ends else "stopped" if trip.stop_wanted else ""
        if reason and not hangs:
            if reason == "done":
                world.files[trip.folder.job("one").full + "/one.safetensors"] = b"weights"
            trip.ledger.record(Signal.ENDED, attempt=machine.number, reason=reason)
            return reason


def _pull(trip: Any, machine: Any) -> None:
    """Or it drags on: this computer's disk is full, the line is slow."""
    for _ in range(100 if machine.shell.world.rng.random() < 0.1 else 1):
        trip.check_urgent()
        machine.shell.work(20.0)
    trip.ledger.record(Signal.PULLED, attempt=machine.number, missing=[])


def _account(folder: SimFolder, tools: Tools) -> dict[str, Any]:
    """The exit code as `report.receipt` finds it."""
    del tools
    book = folder.book()
    code = 10 if book.open_attempts and book.closed is not None else int((book.closed or {}).get("exit_code", 0))
    return {"exit_code": code, "message": (book.closed or {}).get("message", "")}


# --- the user's commands --------------------------------------------------------------------------


@dataclass(slots=True)
class Told:
    """What a command ended with, as its user saw it."""

    command: str
    exit_code: int | None
    """None: it was killed."""
    at_s: float


@dataclass(slots=True)
class Story:
    """Everything that the checker may read, besides the bill: the user's side."""

    world: World
    told: list[Told] = field(default_factory=list)
    alarmed: bool = False
    """`lorry ps` ends with 10 afterwards."""
    lost: bool = False
    """The computer, with the book of the run."""


def live(seed: int, *, telling: bool = False) -> Story:
    """The whole seed."""
    world = World(seed, telling=telling)
    story, rng = Story(world), world.rng
    folder = SimFolder(Name(world, f"/home/runs/{RUN}"))  # type: ignore[arg-type]
    lives = rng.choice((0, 0, 1, 1, 2, 3))
    _draw_end(world)
    _command(story, folder, "run")
    for _ in range(lives):
        _between(story, folder)
        _draw_end(world)
        _command(story, folder, rng.choice(("attach", "attach", "resume", "down", "reap")))
    _between(story, folder)
    world.weather.ledger_fails = (0, 0)
    world.weather.trouble /= 4
    _command(story, folder, rng.choice(("attach", "down", "reap")) if _has_book(folder) else "reap")
    story.alarmed = _has_book(folder) and unwatched(folder)
    return story


def _has_book(folder: SimFolder) -> bool:
    return (folder.path / "order.json").exists() and (folder.path / "ledger.jsonl").exists()


def _draw_end(world: World) -> None:
    """When this process dies, or its user loses patience."""
    rng = world.rng
    kind = rng.random()
    if kind < 0.6:
        world.crash_at = world.effects + int(rng.choice((8, 30, 150)) * rng.random()) + 1
    elif kind < 0.75:
        first = world.effects + rng.randrange(1, 60)
        world.interrupt_at = tuple(first + rng.randrange(1, 20) * n for n in range(rng.randrange(1, 4)))


def _between(story: Story, folder: SimFolder) -> None:
    """Time passes with no lorry; clocks are set; laptops are lost; users log in again."""
    world, rng = story.world, story.world.rng
    world.new_process()
    world.pass_time(rng.choice((0.5, 0.5, 5.0, 60.0, 600.0, 7200.0)))
    if rng.random() < 0.1:
        world.wall_offset_s += rng.choice((3600.0, -3600.0, 365 * 86400.0, -365 * 86400.0))
        world.tell(f"the clock of the computer is now off by {world.wall_offset_s:.0f} s")
    if world.time_s >= world.weather.session_ends_s and rng.random() < 0.8:
        world.weather.session_ends_s = 1e18
    if rng.random() < 0.03:
        world.files.clear()
        story.lost = True
        world.pass_time(LATE_S + LAG_S)  # another one is taken; until then a create may land that only the lost book knew of
        world.tell("the computer is lost, with the book of the run")


def _command(story: Story, folder: SimFolder, name: str) -> None:
    world = story.world
    if not _has_book(folder) and name != "run":
        name = "reap"
    world.tell(f"$ lorry {name}")
    cloud = Retrying(world.cloud, sleep=world.sleep)
    tools = Tools(clock=world, view=world, interrupts=world.interrupts, provider=lambda _: cloud)  # type: ignore[arg-type]
    code: int | None
    try:
        code = COMMANDS[name](folder, tools)
    except Crash:
        code = None
    except (LorryError, ProviderError) as error:
        code = error.exit_code
        world.tell(f"error: {error}")
    except Exception as error:
        code = 1
        world.tell(f"broke: {error!r}")
    code = None if world.dead else code
    story.told.append(Told(name, code, world.time_s))
    world.tell(f"  -> {'killed' if code is None else code}")


def _run(folder: SimFolder, tools: Tools) -> int:
    folder.path.world.files[f"{folder.path.full}/order.json"] = b"{}"  # type: ignore[attr-defined]
    plan = SimpleNamespace(candidates=OFFERS, best=SimpleNamespace(estimate=SimpleNamespace(usd=Decimal("0.5"))))
    return int(run.run(ORDER, plan, folder, tools)["exit_code"])  # type: ignore[arg-type]


def _reap(_: SimFolder, tools: Tools) -> int:
    rows = outside.reap(lambda label: label.startswith(LABEL), ("fake",), tools, really=True)
    return 10 if any(not row["destroyed_verified"] for row in rows) else 0


COMMANDS: dict[str, Callable[[SimFolder, Tools], int]] = {
    "run": _run,
    "attach": lambda folder, tools: int(run.attach(folder, tools)["exit_code"]),
    "resume": lambda folder, tools: int(run.resume(folder, tools)["exit_code"]),
    "down": lambda folder, tools: int(outside.down(folder, tools)["exit_code"]),
    "reap": _reap,
}
