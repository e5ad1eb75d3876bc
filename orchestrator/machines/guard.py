"""The guard on the machine, seen from here: the text that starts it, the lease that it obeys, the beat that it tells. PURE.

`templates/guard.py` is the guard itself. It starts in the machine's first second and ends its own machine, with a key that can do
nothing else, when its time is over: when this computer is lost, it is what stops the bill.
"""

from __future__ import annotations

import ast
import json
from base64 import b64encode
from shlex import quote
from zlib import compress

from pydantic import BaseModel, ConfigDict, ValidationError

from providers.base import SelfDestroy

FOLDER = ".lorry-guard"
"""On the machine, below the login's home."""
CLAIM_S = 1200.0
"""A machine that no client has claimed by now never will be: booting and logging in take a few minutes at most."""
GRACE_S = 3600.0
"""Finished work waits so long to be fetched, where the cap allows."""
BEAT_S = 1.0
ONSTART_MOST = 3700
"""Characters. Vast takes 4096, of which its own first lines need some 300: they let our key in and keep the environment for logins."""


class Beat(BaseModel):
    """What the guard has told last."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    beat: int
    proven: bool
    """It has read its own machine with the key that can destroy it."""
    left: float
    """Seconds until it ends the machine."""
    why: str
    serial: int | None
    started: float | None = None
    now: float | None = None

    @property
    def age_s(self) -> float:
        """How long the machine has lived, by its own boot clock; 0 where the guard does not tell."""
        return max(0.0, self.now - self.started) if self.now is not None and self.started is not None else 0.0


def onstart(
    script: str, call: SelfDestroy, *, most_s: float, claim_s: float = CLAIM_S, grace_s: float = GRACE_S, beat_s: float = BEAT_S
) -> str:
    """POSIX sh that puts the guard on the machine and starts it, detached. Harmless when it runs again."""
    config = {
        "method": call.method,
        "url": call.url,
        "show_url": call.show_url or call.url,
        "key": call.key,
        "id_env": call.id_env,
        "most_s": most_s,
        "claim_s": claim_s,
        "grace_s": grace_s,
        "beat_s": beat_s,
    }
    packed = b64encode(compress(bare(script).encode(), 9)).decode()
    start = f"import base64,zlib;exec(compile(zlib.decompress(base64.b64decode('{packed}')),'guard','exec'))"
    words = (
        f'setsid python3 -c {quote(start)} "$HOME/{FOLDER}" {quote(json.dumps(config, separators=(",", ":")))} </dev/null >/dev/null 2>&1 &'
    )
    assert len(words) <= ONSTART_MOST, f"the guard has grown to {len(words)} characters; {ONSTART_MOST} are to be had"
    return words


def bare(script: str) -> str:
    """The same program without its comments and docstrings, which are for who reads it here."""
    tree = ast.parse(script)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(tree)


def lease(serial: int, left_s: float, status: str = "") -> bytes:
    """The client's word to the guard: the machine may live for so long from now. `status`: the file that says when the work is done."""
    return json.dumps({"serial": serial, "left_s": round(left_s, 1), "status": status}).encode()


def beat(raw: bytes | None) -> Beat | None:
    """The guard's last word; None when there is none, or none that makes sense."""
    try:
        return Beat.model_validate_json(raw) if raw else None
    except ValidationError:
        return None


def is_proven(first: Beat | None, second: Beat | None) -> bool:
    """Whether a guard lives and can do what it is there for: two looks, a beat between them, and its own proof."""
    return first is not None and second is not None and second.beat > first.beat and second.proven
