"""Taking a key from a person, proving it by a real call, keeping it; and forgetting it again.

What was not proved is not kept, and the key gets into no message.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import providers
from orchestrator import console
from orchestrator.clock import SystemClock
from orchestrator.errors import UsageError
from orchestrator.home import Home
from orchestrator.ledger import Book
from orchestrator.safety.unattended import open_runs
from orchestrator.tools import make_tools
from providers.base import Account
from providers.errors import AuthError, NoKey, ProviderError
from providers.keys import ApiKey
from providers.wrappers import Retrying

from . import accounts, doctor
from .credentials import KeyStore
from .redaction import hide

LONGEST_KEY = 4096
"""Characters read from stdin; keys have some dozens."""


class Source(StrEnum):
    """Where the key comes from. Never the command line: other users can read that."""

    PERSON = "asked for"
    STDIN = "stdin"
    CLIENT = "the cloud's own client"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """A key that works, and is kept."""

    provider: str
    account: Account
    kept_in: str
    """The keyring's name, or the file."""
    address: str
    """What it is kept for; it is sent nowhere else."""
    overruled_by: str
    """A variable of the environment that wins over it; empty: none."""

    def as_json(self) -> dict[str, Any]:
        """The words of `lorry login --json`."""
        account = self.account
        return {
            "provider": self.provider,
            "account": account.name,
            "id": account.id or None,
            "balance_usd": None if account.balance_usd is None else str(account.balance_usd),
            "auto_pay": account.auto_pay,
            "lacks": None if account.lacks is None else list(account.lacks),
            "kept_in": self.kept_in,
            "address": self.address,
            "overruled_by": self.overruled_by or None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """A key that is kept no longer."""

    provider: str
    was_kept: bool
    made_at: str
    overruled_by: str

    def as_json(self) -> dict[str, Any]:
        """The words of `lorry logout --json`."""
        return {"provider": self.provider, "was_kept": self.was_kept, "still_in_environment": self.overruled_by or None}


def login(name: str, source: Source) -> Proved:
    """Take a key, prove it, keep it. Raises `AuthError` when it does not work; then nothing has changed."""
    api_key = _api_key(name)
    key = {Source.PERSON: _asked, Source.STDIN: _from_stdin, Source.CLIENT: _from_client}[source](name, api_key)
    hide(key)
    try:
        account = Retrying(providers.with_key(name, key), sleep=SystemClock().sleep).account()
    except AuthError as err:
        raise type(err)(f"{err}; nothing was kept", hint=f"keys are made at {api_key.made_at}") from None
    except ProviderError as err:
        err.hint = err.hint or "nothing was kept; try again when the cloud answers"
        raise
    address = api_key.address(os.environ)
    kept_in = _store().put(name, address, key)
    return Proved(provider=name, account=account, kept_in=kept_in, address=address, overruled_by=_overruled(api_key))


def logout(name: str) -> Forgotten:
    """Forget the key that is kept for a cloud at its address of now."""
    api_key = _api_key(name)
    was_kept = _store().drop(name, api_key.address(os.environ))
    return Forgotten(provider=name, was_kept=was_kept, made_at=api_key.made_at, overruled_by=_overruled(api_key))


def examine(named: Sequence[str]) -> Iterator[doctor.Check]:
    """Every check of `lorry doctor`: this computer, its runs, the clouds with keys and those that are named."""
    unknown = [name for name in named if name not in providers.PROVIDERS]
    if unknown:
        raise UsageError(f"there is no provider {unknown[0]!r}", hint=f"there are: {', '.join(sorted(providers.PROVIDERS))}")
    home, store = Home.from_env(), _store()
    yield from doctor.this_computer(home)
    yield from doctor.runs(home)
    try:
        keyed = accounts.with_keys(store)
    except AuthError as err:
        yield doctor.trouble("keys", str(err), err.hint, err.exit_code)
        return
    yield doctor.timer(home, needed=bool(keyed))
    books = _books(home)
    driven = {run.folder.id for run in open_runs(home) if run.book is not None and run.is_looked_after}
    tools = make_tools(as_json=False)
    for name in dict.fromkeys([*named, *keyed]):
        yield from accounts.look(name, tools.provider, store, books, driven, tools.clock.now())
    if not keyed:
        hint = f"lorry login PROVIDER, one of {', '.join(accounts.wanting_keys())}; `sandbox` needs no key and costs nothing"
        yield doctor.warning("clouds", "there is no key for any cloud", hint)


def _books(home: Home) -> dict[str, Book]:
    """Every book that can be read; the others are told by `doctor.runs`."""
    books = {}
    for folder in home.runs():
        with suppress(OSError):
            books[folder.id] = folder.book()
    return books


def _api_key(name: str) -> ApiKey:
    wanting = accounts.wanting_keys()
    if name not in wanting:
        what = f"provider {name} needs no key" if name in providers.PROVIDERS else f"there is no provider {console.plain(name, most=40)!r}"
        raise UsageError(what, hint=f"keys are for: {', '.join(wanting)}")
    api_key = providers.api_key_of(name)
    assert api_key is not None
    return api_key


def _store() -> KeyStore:
    return KeyStore(Home.from_env().path)


def _overruled(api_key: ApiKey) -> str:
    return api_key.variable if api_key.given(os.environ) else ""


def _asked(name: str, api_key: ApiKey) -> str:
    if not console.is_terminal():
        raise UsageError("there is no terminal to ask for the key on", hint=f"pass it by: lorry login {name} --stdin")
    for file in _client_files(api_key):
        console.talk(f"{file} may hold a key of the cloud's own client; `lorry login {name} --import` takes that one")
    console.talk(f"keys are made at {api_key.made_at}")
    return _some(console.ask_secret(f"key for {name} (it is not shown): "))


def _from_stdin(name: str, api_key: ApiKey) -> str:
    del name, api_key
    return _some(sys.stdin.read(LONGEST_KEY))


def _from_client(name: str, api_key: ApiKey) -> str:
    for file in _client_files(api_key):
        try:
            if key := api_key.in_client_file(file.read_text(encoding="utf-8")):
                console.talk(f"taking the key in {file}")
                return key
        except (OSError, UnicodeDecodeError) as err:
            raise UsageError(f"{file} cannot be read: {getattr(err, 'strerror', '') or 'it is no text'}") from None
    places = ", ".join(map(str, api_key.client_files(os.environ)))
    raise NoKey(f"the cloud's own client keeps no key here ({places})", hint=f"lorry login {name} asks for one")


def _client_files(api_key: ApiKey) -> list[Path]:
    """Files of the cloud's own client that are there. What is in them is not looked at."""
    return [file for file in api_key.client_files(os.environ) if file.is_file()]


def _some(text: str) -> str:
    if not (key := text.strip()):
        raise NoKey("no key was given")
    return key
