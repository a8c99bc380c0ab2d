"""The endless order: every epoch a permutation, a pure function of (seed, epoch)."""

import numpy as np
import pytest

from mim_jax.data import DataError, keys, locate


@pytest.mark.parametrize("length", [1, 2, 7, 1000])
def test_every_epoch_is_a_permutation(length):
    epoch, index = locate(np.arange(3 * length), length, seed=5)
    np.testing.assert_array_equal(epoch, np.repeat([0, 1, 2], length))
    for one in range(3):
        np.testing.assert_array_equal(np.sort(index[epoch == one]), np.arange(length))


def test_epochs_and_seeds_differ_and_repeat():
    first, second = np.split(locate(np.arange(200), 100, seed=5)[1], 2)
    assert (first != second).any() and (first != np.arange(100)).any()
    assert (locate(np.arange(100), 100, seed=6)[1] != first).any()
    np.testing.assert_array_equal(locate(np.arange(100), 100, seed=5)[1], first)


def test_positions_in_any_order_and_far_ahead():
    positions = np.array([10**12 + 3, 0, 10**12, 57, 3])
    epoch, index = locate(positions, 10, seed=1)
    for p, e, i in zip(positions, epoch, index, strict=True):
        assert (e, i) == tuple(int(part[0]) for part in locate(np.array([p]), 10, seed=1))
    np.testing.assert_array_equal(epoch, positions // 10)


def test_without_shuffle_and_without_examples():
    epoch, index = locate(np.arange(5, 12), 4, seed=0, shuffle=False)
    np.testing.assert_array_equal(index, [1, 2, 3, 0, 1, 2, 3])
    np.testing.assert_array_equal(epoch, [1, 1, 1, 2, 2, 2, 2])
    with pytest.raises(DataError, match="at least one image"):
        locate(np.arange(3), 0, seed=0)


def test_permutations_are_uniform_and_never_change():
    counts = np.zeros((4, 4))
    for seed in range(4000):
        counts[np.arange(4), keys.permutation(4, seed, "order", 0)] += 1
    assert abs(counts / 1000 - 1).max() < 0.15
    # Golden: a change here changes every run that is resumed.
    assert keys.permutation(8, 0, "order", 0).tolist() == [1, 0, 3, 6, 5, 4, 7, 2]
    assert keys.uniforms(2, 0, "crop", 0, 0) == [0.20011318965351343, 0.9337050832245463]
