"""What the pictures of attention draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import images, small_method

from mim_jax.analysis.figures import attention_maps, rollout, spread_layers
from mim_jax.analysis.measure import encoder_attention


def test_rollout_is_the_product_of_the_layers() -> None:
    random = np.random.default_rng(0)
    layers = random.random((3, 2, 4, 5, 5))
    layers /= layers.sum(axis=-1, keepdims=True)
    expected = np.eye(5)
    for layer in layers:
        expected = (0.5 * layer.mean(axis=1) + 0.5 * np.eye(5)) @ expected
    made = jax.jit(lambda x: (rollout(list(x), 1), rollout(list(x), 0)))(jnp.asarray(layers, jnp.float32))
    np.testing.assert_allclose(made[0], expected[:, 0, 1:], rtol=1e-5)
    np.testing.assert_allclose(made[1], expected.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(made[1].sum(axis=-1), 1, rtol=1e-5)


def test_layers_that_are_drawn() -> None:
    assert spread_layers([True] * 12) == [0, 4, 7, 11]
    assert spread_layers([False, True, True]) == [1, 2]
    assert spread_layers([False]) == []


@pytest.mark.slow
def test_maps_are_rows_of_the_attention() -> None:
    method = small_method("mae", {"model.image_size": 16})
    params = jax.tree.map(
        lambda x: np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32),
        jax.eval_shape(method.init_params, jax.random.key(0)),
    )
    pictures = images(2)
    maps = attention_maps(method, params, pictures)
    _, logs = jax.jit(lambda p, x: encoder_attention(method, p, x))(params, pictures)
    assert list(maps.layers) == [1, 2] and maps.query[1] == (2, 2)
    prefix, at = method.net.prefix, 2 * 4 + 2
    for layer, drawn in maps.layers.items():
        row = np.exp(np.asarray(logs[layer - 1][:, 0, :, prefix + at, prefix:]))
        np.testing.assert_allclose(drawn.reshape(row.shape), row, rtol=1e-4, atol=1e-6)
    assert maps.rollout is not None and maps.rollout.shape == (2, 4, 4)
