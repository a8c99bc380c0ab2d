"""What is measured of a run now and then, as its configuration asks for it."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
from etils.epath import Path

from mim_jax.analysis.evaluator import HeadDiversity
from mim_jax.cached_tokens import Rows, held_out_tokens
from mim_jax.config.check import ConfigError
from mim_jax.config.schema import Config, resolved
from mim_jax.data import Dataset, EvenSample, InputSpec, Subset, evaluation_batches, place, spread
from mim_jax.methods import Method, build_method
from mim_jax.methods.protocol import Batch
from mim_jax.progress import Progress
from mim_jax.training.heldout import HeldOut
from mim_jax.training.loop import Evaluator
from mim_jax.training.sharding import batch_sharding
from mim_jax.training.watching.log import say
from mim_jax.transfer.classification import Classification
from mim_jax.transfer.knn import Knn


def eval_batches(
    config: Config,
    mesh: jax.sharding.Mesh,
    dataset: Dataset,
    spec: InputSpec,
    limit: int | None = None,
    what: str = "evaluation",
    extras: Rows | None = None,
) -> Iterable[Batch]:
    """Placed batches of a split in its own order, in the view of `spec`.

    Args:
        limit: at most so many images, spread over all.
        what: they are for, shown while it goes on.
        extras: further keys of the batch, by the numbers of examples in `source`.
    """
    shown = spread(dataset, limit)
    if isinstance(shown, Subset):
        extras = {name: _of_subset(rows, shown) for name, rows in (extras or {}).items()}
    size = resolved(config.eval.batch_size)
    batches = evaluation_batches(
        shown,
        spec,
        batch_size=size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
        extras=extras,
    )
    with Progress(what, len(shown)) as progress:
        for batch in batches:
            yield place(batch, batch_sharding(mesh))
            progress.update(min(size, len(shown) - progress.done))


def _of_subset(rows: Callable[[Any], Any], subset: Subset) -> Callable[[Any], Any]:
    """Rows by the numbers of a subset, from rows by those of its source."""
    return lambda index: rows(subset.numbers(index))


def make_evaluators(
    config: Config,
    method: Method,
    mesh: jax.sharding.Mesh,
    train_dataset: Dataset,
    test_dataset: Dataset,
    batches: Callable[..., Iterable[Batch]],
    workdir: Path,
) -> list[Evaluator]:
    """The evaluators of a run. batches: (source, view, limit=) -> placed batches of held-out or training images."""
    evaluators: list[Evaluator] = []
    if config.eval.attention_images:
        attended = EvenSample(test_dataset, config.eval.attention_images)
        evaluators.append(
            HeadDiversity(method, lambda: batches(attended, method.feature_spec, what="attention"), mesh=mesh)
        )
    if method.num_classes:
        scores = Classification(
            method,
            lambda: batches(test_dataset, method.eval_spec, what="classification"),
            class_names=train_dataset.class_names,
            workdir=workdir,
            mesh=mesh,
        )
        return [scores, *evaluators]
    method = still(method)
    spec, extras = method.eval_spec, None
    if method.cached_view:
        extras = held_out_tokens(method, test_dataset)
        spec = dataclasses.replace(spec, extras=tuple(extras)) if extras else spec
    if extras == {}:
        say(
            f"no held-out loss: the token cache {config.method['tokens']} holds the training images only; python -m"
            " mim_jax.tokenize now keeps the ids of held-out images, too: make it again"
        )
    elif config.eval.heldout_examples:
        evaluators.append(
            HeldOut(
                method,
                lambda: batches(
                    test_dataset,
                    spec,
                    limit=config.eval.heldout_examples,
                    what="held-out loss",
                    extras=extras,
                ),
                mesh=mesh,
            )
        )
    if config.eval.knn and train_dataset.num_classes and not train_dataset.multi_label:
        evaluators.append(
            Knn(
                method,
                *(
                    functools.partial(
                        batches, dataset, method.feature_spec, limit=config.eval.knn_examples, what=what
                    )
                    for dataset, what in (
                        (train_dataset, "k-NN, training images"),
                        (test_dataset, "k-NN, held-out images"),
                    )
                ),
                num_classes=train_dataset.num_classes,
                sharding=batch_sharding(mesh),
                workdir=workdir,
            )
        )
    elif config.eval.knn:
        say(f"no k-NN: {train_dataset.name} has no single label an image")
    return evaluators


def check_evaluation(config: Config, method: Method) -> None:
    """What is evaluated must be there in the network.

    Raises:
        ConfigError: a block or a token that it has not.
    """
    e, net = config.eval, method.net
    if e.knn and e.knn_layer >= net.depth:
        raise ConfigError(
            f"config.eval.knn_layer={e.knn_layer}: give -1 (after the final norm), or a block in 0..{net.depth - 1}"
        )
    if e.knn and e.knn_pool == "cls" and not net.prefix:
        raise ConfigError("config.eval.knn_pool=cls, but the encoder has no CLS token: use mean")


def still(method: Method) -> Method:
    """The method without colour jitter, for held-out images: jitter belongs to training."""
    augment = dataclasses.replace(method.config.augment, jitter=0.0)
    return build_method(dataclasses.replace(method.config, augment=augment))
