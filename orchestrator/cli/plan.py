"""`lorry plan` and `lorry offers`: what the market has, and what the whole run would cost on it."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Budget, ConfigFile, Json, Providers


def plan(file: ConfigFile = None, provider: Providers = None, budget: Budget = None, json: Json = False) -> None:
    """Rank the offers by what the whole run costs; rent nothing.

    The estimate is a simple one for now: published figures, not yet calibrated by measurement.

    Examples:
      lorry plan
      lorry plan autumn.toml --provider sandbox
      lorry plan --json | jq '.candidates[0].usd.p90'
    """
    from orchestrator import console
    from orchestrator.market import plan_document
    from orchestrator.prepare import prepare
    from orchestrator.report.plan import show_plan
    from orchestrator.tools import make_tools

    ready = prepare(file, make_tools(as_json=json), providers=provider, budget=budget)
    if json:
        console.json_document(plan_document(ready.plan))
    else:
        show_plan(ready.plan, data=True)


def offers(
    provider: Providers = None,
    gpu: Annotated[list[str] | None, typer.Option("--gpu", help="Only this card; may be repeated.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """List the machines for rent now.

    Prices are per hour with 40 GiB of disk; traffic is apart.

    Examples:
      lorry offers --provider sandbox
      lorry offers --gpu "RTX 4090" --json
    """
    from orchestrator import console
    from orchestrator.market import offers as ask
    from orchestrator.tools import make_tools
    from providers.base import Requirements

    wanted = Requirements(disk_gib=40, gpus=frozenset(gpu or ()), interruptible=True)
    found = ask(provider or ("sandbox",), wanted, make_tools(as_json=json))
    found = sorted((o for o in found if not wanted.gpus or o.gpu_name in wanted.gpus), key=lambda o: o.prices.usd_per_hour(40))
    if json:
        console.json_document(
            [
                {
                    "provider": o.provider,
                    "id": o.id,
                    "machine": o.machine_id,
                    "gpu": o.gpu_name,
                    "vram_gib": o.vram_gib,
                    "usd_per_hour": float(o.prices.usd_per_hour(40)),
                    "upload_usd_per_gib": float(o.prices.upload_usd_per_gib),
                    "download_usd_per_gib": float(o.prices.download_usd_per_gib),
                    "reliability": o.reliability,
                    "region": o.region,
                    "interruptible": o.interruptible,
                }
                for o in found
            ]
        )
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name, justify in (
        ("GPU", "left"),
        ("VRAM", "right"),
        ("$/h", "right"),
        ("reliable", "right"),
        ("region", "left"),
        ("provider", "left"),
        ("offer", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for o in found:
        kind = " (interruptible)" if o.interruptible else ""
        table.add_row(
            o.gpu_name + kind, f"{o.vram_gib:g} GiB", f"{o.prices.usd_per_hour(40):.3f}", f"{o.reliability:.1%}", o.region, o.provider, o.id
        )
    console.show(table, data=True)
