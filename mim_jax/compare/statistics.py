"""Seeds and test images as samples: intervals of means and of differences, by scipy.stats."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000


class Interval(NamedTuple):
    """A confidence interval at the level `CONFIDENCE`."""

    low: float
    high: float

    @property
    def contains_zero(self) -> bool:
        return self.low <= 0.0 <= self.high


class SeedMean(NamedTuple):
    """Mean over seeds and half the width of its t interval; None where one seed gives none."""

    mean: float
    half_width: float | None


def seed_mean(values: Sequence[float]) -> SeedMean:
    """Mean of one value per seed, with Student's t interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return SeedMean(mean, None)
    return SeedMean(mean, float(stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)))


def difference_over_seeds(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """Welch's t interval of mean(first) - mean(second); None where one of them has a single seed."""
    if min(len(first), len(second)) < 2:
        return None
    if np.ptp(first) == np.ptp(second) == 0:  # Welch's degrees of freedom are 0 / 0
        return Interval(first[0] - second[0], first[0] - second[0])
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
    return Interval(float(interval.low), float(interval.high))


def difference_over_images(
    first: Sequence[npt.NDArray[np.bool_]], second: Sequence[npt.NDArray[np.bool_]]
) -> Interval | None:
    """Paired bootstrap over test images of accuracy(first) - accuracy(second); the training runs are held fixed.

    Args:
        first, second: per seed whether each test image was classified correctly, [N]; averaged over the seeds first.
    Returns:
        percentile interval; None where a run has no results per image, or of another number of images.
    """
    if not first or not second or len({len(correct) for correct in [*first, *second]}) > 1:
        return None
    difference = np.mean(first, axis=0) - np.mean(second, axis=0)
    return _bootstrap_mean(difference.astype(np.float64).tobytes())


@functools.cache
def _bootstrap_mean(values: bytes) -> Interval:
    """Tables are written after every stage, so an interval is computed once. values: float64 [N]."""
    sample = np.frombuffer(values)
    if np.ptp(sample) == 0:
        return Interval(float(sample[0]), float(sample[0]))
    interval = stats.bootstrap(
        (sample,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=NUM_RESAMPLES,
        method="percentile",
        batch=100,
        rng=0,
    ).confidence_interval
    return Interval(float(interval.low), float(interval.high))
