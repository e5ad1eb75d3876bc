"""The only place that prints. Data goes to stdout, talk to stderr.

Nothing that came from a rented machine reaches a terminal raw: whatever is written passes `harmless`, here and nowhere else,
and `plain` keeps a stranger's words to one line. Rich is imported only where something is drawn.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from .border.words import harmless, one_line
from .errors import Finding, LorryError, UsageError, WithFindings, place
from .setup.redaction import without_secrets

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


ALIKE = 3
"""Warnings of one kind that are told in full."""


def plain(text: str, *, most: int = 2000) -> str:
    """A stranger's `text` without secrets and without anything that a terminal obeys, on one line, at most `most` long."""
    return one_line(without_secrets(text), most=most)


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
    if isinstance(err, WithFindings):
        findings(err.findings)
    talk(f"error: {plain(str(err))}")
    hint = getattr(err, "hint", "")
    if hint:
        talk(f"hint: {plain(hint)}")


def warn(text: str) -> None:
    """Something a person should know while the work goes on."""
    talk(f"warning: {plain(text)}")


def findings(found: Sequence[Finding]) -> None:
    """Findings of a check: every error; of many warnings of one kind the first few, and how many more there are."""
    alike: Counter[str] = Counter()
    for finding in found:
        alike[finding.code] += finding.severity == "warning"
        if finding.severity != "warning" or alike[finding.code] <= ALIKE:
            _finding(finding)
    for code, number in alike.items():
        if number > ALIKE:
            talk(f"warning: {number - ALIKE} more of the kind [{code}]")
            talk("    hint: lorry check --json names every one")


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
    sys.stderr.write(f"{plain(question)} [y/N] ")
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
    """A rich console on stderr (or `stream`), for tables and live views. No text is markup, and all of it is harmless."""
    return _drawing()(file=stream or sys.stderr, highlight=False, emoji=False, markup=False)


@functools.cache
def _drawing() -> type[Console]:
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment

    class Drawing(Console):
        """Rich, where the only escape sequences are those that rich makes itself."""

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(harmless(without_secrets(segment.text)), segment.style)

    return Drawing


def width() -> int:
    """How many characters wide a table on stdout may be."""
    return rich_console(sys.stdout).width


def show(renderable: RenderableType, *, data: bool = False) -> None:
    """Draw a table or a panel; on stdout when it is what the command was asked for."""
    rich_console(sys.stdout if data else sys.stderr).print(renderable)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _write(stream: TextIO, text: str) -> None:
    stream.write(harmless(without_secrets(text)) + "\n")
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
