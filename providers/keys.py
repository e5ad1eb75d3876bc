"""What there is to know of a cloud's API key: its variable, the address that it is for, where it is made, what it must allow.

The key itself is in none of this. A cloud that wants one has an `api_key: ApiKey` and takes the `key` to use in `from_env`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """Something that a key may do or not, in the cloud's own word."""

    name: str
    needed_for: str
    """What lorry does with it, as the end of "without it lorry cannot ..."."""
    essential: bool = True
    """Whether there is no run without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """How the key of one cloud is found."""

    variable: str
    """In the environment, where it always wins."""
    addresses: Mapping[str, str]
    """Variable -> where calls go when it is not set. A kept key belongs to these addresses and is sent to no others."""
    made_at: str
    """The page on which a person makes one."""
    rights: tuple[Right, ...] = ()
    client_files: Callable[[Mapping[str, str]], tuple[Path, ...]] = lambda _: ()
    """Where the cloud's own client keeps its key. Never read unasked."""
    in_client_file: Callable[[str], str] = str.strip
    """The key in the text of such a file; empty when it holds none."""

    def where(self, environment: Mapping[str, str]) -> tuple[str, ...]:
        """The addresses that calls go to, in the order of `addresses`."""
        return tuple(environment.get(variable) or usual for variable, usual in self.addresses.items())

    def address(self, environment: Mapping[str, str]) -> str:
        """All of them in one text: what a kept key is kept for."""
        return " ".join(self.where(environment))

    def given(self, environment: Mapping[str, str]) -> str:
        """The key of the environment; empty when there is none."""
        return environment.get(self.variable, "").strip()

    def find(self, key: str) -> tuple[str, tuple[str, ...]]:
        """The key to use, this one or the environment's, and the addresses for this process."""
        return key or self.given(os.environ), self.where(os.environ)
