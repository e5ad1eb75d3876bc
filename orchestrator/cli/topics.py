"""What `lorry help TOPIC` tells: each topic drawn from the table that the code itself uses."""

from __future__ import annotations

from collections.abc import Callable

ENVIRONMENT: dict[str, str] = {
    "LORRY_HOME": "Folder of runs and results; the platform's state folder without it.",
    "LORRY_SANDBOX_MACHINE": "Set by the practice cloud on its machines' processes, so that it finds them again.",
    "NO_COLOR": "Set to anything: no colours.",
    "COLUMNS": "Width of tables when the output is no terminal.",
}
"""Every variable that is read. A test looks for the `LORRY_` ones in the code."""

JSON: dict[str, str] = {
    "check": "a list of findings: code, path, line, message, hint, severity; empty when nothing is wrong",
    "init": "file, recipe, jobs: name, dataset, trigger",
    "help": "the topic's table",
    "an error": "error (a code), message, hint, exit_code, findings; printed instead of the document",
}
"""What `--json` puts on stdout. All talk goes to stderr, whatever the command."""


def exit_codes() -> dict[str, str]:
    """What a script may branch on."""
    from orchestrator.errors import EXIT_CODES

    return {str(code): meaning for code, meaning in EXIT_CODES.items()}


def environment() -> dict[str, str]:
    """What can be set from outside."""
    return ENVIRONMENT


def json_documents() -> dict[str, str]:
    """What `--json` prints."""
    return JSON


def config() -> dict[str, str]:
    """Every key of lorry.toml, from the models that read it."""
    from orchestrator.config import TABLES

    return {f"{title} {name}".strip(): info.description or "" for title, _, keys in TABLES for name, info in keys.items()}


TOPICS: dict[str, tuple[str, Callable[[], dict[str, str]]]] = {
    "config": ("every key of lorry.toml", config),
    "environment": ("variables that lorry reads", environment),
    "exit-codes": ("what each exit code means", exit_codes),
    "json": ("what --json prints", json_documents),
}
"""Name -> what it is about, and the table."""
