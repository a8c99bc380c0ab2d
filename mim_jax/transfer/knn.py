"""k-nearest-neighbour classification on frozen features: cosine similarity, votes weighted by exp(similarity / T).

The queries are held, the neighbours stream by in blocks: memory does not grow with their number.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path

from mim_jax.config.check import ConfigError
from mim_jax.config.schema import Eval
from mim_jax.transfer.gathering import gather_rows
from mim_jax.transfer.metrics import STANDARD_ERROR, standard_error
from mim_jax.transfer.per_image import write_correct

QUERIES = 2048
NEIGHBOURS = 8192
"""Queries and neighbours compared at once: 64 MiB of similarities."""

Params = Any
Batch = Mapping[str, Any]
Pairs = Iterable[tuple[np.ndarray, np.ndarray]]


def l2_normalise(features: jax.Array) -> jax.Array:
    """Rows of unit length."""
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


@jax.jit
def nearest(
    queries: jax.Array, held: tuple[jax.Array, jax.Array], block: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The k nearest of those held and of a block.

    Args:
        queries: float [n, D]. block: float [m, D]. Neither needs to be normalised.
        held: similarities [n, k] in descending order and labels int32 [n, k].
        labels: int32 [m]; -1 = no example, never near.
    Returns:
        like `held`; of equal similarities the earlier one stays.
    """
    similarity = jnp.matmul(l2_normalise(queries), l2_normalise(block).T, precision="highest")
    similarity = jnp.where(labels >= 0, similarity, -jnp.inf)
    both = jnp.concatenate([held[0], similarity], axis=1)
    names = jnp.concatenate([held[1], jnp.broadcast_to(labels, similarity.shape)], axis=1)
    best, place = jax.lax.top_k(both, held[0].shape[1])
    return best, jnp.take_along_axis(names, place, axis=1)


@partial(jax.jit, static_argnames=("k", "num_classes"))
def votes(
    similarity: jax.Array, labels: jax.Array, *, k: int, temperature: float, num_classes: int
) -> jax.Array:
    """Votes per class of the first k neighbours, float [n, C]; the prediction is the argmax.

    Args:
        similarity, labels: of `nearest`. temperature: of the weights exp(cosine / temperature).
    """
    # exp(-1 / T) is common to all votes and would underflow
    weights = jnp.where(labels[:, :k] >= 0, jnp.exp((similarity[:, :k] - 1.0) / temperature), 0.0)
    rows = jnp.arange(len(labels))[:, None]
    return jnp.zeros((len(labels), num_classes), weights.dtype).at[rows, labels[:, :k]].add(weights)


def knn_correct(
    train: Pairs,
    test: tuple[np.ndarray, np.ndarray],
    *,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
) -> np.ndarray:
    """Whether each test example is classified correctly, bool [ks, n].

    Args:
        train: parts of any size, (features [n, D], labels [n]). test: one such pair.
    """
    features, labels = test
    most = max(ks)
    starts = range(0, len(features), QUERIES)
    held = [
        (
            np.full((len(features[s : s + QUERIES]), most), -np.inf, np.float32),
            np.full((len(features[s : s + QUERIES]), most), -1, np.int32),
        )
        for s in starts
    ]
    for block, names in blocks(train, NEIGHBOURS):
        held = [
            nearest(jnp.asarray(features[s : s + QUERIES]), own, jnp.asarray(block), jnp.asarray(names))
            for s, own in zip(starts, held, strict=True)
        ]
    correct = np.zeros((len(ks), len(features)), bool)
    for s, own in zip(starts, held, strict=True):
        for i, k in enumerate(ks):
            scores = votes(*map(jnp.asarray, own), k=k, temperature=temperature, num_classes=num_classes)
            correct[i, s : s + QUERIES] = np.asarray(scores).argmax(axis=1) == labels[s : s + QUERIES]
    return correct


