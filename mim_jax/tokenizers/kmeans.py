"""k-means on data that fits in memory: k-means++ start, full Lloyd iterations, empty clusters restarted.

For more data than that, several devices, restarts or checkpoints: `mim_jax.tokenizers.streaming`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.progress import tracked
from mim_jax.targets.tokens import nearest_centroid
from mim_jax.tokenizers.lloyd import add_block
from mim_jax.tokenizers.seeding import plus_plus

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
    centroids = plus_plus(jnp.asarray(points[:CHUNK], jnp.float32), clusters, jax.random.key(seed))
    for _ in tracked(range(iterations), "k-means", iterations, "iterations"):
        moved = _lloyd(centroids, data, jnp.asarray(weight))
        if bool(jnp.array_equal(moved, centroids)):
            break
        centroids = moved
    return centroids


@jax.jit
def _lloyd(centroids: jax.Array, data: jax.Array, weight: jax.Array) -> jax.Array:
    """One iteration over data [chunks, n, d] with weight [chunks, n] (0 for padding)."""
    clusters = centroids.shape[0]

    def visit(carry: tuple, part: tuple[jax.Array, jax.Array]) -> tuple[tuple, jax.Array]:
        sums, counts = carry
        points, own = part
        ids = nearest_centroid(points, centroids)
        sums, counts, distances = add_block(sums, counts, points, own, centroids, ids)
        return (sums, counts), distances

    start = (jnp.zeros_like(centroids), jnp.zeros(clusters))
    (sums, counts), distances = jax.lax.scan(visit, start, (data, weight))
    means = sums / jnp.maximum(counts, 1.0)[:, None]
    worst = jax.lax.top_k(distances.reshape(-1), clusters)[1]  # one candidate for each possibly empty cluster
    place = jnp.cumsum(counts == 0) - 1
    return jnp.where((counts == 0)[:, None], data.reshape(-1, data.shape[-1])[worst[place]], means)
