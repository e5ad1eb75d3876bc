"""What the end-to-end tests stand on: the command as a process, a practice cloud beside it, and a checker that trusts neither.

Everything here looks at lorry from outside: command lines, files at home, the cloud's own log, /proc.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "orchestrator.cli"]
GIB = 2**30


def poll(condition: Callable[[], Any], *, what: str, timeout_s: float = 120.0) -> Any:
    """Wait until it is true and return it; say what was not when it never is."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout_s:.0f} s"
        time.sleep(0.02)
    return found


# --- processes ------------------------------------------------------------------------------------


def processes_naming(word: str) -> dict[int, str]:
    """Living processes whose command line or environment holds `word`, but the test runner's own: pid -> command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in {os.getpid(), os.getppid()}:
            continue
        with suppress(OSError):  # it ended, or is not ours
            command = (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and word.encode() in command + (entry / "environ").read_bytes() and b"pytest" not in command:
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def children_of(pid: int) -> list[int]:
    """Direct children, from the kernel."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def supervisor_of(session: Path) -> int:
    """The supervisor's pid, from its lock."""
    return int((session / "supervisor.lock").read_text())


def lives(pid: int) -> bool:
    """Whether there is a process of this number that is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the second while it was being read
        return False


# --- the cloud, read from its own log -------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rented:
    """One machine as the meter's log tells it."""

    id: str
    label: str
    gpu: str
    live: bool
    usd: Fraction
    """Meaningful once it has ended."""


@dataclass(slots=True, kw_only=True)
class Cloud:
    """A practice cloud in a process of its own."""

    folder: Path
    url: str
    key: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, folder: Path, *, python: str = sys.executable) -> Cloud:
        """Serve one from `folder`. Its machines have the programs beside `python` first on their PATH."""
        folder.mkdir(parents=True)
        command = [python, "-m", "orchestrator.cli", "sandbox", "--folder", str(folder), "--json"]
        with (folder / "stderr").open("w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        poll(lambda: (folder / "sandbox.json").exists() or process.poll() is not None, what="a practice cloud")
        document = json.loads((folder / "sandbox.json").read_text())
        return cls(folder=folder, url=document["url"], key=document["api_key"], process=process)

    def stop(self) -> None:
        """End it and its machines."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def machines(self, run: str = "") -> list[Rented]:
        """Every machine rented under a label that names `run`: our own sum over the log's lines."""
        lines = (self.folder / "bill.jsonl").read_text().splitlines() if (self.folder / "bill.jsonl").exists() else []
        events = [json.loads(line) for line in lines]
        found = []
        for made in [e for e in events if e["event"] == "created" and run in e["label"]]:
            later = [e for e in events if e["machine"] == made["machine"]]
            end = next((e for e in later if e["event"] == "ended"), None)
            off = next((e for e in later if e["event"] == "gpu_off"), end)
            usd = Fraction(0)
            if end is not None and off is not None:
                price = {name: Fraction(value) for name, value in made["prices"].items()}
                usd += price["gpu_usd_per_hour"] * _hours(made["at"], off["at"])
                usd += price["disk_usd_per_gib_hour"] * made["disk_gib"] * _hours(made["at"], end["at"])
                usd += price["upload_usd_per_gib"] * Fraction(end["up_bytes"], GIB)
                usd += price["download_usd_per_gib"] * Fraction(end["down_bytes"], GIB)
            found.append(Rented(id=made["machine"], label=made["label"], gpu=made["gpu"], live=end is None, usd=usd))
        return found

    def session(self, run: str) -> Path:
        """The session's folder on the machine that the run holds now."""
        (machine,) = [m for m in self.machines(run) if m.live]
        return self.folder / "machines" / machine.id / "root" / "lorry" / run


def _hours(begin: str, end: str) -> Fraction:
    return Fraction(round((datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds() * 10**6), 3600 * 10**6)


# --- the command ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


@dataclass(slots=True)
class Running:
    """A command under way."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def said(self) -> str:
        """What it has put on stderr so far."""
        return self.err.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """SIGKILL, and see it dead."""
        self.process.kill()
        self.process.wait(10)

    def end(self, timeout_s: float = 300.0) -> Done:
        """Wait for its end."""
        code = self.process.wait(timeout_s)
        return Done(code=code, out=self.out.read_text(encoding="utf-8"), err=self.said)


def environment(**more: str) -> dict[str, str]:
    """This computer's, without any LORRY_ variable; one thread a process, for two cores.

    Runs have no keeper unless a test wants one: what a kill leaves behind must lie still to be looked at.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("LORRY_")} | {"LORRY_KEEPER": "off"}
    return own | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "140"} | more


