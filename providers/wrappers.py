"""Behaviour by wrapping the contract: each class here is a provider around a provider. Knows no cloud and no run."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

from .base import Account, Instance, LaunchSpec, Offer, Provider, Requirements, SelfDestroy
from .errors import ProviderError, RateLimited

T = TypeVar("T")


class _Wrapper(ABC):
    """Passes every call to `_call`, which a wrapper overrides."""

    def __init__(self, inner: Provider) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def console_url(self) -> str:
        return self.inner.console_url

    @property
    def self_destroy(self) -> SelfDestroy | None:
        return self.inner.self_destroy

    @abstractmethod
    def _call(self, method: str, args: tuple[object, ...], call: Callable[[], T]) -> T:
        """What this wrapper does around a call."""

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        return self._call("offers", (requirements,), lambda: self.inner.offers(requirements))

    def launch(self, offer: Offer, spec: LaunchSpec) -> Instance:
        return self._call("launch", (offer, spec), lambda: self.inner.launch(offer, spec))

    def describe(self, instance_id: str) -> Instance:
        return self._call("describe", (instance_id,), lambda: self.inner.describe(instance_id))

    def instances(self) -> Sequence[Instance]:
        return self._call("instances", (), self.inner.instances)

    def terminate(self, instance_id: str) -> None:
        return self._call("terminate", (instance_id,), lambda: self.inner.terminate(instance_id))

    def account(self) -> Account:
        return self._call("account", (), self.inner.account)

    def billed_usd(self, instance_id: str) -> Decimal | None:
        return self._call("billed_usd", (instance_id,), lambda: self.inner.billed_usd(instance_id))


class Retrying(_Wrapper):
    """Asks again after transient errors, but never launches twice: a lost answer may have rented."""

    def __init__(
        self,
        inner: Provider,
        *,
        attempts: int = 4,
        first_wait_s: float = 0.5,
        max_wait_s: float = 20.0,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """`jitter` scales each wait of our own; a cloud that names its wait is obeyed, or asked no more when it names too long a one."""
        super().__init__(inner)
        self._attempts, self._first_wait_s, self._max_wait_s = attempts, first_wait_s, max_wait_s
        self._sleep, self._jitter = sleep, jitter

    def _call(self, method: str, args: tuple[object, ...], call: Callable[[], T]) -> T:
        del args
        for attempt in range(1, self._attempts if method != "launch" else 1):
            try:
                return call()
            except ProviderError as error:
                wait_s = min(self._first_wait_s * 2 ** (attempt - 1) * self._jitter(), self._max_wait_s)
                if isinstance(error, RateLimited):
                    wait_s = max(wait_s, error.retry_after_s)
                if not error.transient or wait_s > self._max_wait_s:
                    raise
                self._sleep(wait_s)
        return call()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One finished call: what was asked, and what came of it."""

    provider: str
    method: str
    args: tuple[object, ...]
    result: object = None
    error: ProviderError | None = None


class Recording(_Wrapper):
    """Tells `record` of every call when it has ended, also when it failed."""

    def __init__(self, inner: Provider, record: Callable[[Call], None]) -> None:
        super().__init__(inner)
        self._record = record

    def _call(self, method: str, args: tuple[object, ...], call: Callable[[], T]) -> T:
        try:
            result = call()
        except ProviderError as error:
            self._record(Call(provider=self.name, method=method, args=args, error=error))
            raise
        self._record(Call(provider=self.name, method=method, args=args, result=result))
        return result
