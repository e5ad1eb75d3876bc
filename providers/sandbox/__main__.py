"""Serve the practice cloud: `python -m providers.sandbox --folder DIR [--port N] [--speed X] [--json]`, or print its bill: `... --bill`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from .billing import bill
from .machines import HostError
from .server import serve


def main() -> int:
    """The exit code: 4 when the practice cloud cannot run here."""
    parser = argparse.ArgumentParser(prog="python -m providers.sandbox", description="The practice cloud: real machines on loopback.")
    parser.add_argument("--folder", type=Path, required=True, help="where everything of it lives")
    parser.add_argument("--port", type=int, default=0, help="default: the one it had before, else any")
    parser.add_argument("--speed", type=float, help="its clock runs so many times faster than real time")
    parser.add_argument("--idle-end-s", type=float, help="end after so long without a machine")
    parser.add_argument("--keep-machines", action="store_true", help="leave the machines running when it ends")
    parser.add_argument("--json", action="store_true", help="print one document with address and key, then serve")
    parser.add_argument("--bill", action="store_true", help="print what its meter has seen, as JSON, and end")
    options = parser.parse_args()
    if options.bill:
        sys.stdout.write(json.dumps(bill(options.folder).document(), indent=2) + "\n")
        return 0

    def ready(document: Mapping[str, object]) -> None:
        text = json.dumps(document) if options.json else f"practice cloud at {document['url']}, key {document['api_key']}; Ctrl-C ends it"
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    try:
        serve(
            options.folder,
            port=options.port,
            speed=options.speed,
            idle_end_s=options.idle_end_s,
            keep_machines=options.keep_machines,
            on_ready=ready,
        )
    except HostError as error:
        sys.stderr.write(f"{error}\n{error.hint}\n")
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
