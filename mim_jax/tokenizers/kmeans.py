"""k-means (docs/papers/mapet.md 8.1): of an array, or streamed from disk, over all devices and hosts, resumable.

Lloyd's algorithm as faiss runs it for the paper (8192 clusters, 20 iterations, 5 restarts from random points, at most 512
points per centroid), or mini-batches. Ours, not the paper's: empty clusters are filled until none is left, also after the
last iteration (`split_into_empty`), and the inertia that chooses between restarts is that of the final centroids.
"""

import dataclasses
import heapq
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
from mim_jax.tokenizers.assignment import usage_and_perplexity
from mim_jax.tokenizers.kmeans_checkpoint import KMeansState, initial_state, restore, save
from mim_jax.tokenizers.kmeans_passes import Passes
from mim_jax.tokenizers.kmeans_points import FloatArray, Points, PointSource, in_chunks, plus_plus

EXTRA_ITERATIONS = 10
"""Iterations beyond the requested ones, at most, while a cluster is empty."""
NUDGE = 1 / 16
"""How far the halves of a split cluster move apart, of its root mean square distance. Small: the border between the two is
a plane through the mean either way, and the borders to other clusters stay where they are. Not smaller: float32 must tell
the two apart."""


@dataclasses.dataclass(frozen=True)
class KMeansOptions:
    """What a fit depends on besides its points; the defaults are the paper's.

    start: subset (random points) or plus_plus (k-means++ on a random sample of `sample` points).
    mode: lloyd (full passes) or minibatch. A mini-batch is the next `rows` points in the source's order, which should
        be random; another number of hosts makes other batches. Inertia, usage and empty clusters are of the moving
        centroids, except in the last pass, which is a full one.
    iterations: passes over the points per restart.
    tolerance: stop a restart when a pass lowers the inertia by a smaller share; 0: only when no centroid moves.
    max_points_per_centroid: of more than `clusters` times as many points, so many are sampled.
    rows: points that all hosts together give to the devices at once.
    """

    clusters: int = 8192
    iterations: int = 20
    restarts: int = 5
    start: str = "subset"
    mode: str = "lloyd"
    tolerance: float = 0.0
    max_points_per_centroid: int = 512
    rows: int = 16384
    sample: int = 32768
    seed: int = 1234

    def validate(self) -> None:
        """Raises ValueError for values that make no sense."""
        for name, allowed in (("start", ("subset", "plus_plus")), ("mode", ("lloyd", "minibatch"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {' or '.join(allowed)}, not {getattr(self, name)!r}")
        for name in ("clusters", "restarts", "max_points_per_centroid", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, but it must be 1 at least")
        if self.iterations < 0 or self.tolerance < 0:
            raise ValueError("iterations and tolerance must not be negative")
        if self.start == "plus_plus" and self.sample < self.clusters:
            raise ValueError(
                f"k-means++ needs a sample of more than {self.sample} points for {self.clusters} clusters"
            )
        if self.rows % jax.process_count():
            raise ValueError(f"rows={self.rows} cannot be divided by {jax.process_count()} hosts")


class KMeansProgress(NamedTuple):
    """One pass: how well the centroids before it served. In mini-batches they move during the pass."""

    restart: int
    restarts: int
    iteration: int  # 0: of the initial centroids
    iterations: int
    inertia: float  # summed squared distance of the points
    usage: float  # share of clusters with points
    perplexity: float
    splits: int  # empty clusters that took half of another
    finished: bool  # the last pass of its restart
    seconds: float = 0.0
    eta: float = 0.0  # seconds, at the smoothed speed of this process; a restart that converges ends earlier


class KMeansResult(NamedTuple):
    """The best restart: fewest empty clusters, then smallest inertia."""

    centroids: FloatArray  # [k, d]
    counts: npt.NDArray[np.int64]  # [k], points of each cluster
    inertia: float
    usage: float
    perplexity: float
    points: int  # used
    total: int  # in the source


def fit_kmeans(
    source: FloatArray | PointSource,
    options: KMeansOptions,
    *,
    mesh: Mesh | None = None,
    init: FloatArray | None = None,
    directory: Path | None = None,
    report: Callable[[KMeansProgress], None] | None = None,
) -> KMeansResult:
    """Centroids that locally minimise the summed squared distance of the points.

    Deterministic in (points, options, init) for given devices; more devices or hosts add in another order.

    Args:
        source: points [n, d], the same on all hosts; or see `PointSource`: it is read once to count, once to initialise
            each restart and once per pass.
        mesh: points are sharded over all its devices; None = all devices of all hosts.
        init: initial centroids, float [k, d]; there is one restart then.
        directory: where to save after every pass, on a disk that all hosts see; a state saved there is resumed, and the
            result is bit for bit the uninterrupted one.
        report: called after every pass, once it is saved.
    Raises:
        ValueError: options or points that do not fit, or a saved state of another fit.
    """
    if init is not None:
        options = dataclasses.replace(options, restarts=1)
    options.validate()
    if mesh is None:
        mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
    if isinstance(source, np.ndarray):
        source = in_chunks(source, options.rows)
    fit = _Fit(source, options, mesh, init)
    state = (restore(directory, fit.identity) if directory else None) or initial_state(
        options.clusters, fit.points.width
    )
    fit.check_hosts_agree(state)
    estimate = Estimate()
    while state.restart < options.restarts:
        started = time.perf_counter()
        state, progress = fit.advance(state)
        if directory and jax.process_index() == 0:
            save(directory, state, fit.identity)
        seconds = time.perf_counter() - started
        estimate.lap(1, seconds)
        if report:
            passes_left = (options.restarts - state.restart) * (options.iterations + 1) - state.iteration
            eta = estimate.seconds_for(max(passes_left, 0)) or 0.0
            report(progress._replace(seconds=seconds, eta=eta))
    return KMeansResult(
        state.best_centroids,
        state.best_counts,
        state.best_inertia,
        *usage_and_perplexity(state.best_counts),
        fit.points.used,
        fit.points.total,
    )


class _Fit:
    """One fit: its points and options, and how a pass changes its state."""

    def __init__(
        self, source: PointSource, options: KMeansOptions, mesh: Mesh, init: FloatArray | None
    ) -> None:
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
        points = self.points
        return {
            **dataclasses.asdict(self.options),
            "points": points.total,
            "width": points.width,
            "checksum of the points": points.checksum,
            "checksum of init": None if self.init is None else zlib.crc32(self.init.tobytes()),
        }

    def check_hosts_agree(self, state: KMeansState) -> None:
        """Raises ValueError unless all hosts have read the same state: they would wait for each other forever."""
        if jax.process_count() > 1:
            summary = np.array([state.restart, state.iteration, zlib.crc32(state.centroids.tobytes()) >> 1])
            if (multihost_utils.process_allgather(summary.astype(np.int32)) != summary).any():
                raise ValueError(
                    "hosts read different saved states: the directory must be one that all of them see"
                )

    def advance(self, state: KMeansState) -> tuple[KMeansState, KMeansProgress]:
        """One pass over the points: the state after it, and what to report."""
        o = self.options
        if not len(state.centroids):
            state = dataclasses.replace(state, centroids=self._initial_centroids(state.restart))
        minibatch = o.mode == "minibatch" and state.iteration < o.iterations
        run_pass = self.passes.minibatch if minibatch else self.passes.lloyd
        result = run_pass(state.centroids, state.seen)
        inertia, num_empty = float(result.inertia.sum()), int((result.counts == 0).sum())

        def signs(cluster: int) -> FloatArray:
            random = keys.philox(o.seed, "k-means split", state.restart, state.iteration, cluster)
            bits = random.random_raw(self.points.width) & np.uint64(1)
            return (2.0 * bits.astype(np.float32) - 1.0).astype(np.float32)

        centroids, counts, splits = split_into_empty(result.centroids, result.counts, result.inertia, signs)
        converged = not num_empty and self._converged(state, centroids, inertia)
        out_of_iterations = state.iteration >= o.iterations + (EXTRA_ITERATIONS if num_empty else 0)
        finished = not minibatch and (converged or out_of_iterations)
        progress = KMeansProgress(
            state.restart,
            o.restarts,
            state.iteration,
            o.iterations,
            inertia,
            *usage_and_perplexity(result.counts),
            0 if finished else splits,
            finished,
        )
        if finished:
            return self._next_restart(state, result.counts, inertia), progress
        next_state = dataclasses.replace(
            state,
            iteration=o.iterations if minibatch and converged else state.iteration + 1,
            inertia=inertia,
            centroids=centroids,
            seen=np.where(counts != result.counts, counts, result.seen).astype(np.float32),
        )
        return next_state, progress

    def _converged(self, state: KMeansState, centroids: FloatArray, inertia: float) -> bool:
        if self.options.tolerance > 0 and np.isfinite(state.inertia):
            return state.inertia - inertia <= self.options.tolerance * state.inertia
        return np.array_equal(centroids, state.centroids)

    def _next_restart(self, state: KMeansState, counts: npt.NDArray[np.int64], inertia: float) -> KMeansState:
        """Before the next restart, with the better of this one and the best so far."""
        best = state.best_inertia, state.best_centroids, state.best_counts
        best_num_empty = int((state.best_counts == 0).sum())
        if not len(state.best_counts) or (int((counts == 0).sum()), inertia) < (best_num_empty, best[0]):
            best = inertia, state.centroids, counts
        return dataclasses.replace(
            initial_state(self.options.clusters, self.points.width),
            restart=state.restart + 1,
            best_inertia=best[0],
            best_centroids=best[1],
            best_counts=best[2],
        )

    def _initial_centroids(self, restart: int) -> FloatArray:
        o = self.options
        if self.init is not None:
            return self.init
        if o.start == "subset":
            return self.points.sample(o.clusters, o.seed, "k-means start", restart)
        sample = self.points.sample(min(o.sample, self.points.used), o.seed, "k-means start", restart)
        key = jax.random.fold_in(jax.random.key(o.seed), restart)
        return np.asarray(plus_plus(jax.numpy.asarray(sample), o.clusters, key))


def split_into_empty(
    centroids: FloatArray,
    counts: npt.NDArray[np.int64],
    inertia: npt.NDArray[np.floating],
    signs: Callable[[int], FloatArray],
) -> tuple[FloatArray, npt.NDArray[np.int64], int]:
    """The rule for empty clusters: each takes half of the cluster of largest inertia, until none is empty.

    faiss picks the cluster to split at random, in proportion to its points, and scales its centroid by 1 +- 1/1024.
    Ours moves the two halves by +- NUDGE along a random diagonal: a heap of equal points is never split (image patches
    have such: pure white), a centroid at 0 does move, and shifting all points shifts the result.

    Args:
        centroids: float32 [k, d], the means of the clusters.
        counts: int [k], points of each.
        inertia: float [k], summed squared distances of each cluster's points to its centroid.
        signs: number of the empty cluster -> -1.0 or 1.0 [d].
    Returns:
        centroids, counts shared out between the halves, and the number of splits. Fewer splits than empty clusters
        mean that all points are centroids already.
    """
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return centroids, counts, 0
    centroids, counts, inertia = centroids.copy(), counts.copy(), np.asarray(inertia, np.float64).copy()
    splittable = np.flatnonzero((counts >= 2) & (inertia > 0))
    heap = [(-float(inertia[cluster]), int(cluster)) for cluster in splittable]
    heapq.heapify(heap)
    splits = 0
    while heap and splits < len(empty):
        _, donor = heapq.heappop(heap)
        cluster = int(empty[splits])
        rms_distance = np.sqrt(inertia[donor] / (counts[donor] * centroids.shape[1]))
        move = (NUDGE * rms_distance).astype(np.float32) * signs(cluster)
        lower, upper = centroids[donor] - move, centroids[donor] + move
        if np.array_equal(lower, upper):
            continue
        centroids[donor], centroids[cluster] = lower, upper
        inertia[[donor, cluster]] = inertia[donor] / 2
        counts[cluster] = counts[donor] // 2
        counts[donor] -= counts[cluster]
        for half in (donor, cluster):
            if counts[half] >= 2:
                heapq.heappush(heap, (-float(inertia[half]), half))
        splits += 1
    return centroids, counts, splits


def check_distinct(points: FloatArray, clusters: int) -> None:
    """Raises ValueError where points [n, d] hold fewer different ones than there are clusters."""
    if len(np.unique(points[: 50 * clusters], axis=0)) >= clusters:
        return
    distinct = len(np.unique(points, axis=0))
    if distinct < clusters:
        raise ValueError(
            f"{clusters} clusters were asked for, but the data holds only {distinct} different points"
        )
