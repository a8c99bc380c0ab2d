"""SimMIM's masks of whole units: counts in double arithmetic, exactness, layout, and the official masks."""

import math

import anchors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import official

from mim_jax.corruptions.masking import num_units_masked, unit_mask, unit_mask_from_noise


def test_counts_are_simmims() -> None:
    assert num_units_masked((14, 14), 2, 0.6) == 30  # 224 px, ViT
    assert num_units_masked((48, 48), 8, 0.6) == 22  # 192 px, Swin
    assert num_units_masked((8, 8), 2, 0.6) == 10  # the fixture
    assert (
        num_units_masked((20, 20), 2, 0.55) == 56
    )  # 0.55 * 100 is 55.00000000000001 in doubles, as the release has it
    for ratio in np.linspace(0, 1, 41):
        assert num_units_masked((10, 14), 2, float(ratio)) == int(np.ceil(35 * float(ratio)))
    assert [num_units_masked((4, 4), 1, ratio) for ratio in (0.0, 1.0)] == [0, 16]


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "unit"), [((8, 12), 2), ((6, 3), 3), ((5, 7), 1), ((4, 4), 4)])
def test_masks_are_whole_units_and_exactly_counted(grid: tuple[int, int], unit: int) -> None:
    keys = jax.random.split(jax.random.key(0), 64)
    masks = np.asarray(jax.jit(jax.vmap(lambda key: unit_mask(key, grid, unit, 0.6)))(keys))
    assert masks.shape == (64, grid[0] * grid[1]) and masks.dtype == bool
    blocks = masks.reshape(64, grid[0] // unit, unit, grid[1] // unit, unit).transpose(0, 1, 3, 2, 4)
    share = blocks.reshape(64, -1, unit * unit).mean(axis=-1)
    assert set(np.unique(share)) <= {0.0, 1.0}
    assert (share.sum(axis=1) == math.ceil(0.6 * share.shape[1])).all()
    np.testing.assert_array_equal(unit_mask(keys[9], grid, unit, 0.6), masks[9])


def test_explicit_noise_on_an_oblong_grid() -> None:
    noise = jnp.asarray([[0.1, 0.9, 0.2, 0.3, 0.4, 0.8], [0.9, 0.1, 0.2, 0.8, 0.3, 0.4]])
    out = unit_mask_from_noise(noise, (4, 6), 2, 2).reshape(2, 4, 6).astype(int)
    first = [[0, 0, 1, 1, 0, 0]] * 2 + [[0, 0, 0, 0, 1, 1]] * 2
    second = [[1, 1, 0, 0, 0, 0]] * 2 + [[1, 1, 0, 0, 0, 0]] * 2
    assert out.tolist() == [first, second]


def test_units_are_uniform_and_differ_between_keys() -> None:
    keys = jax.random.split(jax.random.key(1), 4000)
    masks = np.asarray(jax.jit(jax.vmap(lambda key: unit_mask(key, (8, 8), 2, 0.6)))(keys))
    assert np.abs(masks.mean(axis=0) - 10 / 16).max() < 0.03
    assert len({mask.tobytes() for mask in masks[:200]}) > 190


@pytest.mark.slow
def test_sharding_changes_nothing() -> None:
    keys = jax.random.split(jax.random.key(2), 16)
    masks = jax.jit(jax.vmap(lambda key: unit_mask(key, (8, 8), 2, 0.6)))
    spread, collectives = anchors.on_eight_devices(masks, keys)
    np.testing.assert_array_equal(spread, masks(keys))
    assert collectives == []


def test_refusals() -> None:
    key = jax.random.key(0)
    for grid, unit in [((14, 13), 2), ((13, 14), 2), ((4, 4), 0)]:
        with pytest.raises(ValueError, match="units of"):
            unit_mask(key, grid, unit, 0.6)
        with pytest.raises(ValueError, match="units of"):
            num_units_masked(grid, unit, 0.6)
    with pytest.raises(ValueError, match="ratio"):
        num_units_masked((4, 4), 2, 1.1)
    with pytest.raises(ValueError, match="6 units"):
        unit_mask_from_noise(jnp.zeros(24), (4, 6), 2, 2)
    with pytest.raises(ValueError, match=r"0\.\.6"):
        unit_mask_from_noise(jnp.zeros(6), (4, 6), 2, 7)


def test_official_masks_are_units_of_ours() -> None:
    mask = official("simmim_public")["mask"].astype(bool)  # [2, 8, 8]
    units = mask[:, ::2, ::2].reshape(2, -1).astype(np.float32)
    ours = unit_mask_from_noise(jnp.asarray(units), (8, 8), 2, num_units_masked((8, 8), 2, 0.6))
    np.testing.assert_array_equal(ours, mask.reshape(2, -1))
