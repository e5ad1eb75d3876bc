"""One small HTTP client for cloud APIs: it asks once, and says in our own errors what came back.

Owns timeouts, the pace of calls, the User-Agent, the map from HTTP to `errors`, and keeping the key out of every message. Knows no cloud:
what a 404 means, what a body holds and where an instance id may hide is told by the provider. It never asks twice; `wrappers` do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from json import dumps, loads
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from .errors import AuthError, NoKey, ProviderError, RateLimited, Unavailable, UnexpectedResponse

TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
EXCERPT = 300  # characters of a cloud's answer in our message: its reason is at the start
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that the provider said it can read: the status, and the JSON (None for an empty body)."""

    status: int
    data: Any


def no_ids(_: Any) -> tuple[str, ...]:
    """For clouds whose errors never name an instance."""
    return ()


class Pace:
    """Keeps calls of one kind apart. Each kind has a clock of its own, so that nothing ever delays a destroy but a destroy."""

    def __init__(
        self,
        intervals_s: Mapping[str, float],
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._intervals_s, self._monotonic_s, self._sleep = intervals_s, monotonic_s, sleep
        self._ended_at: dict[str, float] = {}

    @contextmanager
    def turn(self, kind: str) -> Iterator[None]:
        """Wait for this kind's turn; the next one is so long after the end of this."""
        wait_s = self._ended_at.get(kind, -math.inf) + self._intervals_s.get(kind, 0.0) - self._monotonic_s()
        if wait_s > 0:
            self._sleep(wait_s)
        try:
            yield
        finally:
            self._ended_at[kind] = self._monotonic_s()


class CloudHTTP:
    """Calls to one cloud with one key."""

    def __init__(
        self,
        base_url: str,
        *,
        cloud: str,
        key: str,
        key_hint: str = "",
        timeout_s: float = TIMEOUT_S,
        ids_in: Callable[[Any], tuple[str, ...]] = no_ids,
        pace: Pace | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not key:
            raise NoKey(f"there is no key for {cloud}", hint=key_hint)
        if not (key.isascii() and key.isprintable()) or key != key.strip():
            raise AuthError(f"the key for {cloud} holds a space, a line break or a character that no key has", hint=key_hint)
        self.base_url = base_url.rstrip("/")
        self._cloud = cloud
        self._key = key
        self._key_hint = key_hint
        self._ids_in = ids_in
        self._pace = pace or Pace({})
        self._client = httpx.Client(
            headers={"User-Agent": user_agent(), "Accept": "application/json", "Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            trust_env=urlsplit(base_url).hostname not in LOOPBACK,  # a proxy of the environment cannot reach our loopback
            follow_redirects=False,  # a redirect would carry the key to somebody else
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"CloudHTTP({self.redact(self.base_url)!r})"

    def close(self) -> None:
        self._client.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: object | None = None,
        expect: frozenset[int] = frozenset({200}),
        kind: str = "",
    ) -> Answer:
        """Ask once, in the turn of this `kind` of call. Answers with a status of `expect` come back; all others raise a `ProviderError`."""
        what = f"{method} {path}"
        try:
            with self._pace.turn(kind):
                response = self._client.request(method, f"{self.base_url}{path}", params=params, json=json)
        except httpx.TimeoutException as error:
            raise Unavailable(f"{self._cloud} did not answer {what} in time") from self._safe(error)
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Unavailable(self.redact(f"{self._cloud} cannot be reached for {what}: {error or type(error).__name__}")) from self._safe(
                error
            )
        except httpx.InvalidURL as error:
            raise ProviderError(self.redact(f"{self._cloud} cannot be asked {what}: {error}"), hint="check its address") from None
        if response.status_code in expect:
            return Answer(response.status_code, self._json(response, what))
        raise self._error(response, what)

    def redact(self, text: str) -> str:
        """`text` without the key, however it got in."""
        for form in (self._key, quote(self._key, safe=""), dumps(self._key)[1:-1]):
            text = text.replace(form, "[key]")
        return text

    def _safe(self, error: Exception) -> Exception | None:
        """The cause to chain; None when its own words hold the key."""
        words = f"{error} {error!r}"
        return error if self.redact(words) == words else None

    def _json(self, response: httpx.Response, what: str) -> Any:
        if not response.content:
            return None
        try:
            return loads(self.redact(response.text))  # what a cloud repeats of our key gets into no message
        except (ValueError, RecursionError):
            raise UnexpectedResponse(f"{self._cloud} answered {what} with something that is not JSON: {self._excerpt(response)}") from None

    def _error(self, response: httpx.Response, what: str) -> ProviderError:
        """The one map from HTTP statuses to our errors."""
        status = response.status_code
        said = f"{self._cloud} answered {what} with {status}: {self._excerpt(response)}"
        error: ProviderError
        if status in (401, 403):
            error = AuthError(said, hint=self._key_hint)
        elif status == 429:
            error = RateLimited(said, retry_after_s=retry_after_s(_wait(response.headers), datetime.now(UTC)))
        elif status == 408 or status >= 500:
            error = Unavailable(said)
        else:
            error = UnexpectedResponse(said)
        try:
            error.instance_ids = self._ids_in(response.json())
        except (ValueError, RecursionError):  # no JSON, so no ids
            error.instance_ids = ()
        return error

    def _excerpt(self, response: httpx.Response) -> str:
        text = " ".join(self.redact(response.text).split())  # before the cut: half a key is a leak too
        text = "".join(char for char in text if char.isprintable())
        return text[:EXCERPT] or "(no text)"


def user_agent() -> str:
    """Our own name: some clouds turn libraries' default names away."""
    try:
        return f"lorry/{version('lorry')}"
    except PackageNotFoundError:  # run from a checkout
        return "lorry/dev"


def _wait(headers: httpx.Headers) -> str | None:
    """Retry-After; else the moment when a quota begins anew, where that is given in seconds since 1970."""
    reset = headers.get("X-RateLimit-Reset", "")
    return headers.get("Retry-After") or (f"{float(reset) - time.time():.0f}" if reset.isdecimal() and len(reset) == 10 else None)


def retry_after_s(header: str | None, now: datetime) -> float:
    """Seconds to wait, from either form of the header; 1 where it is missing or makes no sense."""
    if header is None:
        return 1.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
        except ValueError:
            return 1.0
        seconds = ((when if when.tzinfo else when.replace(tzinfo=UTC)) - now).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else 1.0
