"""Vast's face: its paths, shapes, texts, limits and lies over the practice cloud's machines, as far as they are public.

The official client (`vastai`) works against it unmodified. Where the documents are silent, what was chosen is said beside it. Endpoints,
as fault scripts call them: "vast." and the names in `_ROUTES`. What they do is in `vast_rent` and `vast_money`, rows and filters in
`vast_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial

from providers.base import Offer

from . import vast_money as money
from . import vast_rent as rent
from .faces import Action, Reply, Request
from .limits import Window
from .market import Market
from .rentals import MarketError
from .vast_common import ACCOUNT, refusal
from .vast_rows import stock

INTERVALS_S = {
    "create": 4.5, "show": 2.0, "list": 1.0, "manage": 1.0, "destroy": 3.0, "bid": 5.5, "execute": 1.5, "charges": 1.0, "invoices": 3.0,
    "attach": 1.0,
}  # fmt: skip
"""Documented least seconds between two calls."""
SEARCHES = (Window("minute", 10, 60),)

ERRORS: Mapping[str, tuple[int, str, str]] = {
    "no_such_offer": (404, "no_such_ask", "error 404/3603: no_such_ask Instance type by id {} is not available."),
    "offer_taken": (410, "no_such_ask", "error 410/3907: no_such_ask Instance type {} is no longer available."),
    "no_credit": (400, "insufficient_credit", "Your account lacks credit; see the billing page."),  # status and text are not documented
    "invalid_request": (400, "invalid_args", "error 400/3467: Invalid args: {}"),
    "bad_json": (400, "invalid_args", "error 400/3467: Invalid args: {}"),
    "no_such_instance": (404, "no_such_instance", "error 404/3602: no_such_instance {}"),
}
"""The market's words -> status, code and text of Vast's."""


class VastFace:
    """Vast.ai's HTTP API."""

    account = ACCOUNT

    def stock(self) -> Sequence[Offer]:
        return stock()

    def addresses(self, url: str, key: str) -> Mapping[str, str]:
        return {"vast_url": url, "vast_api_key": key}

    def route(self, method: str, path: str) -> tuple[str, Action] | None:
        for wanted, pattern, name, action in _ROUTES:
            if method == wanted and fnmatchcase(path, pattern) and path.count("/") == pattern.count("/"):
                return f"vast.{name}", partial(_limited, name, action)
        return None

    def problem(self, problem: MarketError) -> Reply:
        status, code, text = ERRORS.get(problem.code, (problem.status, problem.code, "{}"))
        return refusal(status, code, text.format(problem))


def _limited(name: str, action: Action, market: Market, request: Request) -> Reply:
    """Too often is told in one of several shapes, most without Retry-After."""
    interval_s = INTERVALS_S.get(name, 0.0)
    searched = market.limits.count("vast.search", "everybody", SEARCHES if name == "search" else ())
    if all(left >= 0 for _, left, _ in searched) and not market.limits.wait_s(f"vast.{name}", request.bearer, interval_s):
        try:
            return action(market, request)
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # a list where an object belongs, and the like
            raise MarketError(400, "invalid_request", f"{type(error).__name__}: {error}") from error
    text = f"API requests too frequent endpoint threshold={interval_s}"
    if name == "create":
        return Reply.json({"detail": text}, status=429)
    if name == "destroy":
        return refusal(429, "rate_limit_exceeded", text)
    return Reply(status=429, body=text.replace("frequent", "frequent:").encode(), headers={"Content-Type": "text/plain"})


def _constant(document: object) -> Action:
    return lambda market, request: Reply.json(document)  # noqa: ARG005 - every action takes both


_ONE = "/api/v0/instances/[0-9]*"
_ROUTES: tuple[tuple[str, str, str, Action], ...] = (
    ("POST", "/api/v0/bundles", "search", rent.search),
    ("GET", "/api/v0/bundles", "search", rent.search),
    ("PUT", "/api/v0/search/asks", "search", rent.search),
    ("GET", "/api/v0/gpu_names/unique", "gpu_names", rent.gpu_names),
    ("GET", "/api/v0/gpu_types", "gpu_types", _constant({"gpu_types": []})),
    ("PUT", "/api/v0/asks/[0-9]*", "create", rent.create),
    ("GET", "/api/v1/instances", "list", rent.listing),
    ("GET", "/api/v0/instances", "old_list", rent.deprecated),
    ("GET", "/api/v0/instances/filters", "filters", _constant({"success": True, "filters": {}})),
    ("GET", "/api/v0/instances/pending-price-increases", "pending", money.pending),
    ("PUT", "/api/v0/instances/accept-price-increase", "answer_pending", money.answer_pending),
    ("PUT", "/api/v0/instances/reject-price-increase", "answer_pending", money.answer_pending),
    ("GET", _ONE, "show", rent.show),
    ("DELETE", _ONE, "destroy", rent.destroy),
    ("DELETE", "/api/v0/instances", "destroy", rent.destroy),
    ("PUT", _ONE, "manage", rent.manage),
    ("PUT", "/api/v0/instances", "manage", rent.manage),
    ("PUT", "/api/v0/instances/reboot/[0-9]*", "reboot", rent.reboot),
    ("PUT", "/api/v0/instances/recycle/[0-9]*", "reboot", rent.reboot),
    ("PUT", "/api/v0/instances/bid_price/[0-9]*", "bid", rent.bid),
    ("PUT", "/api/v0/instances/request_logs/[0-9]*", "logs", rent.logs),
    ("PUT", "/api/v0/instances/command/[0-9]*", "execute", rent.execute),
    ("GET", "/vast-results/*", "result", rent.result),
    ("POST", "/api/v0/contracts/fetch", "contracts", rent.contracts),
    *((method, "/api/v0/ssh", "keys", rent.account_keys) for method in ("GET", "POST")),
    *((method, "/api/v0/ssh/[0-9]*", "keys", rent.account_keys) for method in ("PUT", "DELETE")),
    *((method, f"{_ONE}/ssh", "attach", rent.instance_keys) for method in ("GET", "POST")),
    ("DELETE", f"{_ONE}/ssh/[0-9]*", "attach", rent.instance_keys),
    ("GET", "/api/v0/users/current", "user", money.user),
    ("GET", "/api/v0/users/me/invoices", "old_invoices", money.old_invoices),
    ("GET", "/api/v0/charges", "charges", money.charges),
    ("GET", "/api/v1/invoices", "invoices", money.invoices),
)
