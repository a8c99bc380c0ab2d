"""Evaluations between updates: the batches they see, and their results."""

import functools
import time
from collections.abc import Iterator, Sequence

import jax
from etils.epath import Path

from mim_jax.config.schema import Config, resolved
from mim_jax.data import Dataset, View, evaluation_batches, place
from mim_jax.methods.method import Batch, EvaluationContext, Evaluator, Variables
from mim_jax.progress import Progress
from mim_jax.training.sharding import batch_sharding


def evaluation_context(
    config: Config, mesh: jax.sharding.Mesh, train: Dataset, test: Dataset, workdir: Path
) -> EvaluationContext:
    """What a run's evaluators are built from."""
    batches = functools.partial(placed_batches, config, mesh)
    return EvaluationContext(config, train, test, batches, mesh, workdir)


def placed_batches(
    config: Config, mesh: jax.sharding.Mesh, dataset: Dataset, view: View, what: str
) -> Iterator[Batch]:
    """All examples of a dataset in its own order, on the devices. what: they are for, shown while it goes on."""
    size = resolved(config.eval.batch_size)
    batches = evaluation_batches(
        dataset,
        view,
        batch_size=size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
    )
    with Progress(what, len(dataset)) as progress:
        for batch in batches:
            yield place(batch, batch_sharding(mesh))
            progress.update(min(size, len(dataset) - progress.done))


def evaluate(evaluators: Sequence[Evaluator], variables: Variables, *, baselines: bool) -> dict[str, float]:
    """All evaluators' results, and the seconds each took."""
    values: dict[str, float] = {}
    for evaluator in evaluators:
        started = time.perf_counter()
        values |= evaluator(variables, baselines=baselines)
        values[f"eval/{evaluator.name}_seconds"] = time.perf_counter() - started
    return values
