"""Where k-means starts: random points, or k-means++ on a sample of them."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mim_jax.progress import Progress
from mim_jax.tokenizers.lloyd import squared_distances

PART = 256
"""Centroids that are drawn between two signs of life."""


class Start(NamedTuple):
    """What is drawn so far: centroids [k, d], and the squared distance of every point to the nearest of them [n]."""

    centroids: jax.Array
    nearest: jax.Array


def plus_plus(points: jax.Array, clusters: int, key: jax.Array) -> jax.Array:
    """k-means++: each next centroid is a point drawn in proportion to its squared distance to the nearest so far.

    float [n, d] to [clusters, d].
    """
    start, key = _first(points, clusters, key)
    with Progress("k-means++ start", clusters, "centroids") as progress:
        progress.update()
        for begin in range(1, clusters, PART):
            end = min(begin + PART, clusters)
            start = _more(points, start, key, begin, end)
            start.centroids.block_until_ready()  # a part is short, and the count must be true
            progress.update(end - begin)
    return start.centroids


@partial(jax.jit, static_argnums=1)
def _first(points: jax.Array, clusters: int, key: jax.Array) -> tuple[Start, jax.Array]:
    first_key, key = jax.random.split(key)
    first = points[jax.random.randint(first_key, (), 0, len(points))]
    centroids = jnp.zeros((clusters, points.shape[1]), points.dtype).at[0].set(first)
    return Start(centroids, squared_distances(points, first)), key


@jax.jit
def _more(points: jax.Array, start: Start, key: jax.Array, begin: jax.Array, end: jax.Array) -> Start:
    """The start with the centroids begin to end - 1, each drawn with a key of its own number."""

    def add(step: jax.Array, now: Start) -> Start:
        chosen = jax.random.categorical(jax.random.fold_in(key, step), jnp.log(now.nearest))
        return Start(
            now.centroids.at[step].set(points[chosen]),
            jnp.minimum(now.nearest, squared_distances(points, points[chosen])),
        )

    return jax.lax.fori_loop(begin, end, add, start)
