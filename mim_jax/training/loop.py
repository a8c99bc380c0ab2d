"""The life of a run, top to bottom: restore or create, step, watch, evaluate, save."""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import optax

from mim_jax.config.schema import resolved
from mim_jax.data import Loader, place
from mim_jax.methods.protocol import Artefacts, Method
from mim_jax.training.checkpoint import Checkpoints
from mim_jax.training.log import Clock, MetricLog, progress_line, say
from mim_jax.training.sharding import abstract, batch_sharding, state_shardings
from mim_jax.training.shutdown import Shutdown
from mim_jax.training.state import TrainState, create_state, state_shapes
from mim_jax.training.step import StepFunction, make_train_step

LAG = 2
"""Updates in flight before the metrics of the oldest are looked at: the device never waits for the host to look."""


class Diverged(RuntimeError):
    """The loss or the gradient is not a number; the message names the step and the last good checkpoint."""


class Evaluator(Protocol):
    """Something measured now and then; `baselines` asks also for what the result is to be compared with."""

    name: str

    def __call__(self, state: TrainState, *, baselines: bool) -> dict[str, float]: ...


def steps_per_epoch(method: Method, num_examples: int) -> float:
    """Updates an epoch takes; fractional, because batches cross epochs."""
    return num_examples / method.config.data.batch_size


def phase_of(method: Method, step: int, per_epoch: float) -> int:
    """Number of the phase that update `step` (from 0) belongs to."""
    started = [i for i, phase in enumerate(method.phases) if step >= math.ceil(phase.first_epoch * per_epoch)]
    return started[-1]


def restore_or_create(
    method: Method,
    optimiser: optax.GradientTransformation,
    checkpoints: Checkpoints,
    mesh: jax.sharding.Mesh,
    prepare: Callable[[], Artefacts],
) -> tuple[int, TrainState]:
    """The newest good checkpoint's state, or a fresh one. `prepare` runs only for a fresh one."""
    ema = bool(method.config.optim.ema)
    good = checkpoints.newest_good()
    if good is not None:
        artefacts = checkpoints.metadata(good)["tree"].get("artefacts", {})
        shapes = state_shapes(method, optimiser, artefacts, ema)
        found = checkpoints.restore(abstract(shapes, state_shardings(shapes, mesh)))
        assert found is not None
        say(f"resumed from checkpoint {found[0]}")
        return found
    return 0, create_state(method, optimiser, prepare(), ema=ema, mesh=mesh)


def train(
    method: Method,
    optimiser: optax.GradientTransformation,
    state: TrainState,
    loader: Loader,
    *,
    first_step: int,
    mesh: jax.sharding.Mesh,
    evaluators: Sequence[Evaluator],
    checkpoints: Checkpoints,
    workdir: Path,
    shutdown: Shutdown,
) -> TrainState | None:
    """Runs from `first_step` to the end; None if it was asked to stop before (the state is then saved).

    Raises:
        Diverged: at the first update whose loss or gradient is not finite.
    """
    config = method.config
    total = resolved(config.schedule.steps)
    log_every, eval_every, save_every = (
        resolved(section.every_steps) for section in (config.log, config.eval, config.checkpoint)
    )
    per_epoch = steps_per_epoch(method, len(loader.source))
    shapes = jax.eval_shape(lambda: state)
    steps: dict[int, StepFunction] = {}
    log = MetricLog(workdir / "metrics.jsonl", first_step=first_step)
    clock = Clock(first_step=first_step, total_steps=total, batch_size=config.data.batch_size)
    waiting: collections.deque[tuple[int, Any]] = collections.deque()
    last_saved = max(checkpoints.steps(), default=None)

    def look(done: int, metrics: Any) -> None:
        """Checks one update's metrics, and logs them where that is due."""
        values = {f"train/{name}": float(value) for name, value in metrics.items()}
        if not all(math.isfinite(values[key]) for key in ("train/loss", "train/grad_norm")):
            raise Diverged(
                f"update {done} diverged: loss {values['train/loss']}, gradient norm {values['train/grad_norm']}; "
                f"the last good checkpoint is {last_saved}: lower optim.lr or set optim.clip_norm and start again"
            )
        if done % log_every == 0 or done == total or done == first_step + 1:
            values |= clock.lap(done, loader.stall_seconds)
            log.write(done, values)
            say(progress_line(done, total, values))

    def evaluate(done: int, *, baselines: bool) -> dict[str, float]:
        values: dict[str, float] = {}
        for evaluator in evaluators:
            started = time.perf_counter()
            values |= evaluator(state, baselines=baselines)
            values[f"eval/{evaluator.name}_seconds"] = time.perf_counter() - started
        if values:
            log.write(done, values)
            shown = {k: v for k, v in values.items() if not k.endswith("_seconds")}
            say(
                f"eval at step {done}: "
                + ", ".join(f"{k.removeprefix('eval/')} {v:.4f}" for k, v in shown.items())
            )
        return values

    def save(done: int, metrics: dict[str, float]) -> None:
        nonlocal last_saved
        checkpoints.save(done, state, metrics)
        last_saved = done

    batches = loader.iterate(first_step, lambda batch: place(batch, batch_sharding(mesh)))
    with contextlib.closing(batches), contextlib.closing(log):
        if first_step == 0:
            evaluate(0, baselines=config.eval.baselines)
        clock.start()
        for step in range(first_step, total):
            number = phase_of(method, step, per_epoch)
            if number not in steps:
                phase = method.phases[number]
                steps[number] = make_train_step(method.in_phase(phase), optimiser, shapes, mesh, per_epoch)
            state, metrics = steps[number](state, next(batches))
            waiting.append((step + 1, metrics))
            done, finished = step + 1, step + 1 == total
            stop = shutdown.requested_at(done)
            evaluating = done % eval_every == 0 or finished
            saving = done % save_every == 0 or finished or stop
            while len(waiting) > (0 if evaluating or saving else LAG):
                look(*waiting.popleft())
            clock.pause()
            values = (
                evaluate(done, baselines=config.eval.baselines and finished)
                if evaluating and not stop
                else {}
            )
            if saving:
                save(done, values)
            clock.start()
            if stop and not finished:
                checkpoints.wait()
                say(f"asked to stop: step {done} is saved; the same command goes on from there")
                return None
        checkpoints.wait()
        return state
