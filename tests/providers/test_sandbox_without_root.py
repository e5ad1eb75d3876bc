"""The practice cloud needs no rights: its own tests once more, as somebody who has none.

When the suite itself runs without root, that is every other test here. As root, this one makes a user who exists only inside a private
mount namespace, opens the folders on the way to this checkout there, and runs the tests of a machine's life as that user.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UID = 54321
CHOSEN = "logins or silent_the_second or rsync or paramiko or no_process or init_was_killed or both_directions or detached"


def closed_ancestor(path: Path) -> Path | None:
    """The first folder on the way to `path` that others may not enter."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)


def opened(folders: list[Path]) -> list[str]:
    """Commands that make `folders` reachable by everybody, in this mount namespace only."""
    closed = [(folder, ancestor) for folder in folders if (ancestor := closed_ancestor(folder))]
    commands = ["mount -t tmpfs none /mnt"]
    for number, (folder, _) in enumerate(closed):
        commands += [f"mkdir /mnt/{number}", f"mount --bind {shlex.quote(str(folder))} /mnt/{number}"]
    commands += [f"mount -t tmpfs -o mode=755 none {shlex.quote(str(ancestor))}" for ancestor in dict.fromkeys(a for _, a in closed)]
    for number, (folder, _) in enumerate(closed):
        commands += [f"mkdir -p {shlex.quote(str(folder))}", f"mount --bind /mnt/{number} {shlex.quote(str(folder))}"]
    return commands


@pytest.mark.skipif(os.geteuid() != 0, reason="this suite runs without root already")
def test_machines_work_for_a_user_without_any_rights(tmp_path: Path) -> None:
    if not shutil.which("setpriv") or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this root may not make a mount namespace, in which such a user could exist")
    tmp_path.chmod(0o777)
    passwd = tmp_path / "passwd"
    passwd.write_text(f"{Path('/etc/passwd').read_text()}lorrytest:x:{UID}:{UID}::{tmp_path}:/bin/sh\n")
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "LORRY_HOME": str(tmp_path)}
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 't'}", "-k", CHOSEN]
    tests += ["tests/providers/test_sandbox.py", "tests/providers/test_sandbox_machines.py"]
    assign = [f"{name}={value}" for name, value in environment.items()]
    drop = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", *assign, *tests]
    folders = list(dict.fromkeys([ROOT, Path(sys.prefix), Path(sys.base_prefix).resolve(), tmp_path]))
    script = ["set -e", *opened(folders), f"mount --bind {shlex.quote(str(passwd))} /etc/passwd", f"cd {shlex.quote(str(ROOT))}"]
    script.append(f"exec {shlex.join(drop)}")
    ran = subprocess.run(["unshare", "-m", "sh", "-c", "\n".join(script)], check=False, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    assert " passed" in ran.stdout
    assert "failed" not in ran.stdout
