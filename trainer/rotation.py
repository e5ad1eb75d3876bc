"""PURE. How often an epoch shows each picture when there are regularisation pictures.

sd-scripts walks through the regularisation pictures, each counting its repeats, until there are as many as training pictures with
theirs; where they do not suffice it goes round again, each counting one more. An epoch is then twice as long. Its walk begins at the
first picture in every epoch, so that of a large folder the rest is never seen. Here the walk goes on where the last one ended:
the first epoch, and with it the number of steps, is sd-scripts', and over the epochs all of them are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


def walk(repeats: Sequence[int], wanted: int, start: int = 0) -> tuple[list[int], int]:
    """How often each regularisation picture is shown to make up `wanted`, and where the next walk begins."""
    shown = [0] * len(repeats)
    total, place, first_round = 0, start, len(repeats)
    while total < wanted and repeats:
        more = repeats[place] if first_round > 0 else 1
        shown[place] += more
        total += more
        first_round -= 1
        place = (place + 1) % len(repeats)
    return shown, place


@dataclass(frozen=True, slots=True)
class Rotation:
    """The shows of every item in every epoch: pictures of training first, then those of regularisation."""

    trained: Sequence[int]
    """Repeats of each training picture."""
    priors: Sequence[int] = ()
    """Repeats of each regularisation picture, as its folder says."""
    resolutions: int = 1
    """How many times each picture is an item: once for each resolution."""
    _starts: list[int] = field(default_factory=lambda: [0], init=False, repr=False, compare=False)

    @property
    def steady(self) -> bool:
        """Whether all epochs are alike."""
        return not self.priors

    def repeats(self, epoch: int) -> list[int]:
        """Of every item in this epoch, from 0."""
        wanted = sum(self.trained)
        while len(self._starts) <= epoch and self.priors:
            self._starts.append(walk(self.priors, wanted, self._starts[-1])[1])
        priors = walk(self.priors, wanted, self._starts[epoch])[0] if self.priors else []
        return list(self.trained) * self.resolutions + priors * self.resolutions
