"""The first words to a machine: have it prove that it is the one that was rented, before anything is sent there."""

from __future__ import annotations

import secrets

import templates
from orchestrator import commands
from orchestrator.shell import KeyFiles, Shell

from .proof import Disproved, judge, nonce

SILENCE_S = 60.0
"""A Python that starts from a cold disk takes seconds."""


def nonce_for(keys: KeyFiles, label: str) -> str:
    """What the create call of this attempt carries to its machine."""
    return nonce(keys.private.read_bytes(), label)


def stranger(shell: Shell, label: str) -> str:
    """What is wrong with who answers there; empty when it has proved itself. Raises `MachineFailed` when the line breaks meanwhile.

    The connection may be made anew between the two lines below: the shell holds the pin, and takes no other host key.
    """
    fingerprint, challenge = shell.connect(), secrets.token_hex(32)
    done = shell.run(commands.prove(challenge), stdin=templates.text("proof.py").encode(), timeout_s=SILENCE_S)
    try:
        judge(done.stdout, secret=nonce_for(shell.keys, label), challenge=challenge, fingerprint=fingerprint)
    except Disproved as err:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return f"{err}{''.join(f' (it said: {word[:200]})' for word in last)}"
    return ""
