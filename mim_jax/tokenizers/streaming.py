"""k-means of more points than memory holds (docs/papers/mapet.md 8.1): streamed, over all devices and hosts, resumable.

Lloyd's algorithm as faiss runs it for the paper (8192 clusters, 20 iterations, 5 restarts from random points, at most 512
points a cluster), or mini-batches. Ours, not the paper's: empty clusters are repaired until none is left, also after the
last iteration (`empties`), and the inertia that chooses between restarts is that of the final centroids.
"""

import dataclasses
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from mim_jax.data import keys
from mim_jax.progress import Estimate
from mim_jax.tokenizers.chunks import FloatArray, Points, Source
from mim_jax.tokenizers.empties import fill_empty
from mim_jax.tokenizers.kmeans_options import KMeansOptions
from mim_jax.tokenizers.kmeans_state import State, at_start, load, save
from mim_jax.tokenizers.passes import Passes
from mim_jax.tokenizers.seeding import plus_plus
from mim_jax.tokenizers.usage import usage_and_perplexity

REPAIRS = 10
"""Iterations beyond the asked ones, at most, as long as a cluster is empty."""


class Progress(NamedTuple):
    """One pass: how the centroids before it served. In mini-batches they move during the pass."""

    restart: int
    restarts: int
    iteration: int  # 0 = the start's
    iterations: int
    inertia: float  # summed squared distance of the used points
    usage: float  # share of clusters with points
    perplexity: float
    splits: int  # empty clusters that took half of another
    finished: bool  # the last pass of its restart
    seconds: float = 0.0
    eta: float = 0.0  # seconds, at the smoothed speed of this process; an early end comes earlier


class Fitted(NamedTuple):
    """The best restart: fewest empty clusters, then smallest inertia."""

    centroids: FloatArray  # [k, d]
    counts: npt.NDArray[np.int64]  # [k], of the used points
    inertia: float
    usage: float
    perplexity: float
    points: int  # used
    total: int  # that the source gave


