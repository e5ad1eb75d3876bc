"""What a supervisor and its trainer do on a machine: commit checkpoints, write events, end. By the clock alone: waiting costs nothing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .machine import Machine

NEVER_S = 1e17
STEPS = 1000
SAVE_EVERY = 400
KEPT = 2
"""Checkpoints that stay on the machine."""
SAVE_S = 10.0
"""A stop, or the end of its lifetime, costs a step and a save."""
JOB = "one"
HEADER = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A file that is whole on a machine's disk."""

    at_s: float
    machine: str
    path: str
    """Below the session's folder."""
    step: int
    final: bool
    data: bytes

    @property
    def home(self) -> str:
        """Where it belongs at home, below the run's folder."""
        return self.path.replace("/out/", "/")


@lru_cache(maxsize=4096)
def _file(machine: int, step: int, final: bool) -> tuple[bytes, str]:
    """A small safetensors file that no other machine makes, and its hash."""
    data = len(HEADER).to_bytes(8, "little") + HEADER + machine.to_bytes(4, "little") + (step * 2 + final).to_bytes(4, "little")
    return data, hashlib.sha256(data).hexdigest()


class Work:
    """One session."""

    def __init__(self, machine: Machine, lifetime_s: float, step: int) -> None:
        rng = machine.world.rng
        self.machine, self.step = machine, step
        self.begun_s = machine.world.time_s
        self.step_s = rng.choice((0.03, 0.6, 0.6, 30.0))
        self.ends_s = self.begun_s + lifetime_s
        """Its lifetime; a stop brings it nearer."""
        self.reason = "deadline"
        self.hangs = machine.world.weather.poor_machines and rng.random() < 0.15
        """It trains on, whatever it was told."""
        self.dies_s = self.begun_s + rng.expovariate(1 / 500) if machine.world.weather.poor_machines and rng.random() < 0.15 else NEVER_S
        self.is_dead = False
        self.ended_s: float | None = None
        self.files: dict[str, bytes] = {}
        self.events = b""
        self._next_s = 0.0
        self._draw_next(self.begun_s)
        machine.world.at(self.ends_s)
        machine.world.at(self.dies_s)

    def _draw_next(self, now: float) -> None:
        if self.step >= STEPS:  # it hangs: all is done, and it does not end
            self._next_s = NEVER_S
            return
        self._next_s = now + self.step_s * (SAVE_EVERY - self.step % SAVE_EVERY)
        self.machine.world.at(self._next_s)

    def go_on(self, until_s: float) -> None:
        """Everything up to this moment."""
        while self.ended_s is None and not self.is_dead:
            at = min(self._next_s, self.dies_s, NEVER_S if self.hangs else self.ends_s)
            if at > until_s:
                return
            if at == self.dies_s:
                self.is_dead = True
                self.machine.world.hit("supervisor dies", f"the supervisor of {self.machine.id} is dead")
            elif at == self._next_s:
                self.step += SAVE_EVERY - self.step % SAVE_EVERY
                if self.step >= STEPS and not self.hangs:
                    self._end(at, "done")
                else:
                    self._commit(at, final=False)
                    self._draw_next(at)
            else:
                self.step = max(self.step, self.step + int((at - self._next_s) / self.step_s) + SAVE_EVERY - self.step % SAVE_EVERY - 1)
                self._end(at, self.reason)

    def _commit(self, at: float, *, final: bool) -> None:
        path = f"jobs/{JOB}/out/{JOB}.safetensors" if final else f"jobs/{JOB}/out/checkpoints/{JOB}-{self.step:06d}.safetensors"
        data, sha256 = _file(self.machine.number, self.step, final)
        self.files[path] = data
        if not final:
            for old in sorted(name for name in self.files if "/checkpoints/" in name)[:-KEPT]:
                del self.files[old]
        event = {
            "kind": "committed",
            "at_s": round(at - self.begun_s, 3),
            "job": JOB,
            "path": path,
            "role": "adapter" if final else "checkpoint",
        }
        self._tell(event | {"step": self.step, "size": len(data), "sha256": sha256, "final": final})
        self.machine.world.tell(f"{self.machine.id} commits {path.rpartition('/')[2]}")
        self.machine.world.commits.append(Commit(at_s=at, machine=self.machine.id, path=path, step=self.step, final=final, data=data))

    def _tell(self, event: dict[str, object]) -> None:
        self.events += json.dumps(event).encode() + b"\n"

    def _end(self, at: float, reason: str) -> None:
        self._commit(at, final=reason == "done")
        state = "done" if reason == "done" else "stopped"
        self._tell({"kind": "ended", "at_s": round(at - self.begun_s, 3), "job": JOB, "state": state, "step": self.step})
        self.ended_s, self.reason = at, reason
        self.machine.world.tell(f"{self.machine.id} has ended its work: {reason}")
        self.machine.guard_hears(None, ended_at_s=at)

    # -- what a client can do ---------------------------------------------------------------------------

    def status(self) -> bytes:
        """The heartbeat, as it lies on the machine's disk."""
        now = self.machine.world.time_s if not self.is_dead else self.dies_s
        state, reason = ("ended", self.reason) if self.ended_s is not None else ("running", "")
        return f'{{"version":1,"state":"{state}","reason":"{reason}","beat":{int(now)},"uptime_s":1,"jobs":{{}}}}'.encode()

    def hear(self, lifetime_s: float) -> None:
        """Another lifetime than before; it may be over."""
        if self.reason == "deadline":
            self.ends_s = max(self.machine.world.time_s + SAVE_S, self.begun_s + lifetime_s)
            self.machine.world.at(self.ends_s)

    def stop(self) -> None:
        """Asked for a checkpoint and an orderly end."""
        now = self.machine.world.time_s
        if now + SAVE_S < self.ends_s:
            self.ends_s, self.reason = now + SAVE_S, "stopped"
            self.machine.world.at(self.ends_s)

    def start(self) -> bytes:
        """The supervisor's answer to being started; a dead one goes on from its last checkpoint."""
        if not self.is_dead:
            return b'{"pid": 1, "running": true}' if self.ended_s is None else b'{"ended": true}'
        self.is_dead, self.dies_s = False, NEVER_S
        self.step -= self.step % SAVE_EVERY
        self._draw_next(self.machine.world.time_s)
        return b'{"pid": 2}'
