"""Making a machine able to train: what is missing is sent and verified, the Python environment is built. Safe to repeat at any point."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from . import commands
from .crashpoints import crashpoint
from .errors import MachineFailed
from .hub import TOKEN_ENV, URL, Hub, HubBase, HubRefused
from .lifecycle import Phase, Signal
from .machines.reaching import Machine
from .order import CHECKPOINTS_KEPT
from .ship import Shipment, item, send
from .trip import Trip

FETCH_PATIENCE_S = 3600.0
"""A base of 30 GB over a line of 100 Mbit/s takes forty minutes."""
SETUP_PATIENCE_S, SETUP_POLL_S = 1800.0, 0.5
"""Installing diffusers and its kin took 40 s where it was measured; a slow line may need many times that."""
PACKAGES_BYTES = 250_000_000
"""What a machine fetches whose image lacks them; an estimate, on the careful side."""
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
    try:
        send(machine.shell, trip.order.root, shipment, moved, check=trip.check_boot)
    finally:  # what was sent is paid for, whatever became of it
        book(fetched=base)
    python = set_up(trip, machine)
    fetch_bases(trip, machine, python)
    if python.endswith(commands.environment(trip.order.root)):
        book(fetched=base + PACKAGES_BYTES)
    trip.ledger.record(Signal.SHIPPED, attempt=machine.number, files=len(shipment.items), bytes=shipment.size)
    trip.check_boot()
    return python


def set_up(trip: Trip, machine: Machine) -> str:
    """Have the machine build its Python environment, and wait for it; returns the interpreter. Raises `MachineFailed`."""
    trip.enter("set-up", "the trainer's Python environment")
    until = trip.clock.monotonic_s() + SETUP_PATIENCE_S
    while trip.clock.monotonic_s() < until:
        trip.check_boot()
        answer = machine.shell.check(commands.set_up(trip.order.root)).decode(errors="replace").strip()
        state, _, words = answer.partition(" ")
        if state == "ready":
            return words
        if state == "failed":
            raise MachineFailed(f"the trainer's environment could not be built: {words}", hint="another machine.image may do better")
        trip.pulse(words)
        trip.clock.sleep(SETUP_POLL_S)
    raise MachineFailed(f"the trainer's environment was not built within {SETUP_PATIENCE_S / 60:.0f} minutes")


def fetch_bases(trip: Trip, machine: Machine, python: str) -> None:
    """Have the machine fetch its bases from the hub, checked against what the hub told us, and wait for it. Raises `MachineFailed`.

    The token goes over stdin into the memory of one program, and only where the hub gives nothing without one.
    """
    if not trip.order.hub:
        return
    size = sum(base.size for base in trip.order.hub)
    trip.enter("base model", f"{size / 1e9:.1f} GB from the hub")
    until = trip.clock.monotonic_s() + FETCH_PATIENCE_S
    ask, command = b"", commands.fetch_bases(trip.order.root, python)
    while trip.clock.monotonic_s() < until:
        trip.check_boot()
        state, _, words = machine.shell.check(command, stdin=ask).decode(errors="replace").strip().partition(" ")
        ask = hub_order(trip.order.hub, Hub.from_environment(os.environ)) if state == "wanted" else b""
        if state == "ready":
            return
        if state == "failed":
            raise MachineFailed(f"the base could not be fetched over there: {words}")
        if not ask:
            trip.pulse(words)
            trip.clock.sleep(SETUP_POLL_S)
    raise MachineFailed(f"the base was not fetched within {FETCH_PATIENCE_S / 60:.0f} minutes")


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
