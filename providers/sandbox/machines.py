"""Rented machines seen from the marketplace: start one, look at it, end it, wipe it.

Owns `machines/<id>/` in the sandbox folder and nothing beside it. All state is on disk and in the kernel, so that a server which was
killed and started again finds every machine. Knows nothing of money, accounts or HTTP.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import machine
from .processes import MARK, ProcessId, alive, descendants, end_tree, identify, send

PRIVATE_RUN = 'mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec "$@"'
"""As root, sshd wants /run/sshd. Where it is missing, the machine gets a /run of its own rather than a folder on the host."""


class HostError(Exception):
    """The practice cloud cannot run on this computer; `hint` says what would help."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What the create call gave the machine."""

    mark: str
    ssh_public_key: str
    env: Mapping[str, str]
    onstart: str
    bytes_per_s: float = 0.0
    """What its line lets through, each way; 0: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look at a machine."""

    alive: bool
    port: int | None = None
    host_key: str = ""
    up_bytes: int = 0
    """To the machine."""
    down_bytes: int = 0


class Machines(Protocol):
    """What the market needs of the real world."""

    user: str

    def start(self, machine_id: str, boot: Boot) -> None:
        """Boot it, or boot it again with what its folder holds; returns before it can be reached."""

    def look(self, machine_id: str) -> Seen:
        """Cheap, and true also for machines that another server started."""

    def end(self, machine_id: str, mark: str) -> Seen:
        """End all its processes and say what it had moved. May be called again."""

    def wipe(self, machine_id: str) -> None:
        """Remove its folder. May be called again."""

    def boot_log(self, machine_id: str) -> str:
        """The last words of a machine that did not come up."""

    def authorize(self, machine_id: str, ssh_public_key: str) -> None:
        """Let this key in too. May be called again; what was there stays."""

    def freeze(self, machine_id: str, *, frozen: bool) -> None:
        """Halt everything of it, as when its host is off the net, or let it go on."""


class RealMachines:
    """Machines of real processes under `folder`."""

    def __init__(self, folder: Path, user: str, *, private_run: bool) -> None:
        self.user = user
        self._folder = folder
        self._private_run = private_run
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, machine_id: str, boot: Boot) -> None:
        folder = self._folder / machine_id
        (folder / "root").mkdir(parents=True, mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        (folder / "init.json").unlink(missing_ok=True)  # of an earlier boot: its port is no longer ours
        if not (folder / "traffic").exists():
            (folder / "traffic").write_bytes(bytes(16))
        spec: dict[str, Any] = {"ssh_public_key": boot.ssh_public_key, "env": {**boot.env, MARK: boot.mark}, "onstart": boot.onstart}
        spec["bytes_per_s"] = boot.bytes_per_s
        (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        command = [sys.executable, "-I", machine.__file__, str(folder)]
        if self._private_run:
            command = ["unshare", "-m", "sh", "-c", PRIVATE_RUN, "sh", *command]
        environment = machine.base_environment(folder) | dict(boot.env) | {MARK: boot.mark}
        with (folder / "boot.log").open("ab") as log:
            child = subprocess.Popen(
                command, env=environment, cwd=folder / "root", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._children[machine_id] = child
        if init := identify(child.pid):
            machine.write_whole(folder / "pid.json", json.dumps({"pid": init.pid, "started": init.started}))

    def look(self, machine_id: str) -> Seen:
        if child := self._children.get(machine_id):
            child.poll()  # reaps it when it has ended
        init = self._init(machine_id)
        up_bytes, down_bytes = read_traffic(self._folder / machine_id)
        if init is None or not alive(init):
            return Seen(alive=False, up_bytes=up_bytes, down_bytes=down_bytes)
        state = self._read(machine_id, "init.json") or {}
        return Seen(alive=True, port=state.get("port"), host_key=state.get("host_key", ""), up_bytes=up_bytes, down_bytes=down_bytes)

    def end(self, machine_id: str, mark: str) -> Seen:
        end_tree(self._init(machine_id), mark)
        if child := self._children.pop(machine_id, None):
            child.wait()
        return self.look(machine_id)

    def wipe(self, machine_id: str) -> None:
        if (self._folder / machine_id).exists():
            shutil.rmtree(self._folder / machine_id, onerror=_make_writable)

    def boot_log(self, machine_id: str) -> str:
        path = self._folder / machine_id / "boot.log"
        return path.read_text(encoding="utf-8", errors="replace")[-2000:] if path.exists() else ""

    def authorize(self, machine_id: str, ssh_public_key: str) -> None:
        path = self._folder / machine_id / "root" / ".ssh" / "authorized_keys"
        if path.exists() and ssh_public_key not in path.read_text(encoding="utf-8").splitlines():
            with path.open("a", encoding="utf-8") as file:
                file.write(f"\n{ssh_public_key}\n")

    def freeze(self, machine_id: str, *, frozen: bool) -> None:
        if init := self._init(machine_id):
            for process in (init, *descendants(init)):
                send(process, signal.SIGSTOP if frozen else signal.SIGCONT)

    def _init(self, machine_id: str) -> ProcessId | None:
        state = self._read(machine_id, "pid.json")
        return ProcessId(state["pid"], state["started"]) if state else None

    def _read(self, machine_id: str, name: str) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] = json.loads((self._folder / machine_id / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return state


def read_traffic(folder: Path) -> tuple[int, int]:
    """Bytes to and from the machine in `folder` so far."""
    try:
        up_bytes, down_bytes = struct.unpack("=QQ", (folder / "traffic").read_bytes())
    except FileNotFoundError:
        return 0, 0
    return up_bytes, down_bytes


def _make_writable(function: Any, path: str, _: object) -> None:
    """A job may have left folders without write permission; they are the machine's, so they go too."""
    if not os.path.lexists(path):  # its folder was opened up and removed a moment ago
        return
    Path(path).parent.chmod(0o700)
    if Path(path).is_dir() and not Path(path).is_symlink():
        Path(path).chmod(0o700)
        shutil.rmtree(path, onerror=_make_writable)
    else:
        function(path)


def login_user() -> str:
    """Whom sshd logs in: whoever runs us."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise HostError(
            f"user id {os.geteuid()} has no name here, and sshd logs nobody in without one", "add a line to /etc/passwd"
        ) from None


def needs_private_run(folder: Path) -> bool:
    """Whether sshd runs only with a /run of its own here. Raises `HostError` when it does not run at all."""
    if sys.platform != "linux":
        raise HostError("the practice cloud needs Linux: its machines are sshd processes found through /proc", "on Windows, use WSL")
    if not machine.sshd_path() or not shutil.which("ssh-keygen"):
        raise HostError("OpenSSH's server is not installed here", "sudo apt install openssh-server (it need not be started)")
    check = folder / "check"
    machine.furnish(check, {"ssh_public_key": "", "env": {}})
    test = [machine.sshd_path(), "-t", "-f", str(check / "etc" / "sshd_config")]
    plain = subprocess.run(test, capture_output=True, text=True, check=False)
    if plain.returncode == 0:
        shutil.rmtree(check)
        return False
    if os.geteuid() == 0 and shutil.which("unshare"):
        private = subprocess.run(["unshare", "-m", "sh", "-c", PRIVATE_RUN, "sh", *test], capture_output=True, text=True, check=False)
        if private.returncode == 0:
            shutil.rmtree(check)
            return True
    missing = re.search(r"privilege separation directory: (\S+)", plain.stderr)
    hint = f"sudo mkdir -p {missing[1]}" if missing else f"try {shlex.join(test)}"
    raise HostError(f"sshd does not start here: {plain.stderr.strip()}", hint)
