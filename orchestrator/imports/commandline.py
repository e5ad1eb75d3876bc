"""The arguments of sd-scripts in a .sh, .bat or .ps1 file. Reads the text; never runs any of it.

What a shell would fill in is filled in where the file itself says it (`MODEL=...`, `set MODEL=...`, `$model = "..."`); what comes from
elsewhere stays as it is written, and is listed by whoever meets it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PROGRAM = re.compile(r"(?:^|[\\/\s\"'])((?:sdxl_|sd3_|flux_)?train_network)(?:\.py)?(?=[\s\"']|$)")
"""The four programs of sd-scripts that train a LoRA."""

LISTS = frozenset({"optimizer_args", "network_args", "lr_scheduler_args", "base_weights", "base_weights_multiplier"})
"""Options that take any number of values, so that one value is a list as well."""

_ASSIGNMENT = re.compile(
    r"""^\s*(?:export\s+|set\s+"?|\$(?:env:)?)?([A-Za-z_]\w*)\s*=\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^\s;"'#&|]*)"?\s*;?\s*(?:\#.*)?$""",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(?:env:)?([A-Za-z_]\w*)|%(\w+)%", re.IGNORECASE)
_CONTINUED = re.compile(r"[ \t]*[\\^`][ \t]*\n[ \t]*")
_COMMENT = re.compile(r"^\s*(#|::|rem\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a training program."""

    program: str
    options: dict[str, Any]
    launcher: dict[str, Any]
    """What stands before the program: accelerate's own options."""


def calls_in(text: str) -> Iterator[Call]:
    """Every call of a training program of sd-scripts, in order."""
    variables: dict[str, str] = {}
    for line in _CONTINUED.sub(" ", text.replace("\r\n", "\n")).split("\n"):
        if _COMMENT.match(line):
            continue
        if found := PROGRAM.search(line):
            filled = _filled(line, variables)
            start = PROGRAM.search(filled)
            if start:
                yield Call(found[1], _options(_words(filled[start.end() :])), _options(_words(filled[: start.start()])))
        elif assigned := _ASSIGNMENT.match(line):
            value = assigned[2]
            variables[assigned[1].lower()] = _filled(value[1:-1] if value[:1] in {'"', "'"} else value, variables)


def _filled(text: str, variables: dict[str, str]) -> str:
    return _VARIABLE.sub(lambda match: variables.get((match[1] or match[2] or match[3]).lower(), match[0]), text)


def _words(text: str) -> list[str]:
    """As a shell would split them; a backslash is a backslash, since Windows writes paths with it."""
    lexer = shlex.shlex(text.lstrip("\"'"), posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    words: list[str] = []
    try:
        for word in lexer:
            if word in {"&&", "||", ";", "|", "&"}:
                break
            words.append(word)
    except ValueError:  # a quote that is opened and never closed
        words += lexer.token.split() if isinstance(lexer.token, str) else []
    return words


def _options(words: list[str]) -> dict[str, Any]:
    """`--key=value`, `--key value`, `--key one two`, `--flag`."""
    given: dict[str, list[str]] = {}
    key = ""
    for word in words:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            key = key.replace("-", "_")
            given[key] = [value] if equals else []
        elif key:
            given[key].append(word)
    return {key: _value(key, values) for key, values in given.items() if key}


def _value(key: str, values: list[str]) -> Any:
    if key in LISTS:
        return values
    if not values:
        return True
    return values[0] if len(values) == 1 else values
