"""How the rows of both streams stand, so that every band of rows sees one contiguous stretch of keys.

In rank order a target sees the real targets before it and the MASK tokens from it on. Rows are therefore laid out as

    targets, last rank first | context | MASK tokens, last rank first || queries, last rank first
    `------------------ keys and content rows -----------------------'

Then the real targets before a rank, the context and the MASK tokens from that rank on are neighbours: a band of targets
needs hardly more than N of the N + P keys, and the rows of context and MASK tokens need exactly N, without any mask.
"""

import dataclasses
from functools import cached_property

import numpy as np

from mim_jax.models.bands import Band, bands


@dataclasses.dataclass(frozen=True, eq=False)
class TwoStreams:
    """The layout for masks of slots in rank order.

    content bool [K, K] and query bool [P, K]: as `corruptions.permutation.attention_masks` gives them for ranks
    0..N-1, K = N + P; without the MASK tokens' rows and columns (K = N) they are not among the keys (PIM).
    context: number of context slots. parts: bands the targets of each stream are cut into.
    """

    content: np.ndarray
    query: np.ndarray
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
    def bands(self) -> tuple[Band, ...]:
        """Who sees whom, for the rows and keys as laid out above."""
        slots = self.context + self.targets
        place = [
            *range(slots - 1, self.context - 1, -1),
            *range(self.context),
            *range(self.keys - 1, slots - 1, -1),
        ]
        content, query = np.asarray(self.content), np.asarray(self.query)
        mask = np.concatenate([content[place][:, place], query[::-1][:, place]])
        inner = [round(part * self.targets / self.parts) for part in range(1, self.parts)]
        return bands(mask, [*inner, self.targets, self.keys, *(self.keys + cut for cut in inner)])
