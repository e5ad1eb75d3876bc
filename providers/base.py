"""The provider contract: the nouns every cloud shares, and the verbs it must have.

A provider is one file. It converts units here, once, and knows nothing of runs, ledgers or budgets.
What only one cloud needs travels in `provider_data`, which nobody else reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What a machine must have. The planner checks every field again on our side."""

    disk_gib: int
    min_vram_gib: float = 0.0
    gpus: frozenset[str] = frozenset()
    """GPU names as the field writes them ("RTX 4090"); empty: any."""
    max_usd_per_hour: Decimal | None = None
    min_reliability: float = 0.0
    regions: frozenset[str] = frozenset()
    """Two-letter country codes; empty: anywhere."""
    interruptible: bool = False
    """Whether machines that may be taken away (bids, spot) are welcome too."""
    verified_only: bool = False
    secure_only: bool = False
    """Only machines in data centres."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """The rate card of one machine: every meter that runs while it is rented."""

    gpu_usd_per_hour: Decimal
    disk_usd_per_gib_hour: Decimal = Decimal(0)
    """From creation to destruction, whether the machine runs or not."""
    upload_usd_per_gib: Decimal = Decimal(0)
    """For bytes that we send to the machine."""
    download_usd_per_gib: Decimal = Decimal(0)
    """For bytes that we fetch from the machine."""

    def __post_init__(self) -> None:
        for price in (self.gpu_usd_per_hour, self.disk_usd_per_gib_hour, self.upload_usd_per_gib, self.download_usd_per_gib):
            if not price.is_finite() or price < 0:
                raise ValueError(f"a price must be a finite number of at least 0, got {price}")

    def usd_per_hour(self, disk_gib: int) -> Decimal:
        """What one hour costs with `disk_gib` of disk, traffic aside."""
        return self.gpu_usd_per_hour + self.disk_usd_per_gib_hour * disk_gib


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One machine for rent now."""

    provider: str
    id: str
    machine_id: str
    """Stable across listings, unlike `id`: what a bad machine is remembered by."""
    pooled: bool = False
    """Stands for many machines, of which the cloud picks one: a bad one says little of the next."""
    gpu_name: str
    vram_gib: float
    prices: Prices
    gpu_count: int = 1
    disk_gib: int = 0
    """The most disk that can be had with it."""
    down_mbit_s: float = 0.0
    """Megabits a second from the internet to the machine; 0: not stated."""
    up_mbit_s: float = 0.0
    reliability: float = 1.0
    verified: bool = True
    secure: bool = False
    """In a data centre, as the cloud says; not somebody's home."""
    region: str = ""
    interruptible: bool = False
    provider_data: Mapping[str, object] = field(default_factory=dict)


class InstanceStatus(StrEnum):
    """What the cloud says of an instance, in our words."""

    PENDING = "pending"  # asked for, booting, pulling the image
    RUNNING = "running"  # the container is there; SSH may still be on its way
    STOPPED = "stopped"  # not running but not gone: the disk still bills
    UNKNOWN = "unknown"  # the cloud says something we do not understand; it may bill
    GONE = "gone"  # the cloud is certain that it no longer exists


@dataclass(frozen=True, slots=True, kw_only=True)
class SSHEndpoint:
    """Where to log in."""

    host: str
    port: int
    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What to start on the offer."""

    label: str
    """How an orphan is found again: written before the create is sent, unique to the attempt."""
    image: str
    disk_gib: int
    ssh_public_key: str
    """OpenSSH format, one line."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The container's environment. Every holder of the account key can read it back: no secrets."""
    onstart: str = ""
    """POSIX sh that the container runs once at its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A machine that this account holds, or held."""

    provider: str
    id: str
    label: str
    status: InstanceStatus
    prices: Prices | None = None
    """The live rate card; None where the cloud does not repeat it."""
    disk_gib: int = 0
    ssh: SSHEndpoint | None = None
    """None until the cloud reports one."""
    status_text: str = ""
    """The cloud's own words, for the person who reads an error."""
    gpu_name: str = ""
    created_at: datetime | None = None
    provider_data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whose money it is."""

    name: str
    """As a person knows it."""
    id: str = ""
    """The same for every key of the account, and for no other account; empty where the cloud does not tell."""
    balance_usd: Decimal | None = None
    """Prepaid money left; None where the cloud does not tell."""
    auto_pay: bool | None = None
    """Whether the cloud charges a card when the balance runs out, so that no balance ends a forgotten machine; None: not told."""
    lacks: tuple[str, ...] | None = None
    """Rights that lorry needs and this key has not, in the cloud's own words; None where the cloud does not tell them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfDestroy:
    """How a machine ends itself, by the HTTP call that its cloud documents. `{NAME}` stands for a variable of the machine's environment."""

    method: str
    url: str
    key: str
    """The Bearer key; one that may do nothing but this to any machine but this."""
    id_env: str
    """The variable with the machine's own id: what `show_url` answers with must contain it."""
    show_url: str = ""
    """A GET that proves that the key works; empty: `url`."""


class Provider(Protocol):
    """Rents machines on one cloud.

    Methods that fail raise a `ProviderError`; `transient` on it says whether asking again can help.
    Methods return as soon as the cloud has accepted the request; waiting is the caller's job. None of
    them retries by itself: `wrappers` do that where it is safe.
    """

    @property
    def name(self) -> str:
        """The word in `machine.providers`."""

    @property
    def console_url(self) -> str:
        """Where a person can see and stop the machines by hand."""

    @property
    def self_destroy(self) -> SelfDestroy | None:
        """How machines of this cloud end themselves; None where they cannot, or nobody has seen it work: they are unguarded."""

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        """Machines for rent now. May return more than was asked for; the planner filters again."""

    def launch(self, offer: Offer, spec: LaunchSpec) -> Instance:
        """Rent `offer`. The request is sent exactly once.

        `NoCapacity`, `Refused`, `AuthError` and `RateLimited` mean that nothing was rented. Any other
        error means that it is not known: the caller looks for `spec.label`. An instance id found in
        any answer, also an error's, is in `instance_ids`.
        """

    def describe(self, instance_id: str) -> Instance:
        """The instance as the cloud sees it.

        `GONE` only when the cloud is certain; it does not raise for an instance that no longer exists.
        """

    def instances(self) -> Sequence[Instance]:
        """Every instance of this account that may bill, all pages; raises rather than answer in part.

        A listing proves the key: whoever is not known to the cloud gets `AuthError`, never an empty list.
        """

    def terminate(self, instance_id: str) -> None:
        """Stop paying. May be called again and again; silent when the instance is already gone."""

    def account(self) -> Account:
        """A real call with the key: proves that it works. Raises `AuthError` when it does not.

        A key that may not ask whose it is works all the same if it can list: to see that a machine is gone needs no more.
        """

    def billed_usd(self, instance_id: str) -> Decimal | None:
        """What the cloud says it charged for the instance so far; None when it has no record (yet)."""
