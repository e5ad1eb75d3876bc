"""`make fuzz`: everything that reads what a stranger wrote, for as long as you like. The last line has the figures.

Hypothesis makes answers that are nearly right, from what is known of their shape. Where atheris is installed it has a third of the time,
for the header of safetensors files and the events: it follows the code's branches instead of their shape.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

BRANCHES = {"header": "safetensors header", "events": "events"}
"""What atheris fuzzes -> the target whose check it calls."""


def with_hypothesis(name: str, seconds: float, first: int) -> tuple[int, int]:
    """Fuzz one target for so long; examples tried, and failures found."""
    from hypothesis import HealthCheck, given, seed, settings
    from targets import TARGETS

    target = next(one for one in TARGETS if one.name == name)
    tried, until, number = 0, time.monotonic() + seconds, first

    def check(made: object) -> None:
        nonlocal tried
        tried += 1
        target.check(made)

    while time.monotonic() < until:
        options = settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
        try:
            seed(number)(options(given(target.made)(check)))()
        except Exception as err:  # whatever it is, it is what was looked for
            print(f"{name}: seed {number}: {type(err).__name__}: {err}", *getattr(err, "__notes__", ()), sep="\n")
            return tried, 1
        number += 1
    return tried, 0


def with_atheris(name: str, seconds: float) -> tuple[int, int]:
    """Fuzz one parser by its branches, in a process of its own; executions, and failures found."""
    command = [sys.executable, __file__, "--branches", name, f"-max_total_time={seconds:.0f}", "-max_len=2000", "-verbosity=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-3000:])
    told = re.findall(r"^(?:#|Done )(\d+)", done.stderr, re.MULTILINE)
    return int(told[-1]) if told else 0, int(done.returncode != 0)


def follow_branches(name: str, arguments: list[str]) -> None:
    """The process of `with_atheris`."""
    import atheris

    with atheris.instrument_imports(include=["trainer"]):
        import trainer.header
        import trainer.protocol  # noqa: F401
    from fakes import safetensors
    from targets import check_events, check_header

    def once(data: bytes) -> None:
        check_header(data) if name == "header" else check_events([data[:20], data[20:]])

    corpus = HERE / "corpus"
    if not corpus.is_dir():
        import tempfile

        corpus = Path(tempfile.mkdtemp())
        (corpus / "a").write_bytes(safetensors(1) if name == "header" else b'{"kind":"warned","at_s":1,"job":"lisa","message":"x"}\n')
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], once)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--branches", choices=BRANCHES)
    given, rest = parser.parse_known_args()
    if given.branches:
        follow_branches(given.branches, rest)
        return 0
    from targets import TARGETS

    has_atheris = importlib.util.find_spec("atheris") is not None
    seconds = given.minutes * 60
    share = seconds * (2 / 3 if has_atheris else 1) / len(TARGETS)
    figures, broken = [], 0
    for target in TARGETS:
        tried, found = with_hypothesis(target.name, share, given.seed)
        figures.append(f"{tried} {target.name}")
        broken += found
    for name in BRANCHES if has_atheris else ():
        tried, found = with_atheris(name, seconds / 3 / len(BRANCHES))
        figures.append(f"{tried} {BRANCHES[name]} by branches")
        broken += found
    how = "Hypothesis and atheris" if has_atheris else "Hypothesis; atheris is not installed"
    print(f"fuzz: {given.minutes:g} minutes, {how}: {', '.join(figures)}; {broken} broken")
    return int(broken > 0)


if __name__ == "__main__":
    with contextlib.suppress(io.UnsupportedOperation):
        sys.exit(main())
