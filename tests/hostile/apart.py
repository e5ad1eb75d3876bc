"""An attack's victim in a process of its own: apart.py FOLDER PORT PINNED COMMAND     COMMAND is lorry's, as one word

Says `ready` on stdout when its world stands, calls lorry when a line comes in, and ends with lorry's exit code.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from stranger import Stranger
from victim import Victim

from orchestrator.cli import main
from providers.base import SSHEndpoint


def play(folder: str, port: str, pinned: str, command: str) -> int:
    """`Victim` needs no more of a stranger than where it is and which key it has."""
    stranger = SimpleNamespace(endpoint=SSHEndpoint(host="127.0.0.1", port=int(port), user="root"), known=pinned)
    with pytest.MonkeyPatch.context() as patch:
        Victim(Path(folder), patch, cast("Stranger", stranger))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        return main(command.split())


if __name__ == "__main__":
    sys.exit(play(*sys.argv[1:]))
