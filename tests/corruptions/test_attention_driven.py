"""AMT's ops: docs/papers/amt.md section 10, T1 to T4, T9, T10, T12, and the golden tables of sections 3, 4, 6 and 9."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.corruptions import attention_driven as ops

WHOLE = jnp.asarray([0.0, 0.0, 1.0, 1.0])
NO, YES = jnp.asarray(False), jnp.asarray(True)
COUNTS = [(196, 88, 78, 30), (64, 28, 26, 10), (144, 64, 58, 22), (256, 115, 102, 39), (49, 22, 19, 8)]


@pytest.mark.slow
@pytest.mark.parametrize(("length", "masked", "thrown", "visible"), COUNTS)
def test_counts_and_disjoint_parts(length: int, masked: int, thrown: int, visible: int) -> None:
    """T1, and the table of section 4."""
    assert ops.num_masked_and_thrown(length, 0.45, 0.40) == (masked, thrown)
    weights = jax.random.uniform(jax.random.key(7), (8, length))
    keys = jax.random.split(jax.random.key(0), 8)
    scores = jax.vmap(ops.scores_from_weights)(keys, weights)
    parts = ops.partition(scores, masked, thrown)
    assert [part.shape[1] for part in parts] == [masked, thrown, visible]
    together = np.sort(np.concatenate(parts, axis=1), axis=1)
    np.testing.assert_array_equal(together, np.tile(np.arange(length), (8, 1)))
    again = ops.partition(jax.vmap(ops.scores_from_weights)(keys, weights), masked, thrown)
    np.testing.assert_array_equal(parts[0], again[0])
    same = jax.vmap(ops.scores_from_weights)(keys, jnp.broadcast_to(weights[0], weights.shape))
    assert len({tuple(sorted(row)) for row in np.asarray(ops.partition(same, masked, thrown)[0])}) == 8


def test_attention_only_masking_counts() -> None:
    assert ops.num_masked_and_thrown(196, 0.75, 0.0) == (147, 0)
    assert ops.num_masked_and_thrown(64, 0.75, 0.0) == (48, 0)
    for bad in ((0.6, 0.4), (0.0, 0.4), (-0.1, 0.4)):
        with pytest.raises(ValueError, match="ratio"):
            ops.num_masked_and_thrown(64, *bad)
    with pytest.raises(ValueError, match="do not fit"):
        ops.partition(jnp.zeros(4), 3, 2)


def test_scale_does_not_matter_and_constant_weights_are_random_masking() -> None:
    """T2."""
    key, weights = jax.random.key(3), jax.random.uniform(jax.random.key(4), (64,)) + 0.1
    np.testing.assert_array_equal(
        jnp.argsort(-ops.scores_from_weights(key, weights)),
        jnp.argsort(-ops.scores_from_weights(key, 8 * weights)),
    )
    noise = jax.random.gumbel(key, (64,))
    np.testing.assert_array_equal(ops.scores_from_weights(key, jnp.ones(64)), noise)
    np.testing.assert_array_equal(
        ops.partition(ops.scores_from_noise(noise, jnp.ones(64)), 28, 26)[0], ops.partition(noise, 28, 26)[0]
    )


@pytest.mark.slow
def test_golden_inclusion_probabilities() -> None:
    """T3: the table of section 4."""
    weights = (jnp.arange(196) + 0.5) / 196
    keys = jax.random.split(jax.random.key(1), 40_000)

    @jax.jit
    def shares(keys):
        def one(key):
            masked, thrown, visible = ops.partition(ops.scores_from_weights(key, weights), 88, 78)
            return jnp.stack([jnp.zeros(196).at[part].set(1.0) for part in (masked, thrown, visible)])

        return jax.lax.map(one, keys, batch_size=1000).mean(axis=0)

    found = np.asarray(shares(keys))
    table = {
        0: (0.003, 0.013, 0.984), 9: (0.061, 0.207, 0.732), 24: (0.154, 0.404, 0.442), 49: (0.284, 0.524, 0.192),
        98: (0.487, 0.475, 0.038), 147: (0.635, 0.357, 0.008), 195: (0.740, 0.258, 0.002),
    }  # fmt: skip
    for patch, expected in table.items():
        np.testing.assert_allclose(found[:, patch], expected, atol=0.01)
    smooth = np.convolve(found[0], np.ones(20) / 20, "valid")
    assert (np.diff(smooth) > -0.004).all()  # more attention, masked more often


@pytest.mark.slow
def test_first_two_of_six_are_those_of_sequential_draws() -> None:
    """T3: the table of 9.1, exact inclusion probabilities."""
    weights = jnp.asarray([0.5, 0.2, 0.15, 0.1, 0.05, 0.0])
    scores = jax.vmap(lambda key: ops.scores_from_weights(key, weights))(
        jax.random.split(jax.random.key(0), 100_000)
    )
    first = np.bincount(np.asarray(ops.partition(scores, 2, 0)[0]).ravel(), minlength=6) / 100_000
    np.testing.assert_allclose(first, [0.79511, 0.46804, 0.36206, 0.24791, 0.12688, 0.0], atol=0.005)


def test_order_is_that_of_torch_for_the_same_exponential_noise() -> None:
    """The exponential race: w / E descending is log w - log E descending."""
    draw = np.random.default_rng(0)
    weights, noise = draw.random((4, 196)), draw.exponential(size=(4, 196))
    ours = jnp.argsort(-ops.scores_from_noise(jnp.asarray(-np.log(noise)), jnp.asarray(weights)), axis=-1)
    np.testing.assert_array_equal(ours, np.argsort(-weights / noise, axis=-1))


@pytest.mark.slow
def test_zero_weights_are_never_masked_while_others_are_left() -> None:
    """T4."""
    weights = jnp.where(jnp.arange(64) % 2 == 0, jnp.ones(64), 0.0)
    scores = jax.vmap(lambda key: ops.scores_from_weights(key, weights))(
        jax.random.split(jax.random.key(0), 200)
    )
    masked, _, _ = ops.partition(scores, 28, 26)
    assert (np.asarray(masked) % 2 == 0).all()
    assert np.isfinite(np.asarray(ops.scores_from_weights(jax.random.key(0), jnp.zeros(8)))).all()


@pytest.mark.slow
def test_normalised_attention() -> None:
    """T10, and the example of 3.1."""
    two = jnp.asarray([[0.1, 0.2, 0.3, 0.4], [0.25, 0.05, 0.05, 0.15]])
    np.testing.assert_allclose(ops.normalise_attention(two), [0.5, 1 / 6, 1 / 3, 0.75], atol=1e-6)
    random = jax.nn.softmax(jax.random.normal(jax.random.key(0), (5, 3, 49)), axis=-1)
    one_head = ops.normalise_attention(random[:, :1])
    assert float(one_head.min()) == 0.0 and float(one_head.max()) == 1.0
    maps = ops.normalise_attention(random)
    assert maps.shape == (5, 49) and float(maps.min()) >= 0 and float(maps.max()) <= 1
    np.testing.assert_array_equal(ops.normalise_attention(jnp.full((2, 4), 0.25)), np.zeros(4))


@pytest.mark.slow
def test_crop_of_a_map() -> None:
    """T9: identity, flips, the numbers of section 6, convexity."""
    attention = jax.random.uniform(jax.random.key(0), (14, 14))
    np.testing.assert_array_equal(ops.crop_map(attention, WHOLE, NO, (14, 14)), attention.reshape(-1))
    box = jnp.asarray([0.1, 0.3, 0.55, 0.6])
    crop, mirrored = (
        np.asarray(ops.crop_map(attention, box, f, (14, 14))).reshape(14, 14) for f in (NO, YES)
    )
    np.testing.assert_array_equal(mirrored, crop[:, ::-1])
    np.testing.assert_allclose(  # flipping the map and the box is flipping the crop
        np.asarray(ops.crop_map(attention[:, ::-1], jnp.asarray([0.1, 0.1, 0.55, 0.6]), NO, (14, 14))).reshape(14, 14),
        mirrored, atol=1e-6,
    )  # fmt: skip
    ramp = jnp.broadcast_to(jnp.arange(14) / 13, (14, 14))
    half = np.asarray(ops.crop_map(ramp, jnp.asarray([0.0, 0.5, 1.0, 0.5]), NO, (14, 14))).reshape(14, 14)
    np.testing.assert_allclose(half[3, [0, 1, 12, 13]], [0.519231, 0.557692, 0.980769, 1.0], atol=1e-6)
    assert crop.min() >= float(attention.min()) and crop.max() <= float(attention.max())
    assert ops.crop_map(attention, box, NO, (6, 9)).shape == (54,)


def test_crop_and_smoothing_are_torchs_resize_and_sum() -> None:
    """T9: bilinear to 224 and the sum over each patch, over 256."""
    torch = pytest.importorskip("torch")
    attention = np.random.default_rng(0).random((14, 14)).astype(np.float32)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(attention)[None, None], size=(224, 224), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    expected = large.reshape(14, 16, 14, 16).sum(axis=(1, 3)) / 256
    crop = np.asarray(ops.crop_map(jnp.asarray(attention), WHOLE, NO, (14, 14))).reshape(14, 14)
    smooth = ops.stretch(14, 14)
    np.testing.assert_allclose(smooth @ crop @ smooth.T, expected, atol=1e-6)
    np.testing.assert_allclose(smooth[5, 4:7], [1 / 8, 3 / 4, 1 / 8], atol=1e-12)


def test_official_corner() -> None:
    """Section 8.1: the upper left 2 x 2, stretched; three columns where the crop touches the right edge."""
    torch = pytest.importorskip("torch")
    attention = np.random.default_rng(1).random((14, 14)).astype(np.float32)
    boxes = {
        (0.2, 0.1, 0.5, 0.6): (2, 2),
        (0.2, 0.5, 0.5, 0.5): (2, 3),
        (0.5, 0.5, 0.5, 0.5): (3, 3),
        (0.0, 0.0, 1.0, 1.0): (3, 3),
    }
    for box, (rows, columns) in boxes.items():
        corner = torch.from_numpy(attention[:rows, :columns].copy())[None, None]
        large = torch.nn.functional.interpolate(
            corner, size=(224, 224), mode="bilinear", align_corners=False
        )[0, 0].numpy()
        expected = large.reshape(14, 16, 14, 16).sum(axis=(1, 3)) / 256
        ours = [
            np.asarray(ops.official_corner(jnp.asarray(attention), jnp.asarray(box), f, (14, 14))).reshape(
                14, 14
            )
            for f in (NO, YES)
        ]
        np.testing.assert_allclose(ours[0], expected, atol=1e-6)
        np.testing.assert_allclose(ours[1], expected[:, ::-1], atol=1e-6)


def test_units() -> None:
    """T12: 49 units, 22 / 13 / 14 of them, 88 / 52 / 56 patches."""
    weights = jnp.arange(196.0)
    units = ops.unit_weights(weights, (14, 14), 2)
    np.testing.assert_array_equal(units, np.arange(196.0).reshape(7, 2, 7, 2).sum(axis=(1, 3)).ravel())
    masked, thrown, kept = ops.partition(units, 22, 13)
    patches = [ops.patches_of_units(part, (14, 14), 2) for part in (masked, thrown, kept)]
    assert [part.shape[0] for part in patches] == [88, 52, 56]
    np.testing.assert_array_equal(np.sort(np.concatenate(patches)), np.arange(196))
    grid = np.zeros(196, bool)
    grid[np.asarray(patches[0])] = True
    blocks = grid.reshape(7, 2, 7, 2).transpose(0, 2, 1, 3).reshape(49, 4)
    assert (
        sorted(np.flatnonzero(blocks.all(axis=1))) == sorted(np.asarray(masked).tolist())
        and blocks.sum() == 88
    )


@pytest.mark.slow
def test_a_batch_is_its_images_one_by_one() -> None:
    """One key per image."""
    keys = jax.random.split(jax.random.key(5), 6)
    weights = jax.random.uniform(jax.random.key(6), (6, 64))
    whole = jax.vmap(ops.scores_from_weights)(keys, weights)
    single = jnp.stack([ops.scores_from_weights(k, w) for k, w in zip(keys, weights, strict=True)])
    np.testing.assert_array_equal(whole, single)


def test_equal_scores_go_by_index_in_descending_order() -> None:
    masked, thrown, visible = ops.partition(jnp.asarray([1.0, 2.0, 2.0, 1.0, 2.0, 1.0, 0.0]), 2, 2)
    assert masked.tolist() == [1, 2] and thrown.tolist() == [4, 0] and visible.tolist() == [3, 5, 6]
