"""Checkpoints: what is needed to go on as if nothing had happened, in one safetensors file.

Holds the adapter in fp32 and the optimizer's state as tensors; step, digest, optimizer numbers and loss
scale as JSON in the header. No random state: draws have addresses (`streams`). No pickle. A file is whole
(atomic write) and says so itself (a hash over its tensors), and belongs to one job (the digest).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from .adapters import Adapter
from .base import read_header
from .course import Course
from .errors import BaseModelError, IntegrityError
from .files import Written, write_atomically
from .optimizers import LossScale, Number, Updater, restore, state_of

KEPT = 2
"""Checkpoints that stay on the machine: the newest, and one to fall back on."""

_NAME = re.compile(r"^step(\d{6,})\.safetensors$")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint read back."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Number]
    scale: float
    good: int
    company: dict[str, int]
    """Jobs that were saved in the same moment, itself among them, and their steps."""
    cut: int
    """Which such moment of the group this was, from 1."""
    best: tuple[int, float] | None
    course: Course = field(default_factory=Course)

    def apply(self, adapter: Adapter, optimizer: Updater, scaler: LossScale) -> None:
        """Make adapter, optimizer and loss scale what they were."""
        with torch.no_grad():
            for part, flat in adapter.flat.items():
                flat.copy_(self.tensors[f"adapter.{part}"])
                if f"mean.{part}" in self.tensors:
                    adapter.mean[part] = self.tensors[f"mean.{part}"].to(flat.device, copy=True)
        states = {name.removeprefix("optimizer."): t for name, t in self.tensors.items() if name.startswith("optimizer.")}
        restore(optimizer, states, self.numbers)
        scaler.value, scaler.good = self.scale, self.good


def digest_of(facts: Mapping[str, Any]) -> str:
    """What a checkpoint must agree on with the job that resumes it."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class State:
    """What a checkpoint holds."""

    step: int
    digest: str
    adapter: Adapter
    optimizer: Updater
    scaler: LossScale
    company: Mapping[str, int] = field(default_factory=dict)
    cut: int = 1
    best: tuple[int, float] | None = None
    """Step and value of the lowest held-out loss so far."""
    course: Course = field(default_factory=Course)


def save(folder: Path, state: State) -> Written:
    """Write a checkpoint and remove those beyond the last `KEPT`; the best one stays."""
    states, numbers = state_of(state.optimizer)
    tensors = {f"adapter.{part}": flat.detach() for part, flat in state.adapter.flat.items()}
    tensors |= {f"mean.{part}": mean for part, mean in state.adapter.mean.items()}
    tensors |= {f"optimizer.{name}": value for name, value in states.items()}
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    tensors = {name: value.clone() for name, value in tensors.items()}  # 8-bit states share their maps; a file shares nothing
    facts = {
        "version": 1,
        "step": state.step,
        "digest": state.digest,
        "numbers": numbers,
        "scale": state.scaler.value,
        "good": state.scaler.good,
        "company": dict(state.company),
        "cut": state.cut,
        "best": state.best,
        "course": state.course.facts(),
        "content": _hash(tensors),
    }
    written = write_atomically(_path(folder, state.step), save_tensors(tensors, {"lorry": json.dumps(facts)}))
    for old in _newest_first(folder)[KEPT:]:
        if state.best is None or old != _path(folder, state.best[0]):
            old.unlink(missing_ok=True)
    return written


def find(folder: Path, digest: str, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint of this job."""
    return next(whole(folder, digest, warn), None)


def whole(folder: Path, digest: str, warn: Callable[[str], None]) -> Iterator[Checkpoint]:
    """Checkpoints of this job, newest first; torn ones are skipped with a word, those of another job refused."""
    for path in _newest_first(folder):
        try:
            found = load(path, digest)
        except IntegrityError as error:
            if error.code == "LRY-CKPT-DIGEST":
                raise
            warn(f"{error.message} The one before is used.")
        else:
            yield found


def common(found: Sequence[Sequence[Checkpoint]], names: Sequence[str]) -> list[Checkpoint | None]:
    """For jobs that train together, each one's checkpoint of the newest moment at which all of them were saved.

    Jobs go on from one moment as they were, so that they meet in the passes in which they would have met. A group that
    was killed within its first such moment begins anew. Where none is left for another reason (a job joined, a file was
    lost), each goes on from its newest: equal to rounding, not to the bit.
    """
    for company in (one.company for one in found[0]):
        if set(names) <= company.keys():
            moment = [_at(each, company, name) for name, each in zip(names, found, strict=True)]
            if all(one is not None or company[name] == 0 for name, one in zip(names, moment, strict=True)):
                return moment
    if all(one.cut == 1 and set(names) <= one.company.keys() for each in found for one in each):
        return [None for _ in names]
    return [each[0] if each else None for each in found]


def _at(each: Sequence[Checkpoint], company: Mapping[str, int], name: str) -> Checkpoint | None:
    return next((one for one in each if one.company == company and one.step == company[name]), None)


def load(path: Path, digest: str) -> Checkpoint:
    """Read one checkpoint, whole and of this job or not at all."""
    try:
        read_header(path)
        raw = path.read_bytes()
        facts = json.loads(_metadata(raw)["lorry"])
        tensors = load_tensors(raw)
        whole = facts["version"] == 1 and facts["content"] == _hash(tensors)
        step, theirs = int(facts["step"]), str(facts["digest"])
        numbers, scale, good = dict(facts["numbers"]), float(facts["scale"]), int(facts["good"])
        cut = int(facts.get("cut", 0))
        best = facts.get("best") and (int(facts["best"][0]), float(facts["best"][1]))
        company = {str(name): int(at) for name, at in facts.get("company", {}).items()}
        course = Course.of(facts["course"])
    except (BaseModelError, SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _torn(path) from error
    if not whole:
        raise _torn(path)
    if theirs != digest:
        hint = "Give the job another name, or move its out/checkpoints/ away to start anew."
        raise IntegrityError("LRY-CKPT-DIGEST", f"checkpoint {path.name} was made with other options, pictures or another base.", hint)
    return Checkpoint(path, step, tensors, numbers, scale, good, company, cut, best, course)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step{step:06d}.safetensors"


def _torn(path: Path) -> IntegrityError:
    return IntegrityError("LRY-CKPT-TORN", f"checkpoint {path.name} is incomplete or damaged.", "Remove it.")


def _metadata(raw: bytes) -> dict[str, str]:
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return dict(header["__metadata__"])


def _hash(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        sha.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _newest_first(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := _NAME.match(path.name))]
    return [path for _, path in sorted(found, reverse=True)]
