"""One pass of k-means over all points, sharded over the devices of a mesh: of Lloyd's algorithm, or of mini-batches."""

import collections
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mim_jax.data.placement import place
from mim_jax.progress import Progress
from mim_jax.tokenizers.assignment import ROWS, nearest_tiled
from mim_jax.tokenizers.kmeans_points import FloatArray, Points, squared_distances

BLOCKS_IN_FLIGHT = 2
"""Blocks that wait on the devices while the host reads the next."""


class PassResult(NamedTuple):
    """What a pass computed; equal on all hosts."""

    centroids: FloatArray  # [k, d], moved; those of empty clusters stay where they were
    counts: npt.NDArray[np.int64]  # [k], points of each
    inertia: npt.NDArray[np.float64]  # [k], summed squared distances to the centroids before they moved
    seen: FloatArray  # [k], see MiniBatchState


class Passes:
    """Passes over `points`, `rows` at a time (all hosts together), sharded over all devices of `mesh`."""

    def __init__(self, points: Points, mesh: Mesh, rows: int) -> None:
        self._points, self._mesh = points, mesh
        self._rows = rows // jax.process_count()
        self._padding = -self._rows % (mesh.size // jax.process_count())

    def lloyd(self, centroids: FloatArray, seen: FloatArray) -> PassResult:
        """Assigns all points, then moves every centroid to the mean of its points. float32 [k, d] and [k]."""
        step, replicated = lloyd_step(self._mesh), self._replicate(centroids)
        totals = zero_totals(self._mesh, *centroids.shape)
        totals = self._scan(lambda totals, points, weight: step(totals, replicated, points, weight), totals)
        sums, counts, inertia = (np.asarray(x) for x in sum_over_devices(self._mesh)(totals))
        means = sums / np.maximum(counts, 1).astype(np.float32)[:, None]
        means = np.where((counts > 0)[:, None], means, centroids)
        return PassResult(means, counts.astype(np.int64), inertia.astype(np.float64), seen)

    def minibatch(self, centroids: FloatArray, seen: FloatArray) -> PassResult:
        """Moves the centroids after every `rows` points. float32 [k, d] and [k]."""
        zeros = jnp.zeros(len(seen), jnp.int32), jnp.zeros(len(seen))
        state = MiniBatchState(self._replicate(centroids), self._replicate(seen), *zeros)
        state = self._scan(minibatch_step(self._mesh), state)
        moved, seen, counts, inertia = (np.asarray(x) for x in state)
        return PassResult(moved, counts.astype(np.int64), inertia.astype(np.float64), seen)

    def _scan(self, step: Callable[..., Any], carry: Any) -> Any:
        """step: (carry, points [n, d], weight [n]) -> (carry, something small to wait for), over all blocks."""
        in_flight: collections.deque[jax.Array] = collections.deque()
        with Progress("k-means pass", self._points.used, "points") as progress:
            for points, weight in self._points.blocks(self._rows):
                if self._padding:
                    points = np.pad(points, ((0, self._padding), (0, 0)))
                    weight = np.pad(weight, (0, self._padding))
                block = place({"points": points, "weight": weight}, row_sharding(self._mesh))
                carry, token = step(carry, block["points"], block["weight"])
                in_flight.append(token)
                if len(in_flight) > BLOCKS_IN_FLIGHT:
                    in_flight.popleft().block_until_ready()
                progress.update(min(self._rows * jax.process_count(), self._points.used - progress.done))
        return carry

    def _replicate(self, array: npt.NDArray[Any]) -> jax.Array:
        return jax.make_array_from_process_local_data(replicated_sharding(self._mesh), array)


class Totals(NamedTuple):
    """Running totals of k clusters, one set per device: the leading axis is the devices.

    What float32 additions round off is kept in `*_error` (Knuth's two-sum), so that totals of millions of points are as
    good as those of one block.
    """

    sums: jax.Array  # float32 [devices, k, d]
    sums_error: jax.Array  # float32 [devices, k, d]
    counts: jax.Array  # int32 [devices, k]
    inertia: jax.Array  # float32 [devices, k], summed squared distances
    inertia_error: jax.Array  # float32 [devices, k]


ClusterSums = tuple[jax.Array, jax.Array, jax.Array]
"""Sums float32 [k, d], counts int32 [k], inertia float32 [k]."""


def row_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices, whatever the axes of the mesh are called."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def zero_totals(mesh: Mesh, clusters: int, width: int) -> Totals:
    """Zeros on the devices of `mesh`."""
    return _make_zero_totals(mesh, clusters, width)()


@functools.lru_cache(maxsize=8)
def _make_zero_totals(mesh: Mesh, clusters: int, width: int) -> Callable[[], Totals]:
    def make() -> Totals:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (mesh.size, *x.shape)), _zeros(clusters, width))

    return jax.jit(make, out_shardings=row_sharding(mesh))


def _zeros(clusters: int, width: int) -> Totals:
    """Totals of one device, without the leading axis."""
    sums, flat = jnp.zeros((clusters, width)), jnp.zeros(clusters)
    return Totals(sums, sums, jnp.zeros(clusters, jnp.int32), flat, flat)


