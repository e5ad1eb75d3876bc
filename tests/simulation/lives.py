"""One seed: a user's commands, most of them killed on their way, then a last one; all of them the real program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from orchestrator import outside, run
from orchestrator.errors import LorryError
from orchestrator.report.receipt import unwatched
from orchestrator.safety.reconcile import LABEL
from orchestrator.trip import Tools
from providers.errors import ProviderError
from providers.wrappers import Retrying

from .cloud import LATE_S, OURS, THEIRS
from .disk import Name
from .effects import Crash, Endless
from .machine import LAG_S, NEVER_S
from .standins import KEPT, ORDERS, PLAN, RUN, SimFolder
from .work import JOB
from .world import World

AIMED = ("launching", "booting", "shipping", "training", "pulling", "releasing", "gone")
"""Phases in which a process is made to end on purpose: some last for a few effects only."""


@dataclass(slots=True)
class Told:
    """What a command ended with, as its user saw it."""

    command: str
    exit_code: int | None
    """None: it was killed."""
    from_s: float
    at_s: float
    message: str = ""


@dataclass(slots=True)
class Story:
    """Everything that the checker may read, besides the bill: the user's side."""

    world: World
    told: list[Told] = field(default_factory=list)
    alarmed: bool = False
    """`lorry ps` ends with 10 afterwards."""
    clock_was_set: bool = False
    lost: bool = False
    """The computer, with the book of the run."""


def live(seed: int, tally: Counter[tuple[str, str]] | None = None, *, telling: bool = False) -> Story:
    """The whole seed."""
    KEPT.clear()
    world = World(seed, tally, telling=telling)
    story, rng = Story(world), world.rng
    folder = SimFolder(Name(world.disk, f"/home/runs/{RUN}"))
    lives = rng.choice((0, 0, 1, 1, 2, 3))
    _draw_end(world)
    _command(story, folder, "run")
    for _ in range(lives):
        _between(story)
        _draw_end(world)
        _command(story, folder, rng.choice(("attach", "attach", "resume", "down", "reap")))
    _between(story)
    world.disk.full = (0, 0)
    world.weather.trouble /= 4
    world.cloud.key_of = OURS
    _command(story, folder, rng.choice(("attach", "down", "reap")) if _has_book(folder) else "reap")
    story.alarmed = _has_book(folder) and unwatched(folder)
    return story


def _has_book(folder: SimFolder) -> bool:
    return (folder.path / "order.json").exists() and (folder.path / "ledger.jsonl").exists()


def _draw_end(world: World) -> None:
    """When this process dies, is suspended, or its user loses patience."""
    rng = world.rng
    kind = rng.random()
    if kind < 0.35:
        world.crash_at = world.effects + int(rng.choice((8, 30, 150)) * rng.random()) + 1
    elif kind < 0.45:
        first = world.effects + rng.randrange(1, 60)
        world.interrupt_at = tuple(first + rng.randrange(1, 20) * n for n in range(rng.randrange(1, 4)))
    elif kind < 0.5:
        world.suspend_at = world.effects + rng.randrange(1, 60)
    elif kind < 0.75:
        what = rng.choice(("killed", "killed", "killed", "Ctrl-C", "suspended"))
        world.aim = (rng.choice(AIMED), what, int(rng.choice((3, 10, 40)) * rng.random()) + 1)


def _between(story: Story) -> None:
    """Time passes with no lorry; the power fails, clocks are set; laptops are lost; users log in again."""
    world, rng = story.world, story.world.rng
    if world.dead and rng.random() < 0.5:
        world.hit("power cut")
        world.disk.power_cut()
    world.new_process()
    world.pass_time(rng.choice((0.5, 0.5, 5.0, 60.0, 600.0, 7200.0)))
    if rng.random() < 0.1:
        moved_s = rng.choice((3600.0, -3600.0, 365 * 86400.0, -365 * 86400.0))
        world.wall_offset_s += moved_s
        story.clock_was_set = True
        kind = f"clock {'on' if moved_s > 0 else 'back'} by {'an hour' if abs(moved_s) == 3600 else 'a year'}"
        world.hit(kind, f"the clock of the computer is now off by {world.wall_offset_s:.0f} s")
    if world.time_s >= world.weather.session_ends_s and rng.random() < 0.8:
        world.weather.session_ends_s = NEVER_S
        world.tell("the user logs in again")
    if rng.random() < (0.7 if world.cloud.key_of == THEIRS else 0.04):
        world.cloud.key_of = OURS if world.cloud.key_of == THEIRS else THEIRS
        world.tell(f"the key is that of {world.cloud.key_of} now")
    if rng.random() < 0.03:
        world.hit("computer lost", "the computer is lost, with the book of the run")
        world.disk.files.clear()
        story.lost = True
        world.pass_time(LATE_S + LAG_S)  # another one is taken; until then a create may land that only the lost book knew of


def _command(story: Story, folder: SimFolder, name: str) -> None:
    world = story.world
    if not _has_book(folder) and name != "run":
        name = "reap"
    world.tell(f"$ lorry {name}")
    began_s, phase = world.time_s, world.phase
    world.phase = "reaping" if name == "reap" else phase
    cloud = Retrying(world.cloud, sleep=world.wait)
    tools = Tools(clock=world, view=world, interrupts=world.interrupts, provider=lambda _: cloud)
    code: int | None
    message = ""
    try:
        code, message = COMMANDS[name](folder, tools)
    except Crash:
        code = None
    except Endless:
        code, message = None, "broke: it goes round and round"
        world.dead = True
    except (LorryError, ProviderError) as error:
        code, message = error.exit_code, str(error)
    except OSError as error:
        code, message = 1, f"this computer: {error}"
    except Exception as error:
        code, message = 1, f"broke: {error!r}"
        if world.story is not None:
            raise
    code = None if world.dead else code
    world.phase = phase if name == "reap" else world.phase
    story.told.append(Told(name, code, began_s, world.time_s, message))
    world.tell(f"  -> {'killed' if code is None else f'{code} {message}'}")


def _run(folder: SimFolder, tools: Tools) -> tuple[int, str]:
    folder.path.disk.files[f"{folder.path.full}/order.json"] = f'{{"jobs":[{{"name":"{JOB}"}}]}}'.encode()
    order = ORDERS[folder.path.disk.world.weather.starts_two]
    return _of(run.run(order, PLAN, folder, tools))


def _of(receipt: dict[str, Any]) -> tuple[int, str]:
    return int(receipt["exit_code"]), str(receipt["message"])


def _reap(_: SimFolder, tools: Tools) -> tuple[int, str]:
    rows = outside.reap(lambda label: label.startswith(LABEL), ("fake",), tools, really=True)
    return (10 if any(not row["destroyed_verified"] for row in rows) else 0), ""


COMMANDS: dict[str, Callable[[SimFolder, Tools], tuple[int, str]]] = {
    "run": _run,
    "attach": lambda folder, tools: _of(run.attach(folder, tools)),
    "resume": lambda folder, tools: _of(run.resume(folder, tools)),
    "down": lambda folder, tools: _of(outside.down(folder, tools)),
    "reap": _reap,
}
