"""The practice cloud's HTTP server: reads a request, finds its face, carries out scripted faults, writes the answer.

Owns the sandbox folder (one server at a time, by a lock), the descriptor that clients find it by, and the life of the process. What a
request means is the faces' business, what it does the market's. A killed server leaves its machines running; the next one with the
same folder finds them. A server that is asked to end destroys them first.

    DIR/sandbox.json    where the server is and with which key (0600)
    DIR/market.json     accounts and rentals        DIR/bill.jsonl    the meter
    DIR/machines/<id>/  one folder a machine        DIR/requests.jsonl  one line an HTTP request
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Self, cast
from urllib.parse import parse_qsl, urlsplit

from pydantic import TypeAdapter, ValidationError

from .billing import BillLog
from .clock import SandboxClock
from .descriptor import Descriptor, read_descriptor, write_descriptor
from .faces import Face, Reply, Request
from .faults import Fault, Faults
from .happenings import Happening, happen
from .machine import write_whole
from .machines import HostError, RealMachines, login_user, needs_private_run
from .market import Market
from .plain import Plain
from .processes import ProcessId, identify
from .rentals import AccountRecord, BootTimes, MarketError, State
from .runpod_face import RunPodFace
from .tensordock_face import TensorDockFace
from .vast_face import VastFace

TICK_S = 0.5
BODY_MAX = 4 * 2**20

_STATE = TypeAdapter(State)
_SCRIPT = TypeAdapter(list[Fault])
_HAPPENINGS = TypeAdapter(list[Happening])


class Server:
    """One practice cloud, serving from threads of this process between `start` and `stop`."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        speed: float | None = None,
        boot: BootTimes | None = None,
        idle_end_s: float | None = None,
        faces: Sequence[Face] | None = None,
    ) -> None:
        """`faces`: instead of the usual ones; the first is the plain one."""
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._held = _hold(self.folder)
        with ExitStack() as undo:
            undo.callback(self._held.close)
            self._open(port, speed, boot, every_face() if faces is None else tuple(faces))
            undo.pop_all()
        self._idle_end_s = idle_end_s
        self._threads = [
            threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, name="sandbox-http", daemon=True),
            threading.Thread(target=self._watch, name="sandbox-watch", daemon=True),
        ]

    def _open(self, port: int, speed: float | None, boot: BootTimes | None, faces: tuple[Face, ...]) -> None:
        self.clock = SandboxClock.open(self.folder, speed)
        self.faults = Faults()
        self.ended = threading.Event()
        self.lock = threading.RLock()
        self.faces = faces
        self.market = self._open_market(boot)
        self._last_reply: dict[str, Reply] = {}
        self._closing = False
        self._http = _listen(self, port, read_descriptor(self.folder))

    def _open_market(self, boot: BootTimes | None) -> Market:
        user = login_user()
        private_run = needs_private_run(self.folder)
        (self.folder / "machines").mkdir(exist_ok=True, mode=0o700)
        path = self.folder / "market.json"
        state = _STATE.validate_json(path.read_bytes()) if path.exists() else State(admin_key=f"admin-{secrets.token_hex(20)}")
        known = {account.name for account in state.accounts}
        for name in [face.account for face in self.faces if face.account not in known]:
            state.accounts.append(AccountRecord(name=name, key=f"sandbox-{secrets.token_hex(20)}"))
        offers = [offer for face in self.faces for offer in face.stock()]
        bill = BillLog(self.folder)

        def save(state: State) -> None:
            write_whole(path, _STATE.dump_json(state).decode())

        save(state)
        machines = RealMachines(self.folder / "machines", user, private_run=private_run)
        return Market(state, offers, machines, now=self.clock.now, bill=bill.append, events=bill.events, save=save, boot=boot)

    @property
    def descriptor(self) -> Descriptor:
        me = cast("ProcessId", identify(os.getpid()))
        url = f"http://127.0.0.1:{self._http.server_port}"
        keys = {account.name: account.key for account in self.market.state.accounts}
        told = {name: value for face in self.faces for name, value in face.addresses(url, keys[face.account]).items()}
        return Descriptor(
            url=told.pop("url"),
            api_key=told.pop("api_key"),
            admin_key=self.market.state.admin_key,
            folder=str(self.folder),
            pid=me.pid,
            started=me.started,
            speed=self.clock.speed,
            faces=told,
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        write_descriptor(self.folder, self.descriptor)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, *, keep_machines: bool = False) -> None:
        """End the service; the machines go first, unless they are to be kept."""
        self.ended.set()
        with self.lock:
            self._closing = True  # a request still on its way changes nothing after this
            if not self._folder_is_there():
                self.market.end_all()
            elif not keep_machines:
                self.market.destroy_all()
        self._http.shutdown()
        self._http.server_close()
        for thread in self._threads:
            thread.join()
        (self.folder / "sandbox.json").unlink(missing_ok=True)
        self._held.close()

    def _watch(self) -> None:
        """Notice dead machines, and the time when nobody needs us any more."""
        idle_since = time.monotonic()
        while not self.ended.wait(TICK_S):
            if not self._folder_is_there():
                self.ended.set()
                return
            with self.lock:
                self.market.tick()
                if self.market.state.rentals:
                    idle_since = time.monotonic()
            if self._idle_end_s is not None and time.monotonic() - idle_since > self._idle_end_s:
                self.ended.set()

    def _folder_is_there(self) -> bool:
        """Somebody who removes our folder has no more use for us or our machines."""
        return (self.folder / "lock").exists()

    # One request

    def answer(self, request: Request) -> tuple[str, Fault, Reply | None]:
        """The endpoint's name, the fault to carry out on the wire, and the reply (None: cut the connection)."""
        if request.path == "/health":
            document = {"service": "lorry sandbox", "now": self.clock.now().isoformat(), "speed": self.clock.speed}
            return "health", Fault(endpoint="health"), Reply.json(document)
        if request.path in ("/sandbox/faults", "/sandbox/happenings"):
            return "admin", Fault(endpoint="admin"), self._admin(request)
        for face in self.faces:
            if found := face.route(request.method, request.path):
                name, action = found
                fault = self.faults.next(name)
                return name, fault, self._act(face, name, fault, partial(action, self.market, request))
        return "", Fault(endpoint=""), Reply.json({"error": {"code": "no_such_path", "message": request.path}}, status=404)

    def _act(self, face: Face, name: str, fault: Fault, action: Callable[[], Reply]) -> Reply | None:
        time.sleep(fault.delay_s)
        if fault.drop == "before":
            return None
        if fault.late_s:
            late = threading.Timer(fault.late_s, self._do, (face, name, action))
            late.daemon = True
            late.start()
            return None
        instead = fault.status is not None or fault.body is not None
        last = self._last_reply.get(name)
        reply = Reply() if instead and not fault.effect else self._do(face, name, action)
        if reply is None or fault.drop == "after":
            return None
        if fault.stale and last:
            return last
        if instead:
            body = fault.body if fault.body is not None else json.dumps({"error": {"code": "fault", "message": "by script"}})
            headers = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
            reply = Reply(status=fault.status or reply.status, body=body.encode(), headers=headers)
        return reply

    def _do(self, face: Face, name: str, action: Callable[[], Reply]) -> Reply | None:
        """The effect itself; None once the server is closing."""
        with self.lock:
            if self._closing:
                return None
            try:
                reply = action()
            except MarketError as problem:
                reply = face.problem(problem)
        self._last_reply[name] = reply
        return reply

    def _admin(self, request: Request) -> Reply:
        if not secrets.compare_digest(request.bearer.encode(), self.market.state.admin_key.encode()):
            return Reply.json({"error": {"code": "bad_key", "message": "the fault script needs the admin key"}}, status=401)
        if request.method == "PUT":
            try:
                if request.path == "/sandbox/faults":
                    self.faults.set(_SCRIPT.validate_json(request.body))
                else:
                    self.happen(*_HAPPENINGS.validate_json(request.body))
            except (ValidationError, MarketError) as error:
                return Reply.json({"error": {"code": "invalid_request", "message": str(error)}}, status=422)
        return Reply.json({"calls": self.faults.calls()})

    def happen(self, *happenings: Happening) -> None:
        """What nobody asked for."""
        with self.lock:
            for happening in happenings:
                happen(self.market, happening)

    def log(self, method: str, path: str, endpoint: str, status: int | None) -> None:
        entry = {"at": self.clock.now().isoformat(), "method": method, "path": path, "endpoint": endpoint, "status": status}
        with (self.folder / "requests.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def every_face() -> tuple[Face, ...]:
    """The tongues that a practice cloud speaks."""
    return (Plain(), VastFace(), RunPodFace(), TensorDockFace())


def _hold(folder: Path) -> IO[bytes]:
    """The lock that makes this the folder's only server, for as long as the file is open."""
    held = (folder / "lock").open("ab")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        held.close()
        raise HostError(f"another practice cloud already serves {folder}", "use that one, or give another --folder") from error
    return held


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], sandbox: Server) -> None:
        self.sandbox = sandbox
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        socket.socket.bind(self.socket, self.server_address)  # the inherited one asks DNS for a name that nobody reads
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", self.server_address[1]


