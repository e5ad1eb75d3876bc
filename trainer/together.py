"""Trains jobs: one alone, or several at once on one resident base.

Jobs of one base, precision and kind of adapter form a group. A group shares the frozen base and, where shapes
agree, its passes; every job keeps its own options, draws, optimizer, checkpoints, files and end. What one job
does (a NaN, bad data, an exception, a stop, a good end) ends that job alone. Jobs that train the text encoder
are groups of one: they take their turn on the same base.

Together a job gets what it gets alone, to rounding: a pass of four adds up in another order than a pass of
one. Which jobs share a pass depends on nothing but their steps since the last *cut*, the moment at which all of
them are saved. A group that was killed goes on from its last cut with the same passes, hence with the same bits.
Cuts are when any job is due to be saved, and when a job has come to its end, before it is said, so that a later
life need not know who was there. A job that arrives while others train joins them in a cut, as one of those who are saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from traceback import print_exception
from typing import Any, Literal

import torch

from . import checkpoint, fallback, jobs, keeping, loop, parts, saying, turns
from .course import Footing
from .errors import StopRequested, TrainerError
from .jobs import Place, Run
from .protocol import Ended, JobSpec

WIDTH = 16
"""Jobs in one pass at most: where the rooflines of the largest cards flatten for the smallest model. Worked out, not measured."""
MISHAPS = 3
"""Joint passes that may break before jobs go on one at a time."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a job ended."""

    name: str
    state: Literal["done", "stopped", "failed"]
    step: int
    loss: float | None = None
    adapter: Path | None = None
    sha256: str = ""
    code: str = ""
    message: str = ""
    exit_code: int = 0


def run_job(job: JobSpec, place: Place) -> Result:
    """Train one job to its end, whatever that is: this returns, and says it in an `ended` event."""
    return run_jobs([job], place)[0]


def run_jobs(specs: Sequence[JobSpec], place: Place, *, together: bool = True, width: int = WIDTH) -> list[Result]:
    """Train jobs to their ends, those that fit one pass together, and those that arrive meanwhile.

    A stop leaves later groups out of the results. `width`: jobs in one pass at most.
    """
    results: list[Result] = []
    waiting = list(specs)
    while waiting and not (results and place.stopping()):
        group, *_ = groups(waiting, place) if together else [[spec] for spec in waiting]
        crew = Crew(place, kind=_kind(group[0], place) if together else (), width=width)
        crew.train(group)
        results += crew.ended.values()
        waiting = [spec for spec in waiting if spec not in group] + crew.left + list(place.arriving())
    return results


def groups(specs: Sequence[JobSpec], place: Place) -> list[list[JobSpec]]:
    """Jobs that can share passes, in the order of their first ones."""
    found: dict[tuple[object, ...], list[JobSpec]] = {}
    for number, spec in enumerate(specs):
        found.setdefault(_kind(spec, place) or (number,), []).append(spec)
    return list(found.values())


def _kind(spec: JobSpec, place: Place) -> tuple[object, ...]:
    """What jobs of one group agree in; empty for a job that trains by itself."""
    try:
        rates = parts.rates_of(spec)
        foundation = jobs.foundation_of(spec, place, jobs.precision(spec, place.device)[0])
    except (TrainerError, OSError):
        return ()  # it will end with this error in its own turn
    if parts.trains_text(rates, spec):
        return ()
    return foundation, tuple(rates), spec.layers, spec.gradient_checkpointing, spec.offload, spec.speed


