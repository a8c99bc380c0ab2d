"""Tiled assignment against float64 distances; its invariants (docs/papers/mapet.md 14.2, item 13); code usage."""

import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.targets.tokens import nearest_centroid
from mim_jax.tasks import bench_assignment
from mim_jax.tokenizers.assignment import TILE, assign, usage_and_perplexity

CLUSTERS = 2 * TILE + 276  # three tiles of 440 lanes, and 20 lanes of padding


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def nearest(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    p, c = points.astype(np.float64), centroids.astype(np.float64)
    return (0.5 * np.square(c).sum(1) - p @ c.T).argmin(1)


@pytest.mark.parametrize("clusters", [1, 12, CLUSTERS])
def test_ids_are_those_of_float64_distances(clusters: int) -> None:
    points, centroids = normal(0, 700, 24), normal(1, clusters, 24)
    ids = assign(points, centroids)
    assert ids.dtype == np.int32 and ids.shape == (700,)
    np.testing.assert_array_equal(ids, nearest(points, centroids))


def test_ids_do_not_depend_on_the_split() -> None:
    points, centroids = normal(0, 700, 24), normal(1, CLUSTERS, 24)
    ids = assign(points, centroids)
    np.testing.assert_array_equal(assign(points, centroids, rows=128), ids)
    parts = np.split(points, [1, 3, 64, 128])
    np.testing.assert_array_equal(np.concatenate([assign(part, centroids) for part in parts]), ids)
    assert assign(points[:0], centroids).shape == (0,)


def test_centroids_are_their_own_nearest_and_scale_matters() -> None:
    points, centroids = normal(0, 700, 24), normal(1, CLUSTERS, 24)
    np.testing.assert_array_equal(assign(centroids, centroids), np.arange(CLUSTERS))
    ids = assign(points, centroids)
    for scale in (7.0, 0.03):
        np.testing.assert_array_equal(assign(scale * points, scale * centroids), ids)
        assert (assign(scale * points, centroids) != ids).any()


def test_ties_go_to_the_smaller_id() -> None:
    """Equal centroids in one tile, in the same lane of others, and in a later lane of an earlier tile."""
    centroids = np.round(normal(1, CLUSTERS, 24))
    lanes = CLUSTERS // 3 + 2  # 440
    for first, copies in (
        (3, (4, 3 + lanes, 3 + 2 * lanes)),
        (50, (49 + lanes, 10 + 2 * lanes)),
        (7, (8, 9)),
    ):
        centroids[list(copies)] = centroids[first]
    centroids[-1] = centroids[0]
    distances = np.square(centroids[:, None] - centroids[None]).sum(-1)
    np.testing.assert_array_equal(assign(centroids, centroids), distances.argmin(1))
    np.testing.assert_array_equal(assign(np.zeros((70, 24)), np.ones((CLUSTERS, 24))), np.zeros(70))


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"not \(3, 4\) and \(2, 5\)"):
        assign(np.zeros((3, 4)), np.zeros((2, 5)))


def test_usage_and_perplexity() -> None:
    assert usage_and_perplexity([1] * 8) == (1.0, pytest.approx(8.0))
    assert usage_and_perplexity([0, 0, 0, 3, 0, 0, 0, 0]) == (0.125, pytest.approx(1.0))
    usage, perplexity = usage_and_perplexity([3, 1, 0, 0])
    assert usage == 0.5
    assert perplexity == pytest.approx(2 ** (0.75 * np.log2(4 / 3) + 0.25 * 2))
    with pytest.raises(ValueError, match="no code was used"):
        usage_and_perplexity(np.zeros(4, int))


def test_ids_of_a_method_are_those_of_its_kmeans() -> None:
    """`nearest_centroid` in a training step, `nearest_tiled` in the k-means."""
    points, centroids = normal(0, 500, 24), normal(1, 20, 24)
    ids = np.asarray(nearest_centroid(jnp.asarray(points), jnp.asarray(centroids)))
    np.testing.assert_array_equal(ids, nearest(points, centroids))
    np.testing.assert_array_equal(ids, assign(points, centroids))
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


def test_the_benchmark_prints_a_row_for_each_work(capsys: pytest.CaptureFixture[str]) -> None:
    bench_assignment.run(["--points=64", "--dim=8", "--clusters=16", "--rounds=1"])
    rows = [
        line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")
    ]
    assert rows == ["work", "matmul x c'", "matmul x c", "nearest_tiled", "nearest_centroid"]
