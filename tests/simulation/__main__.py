"""python -m tests.simulation SEED                       one seed, told
python -m tests.simulation --seeds N [--first K] [--cores 2]    many; ends with one line of figures
    --state FILE    go on where a run with the same numbers was cut
    --table         what went wrong how often, by what lorry was doing
python -m tests.simulation --without RULE --seeds N     with one rule of the protocol taken out
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

CHUNK = 1000
TELL_S = 10.0
COLLECT = 250
"""Seeds between two collections of garbage: worlds go in circles, and looking for them all the time costs a tenth."""

SIMULATED = ("orchestrator", "providers", "templates", "trainer", "tests/simulation")

Tally = Counter[tuple[str, str]]


@dataclass(slots=True)
class Sum:
    """What many seeds came to."""

    happened: Counter[str] = field(default_factory=Counter)
    faults: Tally = field(default_factory=Counter)
    broken: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Sum) -> None:
        """Those too."""
        self.happened += other.happened
        self.faults += other.faults
        self.broken += other.broken

    def to_json(self) -> dict[str, Any]:
        """For the file that a cut run goes on from."""
        faults = [[*key, number] for key, number in self.faults.items()]
        return {"happened": dict(self.happened), "faults": faults, "broken": self.broken}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Sum:
        """What `to_json` gave."""
        faults: Tally = Counter({(fault, phase): number for fault, phase, number in document["faults"]})
        return cls(Counter(document["happened"]), faults, [(seed, words) for seed, words in document["broken"]])


def told(seed: int) -> int:
    """Print the story of a seed; 1 when it broke a promise."""
    from .checker import faults
    from .lives import live
    from .standins import install

    install()
    story = live(seed, telling=True)
    for line in story.world.story or []:
        print(line)
    broken = faults(story)
    print("\n".join(f"BROKEN: {what}" for what in broken) or "every promise was kept")
    return bool(broken)


def many(first: int, count: int, *, stop: bool = False) -> Sum:
    """These seeds, one after the other."""
    from .checker import faults
    from .lives import live
    from .standins import install

    install()
    gc.disable()
    total = Sum()
    for seed in range(first, first + count):
        if total.broken and stop:
            break
        story = live(seed, total.faults)
        total.happened["seeds"] += 1
        total.happened["machines"] += len(story.world.cloud.machines)
        total.happened["commands"] += len(story.told)
        total.happened["effects"] += story.world.effects
        total.happened["checkpoints and adapters"] += len(story.world.commits)
        total.happened["left alive, alarmed"] += any(m.until_s is None for m in story.world.cloud.machines)
        total.broken += [(seed, what) for what in faults(story) if not (stop and what.startswith("broken"))]
        if seed % COLLECT == 0:
            gc.collect()
    return total


def summary(total: Sum, first: int, seconds: float) -> str:
    """One line of figures."""
    from .checker import PROMISES

    seeds = total.happened["seeds"]
    happened = ", ".join(f"{number} {name}" for name, number in total.happened.items() if name != "seeds")
    kinds: Counter[str] = Counter()
    for (fault, _), number in total.faults.items():
        kinds[fault] += number
    faults = ", ".join(f"{number} {fault}" for fault, number in sorted(kinds.items()))
    broken = Counter(words.partition(":")[0] for _, words in total.broken)
    promises = ", ".join(f"{broken[name]} {name} ({words})" for name, words in PROMISES.items())
    return (
        f"simulation: {seeds} seeds from {first} on, {seconds:.0f} s, {seeds / max(seconds, 0.001):.0f} seeds/s; {happened};"
        f" faults: {kinds.total()} of {len(kinds)} kinds: {faults}; promises broken: {promises}"
    )


def table(faults: Tally) -> Iterable[str]:
    """What went wrong, by what lorry was doing."""
    phases = sorted({phase for _, phase in faults})
    yield f"{'':24}" + "".join(f"{phase:>10}" for phase in phases)
    for fault in sorted({fault for fault, _ in faults}):
        yield f"{fault:24}" + "".join(f"{faults[fault, phase]:>10}" for phase in phases)


@dataclass(slots=True, kw_only=True)
class Spread:
    """Many seeds on several cores, that may be cut and gone on with."""

    first: int
    count: int
    cores: int
    state: Path | None
    total: Sum = field(default_factory=Sum)
    done: int = 0
    seconds: float = 0.0

    def run(self) -> None:
        """All of them. Tells on stderr how far it is."""
        self._load()
        begins = range(self.first + self.done, self.first + self.count, CHUNK)
        counts = [min(CHUNK, self.first + self.count - begin) for begin in begins]
        began = told_at = time.monotonic()
        before_s = self.seconds
        with ProcessPoolExecutor(self.cores, mp_context=multiprocessing.get_context("fork")) as pool:
            for part in pool.map(many, begins, counts):
                self.total.add(part)
                self.done += part.happened["seeds"]
                now = time.monotonic()
                self.seconds = before_s + now - began
                self._save()
                if now - told_at > TELL_S:
                    told_at = now
                    self._tell()

    def _tell(self) -> None:
        left_min = self.seconds / self.done * (self.count - self.done) / 60
        words = f"{self.done} of {self.count} seeds, {len(self.total.broken)} promises broken, {left_min:.0f} more minutes"
        print(words, file=sys.stderr, flush=True)

    def _load(self) -> None:
        if self.state is None or not self.state.exists():
            return
        document = json.loads(self.state.read_text())
        if (document["first"], document["count"], document["code"]) == (self.first, self.count, code()):
            self.total, self.done, self.seconds = Sum.from_json(document["total"]), document["done"], document["seconds"]

    def _save(self) -> None:
        if self.state is None:
            return
        document = {
            "code": code(),
            "first": self.first,
            "count": self.count,
            "done": self.done,
            "seconds": self.seconds,
            "total": self.total.to_json(),
        }
        beside = self.state.with_suffix(".new")
        beside.write_text(json.dumps(document))
        beside.replace(self.state)


@cache
def code() -> str:
    """What was simulated, as a hash: figures of other code are no figures of this."""
    root = Path(__file__).parents[2]
    files = sorted(file for part in SIMULATED for file in (root / part).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def needed(name: str, first: int, count: int) -> int:
    """Whether a promise breaks without the rule; 1 when none does."""
    total = many(first, count, stop=True)
    if total.broken:
        seed, words = total.broken[0]
        print(f"without {name}: seed {seed}: {words}")
    else:
        print(f"without {name}: nothing broke in {total.happened['seeds']} seeds")
    return not total.broken


def main(argv: list[str]) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seed", nargs="?", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--without")
    given: Any = parser.parse_args(argv)
    if given.without:
        from .rules import take_out

        take_out(given.without)
    if given.seed is not None:
        return told(given.seed)
    if given.without:
        return needed(given.without, given.first, given.seeds or 20_000)
    from .standins import install

    install()  # before the fork: nobody imports it again
    spread = Spread(first=given.first, count=given.seeds or 100_000, cores=given.cores, state=given.state)
    spread.run()
    if given.table:
        print("\n".join(table(spread.total.faults)))
    for seed, words in spread.total.broken[:20]:
        print(f"seed {seed}: {words}\n    told by: python -m tests.simulation {seed}")
    print(summary(spread.total, given.first, spread.seconds))
    return bool(spread.total.broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
