"""Random and block-wise masks: counts, distribution, and BEiT's generator restated in loops on the same draws."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.corruptions.attention_driven import num_masked_and_thrown
from mim_jax.corruptions.masking import (
    block_mask,
    blocks_from_draws,
    mask_from_noise,
    masked_first,
    num_kept,
    num_units_masked,
    random_mask,
    split_by_noise,
    top_up,
)
from tests.conftest import official_optimisers


def test_counts_follow_mae() -> None:
    assert [num_kept(length, 0.75) for length in (196, 64, 144, 256, 49)] == [49, 16, 36, 64, 12]


@pytest.mark.slow
def test_random_mask_is_exact_uniform_and_per_key() -> None:
    keys = jax.random.split(jax.random.key(0), 4000)
    masks = np.asarray(jax.vmap(lambda key: random_mask(key, 20, 15))(keys))
    assert (masks.sum(axis=1) == 15).all()
    assert np.abs(masks.mean(axis=0) - 0.75).max() < 0.03
    assert len({mask.tobytes() for mask in masks[:200]}) > 190
    np.testing.assert_array_equal(random_mask(keys[7], 20, 15), masks[7])


def test_explicit_noise_hides_the_largest() -> None:
    assert mask_from_noise(jnp.asarray([0.3, 0.9, 0.1, 0.5]), 2).tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match=r"0\.\.4"):
        mask_from_noise(jnp.zeros(4), 5)


def test_masked_first_splits_indices() -> None:
    masked, visible = masked_first(jnp.asarray([[False, True, True, False, True]]), 3)
    assert masked.tolist() == [[1, 2, 4]] and visible.tolist() == [[0, 3]]


def beit(draws: np.ndarray, side: int, goal: int, min_block: int) -> np.ndarray:
    """BEiT's rule in plain loops (docs/papers/mapet.md 6)."""
    mask = np.zeros((side, side), bool)
    for tries in draws:
        allowed, added = goal - mask.sum(), 0
        for area_u, ratio_u, top_u, left_u in tries:
            area = min_block + area_u * (allowed - min_block)
            ratio = math.exp(math.log(0.3) + ratio_u * (math.log(1 / 0.3) - math.log(0.3)))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < side and w < side:
                top, left = int(top_u * (side - h + 1)), int(left_u * (side - w + 1))
                block = mask[top : top + h, left : left + w]
                if 0 < (~block).sum() <= allowed:
                    added = (~block).sum()
                    block[:] = True
                    break
        if added == 0 or mask.sum() >= goal:
            break
    return mask.reshape(-1)


def test_blocks_equal_the_rule_in_loops() -> None:
    draws = np.random.default_rng(0).random((60, 40, 10, 4)).astype(np.float32)
    ours = np.asarray(jax.vmap(lambda d: blocks_from_draws(d, (14, 14), 75))(jnp.asarray(draws)))
    equal = [np.array_equal(mine, beit(d, 14, 75, 16)) for mine, d in zip(ours, draws, strict=True)]
    assert np.mean(equal) >= 0.97  # float32 against float64 may round a side differently now and then


@pytest.mark.slow
def test_block_distribution_and_top_up() -> None:
    keys = jax.random.split(jax.random.key(1), 3000)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (64, 10, 4)))(keys)
    before = np.asarray(jax.jit(jax.vmap(lambda d: blocks_from_draws(d, (14, 14), 75)))(draws)).sum(axis=1)
    assert before.max() == 75 and before.min() >= 60
    assert (
        abs((before == 75).mean() - 0.68) < 0.04 and abs(before.mean() - 74.5) < 0.2
    )  # the simulation of docs/papers/mapet.md 6
    masks = np.asarray(jax.jit(jax.vmap(lambda key: block_mask(key, (14, 14), 75)))(keys))
    assert (masks.sum(axis=1) == 75).all()


def test_top_up_adds_and_never_removes() -> None:
    mask = jnp.asarray([True, False, False, True, False])
    assert top_up(mask, jnp.asarray([0.0, 0.2, 0.9, 0.1, 0.5]), 3).tolist() == [
        True,
        False,
        True,
        True,
        False,
    ]


@pytest.mark.slow
def test_blocks_are_blocks() -> None:
    """Neighbours agree far more often than under random masking: the masks have structure."""
    keys = jax.random.split(jax.random.key(2), 200)
    masks = np.asarray(jax.vmap(lambda key: block_mask(key, (14, 14), 98))(keys)).reshape(-1, 14, 14)
    assert (masks[:, 1:] == masks[:, :-1]).mean() > 0.8


@pytest.mark.parametrize(
    ("patches", "ratio", "kept"), [(196, 0.75, 49), (100, 0.9, 9), (64, 0.75, 16), (10, 0.65, 3), (7, 0.5, 3)]
)
def test_counts_are_truncated_in_double_arithmetic_as_the_release_does(
    patches: int, ratio: float, kept: int
) -> None:
    """int(100 * (1 - 0.9)) is 9: the product is 9.999999999999998."""
    assert num_kept(patches, ratio) == kept


def test_equal_noise_goes_by_index() -> None:
    """Ties are broken as torch's stable argsort breaks them: the first patches are visible, the last are hidden."""
    flat = jnp.zeros((2, 12))
    visible, hidden = split_by_noise(flat, 5)
    assert visible.tolist() == [list(range(5))] * 2 and hidden.tolist() == [list(range(5, 12))] * 2
    assert mask_from_noise(flat, 7).tolist() == [[False] * 5 + [True] * 7] * 2
    first, rest = masked_first(jnp.asarray([False, True, True, False, True]), 3)
    assert first.tolist() == [1, 2, 4] and rest.tolist() == [0, 3]


def test_counts_are_those_of_the_releases() -> None:
    """MAE's kept patches, SimMIM's masked units, AMT's masked, thrown and visible patches, as the papers' code counted them."""
    listed = official_optimisers()
    for patches, ratio, kept in listed["mae"]["keep"]:
        assert num_kept(patches, ratio) == kept
    for size, unit, patch, ratio, units, masked in listed["simmim"]["mask_units"]:
        grid = (size // patch, size // patch)
        assert (size // unit) ** 2 == units and num_units_masked(grid, unit // patch, ratio) == masked
    for patches, mask, throw, masked, thrown, visible in listed["amt"]["counts"]:
        assert num_masked_and_thrown(patches, mask, throw) == (masked, thrown)
        assert patches - masked - thrown == visible


def test_the_patches_of_smallest_noise_are_visible_in_order_of_noise() -> None:
    visible, hidden = split_by_noise(jnp.asarray([0.3, 0.1, 0.2, 0.5, 0.4]), 2)
    assert visible.tolist() == [1, 2] and hidden.tolist() == [0, 4, 3]
