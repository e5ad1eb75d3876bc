"""The places where a process can be cut, and the tally of what went wrong where."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from orchestrator.safety.interrupts import Interrupts

ENDLESS = 10_000
"""Effects of one process; more is a loop without end."""
PHASE_AFTER = {
    "opened": "planned",
    "intent": "launching",
    "launched": "booting",
    "reachable": "shipping",
    "started": "training",
    "ended": "pulling",
    "give_up": "releasing",
    "gone": "gone",
    "refused": "gone",
}
"""Kind of the last entry that a process wrote into its ledger -> the word of the tally for what goes on. Told to nobody but the reader."""


class Crash(BaseException):
    """The process was killed: nothing that comes after it has an effect."""


class Endless(BaseException):
    """Something goes round and round."""


class Effects:
    """Counts what others could see of a process, and cuts it there."""

    def __init__(self, seed: int, tally: Counter[tuple[str, str]] | None, *, telling: bool) -> None:
        self.rng = Random(seed)
        self.tally = Counter[tuple[str, str]]() if tally is None else tally
        """(what went wrong, phase) -> how often."""
        self.story: list[str] | None = [] if telling else None
        self.phase = "planned"
        self.time_s = 0.0
        self.effects = 0
        self.most = ENDLESS
        self.crash_at = -1
        self.suspend_at = -1
        self.interrupt_at: tuple[int, ...] = ()
        self.aim = ("", "", 0)
        """A phase, what is to happen in it, and after how many effects."""
        self.dead = False
        self.slept: list[tuple[float, float]] = []
        """When the computer was suspended."""
        self.said: list[tuple[float, str]] = []
        """What the user reads, and when."""
        self.interrupts = Hands(self)

    def tell(self, text: str) -> None:
        """One line of the story."""
        if self.story is not None:
            self.story.append(f"{self.time_s:9.1f} s  {text}")

    def hit(self, fault: str, text: str = "") -> None:
        """Something went wrong, as it was meant to."""
        self.tally[fault, self.phase] += 1
        if self.story is not None:
            self.tell(text or fault)

    def effect(self, name: str) -> None:
        """Before or after anything that others could see. The place where processes die and keys are hit."""
        if self.dead:
            raise Crash
        self.effects = now = self.effects + 1
        if now == self.crash_at:
            self.dead = True
            self.hit("killed", f"KILLED at: {name}")
            raise Crash
        if now in self.interrupt_at:
            self.hit("Ctrl-C", f"Ctrl-C at: {name}")
            self.interrupts.hit()
        if now == self.suspend_at:
            self.hit("suspended", f"SUSPENDED at: {name}")
            began_s = self.time_s
            self.pass_time(self.rng.choice((120.0, 1200.0, 30_000.0)))
            self.slept.append((began_s, self.time_s))
            self.tell("awake again")
        if now > self.most:
            raise Endless

    def enter(self, phase: str) -> None:
        """The program has written what it does next."""
        self.phase = phase
        if self.aim[0] == phase:
            self._aimed(self.aim[1], self.effects + self.aim[2])
            self.aim = ("", "", 0)

    def _aimed(self, what: str, at: int) -> None:
        if what == "killed":
            self.crash_at = at
        elif what == "suspended":
            self.suspend_at = at
        else:
            self.interrupt_at = (at, at + self.aim[2])

    def pass_time(self, seconds: float) -> None:
        """It passes, whoever waits."""
        self.time_s += seconds

    def say(self, text: str) -> None:
        """The user reads it."""
        if self.dead:
            raise Crash
        self.said.append((self.time_s, text))
        self.tell(f"says: {text}")

    def new_process(self) -> None:
        """The old one is gone with all it knew."""
        self.most = self.effects + ENDLESS
        self.dead, self.crash_at, self.suspend_at, self.interrupt_at, self.aim = False, -1, -1, (), ("", "", 0)
        self.interrupts = Hands(self)


class Hands(Interrupts):
    """The user's hands on Ctrl-C; no real signals."""

    def __init__(self, world: Effects) -> None:
        super().__init__(world.say)

    def caught(self) -> Any:
        return Nothing(self)

    def hit(self) -> None:
        """Once more."""
        self._take(2, None)


class Nothing:
    """A block that does nothing at its ends."""

    __slots__ = ("given",)

    def __init__(self, given: Any = None) -> None:
        self.given = given

    def __enter__(self) -> Any:
        return self.given

    def __exit__(self, *_: object) -> None:
        return None