def fit_streaming(
    source: Source,
    options: KMeansOptions,
    *,
    mesh: Mesh | None = None,
    init: FloatArray | None = None,
    directory: Path | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Fitted:
    """Centroids of the points of `source`.

    Deterministic in (points, options, init) for given devices; more devices or hosts add in another order.

    Args:
        source: see `chunks.Source`; it is read once to count, once for each start and once for each pass.
        mesh: points are divided over all its devices; None = all devices of all hosts.
        init: where to start, float [k, d]; there is one restart then.
        directory: where to save after every pass, on a disk that all hosts see; a state that lies there is gone on with,
            and the result is bit for bit the uninterrupted one.
        report: called after every pass, once it is saved.
    Raises:
        ValueError: options or points that do not fit, or a saved state of another fit.
    """
    if init is not None:
        options = dataclasses.replace(options, restarts=1)
    options.refuse_nonsense()
    if mesh is None:
        mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
    fit = _Fit(source, options, mesh, init)
    state = (load(directory, fit.identity) if directory else None) or at_start(
        options.clusters, fit.points.width
    )
    fit.refuse_disagreement(state)
    estimate = Estimate()
    while state.restart < options.restarts:
        started = time.perf_counter()
        state, progress = fit.advance(state)
        if directory and jax.process_index() == 0:
            save(directory, state, fit.identity)
        seconds = time.perf_counter() - started
        estimate.lap(1, seconds)
        if report:
            left = (options.restarts - state.restart) * (options.iterations + 1) - state.iteration
            report(progress._replace(seconds=seconds, eta=estimate.seconds_for(max(left, 0)) or 0.0))
    usage, perplexity = usage_and_perplexity(state.best_counts)
    return Fitted(
        state.best_centroids,
        state.best_counts,
        state.best_inertia,
        usage,
        perplexity,
        fit.points.used,
        fit.points.total,
    )


class _Fit:
    """What stays the same from pass to pass."""

    def __init__(self, source: Source, options: KMeansOptions, mesh: Mesh, init: FloatArray | None) -> None:
        self.options = options
        self.points = Points(source, options.clusters * options.max_points_per_centroid, options.seed)
        if self.points.used < options.clusters:
            raise ValueError(
                f"{options.clusters} clusters were asked for, but there are {self.points.used} points"
            )
        self.passes = Passes(self.points, mesh, options.rows)
        self.init = None if init is None else np.ascontiguousarray(init, np.float32)
        if self.init is not None and self.init.shape != (options.clusters, self.points.width):
            raise ValueError(
                f"init has the shape {self.init.shape}, but there are {options.clusters} clusters of width"
                f" {self.points.width}"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What a saved state must have been made with."""
        p = self.points
        start = None if self.init is None else zlib.crc32(self.init.tobytes())
        about = {"points": p.total, "width": p.width, "checksum of the points": p.checksum}
        return {**dataclasses.asdict(self.options), **about, "checksum of init": start}

    def refuse_disagreement(self, state: State) -> None:
        """All hosts must have read the same state, or they would wait for each other forever."""
        if jax.process_count() > 1:
            mine = np.array([state.restart, state.iteration, zlib.crc32(state.centroids.tobytes()) >> 1])
            if (multihost_utils.process_allgather(mine.astype(np.int32)) != mine).any():
                raise ValueError(
                    "hosts read different saved states: the directory must be one that all of them see"
                )

    def advance(self, state: State) -> tuple[State, Progress]:
        """One pass, and what follows from it."""
        o = self.options
        if not len(state.centroids):
            state = dataclasses.replace(state, centroids=self._start(state.restart))
        small = o.mode == "minibatch" and state.iteration < o.iterations
        done = (self.passes.minibatch if small else self.passes.lloyd)(state.centroids, state.seen)
        inertia, dead = float(done.inertia.sum()), int((done.counts == 0).sum())

        def signs(code: int) -> FloatArray:
            words = keys.philox(o.seed, "k-means split", state.restart, state.iteration, code).random_raw(
                self.points.width
            )
            return (2.0 * (words & np.uint64(1)).astype(np.float32) - 1.0).astype(np.float32)

        moved, counts, splits = fill_empty(done.centroids, done.counts, done.inertia, signs)
        settled = not dead and self._settled(state, moved, inertia)
        over = state.iteration >= o.iterations and (not dead or state.iteration >= o.iterations + REPAIRS)
        finished = not small and (settled or over)
        usage, perplexity = usage_and_perplexity(done.counts)
        progress = Progress(
            state.restart,
            o.restarts,
            state.iteration,
            o.iterations,
            inertia,
            usage,
            perplexity,
            0 if finished else splits,
            finished,
        )
        if finished:
            return self._next_restart(state, done.counts, inertia), progress
        seen = np.where(counts != done.counts, counts, done.seen).astype(np.float32)
        after = o.iterations if small and settled else state.iteration + 1
        return dataclasses.replace(
            state, iteration=after, inertia=inertia, centroids=moved, seen=seen
        ), progress

    def _settled(self, state: State, moved: FloatArray, inertia: float) -> bool:
        if self.options.tolerance > 0 and np.isfinite(state.inertia):
            return state.inertia - inertia <= self.options.tolerance * state.inertia
        return np.array_equal(moved, state.centroids)

    def _next_restart(self, state: State, counts: npt.NDArray[np.int64], inertia: float) -> State:
        fresh = at_start(self.options.clusters, self.points.width)
        best = (state.best_inertia, state.best_centroids, state.best_counts)
        dead_before = int((state.best_counts == 0).sum())
        if not len(state.best_counts) or (int((counts == 0).sum()), inertia) < (dead_before, best[0]):
            best = (inertia, state.centroids, counts)
        return dataclasses.replace(
            fresh,
            restart=state.restart + 1,
            best_inertia=best[0],
            best_centroids=best[1],
            best_counts=best[2],
        )

    def _start(self, restart: int) -> FloatArray:
        o = self.options
        if self.init is not None:
            return self.init
        if o.start == "subset":
            return self.points.draw(o.clusters, o.seed, "k-means start", restart)
        sample = self.points.draw(min(o.sample, self.points.used), o.seed, "k-means start", restart)
        key = jax.random.fold_in(jax.random.key(o.seed), restart)
        return np.asarray(plus_plus(jax.numpy.asarray(sample), o.clusters, key))
