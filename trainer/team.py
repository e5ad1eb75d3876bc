"""Several processes, a GPU each, that train one job: who they are, what they add up, what they agree on.

Every process takes its share of each step's samples; gradients are added up before the update, which all make alike. So a step sees
what it would see on one GPU, whatever their number, and steps, epochs and schedules mean the same. The first process alone writes
and speaks. Through accelerate, which knows how processes find each other; nothing of jobs, models or files is known here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

PATIENCE = timedelta(hours=2)
"""The others wait while the first one draws and saves."""


@dataclass(slots=True)
class Team:
    """This process among those of its job."""

    rank: int
    size: int
    device: torch.device
    asked: Callable[[], bool]
    """Whether this process was asked to stop."""
    stopping: bool = False
    """Whether all of them stop: as it was agreed when they last met."""

    @property
    def first(self) -> bool:
        """Whether it is this process that writes and speaks."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of every process's tensor."""
        from accelerate.utils import reduce

        summed: Tensor = reduce(tensor, reduction="sum")
        return summed

    def settle(self) -> None:
        """Agree on whether to stop: all do when one was asked to."""
        self.stopping |= bool(self.total(torch.tensor(float(self.asked()), device=self.device)))

    def agree(self, values: Sequence[float]) -> list[float]:
        """The first process's values."""
        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        agreed: list[float] = self.total(own if self.first else torch.zeros_like(own)).tolist()
        return agreed

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process goes first, the others find done what it has done."""
        if not self.first:
            self._wait()
        try:
            yield
        finally:
            if self.first:
                self._wait()

    def _wait(self) -> None:
        self.total(torch.zeros((), device=self.device))


def join(asked: Callable[[], bool]) -> Team | None:
    """Meet the other processes; None where there are none. Who and where they are stands in the environment, as torchrun writes it."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return Team(state.process_index, state.num_processes, state.device, asked)
