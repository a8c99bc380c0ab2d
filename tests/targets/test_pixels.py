"""Per-patch target normalisation: the anchors of Beyond Masking (A12), its invariants (A11), MAE's rule, and torch's variance."""

import anchors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anchors import PRECISIONS, precision, tolerance

from mim_jax.corruptions.masking import mask_from_noise
from mim_jax.targets.pixels import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    denormalise,
    flip_where,
    normalise_patches,
    patchify,
    to_unit,
    unpatchify,
)
from tests.conftest import unchecked


@pytest.mark.slow
@PRECISIONS
def test_channel_normalisation_is_the_specs(dtype: str) -> None:
    with precision(dtype):
        image = jnp.asarray(anchors.image(224, dtype))
        tokens = normalise_patches(patchify(denormalise(image, IMAGENET_MEAN, IMAGENET_STD), 16), "channel")
        error = jnp.mean((jnp.asarray(anchors.prediction(dtype)) - tokens) ** 2, axis=-1)
        mask = mask_from_noise(jnp.asarray(anchors.noise()), 147)
        losses = [float(jnp.mean(error)), float(jnp.sum(error * mask) / jnp.sum(mask))]
        square = float(jnp.mean(tokens**2))
    assert tokens.dtype == dtype
    atol = tolerance(dtype, 1e-4)
    np.testing.assert_allclose(tokens[0, 0, :3], [-1.67952594, -1.929753, -2.29995273], atol=atol)
    np.testing.assert_allclose(tokens[1, 97, 300:303], [-0.23549352, 0.87542484, -0.44654141], atol=atol)
    assert square == pytest.approx(0.99604485, abs=tolerance(dtype, 1e-5))
    assert losses == pytest.approx([1.121593914282, 1.123536294481], rel=tolerance(dtype, 1e-5, 1e-11))


def test_anchor_inputs_are_the_specs() -> None:
    sums = [anchors.image(size).sum() for size in (288, 224, 160)]
    assert sums == pytest.approx([50019.19759838, 31312.81224295, 13625.09104203], abs=1e-7)
    assert anchors.prediction().sum() == pytest.approx(433.03566162, abs=1e-7)
    assert np.argsort(anchors.noise(), axis=1)[:, :6].tolist() == [
        [0, 53, 106, 159, 16, 69],
        [5, 58, 111, 164, 21, 74],
    ]
    mask = mask_from_noise(jnp.asarray(anchors.noise()), 147)
    assert mask[0, :20].astype(int).tolist() == [0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 1]


def patches(scale: float = 1.0) -> np.ndarray:
    """[2, 9, 48]: patches of 4 px."""
    return np.random.default_rng(0).normal(0.4, scale, size=(2, 9, 48))


def test_channel_invariants() -> None:
    with precision("float64"):
        values = jnp.asarray(patches())
        out = np.asarray(normalise_patches(values, "channel")).reshape(2, 9, 16, 3)
        std = np.asarray(values).reshape(out.shape).std(axis=2, ddof=1)
        gain, shift = jnp.tile(jnp.asarray([3.0, 0.5, 7.0]), 16), jnp.tile(jnp.asarray([1.0, -2.0, 0.3]), 16)
        moved = normalise_patches(gain * values + shift, "channel")
    np.testing.assert_allclose(out.mean(axis=2), 0, atol=1e-14)
    np.testing.assert_allclose((out**2).sum(axis=2), 15 * (std / (std + 1e-6)) ** 2, rtol=1e-12)
    np.testing.assert_allclose(moved, out.reshape(2, 9, 48), atol=1e-5)


def test_joint_is_maes_rule() -> None:
    with precision("float64"):
        values = patches(scale=1e-3)  # small, so that the place of eps shows
        out = normalise_patches(jnp.asarray(values), "joint")
    mean, var = values.mean(axis=-1, keepdims=True), values.var(axis=-1, keepdims=True, ddof=1)
    np.testing.assert_allclose(out, (values - mean) / np.sqrt(var + 1e-6), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_none_and_dtypes() -> None:
    values = jnp.asarray(patches(), jnp.float32)
    np.testing.assert_array_equal(normalise_patches(values, "none"), values)
    for how in ("channel", "joint", "none"):
        assert normalise_patches(values.astype(jnp.bfloat16), how).dtype == jnp.float32
        np.testing.assert_allclose(
            jax.jit(lambda v, how=how: normalise_patches(v, how))(values),
            normalise_patches(values, how),
            atol=2e-6,
        )


@pytest.mark.parametrize("how", ["channel", "joint"])
def test_flat_patches_are_zero_with_finite_gradients(how: str) -> None:
    values = jnp.asarray(patches(), jnp.float32).at[0, 3].set(0.5)
    np.testing.assert_allclose(normalise_patches(values, how)[0, 3], 0, atol=1e-6)
    grad = jax.jit(jax.grad(lambda v: jnp.sum(normalise_patches(v, how) ** 3)))(values)
    assert np.isfinite(grad).all() and np.abs(grad).sum() > 0


def test_refusals() -> None:
    with unchecked(), pytest.raises(ValueError, match="channel, joint, none"):
        normalise_patches(jnp.zeros((1, 4, 48)), "patch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one pixel"):
        normalise_patches(jnp.zeros((1, 4, 3)), "channel")
    with pytest.raises(ValueError, match="cannot be cut"):
        patchify(jnp.zeros((1, 8, 9, 3)), 4)


def test_patchify_order_and_inverse() -> None:
    images = jnp.asarray(anchors.photographs(2, 12, 8))
    tokens = patchify(images, 4)
    assert tokens.shape == (2, 6, 48)
    assert tokens[1, 0, 3] == images[1, 0, 1, 0]  # token 0 entry 3 = pixel (0, 1) red
    assert tokens[1, 3, 13] == images[1, 5, 4, 1]  # row-major tokens, then row, column, channel
    np.testing.assert_array_equal(unpatchify(tokens, (3, 2)), images)
    np.testing.assert_array_equal(patchify(unpatchify(tokens, (3, 2)), 4), tokens)


def test_variances_are_torchs() -> None:
    torch = pytest.importorskip("torch", reason=anchors.TORCH)
    values = patches().astype(np.float32)
    channels = torch.tensor(values).reshape(2, 9, 16, 3)
    expected = (channels - channels.mean(2, keepdim=True)) / (channels.var(2, keepdim=True).sqrt() + 1e-6)
    np.testing.assert_allclose(
        normalise_patches(jnp.asarray(values), "channel"), expected.reshape(2, 9, 48), atol=2e-6
    )
    joint = torch.tensor(values)
    expected = (joint - joint.mean(-1, keepdim=True)) / (joint.var(-1, keepdim=True) + 1e-6) ** 0.5
    np.testing.assert_allclose(normalise_patches(jnp.asarray(values), "joint"), expected, atol=2e-6)


def test_images_become_shares_and_are_mirrored_left_to_right_where_asked() -> None:
    images = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    images[0, 0, 0] = 255
    unit = to_unit(jnp.asarray(images))
    assert unit.dtype == jnp.float32 and float(unit.max()) == 1.0
    np.testing.assert_allclose(unit, images / 255.0, rtol=1e-6)
    assert to_unit(unit) is unit
    flipped = np.asarray(flip_where(unit, jnp.asarray([False, True])))
    np.testing.assert_array_equal(flipped[0], unit[0])
    np.testing.assert_array_equal(flipped[1], np.asarray(unit)[1, :, ::-1])
