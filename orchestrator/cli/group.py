"""How the command line behaves: commands imported when named, plain help with examples, the nearest command when there is none.

Knows typer; knows nothing of any command but its line in the table.
"""

# ruff: noqa: ARG002  the signatures are click's
from __future__ import annotations

import inspect
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from orchestrator import console
from orchestrator.errors import Interrupted, UsageError

from . import COMMANDS, HELP_GROUPS

if TYPE_CHECKING:
    from typer._click import Command as ClickCommand
    from typer._click import Context, HelpFormatter
    from typer._click.shell_completion import CompletionItem

SETTINGS: dict[str, Any] = {
    "rich_markup_mode": None,  # boxes cost 150 ms and say nothing to a screen reader
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""What every typer app of ours is made with."""

_EXAMPLES = "\nExamples:\n"


class Command(TyperCommand):
    """A command whose docstring ends in `Examples:`, shown below the options, line by line as written."""

    def format_help_text(self, ctx: Context, formatter: HelpFormatter) -> None:
        """The docstring up to the examples."""
        _write_text(self.help, formatter)

    def format_epilog(self, ctx: Context, formatter: HelpFormatter) -> None:
        """The examples."""
        _write_examples(self.help, formatter)


class Subcommands(TyperGroup):
    """A command with commands of its own, `lorry sandbox bill` for one."""

    def format_help_text(self, ctx: Context, formatter: HelpFormatter) -> None:
        """The docstring up to the examples."""
        _write_text(self.help, formatter)

    def format_epilog(self, ctx: Context, formatter: HelpFormatter) -> None:
        """The examples."""
        _write_examples(self.help, formatter)


class Lorry(Subcommands):
    """The top: knows its commands from the table, and imports one when it is named."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Every name in the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> ClickCommand | None:
        """Import the command; None when there is no such."""
        return command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """The table, group by group."""
        widest = max(map(len, COMMANDS))
        for group in HELP_GROUPS:
            rows = [(name.ljust(widest), entry.summary) for name, entry in COMMANDS.items() if entry.group == group]
            if rows:
                with formatter.section(group):
                    formatter.write_dl(rows)

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, ClickCommand | None, list[str]]:
        """The command that is named, or the nearest one in the refusal."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean `lorry {near[0]}`?" if near else "`lorry --help` lists the commands"
            raise UsageError(f"there is no command {console.plain(args[0], most=60)!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: Context, incomplete: str) -> list[CompletionItem]:
        """Commands with their summaries, without importing any."""
        from typer._click.shell_completion import CompletionItem

        return [CompletionItem(name, help=entry.summary) for name, entry in COMMANDS.items() if name.startswith(incomplete)]

    def invoke(self, ctx: Context) -> Any:
        """Call the command. A Ctrl-C that no command has answered for ends here: it held nothing."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted", hint="`lorry ps` shows whether a run is still under way") from None
        except BrokenPipeError:  # the reader, `head` for one, has seen enough
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  nothing may be flushed into the closed pipe at exit
            return 0


def root() -> ClickCommand:
    """The whole command line."""
    app = typer.Typer(cls=Lorry, **SETTINGS)
    app.callback(invoke_without_command=True)(lorry)
    return typer.main.get_command(app)


def command(name: str) -> ClickCommand:
    """One command, made from the function or app of its module."""
    made = _named(import_module(f".{COMMANDS[name].module}", __package__), name)
    if isinstance(made, typer.Typer):
        return typer.main.get_command(made)
    app = typer.Typer(add_completion=False, **SETTINGS)
    app.command(name, cls=Command)(made)
    return typer.main.get_command(app)


def _named(module: ModuleType, name: str) -> Any:
    """`sandbox` for the command `sandbox`, `help_` for `help`: a word that Python has taken carries an underscore."""
    plain = name.replace("-", "_")
    return getattr(module, plain, None) or getattr(module, f"{plain}_")


def _print_version(wanted: bool) -> None:
    if wanted:
        from .common import version

        console.out(f"lorry {version()}")
        raise typer.Exit


def lorry(
    context: typer.Context,
    _version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end.")] = False,
) -> None:
    """Train LoRAs on rented GPUs: says the price, keeps to it, brings the results home, hands the machine back.

    Examples:
      lorry init --dataset datasets/lisa    write lorry.toml for a folder of pictures
      lorry check                           everything that is wrong, in one go
      lorry help exit-codes                 what scripts may rely on
    """
    if context.invoked_subcommand is None:
        console.out(context.get_help())


def _write_text(text: str | None, formatter: HelpFormatter) -> None:
    before, _, _ = inspect.cleandoc(text or "").partition(_EXAMPLES)
    formatter.write_paragraph()
    formatter.write_text(before.strip())


def _write_examples(text: str | None, formatter: HelpFormatter) -> None:
    _, _, examples = inspect.cleandoc(text or "").partition(_EXAMPLES)
    if examples:
        formatter.write_paragraph()
        formatter.write_heading("Examples")
        formatter.write(examples.rstrip() + "\n")
