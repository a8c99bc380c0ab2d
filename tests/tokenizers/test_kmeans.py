"""k-means and nearest centroids against scikit-learn, and their own invariants."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from mim_jax.targets.tokens import nearest_centroid
from mim_jax.tokenizers import kmeans
from mim_jax.tokenizers.kmeans import fit_kmeans


def blobs(n: int = 3000, clusters: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(clusters, 6)) * 5
    return (centres[rng.integers(0, clusters, n)] + rng.normal(size=(n, 6))).astype(np.float32)


def inertia(points: np.ndarray, centroids: np.ndarray) -> float:
    return float(np.square(points[:, None] - centroids[None]).sum(-1).min(1).sum())


def test_a_lloyd_step_equals_scikit_learns() -> None:
    points = blobs()
    start = points[:12].copy()
    oracle = KMeans(12, init=start, n_init=1, max_iter=1, algorithm="lloyd", tol=0).fit(points)
    chunked = jnp.asarray(points).reshape(3, 1000, 6)
    ours = kmeans._lloyd(jnp.asarray(start), chunked, jnp.ones((3, 1000)))
    np.testing.assert_allclose(ours, oracle.cluster_centers_, atol=1e-4)


@pytest.mark.slow
def test_fit_is_as_good_as_scikit_learns_and_repeats() -> None:
    points = blobs()
    ours = np.asarray(fit_kmeans(points, 12))
    assert inertia(points, ours) < 1.1 * KMeans(12, n_init=5, random_state=0).fit(points).inertia_
    np.testing.assert_array_equal(ours, fit_kmeans(points, 12))
    assert np.abs(ours - np.asarray(fit_kmeans(points, 12, seed=1))).max() > 0


@pytest.mark.slow
def test_no_dead_codes_even_from_a_bad_start() -> None:
    points = blobs(2000, 40)
    ids = np.asarray(nearest_centroid(jnp.asarray(points), fit_kmeans(points, 64)))
    assert len(np.unique(ids)) == 64


@pytest.mark.slow
def test_padding_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    points = blobs(997)
    whole = np.asarray(fit_kmeans(points, 8))
    monkeypatch.setattr(
        kmeans, "CHUNK", 997
    )  # no padding in one chunk either way; the start sees the same points
    np.testing.assert_allclose(whole, fit_kmeans(points, 8), atol=1e-4)
    assert np.abs(whole).min(axis=1).max() > 0  # no centroid sits on the padding's zeros


def test_too_few_different_points() -> None:
    with pytest.raises(ValueError, match="only 3 different points"):
        fit_kmeans(np.repeat(np.eye(3, dtype=np.float32), 50, axis=0), 4)


def test_nearest_centroid() -> None:
    points, centroids = blobs(500), blobs(20)
    ids = np.asarray(nearest_centroid(jnp.asarray(points), jnp.asarray(centroids)))
    np.testing.assert_array_equal(ids, np.square(points[:, None] - centroids[None]).sum(-1).argmin(1))
    np.testing.assert_array_equal(
        nearest_centroid(jnp.asarray(centroids), jnp.asarray(centroids)), np.arange(20)
    )
    halves = [
        np.asarray(nearest_centroid(jnp.asarray(p), jnp.asarray(centroids))) for p in np.split(points, 2)
    ]
    np.testing.assert_array_equal(np.concatenate(halves), ids)
    scaled = np.asarray(nearest_centroid(jnp.asarray(7 * points), jnp.asarray(7 * centroids)))
    np.testing.assert_array_equal(scaled, ids)
    assert (np.asarray(nearest_centroid(jnp.asarray(7 * points), jnp.asarray(centroids))) != ids).any()
