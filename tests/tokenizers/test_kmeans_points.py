"""Which points are used and where k-means starts depends on global indices alone; sources that cannot be used."""

import numpy as np
import pytest

from mim_jax.tokenizers.kmeans_points import Points


def numbered(count: int = 500) -> np.ndarray:
    return np.arange(2.0 * count).reshape(count, 2).astype(np.float32)


def used(points: Points, rows: int = 64) -> np.ndarray:
    blocks = list(points.blocks(rows))
    assert all(block.shape == (rows, 2) and weight.shape == (rows,) for block, weight in blocks)
    assert all((block[weight == 0] == 0).all() for block, weight in blocks)
    return np.concatenate([block[weight == 1] for block, weight in blocks])


def test_the_draw_depends_on_global_indices_alone() -> None:
    points = numbered()
    plain = Points(lambda: [points], limit=200, seed=3)
    order = np.random.default_rng(0).permutation(500)
    mixed = Points(lambda: ((points[part], part) for part in np.array_split(order, 7)), limit=200, seed=3)
    assert (plain.total, plain.used, plain.width) == (mixed.total, mixed.used, mixed.width) == (500, 200, 2)
    assert plain.checksum == mixed.checksum != Points(lambda: [points + 1], limit=200, seed=3).checksum
    drawn = used(plain)
    assert len(drawn) == 200 and (np.diff(drawn[:, 0]) > 0).all()  # in the order in which they come
    theirs = used(mixed)
    np.testing.assert_array_equal(theirs[np.argsort(theirs[:, 0])], drawn)
    assert set(used(Points(lambda: [points], limit=200, seed=4))[:, 0]) != set(drawn[:, 0])
    for number in range(2):
        start = plain.sample(20, 3, "start", number)
        np.testing.assert_array_equal(mixed.sample(20, 3, "start", number), start)
        assert set(start[:, 0]) < set(drawn[:, 0]) and len(set(start[:, 0])) == 20
        assert (np.diff(start[:, 0]) < 0).any()  # drawn in random order
        assert start[:, 0].max() > drawn[150, 0]  # from all points, not the first
    assert (plain.sample(20, 3, "start", 0) != start).any()


def test_all_points_are_used_where_there_are_few() -> None:
    points = numbered(130)
    np.testing.assert_array_equal(used(Points(lambda: np.array_split(points, 4), limit=130, seed=0)), points)


@pytest.mark.parametrize(
    ("chunks", "sentence"),
    [
        ([], "no points"),
        ([numbered(3), np.zeros((3, 5), np.float32)], r"a chunk is \[n, 2\].*\(3, 5\)"),
        ([np.zeros(3, np.float32)], "a chunk is"),
        ([np.full((3, 2), np.nan)], "not finite"),
        ([np.full((3, 2), 1e300)], "not finite in float32"),
        ([(numbered(3), np.arange(2))], r"3 points came with indices of shape \(2,\)"),
        ([(numbered(3), np.arange(1, 4))], "3 points came, the highest global index is 3"),
        ([(numbered(3), np.arange(3))] * 2, "6 points came, the highest global index is 2"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_sources_that_cannot_be_used(chunks: list, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Points(lambda: chunks, limit=10, seed=0)


def test_a_source_that_gives_its_points_once() -> None:
    once = iter([numbered(30)])
    points = Points(lambda: once, limit=100, seed=0)
    with pytest.raises(ValueError, match="gave 30 points the first time and 0 now"):
        used(points)
