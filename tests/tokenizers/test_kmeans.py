"""k-means: against scikit-learn, against one device, against points in memory; mini-batches, restarts."""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from sklearn.cluster import KMeans

from mim_jax.tokenizers.assignment import assign
from mim_jax.tokenizers.kmeans import (
    KMeansOptions,
    KMeansProgress,
    KMeansResult,
    check_distinct,
    fit_kmeans,
)
from mim_jax.tokenizers.kmeans_passes import Passes
from mim_jax.tokenizers.kmeans_points import Points

CLUSTERS = 12
OPTIONS = KMeansOptions(CLUSTERS, iterations=100, restarts=1, max_points_per_centroid=10_000, rows=1024)


def blobs(n: int = 3000, spread: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLUSTERS, 6)) * spread
    return (centres[rng.integers(0, CLUSTERS, n)] + rng.normal(size=(n, 6))).astype(np.float32)


def source(points: np.ndarray, size: int = 700):
    return lambda: (points[start : start + size] for start in range(0, len(points), size))


def mesh_of(count: int) -> jax.sharding.Mesh:
    """Rows are divided over both axes."""
    devices = np.array(jax.devices()[:count]).reshape(-1, 2 if count > 1 else 1)
    return jax.sharding.Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def fit(
    points: np.ndarray, options: KMeansOptions = OPTIONS, **more
) -> tuple[KMeansResult, list[KMeansProgress]]:
    passes: list[KMeansProgress] = []
    more = {"mesh": mesh_of(8), **more}
    return fit_kmeans(source(points), options, report=passes.append, **more), passes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_as_scikit_learn_from_the_same_start(seed: int) -> None:
    points = blobs()
    start = points[np.random.default_rng(seed).permutation(len(points))[:CLUSTERS]]
    oracle = KMeans(CLUSTERS, init=start, n_init=1, max_iter=100, tol=0, algorithm="lloyd").fit(points)
    fitted, passes = fit(points, init=start)
    assert len(passes) == oracle.n_iter_  # it ends when no centroid moves
    np.testing.assert_array_equal(assign(points, fitted.centroids), oracle.labels_)
    np.testing.assert_allclose(fitted.inertia, oracle.inertia_, rtol=1e-4)
    np.testing.assert_allclose(fitted.centroids, oracle.cluster_centers_, atol=1e-4)
    np.testing.assert_array_equal(fitted.counts, np.bincount(oracle.labels_))
    assert all(a.inertia >= b.inertia for a, b in itertools.pairwise(passes))


def test_eight_devices_equal_one() -> None:
    points = blobs()
    start = points[:CLUSTERS]
    all_points = Points(source(points), limit=len(points), seed=0)
    one, eight = (
        Passes(all_points, mesh_of(count), rows=1024).lloyd(start, np.zeros(CLUSTERS, np.float32))
        for count in (1, 8)
    )
    np.testing.assert_array_equal(one.counts, eight.counts)
    np.testing.assert_allclose(one.inertia, eight.inertia, rtol=1e-6)
    scale = np.abs(points).mean()
    np.testing.assert_allclose(one.centroids, eight.centroids, rtol=1e-6, atol=1e-6 * scale)
    ends = [fit(points, init=start, mesh=mesh_of(count))[0] for count in (1, 8)]
    np.testing.assert_array_equal(*(assign(points, end.centroids) for end in ends))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lloyd", "minibatch"])
def test_chunks_of_any_size_and_type_are_the_points_in_memory(mode: str) -> None:
    points = blobs().astype(np.float16)
    rows = {"lloyd": 1024, "minibatch": 200}[mode]
    options = KMeansOptions(CLUSTERS, 5, 1, mode=mode, rows=rows, max_points_per_centroid=100)
    whole = fit_kmeans(lambda: [points], options, mesh=mesh_of(8))

    def uneven() -> Iterator[np.ndarray]:
        for number, part in enumerate(np.split(points, [1, 2, 900, 900, 2900])):
            yield part.astype((np.float64, np.float16, np.float32)[number % 3])

    for other in (uneven, source(points, 1), source(points, 1024)):
        parts = fit_kmeans(other, options, mesh=mesh_of(8))
        np.testing.assert_array_equal(parts.centroids, whole.centroids)
        assert parts.inertia == whole.inertia
    assert (whole.points, whole.total) == (1200, 3000)


def test_totals_keep_what_float32_rounds_off() -> None:
    """600 additions onto sums some hundred times larger than what is added."""
    points = (1000 + np.random.default_rng(0).normal(size=(600 * 16, 6))).astype(np.float32)
    all_points = Points(source(points), limit=len(points), seed=0)
    done = Passes(all_points, mesh_of(1), rows=16).lloyd(points[:1], np.zeros(1, np.float32))
    mean = points.astype(np.float64).mean(0)
    np.testing.assert_allclose(done.centroids[0], mean, rtol=1.2e-7)
    inertia = np.square(points.astype(np.float64) - points[0]).sum()
    np.testing.assert_allclose(done.inertia.sum(), inertia, rtol=2e-7)


