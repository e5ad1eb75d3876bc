"""The command line: `lorry`. Knows which commands there are; each one's module knows what it does.

Help answers in 0.3 s because this package imports nothing that a help page does not show: a command's module is imported when that
command is named, and what the command works with when it runs.

This is the one place where an error becomes words and an exit code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from orchestrator import console
from orchestrator.errors import LorryError, UsageError
from providers.errors import ProviderError

if TYPE_CHECKING:
    from orchestrator.safety.unattended import Watch

T = TypeVar("T")

HELP_GROUPS = ("Start", "Watch", "Money", "Data", "Setup")
"""Headings of `lorry --help`, in this order."""


class Entry(NamedTuple):
    """One line of `lorry --help`."""

    module: str
    """Below `orchestrator.cli`; holds a function, or a `subcommands` app, of the command's name."""
    summary: str
    """The first line of its docstring, kept here so that help need not import it; a test compares the two."""
    group: str


COMMANDS: dict[str, Entry] = {
    "init": Entry("init", "Write a commented lorry.toml for a folder of pictures.", "Start"),
    "import": Entry("import_", "Make a lorry.toml of another trainer's config; lists what it cannot carry.", "Start"),
    "check": Entry("check", "Find everything wrong in config and datasets; no network, no torch.", "Start"),
    "plan": Entry("plan", "Rank the offers by what the whole run costs; rent nothing.", "Start"),
    "run": Entry("run", "Rent, train every LoRA of the file, bring them home, destroy.", "Start"),
    "add": Entry("add", "Add LoRAs to a run while its machine trains.", "Start"),
    "train": Entry("train", "Train the LoRAs of a config on this computer; rents nothing.", "Start"),
    "ps": Entry("look", "List the runs under way, and any machine that may still bill.", "Watch"),
    "logs": Entry("look", "Print what a run's machines have told: phases, steps, losses.", "Watch"),
    "attach": Entry("run", "Watch a run; take it up when the lorry that began it has died.", "Watch"),
    "pull": Entry("look", "Fetch what a run has finished so far; its machine works on.", "Watch"),
    "report": Entry("look", "Write the page of a run: curves, samples, receipt; one HTML file.", "Watch"),
    "stop": Entry("run", "End a run in good order: checkpoint, fetch, destroy, verify.", "Watch"),
    "resume": Entry("run", "Go on with a run that ended early, from the checkpoints at home.", "Watch"),
    "down": Entry("run", "Destroy a run's machines now, and see that they are gone.", "Money"),
    "reap": Entry("reap", "Find every machine of lorry that still lives; --yes destroys them.", "Money"),
    "cost": Entry("look", "Compare what runs were estimated at, metered at, and billed.", "Money"),
    "offers": Entry("plan", "List the machines for rent now.", "Money"),
    "convert": Entry("convert", "Change a LoRA's format, precision or rank, merge several, or see who can load it.", "Data"),
    "login": Entry("account", "Prove a key of a cloud and keep it in the system's keyring.", "Setup"),
    "logout": Entry("account", "Forget the key of a cloud that is kept on this computer.", "Setup"),
    "doctor": Entry("account", "Look for trouble before it costs: versions, keys, rights, machines.", "Setup"),
    "sandbox": Entry("sandbox", "Serve the practice cloud: real machines that cost nothing.", "Setup"),
    "help": Entry("help", "Explain a topic (config, environment, exit-codes) or a command.", "Setup"),
}
"""Every command, in the order of the help page."""

LOOKS_AT_NO_RUN = frozenset({"help", "sandbox"})
"""Commands that do not look for lost machines first: they must answer whatever else is the matter."""
ACTS_ON_A_RUN = frozenset({"attach", "stop", "down", "resume"})
"""Commands that are themselves the answer to a lost machine of the run that they name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code is that of `orchestrator.errors`."""
    _speak_utf8()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        watch = _not_in_the_way(lambda: _looked_first(given), given, otherwise=None)
        code = _answered(given)
        return code if watch is None else _not_in_the_way(lambda: watch.last(code), given, otherwise=code)
    except KeyboardInterrupt:  # before or after the command
        return 130


def _not_in_the_way(look: Callable[[], T], given: list[str], *, otherwise: T) -> T:
    """Look for lost machines; should that break, the command is called all the same: it may be the one that ends them."""
    try:
        return look()
    except Exception as error:  # noqa: BLE001
        from .crash import saved

        console.error(saved(error, given))
        return otherwise


def _looked_first(given: list[str]) -> Watch | None:
    """The first act of every command: find what may bill and nobody looks after. None where a help page is all that is asked for."""
    command = next((word for word in given if not word.startswith("-")), "")
    if command not in COMMANDS or command in LOOKS_AT_NO_RUN or not {"--help", "-h", "--version"}.isdisjoint(given):
        return None
    from orchestrator.home import Home
    from orchestrator.safety.unattended import Watch

    watch = Watch(Home.from_env(), as_json="--json" in given)
    named = [word for word in given if not word.startswith("-") and word != command] if command in ACTS_ON_A_RUN else []
    watch.first(named=named, reaping=command == "reap" and "--expired" not in given)
    return watch


def _answered(given: list[str]) -> int:
    """Call the command; what goes wrong becomes words and an exit code."""
    try:
        return _called(given)
    except (LorryError, ProviderError) as error:
        return _failed(error, given)
    except KeyboardInterrupt:  # before any command had begun
        return 130
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115  nothing may be flushed into the pipe at exit
        return 0
    except Exception as error:  # noqa: BLE001  the last net: a traceback is no answer to a person
        from .crash import saved

        return _failed(saved(error, given), given)


def _called(given: list[str]) -> int:
    """Parse and call. What the parser says against the line becomes a `UsageError`."""
    import typer
    from typer._click.exceptions import ClickException  # typer brings click along, under this name only

    from .group import root

    try:
        result = root().main(given, prog_name="lorry", standalone_mode=False)
    except ClickException as error:
        context = getattr(error, "ctx", None)
        called = context.command_path if context else "lorry"
        raise UsageError(error.format_message(), hint=f"`{called} --help` shows how it is called") from None
    except typer.Abort:
        raise UsageError("the question was not answered", hint="without a terminal, say yes beforehand with -y") from None
    return result if isinstance(result, int) else 0


def _failed(error: LorryError | ProviderError, given: list[str]) -> int:
    """Say it: to the person on stderr, to a script also on stdout."""
    console.error(error)
    if "--json" in given:
        console.json_document(console.error_document(error))
    return error.exit_code


def _speak_utf8() -> None:
    """Redirected output on Windows, or under LANG=C, knows no `✓`; a wrong sign is better than a dead run."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # Windows without a console, as its Task Scheduler starts programs
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(encoding="utf-8", errors="replace")
