"""Colour jitter against Pillow's ImageEnhance, which torchvision's transform is for PIL images."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mim_jax.corruptions.colour import jitter, jitter_with

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
IMAGE = np.random.default_rng(0).integers((120, 60, 20), (200, 150, 60), (8, 12, 3), np.uint8)  # reddish


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_operations_are_pillows_in_the_order_given(order: tuple[int, ...]) -> None:
    factors = (1.2, 0.7, 1.3)
    expected = Image.fromarray(IMAGE)
    for operation in order:
        expected = ENHANCERS[operation](expected).enhance(factors[operation])
    ours = jitter_with(jnp.asarray(IMAGE / 255.0, jnp.float32), jnp.asarray(factors), jnp.asarray(order))
    assert np.abs(255.0 * np.asarray(ours) - np.asarray(expected, np.float64)).max() < 3.5  # it rounds thrice


@pytest.mark.slow
def test_factors_and_orders_are_drawn_for_each_key() -> None:
    """Brightness alone can be read off a grey image: its factor is uniform in [0.6, 1.4]; all six orders occur."""
    keys = jax.random.split(jax.random.key(0), 2000)
    grey = jnp.full((1, 1, 3), 0.5)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: jitter(key, grey, 0.4)))(keys))[:, 0, 0, 0] / 0.5
    assert 0.6 <= drawn.min() < 0.61 and 1.39 < drawn.max() <= 1.4
    assert abs(drawn.mean() - 1.0) < 0.02
    image = jnp.asarray(IMAGE / 255.0, jnp.float32)
    assert (np.asarray(jitter(keys[0], image, 0.0)) == np.asarray(image)).all()
    one, two = (np.asarray(jitter(key, image, 0.4)) for key in keys[:2])
    assert np.abs(one - two).max() > 0.05
