"""From a lease to a machine that lets us in: waits until its cloud says where it is, and logs in.

Looks on the way at what the cloud tells: whether it has ended, what it costs now, whether its label was kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from orchestrator.errors import MachineFailed
from orchestrator.lease import Lease, is_ours, label_trouble
from orchestrator.lifecycle import Phase, Signal
from orchestrator.shell import Shell, make_keys
from orchestrator.trip import Trip
from providers.base import Instance, InstanceStatus
from providers.errors import ProviderError

from .memory import Fault
from .proving import stranger
from .trying import Failed

POLL_S = 1.0
OVER = frozenset({InstanceStatus.GONE, InstanceStatus.STOPPED})
"""What a machine that boots does not come back from: its image does not start, or somebody bid more."""
DEARER = Decimal("1.02")
"""A price may differ from its offer by rounding; more than this was never agreed to."""
LAST_LOOKS_S = 10.0
"""A machine that was waited for beside another gets so long at least."""
MISSED_LOOKS = 5
"""A cloud may not know a new machine by its id for some seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A leased machine that lets us in."""

    lease: Lease
    shell: Shell
    proven: bool = False
    """Whether this process has seen its guard work and its hardware be what was offered."""

    @property
    def number(self) -> int:
        """The attempt's number."""
        return self.lease.number


def reach(trip: Trip, lease: Lease, waited_s: float = 0.0) -> Machine | Failed:
    """Wait until the cloud says where it is and it lets us in, until the boot deadline."""
    trip.enter("boot", f"{lease.gpu} at {lease.provider.name}")
    in_use = trip.book().attempts[lease.number].phase in {Phase.TRAINING, Phase.PULLING}
    until = trip.clock.monotonic_s() + max(trip.order.boot_timeout_s - waited_s, LAST_LOOKS_S)
    shell: Shell | None = None
    words, missed, fault = "no word from the provider yet", 0, Fault.BOOT
    while trip.clock.monotonic_s() < until:
        (trip.check_urgent if in_use else trip.check_boot)()  # what has been trained is worth a log-in
        try:
            instance = lease.describe()
        except ProviderError as err:
            if not err.transient:
                raise
            words = str(err)
            if in_use:  # nobody can be asked, maybe it is this computer that is offline: the machine trains on meanwhile
                until = trip.clock.monotonic_s() + trip.order.boot_timeout_s
        else:
            words = instance.status_text or instance.status
            missed = missed + 1 if instance.status in OVER else 0
            if missed >= MISSED_LOOKS:
                words = f"it is {instance.status}" + (f": {instance.status_text}" if instance.status_text else "")
                break  # giving it back sees whether that is so
            dearer = "" if in_use else _dearer(lease, instance)
            lease.heed(instance)
            if dearer:
                words, fault = dearer, Fault.DEARER
                break
            shell = _shell_for(trip, lease, instance, shell)
            if shell is not None and shell.probe():
                if not in_use and (words := label_trouble(instance.label, lease.label)):
                    trip.say(f"{lease.gpu} at {lease.provider.name}: {words}")
                if in_use or is_ours(instance.label, lease.label):
                    return _reached(trip, lease, shell)
                fault = Fault.UNLABELLED
                break
        trip.pulse(words)
        trip.clock.sleep(POLL_S)
    if in_use:
        raise MachineFailed(f"it does not answer any more: {words}")
    return Failed(fault=fault, why=f"it did not boot: {words}" if fault is Fault.BOOT else words)


def _dearer(lease: Lease, instance: Instance) -> str:
    """What to say of a machine that costs more than was offered; empty when it does not, or the cloud does not tell."""
    if instance.prices is None:
        return ""
    asked, offered = instance.prices.usd_per_hour(lease.disk_gib), lease.prices.usd_per_hour(lease.disk_gib)
    return f"it costs ${asked:.3f} an hour, ${offered:.3f} was offered" if asked > offered * DEARER else ""


def _shell_for(trip: Trip, lease: Lease, instance: Instance, known: Shell | None) -> Shell | None:
    """A shell for where the instance is now; addresses may come late and change."""
    if instance.ssh is None or instance.status is not InstanceStatus.RUNNING:
        return None
    if known is not None and known.endpoint == instance.ssh:
        return known
    shell = Shell(instance.ssh, make_keys(trip.folder.path), trip.clock)
    shell.give_up = shell.heed = trip.check_urgent
    if trip.book().attempts[lease.number].phase is Phase.BOOTING:
        shell.forget_host()  # a new machine, maybe at an address that an old one had
    return shell


def _reached(trip: Trip, lease: Lease, shell: Shell) -> Machine | Failed:
    """It lets us in. One that is new proves first that it is the one that was rented; later ones are held to its host key."""
    fingerprint = shell.connect()
    if lease.ledger.book().attempts[lease.number].phase is Phase.BOOTING:
        trip.enter("proof", f"whether {lease.gpu} at {lease.provider.name} is the machine that was rented")
        try:
            why = stranger(shell, lease.label)
        except MachineFailed as err:
            shell.close()
            return Failed(fault=Fault.BOOT, why=str(err))
        if why:
            shell.close()
            return Failed(fault=Fault.STRANGER, why=why)
        lease.ledger.record(Signal.REACHABLE, attempt=lease.number, host_key=fingerprint)
    return Machine(lease=lease, shell=shell)


def lets_in(trip: Trip, lease: Lease) -> bool:
    """One look. What is wrong with a machine is told when it is its turn."""
    try:
        instance = lease.describe()
    except ProviderError:
        return False
    lease.heed(instance)
    shell = _shell_for(trip, lease, instance, None)
    if shell is None:
        return False
    try:
        return shell.probe()
    finally:
        shell.close()
