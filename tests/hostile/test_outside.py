"""The nastiest strangers again, watched from outside: lorry is a process of its own; this one sees what becomes of the folders around it.

`test_strangers.py` has the whole table, watched from within lorry's process. What a thread, a library or a child of it does to files
without Python's knowing is seen only here: by inotify while it lasts, and by names, sizes, times and hashes after it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest

if sys.platform != "linux":
    pytest.skip("inotify is Linux's", allow_module_level=True)

import apart
from attacks import ATTACKS, Attack
from stranger import JOB, RUN, Stranger
from victim import OWN

BY_NAME = {one.name: one for one in ATTACKS}
NASTIEST = [
    BY_NAME[name]
    for name in (
        "a path up the tree",
        "an absolute path",
        "a path that begins well and climbs",
        "backslashes",
        "the ledger's name",
        "a pickle that runs a command",
        "a file that changes while it is read",
    )
]
HOME = "computer/home/lorry"
SHARED = {"settled.json", "machines.json", ".machines.json.lock", "runs", f"runs/{RUN}"}
"""What all runs share in lorry's own folder."""
TEMPORARY = re.compile(r"\.([^/]+)\.[0-9a-f]{8}$")
"""What a file is written as before it gets its name."""
CHANGED, MADE, GONE = 0x2 | 0x4, 0x80 | 0x100, 0x40 | 0x200 | 0x400
"""Written to or its rights changed; made or moved here; moved away or deleted."""
CANARIES = ("canary", "computer/home/Documents", "computer/home/.ssh", "computer/cwd/jobs/lisa/out", "computer/canary")


class Inotify:
    """What happens to files in folders, told by the kernel, whoever does it."""

    def __init__(self, folders: list[Path]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._folders = {self._libc.inotify_add_watch(self._fd, os.fsencode(one), CHANGED | MADE | GONE): one for one in folders}
        assert min(self._folders) > 0, os.strerror(ctypes.get_errno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def seen(self) -> list[Path]:
        """Files that something was done to since the last call."""
        try:
            told = os.read(self._fd, 1 << 20)
        except BlockingIOError:
            return []
        found, at = [], 0
        while at < len(told):
            watch, _, _, length = struct.unpack_from("iIII", told, at)
            found.append(self._folders[watch] / os.fsdecode(told[at + 16 : at + 16 + length].rstrip(b"\0")))
            at += 16 + length
        return found


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Every name below, with kind, size, time and content; a folder's time tells of what came and went in it."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        told = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        found[path.relative_to(root).as_posix()] = (told.st_mode, told.st_size, told.st_mtime_ns, content)
    return found


def is_lorrys(path: str) -> bool:
    """Whether lorry writes there by itself: its own folder, in that the run's, in that what `OWN` names, and what came home."""
    path = TEMPORARY.sub(r"\1", path)
    below = path.removeprefix(f"{HOME}/")
    in_run = below.removeprefix(f"runs/{RUN}/")
    return path == HOME or below in SHARED or (in_run != below and (OWN.fullmatch(in_run) is not None or in_run.startswith(f"jobs/{JOB}/")))


def set_out(folder: Path) -> None:
    """Canaries in the victim's world and beside it."""
    for name in CANARIES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "canary.txt").write_text("canary")
    (folder / "canary" / "link").symlink_to(folder / "canary" / "canary.txt")


def attacked(attack: Attack, folder: Path) -> tuple[int, str, list[str]]:
    """The exit code, all that was said, and the paths outside lorry's own at which something changed."""
    with Stranger() as stranger:
        attack.play(stranger)
        words = [sys.executable, apart.__file__, str(folder / "computer"), str(stranger.endpoint.port), stranger.known, "attach autumn"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(folder / "canary"),
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        (folder / "canary").mkdir()
        with subprocess.Popen([*words], env=environment, text=True, **pipes) as lorry:  # type: ignore[call-overload]
            assert lorry.stdout.readline() == "ready\n", lorry.communicate()[0]
            set_out(folder)
            before = tree(folder)
            with Inotify([folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]) as inotify:
                said = lorry.communicate("go\n", timeout=120)[0]
                touched = {path.relative_to(folder).as_posix() for path in inotify.seen()}
            after = tree(folder)
    changed = touched | {path for path in {*before, *after} if before.get(path) != after.get(path)}
    return lorry.returncode, said, sorted(path for path in changed if not is_lorrys(path))


@pytest.mark.parametrize("attack", NASTIEST, ids=lambda attack: attack.name)
def test_nothing_outside_lorrys_own_folder_is_touched_even_for_a_moment(attack: Attack, tmp_path: Path):
    code, said, outside = attacked(attack, tmp_path)
    assert (code, outside) == (attack.code, []), said
    assert attack.says in " ".join(said.split())


def test_the_watcher_sees_what_is_made_and_gone_again_and_what_stays(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with Inotify([tmp_path, tmp_path / "a"]) as inotify:
        subprocess.run(
            [sys.executable, "-c", "import os; open('x', 'w'); os.remove('x'); os.symlink('y', 'a/z')"], cwd=tmp_path, check=True
        )
        assert {path.relative_to(tmp_path).as_posix() for path in inotify.seen()} == {"x", "a/z"}
    assert not is_lorrys("canary/canary.txt")
    assert not is_lorrys(f"{HOME}/runs/{RUN}/x.safetensors")
    assert not is_lorrys(f"{HOME}/runs/other/ledger.jsonl")
    assert is_lorrys(f"{HOME}/runs/{RUN}/ledger.jsonl")
