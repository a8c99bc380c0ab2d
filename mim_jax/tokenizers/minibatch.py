"""Mini-batch k-means (Sculley 2010): every batch moves its centroids, each by a rate that falls with what it has seen."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from mim_jax.tokenizers.lloyd import Totals, add_points


class Moving(NamedTuple):
    """Centroids during a pass; whole on every device."""

    centroids: jax.Array  # float32 [k, d]
    seen: jax.Array  # float32 [k], points that each centroid is the mean of, over all passes
    counts: jax.Array  # int32 [k], of this pass
    inertia: jax.Array  # float32 [k], of this pass; each batch against the centroids that it met


def begin(centroids: jax.Array, seen: jax.Array) -> Moving:
    """At the start of a pass."""
    return Moving(centroids, seen, jnp.zeros(len(seen), jnp.int32), jnp.zeros(len(seen)))


@functools.lru_cache(maxsize=8)
def minibatch_step(
    mesh: Mesh,
) -> Callable[[Moving, jax.Array, jax.Array], tuple[Moving, jax.Array]]:
    """(state, points [n, d], own [n]) -> (state after the batch, something small to wait for).

    A centroid becomes the mean of all points it was ever given: c += (sum - n c) / (seen + n), with the n points of the
    batch that are nearest to it. Points and `own` (0 for padding) are divided by rows. The old state is given up.
    """
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()

    def local(state: Moving, points: jax.Array, own: jax.Array) -> Moving:
        zeros = Totals(
            jnp.zeros_like(state.centroids),
            jnp.zeros_like(state.centroids),
            jnp.zeros_like(state.counts),
            jnp.zeros_like(state.inertia),
            jnp.zeros_like(state.inertia),
        )
        of_batch = add_points(zeros, state.centroids, points, own)
        sums, counts, inertia = jax.lax.psum(
            (of_batch.sums + of_batch.lost, of_batch.counts, of_batch.inertia + of_batch.inertia_lost),
            mesh.axis_names,
        )
        new = counts.astype(jnp.float32)
        seen = state.seen + new
        step = (sums - new[:, None] * state.centroids) / jnp.maximum(seen, 1.0)[:, None]
        return Moving(state.centroids + step, seen, state.counts + counts, state.inertia + inertia)

    divided = jax.shard_map(local, mesh=mesh, in_specs=(whole, rows, rows), out_specs=whole, check_vma=False)

    def step(state: Moving, points: jax.Array, own: jax.Array) -> tuple[Moving, jax.Array]:
        state = divided(state, points, own)
        return state, jnp.sum(state.counts)

    return jax.jit(step, donate_argnums=0)
