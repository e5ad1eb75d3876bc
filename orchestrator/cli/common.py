"""What the commands share: options that mean the same everywhere, and how a command with commands of its own is made.

A command is a function named like it, in a module of this package, with a line in `orchestrator.cli.COMMANDS`:

    def pull(run: Run, json: Json = False) -> int | None:
        \"\"\"Fetch what a run has finished.      <- the line in the table, word for word

        More about it.

        Examples:
          lorry pull autumn-3f2                 shown as written
        \"\"\"
        from orchestrator.outside import fetch      <- inside: help must not pay for it

It returns an exit code, or nothing for 0, and raises `LorryError` for everything else; what it prints goes through `console`. Helpers
begin with an underscore: every other function of such a module is a command, and a test holds it to the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .group import SETTINGS, Command, Subcommands

ConfigFile = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="The config. Without it: ./lorry.toml, or the only *.lorry.toml here.", show_default=False),
]
ConfigFiles = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[FILE]...",
        help="The config; several are joined into one session. Without any: ./lorry.toml, or the only *.lorry.toml here.",
        show_default=False,
    ),
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or enough of its beginning.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; all talk goes to stderr.")]
Budget = Annotated[
    str | None, typer.Option(metavar="USD", help="The cap, instead of the file's: every meter of every attempt.", show_default=False)
]
Providers = Annotated[
    list[str] | None,
    typer.Option("--provider", metavar="NAME", help="Ask this cloud instead of the file's; may be repeated.", show_default=False),
]
Prefer = Annotated[
    str | None,
    typer.Option(metavar="WHAT", help="Rank by expected cost, expected time or least trouble: cheap, fast, safe.", show_default=False),
]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]


def subcommands(**settings: Any) -> typer.Typer:
    """An app for a command that has commands: decorate its functions with `@app.command(cls=Command)`."""
    return typer.Typer(cls=Subcommands, add_completion=False, **SETTINGS, **settings)


def version() -> str:
    """What pip says is installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("lorry")
    except PackageNotFoundError:
        return "of a checkout that is not installed"


__all__ = ["Budget", "Command", "ConfigFile", "ConfigFiles", "Json", "Prefer", "Providers", "Run", "Yes", "subcommands", "version"]
