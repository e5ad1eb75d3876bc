"""Writes the reference pages from the code they describe: `python docs/generate.py`.

With `--check` it writes nothing, and ends with 1 when a page is not what the code says now.
"""

from __future__ import annotations

import inspect
import re
import sys
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import typer  # noqa: E402  the checkout's own packages, not installed ones
from pydantic.fields import FieldInfo  # noqa: E402
from pydantic_core import PydanticUndefined  # noqa: E402

import templates  # noqa: E402
from orchestrator.cli import COMMANDS, HELP_GROUPS  # noqa: E402
from orchestrator.cli.group import command  # noqa: E402
from orchestrator.cli.topics import ENVIRONMENT, JSON  # noqa: E402
from orchestrator.config import CODES  # noqa: E402
from orchestrator.errors import EXIT_CODES  # noqa: E402
from orchestrator.file.guide import CHAPTERS  # noqa: E402
from orchestrator.file.keys import PROVIDERS, TABLES, LoraConfig  # noqa: E402
from orchestrator.file.wording import OTHER_SPELLINGS  # noqa: E402
from trainer.errors import CODES as TRAINER_CODES  # noqa: E402

DOCS = ROOT / "docs"
INTRODUCTION = """\
One file describes one run: what it may cost, where to train, and the LoRAs to train. `lorry init` writes one, and `lorry check` says
everything that is wrong with it; an unknown key is a mistake, answered with the nearest known one. Paths are relative to the file. A value
is looked for in the job's `[[lora]]`, then in `[defaults]`, then in its recipe: the first one found counts."""
NOTE = "<!-- Written by docs/generate.py from the code; change it there. -->"
FROM_HERE = "<!-- From here on written by docs/generate.py from orchestrator/file/guide.py and the options themselves. -->"


