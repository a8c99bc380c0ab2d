"""k-NN against scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from mim_jax.transfer import knn
from mim_jax.transfer.knn import blocks, knn_correct, nearest, votes


def data(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, n)
    centres = np.random.default_rng(0).normal(size=(5, 12))
    return (centres[labels] + 1.5 * rng.normal(size=(n, 12))).astype(np.float32), labels.astype(np.int32)


def oracle(train, k: int, temperature: float) -> KNeighborsClassifier:
    weights = lambda distance: np.exp(-distance / temperature)  # noqa: E731
    return KNeighborsClassifier(n_neighbors=k, metric="cosine", weights=weights).fit(*train)


def parts(pair, size: int):
    return [(pair[0][i : i + size], pair[1][i : i + size]) for i in range(0, len(pair[1]), size)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [7, 64, 400])
def test_accuracy_equals_scikit_learns_however_the_neighbours_come(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "NEIGHBOURS", 100)
    monkeypatch.setattr(knn, "QUERIES", 64)
    train, test = data(400, 1), data(150, 2)
    for temperature in (0.07, 1.0):
        ours = knn_correct(parts(train, size), test, ks=(5, 20, 200), temperature=temperature, num_classes=5)
        wanted = [oracle(train, k, temperature).predict(test[0]) == test[1] for k in (5, 20, 200)]
        np.testing.assert_array_equal(ours, wanted)


def test_predictions_equal_scikit_learns() -> None:
    train, test = data(400, 1), data(150, 2)
    held = (jnp.full((150, 20), -jnp.inf), jnp.full((150, 20), -1))
    held = nearest(jnp.asarray(test[0]), held, jnp.asarray(train[0]), jnp.asarray(train[1]))
    for k in (5, 20):
        scores = votes(*held, k=k, temperature=0.07, num_classes=5)
        np.testing.assert_array_equal(np.asarray(scores).argmax(1), oracle(train, k, 0.07).predict(test[0]))


def test_a_sharp_temperature_listens_to_the_nearest() -> None:
    train = (np.array([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]], np.float32), np.array([0, 1, 1], np.int32))
    query = (np.array([[1.0, 0.1]], np.float32), np.array([0], np.int32))
    assert knn_correct([train], query, ks=(3,), temperature=0.05, num_classes=2) == [[True]]
    assert knn_correct([train], query, ks=(3,), temperature=100.0, num_classes=2) == [[False]]


def test_k_larger_than_the_bank_and_many_queries() -> None:
    train, test = data(10, 3), data(2500, 4)
    few, many = knn_correct([train], test, ks=(10, 200), temperature=0.07, num_classes=5).mean(axis=1)
    assert 0 < few == many <= 1


def test_blocks_keep_every_row_once() -> None:
    pair = (np.arange(23.0)[:, None], np.arange(23))
    made = list(blocks(parts(pair, 4), 10))
    assert [len(labels) for _, labels in made] == [10, 10, 10]
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in made])[:23], np.arange(23))
    assert (made[-1][1][3:] == -1).all()
