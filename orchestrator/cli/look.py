"""`lorry ps`, `logs`, `pull`, `cost`, `report`: what runs there are and what came of them."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Json, Run

Follow = Annotated[bool, typer.Option("-f", "--follow", help="Go on as more comes, until the run ends.")]
All = Annotated[bool, typer.Option("--all", help="Finished runs too.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Ids only, one a line.")]
Open = Annotated[bool, typer.Option("--open", help="Open it in the browser.")]


def ps(all: All = False, quiet: Quiet = False, json: Json = False) -> int:  # noqa: A002  the option's name
    """List the runs under way, and any machine that may still bill.

    Says of each who looks after it: a lorry that drives it now, its keeper, or nobody. Ends with 10 when a machine may bill that no
    lorry on this computer looks after, or that lorry could not see go.

    Examples:
      lorry ps
      lorry ps --all --json
      lorry ps -q | xargs -n1 lorry logs
    """
    from orchestrator import console
    from orchestrator.clock import SystemClock
    from orchestrator.home import Home
    from orchestrator.report.receipt import receipt

    clock = SystemClock()
    runs = [r for r in Home.from_env().runs() if all or (book := r.book()).closed is None or book.open_attempts]
    if quiet:
        for folder in runs:
            console.out(folder.id)
        return 0
    documents = [receipt(folder, clock.now()) | {"driven": folder.is_driven, "kept": folder.is_kept} for folder in runs]
    if json:
        console.json_document(documents)
    else:
        _table(documents)
    return 0  # or 10, which every command ends with while a machine is lost


def _table(documents: list[dict[str, object]]) -> None:
    from rich.table import Table

    from orchestrator import console

    if not documents:
        console.talk("no run is under way; `lorry ps --all` lists the finished ones")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("run", "status", "looked after by", "jobs", "machine", "spent", "cap"):
        table.add_column(name)
    for run in documents:
        jobs, machines, cost = run["jobs"], run["machines"], run["cost"]
        assert isinstance(jobs, list)
        assert isinstance(machines, list)
        assert isinstance(cost, dict)
        words = ", ".join(f"{job['name']} {job['steps']}/{job['steps_planned'] or '?'} {job['status']}" for job in jobs)
        machine = f"{machines[-1]['gpu']} at {machines[-1]['provider']}" if machines else "none"
        money = (f"${cost['metered_usd']:.4f}", f"${cost['cap_usd']:.2f}")
        table.add_row(str(run["run"]), str(run["status"]), _by_whom(run), words, machine, *money)
    console.show(table, data=True)


def _by_whom(run: dict[str, object]) -> str:
    """Who brings the run to its end; nothing needs to be done for one without a living machine."""
    if run["driven"]:
        return "lorry, and its keeper" if run["kept"] else "lorry"
    if run["kept"]:
        return "its keeper"
    machines = run["machines"]
    assert isinstance(machines, list)
    return "NOBODY" if any(not machine["destroyed_verified"] for machine in machines) else ""


def logs(run: Run, follow: Follow = False, json: Json = False) -> int:
    """Print what a run's machines have told: phases, steps, losses.

    Reads what is at home; `lorry attach` is what brings more.

    Examples:
      lorry logs autumn-3f2a91
      lorry logs autumn -f
      lorry logs autumn --json | jq 'select(.kind == "step") | .loss'
    """
    from orchestrator import console
    from orchestrator.home import Home
    from orchestrator.report.log import in_words, told

    folder = Home.from_env().run(run)
    for event in told(folder, follow=follow):
        console.out(event.model_dump_json() if json else console.plain(in_words(event)))
    return 0


def pull(run: Run, json: Json = False) -> int:
    """Fetch what a run has finished so far; its machine works on.

    Examples:
      lorry pull autumn-3f2a91
    """
    from orchestrator import console, outside
    from orchestrator.home import Busy, Home
    from orchestrator.tools import make_tools

    folder = Home.from_env().run(run)
    try:
        count = outside.fetch(folder, make_tools(as_json=json))
        words = f"{count} files fetched into {folder.path / 'jobs'}"
    except Busy:
        count, words = 0, f"another lorry drives this run and fetches as it goes; see {folder.path / 'jobs'}"
    if json:
        console.json_document({"run": folder.id, "fetched": count, "folder": str(folder.path / "jobs")})
    else:
        console.talk(words)
    return 0


def cost(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; without it, all of them.", show_default=False)] = None,
    json: Json = False,
) -> int:
    """Compare what runs were estimated at, metered at, and billed.

    With a RUN, phase by phase, with the reason for every difference.

    Examples:
      lorry cost
      lorry cost autumn-3f2a91
      lorry cost autumn-3f2a91 --json | jq '.[0].differences'
    """
    from orchestrator import console
    from orchestrator.closing import account, billed
    from orchestrator.home import Home
    from orchestrator.report.cost import cost as explained
    from orchestrator.report.cost import in_words
    from orchestrator.tools import make_tools

    home, tools = Home.from_env(), make_tools(as_json=json)
    documents = []
    for folder in [home.run(run)] if run else home.runs():
        bills = billed(folder, tools)
        told = account(folder, tools, bills)
        sums = {"run": told["run"], "status": told["status"], **told["cost"], "phases": told["phases"], "paid": told["paid"]}
        sums["jobs"] = [{key: job[key] for key in ("name", "seconds", "usd")} for job in told["jobs"]]
        documents.append(sums | explained(folder, tools.clock.now(), bills))
    if json:
        console.json_document(documents)
        return 0
    if run:
        for line in in_words(documents[0]):
            console.out(console.plain(line))
        return 0
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("run", "status", "estimated P50", "metered", "billed", "cap"):
        table.add_column(name, justify="left" if name in {"run", "status"} else "right")
    for d in documents:
        p50, charged = d["estimated_usd"].get("p50"), d["billed_usd"]
        table.add_row(
            d["run"],
            d["status"],
            f"${p50:.4f}" if p50 is not None else "",
            f"${d['metered_usd']:.4f}",
            f"${charged:.4f}" if charged is not None else "not yet",
            f"${d['cap_usd']:.2f}",
        )
    console.show(table, data=True)
    return 0


def report(run: Run, open_it: Open = False, json: Json = False) -> int:
    """Write the page of a run: curves, samples, receipt; one HTML file.

    Examples:
      lorry report autumn-3f2a91 --open
    """
    from orchestrator import console
    from orchestrator.clock import SystemClock
    from orchestrator.home import Home
    from orchestrator.report.page import write_page
    from orchestrator.report.receipt import receipt

    folder = Home.from_env().run(run)
    page = write_page(folder, receipt(folder, SystemClock().now()))
    if open_it:
        import webbrowser

        webbrowser.open(page.as_uri())
    if json:
        console.json_document({"run": folder.id, "report": str(page)})
    else:
        console.out(str(page))
    return 0