@dataclass(slots=True, kw_only=True)
class Lorry:
    """The command with a home of its own, before a cloud."""

    folder: Path
    cloud: Cloud
    started: list[Running] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """LORRY_HOME."""
        return self.folder / "home"

    @property
    def env(self) -> dict[str, str]:
        """What every command gets."""
        return environment(LORRY_HOME=str(self.home), LORRY_SANDBOX_URL=self.cloud.url, LORRY_SANDBOX_KEY=self.cloud.key)

    def start(self, *arguments: str, prefix: Sequence[str] = (), **env: str) -> Running:
        """Start a command, without a terminal; `prefix`: what starts it somewhere else, such as `unshare`."""
        number = len(self.started)
        out, err = self.folder / f"{number}.out", self.folder / f"{number}.err"
        with out.open("wb") as to, err.open("wb") as talk:
            process = subprocess.Popen(
                [*prefix, *COMMAND, *arguments], cwd=self.folder, env=self.env | env, stdin=subprocess.DEVNULL, stdout=to, stderr=talk
            )
        self.started.append(Running(process, out, err))
        return self.started[-1]

    def __call__(self, *arguments: str, timeout_s: float = 300.0, **env: str) -> Done:
        """Run a command to its end."""
        return self.start(*arguments, **env).end(timeout_s)

    # -- its folders -------------------------------------------------------------------------------

    @property
    def runs(self) -> list[str]:
        """Ids of the runs that have a book."""
        return sorted(p.parent.name for p in self.home.glob("runs/*/ledger.jsonl"))

    @property
    def run(self) -> str:
        """The id of the only run."""
        (only,) = self.runs
        return only

    def at(self, run: str) -> Path:
        """A run's folder."""
        return self.home / "runs" / run

    def ledger(self, run: str) -> list[dict[str, Any]]:
        """Entries of its book, without their checksums."""
        lines = (self.at(run) / "ledger.jsonl").read_text().splitlines()
        return [json.loads(line.rpartition(" ")[0]) for line in lines]

    def kinds(self, run: str) -> list[str]:
        """Kinds of the entries, in order."""
        return [entry["kind"] for entry in self.ledger(run)]

    def events(self, run: str) -> list[dict[str, Any]]:
        """What all its machines told, in order; a torn last line left out."""
        files = sorted(self.at(run).glob("events-*.jsonl"))
        lines = [line for file in files for line in file.read_bytes().split(b"\n")[:-1]]
        return [json.loads(line) for line in lines]

    def step(self) -> int:
        """The step that the only run's training has reached, as its machine's own log tells; 0 while nothing is."""
        if not self.runs or not any(m.live for m in self.cloud.machines(self.run)):
            return 0
        try:
            lines = (self.cloud.session(self.run) / "events.jsonl").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return 0
        return max((e["step"] for e in map(json.loads, lines) if e["kind"] == "step"), default=0)

    @contextmanager
    def standing(self, step: int, *, meanwhile: Callable[[], object] = lambda: None, timeout_s: float = 240.0) -> Iterator[str]:
        """Training has done `step` (or one or two more) and stands still until the block ends. Gives the run's id."""
        poll(lambda: (meanwhile(), self._under_way(), self.step() >= step)[2], what=f"step {step}", timeout_s=timeout_s)
        (worker,) = children_of(supervisor_of(self.cloud.session(self.run)))
        os.kill(worker, signal.SIGSTOP)
        try:
            yield self.run
        finally:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGCONT)

    def _under_way(self) -> None:
        """A command that ended before anything was rented will train nothing: no use to wait for it."""
        ended = [running for running in self.started if running.process.poll()]
        assert not ended or self.runs, ended[-1].said

    def until_home(self, step: int) -> None:
        """Wait until what was told of `step` is at home."""
        poll(lambda: max((e["step"] for e in self.events(self.run) if e["kind"] == "step"), default=0) >= step, what=f"step {step} at home")


