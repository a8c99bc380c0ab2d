"""Nearest centroids of many points without ever holding all distances (docs/papers/mapet.md 8.1: exact, squared Euclidean),
and how evenly they are used."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

TILE = 512
"""Centroids compared at once; a power of two."""
ROWS = 8192
"""Points compared at once. Scores, best scores and best tiles of ROWS points take 3 x ROWS x TILE x 4 = 48 MiB, for any k."""
MIN_ROWS = 64
"""Fewer points are padded to so many: small products are summed in another order, and ids must not depend on the split."""
LANES = 8


def nearest_tiled(points: jax.Array, centroids: jax.Array) -> jax.Array:
    """As `targets.tokens.nearest_centroid`, for many centroids: ids int32 [n]; ties go to the smaller id.

    float32 [n, d] and [k, d]. The scores are products minus half the squared norms, as there. They are computed in tiles
    of at most TILE centroids, and lane j of a tile is compared with lane j of the best so far. That is one fused
    elementwise pass, which vectorises, where an argmin over [n, k] does not: at d = 48 it took twice the matmul.
    """
    clusters, width = centroids.shape
    tiles = -(-clusters // TILE)
    lanes = -(-clusters // (tiles * LANES)) * LANES
    padding = tiles * lanes - clusters
    half_norms = jnp.pad(0.5 * jnp.sum(jnp.square(centroids), axis=-1), (0, padding), constant_values=jnp.inf)
    tiled = jnp.pad(centroids, ((0, padding), (0, 0))).reshape(tiles, lanes, width)

    def compare(best: tuple[jax.Array, jax.Array], tile: tuple[jax.Array, ...]) -> tuple[Any, None]:
        score, at = best
        number, rows, half = tile
        # HIGHEST: true float32 on every device, so that ids are the same everywhere; free on a CPU.
        new = jnp.einsum("nd,kd->nk", points, rows, precision=jax.lax.Precision.HIGHEST) - half
        better = new > score
        return (jnp.where(better, new, score), jnp.where(better, number, at)), None

    shape = (len(points), lanes)
    start = (jnp.full(shape, -jnp.inf, points.dtype), jnp.zeros(shape, jnp.int32))
    steps = (jnp.arange(tiles, dtype=jnp.int32), tiled, half_norms.reshape(tiles, lanes))
    (score, at), _ = jax.lax.scan(compare, start, steps)
    return _best_lane(score, at * lanes + jnp.arange(lanes, dtype=jnp.int32))


def _best_lane(score: jax.Array, ids: jax.Array) -> jax.Array:
    """The id of the highest score in every row, the smallest among equals; float and int32 [n, lanes] to [n]."""
    parts = list(zip(jnp.split(score, LANES, axis=1), jnp.split(ids, LANES, axis=1), strict=True))
    score, ids = parts[0]
    for other, other_ids in parts[1:]:
        better = (other > score) | ((other == score) & (other_ids < ids))
        score, ids = jnp.where(better, other, score), jnp.where(better, other_ids, ids)
    highest = jnp.max(score, axis=1, keepdims=True)
    return jnp.min(jnp.where(score == highest, ids, jnp.iinfo(jnp.int32).max), axis=1)


_nearest = jax.jit(nearest_tiled)


def assign(points: npt.ArrayLike, centroids: npt.ArrayLike, *, rows: int = ROWS) -> npt.NDArray[np.int32]:
    """Ids int32 [n] of the nearest centroids (squared Euclidean); ties go to the smaller id.

    Args:
        points: any float [n, d]; computed in float32.
        centroids: float [k, d].
        rows: points compared at once; memory, not result: see ROWS. At most `rows` rounded up to a power of two.
    """
    points, codes = np.asarray(points), jnp.asarray(centroids, jnp.float32)
    if points.ndim != 2 or codes.ndim != 2 or points.shape[1] != codes.shape[1]:
        raise ValueError(
            f"points [n, d] and centroids [k, d] are needed, not {points.shape} and {codes.shape}"
        )
    ids = np.empty(len(points), np.int32)
    for start in range(0, len(points), rows):
        part = points[start : start + rows]
        # Few sizes, so that few programs are compiled.
        padded = np.zeros((max(MIN_ROWS, 1 << (len(part) - 1).bit_length()), points.shape[1]), np.float32)
        padded[: len(part)] = part
        ids[start : start + rows] = np.asarray(_nearest(padded, codes))[: len(part)]
    return ids


def usage_and_perplexity(counts: npt.ArrayLike) -> tuple[float, float]:
    """The share of codes that occur at all, in [0, 1], and the perplexity exp(entropy), in [1, V].

    counts: integers [V], how often each code occurs.

    Raises:
        ValueError: if no code occurs at all.
    """
    counts = np.asarray(counts, np.float64)
    if not counts.sum() > 0:
        raise ValueError("no code was used, so that there is no usage to speak of")
    shares = counts[counts > 0] / counts.sum()
    return float(np.mean(counts > 0)), float(np.exp(-np.sum(shares * np.log(shares))))
