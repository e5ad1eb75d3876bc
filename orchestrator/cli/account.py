"""`lorry login`, `logout` and `doctor`: keys, what they are worth, and what could go wrong before it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Json, Yes

if TYPE_CHECKING:
    from orchestrator.setup.doctor import Check

Cloud = Annotated[str, typer.Argument(metavar="PROVIDER", help="A cloud with an account: vast, runpod or tensordock.", show_default=False)]


def login(
    provider: Cloud,
    stdin: Annotated[bool, typer.Option("--stdin", help="Read the key from stdin instead of asking for it.")] = False,
    import_: Annotated[bool, typer.Option("--import", help="Take the key that the cloud's own client keeps on this computer.")] = False,
    json: Json = False,
) -> int:
    """Prove a key of a cloud and keep it in the system's keyring.

    Asks for the key without showing it, makes a real call with it, says whose account it opens and what it may not do, and keeps it only
    then. Without a keyring it goes into a file that only you can read. The cloud's variable in the environment wins over a kept key.

    Examples:
      lorry login vast
      pass show runpod | lorry login runpod --stdin
      lorry login vast --import
    """
    from orchestrator import console
    from orchestrator.setup import accounts, signin

    source = signin.Source.STDIN if stdin else signin.Source.CLIENT if import_ else signin.Source.PERSON
    proved = signin.login(provider, source)
    checks = list(accounts.about(provider, proved.account))
    if json:
        console.json_document(proved.as_json())
    else:
        for check in checks:
            console.check(check.health, "", check.said, check.hint)
        console.out(f"the key is kept in {proved.kept_in}, and is sent to nobody but {proved.address.replace(' ', ' and ')}")
    if proved.overruled_by:
        console.warn(f"{proved.overruled_by} is set in this environment and wins over the kept key")
    return 0


def logout(provider: Cloud, json: Json = False) -> int:
    """Forget the key of a cloud that is kept on this computer.

    The key itself stays good: end it on the cloud's own page.

    Examples:
      lorry logout vast
    """
    from orchestrator import console
    from orchestrator.setup import signin

    left = signin.logout(provider)
    if json:
        console.json_document(left.as_json())
        return 0
    console.out(f"the key for {provider} is forgotten here" if left.was_kept else f"no key for {provider} was kept here")
    console.talk(f"it stays good until it is ended at {left.made_at}" if left.was_kept else "nothing was changed")
    if left.overruled_by:
        console.warn(f"{left.overruled_by} is still set in this environment")
    return 0


def doctor(
    provider: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROVIDER]...", help="Ask these clouds too; every one with a key is asked anyway.", show_default=False),
    ] = None,
    drill: Annotated[
        str | None,
        typer.Option(
            "--drill", metavar="PROVIDER", help="Rent its cheapest machine for some minutes and see it end itself.", show_default=False
        ),
    ] = None,
    budget: Annotated[str, typer.Option(metavar="USD", help="The most that the drill may cost.")] = "0.25",
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Look for trouble before it costs: versions, keys, rights, machines.

    Asks every cloud for which there is a key. With --drill it rents the cheapest machine that fits, waits for a login, and lets the
    machine's own guard end it while this computer only watches: the proof that a forgotten machine stops billing. The price is shown
    first.

    Examples:
      lorry doctor
      lorry doctor vast --json
      lorry doctor --drill runpod --budget 0.25
    """
    if drill is not None:
        return _drill(drill, budget=budget, yes=yes, json=json)

    from orchestrator import console
    from orchestrator.setup.doctor import exit_code
    from orchestrator.setup.signin import examine

    checks = []
    for check in examine(provider or ()):
        checks.append(check)
        if not json:
            console.check(check.health, check.subject, check.said, check.hint)
    code = exit_code(checks)
    if json:
        console.json_document({"checks": [check.as_json() for check in checks], "exit_code": code})
    else:
        console.talk(_sum(checks))
    return code


def _sum(checks: Sequence[Check]) -> str:
    """How many of what, in words."""
    from collections import Counter

    counted = Counter(str(check.health) for check in checks)
    if not counted["warning"] and not counted["trouble"]:
        return "all is well"
    return f"{counted['trouble']} in trouble, {counted['warning']} to know of, {counted['ok']} well"


def _drill(name: str, *, budget: str, yes: bool, json: bool) -> int:
    """Show the price, ask, drill, print the table."""
    from orchestrator import console
    from orchestrator.errors import UsageError
    from orchestrator.home import Home
    from orchestrator.prepare import cap_of
    from orchestrator.safety.keeper import kept
    from orchestrator.setup import drill as the_drill
    from orchestrator.tools import make_tools

    tools, home = make_tools(as_json=json), Home.from_env()
    home.make()
    ranked = the_drill.plan(name, cap_of(budget), tools)
    for line in the_drill.offer_in_words(name, ranked):
        tools.view.say(line)
    if not yes:
        if json or not console.is_terminal():
            raise UsageError("a drill costs money, and there is no terminal to ask on", hint="say yes beforehand with -y")
        if not console.ask("rent it?"):
            console.talk("nothing was rented")
            return 0
    folder = home.new_run(f"drill-{name}")
    tools.view.say(f"drill {folder.id}")
    with kept(folder):
        document = the_drill.drill(name, ranked, folder, tools)
    if json:
        console.json_document(document)
        return int(document["exit_code"])
    console.steps(document["steps"])
    ended = "the machine ended itself, and the cloud agrees" if document["passed"] else "the guard was not seen to end a machine"
    console.talk(console.plain(document["message"] or ended))
    if document["hint"]:
        console.talk(f"hint: {document['hint']}")
    console.talk(f"all of it: {document['folder']}/drill.json")
    return int(document["exit_code"])