def test_a_minibatch_moves_by_the_counts_seen() -> None:
    """c += (sum - n c) / (seen + n), batch by batch, in float64."""
    points = blobs(500)
    centroids, seen = points[:CLUSTERS].astype(np.float64), np.arange(CLUSTERS, dtype=np.float64)
    all_points = Points(source(points), limit=len(points), seed=0)
    done = Passes(all_points, mesh_of(8), rows=200).minibatch(
        centroids.astype(np.float32), seen.astype(np.float32)
    )
    total = np.zeros(CLUSTERS, int)
    for batch in (points[:200], points[200:400], points[400:]):
        ids = np.square(batch[:, None] - centroids[None]).sum(-1).argmin(1)
        for code in np.unique(ids):
            own = batch[ids == code].astype(np.float64)
            seen[code] += len(own)
            centroids[code] += (own - centroids[code]).sum(0) / seen[code]
        total += np.bincount(ids, minlength=CLUSTERS)
    np.testing.assert_allclose(done.centroids, centroids, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(done.seen, seen)
    np.testing.assert_array_equal(done.counts, total)


@pytest.mark.slow
def test_minibatches_come_close_to_full_passes() -> None:
    points = blobs(spread=5)  # apart, so that both find them from the same start
    options = KMeansOptions(
        CLUSTERS, 10, 1, start="plus_plus", sample=400, max_points_per_centroid=10_000, rows=1024
    )
    for seed in range(3):
        full, _ = fit(points, dataclasses.replace(options, seed=seed))
        small, passes = fit(points, dataclasses.replace(options, seed=seed, mode="minibatch", rows=200))
        assert small.inertia < 1.01 * full.inertia
        assert small.counts.sum() == len(points)
        assert passes[-1].inertia == small.inertia and passes[-1].finished


@pytest.mark.parametrize("start", ["subset", "plus_plus"])
def test_the_best_restart_is_kept(start: str) -> None:
    points = blobs()
    options = KMeansOptions(CLUSTERS, 6, 4, start=start, max_points_per_centroid=100, sample=400, rows=1024)
    fitted, passes = fit(points, options)
    ends = [p.inertia for p in passes if p.finished]
    assert len(ends) == 4 and len(set(ends)) > 1
    assert fitted.inertia == min(ends)
    assert fitted.usage == 1.0 and 1 < fitted.perplexity <= CLUSTERS
    assert passes[0].eta > 0 == passes[-1].eta
    assert [p.restart for p in passes if p.iteration == 0] == [0, 1, 2, 3]
    again, _ = fit(points, options)
    np.testing.assert_array_equal(again.centroids, fitted.centroids)


def test_tolerance_ends_a_restart() -> None:
    points = blobs()
    _, all_passes = fit(points, init=points[:CLUSTERS])
    options = KMeansOptions(CLUSTERS, 100, 1, tolerance=0.01, max_points_per_centroid=10_000, rows=1024)
    _, passes = fit(points, options, init=points[:CLUSTERS])
    gains = [1 - b.inertia / a.inertia for a, b in itertools.pairwise(all_passes)]
    assert len(passes) == 2 + next(i for i, gain in enumerate(gains) if gain <= 0.01) < len(all_passes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"clusters": 3001}, "3001 clusters were asked for, but there are 3000 points"),
        ({"mode": "online"}, "mode is lloyd or minibatch, not 'online'"),
        ({"rows": 0}, "rows=0"),
        ({"start": "plus_plus", "sample": 3}, "a sample of more than 3 points for 12 clusters"),
        ({"tolerance": -1.0}, "must not be negative"),
    ],
)
def test_options_that_do_not_fit(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fit_kmeans(source(blobs()), KMeansOptions(**{"clusters": CLUSTERS, **change}))


def test_a_start_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="12 clusters of width 6"):
        fit_kmeans(source(blobs()), OPTIONS, init=np.zeros((12, 5), np.float32))


@pytest.mark.slow
def test_plus_plus_is_as_good_as_scikit_learns_and_repeats() -> None:
    points = blobs(spread=5)
    options = KMeansOptions(CLUSTERS, 30, 5, start="plus_plus", max_points_per_centroid=10_000, seed=0)
    fitted, _ = fit(points, options)
    assert fitted.inertia < 1.1 * KMeans(CLUSTERS, n_init=5, random_state=0).fit(points).inertia_
    np.testing.assert_array_equal(fit(points, options)[0].centroids, fitted.centroids)
    other, _ = fit(points, dataclasses.replace(options, seed=1))
    assert np.abs(other.centroids - fitted.centroids).max() > 0


def test_too_few_different_points() -> None:
    points = np.repeat(np.eye(3, dtype=np.float32), 50, axis=0)
    with pytest.raises(ValueError, match="4 clusters were asked for, but the data holds only 3 different"):
        check_distinct(points, 4)
    check_distinct(points, 3)
    check_distinct(np.concatenate([points, points, points + 1]), 4)  # the first 200 are not enough to tell
