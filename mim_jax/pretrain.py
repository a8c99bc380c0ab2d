"""The task `pretrain`: from a checked configuration to a trained network, its checkpoints, metrics and report."""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils.epath import Path

from mim_jax.cached_tokens import training_tokens
from mim_jax.config.check import ConfigError, to_dict
from mim_jax.config.resolve import resolve
from mim_jax.config.scaling import AUTO, chosen
from mim_jax.config.schema import Config, resolved
from mim_jax.data import Dataset, Loader, evaluation_batches, over_classes, spread
from mim_jax.data.memory import picture_side
from mim_jax.evaluators import check_evaluation, eval_batches, make_evaluators, still
from mim_jax.methods import Method, Picture, build_method, complete_options
from mim_jax.methods.protocol import Batch
from mim_jax.progress import Progress
from mim_jax.storage import parse_path
from mim_jax.training.budget import check_memory, check_parameters
from mim_jax.training.checkpoints import Checkpoints
from mim_jax.training.divergence import read_divergence
from mim_jax.training.keys import Purpose, example_keys
from mim_jax.training.loop import restore_or_create, train
from mim_jax.training.optimiser import make_optimiser
from mim_jax.training.pretrained import ignored_keys, load_encoder, with_network_of_init
from mim_jax.training.replay import replay as repeat
from mim_jax.training.run_directory import RunDirectory
from mim_jax.training.sharding import make_mesh
from mim_jax.training.shutdown import EXIT_AGAIN, Shutdown
from mim_jax.training.sources import open_split
from mim_jax.training.state import TrainState
from mim_jax.training.tables import Tables
from mim_jax.training.watching import bad_images, first_batch
from mim_jax.training.watching.facts import announce, init_name, run_facts, show_result, start_word
from mim_jax.training.watching.log import read_metrics, say
from mim_jax.training.watching.report import EXAMPLES, REPORT, write_report
from mim_jax.training.watching.sinks import open_sinks
from mim_jax.training.watching.table import result_rows
from mim_jax.training.watching.wandb_sink import import_wandb
from mim_jax.training.watching.watch import Diverged
from mim_jax.training.workdir import differences
from mim_jax.transfer.classification import CONFUSION

PREPARE_EXAMPLES = 50_000
"""Training images that `prepare` is shown (to fit a tokenizer), spread over the source."""


