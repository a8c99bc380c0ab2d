"""A constant mask in blocks against the whole mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.corruptions.permutation import attention_masks, tie_ranks
from mim_jax.models.attention import attend, attend_by_blocks
from mim_jax.models.attention_masks import TwoStreams, last_queries, split_mask


def test_blocks_hold_exactly_what_the_mask_allows() -> None:
    mask = np.tril(np.ones((12, 12), bool))
    mask[7, 2] = False
    made = split_mask(mask, [4, 9])
    assert [(b.queries, b.keys) for b in made] == [((0, 4), (0, 4)), ((4, 9), (0, 9)), ((9, 12), (0, 12))]
    rebuilt = np.zeros_like(mask)
    for block in made:
        rebuilt[slice(*block.queries), slice(*block.keys)] = True if block.mask is None else block.mask
    np.testing.assert_array_equal(rebuilt, mask)
    assert last_queries(made, 3)[0].queries == (0, 3) and last_queries(made, 8)[1].queries == (5, 8)
    with pytest.raises(ValueError, match="no cut"):
        last_queries(made, 5)
    with pytest.raises(ValueError, match="see nothing"):
        split_mask(np.zeros((2, 2), bool), [1])


@pytest.mark.slow
@pytest.mark.parametrize("groups", [None, 1, 3])
@pytest.mark.parametrize("mask_tokens", [True, False])
def test_attention_by_blocks_is_attention_under_the_mask(groups: int | None, mask_tokens: bool) -> None:
    slots, context = 17, 5
    rank = jnp.arange(slots) if groups is None else tie_ranks(jnp.arange(slots), context, groups)
    content, query = (np.asarray(m) for m in attention_masks(rank, jnp.arange(context, slots), context))
    keys = slots + 12 * mask_tokens
    layout = TwoStreams(content[:keys, :keys], query[:, :keys], context)
    assert layout.mask_tokens == mask_tokens and layout.keys == keys and layout.targets == 12
    if mask_tokens:
        assert any(block.mask is None and block.queries == (12, 29) for block in layout.mask_blocks)
    total = np.zeros((keys + 12, keys), bool)
    for block in layout.mask_blocks:
        total[slice(*block.queries), slice(*block.keys)] = True if block.mask is None else block.mask
    if mask_tokens:
        assert (total.sum(axis=1) == slots).all()
    q, k, v = (
        jax.random.normal(jax.random.key(i), (2, 2, n, 4)) for i, n in ((0, keys + 12), (1, keys), (2, keys))
    )
    bias = jax.random.normal(jax.random.key(3), (2, keys + 12, keys))
    whole = attend(q, k, v, mask=jnp.asarray(total), bias=bias)
    parts = attend_by_blocks(q, k, v, layout.mask_blocks, bias=bias, implementation="auto")
    np.testing.assert_allclose(parts, whole, atol=1e-6)
