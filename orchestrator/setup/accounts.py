"""What a key is worth: whose account it opens, what is in it, what it may not do, and which machines of lorry live there.

Knows no cloud: its rights and their names come from the cloud's own file. `login` and `doctor` say the same words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime

import providers
from orchestrator.ledger import Book
from orchestrator.safety.reconcile import LABEL, Verdict, verdict
from providers.base import Account, Instance, Provider
from providers.errors import AuthError, NoKey, ProviderError, Unavailable
from providers.keys import ApiKey

from .credentials import KeyStore
from .doctor import Check, ok, trouble, warning

LITTLE_USD = Decimal(1)
"""Clouds want an hour of a machine's price in advance."""
SKEW_S = 60.0
"""A label's deadline is written by this computer's clock and read by another's; five minutes are allowed for there."""


def wanting_keys() -> list[str]:
    """Clouds with accounts."""
    return [name for name in providers.PROVIDERS if providers.api_key_of(name) is not None]


def with_keys(store: KeyStore) -> list[str]:
    """Clouds for which there is a key, in the environment or kept. Opens no keyring."""
    return [name for name in wanting_keys() if key_is_from(name, store)]


def key_is_from(name: str, store: KeyStore) -> str:
    """Where the key for a cloud comes from; empty when there is none. Raises `AuthError` where the store cannot be read."""
    api_key = providers.api_key_of(name)
    if api_key is None:
        return ""
    return api_key.variable if api_key.given(os.environ) else store.where(name, api_key.address(os.environ))


def about(name: str, account: Account) -> Iterator[Check]:
    """What an account said of itself, in plain words."""
    whose = account.name + (f" ({account.id})" if account.id not in {"", account.name} else "")
    api_key = providers.api_key_of(name)
    yield ok(name, f"the key works; the account is {whose}" if api_key is not None else f"answers: {whose}")
    if api_key is not None:
        yield from _rights(name, account, api_key)
        yield _money(name, account)


def _rights(name: str, account: Account, api_key: ApiKey) -> Iterator[Check]:
    if account.lacks is None:
        needs = (
            f"; lorry needs {', '.join(f'{right.name} to {right.needed_for}' for right in api_key.rights)}"
            if api_key.rights
            else "; it must read and write"
        )
        yield ok(name, f"the cloud does not tell what this key may do{needs}")
        return
    known = {right.name: right for right in api_key.rights}
    for lacking in account.lacks:
        right = known.get(lacking)
        said = f"the key lacks `{lacking}`" + (f": without it lorry cannot {right.needed_for}" if right else "")
        hint = f"make a key with it at {api_key.made_at}, then: lorry login {name}"
        yield warning(name, said, hint) if right is not None and not right.essential else trouble(name, said, hint, AuthError.exit_code)
    if not account.lacks:
        yield ok(name, "the key has every right that lorry needs")


def _money(name: str, account: Account) -> Check:
    balance = account.balance_usd
    left = "the cloud does not tell the balance" if balance is None else f"${balance:.2f} prepaid"
    if account.auto_pay:
        return warning(
            name,
            f"{left}, and a card is charged when it runs out: an empty balance will not end a forgotten machine",
            "switch automatic payment off and keep little prepaid; then the worst that can be lost is what is there",
        )
    if balance is not None and balance < LITTLE_USD:
        return warning(name, f"{left}: too little to rent with", "add some; clouds want an hour of a machine's price in advance")
    pays = "; whether a card is charged when it runs out is not told" if account.auto_pay is None else ", and no card is charged"
    return ok(name, left + pays)


def look(
    name: str, load: Callable[[str], Provider], store: KeyStore, books: Mapping[str, Book], driven: set[str], now: datetime
) -> Iterator[Check]:
    """Ask a cloud: the account, and every machine of lorry there. Raises nothing."""
    try:
        api_key = providers.api_key_of(name)
        if api_key is not None:
            origin = key_is_from(name, store)
            yield ok(name, f"key from {origin}") if origin else _no_key(name, api_key)
            if not origin:
                return
            answers = _clock(name, api_key, now)
            yield answers
            if answers.exit_code:
                return  # each further question would wait as long
        provider = load(name)
        yield from about(name, provider.account())
        yield from _machines(provider, books, driven, now)
    except ProviderError as err:
        yield trouble(name, str(err), err.hint or "try again later; the cloud's status page may know more", err.exit_code)


def _no_key(name: str, api_key: ApiKey) -> Check:
    return trouble(name, "there is no key", f"lorry login {name}, or {api_key.variable} in the environment", NoKey.exit_code)


def _clock(name: str, api_key: ApiKey, now: datetime) -> Check:
    """This computer's clock against the cloud's, which tells it in every answer, also to strangers."""
    import httpx

    from providers.http import LOOPBACK, user_agent

    try:
        url = httpx.URL(api_key.where(os.environ)[0])
        answer = httpx.head(url, headers={"User-Agent": user_agent()}, timeout=10.0, trust_env=url.host not in LOOPBACK)
    except (httpx.HTTPError, httpx.InvalidURL) as err:
        said = f"{api_key.where(os.environ)[0]} cannot be reached: {err or type(err).__name__}"
        return trouble(name, said, "look at this computer's network; machines end themselves meanwhile", Unavailable.exit_code)
    try:
        skew = (now - parsedate_to_datetime(answer.headers["Date"])).total_seconds() - answer.elapsed.total_seconds() / 2
    except (KeyError, ValueError):
        return ok(name, f"{url.host} answers, and does not tell the time")
    if abs(skew) > SKEW_S:
        way = "ahead of" if skew > 0 else "behind"
        return warning(
            name, f"this computer's clock is {abs(skew):.0f} s {way} the cloud's", "set it by the network: labels carry deadlines"
        )
    return ok(name, "answers, and its clock and this computer's agree")


def _machines(provider: Provider, books: Mapping[str, Book], driven: set[str], now: datetime) -> Iterator[Check]:
    ours = [instance for instance in provider.instances() if instance.label.startswith(LABEL)]
    if not ours:
        yield ok(provider.name, "no machine of lorry lives there")
    for instance in ours:
        yield _machine(provider.name, instance, books, driven, now)


def _machine(name: str, instance: Instance, books: Mapping[str, Book], driven: set[str], now: datetime) -> Check:
    what = f"machine {instance.id} ({instance.label})"
    match verdict(instance.label, books, now):
        case Verdict.IN_HAND if any(a.label == instance.label for run in driven for a in books[run].attempts.values()):
            return ok(name, f"{what} is at work for a run of this computer")
        case Verdict.ELSEWHERE:
            return warning(name, f"{what} is at work for another computer, as far as its label tells", "lorry reap shows it and can end it")
        case other:
            return trouble(name, f"{what} lives and bills: {other}", "lorry ps shows its run; lorry reap --yes ends it", 10)
