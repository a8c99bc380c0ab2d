"""Windows: golden tables and shifted map, inverses, labels against slices, and what padding is called."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models.windows import (
    PADDING,
    WindowPlan,
    attention_geometry,
    from_windows,
    log_offsets,
    plan_windows,
    shift_regions,
    to_windows,
    token_places,
    window_coordinates,
    window_partition,
    window_reverse,
)

# docs/papers/dark_secrets.md 1.2: window, window of pre-training, g of offset 1 and of the largest offset.
LOG_OFFSETS = (
    (12, 12, 0.262832, 1.056642),
    (6, 6, 0.459504, 1.056642),
    (14, 12, 0.262832, 1.128686),
    (7, 6, 0.459504, 1.135331),
    (16, 12, 0.262832, 1.191330),
    (8, 6, 0.459504, 1.202936),
    (22, 12, 0.262832, 1.341461),
    (11, 6, 0.459504, 1.362488),
    (30, 12, 0.262832, 1.488460),
    (15, 6, 0.459504, 1.516146),
)
PLANS = (
    plan_windows((8, 8), 4, True),
    plan_windows((8, 12), 4, False),
    plan_windows((10, 7), 4, True),  # padded and shifted
    plan_windows((5, 9), 3, False),  # padded only
    plan_windows((4, 12), 4, True),  # one axis is no longer than the window
)


@pytest.mark.parametrize(("window", "reference", "first", "last"), LOG_OFFSETS)
def test_log_offsets_are_the_specs(window: int, reference: int, first: float, last: float) -> None:
    table = log_offsets((window, window), (reference, reference)).reshape(2 * window - 1, 2 * window - 1, 2)
    middle = window - 1
    np.testing.assert_allclose(table[middle + 1, middle], [first, 0], atol=1e-6)
    np.testing.assert_allclose(table[-1, -1], [last, last], atol=1e-6)
    np.testing.assert_allclose(table, -table[::-1, ::-1], atol=0)


def test_a_larger_window_keeps_the_offsets_of_the_one_it_was_trained_with() -> None:
    large = log_offsets((16, 16), (12, 12)).reshape(31, 31, 2)[4:-4, 4:-4]
    np.testing.assert_array_equal(large.reshape(-1, 2), log_offsets((12, 12), (12, 12)))
    own = log_offsets((16, 16), (16, 16)).reshape(31, 31, 2)[4:-4, 4:-4]
    assert np.abs(own - large).max() > 0.1


def test_sides_of_a_window_have_their_own_scale_and_one_token_is_no_division_by_zero() -> None:
    table = log_offsets((1, 3), (1, 3))
    np.testing.assert_allclose(table[:, 0], 0)
    np.testing.assert_allclose(
        table[:, 1], [-math.log2(9) / 3, -math.log2(5) / 3, 0, math.log2(5) / 3, math.log2(9) / 3]
    )


def test_the_specs_shifted_map() -> None:
    plan = plan_windows((8, 8), 4, True)
    assert plan == WindowPlan((8, 8), (4, 4), (2, 2)) and plan.count == 4 and plan.tokens == 16
    regions = shift_regions(plan)
    assert regions is not None
    allowed = regions[:, :, None] == regions[:, None, :]
    assert allowed.sum(axis=(1, 2)).tolist() == [256, 128, 128, 64]
    assert {tuple(np.unique(row, return_counts=True)[1]) for row in regions} == {(16,), (8, 8), (4, 4, 4, 4)}
    entropy = np.log(allowed.sum(axis=-1)).mean()  # of uniform attention over what is allowed
    assert entropy == pytest.approx(2.079442, abs=1e-6)
    assert math.log(16) == pytest.approx(2.772589, abs=1e-6)


@pytest.mark.parametrize("plan", PLANS)
def test_cut_and_join_are_inverses(plan: WindowPlan) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, plan.grid[0] * plan.grid[1], 3)), jnp.float32)
    windows, back = jax.jit(lambda x: (to_windows(x, plan), from_windows(to_windows(x, plan), plan)))(x)
    assert windows.shape == (2, plan.count, plan.tokens, 3)
    np.testing.assert_array_equal(back, x)
    # Where each token comes from, and zeros where there is none.
    places = token_places(plan)
    expected = np.where((places == PADDING)[None, ..., None], 0, np.asarray(x)[:, np.maximum(places, 0)])
    np.testing.assert_array_equal(windows, expected)
    assert sorted(places[places != PADDING]) == list(range(x.shape[1]))


def test_partition_is_raster_order_and_reverse_undoes_it() -> None:
    x = np.arange(2 * 4 * 6).reshape(2, 4, 6, 1)
    windows = window_partition(x, (2, 3))
    np.testing.assert_array_equal(windows[0, 1, :, 0], [3, 4, 5, 9, 10, 11])
    np.testing.assert_array_equal(windows[1, 2, :, 0], 24 + np.array([12, 13, 14, 18, 19, 20]))
    np.testing.assert_array_equal(window_reverse(jnp.asarray(windows), (2, 3), (4, 6)), x)


@pytest.mark.parametrize("plan", PLANS)
def test_regions_are_the_specs_slices(plan: WindowPlan) -> None:
    if not any(plan.shift):
        assert shift_regions(plan) is None
        return
    axes = []
    for length, side, shift in zip(plan.padded, plan.window, plan.shift, strict=True):
        label = np.zeros(length, int)
        if shift:
            label[-side:-shift], label[-shift:] = 1, 2
        axes.append(label)
    expected = window_partition((3 * axes[0][:, None] + axes[1])[None, ..., None], plan.window)[0, ..., 0]
    np.testing.assert_array_equal(shift_regions(plan), expected)


@pytest.mark.parametrize("plan", PLANS)
def test_tokens_of_one_region_are_as_far_apart_in_the_image_as_in_the_window(plan: WindowPlan) -> None:
    geometry = attention_geometry(plan, 8.0)
    assert (geometry.pixels, geometry.prefix, geometry.windows) == (8.0, 0, plan.count)
    places, regions = token_places(plan), geometry.regions
    if regions is None:
        regions = np.zeros(places.shape, int)
    np.testing.assert_array_equal(regions == PADDING, places == PADDING)
    true = np.stack(np.divmod(places, plan.grid[1]), axis=-1)
    local = geometry.coordinates
    np.testing.assert_array_equal(local, window_coordinates(plan.window))
    same = (regions[:, :, None] == regions[:, None, :]) & (regions != PADDING)[:, :, None]
    difference = (true[:, :, None] - true[:, None]) - (local[:, None] - local[None])[None]
    assert not difference[same].any()
    if any(plan.shift):
        across = (
            (regions[:, :, None] != regions[:, None, :]) & (places[:, :, None] >= 0) & (places[:, None] >= 0)
        )
        assert difference[across].any()  # only labels tell them apart


def test_windows_no_smaller_than_the_map() -> None:
    assert plan_windows((6, 6), 12, True) == WindowPlan((6, 6), (6, 6), (0, 0))
    assert plan_windows((6, 6), 6, True) == WindowPlan((6, 6), (6, 6), (0, 0))
    assert plan_windows((6, 12), 12, True) == WindowPlan((6, 12), (6, 12), (0, 0))
    assert plan_windows((4, 12), 4, True) == WindowPlan((4, 12), (4, 4), (0, 2))
    assert plan_windows((7, 7), 3, True).shift == (1, 1)
    assert attention_geometry(plan_windows((6, 6), 12, True), 32.0).regions is None
