"""Ctrl-C, SIGTERM and a closed terminal, as requests that the work looks at when it can.

A signal never cuts a ledger entry in two: the handler only counts. Once: an orderly stop (checkpoint, pull,
destroy). Twice: destroy now. Work that waits calls `check`, which raises when the wait should end.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from . import console
from .errors import Interrupted

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


class Interrupts:
    """How often the user asked to stop."""

    def __init__(self, say: Callable[[str], None] = console.talk) -> None:
        self.count = 0
        self._say = say

    @contextmanager
    def caught(self) -> Iterator[Interrupts]:
        """Count signals instead of dying of them, until the block ends. What is ignored (nohup) stays ignored."""
        before: dict[int, Any] = {}
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._take)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.count += 1
        words = {
            1: "stopping: a checkpoint is made and fetched, then the machine is destroyed (once more: destroy it now)",
            2: "destroying the machine now; what is not at home yet is lost",
        }
        # It may come in the middle of another line, and Python refuses to write two at once; or the terminal has gone.
        with suppress(RuntimeError, OSError, ValueError):
            self._say(words.get(self.count, "the machine is being destroyed; leaving now could leave it billing, so lorry stays"))

    @property
    def wanted(self) -> bool:
        """An orderly stop was asked for."""
        return self.count >= 1

    @property
    def urgent(self) -> bool:
        """The machine is to go now."""
        return self.count >= 2

    def check(self) -> None:
        """Raise `Interrupted` when any stop was asked for: for waits with nothing to save."""
        if self.wanted:
            raise Interrupted("stopped before training began")

    def check_urgent(self) -> None:
        """Raise `Interrupted` when the machine is to go now."""
        if self.urgent:
            raise Interrupted("stopped at once")