def adapters(lorry: Lorry, run: str) -> dict[str, str]:
    """Finished adapters at home: name -> SHA-256, by our own reading."""
    found = [path for path in (lorry.at(run) / "jobs").glob("*/*.safetensors") if path.stem == path.parent.name]
    return {path.stem: sha256(path.read_bytes()).hexdigest() for path in sorted(found)}


def losses(lorry: Lorry, run: str) -> dict[tuple[str, int], float]:
    """(job, step) -> loss; where a step was done twice, the later one."""
    return {(e["job"], e["step"]): e["loss"] for e in lorry.events(run) if e["kind"] == "step"}


def check_results(lorry: Lorry, run: str) -> None:
    """Every file under a final name is what its commit promised: nothing half, nothing unlisted, nothing staged any more."""
    promised = {(e["path"].replace("/out/", "/"), e["sha256"]) for e in lorry.events(run) if e["kind"] == "committed"}
    home = [path for path in sorted((lorry.at(run) / "jobs").rglob("*")) if path.is_file()]
    assert home
    for path in home:
        name = path.relative_to(lorry.at(run)).as_posix()
        assert (name, sha256(path.read_bytes()).hexdigest()) in promised, f"{name} is not what was committed"
    assert list((lorry.at(run) / "staging").iterdir()) == []


def check_gone(lorry: Lorry, run: str) -> list[Rented]:
    """The cloud's own log has no living machine of this run, its folders and processes are gone. Returns the machines there were."""
    rented = lorry.cloud.machines(run)
    assert [m for m in rented if m.live] == []
    for machine in rented:
        assert not (lorry.cloud.folder / "machines" / machine.id).exists()
        assert processes_naming(f"{lorry.cloud.folder}/machines/{machine.id}") == {}
    return rented


def check_receipt(lorry: Lorry, document: Mapping[str, Any]) -> None:
    """The receipt's money and machines are those of the cloud's log."""
    rented = check_gone(lorry, document["run"])
    assert [m["id"] for m in document["machines"] if m["id"]] == [m.id for m in rented]
    assert all(m["destroyed_verified"] is True for m in document["machines"])
    billed = sum((m.usd for m in rented), Fraction(0))
    assert abs(Fraction(document["cost"]["billed_usd"]) - billed) <= Fraction(2, 10**6) * max(1, len(rented))
    assert document["cost"]["billed_usd"] <= document["cost"]["cap_usd"]


# --- configs --------------------------------------------------------------------------------------


def config(folder: Path, base: Path, jobs: Mapping[str, Path], *, max_usd: float = 1.0, machine: str = "", **options: object) -> Path:
    """Write a lorry.toml that trains `jobs` (name -> dataset) on `base`; options go to [defaults]."""
    settings = {
        "base": str(base), "resolution": 64, "min_bucket": 32, "max_bucket": 128, "bucket_step": 8, "mixed_precision": "no",
        "rank": 4, "learning_rate": 1e-3, "optimizer": "AdamW", "steps": 4, "save_every_steps": 2,
    } | options  # fmt: skip
    lines = ['name = "e2e"', "[budget]", f"max_usd = {max_usd}", "[machine]", 'providers = ["sandbox"]', machine, "[defaults]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    for name, dataset in jobs.items():
        lines += ["[[lora]]", f"name = {json.dumps(name)}", f"dataset = {json.dumps(str(dataset))}"]
    path = folder / "lorry.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def chunks(stream: int, timeout_s: float) -> Iterator[bytes]:
    """What a terminal shows, until it is closed."""
    import select

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if select.select([stream], [], [], 0.1)[0]:
            try:
                data = os.read(stream, 65536)
            except OSError:  # EIO: the last program on it has ended
                return
            if not data:
                return
            yield data
    raise AssertionError(f"the terminal was not closed in {timeout_s:.0f} s")