def run(config: Config, workdir: str | os.PathLike[str], overwrite: bool = False) -> int:
    """Runs or resumes; the exit code: 0 done, 75 asked to stop before the end (start the same command again).

    Args:
        overwrite: whether a run of ours that lies there is replaced: moved aside, and removed after the first checkpoint.
    """
    with RunDirectory(workdir, "pretrain", overwrite=overwrite) as run_directory:
        try:
            return _run(config, run_directory)
        except Diverged:
            run_directory.keep_replaced()  # the file that tells of it stays, and what the run replaces
            raise


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A run that is set up, and has touched nothing."""

    config: Config
    train_dataset: Dataset
    test_dataset: Dataset
    method: Method
    mesh: jax.sharding.Mesh
    tables: Tables
    shapes: Any
    optimiser: optax.GradientTransformation
    loader: Loader
    chosen: list[str]  # what was left open and follows from the images, one line each


def _ready(config: Config) -> _Ready:
    """Everything that a mistake can be found in before a directory is touched."""
    import_wandb(config)  # a missing package is said before anything is compiled
    given, config = config, with_network_of_init(config)
    train_dataset, test_dataset = (
        open_split(config.data, split, config.seed) for split in (config.data.split, config.data.test_split)
    )
    asked, side = config, picture_side(train_dataset) if config.model.variant == AUTO else None
    config = resolve(
        asked,
        num_examples=len(train_dataset),
        num_devices=jax.device_count(),
        platform=jax.default_backend(),
        picture_side=side,
    )
    config = complete_options(config, train_dataset.num_classes, train_dataset.multi_label)
    _check_classes(config, train_dataset, test_dataset)
    method = build_method(config)
    check_evaluation(config, method)
    check_memory(config, method)
    extras = training_tokens(method, train_dataset)
    mesh = make_mesh(config.mesh)
    tables = Tables(method, train_dataset, mesh)
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    check_parameters(config, shapes)
    optimiser = make_optimiser(config, method.rules, shapes, len(train_dataset) / config.data.batch_size)
    loader = Loader(
        train_dataset,
        method.input_spec,
        batch_size=config.data.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        extras=extras | tables.extras(),
    )
    lines = [*ignored_keys(given, asked), *chosen(asked, config, len(train_dataset), side)]
    return _Ready(config, train_dataset, test_dataset, method, mesh, tables, shapes, optimiser, loader, lines)


def _run(config: Config, run_directory: RunDirectory) -> int:
    started, workdir = time.time(), run_directory.path
    ready = _ready(config)
    config, method, mesh, tables = ready.config, ready.method, ready.mesh, ready.tables
    train_dataset, test_dataset, loader, optimiser = (
        ready.train_dataset,
        ready.test_dataset,
        ready.loader,
        ready.optimiser,
    )
    run_directory.acquire(config)
    for line in ready.chosen:
        say(f"chosen   {line}")
    announce(method, loader, tables, len(test_dataset), ready.shapes, workdir)
    batches = functools.partial(eval_batches, config, mesh)
    evaluators = make_evaluators(config, method, mesh, train_dataset, test_dataset, batches, workdir)
    with (
        Shutdown() as shutdown,
        loader,
        Checkpoints(
            workdir / "checkpoints",
            keep_last=config.checkpoint.keep_last,
            keep_every=config.checkpoint.keep_every,
            best_metric=config.checkpoint.best_metric,
            custom_metadata={"config": to_dict(config)},
            on_saved=lambda step: run_directory.discard_replaced(),
        ) as checkpoints,
    ):
        if _finished(config, checkpoints) and (workdir / REPORT).exists():
            say(f"this run is finished: {config.schedule.steps} steps")
            show_result(workdir, bad_images.remember(workdir, ()), start_word(config))
            return 0
        first_step, state = _begun(ready, checkpoints)
        with open_sinks(config, workdir, first_step, started) as sinks:
            finished = train(
                method,
                optimiser,
                state,
                loader,
                first_step=first_step,
                mesh=mesh,
                evaluators=evaluators,
                tables=tables,
                checkpoints=checkpoints,
                sink=sinks,
                workdir=workdir,
                shutdown=shutdown,
            )
        bad = bad_images.remember(workdir, (train_dataset, test_dataset))
        if finished is None:
            return EXIT_AGAIN
    shown = not method.cached_view and not method.num_classes
    few = over_classes(spread(test_dataset, config.eval.heldout_examples), EXAMPLES) if shown else None
    picture = _picture(method, finished, batches(few, method.eval_spec)) if few else None
    if jax.process_index() == 0:
        _report(
            method, workdir, train_dataset, len(test_dataset), bad, picture, _class_names(few) if few else ()
        )
        show_result(workdir, bad, start_word(config))
    return 0


def _begun(ready: _Ready, checkpoints: Checkpoints, before: int | None = None) -> tuple[int, TrainState]:
    """The state that the run goes on from, and its step. before: of checkpoints after that step none is taken."""
    config, method = ready.config, ready.method
    first_step, state = restore_or_create(
        method,
        ready.optimiser,
        checkpoints,
        ready.mesh,
        lambda: _prepare(config, method, ready.train_dataset) | ready.tables.initial(),
        before=before,
    )
    if first_step == 0 and config.init:
        params = load_encoder(config.init, method, state.params)
        ema = jax.tree.map(jnp.copy, params) if state.ema else {}  # donated buffers must not alias
        state = dataclasses.replace(state, params=params, ema=ema)
    return first_step, state


def replay(config: Config, workdir: str | os.PathLike[str], file: str) -> int:
    """Repeats the update that a diverged-STEP.json tells of, and says what it did to every parameter; writes nothing.

    Raises:
        ConfigError: the file cannot be used, or is of another configuration.
    """
    told = read_divergence(parse_path(file, "--replay"))
    directory = parse_path(workdir, "--workdir")
    ready = _ready(config)
    now = json.loads(json.dumps(to_dict(ready.config)))
    if changed := list(differences(told["config"], now)):
        raise ConfigError(
            f"--replay={file} is of another configuration ({'; '.join(changed[:5])}): give the command that diverged"
        )
    with ready.loader, Checkpoints(directory / "checkpoints") as checkpoints:
        first_step, state = _begun(ready, checkpoints, before=told["step"])
        repeat(ready.method, ready.optimiser, state, ready.loader, ready.tables, ready.mesh, first_step, told)
    return 0


def _finished(config: Config, checkpoints: Checkpoints) -> bool:
    """Whether the last step is saved, and whole; its arrays are verified only where the step is there."""
    steps = resolved(config.schedule.steps)
    return steps in checkpoints.steps() and checkpoints.newest_good() == steps


def _check_classes(config: Config, train: Dataset, test: Dataset) -> None:
    """Both splits must speak of the same classes, where the method needs them."""
    if "num_classes" in config.method and train.class_names != test.class_names:
        different = sorted({*train.class_names} ^ {*test.class_names}) or ["their order"]
        raise ConfigError(
            f"{config.data.source}: the splits {config.data.split} ({train.num_classes} classes) and {config.data.test_split}"
            f" ({test.num_classes}) differ in {', '.join(different[:5])}: they must hold the same class folders"
        )


def _prepare(config: Config, method: Method, dataset: Dataset) -> dict[str, Any]:
    """The method's artefacts from the first training images; every host computes the same."""

    shown = spread(dataset, PREPARE_EXAMPLES)

    def images() -> Iterable[Any]:
        batches = evaluation_batches(shown, method.feature_spec, batch_size=256, threads=config.data.threads)
        with Progress("preparing", len(shown)) as progress:
            for batch in batches:
                yield batch["image"][batch["valid"]]
                progress.update(int(batch["valid"].sum()))

    started = time.perf_counter()
    artefacts = method.prepare(images)
    if artefacts:
        say(
            f"prepared {', '.join(artefacts)} from the training images in {time.perf_counter() - started:.1f} s"
        )
    return artefacts


