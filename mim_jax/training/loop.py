"""The life of a run, top to bottom: restore or create, step, watch, evaluate, save."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import optax
from etils.epath import Path

from mim_jax.config.schema import resolved
from mim_jax.data import Loader, place
from mim_jax.methods.protocol import Artefacts, Method
from mim_jax.training.checkpoints import Checkpoints
from mim_jax.training.divergence import explained
from mim_jax.training.epochs import phase_of
from mim_jax.training.faults import leaf_names, refuse_broken_state
from mim_jax.training.feed import Feed
from mim_jax.training.sharding import abstract, batch_sharding, state_shardings
from mim_jax.training.shutdown import Shutdown
from mim_jax.training.state import TrainState, create_state, state_shapes
from mim_jax.training.step import StepFunction, make_train_step
from mim_jax.training.tables import Interrupted, Tables
from mim_jax.training.watching import first_batch
from mim_jax.training.watching.compiling import announced
from mim_jax.training.watching.first_batch import FirstBatch
from mim_jax.training.watching.log import say
from mim_jax.training.watching.sinks import Sink
from mim_jax.training.watching.watch import Watch


class Evaluator(Protocol):
    """Something measured now and then; `baselines` asks also for what the result is to be compared with."""

    name: str

    def __call__(self, state: TrainState, *, baselines: bool) -> dict[str, float]: ...


def restore_or_create(
    method: Method,
    optimiser: optax.GradientTransformation,
    checkpoints: Checkpoints,
    mesh: jax.sharding.Mesh,
    prepare: Callable[[], Artefacts],
    *,
    before: int | None = None,
) -> tuple[int, TrainState]:
    """The newest good checkpoint's state, or a fresh one. `prepare` runs only for a fresh one.

    before: of the checkpoints after that step none is taken.
    """
    ema = bool(method.config.optim.ema)
    good = checkpoints.newest_good(at_most=before)
    if good is not None:
        artefacts = checkpoints.metadata(good)["tree"].get("artefacts", {})
        shapes = state_shapes(method, optimiser, artefacts, ema)
        wanted = abstract(shapes, state_shardings(shapes, mesh))
        found = checkpoints.restore_partial(wanted, good)
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
    tables: Tables,
    checkpoints: Checkpoints,
    sink: Sink,
    workdir: Path,
    shutdown: Shutdown,
) -> TrainState | None:
    """Runs from `first_step` to the end; None if it was asked to stop before (the state is then saved).

    state: complete, as restored or created: the tables of the passes are among its artefacts.

    Raises:
        Diverged: at the first update whose loss or gradient is not finite.
    """
    config = method.config
    total, eval_every, save_every = (
        resolved(value)
        for value in (config.schedule.steps, config.eval.every_steps, config.checkpoint.every_steps)
    )
    examples = len(loader.dataset)
    state = tables.adopt(state)
    shapes = jax.eval_shape(lambda: state)
    compiled: dict[int, StepFunction] = {}
    refuse_broken_state(state.params, state.artefacts)
    put = FirstBatch(lambda batch: place(batch, batch_sharding(mesh)))
    with (
        Watch(
            config,
            sink,
            loader,
            first_step,
            max(checkpoints.steps(), default=None),
            explained(config, loader, workdir, leaf_names(state.params), lambda: state.artefacts),
        ) as watch,
        Feed(loader, put) as feed,
    ):
        if first_step == 0:
            watch.evaluated(0, evaluate(evaluators, state, baselines=config.eval.baselines))
        watch.clock.start()
        for step in range(first_step, total):
            if passes := tables.due(step):
                feed.stop()  # what was made ahead holds rows of the old tables
                try:
                    state, results = tables.refresh(passes, state, lambda: shutdown.requested)
                except Interrupted:
                    _stopped(checkpoints, step)
                    return None
                watch.passed(step, results)
            number = phase_of(method, step, examples)
            if number not in compiled:
                phase = method.in_phase(method.phases[number])
                per_epoch = examples / config.data.batch_size
                made = make_train_step(phase, optimiser, shapes, mesh, per_epoch)
                compiled[number] = announced(made, f"the training step ({method.phases[number].name})")
                watch.flops = phase.flops()
            batch = feed.batch(step)
            if step == 0 and jax.process_index() == 0 and loader.spec.pixels:
                put.save(workdir / first_batch.FILE, loader.dataset.class_names)
            state, metrics = compiled[number](state, batch)
            done, last = step + 1, step + 1 == total
            stop = shutdown.requested_at(done) and not last
            evaluating = (done % eval_every == 0 or last) and not stop
            # Saved before a pass, too: one that is cut short begins anew from there.
            saving = done % save_every == 0 or last or stop or bool(tables.due(done))
            watch.update(done, metrics, look_at_all=evaluating or saving)
            if not (evaluating or saving):
                continue
            watch.clock.pause()
            results = {}
            if evaluating:
                results = evaluate(evaluators, state, baselines=config.eval.baselines and last)
                watch.evaluated(done, results)
            if saving:
                checkpoints.save(done, tables.complete(state), results)
                watch.last_saved = done
            if stop:
                _stopped(checkpoints, done)
                return None
            watch.clock.start()
        checkpoints.wait()
        return state


def _stopped(checkpoints: Checkpoints, done: int) -> None:
    checkpoints.wait()
    say(f"asked to stop: step {done} is saved; the same command, without --overwrite, goes on from there")


def evaluate(evaluators: Sequence[Evaluator], state: TrainState, *, baselines: bool) -> dict[str, float]:
    """All evaluators' results, and the seconds each took."""
    values: dict[str, float] = {}
    for evaluator in evaluators:
        started = time.perf_counter()
        values |= evaluator(state, baselines=baselines)
        values[f"eval/{evaluator.name}_seconds"] = time.perf_counter() - started
    return values
