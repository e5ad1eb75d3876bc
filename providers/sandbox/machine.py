"""The init of one rented machine: `python machine.py DIR`. Standard library only, and it imports nothing of ours.

Owns the machine's public port, its process tree (as child subreaper) and its byte counters. Each connection gets an OpenSSH
`sshd -i` of its own; this process relays between the two, so that it sees every byte. Knows nothing of offers, money or HTTP, and
survives the server that started it.

The folder, of which this process makes image, etc and the last two:

    spec.json        what the create call gave: environment, key, onstart, mark; and how fast its line is
    root/            HOME and workspace of whoever logs in
    image/           its own Python environment, with all packages of this computer's
    etc/             host key, sshd_config, `enter` (sets the environment) and `login` (what sshd runs)
    traffic          two unsigned 64-bit numbers in host order: bytes to the machine, bytes from it
    init.json        pid, start time and, once it can be reached, port and host key
    boot.log         what sshd and onstart said
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import pwd
import re
import shlex
import shutil
import signal
import site
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
CHUNK = 256 * 1024
SBIN = "/usr/sbin:/usr/local/sbin:/sbin"
SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server", "/usr/libexec/sftp-server")

SSHD_CONFIG = """\
HostKey "{etc}/host_key"
AuthorizedKeysFile "{authorized}"
ForceCommand {login}
{sftp}
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
X11Forwarding no
PermitUserRC no
PrintMotd no
PrintLastLog no
PidFile none
LogLevel VERBOSE
SetEnv SHLVL=1
"""
"""The last line: bash takes a first-level shell below sshd for a person's and reads the startup files of this computer's owner, which may
take seconds (pyenv, conda) or, with a lock that a killed one left behind, a minute. Those of the machine are read one shell further in."""

ENTER = """\
#!/bin/sh
# What the image and the create call put into every process of this machine.
{exports}
mkdir -p "$TMPDIR" && cd "$HOME" || exit 1
exec "$@"
"""

LOGIN = """\
#!/bin/sh
# The login shell above us may have read its owner's startup files: nothing of theirs gets in. By SSH_CLIENT bash knows that it is a login's
# and reads the machine's own ~/.bashrc.
clean() {{ exec /usr/bin/env -i TERM="${{TERM:-dumb}}" SSH_CONNECTION="$SSH_CONNECTION" SSH_CLIENT="$SSH_CLIENT" {enter} "$@"; }}
if [ -n "$SSH_ORIGINAL_COMMAND" ]; then clean {shell} -c "$SSH_ORIGINAL_COMMAND"; fi
clean {shell} -i
"""

PIP = """\
#!/bin/sh
exec {python} -m pip "$@"
"""


class Counters:
    """Bytes both ways, in a mapped file: the meter reads them, and they outlive a killed init."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 16)
        self._numbers = memoryview(self._map).cast("Q")  # a store of one aligned number is never seen half done
        self._lock = threading.Lock()

    def add(self, index: int, count: int) -> None:
        with self._lock:
            self._numbers[index] += count


