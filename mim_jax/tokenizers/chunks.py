"""Points that arrive in chunks, anew for every pass, and are never held all at once; on each host its own share."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils

from mim_jax.data import keys

FloatArray = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Chunk = npt.NDArray[np.floating] | tuple[npt.NDArray[np.floating], npt.NDArray[np.integer]]
"""Points [n, d], any float; or (points, their global indices [n]).

With indices, each host gives its own share; all together have the indices 0 to N - 1, each once. Without, all hosts give
the same chunks, numbered as they come, and each host uses every so manieth; the others can be memory maps that nobody reads.
"""
Source = Callable[[], Iterable[Chunk]]
"""Gives the chunks from the first, each time it is called. They may differ in length."""


class Points:
    """The points of a source that a fit uses.

    Of more than `most` points, `most` are drawn at random. The draw is a function of (seed, N, global index): it does not
    depend on hosts or chunks. While it is made, a host holds 16 bytes for each of the N points, and 8 afterwards.

    The first pass counts, and checks what it sees.

    Raises:
        ValueError: no points; points that are not finite; indices that are not 0 to N - 1; chunks of unequal width.
    """

    def __init__(self, source: Source, most: int, seed: int) -> None:
        self._source = source
        count, highest, width, checksum = self._survey()
        everyone = _from_all_hosts([count, highest, width, checksum])
        self.total, self.width = int(everyone[:, 0].sum()), int(everyone[:, 2].max())
        self.checksum = int(everyone[:, 3].sum() % 2**62)
        """Of the values of all points; equal for other hosts, chunks or order."""
        if not self.total:
            raise ValueError("the source gave no points")
        if set(everyone[everyone[:, 0] > 0, 2].tolist()) != {self.width}:
            raise ValueError(f"hosts gave points of different widths: {sorted(set(everyone[:, 2].tolist()))}")
        if int(everyone[:, 1].max()) + 1 != self.total:
            raise ValueError(
                f"{self.total} points came, the highest global index is {int(everyone[:, 1].max())}: indices are 0 to"
                " N - 1, each given by one host only"
            )
        self._own_total = count
        self.used = min(self.total, most)
        self._ranks = keys.permutation(self.total, seed, "k-means points") if self.used < self.total else None

    def blocks(self, rows: int) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Points float32 [rows, d] and 1.0 for each, or 0.0 for padding, [rows]; every used point of this host once.

        All hosts give the same number of blocks: the last ones of a host with fewer points are all padding.
        """
        needed = self._blocks_of_all_hosts(rows)  # asks the other hosts: before the first block, as they do
        block, own, filled, given = *self._empty(rows), 0, 0
        for points, _ in self._kept():
            while len(points):
                part, points = points[: rows - filled], points[rows - filled :]
                block[filled : filled + len(part)] = part
                own[filled : filled + len(part)] = 1.0
                filled += len(part)
                if filled == rows:
                    yield block, own
                    block, own, filled, given = *self._empty(rows), 0, given + 1
        if filled:
            yield block, own
            given += 1
        for _ in range(given, needed):
            yield self._empty(rows)

    def draw(self, count: int, seed: int, purpose: str, number: int) -> FloatArray:
        """`count` of the used points, drawn without replacement, float32 [count, d] in random order; equal on all hosts."""
        places = keys.permutation(self.used, seed, purpose, number)
        drawn = np.zeros((count, self.width), np.float32)
        for points, ranks in self._kept():
            place = places[ranks]
            drawn[place[place < count]] = points[place < count]
        if jax.process_count() > 1:
            # A row is zero on all hosts but one. In parts, for the rows of all hosts come to each.
            parts = np.array_split(drawn, -(-count // 1024))
            drawn = np.concatenate([multihost_utils.process_allgather(part).sum(0) for part in parts])
        return drawn

    def _empty(self, rows: int) -> tuple[FloatArray, FloatArray]:
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

    def _kept(self) -> Iterator[tuple[npt.NDArray[np.floating], Indices]]:
        """The used points with their ranks, 0 to `used` - 1."""
        count = 0
        for points, index in self._read():
            count += len(points)
            if self._ranks is None:
                yield points, index
            else:
                ranks = self._ranks[index]
                yield points[ranks < self.used], ranks[ranks < self.used]
        if count != self._own_total:
            raise ValueError(
                f"the source gave {self._own_total} points the first time and {count} now: it gives all of them each"
                " time it is called"
            )

    @functools.cached_property
    def _kept_by_hosts(self) -> Indices:
        """How many used points each host has; a pass of its own where points were drawn."""
        own = self._own_total
        if self._ranks is not None:
            own = sum(int((self._ranks[index] < self.used).sum()) for _, index in self._read())
        return _from_all_hosts([own])[:, 0]

    def _blocks_of_all_hosts(self, rows: int) -> int:
        return 0 if jax.process_count() == 1 else int(-(-self._kept_by_hosts.max() // rows))


def _from_all_hosts(values: Sequence[int]) -> Indices:
    """Integers below 2**62 of every host, int64 [hosts, n]; -1 and up."""
    own = np.asarray(values, np.int64)
    if jax.process_count() == 1:
        return own[None]
    # As 32-bit words: jax would cut 64 bits off.
    words = np.asarray(multihost_utils.process_allgather(own.view(np.int32)))
    return np.ascontiguousarray(words.reshape(jax.process_count(), -1)).view(np.int64)
