"""A k-means that is stopped anywhere and started again ends bit for bit where it would have ended."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mim_jax.tokenizers.kmeans import KMeansOptions, KMeansProgress, fit_kmeans
from mim_jax.tokenizers.kmeans_checkpoint import FILE_NAME

POINTS = np.random.default_rng(0).normal(size=(900, 6)).astype(np.float32)


class Stopped(Exception):
    """By the test."""


class Interrupted:
    """A source and a report that stop after so many passes: between two, or in the middle of one."""

    def __init__(self, passes: int, inside: bool) -> None:
        self.left, self.inside = passes, inside

    def chunks(self) -> Iterator[np.ndarray]:
        yield POINTS[:500]
        if self.inside and self.left == 0:
            raise Stopped
        yield POINTS[500:]

    def report(self, _: KMeansProgress) -> None:
        self.left -= 1
        if self.left == 0 and not self.inside:
            raise Stopped


def options(mode: str, **more) -> KMeansOptions:
    return KMeansOptions(24, 3, 2, mode=mode, max_points_per_centroid=20, rows=256, **more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "inside"), [("lloyd", False), ("lloyd", True), ("minibatch", False)], ids=str
)
def test_stopped_at_every_pass(mode: str, inside: bool, tmp_path: Path) -> None:
    passes: list[KMeansProgress] = []
    whole = fit_kmeans(POINTS, options(mode), report=passes.append)
    assert len(passes) == 8
    for number in range(1, 8):
        directory = tmp_path / str(number)
        stop, rest = Interrupted(number, inside), Interrupted(-1, inside)
        with pytest.raises(Stopped):
            fit_kmeans(stop.chunks, options(mode), directory=directory, report=stop.report)
        again = fit_kmeans(rest.chunks, options(mode), directory=directory, report=rest.report)
        assert rest.left == -1 - (8 - number)  # no pass is made twice
        np.testing.assert_array_equal(again.centroids, whole.centroids)
        np.testing.assert_array_equal(again.counts, whole.counts)
        assert again.inertia == whole.inertia
        assert [path.name for path in directory.iterdir()] == [FILE_NAME]


def test_a_finished_fit_is_not_made_again(tmp_path: Path) -> None:
    first = fit_kmeans(POINTS, options("lloyd"), directory=tmp_path)
    passes: list[KMeansProgress] = []
    second = fit_kmeans(POINTS, options("lloyd"), directory=tmp_path, report=passes.append)
    assert not passes
    np.testing.assert_array_equal(first.centroids, second.centroids)


def test_other_fits_and_damage_are_refused(tmp_path: Path) -> None:
    fit_kmeans(POINTS, options("lloyd"), directory=tmp_path)
    with pytest.raises(ValueError, match="its seed is 1234, here it is 1;"):
        fit_kmeans(POINTS, options("lloyd", seed=1), directory=tmp_path)
    with pytest.raises(ValueError, match="its checksum of the points is"):
        fit_kmeans(2 * POINTS, options("lloyd"), directory=tmp_path)
    path = tmp_path / FILE_NAME
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[:-40], bytes(flipped), b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"kmeans\.npz is damaged .* delete it to start anew"):
            fit_kmeans(POINTS, options("lloyd"), directory=tmp_path)
