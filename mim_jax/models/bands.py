"""A constant attention mask as bands of rows, each with the stretch of keys that it needs.

A boolean mask costs a pass over all logits, and logits that it hides were computed for nothing. Where the mask is known
before compilation, rows are cut into bands; each computes only the contiguous keys that any of its rows may see, and
needs no mask at all where all of them may see all of these.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np


@partial(jax.tree_util.register_dataclass, data_fields=["mask"], meta_fields=["rows", "keys"])
@dataclasses.dataclass(frozen=True, eq=False)
class Band:
    """Rows [rows[0], rows[1]) attend to keys [keys[0], keys[1]), where `mask` (bool [rows, keys]; None = everywhere)."""

    rows: tuple[int, int]
    keys: tuple[int, int]
    mask: np.ndarray | jax.Array | None

    @property
    def area(self) -> int:
        """Logits computed."""
        return (self.rows[1] - self.rows[0]) * (self.keys[1] - self.keys[0])


def bands(mask: np.ndarray, cuts: Sequence[int]) -> tuple[Band, ...]:
    """Cuts the rows of a constant mask bool [R, K] at `cuts` (each in 1..R - 1, rising).

    Raises:
        ValueError: if a row may see nothing.
    """
    if not mask.any(axis=1).all():
        raise ValueError("a row of the attention mask may see nothing")
    edges = [0, *cuts, len(mask)]
    made = []
    for first, last in itertools.pairwise(edges):
        seen = np.flatnonzero(mask[first:last].any(axis=0))
        start, stop = int(seen[0]), int(seen[-1]) + 1
        part = mask[first:last, start:stop]
        made.append(Band((first, last), (start, stop), None if part.all() else part))
    return tuple(made)


def last_rows(given: Sequence[Band], count: int) -> tuple[Band, ...]:
    """The bands of the last `count` rows, renumbered from 0; a cut must lie there."""
    total = given[-1].rows[1]
    kept = [band for band in given if band.rows[0] >= total - count]
    if sum(band.rows[1] - band.rows[0] for band in kept) != count:
        raise ValueError(f"no cut between bands lies {count} rows before the end")
    shift = total - count
    return tuple(
        dataclasses.replace(band, rows=(band.rows[0] - shift, band.rows[1] - shift)) for band in kept
    )