@functools.lru_cache(maxsize=8)
def sum_over_devices(mesh: Mesh) -> Callable[[Totals], ClusterSums]:
    """Adds the totals of all devices; the result is replicated."""

    def add(totals: Totals) -> ClusterSums:
        return (
            totals.sums.sum(0) + totals.sums_error.sum(0),
            totals.counts.sum(0),
            totals.inertia.sum(0) + totals.inertia_error.sum(0),
        )

    return jax.jit(add, out_shardings=replicated_sharding(mesh))


@functools.lru_cache(maxsize=8)
def lloyd_step(
    mesh: Mesh,
) -> Callable[[Totals, jax.Array, jax.Array, jax.Array], tuple[Totals, jax.Array]]:
    """(totals, centroids [k, d], points [n, d], weight [n]) -> (totals with these points, something small to wait for).

    Points and weights are sharded by rows, centroids are replicated; no device waits for another. The old totals are
    donated.
    """
    rows, replicated = PartitionSpec(mesh.axis_names), PartitionSpec()

    def local_step(
        totals: Totals, centroids: jax.Array, points: jax.Array, weight: jax.Array
    ) -> tuple[Totals, jax.Array]:
        local = add_points(jax.tree.map(lambda x: x[0], totals), centroids, points, weight)
        return jax.tree.map(lambda x: x[None], local), jnp.sum(local.counts)[None]

    step = jax.shard_map(
        local_step,
        mesh=mesh,
        in_specs=(rows, replicated, rows, rows),
        out_specs=(rows, rows),
        check_vma=False,
    )
    return jax.jit(step, donate_argnums=0)


class MiniBatchState(NamedTuple):
    """Centroids during a pass of mini-batch k-means (Sculley 2010); replicated."""

    centroids: jax.Array  # float32 [k, d]
    seen: jax.Array  # float32 [k], points that each centroid is the mean of, over all passes
    counts: jax.Array  # int32 [k], of this pass
    inertia: jax.Array  # float32 [k], of this pass; each batch against the centroids that it met


@functools.lru_cache(maxsize=8)
def minibatch_step(
    mesh: Mesh,
) -> Callable[[MiniBatchState, jax.Array, jax.Array], tuple[MiniBatchState, jax.Array]]:
    """(state, points [n, d], weight [n]) -> (state after the batch, something small to wait for).

    A centroid becomes the mean of all points it was ever given: c += (sum - n c) / (seen + n), with the n points of the
    batch that are nearest to it. Points and weights are sharded by rows. The old state is donated.
    """
    rows, replicated = PartitionSpec(mesh.axis_names), PartitionSpec()

    def local_step(state: MiniBatchState, points: jax.Array, weight: jax.Array) -> MiniBatchState:
        local = add_points(_zeros(*state.centroids.shape), state.centroids, points, weight)
        sums, batch_counts, batch_inertia = jax.lax.psum(
            (local.sums + local.sums_error, local.counts, local.inertia + local.inertia_error),
            mesh.axis_names,
        )
        new = batch_counts.astype(jnp.float32)
        seen = state.seen + new
        move = (sums - new[:, None] * state.centroids) / jnp.maximum(seen, 1.0)[:, None]
        return MiniBatchState(
            state.centroids + move, seen, state.counts + batch_counts, state.inertia + batch_inertia
        )

    sharded = jax.shard_map(
        local_step, mesh=mesh, in_specs=(replicated, rows, rows), out_specs=replicated, check_vma=False
    )

    def step(state: MiniBatchState, points: jax.Array, weight: jax.Array) -> tuple[MiniBatchState, jax.Array]:
        state = sharded(state, points, weight)
        return state, jnp.sum(state.counts)

    return jax.jit(step, donate_argnums=0)


def add_points(totals: Totals, centroids: jax.Array, points: jax.Array, weight: jax.Array) -> Totals:
    """Adds points [n, d], in blocks of at most ROWS, to the totals of one device; weight [n] is 0 for padding, else 1.

    Points beyond the last full block are padded. Scatter-adds run in any order on a GPU: there, sums repeat bit for bit
    only with XLA_FLAGS=--xla_gpu_deterministic_ops=true.
    """
    num_blocks = -(-len(points) // ROWS)
    block_size = -(-len(points) // num_blocks)
    padding = num_blocks * block_size - len(points)
    points = jnp.pad(points, ((0, padding), (0, 0))).reshape(num_blocks, block_size, -1)
    weight = jnp.pad(weight, (0, padding)).reshape(num_blocks, block_size)

    def add_block(totals: Totals, block: tuple[jax.Array, jax.Array]) -> tuple[Totals, None]:
        points, weight = block
        ids = nearest_tiled(points, centroids)
        sums = jnp.zeros_like(totals.sums).at[ids].add(points * weight[:, None])
        counts = totals.counts.at[ids].add(weight.astype(totals.counts.dtype))
        # Of the differences: products minus norms would lose the digits of points that lie close to their centroid.
        distances = squared_distances(points, centroids[ids]) * weight
        inertia = jnp.zeros_like(totals.inertia).at[ids].add(distances)
        return Totals(
            *_two_sum(totals.sums, totals.sums_error, sums),
            counts,
            *_two_sum(totals.inertia, totals.inertia_error, inertia),
        ), None

    return jax.lax.scan(add_block, totals, (points, weight))[0]


def _two_sum(total: jax.Array, error: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum, and what it rounded off added to the error so far."""
    new = total + value
    part = new - total
    return new, error + ((total - (new - part)) + (value - part))
