"""Machines of yours over SSH: no money, no cloud, the same run. One machine is one offer, and one lease at a time.

Owns the lease on the machine: `~/.lorry-leases/<id>/` with everything that a run puts there, and the link `~/.lorry-lease` to it, which is
the lock. We log in as you do (`ssh`, your keys and config); the run logs in with a key of its own that is allowed into the lease's folder
and leaves with it. Nothing else of yours is touched. Known to work with OpenSSH servers on Linux; never tried on a rented GPU machine.

The machines stand in `ssh.toml`, in LORRY_HOME or else in lorry's folder of the platform:

    hosts = ["me@gpu-box", "10.0.0.7:2222"]     # [user@]host[:port], or names of your ~/.ssh/config
    key = "~/.ssh/gpu"                          # where ssh needs to be told
    gpu = "RTX 4090, 24"                        # name and GiB, for a machine without `nvidia-smi`
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from .base import Account, Instance, InstanceStatus, LaunchSpec, Offer, Prices, Requirements, SSHEndpoint
from .errors import AuthError, NoCapacity, NoKey, ProviderError, Unavailable, UnexpectedResponse

TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10
FREE = Prices(gpu_usd_per_hour=Decimal(0))
HINT = "name it in ssh.toml as you would for `ssh`, and log in by hand once"
NAMES = {"A100 80GB PCIe": "A100 PCIE", "A100-SXM4-80GB": "A100 SXM4", "H100 PCIe": "H100 PCIE", "H100 80GB HBM3": "H100 SXM"}
"""What `nvidia-smi` calls a card, its maker left out -> the field's name for it."""

LOOK = r"""
cd || exit 1
if [ -e .lorry-lease/id ]; then
    for name in id label created disk; do echo "@lorry $name $(cat .lorry-lease/$name)"; done
fi
echo "@lorry free $(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')"
echo "@lorry user $(id -un)"
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits 2>/dev/null | while read -r line; do echo "@lorry gpu $line"; done
echo "@lorry end"
"""

TAKE = r"""
umask 077; cd || exit 1
dir=.lorry-leases/$1
mkdir -p "$dir/home" .ssh && printf '%s' "$1" >"$dir/id" && printf '%s' "$2" >"$dir/label" && date +%s >"$dir/created" || exit 1
printf '%s' "$3" >"$dir/disk" && printf '%s\n' "$5" >"$dir/enter" && printf '%s\n' "$6" >"$dir/onstart" && chmod 700 "$dir/enter" || exit 1
if ! ln -sn "$dir" .lorry-lease 2>/dev/null; then
    rm -rf "$dir"; echo "@lorry taken $(cat .lorry-lease/label)"; echo "@lorry end"; exit
fi
[ ! -s .ssh/authorized_keys ] || [ -z "$(tail -c 1 .ssh/authorized_keys)" ] || echo >>.ssh/authorized_keys
printf 'restrict,command="%s" %s lorry-lease-%s\n' "$PWD/$dir/enter" "$4" "$1" >>.ssh/authorized_keys || exit 1
[ -z "$6" ] || nohup "$PWD/$dir/enter" sh "$PWD/$dir/onstart" >"$dir/onstart.log" 2>&1 </dev/null &
echo "@lorry id $1"; echo "@lorry end"
"""
"""The link is made last and in one step: of two who want the machine one gets it, and whoever sees a lease sees a whole one."""

ENTER = r"""#!/bin/sh
# A lease of lorry: what its key may do, and where. It ends with `lorry down` or, from here, by removing the whole lease.
real=$HOME; cd "${{0%/*}}/home" || exit 1
export HOME="$PWD" LORRY_LEASE={id} PYTHONUSERBASE="${{PYTHONUSERBASE:-$real/.local}}" HF_HOME="${{HF_HOME:-$real/.cache/huggingface}}"
{exports}
case "$SSH_ORIGINAL_COMMAND" in
"") [ $# = 0 ] || exec "$@"; exec "${{SHELL:-/bin/sh}}" ;;
internal-sftp* | *sftp-server*)
    for path in "${{SSH_ORIGINAL_COMMAND%% *}}" /usr/lib/openssh/sftp-server /usr/libexec/openssh/sftp-server /usr/lib/ssh/sftp-server; do
        [ ! -x "$path" ] || exec "$path"
    done; exit 1 ;;
esac
exec "${{SHELL:-/bin/sh}}" -c "$SSH_ORIGINAL_COMMAND"
"""

END = r"""
cd || exit 1
if [ -e .ssh/authorized_keys ] && grep -q " lorry-lease-$1\$" .ssh/authorized_keys; then
    grep -v " lorry-lease-$1\$" .ssh/authorized_keys >.ssh/lorry-$1; cat .ssh/lorry-$1 >.ssh/authorized_keys; rm .ssh/lorry-$1
fi
ours() { grep -lszxF "LORRY_LEASE=$1" /proc/[0-9]*/environ | cut -d/ -f3; }
for round in 1 2 3 4 5 6 7 8 9 10; do
    found=$(ours "$1"); [ -n "$found" ] || break
    kill -9 $found 2>/dev/null; sleep 0.1
done
found=$(ours "$1"); [ -z "$found" ] || { echo "@lorry left" $found; echo "@lorry end"; exit; }
if [ -d ".lorry-leases/$1" ]; then chmod -R u+rwX ".lorry-leases/$1"; rm -rf ".lorry-leases/$1"; fi
[ "$(readlink .lorry-lease)" != ".lorry-leases/$1" ] || rm .lorry-lease
rmdir .lorry-leases 2>/dev/null; echo "@lorry end"
"""
"""The key first, so that nobody comes back; the lock last, so that the lease is seen until all of it has gone."""


