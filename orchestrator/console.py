"""The only place that prints. Data goes to stdout, talk to stderr.

Nothing that came from a rented machine reaches a terminal raw: `plain` takes out what a terminal would
obey. Rich is imported only where something is drawn.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from .errors import Finding, LorryError, UsageError, WithFindings, place
from .setup.redaction import without_secrets

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_BIDI = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)))
"""Marks that reorder text on a screen: a file name could show as another."""


def plain(text: str, *, most: int = 2000) -> str:
    """`text` without control characters, escape sequences and bidi marks, on one line, at most `most` long."""
    text = without_secrets(text)
    kept = "".join(" " if c in "\n\t\r" else c for c in text[: 2 * most] if c in "\n\t\r" or (c.isprintable() and c not in _BIDI))
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def out(text: str) -> None:
    """Data, one line."""
    _write(sys.stdout, text)


def talk(text: str = "") -> None:
    """Talk, one line. When nobody listens any more (a closed terminal, a reader that ended), the work goes on in silence."""
    try:
        _write(sys.stderr, text)
    except OSError:
        sys.stderr = _nowhere()


@contextlib.contextmanager
def whoever_listens() -> Iterator[None]:
    """For last words whose loss changes nothing: how it ended is in the exit code and on disk."""
    try:
        yield
    except OSError:
        sys.stdout = _nowhere()


def json_document(document: Any) -> None:
    """The one JSON document that a command with `--json` ends with."""
    out(json.dumps(document, indent=2, default=str))


def json_line(event: dict[str, Any]) -> None:
    """One event, on stderr, for scripts that watch a run."""
    talk(json.dumps(event, default=str))


def error(err: Exception) -> None:
    """An error as a person reads it: what, where, what to do next."""
    findings: tuple[Finding, ...] = err.findings if isinstance(err, WithFindings) else ()
    for finding in findings:
        _finding(finding)
    talk(f"error: {plain(str(err))}")
    hint = getattr(err, "hint", "")
    if hint:
        talk(f"hint: {plain(hint)}")


def warn(text: str) -> None:
    """Something a person should know while the work goes on."""
    talk(f"warning: {plain(text)}")


def findings(found: tuple[Finding, ...]) -> None:
    """Every finding of a check, errors and warnings."""
    for finding in found:
        _finding(finding)


def _finding(finding: Finding) -> None:
    where = place(finding.path, finding.line)
    talk(f"{finding.severity}: {where + ': ' if where else ''}{plain(finding.message)} [{finding.code}]")
    if finding.excerpt:
        talk(f"    {plain(finding.excerpt, most=200)}")
        if finding.column is not None:
            talk("    " + " " * finding.column + "^")
    if finding.hint:
        talk(f"    hint: {plain(finding.hint)}")


def error_document(err: Exception) -> dict[str, Any]:
    """What `--json` prints for an error."""
    return {
        "error": getattr(err, "code", LorryError.code),
        "message": str(err),
        "hint": getattr(err, "hint", ""),
        "exit_code": getattr(err, "exit_code", LorryError.exit_code),
        "findings": [f.as_json() for f in err.findings] if isinstance(err, WithFindings) else [],
    }


def is_terminal() -> bool:
    """Whether a person sits in front of stderr and can answer on stdin."""
    return sys.stderr.isatty() and sys.stdin.isatty()


def ask(question: str) -> bool:
    """A yes or no on the terminal; anything but a clear yes is a no."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def ask_secret(question: str) -> str:
    """A line from the terminal that is not shown while it is typed. Raises `UsageError` where that cannot be had."""
    import getpass
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # it would show what is typed
            return getpass.getpass(question, stream=sys.stderr)
    except getpass.GetPassWarning:
        raise UsageError("this terminal shows what is typed", hint="pass it by stdin instead: see --help") from None
    except EOFError:
        raise UsageError("the question was not answered") from None


HEALTH_STYLES = {"ok": "green", "warning": "yellow", "trouble": "bold red"}


def check(health: str, subject: str, said: str, hint: str = "") -> None:
    """One line of a check list, wrapped below itself, with its next move."""
    import textwrap

    from rich.text import Text

    console = rich_console(sys.stdout)
    first = f"{health:<8}" + (f"{subject:<11}" if subject else "")
    indent, lines = " " * len(first), [plain(said), *(["→ " + plain(hint)] if hint else [])]
    width = max(console.width, len(first) + 20)
    words = Text(
        "\n".join(textwrap.fill(line, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False) for line in lines)
    )
    words = Text(first) + words[len(first) :]
    words.stylize(HEALTH_STYLES[health], 0, len(health))
    console.print(words, soft_wrap=True)


def steps(rows: Iterable[Mapping[str, Any]]) -> None:
    """A table of steps: how each went, how long it took, what was seen."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("", "step", "took", "seen"):
        table.add_column(name, justify="right" if name == "took" else "left", no_wrap=name != "seen", overflow="fold")
    for row in rows:
        health = Text(str(row["health"]), style=HEALTH_STYLES[row["health"]])
        table.add_row(health, Text(str(row["step"])), f"{row['seconds']:.1f} s", Text(plain(str(row["said"]))))
    show(table, data=True)


def rich_console(stream: TextIO | None = None) -> Console:
    """A rich console on stderr (or `stream`), for tables and live views."""
    from rich.console import Console

    return Console(file=stream or sys.stderr, highlight=False, emoji=False)


def width() -> int:
    """How many characters wide a table on stdout may be."""
    return rich_console(sys.stdout).width


def show(renderable: RenderableType, *, data: bool = False) -> None:
    """Draw a table or a panel; on stdout when it is what the command was asked for."""
    rich_console(sys.stdout if data else sys.stderr).print(renderable)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _write(stream: TextIO, text: str) -> None:
    stream.write(without_secrets(text) + "\n")
    stream.flush()


__all__ = [
    "Finding",
    "ask",
    "ask_secret",
    "check",
    "error",
    "error_document",
    "findings",
    "is_terminal",
    "json_document",
    "json_line",
    "out",
    "plain",
    "rich_console",
    "show",
    "steps",
    "talk",
    "warn",
    "whoever_listens",
    "width",
]
