"""Clusters that lose all points take half of another; none is left empty."""

import numpy as np
import pytest

from mim_jax.tokenizers.assignment import assign
from mim_jax.tokenizers.kmeans import NUDGE, KMeansOptions, KMeansProgress, fit_kmeans, split_into_empty


def signs(code: int) -> np.ndarray:
    return np.where(np.random.default_rng(code).random(4) < 0.5, -1, 1).astype(np.float32)


def test_the_worst_cluster_is_split_and_split_again() -> None:
    centroids = np.arange(20, dtype=np.float32).reshape(5, 4)
    counts, inertia = np.array([8, 0, 50, 0, 2]), np.array([64.0, 0, 0, 0, 0.1])
    new, shares, splits = split_into_empty(centroids, counts, inertia, signs)
    assert splits == 2
    np.testing.assert_array_equal(
        new[[2, 4]], centroids[[2, 4]]
    )  # many points that are all equal stay one cluster
    move = NUDGE * np.sqrt(64 / (8 * 4)) * signs(1)
    np.testing.assert_allclose(new[1], centroids[0] + move)
    np.testing.assert_allclose(new[[0, 3]].mean(0), centroids[0] - move, atol=1e-6)
    np.testing.assert_array_equal(shares, [2, 4, 50, 2, 2])
    np.testing.assert_array_equal(counts, [8, 0, 50, 0, 2])  # the arguments are left alone


def test_a_centroid_at_zero_moves_and_equal_points_do_not() -> None:
    zero = np.zeros((2, 4), np.float32)
    new, _, splits = split_into_empty(zero, np.array([10, 0]), np.array([5.0, 0.0]), signs)
    assert splits == 1 and (new[0] == -new[1]).all() and (new[0] != 0).all()
    new, _, splits = split_into_empty(zero, np.array([10, 0]), np.array([0.0, 0.0]), signs)
    assert splits == 0 and not new.any()
    big = np.full((2, 4), 1e6, np.float32)
    assert (
        split_into_empty(big, np.array([10, 0]), np.array([1e-6, 0.0]), signs)[2] == 0
    )  # float32 cannot tell halves apart


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lloyd", "minibatch"])
@pytest.mark.parametrize("iterations", [0, 8])
def test_no_code_is_dead_even_from_a_bad_start(mode: str, iterations: int) -> None:
    """All but one of 64 centroids start far away; half the points are equal (white patches are)."""
    points = np.random.default_rng(0).normal(size=(3000, 6)).astype(np.float32)
    points[::2] = 1.0
    start = np.concatenate([points[:1], np.full((63, 6), 1e3, np.float32)])
    options = KMeansOptions(64, iterations, 1, mode=mode, max_points_per_centroid=10_000, rows=1024)
    passes: list[KMeansProgress] = []
    fitted = fit_kmeans(points, options, init=start, report=passes.append)
    assert passes[0].splits == 63 and passes[0].usage == 1 / 64
    assert fitted.usage == 1.0 and (fitted.counts > 0).all()
    np.testing.assert_array_equal(np.bincount(assign(points, fitted.centroids), minlength=64), fitted.counts)
    assert passes[-1].inertia < passes[0].inertia


def test_fewer_different_points_than_clusters_end_all_the_same() -> None:
    points = np.repeat(np.eye(6, dtype=np.float32), 20, axis=0)
    fitted = fit_kmeans(points, KMeansOptions(64, 3, 1, rows=1024))
    assert (fitted.counts > 0).sum() == 6 and fitted.usage == 6 / 64
    assert fitted.inertia < 1e-9
