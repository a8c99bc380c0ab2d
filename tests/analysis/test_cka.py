"""CKA: golden numbers (docs/papers/dark_secrets.md 3), invariants (7.8), and the sums of the definition written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.analysis.cka import (
    FEATURES,
    cka,
    cka_features,
    cka_minibatch,
    gram,
    hsic,
    hsic1,
    mean_off_diagonal,
    normalise_hsic,
)

PRODUCTS = np.outer(np.arange(12) + 1, np.arange(5) + 1)
X, Y = np.sin(PRODUCTS[:, :3]), np.cos(0.7 * PRODUCTS)


def grams(*features: np.ndarray) -> np.ndarray:
    return np.stack([rows @ rows.T for rows in features])


def minibatch(size: int, *features: np.ndarray) -> float:
    parts = [grams(*(rows[at : at + size] for rows in features)) for at in range(0, len(features[0]), size)]
    return float(cka_minibatch(parts)[0, 1])


def rotation(width: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def test_golden_numbers() -> None:
    both = np.concatenate([X, Y], axis=1)
    assert cka([X, Y])[0, 1] == pytest.approx(0.392400, abs=6e-7)
    assert minibatch(12, X, Y) == pytest.approx(0.142601, abs=6e-7)
    assert minibatch(6, X, Y) == pytest.approx(0.361023, abs=6e-7)
    assert minibatch(4, X, Y) == pytest.approx(0.531977, abs=6e-7)
    assert cka([X, both])[0, 1] == pytest.approx(0.768550, abs=6e-7)
    assert minibatch(12, X, both) == pytest.approx(0.665907, abs=6e-7)
    assert minibatch(6, X, both) == pytest.approx(0.747560, abs=6e-7)
    turned = 3 * X @ rotation(3) + 5
    assert cka([X, turned])[0, 1] == pytest.approx(1)
    for size in (12, 6, 4):
        assert minibatch(size, X, turned) == pytest.approx(1)
    assert cka([X, X * [1, 2, 10]])[0, 1] == pytest.approx(0.638382, abs=6e-7)
    assert hsic1(grams(X))[0, 0] == pytest.approx(0.820670, abs=6e-7)


def test_the_biased_estimate_is_biased() -> None:
    random = np.random.default_rng(0)
    narrow, wide = random.normal(size=(20, 7)), random.normal(size=(20, 300))
    assert 0.35 < cka([narrow, wide])[0, 1] < 0.65
    assert abs(minibatch(20, narrow, wide)) < 0.2


def test_invariants() -> None:
    order = np.random.default_rng(1).permutation(12)
    values, again = cka([X, Y]), cka([X[order], Y[order]])
    np.testing.assert_allclose(values, values.T)
    np.testing.assert_allclose(np.diagonal(values), 1)
    np.testing.assert_allclose(values, again)
    assert (values >= 0).all() and (values <= 1 + 1e-12).all()
    np.testing.assert_allclose(cka([X, 0.1 * Y @ rotation(5) - 7]), values)
    # both to a feature form: ||Yc' Xc||^2 over the norms
    xc, yc = X - X.mean(axis=0), Y - Y.mean(axis=0)
    norm = np.linalg.norm
    assert values[0, 1] == pytest.approx(
        norm(yc.T @ xc) ** 2 / (norm(xc.T @ xc) * norm(yc.T @ yc)), rel=1e-12
    )
    # HSIC1 needs no centring
    np.testing.assert_allclose(hsic1(grams(X + 5, Y)), hsic1(grams(X, Y)), atol=1e-10)
    with pytest.raises(ValueError, match="at least 4 rows, got 3"):
        hsic1(grams(X[:3]))
    with pytest.raises(ValueError, match="no minibatch"):
        cka_minibatch([])


def test_against_loops() -> None:
    k, l = grams(X, Y)  # noqa: E741
    n = len(k)
    centre = np.eye(n) - 1 / n
    trace = np.trace(k @ centre @ l @ centre)
    assert hsic(np.stack([k, l]))[0, 1] == pytest.approx(trace, rel=1e-12)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    one = np.ones(n)
    sums = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    expected = (np.trace(k @ l) + sums - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))
    assert hsic1(grams(X, Y))[0, 1] == pytest.approx(expected, rel=1e-12)
    # the definition: a U-statistic over all quadruples of different rows
    small, other = grams(X[:6], Y[:6])
    terms = [
        small[a, b] * (other[a, b] + other[c, d] - 2 * other[a, c])
        for a in range(6)
        for b in range(6)
        for c in range(6)
        for d in range(6)
        if len({a, b, c, d}) == 4
    ]
    assert hsic1(grams(X[:6], Y[:6]))[0, 1] == pytest.approx(np.mean(terms), rel=1e-9)


def test_float32_grams_of_features_with_a_large_mean() -> None:
    """What the device makes; without centring the mean of 100 would leave two digits."""
    random = np.random.default_rng(2)
    layers = [random.normal(size=(16, width)) + 100 for width in (40, 90)]
    made = jax.jit(lambda rows: jnp.stack([gram(layer) for layer in rows]))(
        [jnp.asarray(layer, jnp.float32) for layer in layers]
    )
    assert made.dtype == jnp.float32
    expected = normalise_hsic(hsic1(grams(*layers)))
    np.testing.assert_allclose(normalise_hsic(hsic1(made)), expected, atol=1e-5)


def test_features() -> None:
    slots = np.random.default_rng(3).normal(size=(3, 5, 2))
    made = {name: np.asarray(cka_features(jnp.asarray(slots), 1, name)) for name in FEATURES}
    assert [made[name].shape for name in FEATURES] == [(3, 1, 8), (3, 1, 2), (3, 1, 2), (3, 4, 2)]
    np.testing.assert_allclose(made["flatten"][:, 0], slots[:, 1:].reshape(3, 8), rtol=1e-6)
    np.testing.assert_allclose(made["pool"][:, 0], slots[:, 1:].mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(made["cls"][:, 0], slots[:, 0], rtol=1e-6)
    for name, prefix in (("cls", 0), ("all", 1)):
        with pytest.raises(ValueError, match="CKA's features are flatten, pool"):
            cka_features(jnp.asarray(slots), prefix, name)
    assert mean_off_diagonal(np.array([[1, 0.5], [0.3, 1]])) == pytest.approx(0.4)
    assert np.isnan(mean_off_diagonal(np.ones((1, 1))))
