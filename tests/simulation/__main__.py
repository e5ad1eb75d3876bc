"""python -m tests.simulation SEED               one seed, told
python -m tests.simulation --seeds N [--from K] [--cores 2]     many; ends with one line of figures
python -m tests.simulation --without RULE --seeds N             with one rule of the protocol taken out
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any

CHUNK = 500


def told(seed: int) -> int:
    """Print the story of a seed; 1 when it broke a promise."""
    from .checker import faults
    from .lives import install, live

    install()
    story = live(seed, telling=True)
    for line in story.world.story or []:
        print(line)
    broken = faults(story)
    print("\n".join(f"BROKEN: {what}" for what in broken) or "every promise was kept")
    return bool(broken)


def many(first: int, count: int, *, stop: bool = False) -> tuple[list[tuple[int, str]], Counter[str]]:
    """The seeds that broke a promise, and what happened in all."""
    from .checker import faults
    from .lives import install, live

    install()
    broken: list[tuple[int, str]] = []
    happened: Counter[str] = Counter()
    for seed in range(first, first + count):
        if broken and stop:
            break
        story = live(seed)
        happened["seeds"] += 1
        happened["machines"] += len(story.world.cloud.machines)
        happened["killed"] += sum(t.exit_code is None for t in story.told)
        happened["commands"] += len(story.told)
        happened["effects"] += story.world.effects
        happened["left alive, alarmed"] += any(m.until_s is None for m in story.world.cloud.machines)
        broken += [(seed, what) for what in faults(story)]
    return broken, happened


def _summary(broken: list[tuple[int, str]], happened: Counter[str], seconds: float) -> str:
    figures = ", ".join(f"{number} {name}" for name, number in happened.items())
    return f"simulation: {figures}; {len(broken)} promises broken; {seconds:.0f} s, {happened['seeds'] / seconds:.0f} seeds/s"


def spread(first: int, count: int, cores: int) -> int:
    """Many seeds on several cores; prints the broken ones and one line of figures."""
    began = time.monotonic()
    chunks = [(begin, min(CHUNK, first + count - begin)) for begin in range(first, first + count, CHUNK)]
    broken: list[tuple[int, str]] = []
    happened: Counter[str] = Counter()
    with ProcessPoolExecutor(cores) as pool:
        for bad, more in pool.map(many, *zip(*chunks, strict=True)):
            broken += bad
            happened += more
    for seed, what in broken[:20]:
        print(f"seed {seed}: {what}")
    print(_summary(broken, happened, time.monotonic() - began))
    return bool(broken)


def needed(name: str, first: int, count: int) -> int:
    """Whether a promise breaks without the rule; 1 when none does."""
    broken, happened = many(first, count, stop=True)
    words = (
        f"without {name}: seed {broken[0][0]}: {broken[0][1]}" if broken else f"without {name}: nothing broke in {happened['seeds']} seeds"
    )
    print(words)
    return not broken


def main(argv: list[str]) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seed", nargs="?", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--without")
    given: Any = parser.parse_args(argv)
    if given.without:
        from .rules import take_out

        take_out(given.without)
    if given.seed is not None:
        return told(given.seed)
    if given.without:
        return needed(given.without, given.first, given.seeds or 20_000)
    return spread(given.first, given.seeds or 100_000, given.cores)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
