"""The nouns of the marketplace: who rents, what is rented, on which terms, and what all of it looks like at one moment.

What may be done with them is the market's business (`market.py`), what they cost the meter's (`billing.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from providers.base import LaunchSpec, Offer

from .cards import Card
from .machines import Seen


class MarketError(Exception):
    """A request that the market turns down; nothing was changed. `code` is for programs."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRecord:
    """A customer of the practice cloud."""

    name: str
    key: str
    credit_usd: Decimal = Decimal(100)
    ssh_keys: tuple[str, ...] = ()
    """Keys that the customer left with the cloud, for machines that ask for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a machine is rented, where marketplaces differ. As it stands here: on demand, and every meter runs from the creation on."""

    bid_usd_per_hour: Decimal | None = None
    """Runs only while this is at least the offer's floor, and pays this; None: on demand."""
    gpu_from_running: bool = False
    """The GPU costs nothing until the machine runs."""
    prepaid: bool = False
    """Stopped when the account's credit is used up."""
    ends_at: datetime | None = None
    """Stopped then, and destroyed `EXPIRED_KEPT` later."""


class Out(StrEnum):
    """Why the cloud itself stopped a machine."""

    BID = "outbid"
    CREDIT = "the account has no credit"
    EXPIRED = "the contract has ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rental:
    """A machine that somebody rented and has not given back."""

    id: str
    account: str
    offer: Offer
    spec: LaunchSpec
    created_at: datetime
    key: str
    """May show and destroy this machine, nothing else: what a guard on the machine uses."""
    mark: str
    """In the environment of each of its processes."""
    exited_at: datetime | None = None
    """When it stopped running, by itself or because somebody asked; None while it runs."""
    status_text: str = ""
    asked_to_stop: bool = False
    started_at: datetime | None = None
    """When it was started again after a stop; None: it never was."""
    face_data: Mapping[str, Any] = field(default_factory=dict)
    """What only the face that rented it out needs to know again; JSON."""
    machine_env: Mapping[str, str] = field(default_factory=dict)
    """The whole environment of its processes."""
    stopped_usd_per_hour: Decimal | None = None
    """What it costs while it is stopped; None: the price of its disk."""

    terms: Terms = field(default_factory=Terms)
    out: Out | None = None
    """Why it is stopped, when the cloud did it."""
    gpu_waits: bool = False
    """Its GPU meter begins when it runs."""
    offline: bool = False
    """Its host is off the net: nothing of it answers, nothing of it is charged, until it comes back."""
    stuck: bool = False
    """Boots for ever."""
    announced_usd_per_hour: Decimal | None = None
    """A higher GPU price that the host asks for and the customer has not answered."""
    ssh_keys: tuple[str, ...] = ()
    """Let in beside those of the create call."""
    bytes_per_s: float = 0.0
    """What its line lets through each way; 0: all."""

    @property
    def booted_at(self) -> datetime:
        """When it began to boot as it is now."""
        return self.started_at or self.created_at


@dataclass(slots=True, kw_only=True)
class State:
    """All that must survive a restart; the rest is in the bill, on disk and in the kernel."""

    accounts: list[AccountRecord] = field(default_factory=list)
    admin_key: str = ""
    next_id: int = 10001
    rentals: list[Rental] = field(default_factory=list)
    floors: dict[str, Decimal] = field(default_factory=dict)
    """Offer -> the least bid that runs, where somebody has moved it."""
    gpu_prices: dict[str, Decimal] = field(default_factory=dict)
    """Offer -> what its GPU costs an hour since its host has changed it."""
    cards: dict[str, Card] = field(default_factory=dict)
    """Offer -> the card that its machine really has; "" is whichever is rented next."""
    lines: dict[str, float] = field(default_factory=dict)
    """Offer -> bytes a second, each way, that its machine's line lets through; "" likewise."""
    stuck_next: bool = False
    """The next machine that is rented boots for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootTimes:
    """How long a machine is shown in each state before `running`, by the practice cloud's clock."""

    created_s: float = 0.2
    loading_s: float = 0.3
    ports_late_s: float = 0.0
    """The address comes so long after `running`, on faces of clouds where it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A rental as a customer may see it now."""

    rental: Rental
    status: str
    """created, loading, running, exited or offline."""
    status_text: str
    seen: Seen
