"""RunPod's face: REST v2 as its OpenAPI document and its users tell of it, GraphQL as the `runpod` package speaks it, v1 as after its end.

    {url}/runpod/v2       pods, catalogue, billing, account        {url}/runpod/graphql       {url}/runpod/v1    410 for everything

Its lies are kept: RUNNING from the create on, a runtime that comes late, `ssh.direct` later still, ports that move at a restart, a stale
runtime after a stop, capacity and mistakes under one status, charges that lag, and a `terminateAfter` that nothing acts on. Off unless the
market's limits are on: the quotas a minute, hour and day. Not here: machines of several GPUs, CPU pods, templates, network volumes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import unquote

from providers.base import Offer

from . import runpod_billing as billing
from . import runpod_catalogue as catalogue
from . import runpod_graphql as graphql
from . import runpod_stock as stock
from .faces import Action, Reply, Request
from .limits import Window
from .market import Market
from .rentals import AccountRecord, MarketError, Out, View
from .runpod_pods import document, time_text
from .runpod_schema import POD_ID, validated

TITLES = {400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
          409: "Conflict", 410: "Gone", 422: "Unprocessable Entity", 429: "Too Many Requests", 503: "Service Unavailable"}  # fmt: skip
WINDOWS = (Window("minute", 60, 60), Window("hour", 3000, 3600), Window("day", 50_000, 86_400))
"""As documented; a real account was seen with 180, 7200 and 86400."""
GONE_TEXT = "REST API v1 was retired on November 15, 2026. Use https://api.runpod.io/v2."

Verb = Callable[["RunPodFace", Market, Request, AccountRecord], Reply]


class InvalidBody(MarketError):
    """A body that breaks the contract; `errors` as RunPod lists them."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__(422, "invalid_request", "Request validation failed.")
        self.errors = list(errors)


class RunPodFace:
    """RunPod's tongues. Endpoints: create, list, show, update, terminate, action, logs, keys, set_keys, gpus, gpu, cpus, centers, billing,
    bills, volumes, templates, registries; graphql; v1.
    """

    account = "runpod"

    def __init__(
        self, *, page_size: int = 1000, early_status: str = "RUNNING", billing_step_s: float = 300.0, older_spec: bool = False
    ) -> None:
        """How it behaves, where accounts differ.

        `early_status`: what a pod is called that has no container yet; the document says PROVISIONING, people saw RUNNING.
        `billing_step_s`: charges come in steps of so much. `older_spec`: August's, with `args` for `cmd` and without pages.
        """
        self.page_size, self.early_status, self.older_spec = page_size, early_status, older_spec
        self.billing_step_s = billing_step_s

    def stock(self) -> Sequence[Offer]:
        return stock.stock()

    def addresses(self, url: str, key: str) -> Mapping[str, str]:
        return {"runpod_rest_url": f"{url}/runpod/v2", "runpod_graphql_url": f"{url}/runpod/graphql", "runpod_api_key": key}

    def route(self, method: str, path: str) -> tuple[str, Action] | None:
        if path.startswith("/runpod/v1/"):
            return "runpod.v1", _gone
        if (method, path) == ("POST", "/runpod/graphql"):
            return "runpod.graphql", partial(_browser_check, graphql.answer)
        for wanted, pattern, name, verb in _ROUTES:
            if method == wanted and re.fullmatch(f"/runpod/v2{pattern}", path):
                return f"runpod.{name}", partial(_browser_check, partial(self._act, verb))
        if path.startswith("/runpod/v2"):
            return "runpod.nothing", _no_such_path
        return None

    def problem(self, problem: MarketError) -> Reply:
        document = {"title": TITLES.get(problem.status, "Error"), "status": problem.status, "detail": str(problem)}
        if problem.code == "no_such_instance":
            document["detail"] = "pod not found"
        if isinstance(problem, InvalidBody):
            document["errors"] = problem.errors
        return _json(document, problem.status, **{"Content-Type": "application/problem+json"})

    def _act(self, verb: Verb, market: Market, request: Request) -> Reply:
        """One authenticated call: who asks, whether too often, and what the headers say of the rest."""
        account = self._who(market, request, verb)
        self._end_the_broke(market, account)
        state = market.limits.count("runpod", request.bearer, WINDOWS)
        headers = {
            "RateLimit": ", ".join(f'"{w.name}";r={left};t={reset:.0f}' for w, left, reset in state),
            "RateLimit-Policy": ", ".join(f'"{w.name}";q={w.quota};w={w.seconds:.0f}' for w in WINDOWS),
        }
        over = next(((w, reset) for w, left, reset in state if left < 0), None)
        if over:
            reply = self.problem(MarketError(429, "rate_limit", f"rate limit exceeded for the {over[0].name} window"))
            headers["Retry-After"] = str(int(over[1]) + 1)
        else:
            try:
                reply = verb(self, market, request, account)
            except MarketError as problem:
                reply = self.problem(problem)
        return Reply(status=reply.status, body=reply.body, headers={**reply.headers, **headers})

    def _who(self, market: Market, request: Request, verb: Verb) -> AccountRecord:
        """The account of the key. A pod's own key may see, stop and end that pod."""
        found = market.account(request.bearer)
        if found and found.name == self.account:
            return found
        rental = market.rental_of_key(request.bearer)
        if rental and rental.account == self.account:
            if verb in (_show, _terminate, _action) and _pod_id(request) == rental.id:
                return next(one for one in market.state.accounts if one.name == rental.account)
            raise MarketError(403, "forbidden", "access denied")
        raise MarketError(401, "bad_key", "invalid api key" if request.bearer else "missing bearer token")

    def _end_the_broke(self, market: Market, account: AccountRecord) -> None:
        """Without credit a pod that has no network volume is not stopped but terminated, with all that is on it."""
        for view in market.rentals(account):
            if view.rental.out is Out.CREDIT:
                market.destroy(account.name, view.rental.id)

    def pod(self, market: Market, view: View) -> dict[str, Any]:
        """One pod's document, in this face's words."""
        return document(market, view, early_status=self.early_status, older_spec=self.older_spec)


