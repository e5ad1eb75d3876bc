"""Making a machine able to train: what is missing is sent and verified, while the machine installs its programs and fetches its bases.

Safe to repeat at any point.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from . import commands
from .crashpoints import crashpoint
from .errors import MachineFailed
from .hub import TOKEN_ENV, URL, Hub, HubBase, HubRefused
from .lifecycle import Phase, Signal
from .machines.reaching import Machine
from .order import CHECKPOINTS_KEPT
from .ship import BASES, Shipment, item, send
from .trip import Trip

FETCH_PATIENCE_S = 3600.0
"""A base of 30 GB over a line of 100 Mbit/s takes forty minutes."""
SETUP_PATIENCE_S, SETUP_POLL_S = 1800.0, 0.5
"""Installing diffusers and its kin took 40 s where it was measured; a slow line may need many times that."""
PACKAGES_BYTES = 250_000_000
"""What a machine fetches whose image lacks them; an estimate, on the careful side."""
LOOK_S = 2.0
"""How often a machine that prepares itself is asked how far it is, while something is sent to it."""
DATA = ("jobs/", f"{BASES}/")
"""Where in the session's folder lies what only training needs."""
ENTRY_BYTES = 256 * 1024**2
"""So much is sent between two entries of the book: what a killed lorry had sent is on the meter, but for less than that."""


def ship(trip: Trip, machine: Machine) -> str:
    """Send what is missing, have it verified, make the machine able to train. Returns its Python."""
    attempt = trip.book().attempts[machine.number]
    if attempt.phase is not Phase.SHIPPING:
        return _python_of(trip, machine)
    shipment, begun, done, booked = with_checkpoints(trip), machine.shell.uploaded, 0, 0
    trip.enter("upload", f"{len(shipment.items)} files")

    def book(**more: int) -> None:
        nonlocal booked
        sent = max(done, machine.shell.uploaded - begun)
        trip.ledger.record("moved", attempt=machine.number, uploaded=sent - booked, **more)
        booked = sent

    def moved(count: int) -> None:
        nonlocal done
        done += count
        crashpoint("uploading")
        trip.moved(done, shipment.size)
        if done - booked >= ENTRY_BYTES:
            book()

    base = int(trip.order.load.hub_bytes)  # the machine fetches it by itself, at our cost
    programs, data = in_two(shipment)
    preparing, begun_s = Preparing(trip=trip, machine=machine), trip.clock.monotonic_s()
    try:
        send(machine.shell, trip.order.root, programs, moved, check=trip.check_boot)
        preparing.look()
        if data.items:  # while the machine installs its programs and fetches its bases
            send(machine.shell, trip.order.root, data, moved, check=preparing.check)
    finally:  # what was sent is paid for, whatever became of it
        book(fetched=base)
    sent_s = trip.clock.monotonic_s() - begun_s
    python = preparing.wait()
    if python.endswith(commands.environment(trip.order.root)):
        book(fetched=base + PACKAGES_BYTES)
    took = {"upload_s": round(sent_s, 1), "whole_s": round(trip.clock.monotonic_s() - begun_s, 1)} | preparing.took_s
    trip.ledger.record(Signal.SHIPPED, attempt=machine.number, files=len(shipment.items), bytes=shipment.size, **took)
    trip.check_boot()
    return python


def in_two(shipment: Shipment) -> tuple[Shipment, Shipment]:
    """The programs, with which a machine can begin to prepare itself, and the data that may come meanwhile."""
    programs = tuple(one for one in shipment.items if not one.remote.startswith(DATA))
    return Shipment(items=programs), Shipment(items=tuple(one for one in shipment.items if one.remote.startswith(DATA)))


