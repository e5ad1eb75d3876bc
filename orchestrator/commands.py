"""What is said to the training machine, word for word. PURE: values in, argument lists out.

Quoting happens in `shell.run`; where a shell is needed there, its text is fixed and the values are its
arguments. Paths are relative to the login's home, which every cloud sets differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from trainer.protocol import NAME_PATTERN

Argv = list[str]

MANIFEST = "setup/manifest.sha256"
SETUP = "setup/setup.sh"
BOOTSTRAP = "setup/bootstrap.sh"
REQUIREMENTS = "setup/requirements.txt"
HUB = "setup/hub.py"


def root(run: str) -> str:
    """The session's folder on the machine."""
    assert re.match(NAME_PATTERN, run), run
    return f"lorry/{run}"


def make_folders(base: str, folders: Iterable[str]) -> Argv:
    """Create the folders that files will be put into."""
    return ["mkdir", "-p", "--", *(f"{base}/{folder}" if folder else base for folder in sorted(set(folders)))]


ANY_PYTHON = 'for name in python3 python; do command -v $name >/dev/null && exec $name - "$1"; done; echo "no Python" >&2; exit 127'
"""Runs a program that comes on stdin, with whatever Python is there."""


def prove(challenge: str) -> Argv:
    """Run the prover, which comes on stdin: what the rental's nonce says of the host keys over there."""
    return ["sh", "-c", ANY_PYTHON, "prove", challenge]


def inspect(base: str) -> Argv:
    """Run the inspector, which comes on stdin: it tells what this machine is."""
    return ["sh", "-c", ANY_PYTHON, "inspect", base]


def nothing() -> Argv:
    """Takes as long as the way there and back."""
    return ["true"]


def swallow() -> Argv:
    """Read stdin to its end, for nothing but the time that it takes."""
    return ["sh", "-c", "cat >/dev/null"]


def pour(count: int) -> Argv:
    """Send so many bytes back, for nothing but the time that it takes."""
    return ["head", "-c", str(count), "/dev/zero"]


def has_rsync() -> Argv:
    """Ends with 0 where an rsync is installed that runs."""
    return ["sh", "-c", "rsync --version >/dev/null 2>&1"]


def verify(base: str) -> Argv:
    """Compare everything that was sent with the manifest; prints what differs."""
    return ["sh", "-c", 'cd "$1" && sha256sum --check --quiet --strict "$2"', "verify", base, MANIFEST]


def remove(base: str) -> Argv:
    """Delete the files named on stdin, each ended by a zero byte: there may be more than an argument list holds."""
    return ["sh", "-c", 'cd "$1" && xargs -0 rm -f --', "remove", base]


def set_up(base: str) -> Argv:
    """Start building the Python environment, or ask how far it is: prints `ready PYTHON`, `failed WHY` or `running WHAT`."""
    return ["sh", f"{base}/{SETUP}", base]


def fetch_bases(base: str, python: str) -> Argv:
    """Fetch what is ordered on stdin from the hub, or ask how far that is: prints `wanted` besides what `set_up` prints."""
    return [python, f"{base}/{HUB}", base]


def environment(base: str) -> str:
    """The interpreter that the set-up makes where the image has none with every package."""
    return f"{base}/env/python"


def write(path: str) -> Argv:
    """Put stdin into a file that appears under its name only when it is whole."""
    return ["sh", "-c", 'cat > "$1.part" && mv "$1.part" "$1"', "write", path]


def start(base: str, python: str, *, offline: bool = False) -> Argv:
    """Start the detached supervisor, or find it running; the same command either way. `offline`: every base is there already."""
    passive = "OMP_WAIT_POLICY=PASSIVE"  # spinning threads starve whatever else runs on a small machine
    settings = [passive, *(["HF_HUB_OFFLINE=1"] if offline else [])]
    return ["sh", "-c", 'cd "$1" && p=$2 && shift 2 && exec env "$@" "$p" -m trainer.supervisor .', "start", base, python, *settings]


def stop(base: str) -> Argv:
    """Ask the supervisor for a checkpoint and an orderly end."""
    return ["touch", f"{base}/stop"]


def leave(base: str, job: str) -> Argv:
    """Ask for a checkpoint and an orderly end of this job alone; the others go on."""
    return ["touch", f"{base}/jobs/{job}/stop"]


def tail(base: str) -> Argv:
    """The last words of the supervisor, for an error message."""
    return ["sh", "-c", 'tail -c 4000 "$1/supervisor.log" 2>/dev/null || true', "tail", base]
