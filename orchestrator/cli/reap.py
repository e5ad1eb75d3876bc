"""`lorry reap`: the last net under every run, and the timer that casts it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Json, Providers, Yes

if TYPE_CHECKING:
    from orchestrator.trip import Tools

Expired = Annotated[bool, typer.Option("--expired", help="Only those whose time is over, by their label.")]
AtMost = Annotated[int, typer.Option("--at-most", metavar="N", help="Destroy none where there are more than so many.")]
Install = Annotated[bool, typer.Option("--install-timer", help="Have the system run `lorry reap --yes --expired` from now on.")]
Remove = Annotated[bool, typer.Option("--remove-timer", help="Take that timer away again.")]
Every = Annotated[int, typer.Option("--every", metavar="MINUTES", help="How often the timer comes.")]

CEILING = 10
"""Machines that are destroyed at once without being asked for by number: a studio's whole fleet is no slip of the finger."""


def reap(  # noqa: PLR0917  options, each with its name
    provider: Providers = None,
    yes: Yes = False,
    expired: Expired = False,
    at_most: AtMost = CEILING,
    install_timer: Install = False,
    remove_timer: Remove = False,
    every: Every = 10,
    json: Json = False,
) -> int:
    """Find every machine of lorry that still lives; --yes destroys them.

    Finds them by their label, so it works from any computer with the account's key. Machines that are not lorry's are never touched.
    Ends with 10 when something lives on. A run of this computer whose machine is destroyed is ended, and does not rent another. With
    --expired, a machine that may still be at work for another computer is left alone: for a timer, here or elsewhere.

    Examples:
      lorry reap                     shows what it would end
      lorry reap --yes
      lorry reap --yes --at-most 40
      lorry reap --install-timer     every ten minutes from now on: lorry reap --yes --expired
      lorry reap --remove-timer
    """
    if install_timer or remove_timer:
        return _timer(install=install_timer, every_min=every, json=json)
    from orchestrator import console
    from orchestrator.home import Home
    from orchestrator.outside import reap as reaped
    from orchestrator.safety.reconcile import LABEL, is_over
    from orchestrator.tools import make_tools
    from providers import PROVIDERS

    tools, names = make_tools(as_json=json), provider or tuple(PROVIDERS)
    books = {folder.id: folder.book() for folder in Home.from_env().runs()} if expired else {}
    rows = reaped(
        lambda label: is_over(label, books, tools.clock.now()) if expired else label.startswith(LABEL), names, tools, really=False
    )
    found = [row for row in rows if row["id"]]
    if yes and len(found) > at_most:
        _show(rows, json=json)
        console.talk(f"error: {len(found)} machines would be destroyed, more than {at_most}; nothing was touched")
        console.talk(f"hint: when these are all to go: lorry reap --yes --at-most {len(found)}")
        return 10
    if yes and found:
        labels = {str(row["label"]) for row in found}
        gone = set() if expired else _end_runs_of(labels, tools)
        ended = reaped(labels.__contains__, tuple(dict.fromkeys(row["provider"] for row in found)), tools, really=True)
        rows = [row for row in rows if not row["id"]] + _what_became(found, ended, gone)
    _show(rows, json=json)
    if found and not yes and not json:
        console.talk("nothing was touched; `lorry reap --yes` destroys these")
    return 10 if any(not row["destroyed_verified"] for row in rows) else 0


def _end_runs_of(labels: set[str], tools: Tools) -> set[str]:
    """Have machines that runs of this computer hold ended by `lorry down`: else whoever drives the run would rent another.

    Returns the labels of those that were seen to be gone.
    """
    from orchestrator import outside
    from orchestrator.errors import LorryError
    from orchestrator.home import Home
    from providers.errors import ProviderError

    gone: set[str] = set()
    for folder in Home.from_env().runs():
        held = {attempt.label for attempt in folder.book().open_attempts} & labels
        if not held:
            continue
        try:
            outside.down(folder, tools)
        except (LorryError, ProviderError) as err:
            tools.view.say(f"run {folder.id}: {err}")  # its machine is ended by its label all the same
        gone |= held - {attempt.label for attempt in folder.book().open_attempts}
    return gone


def _what_became(found: list[dict[str, Any]], ended: list[dict[str, Any]], gone: set[str]) -> list[dict[str, Any]]:
    """A row for each machine that was found: ended with its run, or by its label, or vanished between two looks, which proves nothing."""
    still = {(row["provider"], row["id"]) for row in ended}
    rows = []
    for row in found:
        if (row["provider"], row["id"]) not in still:
            seen = row["label"] in gone
            rows.append(row | {"destroyed_verified": seen, "trouble": "" if seen else "listed a moment ago, and no longer: look again"})
    return [*rows, *ended]


def _show(rows: list[dict[str, Any]], *, json: bool) -> None:
    from orchestrator import console

    if json:
        console.json_document(rows)
        return
    for row in rows:
        end = "destroyed, and seen to be gone" if row["destroyed_verified"] else row["trouble"] or f"{row['status']}, may be billing"
        console.out(console.plain(" ".join(filter(None, [row["provider"], row["id"], row["label"]])) + f": {end}"))
    if not rows:
        console.talk("no machine of lorry lives at any provider")


def _timer(*, install: bool, every_min: int, json: bool) -> int:
    """Put the timer there, or take it away, and show what was done."""
    from orchestrator import console
    from orchestrator.home import Home
    from orchestrator.safety import timer

    home = Home.from_env()
    if install:
        home.make()
        done = timer.install(home.path, every_min)
    else:
        done = timer.remove(home.path)
    if json:
        state = timer.timer_state(home.path)
        console.json_document({"kind": state.kind, "installed": state.installed, "running": state.running, "done": done})
        return 0
    for line in done or ["no timer is installed"]:
        console.talk(line)
    return 0
