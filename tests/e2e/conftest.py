"""One practice cloud a worker, one tiny base and one undisturbed run for all workers, and the proof that nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests import tiny

from . import world
from .world import Cloud, Lorry, adapters, config, losses, processes_naming

if sys.platform != "linux":
    pytest.skip("the practice cloud's machines are Linux processes", allow_module_level=True)

for heard, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(heard) is signal.SIG_IGN:  # tests started in the background; what they start would be deaf too
        signal.signal(heard, action)

LONG = {"steps": 10, "save_every_steps": 3, "gradient_accumulation": 20}
"""All pictures in a step: steps slow enough to be told one by one: there are five events a second at most."""


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this session have."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def once(shared: Path) -> Callable[[str, Callable[[Path], Any]], Any]:
    """Make something of a name once in all workers; its JSON comes back to each."""

    def get(name: str, make: Callable[[Path], Any]) -> Any:
        answer = shared / f"{name}.json"
        with FileLock(shared / f"{name}.lock"):
            if not answer.exists():
                folder = shared / name
                folder.mkdir(exist_ok=True)
                answer.write_text(json.dumps(make(folder)))
        return json.loads(answer.read_text())

    return get


@pytest.fixture(scope="session")
def base(once: Callable[..., Any]) -> Path:
    """A random pipeline of the true classes, a few hundred kB."""
    return Path(once("base", lambda folder: str(tiny.sd15(folder / "base"))))


@pytest.fixture(scope="session")
def drawn(once: Callable[..., Any]) -> Path:
    """Twenty drawn pictures with captions."""
    return Path(once("drawn", lambda folder: str(tiny.pictures(folder / "drawn", count=20))))


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """This worker's practice cloud."""
    cloud = Cloud.start(tmp_path_factory.mktemp("cloud") / "sandbox")
    yield cloud
    cloud.stop()
    assert [m for m in cloud.machines() if m.live] == []


@pytest.fixture(scope="session", autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After all tests of this worker no process of any of them lives."""
    own = str(tmp_path_factory.getbasetemp())
    yield
    world.poll(lambda: not processes_naming(own), what=f"the end of {processes_naming(own)}", timeout_s=10)


@pytest.fixture
def lorry(tmp_path: Path, cloud: Cloud) -> Iterator[Lorry]:
    """The command, with a fresh home. Afterwards its processes have ended and its machines are gone."""
    lorry = Lorry(folder=tmp_path, cloud=cloud)
    yield lorry
    for running in lorry.started:
        running.process.kill()
        running.process.wait(10)
    left = [run for run in lorry.runs if any(m.live for m in cloud.machines(run))]
    for run in left:  # of a test that failed: the next one needs the room
        lorry("down", run)
    assert left == []


@pytest.fixture
def quick(lorry: Lorry, base: Path, drawn: Path) -> Path:
    """A config of one job of a second."""
    return config(lorry.folder, base, {"one": drawn})


@pytest.fixture
def long(lorry: Lorry, base: Path, drawn: Path) -> Path:
    """A config of one job of a few seconds."""
    return config(lorry.folder, base, {"one": drawn}, **LONG)


@pytest.fixture(scope="session")
def undisturbed(once: Callable[..., Any], base: Path, drawn: Path, cloud: Cloud) -> Callable[[str], Any]:
    """What the run of a config ends with when nothing happens to it: adapters' hashes, losses, kinds of entries."""

    def made(options: dict[str, object]) -> Callable[[Path], Any]:
        def make(folder: Path) -> Any:
            lorry = Lorry(folder=folder, cloud=cloud)
            done = lorry("run", str(config(folder, base, {"one": drawn}, **options)), "-y", "--json")
            assert done.code == 0, done.err
            return {
                "adapters": adapters(lorry, lorry.run),
                "losses": [[step, loss] for (_, step), loss in losses(lorry, lorry.run).items()],
                "kinds": lorry.kinds(lorry.run),
            }

        return make

    return lambda name: once(f"undisturbed-{name}", made(LONG if name == "long" else {}))