@dataclass(frozen=True, slots=True)
class Said:
    """How a script on a machine ended."""

    returncode: int
    out: str
    err: str


Run = Callable[[str, str, Sequence[str]], Said]
"""Runs a POSIX sh script with arguments on a host."""


def over_ssh(options: Sequence[str] = ()) -> Run:
    """Scripts through the system's `ssh`: your config, your agent, your known hosts. It never asks a question."""

    def run(host: str, script: str, arguments: Sequence[str]) -> Said:
        words = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}", *options, *address(host)]
        command = shlex.join(["sh", "-s", "--", *arguments])
        try:
            done = subprocess.run([*words, command], input=script.encode(), capture_output=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{host} did not answer in {TIMEOUT_S:.0f} s") from error
        except OSError as error:
            raise ProviderError(f"ssh cannot be started: {error.strerror}", hint="install an OpenSSH client") from error
        return Said(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    return run


def address(host: str) -> list[str]:
    """`[user@]host[:port]` as ssh's words. A name of ~/.ssh/config stays as it is."""
    name, _, port = host.rpartition(":") if re.search(r"[^:]:\d+$", host) else (host, "", "")
    return [*(("-p", port) if port else ()), "--", name]


def config_file() -> Path:
    """Where the machines stand."""
    if home := os.environ.get("LORRY_HOME"):
        return Path(home) / "ssh.toml"
    from platformdirs import user_state_path

    return user_state_path("lorry") / "ssh.toml"


def machines_in(file: Path) -> dict[str, Any]:
    """What the file says, as arguments of `SSH`; without a file, no machines."""
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"hosts": ()}
    except (OSError, ValueError) as error:
        raise ProviderError(f"{file} cannot be read: {error}", hint="it is TOML") from error
    hosts, key, gpu = document.get("hosts", []), document.get("key", ""), document.get("gpu", "")
    if not (isinstance(hosts, list) and all(isinstance(word, str) and word for word in [*hosts, key or "-", gpu or "-"])):
        raise ProviderError(f"{file}: `hosts` is a list of texts, `key` and `gpu` are texts", hint='as in hosts = ["me@gpu-box:22"]')
    return {"hosts": hosts, "gpu": gpu, "options": ("-i", str(Path(key).expanduser()), "-o", "IdentitiesOnly=yes") if key else ()}


class SSH:
    """Machines of yours."""

    name = "ssh"
    self_destroy = None  # nothing to pay for, and nobody whose call would end it
    console_url = "a login on the machine (`rm ~/.lorry-lease` ends the lease, the folder below ~/.lorry-leases is the run)"

    def __init__(self, hosts: Sequence[str], *, gpu: str = "", options: Sequence[str] = (), run: Run | None = None) -> None:
        """`gpu`: what to take a machine for that has no `nvidia-smi`, as in "RTX 4090, 24"."""
        self._hosts, self._gpu, self._options = tuple(hosts), gpu, tuple(options)
        self._run = run or over_ssh(self._options)

    @classmethod
    def from_env(cls) -> SSH:
        return cls(**machines_in(config_file()))

    def __repr__(self) -> str:
        return f"SSH({list(self._hosts)!r})"

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        del requirements  # a handful of machines: the planner filters
        return [offer for host in self._all() if (offer := self._offer(host))]

    def launch(self, offer: Offer, spec: LaunchSpec) -> Instance:
        instance_id = f"{offer.id}-{secrets.token_hex(6)}"
        nonce = instance_id.rpartition("-")[2]
        exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in spec.env.items())
        enter = ENTER.format(id=nonce, exports=exports)
        words = (nonce, spec.label, str(spec.disk_gib), spec.ssh_public_key.strip(), enter, spec.onstart)
        try:
            said = self._ask(offer.id, TAKE, *words)
        except (Unavailable, UnexpectedResponse) as error:
            error.instance_ids = (instance_id,)  # it may have been taken, and then it is known by this
            raise
        if taken := said.get("taken"):
            raise NoCapacity(f"{offer.id} is taken by {taken[0]}", hint="lorry ps, or lorry reap when nothing of it runs any more")
        if said.get("id") != [nonce]:
            raise UnexpectedResponse(f"{offer.id} does not say that it was taken", instance_ids=(instance_id,))
        return Instance(
            provider=self.name,
            id=instance_id,
            label=spec.label,
            status=InstanceStatus.PENDING,
            prices=FREE,
            disk_gib=spec.disk_gib,
            gpu_name=offer.gpu_name,
        )

    def describe(self, instance_id: str) -> Instance:
        host, nonce = self._place(instance_id)
        for one in self._leases(host) if host else self.instances():
            if one.id == f"{host}-{nonce}":
                return one
        return Instance(provider=self.name, id=instance_id, label="", status=InstanceStatus.GONE)

    def instances(self) -> Sequence[Instance]:
        return [instance for host in self._all() for instance in self._leases(host)]

    def terminate(self, instance_id: str) -> None:
        host, nonce = self._place(instance_id)
        if not host:
            self.instances()  # not ours; a machine that cannot be asked says so
            return
        if left := self._ask(host, END, nonce).get("left"):
            raise Unavailable(f"processes of the lease do not end on {host}: {left[0]}")

    def account(self) -> Account:
        for host in self._all():
            self._ask(host, LOOK)
        return Account(name=", ".join(self._hosts))

    def billed_usd(self, instance_id: str) -> Decimal | None:
        return Decimal(0) if self._place(instance_id)[0] else None  # it is yours

    def _all(self) -> Sequence[str]:
        if not self._hosts:
            raise NoKey("no machine of yours is named", hint=f'write `hosts = ["user@host:port"]` into {config_file()}')
        return self._hosts

    def _place(self, instance_id: str) -> tuple[str, str]:
        """The host and the lease that an id names; no host when it is none of ours."""
        host, _, nonce = instance_id.rpartition("-")
        return (host, nonce) if host in self._all() and re.fullmatch("[0-9a-f]{12}", nonce) else ("", "")

    def _offer(self, host: str) -> Offer | None:
        """None while it is taken, and for a machine without a card."""
        said = self._ask(host, LOOK)
        cards = said.get("gpu") or ([self._gpu] if self._gpu else [])
        if "id" in said or not cards:
            return None
        name, _, memory = (word.strip() for word in cards[0].rpartition(","))
        try:
            vram_gib = float(memory) / (1024 if "gpu" in said else 1)  # nvidia-smi counts in MiB
            return Offer(
                provider=self.name, id=host, machine_id=host, gpu_name=_field_name(name), vram_gib=vram_gib, prices=FREE,
                gpu_count=len(cards), disk_gib=int(said["free"][0]),
            )  # fmt: skip
        except (ValueError, KeyError, IndexError) as error:
            raise UnexpectedResponse(f"{host} tells nonsense of its card or disk: {cards[0]}, {said.get('free')}") from error

    def _leases(self, host: str) -> list[Instance]:
        said = self._ask(host, LOOK)
        if "id" not in said:
            return []
        try:
            (nonce,), (label,) = said["id"], said["label"]
            created, disk_gib = datetime.fromtimestamp(int(said["created"][0]), UTC), int(said["disk"][0])
            user = said["user"][0]
        except (KeyError, ValueError, IndexError, OverflowError) as error:
            raise UnexpectedResponse(f"the lease on {host} cannot be read: {error!r}") from error
        name, port = self._resolved(host)
        cards = said.get("gpu") or [self._gpu]
        return [
            Instance(
                provider=self.name, id=f"{host}-{nonce}", label=label, status=InstanceStatus.RUNNING, prices=FREE, disk_gib=disk_gib,
                ssh=SSHEndpoint(host=name, port=port, user=user), gpu_name=_field_name(cards[0].rpartition(",")[0]), created_at=created,
            )
        ]  # fmt: skip

    def _resolved(self, host: str) -> tuple[str, int]:
        """Where a name of ~/.ssh/config leads, as `ssh` itself reads it."""
        words = ["ssh", "-G", *self._options, *address(host)]
        told = subprocess.run(words, capture_output=True, text=True, check=False, timeout=CONNECT_TIMEOUT_S).stdout
        found = dict(line.partition(" ")[::2] for line in told.splitlines())
        try:
            return found["hostname"], int(found["port"])
        except (KeyError, ValueError) as error:
            raise ProviderError(f"ssh does not understand {host!r}", hint=HINT) from error

    def _ask(self, host: str, script: str, *arguments: str) -> dict[str, list[str]]:
        """What a script answers, by the words in its lines; what else a login prints is passed over. Raises unless it came to its end."""
        done = self._run(host, script, arguments)
        lines = [line.removeprefix("@lorry ").partition(" ") for line in done.out.splitlines() if line.startswith("@lorry ")]
        if done.returncode == 0 and lines and lines[-1][0] == "end":
            said: dict[str, list[str]] = {}
            for word, _, rest in lines[:-1]:
                said.setdefault(word, []).append(rest.strip())
            return said
        why = " ".join((done.err.strip().splitlines() or [f"exit {done.returncode}"])[-1].split())[:300]
        if done.returncode != 255:  # which is ssh's own
            raise UnexpectedResponse(f"{host} did not do as asked: {why}")
        if re.search(r"permission denied|host key verification failed|too many authentication", done.err, re.IGNORECASE):
            raise AuthError(f"{host} does not let us in: {why}", hint=HINT)
        raise Unavailable(f"{host} cannot be reached: {why}")


def _field_name(name: str) -> str:
    short = re.sub(r"^NVIDIA (GeForce )?", "", name.strip())
    return NAMES.get(short, short)
