"""Orders of slots, and who may see whom: the permuted objectives of MaPeT (arXiv 2306.07346, docs/papers/mapet.md 2, 4, 6).

A *slot* is a position of the sequence: slot 0 is CLS, slot a >= 1 is patch a - 1 in raster order; N slots in all.
An *order* lists the slots, CLS first; the *rank* of a slot is its place in the order. The first `context` slots of
the order are context (the count includes CLS); the others are targets, each of which is predicted once.

Everything rests on one rule. Keys are the N real slots, then one MASK token for each target. A row with horizon r sees

    real slot b    <=>  rank[b] < context  or  rank[b] <= r
    MASK of b      <=>  rank[b] > r

so that every row sees every position exactly once, either as pixels or as MASK + position.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, Key

MASK_HORIZON = -1
"""Horizon of the MASK tokens' own content rows: the context and every MASK, no target's pixels."""


def draw_order(key: Key[Array, ""], num_patches: int) -> Int32[Array, " 1+{num_patches}"]:
    """One uniform order of the slots: CLS, then the patches permuted.

    Args:
        key: one per example (vmap for a batch).
    Returns:
        a permutation of 0..num_patches that starts with 0.
    """
    return order_from_noise(jax.random.uniform(key, (num_patches,)))


def order_from_noise(noise: Float[Array, "*batch patches"]) -> Int32[Array, "*batch 1+patches"]:
    """The explicit entry of `draw_order`: patches in ascending order of `noise`."""
    patches = 1 + jnp.argsort(noise, axis=-1, stable=True).astype(jnp.int32)
    return jnp.concatenate([jnp.zeros_like(patches[..., :1]), patches], axis=-1)


def ranks(order: Int[Array, "*batch slots"]) -> Int32[Array, "*batch slots"]:
    """The place of every slot in the order (the inverse permutation)."""
    return jnp.argsort(order, axis=-1).astype(jnp.int32)


def targets_of(order: Int[Array, "*batch slots"], context: int) -> Int[Array, "*batch slots-{context}"]:
    """The target slots in raster order.

    Raises:
        ValueError: unless 1 <= context < N (CLS is always context, and something must be left to predict).
    """
    num_slots = order.shape[-1]
    if not 1 <= context < num_slots:
        raise ValueError(
            f"context must lie in 1..{num_slots - 1} for {num_slots} slots (CLS included), got {context}"
        )
    return jnp.sort(order[..., context:], axis=-1)


def tie_ranks(rank: Int[Array, "*batch slots"], context: int, groups: int) -> Int[Array, "*batch slots"]:
    """Gives equal ranks inside `groups` consecutive, nearly equal groups of targets (docs/papers/mapet.md 6: tied ranks).

    One group is MIM (no target sees another), as many groups as targets is MaPeT. A group takes the rank of its
    first member; the ranks of the context do not change.
    """
    num_targets = rank.shape[-1] - context
    if not 1 <= groups <= num_targets:
        raise ValueError(f"groups must lie in 1..{num_targets} (the number of targets), got {groups}")
    group = (rank - context) * groups // num_targets
    first = -(-group * num_targets // groups)  # ceil: the smallest target number that falls into this group
    return jnp.where(rank < context, rank, context + first).astype(rank.dtype)


def allow(
    horizon: Int[Array, "*batch queries"],
    rank: Int[Array, "*batch slots"],
    targets: Int[Array, "*batch targets"],
    context: int,
) -> Bool[Array, "*batch queries slots+targets"]:
    """The rule above: which keys each row may see.

    Args:
        horizon: one per row.
        rank: of every real slot.
        targets: the target slots in the order in which their MASK tokens stand.
        context: number of context slots, CLS included.
    """
    target_rank = jnp.take_along_axis(rank, targets, axis=-1)
    real = (rank[..., None, :] < context) | (rank[..., None, :] <= horizon[..., :, None])
    mask_tokens = target_rank[..., None, :] > horizon[..., :, None]
    return jnp.concatenate([real, mask_tokens], axis=-1)


def attention_masks(
    rank: Int[Array, "*batch slots"], targets: Int[Array, "*batch targets"], context: int
) -> tuple[Bool[Array, "*batch slots+targets slots+targets"], Bool[Array, "*batch targets slots+targets"]]:
    """Both masks of two-stream attention, content and query, to be broadcast over heads (docs/papers/mapet.md 4.1).

    A real slot's content row has its own rank as horizon, a MASK token's content row -1; the query row of target a has
    rank[a] - 1: earlier targets as pixels, itself and the later ones as MASK. Ranks may be tied (`tie_ranks`).

    Args:
        context: number of context slots, CLS included.
    """
    target_rank = jnp.take_along_axis(rank, targets, axis=-1)
    mask_rows = jnp.full_like(target_rank, MASK_HORIZON)
    content = allow(jnp.concatenate([rank, mask_rows], axis=-1), rank, targets, context)
    query = allow(target_rank - 1, rank, targets, context)
    return content, query


def scored(
    rank: Int[Array, "*batch slots"], targets: Int[Array, "*batch targets"], upper: int
) -> Bool[Array, "*batch targets"]:
    """Which targets enter the loss under the upper limit u: those of rank <= u (docs/papers/mapet.md 2; off = N)."""
    return jnp.take_along_axis(rank, targets, axis=-1) <= upper
