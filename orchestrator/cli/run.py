"""`lorry run` and what goes on with, or ends, a run that was begun."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Budget, ConfigFiles, Json, Prefer, Providers, Run, Yes

if TYPE_CHECKING:
    from orchestrator.home import RunFolder
    from orchestrator.prepare import Ready
    from orchestrator.trip import Tools

Unguarded = Annotated[bool, typer.Option("--unguarded", help="Train also where the machine's own guard does not prove itself.")]
Detach = Annotated[bool, typer.Option("--detach", help="Go on in the background; `lorry attach` watches it.")]
NoKeeper = Annotated[bool, typer.Option("--no-keeper", help="Should this lorry be killed, nobody takes the run up until the next command.")]


def run(  # noqa: PLR0917  options, each with its name
    file: ConfigFiles = None,
    provider: Providers = None,
    budget: Budget = None,
    prefer: Prefer = None,
    yes: Yes = False,
    detach: Detach = False,
    unguarded: Unguarded = False,
    no_keeper: NoKeeper = False,
    json: Json = False,
) -> int:
    """Rent, train every LoRA of the file, bring them home, destroy.

    Config and datasets are checked first, then the plan and its price are shown; nothing is rented before you say yes. Checkpoints
    come home while they are made. Ctrl-C once: checkpoint, fetch, destroy. Twice: destroy now. Closing the terminal stops nothing:
    the run goes on, `lorry attach RUN` watches it, `lorry stop RUN` ends it. A small keeper in the background takes the run up when
    this lorry is killed. If this computer dies, the machine trains on until its deadline; the next command takes it up again.

    Examples:
      lorry run                              the lorry.toml of this folder
      lorry run autumn.toml --budget 3 -y
      lorry run lisa.toml forest.toml        one session for the jobs of both
      lorry run --provider sandbox -y        a rehearsal on the practice cloud; costs nothing
      lorry run -y --json > receipt.json     events as JSON lines on stderr
    """
    from orchestrator import run as program
    from orchestrator.home import Home
    from orchestrator.order import make_order
    from orchestrator.prepare import asked, prepare
    from orchestrator.safety.keeper import kept
    from orchestrator.tools import make_tools

    tools, home = make_tools(as_json=json), Home.from_env()
    home.make()
    ready = prepare(asked(file, tools, providers=provider, budget=budget, unguarded=unguarded, prefer=prefer), tools)
    _confirm(ready, tools, yes=yes, json=json)
    folder = home.new_run(ready.config.name)
    order = make_order(
        ready.config,
        ready.jobs,
        ready.load,
        folder,
        cap_usd=ready.cap_usd,
        disk_gib=ready.plan.disk_gib,
        unguarded=unguarded,
        hub=ready.hub,
    )
    if detach:
        program.open_books(order, ready.plan, folder, tools)
        return _in_background(folder, keeper=not no_keeper, json=json)
    tools.view.say(f"run {folder.id}: Ctrl-C stops it in good order, closing the terminal does not")
    with kept(folder, wanted=not no_keeper):
        return _ended(program.run(order, ready.plan, folder, tools), json=json)


def attach(run: Run, json: Json = False) -> int:
    """Watch a run; take it up when the lorry that began it has died.

    Takes the run to its end: training, fetching, destroying. When another lorry on this computer does that already, this one only
    looks on.

    Examples:
      lorry attach autumn-3f2a91
      lorry attach autumn
    """
    from orchestrator import outside
    from orchestrator import run as program
    from orchestrator.home import Busy, Home
    from orchestrator.safety.keeper import is_over, kept
    from orchestrator.tools import make_tools

    folder, tools = Home.from_env().run(run), make_tools(as_json=json)
    with kept(folder, wanted=not is_over(folder.book())):
        while True:
            try:
                return _ended(program.attach(folder, tools), json=json)
            except Busy:
                with _only_waiting(f"looked away; run {folder.id} goes on", f"lorry stop {folder.id} ends it"):
                    outside.follow(folder, tools)  # to its end; or until that lorry dies, and this one takes the run up


def resume(run: Run, budget: Budget = None, json: Json = False) -> int:
    """Go on with a run that ended early, from the checkpoints at home.

    Rents a machine again, within the same cap or a new one; what was spent before counts. Finished jobs are not done again.

    Examples:
      lorry resume autumn-3f2a91
      lorry resume autumn --budget 8
    """
    from orchestrator import run as program
    from orchestrator.home import Home
    from orchestrator.prepare import cap_of
    from orchestrator.safety.keeper import kept
    from orchestrator.tools import make_tools

    folder, cap = Home.from_env().run(run), cap_of(budget) if budget else None
    with kept(folder):
        return _ended(program.resume(folder, make_tools(as_json=json), cap_usd=cap), json=json)


def stop(run: Run, json: Json = False) -> int:
    """End a run in good order: checkpoint, fetch, destroy, verify.

    Examples:
      lorry stop autumn-3f2a91
      lorry resume autumn-3f2a91      goes on from there, on another machine
    """
    from orchestrator import outside
    from orchestrator.home import Home
    from orchestrator.safety.keeper import is_over, kept
    from orchestrator.tools import make_tools

    folder = Home.from_env().run(run)
    with kept(folder, wanted=not is_over(folder.book())), _only_waiting(*_asked(folder)):
        return _ended(outside.stop(folder, make_tools(as_json=json)), json=json, asked=True)


def down(run: Run, json: Json = False) -> int:
    """Destroy a run's machines now, and see that they are gone.

    What is not at home yet is lost.

    Examples:
      lorry down autumn-3f2a91
    """
    from orchestrator import outside
    from orchestrator.home import Home
    from orchestrator.safety.keeper import is_over, kept
    from orchestrator.tools import make_tools

    folder = Home.from_env().run(run)
    with kept(folder, wanted=not is_over(folder.book())), _only_waiting(*_asked(folder)):
        return _ended(outside.down(folder, make_tools(as_json=json)), json=json, asked=True)


@contextmanager
def _only_waiting(message: str, hint: str) -> Iterator[None]:
    """Ctrl-C while another lorry does the work ends the waiting, not the work. A lorry that drives catches its Ctrl-C itself."""
    from orchestrator.errors import Interrupted

    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(message, hint=hint) from None


def _asked(folder: RunFolder) -> tuple[str, str]:
    return f"run {folder.id} was asked to end, and ends without this command", f"watch it: lorry attach {folder.id}"


def _confirm(ready: Ready, tools: Tools, *, yes: bool, json: bool) -> None:
    """Show what it will cost, also at worst, and ask. Without a terminal only `-y` is an answer."""
    from orchestrator import console
    from orchestrator.budget import show_usd
    from orchestrator.errors import Interrupted, UsageError
    from orchestrator.pricing.worst import account_of, worst_case
    from orchestrator.report.plan import show_plan

    if not json:
        show_plan(ready.plan, data=False, max_hours=ready.config.budget.max_hours)
    account = account_of(tools.provider(ready.plan.best.offer.provider))
    for words in worst_case(ready.plan.best, ready.plan.disk_gib, ready.cap_usd, account):
        tools.view.say(words)
    if yes:
        return
    if json or not console.is_terminal():
        raise UsageError("nobody is there to confirm the price", hint="say yes beforehand with -y; `lorry plan` shows the price")
    if not console.ask(f"rent the first of these, for at most {show_usd(ready.cap_usd)} in all?"):
        raise Interrupted("not confirmed; nothing was rented")


def _in_background(folder: RunFolder, *, keeper: bool, json: bool) -> int:
    """Let another process drive the run, one that no terminal can take along: its keeper, or a single `lorry attach`."""
    import sys

    from orchestrator import console
    from orchestrator.safety.keeper import detached, is_wanted, start

    by_keeper = keeper and is_wanted()
    command = [sys.executable, "-P", "-m", "orchestrator.cli", "attach", folder.id]
    process = start(folder) if by_keeper else detached(command, folder)
    if json:
        console.json_document({"run": folder.id, "status": "detached", "exit_code": 0, "pid": process.pid if process else None})
    else:
        console.talk(f"run {folder.id} goes on in the background")
        for line in (
            f"lorry attach {folder.id}   watch it",
            f"lorry logs {folder.id} -f",
            f"lorry stop {folder.id}     checkpoint, fetch, destroy",
        ):
            console.talk(f"  {line}")
    return 0


def _ended(document: Mapping[str, Any], *, json: bool, asked: bool = False) -> int:
    """Print the receipt; the exit code is the run's, but an end that was asked for is no failure of the asking."""
    from orchestrator import console
    from orchestrator.report.receipt import in_words

    code = int(document["exit_code"])
    with console.whoever_listens():
        if json:
            console.json_document(document)
        else:
            for line in in_words(document):
                console.out(console.plain(line, most=4000))
    if code and not json and document["message"]:
        console.talk(f"error: {console.plain(document['message'])}")
    if code and not json and document["hint"]:
        console.talk(f"hint: {console.plain(document['hint'])}")
    return 0 if asked and code in {5, 7, 130} else code
