"""`make demo`: the main job for real, on the practice cloud, as a user would do it.

    python -m templates.demo.demo

Lays a config, the demo base and datasets of real photographs into a folder, runs `lorry run` on it, shows what the practice
cloud's own meter has seen, and ends the practice cloud. Everything is in a temporary LORRY_HOME unless one is set. Ends with
the exit code of the run, or 10 when the meter still shows a living machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from providers.sandbox.billing import bill
from providers.sandbox.provider import running

from .datasets import write_all

HERE = Path(__file__).parent


def main() -> int:
    """Prepare, run, look at the bill, tidy up."""
    began = time.monotonic()
    home = Path(os.environ.get("LORRY_HOME") or tempfile.mkdtemp(prefix="lorry-demo-"))
    os.environ["LORRY_HOME"] = str(home)
    folder = home / "demo"
    prepare(folder)
    lorry = [sys.executable, "-m", "orchestrator.cli"]
    print(f"$ cd {folder}\n$ lorry run lorry.toml -y\n", flush=True)
    code = subprocess.call([*lorry, "run", "lorry.toml", "-y"], cwd=folder)
    seen = bill(home / "sandbox")
    end_practice_cloud(home / "sandbox")
    print(f"\nThe practice cloud's own meter saw {len(seen.machines)} machine(s), {len(seen.live)} of them alive now.")
    print(f"Everything is in {home}; the whole demo took {time.monotonic() - began:.0f} s.")
    return 10 if seen.live else code


def prepare(folder: Path) -> None:
    """Config, base and datasets side by side, as the config's relative paths want them."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(HERE / "lorry.toml", folder)
    shutil.copytree(HERE / "base", folder / "base", dirs_exist_ok=True)
    write_all(folder / "datasets")


def end_practice_cloud(folder: Path) -> None:
    """Stop the one that `lorry run` started, by its own id."""
    server = running(folder)
    if server is not None:
        os.kill(server.pid, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
