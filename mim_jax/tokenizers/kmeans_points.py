"""The points of a k-means: streamed in chunks, anew for every pass, never all in memory, each host its own share; and the
initial centroids drawn from them."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils

from mim_jax.data import keys
from mim_jax.progress import Progress

FloatArray = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Chunk = npt.NDArray[np.floating] | tuple[npt.NDArray[np.floating], npt.NDArray[np.integer]]
"""Points [n, d], any float; or (points, their global indices [n]).

With indices, each host gives its own share; all together have the indices 0 to N - 1, each once. Without, all hosts give
the same chunks, numbered as they come, and each of n hosts uses every n-th; the others can be memory maps that nobody reads.
"""
PointSource = Callable[[], Iterable[Chunk]]
"""Yields the chunks from the first, each time it is called. They may differ in length."""
CENTROIDS_PER_CALL = 256
"""k-means++ draws so many centroids between two updates of its progress."""


def in_chunks(points: FloatArray, rows: int) -> PointSource:
    """Points [n, d] in memory, as a source of chunks of `rows`."""
    return lambda: (points[start : start + rows] for start in range(0, len(points), rows))


class Points:
    """The points of a source that a fit uses.

    Of more than `limit` points, `limit` are sampled uniformly. The sample is a function of (seed, N, global index): it does
    not depend on hosts or chunks. While it is made, a host holds 16 bytes for each of the N points, and 8 afterwards.

    The first pass counts, and checks what it sees.

    Raises:
        ValueError: no points; points that are not finite; indices that are not 0 to N - 1; chunks of unequal width.
    """

    def __init__(self, source: PointSource, limit: int, seed: int) -> None:
        self._source = source
        count, highest, width, checksum = self._survey()
        hosts = _from_all_hosts([count, highest, width, checksum])
        self.total, self.width = int(hosts[:, 0].sum()), int(hosts[:, 2].max())
        self.checksum = int(hosts[:, 3].sum() % 2**62)
        """Of the values of all points; equal for other hosts, chunks or order."""
        if not self.total:
            raise ValueError("the source gave no points")
        if set(hosts[hosts[:, 0] > 0, 2].tolist()) != {self.width}:
            raise ValueError(f"hosts gave points of different widths: {sorted(set(hosts[:, 2].tolist()))}")
        if int(hosts[:, 1].max()) + 1 != self.total:
            raise ValueError(
                f"{self.total} points came, the highest global index is {int(hosts[:, 1].max())}: indices are 0 to"
                " N - 1, each given by one host only"
            )
        self._local_total = count
        self.used = min(self.total, limit)
        self._ranks = keys.permutation(self.total, seed, "k-means points") if self.used < self.total else None

    def blocks(self, rows: int) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Points float32 [rows, d] and their weights float32 [rows], 0 for padding, else 1; each point of this host once.

        All hosts yield the same number of blocks: the last ones of a host with fewer points are all padding.
        """
        num_blocks = self._num_blocks(rows)  # asks the other hosts: before the first block, as they do
        block, weight, filled, yielded = *self._padding(rows), 0, 0
        for points, _ in self._used_points():
            while len(points):
                part, points = points[: rows - filled], points[rows - filled :]
                block[filled : filled + len(part)] = part
                weight[filled : filled + len(part)] = 1.0
                filled += len(part)
                if filled == rows:
                    yield block, weight
                    block, weight, filled, yielded = *self._padding(rows), 0, yielded + 1
        if filled:
            yield block, weight
            yielded += 1
        for _ in range(yielded, num_blocks):
            yield self._padding(rows)

    def sample(self, count: int, seed: int, purpose: str, number: int) -> FloatArray:
        """`count` of the used points, without replacement, float32 [count, d] in random order; equal on all hosts."""
        order = keys.permutation(self.used, seed, purpose, number)
        sample = np.zeros((count, self.width), np.float32)
        for points, ranks in self._used_points():
            row = order[ranks]
            sample[row[row < count]] = points[row < count]
        if jax.process_count() > 1:
            # A row is zero on all hosts but one. In parts, for every host receives the rows of all.
            parts = np.array_split(sample, -(-count // 1024))
            sample = np.concatenate([multihost_utils.process_allgather(part).sum(0) for part in parts])
        return sample

    def _padding(self, rows: int) -> tuple[FloatArray, FloatArray]:
        return np.zeros((rows, self.width), np.float32), np.zeros(rows, np.float32)

    def _read(self) -> Iterator[tuple[npt.NDArray[np.floating], Indices]]:
        """This host's chunks with their indices, checked one by one."""
        count, width = 0, None
        for number, chunk in enumerate(self._source()):
            points, index = chunk if isinstance(chunk, tuple) else (chunk, None)
            if points.ndim != 2 or points.shape[1] != (width := width or points.shape[1]):
                raise ValueError(
                    f"a chunk is [n, {width or 'd'}], but the source gave one of shape {points.shape}"
                )
            if index is None:
                index, count = np.arange(count, count + len(points)), count + len(points)
                if number % jax.process_count() != jax.process_index():
                    continue
            elif np.shape(index) != (len(points),):
                raise ValueError(f"{len(points)} points came with indices of shape {np.shape(index)}")
            yield points, np.asarray(index, np.int64)

    def _survey(self) -> tuple[int, int, int, int]:
        """Number of points, highest index (-1 without any), width, checksum of the values; of this host."""
        count, highest, width, checksum = 0, -1, 0, 0
        for points, index in self._read():
            points = np.ascontiguousarray(points, np.float32)
            if not np.isfinite(points).all():
                raise ValueError("the points hold values that are not finite in float32")
            if len(points):
                highest = max(highest, int(index.max()))
            checksum = (checksum + int(points.view(np.uint32).sum(dtype=np.uint64))) % 2**62
            count, width = count + len(points), points.shape[1]
        return count, highest, width, checksum

    def _used_points(self) -> Iterator[tuple[npt.NDArray[np.floating], Indices]]:
        """The used points with their ranks, 0 to `used` - 1."""
        count = 0
        for points, index in self._read():
            count += len(points)
            if self._ranks is None:
                yield points, index
            else:
                ranks = self._ranks[index]
                yield points[ranks < self.used], ranks[ranks < self.used]
        if count != self._local_total:
            raise ValueError(
                f"the source gave {self._local_total} points the first time and {count} now: it gives all of them each"
                " time it is called"
            )

    @functools.cached_property
    def _used_per_host(self) -> Indices:
        """How many used points each host has; a pass of its own where points were sampled."""
        count = self._local_total
        if self._ranks is not None:
            count = sum(int((self._ranks[index] < self.used).sum()) for _, index in self._read())
        return _from_all_hosts([count])[:, 0]

    def _num_blocks(self, rows: int) -> int:
        return 0 if jax.process_count() == 1 else int(-(-self._used_per_host.max() // rows))


def _from_all_hosts(values: Sequence[int]) -> Indices:
    """Integers below 2**62 of every host, int64 [hosts, n]; -1 and up."""
    local = np.asarray(values, np.int64)
    if jax.process_count() == 1:
        return local[None]
    # As 32-bit words: jax would cut 64 bits off.
    words = np.asarray(multihost_utils.process_allgather(local.view(np.int32)))
    return np.ascontiguousarray(words.reshape(jax.process_count(), -1)).view(np.int64)


class _Seeding(NamedTuple):
    """k-means++ so far: centroids [k, d], and the squared distance of every point to the nearest of them [n]."""

    centroids: jax.Array
    distances: jax.Array


def plus_plus(points: jax.Array, clusters: int, key: jax.Array) -> jax.Array:
    """Greedy k-means++, as scikit-learn's: float [n, d] to [clusters, d].

    Each next centroid is the best of 2 + log(clusters) points, drawn in proportion to their squared distance to the nearest
    centroid so far: the one that leaves the smallest sum of these distances.
    """
    seeding, key = _first_centroid(points, clusters, key)
    with Progress("k-means++ start", clusters, "centroids") as progress:
        progress.update()
        for begin in range(1, clusters, CENTROIDS_PER_CALL):
            end = min(begin + CENTROIDS_PER_CALL, clusters)
            seeding = _next_centroids(points, seeding, key, begin, end)
            seeding.centroids.block_until_ready()  # a call is short, and the count must be true
            progress.update(end - begin)
    return seeding.centroids


@functools.partial(jax.jit, static_argnums=1)
def _first_centroid(points: jax.Array, clusters: int, key: jax.Array) -> tuple[_Seeding, jax.Array]:
    first_key, key = jax.random.split(key)
    first = points[jax.random.randint(first_key, (), 0, len(points))]
    centroids = jnp.zeros((clusters, points.shape[1]), points.dtype).at[0].set(first)
    return _Seeding(centroids, squared_distances(points, first)), key


@jax.jit
def _next_centroids(
    points: jax.Array, seeding: _Seeding, key: jax.Array, begin: jax.Array, end: jax.Array
) -> _Seeding:
    """Adds the centroids begin to end - 1, each drawn with a key of its own number."""

    clusters = len(seeding.centroids)
    trials = 2 + int(np.log(clusters))
    norms = jnp.sum(jnp.square(points), axis=-1)

    def add(number: jax.Array, seeding: _Seeding) -> _Seeding:
        cumulative = jnp.cumsum(seeding.distances)
        threshold = cumulative[-1] * jax.random.uniform(jax.random.fold_in(key, number), (trials,))
        chosen = jnp.minimum(jnp.searchsorted(cumulative, threshold, side="right"), len(points) - 1)
        products = jnp.einsum("td,nd->tn", points[chosen], points, precision=jax.lax.Precision.HIGHEST)
        distances = jnp.maximum(norms[chosen][:, None] + norms - 2.0 * products, 0.0)
        distances = jnp.minimum(seeding.distances, distances)
        best = jnp.argmin(distances.sum(axis=1))
        return _Seeding(seeding.centroids.at[number].set(points[chosen[best]]), distances[best])

    return jax.lax.fori_loop(begin, end, add, seeding)


def squared_distances(points: jax.Array, centroid: jax.Array) -> jax.Array:
    """Row by row: [n, d] and [d] or [n, d] to [n]."""
    return jnp.sum(jnp.square(points - centroid), axis=-1)
