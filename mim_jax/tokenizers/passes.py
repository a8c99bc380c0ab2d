"""One pass over all points on the devices of a mesh: of Lloyd's algorithm, or of mini-batches."""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from mim_jax.data.placement import place
from mim_jax.progress import Progress
from mim_jax.tokenizers.chunks import FloatArray, Points
from mim_jax.tokenizers.lloyd import collect, empty_totals, everywhere, lloyd_step, rows_sharding
from mim_jax.tokenizers.minibatch import begin, minibatch_step

IN_FLIGHT = 2
"""Blocks that wait on the devices while the host reads the next."""


class Pass(NamedTuple):
    """What a pass found; equal on all hosts."""

    centroids: FloatArray  # [k, d], moved; one without points stays where it was
    counts: npt.NDArray[np.int64]  # [k], points of each
    inertia: npt.NDArray[np.float64]  # [k], summed squared distances to the centroids before they moved
    seen: FloatArray  # [k], see minibatch.Moving


class Passes:
    """Passes over `points`, `rows` at a time (all hosts together), divided over all devices of `mesh`."""

    def __init__(self, points: Points, mesh: Mesh, rows: int) -> None:
        self._points, self._mesh = points, mesh
        self._rows = rows // jax.process_count()
        devices = mesh.size // jax.process_count()
        self._padding = -self._rows % devices

    def lloyd(self, centroids: FloatArray, seen: FloatArray) -> Pass:
        """Assigns all points, then moves every centroid to the mean of its own."""
        step, placed = lloyd_step(self._mesh), self._everywhere(centroids)
        totals = empty_totals(self._mesh, *centroids.shape)
        totals = self._over_all(lambda totals, points, own: step(totals, placed, points, own), totals)
        sums, counts, inertia = (np.asarray(x) for x in collect(self._mesh)(totals))
        means = sums / np.maximum(counts, 1).astype(np.float32)[:, None]
        means = np.where((counts > 0)[:, None], means, centroids)
        return Pass(means, counts.astype(np.int64), inertia.astype(np.float64), seen)

    def minibatch(self, centroids: FloatArray, seen: FloatArray) -> Pass:
        """Moves the centroids after every `rows` points."""
        state = begin(self._everywhere(centroids), self._everywhere(seen))
        state = self._over_all(minibatch_step(self._mesh), state)
        moved, seen, counts, inertia = (np.asarray(x) for x in state)
        return Pass(moved, counts.astype(np.int64), inertia.astype(np.float64), seen)

    def _over_all(self, step: Callable[..., Any], carry: Any) -> Any:
        waiting: collections.deque[jax.Array] = collections.deque()
        with Progress("k-means pass", self._points.used, "points") as progress:
            for points, own in self._points.blocks(self._rows):
                if self._padding:
                    points = np.pad(points, ((0, self._padding), (0, 0)))
                    own = np.pad(own, (0, self._padding))
                batch = place({"points": points, "own": own}, rows_sharding(self._mesh))
                carry, token = step(carry, batch["points"], batch["own"])
                waiting.append(token)
                if len(waiting) > IN_FLIGHT:
                    waiting.popleft().block_until_ready()
                progress.update(min(self._rows * jax.process_count(), self._points.used - progress.done))
        return carry

    def _everywhere(self, array: npt.NDArray[Any]) -> jax.Array:
        return jax.make_array_from_process_local_data(everywhere(self._mesh), array)
