"""One pass of Lloyd's algorithm: sums, counts and inertia of every cluster, rows divided over the devices of a mesh."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mim_jax.tokenizers.assignment import ROWS, nearest_tiled


class Totals(NamedTuple):
    """Running totals of k clusters, one set for each device: the leading axis is the devices.

    What float32 additions round off is kept in `lost` (Knuth's two-sum), so that totals of millions of points are as
    good as those of one block.
    """

    sums: jax.Array  # float32 [devices, k, d]
    lost: jax.Array  # float32 [devices, k, d]
    counts: jax.Array  # int32 [devices, k]
    inertia: jax.Array  # float32 [devices, k], summed squared distances
    inertia_lost: jax.Array  # float32 [devices, k]


Clusters = tuple[jax.Array, jax.Array, jax.Array]
"""Sums float32 [k, d], counts int32 [k], inertia float32 [k]."""
Step = Callable[[Totals, jax.Array, jax.Array, jax.Array], tuple[Totals, jax.Array]]


def squared_distances(points: jax.Array, centroid: jax.Array) -> jax.Array:
    """Of rows: [n, d] and [d] or [n, d] to [n]."""
    return jnp.sum(jnp.square(points - centroid), axis=-1)


def add_block(
    sums: jax.Array,
    counts: jax.Array,
    points: jax.Array,
    own: jax.Array,
    centroids: jax.Array,
    ids: jax.Array,
) -> Clusters:
    """Adds points [n, d] with ids [n] to the sums [k, d] and counts [k]; `own` [n] is 0 for padding.

    Returns sums, counts and the squared distances [n]. They are those of the differences: products minus norms would
    lose the digits of points that lie close to their centroid.
    """
    sums = sums.at[ids].add(points * own[:, None])
    counts = counts.at[ids].add(own.astype(counts.dtype))
    return sums, counts, squared_distances(points, centroids[ids]) * own


def empty_totals(mesh: Mesh, clusters: int, width: int) -> Totals:
    """Zeros on the devices of `mesh`."""
    return _zeros(mesh, clusters, width)()


@functools.lru_cache(maxsize=8)
def _zeros(mesh: Mesh, clusters: int, width: int) -> Callable[[], Totals]:
    count = mesh.size

    def make() -> Totals:
        wide, flat = (count, clusters, width), (count, clusters)
        return Totals(
            jnp.zeros(wide), jnp.zeros(wide), jnp.zeros(flat, jnp.int32), jnp.zeros(flat), jnp.zeros(flat)
        )

    return jax.jit(make, out_shardings=rows_sharding(mesh))


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices, whatever the axes of the mesh are called."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def everywhere(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


@functools.lru_cache(maxsize=8)
def lloyd_step(mesh: Mesh) -> Step:
    """(totals, centroids [k, d], points [n, d], own [n]) -> (totals with these points, something small to wait for).

    Points and `own` are divided by rows, centroids are whole everywhere; no device waits for another. The old totals are
    given up.
    """
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()

    def local(
        totals: Totals, centroids: jax.Array, points: jax.Array, own: jax.Array
    ) -> tuple[Totals, jax.Array]:
        mine = add_points(jax.tree.map(lambda x: x[0], totals), centroids, points, own)
        return jax.tree.map(lambda x: x[None], mine), jnp.sum(mine.counts)[None]

    step = jax.shard_map(
        local, mesh=mesh, in_specs=(rows, whole, rows, rows), out_specs=(rows, rows), check_vma=False
    )
    return jax.jit(step, donate_argnums=0)


def add_points(totals: Totals, centroids: jax.Array, points: jax.Array, own: jax.Array) -> Totals:
    """Adds points [n, d], in blocks of at most ROWS, to totals without their leading axis.

    Points beyond the last whole block are padded. Scatter-adds run in any order on a GPU: there, sums repeat bit for bit
    only with XLA_FLAGS=--xla_gpu_deterministic_ops=true.
    """
    count = -(-len(points) // ROWS)
    size = -(-len(points) // count)
    padding = count * size - len(points)
    points = jnp.pad(points, ((0, padding), (0, 0))).reshape(count, size, -1)
    own = jnp.pad(own, (0, padding)).reshape(count, size)

    def visit(totals: Totals, part: tuple[jax.Array, jax.Array]) -> tuple[Totals, None]:
        block, weight = part
        ids = nearest_tiled(block, centroids)
        sums, counts, distances = add_block(
            jnp.zeros_like(totals.sums), totals.counts, block, weight, centroids, ids
        )
        inertia = jnp.zeros_like(totals.inertia).at[ids].add(distances)
        return Totals(
            *_two_sum(totals.sums, totals.lost, sums),
            counts,
            *_two_sum(totals.inertia, totals.inertia_lost, inertia),
        ), None

    return jax.lax.scan(visit, totals, (points, own))[0]


def _two_sum(total: jax.Array, lost: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum, and what it rounded off added to what was lost before."""
    new = total + value
    part = new - total
    return new, lost + ((total - (new - part)) + (value - part))


@functools.lru_cache(maxsize=8)
def collect(mesh: Mesh) -> Callable[[Totals], Clusters]:
    """Adds the totals of all devices; the result is whole everywhere."""

    def add(totals: Totals) -> Clusters:
        return (
            totals.sums.sum(0) + totals.lost.sum(0),
            totals.counts.sum(0),
            totals.inertia.sum(0) + totals.inertia_lost.sum(0),
        )

    return jax.jit(add, out_shardings=everywhere(mesh))
