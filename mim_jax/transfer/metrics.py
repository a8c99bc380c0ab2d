"""Classification metrics from scores: scikit-learn's where it has them; VOC2007's 11-point average precision is ours."""

import math

import numpy as np
import numpy.typing as npt
from sklearn.metrics import balanced_accuracy_score

STANDARD_ERROR = "_stderr"
"""Suffix of a metric's standard error."""
Scores = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]
Relevant = npt.NDArray[np.bool_]


def top_k_correct(scores: Scores, labels: Labels, k: int) -> npt.NDArray[np.bool_]:
    """Whether each label is among the k highest scores, [n]; scores [n, C], labels [n].

    Not scikit-learn's: that one refuses labels that do not occur. Ties count for the example.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    return np.asarray(np.sum(scores > own, axis=1) < k)


def top_k(scores: Scores, labels: Labels, k: int) -> float:
    """Share of examples whose label is among the k highest scores; scores [n, C], labels [n]."""
    return float(np.mean(top_k_correct(scores, labels, k)))


def standard_error(share: float, count: int) -> float:
    """How far the share of `count` examples that are right lies from that of all there could be: of the binomial."""
    return math.sqrt(share * (1 - share) / count)


def mean_per_class(scores: Scores, labels: Labels) -> float:
    """Unweighted mean of the recalls of the classes that occur."""
    return float(balanced_accuracy_score(labels, scores.argmax(axis=1)))


def eleven_point_precision(scores: Scores, relevant: Relevant) -> float:
    """VOC2007's average precision of one class: mean over recall 0, 0.1, ..., 1 of the best precision from there on.

    Args:
        scores: float [n]. relevant: bool [n].
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(relevant[order])
    recall, precision = hits / max(1, int(relevant.sum())), hits / np.arange(1, len(hits) + 1)
    points = [precision[recall >= r - 1e-12].max(initial=0.0) for r in np.linspace(0, 1, 11)]
    return float(np.mean(points))


def eleven_point_map(scores: Scores, relevant: Relevant, counted: Relevant | None = None) -> float:
    """Mean of `eleven_point_precision` over classes.

    Args:
        scores: float [n, C]. relevant: bool [n, C].
        counted: bool [n, C]; examples that are left out of a class are False (VOC: only difficult objects); None = all count.
    """
    counted = np.ones_like(relevant) if counted is None else counted
    classes = zip(scores.T, relevant.T, counted.T, strict=True)
    return float(np.mean([eleven_point_precision(s[c], r[c]) for s, r, c in classes]))
