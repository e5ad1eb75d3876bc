"""What stands where the program meets the world outside: the disk, SSH, the market, and what is sent to a machine.

Renting, guarding, watching, fetching, going on elsewhere, releasing, searching, booking, budgeting and judging stay the program's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from orchestrator import closing, fetch, home, lease, ledger, outside, rent, run, trip, watch
from orchestrator.errors import NoOffer, OverBudget
from orchestrator.ledger import Book
from orchestrator.lifecycle import Phase, Signal
from orchestrator.machines import onward, reaching
from orchestrator.machines.inspecting import Unfit
from orchestrator.order import Order, rest_of
from orchestrator.plan import Load, Plan, Work, make_plan
from orchestrator.trip import Tools
from providers.base import Offer, Requirements

from .disk import Name, SimOs
from .effects import Nothing
from .machine import DISK_GIB, RATE
from .shell import SimShell
from .work import JOB, STEPS

RUN = "autumn-landscapes-3f2a91"
CAP_USD = Decimal("1.00")
WORK = Work(
    name=JOB,
    steps=STEPS,
    images=10,
    batch_size=1,
    gradient_accumulation=1,
    resolution=512,
    rank=16,
    gradient_checkpointing=False,
    saves=3,
    samples=0,
    dataset_bytes=0,
)
LOAD = Load(jobs=(WORK,), upload_bytes=0, hub_bytes=0, base_scale=1.0, download_bytes=0)


def _offer(number: int) -> Offer:
    return Offer(
        provider="fake",
        id=f"o{number}",
        machine_id=f"m{number}",
        gpu_name=f"GPU {number}",
        vram_gib=24.0,
        prices=RATE,
        disk_gib=500,
        down_mbit_s=1000.0,
        up_mbit_s=1000.0,
    )


PLAN = make_plan(LOAD, [_offer(n) for n in range(4)], Requirements(disk_gib=DISK_GIB), cap_usd=CAP_USD)


def _order(*, start_two: bool) -> Order:
    """The real one, with jobs of which only the name is read."""
    return Order.model_construct(
        run=RUN,
        providers=("fake",),
        requirements=Requirements(disk_gib=DISK_GIB),
        cap_usd=CAP_USD,
        max_hours=None,
        image="img",
        boot_timeout_s=60.0,
        start_two=start_two,
        jobs=(SimpleNamespace(name=JOB),),
        items=(),
        load=LOAD,
    )


ORDERS = {start_two: _order(start_two=start_two) for start_two in (False, True)}


def _read_order(folder: SimFolder) -> Order:
    return ORDERS[folder.path.disk.world.weather.starts_two]


class SimFolder(home.RunFolder):
    """The real folder, in memory; no two processes of one seed live at a time."""

    _seen: tuple[bytes, Book] = (b"", Book(()))

    def driving(self) -> Any:
        return Nothing()

    @property
    def is_driven(self) -> bool:
        return False

    def book(self) -> Book:
        """The real one, which gives the same for the same bytes."""
        file = self.path / "ledger.jsonl"
        raw = file.read_bytes() if file.exists() else b""
        if raw != self._seen[0]:
            self._seen = raw, super().book()
        return self._seen[1]


def install() -> None:
    """Put the stand-ins into the program's modules, once a process."""
    if ledger.os is SimOs:
        return
    for module in (ledger, home, fetch, watch):
        module.os = SimOs
    for module in (ledger, lease, run, closing, fetch, watch):
        module.crashpoint = lambda _: None  # every effect of this world is one
    fetch.shutil = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=2**50))  # a full disk is a fault of the world's own
    reaching.Shell = SimShell
    rent.make_keys = reaching.make_keys = _keys
    rent.nonce_for = lambda *_: "nonce"
    reaching.stranger = lambda *_: ""
    rent.guarding.text = lambda provider, most_s: str(most_s) if provider.self_destroy else ""
    fetch.hashed_behind = _hashed_at_once
    run.ship = _ship
    for module in (run, closing, outside):
        module.account = _account
    for module in (run, outside):
        module.read_order = _read_order
    run.plan_document = lambda _: {}
    rent.said_of = lambda _: SimpleNamespace(model_dump=lambda **_: {})  # what is learnt from runs decides nothing in one
    rent.inspected = _inspected
    onward.market = _market
    trip.Trip.snapshot = lambda _: None  # drawn by nobody here
    trip.rest_of = _rest_of
    for module, names in ((ledger, ("_begin", "_apply")), (trip, ("usage_of",))):
        for name in names:
            setattr(module, name, _kept(getattr(module, name)))
    ledger._from_line = lru_cache(maxsize=512)(ledger._from_line)


