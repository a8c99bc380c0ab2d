"""Attention masks that are known before compilation: cut into blocks, and those of two streams.

A boolean mask costs a pass over all logits, and logits that it hides were computed for nothing. So queries are cut into blocks;
each computes only the contiguous keys that any of its queries may see, and needs no mask at all where all of them may see all
of these.

Two-stream attention is laid out for that. In rank order a target sees the real targets before it and the MASK tokens from it on.
Tokens are therefore laid out as

    targets, last rank first | context | MASK tokens, last rank first || queries, last rank first
    `------------------ keys and content tokens ---------------------'

Then the real targets before a rank, the context and the MASK tokens from that rank on are neighbours: a block of targets needs
hardly more than N of the N + P keys, and the context and the MASK tokens need exactly N, without any mask.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool


@partial(jax.tree_util.register_dataclass, data_fields=["mask"], meta_fields=["queries", "keys"])
@dataclasses.dataclass(frozen=True, eq=False)
class MaskBlock:
    """Queries [queries[0], queries[1]) attend to keys [keys[0], keys[1]), where `mask` is true; None = to all."""

    queries: tuple[int, int]
    keys: tuple[int, int]
    mask: Bool[np.ndarray, "queries keys"] | Bool[Array, "queries keys"] | None

    @property
    def area(self) -> int:
        """Logits computed."""
        return (self.queries[1] - self.queries[0]) * (self.keys[1] - self.keys[0])


def split_mask(mask: Bool[np.ndarray, "queries keys"], cuts: Sequence[int]) -> tuple[MaskBlock, ...]:
    """Cuts the queries of a constant mask at `cuts` (each in 1..queries - 1, rising).

    Raises:
        ValueError: if a query may see nothing.
    """
    if not mask.any(axis=1).all():
        raise ValueError("a query of the attention mask may see nothing")
    edges = [0, *cuts, len(mask)]
    blocks = []
    for first, last in itertools.pairwise(edges):
        seen = np.flatnonzero(mask[first:last].any(axis=0))
        start, stop = int(seen[0]), int(seen[-1]) + 1
        part = mask[first:last, start:stop]
        blocks.append(MaskBlock((first, last), (start, stop), None if part.all() else part))
    return tuple(blocks)


def last_queries(blocks: Sequence[MaskBlock], count: int) -> tuple[MaskBlock, ...]:
    """The blocks of the last `count` queries, renumbered from 0; a cut must lie there."""
    first = blocks[-1].queries[1] - count
    last = [block for block in blocks if block.queries[0] >= first]
    if sum(block.queries[1] - block.queries[0] for block in last) != count:
        raise ValueError(f"no cut between blocks of the mask lies {count} queries before the end")
    return tuple(
        dataclasses.replace(block, queries=(block.queries[0] - first, block.queries[1] - first))
        for block in last
    )


def join_mask_blocks(blocks: Sequence[MaskBlock], num_keys: int) -> Bool[Array, "queries {num_keys}"]:
    """The mask that was cut into blocks."""
    mask = jnp.zeros((blocks[-1].queries[1], num_keys), bool)
    for block in blocks:
        part = True if block.mask is None else block.mask
        mask = mask.at[slice(*block.queries), slice(*block.keys)].set(part)
    return mask


@dataclasses.dataclass(frozen=True, eq=False)
class TwoStreams:
    """The layout for masks of tokens in rank order.

    content, query: as `corruptions.permutation.attention_masks` gives them for ranks
    in order; without the MASK tokens' queries and keys they are not among the keys (PIM).
    context: number of context tokens. parts: blocks that the targets of each stream are cut into.
    """

    content: Bool[np.ndarray, "keys keys"]
    query: Bool[np.ndarray, "targets keys"]
    context: int
    parts: int = 3

    @property
    def targets(self) -> int:
        """P."""
        return len(self.query)

    @property
    def mask_tokens(self) -> bool:
        """Whether MASK tokens are among the keys."""
        return len(self.content) > self.context + self.targets

    @property
    def keys(self) -> int:
        """K."""
        return len(self.content)

    @cached_property
    def mask_blocks(self) -> tuple[MaskBlock, ...]:
        """Who sees whom, for the queries and keys as laid out above."""
        tokens = self.context + self.targets
        place = [
            *range(tokens - 1, self.context - 1, -1),
            *range(self.context),
            *range(self.keys - 1, tokens - 1, -1),
        ]
        content, query = np.asarray(self.content), np.asarray(self.query)
        mask = np.concatenate([content[place][:, place], query[::-1][:, place]])
        inner = [round(part * self.targets / self.parts) for part in range(1, self.parts)]
        return split_mask(mask, [*inner, self.targets, self.keys, *(self.keys + cut for cut in inner)])
