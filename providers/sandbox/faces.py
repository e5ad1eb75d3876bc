"""What a face is: a small router from one cloud's HTTP habits to the market. `plain` is the first; others speak other clouds' tongues."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from providers.base import Offer

from .market import Market
from .rentals import MarketError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request, read."""

    method: str
    path: str
    query: Mapping[str, str]
    bearer: str
    """The key after `Authorization: Bearer`; empty when there is none."""
    body: bytes
    base_url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""

    def document(self) -> dict[str, Any]:
        """The body as a JSON object."""
        try:
            document = json.loads(self.body or b"{}")
        except ValueError as error:
            raise MarketError(400, "bad_json", f"the body is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise MarketError(400, "bad_json", "the body must be a JSON object")
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One HTTP answer, to be written."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, document: object, status: int = 200, **headers: str) -> Reply:
        return cls(status=status, body=json.dumps(document).encode(), headers=headers)


Action = Callable[[Market, Request], Reply]


class Face(Protocol):
    """One cloud's tongue, and what it has for rent."""

    account: str
    """The customer whose machines this face shows: each face has its own, so that no machine is seen through two."""

    def stock(self) -> Sequence[Offer]:
        """What it rents out; their `provider` is its name for `Market.offers`."""

    def addresses(self, url: str, key: str) -> Mapping[str, str]:
        """What its clients must be told, by the names in `lorry sandbox --json`."""

    def route(self, method: str, path: str) -> tuple[str, Action] | None:
        """The endpoint's name (what a fault script calls it) and what it does; None when the path is not of this face."""

    def problem(self, problem: MarketError) -> Reply:
        """A refusal, as this cloud words it."""
