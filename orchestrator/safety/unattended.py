"""What every command looks at first and last: leases that may bill, and whether anybody looks after them.

A run is *under way* while a lease of it may bill and a living lorry, or its keeper, looks after it. It is *lost* when nobody does: then it
gets a keeper, which brings it to its end. It is *in trouble* when lorry has closed it and could not see its machine go: then it is said at
every command, whoever goes on trying. Lost or in trouble after a command means exit code 10, whatever the command itself came to.

Reads no book again that was seen to hold no open lease: `settled.json` remembers the size and date of such a ledger, and a ledger that has
been appended to has another size. It is a cache: without it everything is read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import console
from orchestrator.errors import MayStillBill
from orchestrator.home import Home, RunFolder, write_atomically
from orchestrator.ledger import Book

from . import keeper
from .reconcile import banner

SETTLED = "settled.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """A run with a lease that may bill."""

    folder: RunFolder
    book: Book | None
    """None: it cannot be read, and so may hold anything."""

    @property
    def is_in_trouble(self) -> bool:
        """Whether lorry ended this run and could not see its machine go, or cannot even read its book."""
        return self.book is None or self.book.closed is not None

    @property
    def is_looked_after(self) -> bool:
        """Whether a living process will bring it to its end."""
        return self.folder.is_driven or self.folder.is_kept


def open_runs(home: Home) -> list[OpenRun]:
    """Every run with a lease that may bill. A book is read again only when it has been written to since it held none."""
    known, settled, found = _settled(home), {}, []
    try:
        folders = sorted((home.path / "runs").iterdir())
    except OSError:
        return []
    for path in folders:
        ledger = path / "ledger.jsonl"
        try:
            seen = ledger.stat()
            mark = [seen.st_size, seen.st_mtime_ns]  # before it is read: what is written meanwhile makes another size
            if known.get(path.name) == mark or not (book := RunFolder(path).book()).open_attempts:
                settled[path.name] = mark
                continue
        except (FileNotFoundError, NotADirectoryError):
            continue  # nothing was ever begun
        except OSError:
            found.append(OpenRun(folder=RunFolder(path), book=None))
            continue
        found.append(OpenRun(folder=RunFolder(path), book=book))
    if settled != known:
        with contextlib.suppress(OSError):  # the next command reads them again
            write_atomically(home.path / SETTLED, json.dumps(settled).encode())
    return found


def _settled(home: Home) -> dict[str, Any]:
    try:
        known = json.loads((home.path / SETTLED).read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


class Watch:
    """One command's look at the runs of this computer: `first` before it, `last` after it."""

    def __init__(self, home: Home, *, as_json: bool, take_up: Callable[[RunFolder], bool] = keeper.take_up) -> None:
        self._home, self._as_json, self._take_up = home, as_json, take_up
        self._said: set[str] = set()

    def first(self, *, named: Sequence[str] = (), reaping: bool = False) -> None:
        """Say what is lost or in trouble, and have it looked after.

        `named`: what the command itself acts on, which is its answer to it. `reaping`: the command ends every machine, so none is taken up.
        """
        for one in open_runs(self._home):
            if any(one.folder.id.startswith(name) for name in named):
                continue
            looked_after = one.is_looked_after
            if looked_after and not one.is_in_trouble:
                continue
            self._say(one)
            if one.book is None or reaping:
                continue
            if looked_after or (keeper.is_wanted() and self._take_up(one.folder)):
                doing = "goes on trying to end it" if one.is_in_trouble else "takes the run up"
                self._tell(f"  lorry {doing} in the background; watch it: lorry attach {one.folder.id}")
            else:
                self._tell(f"  nobody looks after it: lorry attach {one.folder.id} goes on, lorry down {one.folder.id} ends it")

    def last(self, code: int) -> int:
        """The exit code: 10 when something may bill and nobody looks after it, or lorry could not end it; else the command's own."""
        left = [one for one in open_runs(self._home) if one.is_in_trouble or not one.is_looked_after]
        if not left:
            return code
        for one in left:
            if one.folder.id not in self._said and code != MayStillBill.exit_code:
                self._say(one)
        return MayStillBill.exit_code

    def _say(self, one: OpenRun) -> None:
        self._said.add(one.folder.id)
        if one.book is None:
            self._tell(f"the book of run {one.folder.id} cannot be read, so it may be billing: look at {one.folder.path}")
            return
        for attempt in one.book.open_attempts:
            url, call = _of_the_cloud(attempt.provider)
            for line in banner(one.folder.id, attempt, console_url=url, self_destroy=call):
                self._tell(line)

    def _tell(self, text: str) -> None:
        if self._as_json:
            console.json_line({"type": "may_bill", "text": console.plain(text.strip())})
        else:
            console.talk(console.plain(text) if text.startswith(" ") else f"warning: {console.plain(text)}")


def _of_the_cloud(name: str) -> tuple[str, Any]:
    """Where its machines are seen, and how one is ended; nothing of a cloud that cannot be set up here."""
    import providers

    try:
        cloud = providers.load(name)
    except Exception:  # noqa: BLE001  a banner without its address is better than none
        return "", None
    return cloud.console_url, cloud.self_destroy
