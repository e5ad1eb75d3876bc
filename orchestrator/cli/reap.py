"""`lorry reap`: the last net under every run."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Json, Providers, Yes

Expired = Annotated[bool, typer.Option("--expired", help="Only those whose time is over, by their label.")]


def reap(provider: Providers = None, yes: Yes = False, expired: Expired = False, json: Json = False) -> int:
    """Find every machine of lorry that still lives; --yes destroys them.

    Finds them by their label, so it works from any computer with the account's key. Machines that are not lorry's are never touched.
    Ends with 10 when something lives on. With --expired, a machine that may still be at work for another computer is left alone: for a
    timer, here or elsewhere.

    Examples:
      lorry reap                 shows what it would end
      lorry reap --yes
      lorry reap --yes --expired
    """
    from orchestrator import console, outside
    from orchestrator.home import Home
    from orchestrator.reconcile import LABEL, is_over
    from orchestrator.tools import make_tools
    from providers import PROVIDERS

    tools = make_tools(as_json=json)
    books = {folder.id: folder.book() for folder in Home.from_env().runs()} if expired else {}
    rows = outside.reap(
        lambda label: is_over(label, books, tools.clock.now()) if expired else label.startswith(LABEL),
        provider or tuple(PROVIDERS),
        tools,
        really=yes,
    )
    if json:
        console.json_document(rows)
    else:
        for row in rows:
            end = "destroyed, and seen to be gone" if row["destroyed_verified"] else row["trouble"] or f"{row['status']}, may be billing"
            console.out(console.plain(f"{row['provider']} {row['id']} {row['label']}: {end}"))
        if not rows:
            console.talk("no machine of lorry lives at any provider")
        elif not yes and any(row["id"] for row in rows):
            console.talk("nothing was touched; `lorry reap --yes` destroys these")
    return 10 if any(not row["destroyed_verified"] for row in rows) else 0
