"""k-nearest-neighbour classification on frozen features: cosine similarity, votes weighted by exp(similarity / T)."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.methods.protocol import Batch, Method
from mim_jax.models.vit import Params

QUERIES = 1024
"""Test examples compared with all neighbours at once."""


def l2_normalise(features: jax.Array) -> jax.Array:
    """Rows of unit length."""
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnames=("k", "num_classes"))
def knn_scores(
    queries: jax.Array, bank: jax.Array, labels: jax.Array, *, k: int, temperature: float, num_classes: int
) -> jax.Array:
    """Votes per class.

    Args:
        queries: float [n, D]. bank: float [m, D]. Neither needs to be normalised.
        labels: int32 [m], classes of the bank.
        k: neighbours that vote; at most m.
        temperature: of the weights exp(cosine / temperature).
        num_classes: C.
    Returns:
        float32 [n, C]; the prediction is the argmax.
    """
    similarity = l2_normalise(queries) @ l2_normalise(bank).T
    nearest, place = jax.lax.top_k(similarity, k)
    votes = jnp.exp(
        (nearest - 1.0) / temperature
    )  # exp(-1 / T) is common to all votes and would underflow none
    rows = jnp.arange(queries.shape[0])[:, None]
    return jnp.zeros((queries.shape[0], num_classes), votes.dtype).at[rows, labels[place]].add(votes)


def knn_top1(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    k: int,
    temperature: float,
    num_classes: int,
) -> float:
    """Share of test examples classified correctly; each pair is (features [n, D], labels [n])."""
    correct = 0
    bank, labels = jnp.asarray(train[0]), jnp.asarray(train[1])
    for first in range(0, len(test[0]), QUERIES):
        scores = knn_scores(
            jnp.asarray(test[0][first : first + QUERIES]),
            bank,
            labels,
            k=min(k, len(labels)),
            temperature=temperature,
            num_classes=num_classes,
        )
        correct += int((np.asarray(scores).argmax(axis=1) == test[1][first : first + QUERIES]).sum())
    return correct / len(test[0])


class Knn:
    """`eval/knn_top1` of a method's features on a labelled source."""

    name = "knn"

    def __init__(
        self,
        method: Method,
        train: Callable[[], Iterable[Batch]],
        test: Callable[[], Iterable[Batch]],
        *,
        num_classes: int,
        sharding: Any,
    ) -> None:
        self.batches, self.num_classes, self.eval = (train, test), num_classes, method.config.eval
        everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        layer, pool = self.eval.knn_layer, self.eval.knn_pool

        def features(params: Params, batch: Batch) -> jax.Array:
            return method.encode(params, batch["image"]).pooled(layer, pool).astype(jnp.float32)

        self._features = jax.jit(features, out_shardings=everywhere)
        self._pixels = jax.jit(
            lambda _, b: method.clean_patches(b["image"]).reshape(b["image"].shape[0], -1),
            out_shardings=everywhere,
        )

    def __call__(self, state: Any, *, baselines: bool) -> dict[str, float]:
        """Top-1 of the features; with `baselines` also that of the raw pixels."""
        result = {"eval/knn_top1": self._top1(self._features, state.params)}
        if baselines:
            result["eval/knn_raw_pixels_top1"] = self._top1(self._pixels, state.params)
        return result

    def _top1(self, extract: Callable[[Params, Batch], jax.Array], params: Params) -> float:
        train, test = (_collect(extract, params, batches()) for batches in self.batches)
        return knn_top1(
            train,
            test,
            k=self.eval.knn_k,
            temperature=self.eval.knn_temperature,
            num_classes=self.num_classes,
        )


def _collect(
    extract: Callable[[Params, Batch], jax.Array], params: Params, batches: Iterable[Batch]
) -> tuple[np.ndarray, np.ndarray]:
    features, labels = [], []
    for batch in batches:
        valid = _everywhere(batch["valid"]).astype(bool)
        features.append(np.asarray(extract(params, batch))[valid])
        labels.append(_everywhere(batch["label"])[valid])
    return np.concatenate(features), np.concatenate(labels)


def _everywhere(x: Any) -> np.ndarray:
    """A batch's array as a whole, also where its rows lie on several hosts."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