def blocks(pairs: Pairs, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same rows in parts of `size`; the last one is filled up with label -1."""
    held: list[tuple[np.ndarray, np.ndarray]] = []
    for pair in pairs:
        held.append(pair)
        while sum(len(labels) for _, labels in held) >= size:
            features, labels = (np.concatenate(column) for column in zip(*held, strict=True))
            yield features[:size], labels[:size]
            held = [(features[size:], labels[size:])]
    features, labels = (np.concatenate(column) for column in zip(*held, strict=True))
    if len(labels):
        missing = size - len(labels)
        yield np.pad(features, ((0, missing), (0, 0))), np.pad(labels, (0, missing), constant_values=-1)


class Knn:
    """`eval/knn_top1` of features on a labelled dataset.

    encode: (params, images) -> features [B, D]. raw: images -> what the features are to be compared with, [B, any].
    train, test: batches with image, label and valid. settings: the section `eval` of a configuration.
    """

    name = "knn"

    def __init__(
        self,
        encode: Callable[[Params, jax.Array], jax.Array],
        raw: Callable[[jax.Array], jax.Array],
        train: Callable[[], Iterable[Batch]],
        test: Callable[[], Iterable[Batch]],
        *,
        settings: Eval,
        num_classes: int,
        mesh: jax.sharding.Mesh,
        workdir: Path,
    ) -> None:
        self._workdir = workdir
        self.batches, self.num_classes, self.eval = (train, test), num_classes, settings
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._features = jax.jit(
            lambda params, batch: encode(params, batch["image"]).astype(jnp.float32),
            out_shardings=replicated,
        )
        self._pixels = jax.jit(lambda _, batch: raw(batch["image"]), out_shardings=replicated)

    def __call__(self, variables: Any, *, baselines: bool) -> dict[str, float]:
        """Top-1 of the features and its standard error, for every k; with `baselines` also that of the raw pixels (first k)."""
        ks = (self.eval.knn_k,) if isinstance(self.eval.knn_k, int) else self.eval.knn_k
        names = ["eval/knn_top1", *(f"eval/knn{k}_top1" for k in ks[1:])]
        correct, commonest = self._classify(self._features, variables.params, ks)
        write_correct(self._workdir, dict(zip(names, correct, strict=True)))
        result = dict(zip(names, correct.mean(axis=1).tolist(), strict=True))
        images = correct.shape[1]
        result |= {f"{name}{STANDARD_ERROR}": standard_error(share, images) for name, share in result.items()}
        if baselines:
            raw_correct, _ = self._classify(self._pixels, variables.params, ks[:1])
            result["eval/knn_raw_pixels_top1"] = float(raw_correct.mean())
            result["eval/commonest_class_top1"] = commonest
        return result

    def _classify(
        self, extract: Callable[[Params, Batch], jax.Array], params: Params, ks: Sequence[int]
    ) -> tuple[np.ndarray, float]:
        """Whether each test image is right, bool [ks, N]; top-1 of always naming the commonest class of the neighbours."""
        counts = np.zeros(self.num_classes, np.int64)
        train, test = (_extracted(extract, params, batches()) for batches in self.batches)

        def counted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for features, labels in train:
                counts[:] += np.bincount(labels, minlength=self.num_classes)
                yield features, labels

        features, labels = (np.concatenate(column) for column in zip(*test, strict=True))
        correct = knn_correct(
            counted(),
            (features, labels),
            ks=ks,
            temperature=self.eval.knn_temperature,
            num_classes=self.num_classes,
        )
        return correct, float(np.mean(labels == counts.argmax()))


def _extracted(
    extract: Callable[[Params, Batch], jax.Array], params: Params, batches: Iterable[Batch]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for batch in batches:
        valid = gather_rows(batch["valid"]).astype(bool)
        features = np.asarray(extract(params, batch))[valid]
        if not np.isfinite(features).all():
            raise ConfigError(
                "k-NN: some features are not finite numbers: the network has diverged, or its weights are damaged"
            )
        yield features, gather_rows(batch["label"])[valid]
