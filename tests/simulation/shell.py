"""The line to a machine: stands where `orchestrator.shell.Shell` stands, over machines of this world."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.machines.guard import FOLDER
from orchestrator.shell import CommandFailed, LinkDown, LocalTrouble

from .work import Work

if TYPE_CHECKING:
    from .disk import Name
    from .machine import Machine
    from .world import World


class SimShell:
    """A log-in that works while its machine lives and its line holds."""

    def __init__(self, endpoint: Any, keys: World, clock: Any) -> None:
        del clock
        self.endpoint, self.world = endpoint, keys
        self.machine: Machine = keys.cloud.machines[endpoint.port - 1]
        self.give_up: Callable[[], None] = lambda: None
        self.came_back: Callable[[], None] = lambda: None
        self.patience_s = 120.0
        self.down_s = 0.0
        self.uploaded = self.downloaded = 0
        self._cut_until_s = 0.0

    def forget_host(self) -> None:
        """No pins here."""

    def close(self) -> None:
        """Nothing is open."""

    def probe(self) -> bool:
        self.world.effect("ssh")
        return self.machine.answers

    def connect(self) -> str:
        self._reach()
        self.machine.claimed = True
        return "SHA256:x"

    def read(self, path: str, *, offset: int = 0, most: int = 0) -> bytes | None:
        del most
        self._reach()
        machine = self.machine
        if path.startswith(FOLDER):
            return machine.beat()
        self.world.quiet_until_s = machine.work.ends_s if machine.work is not None else 0.0
        if path.endswith("session.json"):
            return machine.session or None
        if machine.work is None:
            return None
        return machine.work.status() if path.endswith("status.json") else machine.work.events[offset:] or None

    def size(self, path: str) -> int | None:
        del path  # of the session
        self._reach()
        return len(self.machine.session) or None

    def check(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0) -> bytes:
        del timeout_s
        self._reach()
        machine, what = self.machine, argv[3] if argv[0] == "sh" else argv[0]
        if what == "write" and argv[-1].startswith(FOLDER):
            machine.guard_hears(json.loads(stdin))
        elif what == "write":
            machine.session = stdin
            if machine.work is not None:
                machine.work.hear(json.loads(stdin)["lifetime_s"])
        elif what == "touch" and machine.work is not None:
            machine.work.stop()
        elif what == "start" and machine.work is not None:
            return machine.work.start()
        elif what == "start":
            machine.work = Work(machine, json.loads(machine.session)["lifetime_s"], machine.resumes_from)
            return b'{"pid": 1}'
        return b""

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0) -> Any:
        raise CommandFailed("nothing else runs here")

    def fetch(self, path: str, target: Name, *, size: int, moved: Callable[[int], None]) -> None:
        """In two pieces, with everything that may happen between them."""
        del size
        self._reach()
        machine, world = self.machine, self.world
        data = machine.work.files.get(path.split("/", 2)[2]) if machine.work is not None else None
        if data is None:
            raise CommandFailed("no such file")
        if world.weather.poor_machines and world.rng.random() < 0.1:
            world.hit("damaged file", f"{path} is sent with a wrong byte")
            data = data[:-1] + b"?"
        have = len(target.read_bytes()) if target.exists() else 0
        half = (have + len(data)) // 2
        for begin, end in ((have, half), (half, len(data))):
            world.wait(1.0)
            for _ in range(20 if machine.slow else 0):
                world.wait(100.0)
                moved(0)
            try:
                with target.open("ab") as file:
                    file.write(data[begin:end])
            except OSError as err:
                raise LocalTrouble(f"{target}: {err.strerror}", hint="free some space there") from err
            self.downloaded += end - begin
            moved(end - begin)
            if not machine.answers:
                self._reach()

    def work(self, seconds: float) -> None:
        """Something takes time over there."""
        self.world.wait(seconds)
        self._reach()

    def _reach(self) -> None:
        """As `Shell._again` does it: patience with a line that is down."""
        world = self.world
        world.effect("ssh")
        if world.weather.line and world.rng.random() < world.weather.line:
            self._cut_until_s = world.time_s + world.rng.choice((3.0, 30.0, 400.0))
            self.machine.cuts.append((world.time_s, self._cut_until_s))
            world.at(self._cut_until_s)
            world.hit("line cut", f"the line to {self.machine.id} is cut")
        world.quiet_until_s, since = 0.0, world.time_s
        while not self.machine.answers or world.time_s < self._cut_until_s:
            self.down_s = world.time_s - since
            if self.down_s > self.patience_s:
                raise LinkDown(f"the machine {self.machine.id} does not answer")
            self.give_up()
            world.sleep(1.0)
        if self.down_s:
            self.down_s = 0.0
            self.came_back()
