"""What is kept of a job while it trains: held-out losses, checkpoints, adapters, sample pictures."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from PIL.PngImagePlugin import PngInfo

from . import checkpoint, export, loop, prompts, start, streams
from .contract import Drawing
from .convert import loads_in
from .course import ruined
from .errors import TrainingError
from .files import Written, write_atomically
from .parts import needed_encoders
from .protocol import Evaluated
from .saying import say_committed, say_phase, say_score

if TYPE_CHECKING:
    from pathlib import Path

    from .adapters import Adapter
    from .jobs import Run


def measure(run: Run) -> None:
    """Held-out loss, once a step."""
    if not run.held.captions or (run.measured is not None and run.measured[0] == run.lane.step):
        return
    bands = loop.evaluate(run.model, run.lane.adapter, run.held)
    bands = run.place.team.agree(bands) if run.place.team else bands
    loss = sum(bands) / len(bands)
    if not math.isfinite(loss):
        raise TrainingError("LRY-TRAIN-NAN", f"the held-out loss is not finite after step {run.lane.step}.", "Lower the learning rate.")
    if run.best is not None and ruined(loss, run.best[1]):
        message = f"the held-out loss is {loss:.4g} after step {run.lane.step}; the best was {run.best[1]:.4g} at step {run.best[0]}."
        raise TrainingError("LRY-TRAIN-HELDOUT", message, "Lower the learning rate; what was saved before is good.")
    run.measured = run.lane.step, loss
    best = run.best is None or loss < run.best[1]
    run.best = run.measured if best else run.best
    run.lane.course.worse = 0 if best else run.lane.course.worse + 1
    run.place.emit(Evaluated(at_s=run.place.clock(), job=run.job.name, step=run.lane.step, loss=loss, bands=tuple(bands), best=best))


def verdict(run: Run) -> str:
    """What the held-out pictures say of the whole run, and who can load its file."""
    told = []
    if run.best is not None and run.measured is not None:
        told.append(f"held-out loss {run.measured[1]:.4f}")
        told += [] if run.best == run.measured else [f"the best was {run.best[1]:.4f} at step {run.best[0]}"]
    form = next(iter(run.model.family.formats))
    return "; ".join([*told, *loads_in(form, run.job.family, run.job.method)])


def due(run: Run) -> bool:
    """Whether a checkpoint is to be saved at this step."""
    return run.lane.step > 0 and (due_adapter(run) or _due_checkpoint(run))


def keep_up(run: Run, *, again: bool = False, file: Path | None = None) -> None:
    """Draw what is due at this step. `again`: only what the last life did not get to. `file`: the adapter's, which is read afresh.

    So a file that does not load, or says something else than was trained, is seen where it was made.
    """
    job, adapter = run.job, run.lane.adapter
    if not run.place.writes:
        return
    if file is not None:
        with adapter.averaged():
            adapter = start.through_file(adapter, file, job.family)
    if run.prompts and job.sample_every_steps and (run.lane.step % job.sample_every_steps == 0 or run.lane.done):
        _draw(run, adapter, again=again)


def due_adapter(run: Run) -> bool:
    """Whether the user wants the adapter of this step."""
    job, step, per_epoch = run.job, run.lane.step, run.lane.plan.steps_per_epoch
    if run.lane.done:
        return False  # the finished adapter is coming
    by_steps = job.save_every_steps is not None and step % job.save_every_steps == 0
    return by_steps or (job.save_every_epochs is not None and step % (job.save_every_epochs * per_epoch) == 0)


def _due_checkpoint(run: Run) -> bool:
    """Without a wish of the user's, ten checkpoints a run, so that a lost machine costs a tenth at most."""
    if run.job.save_every_steps or run.job.save_every_epochs or run.lane.done:
        return False
    return run.lane.step % max(run.lane.plan.steps // 10, 25) == 0


def save(run: Run, company: Mapping[str, int], cut: int) -> None:
    """Write a checkpoint. `company`: the steps at which jobs that train together are saved in this moment, their `cut`-th."""
    lane = run.lane
    if lane.step == 0:
        return
    if not run.place.writes:
        run.last_good = lane.step
        return
    say_phase(run, "saving", f"step {lane.step}")
    state = checkpoint.State(lane.step, run.digest, lane.adapter, lane.optimizer, lane.scaler, company, cut, run.best, lane.course)
    say_committed(run, checkpoint.save(run.out / "checkpoints", state), "checkpoint", lane.step)
    run.last_good = lane.step


def commit_adapter(run: Run, *, final: bool) -> Written:
    """Write the adapter of this step."""
    step = run.lane.step
    name = run.job.name if final else f"{run.job.name}-step{step:06d}"
    if not run.place.writes:
        return Written(run.out / f"{name}.safetensors", 0, "")
    with run.lane.adapter.averaged():
        write = next(iter(run.model.family.formats.values()))
        tensors = write(run.lane.adapter, export.DTYPES[run.job.save_precision])
    facts = export.metadata(run.job, run.facts, run.model.origin(), step=step, final_name=name)
    if run.measured is not None and run.best is not None and run.measured[0] == step:
        facts |= {"lorry_heldout_loss": f"{run.measured[1]:.6f}", "lorry_heldout_best_step": str(run.best[0])}
    written = export.save_adapter(run.out / f"{name}.safetensors", tensors, facts)
    say_committed(run, written, "adapter", step, final=final)
    return written


def _draw(run: Run, adapter: Adapter, *, again: bool) -> None:
    say_phase(run, "sampling", f"step {run.lane.step}")
    for number, prompt in enumerate(run.prompts):
        if run.place.stopping() or run.place.leaving(run.job.name):
            return
        path = run.out / "samples" / f"step{run.lane.step:06d}-{number}.png"
        if again and path.is_file():
            data = path.read_bytes()
            say_committed(run, Written(path, len(data), hashlib.sha256(data).hexdigest()), "sample", run.lane.step)
            continue
        with adapter.averaged():
            written = write_atomically(path, _drawn(run, adapter, prompt, number))
        say_committed(run, written, "sample", run.lane.step)
    run.model.release_encoders(keep=needed_encoders(run.job, run.model))
    say_phase(run, "training")


def _drawn(run: Run, adapter: Adapter, prompt: prompts.Prompt, number: int) -> bytes:
    """One sample as a PNG that says how it was made."""
    job, model = run.job, run.model
    multiple, guidance = model.family.multiple, model.family.guidance if prompt.guidance is None else prompt.guidance
    width, height = (side // multiple * multiple for side in (prompt.width or job.resolution, prompt.height or job.resolution))
    size = (width, height)
    seed = streams.key(job.seed, "sample", number) % 2**32 if prompt.seed is None else prompt.seed
    with model.bank.use([adapter], model.dtype):
        embedding, negative = run.embedding(prompt.text), run.embedding(prompt.negative)
    drawing = Drawing(size=size, seed=seed, guidance=guidance, steps=prompt.steps)
    decoder = None if run.lane.done else run.looker.decoder(model.parts["vae"].config.latent_channels, model.device)
    picture = model.draw(embedding, negative, drawing, adapter, decoder)
    score = run.looker.score(picture, prompt.text)
    if score is not None:
        say_score(run, number, score)
    about = PngInfo()
    drawn_by = f"Sampler: {model.family.sampler}, CFG scale: {guidance:g}"
    settings = f"Steps: {prompt.steps}, {drawn_by}, Seed: {seed}, Size: {width}x{height}"
    negative_line = f"\nNegative prompt: {prompt.negative}" if prompt.negative else ""
    about.add_itxt("parameters", f"{prompt.text}{negative_line}\n{settings}")  # as A1111 writes and others read it
    about.add_itxt("lorry", json.dumps({"job": job.name, "step": run.lane.step, "prompt": prompt.text, "seed": seed, "clip_score": score}))
    out = io.BytesIO()
    picture.save(out, format="PNG", pnginfo=about)
    return out.getvalue()