def _browser_check(action: Action, market: Market, request: Request) -> Reply:
    """What stands before the API turns libraries' default names away."""
    agent = request.headers.get("user-agent", "")
    if not agent or agent.startswith("Python-urllib"):
        return Reply(status=403, body=b"error code: 1010", headers={"Content-Type": "text/plain"})
    return action(market, request)


def _json(document: object, status: int = 200, **headers: str) -> Reply:
    return Reply.json(document, status, **headers)


def _gone(_: Market, __: Request) -> Reply:
    return _json({"error": GONE_TEXT}, 410)


def _no_such_path(_: Market, request: Request) -> Reply:
    return _json({"title": "Not Found", "status": 404, "detail": f"no route for {request.method} {request.path}"}, 404)


def _pod_id(request: Request) -> str:
    return (request.path.split("/") + [""] * 5)[4]


def _create(face: RunPodFace, market: Market, request: Request, account: AccountRecord) -> Reply:
    body = _body(request, "create", older=face.older_spec)
    _rules(body)
    persistent = body.get("mounts", {}).get("persistent", {})
    order = stock.Order(
        name=body["name"],
        image=body["image"],
        clouds=(body.get("cloud", "SECURE"),),
        gpu_id=body["gpu"]["id"],
        count=body["gpu"].get("count", 1),
        disk_gb=body["disk"],
        env=body.get("env", {}),
        ports=tuple(body.get("ports", ())),
        command=tuple(body.get("entrypoint", ())) + tuple(body.get("cmd", ()) or graphql.split(body.get("args", ""))),
        args=body.get("args", ""),
        centers=tuple(body.get("dataCenterIds", ())),
        min_cuda=body["gpu"].get("minCudaVersion", ""),
        cudas=tuple(body["gpu"].get("allowedCudaVersions", ())),
        volume_gb=persistent.get("size", 0),
        volume_path=persistent.get("path", ""),
        start_ssh=body.get("startSsh", False),
    )
    rental = stock.rent(market, account, order, request.base_url)
    return _json(face.pod(market, market.show(account.name, rental.id)), 201)


def _rules(body: Mapping[str, Any]) -> None:
    """What the contract cannot say: 400, the same status as full stock."""
    mounts, gpu = body.get("mounts", {}), body.get("gpu", {})
    broken = {
        "exactly one of gpu or cpu must be set": ("gpu" in body) == ("cpu" in body),
        "CPU pods cannot have a persistent mount": "cpu" in body and "persistent" in mounts,
        "mounts.persistent and mounts.network are mutually exclusive": "persistent" in mounts and bool(mounts.get("network")),
        "allowedCudaVersions and minCudaVersion are mutually exclusive": bool(gpu.get("allowedCudaVersions")) and "minCudaVersion" in gpu,
        "You must either provide a template id or pod configuration parameters": "disk" not in body,
        stock.NO_CAPACITY: "cpu" in body or bool(mounts.get("network")),  # neither is in stock here
    }
    if found := next((words for words, is_so in broken.items() if is_so), ""):
        raise MarketError(400, "bad_request", found)
    if "templateId" in body:
        raise MarketError(404, "not_found", "template not found")


def _body(request: Request, kind: str, *, older: bool = False) -> dict[str, Any]:
    body = request.document()
    if errors := validated(body, kind, older=older):
        raise InvalidBody(errors)
    return body


def _list(face: RunPodFace, market: Market, request: Request, account: AccountRecord) -> Reply:
    views = market.rentals(account)
    if face.older_spec:
        return _json({"pods": [face.pod(market, view) for view in views]})
    limit, cursor = request.query.get("limit", "1000"), request.query.get("cursor", "0")
    if not (limit.isdecimal() and 1 <= int(limit) <= 1000 and cursor.isdecimal()):
        raise MarketError(400, "bad_request", "invalid limit or cursor")
    rest = [view for view in views if int(view.rental.id) > int(cursor)]
    page = rest[: min(int(limit), face.page_size)]
    more = len(rest) > len(page)
    pagination = {"nextCursor": page[-1].rental.id if more else None, "hasNextPage": more}
    return _json({"pods": [face.pod(market, view) for view in page], "pagination": pagination})


