"""A machine's rsync that does its worst: peer.py ATTACK FOLDER RSYNC ARG...     started in place of RSYNC, by the machine's own sshd

It speaks protocol 29, the last one that needs no digests to be agreed on. What it heard is in FOLDER/heard, how much it could say in
FOLDER/said, and FOLDER/turns holds a line for each time that it was started.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ESCAPES = b"\x1b]0;owned\x07\x1b]52;c;cm0gLXJm\x07\x1b[2J\x9b31m\x08\x7f\xe2\x80\xae"
TRANSFER, NAMED = 1 << 15, 1 << 12
DATA, INFO = 0, 2
LISTED = 1
"""The first file of the sender's list; before it comes the folder that they are in."""
WHOLE = struct.pack("<iiii", 0, 0, 0, 0)
"""Sums of a file of which nothing is there yet."""
MOST_HEARD_BYTES, MOST_SAID_BYTES = 4_000_000, 64_000_000


class Peer:
    """One start of it."""

    def __init__(self, folder: Path, rsync: str, arguments: list[str]) -> None:
        self.folder, self.rsync, self.arguments = folder, rsync, arguments
        with (folder / "turns").open("a+") as turns:
            turns.write("x\n")
            turns.seek(0)
            self.turn = len(turns.readlines())

    # -- the protocol ----------------------------------------------------------------------------------

    def greet(self, version: int = 29) -> None:
        """Past the arguments, which come ended by zero bytes, and the versions."""
        arguments = b""
        while not arguments.endswith(b"\0\0"):
            arguments += self.hear(1)
        os.write(1, struct.pack("<i", version))
        self.hear(4)
        os.write(1, struct.pack("<i", 7))

    def hear(self, most: int) -> bytes:
        heard = os.read(0, most)
        if not heard:
            sys.exit(0)
        with (self.folder / "heard").open("ab") as file:
            if file.tell() < MOST_HEARD_BYTES:
                file.write(heard)
        return heard

    def listen(self) -> None:
        while True:
            self.hear(65536)

    def say(self, kind: int, data: bytes) -> None:
        os.write(1, struct.pack("<I", (7 + kind) << 24 | len(data)) + data)

    def ask(self, index: int, flags: int = TRANSFER, more: bytes = WHOLE) -> None:
        """For a file of the sender's list."""
        self.greet()
        self.say(DATA, struct.pack("<iH", index, flags) + more)
        self.listen()

    def receive(self) -> int:
        """As an honest rsync does."""
        return subprocess.run([self.rsync, *self.arguments], check=False).returncode

    def stored(self) -> list[Path]:
        return [path for path in Path("lorry").rglob("data/*") if path.is_file()]

    # -- what it does ----------------------------------------------------------------------------------

    def forgets(self) -> None:
        self.receive()
        for path in self.stored():
            path.unlink()

    def alters(self) -> None:
        self.receive()
        for path in self.stored():
            before = path.stat()
            path.write_bytes(path.read_bytes()[::-1])
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def floods(self) -> None:
        """Until nobody takes it."""
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        said, block = 0, (ESCAPES * 3000)[:65536]
        try:
            while said < MOST_SAID_BYTES:
                said += os.write(2, block)
        except OSError:
            pass
        (self.folder / "said").write_text(str(said))

    def prints(self, *texts: bytes, times: int = 1) -> None:
        """Has the sender print them among its own lines."""
        self.greet()
        for text in texts * times:
            self.say(INFO, text)
        time.sleep(0.3)

    def dies(self) -> None:
        self.greet()
        self.say(DATA, struct.pack("<iH", LISTED, TRANSFER) + WHOLE)
        self.hear(65536)
        os.kill(os.getpid(), signal.SIGKILL)

    def raves(self) -> int:
        os.write(2, b"rsync: [Receiver] mkdir " + ESCAPES + b" failed\r\nrm: forged line\n")
        return 23


ATTACKS: dict[str, Callable[[Peer], object]] = {
    "ends well at once, with nothing stored": lambda peer: None,
    "takes everything and throws it away": Peer.forgets,
    "stores other bytes of the same size and date": Peer.alters,
    "stores other bytes the first time": lambda peer: peer.alters() if peer.turn == 1 else peer.receive(),
    "speaks nonsense": lambda peer: os.write(1, bytes(range(255, 0, -1)) * 40) and peer.listen(),
    "speaks nonsense after the greeting": lambda peer: peer.greet() or (os.write(1, bytes(range(255, 0, -1)) * 40) and peer.listen()),  # type: ignore[func-returns-value]
    "comes from the future": lambda peer: peer.greet(99),
    "claims to be of 1996": lambda peer: peer.greet(5),
    "claims a version below nothing": lambda peer: peer.greet(-(2**31)),
    "says nothing at all": Peer.listen,
    "says nothing after the greeting": lambda peer: peer.greet() or peer.listen(),  # type: ignore[func-returns-value]
    "floods the line for errors": Peer.floods,
    "fails in escape sequences": Peer.raves,
    "asks for the file that is listed": lambda peer: peer.ask(LISTED),
    "asks for a folder as a file": lambda peer: peer.ask(LISTED - 1),
    "asks for a file beyond the list": lambda peer: peer.ask(5000),
    "asks for a file before the list": lambda peer: peer.ask(-101),
    "asks under a name of its own": lambda peer: peer.ask(LISTED, TRANSFER | NAMED, b"\x10../../canary.txt" + WHOLE),
    "has two billion sums": lambda peer: peer.ask(LISTED, TRANSFER, struct.pack("<iiii", 2**31 - 1, 700, 16, 0)),
    "has blocks of a negative length": lambda peer: peer.ask(LISTED, TRANSFER, struct.pack("<iiii", 1, -700, 16, 0)),
    "offers files of its own": lambda peer: peer.greet() or peer.say(DATA, b"\x19\x0c../.ssh/evil" + bytes(40)) or peer.listen(),  # type: ignore[func-returns-value]
    "dies while it is sent to": Peer.dies,
    "prints a progress of five thousand digits": lambda peer: peer.prints(b"9" * 3500, b"9" * 3500 + b" 5%\n", b"," * 30 + b" 5%\n"),
    "prints a progress of a billion gigabytes": lambda peer: peer.prints(b"  999,999,999,999,999,999  99%\n") if peer.turn == 1 else None,
    "prints a line without end": lambda peer: peer.prints(b"7" * 3500, times=600),
    "does not run": lambda peer: peer.raves(),
}  # fmt: skip


def main(attack: str, folder: str, rsync: str, *arguments: str) -> int:
    if "--version" in arguments:
        return 127 if attack == "does not run" else 0
    code = ATTACKS[attack](Peer(Path(folder), shutil.which(rsync) or rsync, list(arguments)))
    return code if type(code) is int and code == 23 else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
