"""A canary in every slot for a secret, then a run in which much goes wrong: no canary sings anywhere but to its own cloud.

Looked at from outside: every process's arguments and environment, every file of the rented machine and of lorry's home while they are
there, every byte that lorry sends to its cloud, and all that it prints.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

from .world import Lorry, check_gone, config, poll

CANARIES = {
    name: f"canary-{name.lower().replace('_', '-')}-5d1c0ffee"
    for name in ("RUNPOD_API_KEY", "TENSORDOCK_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "CIVITAI_API_KEY", "AWS_SECRET_ACCESS_KEY")
}


@dataclass
class Eavesdropper:
    """A line to the cloud on which every byte towards it is kept."""

    target: tuple[str, int]
    heard: bytearray = field(default_factory=bytearray)

    def __enter__(self) -> Self:
        self._door = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    @property
    def port(self) -> int:
        return int(self._door.getsockname()[1])

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._door.accept()
                there = socket.create_connection(self.target)
                for source, sink, kept in ((here, there, self.heard), (there, here, None)):
                    threading.Thread(target=self._pump, args=(source, sink, kept), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, kept: bytearray | None) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                if kept is not None:
                    kept.extend(piece)
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@dataclass
class Watch:
    """Looks at every process and at some folders, again and again, and notes where a secret stands."""

    secrets: tuple[str, ...]
    folders: tuple[Path, ...]
    found: set[str] = field(default_factory=set)
    looks: int = 0
    processes: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)

    @contextmanager
    def on(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._go_on, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(30)

    def _go_on(self, over: threading.Event) -> None:
        while not over.is_set():
            self._at_processes()
            for folder in self.folders:
                self._at_files(folder)
            self.looks += 1
            time.sleep(0.05)

    def _note(self, where: str, data: bytes) -> None:
        self.found |= {f"{where}: {secret[:16]}…" for secret in self.secrets if secret.encode() in data}

    def _at_processes(self) -> None:
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                self.processes.add(command.split(b"\0")[0].decode(errors="replace").rpartition("/")[2])
                self._note(f"arguments of {command[:60]!r}", command)
                environment = (entry / "environ").read_bytes()
                if not self._is_lorry((entry / "cmdline").read_bytes()):
                    self._note(f"environment of {command[:60]!r}", environment)

    @staticmethod
    def _is_lorry(command: bytes) -> bool:
        """Lorry, which was given the secrets in its environment; or what it has just forked, and is no other program yet."""
        return not command or b"orchestrator.cli" in command

    def _at_files(self, folder: Path) -> None:
        for place, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):
                    self.files.add(name)
                    self._note(f"file {name}", (Path(place) / name).read_bytes())


class Parrot(BaseHTTPRequestHandler):
    """A cloud that repeats the key that it was given, in every answer."""

    heard: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        key = self.headers.get("Authorization", "")
        self.heard.append(key)
        body = json.dumps({"error": f"no account has {key}", "id": key.removeprefix("Bearer ")}).encode()
        self.send_response(500 if "hostnodes" in self.path else 200)
        self.send_header("X-Key", key)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def parrot() -> Iterator[str]:
    Parrot.heard.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Parrot)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_cloud_that_repeats_its_key_is_not_repeated(lorry: Lorry) -> None:
    """Whatever it answers; and the key goes to its own cloud alone, in the header for it."""
    with parrot() as url:
        said = [
            lorry(*command.split(), **CANARIES, LORRY_RUNPOD_URL=url, LORRY_RUNPOD_GRAPHQL_URL=url, LORRY_TENSORDOCK_URL=url)
            for command in ("reap --provider runpod", "reap --provider tensordock --json")
        ]
    told = "".join(done.out + done.err for done in said)
    assert Parrot.heard, "nobody was asked"
    assert {key.removeprefix("Bearer ") for key in Parrot.heard} <= {CANARIES["RUNPOD_API_KEY"], CANARIES["TENSORDOCK_API_KEY"]}
    assert [secret for secret in CANARIES.values() if secret in told] == []
    kept = b"".join(path.read_bytes() for path in lorry.home.rglob("*") if path.is_file())
    assert [secret for secret in CANARIES.values() if secret.encode() in kept] == []


@pytest.mark.slow
def test_no_secret_is_anywhere_but_where_it_belongs(lorry: Lorry, base: Path, drawn: Path) -> None:
    """A run over Vast's face whose lorry is killed, that is taken up, stopped, and goes on on another machine."""
    told = json.loads((lorry.cloud.folder / "sandbox.json").read_text())
    cloud = urlsplit(told["vast_url"])
    key = told["vast_api_key"]
    with Eavesdropper((str(cloud.hostname), int(cloud.port or 80))) as line:
        env = CANARIES | {"LORRY_VAST_URL": f"http://127.0.0.1:{line.port}{cloud.path}", "VAST_API_KEY": key}
        watch = Watch((key, *CANARIES.values()), (lorry.cloud.folder / "machines", lorry.home))
        file = config(lorry.folder, base, {"one": drawn}, steps=24, save_every_steps=3, gradient_accumulation=20)
        with watch.on():
            first = lorry.start("run", str(file), "--provider", "vast", "-y", "--json", **env)
            with lorry.standing(3):
                first.kill()
            again = lorry.start("attach", lorry.run, **env)
            with lorry.standing(5):
                stop = lorry.start("stop", lorry.run, **env)
                poll((lorry.at(lorry.run) / "stop").exists, what="a stop that was asked for")
            stop.end()
            again.end()
            last = lorry.start("resume", lorry.run, "--budget", "2", **env)
            done = last.end()
            assert done.code == 0, done.err
            for command in ("cost", "logs", "report", "ps --all --json"):
                lorry(*command.split(), *([lorry.run] if command in {"cost", "logs", "report"} else []), **env)
    check_gone(lorry, lorry.run)
    assert watch.looks > 20
    assert any("rsync" in name or "ssh" in name for name in watch.processes), "no transfer was seen"
    assert {"job.json", "session.json", "ledger.jsonl", "report.html"} <= watch.files, "machine and home were not both seen"
    assert sorted(watch.found) == [], "\n".join(sorted(watch.found))
    said = "".join(running.out.read_text(errors="replace") + running.said for running in lorry.started)
    assert [secret for secret in watch.secrets if secret in said] == []
    assert re.search(rb"(?i)authorization: bearer " + re.escape(key.encode()), bytes(line.heard)), "the key never went to its cloud"
    beyond = re.sub(rb"(?i)authorization: bearer [^\r\n]*", b"", bytes(line.heard))
    assert [secret for secret in watch.secrets if secret.encode() in beyond] == []