def write_whole(path: Path, text: str) -> None:
    """A reader sees the old text or the new one, and only its owner sees any."""
    temporary = path.with_suffix(".new")
    with open(temporary, "w", encoding="utf-8", opener=_private) as file:
        file.write(text)
    temporary.replace(path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def base_environment(folder: Path) -> dict[str, str]:
    """What every process of the machine in `folder` starts with, before the create call's own."""
    root, user = folder / "root", pwd.getpwuid(os.geteuid()).pw_name
    return {
        "HOME": str(root),
        "USER": user,
        "LOGNAME": user,
        "TMPDIR": str(root / "tmp"),
        "PATH": f"{folder / 'image' / 'bin'}:{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "SHELL": shell(),
        "SSH_HOST_KEYS": str(folder / "etc"),  # /etc/ssh is that of the computer that all these machines are on
    }


def make_image(image: Path) -> None:
    """A Python environment of the machine's own that has all of this computer's packages; what pip adds stays in it."""
    base = Path(getattr(sys, "_base_executable", sys.executable))
    packages = image / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for path in (image / "bin", packages):
        path.mkdir(parents=True, exist_ok=True)
    (image / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n", encoding="utf-8")
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages())
    (packages / "image.pth").write_text(lines, encoding="utf-8")
    python = image / "bin" / "python3"
    for name in ("python3", "python"):
        (image / "bin" / name).unlink(missing_ok=True)
        (image / "bin" / name).symlink_to(base)
    for name in ("pip", "pip3"):
        _script(image / "bin" / name, PIP.format(python=shlex.quote(str(python))))


def shell() -> str:
    """Bash where there is one, as on rented machines."""
    return shutil.which("bash", path="/bin:/usr/bin:/usr/local/bin") or "/bin/sh"


def sshd_path() -> str:
    """Absolute, as sshd insists on; empty when there is none."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:{SBIN}") or ""


def furnish(folder: Path, spec: dict[str, object]) -> str:
    """Write everything that sshd reads. Returns the public host key."""
    root, etc = folder / "root", folder / "etc"
    for path in (root / ".ssh", root / "tmp", etc):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    (root / ".ssh" / "authorized_keys").write_text(f"{spec['ssh_public_key']}\n", encoding="utf-8")
    if not (etc / "host_key").exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(etc / "host_key")], check=True)
    make_image(folder / "image")
    environment = spec["env"]
    assert isinstance(environment, dict)
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in (base_environment(folder) | environment).items())
    _script(etc / "enter", ENTER.format(exports=exports))
    enter = shlex.quote(str(etc / "enter"))
    _script(etc / "login", LOGIN.format(enter=enter, shell=shell()))
    sftp = next((f"Subsystem sftp {path}" for path in SFTP_SERVERS if Path(path).exists()), "")
    authorized = str(root / ".ssh" / "authorized_keys").replace("%", "%%")  # only this one expands %u and the like
    config = SSHD_CONFIG.format(etc=etc, authorized=authorized, login=shlex.quote(str(etc / "login")), sftp=sftp)
    (etc / "sshd_config").write_text(config, encoding="utf-8")
    return " ".join((etc / "host_key.pub").read_text(encoding="utf-8").split()[:2])


def _script(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o700)


def spawn(command: list[str], *, stdin: int, stdout: int, log: Path) -> int:
    """Start a child with nothing of ours but these three; the main loop reaps it."""
    return os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, stdout, 1),
            (os.POSIX_SPAWN_OPEN, 2, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
    )


def pump(source: socket.socket, sink: socket.socket, count: Callable[[int], None], bytes_per_s: float) -> None:
    """Relay one direction until it ends, at the speed of the machine's line; 0: as fast as it goes."""
    most = max(1024, min(CHUNK, int(bytes_per_s / 16))) if bytes_per_s else CHUNK
    with suppress(OSError):  # one side hung up: over for both, and the other pump sees it too
        while chunk := source.recv(most):
            count(len(chunk))
            sink.sendall(chunk)
            if bytes_per_s:
                time.sleep(len(chunk) / bytes_per_s)
        sink.shutdown(socket.SHUT_WR)
        return
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def serve_connection(client: socket.socket, folder: Path, counters: Counters, bytes_per_s: float) -> None:
    """One login: its own sshd, and two pumps that count."""
    ours, theirs = socket.socketpair()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with client, ours:
        with theirs:
            command = [sshd_path(), "-i", "-e", "-f", str(folder / "etc" / "sshd_config")]
            spawn(command, stdin=theirs.fileno(), stdout=theirs.fileno(), log=folder / "boot.log")
        inward = threading.Thread(target=pump, args=(client, ours, lambda n: counters.add(0, n), bytes_per_s), daemon=True)
        inward.start()
        pump(ours, client, lambda n: counters.add(1, n), bytes_per_s)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)  # sshd has gone: nothing can answer any more
        inward.join()


def accept_for_ever(listener: socket.socket, folder: Path, counters: Counters, bytes_per_s: float) -> None:
    """A thread for each connection."""
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve_connection, args=(client, folder, counters, bytes_per_s), daemon=True).start()


def become_init() -> None:
    """Orphans below us come to us, and their end is announced by SIGCHLD."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])


def reap_for_ever() -> None:
    """An init's other duty: orphans that end here leave no zombies."""
    while True:
        signal.sigtimedwait([signal.SIGCHLD], 60)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def run_onstart(folder: Path, script: str) -> None:
    """Once at boot, as everything else of the machine runs; nobody waits for it."""
    path = folder / "etc" / "onstart"
    path.write_text(script, encoding="utf-8")
    with Path(os.devnull).open("rb") as nothing, (folder / "boot.log").open("ab") as log:
        spawn([str(folder / "etc" / "enter"), "/bin/sh", str(path)], stdin=nothing.fileno(), stdout=log.fileno(), log=folder / "boot.log")


def main(folder: Path) -> None:
    """Boot, say where we are, and be the init until somebody kills us."""
    become_init()
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    host_key = furnish(folder, spec)
    stat = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    counters = Counters(folder / "traffic")
    state = {"pid": os.getpid(), "started": int(stat[19]), "port": listener.getsockname()[1], "host_key": host_key}
    line = float(spec.get("bytes_per_s", 0))
    threading.Thread(target=accept_for_ever, args=(listener, folder, counters, line), daemon=True).start()
    if re.search(r"\S", spec["onstart"]):
        run_onstart(folder, spec["onstart"])
    write_whole(folder / "init.json", json.dumps(state))
    reap_for_ever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
