"""`lorry sandbox`: the practice cloud."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from .common import Command, Json, subcommands

Folder = Annotated[Path | None, typer.Option(help="Where everything of it lives; the usual place is below LORRY_HOME.", show_default=False)]

sandbox = subcommands(invoke_without_command=True)


@sandbox.callback()
def _serve(
    context: typer.Context,
    folder: Folder = None,
    port: Annotated[int, typer.Option(help="0: the one that it had before, else any.")] = 0,
    speed: Annotated[float | None, typer.Option(help="Its clock runs so many times faster than real time.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Serve the practice cloud: real machines that cost nothing.

    A marketplace on this computer. Its machines are OpenSSH servers on loopback, with folders and processes of their own; its meter
    bills in make-believe dollars.
    Provider `sandbox` starts one by itself, so this command is for looking on and for tests.

    Examples:
      lorry sandbox                   serves until Ctrl-C, then ends its machines
      lorry sandbox --speed 60
      lorry sandbox bill --json
    """
    if context.invoked_subcommand:
        return
    from orchestrator import console
    from orchestrator.errors import MachineFailed
    from providers.sandbox.machines import HostError
    from providers.sandbox.provider import default_folder
    from providers.sandbox.server import serve

    def ready(document: Mapping[str, object]) -> None:
        if json:
            console.json_document(dict(document))
        else:
            console.talk(f"practice cloud at {document['url']}; Ctrl-C ends it and its machines")

    try:
        serve(folder or default_folder(), port=port, speed=speed, on_ready=ready)
    except HostError as err:
        raise MachineFailed(str(err), hint=err.hint) from err


@sandbox.command(cls=Command)
def bill(folder: Folder = None, json: Json = False) -> None:
    """Print what the practice cloud's own meter has seen.

    Every machine, when it was made and ended, the money by meter, and which still live.

    Examples:
      lorry sandbox bill
      lorry sandbox bill --json
    """
    from orchestrator import console
    from providers.sandbox.billing import bill as read
    from providers.sandbox.provider import default_folder

    document = read(folder or default_folder()).document()
    if json:
        console.json_document(document)
        return
    machines = document["machines"]
    assert isinstance(machines, list)
    for machine in machines:
        console.out(console.plain(str(machine)))
    console.talk(f"{len(machines)} machines, {len(document['live'])} alive, ${document['total_usd']:.4f}")  # type: ignore[arg-type]