@dataclass(slots=True, kw_only=True)
class Preparing:
    """What a machine does by itself before it can train, asked about again and again: its Python environment, then its bases.

    Both go on over there whoever asks, so that they can be waited for, or looked at while data is sent. What was seen of them is in
    `took_s`, in seconds.
    """

    trip: Trip
    machine: Machine
    python: str = ""
    """The interpreter, once there is one."""
    is_ready: bool = False
    took_s: dict[str, float] = field(default_factory=dict)
    _until: float = 0.0
    _begun: float = 0.0
    _look_at: float = -inf

    def check(self) -> None:
        """To be called often while something else goes on; looks now and then."""
        self.trip.check_boot()
        if not self.is_ready and self.trip.clock.monotonic_s() >= self._look_at:
            self.look()
            self._look_at = self.trip.clock.monotonic_s() + LOOK_S

    def look(self) -> str:
        """Begin, or ask how far it is; in words. Raises `MachineFailed`."""
        if self.is_ready:
            return ""
        if not self.python:
            return self._set_up()
        return self._fetch_bases()

    def wait(self) -> str:
        """To the end of it; returns the interpreter. Raises `MachineFailed`."""
        while not self.is_ready:
            self.trip.check_boot()
            phase, before = ("base model" if self.python else "set-up"), self.python
            if self.trip.phase != phase:
                self.trip.enter(phase, self._subject())
            words = self.look()
            if not self.is_ready and self.python == before:
                self.trip.pulse(words)
                self.trip.clock.sleep(SETUP_POLL_S)
        return self.python

    def _subject(self) -> str:
        size = sum(base.size for base in self.trip.order.hub)
        return f"{size / 1e9:.1f} GB from the hub" if self.python else "the trainer's Python environment"

    def _set_up(self) -> str:
        self._expect_an_end(SETUP_PATIENCE_S, "the trainer's environment was not built")
        state, words = self._asked(commands.set_up(self.trip.order.root))
        if state == "failed":
            raise MachineFailed(f"the trainer's environment could not be built: {words}", hint="another machine.image may do better")
        if state == "ready":
            self.python = words
            self._ended("set_up_s")
            self.is_ready = not self.trip.order.hub
        return words

    def _fetch_bases(self) -> str:
        """From the hub, checked against what it told us. A token goes over stdin into one program's memory, and only where it is needed."""
        self._expect_an_end(FETCH_PATIENCE_S, "the base was not fetched")
        command = commands.fetch_bases(self.trip.order.root, self.python)
        state, words = self._asked(command)
        if state == "wanted":
            state, words = self._asked(command, hub_order(self.trip.order.hub, Hub.from_environment(os.environ)))
        if state == "failed":
            raise MachineFailed(f"the base could not be fetched over there: {words}")
        if state == "ready":
            self._ended("base_s")
            self.is_ready = True
        return words

    def _asked(self, command: commands.Argv, stdin: bytes = b"") -> tuple[str, str]:
        state, _, words = self.machine.shell.check(command, stdin=stdin).decode(errors="replace").strip().partition(" ")
        return state, words

    def _expect_an_end(self, patience_s: float, words: str) -> None:
        now = self.trip.clock.monotonic_s()
        if not self._until:
            self._begun, self._until = now, now + patience_s
        if now > self._until:
            raise MachineFailed(f"{words} within {patience_s / 60:.0f} minutes")

    def _ended(self, name: str) -> None:
        self.took_s[name] = round(self.trip.clock.monotonic_s() - self._begun, 1)
        self._until = 0.0


def hub_order(bases: Sequence[HubBase], hub: Hub) -> bytes:
    """What the program on the machine is told. Raises `HubRefused` when a token is needed that this process has not."""
    needs_token = any(base.needs_token for base in bases)
    if needs_token and not hub.token:
        raise HubRefused(f"the base needs a token, and {TOKEN_ENV} is not set", hint=f"set {TOKEN_ENV}, then go on with lorry attach")
    document = {"bases": [base.model_dump() for base in bases], "url": "" if hub.url == URL else hub.url}
    return json.dumps(document | ({"token": hub.token} if needs_token else {})).encode()


def with_checkpoints(trip: Trip) -> Shipment:
    """What the jobs that are left need of the order's shipment, and the newest checkpoints that an earlier machine made of them.

    Several of each, because jobs that trained together go on from a moment that all of them have: see docs/sessions.md.
    """
    left = trip.to_train()
    spared = tuple(f"jobs/{name}/" for name in trip.order.job_names if name not in left)
    found = []
    for name in left:
        checkpoints = sorted((trip.folder.job(name) / "checkpoints").glob("*.safetensors"))
        found += [item(file.parent, file.name, f"jobs/{name}/out/checkpoints") for file in checkpoints[-CHECKPOINTS_KEPT:]]
    return Shipment(items=(*(one for one in trip.order.items if not one.remote.startswith(spared)), *found))


def _python_of(trip: Trip, machine: Machine) -> str:
    """The interpreter that an earlier process started the supervisor with."""
    started = [e for e in trip.ledger.entries if e.attempt == machine.number and e.kind == Signal.STARTED]
    return str(started[-1].data["python"])