def _show(face: RunPodFace, market: Market, request: Request, account: AccountRecord) -> Reply:
    return _json(face.pod(market, market.show(account.name, _pod_id(request))))


def _update(face: RunPodFace, market: Market, request: Request, account: AccountRecord) -> Reply:
    """Ports can be added to a pod that runs; a new name is its label from now on."""
    body = _body(request, "update")
    rental = market.show(account.name, _pod_id(request)).rental
    data = {**rental.face_data} | {name: body[name] for name in ("ports", "locked") if name in body}
    market.update(account.name, rental.id, face_data=data, spec=stock.renamed(rental.spec, body.get("name", rental.spec.label)))
    return _show(face, market, request, account)


def _terminate(_: RunPodFace, market: Market, request: Request, account: AccountRecord) -> Reply:
    if market.show(account.name, _pod_id(request)).rental.face_data["locked"]:
        raise MarketError(409, "conflict", "pod is locked")
    market.destroy(account.name, _pod_id(request))
    return Reply(status=204, body=b"")


def _action(face: RunPodFace, market: Market, request: Request, account: AccountRecord) -> Reply:
    action = _body(request, "action")["action"]
    pod = face.pod(market, market.show(account.name, _pod_id(request)))
    if action == "terminate":
        return _terminate(face, market, request, account)
    if action not in pod["actions"] or pod["locked"]:
        raise MarketError(409, "conflict", f"cannot {action} a pod that is {'locked' if pod['locked'] else pod['status']}")
    if action in ("stop", "restart"):
        market.stop(account.name, pod["id"])
    if action in ("start", "restart"):
        market.restart(account.name, pod["id"], fresh_disk=action == "start")  # a stop has wiped the container's disk
    return _show(face, market, request, account)


def _logs(_: RunPodFace, market: Market, request: Request, account: AccountRecord) -> Reply:
    """What there is by now, as server-sent events; the real one stays open."""
    view = market.show(account.name, _pod_id(request))
    at = time_text(view.rental.booted_at)
    lines = [
        ("system", view.status_text or "start container"),
        *(("container", line) for line in market.machines.boot_log(view.rental.id).splitlines()),
    ]
    events = [f"id: {at}\ndata: {Reply.json({'ts': at, 'source': source, 'line': line}).body.decode()}\n\n" for source, line in lines]
    return Reply(body="".join(events).encode(), headers={"Content-Type": "text/event-stream"})


def _keys(_: RunPodFace, __: Market, ___: Request, account: AccountRecord) -> Reply:
    return _json({"keys": list(account.ssh_keys)})


def _set_keys(_: RunPodFace, market: Market, request: Request, account: AccountRecord) -> Reply:
    keys = _body(request, "keys")["keys"]
    market.set_ssh_keys(account, keys)
    return _json({"keys": keys})


def _gpus(_: RunPodFace, market: Market, request: Request, __: AccountRecord) -> Reply:
    return _json({"gpus": catalogue.gpus(market, request.query)})


def _one_gpu(_: RunPodFace, market: Market, request: Request, __: AccountRecord) -> Reply:
    wanted = unquote(request.path.rpartition("/")[2])
    for gpu in catalogue.gpus(market, request.query):
        if gpu["id"] == wanted:
            return _json(gpu)
    raise MarketError(404, "not_found", "gpu type not found")


def _centers(_: RunPodFace, market: Market, request: Request, __: AccountRecord) -> Reply:
    return _json({"dataCenters": catalogue.centers(market, request.query)})


def _nothing(key: str) -> Verb:
    """A list of what this practice cloud has none of."""
    return lambda _, __, ___, ____: _json({key: []})


def _bills(face: RunPodFace, market: Market, request: Request, account: AccountRecord) -> Reply:
    return _json(billing.history(market, account.name, request.query, face.billing_step_s, by_pod=request.path.endswith("/pods")))


_POD = rf"/pods/{POD_ID}"
_ROUTES: tuple[tuple[str, str, str, Verb], ...] = (
    ("GET", "/pods", "list", _list),
    ("POST", "/pods", "create", _create),
    ("GET", _POD, "show", _show),
    ("PATCH", _POD, "update", _update),
    ("DELETE", _POD, "terminate", _terminate),
    ("POST", f"{_POD}/action", "action", _action),
    ("GET", f"{_POD}/logs", "logs", _logs),
    ("GET", "/account/ssh-keys", "keys", _keys),
    ("PUT", "/account/ssh-keys", "set_keys", _set_keys),
    ("GET", "/catalog/gpus", "gpus", _gpus),
    ("GET", "/catalog/gpus/[^/]+", "gpu", _one_gpu),
    ("GET", "/catalog/cpus", "cpus", _nothing("cpus")),
    ("GET", "/catalog/datacenters", "centers", _centers),
    ("GET", "/billing", "bills", _bills),
    ("GET", "/billing/pods", "billing", _bills),
    ("GET", "/network-volumes", "volumes", _nothing("networkVolumes")),
    ("GET", "/templates", "templates", _nothing("templates")),
    ("GET", "/registries", "registries", _nothing("registries")),
)