def config_page() -> str:
    """Every key of lorry.toml, its type, default, limits and meaning."""
    parts = [
        NOTE,
        "# lorry.toml",
        INTRODUCTION,
    ]
    for heading, purpose, keys in TABLES:
        parts.append(f"## {f'`{heading}`' if heading else 'Above all tables'}: {purpose}" if heading else "## Above all tables")
        rows = [
            f"| `{key}` | {_kind(info.annotation)}{_limits(info)} | {_default(info)} | {_cell(info.description)} |"
            for key, info in keys.items()
        ]
        parts.append("\n".join(["| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows]))
    parts += ["## Providers", _table(("name", "what it is"), {f"`{name}`": meaning for name, meaning in PROVIDERS.items()})]
    parts += ["## Recipes", 'A recipe is written with its short name, `recipe = "character"`, or its full one.']
    for name in templates.recipe_names():
        parts.append(f"### `{name}`\n\n```toml\n{templates.recipe_text(name).rstrip()}\n```")
    spellings = {f"`{theirs}`": f"`{ours}`" for theirs, ours in OTHER_SPELLINGS.items()}
    parts += ["## From other trainers", "These spellings are not read, but answered with ours.", _table(("elsewhere", "here"), spellings)]
    return _page(parts)


def commands_page() -> str:
    """The help of every command."""
    parts = [NOTE, "# Commands", "What `lorry COMMAND --help` prints."]
    for group in HELP_GROUPS:
        names = [name for name, entry in COMMANDS.items() if entry.group == group]
        if names:
            parts.append(f"## {group}")
        for name in names:
            parts += [f"### `lorry {name}`", f"```text\n{_help(f'lorry {name}', command(name))}\n```"]
            for below, inner in getattr(command(name), "commands", {}).items():
                parts += [f"### `lorry {name} {below}`", f"```text\n{_help(f'lorry {name} {below}', inner)}\n```"]
    parts += ["## What `--json` prints", "One document on stdout; all talk goes to stderr.", _table(("command", "document"), JSON)]
    variables = {f"`{name}`": meaning for name, meaning in ENVIRONMENT.items()}
    parts += ["## Environment", _table(("variable", "meaning"), variables)]
    return _page(parts)


def exit_codes_page() -> str:
    """Numbers for scripts, codes for people and search engines."""
    numbers = {f"`{code}`": meaning for code, meaning in EXIT_CODES.items()}
    findings = {f"`{code}`": meaning for code, meaning in CODES.items()}
    for code, (exit_code, meaning) in TRAINER_CODES.items():
        findings[f"`{code}`"] = f"{meaning} (exit code {exit_code})"
    return _page(
        [
            NOTE,
            "# Exit codes",
            "Every command ends with one of these. 10 wins over all others: something may still cost money.",
            _table(("code", "meaning"), numbers),
            "## What a finding or a failed job can be",
            "`lorry check --json` gives these as `code`; a code ends a run only where the finding is an error and not a warning.",
            _table(("code", "meaning"), findings),
        ]
    )


def training_page() -> str:
    """The page on training: its prose as it stands, and below it every option with the time to touch it."""
    file = DOCS / "training.md"
    prose = file.read_text(encoding="utf-8").partition(FROM_HERE)[0].rstrip() if file.exists() else "# Training a LoRA"
    parts = [prose, FROM_HERE, "## Every option", "All are keys of `[[lora]]`, or of `[defaults]` for all LoRAs of a file."]
    fields = LoraConfig.model_fields
    for chapter in CHAPTERS:
        rows = [
            f"| `{key}` | {_kind(info.annotation)}{_limits(info)} | {_default(info)} | {_cell(info.description)} | {_cell(when)} |"
            for key, when in chapter.options.items()
            if (info := fields[key])
        ]
        heading = ["| option | value | default | meaning | when to touch it |", "| --- | --- | --- | --- | --- |"]
        parts += [f"### {chapter.title}", chapter.opening, "\n".join([*heading, *rows])]
    return _page(parts)


PAGES = {
    "reference/config.md": config_page,
    "reference/commands.md": commands_page,
    "reference/exit-codes.md": exit_codes_page,
    "training.md": training_page,
}


def _page(parts: list[str]) -> str:
    return "\n\n".join(parts) + "\n"


def _table(heading: tuple[str, str], rows: dict[str, str]) -> str:
    lines = [f"| {key} | {_cell(meaning)} |" for key, meaning in rows.items()]
    return "\n".join([f"| {heading[0]} | {heading[1]} |", "| --- | --- |", *lines])


def _cell(text: str | None) -> str:
    return (text or "").replace("|", r"\|")


def _kind(annotation: Any) -> str:
    """The type in words."""
    origin, inner = get_origin(annotation), [one for one in get_args(annotation) if one not in (type(None), ...)]
    if origin in (Union, UnionType, Annotated):
        return _kind(inner[0])
    if origin is tuple:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return "table"
    if origin is Literal:
        return " or ".join(f"`{word}`" for word in inner)
    return {bool: "true or false", int: "whole number", float: "number", Decimal: "number", str: "text", Path: "path"}[annotation]


def _limits(info: FieldInfo) -> str:
    """` from 1 to 64`, ` above 0`."""
    found = {
        name: getattr(rule, name) for rule in info.metadata for name in ("gt", "ge", "lt", "le") if getattr(rule, name, None) is not None
    }
    words = [f"{word} {found[name]}" for name, word in (("gt", "above"), ("ge", "from"), ("lt", "below")) if name in found]
    if "le" in found:
        words += [f"{'to' if 'ge' in found else 'at most'} {found['le']}"]
    return f", {(' ' if 'ge' in found else ', ').join(words)}" if words else ""


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "required"
    if info.default in (None, ()):
        return ""
    if isinstance(info.default, tuple):
        return f"`[{', '.join(_toml(item) for item in info.default)}]`"
    return f"`{_toml(info.default)}`"


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _help(called: str, what: Any) -> str:
    """The help text as an 80-column terminal shows it."""
    context = typer.Context(what, info_name=called, terminal_width=80, max_content_width=80, help_option_names=["-h", "--help"])
    shown = what.get_help(context)
    return re.sub(r"[ \t]+$", "", inspect.cleandoc(shown), flags=re.MULTILINE)


def main(*, check: bool) -> list[str]:
    """Write the pages, or name those that are stale."""
    stale = []
    for name, page in PAGES.items():
        file, text = DOCS / name, page()
        if file.exists() and file.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
    return stale


if __name__ == "__main__":
    checking = "--check" in sys.argv[1:]
    changed = main(check=checking)
    sys.stdout.write("".join(f"{'stale' if checking else 'written'}: {name}\n" for name in changed))
    sys.exit(1 if checking and changed else 0)
