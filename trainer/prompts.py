"""Reads kohya's prompt lines: `a dog in snow --n blurry --w 512 --h 768 --d 42 --l 7 --s 30`.

PURE and torch-free. kohya drops flags it cannot read; here they are an error, since a prompt drawn at the
wrong size or seed misleads for hours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One picture to draw."""

    text: str
    negative: str = ""
    width: int | None = None
    """None: the job's resolution."""
    height: int | None = None
    seed: int | None = None
    """None: derived from the job's seed, so that every drawing of one run shows the same noise."""
    guidance: float | None = None
    """None: what is usual for the family."""
    steps: int = 30


_FLAG = re.compile(r"(?:^|\s)--([A-Za-z]+)(?=\s|$)")
_MEANING = {"n": "negative", "w": "width", "h": "height", "d": "seed", "l": "guidance", "s": "steps"}
_WHOLE = {"width": (64, 8192), "height": (64, 8192), "seed": (0, 2**63 - 1), "steps": (1, 1000)}
"""Limits of whole numbers; steps and the smallest side are kohya's."""


def parse_prompt(line: str) -> Prompt:
    """Read one line."""
    pieces = _FLAG.split(line)  # text, flag, value, flag, value ...
    values: dict[str, str | int | float] = {}
    for flag, raw in zip(pieces[1::2], pieces[2::2], strict=True):
        name = _MEANING.get(flag.lower())
        if name is None:
            raise _wrong(line, f"does not know --{flag}", "Known: --n NEGATIVE --w WIDTH --h HEIGHT --d SEED --l CFG --s STEPS.")
        if name in values:
            raise _wrong(line, f"has --{flag} twice", "Keep one of them.")
        values[name] = _value(line, flag, name, raw.strip())
    text = pieces[0].strip()
    return Prompt(text=text, **values)  # type: ignore[arg-type]  # _value has seen to the types


def parse_prompts(lines: Sequence[str]) -> tuple[Prompt, ...]:
    """Read lines, leaving out empty ones and `#` comments."""
    return tuple(parse_prompt(line) for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _value(line: str, flag: str, name: str, raw: str) -> str | int | float:
    if name == "negative":
        return raw
    try:
        number = float(raw) if name == "guidance" else int(raw)
    except ValueError:
        raise _wrong(line, f"has --{flag} {raw!r}", f"--{flag} takes a {'number' if name == 'guidance' else 'whole number'}.") from None
    if name == "guidance":
        if not (math.isfinite(number) and 0 <= number <= 100):
            raise _wrong(line, f"has --{flag} {raw}", "It must lie between 0 and 100.")
        return number
    low, high = _WHOLE[name]
    if not low <= number <= high:
        raise _wrong(line, f"has --{flag} {raw}", f"It must lie between {low} and {high}.")
    if name in ("width", "height"):
        return int(number) // 8 * 8  # as kohya: the VAE halves three times
    return int(number)


def _wrong(line: str, fact: str, hint: str) -> SpecError:
    return SpecError("LRY-JOB-PROMPT", f"sample prompt {line.strip()!r} {fact}.", hint)
