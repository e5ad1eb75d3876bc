"""A model hub on loopback: what it is asked, and what it gives to whom."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

TOKEN = "hf_CANARYtokenCANARYtoken"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """A hub on loopback: `open` bases for everybody, `gated` ones for the accounts that accepted."""

    url: str = ""
    cdn: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    """What is really sent for a file, when it is not what the listing says."""
    accepted: bool = True
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Host, path and Authorization of every call."""

    def tokens(self) -> set[tuple[str, str]]:
        return {(host, sent) for host, _, sent in self.asked if sent}


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path, sent = urlparse(self.path).path, self.headers.get("Authorization", "")
            host = self.headers["Host"]
            hub.asked.append((host, path, sent))
            knows = sent == f"Bearer {TOKEN}"
            may = "/open" in path or (knows and hub.accepted)
            if path == "/api/whoami-v2":
                self.answer(200 if knows else 401, b'{"name": "ann"}')
            elif path.startswith("/cdn/"):
                body = hub.served.get(path[5:], hub.files[path[5:]])
                self.answer(200, body, ETag=f'"{hashlib.sha256(body).hexdigest()}"')
            elif path.startswith("/api/models/someone/"):
                rows = [
                    {"rfilename": name, "size": len(data)}
                    | ({"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}} if name.endswith("safetensors") else {})
                    for name, data in hub.files.items()
                ]
                found = "absent" not in path and ("/revision/" not in path or path.rpartition("/")[2] in ("main", COMMIT))
                self.answer(200 if found else 404, json.dumps({"sha": COMMIT, "siblings": rows, "gated": "auto"}).encode())
            elif f"/resolve/{COMMIT}/" in path:
                self.file(path.partition(f"/resolve/{COMMIT}/")[2], may)
            else:
                self.answer(404)

        do_HEAD = do_GET

        def file(self, name: str, may: bool) -> None:
            if not may:
                self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
                return
            data, told = hub.files[name], {"X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
            digest = hashlib.sha256(data).hexdigest()
            if name.endswith("safetensors"):
                self.answer(302, X_Linked_Etag=f'"{digest}"', X_Linked_Size=str(len(data)), Location=f"{hub.cdn}/cdn/{name}", **told)
            else:
                self.answer(200, data, ETag=f'"{digest[:40]}"', Content_Length=str(len(data)), **told)

    return Handler


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[FakeHub]:
    """The hub, and another address to which it sends those who fetch large files, as real ones do."""
    made = FakeHub(files=dict(files))
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(made)) for _ in range(2)]
    made.url, made.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield made
    for server in servers:
        server.shutdown()
        server.server_close()
