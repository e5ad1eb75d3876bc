"""Ctrl-C, SIGTERM and a closed terminal, as requests that the work looks at when it can.

A signal never cuts a ledger entry in two: the handler only counts. Once: an orderly stop (checkpoint, pull,
destroy). Twice: destroy now. Work that waits calls `check`, which raises when the wait should end.

A terminal that closes asks for nothing where the run can be watched and ended from any other: the window was shut, a line
dropped, and the training goes on. Work that nothing but its terminal can end is stopped with it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from orchestrator import console
from orchestrator.errors import Interrupted

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
HANGUP = "SIGHUP"

RENTED = (
    "stopping: what has been trained so far is saved and fetched, then every machine of this run is destroyed (once more: at once)",
    "ending now: every machine of this run is destroyed; what is not at home yet is lost",
    "lorry stays until the machine is seen to be gone: to leave now could leave it billing",
)
"""What is said to the first, the second and every later request. It must be true in every phase, also before there is a machine."""
HERE = ("stopping: a checkpoint is made (once more: end at once)", "ending at once, without a checkpoint", "ending")
"""The same for training on this computer."""
HUNG_UP = "the terminal has closed; the run goes on without it: `lorry ps` lists it, `lorry stop` ends it"


class Interrupts:
    """How often the user asked to stop."""

    def __init__(
        self, say: Callable[[str], None] = console.talk, *, words: tuple[str, str, str] = RENTED, outlives_terminal: bool = False
    ) -> None:
        """`outlives_terminal`: a closed terminal is no request to stop."""
        self.count = 0
        self._say, self._words, self._outlives_terminal = say, words, outlives_terminal

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
        del frame
        if self._outlives_terminal and number == getattr(signal, HANGUP, None):
            words = HUNG_UP
        else:
            self.count += 1
            words = self._words[min(self.count, len(self._words)) - 1]
        # It may come in the middle of another line, and Python refuses to write two at once; or the terminal has gone.
        with suppress(RuntimeError, OSError, ValueError):
            self._say(words)

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
