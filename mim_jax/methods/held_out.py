"""How pre-training is judged: the held-out loss beside what it must beat, and k-nearest-neighbour classification."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from mim_jax.config.check import ConfigError
from mim_jax.data import ClassLabel, evenly_spaced
from mim_jax.keys import Purpose, example_keys
from mim_jax.methods.terms import Sums, means, sum_terms
from mim_jax.progress import log
from mim_jax.transfer.knn import Knn

if TYPE_CHECKING:  # method.py imports this module: the default of `Method.evaluators`
    from mim_jax.methods.method import Batch, EvaluationContext, Evaluator, Method, Variables, View


def pretraining_evaluators(method: Method, context: EvaluationContext) -> list[Evaluator]:
    """The held-out loss, where there are held-out images and something to predict; k-NN, where every image has one class.

    Raises:
        ConfigError: the section `eval` asks for a block or a token that the encoder has not.
    """
    settings, train, test = context.config.eval, context.train, context.test
    evaluators: list[Evaluator] = []
    shown = evenly_spaced(test, settings.heldout_examples)
    view = method.eval_view(shown) if settings.heldout_examples else None
    if view is not None:
        batches = functools.partial(context.batches, shown, view, "held-out loss")
        evaluators.append(HeldOutLoss(method.phases[-1].method, batches, context.config.seed))
    if settings.knn and train.annotation is ClassLabel:
        layer, pool = settings.knn_layer, settings.knn_pool
        _check_features(method, layer, pool)
        splits = ((train, "training"), (test, "held-out"))
        evaluators.append(
            Knn(
                lambda params, images: method.encode(params, images).pooled(layer, pool),
                lambda images: method.patches(images).reshape(len(images), -1),
                *(
                    functools.partial(
                        context.batches,
                        evenly_spaced(dataset, settings.knn_examples),
                        method.feature_view,
                        f"k-NN, {name} images",
                    )
                    for dataset, name in splits
                ),
                settings=settings,
                num_classes=train.num_classes,
                mesh=context.mesh,
                workdir=context.workdir,
            )
        )
    elif settings.knn:
        log(f"no k-NN: {train.name} has no single label per image")
    return evaluators


def _check_features(method: Method, layer: int, pool: str) -> None:
    """k-NN needs a block and a token that are there."""
    if layer >= method.net.depth:
        raise ConfigError(
            f"config.eval.knn_layer={layer}: give -1 (after the final norm), or a block in 0..{method.net.depth - 1}"
        )
    if pool == "cls" and not method.net.prefix:
        raise ConfigError("config.eval.knn_pool=cls, but the encoder has no CLS token: use mean")


class HeldOutLoss:
    """Mean terms over held-out examples: the same examples, masks and orders at every evaluation."""

    name = "heldout"

    def __init__(self, method: Method, batches: Callable[[], Iterable[Batch]], seed: int) -> None:
        self._loss_weights, self._batches = method.loss_weights, batches
        self._sums = {
            baselines: jax.jit(functools.partial(_held_out_sums, method, seed, baselines))
            for baselines in (False, True)
        }

    def __call__(self, variables: Variables, *, baselines: bool) -> dict[str, float]:
        """`eval/<term>` for every term, and with `baselines` those that it is to be compared with."""
        totals: dict[str, Sums] | None = None
        for batch in self._batches():
            sums = self._sums[baselines](variables, batch)
            totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
        return {
            f"eval/{f'{group}_' if group else ''}{name}": float(value)
            for group, sums in (totals or {}).items()
            for name, value in means(sums, self._loss_weights).items()
        }


def _held_out_sums(
    method: Method, seed: int, baselines: bool, variables: Variables, batch: Batch
) -> dict[str, Sums]:
    """Sums of the method's own terms (group "") and of each baseline's."""
    keys = example_keys(seed, Purpose.HELDOUT, batch["epoch"], batch["index"])
    view = method.corrupt(keys, batch, variables, train=False)
    groups = {"": method.loss(method.forward(variables, view, keys, False), view)}
    if baselines:
        groups |= method.baselines(view, variables)
        if "patches" in view:
            shuffled = other_images_patches(view)
            groups["other_images"] = method.loss(method.forward(variables, shuffled, keys, False), view)
    return {group: sum_terms(terms, batch["valid"]) for group, terms in groups.items()}


def other_images_patches(view: View) -> View:
    """The view with every patch position filled from another image of the batch: no image is left to look at.

    Position j takes its patch from the example 1 + (j mod (B - 1)) further on, so neighbours come from different images.
    """
    patches = view["patches"]
    batch, length = patches.shape[:2]
    shift = 1 + jnp.arange(length) % max(1, batch - 1)
    source = (jnp.arange(batch)[:, None] + shift[None, :]) % batch
    return {**view, "patches": jnp.take_along_axis(patches, source[..., None], axis=0)}
