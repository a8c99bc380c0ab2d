"""The task `train`: from a checked configuration to a trained network, its checkpoints, metrics and report.

Pre-training, fine-tuning and probing are all this: what differs is the method. A run's life, top to bottom: set up without
touching anything, take the directory, restore or create the state, update, evaluate, save, report.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview

from mim_jax.analysis.measure import HeadDiversity
from mim_jax.config.check import ConfigError, differences, to_dict
from mim_jax.config.resolve import resolve
from mim_jax.config.scaling import AUTO, chosen
from mim_jax.config.schema import Config, resolved
from mim_jax.data import Dataset, Loader, evaluation_batches, evenly_spaced, place
from mim_jax.data.memory import median_side
from mim_jax.errors import ExitCode
from mim_jax.methods import Method, Variables, build_method, complete_options, completion_lines
from mim_jax.methods.method import Evaluator
from mim_jax.progress import Progress, log
from mim_jax.storage import parse_path, write_text
from mim_jax.tasks.run_report import log_result, write_run_report
from mim_jax.training.budget import check_memory, check_parameters
from mim_jax.training.checkpoints import Checkpoints
from mim_jax.training.datasets import open_split
from mim_jax.training.divergence import explained, read_divergence
from mim_jax.training.epochs import phase_of
from mim_jax.training.evaluation import evaluate, evaluation_context
from mim_jax.training.faults import leaf_names, refuse_broken_state
from mim_jax.training.feature_bank import FeatureBank, Interrupted
from mim_jax.training.monitoring.clu_writers import MetricWriter
from mim_jax.training.monitoring.goodput import WallTime
from mim_jax.training.monitoring.metric_writers import import_wandb, open_metric_writer
from mim_jax.training.monitoring.monitor import Diverged, MetricMonitor, log_compilation
from mim_jax.training.monitoring.report import FIRST_BATCH, FIRST_BATCH_IMAGES, REPORT, draw_first_batch
from mim_jax.training.monitoring.run_info import log_run_info, record_bad_images, start_label
from mim_jax.training.optimiser import make_optimiser
from mim_jax.training.pretrained import ignored_keys, load_encoder, with_network_of_init
from mim_jax.training.replay import replay as repeat
from mim_jax.training.run_directory import RunDirectory
from mim_jax.training.sharding import abstract, batch_sharding, explain, make_mesh, state_shardings
from mim_jax.training.shutdown import Shutdown
from mim_jax.training.state import TrainState, create_state, state_shapes
from mim_jax.training.step import StepFunction, make_train_step

__all__ = ["ConfigError", "replay", "run"]

PARAMETERS = "parameters.txt"
PREPARE_EXAMPLES = 50_000
"""Training images that `prepare` is shown (to fit a tokenizer), spread over the dataset."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run that is set up, and has touched nothing."""

    config: Config
    train: Dataset
    test: Dataset
    method: Method
    mesh: jax.sharding.Mesh
    bank: FeatureBank
    shapes: Any  # of the parameters
    optimiser: optax.GradientTransformation
    loader: Loader
    chosen: list[str]  # what was left open and follows from the images, one line each

    @property
    def steps_per_epoch(self) -> float:
        return len(self.train) / self.config.data.batch_size

    def train_step(self, phase: int, state_shapes: TrainState) -> StepFunction:
        """The update of a phase, compiled on its first call."""
        method = self.method.phases[phase].method
        return make_train_step(
            method, self.optimiser, state_shapes, self.mesh, self.config, self.steps_per_epoch
        )


def run(config: Config, workdir: str | os.PathLike[str], overwrite: bool = False) -> int:
    """Runs or resumes; the exit code: 0 done, 75 asked to stop before the end (start the same command again).

    Args:
        overwrite: whether a run of ours that lies there is replaced: moved aside, and removed after the first checkpoint.
    """
    with RunDirectory(workdir, "train", overwrite=overwrite) as directory:
        try:
            return _run(set_up(config), directory)
        except Diverged:
            directory.keep_replaced()  # the file that tells of it stays, and what the run replaces
            raise


