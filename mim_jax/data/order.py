"""The order of examples: an endless stream of permutations, each a function of (seed, epoch) alone."""

from functools import lru_cache

import numpy as np

from mim_jax.data import keys
from mim_jax.data.errors import DataError
from mim_jax.data.views.base import Index


@lru_cache(maxsize=3)
def _permutation(length: int, seed: int, epoch: int) -> Index:
    # int32 halves what a cached epoch of a large source costs: 5 MB for ImageNet. Three epochs: a batch that
    # crosses one, and a neighbour.
    order = keys.permutation(length, seed, "order", epoch)
    order = order.astype(np.int32) if length < 2**31 else order
    order.flags.writeable = False
    return order


def locate(positions: Index, length: int, *, seed: int, shuffle: bool = True) -> tuple[Index, Index]:
    """Position p belongs to epoch p // length, where it is example permutation(seed, epoch)[p % length].

    Args: positions: int64 [B], 0 and up, in any order; length: examples in the source, 1 and up.
    Returns (epoch, index), int64 [B] each. Without shuffle index = p % length.
    """
    if length < 1:
        raise DataError("A source without examples has no order: give a source with at least one image.")
    positions = np.asarray(positions, np.int64)
    epoch, place = np.divmod(positions, length)
    if not shuffle:
        return epoch, place
    index = np.empty_like(place)
    for one in np.unique(epoch):
        here = epoch == one
        index[here] = _permutation(length, seed, int(one))[place[here]]
    return epoch, index
