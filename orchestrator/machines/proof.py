"""Whether the machine that answers is the one that was rented, and nobody stands in between. PURE.

The create call carries a nonce into the machine's environment, over the cloud's own TLS. Once logged in, and before anything else is said,
we ask for an HMAC with it over a fresh challenge and every host key that the machine holds. A stranger at a reused address does not know
the nonce; somebody in between shows us a host key that the machine does not hold. What it does NOT prove: the host and the cloud can read
the environment, so it says nothing of whether they are honest. `templates/proof.py` is the machine's side.
"""

from __future__ import annotations

import hmac
import json

NONCE_ENV = "RENTAL_NONCE"
MOST_KEYS = 32
"""A machine has one host key of each of a few kinds."""
NO_KEY = ""
"""What stands for the host key in the line that proves the nonce alone."""


class Disproved(Exception):
    """The machine did not prove that it is ours. Its words say which way."""


def nonce(private_key: bytes, label: str) -> str:
    """The nonce of an attempt: from the run's own key and the attempt's label, so that any process can make it again and none keeps it."""
    return hmac.digest(private_key, b"lorry rental nonce\0" + label.encode(), "sha256").hex()


def mac(secret: str, challenge: str, fingerprint: str) -> str:
    """What a machine that knows the nonce says of a host key."""
    return hmac.new(secret.encode(), f"lorry host proof\0{challenge}\0{fingerprint}".encode(), "sha256").hexdigest()


def judge(answer: bytes, *, secret: str, challenge: str, fingerprint: str) -> None:
    """Believe the machine whose host key we saw, or raise `Disproved`."""
    told = _macs(answer)

    def has(wanted: str) -> bool:
        return any([hmac.compare_digest(one, wanted) for one in told])  # noqa: C419  each is compared, whichever it is

    if has(mac(secret, challenge, fingerprint)):
        return
    if has(mac(secret, challenge, NO_KEY)):
        raise Disproved(
            f"it is the machine that was rented, yet the host key {fingerprint} that we see is not its own: somebody is in between"
        )
    raise Disproved("it does not know what this rental was started with: another machine answers there, or somebody is in between")


def _macs(answer: bytes) -> list[str]:
    """The lines of hexadecimal digits in whatever the machine said; a login may print other things too."""
    try:
        lines = answer.decode("ascii", errors="replace").splitlines()
        told = next(json.loads(line) for line in lines if line.startswith('{"lorry_proof"'))["lorry_proof"]
    except (StopIteration, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [one for one in told[: MOST_KEYS + 1] if isinstance(one, str) and one.isascii()] if isinstance(told, list) else []
