"""Classification metrics against scikit-learn and by hand."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from mim_jax.transfer import confusion
from mim_jax.transfer.metrics import (
    eleven_point_map,
    eleven_point_precision,
    mean_per_class,
    top_k,
)


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 300)
    return rng.normal(size=(300, 7)) + 1.5 * np.eye(7)[labels], labels


def test_top_k_and_mean_per_class(scored) -> None:
    scores, labels = scored
    for k in (1, 2, 5):
        assert top_k(scores, labels, k) == pytest.approx(top_k_accuracy_score(labels, scores, k=k))
    assert mean_per_class(scores, labels) == balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert top_k(scores, labels, 7) == 1.0 and top_k(scores[:, :3], labels.clip(0, 2), 5) == 1.0


def test_eleven_points_by_hand() -> None:
    """Ranks of the relevant ones: 1, 3, 6 of six: precision 1, 2/3, 1/2 from recall 1/3, 2/3, 1 on."""
    scores, relevant = np.array([6.0, 5, 4, 3, 2, 1]), np.array([1, 0, 1, 0, 0, 1], bool)
    expected = (4 * 1.0 + 3 * (2 / 3) + 4 * 0.5) / 11
    assert eleven_point_precision(scores, relevant) == pytest.approx(expected)
    assert eleven_point_precision(scores, np.array([1, 1, 1, 0, 0, 0], bool)) == 1.0


def test_eleven_points_as_the_definition_says(scored) -> None:
    """The sentence of docs/papers/dark_secrets.md 4.4, in loops: mean over r of the best precision at recall of at least r."""
    scores, labels = scored
    relevant = labels[:, None] == np.arange(7)
    values = []
    for c in range(7):
        order = np.argsort(-scores[:, c])
        points = [
            (relevant[order[:n], c].mean(), relevant[order[:n], c].sum() / relevant[:, c].sum())
            for n in range(1, 301)
        ]
        values.append(
            np.mean([max(p for p, r in points if r >= level - 1e-12) for level in np.linspace(0, 1, 11)])
        )
    assert eleven_point_map(scores, relevant) == pytest.approx(np.mean(values))


def texts_of(scored, names: list[str], path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """All that is written in the confusion matrix."""
    kept: list[Figure] = []
    monkeypatch.setattr(confusion.plt, "close", kept.append)
    confusion.draw_confusion(path, *scored, names)
    with Image.open(path) as picture:
        assert min(picture.size) > 200
    return {text.get_text() for text in kept[0].findobj(Text)}


def test_confusion_has_class_names(scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that matplotlib would take for mathematics, and one that is too long."""
    names = ["price_$5_to_$10", "a" * 40, *"cdefg"]
    written = texts_of(scored, names, tmp_path / "c.png", monkeypatch)
    assert {"price_$5_to_$10", "a" * 23 + "…", "g", "true class", "predicted class"} <= written


@pytest.mark.parametrize(("classes", "named"), [(37, True), (80, False)])
def test_confusion_of_many_classes_names_the_mistakes(
    classes: int, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.arange(4 * classes) % classes
    scores = np.eye(classes)[np.where(labels == 5, 9, labels)]  # one class is always taken for another
    written = texts_of(
        (scores, labels), [f"breed {n}" for n in range(classes)], tmp_path / "c.png", monkeypatch
    )
    assert ("breed 36" in written) == named
    (listed,) = (text for text in written if text.startswith("Most frequent"))
    assert listed == "Most frequent confusions:\nbreed 5 predicted as breed 9: 100 %"


def test_an_image_that_does_not_count_is_left_out_of_that_class() -> None:
    """VOC2007: an image that shows only difficult objects of a class is neither right nor wrong there."""
    scores = np.array([[6.0, 1], [5, 2], [4, 3], [3, 4]])
    labels = np.array([[1, 0], [-1, 0], [0, 1], [1, -1]])
    expected = [eleven_point_precision(scores[[0, 2, 3], 0], labels[[0, 2, 3], 0] == 1)]
    expected += [eleven_point_precision(scores[:3, 1], labels[:3, 1] == 1)]
    assert eleven_point_map(scores, labels == 1, labels >= 0) == pytest.approx(np.mean(expected))
    assert (
        eleven_point_map(scores, labels == 1)
        < 1.0
        == eleven_point_precision(scores[:3, 1], labels[:3, 1] == 1)
    )
