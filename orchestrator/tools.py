"""The composition root: the real clock, the real clouds, and the view that fits where stderr goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache

from providers.base import Provider

from .clock import SystemClock
from .errors import UsageError
from .home import Home
from .learning.book import FILE as MEASURED
from .learning.book import Measured
from .machines.memory import FILE, Memory
from .safety.interrupts import Interrupts
from .setup.redaction import hide
from .trip import Tools
from .view import make_view


def make_tools(*, as_json: bool) -> Tools:
    """What a command that touches a run brings along."""
    clock = SystemClock()
    view = make_view(as_json=as_json, clock_s=clock.monotonic_s, lorry_version=version())
    return Tools(
        clock=clock,
        view=view,
        interrupts=Interrupts(view.say, outlives_terminal=True),
        provider=lru_cache(maxsize=None)(_provider(clock)),
        memory=Memory(Home.from_env().path / FILE),
        measured=Measured(Home.from_env().path / MEASURED),
    )


def _provider(clock: SystemClock) -> Callable[[str], Provider]:
    def named(name: str) -> Provider:
        import providers
        from providers.wrappers import Retrying

        if name not in providers.PROVIDERS:
            raise UsageError(f"provider {name} is not built yet", hint=f"there are: {', '.join(sorted(providers.PROVIDERS))}")
        if (api_key := providers.api_key_of(name)) is not None:
            hide(api_key.given(os.environ))
        return Retrying(providers.load(name, kept), sleep=clock.sleep)

    def kept(name: str, address: str) -> str:
        from .setup.credentials import KeyStore

        key = KeyStore(Home.from_env().path).get(name, address)
        hide(key)
        return key

    return named


def version() -> str:
    """The version that pip installed, for the first JSON line."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("lorry")
    except PackageNotFoundError:
        return "unknown"
