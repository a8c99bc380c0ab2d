"""Intervals over seeds and over test images: closed forms, and coverage by simulation."""

import math

import numpy as np
import pytest

from mim_jax.compare.statistics import Interval, difference_over_images, difference_over_seeds, seed_mean
from mim_jax.compare.table import num_decimals


def test_t_interval_of_three_seeds() -> None:
    mean, half_width = seed_mean([1.0, 2.0, 3.0])
    assert mean == 2.0 and half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert seed_mean([1.5]) == (1.5, None)


def test_welch_interval() -> None:
    interval = difference_over_seeds([1.0, 2.0], [3.0, 4.0])
    assert interval == pytest.approx(
        (-2 - 4.302653 * math.sqrt(0.5), -2 + 4.302653 * math.sqrt(0.5)), rel=1e-6
    )
    assert difference_over_seeds([1.0], [3.0, 4.0]) is None
    assert difference_over_seeds([3.0, 3.0], [1.0, 1.0]) == Interval(2.0, 2.0)


def test_bootstrap_is_paired() -> None:
    """Two arms that are right on nearly the same images differ by little more than 1 %, whatever their accuracy."""
    rng = np.random.default_rng(0)
    first = rng.random(2000) < 0.6
    second = first.copy()
    second[np.flatnonzero(first)[:40]] = False  # 2 % worse
    interval = difference_over_images([first], [second])
    assert interval is not None and not interval.contains_zero
    half_width = 1.96 * math.sqrt(0.02 * 0.98 / 2000)
    assert interval == pytest.approx((0.02 - half_width, 0.02 + half_width), abs=2e-3)
    unpaired = difference_over_images([first], [rng.permutation(second)])
    assert unpaired is not None and unpaired.contains_zero
    assert difference_over_images([first, second], [second, first]) == Interval(0.0, 0.0)


def test_no_interval_without_the_same_images() -> None:
    correct = np.ones(10, bool)
    assert difference_over_images([], [correct]) is None
    assert difference_over_images([correct], [correct[:9]]) is None


@pytest.mark.slow
def test_intervals_cover() -> None:
    """95 % of the intervals hold the true difference, within three standard errors of so many trials."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        interval = difference_over_seeds(rng.normal(1, 2, 4).tolist(), rng.normal(0, 2, 4).tolist())
        assert interval is not None
        covered += interval.low <= 1.0 <= interval.high
    assert abs(covered / 400 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 400)


@pytest.mark.parametrize(("value", "digits"), [(0.012, 4), (1.5, 2), (99.0, 2), (250.0, 1), (-4000.0, 0)])
def test_num_decimals(value: float, digits: int) -> None:
    assert num_decimals([value, 0.001]) == digits