def _class_names(dataset: Dataset) -> list[str]:
    """The class of every image of a small source; '' where it has none, or several."""
    labels = [dataset[number].label for number in range(len(dataset))]
    return [first_batch.label_text(label, dataset.class_names) for label in labels]


def _picture(method: Method, state: TrainState, batches: Iterable[Batch]) -> Picture | None:
    """The method's picture of the first batch."""
    if jax.process_count() > 1:  # drawing needs whole arrays on one host
        return None

    method = still(method)
    last = method.in_phase(method.phases[-1])

    @jax.jit  # operation by operation it would compile some hundred programs
    def view_and_outputs(params: Any, artefacts: Any, batch: Batch) -> tuple[Any, Any]:
        batch = last.held_out(params, {key: value[:EXAMPLES] for key, value in batch.items()})
        keys = example_keys(method.config.seed, Purpose.HELDOUT, batch["draw"], batch["index"])
        view = last.corrupt(keys, batch, artefacts)
        return view, last.forward(params, view, keys, False)

    view, outputs = view_and_outputs(state.params, state.artefacts, dict(next(iter(batches))))
    return last.picture(view, outputs, state.artefacts)


def _report(
    method: Method,
    workdir: Path,
    train_dataset: Dataset,
    held_out: int,
    bad: dict[str, str],
    picture: Picture | None,
    names: Sequence[str],
) -> None:
    """Writes report.html. names: the classes of the picture's images."""
    config = method.config
    records = read_metrics(workdir / "metrics.jsonl")
    origin = f", from {init_name(config)}" if config.init else ""
    write_report(
        workdir / REPORT,
        title=f"{config.method['name']} on {train_dataset.name}{origin}",
        facts=run_facts(method, train_dataset, held_out, workdir),
        records=records,
        rows=result_rows(records),
        picture=picture,
        names=names,
        start=start_word(config),
        figures=(
            (
                "Confusion matrix",
                "Held-out images: of each true class (row) the percentage that was predicted as each class (column).",
                workdir / CONFUSION,
            ),
            (
                "First training batch",
                "Images as the loader gave them, cropped and mirrored, before any corruption.",
                workdir / first_batch.FILE,
            ),
        ),
        bad=bad,
        config_text=json.dumps(to_dict(config), indent=2),
    )


__all__ = ["ConfigError", "run"]
