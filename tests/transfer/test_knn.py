"""k-NN against scikit-learn."""

import jax.numpy as jnp
import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from mim_jax.transfer.knn import knn_scores, knn_top1


def data(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, n)
    centres = np.random.default_rng(0).normal(size=(5, 12))
    return (centres[labels] + 1.5 * rng.normal(size=(n, 12))).astype(np.float32), labels.astype(np.int32)


def test_predictions_equal_scikit_learns() -> None:
    train, test = data(400, 1), data(150, 2)
    for k, temperature in ((5, 0.07), (20, 0.07), (20, 1.0)):
        scores = knn_scores(
            jnp.asarray(test[0]),
            jnp.asarray(train[0]),
            jnp.asarray(train[1]),
            k=k,
            temperature=temperature,
            num_classes=5,
        )
        oracle = KNeighborsClassifier(
            n_neighbors=k, metric="cosine", weights=lambda distance, t=temperature: np.exp(-distance / t)
        ).fit(*train)
        np.testing.assert_array_equal(np.asarray(scores).argmax(1), oracle.predict(test[0]))
        top1 = knn_top1(train, test, k=k, temperature=temperature, num_classes=5)
        assert abs(top1 - oracle.score(*test)) < 1e-9


def test_a_sharp_temperature_listens_to_the_nearest() -> None:
    train = (np.array([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]], np.float32), np.array([0, 1, 1], np.int32))
    query = jnp.asarray([[1.0, 0.1]])
    sharp, flat = (
        knn_scores(query, jnp.asarray(train[0]), jnp.asarray(train[1]), k=3, temperature=t, num_classes=2)
        for t in (0.05, 100.0)
    )
    assert int(sharp.argmax()) == 0 and int(flat.argmax()) == 1


def test_k_larger_than_the_bank_and_many_queries() -> None:
    train, test = data(10, 3), data(2500, 4)
    assert 0 < knn_top1(train, test, k=200, temperature=0.07, num_classes=5) <= 1