@dataclass(slots=True)
class Crew:
    """The jobs of one group while they train."""

    place: Place
    kind: tuple[object, ...] = ()
    """What they agree in; a job that arrives and agrees too may join. Empty: nobody may."""
    width: int = WIDTH
    runs: dict[str, Run] = field(default_factory=dict)
    """Jobs under way, in the order of the session."""
    ended: dict[str, Result] = field(default_factory=dict)
    left: list[JobSpec] = field(default_factory=list)
    """Jobs that arrived and are for another group."""
    _coming: list[JobSpec] = field(default_factory=list)
    """Jobs that arrived and join at the next cut."""
    _waited: dict[str, int] = field(default_factory=dict)
    _cut_due: bool = False
    _cuts: int = 0
    _suspects: set[str] = field(default_factory=set)
    """Jobs of a pass that broke: each goes alone once, so that the one who broke it is found."""
    _mishaps: int = 0

    def train(self, group: Sequence[JobSpec]) -> None:
        """All of it: every job that was begun has ended."""
        self._admit(group)
        try:
            while self.runs:
                self._pass()
        finally:
            self.left = [*self._coming, *self.left]
            for run in self.runs.values():  # only where something broke that no job is to blame for
                run.model.prepare([], checkpointing=False)

    # --- coming -------------------------------------------------------------------------------------

    def _hear_who_arrives(self) -> None:
        """Jobs that were sent since the last pass: those of this kind join at the next cut."""
        for spec in self.place.arriving():
            fits = bool(self.kind) and _kind(spec, self.place) == self.kind
            (self._coming if fits else self.left).append(spec)
            self._cut_due |= fits

    def _admit(self, specs: Sequence[JobSpec]) -> None:
        """Prepare jobs, and let them begin beside those that are under way."""
        before = list(self.runs.values())
        if before:  # while pictures and texts are encoded, the device belongs to the encoders
            before[0].model.prepare([], checkpointing=False)
        for spec in specs:
            if self.place.stopping() and self.ended | self.runs:
                break
            self._guarded(spec, partial(self._take_in, spec))
        self._go_on([run for run in self.runs.values() if run not in before])

    def _take_in(self, spec: JobSpec) -> None:
        with self.place.team.in_turn() if self.place.team else nullcontext():
            self.runs[spec.name] = jobs.prepare(spec, self.place)

    def _go_on(self, begun: Sequence[Run]) -> None:
        """From where the last life of these left off; then all at once into training."""
        found: dict[str, list[checkpoint.Checkpoint]] = {}
        for run in begun:
            self._guarded(run.job, partial(self._look_for_checkpoints, run, found))
        if not self.runs:
            return
        names = [run.job.name for run in begun if run.job.name in self.runs]
        for name, one in zip(names, checkpoint.common([found[name] for name in names], names) if names else (), strict=True):
            if one is not None:
                fallback.resume(self.runs[name], one)
                self._cuts = max(self._cuts, one.cut)
        if any(run.lane.course.footing != Footing() for run in self.runs.values()):
            self.kind = ()  # one of them came down for want of memory: nobody comes in
        fallback.put_to_work(list(self.runs.values()))
        for name in names:
            self._guarded(self.runs[name].job, partial(self._begin, self.runs[name]))

    def _look_for_checkpoints(self, run: Run, found: dict[str, list[checkpoint.Checkpoint]]) -> None:
        found[run.job.name] = jobs.saved(run)

    def _begin(self, run: Run) -> None:
        saying.say_started(run)
        again = run.lane.step > 0
        if run.lane.done:
            self._finish(run, again=again)
            return
        if fallback.has_turned(run):
            self._finish_at_best(run)
            return
        if not again:
            run.start = {name: flat.detach().clone() for name, flat in run.lane.adapter.flat.items()}
        if again and keeping.due_adapter(run):
            keeping.measure(run)
            keeping.commit_adapter(run, final=False)
        keeping.keep_up(run, again=again)
        if not again:
            keeping.measure(run)
        others = [name for name in self.runs if name != run.job.name]
        saying.say_phase(run, "training", f"together with {', '.join(others)}"[:500] if others else "")
        run.said.begin()

    # --- one pass -----------------------------------------------------------------------------------

    def _pass(self) -> None:
        self._hear_who_arrives()
        midway = [run for run in self.runs.values() if run.lane.midway]
        if not midway and self._cut_due:
            self._cut()
        if self._someone_left(midway):
            return
        candidates = midway if self._cut_due or (midway and self.place.stopping()) else list(self.runs.values())
        suspects = [run for run in candidates if run.job.name in self._suspects]
        ready = self._looked_at(suspects or candidates)
        if not ready:
            return
        waiting = [turns.Waiting(kind, self._waited.get(run.job.name, 0)) for run, kind in ready]
        members = [ready[i][0] for i in turns.choose(waiting, 1 if suspects else self.width)]
        for run, _ in ready:
            self._waited[run.job.name] = 0 if run in members else self._waited.get(run.job.name, 0) + 1
        try:
            stepped = loop.advance(members[0].model, [run.lane for run in members])
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not end more jobs than its own
            self._broken(members, error)
            return
        self._suspects -= {run.job.name for run in members}
        of_lane = {id(run.lane): run for run in members}
        for one in stepped:
            run = of_lane[id(one.lane)]
            self._guarded(run.job, partial(self._after_step, run, one))

    def _looked_at(self, candidates: Sequence[Run]) -> list[tuple[Run, object]]:
        """Who may take part in the next pass, with what its batch looks like. One whose data break ends here."""
        found: list[tuple[Run, object]] = []
        for run in candidates:
            self._guarded(run.job, partial(self._look_at, run, found))
        return found

    def _look_at(self, run: Run, found: list[tuple[Run, object]]) -> None:
        found.append((run, loop.kind(run.model, run.lane)))

    def _broken(self, members: Sequence[Run], error: Exception) -> None:
        """A pass did not come through. Alone: that job's end. Together: smaller, or each by itself until one is found to be the cause."""
        if _is_fatal(error):
            raise error
        if self.place.team:  # the others wait for this process in the middle of the step: they end with it
            raise SystemExit(str(jobs.failure(error, members[0].lane.step)))
        for run in members:
            run.lane.rewind()
        if len(members) == 1:
            if not (jobs.is_out_of_memory(error) and fallback.climb(members[0], alone=len(self.runs) == 1)):
                self._fail(members[0].job, error)
            self.kind = ()  # where one has not room enough, nobody comes in
            return
        if jobs.is_out_of_memory(error):
            self.width = max(len(members) // 2, 1)
            words = f"{len(members)} jobs in one pass need more memory than there is; at most {self.width} share one from now on."
            if self.place.device.type == "cuda":
                torch.cuda.empty_cache()
        else:
            self._mishaps += 1
            self._suspects = {run.job.name for run in members}
            self.width = 1 if self._mishaps >= MISHAPS else self.width
            words = f"a pass of {len(members)} jobs broke ({type(error).__name__}: {str(error)[:200]}); each takes it alone."
        for run in members:
            saying.warn(run.job, self.place, words)

    def _after_step(self, run: Run, stepped: loop.Stepped) -> None:
        if stepped.error is not None:
            run.said.flush()
            raise jobs.located(stepped.error, run) if isinstance(stepped.error, TrainerError) else stepped.error
        run.said.add(stepped)
        if not run.lane.done:
            keeping.keep_up(run)
            self._cut_due |= keeping.due(run)
        elif len(self.runs) == 1:
            self._finish(run)
        else:
            self._cut_due = True  # its end is said after the cut

    def _cut(self) -> None:
        """Let those who came join, and save all jobs in one moment; then those that are done may go."""
        self._cut_due = False
        coming, self._coming = self._coming, []
        if coming:
            self._admit(coming)
        self._cuts += 1
        self._waited.clear()
        company = {name: run.lane.step for name, run in self.runs.items()}
        for run in list(self.runs.values()):
            self._guarded(run.job, partial(self._save, run, company))
        for run in [run for run in self.runs.values() if run.lane.done]:
            self._guarded(run.job, partial(self._finish, run))

    def _save(self, run: Run, company: dict[str, int]) -> None:
        if keeping.due(run) or run.lane.done:
            keeping.measure(run)
        keeping.save(run, company, self._cuts)
        if run.lane.step > 0 and keeping.due_adapter(run):
            keeping.commit_adapter(run, final=False)
        if fallback.has_turned(run):
            self._finish_at_best(run)
        elif not run.lane.done:
            saying.say_phase(run, "training")

    # --- going --------------------------------------------------------------------------------------

    def _finish(self, run: Run, *, again: bool = False) -> None:
        run.said.flush()
        keeping.measure(run)
        written = keeping.commit_adapter(run, final=True)
        keeping.keep_up(run, again=again, file=written.path)
        self._end(Result(run.job.name, "done", run.lane.step, run.said.last, written.path, written.sha256, message=keeping.verdict(run)))

    def _finish_at_best(self, run: Run) -> None:
        """The held-out loss has turned: the job is done, with the weights that were best."""
        run.said.flush()
        turned_at, found = run.lane.step, fallback.best_of(run)
        if found is not None:
            jobs.resume(run, found)
        run.measured = run.best
        words = f"held-out loss was not better for {run.job.stop_when_worse} measurements: ended at step {turned_at}"
        words += f" with the adapter of step {run.lane.step}" if found else ", where nothing better is kept"
        written = keeping.commit_adapter(run, final=True)
        self._end(Result(run.job.name, "done", run.lane.step, run.said.last, written.path, written.sha256, message=words))

    def _someone_left(self, midway: Sequence[Run]) -> bool:
        """Stop all, or those that are asked to leave; each at the end of its step."""
        if self.place.stopping():
            leaving = [] if midway else list(self.runs.values())
        else:
            leaving = [run for run in self.runs.values() if run not in midway and self.place.leaving(run.job.name)]
        company = {run.job.name: run.lane.step for run in leaving}
        self._cuts += bool(leaving)
        for run in leaving:
            self._guarded(run.job, partial(self._stop, run, company))
        return bool(leaving)

    def _stop(self, run: Run, company: dict[str, int]) -> None:
        run.said.flush()
        keeping.save(run, company, self._cuts)
        if run.lane.step > 0:
            keeping.commit_adapter(run, final=False)
        raise StopRequested

    def _guarded(self, job: JobSpec, work: Callable[[], Any]) -> None:
        """Do a job's work; what it raises ends this job and no other."""
        try:
            work()
        except StopRequested:
            step = self._step_of(job)
            self._end(Result(job.name, "stopped", step, message="stopped on request" if step else "stopped before training began"))
        except Exception as error:  # an unknown mistake in one job is no reason to lose the others
            if _is_fatal(error):
                raise
            if not self._back_again(job, error):
                self._fail(job, error)

    def _back_again(self, job: JobSpec, error: Exception) -> bool:
        """Whether the job could go back to an earlier state; all are saved soon, so that a later life knows it."""
        run = self.runs.get(job.name)
        try:
            fell = isinstance(error, TrainerError) and run is not None and fallback.fall_back(run, error)
        except Exception as worse:  # noqa: BLE001  # the first error tells more
            print_exception(worse)
            return False
        self._cut_due |= fell and len(self.runs) > 1
        return fell

    def _fail(self, job: JobSpec, error: Exception) -> None:
        ours = jobs.failure(error, self._step_of(job))
        if ours.code == "LRY-TRAIN-CRASH":
            print_exception(error)
        self._end(Result(job.name, "failed", self._step_of(job), code=ours.code, message=str(ours), exit_code=ours.exit_code))

    def _step_of(self, job: JobSpec) -> int:
        return self.runs[job.name].lane.step if job.name in self.runs else 0

    def _end(self, result: Result) -> None:
        """The job is out; those who stay are saved before the next pass, so that a later life does not miss it."""
        run = self.runs.pop(result.name, None)
        self.ended[result.name] = result
        self._waited.pop(result.name, None)
        self._suspects.discard(result.name)
        self._cut_due |= bool(self.runs) and run is not None and result.state != "done"
        if run is not None and not self.runs:
            run.model.prepare([], checkpointing=False)
        self.place.emit(
            Ended(
                at_s=self.place.clock(),
                job=result.name,
                state=result.state,
                step=result.step,
                message=result.message[:4000],
                code=result.code,
            )
        )


def _is_fatal(error: Exception) -> bool:
    """After some errors of the device nothing computes any more in this process: it must end, and the supervisor begins another."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not jobs.is_out_of_memory(error)
