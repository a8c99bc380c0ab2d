"""Orders and masks against the worked example of docs/papers/mapet.md 4.2, the official masks, and the rule restated in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.corruptions.permutation import (
    attention_masks,
    draw_order,
    order_from_noise,
    ranks,
    scored,
    targets_of,
    tie_ranks,
)
from tests.conftest import official

WORKED = """
1 1 . . 1 . 1 1 1 1
1 1 . . 1 . 1 1 1 1
1 1 1 1 1 1 1 . . .
1 1 . 1 1 . 1 1 . 1
1 1 . . 1 . 1 1 1 1
1 1 . 1 1 1 1 1 . .
1 1 . . 1 . 1 1 1 1
1 1 . . 1 . 1 1 1 1
1 1 . . 1 . 1 1 1 1
1 1 . . 1 . 1 1 1 1
1 1 . 1 1 1 1 1 . .
1 1 . . 1 . 1 1 1 1
1 1 . 1 1 . 1 1 . 1
"""
"""docs/papers/mapet.md 4.2: ten content rows (CLS, x1..x6, M2, M3, M5), three query rows (g2, g3, g5)."""


def test_worked_example() -> None:
    order, context = jnp.asarray([0, 4, 1, 6, 3, 5, 2]), 4
    targets = targets_of(order, context)
    assert targets.tolist() == [2, 3, 5]
    content, query = attention_masks(ranks(order), targets, context)
    expected = np.array([[cell == "1" for cell in row.split()] for row in WORKED.strip().splitlines()])
    np.testing.assert_array_equal(np.concatenate([content, query]), expected)
    assert (np.asarray(content).sum(1) == 7).all() and (np.asarray(query).sum(1) == 7).all()


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "context"), [(2, 1), (5, 4), (9, 3), (17, 5), (26, 1)])
def test_every_row_sees_every_position_once(slots: int, context: int) -> None:
    keys = jax.random.split(jax.random.key(slots), 20)
    order = jax.vmap(lambda key: draw_order(key, slots - 1))(keys)
    rank, targets = ranks(order), targets_of(order, context)
    content, query = attention_masks(rank, targets, context)
    for example in range(20):
        z, t = np.asarray(rank[example]), np.asarray(targets[example])
        assert set(t) == {a for a in range(slots) if z[a] >= context} and 0 not in t
        for mask, horizons in (
            (content[example], [*z, *([-1] * len(t))]),
            (query[example], [z[a] - 1 for a in t]),
        ):
            rows = np.asarray(mask)
            for row, horizon in zip(rows, horizons, strict=True):  # the rule, in loops
                real = [z[b] < context or z[b] <= horizon for b in range(slots)]
                mask_tokens = [z[b] > horizon for b in t]
                assert row.tolist() == real + mask_tokens
                seen = np.array(real, int)
                seen[t] += np.array(mask_tokens, int)
                assert (seen == 1).all()
        context_rows = [a for a in range(slots) if z[a] < context] + list(range(slots, slots + len(t)))
        assert (np.asarray(content[example])[context_rows] == np.asarray(content[example])[0]).all()


def test_official_masks() -> None:
    f = official("mapet_public")
    order = jnp.asarray(f["permutation"] - 1)
    targets = targets_of(order, 5)
    content, query = attention_masks(ranks(order), targets, 5)
    np.testing.assert_array_equal(content, f["allow_content"])
    np.testing.assert_array_equal(query, f["allow_query"])
    predicted = np.zeros((3, 17), bool)
    np.put_along_axis(predicted, np.asarray(targets), True, axis=1)
    np.testing.assert_array_equal(predicted, f["predicted"])
    np.testing.assert_array_equal(np.take_along_axis(f["tokens"], np.asarray(targets) - 1, 1), f["target"])


def test_official_masks_at_full_size() -> None:
    f = official("mapet_public")
    order = jnp.asarray(f["full_permutation"] - 1)
    targets = targets_of(order, 50)
    content, query = attention_masks(ranks(order), targets, 50)
    assert content.shape == (344, 344) and query.shape == (147, 344)
    np.testing.assert_array_equal(np.packbits(np.asarray(content)), f["full_allow_content_packed"])
    np.testing.assert_array_equal(np.packbits(np.asarray(query)), f["full_allow_query_packed"])
    assert set(np.flatnonzero(f["full_predicted"])) == set(np.asarray(targets).tolist())


def test_rank_order_gives_constant_masks_that_are_the_same_masks() -> None:
    """What the network uses: slots sorted by rank make one mask for the whole batch."""
    order, context = draw_order(jax.random.key(3), 12), 5
    rank_targets = order[context:]  # targets in rank order
    content, query = attention_masks(ranks(order), rank_targets, context)
    constant_content, constant_query = attention_masks(jnp.arange(13), jnp.arange(5, 13), context)
    columns = jnp.concatenate([order, jnp.arange(13, 21)])
    np.testing.assert_array_equal(query[:, columns], constant_query)
    np.testing.assert_array_equal(content[columns][:, columns], constant_content)


def test_tied_ranks() -> None:
    rank = jnp.arange(11)
    assert tie_ranks(rank, 3, 8).tolist() == list(range(11))
    assert tie_ranks(rank, 3, 1).tolist() == [0, 1, 2] + [3] * 8
    assert tie_ranks(rank, 3, 2).tolist() == [0, 1, 2, 3, 3, 3, 3, 7, 7, 7, 7]
    assert tie_ranks(rank, 3, 3).tolist() == [0, 1, 2, 3, 3, 3, 6, 6, 6, 9, 9]
    with pytest.raises(ValueError, match="groups must lie in"):
        tie_ranks(rank, 3, 9)


def test_context_must_leave_a_target_and_hold_cls() -> None:
    for context in (0, 7):
        with pytest.raises(ValueError, match=r"must lie in 1\.\.6"):
            targets_of(jnp.arange(7), context)


def test_upper_limit() -> None:
    rank, targets = jnp.arange(17), jnp.arange(5, 17)
    assert scored(rank, targets, 17).all()
    assert int(scored(rank, targets, 9).sum()) == 9 - 5 + 1


@pytest.mark.slow
def test_orders_are_permutations_that_differ_and_repeat() -> None:
    keys = jax.random.split(jax.random.key(0), 64)
    orders = np.asarray(jax.vmap(lambda key: draw_order(key, 16))(keys))
    assert (np.sort(orders, axis=1) == np.arange(17)).all() and (orders[:, 0] == 0).all()
    assert len({tuple(order) for order in orders}) == 64
    np.testing.assert_array_equal(draw_order(keys[5], 16), orders[5])
    noise = jnp.asarray([0.5, 0.1, 0.9])
    assert order_from_noise(noise).tolist() == [0, 2, 1, 3]
