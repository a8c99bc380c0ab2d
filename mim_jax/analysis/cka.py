"""Centred kernel alignment between layers' features, linear kernel (docs/papers/dark_secrets.md 2.5).

In Gram form, n x n: the features of a layer, all its tokens side by side, are long, and the images are few. On the host, in
float64. Never rescale a Gram matrix by its extremes: that changes the values.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

FEATURES = ("flatten", "pool", "cls", "tokens")
FEWEST = 4
"""Rows below which the unbiased estimate does not exist."""


def rows_of(slots: jax.Array, prefix: int, features: str) -> jax.Array:
    """What CKA compares, of one block's output [B, N, D].

    features: flatten (all patch tokens of an image as one row; no CLS) | pool (their mean) | cls | tokens (a row a token).
    Returns:
        [B, rows an image, values].
    """
    if features not in FEATURES or (features == "cls" and not prefix):
        known = FEATURES if prefix else tuple(name for name in FEATURES if name != "cls")
        raise ValueError(f"CKA's features are {', '.join(known)}, not {features!r}")
    if features == "cls":
        return slots[:, :1]
    patches = slots[:, prefix:]
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
    if n < FEWEST:
        raise ValueError(f"the unbiased HSIC needs at least {FEWEST} rows, got {n}")
    k = k * (1.0 - np.eye(n))
    flat, rows = k.reshape(len(k), -1), k.sum(axis=-1)
    sums = rows.sum(axis=-1)
    both = flat @ flat.T + np.outer(sums, sums) / ((n - 1) * (n - 2)) - 2.0 * (rows @ rows.T) / (n - 2)
    return np.asarray(both / (n * (n - 3)))


def aligned(criterion: Array) -> Array:
    """CKA of every pair from their criteria [L, L], over the roots of the diagonal."""
    own = np.sqrt(np.diagonal(criterion))
    return np.asarray(criterion / np.outer(own, own))


def cka(features: Sequence[npt.ArrayLike]) -> Array:
    """Biased CKA, in [0, 1], of layers' features [n, p of the layer] over the same n rows: [L, L]."""
    layers = [np.asarray(layer, np.float64) for layer in features]
    centred = [layer - layer.mean(axis=0) for layer in layers]
    return aligned(hsic([layer @ layer.T for layer in centred]))


def cka_minibatch(batches: Iterable[npt.ArrayLike]) -> Array:
    """Unbiased CKA from the Gram matrices [L, n, n] of one minibatch after another: [L, L], with ones on the diagonal.

    The means are taken before the ratio (Nguyen et al.). Entries may be slightly negative.

    Raises:
        ValueError: no minibatch, or one of fewer than 4 rows.
    """
    total: Array | None = None
    for grams in batches:
        found = hsic1(grams)
        total = found if total is None else total + found
    if total is None:
        raise ValueError("CKA of no minibatch does not exist")
    return aligned(total)


def mean_off_diagonal(values: Array) -> float:
    """How alike different layers are: mean of a map [L, L] without its diagonal; not a number for one layer."""
    layers = len(values)
    return float((values.sum() - np.trace(values)) / (layers * (layers - 1))) if layers > 1 else float("nan")
