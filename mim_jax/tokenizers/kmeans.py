"""k-means on data that fits in memory: k-means++ start, full Lloyd iterations, empty clusters restarted."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.targets.tokens import nearest_centroid

CHUNK = 16384
"""Points whose distances to all centroids are held at once."""


def fit_kmeans(points: np.ndarray, clusters: int, *, seed: int = 0, iterations: int = 30) -> jax.Array:
    """Centroids [clusters, d] that locally minimise the summed squared distance (float32).

    Deterministic in (points, clusters, seed). A cluster that loses all its points moves to the point that is worst
    served, so that the ids stay in use where there are enough different points.

    Raises:
        ValueError: if there are fewer distinct points than clusters.
    """
    distinct = len(np.unique(points[: 50 * clusters], axis=0))
    if distinct < clusters:
        distinct = len(np.unique(points, axis=0))
    if distinct < clusters:
        raise ValueError(
            f"{clusters} clusters were asked for, but the data holds only {distinct} different points"
        )
    chunk = min(CHUNK, len(points))
    padded = np.concatenate([points, np.zeros((-len(points) % chunk, points.shape[1]), points.dtype)])
    weight = (np.arange(len(padded)) < len(points)).astype(np.float32).reshape(-1, chunk)
    data = jnp.asarray(padded, jnp.float32).reshape(-1, chunk, points.shape[1])
    centroids = _plus_plus(jnp.asarray(points[:CHUNK], jnp.float32), clusters, jax.random.key(seed))
    for _ in range(iterations):
        moved = _lloyd(centroids, data, jnp.asarray(weight))
        if bool(jnp.array_equal(moved, centroids)):
            break
        centroids = moved
    return centroids


def _distances(points: jax.Array, centroid: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(points - centroid), axis=-1)


@partial(jax.jit, static_argnums=1)
def _plus_plus(points: jax.Array, clusters: int, key: jax.Array) -> jax.Array:
    """k-means++: each next centroid is a point drawn in proportion to its squared distance to the nearest so far."""
    first_key, key = jax.random.split(key)
    first = points[jax.random.randint(first_key, (), 0, len(points))]

    def add(carry: tuple[jax.Array, jax.Array], step: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        centroids, nearest = carry
        chosen = jax.random.categorical(jax.random.fold_in(key, step), jnp.log(nearest))
        centroids = centroids.at[step].set(points[chosen])
        return (centroids, jnp.minimum(nearest, _distances(points, points[chosen]))), None

    start = jnp.zeros((clusters, points.shape[1]), points.dtype).at[0].set(first)
    (centroids, _), _ = jax.lax.scan(add, (start, _distances(points, first)), jnp.arange(1, clusters))
    return centroids


@jax.jit
def _lloyd(centroids: jax.Array, data: jax.Array, weight: jax.Array) -> jax.Array:
    """One iteration over data [chunks, n, d] with weight [chunks, n] (0 for padding)."""
    clusters = centroids.shape[0]

    def visit(carry: tuple, part: tuple[jax.Array, jax.Array]) -> tuple[tuple, tuple[jax.Array, jax.Array]]:
        sums, counts = carry
        points, own = part
        ids = nearest_centroid(points, centroids)
        sums = sums.at[ids].add(points * own[:, None])
        counts = counts.at[ids].add(own)
        return (sums, counts), (_distances(points, centroids[ids]) * own, ids)

    start = (jnp.zeros_like(centroids), jnp.zeros(clusters))
    (sums, counts), (distances, _) = jax.lax.scan(visit, start, (data, weight))
    means = sums / jnp.maximum(counts, 1.0)[:, None]
    worst = jax.lax.top_k(distances.reshape(-1), clusters)[1]  # one candidate for each possibly empty cluster
    place = jnp.cumsum(counts == 0) - 1
    return jnp.where((counts == 0)[:, None], data.reshape(-1, data.shape[-1])[worst[place]], means)
