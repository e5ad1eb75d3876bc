# ruff: noqa: E501  a row is a line
"""What a rented machine can do to the computer of the person who rented it.

One row an attack: how it is played, what lorry says, how it ends.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from fakes import png, png_chunk, safetensors
from stranger import ADAPTER, JOB, ROOT, SAMPLE, Stranger, commit

from trainer.protocol import Ended, Phase, Session, Started, Step, Warned, dump_event

ALL = ("lisa.safetensors", "samples/step000002-0.png")
REST = ("samples/step000002-0.png",)
NOTHING: tuple[str, ...] = ()

ESCAPES = (
    "\x1b]0;owned\x07\x1b]52;c;cm0gLXJmIH4=\x07\x1b]8;;http://evil.example\x07click\x1b]8;;\x07\x1b[5;41mred\x1b[2J\x1bPq#0\x1b\\\x1b[?1049h"
    "\x9b31m\x90q\x9c\x00\x08\x7f\r\nrm: forged line\u202egnp.exe\u2066\u2028next\u200f\U000e0041"
    "[link=http://evil.example]x[/link]a\u0301" + "\u0301" * 40
)
"""Title, clipboard, link, colour, wiped screen, sixels, second screen, C1, backspaces, a line of its own, reversed text, tags, stacks, markup."""
HTML = "</p><script src=http://evil.example/x.js></script><img src=x onerror=alert(1)>\" onmouseover='x' {{ 7*7 }} {% raw %}"


@dataclass(frozen=True)
class Attack:
    """One row."""

    name: str
    play: Callable[[Stranger], object]
    code: int
    says: str
    """Stands on the terminal, line breaks aside."""
    home: tuple[str, ...] = ALL
    """What comes home all the same."""
    then: tuple[str, ...] = ()
    """Commands called after it, on the same terminal."""
    limits: dict[str, int] = field(default_factory=dict)
    """Limits that are reached sooner here than in life: module.NAME -> value."""


# -- how they are played ----------------------------------------------------------------------------

OURS_NOT = "lists a file that is none of ours"
LEFT_OUT = "tells things that our trainer does not say"
NOT_WHAT = "is not what it must be"
DAMAGED = "arrived damaged 3 times"
MUTE = "lives, but tells nothing"


def lists(path: str, **lies: object) -> Callable[[Stranger], None]:
    return lambda host: host.has(path, safetensors(9), **{"role": "checkpoint", "job": JOB, "final": False, **lies})


def adapter(content: bytes) -> Callable[[Stranger], None]:
    return lambda host: host.has(ADAPTER, content)


def sample(content: bytes) -> Callable[[Stranger], None]:
    return lambda host: host.has(SAMPLE, content)


def table(told: object, body: bytes = b"") -> bytes:
    raw = told if isinstance(told, bytes) else json.dumps(told).encode()
    return len(raw).to_bytes(8, "little") + raw + body


def tensor(*offsets: object, dtype: str = "F32", shape: object = (2,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def numbers(dtype: str, body: bytes, size: int) -> bytes:
    return table({"w": tensor(0, len(body), dtype=dtype, shape=[len(body) // size])}, body)


class Poison:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch opened",)


def says(raw: bytes) -> Callable[[Stranger], None]:
    return lambda host: host.say(raw + b"\n")


def event(**fields: object) -> Callable[[Stranger], None]:
    return says(
        json.dumps(
            {"kind": "step", "at_s": 1, "job": JOB, "step": 1, "steps": 2, "epoch": 0, "loss": 0.1, "lr": 1e-4, "samples_per_s": 1} | fields
        ).encode()
    )


def told(words: str) -> Callable[[Stranger], None]:
    """The same words in every event and file that has room for some."""

    def play(host: Stranger) -> None:
        host.says_only(b"")
        host.tell(
            Phase(at_s=1, job=JOB, phase="loading", detail=words),
            Started(at_s=1, job=JOB, steps=2, images=3, epochs=1, device=words),
            Step(at_s=2, job=JOB, step=1, steps=2, epoch=0, loss=0.5, lr=1e-4, samples_per_s=1.0),
            Warned(at_s=2, job=JOB, message=words),
            Warned(at_s=2, message=words),
            Ended(at_s=4, job=JOB, state="failed", step=2, message=words, code=words),
        )
        host.has(SAMPLE, png())

    return play


def status(raw: bytes) -> Callable[[Stranger], None]:
    return lambda host: host.status(raw)


def state(**fields: object) -> Callable[[Stranger], None]:
    return status(json.dumps({"version": 1, "state": "ended", "reason": "done", "beat": 9, "uptime_s": 5.0, "jobs": {}} | fields).encode())


def made_up(path: str, read: Callable[[int, int], bytes], **lies: object) -> Callable[[Stranger], None]:
    def play(host: Stranger) -> None:
        host.reads[f"{ROOT}/{path}"] = read
        host.tell(commit(path, **{"size": 65536, "sha256": "0" * 64, **lies}))

    return play


def endless(path: str, piece: bytes) -> Callable[[Stranger], None]:
    def play(host: Stranger) -> None:
        host.reads[f"{ROOT}/{path}"] = lambda offset, length: (piece * (length // len(piece) + 2))[offset % len(piece) :][:length]

    return play


def changing() -> Callable[[Stranger], None]:
    turn, good = count(), safetensors(2)
    return made_up(ADAPTER, lambda offset, length: (good if next(turn) % 2 else good[::-1])[offset:][:length], size=len(good))


def answers(word: str, does: Callable[[Any], tuple[int, bytes, bytes]]) -> Callable[[Stranger], None]:
    return lambda host: host.commands.__setitem__(word, does)


def flood(channel: Any) -> tuple[int, bytes, bytes]:
    for _ in range(400):
        channel.sendall(b"y\n" * 16384)
    return 0, b"", b""


def speaks(*packets: bytes) -> Callable[[Stranger], None]:
    """SFTP of its own: one raw packet after another, whatever it is asked."""

    def talk(channel: Any) -> None:
        for packet in packets:
            channel.recv(65536)
            channel.sendall(packet)
        while channel.recv(65536):
            channel.sendall(packets[-1])

    return lambda host: setattr(host, "files_spoken", talk)


def packet(kind: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">IB", len(body) + 1 if length is None else length, kind) + body


def numbered(kind: int, body: bytes) -> Callable[[Stranger], None]:
    """SFTP that answers every question with this, under its right number."""

    def talk(channel: Any) -> None:
        channel.recv(65536)
        channel.sendall(packet(2, struct.pack(">I", 3)))
        while asked := channel.recv(65536):
            channel.sendall(packet(kind, asked[5:9] + body))

    return lambda host: setattr(host, "files_spoken", talk)


def greets(*pieces: bytes, times: int = 1) -> Callable[[Stranger], None]:
    def greet(line: socket.socket) -> None:
        for _ in range(times):
            for piece in pieces:
                line.sendall(piece)

    return lambda host: setattr(host, "greeting", greet)


def without_adapter(host: Stranger) -> None:
    host.says_only(dump_event(Started(at_s=1, job=JOB, steps=2, images=3, epochs=1)))


def both(*plays: Callable[[Stranger], object]) -> Callable[[Stranger], None]:
    return lambda host: [play(host) for play in plays] and None


BIG_PNG = (
    b"\x89PNG\r\n\x1a\n"
    + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    + png_chunk(b"IDAT", b"")
    + png_chunk(b"IEND", b"")
)
BOMB = zlib.compress(bytes(40_000_000), 9)
NAN_F32 = struct.pack("<3f", 1.0, float("nan"), 2.0)
INF_F16 = struct.pack("<3e", 1.0, float("-inf"), 2.0)
NAN_BF16 = bytes.fromhex("803fc07f0040")


NAMES = [
    Attack("a path up the tree", lists("../../.bashrc"), 0, LEFT_OUT),
    Attack("an absolute path", lists("/etc/cron.d/lorry"), 0, LEFT_OUT),
    Attack("a path that begins well and climbs", lists(f"jobs/{JOB}/out/../../../../../../.bashrc.safetensors"), 12, OURS_NOT),
    Attack("a folder of ours, then up", lists(f"jobs/{JOB}/out/checkpoints/../../../../x.safetensors"), 12, OURS_NOT),
    Attack("backslashes", lists(f"jobs\\{JOB}\\out\\..\\..\\x.safetensors"), 0, LEFT_OUT),
    Attack("a drive letter", lists("C:/x.safetensors"), 0, LEFT_OUT),
    Attack("a device of Windows", lists(f"jobs/{JOB}/out/checkpoints/NUL.safetensors"), 12, OURS_NOT),
    Attack("a hidden file", lists(f"jobs/{JOB}/out/.profile.safetensors"), 12, OURS_NOT),
    Attack("an option as a name", lists(f"jobs/{JOB}/out/-rf.safetensors"), 12, OURS_NOT),
    Attack("a file of another job", lists("jobs/other/out/x.safetensors", job="other"), 0, "finished adapter is home"),
    Attack("a file of a job below another", lists("jobs/other/out/x.safetensors"), 0, "finished adapter is home"),
    Attack("a folder too deep", lists(f"jobs/{JOB}/out/checkpoints/a/b/c/x.safetensors"), 12, OURS_NOT),
    Attack("a pickle's ending", lists(f"jobs/{JOB}/out/lisa.pt"), 12, OURS_NOT),
    Attack("a script's ending", lists(f"jobs/{JOB}/out/run.sh", role="sample"), 12, OURS_NOT),
    Attack("a line break in a name", lists(f"jobs/{JOB}/out/x.safetensors\n/etc/passwd"), 0, LEFT_OUT),
    Attack("a zero byte in a name", lists(f"jobs/{JOB}/out/x\0.safetensors"), 0, LEFT_OUT),
    Attack("a name that shows as another", lists(f"jobs/{JOB}/out/\u202esrotsnesefas.x"), 0, LEFT_OUT),
    Attack("a name without end", lists(f"jobs/{JOB}/out/{'x' * 4000}.safetensors"), 0, LEFT_OUT),
    Attack("the ledger's name", lists(f"jobs/{JOB}/out/../../ledger.jsonl"), 12, OURS_NOT),
]  # fmt: skip

SIZES = [
    Attack("ten terabytes that are not there", lists(f"jobs/{JOB}/out/checkpoints/x.safetensors", size=10**13), 12, "nothing of ours is that large"),
    Attack("a size below nothing", lists(f"jobs/{JOB}/out/checkpoints/x.safetensors", size=-1), 0, LEFT_OUT),
    Attack("a size of five thousand digits", says(b'{"kind":"committed","size":' + b"9" * 5000 + b"}"), 0, LEFT_OUT),
    Attack("fewer bytes than listed", lambda host: host.has(ADAPTER, safetensors(2), size=len(safetensors(2)) + 7), 12, DAMAGED, REST),
    Attack("more bytes than listed", lambda host: host.has(ADAPTER, safetensors(2), size=len(safetensors(2)) - 7), 12, DAMAGED, REST),
    Attack("other bytes than listed", lambda host: host.has(ADAPTER, safetensors(2), sha256="0" * 64), 12, DAMAGED, REST),
    Attack("a file without end", made_up(ADAPTER, lambda _, length: bytes(length)), 12, DAMAGED, REST),
    Attack("more at once than was asked for", made_up(ADAPTER, lambda _, length: bytes(min(8 * length, 200_000))), 12, DAMAGED, REST),
    Attack("a file that changes while it is read", changing(), 12, DAMAGED, REST),
    Attack("an adapter that is not there", lambda host: host.files.pop(f"{ROOT}/{ADAPTER}"), 8, "did not come home", REST),
    Attack("more files than any training makes", lambda host: [host.has(f"jobs/{JOB}/out/samples/{n}.png", png()) for n in range(40)], 12,
           "lists more than 30 files", NOTHING, limits={"orchestrator.watch.MOST_FILES": 30}),
]  # fmt: skip

WEIGHTS = [
    Attack("a pickle that runs a command", adapter(pickle.dumps(Poison())), 12, NOT_WHAT, REST),
    Attack("a zip", adapter(b"PK\x03\x04" + bytes(60)), 12, NOT_WHAT, REST),
    Attack("an empty file", adapter(b""), 12, NOT_WHAT, REST),
    Attack("weights with a zip behind them", adapter(safetensors(2) + b"PK\x03\x04" + bytes(60)), 12, "stray bytes", REST),
    Attack("a header that claims the largest number", adapter(b"\xff" * 8 + b"{}"), 12, "no safetensors header", REST),
    Attack("a header of nine megabytes", adapter(table(b"{" + b" " * 9_000_000 + b"}")), 12, "none of these is larger", REST),
    Attack("a header that nests without end", adapter(table(b"[" * 200_000)), 12, "no JSON", REST),
    Attack("a key that stands twice", adapter(table(b'{"w":' + json.dumps(tensor(0, 8)).encode() + b',"w":' + json.dumps(tensor(0, 8)).encode() + b"}", bytes(8))), 12, "a key stands twice", REST),
    Attack("tensors that overlap", adapter(table({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12))), 12, "tensors that overlap", REST),
    Attack("bytes that no tensor owns", adapter(table({"a": tensor(0, 8), "b": tensor(16, 24)}, bytes(24))), 12, "stray bytes", REST),
    Attack("a tensor outside the file", adapter(table({"w": tensor(0, 8)}, b"")), 12, "ends outside the file", REST),
    Attack("a shape whose product overflows", adapter(table({"w": tensor(0, 8, shape=[2**62, 2**62, 2**62])}, bytes(8))), 12, "of the wrong length", REST),
    Attack("a shape of a negative number", adapter(table({"w": tensor(0, 8, shape=[-2])}, bytes(8))), 12, "a malformed entry", REST),
    Attack("True for a number", adapter(table({"w": tensor(False, 8)}, bytes(8))), 12, "a malformed entry", REST),
    Attack("a type that nobody knows", adapter(table({"w": tensor(0, 8, dtype="PICKLE")}, bytes(8))), 12, "a type that is not known", REST),
    Attack("metadata that are no words", adapter(table({"__metadata__": {"a": {"b": []}}, "w": tensor(0, 8)}, bytes(8))), 12, "no table of words", REST),
    Attack("no number in fp32", adapter(numbers("F32", NAN_F32, 4)), 12, "not all finite", REST),
    Attack("an infinite number in fp16", adapter(numbers("F16", INF_F16, 2)), 12, "not all finite", REST),
    Attack("no number in bf16", adapter(numbers("BF16", NAN_BF16, 2)), 12, "not all finite", REST),
]  # fmt: skip

PICTURES = [
    Attack("a picture of ten thousand megapixels", sample(BIG_PNG), 12, "no sample is larger", ALL[:1]),
    Attack("a web page as a picture", sample(HTML.encode()), 12, "it is no PNG", ALL[:1]),
    Attack("a drawing with a script as a picture", sample(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"), 12, "it is no PNG", ALL[:1]),
    Attack("a picture with a web page behind it", sample(png() + HTML.encode()), 12, "something behind it", ALL[:1]),
    Attack("a picture that ends twice", sample(png() + png_chunk(b"IEND", b"")), 12, "something behind it", ALL[:1]),
    Attack("a picture with a sum that is wrong", sample(png()[:-1] + b"!"), 12, "do not add up", ALL[:1]),
    Attack("a picture that needs what nobody knows", sample(png(1, 1, png_chunk(b"EVIL", b"x"))), 12, "a kind that is not known", ALL[:1]),
    Attack("pixels that unfold to forty megabytes", sample(png(1, 1, png_chunk(b"IDAT", BOMB))), 0, "finished adapter is home"),
    Attack("a profile and a text that unfold to forty megabytes", sample(png(1, 1, png_chunk(b"iCCP", b"x\0\0" + BOMB), png_chunk(b"zTXt", b"x\0\0" + BOMB))), 0, "finished adapter is home"),
    Attack("a picture whose text is a web page", sample(png(1, 1, png_chunk(b"tEXt", b"x\0" + HTML.encode()))), 0, "finished adapter is home"),
]  # fmt: skip

TOLD = [
    Attack("a line of five megabytes", says(b"x" * 5_000_000), 0, LEFT_OUT),
    Attack("an event that nests without end", says(b"[" * 60_000), 0, LEFT_OUT),
    Attack("bytes that are no text", says(bytes(range(128, 256)) * 100), 0, LEFT_OUT),
    Attack("a loss that is no number", says(dump_event(Step(at_s=1, job=JOB, step=1, steps=2, epoch=0, loss=0.1, lr=1e-4, samples_per_s=1))[:-2].replace(b"0.1", b"NaN") + b"}"), 0, LEFT_OUT),
    Attack("a loss beyond all numbers", says(b'{"kind":"step","at_s":1,"job":"lisa","step":1,"steps":2,"epoch":0,"loss":1e999,"lr":1,"samples_per_s":1}'), 0, LEFT_OUT),
    Attack("numbers at the edge of all", event(loss=1.7e308, lr=1.7e308, samples_per_s=1e12, epoch=10**300), 0, "receipt"),
    Attack("a step below nothing", event(step=-5, steps=-1), 0, "2 of 2 steps"),
    Attack("a billion billion steps", event(step=10**18, steps=10**18), 0, "2 of 2 steps"),
    Attack("a key that is not in the book", event(cmd="rm -rf ~"), 0, LEFT_OUT),
    Attack("events without end", endless("events.jsonl", dump_event(Warned(at_s=1, job=JOB, message="x" * 500))), 12, "bytes of events", NOTHING,
           limits={"orchestrator.watch.EVENTS_MOST_BYTES": 3_000_000}),
]  # fmt: skip

SOON = {"orchestrator.watch.MUTE_S": 11}
STATUS = [
    Attack("a status without end", endless("status.json", b"[" * 997), 0, MUTE, limits=SOON | {"orchestrator.watch.STATUS_MOST_BYTES": 5000}),
    Attack("a status that nests without end", status(b'{"jobs":' * 20_000), 0, MUTE, limits=SOON),
    Attack("a status of wrong kinds", state(jobs=[[1]], beat="x"), 0, MUTE, limits=SOON),
    Attack("an age beyond all time", state(uptime_s=1e308), 0, "receipt"),
    Attack("an age of a thousand years", state(uptime_s=3e10), 0, "receipt"),
    Attack("an age of five years", state(uptime_s=1.5e8), 5, "the cap of $5.00 is reached", ALL[:1]),
    Attack("a beat of four thousand digits", status(b'{"version":1,"state":"ended","reason":"done","uptime_s":1,"jobs":{},"beat":' + b"9" * 4000 + b"}"), 0, "receipt"),
    Attack("done, and nothing to show for it", without_adapter, 8, "no finished adapter came of", NOTHING),
    Attack("a session that is none", lambda host: host.files.__setitem__(f"{ROOT}/session.json", b"\x80\x04."), 12, "not the one that was sent", NOTHING),
    Attack("the session of another run", lambda host: host.files.__setitem__(f"{ROOT}/session.json", Session(run="other", jobs=(JOB,), lifetime_s=9).model_dump_json().encode()), 12, "of another run", NOTHING),
]  # fmt: skip

TEXT = [
    Attack("escape sequences in every word", told(ESCAPES), 7, "1 of 1 jobs failed", REST, ("logs autumn", "logs autumn --json", "ps --all", "ps --all --json", "report autumn")),
    Attack("a web page in every word", told(HTML), 7, "1 of 1 jobs failed", REST, ("logs autumn",)),
    Attack("thirty thousand letters in every word", told("W" * 30_000), 7, "1 of 1 jobs failed", REST, ("logs autumn",)),
    Attack("half of a letter in every word", says(b'{"kind":"warned","at_s":1,"job":"lisa","message":"\\ud800 \\udfff"}'), 0, "receipt"),
    Attack("escape sequences for last words", both(without_adapter, status(b""), answers("tail", lambda _: (0, ESCAPES.encode(), b""))), 4, "tells nothing", NOTHING, limits=SOON),
    Attack("escape sequences as an error", both(answers("start", lambda _: (1, b"", ESCAPES.encode()))), 4, "ended with 1", NOTHING),
]  # fmt: skip

LINE = [
    Attack("an answer without end", answers("start", flood), 12, "with more than", NOTHING),
    Attack("files that speak nonsense", speaks(packet(2, struct.pack(">I", 3)), os.urandom(40)), 12, "nonsense", NOTHING),
    Attack("files whose packets are four gigabytes long", speaks(packet(2, struct.pack(">I", 3), 0x00FFFFFF) + bytes(100)), 12, "nothing that was asked of it is so long", NOTHING),
    Attack("a file with four billion attributes", numbered(105, struct.pack(">II", 0x80000000, 0xFFFFFFFF)), 12, "nobody asked for", NOTHING),
    Attack("an error that is no text", numbered(101, struct.pack(">II", 4, 4) + b"\xff\xfe\xfd\xfc"), 12, "nonsense", NOTHING),
    Attack("a greeting without end", greets(b"A" * 65536, times=18), 4, "does not answer", NOTHING),
    Attack("a greeting of escape sequences", greets(ESCAPES.encode() + b"\r\n", times=120), 4, "does not answer", NOTHING),
    Attack("a first packet of four gigabytes", greets(b"SSH-2.0-x\r\n\xff\xff\xff\xfc" + bytes(65536)), 4, "does not answer", NOTHING),
    Attack("another host key", lambda host: setattr(host, "has_pinned_key", False), 12, "another host key", NOTHING),
]  # fmt: skip

ATTACKS = (*NAMES, *SIZES, *WEIGHTS, *PICTURES, *TOLD, *STATUS, *TEXT, *LINE)
