"""`lorry help`."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Json

Topic = Annotated[str | None, typer.Argument(metavar="[TOPIC]", help="A topic or a command.", show_default=False)]


def help_(topic: Topic = None, json: Json = False) -> None:
    """Explain a topic (config, environment, exit-codes) or a command.

    Examples:
      lorry help exit-codes
      lorry help environment
      lorry help check
    """
    from difflib import get_close_matches

    from orchestrator import console
    from orchestrator.errors import UsageError

    from . import COMMANDS
    from .group import command
    from .topics import TOPICS

    if topic is None:
        topics = {name: about for name, (about, _) in TOPICS.items()}
        console.json_document(topics) if json else _table(topics)
    elif topic in TOPICS:
        table = TOPICS[topic][1]()
        console.json_document(table) if json else _table(table)
    elif topic in COMMANDS:
        with command(topic).make_context(f"lorry {topic}", [], resilient_parsing=True) as inner:
            console.out(inner.get_help())
    else:
        near = get_close_matches(topic, [*TOPICS, *COMMANDS], n=1)
        raise UsageError(
            f"there is no topic {console.plain(topic, most=60)!r}",
            hint=f"did you mean `lorry help {near[0]}`?" if near else f"the topics are {', '.join(TOPICS)}",
        )


def _table(rows: dict[str, str]) -> None:
    """Two columns, wrapped; a long left side stands on a line of its own."""
    import shutil
    from textwrap import wrap

    from orchestrator import console

    left = min(max(map(len, rows)), 28)
    width = max(shutil.get_terminal_size().columns, 40)
    for name, meaning in rows.items():
        lines = wrap(meaning, width - left - 2) or [""]
        if len(name) > left:
            console.out(name)
            name = ""  # noqa: PLW2901  it has been said
        for line in lines:
            console.out(f"{name:<{left}}  {line}".rstrip())
            name = ""  # noqa: PLW2901
