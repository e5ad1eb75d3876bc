"""What is fuzzed: each target is a strategy and what must hold of everything that it makes. Nothing may break, whatever a stranger says."""

from __future__ import annotations

import ast
import inspect
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import png, png_chunk, safetensors
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, deserialize

from orchestrator.border import pictures, weights
from orchestrator.border.weights import Unsound
from orchestrator.border.words import harmless, one_line
from orchestrator.machines import guard, inspection, proof
from orchestrator.progress import Progress
from orchestrator.view import job_words, sparkline
from providers import runpod, tensordock, vast
from providers.base import Requirements
from providers.errors import ProviderError
from trainer import header
from trainer.header import Malformed
from trainer.protocol import AnyEvent, EventReader, Status

Check = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads what a stranger wrote."""

    name: str
    made: st.SearchStrategy[Any]
    check: Check


EDGES = st.sampled_from(
    [None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, -1e308, 5e-324, 0.1,
     "", "0", "-1", "1e999", "nan", "\ud800", "\x1b]0;x\x07"]
)  # fmt: skip


def json_of(words: list[str]) -> st.SearchStrategy[Any]:
    """JSON whose keys are often words of ours."""
    leaves = EDGES | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(words)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(words) | st.text(max_size=4), inner, max_size=8),
        max_leaves=25,
    )


# -- safetensors --------------------------------------------------------------------------------------

_ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*header.DTYPE_BYTES, "F4", "PICKLE"]),
        "shape": st.lists(st.integers(0, 4) | EDGES, max_size=3),
        "data_offsets": st.lists(st.integers(0, 32) | EDGES, min_size=2, max_size=2),
    }
)


@st.composite
def _whole(draw: st.DrawFn) -> bytes:
    """Files that are right, and often wrong in one place."""
    entries: dict[str, Any] = {}
    at = 0
    for name in draw(st.lists(st.text(max_size=4), max_size=4, unique=True)):
        dtype, shape = draw(st.sampled_from(sorted(header.DTYPE_BYTES))), draw(st.lists(st.integers(0, 3), max_size=3))
        end = at + math.prod(shape) * header.DTYPE_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    if draw(st.booleans()):
        entries["__metadata__"] = draw(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2))
    if entries and draw(st.booleans()):
        entries[draw(st.sampled_from(sorted(entries)))] = draw(_ENTRIES | EDGES)
    raw = json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw + draw(st.binary(min_size=at, max_size=at) | st.binary(max_size=40))


@st.composite
def _bent(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """A file with a few bytes that are others, or none."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 3))):
        if data:
            place = draw(st.integers(0, len(data) - 1))
            data[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


def check_header(data: bytes) -> None:
    """What ours takes, the standard's library takes too, and reads the same; and ours is the stricter."""
    try:
        length = header.length(data[:8], len(data))
        told = header.parse(data[8 : 8 + length], len(data) - 8 - length)
    except Malformed:
        return
    try:
        theirs = dict(deserialize(data))
    except SafetensorError as err:
        assert "dtype" in str(err).lower() or "unknown variant" in str(err), f"we take what the library does not: {err}"  # noqa: PT017
        return
    assert {name: list(entry.shape) for name, entry in told.tensors.items()} == {name: tensor["shape"] for name, tensor in theirs.items()}


def check_weights(data: bytes) -> None:
    """A file is sound or said not to be."""
    with _file(data) as path, suppress(Unsound):
        weights.look(path)


# -- pictures -----------------------------------------------------------------------------------------

_CHUNKS = st.builds(
    png_chunk, st.sampled_from([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"tEXt", b"iCCP", b"acTL", b"EVIL"]), st.binary(max_size=30)
)
_PICTURES = st.builds(lambda w, h, chunks: png(w, h, *chunks), st.integers(0, 40), st.integers(0, 40), st.lists(_CHUNKS, max_size=3))


def check_picture(data: bytes) -> None:
    """What is drawn anew is a plain PNG of ours of sane size."""
    with _file(data) as path:
        try:
            made = pictures.anew(path)
        except Unsound:
            return
    with Image.open(io.BytesIO(made)) as picture:
        assert (picture.format, picture.mode, picture.info) == ("PNG", "RGB", {})
        assert max(picture.size) <= pictures.SHOWN_SIDE


@contextmanager
def _file(data: bytes) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


# -- what a machine tells -----------------------------------------------------------------------------

_EVENT_WORDS = ["kind", "at_s", "job", "lisa", *sorted({name for one in AnyEvent.__args__ for name in one.model_fields})]
_KINDS = ["phase", "started", "step", "evaluated", "committed", "warned", "ended"]


@st.composite
def _lines(draw: st.DrawFn) -> list[bytes]:
    """Events, nearly right ones, and noise, cut anywhere."""
    lines = []
    for _ in range(draw(st.integers(0, 5))):
        event = {"kind": draw(st.sampled_from(_KINDS)), "at_s": 1.0, "job": "lisa"}
        for one in AnyEvent.__args__:
            if one.model_fields["kind"].default == event["kind"]:
                event |= {
                    name: draw(EDGES | st.integers(0, 9) | st.sampled_from(["adapter", "done"]))
                    for name in one.model_fields
                    if name not in event
                }
        lines.append(
            draw(st.just(json.dumps(event).encode()) | st.binary(max_size=30) | json_of(_EVENT_WORDS).map(lambda j: json.dumps(j).encode()))
        )
    whole = b"\n".join([*lines, b""])
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def check_events(pieces: list[bytes]) -> None:
    """Cut anywhere, the same events; folded in, still a progress that can be drawn and told."""
    reader, again = EventReader(), EventReader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    assert events == list(again.feed(b"".join(pieces)))
    assert reader.dropped == again.dropped
    progress = Progress(["lisa"])
    for event in events:
        progress.take(event)
    check_progress(progress)


def check_status(data: Any) -> None:
    progress = Progress(["lisa"])
    with suppress(ValidationError):
        progress.hear(Status.model_validate_json(json.dumps(data)))
    check_progress(progress)


def check_progress(progress: Progress) -> None:
    job = progress.jobs["lisa"]
    assert one_line(job_words(job), most=2000).isprintable()
    sparkline([loss for _, loss in job.loss.points], 40)
    assert progress.seconds_left is None or progress.seconds_left >= 0
    json.dumps([job.step, job.steps, job.loss.points, progress.seconds_left], allow_nan=False)


def check_answers(data: Any) -> None:
    """Every other thing that a machine is asked: who it is, what it is, whether its guard lives."""
    raw = json.dumps(data).encode()
    guard.beat(raw)
    inspection.read(raw)
    with suppress(proof.Disproved):
        proof.judge(raw, secret="s", challenge="c", fingerprint="f")


def check_text(text: str) -> None:
    kept = harmless(text)
    assert harmless(kept) == kept
    assert all(c in "\n\t" or c.isprintable() for c in kept)
    assert one_line(text, most=50).isprintable()
    assert len(one_line(text, most=50)) <= 50


# -- what a cloud answers ------------------------------------------------------------------------------


def words_of(module: Any) -> list[str]:
    """Every word that a cloud's file may look for in an answer."""
    fields = {name for _, one in inspect.getmembers(module, inspect.isclass) if issubclass(one, BaseModel) for name in one.model_fields}
    constants = {
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return sorted(fields | {word for word in constants if word.isidentifier()})


CLOUDS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "vast": (
        vast,
        lambda: vast.Vast("fuzz-key-0123456789", intervals_s={}, now=lambda: datetime(2026, 1, 1, tzinfo=UTC), sleep=lambda _: None),
    ),
    "runpod": (runpod, lambda: runpod.RunPod("fuzz-key-0123456789", intervals_s={})),
    "tensordock": (tensordock, lambda: tensordock.TensorDock("fuzz-key-0123456789", intervals_s={})),
}


def check_cloud(make: Callable[[], Any], said: tuple[int, Any]) -> None:
    """Every question ends in an answer of ours or in a `ProviderError`."""
    status, data = said

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=json.dumps(data))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.Client, "_init_transport", lambda *_, **__: httpx.MockTransport(answer))
        patch.setattr(httpx.Client, "_init_proxy_transport", lambda *_, **__: httpx.MockTransport(answer))
        cloud = make()
        questions = (cloud.instances, cloud.account, lambda: cloud.offers(Requirements(disk_gib=10)))
        for ask in (*questions, lambda: cloud.describe("1"), lambda: cloud.billed_usd("1"), lambda: cloud.terminate("1")):
            with suppress(ProviderError):
                ask()


def _of_cloud(name: str) -> Target:
    module, make = CLOUDS[name]
    answers = st.tuples(st.sampled_from([200, 200, 200, 201, 404, 500]), json_of(words_of(module)))
    return Target(f"answers of {name}", answers, lambda said: check_cloud(make, said))


_STATUS_WORDS = ["version", "state", "ended", "running", "reason", "beat", "uptime_s", "jobs", "lisa", "step", "steps", "message"]
_ANSWER_WORDS = ["lorry_proof", "beat", "serial", "age_s", "left", "gpus", "cuda", "disk", "name", "error"]

TARGETS = (
    Target("safetensors header", _bent(_whole() | st.just(safetensors(1))) | st.binary(max_size=60), check_header),
    Target("safetensors file", _bent(_whole() | st.just(safetensors(1))), check_weights),
    Target("picture", _bent(_PICTURES), check_picture),
    Target("events", _lines(), check_events),
    Target("status", json_of(_STATUS_WORDS), check_status),
    Target("answers of a machine", json_of(_ANSWER_WORDS), check_answers),
    Target("text", st.text(), check_text),
    *map(_of_cloud, CLOUDS),
)  # fmt: skip
