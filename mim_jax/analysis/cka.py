"""Centred kernel alignment between layers' features, linear kernel (docs/papers/dark_secrets.md 2.5).

In Gram form, n x n: the features of a layer, all its tokens side by side, are long, and the images are few. On the host, in
float64. Never rescale a Gram matrix by its extremes: that changes the values.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from mim_jax.config.check import ConfigError

Array = npt.NDArray[np.float64]

FEATURES = ("flatten", "pool", "cls", "tokens")
MIN_ROWS = 4
"""The unbiased estimate takes at least so many rows."""


def cka_features(tokens: jax.Array, prefix: int, features: str) -> jax.Array:
    """What CKA compares, of one block's output [B, N, D].

    features: flatten (all patch tokens of an image as one row; no CLS) | pool (their mean) | cls | tokens (a row per token).
    Returns:
        [B, rows per image, values].
    """
    if features not in FEATURES or (features == "cls" and not prefix):
        known = FEATURES if prefix else tuple(name for name in FEATURES if name != "cls")
        raise ValueError(f"CKA's features are {', '.join(known)}, not {features!r}")
    if features == "cls":
        return tokens[:, :1]
    patches = tokens[:, prefix:]
    if features == "pool":
        return jnp.mean(patches, axis=1, keepdims=True)
    return patches if features == "tokens" else patches.reshape(len(patches), 1, -1)


def gram(rows: jax.Array) -> jax.Array:
    """Products of centred rows, [..., n, p] to [..., n, n], float32 at least; on the device.

    Neither estimate depends on the centring, but in float32 a large common mean would drown what differs.
    """
    wide = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    wide = wide - jnp.mean(wide, axis=-2, keepdims=True)
    return jnp.einsum("...np,...mp->...nm", wide, wide, precision="highest")


def hsic(grams: npt.ArrayLike) -> Array:
    """tr(K H L H) of every pair of Gram matrices [L, n, n], [L, L]: the biased estimate, up to a factor."""
    k = np.asarray(grams, np.float64)
    k = k - k.mean(axis=-1, keepdims=True)
    flat = (k - k.mean(axis=-2, keepdims=True)).reshape(len(k), -1)
    return np.asarray(flat @ flat.T)


def hsic1(grams: npt.ArrayLike) -> Array:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion of every pair of [L, n, n], [L, L].

    Raises:
        ValueError: with fewer than 4 rows it does not exist.
    """
    k = np.asarray(grams, np.float64)
    n = k.shape[-1]
    if n < MIN_ROWS:
        raise ValueError(f"the unbiased HSIC needs at least {MIN_ROWS} rows, got {n}")
    k = k * (1.0 - np.eye(n))
    flat, rows = k.reshape(len(k), -1), k.sum(axis=-1)
    sums = rows.sum(axis=-1)
    both = flat @ flat.T + np.outer(sums, sums) / ((n - 1) * (n - 2)) - 2.0 * (rows @ rows.T) / (n - 2)
    return np.asarray(both / (n * (n - 3)))


def normalise_hsic(criterion: Array) -> Array:
    """CKA of every pair from their criteria [L, L], over the roots of the diagonal."""
    norms = np.sqrt(np.diagonal(criterion))
    return np.asarray(criterion / np.outer(norms, norms))


def cka(features: Sequence[npt.ArrayLike]) -> Array:
    """Biased CKA, in [0, 1], of layers' features [n, p of the layer] over the same n rows: [L, L]."""
    layers = [np.asarray(layer, np.float64) for layer in features]
    centred = [layer - layer.mean(axis=0) for layer in layers]
    return normalise_hsic(hsic([layer @ layer.T for layer in centred]))


def cka_minibatch(batches: Iterable[npt.ArrayLike]) -> Array:
    """Unbiased CKA from the Gram matrices [L, n, n] of one minibatch after another: [L, L], with ones on the diagonal.

    The means are taken before the ratio (Nguyen et al.). Entries may be slightly negative.

    Raises:
        ValueError: no minibatch, or one of fewer than 4 rows.
    """
    total: Array | None = None
    for grams in batches:
        criterion = hsic1(grams)
        total = criterion if total is None else total + criterion
    if total is None:
        raise ValueError("CKA of no minibatch does not exist")
    return normalise_hsic(total)


def mean_off_diagonal(values: Array) -> float:
    """Mean of CKA [L, L] off the diagonal; NaN for one layer."""
    layers = len(values)
    return float((values.sum() - np.trace(values)) / (layers * (layers - 1))) if layers > 1 else float("nan")


class CkaAccumulator:
    """CKA over batches: sums of the unbiased estimate, or all features for the biased one."""

    def __init__(self) -> None:
        self._criterion: Array | None = None
        self._rows: list[list[Array]] = []
        self._images = 0
        self._requested = False

    def add(self, outputs: dict[str, Any], valid: npt.NDArray[np.bool_]) -> None:
        """Adds the outputs of a measure step, if CKA is among them."""
        self._requested |= "grams" in outputs or "rows" in outputs
        for grams, complete in zip(outputs.get("grams", ()), outputs.get("complete", ()), strict=True):
            if complete:
                criterion = hsic1(grams)
                self._criterion = criterion if self._criterion is None else self._criterion + criterion
                self._images += len(valid) // len(outputs["complete"])
        if "rows" in outputs:
            self._rows.append([np.asarray(layer)[valid] for layer in outputs["rows"]])
            self._images += int(valid.sum())

    def result(self) -> tuple[Array | None, int]:
        """CKA [L, L], None unless requested; and the number of its images."""
        if self._rows:
            return cka([np.concatenate(parts) for parts in zip(*self._rows, strict=True)]), self._images
        if self._requested and self._criterion is None:
            raise ConfigError(
                "CKA needs more images per minibatch than there are: take a smaller --config.job.cka_batch"
            )
        return (None if self._criterion is None else normalise_hsic(self._criterion)), self._images