_REST: dict[Any, Load] = {}


def _rest_of(load: Load, home: Mapping[str, int], todo: Collection[str]) -> Load:
    """The real one; it is asked the same few things."""
    key = (*home.items(), *todo)
    if key not in _REST:
        _REST[key] = rest_of(load, home, todo)
    return _REST[key]


KEPT: dict[Any, Any] = {}
"""What functions of the program have answered in this seed, with their arguments."""


def _kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of values, which does not compute twice what it has been asked before: a book is read again by every process."""

    def asked(*values: Any) -> Any:
        key = (function, *map(id, values))
        known = KEPT.get(key)
        if known is None:
            known = KEPT[key] = (function(*values), values)
        return known[0]

    return asked


def _keys(path: Name) -> Any:
    keys = path.disk.world
    keys.public_line = "ssh-ed25519 AAAA lorry"
    return keys


def _market(order: Order, tools: Tools, *, spent_usd: Decimal, avoid: Any = (), **_: Any) -> Plan:
    """As the real one: without machines that failed, and none when too little of the cap is left."""
    if order.cap_usd - spent_usd < PLAN.best.estimate.usd["p90"]:
        raise OverBudget("no offer fits what is left of the cap")
    bad = {machine_id for _, machine_id in tools.memory.bad(tools.clock.now())}
    found = tuple(c for c in PLAN.candidates if c.offer.machine_id not in {*avoid, *bad})
    if not found:
        raise NoOffer("no machine is for rent now")
    return replace(PLAN, candidates=found)


@contextmanager
def _hashed_at_once(path: Any) -> Iterator[Callable[[], str]]:
    """No threads here: the hash is taken when it is asked for."""
    yield lambda: fetch.hash_file(path)


def _inspected(trip: Any, machine: Any, offer: Offer) -> None:
    """As `inspecting.inspected`: some time over there, and then and when it is not what was offered."""
    del trip, offer
    machine.shell.work(5.0)
    if machine.shell.world.weather.poor_machines and machine.shell.world.rng.random() < 0.1:
        machine.shell.world.hit("unfit", f"{machine.shell.machine.id} is not what was offered")
        raise Unfit("it is not what was offered")


def _ship(trip: Any, machine: Any) -> str:
    """As `delivery.ship`, with the newest checkpoint that is at home."""
    if trip.book().attempts[machine.number].phase is Phase.SHIPPING:
        for _ in range(2):
            trip.check_boot()
            machine.shell.work(20.0)
        found = sorted(n.name for n in (trip.folder.job(JOB) / "checkpoints").glob("*.safetensors"))
        machine.shell.machine.resumes_from = int(found[-1][len(JOB) + 1 : -len(".safetensors")]) if found else 0
        trip.ledger.record(Signal.SHIPPED, attempt=machine.number)
        trip.check_boot()
    return "python3"


def _account(folder: SimFolder, tools: Tools) -> dict[str, Any]:
    """The exit code as `report.receipt` finds it."""
    del tools
    book = folder.book()
    code = 10 if book.open_attempts and book.closed is not None else int((book.closed or {}).get("exit_code", 0))
    return {"exit_code": code, "message": (book.closed or {}).get("message", "")}
