"""Passes that are recorded once for each shape and replayed: the host then launches one graph instead of thousands of kernels.

A pass is a function of named tensors that gives tensors and keeps nothing else. Recorded, it reads copies of its inputs that never
move, and writes outputs that never move; what it reads besides (weights, frozen or trained) must lie where it lay.
Nothing random may happen inside: noise and timesteps are inputs.

A recording is not believed until it has given what the plain pass gives to inputs that it was not made of; where it does not, or
cannot be made, passes go on plainly, and one sentence says so. Knows nothing of models, jobs or files.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
Outputs = tuple[Tensor | None, ...]
Work = Callable[[Inputs], Outputs]
Replay = Callable[[], Outputs]
Result = TypeVar("Result")
Capture = Callable[[Replay], Replay]
"""Takes what is to be recorded, reading and writing in fixed places; gives what does it again."""

WARM = 2
"""Passes of a shape before it is recorded: in the first, kernels are chosen and workspaces made; and a rare shape never comes so far."""
LIMIT = 16
"""Recordings at a time. They share their memory; each keeps inputs and outputs of its own."""
TOLERANCE = 1e-2
"""How far a recording's outputs may be from the plain pass's, over their size: far over bf16's rounding, far below any mistake."""


@dataclass(slots=True)
class Recording:
    """One shape's passes."""

    seen: int = 0
    inputs: dict[str, Tensor] = field(default_factory=dict)
    replay: Replay | None = None
    believed: bool = False

    def again(self, inputs: Inputs) -> Outputs:
        """Replay it on these inputs."""
        assert self.replay is not None
        for name, value in inputs.items():
            self.inputs[name].copy_(value, non_blocking=True)
        return tuple(None if out is None else out.clone() for out in self.replay())


@dataclass(slots=True)
class Passes:
    """How passes are run: plainly, or by recordings."""

    capture: Capture | None = None
    """What records; None: every pass is plain."""
    plain_again: Callable[[], None] | None = None
    """Undoes what was done to make passes faster; called when one breaks."""
    notes: list[str] = field(default_factory=list)
    """What a person should know."""
    _made: OrderedDict[Hashable, Recording] = field(default_factory=OrderedDict)

    def run(self, key: Hashable | None, inputs: Inputs, work: Work) -> Outputs:
        """Do one pass. Passes of one key differ in the values of their inputs alone; None: this one cannot be recorded."""
        if self.capture is None or key is None:
            return self.guarded(lambda: work(inputs))
        one = self._made.setdefault(key, Recording())
        self._made.move_to_end(key)
        one.seen += 1
        if one.replay is not None and one.believed:
            return one.again(inputs)
        outputs = self.guarded(lambda: work(inputs))
        if one.replay is not None:
            one.believed = True
            if not alike(outputs, one.again(inputs)):
                self._give_up("a recording gave other numbers")
        elif one.seen > WARM:
            self._record(one, inputs, work)
        while len(self._made) > LIMIT:
            self._made.popitem(last=False)
        return outputs

    def forget(self) -> None:
        """Weights are about to move: no recording holds any more."""
        self._made.clear()

    def guarded(self, work: Callable[[], Result]) -> Result:
        """Do something with the model; where it breaks for how the model was made faster, do it plainly."""
        try:
            return work()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self.plain_again is None:
                raise
            undo, self.plain_again = self.plain_again, None
            undo()
            result = work()  # what is wrong with the work itself is raised here
            self.notes.append(f"the model's blocks cannot be compiled here ({_reason(error)}); they run as they are.")
            return result

    def _record(self, one: Recording, inputs: Inputs, work: Work) -> None:
        assert self.capture is not None
        one.inputs = {name: value.clone() for name, value in inputs.items()}
        try:
            one.replay = self.capture(lambda: work(one.inputs))
        except Exception as error:  # noqa: BLE001  # whatever it is, the plain pass has just worked
            self._give_up(_reason(error))

    def _give_up(self, why: str) -> None:
        self.capture = None
        self._made.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.notes.append(f"passes cannot be recorded here ({why}); each is run step by step, with the same result.")


def alike(some: Outputs, others: Outputs) -> bool:
    """Whether two passes gave the same, to rounding."""
    return len(some) == len(others) and all(_near(a, b) for a, b in zip(some, others, strict=True))


def _near(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    size = one.float().norm()
    return not bool(torch.isfinite(size)) or bool((one.float() - other.float()).norm() <= TOLERANCE * size)


def _reason(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:200].rstrip(": ")


def on_gpu() -> Capture:
    """Recording by CUDA graphs. All share one pool of memory, since one runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(work: Replay) -> Replay:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            outputs = work()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    return capture


def compile_blocks(blocks: list[torch.nn.Module], backend: str | Callable[..., object] = "inductor") -> Callable[[], None]:
    """Have a model's repeated blocks compiled when they first run; returns what undoes it."""
    for block in blocks:
        block.compile(backend=backend)

    def undo() -> None:
        for block in blocks:
            block._compiled_call_impl = None  # noqa: SLF001  # there is no other way back

    return undo