def set_up(config: Config) -> Setup:
    """Everything that a mistake can be found in before a directory is touched."""
    import_wandb(config)  # a missing package is said before anything is compiled
    given, config = config, with_network_of_init(config)
    train, test = (
        open_split(config.data, split, config.seed) for split in (config.data.split, config.data.test_split)
    )
    asked, side = config, median_side(train) if config.model.variant == AUTO else None
    config = resolve(
        asked,
        num_examples=len(train),
        num_devices=jax.device_count(),
        platform=jax.default_backend(),
        image_side=side,
    )
    completed = complete_options(config, train)
    filled_in = completion_lines(config, completed)
    config = completed
    method = build_method(config)
    if method.supervised:
        _check_classes(config, train, test)
    mesh = make_mesh(config.mesh)
    bank = FeatureBank(method, train, mesh, config)
    view = bank.join(method.train_view(train))
    check_memory(config, method, view)
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    check_parameters(config, shapes)
    loader = Loader(
        train,
        view,
        batch_size=config.data.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
    optimiser = make_optimiser(config, method.rules, shapes, len(train) / config.data.batch_size)
    lines = [*ignored_keys(given, asked), *chosen(asked, config, len(train), side), *filled_in]
    return Setup(config, train, test, method, mesh, bank, shapes, optimiser, loader, lines)


def _check_classes(config: Config, train: Dataset, test: Dataset) -> None:
    """Both splits must speak of the same classes."""
    if train.class_names != test.class_names:
        different = sorted({*train.class_names} ^ {*test.class_names}) or ["their order"]
        raise ConfigError(
            f"{config.data.source}: the splits {config.data.split} ({train.num_classes} classes) and {config.data.test_split}"
            f" ({test.num_classes}) differ in {', '.join(different[:5])}: they must hold the same class folders"
        )


def _run(setup: Setup, directory: RunDirectory) -> int:
    wall_time, workdir, config = WallTime(time.time()), directory.path, setup.config
    context = evaluation_context(config, setup.mesh, setup.train, setup.test, workdir)
    evaluators = setup.method.evaluators(context)
    if config.eval.attention_images:
        images = evenly_spaced(setup.test, config.eval.attention_images)
        evaluators.append(
            HeadDiversity(
                setup.method,
                lambda: context.batches(images, setup.method.feature_view, "attention"),
                mesh=setup.mesh,
            )
        )
    directory.acquire(config)
    for line in setup.chosen:
        log(f"chosen   {line}")
    log_run_info(config, setup.method, setup.loader, setup.bank, len(setup.test), setup.shapes, workdir)
    if config.mesh.explain:
        for line in explain(setup.shapes, setup.mesh):
            log(line)
    with (
        Shutdown() as shutdown,
        setup.loader,
        Checkpoints(
            workdir / "checkpoints",
            keep_last=config.checkpoint.keep_last,
            keep_every=config.checkpoint.keep_every,
            best_metric=config.checkpoint.best_metric,
            custom_metadata={"config": to_dict(config)},
            on_saved=lambda step: directory.discard_replaced(),
        ) as checkpoints,
    ):
        if _finished(config, checkpoints) and (workdir / REPORT).exists():
            log(f"this run is finished: {config.schedule.steps} steps")
            log_result(workdir, record_bad_images(workdir, ()), start_label(config))
            return 0
        first_step, state = restore_or_create(setup, checkpoints)
        with open_metric_writer(config, workdir, first_step, wall_time) as writer:
            end = _train(
                setup, state, first_step, evaluators, checkpoints, writer, workdir, shutdown, wall_time
            )
        bad = record_bad_images(workdir, (setup.train, setup.test))
        if end is None:
            return ExitCode.STOPPED
    write_run_report(config, setup.method, end.variables, context, bad)
    if jax.process_index() == 0:
        log_result(workdir, bad, start_label(config))
    return 0


def restore_or_create(
    setup: Setup, checkpoints: Checkpoints, before: int | None = None
) -> tuple[int, TrainState]:
    """The number of updates done, and the state of the newest good checkpoint, or a new one (with the encoder of `init`).

    before: of checkpoints after that step none is taken.
    """
    config, method, mesh = setup.config, setup.method, setup.mesh
    ema = bool(config.optim.ema)
    good = checkpoints.newest_good(at_most=before)
    if good is not None:
        tree = checkpoints.metadata(good)["tree"]
        saved = Variables(artefacts=tree.get("artefacts") or {}, batch_stats=tree.get("batch_stats") or {})
        shapes = state_shapes(method, setup.optimiser, saved, ema)
        target = abstract(shapes, state_shardings(shapes, mesh))
        restored = checkpoints.restore_partial(target, good)
        log(f"resumed from checkpoint {restored[0]}")
        return restored
    prepared = _prepare(config, method, setup.train)
    prepared = dataclasses.replace(prepared, artefacts=prepared.artefacts | setup.bank.initial())
    state = create_state(method, setup.optimiser, prepared, ema=ema, mesh=mesh, seed=config.seed)
    if config.init:
        params = load_encoder(config, method, state.params)
        average = jax.tree.map(jnp.copy, params) if state.ema else {}  # donated buffers must not alias
        state = dataclasses.replace(state, params=params, ema=average)
    return 0, state


def _prepare(config: Config, method: Method, dataset: Dataset) -> Variables:
    """The method's artefacts from the first training images; every host computes the same."""
    shown = evenly_spaced(dataset, PREPARE_EXAMPLES)

    def images() -> Iterable[Any]:
        batches = evaluation_batches(shown, method.feature_view, batch_size=256, threads=config.data.threads)
        with Progress("preparing", len(shown)) as progress:
            for batch in batches:
                yield batch["image"][batch["valid"]]
                progress.update(int(batch["valid"].sum()))

    started = time.perf_counter()
    prepared = method.prepare(images, config.seed)
    if prepared.artefacts:
        names = ", ".join(prepared.artefacts)
        log(f"prepared {names} from the training images in {time.perf_counter() - started:.1f} s")
    return prepared


def _train(
    setup: Setup,
    state: TrainState,
    first_step: int,
    evaluators: list[Evaluator],
    checkpoints: Checkpoints,
    writer: MetricWriter,
    workdir: Any,
    shutdown: Shutdown,
    wall_time: WallTime,
) -> TrainState | None:
    """Updates from `first_step` to the end; None if it was asked to stop before (the state is then saved).

    state: complete, as restored or created: the entries of the feature bank are among its artefacts.

    Raises:
        Diverged: at the first update whose loss or gradient is not finite.
    """
    config, bank, loader = setup.config, setup.bank, setup.loader
    total, eval_every, save_every = (
        resolved(value)
        for value in (config.schedule.steps, config.eval.every_steps, config.checkpoint.every_steps)
    )
    state = bank.adopt(state)
    shapes = jax.eval_shape(lambda: state)
    steps: dict[int, StepFunction] = {}  # by phase
    refuse_broken_state(state.params, state.artefacts)
    explain = explained(config, loader, workdir, leaf_names(state.params), lambda: state.artefacts)
    measure = wall_time.timed("evaluation", functools.partial(evaluate, evaluators))
    save, refresh = (
        wall_time.timed("checkpoints", checkpoints.save),
        wall_time.timed("refreshes", bank.refresh),
    )

    with MetricMonitor(
        config, writer, loader, first_step, max(checkpoints.steps(), default=None), explain, wall_time
    ) as monitor:
        if first_step == 0:
            monitor.write_evaluation(0, measure(state.variables, baselines=config.eval.baselines))
            _write_inputs(setup, workdir)
        batches = None
        monitor.throughput.start()
        for step in range(first_step, total):
            if refreshes := bank.due(step):
                if batches is not None:
                    batches.close()  # what was made ahead holds rows of before
                    batches = None
                try:
                    with monitor.throughput.paused():
                        state, results = refresh(refreshes, state, lambda: shutdown.requested)
                except Interrupted:
                    _stop(checkpoints, step)
                    return None
                monitor.write(step, results)
            if batches is None:
                batches = loader.iterate(step, functools.partial(place, sharding=batch_sharding(setup.mesh)))
            phase = phase_of(setup.method, step, len(setup.train), config.data.batch_size)
            if phase not in steps:
                steps[phase] = _first_step(setup, phase, shapes, monitor, wall_time)
            state, metrics = steps[phase](state, next(batches))
            done, last = step + 1, step + 1 == total
            stop = shutdown.requested_at(done) and not last
            evaluating = (done % eval_every == 0 or last) and not stop
            # Saved before a refresh, too: one that is cut short begins anew from there.
            saving = done % save_every == 0 or last or stop or bool(bank.due(done))
            monitor.update(done, metrics, drain=evaluating or saving)
            if not (evaluating or saving):
                continue
            with monitor.throughput.paused():
                results = {}
                if evaluating:
                    results = measure(state.variables, baselines=config.eval.baselines and last)
                    monitor.write_evaluation(done, results)
                if saving:
                    save(done, bank.complete(state), results)
                    monitor.last_saved = done
                if stop:
                    _stop(checkpoints, done)
                    return None
        wall_time.timed("checkpoints", checkpoints.wait)()
        return state


def _first_step(
    setup: Setup, phase: int, shapes: TrainState, monitor: MetricMonitor, wall_time: WallTime
) -> StepFunction:
    """The update of a phase that begins; its first call compiles, and says so."""
    name, method = setup.method.phases[phase].name, setup.method.phases[phase].method
    monitor.flops = method.flops()
    return log_compilation(setup.train_step(phase, shapes), f"the training step ({name})", wall_time)


def _write_inputs(setup: Setup, workdir: Any) -> None:
    """To look at before hours go by: the parameters' names and shapes, and the first images where the view has any."""
    if jax.process_index():
        return
    overview = parameter_overview.get_parameter_overview(setup.shapes, include_stats=False)
    write_text(workdir / PARAMETERS, f"{overview}\n")
    if "image" in setup.loader.view.keys:
        examples = setup.loader.batch(0, limit=FIRST_BATCH_IMAGES)
        draw_first_batch(workdir / FIRST_BATCH, examples, setup.train.class_names)


def _stop(checkpoints: Checkpoints, done: int) -> None:
    """Waits until the state after `done` updates is saved."""
    checkpoints.wait()
    log(f"asked to stop: step {done} is saved; the same command, without --overwrite, goes on from there")


def _finished(config: Config, checkpoints: Checkpoints) -> bool:
    """Whether the last step is saved, and whole; its arrays are verified only where the step is there."""
    steps = resolved(config.schedule.steps)
    return steps in checkpoints.steps() and checkpoints.newest_good() == steps


def replay(config: Config, workdir: str | os.PathLike[str], file: str) -> int:
    """Repeats the update that a diverged-STEP.json tells of, and says what it did to every parameter; writes nothing.

    Raises:
        ConfigError: the file cannot be used, or is of another configuration.
    """
    told = read_divergence(parse_path(file, "--replay"))
    directory = parse_path(workdir, "--workdir")
    setup = set_up(config)
    now = json.loads(json.dumps(to_dict(setup.config)))
    if changed := list(differences(told["config"], now)):
        raise ConfigError(
            f"--replay={file} is of another configuration ({'; '.join(changed[:5])}): give the command that diverged"
        )
    with setup.loader, Checkpoints(directory / "checkpoints") as checkpoints:
        first_step, state = restore_or_create(setup, checkpoints, before=told["step"])
        repeat(setup, state, first_step, told)
    return 0
