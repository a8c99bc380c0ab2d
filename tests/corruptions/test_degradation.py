"""Blur and random grey: the anchors and invariants of docs/papers/beyond_masking.md A12 and A11, and torch's convolution."""

import anchors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anchors import PRECISIONS, photographs, precision, tolerance

from mim_jax.corruptions.degradation import blur, decolorize, draw_kernel, draw_weights
from tests.conftest import unchecked

blur_all = jax.jit(blur)
grey = jax.jit(decolorize)
draw_all = jax.jit(jax.vmap(draw_kernel))


def kernels(count: int) -> jax.Array:
    """Up to 2000 draws; always drawn at once, because compiling them is what takes the time."""
    return draw_all(jax.random.split(jax.random.key(0), 2000))[:count]


def delta(channels: np.ndarray, side: int = 7) -> np.ndarray:
    """A kernel that is `channels` [out, in] at its centre."""
    kernel = np.zeros((3, 3, side, side), np.float32)
    kernel[:, :, side // 2, side // 2] = channels
    return kernel


@PRECISIONS
def test_blur_is_the_specs(dtype: str) -> None:
    with precision(dtype):
        kernel = (1 / 49 + 0.02 * np.sin(1 + np.arange(441))).reshape(1, 3, 3, 7, 7).astype(dtype)
        out = np.asarray(blur(jnp.asarray(anchors.image(224, dtype)[:1]), jnp.asarray(kernel)))
    assert out.dtype == dtype
    atol = tolerance(dtype, 2e-6)
    np.testing.assert_allclose(out[0, 0, 0], [0.40023178, 0.31126845, 0.31101719], atol=atol)
    np.testing.assert_allclose(out[0, 100, 50], [-0.25162422, -0.30670029, -0.26099434], atol=atol)
    assert out.sum(dtype=np.float64) == pytest.approx(46198.40704171, rel=tolerance(dtype, 1e-6, 1e-12))


@pytest.mark.parametrize("side", [1, 3, 7])
def test_blur_is_a_correlation_with_zero_padding(side: int) -> None:
    images = photographs(3, 10, 13)
    filters = np.random.default_rng(1).normal(size=(3, 3, 3, side, side)).astype(np.float32)
    padded = np.pad(images, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    expected = np.einsum("bhwiyx,boiyx->bhwo", windows, filters)
    np.testing.assert_allclose(blur_all(images, filters), expected, atol=2e-5)


@pytest.mark.slow
def test_blur_neutral_linear_and_zero() -> None:
    one, other = photographs(2, 12, 12), photographs(2, 12, 12, seed=1)
    neutral = np.broadcast_to(delta(np.eye(3)), (2, 3, 3, 7, 7))
    np.testing.assert_array_equal(blur_all(one, neutral), one)
    swapped = np.broadcast_to(delta(np.eye(3)[[1, 2, 0]]), (2, 3, 3, 7, 7))
    np.testing.assert_array_equal(blur_all(one, swapped), one[..., [1, 2, 0]])  # [out, in], not [in, out]
    w = kernels(2)
    np.testing.assert_allclose(
        blur_all(2 * one - other, w), 2 * blur_all(one, w) - blur_all(other, w), atol=1e-5
    )
    np.testing.assert_array_equal(blur_all(np.zeros_like(one), w), 0)
    assert jax.eval_shape(blur, jnp.asarray(one, jnp.bfloat16), w).dtype == jnp.float32


def test_blur_is_the_box_mean_in_expectation() -> None:
    image = photographs(1, 11, 11)[0] + 1.0
    out = blur_all(np.broadcast_to(image, (2000, 11, 11, 3)), kernels(2000))
    padded = np.pad(image.sum(axis=-1), 3)
    box = np.lib.stride_tricks.sliding_window_view(padded, (7, 7)).mean(axis=(2, 3))
    spread = np.asarray(out).std(axis=0) / np.sqrt(2000)
    assert (np.abs(np.asarray(out).mean(axis=0) - box[..., None]) < 5.5 * spread).all()
    assert np.abs(box).min() > 10 * spread.max()  # so that another mean would be seen


@pytest.mark.slow
def test_drawn_kernels() -> None:
    w = kernels(2000)
    assert w.shape == (2000, 3, 3, 7, 7) and w.dtype == np.float32
    assert w.mean() == pytest.approx(1 / 49, abs=1e-4) and w.std() == pytest.approx(0.02, rel=0.01)
    gain = w.sum(axis=(2, 3, 4))
    assert gain.mean() == pytest.approx(3, abs=0.02) and gain.std() == pytest.approx(0.2425, rel=0.05)
    assert draw_kernel(jax.random.key(0), size=3, std=0.0).tolist() == pytest.approx(
        np.full((3, 3, 3, 3), 1 / 9)
    )


def test_blur_refuses_kernels_that_do_not_fit() -> None:
    images = jnp.zeros((2, 8, 8, 3))
    for shape in [(1, 3, 3, 7, 7), (2, 3, 3, 6, 6), (2, 3, 3, 5, 7), (2, 1, 3, 7, 7)]:
        with unchecked(), pytest.raises(ValueError, match="k odd"):
            blur(images, jnp.zeros(shape))


@PRECISIONS
def test_grey_is_the_specs(dtype: str) -> None:
    with precision(dtype):
        weights = jnp.asarray([0.2, 0.5, 0.3], dtype)
        out = np.asarray(jax.vmap(lambda x: decolorize(x, weights))(jnp.asarray(anchors.image(224, dtype))))
    assert out.shape == (2, 224, 224, 3) and out.dtype == dtype
    np.testing.assert_array_equal(out[..., :1].repeat(3, axis=-1), out)
    atol = tolerance(dtype, 1e-6)
    assert out[0, 0, 0, 0] == pytest.approx(0.21469685, abs=atol)
    assert out[1, 10, 20, 2] == pytest.approx(0.58602338, abs=atol)
    assert out[..., 0].sum(dtype=np.float64) == pytest.approx(
        11460.77690643, rel=tolerance(dtype, 1e-6, 1e-12)
    )


@pytest.mark.slow
def test_grey_neutral_linear_and_drawn_weights() -> None:
    one, other = (photographs(1, 6, 6, seed)[0] for seed in (0, 1))
    for channel in range(3):
        np.testing.assert_array_equal(
            grey(one, np.eye(3, dtype=np.float32)[channel])[..., 1], one[..., channel]
        )
    w = draw_weights(jax.random.key(0))
    np.testing.assert_allclose(grey(2 * one - other, w), 2 * grey(one, w) - grey(other, w), atol=2e-6)
    drawn = np.asarray(jax.jit(jax.vmap(draw_weights))(jax.random.split(jax.random.key(0), 4000)))
    assert drawn.min() >= 0 and drawn.max() <= 0.667 and drawn.max() > 0.66
    np.testing.assert_allclose(drawn.mean(axis=0), 0.3335, atol=0.015)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.06


def blurred(keys: jax.Array, images: jax.Array) -> jax.Array:
    return blur(images, jax.vmap(draw_kernel)(keys))


def greyed(keys: jax.Array, images: jax.Array) -> jax.Array:
    return jax.vmap(lambda key, image: decolorize(image, draw_weights(key)))(keys, images)


@pytest.mark.slow
@pytest.mark.parametrize("task", [blurred, greyed])
def test_keys_batches_and_devices(task: "type[jax.Array]") -> None:
    images, keys = photographs(16, 24, 24), jax.random.split(jax.random.key(3), 16)
    jitted = jax.jit(task)
    out = np.asarray(jitted(keys, images))
    np.testing.assert_array_equal(out, jitted(keys, images))
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_allclose(jitted(keys[order], images[order]), out[order], rtol=0, atol=1e-6)
    spread, collectives = anchors.on_eight_devices(jitted, keys, images)
    np.testing.assert_allclose(spread, out, rtol=0, atol=1e-6)
    assert collectives == []
    same = np.asarray(jitted(keys, np.broadcast_to(images[:1], images.shape)))
    assert len({one.tobytes() for one in same}) == 16


def test_eager_is_jitted() -> None:
    images, w = jnp.asarray(photographs(2, 12, 12)), kernels(2)
    np.testing.assert_allclose(blur(images, w), blur_all(images, w), rtol=0, atol=1e-6)
    weights = jnp.asarray([0.1, 0.6, 0.3], jnp.float32)
    np.testing.assert_allclose(decolorize(images[0], weights), grey(images[0], weights), rtol=0, atol=1e-6)


def test_gradients_are_finite() -> None:
    images, weights = photographs(2, 9, 9), np.asarray([0.0, 0.3, 0.6], np.float32)
    both = {"argnums": (0, 1)}
    grads = (
        *jax.jit(jax.grad(lambda x, w: jnp.sum(blur(x, w) ** 2), **both))(images, kernels(2)),
        *jax.jit(jax.grad(lambda x, w: jnp.sum(decolorize(x, w) ** 2), **both))(images[0], weights),
    )
    for grad in grads:
        assert np.isfinite(grad).all() and np.abs(grad).sum() > 0


def test_blur_is_torchs_convolution() -> None:
    torch = pytest.importorskip("torch", reason=anchors.TORCH)
    images, w = photographs(4, 21, 18), kernels(4)
    out = blur_all(images, w)
    for image, kernel, got in zip(images, w, out, strict=True):
        planes = torch.tensor(image).permute(2, 0, 1)[None]
        expected = torch.nn.functional.conv2d(planes, torch.tensor(kernel), padding=3)[0].permute(1, 2, 0)
        np.testing.assert_allclose(got, expected, atol=2e-6)