def _listen(sandbox: Server, port: int, last: Descriptor | None) -> _HTTPServer:
    """On `port`; else where the last server of this folder was, so that its clients find us; else anywhere."""
    if not port and last:
        with suppress(OSError):
            return _HTTPServer(("127.0.0.1", urlsplit(last.url).port or 0), sandbox)
    try:
        return _HTTPServer(("127.0.0.1", port), sandbox)
    except OSError as error:
        raise HostError(f"port {port} cannot be had: {error.strerror}", "choose another --port, or leave it out") from error


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    wbufsize = -1  # head and body leave as one packet; as two, the second waits 40 ms for a delayed ACK
    disable_nagle_algorithm = True
    server: _HTTPServer

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > BODY_MAX:
            self.close_connection = True
            self._write(Reply.json({"error": {"code": "too_large", "message": "the body is too large"}}, status=413), None)
            return
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        request = Request(
            method=self.command,
            path=parts.path.rstrip("/") or "/",
            query=dict(parse_qsl(parts.query)),
            bearer=key.strip() if scheme.lower() == "bearer" else "",
            body=self.rfile.read(int(length)),
            base_url=f"http://127.0.0.1:{self.server.server_port}",
            headers={name.lower(): value for name, value in self.headers.items()},
        )
        endpoint, fault, reply = self.server.sandbox.answer(request)
        self.server.sandbox.log(self.command, parts.path, endpoint, reply.status if reply else None)
        if reply is None:
            self.close_connection = True
            return
        self._write(reply, fault.truncate)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815 - the names are the library's

    def _write(self, reply: Reply, truncate: int | None) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body if truncate is None else reply.body[:truncate])
        self.close_connection |= truncate is not None

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the library's
        """Requests go to requests.jsonl."""


def serve(
    folder: Path,
    *,
    port: int = 0,
    speed: float | None = None,
    idle_end_s: float | None = None,
    keep_machines: bool = False,
    on_ready: Callable[[Mapping[str, object]], None] = lambda _: None,
) -> None:
    """Serve from this process until SIGINT or SIGTERM. `on_ready` gets the descriptor once requests are answered."""
    server = Server(folder, port=port, speed=speed, idle_end_s=idle_end_s)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: server.ended.set())
    server.start()
    on_ready(server.descriptor.document())
    while not server.ended.wait(60):
        pass
    server.stop(keep_machines=keep_machines)
