"""The keys that this process holds, by their values, so that nothing it prints or writes down shows one.

The last net: the HTTP client keeps its key out of every message already, and what a cloud, a library or a crash may still repeat is
caught here, whatever it looks like.
"""

from __future__ import annotations

SHORTEST = 8
"""Anything shorter is no key of any cloud, and would blank out ordinary words."""
SIGN = "[key]"
_HIDDEN: set[str] = set()


def hide(secret: str) -> None:
    """From now on this value is not shown."""
    if len(secret) >= SHORTEST:
        _HIDDEN.add(secret)


def without_secrets(text: str) -> str:
    """`text` with every hidden value replaced."""
    for secret in sorted(_HIDDEN, key=len, reverse=True):  # one may begin with another
        text = text.replace(secret, SIGN)
    return text
