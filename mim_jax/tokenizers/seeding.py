"""Where k-means starts: random points, or k-means++ on a sample of them."""

from functools import partial

import jax
import jax.numpy as jnp

from mim_jax.tokenizers.lloyd import squared_distances


@partial(jax.jit, static_argnums=1)
def plus_plus(points: jax.Array, clusters: int, key: jax.Array) -> jax.Array:
    """k-means++: each next centroid is a point drawn in proportion to its squared distance to the nearest so far.

    float [n, d] to [clusters, d].
    """
    first_key, key = jax.random.split(key)
    first = points[jax.random.randint(first_key, (), 0, len(points))]

    def add(carry: tuple[jax.Array, jax.Array], step: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        centroids, nearest = carry
        chosen = jax.random.categorical(jax.random.fold_in(key, step), jnp.log(nearest))
        centroids = centroids.at[step].set(points[chosen])
        return (centroids, jnp.minimum(nearest, squared_distances(points, points[chosen]))), None

    start = jnp.zeros((clusters, points.shape[1]), points.dtype).at[0].set(first)
    (centroids, _), _ = jax.lax.scan(add, (start, squared_distances(points, first)), jnp.arange(1, clusters))
    return centroids
