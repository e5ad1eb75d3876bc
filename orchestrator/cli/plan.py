"""`lorry plan` and `lorry offers`: what the market has, and what the whole run would cost on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Budget, ConfigFiles, Json, Prefer, Providers

if TYPE_CHECKING:
    from orchestrator.machines.memory import Memory
    from orchestrator.prepare import Asked
    from orchestrator.trip import Tools


WhatIf = Annotated[
    list[str] | None,
    typer.Option("--what-if", metavar="KEY=VALUE...", help="Compare with other keys for every job: batch=4 rank=64.", show_default=False),
]
Calibrated = Annotated[bool, typer.Option("--calibration", help="Show how right the estimates of this computer's runs were; ask nobody.")]


def plan(
    file: ConfigFiles = None,
    provider: Providers = None,
    budget: Budget = None,
    prefer: Prefer = None,
    what_if: WhatIf = None,
    calibration: Calibrated = False,
    json: Json = False,
) -> None:
    """Rank the offers by what the whole run costs; rent nothing.

    Time, money and VRAM by phase and part, each as P10, P50 and P90: from published figures, moved by what runs of this computer took.
    For each card the plan picks the fastest settings that fit and leave the result as it is; `memory` in the file says what else it may.

    Examples:
      lorry plan
      lorry plan autumn.toml --provider sandbox
      lorry plan --prefer fast
      lorry plan --what-if batch=4 rank=64    side by side, on the same offers
      lorry plan --calibration               how often the truth fell between P10 and P90
      lorry plan lisa.toml forest.toml       both in one session
      lorry plan --json | jq '.candidates[0].usd.p90'
    """
    from orchestrator import console
    from orchestrator.prepare import asked
    from orchestrator.report.plan import show_plan
    from orchestrator.report.plan_document import plan_document
    from orchestrator.tools import make_tools

    tools = make_tools(as_json=json)
    if calibration:
        _show_calibration(tools, json=json)
        return
    files, changes = _apart(file or [], what_if or [])
    ready = asked(files, tools, providers=provider, budget=budget, prefer=prefer)
    if changes:
        _compare(ready, changes, json=json)
        return
    ranked = ready.planned(ready.load)
    if json:
        console.json_document(plan_document(ranked))
    else:
        show_plan(ranked, data=True, full=True, max_hours=ready.config.budget.max_hours)
    for bad in tools.memory.of(ranked.avoided, tools.clock.now()):
        console.talk(console.plain(bad.words))


def _apart(files: list[Path], changes: list[str]) -> tuple[list[Path], list[str]]:
    """After --what-if a shell hands on all but the first change as files."""
    strays = [file for file in files if changes and "=" in str(file) and not file.exists()]
    return [file for file in files if file not in strays], [*changes, *map(str, strays)]


def _compare(ready: Asked, changes: list[str], *, json: bool) -> None:
    from orchestrator import console
    from orchestrator.report.plan import show_variants, variant_document
    from orchestrator.whatif import changes_of, what_if

    variants = what_if(ready, changes_of(changes))
    if json:
        console.json_document({"variants": [variant_document(one) for one in variants]})
    else:
        show_variants(variants)


def _show_calibration(tools: Tools, *, json: bool) -> None:
    from dataclasses import asdict

    from orchestrator import console
    from orchestrator.learning.calibration import calibration
    from orchestrator.report.plan import show_calibration

    rows = calibration(tools.measured.records())
    if json:
        console.json_document({"calibration": [asdict(row) for row in rows]})
    else:
        show_calibration(rows)


def offers(  # noqa: PLR0917  options, each with its name
    provider: Annotated[
        list[str] | None, typer.Option("--provider", metavar="NAME", help="Ask this cloud only; may be repeated.", show_default=False)
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option("--gpu", metavar="CARD", help="Only this card, as in 4090; may be repeated.", show_default=False)
    ] = None,
    max_usd_per_hour: Annotated[str | None, typer.Option(metavar="USD", help="Nothing dearer, disk included.", show_default=False)] = None,
    region: Annotated[
        list[str] | None, typer.Option(metavar="CC", help="Only this country, as in SE; may be repeated.", show_default=False)
    ] = None,
    min_vram_gib: Annotated[float, typer.Option(min=0, metavar="GIB", help="Video memory at least.")] = 0.0,
    disk_gib: Annotated[int, typer.Option(min=1, metavar="GIB", help="The disk that is in the price.")] = 40,
    interruptible: Annotated[bool, typer.Option("--interruptible", help="Also machines that may be taken away: bids, spot.")] = False,
    limit: Annotated[int, typer.Option(min=1, metavar="LINES", help="Lines of the table.")] = 30,
    forget: Annotated[
        str | None, typer.Option(metavar="MACHINE", help="Try a machine again that failed, or all of them: `all`.", show_default=False)
    ] = None,
    json: Json = False,
) -> int:
    """List the machines for rent now.

    Asks every cloud for which there is a key, and says which it did not ask; cheapest first, with every part of the price. The practice
    cloud is asked when it is named, or when there is nobody else. Machines that failed a run are named with the reason and the day from
    which they are tried again.

    Examples:
      lorry offers
      lorry offers --gpu 4090 --gpu 3090 --max-usd-per-hour 0.40
      lorry offers --provider sandbox --json
      lorry offers --forget all
    """
    from orchestrator import console
    from orchestrator.home import Home
    from orchestrator.prepare import cap_of
    from orchestrator.pricing.listing import OWN, as_json, cards, listing, to_ask
    from orchestrator.report.offers import show_offers
    from orchestrator.setup.credentials import KeyStore
    from orchestrator.tools import make_tools
    from providers.base import Requirements

    tools = make_tools(as_json=json)
    if forget is not None:
        _forget(tools.memory, forget)
    names, keyless = to_ask(provider or (), KeyStore(Home.from_env().path))
    wanted = Requirements(
        disk_gib=disk_gib,
        min_vram_gib=min_vram_gib,
        gpus=cards(gpu or ()),
        max_usd_per_hour=None if max_usd_per_hour is None else cap_of(max_usd_per_hour),
        regions=frozenset(code.upper() for code in region or ()),
        interruptible=interruptible,
    )
    found = listing(names, wanted, tools, missing=keyless, quiet=() if provider else (OWN,))
    if json:
        why = {key: bad.why for key, bad in tools.memory.bad(tools.clock.now()).items()}
        console.json_document([as_json(o, disk_gib) | {"failed_us": why.get((o.provider, o.machine_id))} for o in found.offers])
    else:
        show_offers(found, most=limit)
        for bad in tools.memory.of(found.offers, tools.clock.now()):
            console.talk(console.plain(bad.words))
    if not found.offers:
        console.talk("no machine that fits is for rent now")
    return 0


def _forget(memory: Memory, word: str) -> None:
    from orchestrator import console
    from orchestrator.errors import UsageError

    gone = memory.forget(word)
    if not gone and word != "all":
        raise UsageError(f"no machine {word!r} is remembered", hint="lorry offers names those that are, each with its number")
    for bad in gone:
        console.talk(console.plain(f"tried again from now on: {bad.gpu} at {bad.provider}, machine {bad.machine_id}"))
