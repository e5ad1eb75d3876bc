"""This computer as a provider: one machine of the practice cloud's kind, without a market, a server or a meter. It costs nothing.

A run on it goes the whole way of a rented one (log in, ship, watch, pull, destroy) with an sshd of its own on loopback and a folder that
goes with it. Who only wants the adapter trains with `lorry train`, which ships nothing. It lies here, not beside the clouds, because it is
made of the practice cloud's machines; so it needs Linux and OpenSSH's server.

    $LORRY_HOME/local/lease.json    what is leased, while it is        $LORRY_HOME/local/machines/<id>/    the machine
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from providers.base import Account, Instance, InstanceStatus, LaunchSpec, Offer, Prices, Requirements, SSHEndpoint
from providers.errors import NoCapacity, ProviderError, UnexpectedResponse

from .machine import write_whole
from .machines import Boot, HostError, RealMachines, login_user, needs_private_run
from .provider import default_folder

FREE = Prices(gpu_usd_per_hour=Decimal(0))
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who holds this computer."""

    id: str
    label: str
    mark: str
    disk_gib: int
    created_at: str


class Local:
    """This computer. One lease at a time."""

    name = "local"
    self_destroy = None  # nothing to pay for

    def __init__(self, folder: Path, *, card: tuple[str, float] | None = None) -> None:
        """`card`: name and GiB, instead of asking `nvidia-smi`."""
        self._folder, self._card = folder, card

    @classmethod
    def from_env(cls) -> Local:
        return cls(default_folder().with_name("local"))

    def __repr__(self) -> str:
        return f"Local({str(self._folder)!r})"

    @property
    def console_url(self) -> str:
        return str(self._folder)

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        """None while it is leased, and none without an NVIDIA card: training on a processor takes days, and `lorry train` can do it too."""
        del requirements
        card = self._card or _card()
        if card is None or self._lease():
            return []
        name, vram_gib = card
        free_gib = shutil.disk_usage(next(path for path in (self._folder, *self._folder.parents) if path.exists())).free // GIB
        offer = Offer(provider=self.name, id="local", machine_id="local", gpu_name=name, vram_gib=vram_gib, prices=FREE, disk_gib=free_gib)
        return [offer]

    def launch(self, offer: Offer, spec: LaunchSpec) -> Instance:
        with self._alone():
            if held := self._lease():
                raise NoCapacity(f"this computer is taken by {held.label}", hint="lorry ps, or lorry reap when nothing of it runs any more")
            machines = self._machines()
            now = datetime.now(UTC).isoformat()
            lease = Lease(id=secrets.token_hex(6), label=spec.label, mark=secrets.token_hex(16), disk_gib=spec.disk_gib, created_at=now)
            write_whole(self._folder / "lease.json", json.dumps(asdict(lease)))
            boot = Boot(mark=lease.mark, ssh_public_key=spec.ssh_public_key, env=dict(spec.env), onstart=spec.onstart)
            try:
                machines.start(lease.id, boot)
            except OSError as error:
                raise ProviderError(f"no machine could be started here: {error}", instance_ids=(lease.id,)) from error
        return self._instance(lease, gpu_name=offer.gpu_name)

    def describe(self, instance_id: str) -> Instance:
        held = self._lease()
        if held and held.id == instance_id:
            return self._instance(held)
        return Instance(provider=self.name, id=instance_id, label="", status=InstanceStatus.GONE)

    def instances(self) -> Sequence[Instance]:
        held = self._lease()
        return [self._instance(held)] if held else []

    def terminate(self, instance_id: str) -> None:
        """The lease's file goes last: it is seen until its processes and its folder have gone."""
        with self._alone():
            held = self._lease()
            if held is None or held.id != instance_id:
                return
            machines = self._machines()
            machines.end(held.id, held.mark)
            machines.wipe(held.id)
            (self._folder / "lease.json").unlink()

    def account(self) -> Account:
        self._machines()
        return Account(name=login_user())

    def billed_usd(self, instance_id: str) -> Decimal | None:
        return Decimal(0) if re.fullmatch("[0-9a-f]{12}", instance_id) else None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Of two who want it, one gets it."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _lease(self) -> Lease | None:
        file = self._folder / "lease.json"
        try:
            return Lease(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, OSError) as error:
            raise UnexpectedResponse(f"{file} cannot be read: {error}") from error

    def _machines(self) -> RealMachines:
        try:
            private_run = needs_private_run(self._folder)
        except HostError as error:
            raise ProviderError(str(error), hint=error.hint) from error
        (self._folder / "machines").mkdir(parents=True, exist_ok=True, mode=0o700)
        return RealMachines(self._folder / "machines", login_user(), private_run=private_run)

    def _instance(self, lease: Lease, *, gpu_name: str = "") -> Instance:
        seen = RealMachines(self._folder / "machines", login_user(), private_run=False).look(lease.id)
        status = InstanceStatus.STOPPED if not seen.alive else InstanceStatus.RUNNING if seen.port else InstanceStatus.PENDING
        card = self._card or (None if gpu_name else _card())
        return Instance(
            provider=self.name,
            id=lease.id,
            label=lease.label,
            status=status,
            prices=FREE,
            disk_gib=lease.disk_gib,
            ssh=SSHEndpoint(host="127.0.0.1", port=seen.port, user=login_user()) if seen.alive and seen.port else None,
            gpu_name=gpu_name or (card[0] if card else ""),
            created_at=datetime.fromisoformat(lease.created_at),
        )


def _card() -> tuple[str, float] | None:
    """The first NVIDIA card here, by the field's name, and its GiB."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20, env={**os.environ, "LC_ALL": "C"}).stdout
        name, _, memory = said.splitlines()[0].rpartition(",")
        return re.sub(r"^NVIDIA (GeForce )?", "", name.strip()), float(memory) / 1024
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
