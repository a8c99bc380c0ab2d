"""SimMIM's local target normalisation against a loop over pixels and windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.targets.pixels import normalise_locally


def loop(images: np.ndarray, window: int) -> np.ndarray:
    """docs/papers/dark_secrets.md 1.4, in float64, one pixel after another."""
    out, reach = np.empty_like(images), window // 2
    for b, row, column, channel in np.ndindex(images.shape):
        near = images[
            b, max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1, channel
        ]
        variance = max(0.0, near.var(ddof=1))
        out[b, row, column, channel] = (images[b, row, column, channel] - near.mean()) / np.sqrt(
            variance + 1e-6
        )
    return out


@pytest.mark.parametrize(("size", "window"), [((9, 14), 5), ((8, 6), 47), ((1, 7), 3)])
def test_the_loop(size: tuple[int, int], window: int) -> None:
    images = np.random.default_rng(0).normal(0.4, 1.3, (2, *size, 3))
    expected = loop(images, window)
    ours = jax.jit(normalise_locally, static_argnums=1)
    np.testing.assert_allclose(ours(jnp.asarray(images, jnp.float32), window), expected, atol=1e-4)
    with jax.enable_x64(True):
        np.testing.assert_allclose(ours(jnp.asarray(images), window), expected, atol=1e-11)


def test_the_papers_window_and_flat_areas() -> None:
    """A white area (2.6 after normalisation, 46 px of it around a pixel) stays near 0: no amplified rounding."""
    images = np.random.default_rng(1).normal(size=(1, 60, 120, 3)).astype(np.float32)
    images[:, :, :70] = 2.6
    ours = np.asarray(jax.jit(normalise_locally)(jnp.asarray(images)))
    assert np.abs(ours[:, :, :40]).max() < 1e-3
    row, column, channel = 10, 100, 1
    near = images[0, : row + 24, column - 23 : column + 24, channel].astype(np.float64)
    expected = (images[0, row, column, channel] - near.mean()) / np.sqrt(near.var(ddof=1) + 1e-6)
    assert ours[0, row, column, channel] == pytest.approx(expected, abs=1e-5)


def test_shift_and_scale_of_an_image_do_not_matter() -> None:
    images = jnp.asarray(np.random.default_rng(2).normal(size=(1, 12, 10, 3)), jnp.float32)
    local = jax.jit(lambda images: normalise_locally(images, 5))
    np.testing.assert_allclose(local(3 * images + 5), local(images), atol=1e-4)
    assert jax.eval_shape(local, jnp.zeros((1, 4, 4, 3), jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("window", [1, 4, 0])
def test_windows_that_make_no_sense(window: int) -> None:
    with pytest.raises(ValueError, match="odd and at least 3"):
        normalise_locally(jnp.zeros((1, 4, 4, 3)), window)
    with pytest.raises(ValueError, match="one pixel"):
        normalise_locally(jnp.zeros((1, 1, 1, 3)))
